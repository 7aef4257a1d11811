"""Experiments of launch scripts: adding, waiting, failing, and finding them again."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from deeds import lines, nemo, until
from xms import ends_in, launch, script, sh

import nemo_run as run
from nemo_run import xm, xm_local
from nemo_run.run.store import Store, scan

pytestmark = pytest.mark.usefixtures("home")


def states(experiment: Any) -> dict[int, str]:
    return {number: str(unit.get_status().state) for number, unit in experiment.work_units.items()}


def ok(experiment: Any) -> bool:
    return set(states(experiment).values()) == {"SUCCEEDED"}


# --- with, and async with -------------------------------------------------------------------------------


def test_a_with_ends_when_all_of_its_jobs_have(tmp_path: Path) -> None:
    with xm_local.create_experiment(experiment_title="sweep") as experiment:
        for number in range(3):
            experiment.add(sh(f"sleep 0.3; echo {number} >>{tmp_path}/trace"))
    assert sorted(lines(tmp_path / "trace")) == ["0", "1", "2"]
    assert states(experiment) == {1: "SUCCEEDED", 2: "SUCCEEDED", 3: "SUCCEEDED"}
    assert experiment.work_unit_count == 3


def test_an_async_with_gives_units_to_await() -> None:
    async def main() -> None:
        async with xm_local.create_experiment("async") as experiment:
            first = await experiment.add(sh("true"))
            others = await asyncio.gather(experiment.add(sh("true")), experiment.add(sh("true")))
            assert [unit.work_unit_id for unit in (first, *others)] == [1, 2, 3]
            await first.wait_until_complete()
            assert first.get_status().is_completed
            waiting = [unit.wait_until_complete() for unit in others]
            done, _ = await asyncio.wait(waiting, return_when=asyncio.ALL_COMPLETED)
            assert {each.work_unit for each in done} == set(others)
            assert all(isinstance(each, xm.WorkUnitCompletedAwaitable) for each in done)
        assert ok(experiment)

    xm.run_in_asyncio_loop(main)()


def test_without_an_event_loop_what_add_gives_has_a_result() -> None:
    with xm_local.create_experiment("sync") as experiment:
        unit = experiment.add(sh("sleep 0.2")).result(timeout=20)
        assert unit.work_unit_id == 1
        waiting = unit.wait_until_complete()
        assert waiting.work_unit is unit
        assert waiting.result(timeout=20) is unit
        assert unit.get_status().is_completed


def test_a_with_works_below_a_running_loop_too() -> None:
    """As it is in a notebook."""

    async def cell() -> None:
        with xm_local.create_experiment("notebook") as experiment:
            unit = await experiment.add(sh("true"))
            await unit.wait_until_complete()
        assert ok(experiment)

    asyncio.run(cell())


@pytest.mark.parametrize("when", ["before", "after"])
def test_adding_outside_of_the_with_is_refused(when: str) -> None:
    experiment = xm_local.create_experiment("outside")
    if when == "after":
        with experiment:
            experiment.add(sh("true"))
    with pytest.raises(RuntimeError, match=r"below `with xm_local.create_experiment"):
        experiment.add(sh("true"))


def test_an_experiment_without_units_ends_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with xm_local.create_experiment("nothing"):
        pass
    assert "nothing was added" in caplog.text


@pytest.mark.parametrize("title", ["", None, 3])
def test_an_experiment_needs_a_title(title: Any) -> None:
    with pytest.raises(ValueError, match="experiment_title is a text"):
        xm_local.create_experiment(title)


def test_what_is_current_is_known_to_generators_and_to_the_lines_of_the_with() -> None:
    seen = []

    async def generate(unit: xm.ExperimentUnit) -> None:
        seen.append((xm.core._current_experiment.get(), xm.core._current_experiment_unit.get()))
        await unit.add(sh("true"))

    with xm_local.create_experiment("context") as experiment:
        assert xm.core.current_experiment() is experiment
        unit = experiment.add(generate).result(20)
    assert seen == [(experiment, unit)]
    assert xm.core._current_experiment.get() is None


# --- what is kept ---------------------------------------------------------------------------------------


def test_arguments_environment_executor_and_title_are_kept() -> None:
    with xm_local.create_experiment("kept") as experiment:
        job = sh('echo "$1 $COLOUR"', "sh", "a 'b", env_vars={"COLOUR": "red"})
        experiment.add(
            job, {"args": {"lr": 0.1}, "env_vars": {"COLOUR": "blue"}}, role=xm.WorkUnitRole(tags=("x",))
        )
        experiment.context.annotations.set_title("another title")
    (path,) = scan("kept")
    task = json.loads((path / "1" / "task.json").read_text())["sh"]
    assert task["args"] == ["-c", 'echo "$1 $COLOUR"', "sh", "a 'b", "--lr=0.1"]
    assert task["env"] == {"COLOUR": "blue"}
    said = json.loads((path / "1" / "unit.json").read_text())
    assert (said["unit"], said["kind"], said["tags"]) == ("1", "work", ["x"])
    (kept,) = said["jobs"]
    assert kept["executable"] == {"kind": "LocalBinary", "name": "sh", "path": "/bin/sh"}
    assert kept["args"] == {"lr": 0.1}
    assert "a 'b blue" in (path / "1" / "logs" / "sh_0.log").read_text()
    again = xm_local.get_experiment(experiment.experiment_id)
    assert again.context.annotations.title == "another title"
    assert again.context.creator == experiment.context.creator


def test_every_command_looks_at_it_like_at_any_experiment() -> None:
    with xm_local.create_experiment("commands") as experiment:
        experiment.add(sh("echo hello"))
        experiment.add(xm.JobGroup(a=sh("echo from a"), b=sh("echo from b")))
    listed = json.loads(nemo("experiment", "list", "--json").stdout)
    assert [(row["title"], row["state"], row["jobs"]) for row in listed] == [("commands", "SUCCEEDED", 2)]
    assert nemo("experiment", "logs", "commands", "1").stdout == "hello\n"
    assert nemo("experiment", "logs", "commands", "2", "--role", "b").stdout == "b │ from b\n"
    assert "SUCCEEDED" in nemo("experiment", "status", experiment.store_id).stdout
    assert nemo("experiment", "wait", str(experiment.store_id)).stdout == "2 jobs succeeded.\n"
    shown = nemo("experiment", "show", "commands")
    assert (shown.returncode, "/bin/sh" in shown.stdout) == (0, True)


def test_the_launching_script_and_its_commit_are_kept(tmp_path: Path) -> None:
    path = script(
        tmp_path / "launch_me.py",
        """
        with xm_local.create_experiment("script") as experiment:
            experiment.add(sh("true"))
        """,
    )
    assert launch(path).returncode == 0
    (folder,) = scan("script")
    assert (folder / "main.py").read_text() == path.read_text()


# --- arguments, routing, names --------------------------------------------------------------------------


def test_a_group_takes_arguments_by_the_names_of_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = xm.JobGroup(
        one=sh('echo "$@" >one', "sh", "own"),
        more=xm.JobGroup(two=sh('echo "$@" $X >two', "sh")),
    )
    monkeypatch.chdir(tmp_path)
    with xm_local.create_experiment("routing") as experiment:
        args = {"one": {"args": ["given"]}, "more": {"two": {"args": {"n": 2}, "env_vars": {"X": "y"}}}}
        experiment.add(group, args=args)
    assert (tmp_path / "one").read_text() == "own given\n"
    assert (tmp_path / "two").read_text() == "--n=2 y\n"
    entry = Store(experiment.path).experiment().jobs[0]
    assert (entry.id, entry.roles, entry.group) == ("1", ["one", "more_two"], True)


def test_a_job_object_may_be_added_again_and_again() -> None:
    job = sh("true")
    with xm_local.create_experiment("again") as experiment:
        for number in range(3):
            experiment.add(job, {"args": [str(number)]})
    assert ok(experiment)
    assert job.args == sh("true").args


def test_every_argument_arrives_byte_for_byte(tmp_path: Path) -> None:
    words = ["a b", "a'b", 'a"b', "$a", "`a`", ";", "\\", "new\nline", "é日", "", "*"]
    program = "printf '%s\\0' \"$@\" >" + str(tmp_path / "got")
    with xm_local.create_experiment("bytes") as experiment:
        experiment.add(sh(program, "sh", *words))
    assert (tmp_path / "got").read_bytes().decode().split("\0")[:-1] == words


def test_what_a_shell_is_to_expand_is_expanded_where_the_job_runs(tmp_path: Path) -> None:
    with xm_local.create_experiment("expand") as experiment:
        job = sh(f'echo "$1" >{tmp_path}/got', "sh", env_vars={"WHO": "you"})
        experiment.add(job, {"args": [xm.ShellSafeArg("hello $WHO")]})
    assert (tmp_path / "got").read_text() == "hello you\n"


# --- identity -------------------------------------------------------------------------------------------


def test_the_same_identity_gives_the_unit_that_is_there_also_later(tmp_path: Path) -> None:
    job = sh(f"echo ran >>{tmp_path}/trace")
    with xm_local.create_experiment("identity") as experiment:
        first = experiment.add(job, identity="a").result(20)
        assert experiment.add(job, identity="a").result(20) is first
        assert experiment.add(job, identity="b").result(20) is not first
    again = xm_local.get_experiment(experiment.experiment_id)
    with again:
        assert again.add(job, identity="a").result(20).work_unit_id == 1
        assert again.add(job, identity="c").result(20).work_unit_id == 3
    assert len(lines(tmp_path / "trace")) == 3
    assert [
        unit.identity for unit in xm_local.get_experiment(again.experiment_id).work_units.values()
    ] == list("abc")


def test_within_a_unit_an_identity_is_added_once() -> None:
    async def generate(unit: xm.ExperimentUnit) -> None:
        for _ in range(2):
            await unit.add(sh("true"), identity="same")

    with xm_local.create_experiment("inner") as experiment:
        experiment.add(generate)
    assert [entry.id for entry in Store(experiment.path).experiment().jobs] == ["1"]


# --- failing --------------------------------------------------------------------------------------------


def test_a_failing_unit_fails_alone_and_the_with_ends_with_it(tmp_path: Path) -> None:
    with (
        ends_in(xm.ExperimentUnitFailedError, match="exit code 3") as caught,
        xm_local.create_experiment("failing") as experiment,
    ):
        experiment.add(sh("echo oh no; exit 3"))
        experiment.add(sh(f"sleep 1; echo done >{tmp_path}/other"))
    assert lines(tmp_path / "other") == ["done"]
    assert states(experiment) == {1: "FAILED", 2: "SUCCEEDED"}
    assert "oh no" in str(caught.value)
    assert caught.value.work_unit.work_unit_id == 1
    assert isinstance(caught.value, (RuntimeError, run.ExecutionError))


def not_async(unit: Any) -> None:
    pass


async def raising(unit: Any) -> None:
    raise ZeroDivisionError("in the generator")


async def adding_nothing(unit: Any) -> None:
    pass


async def leaving(unit: Any) -> None:
    raise SystemExit(3)


class Elsewhere(xm.Executor):
    @classmethod
    def Spec(cls) -> Any:
        return None


class Config(xm.JobConfig):
    pass


BAD: dict[str, tuple[Any, dict[str, Any] | None, type[BaseException], str]] = {
    "an unknown key": (sh("true"), {"arg": {}}, ValueError, "has 'arg'"),
    "a key of no job": (xm.JobGroup(a=sh("true")), {"b": {}}, ValueError, "has 'b'"),
    "a function that is not async": (not_async, None, ValueError, "async def"),
    "a generator that raises": (raising, None, ZeroDivisionError, "in the generator"),
    "a generator that adds nothing": (adding_nothing, None, RuntimeError, "added no job"),
    "a generator that leaves": (leaving, None, RuntimeError, "exit code 3"),
    "an executor of nobody": (sh("true", executor=Elsewhere()), None, TypeError, "Elsewhere"),
    "a job in another's words": (Config(), None, TypeError, "words of another backend"),
    "an empty group": (xm.JobGroup(), None, ValueError, "has no jobs"),
    "a number": (3, None, TypeError, "must be an xm.Job"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_unit_that_cannot_be_added_blocks_no_other(name: str, tmp_path: Path) -> None:
    """XManager hung for each of these; see that nothing waits for what never comes."""
    job, args, kind, words = BAD[name]
    begun = time.monotonic()
    with ends_in(kind, match=words), xm_local.create_experiment("bad") as experiment:
        experiment.add(sh(f"echo before >>{tmp_path}/trace"))
        bad = experiment.add(job, args)
        after = experiment.add(sh(f"echo after >>{tmp_path}/trace"))
        with pytest.raises(kind, match=words):
            bad.result(timeout=20)
        assert after.result(timeout=20).work_unit_id == 3
    assert sorted(lines(tmp_path / "trace")) == ["after", "before"]
    assert time.monotonic() - begun < 20


def test_a_generator_that_adds_twice_has_both_of_its_jobs_run(tmp_path: Path) -> None:
    async def twice(unit: xm.ExperimentUnit) -> None:
        await unit.add(sh(f"echo one >>{tmp_path}/trace", name="one"))
        await unit.wait_until_complete()
        await unit.add(sh(f"echo two >>{tmp_path}/trace", name="two"))

    with xm_local.create_experiment("twice") as experiment:
        experiment.add(twice)
    assert lines(tmp_path / "trace") == ["one", "two"]
    assert ok(experiment)


def test_the_with_raises_the_first_failure_and_tells_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    with (
        ends_in(xm.ExperimentUnitFailedError, match="exit code 4"),
        xm_local.create_experiment("several") as experiment,
    ):
        experiment.add(sh("sleep 1; exit 5"))
        experiment.add(sh("exit 4"))
    assert "unit 1 failed too" in caplog.text


def test_what_a_script_awaits_and_handles_is_still_a_failure_in_the_end() -> None:
    async def main() -> None:
        async with xm_local.create_experiment("handled") as experiment:
            unit = await experiment.add(sh("exit 3"))
            with pytest.raises(xm.ExperimentUnitFailedError, match="exit code 3"):
                await unit.wait_until_complete()

    with pytest.raises(xm.ExperimentUnitError, match="exit code 3"):
        asyncio.run(main())


def test_a_launch_script_whose_job_fails_exits_with_an_error(tmp_path: Path) -> None:
    path = script(
        tmp_path / "failing.py",
        """
        with xm_local.create_experiment("exit") as experiment:
            experiment.add(sh("exit 3"))
        print("not reached")
        """,
    )
    done = launch(path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "exit code 3" in done.stderr


# --- coming back ----------------------------------------------------------------------------------------


def test_an_experiment_is_found_by_number_and_by_id() -> None:
    with xm_local.create_experiment("found") as experiment:
        experiment.add(sh("true"))
        experiment.add(sh("true"), role=xm.AuxiliaryUnitRole(termination_delay_secs=5))
    for name in (experiment.experiment_id, str(experiment.experiment_id), experiment.store_id):
        again = xm_local.get_experiment(name)
        assert (again.experiment_id, again.context.annotations.title) == (experiment.experiment_id, "found")
        assert states(again) == {1: "SUCCEEDED"}
        again.work_units[1].wait_until_complete().result(10)


def test_a_number_of_no_experiment_is_named() -> None:
    with pytest.raises(xm.NotFoundError, match="no experiment '12'") as caught:
        xm_local.get_experiment(12)
    assert isinstance(caught.value, (KeyError, ValueError))


def test_experiments_are_listed_oldest_first_without_those_of_others() -> None:
    run.run(run.Script(inline="true"), run.LocalExecutor(), name="other", tail_logs=False)
    made = [xm_local.create_experiment(title) for title in ("b", "a")]
    for experiment in made:
        with experiment:
            experiment.add(sh("true"))
    assert [e.experiment_id for e in xm_local.list_experiments()] == [e.experiment_id for e in made]


def test_jobs_are_added_to_an_experiment_that_was_made_before(tmp_path: Path) -> None:
    with xm_local.create_experiment("more") as experiment:
        experiment.add(sh("true"))
    with xm_local.get_experiment(experiment.experiment_id) as again:
        unit = again.add(sh(f"echo more >{tmp_path}/trace")).result(20)
        assert (unit.work_unit_id, unit.experiment_unit_name) == (2, f"{experiment.experiment_id}_2")
    assert lines(tmp_path / "trace") == ["more"]


def test_a_failure_of_long_ago_is_no_failure_of_today() -> None:
    with pytest.raises(xm.ExperimentUnitError), xm_local.create_experiment("old") as experiment:
        experiment.add(sh("exit 1"))
    with xm_local.get_experiment(experiment.experiment_id) as again:
        again.add(sh("true"))
    assert states(again) == {1: "FAILED", 2: "SUCCEEDED"}


def test_an_experiment_that_another_process_runs_is_not_added_to(tmp_path: Path) -> None:
    with xm_local.create_experiment("busy") as experiment:
        again = xm_local.get_experiment(experiment.experiment_id)
        with pytest.raises(run.ConfigError, match="being run by another process"):
            again.__enter__()
        unit = experiment.add(sh("true")).result(20)
        assert again.work_units == {}
        assert (
            xm_local.get_experiment(experiment.experiment_id).work_units[1].wait_until_complete().result(20)
        )
    assert unit.get_status().is_completed


def test_a_title_that_is_set_before_the_with_is_kept_too() -> None:
    experiment = xm_local.create_experiment("first")
    experiment.context.annotations.set_title("second")
    with experiment:
        experiment.add(sh("true"))
    assert xm_local.get_experiment(experiment.experiment_id).context.annotations.title == "second"


# --- packaging ------------------------------------------------------------------------------------------


def test_packaging_gives_an_executable_for_each_of_what_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho $1 $COLOUR >>trace\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    with xm_local.create_experiment("package") as experiment:
        later = experiment.package_async(xm.binary(xm_local.Local.Spec(), str(program), args=["later"]))
        [executable] = experiment.package([
            xm.binary(xm_local.Local.Spec(), str(program), args=["now"], env_vars={"COLOUR": "red"})
        ])  # fmt: skip
        experiment.add(xm.Job(executable, xm_local.Local())).result(20).wait_until_complete().result(20)
        experiment.add(xm.Job(later.result(), xm_local.Local()))
    assert lines(tmp_path / "trace") == ["now red", "later"]


def test_what_is_packaged_later_may_be_awaited_before_anybody_packages(tmp_path: Path) -> None:
    async def main() -> None:
        async with xm_local.create_experiment("early") as experiment:
            executable = await experiment.package_async(xm.binary(xm_local.Local.Spec(), "/bin/true"))
            await experiment.add(xm.Job(executable, xm_local.Local()))
        assert ok(experiment)

    asyncio.run(main())


def test_a_packaging_error_reaches_all_who_wait_for_it() -> None:
    with ends_in(run.ConfigError, match="no/such"), xm_local.create_experiment("broken") as experiment:
        later = experiment.package_async(xm.binary(xm_local.Local.Spec(), "/no/such"))
        with pytest.raises((run.ConfigError, run.PackagingError)):
            experiment.package()
        later.result()


# --- GPUs -----------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, as its driver's tool tells."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def with_gpus(count: int) -> xm_local.Local:
    return xm_local.Local(xm.JobRequirements(local_gpu=count), experimental_stream_output=False)


@pytest.mark.usefixtures("gpus")
def test_no_two_jobs_have_the_same_gpu_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "for gpu in $(echo $CUDA_VISIBLE_DEVICES | tr , ' '); do mkdir held$gpu || exit 9; done; sleep 0.4;"
        " rmdir held*; echo $CUDA_VISIBLE_DEVICES >>trace"
    )
    one = program.replace("rmdir held*", "rmdir held$CUDA_VISIBLE_DEVICES")
    monkeypatch.chdir(tmp_path)
    with xm_local.create_experiment("gpus") as experiment:
        for _ in range(4):
            experiment.add(sh(one, executor=with_gpus(1)))
        experiment.add(sh(program, executor=with_gpus(2)))
    assert sorted(lines(tmp_path / "trace")) == ["0", "0", "0,1", "1", "1"]


@pytest.mark.usefixtures("gpus")
def test_more_gpus_than_there_are_is_an_error_at_once() -> None:
    with (
        ends_in(run.ConfigError, match="it has 2: 0, 1"),
        xm_local.create_experiment("too many") as experiment,
    ):
        experiment.add(sh("true", executor=with_gpus(3)))


@pytest.mark.usefixtures("gpus")
def test_a_group_shares_no_gpu_and_waits_for_nobody_else_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    word = "echo $CUDA_VISIBLE_DEVICES >>trace; sleep 0.2"
    with xm_local.create_experiment("group") as experiment:
        experiment.add(xm.JobGroup(a=sh(word, executor=with_gpus(1)), b=sh(word, executor=with_gpus(1))))
        experiment.add(sh("echo none >>trace"))
    assert sorted(lines(tmp_path / "trace")) == ["0", "1", "none"]


@pytest.mark.usefixtures("gpus")
def test_a_gpu_whose_launcher_was_killed_is_free_when_its_job_ends(tmp_path: Path) -> None:
    path = script(
        tmp_path / "killed.py",
        f"""
        two = xm_local.Local(xm.JobRequirements(local_gpu=2))
        with xm_local.create_experiment("killed") as experiment:
            words = "echo has >>{tmp_path}/trace; sleep 2; echo had >>{tmp_path}/trace"
            experiment.add(sh(words, executor=two)).result()
            while not os.path.exists("{tmp_path}/trace"):
                time.sleep(0.01)
            os.kill(os.getpid(), 9)
        """,
    )
    assert launch(path).returncode == -9
    with xm_local.create_experiment("after") as experiment:
        experiment.add(sh(f"echo next >>{tmp_path}/trace", executor=with_gpus(1)))
    assert lines(tmp_path / "trace") == ["has", "had", "next"]


def test_without_a_driver_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with (
        ends_in(run.ConfigError, match="`nvidia-smi` finds none"),
        xm_local.create_experiment("none") as experiment,
    ):
        experiment.add(sh("true", executor=with_gpus(1)))


# --- many -----------------------------------------------------------------------------------------------


def test_forty_units_added_from_four_threads_all_run(tmp_path: Path) -> None:
    with xm_local.create_experiment("threads") as experiment:

        def add() -> None:
            for _ in range(10):
                experiment.add(sh(f"echo x >>{tmp_path}/trace"))

        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(lines(tmp_path / "trace")) == 40
    assert sorted(experiment.work_units) == list(range(1, 41))
    until(lambda: ok(experiment), "all have succeeded")
