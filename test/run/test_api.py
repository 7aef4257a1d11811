"""`run.run(task, executor)`: one task, one call, its value; and the scripts that call it."""

from __future__ import annotations

from pathlib import Path

import pytest
import user_tasks
from programs import failed, python, succeeded, until, write
from user_tasks import SetArgument

import nemo_run as run

pytestmark = pytest.mark.usefixtures("home")


def nothing_written(home: Path) -> bool:
    return not (home / "experiments").exists()


# --- the value ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task",
    [
        user_tasks.add,
        run.Partial(user_tasks.add, a=1),
        run.Config(user_tasks.add, b=2),
    ],
    ids=["function", "Partial", "Config"],
)
def test_a_task_of_any_form_runs_in_a_process_of_its_own_and_gives_its_value(task: object) -> None:
    assert run.run(task, executor=run.LocalExecutor()) == 3


def test_an_executor_may_be_given_as_a_config() -> None:
    assert run.run(user_tasks.add, run.Config(run.LocalExecutor, env_vars={"A": "1"})) == 3


def test_a_class_as_a_task_gives_an_instance() -> None:
    assert run.run(run.Config(user_tasks.Model, size=5), run.LocalExecutor()) == user_tasks.Model(5)


def test_a_script_gives_no_value_and_does_its_work(tmp_path: Path) -> None:
    script = run.Script(inline=f"printf %s done > {tmp_path / 'out'}")
    assert run.run(script, executor=run.LocalExecutor()) is None
    assert (tmp_path / "out").read_text() == "done"


def test_what_the_task_prints_is_printed_while_it_runs(capfd: pytest.CaptureFixture[str]) -> None:
    run.run(user_tasks.add, run.LocalExecutor(), name="adding")
    assert "adding │ adding 1 and 2\n" in capfd.readouterr().out


def test_tail_logs_can_be_turned_off(capfd: pytest.CaptureFixture[str]) -> None:
    run.run(user_tasks.add, run.LocalExecutor(), tail_logs=False)
    assert "adding 1 and 2" not in capfd.readouterr().out


def test_without_an_executor_the_task_is_called_in_this_process(home: Path) -> None:
    assert run.run(run.Partial(user_tasks.add, a=5)) == 7
    assert nothing_written(home)


def test_direct_calls_the_task_in_this_process_even_with_an_executor(home: Path) -> None:
    assert run.run(user_tasks.give_model, executor=run.LocalExecutor(), direct=True) == user_tasks.Model(7)
    assert nothing_written(home)


def test_direct_runs_a_script_with_the_environment_of_its_executor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_SOURCE", "s3cr3t")
    script = run.Script(
        inline=f'printf "%s %s" "$A" "$B" > {tmp_path / "out"}', env={"B": run.Secret("TOKEN_SOURCE")}
    )
    run.run(script, executor=run.LocalExecutor(env_vars={"A": "one"}), direct=True)
    assert (tmp_path / "out").read_text() == "one s3cr3t"


def test_a_script_run_directly_that_fails_raises_with_its_exit_code() -> None:
    with pytest.raises(run.JobFailedError, match="exit code 4") as caught:
        run.run(run.Script(inline="exit 4"))
    assert caught.value.exit_code == 4


