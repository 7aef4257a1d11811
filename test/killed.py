"""Launching scripts that are killed at a step, and what must hold of their jobs wherever these run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deeds import launch, lines, nemo, script

import nemo_run as run

Tell = Callable[[str, tuple[Any, ...]], object]
#: What a launching script does that its place has made an `executor` for.
SINGLE = """
with run.Experiment("durable", executor, clean_mode=True) as exp:
    exp.add(run.Partial(tasks.note_down, trace + "/lines", "value", 0.3), name="job")
    exp.run()
"""
GROUP = """
with run.Experiment("durable", executor, clean_mode=True) as exp:
    members = [run.Partial(tasks.note_down, trace + "/lines", name, 0.3) for name in ("one", "two")]
    exp.add(members, name="job")
    exp.run()
"""


def sends(*parts: bytes) -> Tell:
    """Tells from an audit event that a request is on its way."""
    return lambda event, args: event == "http.client.send" and all(part in bytes(args[1]) for part in parts)


def writes(name: str, *parts: str) -> Tell:
    """Tells from an audit event that a record is about to be there."""

    def tell(event: str, args: tuple[Any, ...]) -> bool:
        return (
            event == "os.rename"
            and str(args[1]).endswith(name)
            and all(part in Path(args[0]).read_text() for part in parts)
        )

    return tell


def killed(folder: Path, body: str, *words: str) -> Path:
    """Run a launching script that kills itself; where its tasks leave traces, which it is told last."""
    (trace := folder / "trace").mkdir()
    done = launch(script(folder / "launch.py", body), *words, str(trace))
    assert done.returncode == -signal.SIGKILL, done.stderr
    return trace / "lines"


def assert_ran_once(trace: Path) -> None:
    """The job of `SINGLE` ends, has run once, and its end, value and log are there."""
    waited = nemo("experiment", "wait", "durable")
    assert waited.returncode == 0, waited.stderr
    assert lines(trace) == ["value"]
    exp = run.Experiment.from_title("durable")
    assert exp.results() == {"job": "value"}
    record = exp.status(return_dict=True)["job"]
    assert (record["status"].name, record["exit_code"]) == ("SUCCEEDED", 0)
    assert (exp.path / "job" / "logs" / "job_0.log").exists()


def assert_each_ran_once(trace: Path) -> None:
    """The members of `GROUP` end, each has run once, and their values are there."""
    waited = nemo("experiment", "wait", "durable")
    assert waited.returncode == 0, waited.stderr
    assert sorted(lines(trace)) == ["one", "two"]
    results = {"job": {"note_down": "one", "note_down_1": "two"}}
    assert run.Experiment.from_title("durable").results() == results
