"""Jobs may be added to an experiment while it runs; what is known of it holds for them too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from deeds import environment, launch, lines, nemo, note, note_and_wait_for, processes_of, script, until

import nemo_run as run
from nemo_run.errors import StoreError
from nemo_run.run.growing import Growing, create
from nemo_run.run.job import Job, make_job
from nemo_run.run.look import refresh
from nemo_run.run.records import JobEntry, JobRecord
from nemo_run.run.store import Store, scan
from nemo_run.testing import FakeExecutor, Fate

pytestmark = pytest.mark.usefixtures("home")

#: A launcher that adds jobs one by one and is killed just before a rename of this kind.
LAUNCHER = """
from nemo_run.errors import StoreError
from nemo_run.run.growing import Growing, create
from nemo_run.run.job import make_job
trace, step, count = sys.argv[1:]
kill_at(lambda event, args: event == "os.rename" and str(args[1]).endswith(step), int(count))
store = create("grown")
growing = Growing(store)
growing.start()
for number in range(3):
    task = run.Partial(deeds.note, trace, str(number))
    growing.add([make_job(task, run.LocalExecutor(), name=str(number), taken=[], plugins=[], tail_logs=False,
                          dependencies=[])])
growing.close()
"""


class Slow(FakeExecutor):
    """Likes to be asked once a minute."""

    poll_interval: ClassVar[tuple[float, float]] = (60.0, 60.0)

    def await_news(self, handles: Any, seconds: float) -> None:
        threading.Event().wait(seconds)


def job(name: str, task: Any, executor: run.Executor | None = None, *after: str) -> Job:
    return make_job(
        task, executor, name=name, taken=[], plugins=[], tail_logs=False, dependencies=list(after)
    )


def states(store: Store) -> dict[str, str]:
    return {record.id: record.state.name for record in refresh(store)}


def test_an_experiment_without_jobs_is_listed_and_looked_at_like_any_other() -> None:
    store = create("empty")
    assert "UNSUBMITTED" in nemo("experiment", "list").stdout
    for words in (["status"], ["show"], ["wait"], ["results"], ["cancel", "--all"]):
        done = nemo("experiment", *words, store.id)
        assert (done.returncode, done.stderr) == (0, ""), words
    for words in (["logs"], ["cancel"]):
        done = nemo("experiment", *words, store.id)
        assert done.returncode == 1
        assert done.stderr == f"nemo: experiment '{store.id}' has no jobs\n"
    assert nemo("experiment", "delete", "--yes", store.id).returncode == 0


def test_jobs_added_while_it_runs_run_in_their_order(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    store = create("grown")
    growing = Growing(store)
    growing.start()
    growing.add([job("one", run.Partial(note, str(trace), "one"))])
    until(lambda: states(store).get("one") == "SUCCEEDED", "the first has ended, and nobody waits for more")
    late = [
        job("two", run.Partial(note, str(trace), "two")),
        job("three", run.Partial(note, str(trace), "three"), None, "two"),
    ]
    growing.add(late)
    assert growing.close()
    assert lines(trace) == ["one", "two", "three"]
    assert states(Store(store.path)) == dict.fromkeys(["one", "two", "three"], "SUCCEEDED")
    again = run.Experiment.from_id(store.id)
    assert [each.id for each in again.jobs] == ["one", "two", "three"]
    assert again.results() == {name: name for name in ("one", "two", "three")}


def test_jobs_added_by_many_threads_at_once_all_run(tmp_path: Path) -> None:
    cluster = FakeExecutor(folder=str(tmp_path / "cluster"))
    growing = Growing(create("threads"))
    growing.start()

    def add(thread: int) -> None:
        for number in range(5):
            growing.add([job(f"{thread}-{number}", run.Partial(note, "unused", "x"), cluster)])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert growing.close()
    assert len(cluster.jobs()) == 40
    assert set(states(growing.store).values()) == {"SUCCEEDED"}


def test_a_job_added_while_others_wait_long_starts_at_once(tmp_path: Path) -> None:
    """The pause between two looks at slow jobs does not hold up new ones, on whatever backend."""
    slow = Slow(folder=str(tmp_path / "slow"), default=Fate(state="RUNNING"))
    trace = tmp_path / "trace"
    growing = Growing(create("bell"))
    growing.start()
    growing.add([job("slow", run.Partial(note, "unused", "x"), slow)])
    until(lambda: slow.calls()["status"], "it is waited for")
    growing.add([job("quick", run.Partial(note, str(trace), "quick"))])
    until(lambda: lines(trace) == ["quick"], "the other one has run", 20)
    growing.cancel()
    until(lambda: states(growing.store)["slow"] == "CANCELLED", "it is seen to be cancelled")


def test_an_id_that_is_taken_is_refused_and_nothing_of_it_is_written(tmp_path: Path) -> None:
    growing = Growing(create("twice"))
    growing.start()
    growing.add([job("a", run.Partial(note, str(tmp_path / "trace"), "first"))])
    with pytest.raises(FileExistsError, match="has such a job"):
        growing.add([
            job("b", run.Partial(note, "unused", "b")),
            job("a", run.Partial(note, "unused", "second")),
        ])  # fmt: skip
    assert growing.close()
    assert lines(tmp_path / "trace") == ["first"]
    assert {path.name for path in growing.store.path.iterdir() if path.is_dir()} == {"a"}


def test_a_job_that_cannot_work_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    growing = Growing(create("refused"))
    growing.start()
    with pytest.raises(run.ConfigError, match=r"script '/no/such' is not there"):
        growing.add([job("bad", run.Script("/no/such"))])
    growing.add([job("good", run.Partial(note, str(tmp_path / "trace"), "good"))])
    assert growing.close()
    assert states(growing.store) == {"good": "SUCCEEDED"}


def test_a_queued_job_that_is_cancelled_is_settled_at_once(tmp_path: Path) -> None:
    go, trace = str(tmp_path / "go"), str(tmp_path / "trace")
    one_by_one = run.LocalExecutor(max_parallel=1)
    seen: list[JobRecord] = []
    growing = Growing(create("queued"), on_change=seen.append)
    growing.start()
    growing.add([job("runs", run.Partial(note_and_wait_for, trace, "runs", go), one_by_one)])
    growing.add([job("waits", run.Partial(note, trace, "waits"), one_by_one)])
    until(lambda: lines(Path(trace)), "the first one runs")
    growing.cancel(["waits"])
    until(lambda: any(r.id == "waits" and r.terminal for r in seen), "whoever listens hears of it", 10)
    Path(go).touch()
    assert growing.close()
    assert states(growing.store) == {"runs": "SUCCEEDED", "waits": "CANCELLED"}
    assert lines(Path(trace)) == ["runs"]


def test_a_job_that_is_cancelled_while_it_is_submitted_ends(tmp_path: Path, home: Path) -> None:
    """At whatever moment that is, whoever listens hears of its end, and it does not run on."""
    ended: set[str] = set()

    def listen(record: JobRecord) -> None:
        if record.terminal:
            ended.add(record.id)

    growing = Growing(create("cancelled"), on_change=listen)
    growing.start()
    names = [str(number) for number in range(60)]
    for number, name in enumerate(names):
        growing.add([job(name, run.Script(inline="exec sleep 600"), run.LocalExecutor(max_parallel=60))])
        time.sleep(number % 10 * 0.002)
        growing.cancel([name])
    until(lambda: ended == set(names), "all ends are heard of", 60)
    assert growing.close()
    found = refresh(growing.store)
    assert not [record for record in found if record.state.name != "CANCELLED"]
    until(lambda: not processes_of(home), "no process is left")


def test_one_process_at_a_time_adds_jobs() -> None:
    growing = Growing(create("one"))
    growing.start()
    with pytest.raises(run.ConfigError, match="is being run by another process"):
        Growing(Store(growing.store.path)).start()
    assert growing.close()
    again = Growing(growing.store)
    again.start()
    assert again.close()


def test_whoever_waits_for_a_growing_experiment_waits_until_no_more_jobs_come(tmp_path: Path) -> None:
    growing = Growing(create("waited"))
    growing.start()
    growing.add([job("a", run.Partial(note, str(tmp_path / "trace"), "a"))])
    until(lambda: states(growing.store) == {"a": "SUCCEEDED"}, "all there is has ended")
    command = [sys.executable, "-m", "nemo_run", "experiment", "wait", growing.store.id]
    waiter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    with pytest.raises(subprocess.TimeoutExpired):
        waiter.wait(2)
    growing.add([job("b", run.Partial(note, str(tmp_path / "trace"), "b"))])
    assert growing.close()
    assert waiter.communicate(timeout=30)[0] == "2 jobs succeeded.\n"


@pytest.mark.parametrize(
    ("step", "count", "known"),
    [("/experiment.json", 2, 1), ("/job.json", 2, 1), ("/job.json", 4, 2), ("/end.json", 1, 3)],
)
def test_a_launcher_killed_while_it_adds_jobs_loses_and_doubles_none_that_appeared(
    step: str, count: int, known: int, tmp_path: Path, home: Path
) -> None:
    trace = tmp_path / "trace"
    done = launch(script(tmp_path / "launcher.py", LAUNCHER), str(trace), step, str(count))
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    (path,) = scan("grown")
    names = [entry.id for entry in Store(path).experiment().jobs]
    assert names == ["0", "1", "2"][: len(names)]
    assert len(names) >= known
    waited = nemo("experiment", "wait", "grown")
    assert waited.returncode == 0, waited.stderr
    assert sorted(lines(trace)) == names
    until(lambda: not processes_of(home), "no process is left")


def test_what_a_killed_launcher_left_of_a_job_is_no_obstacle_to_another(tmp_path: Path) -> None:
    store = create("left")
    os.makedirs(store.job_dir("1") / "results")
    (store.job_dir("1") / "task.json").write_text("half a rec")
    assert states(store) == {}
    growing = Growing(store)
    growing.start()
    growing.add([job("1", run.Partial(note, str(tmp_path / "trace"), "1"))])
    assert growing.close()
    assert states(store) == {"1": "SUCCEEDED"}


def test_a_store_that_is_open_sees_what_another_process_adds(tmp_path: Path) -> None:
    store = create("seen")
    other = Store(store.path)
    assert other.experiment().jobs == []
    record = JobRecord(id="1", token="t")
    store.add_jobs([JobEntry(id="1", roles=["1"])], {"1/job.json": str(record.to_json()), "note": "x"})
    assert [entry.id for entry in other.experiment().jobs] == ["1"]
    assert (store.path / "note").read_text() == "x"
    assert (store.job_dir("1") / "job.json").stat().st_mode & 0o777 == 0o600


def test_adding_a_job_costs_no_more_the_more_there_are() -> None:
    store, plugins = create("many"), [{"é": ["\n", None]}]
    calls: list[int] = []
    for number in range(300):
        entry = JobEntry(id=str(number), roles=["one", "zwei"], dependencies=["0"][:number], plugins=plugins)
        counted = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal counted
            counted += event == "call"

        sys.setprofile(count)
        try:
            store.add_jobs([entry], {f"{number}/job.json": "{}"})
        finally:
            sys.setprofile(None)
        calls.append(counted)
    assert calls[-1] - calls[100] < 20  # not one for each that is there
    assert Store(store.path).experiment() == store.experiment()
    assert [entry.dependencies for entry in store.experiment().jobs] == [[]] + [["0"]] * 299
    assert store.experiment().jobs[7].plugins == plugins


def test_a_job_that_could_not_be_written_down_may_come_again_as_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, files = create("again"), {"1/job.json": "{}"}

    def full(path: str, *args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nemo_run.run.store.write", full)
        with pytest.raises(StoreError, match="No space left"):
            store.add_jobs([JobEntry(id="1", roles=["one"])], files)
    store.add_jobs([JobEntry(id="1", roles=["other"])], files)
    assert [entry.roles for entry in Store(store.path).experiment().jobs] == [["other"]]


def test_two_experiments_made_at_once_have_numbers_of_their_own() -> None:
    stores = [create(f"title{number}") for number in range(20)]
    assert len({store.id.rpartition("_")[2] for store in stores}) == 20
