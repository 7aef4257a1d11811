"""A canary: secrets are planted in every way there is, and looked for in all that is written and printed."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from programs import nemo, nemo_json, python, succeeded, until, write

import nemo_run as run

#: Each task prints all that it was told, then raises it or waits until it may end.
SCRIPT = """
import os
import sys
import time

import nemo_run as run


def tell(argument, gate, fail=False):
    for name in ("FROM_VARIABLE", "FROM_FILE", "FROM_COMMAND", "PLAIN"):
        print(name, os.environ[name])
    print("argument", argument["token"][0], flush=True)
    print("in two pieces", argument["token"][0][:9], end="", flush=True)
    print(argument["token"][0][9:], flush=True)
    while not os.path.exists(gate):
        time.sleep(0.01)
    if fail:
        raise ValueError("cannot log in with " + argument["token"][0] + os.environ["FROM_FILE"])


if __name__ == "__main__":
    KEPT_FILE, GATE, HOW = sys.argv[1:]
    executor = run.LocalExecutor(
        env_vars={
            "FROM_VARIABLE": run.Secret("CANARY_VARIABLE"),
            "FROM_FILE": run.Secret(file=KEPT_FILE),
            "FROM_COMMAND": run.Secret(command=["cat", KEPT_FILE + ".command"]),
            "PLAIN": os.environ["CANARY_PLAIN"],
        },
        retries=1 if HOW == "retried" else 0,
        timeout=0.5 if HOW == "timeout" else None,
        monitor_resources=True,
    )
    argument = {"token": [run.Secret("CANARY_ARGUMENT")]}
    task = run.Partial(tell, argument=argument, gate=GATE, fail=HOW in ("fail", "retried", "direct"))
    script = run.Script(
        inline='echo "script $IN_SCRIPT $FROM_FILE"; while ! test -e "$GATE"; do sleep 0.05; done',
        env={"IN_SCRIPT": run.Secret("CANARY_SCRIPT"), "GATE": GATE},
    )
    with run.Experiment("canary", executor=executor) as experiment:
        experiment.add(task, name="task", tail_logs=True)
        if HOW != "direct":
            experiment.add([task, script], name="group", tail_logs=True)
            experiment.add(script, name="script", tail_logs=True)
            experiment.add(task, name="later", dependencies=["task"])
        experiment.dryrun()
        experiment.run(detach=HOW == "detach", direct=HOW == "direct")
"""

#: The ways that are `run.Secret`s; a plain variable may be in files, if only its owner can read them.
WAYS = ("VARIABLE", "FILE", "COMMAND", "SCRIPT", "ARGUMENT")


class Aviary(NamedTuple):
    """Where the canaries are, and where they must not be."""

    folder: Path
    values: dict[str, str]
    environment: dict[str, str]

    @property
    def gate(self) -> Path:
        return self.folder / "work" / "gate"

    def launch(self, how: str) -> subprocess.Popen[str]:
        """Start the script, with both outputs in files."""
        printed = self.folder / "work" / "printed"
        command = [sys.executable, "script.py", str(self.folder / "kept" / "secret"), str(self.gate), how]
        with printed.open("w") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder / "work",
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """All that was written or can be seen: files with their names, what was printed, `ps`."""
        for path in self.written():
            yield str(path), bytes(path) + path.read_bytes()
        for process in psutil.process_iter():
            try:
                yield f"ps {process.pid}", "\0".join(process.cmdline()).encode(errors="surrogateescape")
            except psutil.Error:
                continue

    def written(self) -> list[Path]:
        searched = [self.folder / name for name in ("home", "work", "tmp")]
        return [path for folder in searched for path in folder.rglob("*") if path.is_file()]

    def seen(self) -> list[tuple[str, str]]:
        """The way of each secret that was found, and where."""
        raw = {way: self.values[way].encode() for way in WAYS}
        return [(way, where) for where, data in self.everything() for way in WAYS if raw[way] in data]


@pytest.fixture
def aviary(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aviary]:
    values = {way: f"canary-{secrets.token_hex(12)}" for way in (*WAYS, "PLAIN")}
    for name in ("work", "tmp", "kept"):
        (tmp_path / name).mkdir(mode=0o700)
    write(tmp_path / "work" / "script.py", SCRIPT)
    (tmp_path / "kept" / "secret").write_text(values["FILE"] + "\n")
    (tmp_path / "kept" / "secret.command").write_text(values["COMMAND"] + "\n")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    told = {f"CANARY_{way}": values[way] for way in ("VARIABLE", "SCRIPT", "ARGUMENT", "PLAIN")}
    aviary = Aviary(tmp_path, values, {**os.environ, **told})
    yield aviary
    aviary.gate.touch()


def telling(aviary: Aviary) -> Callable[[], bool]:
    """Whether each of the first three jobs has printed all that it was told."""

    def told() -> bool:
        logs = [path.read_text() for path in aviary.folder.glob("home/experiments/canary/*/*/logs/*.log")]
        return len(logs) == 4 and all("pieces ••" in log or "script ••" in log for log in logs)

    return told


def commands(aviary: Aviary, *, failing: bool) -> str:
    """What the commands print that show an experiment; the secrets' sources are out of their reach."""
    printed = ""
    for job in ("task", "group", "script", "later"):
        done = nemo("logs", "canary", job)
        printed += done.stdout + done.stderr
    for command in ("show", "status", "results", "list"):
        name = [] if command == "list" else ["canary"]
        printed += succeeded(nemo(command, *name)).stdout + succeeded(nemo(command, *name, "--json")).stdout
    if failing:
        done = nemo("wait", "canary")
        assert done.returncode == 1
        printed += done.stdout + done.stderr
    return printed


