"""A process on this machine is all that an executor's fields say it is."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import tasks
from contracts.executor import SHOW, ExecutorContract, ended, prepare, wait_until, write
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import nemo_run as run
from nemo_run.core.execution.base import AppState, Executor, JobHandle, Plan
from nemo_run.errors import ConfigError, JobFailedError, JobTimeoutError, SubmitError, UnsupportedError
from nemo_run.run.results import PickledValue, read_outcome

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


class TestLocalExecutor(ExecutorContract):
    def executor(self, **fields: Any) -> Executor:
        return run.LocalExecutor(**fields)

    def refuse(self, plan: Plan) -> tuple[Plan, str]:
        (plan.spec.job_dir / "logs").write_text("in the way")
        return plan, "File exists"


class TestPlainExecutor(TestLocalExecutor):
    """`run.Executor()` itself runs processes here too."""

    def executor(self, **fields: Any) -> Executor:
        return run.Executor(**fields)


class Mine(run.Executor):
    """A user's executor, with a constructor of its own that knows nothing of ours."""

    def __init__(self, word: str, env_vars: dict[str, str] | None = None) -> None:
        super().__init__(env_vars={**(env_vars or {}), "WORD": word})
        self.word = word

    def execute(self, task: Any, config: Any) -> JobHandle:
        (config.job_dir / "before").write_text(self.word)
        return super().execute(task, config)


def test_a_users_executor_does_something_before_the_job_starts(home: Path) -> None:
    experiment = run.Experiment("mine", Mine("a word"), clean_mode=True)
    experiment.add(run.Script(inline='cat "$NEMORUN_JOB_DIR/before" && [ "$WORD" = "a word" ]'), name="job")
    experiment.run()
    assert (experiment.path / "job/logs/job_0.log").read_text() == "a word"


# --- how a test runs a job ------------------------------------------------------------------------------


def value(task: Any, **fields: Any) -> Any:
    """What a task returns from a process of its own."""
    return run.run(task, run.LocalExecutor(**fields), name="job", tail_logs=False)


def submit(task: Any, grace: float | None = None, **fields: Any) -> tuple[Executor, JobHandle]:
    """A job on its way; between SIGTERM and SIGKILL it has `grace` seconds."""
    plan = prepare(task, run.LocalExecutor(**fields))
    if grace is not None:
        plan = replace(plan, request={**plan.request, "grace": grace})
    executor = plan.spec.members[0]
    return executor, executor.submit(plan)


def log(job: tuple[Executor, JobHandle]) -> list[str]:
    """What a job has printed so far."""
    return list(job[0].logs(job[1], "job"))


def gone(path: Path) -> bool:
    """Whether the process whose number is in this file has ended."""
    return not psutil.pid_exists(int(path.read_text()))


# --- the common fields ----------------------------------------------------------------------------------