def test_dryrun_prints_the_plan_and_leaves_no_trace(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    task = run.Partial(user_tasks.add, a=4)
    assert run.run(task, run.LocalExecutor(timeout=60), name="adding", dryrun=True) is None
    printed = capfd.readouterr().out
    assert "# --- job adding of experiment adding_" in printed
    assert "timeout: 60" in printed
    assert not home.exists()


def test_dryrun_without_an_executor_prints_the_arguments_and_calls_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run.run(run.Partial(user_tasks.add_line, path=str(tmp_path / "ran")), dryrun=True) is None
    assert "add_line" in capfd.readouterr().out
    assert not (tmp_path / "ran").exists()


def test_detach_returns_at_once_and_the_task_goes_on(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    task = run.Partial(user_tasks.wait_for, path=str(gate))
    assert run.run(task, run.LocalExecutor(), name="waiting", detach=True) is None
    experiment = run.Experiment.from_title("waiting")
    assert str(experiment.status(return_dict=True)["waiting"]["status"]) in ("SUBMITTED", "RUNNING")
    gate.touch()
    assert experiment.wait() == {"waiting": "gate"}


def test_plugins_are_applied_to_copies() -> None:
    task, executor = run.Partial(user_tasks.add, a=1), run.LocalExecutor()
    assert run.run(task, executor, plugins=SetArgument(value=10)) == 13
    assert run.run(task, executor, plugins=[SetArgument(), SetArgument()]) == 203
    assert task == run.Partial(user_tasks.add, a=1)
    assert executor.env_vars == {}


# --- failures -------------------------------------------------------------------------------------------


def test_a_task_that_raises_is_an_error_with_everything_there_is_to_say() -> None:
    with pytest.raises(run.JobFailedError) as caught:
        run.run(user_tasks.fail, run.LocalExecutor(), name="failing")
    error, text = caught.value, str(caught.value)
    assert error.exit_code == 1
    assert error.record.id == "failing"
    assert error.log_tail.startswith("about to fail\nTraceback (most recent call last):")
    assert "job 'failing' of experiment failing_" in text
    assert "ValueError: no such data set" in text
    path = next(line for line in text.splitlines() if "its whole log" in line).partition(": ")[2]
    assert Path(path).read_text() == error.log_tail + "\n"


def test_a_task_that_calls_sys_exit_fails_with_that_code() -> None:
    with pytest.raises(run.JobFailedError, match="exit code 3") as caught:
        run.run(user_tasks.leave, run.LocalExecutor())
    assert caught.value.exit_code == 3


def test_a_task_over_its_time_is_an_error_of_its_own(tmp_path: Path) -> None:
    task = run.Partial(user_tasks.wait_for, path=str(tmp_path / "never"))
    with pytest.raises(run.JobTimeoutError, match=r"ran out of time: TIMEOUT: ran longer than 0\.3 s"):
        run.run(task, run.LocalExecutor(timeout=0.3))


def test_all_failures_are_execution_errors_and_nemo_run_errors() -> None:
    for kind in (run.JobFailedError, run.JobTimeoutError, run.JobCancelledError, run.JobLostError):
        assert issubclass(kind, run.ExecutionError)
    assert issubclass(run.ExecutionError, run.NemoRunError)


# --- scripts --------------------------------------------------------------------------------------------


def launches(folder: Path) -> int:
    """How often the main part of a script has run: each time it writes a line."""
    return len((folder / "launches").read_text().splitlines())


@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "unguarded"])
def test_tasks_of_the_launching_script_run_without_its_main_part(tmp_path: Path, guarded: bool) -> None:
    """Including what they use of it: classes, functions, globals."""
    main = f"""
        with open({str(tmp_path / "launches")!r}, "a") as file:
            file.write("launched\\n")
        print("value", run.run(run.Partial(train, model=run.Config(Model, size=4)), run.LocalExecutor()))
    """
    guard = 'if __name__ == "__main__":\n' if guarded else ""
    indent = "    " if guarded else ""
    lines = [indent + line[8:] for line in main.strip("\n").splitlines()]
    source = """
        import dataclasses
        import nemo_run as run

        FACTOR = 10

        @dataclasses.dataclass
        class Model:
            size: int

            def parameters(self):
                return self.size * FACTOR

        def helper(model):
            return model.parameters() + 1

        def train(model):
            return helper(model)
    """
    script = write(tmp_path / "script.py", source)
    script.write_text(script.read_text() + guard + "\n".join(lines) + "\n")
    done = succeeded(python(script))
    assert "value 41\n" in done.stdout
    assert launches(tmp_path) == 1


def test_an_object_of_a_class_of_the_script_comes_back_as_one(tmp_path: Path) -> None:
    """What is pickled under the name `__main__.Model` in the job is found under it in the launcher."""
    script = write(
        tmp_path / "script.py",
        """
        import dataclasses
        import nemo_run as run

        @dataclasses.dataclass
        class Model:
            size: int

        def make():
            return Model(3)

        model = run.run(make, run.LocalExecutor())
        print(type(model) is Model, model)
        """,
    )
    assert "True Model(size=3)\n" in succeeded(python(script)).stdout


def test_a_job_may_start_processes_that_use_the_script_as_multiprocessing_does(tmp_path: Path) -> None:
    script = write(
        tmp_path / "script.py",
        """
        import multiprocessing
        import nemo_run as run

        def double(x):
            return 2 * x

        def train():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.map(double, [1, 2])

        if __name__ == "__main__":
            print("value", run.run(train, run.LocalExecutor()))
        """,
    )
    assert "value [2, 4]\n" in succeeded(python(script)).stdout


