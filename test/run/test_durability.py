"""However a launcher is killed, each job runs exactly once, and its true end and value are there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deeds import STEPS, environment, launch, lines, nemo, note, processes_of, script, until

import nemo_run as run
from nemo_run.run.store import Store, scan
from nemo_run.testing import FakeExecutor

pytestmark = pytest.mark.usefixtures("home")

#: Two jobs side by side, one after both; one that fails, and one after it.
GRAPH = """
trace, step, count = sys.argv[1:4]
if step:
    kill_at(deeds.STEPS[step], int(count))
exp = run.Experiment("durable", run.LocalExecutor(max_parallel=2), clean_mode=True, raise_on_failure=False)
exp.add(run.Partial(deeds.note, trace, "a", 0.05), name="a")
exp.add(run.Partial(deeds.note, trace, "b"), name="b")
exp.add(run.Partial(deeds.note_and_fail, trace, "bad"), name="bad")
exp.add(run.Partial(deeds.note, trace, "c"), name="c", dependencies=["a", "b"])
exp.add(run.Partial(deeds.note, trace, "never"), name="never", dependencies=["bad"])
exp.run()
"""
#: Waits in a process that is killed too.
WAIT = """
step, count = sys.argv[1:]
kill_at(deeds.STEPS[step], int(count))
run.Experiment.from_title("durable").wait()
"""
ENDS = {"a": "SUCCEEDED", "b": "SUCCEEDED", "bad": "FAILED", "c": "SUCCEEDED", "never": "CANCELLED"}
#: How often a launcher of that graph surely comes to each step.
TIMES = {
    "while the experiment is made": 20,
    "before the experiment appears": 1,
    "before the intent": 5,
    "before a server starts": 1,
    "after the intent": 4,
    "after the process starts": 4,
    "before the handle is recorded": 4,
    "while waiting": 4,
    "while recording the end": 5,
}
UNBORN = ("while the experiment is made", "before the experiment appears")


def test_every_step_is_put_to_the_test() -> None:
    assert TIMES.keys() == STEPS.keys()


def killed(path: Path, *args: str) -> bool:
    """Run a script to its end; whether that was a SIGKILL."""
    done = launch(path, *args)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def check_all_is_there(trace: Path, home: Path) -> None:
    """See that another process finds every job to have run exactly once, with its true end and value."""
    waited = nemo("experiment", "wait", "durable")
    assert waited.returncode == 1, waited.stderr
    assert "bad cannot be done" in waited.stderr
    ran = lines(trace)
    assert sorted(ran) == ["a", "b", "bad", "c"]
    assert ran.index("c") > max(ran.index("a"), ran.index("b"))

    exp = run.Experiment.from_title("durable")
    with pytest.raises(run.JobFailedError, match="bad cannot be done"):
        exp.wait()
    assert exp.results() == {name: name for name in "abc"}
    store = Store(exp.path)
    records = {entry.id: store.read_job(entry.id) for entry in store.experiment().jobs}
    assert {name: record.state.name for name, record in records.items()} == ENDS
    assert {name: record.exit_code for name, record in records.items() if record.handle} == {
        "a": 0, "b": 0, "bad": 1, "c": 0,
    }  # fmt: skip
    assert records["never"].message == "never started, because job 'bad' is FAILED"
    assert all(r.handle is None or r.handle.id == r.token for r in records.values())
    assert all(r.started <= r.ended for r in records.values() if r.started and r.ended)
    assert lines(trace) == ran
    until(lambda: not processes_of(home), "no process is left")


@pytest.mark.parametrize("step", [step for step in STEPS if step not in UNBORN])
def test_a_launcher_killed_at_a_step_loses_and_doubles_nothing(step: str, tmp_path: Path, home: Path) -> None:
    trace = tmp_path / "trace"
    assert killed(script(tmp_path / "graph.py", GRAPH), str(trace), step, "1")
    check_all_is_there(trace, home)


def test_a_launcher_killed_between_the_jobs_of_a_chain_loses_and_doubles_nothing(
    tmp_path: Path, home: Path
) -> None:
    trace = tmp_path / "trace"
    # The intents of a, b and bad come first; those of c and the end of never follow the ends of others.
    assert killed(script(tmp_path / "graph.py", GRAPH), str(trace), "before the intent", "4")
    assert sorted(lines(trace)) != ["a", "b", "bad", "c"]
    check_all_is_there(trace, home)


@pytest.mark.parametrize("step", UNBORN)
def test_an_experiment_whose_making_was_killed_was_never_there(step: str, tmp_path: Path, home: Path) -> None:
    trace = tmp_path / "trace"
    graph = script(tmp_path / "graph.py", GRAPH)
    assert killed(graph, str(trace), step, "1")
    assert list(scan()) == []
    listed = nemo("experiment", "list")
    assert (listed.returncode, listed.stdout) == (0, "No experiments.\n")
    assert lines(trace) == []
    (left,) = (home / "experiments" / "durable").iterdir()
    assert left.name.startswith(".new-")

    assert not killed(graph, str(trace), "", "")
    assert nemo("experiment", "gc").returncode == 0
    assert left.exists()  # it may still be in the making
    os.utime(left, (0, 0))
    assert nemo("experiment", "gc").returncode == 0
    assert not left.exists()
    check_all_is_there(trace, home)


def chosen(rounds: int, kills: int, seed: int) -> list[list[tuple[str, int]]]:
    """For each round where the launcher, and each that takes over from it, is killed."""
    choice = random.Random(seed)
    first = [(step, count) for step, times in TIMES.items() for count in range(1, times + 1)]
    later = [(step, count) for step, count in first if step not in UNBORN]
    return [[choice.choice(later if at else first) for at in range(kills)] for _ in range(rounds)]


def as_id(plan: list[tuple[str, int]]) -> str:
    return ", ".join(f"{step} {count}" for step, count in plan).replace(" ", "-")


@pytest.mark.parametrize("plan", chosen(rounds=14, kills=1, seed=20), ids=as_id)
def test_a_launcher_killed_anywhere_loses_and_doubles_nothing(
    plan: list[tuple[str, int]], tmp_path: Path, home: Path
) -> None:
    trace, ((step, count),) = tmp_path / "trace", plan
    graph = script(tmp_path / "graph.py", GRAPH)
    assert killed(graph, str(trace), step, str(count))
    if step in UNBORN:
        assert list(scan()) == []
        assert not killed(graph, str(trace), "", "")
    check_all_is_there(trace, home)


@pytest.mark.parametrize("plan", chosen(rounds=6, kills=3, seed=21), ids=as_id)
def test_neither_do_those_who_take_over_and_are_killed_in_turn(
    plan: list[tuple[str, int]], tmp_path: Path, home: Path
) -> None:
    trace = tmp_path / "trace"
    graph, wait = script(tmp_path / "graph.py", GRAPH), script(tmp_path / "wait.py", WAIT)
    (step, count), *later = plan
    assert killed(graph, str(trace), step, str(count))
    if step in UNBORN:
        assert not killed(graph, str(trace), "", "")
    for step, count in later:
        done = launch(wait, step, str(count))
        assert done.returncode in (1, -signal.SIGKILL), (
            done.stderr
        )  # it may have all to itself and get through
    check_all_is_there(trace, home)


FAKE = """
folder, step, count = sys.argv[1:]
if step:
    kill_at(deeds.STEPS[step], int(count))
