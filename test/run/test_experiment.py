"""Experiment: adding, running, looking, coming back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import user_tasks
from programs import NEMO, call, python, succeeded, until, write
from torchx.specs import AppState
from user_tasks import SetArgument

import nemo_run as run

pytestmark = pytest.mark.usefixtures("home")


def states(experiment: run.Experiment) -> dict[str, str]:
    return {name: str(entry["status"]) for name, entry in experiment.status(return_dict=True).items()}


# --- the two forms --------------------------------------------------------------------------------------


def test_the_form_with_add_gives_a_value_for_each_job() -> None:
    with run.Experiment("sums") as experiment:
        assert experiment.add(user_tasks.add, name="first") == "first"
        assert experiment.add(run.Partial(user_tasks.add, a=5), name="second") == "second"
        assert experiment.run() == {"first": 3, "second": 7}
    assert experiment.id.startswith("sums_")


def test_the_form_with_a_task_runs_it_under_its_name() -> None:
    experiment = run.Experiment(task=user_tasks.add, executor=run.LocalExecutor(), name="sum")
    assert experiment.run() == {"sum": 3}
    assert experiment.title == "sum"


def test_the_form_with_a_task_is_called_after_it_where_nothing_else_names_it() -> None:
    experiment = run.Experiment(task=run.Partial(user_tasks.add, b=0), executor=run.LocalExecutor())
    assert experiment.run() == {"user_tasks.add": 1}
    assert experiment.title == "user_tasks.add"


def test_the_form_with_a_task_takes_a_title_besides_its_name_and_a_list_for_a_group() -> None:
    members = [run.Partial(user_tasks.give, value=n) for n in (1, 2)]
    experiment = run.Experiment("pairs", task=members, name="pair")
    assert experiment.run() == {"pair": {"give": 1, "give_1": 2}}
    assert experiment.title == "pairs"


def test_an_experiment_needs_something_to_be_called() -> None:
    with pytest.raises(run.ConfigError, match="needs a title"):
        run.Experiment()


def test_two_experiments_of_one_title_in_one_process_are_kept_apart() -> None:
    ids = set()
    for value in (1, 2):
        with run.Experiment("same") as experiment:
            experiment.add(run.Partial(user_tasks.give, value=value), name="job")
            assert experiment.run() == {"job": value}
            ids.add(experiment.id)
    assert len(ids) == 2
    assert [run.Experiment.from_id(name).result("job") for name in run.Experiment.catalog("same")] == [1, 2]


def test_two_experiments_may_be_open_at_once() -> None:
    outer, inner = run.Experiment("outer"), run.Experiment("inner")
    with outer:
        outer.add(user_tasks.add, name="job")
        with inner:
            inner.add(user_tasks.add, name="job")
            assert inner.run() == {"job": 3}
        assert outer.run() == {"job": 3}


def test_base_dir_is_used_instead_of_the_home(tmp_path: Path, home: Path) -> None:
    base = tmp_path / "base"
    with run.Experiment("elsewhere", base_dir=base) as experiment:
        experiment.add(user_tasks.add, name="job")
        experiment.run()
    assert experiment.path.is_relative_to(base)
    assert not home.exists()
    assert run.Experiment.catalog("elsewhere", base_dir=base) == [experiment.id]
    assert run.Experiment.from_title("elsewhere", base_dir=base).results() == {"job": 3}


def test_an_id_may_be_given() -> None:
    with run.Experiment("title", id="title_42") as experiment:
        experiment.add(user_tasks.add, name="job")
        experiment.run()
    assert run.Experiment.from_id("title_42").results() == {"job": 3}


def test_an_experiment_that_is_never_run_leaves_no_trace_and_says_so(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with run.Experiment("forgotten") as experiment:
        experiment.add(user_tasks.add)
    assert "experiment forgotten was not run" in caplog.text
    assert not home.exists()


# --- add ------------------------------------------------------------------------------------------------


def test_names_that_are_taken_get_a_number() -> None:
    experiment = run.Experiment("names")
    names = [experiment.add(user_tasks.add, name="job") for _ in range(3)]
    assert names == ["job", "job_1", "job_2"]
    assert [experiment.add(user_tasks.add) for _ in range(2)] == ["user_tasks.add", "user_tasks.add_1"]
    assert list(experiment.run()) == ["job", "job_1", "job_2", "user_tasks.add", "user_tasks.add_1"]


def test_what_is_added_is_a_copy() -> None:
    task, executor = run.Partial(user_tasks.give, value=[1]), run.LocalExecutor(env_vars={"A": "1"})
    experiment = run.Experiment("copies")
    experiment.add(task, executor=executor, name="job")
    task.value.append(2)
    executor.env_vars["A"] = "2"
    assert experiment.run() == {"job": [1]}
    assert experiment.jobs[0].executors[0].env_vars == {"A": "1"}


def test_the_experiments_executor_is_for_jobs_without_one_of_their_own() -> None:
    experiment = run.Experiment("environments", executor=run.LocalExecutor(env_vars={"WHO": "experiment"}))
    task = run.Partial(user_tasks.environment, name="WHO")
    experiment.add(task, name="default")
    experiment.add(task, name="own", executor=run.LocalExecutor(env_vars={"WHO": "job"}))
    experiment.add(task, name="config", executor=run.Config(run.LocalExecutor, env_vars={"WHO": "config"}))
    assert experiment.run() == {"default": "experiment", "own": "job", "config": "config"}


def test_plugins_change_the_copies_before_anything_is_written(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with run.Experiment("plugins") as experiment:
        experiment.add(
            run.Partial(user_tasks.add, a=1), name="job", plugins=[SetArgument(value=10, log=str(log))]
        )
        task = run.Partial(user_tasks.environment, name="SET_BY_PLUGIN")
        experiment.add(task, name="where", plugins=SetEnvironment())
        assert experiment.run() == {"job": 13, "where": experiment.id}
    assert log.read_text() == f"setup for {experiment.id}\n"


class SetEnvironment(run.Plugin):
    def setup(self, task: Any, executor: Any) -> None:
        executor.env_vars["SET_BY_PLUGIN"] = self.experiment_id


def test_a_group_has_one_executor_or_one_for_each_member() -> None:
    tasks = [run.Partial(user_tasks.environment, name="RANK") for _ in range(2)]
    executors = [run.LocalExecutor(env_vars={"RANK": str(rank)}) for rank in range(2)]
    with run.Experiment("groups") as experiment:
        experiment.add(tasks, executor=executors, name="each")
        experiment.add(tasks, executor=executors[0], name="same")
        experiment.add(tasks, executor=[run.Config(run.LocalExecutor, env_vars={"RANK": "7"})], name="one")
        assert experiment.run() == {
            "each": {"environment": "0", "environment_1": "1"},
            "same": {"environment": "0", "environment_1": "0"},
            "one": {"environment": "7", "environment_1": "7"},
        }


def test_a_group_of_the_wrong_number_or_kinds_of_executors_is_refused() -> None:
    experiment = run.Experiment("groups")
    tasks = [user_tasks.add] * 3
    with pytest.raises(run.ConfigError, match="a group of 3 tasks takes one executor or 3, not 2"):
        experiment.add(tasks, executor=[run.LocalExecutor()] * 2)
    with pytest.raises(run.ConfigError, match="must be of one class"):
        experiment.add(tasks, executor=[run.LocalExecutor(), run.LocalExecutor(), run.Executor()])
    with pytest.raises(run.ConfigError, match="a group needs at least one task"):
        experiment.add([])
    assert experiment.jobs == []


def test_tail_logs_prints_what_this_job_prints_and_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    with run.Experiment("tails") as experiment:
        experiment.add(run.Partial(user_tasks.say, lines=2), name="loud", tail_logs=True)
        experiment.add(run.Partial(user_tasks.say, lines=2), name="quiet")
        experiment.run()
    out = capfd.readouterr().out
    assert "loud │ line 0\nloud │ line 1\n" in out
    assert "quiet" not in out


def test_run_with_tail_logs_prints_what_all_jobs_print(capfd: pytest.CaptureFixture[str]) -> None:
    with run.Experiment("tails") as experiment:
        for name in ("one", "two"):
            experiment.add(run.Partial(user_tasks.say, lines=1), name=name)
        experiment.run(tail_logs=True)
    out = capfd.readouterr().out
    assert "one │ line 0\n" in out
    assert "two │ line 0\n" in out


# --- order ----------------------------------------------------------------------------------------------


def test_dependencies_run_first_and_their_artifacts_can_be_read() -> None:
    with run.Experiment("steps") as experiment:
        first = experiment.add(user_tasks.write_artifact, name="prepare")
        task = run.Partial(user_tasks.read_artifact, job="prepare")
        experiment.add(task, name="train", dependencies=[first])
        assert experiment.run() == {"prepare": "report.txt", "train": "done\n"}
    assert [path.name for path in experiment.artifacts("prepare").iterdir()] == ["report.txt"]


def test_sequential_runs_one_job_after_the_other(tmp_path: Path) -> None:
    task = run.Partial(user_tasks.add_line, path=str(tmp_path / "lines"))
    with run.Experiment("steps") as experiment:
        for name in "abc":
            experiment.add(task, name=name)
        assert experiment.run(sequential=True) == {"a": 1, "b": 2, "c": 3}
    assert [job.dependencies for job in experiment.jobs] == [[], ["a"], ["b"]]


def test_sequential_and_dependencies_are_not_mixed(home: Path) -> None:
    experiment = run.Experiment("steps")
    first = experiment.add(user_tasks.add, name="a")
    experiment.add(user_tasks.add, name="b", dependencies=[first])
    with pytest.raises(run.ConfigError, match="sequential=True orders jobs itself"):
        experiment.run(sequential=True)
    assert not home.exists()


def test_what_depends_on_a_failure_is_cancelled_with_the_reason_and_never_starts(tmp_path: Path) -> None:
    with run.Experiment("steps", raise_on_failure=False) as experiment:
        experiment.add(user_tasks.fail, name="a")
        task = run.Partial(user_tasks.add_line, path=str(tmp_path / "ran"))
        experiment.add(task, name="b", dependencies=["a"])
        experiment.add(task, name="c", dependencies=["b"])
        experiment.add(user_tasks.add, name="apart")
        assert experiment.run() == {"apart": 3}
    status = experiment.status(return_dict=True)
    assert [status[name]["status"] for name in "abc"] == [
        AppState.FAILED, AppState.CANCELLED, AppState.CANCELLED,
    ]  # fmt: skip
    assert status["b"]["message"] == "never started, because job 'a' is FAILED"
    assert status["c"]["message"] == "never started, because job 'b' is CANCELLED"
    assert not (tmp_path / "ran").exists()


# --- run ------------------------------------------------------------------------------------------------


def test_direct_calls_all_tasks_in_this_process_in_order_and_records_them(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with run.Experiment("direct") as experiment:
        experiment.add(run.Partial(user_tasks.give, value=os.getpid()), name="a")
        experiment.add(user_tasks.write_artifact, name="b", dependencies=["a"])
        experiment.add(user_tasks.add, name="c", dependencies=["b"])
        assert experiment.run(direct=True) == {"a": os.getpid(), "b": "report.txt", "c": 3}
    assert "adding 1 and 2\n" in capfd.readouterr().out
    assert states(experiment) == dict.fromkeys("abc", "SUCCEEDED")
    assert (experiment.artifacts("b") / "report.txt").read_text() == "done\n"
    experiment.logs("c")
    assert capfd.readouterr().out == "adding 1 and 2\n"


def test_direct_stops_at_the_first_error_which_is_the_tasks_own() -> None:
    with run.Experiment("direct") as experiment:
        experiment.add(user_tasks.fail, name="a")
        experiment.add(user_tasks.add, name="b")
        with pytest.raises(ValueError, match="no such data set"):
            experiment.run(direct=True)
    assert states(experiment)["a"] == "FAILED"


def test_direct_cannot_run_groups() -> None:
    with run.Experiment("direct") as experiment:
        experiment.add([user_tasks.add, user_tasks.add], name="pair")
        with pytest.raises(run.ConfigError, match="run it without direct=True"):
            experiment.run(direct=True)


def test_detach_keeps_the_order_without_the_launcher(tmp_path: Path) -> None:
    lines = str(tmp_path / "lines")
    with run.Experiment("detached") as experiment:
        experiment.add(run.Partial(user_tasks.wait_for, path=str(tmp_path / "gate")), name="a")
        for name, before in (("b", "a"), ("c", "b")):
            task = run.Partial(user_tasks.add_line, path=lines, line=name)
            experiment.add(task, name=name, dependencies=[before])
        assert experiment.run(detach=True) == {}
    assert states(experiment)["c"] == "PENDING"
    (tmp_path / "gate").touch()
    assert run.Experiment.from_id(experiment.id).wait() == {"a": "gate", "b": 1, "c": 2}
    assert Path(lines).read_text() == "b\nc\n"


def test_an_experiment_runs_once(caplog: pytest.LogCaptureFixture) -> None:
    with run.Experiment("once") as experiment:
        experiment.add(user_tasks.add, name="job")
        first, second = experiment.run(), experiment.run()
    assert first == second == {"job": 3}
    assert "has been run already" in caplog.text
    with pytest.raises(run.ConfigError, match=r"use reset\(\)"):
        experiment.add(user_tasks.add)


def test_an_experiment_without_jobs_is_refused(home: Path) -> None:
    with pytest.raises(run.ConfigError, match="experiment 'empty' has no jobs"):
        run.Experiment("empty").run()
    assert not home.exists()


def test_dryrun_prints_each_plan_byte_for_byte_as_it_would_be_and_leaves_no_trace(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with run.Experiment("plans") as experiment:
        experiment.add(user_tasks.add, name="a")
        experiment.add([user_tasks.add, user_tasks.give], name="b", dependencies=["a"])
        experiment.dryrun()
        printed = capfd.readouterr().out
        assert not home.exists()
        experiment.run()
    for job in "ab":
        assert (experiment.path / job / "plan.txt").read_text() in printed


def test_dryrun_without_log_only_checks(capfd: pytest.CaptureFixture[str]) -> None:
    experiment = run.Experiment("plans")
    experiment.add(run.Script("missing.sh"), name="a")
    with pytest.raises(run.ConfigError, match=r"script 'missing\.sh' is not there"):
        experiment.dryrun(log=False)
    assert capfd.readouterr().out == ""


def test_clean_mode_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with run.Experiment("quiet", clean_mode=True) as experiment:
        experiment.add(user_tasks.add)
        experiment.run()
    assert capfd.readouterr() == ("", "")


def test_the_goodbye_names_commands_that_work(capfd: pytest.CaptureFixture[str]) -> None:
    with run.Experiment("it's me") as experiment:
        experiment.add(user_tasks.add, name="job")
        experiment.run()
    err = capfd.readouterr().err
    assert f"Experiment {experiment.id} has ended: 1 succeeded.\n" in err
    commands = [line for line in err.splitlines() if " experiment " in line and line.startswith("  ")]
    assert [line.split()[2] for line in commands] == ["status", "logs", "results", "show"]
    for command in commands:  # as a person would paste it
        path = os.pathsep.join([str(Path(NEMO).parent), os.environ["PATH"]])
        succeeded(call(["sh", "-c", command], env={"PATH": path}))


# --- failures -------------------------------------------------------------------------------------------


def test_a_failure_raises_once_all_jobs_have_ended() -> None:
    with run.Experiment("failures") as experiment:
        experiment.add(user_tasks.fail, name="a")
        experiment.add(run.Partial(user_tasks.leave, code=9), name="b")
        experiment.add(user_tasks.add, name="c")
        experiment.add(user_tasks.add, name="d", dependencies=["b"])
        with pytest.raises(run.JobFailedError) as caught:
            experiment.run()
    assert caught.value.record.id == "a"
    assert "not succeeded either: b (FAILED), d (CANCELLED)" in str(caught.value)
    assert experiment.results() == {"c": 3}
    for job, kind, words in (
        ("a", run.JobFailedError, "ValueError: no such data set"),
        ("b", run.JobFailedError, "exit code 9"),
        ("d", run.JobCancelledError, "never started, because job 'b' is FAILED"),
    ):
        with pytest.raises(kind, match=words):
            experiment.result(job)


def test_raise_on_failure_false_leaves_it_to_the_status() -> None:
    with run.Experiment("failures", raise_on_failure=False) as experiment:
        experiment.add(user_tasks.fail, name="a")
        assert experiment.run() == {}
        assert experiment.wait() == {}
    assert states(experiment) == {"a": "FAILED"}


def test_the_failure_of_a_group_names_the_member() -> None:
    with run.Experiment("failures") as experiment:
        experiment.add([user_tasks.add, user_tasks.fail], name="pair")
        with pytest.raises(run.JobFailedError, match="fail: exit code 1") as caught:
            experiment.run()
    assert "ValueError: no such data set" in str(caught.value)
    assert "about to fail" in caught.value.log_tail


# --- looking --------------------------------------------------------------------------------------------


def test_status_speaks_torchx_and_tells_where_things_are(capfd: pytest.CaptureFixture[str]) -> None:
    with run.Experiment("status") as experiment:
        experiment.add(user_tasks.add, name="job")
        experiment.run()
    capfd.readouterr()
    entry = experiment.status(return_dict=True)["job"]
    assert capfd.readouterr().out == ""
    assert type(entry["status"]) is AppState
    assert entry["status"] is AppState.SUCCEEDED
    assert entry["exit_code"] == 0
    assert entry["name"] == "job"
    assert "LocalExecutor" in entry["executor"]
    assert Path(entry["local_dir"]) == experiment.path / "job"
    assert entry["handle"].id == entry["job_id"]
    status = experiment.status()
    assert str(status) == "job: SUCCEEDED"
    assert capfd.readouterr().out.splitlines()[0] == f"Experiment {experiment.id}"


def test_cancel_ends_a_running_job_and_is_harmless_afterwards(tmp_path: Path) -> None:
    with run.Experiment("cancel") as experiment:
        experiment.add(run.Partial(user_tasks.wait_for, path=str(tmp_path / "never")), name="a")
        experiment.add(user_tasks.add, name="b", dependencies=["a"])
        experiment.run(detach=True)
    until(lambda: states(experiment)["a"] == "RUNNING")
    experiment.cancel("a")
    with pytest.raises(run.JobCancelledError):
        experiment.wait()
    assert states(experiment) == {"a": "CANCELLED", "b": "CANCELLED"}
    experiment.cancel("a")
    experiment.cancel()
    with pytest.raises(run.NotFoundError, match="no job 'c'; there are 'a', 'b'"):
        experiment.cancel("c")
    with pytest.raises(run.JobCancelledError):
        experiment.result("a")


def test_cancel_without_a_name_ends_all_jobs(tmp_path: Path) -> None:
    with run.Experiment("cancel", raise_on_failure=False) as experiment:
        for name in "ab":
            experiment.add(run.Partial(user_tasks.wait_for, path=str(tmp_path / "never")), name=name)
        experiment.run(detach=True)
    experiment.cancel()
    assert experiment.wait() == {}
    assert states(experiment) == {"a": "CANCELLED", "b": "CANCELLED"}


def test_what_has_not_been_run_has_nothing_to_look_at() -> None:
    experiment = run.Experiment("early")
    experiment.add(user_tasks.add, name="job")
    for look in (experiment.status, experiment.results, experiment.wait, experiment.reset, experiment.cancel):
        with pytest.raises(run.NotFoundError, match="no record yet of experiment 'early_"):
            look()


# --- coming back ----------------------------------------------------------------------------------------


def test_an_experiment_is_found_by_id_by_title_and_by_how_its_id_begins() -> None:
    for value in (1, 2):
        experiment = run.Experiment("found", clean_mode=True)
        experiment.add(run.Partial(user_tasks.give, value=value), name="job")
        experiment.run()
    for name in (experiment.id, "found", experiment.id[:-1] if experiment.id[-1] != "0" else experiment.id):
        found = run.Experiment.from_id(name)
        assert found.title == "found"
    assert run.Experiment.from_title("found").results() == {"job": 2}
    assert len(run.Experiment.catalog("found")) == len(run.Experiment.catalog()) == 2
    assert run.Experiment.catalog("other") == []


def test_a_name_that_nothing_has_is_an_error_that_suggests_one() -> None:
    experiment = run.Experiment("train", clean_mode=True)
    experiment.add(user_tasks.add)
    experiment.run()
    with pytest.raises(run.NotFoundError, match="no experiment 'trian'; did you mean 'train'") as caught:
        run.Experiment.from_title("trian")
    assert caught.value.known == ("train",)
    with pytest.raises(KeyError):
        run.Experiment.from_id("trian_1")


def test_another_process_has_tasks_jobs_and_config_of_an_experiment() -> None:
    with run.Experiment("tasks") as experiment:
        experiment.add(run.Partial(user_tasks.add, a=7), run.LocalExecutor(timeout=60), name="one")
        experiment.add([user_tasks.add, run.Script(inline="true")], name="two", dependencies=["one"])
        experiment.run()
    found = run.Experiment.from_id(experiment.id)
    assert repr(found) == f"<Experiment {experiment.id}: no jobs loaded>"
    assert found.tasks == experiment.tasks
    assert found.tasks[0] == run.Partial(user_tasks.add, a=7)
    assert [type(task) for task in found.tasks[1]] == [run.Partial, run.Script]
    assert [job.id for job in found.jobs] == ["one", "two"]
    assert found.jobs[0].executors[0].timeout == 60
    assert found.jobs[1].dependencies == ["one"]
    assert repr(found) == f"<Experiment {experiment.id}: one, two>"
    config = found.to_config()
    assert (config.title, config.id) == ("tasks", experiment.id)


def test_reset_gives_a_new_experiment_with_the_same_jobs_that_can_be_changed() -> None:
    with run.Experiment("again") as experiment:
        experiment.add(run.Partial(user_tasks.add, a=2), run.LocalExecutor(env_vars={"A": "1"}), name="a")
        experiment.add([user_tasks.add, user_tasks.add], name="b", dependencies=["a"], tail_logs=True)
        experiment.run()
    new = run.Experiment.from_id(experiment.id).reset()
    assert new.id != experiment.id
    assert new.title == "again"
    new.add(user_tasks.add, name="c", dependencies=["b"])
    with new:
        assert new.run() == {"a": 4, "b": {"add": 3, "add_1": 3}, "c": 3}
    assert [job.dependencies for job in new.jobs] == [[], ["a"], ["b"]]
    assert [job.tail_logs for job in new.jobs] == [False, True, False]
    assert new.jobs[0].executors[0].env_vars == {"A": "1"}
    assert new.jobs[0].executors[0].experiment_id == new.id
    assert run.Experiment.from_id(experiment.id).results() == experiment.results()


def test_a_task_changed_after_reset_runs_as_changed() -> None:
    with run.Experiment("again") as experiment:
        experiment.add(run.Partial(user_tasks.add, a=2), name="a")
        experiment.run()
    new = experiment.reset()
    new.jobs[0].tasks[0].a = 40
    with new:
        assert new.run() == {"a": 42}


def test_reset_keeps_plugins_but_what_they_did_is_not_done_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with run.Experiment("again") as experiment:
        plugin = SetArgument(value=100, log=str(log))
        experiment.add(run.Partial(user_tasks.add, a=1), name="a", plugins=plugin)
        assert experiment.run() == {"a": 103}
    for _ in range(2):
        experiment = run.Experiment.from_id(experiment.id).reset()
        with experiment:
            assert experiment.run() == {"a": 103}
        (kept,) = experiment.jobs[0].plugins
        assert (type(kept), kept.value, kept.experiment_id) == (SetArgument, 100, experiment.id)
    assert len(log.read_text().splitlines()) == 1


def test_reset_never_executes_the_launching_script(tmp_path: Path) -> None:
    """The script has no guard: executing it would launch again."""
    script = write(
        tmp_path / "script.py",
        f"""
        import nemo_run as run

        OFFSET = 40

        def train(x):
            return x + OFFSET

        with open({str(tmp_path / "launches")!r}, "a") as file:
            file.write("launched\\n")
        with run.Experiment("script") as experiment:
            experiment.add(run.Partial(train, x=2), name="job")
            print(experiment.run())
        new = experiment.reset()
        with new:
            print("again", new.run())
        """,
    )
    assert "again {'job': 42}\n" in succeeded(python(script)).stdout
    other = write(
        tmp_path / "other.py",
        """
        import nemo_run as run

        with run.Experiment.from_title("script").reset() as new:
            print("from another script", new.run())
        with new.reset() as newer:
            print("and again", newer.run())
        """,
    )
    printed = succeeded(python(other)).stdout
    assert "from another script {'job': 42}\n" in printed
    assert "and again {'job': 42}\n" in printed
    assert (tmp_path / "launches").read_text() == "launched\n"
    assert len(run.Experiment.catalog("script")) == 4


# --- executors of users ---------------------------------------------------------------------------------


def test_an_executor_of_a_class_of_the_script_can_be_asked_from_anywhere(tmp_path: Path) -> None:
    gate, log = tmp_path / "gate", tmp_path / "log"
    script = write(
        tmp_path / "script.py",
        f"""
        import nemo_run as run
        import user_tasks

        class Mine(run.Executor):
            def __init__(self, greeting="hello", **kwargs):
                super().__init__(**kwargs)
                self.greeting = greeting

            def execute(self, task, config):
                with open({str(log)!r}, "a") as file:
                    file.write(f"{{self.greeting}} {{config.id}}\\n")
                return super().execute(task, config)

            def info(self):
                return f"Mine, {{self.greeting}}"

        if __name__ == "__main__":
            with run.Experiment("mine") as experiment:
                experiment.add(
                    run.Partial(user_tasks.wait_for, path={str(gate)!r}), Mine("bonjour"), name="job"
                )
                experiment.add(user_tasks.add, run.Config(Mine), name="next", dependencies=["job"])
                experiment.run(detach=True)
        """,
    )
    succeeded(python(script, env={"PYTHONPATH": str(Path(user_tasks.__file__).parent)}))
    experiment = run.Experiment.from_title("mine")
    until(lambda: states(experiment)["job"] == "RUNNING")
    assert experiment.status(return_dict=True)["job"]["executor"] == "Mine, bonjour"
    gate.touch()
    assert experiment.wait() == {"job": "gate", "next": 3}
    assert log.read_text() == "bonjour job\nhello next\n"


def test_no_more_jobs_than_max_parallel_run_at_once(tmp_path: Path) -> None:
    with run.Experiment("bounded", executor=run.LocalExecutor(max_parallel=2)) as experiment:
        for number in range(5):
            task = run.Partial(
                user_tasks.count_at_once, folder=str(tmp_path / "running"), gate=str(tmp_path / "gate")
            )
            experiment.add(task, name=f"job{number}")
        experiment.run(detach=True)
    until(lambda: list(states(experiment).values()).count("RUNNING") == 2)
    assert sorted(states(experiment).values()) == ["PENDING"] * 3 + ["RUNNING"] * 2
    (tmp_path / "gate").touch()
    counts = experiment.wait().values()
    assert len(counts) == 5
    assert max(counts) <= 2
