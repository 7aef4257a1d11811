"""Dispatch starts jobs in order, a few at a time, once each, and takes down how each of them ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from deeds import environment, launch, lines, nemo, note, note_and_fail, note_and_wait_for, script, until

import nemo_run as run
from nemo_run.run.store import JobRecord, Store
from nemo_run.testing import FakeExecutor, FakeQueue, Fate

pytestmark = pytest.mark.usefixtures("home")


class Attached(FakeExecutor):
    """Its jobs end with the process that launched them, and it has no groups."""

    capabilities: ClassVar[run.Capability] = run.Capability.NONE


class Hasty(FakeExecutor):
    """Gives up soon on jobs that it cannot see."""

    lost_after: ClassVar[float] = 0.2


class Slow(FakeExecutor):
    """Takes its time to accept a job."""

    def submit(self, plan: run.Plan) -> run.JobHandle:
        Path(self.folder + ".submitting").touch()
        until(lambda: os.path.exists(self.folder + ".go"), "it may go on")
        return super().submit(plan)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "cluster")


def experiment(title: str, executor: run.Executor, edges: dict[str, list[str]], **given: Any) -> Any:
    """An experiment of jobs that each come after some others."""
    exp = run.Experiment(title, executor, clean_mode=True, **given)
    for name, dependencies in edges.items():
        exp.add(run.Partial(note, "unused", name), name=name, dependencies=dependencies)
    return exp


def states(exp: Any) -> dict[str, str]:
    return {job: entry["status"].name for job, entry in exp.status(return_dict=True).items()}


def messages(exp: Any) -> dict[str, str]:
    return {job: entry["message"] for job, entry in exp.status(return_dict=True).items()}


def records(exp: Any) -> list[JobRecord]:
    return [Store(exp.path).read_job(job.id) for job in exp.jobs]


def arrived(executor: FakeExecutor) -> list[str]:
    return [job["name"] for job in executor.jobs()]


def asked(executor: FakeExecutor) -> list[list[str]]:
    """The jobs that each call of `status` asked about."""
    log = Path(executor.folder) / "calls.log"
    return [json.loads(line.partition(" ")[2]) for line in lines(log) if line.startswith("status ")]


DIAMOND = {"top": [], "left": ["top"], "right": ["top"], "bottom": ["left", "right"]}


# --- order ----------------------------------------------------------------------------------------------


def test_a_diamond_of_local_jobs_runs_from_top_to_bottom(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    exp = run.Experiment("diamond", run.LocalExecutor(), clean_mode=True)
    for name, dependencies in DIAMOND.items():
        exp.add(run.Partial(note, str(trace), name), name=name, dependencies=dependencies)
    assert exp.run() == {name: name for name in DIAMOND}
    written = lines(trace)
    assert (written[0], sorted(written[1:3]), written[3:]) == ("top", ["left", "right"], ["bottom"])


@pytest.mark.parametrize("kind", [FakeExecutor, FakeQueue])
def test_a_job_is_submitted_after_all_that_it_depends_on(kind: type[FakeExecutor], folder: str) -> None:
    cluster = kind(folder=folder, default=Fate(after=0.02))
    exp = experiment("diamond", cluster, DIAMOND)
    exp.run()
    order = arrived(cluster)
    assert (order[0], sorted(order[1:3]), order[3:]) == ("top", ["left", "right"], ["bottom"])
    assert set(states(exp).values()) == {"SUCCEEDED"}


def test_sequential_jobs_never_overlap(folder: str) -> None:
    cluster = FakeExecutor(folder=folder, default=Fate(after=0.05))
    exp = experiment("row", cluster, {name: [] for name in "abcd"})
    exp.run(sequential=True)
    assert arrived(cluster) == list("abcd")
    ended = [record.ended or 0 for record in records(exp)]
    assert all(end <= job["submitted"] for end, job in zip(ended, cluster.jobs()[1:], strict=False))


def test_a_chain_of_a_thousand_jobs_runs_to_its_end(folder: str) -> None:
    names = [f"job{number}" for number in range(1000)]
    cluster = FakeExecutor(folder=folder)
    exp = experiment("chain", cluster, {name: [] for name in names})
    exp.run(sequential=True)
    assert arrived(cluster) == names
    assert [record.state.name for record in records(exp)] == ["SUCCEEDED"] * 1000


def test_the_failure_of_a_chains_first_job_cancels_the_thousand_after_it(folder: str) -> None:
    cluster = FakeExecutor(folder=folder, outcomes={"job0": "FAILED"})
    exp = experiment("chain", cluster, {f"job{number}": [] for number in range(1001)}, raise_on_failure=False)
    exp.run(sequential=True)
    assert [record.state.name for record in records(exp)] == ["FAILED"] + ["CANCELLED"] * 1000
    assert arrived(cluster) == ["job0"]


@pytest.mark.parametrize("fate", ["FAILED", "CANCELLED"])
def test_dependents_of_a_job_that_did_not_succeed_never_start(fate: str, folder: str) -> None:
    cluster = FakeExecutor(folder=folder, outcomes={"left": Fate(state=fate, message="TROUBLE")})
    exp = experiment("diamond", cluster, DIAMOND, raise_on_failure=False)
    exp.run()
    assert states(exp) == {"top": "SUCCEEDED", "left": fate, "right": "SUCCEEDED", "bottom": "CANCELLED"}
    assert messages(exp)["bottom"] == f"never started, because job 'left' is {fate}"
    assert sorted(arrived(cluster)) == ["left", "right", "top"]


def test_dependents_of_a_lost_job_never_start(folder: str) -> None:
    cluster = Hasty(folder=folder, outcomes={"left": "UNKNOWN"})
    exp = experiment("diamond", cluster, DIAMOND)
    with pytest.raises(run.JobLostError, match="left"):
        exp.run()
    assert states(exp) == {"top": "SUCCEEDED", "left": "UNKNOWN", "right": "SUCCEEDED", "bottom": "CANCELLED"}
    assert messages(exp)["bottom"] == "never started, because job 'left' is UNKNOWN"


def test_dependents_of_a_job_that_is_cancelled_while_it_runs_never_start(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    exp = run.Experiment("pair", run.LocalExecutor(), clean_mode=True)
    exp.add(run.Partial(note, str(trace), "a", 60), name="a")
    exp.add(run.Partial(note, str(trace), "b"), name="b", dependencies=["a"])
    exp.run(detach=True)
    until(lambda: lines(trace) == ["a"], "the first job runs")
    exp.cancel("a")
    with pytest.raises(run.JobCancelledError, match="'a'"):
        exp.wait()
    assert states(exp) == {"a": "CANCELLED", "b": "CANCELLED"}
    assert messages(exp)["b"] == "never started, because job 'a' is CANCELLED"
    assert lines(trace) == ["a"]


def test_a_job_that_is_cancelled_while_it_is_being_submitted_does_not_stay_behind(folder: str) -> None:
    cluster = Slow(folder=folder, default="RUNNING")
    exp = experiment("slow", cluster, {"a": []})
    with ThreadPoolExecutor() as pool:
        running = pool.submit(exp.run)
        until(lambda: os.path.exists(folder + ".submitting"), "it is being submitted")
        exp.cancel()
        Path(folder + ".go").touch()
        assert isinstance(running.exception(timeout=30), run.JobCancelledError)
    assert cluster.calls()["cancel"] == 1
    assert arrived(cluster) == ["a"]


def test_an_error_of_one_job_leaves_those_beside_it_alone(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    exp = run.Experiment("beside", run.LocalExecutor(), clean_mode=True)
    exp.add(run.Partial(note_and_fail, str(trace), "bad"), name="bad")
    exp.add(run.Partial(note, str(trace), "good", 0.2), name="good")
    with pytest.raises(run.JobFailedError, match="bad cannot be done"):
        exp.run()
    assert states(exp) == {"bad": "FAILED", "good": "SUCCEEDED"}
    assert exp.results() == {"good": "good"}


# --- what the backend does ------------------------------------------------------------------------------


def test_a_backend_with_dependencies_is_handed_the_whole_graph_at_once(folder: str) -> None:
    cluster = FakeQueue(folder=folder, default=Fate(after=0.2))
    exp = experiment("diamond", cluster, DIAMOND)
    exp.run()
    jobs = {job["name"]: job for job in cluster.jobs()}
    assert {name: sorted(job["depends_on"]) for name, job in jobs.items()} == {
        name: sorted(jobs[other]["id"] for other in others) for name, others in DIAMOND.items()
    }
    assert jobs["bottom"]["submitted"] < (records(exp)[0].ended or 0)


def test_a_backend_with_dependencies_needs_no_process_of_ours_once_detached(folder: str) -> None:
    cluster = FakeQueue(folder=folder, default=Fate(after=0.3))
    exp = experiment("chain", cluster, {name: [] for name in "abc"})
    exp.run(sequential=True, detach=True)
    assert arrived(cluster) == list("abc")
    assert not (exp.path / "dispatcher.log").exists()
    assert [record.state.name for record in records(exp)] == ["SUBMITTED"] * 3
    exp.wait()
    assert set(states(exp).values()) == {"SUCCEEDED"}


def test_a_backend_that_cancels_dependents_itself_is_believed(folder: str) -> None:
    cluster = FakeQueue(folder=folder, outcomes={"top": Fate(state="FAILED", after=0.2)})
    exp = experiment("diamond", cluster, DIAMOND, raise_on_failure=False)
    exp.run()
    assert [record.state.name for record in records(exp)] == ["FAILED"] + ["CANCELLED"] * 3


def test_dependencies_on_another_cluster_are_waited_for_here(tmp_path: Path) -> None:
    here = FakeQueue(folder=str(tmp_path / "here"), default=Fate(after=0.1))
    there = FakeQueue(folder=str(tmp_path / "there"))
    exp = run.Experiment("two", here, clean_mode=True)
    exp.add(run.Partial(note, "unused", "a"), name="a")
    exp.add(run.Partial(note, "unused", "b"), there, name="b", dependencies=["a"])
    exp.run()
    (job,) = there.jobs()
    assert job["depends_on"] == []
    assert job["submitted"] >= (records(exp)[0].ended or 0)


def test_a_refusal_is_the_end_of_that_job_only_and_its_words_are_told(folder: str) -> None:
    refusal = "sbatch: error: invalid partition specified: gpux"
    cluster = FakeExecutor(folder=folder, outcomes={"left": Fate(refusal=refusal)})
    exp = experiment("diamond", cluster, DIAMOND)
    with pytest.raises(run.JobFailedError, match="invalid partition specified: gpux"):
        exp.run()
    assert states(exp) == {"top": "SUCCEEDED", "left": "FAILED", "right": "SUCCEEDED", "bottom": "CANCELLED"}
    assert cluster.calls()["submit"] == 3


def test_a_job_that_arrived_though_the_answer_was_lost_is_found_again(folder: str) -> None:
    cluster = FakeExecutor(folder=folder, outcomes={"left": Fate(answer_lost=True, after=0.1)})
    exp = experiment("diamond", cluster, DIAMOND)
    exp.run()
    assert set(states(exp).values()) == {"SUCCEEDED"}
    assert sorted(arrived(cluster)) == sorted(DIAMOND)


def test_a_job_that_cannot_be_seen_for_a_while_keeps_its_last_state(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = FakeExecutor(folder=folder, outcomes={"a": Fate(after=0.4, unseen=(0.1, 0.3))})
    exp = run.Experiment("spell", cluster)
    exp.add(run.Partial(note, "unused", "a"), name="a")
    exp.run()
    shown = capsys.readouterr().err
    assert "a  RUNNING" in shown
    assert "UNKNOWN" not in shown
    assert [record.state.name for record in records(exp)] == ["SUCCEEDED"]


def test_a_second_waiter_takes_not_seen_for_no_verdict_either(folder: str) -> None:
    cluster = FakeExecutor(folder=folder, outcomes={"a": Fate(state="FAILED", after=1.5, unseen=(0.0, 1.4))})
    exp = experiment("spell", cluster, {"a": []})
    exp.run(detach=True)
    store = Store(exp.path)
    with store.dispatching() as held:
        assert held is not None
        waiter = subprocess.Popen([sys.executable, "-m", "nemo_run", "experiment", "wait", exp.id])
        until(lambda: cluster.calls()["status"] > 2, "it has looked at the job")
        assert waiter.poll() is None
    assert waiter.wait(30) == 1


def test_one_call_asks_a_backend_about_all_of_its_jobs(folder: str) -> None:
    cluster = FakeExecutor(folder=folder, default=Fate(after=2.0))
    exp = experiment("many", cluster, {f"job{number}": [] for number in range(60)})
    exp.run()
    ids = sorted(job["id"] for job in cluster.jobs())
    assert sorted(max(asked(cluster), key=len)) == ids
    assert cluster.calls()["status"] < 60


def test_each_of_two_backends_is_asked_about_its_own_jobs(tmp_path: Path) -> None:
    clusters = [FakeExecutor(folder=str(tmp_path / name), default=Fate(after=0.5)) for name in "ab"]
    exp = run.Experiment("two", clean_mode=True)
    for cluster in clusters * 3:
        exp.add(run.Partial(note, "unused", "x"), cluster)
    exp.run()
    for cluster in clusters:
        most = max(asked(cluster), key=len)
        assert sorted(most) == sorted(job["id"] for job in cluster.jobs())
        assert len(most) == 3


def test_an_end_is_recorded_once_and_stands_whatever_the_backend_says_later(folder: str) -> None:
    cluster = FakeExecutor(folder=folder, outcomes={"a": Fate(state="FAILED", exit_code=7, message="OOM")})
    exp = experiment("once", cluster, {"a": []}, raise_on_failure=False)
    exp.run()
    path = exp.path / "a" / "job.json"
    written = path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino
    calls = cluster.calls()["status"]
    store = Store(exp.path)
    assert store.update_job("a", state=run.AppState.SUCCEEDED, message="no").message == "OOM"
    assert states(run.Experiment.from_id(exp.id)) == {"a": "FAILED"}
    assert (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) == written
    assert cluster.calls()["status"] == calls


def test_an_older_attempt_never_overwrites_the_end_of_a_later_one(folder: str) -> None:
    exp = experiment("attempts", FakeExecutor(folder=folder), {"a": []})
    exp.run()
    store = Store(exp.path)
    assert store.update_job("a", attempt=2, state=run.AppState.FAILED, exit_code=3).exit_code == 3
    assert store.update_job("a", attempt=1, state=run.AppState.SUCCEEDED).state == run.AppState.FAILED
    assert store.read_job("a").attempt == 2


def test_records_of_many_jobs_change_together_and_each_end_stands(folder: str) -> None:
    names = [f"job{number}" for number in range(40)]
    exp = experiment("many", FakeExecutor(folder=folder), {name: [] for name in names})
    exp.run()
    store, again = Store(exp.path), set(names[::2])
    changes = {name: {"attempt": 2 if name in again else 1, "message": f"changed {name}"} for name in names}
    changed = store.update_jobs(changes, sync=True)
    assert list(changed) == names
    assert {name for name in names if changed[name].message == f"changed {name}"} == again
    assert {name: Store(exp.path).read_job(name) for name in names} == changed


# --- limits ---------------------------------------------------------------------------------------------


def most_at_once(found: list[JobRecord]) -> int:
    """How many jobs ran at the same time, at most."""
    moments = [(record.started or 0, 1) for record in found] + [(record.ended or 0, -1) for record in found]
    running = most = 0
    for _, change in sorted(moments):
        running += change
        most = max(most, running)
    return most


def test_no_more_local_jobs_run_at_once_than_allowed_and_all_of_them_finish(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    exp = run.Experiment("limit", run.LocalExecutor(max_parallel=2), clean_mode=True)
    names = [f"job{number}" for number in range(7)]
    for name in names:
        exp.add(run.Partial(note, str(trace), name, 0.1), name=name)
    assert exp.run() == {name: name for name in names}
    assert sorted(lines(trace)) == names
    assert most_at_once(records(exp)) == 2


def test_the_limit_of_a_backend_holds_across_a_graph(folder: str) -> None:
    cluster = FakeExecutor(folder=folder, default=Fate(after=0.05), max_parallel=3)
    edges: dict[str, list[str]] = {f"root{number}": [] for number in range(8)}
    edges |= {f"leaf{number}": [f"root{number}"] for number in range(8)}
    exp = experiment("limit", cluster, edges)
    exp.run()
    assert most_at_once(records(exp)) == 3
    assert set(states(exp).values()) == {"SUCCEEDED"}


def test_queued_jobs_have_not_been_submitted(tmp_path: Path) -> None:
    trace, go = tmp_path / "trace", tmp_path / "go"
    exp = run.Experiment("queue", run.LocalExecutor(max_parallel=1), clean_mode=True)
    for name in "ab":
        exp.add(run.Partial(note_and_wait_for, str(trace), name, str(go)), name=name)
    exp.run(detach=True)
    until(lambda: lines(trace), "the first job runs")
    first, second = records(exp)
    assert first.intent
    assert (second.intent, second.state) == (None, run.AppState.PENDING)
    assert "PENDING" in nemo("experiment", "status", exp.id).stdout
    go.touch()
    assert exp.wait() == {"a": "a", "b": "b"}


# --- what is refused ------------------------------------------------------------------------------------


def test_a_dependency_on_no_job_is_refused_with_what_it_may_mean(folder: str) -> None:
    exp = experiment("wrong", FakeExecutor(folder=folder), {"train": []})
    with pytest.raises(run.ConfigError, match="did you mean 'train'"):
        exp.add(run.Partial(note, "unused", "b"), dependencies=["trian"])


def test_a_dependency_that_is_not_there_any_more_is_refused_before_anything_starts(
    folder: str, home: Path
) -> None:
    exp = experiment("wrong", FakeExecutor(folder=folder), {"a": []})
    exp.jobs[0].dependencies = ["gone"]
    with pytest.raises(run.ConfigError, match="'a' depends on 'gone'"):
        exp.run()
    assert not os.path.exists(folder)
    assert not home.exists()


def test_a_circle_is_refused_before_anything_starts(folder: str, home: Path) -> None:
    exp = experiment("circle", FakeExecutor(folder=folder), {"a": [], "b": ["a"], "c": ["b"]})
    exp.jobs[0].dependencies = ["c"]
    with pytest.raises(run.ConfigError, match=r"in a circle: .* → "):
        exp.run()
    assert not os.path.exists(folder)
    assert not home.exists()


def test_a_group_is_refused_by_a_backend_without_groups_before_anything_starts(
    folder: str, home: Path
) -> None:
    exp = run.Experiment("group", Attached(folder=folder), clean_mode=True)
    exp.add([run.Partial(note, "unused", "a"), run.Partial(note, "unused", "b")], name="pair")
    with pytest.raises(run.UnsupportedError, match=r"Attached cannot run 'pair', a group") as caught:
        exp.run()
    assert (caught.value.executor, caught.value.capability) == ("Attached", "GROUPS")
    assert not home.exists()


def test_detaching_is_refused_where_jobs_end_with_their_launcher(folder: str, home: Path) -> None:
    exp = experiment("detach", Attached(folder=folder), {"a": []})
    with pytest.raises(run.UnsupportedError, match="Attached end with the process") as caught:
        exp.run(detach=True)
    assert caught.value.capability == "DETACH"
    assert not home.exists()
    exp.run()


def test_a_group_is_one_submission(folder: str) -> None:
    cluster = FakeExecutor(folder=folder)
    exp = run.Experiment("group", cluster, clean_mode=True)
    exp.add([run.Partial(note, "unused", "a"), run.Partial(note, "unused", "b")], name="pair")
    exp.add(run.Partial(note, "unused", "c"), name="after", dependencies=["pair"])
    exp.run()
    assert arrived(cluster) == ["pair", "after"]


def test_the_members_of_a_local_group_all_run_and_each_has_its_value(tmp_path: Path) -> None:
    exp = run.Experiment("group", run.LocalExecutor(), clean_mode=True)
    exp.add([run.Partial(note, str(tmp_path / "trace"), name) for name in "ab"], name="pair")
    assert exp.run() == {"pair": {"note": "a", "note_1": "b"}}
    assert sorted(lines(tmp_path / "trace")) == ["a", "b"]


# --- the launcher goes ----------------------------------------------------------------------------------

TWO = """
trace, go, mode = sys.argv[1:]
exp = run.Experiment("two", run.LocalExecutor(), clean_mode=True)
exp.add(run.Partial(deeds.note_and_wait_for, trace, "a", go), name="a")
exp.add(run.Partial(deeds.note, trace, "b"), name="b", dependencies=["a"])
exp.run(detach=mode == "detach")
"""


def test_a_detached_graph_keeps_its_order_though_its_launcher_has_gone(tmp_path: Path) -> None:
    trace, go = tmp_path / "trace", tmp_path / "go"
    launcher = script(tmp_path / "two.py", TWO)
    done = launch(launcher, str(trace), str(go), "detach")
    assert done.returncode == 0, done.stderr
    until(lambda: lines(trace) == ["a"], "the first job runs")
    go.touch()
    waited = nemo("experiment", "wait", "two")
    assert (waited.returncode, waited.stdout) == (0, "2 jobs succeeded.\n"), waited.stderr
    assert lines(trace) == ["a", "b"]
    assert run.Experiment.from_title("two").results() == {"a": "a", "b": "b"}


def test_a_detached_graph_finishes_though_nobody_ever_waits_for_it(tmp_path: Path) -> None:
    trace, go = tmp_path / "trace", tmp_path / "go"
    go.touch()
    done = launch(script(tmp_path / "two.py", TWO), str(trace), str(go), "detach")
    assert done.returncode == 0, done.stderr
    store = Store(run.Experiment.from_title("two").path)
    until(lambda: store.read_job("b").terminal, "the end of the last job is recorded")
    assert lines(trace) == ["a", "b"]


def test_a_detached_graph_has_one_to_see_it_through_from_the_first_moment(tmp_path: Path) -> None:
    """Whoever waits would otherwise go on with it, without the environment and secrets of its launch."""
    trace, go = tmp_path / "trace", tmp_path / "go"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "while 'run.background' in ' '.join(sys.orig_argv) and not os.path.exists(os.environ['GO']):\n"
        "    time.sleep(0.01)\n"
    )
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    two = script(tmp_path / "two.py", TWO)
    done = launch(two, str(trace), str(go), "detach", PYTHONPATH=path, GO=str(go))
    assert done.returncode == 0, done.stderr
    assert not Store(run.Experiment.from_title("two").path).is_abandoned()
    go.touch()
    assert set(run.Experiment.from_title("two").wait()) == {"a", "b"}


BESIDE = """
import sys
import nemo_run as run
import beside
trace = sys.argv[1]
exp = run.Experiment("beside", run.LocalExecutor(max_parallel=1), clean_mode=True)
exp.add(run.Partial(beside.note, trace, "a"), name="a")
exp.add(run.Partial(beside.note, trace, "b"), name="b", dependencies=["a"])
exp.run(detach=sys.argv[2] == "detach")
"""


@pytest.mark.parametrize("how", ["detach", "killed"])
def test_whoever_takes_over_finds_the_modules_beside_the_launching_script(how: str, tmp_path: Path) -> None:
    project, trace = tmp_path / "project", tmp_path / "trace"
    project.mkdir()
    (project / "beside.py").write_text(
        "import time\n"
        "def note(path, name):\n"
        "    open(path, 'a').write(name + '\\n')\n"
        f"    time.sleep({0.5 if how == 'killed' else 0})\n"
        "    return name\n"
    )
    (project / "launch.py").write_text(BESIDE)
    command = [sys.executable, str(project / "launch.py"), str(trace), how]
    launcher = subprocess.Popen(command, cwd="/")
    if how == "killed":
        until(lambda: lines(trace), "the first job runs")
        launcher.kill()
    assert launcher.wait(60) == (0 if how == "detach" else -9)
    if how == "detach":
        until(lambda: lines(trace) == ["a", "b"], "both jobs have run")
    waited = nemo("experiment", "wait", "beside")
    assert waited.returncode == 0, waited.stderr
    assert lines(trace) == ["a", "b"]


def killed_while_the_first_job_runs(tmp_path: Path) -> tuple[Path, Path]:
    """The trace and the file that lets the first job end, after the launcher was killed."""
    trace, go = tmp_path / "trace", tmp_path / "go"
    command = [sys.executable, str(script(tmp_path / "two.py", TWO)), str(trace), str(go), "attach"]
    launcher = subprocess.Popen(command, env=environment(), cwd=tmp_path)
    until(lambda: lines(trace) == ["a"], "the first job runs")
    launcher.kill()
    launcher.wait()
    return trace, go


def test_waiting_takes_over_from_a_dispatcher_that_was_killed(tmp_path: Path) -> None:
    trace, go = killed_while_the_first_job_runs(tmp_path)
    go.touch()
    exp = run.Experiment.from_title("two")
    assert exp.wait() == {"a": "a", "b": "b"}
    assert lines(trace) == ["a", "b"]


def test_two_who_wait_at_once_double_nothing(tmp_path: Path) -> None:
    trace, go = killed_while_the_first_job_runs(tmp_path)
    command = [sys.executable, "-m", "nemo_run", "experiment", "wait", "two"]
    waiters = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    go.touch()
    assert [waiter.communicate(timeout=60)[0] for waiter in waiters] == ["2 jobs succeeded.\n"] * 4
    assert lines(trace) == ["a", "b"]


def test_a_waiter_beside_a_living_dispatcher_only_looks_on(tmp_path: Path) -> None:
    trace, go = tmp_path / "trace", tmp_path / "go"
    command = [sys.executable, str(script(tmp_path / "two.py", TWO)), str(trace), str(go), "attach"]
    launcher = subprocess.Popen(command, env=environment(), cwd=tmp_path)
    until(lambda: lines(trace) == ["a"], "the first job runs")
    waiter = subprocess.Popen([sys.executable, "-m", "nemo_run", "experiment", "wait", "two"])
    go.touch()
    assert (launcher.wait(60), waiter.wait(60)) == (0, 0)
    assert lines(trace) == ["a", "b"]
