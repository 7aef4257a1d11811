"""What every backend does, as tests: the tests of a backend subclass `ExecutorContract`.

    class TestMine(ExecutorContract):
        def executor(self, **fields):
            return MyExecutor(**fields)

        def refuse(self, plan):
            ...

Read from top to bottom it is the life of a job: planned, submitted, found again, looked at, read, ended.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import tasks

from nemo_run.config import Partial, Script
from nemo_run.core.execution.base import (
    TERMINAL,
    AppState,
    Capability,
    Executor,
    JobHandle,
    JobStatus,
    Plan,
)
from nemo_run.errors import JobFailedError, SubmitError, UnsupportedError
from nemo_run.run.app import make_spec
from nemo_run.run.experiment import Experiment
from nemo_run.run.launch import launch_record, record_files
from nemo_run.run.packages import find_origins, stage_code, take_packages
from nemo_run.run.script import launching_script
from nemo_run.run.store import Store

T = TypeVar("T")

# fmt: off
#: What must arrive as it was given, in arguments and in the environment.
HOSTILE = [
    "a b", " a ", "a'b", 'a"b', "a'\"b", "$a", "${a}", "$(echo a)", "$((1+1))", "`a`", ";", "&&", "|", ">a",
    "\\", "\\\\", "\\n", "a\\", "a\nb", "\n", "trailing\n", "\ta\t", "a\rb", "\x01\x1b[0m\x7f", "", "#", "!a",
    "*", "?", "[a]", "{a,b}", "~", "%s", "%PATH%", "-", "--", "-n", "a=b", "=", "EOF", "{{a}}", "{a}",
    "é", "日本語", "🎉", "e\u0301", "\u2028", "\udcff", "a\udc80\udcfeb", "x" * 5000,
]
# fmt: on

#: What a process asks that knows an experiment's id and a handle, and nothing else.
ASK = """
import json, sys
from nemo_run.core.execution.base import JobHandle
from nemo_run.run.look import load_executors
from nemo_run.run.store import Store
store, handle = Store.open(sys.argv[1]), JobHandle.from_json(json.loads(sys.argv[2]))
[executor] = load_executors(store, store.experiment().jobs[0])
[status] = executor.status([handle])
print(json.dumps([status.state.name, status.exit_code, list(executor.logs(handle, "job"))]))
"""

#: Prints its arguments, or with VARIABLES the values of these, as the bytes the system holds.
SHOW = """
import json, os, sys
words = [os.environ[name] for name in os.environ.get("VARIABLES", "").split()] or sys.argv[1:]
print(json.dumps([os.fsencode(word).hex() for word in words]))
"""


class ExecutorContract:
    """Subclass it in a backend's tests, and say how its executor is made and how it is made to refuse."""

    #: Seconds within which a small job starts, and one that is asked to end has ended.
    patience = 30.0
    #: Starts four processes with a word among their arguments, some of which leave their group.
    family = "sleep {word} & setsid sleep {word} & (setsid sh -c 'sleep {word} & sleep {word}' &)"

    def executor(self, **fields: Any) -> Executor:
        """One of the backend's executors, with these common fields."""
        raise NotImplementedError

    def refuse(self, plan: Plan) -> tuple[Plan, str]:
        """See to it that this plan, or another made from it, is refused; and the words then used."""
        raise NotImplementedError

    def lose(self, handle: JobHandle, job_dir: Path) -> None:
        """Remove all trace of a job that has ended."""
        shutil.rmtree(job_dir)

    def running(self, word: str) -> list[int]:
        """The processes, wherever jobs run, that have this among their arguments."""
        return [p.pid for p in psutil.process_iter(["cmdline"]) if word in (p.info["cmdline"] or ())]

    @pytest.fixture
    def folder(self, home: Path, tmp_path: Path) -> Path:
        """A folder of the test's that its jobs can read and write too."""
        return tmp_path

    # --- planning ---------------------------------------------------------------------------------------

    def test_a_look_at_what_it_needs_finds_nothing_wrong(self, folder: Path) -> None:
        checks = list(self.executor().probe())
        assert checks
        assert [check for check in checks if not check.ok] == []

    def test_planning_has_no_side_effects(self, folder: Path) -> None:
        plan = self.prepare(Script(inline="touch planned", env={"A": "b c"}), working_dir=str(folder / "new"))
        executor = plan.spec.members[0]
        files, processes = tree(folder), set(psutil.Process().children(recursive=True))
        again = [executor.plan(plan.spec), executor.plan(plan.spec)]
        assert tree(folder) == files
        assert set(psutil.Process().children(recursive=True)) <= processes
        assert [(other.text, other.request) for other in again] == [(plan.text, plan.request)] * 2
        assert "b c" in plan.text

    # --- submitting -------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("program", "state", "exit_code"),
        [
            ("exit 0", AppState.SUCCEEDED, 0),
            ("exit 1", AppState.FAILED, 1),
            ("exit 37", AppState.FAILED, 37),
            ("kill -9 $$", AppState.FAILED, 137),
        ],
    )
    def test_success_and_failure_and_exit_codes_are_told_apart(
        self, folder: Path, program: str, state: AppState, exit_code: int
    ) -> None:
        status = self.ended(self.submit(Script(inline=program)))
        assert (status.state, status.exit_code) == (state, exit_code)
        assert (status.message == "") is (state == AppState.SUCCEEDED)

    def test_a_program_that_is_not_there_is_a_failure(self, folder: Path) -> None:
        assert self.ended(self.submit(Script(inline=":", entrypoint="/no/such"))).state == AppState.FAILED

    def test_a_refused_submission_raises_submit_error_with_the_backends_words(self, folder: Path) -> None:
        plan, words = self.refuse(self.prepare(Script(inline="true")))
        with pytest.raises(SubmitError) as caught:
            plan.spec.members[0].submit(plan)
        assert words in caught.value.output, caught.value.output
        assert words in str(caught.value)

    def test_an_unanswered_submission_is_found_by_its_token_and_not_started_twice(self, folder: Path) -> None:
        plan = self.prepare(Script(inline=f"echo started >> {folder}/starts"))
        executor = plan.spec.members[0]
        executor.submit(plan)  # and nobody hears the answer
        found = self.wait_until(lambda: executor.find(plan.spec.token), "the job is found")
        assert executor.find(plan.spec.token + "1") is None
        again = executor.submit(plan)
        assert [self.ended((executor, handle)).state for handle in (found, again)] == [AppState.SUCCEEDED] * 2
        assert (folder / "starts").read_text() == "started\n"

    # --- arguments and environment ----------------------------------------------------------------------

    def test_arguments_arrive_byte_for_byte(self, folder: Path) -> None:
        script = Script(path=str(write(folder / "show.py", SHOW)), entrypoint="python", args=HOSTILE)
        assert json.loads(self.output(self.submit(script))[-1]) == tasks.hexed(HOSTILE)

    @pytest.mark.parametrize("giver", ["executor", "script"])
    def test_the_environment_arrives_byte_for_byte(self, folder: Path, giver: str) -> None:
        variables = {f"V{at}": word for at, word in enumerate(HOSTILE)}
        given = {"VARIABLES": " ".join(variables), **variables}
        script = Script(path=str(write(folder / "show.py", SHOW)), entrypoint="python")
        script.env = given if giver == "script" else {}
        job = self.submit(script, env_vars=given if giver == "executor" else {})
        assert json.loads(self.output(job)[-1]) == tasks.hexed(HOSTILE)

    def test_a_python_tasks_arguments_and_environment_arrive_byte_for_byte(self, folder: Path) -> None:
        variables = {f"V{at}": word for at, word in enumerate(HOSTILE)}
        experiment = Experiment("bytes", self.executor(env_vars=variables), clean_mode=True)
        experiment.add(Partial(tasks.hexed, HOSTILE), name="arguments")
        experiment.add(Partial(tasks.environment, list(variables)), name="environment")
        assert experiment.run() == dict.fromkeys(("arguments", "environment"), tasks.hexed(HOSTILE))

    # --- looking ----------------------------------------------------------------------------------------

    def test_a_handle_survives_json_and_another_process(self, folder: Path) -> None:
        program = f"echo first; until [ -e {folder}/go ]; do sleep 0.05; done; echo last; exit 3"
        executor, handle = self.submit(Script(inline=program))
        assert JobHandle.from_json(json.loads(json.dumps(handle.to_json()))) == handle
        self.wait_until(lambda: list(executor.logs(handle, "job")) == ["first"], "it has begun")
        seen = Capability.DETACH in executor.capabilities
        answer = self.ask_elsewhere(executor, handle)
        assert answer == ["RUNNING", None, ["first"]] or (not seen and answer[0] in ("UNKNOWN", "RUNNING"))
        (folder / "go").touch()
        self.ended((executor, handle))
        answer = self.ask_elsewhere(executor, handle)
        assert answer == ["FAILED", 3, ["first", "last"]] or (not seen and answer[0] in ("UNKNOWN", "FAILED"))

    def test_one_question_answers_for_many_handles(self, folder: Path) -> None:
        jobs = [self.submit(Script(inline=f"exit {code}")) for code in (0, 3, 0, 5)]
        for job in jobs:
            self.ended(job)
        executor = jobs[0][0]
        statuses = executor.status([handle for _, handle in jobs])
        assert [status.exit_code for status in statuses] == [0, 3, 0, 5]
        assert executor.status([]) == []

    def test_a_lost_job_is_unknown(self, folder: Path) -> None:
        executor, handle = self.submit(Script(inline="true"))
        self.ended((executor, handle))
        self.lose(handle, Path(executor.job_dir))
        [status] = executor.status([handle])
        assert status.state == AppState.UNKNOWN
        assert status.message
        executor.cancel(handle)

    # --- reading ----------------------------------------------------------------------------------------

    def test_logs_follow_to_the_end_and_can_be_read_after_it(self, folder: Path) -> None:
        wait = f"until [ -e {folder}/go ]; do sleep 0.05; done"
        executor, handle = self.submit(
            Script(inline=f"echo out; echo err >&2; {wait}; echo 'é  '; echo; printf last")
        )
        lines = executor.logs(handle, "job", follow=True)
        assert [next(lines), next(lines)] == ["out", "err"]
        (folder / "go").touch()
        assert list(lines) == ["é  ", "", "last"]
        self.ended((executor, handle))
        for follow in (False, True):
            assert list(executor.logs(handle, "job", follow=follow)) == ["out", "err", "é  ", "", "last"]

    def test_a_python_tasks_value_and_error_are_recorded(self, folder: Path) -> None:
        experiment = Experiment("values", self.executor(), clean_mode=True, raise_on_failure=False)
        experiment.add(Partial(tasks.double, 21), name="value")
        experiment.add(Partial(tasks.fail, "no such luck"), name="error")
        assert experiment.run() == {"value": 42}
        with pytest.raises(JobFailedError, match="ValueError: no such luck") as caught:
            experiment.result("error")
        assert caught.value.exit_code == 1
        assert caught.value.log_tail.splitlines()[-1] == "ValueError: no such luck"

    # --- ending -----------------------------------------------------------------------------------------

    def test_cancel_ends_every_process_and_twice_is_harmless(self, folder: Path) -> None:
        word = str(random.randrange(10**8, 10**9))
        executor, handle = self.submit(Script(inline=f"{self.family.format(word=word)}\nwait"))
        self.wait_until(lambda: len(self.running(word)) == 4, "all four processes run")
        executor.cancel(handle)
        executor.cancel(handle)
        assert self.ended((executor, handle)).state == AppState.CANCELLED
        self.wait_until(lambda: not self.running(word), "no process is left")
        executor.cancel(handle)
        assert self.ended((executor, handle)).state == AppState.CANCELLED

    def test_cancelling_a_job_that_has_ended_changes_nothing(self, folder: Path) -> None:
        executor, handle = self.submit(Script(inline="true"))
        before = self.ended((executor, handle))
        executor.cancel(handle)
        assert executor.status([handle]) == [before]

    # --- groups -----------------------------------------------------------------------------------------

    def test_a_backend_without_groups_refuses_one_before_anything_starts(self, folder: Path) -> None:
        group = self.group(f"touch {folder}/started", "true")
        if Capability.GROUPS not in self.executor().capabilities:
            with pytest.raises(UnsupportedError, match="group"):
                group.run()
            assert Experiment.catalog() == []
            assert not (folder / "started").exists()

    def test_the_members_of_a_group_start_together(self, folder: Path) -> None:
        wait = "touch {}; until [ -e {} ]; do sleep 0.05; done"
        programs = [wait.format(folder / own, folder / other) for own, other in ("ab", "ba")]
        if status := self.group_ended(*programs):
            assert status["status"] == AppState.SUCCEEDED

    def test_a_member_that_fails_takes_the_others_down(self, folder: Path) -> None:
        word = str(random.randrange(10**8, 10**9))
        first = f"until [ -e {folder}/second ]; do sleep 0.05; done; exit 3"
        if status := self.group_ended(first, f"touch {folder}/second; sleep {word}"):
            assert (status["status"], status["exit_code"]) == (AppState.FAILED, 3)
            self.wait_until(lambda: not self.running(word), "the other is gone")

    def test_a_member_that_succeeds_leaves_the_others_alone(self, folder: Path) -> None:
        second = f"until [ -e {folder}/first ]; do sleep 0.05; done; sleep 1; echo done > {folder}/second"
        if status := self.group_ended(f"touch {folder}/first", second):
            assert status["status"] == AppState.SUCCEEDED
            assert (folder / "second").read_text() == "done\n"

    def group(self, *programs: str) -> Experiment:
        """An experiment with one group, of these programs."""
        experiment = Experiment("group", self.executor(), clean_mode=True, raise_on_failure=False)
        experiment.add([Script(inline=program) for program in programs], name="group")
        return experiment

    def group_ended(self, *programs: str) -> dict[str, Any] | None:
        """How a group of these programs ended; None where there are no groups."""
        if Capability.GROUPS not in self.executor().capabilities:
            return None
        experiment = self.group(*programs)
        experiment.run()
        return experiment.status(return_dict=True)["group"]

    # --- how a test does it -----------------------------------------------------------------------------

    def prepare(self, task: Any, **fields: Any) -> Plan:
        """The plan of a job, with all that dispatch would have written before it submits it."""
        return prepare(task, self.executor(**fields))

    def submit(self, task: Any, **fields: Any) -> tuple[Executor, JobHandle]:
        """A job on its way: its own copy of the executor, and its handle."""
        plan = self.prepare(task, **fields)
        executor = plan.spec.members[0]
        return executor, executor.submit(plan)

    def ended(self, job: tuple[Executor, JobHandle]) -> JobStatus:
        """How a job ended, once it has."""
        return ended(*job, seconds=self.patience)

    def output(self, job: tuple[Executor, JobHandle]) -> list[str]:
        """What a job printed, once it has succeeded."""
        status = self.ended(job)
        lines = list(job[0].logs(job[1], "job"))
        assert status.state == AppState.SUCCEEDED, (status, lines)
        return lines

    def wait_until(self, condition: Callable[[], T], what: str) -> T:
        """What a condition gives as soon as it is true."""
        return wait_until(condition, what, self.patience)

    def ask_elsewhere(self, executor: Executor, handle: JobHandle) -> Any:
        """State, exit code and log lines, as a process sees them that had no part in the submission."""
        argv = [sys.executable, "-c", ASK, str(executor.experiment_id), json.dumps(handle.to_json())]
        return json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=60).stdout)