class TestFields:
    def test_the_working_dir_is_made_relative_to_the_launching_folder(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert value(run.Partial(os.getcwd), working_dir="deep/er") == str(tmp_path / "deep/er")
        monkeypatch.setenv("HOME", str(tmp_path / "me"))
        assert value(run.Partial(os.getcwd), working_dir="~/there") == str(tmp_path / "me/there")
        assert value(run.Partial(os.getcwd)) == str(tmp_path)

    def test_a_working_dir_that_cannot_be_is_a_failure_that_says_why(
        self, home: Path, tmp_path: Path
    ) -> None:
        job = submit(run.Script(inline=":"), working_dir=str(write(tmp_path / "file", "")))
        assert ended(*job).exit_code == 126
        assert "File exists" in log(job)[0]

    def test_a_script_overrides_the_executors_variables_and_these_the_launchers(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in "ABC":
            monkeypatch.setenv(name, "launcher")
        job = submit(
            run.Script(inline="echo $A $B $C", env={"C": "script"}),
            env_vars={"B": "executor", "C": "executor"},
        )
        ended(*job)
        assert log(job) == ["launcher executor script"]

    def test_python_path_names_the_interpreter(self, home: Path, other_pythons: list[str]) -> None:
        for python in other_pythons:
            executable, version, holds_nemo_run = value(run.Partial(tasks.python_version), python_path=python)
            assert os.path.samefile(executable, python)
            assert version == version_of(python)
            assert not holds_nemo_run

    def test_python_scripts_run_in_python_path_too(
        self, home: Path, tmp_path: Path, other_pythons: list[str]
    ) -> None:
        path = write(tmp_path / "which.py", "import sys; print(sys.executable)")
        job = submit(run.Script(path=str(path), entrypoint="python"), python_path=other_pythons[0])
        ended(*job)
        assert os.path.samefile(log(job)[0], other_pythons[0])

    def test_the_interpreter_is_the_launching_one_whatever_python_means(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        assert value(run.Partial(tasks.python_version))[0] == sys.executable

    @linux
    def test_cpu_limit_binds_a_task_to_so_many_processors(self, home: Path) -> None:
        bound = value(run.Partial(tasks.processors), cpu_limit=1)
        assert len(bound) == 1
        assert set(bound) <= os.sched_getaffinity(0)
        assert set(value(run.Partial(tasks.processors), cpu_limit=10**6)) == os.sched_getaffinity(0)

    def test_log_level_is_that_of_the_tasks_root_logger(self, home: Path) -> None:
        job = submit(run.Partial(tasks.log_something), log_level="DEBUG")
        ended(*job)
        assert [line.split(" ", 2)[2] for line in log(job)] == [
            "DEBUG mine: a debug line",
            "WARNING mine: a warning line",
        ]
        assert value(run.Partial(tasks.log_something)) == 30

    def test_only_expand_is_expanded_on_the_node(self, home: Path, tmp_path: Path) -> None:
        args = ["$(echo 1)", run.Expand("$(echo 2)"), run.Expand('<$A> "$(echo "x  y")" *'), "*"]
        path = str(write(tmp_path / "show.py", SHOW))
        job = submit(run.Script(path=path, entrypoint="python", args=args, env={"A": "$(echo 3)"}))
        ended(*job)
        expected = ["$(echo 1)", "2", '<$(echo 3)> "x  y" *', "*"]
        assert json.loads(log(job)[-1]) == tasks.hexed(expected)
        names = {"VARIABLES": "PLAIN SHELL", "PLAIN": "$HOME", "SHELL": run.Expand("$A/$PLAIN")}
        job = submit(run.Script(path=path, entrypoint="python", env={"A": "a b", **names}))
        ended(*job)
        assert json.loads(log(job)[-1]) == tasks.hexed(["$HOME", "a b/$HOME"])

    def test_a_python_tasks_environment_may_be_expanded_too(self, home: Path) -> None:
        asked = run.Partial(tasks.environment, ["HERE", "PLAIN"])
        given = {"HERE": run.Expand("$(echo here)"), "PLAIN": "$(echo here)"}
        assert value(asked, env_vars=given) == tasks.hexed(["here", "$(echo here)"])

    def test_a_secret_arrives_and_stays_out_of_the_plan_and_the_records(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        word = "hunter2 '$x\"\n\\"
        monkeypatch.setenv("MY_TOKEN", word)
        fields = {"env_vars": {"TOKEN": run.Secret("MY_TOKEN")}}
        assert value(run.Partial(tasks.environment, ["TOKEN"]), **fields) == tasks.hexed([word])
        assert value(run.Partial(tasks.hexed, [run.Secret("MY_TOKEN")])) == tasks.hexed([word])
        plan = prepare(run.Partial(tasks.environment, ["TOKEN"]), run.LocalExecutor(**fields))
        assert "hunter2" not in plan.text + repr(plan)
        assert "TOKEN" in plan.text
        for path in home.rglob("*"):
            assert path.is_dir() or b"hunter2" not in path.read_bytes()

    def test_a_secret_that_is_not_there_is_an_error_before_anything_starts(self, home: Path) -> None:
        plan = prepare(run.Script(inline=":"), run.LocalExecutor(env_vars={"A": run.Secret("NOT_SET_HERE")}))
        with pytest.raises(ConfigError, match="NOT_SET_HERE"):
            plan.spec.members[0].submit(plan)
        assert not (plan.spec.job_dir / "process.json").exists()

    @pytest.mark.parametrize("word", ["a\0b", "\ud800"])
    def test_what_no_process_can_be_given_is_refused_before_anything_starts(
        self, home: Path, tmp_path: Path, word: str
    ) -> None:
        path = str(write(tmp_path / "x.sh", ":"))
        for script in (run.Script(path, args=[word]), run.Script(path, env={"A": word})):
            with pytest.raises(ConfigError, match=r"NUL|surrogate"):
                value(script)
        assert run.Experiment.catalog() == []

    def test_a_process_that_cannot_be_started_here_is_a_refusal(self, home: Path) -> None:
        import resource

        plan = prepare(run.Script(inline=":"), run.LocalExecutor())
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(map(int, os.listdir("/proc/self/fd"))) if os.path.isdir("/proc") else 64
        held = [os.dup(0) for _ in range(highest)]  # so that no number below the limit is free
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))
            with pytest.raises(SubmitError, match="Too many open files"):
                plan.spec.members[0].submit(plan)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for number in held:
                os.close(number)


class TestTimeout:
    def test_a_job_that_runs_too_long_is_ended_and_raises(self, home: Path) -> None:
        with pytest.raises(JobTimeoutError, match=r"TIMEOUT: ran longer than 0\.5 s") as caught:
            value(run.Script(inline="sleep 600"), timeout=0.5)
        assert caught.value.record.state == AppState.FAILED
        assert caught.value.record.exit_code == 124

    def test_one_that_is_quick_enough_succeeds(self, home: Path) -> None:
        assert value(run.Partial(tasks.double, 2), timeout=60) == 4

    def test_sigterm_comes_first_and_leaves_time_to_clean_up(self, home: Path, tmp_path: Path) -> None:
        path = tmp_path / "pid"
        job = submit(run.Partial(tasks.clean_up_on_sigterm, str(path)), timeout=2)
        status = ended(*job)
        assert status.message == "TIMEOUT: ran longer than 2 s"
        assert (tmp_path / "pid.end").read_text() == "cleaned up"

    def test_sigkill_ends_what_ignores_sigterm(self, home: Path, tmp_path: Path) -> None:
        path = tmp_path / "pid"
        job = submit(run.Partial(tasks.ignore_sigterm, str(path)), timeout=2, grace=0.5)
        status = ended(*job)
        assert status.message == "TIMEOUT: ran longer than 2 s"
        assert status.ended
        assert status.started
        assert status.ended - status.started >= 2.5
        assert gone(path)

    def test_cancelling_ends_what_ignores_sigterm_too(self, home: Path, tmp_path: Path) -> None:
        path = tmp_path / "pid"
        executor, handle = submit(run.Partial(tasks.ignore_sigterm, str(path)), grace=0.5)
        wait_until(path.exists, "it runs")
        executor.cancel(handle)
        assert ended(executor, handle).state == AppState.CANCELLED
        assert gone(path)

    def test_time_that_has_run_out_is_no_reason_to_try_again(self, home: Path) -> None:
        status = ended(*submit(run.Script(inline="sleep 600"), timeout=0.2, retries=3))
        assert status.attempt == 1


class TestMemory:
    @pytest.mark.parametrize("children", [0, 1])
    def test_a_tree_of_processes_within_its_limit_is_left_alone(self, home: Path, children: int) -> None:
        assert value(run.Partial(tasks.use_memory, 40, children), memory_limit="200M") == 40

    def test_processes_that_only_together_use_too_much_are_ended(self, home: Path) -> None:
        with pytest.raises(JobFailedError, match=r"OUT_OF_MEMORY: used \d+ MiB, over the limit of 120 MiB"):
            value(run.Partial(tasks.use_memory, 75, 1), memory_limit="120M")

    @linux
    def test_pages_that_processes_share_count_once(self, home: Path) -> None:
        assert value(run.Partial(tasks.use_memory, 75, 3, shared=True), memory_limit="200M") == 75


@pytest.mark.slow
def test_what_a_job_uses_is_sampled_and_shown(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = run.Experiment("used", run.LocalExecutor(monitor_resources=True), clean_mode=True)
    experiment.add(run.Partial(tasks.be_busy, 2.5), name="job")
    experiment.run()
    samples = list(map(json.loads, (experiment.path / "job/resources.jsonl").read_text().splitlines()))
    assert len(samples) >= 2
    assert max(sample["cpu_percent"] for sample in samples) > 5
    assert min(sample["rss_bytes"] for sample in samples) > 1 << 20
    assert samples[0]["time"] < samples[-1]["time"]
    experiment.status()
    assert "peak memory" in "".join(capsys.readouterr())


class TestRetries:
    def test_attempts_are_kept_apart_and_the_value_is_that_of_the_one_that_succeeded(
        self, home: Path
    ) -> None:
        experiment = run.Experiment("again", run.LocalExecutor(retries=4), clean_mode=True)
        experiment.add(run.Partial(tasks.fail_until, 3), name="job")
        assert experiment.run() == {"job": 3}
        job_dir = experiment.path / "job"
        logs = [(job_dir / f"logs/job_0{mark}.log").read_text() for mark in ("", ".attempt2", ".attempt3")]
        assert [text.splitlines()[0] for text in logs] == ["attempt 1", "attempt 2", "attempt 3"]
        assert "ValueError: attempt 2 fails" in logs[1]
        results = [job_dir / f"results/job_0{mark}.json" for mark in ("", ".attempt2", ".attempt3")]
        messages = [json.loads(path.read_text()).get("error", {}).get("message") for path in results]
        assert messages == ["attempt 1 fails", "attempt 2 fails", None]
        assert experiment.jobs[0].executors[0].status([handle_of(experiment)])[0].attempt == 3

    def test_following_goes_from_attempt_to_attempt(self, home: Path) -> None:
        executor, handle = submit(run.Partial(tasks.fail_until, 3), retries=2)
        lines = list(executor.logs(handle, "job", follow=True))
        assert [line for line in lines if line.startswith("attempt")] == [
            "attempt 1",
            "attempt 2",
            "attempt 3",
        ]
        assert ended(executor, handle).state == AppState.SUCCEEDED

    def test_when_all_attempts_fail_the_last_one_counts(self, home: Path) -> None:
        with pytest.raises(JobFailedError, match="attempt 3 fails") as caught:
            value(run.Partial(tasks.fail_until, 9), retries=2)
        assert "attempt 3" in caught.value.log_tail
        assert caught.value.record.attempt == 3

    def test_cancelling_ends_the_attempts(self, home: Path, tmp_path: Path) -> None:
        script = run.Script(inline=f"touch {tmp_path}/try$NEMORUN_ATTEMPT; exec sleep 600")
        executor, handle = submit(script, retries=5)
        wait_until((tmp_path / "try1").exists, "it runs")
        executor.cancel(handle)
        assert ended(executor, handle).state == AppState.CANCELLED
        assert [path.name for path in tmp_path.glob("try*")] == ["try1"]


def handle_of(experiment: Any) -> JobHandle:
    """The handle of an experiment's one job."""
    [entry] = experiment.status(return_dict=True).values()
    handle: JobHandle = entry["handle"]
    return handle


class TestQueue:
    @pytest.mark.parametrize("detach", [False, True])
    def test_no_more_jobs_run_at_once_than_max_parallel(
        self, home: Path, tmp_path: Path, detach: bool
    ) -> None:
        experiment = run.Experiment("queue", run.LocalExecutor(max_parallel=2), clean_mode=True)
        # Each says how many others it meets.
        program = f"cd {tmp_path}; touch $$.runs; ls *.runs | wc -l; sleep 0.2; rm $$.runs"
        for at in range(5):
            experiment.add(run.Script(inline=program), name=f"job{at}")
        experiment.run(detach=detach)
        experiment.wait()
        met = [int((experiment.path / f"job{at}/logs/job{at}_0.log").read_text()) for at in range(5)]
        assert set(met) <= {1, 2}
        assert 2 in met

    def test_queued_jobs_are_pending(
        self, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        experiment = run.Experiment("queue", run.LocalExecutor(max_parallel=1), clean_mode=True)
        experiment.add(run.Script(inline=f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"), name="first")
        experiment.add(run.Script(inline=":"), name="second")
        experiment.run(detach=True)
        wait_until(lambda: states(experiment)["first"] == "RUNNING", "the first one runs")
        capsys.readouterr()
        experiment.status()
        assert re.search(r"second +PENDING", capsys.readouterr().out)
        (tmp_path / "go").touch()
        experiment.wait()
        assert states(experiment) == {"first": "SUCCEEDED", "second": "SUCCEEDED"}


def states(experiment: Any) -> dict[str, str]:
    """By job id its state's name."""
    return {name: entry["status"].name for name, entry in experiment.status(return_dict=True).items()}


class TestGroups:
    def test_each_member_has_its_own_executor(self, home: Path, tmp_path: Path) -> None:
        experiment = run.Experiment("group", clean_mode=True)
        executors = [
            run.LocalExecutor(env_vars={"WHO": who}, working_dir=str(tmp_path / who)) for who in "ab"
        ]
        scripts = [run.Script(inline="echo $WHO; pwd", env={"OTHER": who}) for who in "ab"]
        experiment.add(scripts, executor=executors, name="pair")
        experiment.run()
        texts = [path.read_text() for path in sorted((experiment.path / "pair/logs").glob("*.log"))]
        assert texts == [f"a\n{tmp_path}/a\n", f"b\n{tmp_path}/b\n"]

    def test_a_groups_values_come_back_by_role(self, home: Path) -> None:
        experiment = run.Experiment("group", clean_mode=True)
        experiment.add([run.Partial(tasks.double, 1), run.Partial(tasks.hexed, ["a"])], name="pair")
        assert experiment.run() == {"pair": {"double": 2, "hexed": ["61"]}}

    def test_who_failed_is_said(self, home: Path) -> None:
        experiment = run.Experiment("group", clean_mode=True, raise_on_failure=False)
        experiment.add([run.Partial(tasks.write_and_wait, str(home / "pid")), run.Partial(tasks.leave, 3)])
        experiment.run()
        [entry] = experiment.status(return_dict=True).values()
        assert (entry["message"], entry["exit_code"]) == ("leave: exit code 3", 3)

    def test_what_holds_for_the_whole_cannot_differ(self, home: Path) -> None:
        experiment = run.Experiment("group", clean_mode=True)
        executors = [run.LocalExecutor(timeout=1), run.LocalExecutor(timeout=2)]
        experiment.add([run.Script(inline=":"), run.Script(inline=":")], executor=executors)
        with pytest.raises(UnsupportedError, match="'timeout'"):
            experiment.run()

    def test_retries_start_the_whole_group_again(self, home: Path, tmp_path: Path) -> None:
        experiment = run.Experiment("group", run.LocalExecutor(retries=1), clean_mode=True)
        twin = run.Script(inline=f"echo >> {tmp_path}/twin")
        experiment.add([run.Partial(tasks.fail_until, 2), twin], name="pair")
        assert experiment.run()["pair"]["fail_until"] == 2
        assert 1 <= len((tmp_path / "twin").read_text()) <= 2


# --- a task that is a fork of its supervisor ------------------------------------------------------------

#: With this in its environment a task cannot be a fork, as Python might read it while it starts.
FRESH = {"PYTHON_IS_STARTED_ANEW": "1"}


class TestForkedTask:
    """A Python task is a fork of its supervisor where it can be, and cannot tell."""

    def test_it_is_one_unless_the_interpreter_must_be_started_anew(self, home: Path) -> None:
        command_line = run.Partial(tasks.command_line)
        assert value(command_line)[1] == "-c"
        assert value(command_line, env_vars=FRESH)[1].endswith("runner.py")

    @linux
    @pytest.mark.parametrize("fields", [{}, {"env_vars": {"PYTHONPATH": "/a:/b"}}])
    def test_the_interpreter_looks_the_same(self, home: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
        env = fields.get("env_vars", {})
        forked = value(run.Partial(tasks.interpreter), env_vars=env, working_dir=str(tmp_path))
        fresh = value(run.Partial(tasks.interpreter), env_vars=FRESH | env, working_dir=str(tmp_path))
        del fresh["environment"]["PYTHON_IS_STARTED_ANEW"]
        for seen in (forked, fresh):  # two experiments
            seen["environment"] = {
                k: v
                for k, v in seen["environment"].items()
                if k not in ("NEMORUN_JOB_DIR", "NEMORUN_EXPERIMENT_ID")
            }
        assert forked == fresh
        assert forked["stdin"] == [0, "", True]
        assert all(write_through for _, _, _, write_through, _, _ in forked["streams"])

    @pytest.mark.parametrize("env", [{}, FRESH])
    def test_what_is_under_way_at_its_end_is_finished(
        self, home: Path, tmp_path: Path, env: dict[str, str]
    ) -> None:
        job = submit(run.Partial(tasks.end_slowly, str(tmp_path / "left_open")), env_vars=env)
        assert ended(*job).state == AppState.SUCCEEDED
        assert log(job) == ["the thread is done", "the exit handler is done"]
        assert (tmp_path / "left_open.c").read_text() == "flushed"
        assert (tmp_path / "left_open").read_text() == "flushed"

    @pytest.mark.parametrize("env", [{}, FRESH])
    @pytest.mark.parametrize(
        ("code", "exit_code", "said"),
        [
            *((0, 0, []), (None, 0, []), (3, 3, []), (261, 5, []), (-1, 255, []), (True, 1, [])),
            *(("a reason", 1, ["a reason"]), ([1], 1, ["[1]"])),
        ],
    )
    def test_sys_exit_means_what_it_means_in_a_program(
        self, home: Path, code: Any, exit_code: int, said: list[str], env: dict[str, str]
    ) -> None:
        job = submit(run.Partial(tasks.leave, code), env_vars=env)
        status = ended(*job)
        assert (status.exit_code, log(job)) == (exit_code, said)
        assert status.state == (AppState.FAILED if exit_code else AppState.SUCCEEDED)

    def test_leaving_at_once_has_its_exit_code_and_no_value(self, home: Path) -> None:
        executor, handle = submit(run.Partial(tasks.leave_at_once, 7))
        assert ended(executor, handle).exit_code == 7
        assert list((Path(executor.job_dir) / "results").iterdir()) == []

    @pytest.mark.parametrize("env", [{}, FRESH])
    def test_a_traceback_shows_the_tasks_frames_alone(self, home: Path, env: dict[str, str]) -> None:
        job = submit(run.Partial(tasks.fail, "no\nluck"), env_vars=env)
        assert ended(*job).exit_code == 1
        lines = log(job)
        assert lines[0] == "Traceback (most recent call last):"
        assert lines[-2:] == ["ValueError: no", "luck"]
        assert sum("File " in line for line in lines) == 1
        assert not any("nemo_run" in line for line in lines)

    @pytest.mark.parametrize("env", [{}, FRESH])
    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_a_modules_task_may_use_other_processes(self, home: Path, method: str, env: Any) -> None:
        assert value(run.Partial(tasks.in_pool, method, 3), env_vars=env) == [[0, 2, 4]] * 2

    @pytest.mark.parametrize("guard", [True, False])
    def test_a_scripts_task_may_use_other_processes(self, home: Path, tmp_path: Path, guard: bool) -> None:
        indent, start = ("    ", 'if __name__ == "__main__":\n') if guard else ("", "")
        path = write(tmp_path / "launch.py", POOLS + start + POOLS_LAUNCH.replace("\n", "\n" + indent))
        done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["launched", *["fork:[0,2,4]", "spawn:[0,2,4]", "forkserver:[0,2,4]"]]

    def test_output_is_there_as_soon_as_it_is_printed(self, home: Path, tmp_path: Path) -> None:
        executor, handle = submit(run.Partial(tasks.print_and_wait, str(tmp_path / "pid")))
        wait_until((tmp_path / "pid").exists, "it runs")
        assert log((executor, handle)) == ["no line end é"]
        executor.cancel(handle)
        ended(executor, handle)


POOLS = """\
import multiprocessing
import nemo_run as run

def double(number):
    return 2 * number

def pooled(method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(double, range(3))

"""
POOLS_LAUNCH = """
print("launched")
experiment = run.Experiment("pools", clean_mode=True)
for method in ("fork", "spawn", "forkserver"):
    experiment.add(run.Partial(pooled, method), name=method)
for method, value in experiment.run().items():
    print(f"{method}:{value}".replace(" ", ""))
"""


# --- any bytes ------------------------------------------------------------------------------------------

#: What an argument or a variable may hold: bytes, as text in the way of `os.fsdecode`.
WORDS = st.binary(max_size=60).map(lambda raw: os.fsdecode(raw.replace(b"\0", b""))) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40
)
NAMES = st.from_regex(r"V_[A-Za-z0-9_]{0,12}", fullmatch=True)
#: A process each, so few examples with many words.
few = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class TestAnyBytes:
    """Whatever bytes a program can be given arrive as they are."""

    @few
    @given(words=st.lists(WORDS, min_size=1, max_size=60))
    def test_in_arguments(self, home: Path, tmp_path: Path, words: list[str]) -> None:
        path = str(write(tmp_path / "show.py", SHOW))
        job = submit(run.Script(path=path, entrypoint="python", args=words))
        assert ended(*job).state == AppState.SUCCEEDED
        assert json.loads(log(job)[-1]) == tasks.hexed(words)

    @few
    @given(words=st.lists(WORDS, min_size=1, max_size=60))
    def test_in_arguments_that_a_shell_passes_on(self, home: Path, tmp_path: Path, words: list[str]) -> None:
        path = str(write(tmp_path / "show.py", SHOW))
        args = [*words, run.Expand("$((1 + 1))")]
        job = submit(run.Script(path=path, entrypoint="python", args=args))
        assert ended(*job).state == AppState.SUCCEEDED
        assert json.loads(log(job)[-1]) == tasks.hexed([*words, "2"])

    @few
    @given(variables=st.dictionaries(NAMES, WORDS, min_size=1, max_size=40))
    def test_in_the_environment(self, home: Path, tmp_path: Path, variables: dict[str, str]) -> None:
        path = str(write(tmp_path / "show.py", SHOW))
        env = {"VARIABLES": " ".join(variables), **variables}
        expected = tasks.hexed(variables.values())
        script = submit(run.Script(path=path, entrypoint="python"), env_vars=env)
        asked = submit(run.Partial(tasks.environment, list(variables)), env_vars=env)
        assert ended(*script).state == ended(*asked).state == AppState.SUCCEEDED
        assert json.loads(log(script)[-1]) == expected
        assert read_outcome(Path(asked[0].job_dir), "job").value == expected

    @few
    @given(words=st.lists(WORDS | st.binary(max_size=20) | st.text(max_size=20), max_size=40))
    def test_in_a_python_tasks_arguments(self, home: Path, words: list[Any]) -> None:
        assume(not any(isinstance(word, str) and PAIR.search(word) for word in words))
        job = submit(run.Partial(tasks.same, words))
        assert ended(*job).state == AppState.SUCCEEDED
        value = read_outcome(Path(job[0].job_dir), "job").value
        assert (value.load() if isinstance(value, PickledValue) else value) == words

    @few
    @given(body=WORDS.filter(len) | st.lists(WORDS, min_size=1).map("\n".join).filter(len))
    def test_in_an_inline_program(self, home: Path, body: str) -> None:
        executor, handle = submit(run.Script(inline=body, entrypoint="cat"))
        assert ended(executor, handle).state == AppState.SUCCEEDED
        assert (Path(executor.job_dir) / "logs/job_0.log").read_bytes() == os.fsencode(body)


#: Refused, as JSON could not hold it.
PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


# --- other interpreters ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def other_pythons(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An interpreter made for the test, and the oldest and newest others that are to be found."""
    folder = tmp_path_factory.mktemp("pythons")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    found = glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python"))
    # What is on PATH may be a script that starts the interpreter.
    found += [path for minor in range(8, 20) if (path := executable_of(f"python3.{minor}"))]
    others = sorted((version, path) for path in found if (version := version_of(path)) >= [3, 8])
    return [str(folder / "venv/bin/python"), *dict.fromkeys(path for _, path in (*others[:1], *others[-1:]))]


def executable_of(name: str) -> str | None:
    """The interpreter that a name on PATH leads to, if it leads to one that runs."""
    if not (python := shutil.which(name)):
        return None
    code = "import sys; print(sys.executable)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def version_of(python: str) -> list[int]:
    """Major and minor; zeros for what does not run."""
    code = "import sys; print('%d %d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return [int(number) for number in done.stdout.split()] if done.returncode == 0 else [0, 0]