exp = run.Experiment("fake", FakeExecutor(folder=folder), clean_mode=True, threadpool_workers=1)
for name in "abc":
    exp.add(run.Partial(deeds.note, "unused", name), name=name)
exp.run()
"""


@pytest.mark.parametrize(
    ("step", "count"),
    [("before the intent", 2), ("before the handle is recorded", 1), ("before the handle is recorded", 3)],
)
def test_no_job_is_sent_to_a_cluster_twice(step: str, count: int, tmp_path: Path) -> None:
    cluster = FakeExecutor(folder=str(tmp_path / "cluster"))
    assert killed(script(tmp_path / "fake.py", FAKE), cluster.folder, step, str(count))
    waited = nemo("experiment", "wait", "fake")
    assert waited.returncode == 0, waited.stderr
    assert sorted(job["name"] for job in cluster.jobs()) == ["a", "b", "c"]


class Fourfold(run.LocalExecutor):
    """Submits as four processes would that took over from each other before the job could be found."""

    def submit(self, plan: run.Plan) -> run.JobHandle:
        for _ in range(3):
            super().submit(plan)
        return super().submit(plan)


def test_a_job_that_is_submitted_several_times_at_once_runs_once(tmp_path: Path, home: Path) -> None:
    trace = tmp_path / "trace"
    names = [f"job{number}" for number in range(8)]
    exp = run.Experiment("fourfold", Fourfold(), clean_mode=True)
    for name in names:
        exp.add(run.Partial(note, str(trace), name), name=name)
    assert exp.run() == {name: name for name in names}
    until(lambda: not processes_of(home), "no process is left")
    assert sorted(lines(trace)) == names


def test_a_launcher_killed_while_it_waits_leaves_its_jobs_running(tmp_path: Path, home: Path) -> None:
    trace, go = tmp_path / "trace", tmp_path / "go"
    body = """
exp = run.Experiment("long", run.LocalExecutor(), clean_mode=True)
exp.add(run.Partial(deeds.note_and_wait_for, *sys.argv[1:2], "a", sys.argv[2]), name="a")
exp.run()
"""
    command = [sys.executable, str(script(tmp_path / "long.py", body)), str(trace), str(go)]
    launcher = subprocess.Popen(command, env=environment(), cwd=tmp_path)
    until(lambda: lines(trace) == ["a"], "the job runs")
    launcher.kill()
    launcher.wait()
    exp = run.Experiment.from_title("long")
    assert exp.status(return_dict=True)["a"]["status"].name == "RUNNING"
    go.touch()
    assert exp.wait() == {"a": "a"}
    until(lambda: not processes_of(home), "no process is left")