def prepare(task: Any, executor: Executor | list[Executor]) -> Plan:
    """What dispatch does to the one job of an experiment before it submits it."""
    experiment = Experiment("contract")
    experiment.add(task, executor, name="job")
    [job] = experiment.jobs
    record = launch_record(experiment.id, experiment.title, [job])
    find_origins([job], Path.cwd())
    packages = take_packages([job], Path.cwd(), None)
    files = record_files([job], {job.id: job.trees()}, launching_script(), experiment.id, packages)
    store = Store.create(record, files)
    package = stage_code(store, job)
    return job.executors[0].plan(make_spec(job, job.trees(), record, store.path, package=package))


def ended(executor: Executor, handle: JobHandle, seconds: float = 30.0) -> JobStatus:
    """How a job ended, once it has."""

    def final() -> JobStatus | None:
        [status] = executor.status([handle])
        return status if status.state in TERMINAL else None

    status = wait_until(final, "the job has ended", seconds)
    assert status is not None
    return status


def wait_until(condition: Callable[[], T], what: str, seconds: float = 30.0) -> T:
    """What a condition gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return result


def write(path: Path, text: str) -> Path:
    """A new file."""
    path.write_text(text)
    return path


def tree(folder: Path) -> list[tuple[str, int, int]]:
    """All files below a folder, and when they were written."""
    return [
        (os.path.join(path, name), (stat := os.stat(os.path.join(path, name))).st_size, stat.st_mtime_ns)
        for path, folders, files in os.walk(folder)
        for name in sorted(folders + files)
    ]