def test_a_script_of_a_package_can_be_launched_as_a_module(tmp_path: Path) -> None:
    write(tmp_path / "pkg" / "__init__.py", "")
    write(tmp_path / "pkg" / "other.py", "def base():\n    return 40\n")
    write(
        tmp_path / "pkg" / "launch.py",
        """
        import nemo_run as run
        from pkg.other import base

        def train(more):
            return base() + more

        if __name__ == "__main__":
            print("value", run.run(run.Partial(train, more=2), run.LocalExecutor()))
        """,
    )
    assert "value 42\n" in succeeded(python("-m", "pkg.launch", cwd=tmp_path)).stdout


def test_a_script_whose_run_failed_exits_with_an_error(tmp_path: Path) -> None:
    script = write(
        tmp_path / "script.py",
        """
        import nemo_run as run

        def train():
            raise RuntimeError("diverged")

        run.run(train, run.LocalExecutor())
        print("not reached")
        """,
    )
    done = python(script)
    assert done.returncode == 1
    assert "nemo_run.errors.JobFailedError: job 'script.train' of experiment script.train_" in done.stderr
    assert "RuntimeError: diverged" in done.stderr
    assert "not reached" not in done.stdout


def test_a_script_that_launches_while_a_job_loads_it_is_told_so_and_does_not_launch_again(
    tmp_path: Path,
) -> None:
    """The loop binds a global that the task needs, so it cannot be left out of the job's definitions."""
    script = write(
        tmp_path / "script.py",
        f"""
        import nemo_run as run

        def train():
            return size

        for size in [1, 2]:
            with open({str(tmp_path / "launches")!r}, "a") as file:
                file.write("launched\\n")
            run.run(train, run.LocalExecutor())
        """,
    )
    done = python(script)
    assert done.returncode == 1
    assert 'put the launch under `if __name__ == "__main__":`' in done.stderr
    # Once by the user; the job's own pass through the loop got as far as the launch.
    assert launches(tmp_path) == 2
    assert len(run.Experiment.catalog()) == 1


def test_launching_from_within_a_job_works(tmp_path: Path) -> None:
    script = write(
        tmp_path / "script.py",
        """
        import nemo_run as run

        def inner(x):
            return x + 1

        def outer(x):
            return 10 * run.run(run.Partial(inner, x=x), run.LocalExecutor(), name="inner")

        if __name__ == "__main__":
            print("value", run.run(run.Partial(outer, x=4), run.LocalExecutor(), name="outer"))
        """,
    )
    assert "value 50\n" in succeeded(python(script)).stdout
    assert {name.rpartition("_")[0] for name in run.Experiment.catalog()} == {"inner", "outer"}


def test_a_task_typed_into_an_interpreter_without_source_is_refused(home: Path) -> None:
    source = """
import nemo_run as run
def train():
    return 1
try:
    run.run(train, run.LocalExecutor())
except run.ConfigError as exc:
    print("refused:", exc)
"""
    assert "refused: train was defined in a session" in succeeded(python("-c", source)).stdout
    assert run.Experiment.catalog() == []


def test_the_launcher_may_end_before_its_detached_job(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = write(
        tmp_path / "script.py",
        f"""
        import nemo_run as run
        import time, os

        def train():
            while not os.path.exists({str(gate)!r}):
                time.sleep(0.01)
            return "done"

        run.run(train, run.LocalExecutor(), name="left", detach=True)
        """,
    )
    succeeded(python(script))
    experiment = run.Experiment.from_title("left")
    until(lambda: str(experiment.status(return_dict=True)["left"]["status"]) == "RUNNING")
    gate.touch()
    assert experiment.wait() == {"left": "done"}


def test_a_script_that_cannot_work_says_why_in_one_message(tmp_path: Path) -> None:
    script = write(
        tmp_path / "script.py",
        """
        import sys
        import nemo_run as run

        try:
            run.run(run.Script("missing.sh"), run.LocalExecutor())
        except run.NemoRunError as exc:
            sys.exit(f"cannot launch: {exc}")
        """,
    )
    message = failed(python(script, cwd=tmp_path))
    assert message.startswith("cannot launch: script 'missing.sh' is not there")


def test_a_partial_inside_a_task_may_leave_arguments_for_its_caller(home: Path) -> None:
    task = run.Partial(user_tasks.needs_model, model=run.Partial(user_tasks.NeedsSize))
    assert run.run(task, run.LocalExecutor(), name="whole", tail_logs=False) == "partial"