def test_no_secret_is_seen_while_jobs_run_nor_after_they_ended(aviary: Aviary) -> None:
    with aviary.launch("attached") as launcher:
        until(telling(aviary))
        assert aviary.seen() == []
        aviary.gate.touch()
    assert launcher.returncode == 0
    assert aviary.seen() == []
    printed = (aviary.folder / "work" / "printed").read_text()
    assert printed.count("••••••") >= 12  # what the tasks told of them is there, but for their values
    assert "in two pieces ••••••\n" in printed
    assert aviary.values["PLAIN"] in printed  # what is not marked as secret is shown
    shown = commands(aviary, failing=False)
    assert "argument ••••••\n" in shown
    assert not any(aviary.values[way] in shown for way in WAYS)
    check_owner_only(aviary)


@pytest.mark.parametrize("how", ["fail", "retried", "timeout"])
def test_no_secret_is_seen_in_what_is_said_of_a_failure(aviary: Aviary, how: str) -> None:
    if how != "timeout":
        aviary.gate.touch()
    with aviary.launch(how) as launcher:
        launcher.wait(100)
    assert launcher.returncode == 1
    printed = (aviary.folder / "work" / "printed").read_text()
    assert "job 'task' of experiment canary_" in printed
    if how != "timeout":
        assert "ValueError: cannot log in with ••••••••••••\n" in printed
        error = run.Experiment.from_title("canary").path / "task" / "results"
        records = [json.loads(path.read_text())["error"] for path in error.iterdir()]
        assert len(records) == (2 if how == "retried" else 1)
        assert {record["message"] for record in records} == {"cannot log in with ••••••••••••"}
    shown = commands(aviary, failing=True)
    assert not any(aviary.values[way] in shown for way in WAYS)
    assert aviary.seen() == []
    check_owner_only(aviary)


def test_no_secret_is_seen_of_a_detached_experiment_whose_order_another_process_keeps(
    aviary: Aviary,
) -> None:
    with aviary.launch("detach") as launcher:
        launcher.wait(100)
    assert launcher.returncode == 0
    until(telling(aviary))
    assert aviary.seen() == []
    aviary.gate.touch()
    assert set(run.Experiment.from_title("canary").wait()) == {"task", "group", "script", "later"}
    assert aviary.seen() == []
    assert not any(aviary.values[way] in commands(aviary, failing=False) for way in WAYS)
    check_owner_only(aviary)


def test_no_secret_is_seen_after_the_launcher_and_a_supervisor_were_killed(aviary: Aviary) -> None:
    with aviary.launch("attached") as launcher:
        until(telling(aviary))
        launcher.kill()
    experiment = run.Experiment.from_title("canary")
    handle = experiment.status(return_dict=True)["task"]["handle"]
    os.kill(int(handle.data["pid"]), signal.SIGKILL)
    until(lambda: nemo_json("status", "canary")[0]["state"] == "FAILED")
    assert aviary.seen() == []
    aviary.gate.touch()
    shown = commands(aviary, failing=True)
    assert not any(aviary.values[way] in shown for way in WAYS)
    assert aviary.seen() == []
    check_owner_only(aviary)


def test_no_secret_is_seen_of_tasks_that_are_called_in_the_launching_process(aviary: Aviary) -> None:
    aviary.gate.touch()
    with aviary.launch("direct") as launcher:
        launcher.wait(100)
    assert launcher.returncode == 1
    # The traceback of a task's own error is printed by Python itself; what we write down is ours.
    (aviary.folder / "work" / "printed").unlink()
    assert aviary.seen() == []
    log = run.Experiment.from_title("canary").path / "task" / "logs" / "task_0.log"
    assert "argument ••••••\n" in log.read_text()
    assert nemo_json("status", "canary")[0]["message"].startswith("ValueError: cannot log in with ••")
    check_owner_only(aviary)


def test_the_canaries_do_sing(aviary: Aviary) -> None:
    """The search finds what is there: in a file, in its name, and in a list of processes."""
    for way, place in (("FILE", "home/x"), ("SCRIPT", "work/x"), ("VARIABLE", "tmp/x")):
        path = aviary.folder / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xff\0" + aviary.values[way].encode() + b"\0")
    (aviary.folder / "tmp" / aviary.values["COMMAND"]).touch()
    sleeper = [sys.executable, "-c", "input()", aviary.values["ARGUMENT"]]
    with subprocess.Popen(sleeper, stdin=subprocess.PIPE) as process:
        until(lambda: {way for way, _ in aviary.seen()} == set(WAYS))
        process.communicate(b"\n")


def test_a_dry_run_needs_no_secret_and_shows_only_names(aviary: Aviary) -> None:
    script = write(
        aviary.folder / "work" / "dry.py",
        """
        import nemo_run as run

        executor = run.LocalExecutor(env_vars={"TOKEN": run.Secret("CANARY_VARIABLE")})
        run.run(print, executor, dryrun=True)
        """,
    )
    for environment in (aviary.environment, {"CANARY_VARIABLE": ""}):
        printed = succeeded(python(script, env=environment)).stdout
        assert "TOKEN='<secret CANARY_VARIABLE>'" in printed
        assert aviary.values["VARIABLE"] not in printed


def check_owner_only(aviary: Aviary) -> None:
    """What a plain variable holds is in no file that others could read, and in no list of processes."""
    plain = aviary.values["PLAIN"].encode()
    for path in (aviary.folder / "home").rglob("*"):
        assert path.is_symlink() or path.stat().st_mode & 0o077 == 0, path
    holding = [where for where, data in aviary.everything() if plain in data]
    assert any(where.endswith("executor.json") for where in holding)
    assert not any(where.startswith("ps ") for where in holding)
