"""Whatever is killed and whenever: a job has its true end, ends once, and leaves no process behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import tasks
from contracts.executor import ended, prepare, wait_until
from deeds import kill_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nemo_run as run
from nemo_run.core.execution.base import AppState, Executor, JobHandle, JobStatus, Plan
from nemo_run.core.process import start_time, this_host
from nemo_run.core.supervisor import to_json

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


class Running:
    """A job that runs, its files and its processes."""

    def __init__(self, task: Any, **fields: Any) -> None:
        self.plan: Plan = prepare(task, run.LocalExecutor(**fields))
        self.executor: Executor = self.plan.spec.members[0]
        self.job_dir = self.plan.spec.job_dir
        self.handle: JobHandle = self.executor.submit(self.plan)

    @property
    def supervisor(self) -> int:
        wait_until((self.job_dir / "process.json").exists, "the job is claimed")
        return int(json.loads((self.job_dir / "process.json").read_text())["pid"])

    def status(self) -> JobStatus:
        return self.executor.status([self.handle])[0]

    def ended(self) -> JobStatus:
        return ended(self.executor, self.handle)

    def log(self) -> list[str]:
        return list(self.executor.logs(self.handle, "job"))


class Spread(Running):
    """A job with processes in its group, in groups of their own, and below those; as Python or as shell."""

    def __init__(self, folder: Path, language: str) -> None:
        self.pids_file = folder / "pids"
        program = (
            "sleep 600 & a=$!; setsid sleep 600 & b=$!; (setsid sh -c 'sleep 600; :' &);"
            f" echo $$ $a $b > {self.pids_file}.new; mv {self.pids_file}.new {self.pids_file}; wait"
        )
        shell, python = run.Script(inline=program), run.Partial(tasks.spread, str(self.pids_file))
        super().__init__(python if language == "python" else shell)
        wait_until(self.pids_file.exists, "it runs")
        self.task = int(self.pids_file.read_text().split()[0])
        self.processes = psutil.Process(self.supervisor).children(recursive=True)
        assert len(self.processes) >= len(self.pids_file.read_text().split())

    def guardians(self) -> list[psutil.Process]:
        """Forks of the supervisor in sessions of their own."""
        supervisor = psutil.Process(self.supervisor)
        return [process for process in supervisor.children() if is_guardian(process, supervisor.cmdline())]

    def left(self) -> list[psutil.Process]:
        return [process for process in self.processes if is_running(process)]


def is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_guardian(process: psutil.Process, cmdline: list[str]) -> bool:
    """Whether it is a fork of what has this command line, in a session of its own."""
    try:
        return is_running(process) and process.cmdline() == cmdline and os.getsid(process.pid) == process.pid
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False


@pytest.fixture(params=["python", "shell"])
def spread(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Iterator[Spread]:
    """Such a job; what the test leaves of it is ended."""
    job = Spread(tmp_path, request.param)
    yield job
    kill_all(job.left())
    job.executor.cancel(job.handle)


class TestKill:
    def test_of_the_task_fails_the_job_and_ends_its_other_processes(self, spread: Spread) -> None:
        os.kill(spread.task, signal.SIGKILL)
        status = spread.ended()
        assert (status.state, status.exit_code, status.message) == (AppState.FAILED, 137, "killed by SIGKILL")
        assert spread.left() == []

    def test_of_its_process_group_likewise(self, spread: Spread) -> None:
        os.killpg(spread.task, signal.SIGKILL)
        status = spread.ended()
        assert (status.state, status.exit_code, status.message) == (AppState.FAILED, 137, "killed by SIGKILL")
        assert spread.left() == []

    def test_of_its_supervisor_fails_the_job_and_the_next_look_ends_all_processes(
        self, spread: Spread
    ) -> None:
        os.kill(spread.supervisor, signal.SIGKILL)
        status = spread.ended()
        assert (status.state, status.exit_code) == (AppState.FAILED, 137)
        assert status.message == "killed by SIGKILL, together with its supervisor"
        wait_until(lambda: not spread.left(), "no process is left")
        assert spread.ended().state == AppState.FAILED

    def test_of_its_supervisor_and_a_cancel_instead_of_a_look_end_all_processes_too(
        self, spread: Spread
    ) -> None:
        supervisor = psutil.Process(spread.supervisor)
        supervisor.kill()
        wait_until(lambda: not is_running(supervisor), "it is gone")
        spread.executor.cancel(spread.handle)
        wait_until(lambda: not spread.left(), "no process is left")

    @linux
    def test_of_its_supervisor_ends_the_task_at_once_even_if_nobody_looks(self, spread: Spread) -> None:
        task = psutil.Process(spread.task)
        os.kill(spread.supervisor, signal.SIGKILL)
        wait_until(lambda: not is_running(task), "the task is gone")

    def test_of_its_supervisor_ends_all_processes_of_a_job_that_runs_for_a_while(
        self, spread: Spread
    ) -> None:
        wait_until(spread.guardians, "a guardian is there")
        os.kill(spread.supervisor, signal.SIGKILL)
        wait_until(lambda: not spread.left(), "no process is left, though nobody looks")

    def test_of_its_guardian_brings_another(self, spread: Spread) -> None:
        wait_until(spread.guardians, "a guardian is there")
        [first] = spread.guardians()
        first.kill()
        wait_until(lambda: spread.guardians() not in ([], [first]), "another is there")
        [second] = spread.guardians()
        spread.executor.cancel(spread.handle)
        assert spread.ended().state == AppState.CANCELLED
        wait_until(lambda: not is_running(second) and not spread.left(), "nothing is left")

    def test_of_everything_at_once(self, spread: Spread) -> None:
        kill_all((psutil.Process(spread.supervisor), *spread.processes))
        assert spread.ended().exit_code == 137
        wait_until(lambda: not spread.left(), "no process is left")

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGINT])
    def test_a_signal_that_ends_a_task_is_named(self, home: Path, number: signal.Signals) -> None:
        job = Running(run.Script(inline=f"trap - INT; kill -{int(number)} $$", entrypoint="bash"))
        status = job.ended()
        assert (status.message, status.exit_code) == (f"killed by {number.name}", 128 + number)

    @linux
    def test_of_what_keeps_a_limit_does_not_lift_it(self, home: Path, tmp_path: Path) -> None:
        path = tmp_path / "go"
        program = f"import os, time\nwhile not os.path.exists({str(path)!r}): time.sleep(0.05)\n"
        program += "held = bytearray(b'x') * (300 << 20)\ntime.sleep(60)\n"
        job = Running(run.Script(inline=program, entrypoint="python"), memory_limit="100M")
        first = wait_until(lambda: monitor_of(job), "the monitor is there")
        first.kill()
        wait_until(lambda: (again := monitor_of(job)) and again != first, "there is another")
        path.touch()
        assert job.ended().message.startswith("OUT_OF_MEMORY")


def monitor_of(job: Running) -> psutil.Process | None:
    """The child of a supervisor that watches: a fork in its own group, once the task is another program."""
    parent = psutil.Process(job.supervisor)
    try:
        children = [(child, child.cmdline(), os.getpgid(child.pid)) for child in parent.children()]
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None
    if not any(cmdline not in ([], parent.cmdline()) for _, cmdline, _ in children):
        return None
    forks = (c for c, line, group in children if line == parent.cmdline() and group == os.getpgid(parent.pid))
    return next((child for child in forks if is_running(child)), None)


def none_left(handles: list[JobHandle]) -> bool:
    """Whether these jobs' supervisors are gone without a trace among our children."""
    children = {str(child.pid) for child in psutil.Process().children()}
    return children.isdisjoint(handle.data["pid"] for handle in handles)


class TestNoZombies:
    def test_nothing_defunct_remains_once_status_has_told_the_end(self, home: Path) -> None:
        jobs = [Running(run.Script(inline="exit 3")) for _ in range(8)]
        for job in jobs:
            job.ended()
        wait_until(lambda: none_left([job.handle for job in jobs]), "all of them are let go")

    def test_a_child_of_the_launchers_own_is_left_to_it(self, home: Path) -> None:
        own = subprocess.Popen(["sh", "-c", "exit 7"])
        Running(run.Script(inline=":")).ended()
        assert own.wait() == 7


# --- telling processes apart ----------------------------------------------------------------------------


class TestIdentity:
    """Nobody takes one process for another that has got its number."""

    @pytest.fixture
    def stranger(self) -> Iterator[psutil.Process]:
        """A process that is none of ours."""
        with subprocess.Popen(["sleep", "600"]) as process:
            yield psutil.Process(process.pid)
            process.kill()

    def claimed(self, **claim: Any) -> tuple[Executor, JobHandle]:
        """A job whose claim says so."""
        plan = prepare(run.Script(inline=":"), run.LocalExecutor())
        token, executor = plan.spec.token, plan.spec.members[0]
        record = {"token": token, "pid": 1, "start_time": "1", "host": this_host(), "started": 1.0, **claim}
        (plan.spec.job_dir / "process.json").write_text(json.dumps(record))
        handle = executor.find(token)
        assert handle is not None
        return executor, handle

    def test_a_number_used_again_is_not_the_job(self, home: Path, stranger: psutil.Process) -> None:
        executor, handle = self.claimed(pid=stranger.pid, start_time="1")
        assert executor.status([handle])[0].state == AppState.FAILED
        executor.cancel(handle)
        assert is_running(stranger)

    def test_the_same_number_and_start_is(self, home: Path, stranger: psutil.Process) -> None:
        executor, handle = self.claimed(pid=stranger.pid, start_time=start_time(stranger.pid))
        assert executor.status([handle])[0].state == AppState.RUNNING
        executor.cancel(handle)
        wait_until(lambda: not is_running(stranger), "the job was asked to end")

    def test_before_the_claim_too(self, home: Path, stranger: psutil.Process) -> None:
        plan = prepare(run.Script(inline=":"), run.LocalExecutor())
        data = {"job_dir": str(plan.spec.job_dir), "pid": str(stranger.pid), "host": this_host()}
        for started, state in ((str(start_time(stranger.pid)), AppState.SUBMITTED), ("1", AppState.FAILED)):
            handle = JobHandle(executor="x", id=plan.spec.token, data={**data, "start_time": started})
            assert plan.spec.members[0].status([handle])[0].state == state

    def test_a_job_of_another_host_is_unknown_here(self, home: Path) -> None:
        executor, handle = self.claimed(host="elsewhere some-boot pid:[1]")
        [status] = executor.status([handle])
        assert (status.state, status.message) == (AppState.UNKNOWN, "runs on elsewhere; ask there")

    @linux
    def test_what_ran_before_a_reboot_has_failed(self, home: Path) -> None:
        name, _, namespace = this_host().split(" ")
        executor, handle = self.claimed(host=f"{name} another-boot {namespace}")
        [status] = executor.status([handle])
        assert status.state == AppState.FAILED
        assert "restarted" in status.message

    @linux
    def test_another_container_of_this_host_is_elsewhere(self, home: Path) -> None:
        name, boot, _ = this_host().split(" ")
        executor, handle = self.claimed(host=f"{name} {boot} pid:[1]")
        assert executor.status([handle])[0].state == AppState.UNKNOWN

    def test_any_name_of_a_program_will_do(self, tmp_path: Path) -> None:
        sleep = shutil.which("sleep")
        assert sleep
        for name in ("a) S 1 (b", "x y", ")"):
            program = shutil.copy(sleep, tmp_path / name)
            with subprocess.Popen([program, "600"]) as process:
                first = start_time(process.pid)
                assert first is not None
                assert first == start_time(process.pid)
                process.kill()
                wait_until(lambda: start_time(process.pid) is None, "a zombie no longer runs")


# --- starting -------------------------------------------------------------------------------------------


class TestStart:
    def test_of_many_supervisors_of_one_job_one_runs_it(self, home: Path, tmp_path: Path) -> None:
        plan = prepare(run.Script(inline=f"echo started >> {tmp_path}/starts"), run.LocalExecutor())
        executor = plan.spec.members[0]
        with ThreadPoolExecutor(10) as pool:
            handles = list(pool.map(executor.submit, [plan] * 10))
        assert {ended(executor, handle).state for handle in handles} == {AppState.SUCCEEDED}
        wait_until(lambda: none_left(handles), "all supervisors have ended, and been let go")
        assert (tmp_path / "starts").read_text() == "started\n"

    def test_a_job_without_a_place_for_its_log_fails_and_says_so(self, home: Path) -> None:
        plan = prepare(run.Script(inline=":"), run.LocalExecutor(retries=1))
        (plan.spec.job_dir / "logs").mkdir()
        (plan.spec.job_dir / "logs/job_0.log").mkdir()
        (plan.spec.job_dir / "logs/job_0.attempt2.log").mkdir()
        executor = plan.spec.members[0]
        status = ended(executor, executor.submit(plan))
        assert (status.state, status.exit_code, status.attempt) == (AppState.FAILED, 126, 2)
        assert "Is a directory" in status.message

    def test_a_job_cancelled_before_it_is_submitted_never_starts(self, home: Path, tmp_path: Path) -> None:
        plan = prepare(run.Script(inline=f"touch {tmp_path}/started"), run.LocalExecutor())
        executor = plan.spec.members[0]
        data = {"job_dir": str(plan.spec.job_dir), "pid": "0", "start_time": "", "host": this_host()}
        executor.cancel(JobHandle(executor="x", id=plan.spec.token, data=data))
        handle = executor.submit(plan)
        assert ended(executor, handle).message == "cancelled before it started"
        wait_until(lambda: none_left([handle]), "the supervisor has seen it")
        assert not (tmp_path / "started").exists()

    @pytest.mark.parametrize("language", ["python", "shell"])
    @pytest.mark.parametrize("after", ["submit", "claim"])
    def test_a_job_cancelled_at_any_time_is_cancelled_soon(
        self, home: Path, tmp_path: Path, after: str, language: str
    ) -> None:
        moments = random.Random(f"{after} {language}")  # the words too are no other test's
        for _ in range(12):
            word = str(moments.randrange(10**8, 10**9))
            path = str(tmp_path / word)
            # A bash that is just about to become another program in a fork loses a SIGTERM to that fork.
            shell, python = run.Script(inline=f"exec sleep {word}"), run.Partial(tasks.write_and_wait, path)
            job = Running(python if language == "python" else shell)
            if after == "claim":
                spin_until_claimed(job.job_dir)
            spin(moments.uniform(0, 0.03 if after == "submit" else 0.004))
            begun = time.monotonic()
            job.executor.cancel(job.handle)
            assert job.ended().state == AppState.CANCELLED
            # Far less than the ten seconds after which SIGKILL would have come.
            assert time.monotonic() - begun < 5
            assert not [p for p in psutil.process_iter(["cmdline"]) if word in (p.info["cmdline"] or ())]

    def test_sigterm_for_a_supervisor_is_a_cancel_from_its_claim_on(self, home: Path) -> None:
        moments = random.Random(1)
        for _ in range(12):
            job = Running(run.Script(inline="sleep 600"))
            spin_until_claimed(job.job_dir)
            spin(moments.uniform(0, 0.004))
            os.kill(job.supervisor, signal.SIGTERM)
            assert job.ended().state == AppState.CANCELLED


def spin_until_claimed(job_dir: Path) -> None:
    """Without a pause, to be there the moment it happens."""
    path, deadline = str(job_dir / "process.json"), time.monotonic() + 30
    while not os.path.exists(path):
        assert time.monotonic() < deadline


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


# --- a full disk ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    path = tmp_path / "disk"
    path.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(path)]
    if os.getuid() or not shutil.which("mount"):
        pytest.skip("mounting a small disk takes root")
    if (done := subprocess.run(argv, capture_output=True, text=True)).returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte on a disk, except where there is a file already."""
    path = disk / "filling"
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path


@linux
class TestFullDisk:
    @pytest.mark.parametrize("exit_code", [0, 5])
    def test_the_end_of_a_job_is_written_as_soon_as_there_is_room(
        self, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int
    ) -> None:
        monkeypatch.setenv("NEMORUN_HOME", str(small_disk / "home"))
        go, over = tmp_path / "go", tmp_path / "over"
        wait = f"until [ -e {go} ]; do sleep 0.05; done"
        job = Running(run.Script(inline=f"{wait}; seq 100000; touch {over}; exit {exit_code}"))
        supervisor = psutil.Process(job.supervisor)
        filling = fill(small_disk)
        go.touch()
        wait_until(over.exists, "the task has come to its end")
        wait_until(lambda: not supervisor.children(), "it is gone")
        assert job.status().state == AppState.RUNNING
        assert is_running(supervisor)
        filling.unlink()
        status = job.ended()
        assert status.exit_code == exit_code
        assert status.state == (AppState.FAILED if exit_code else AppState.SUCCEEDED)

    def test_a_job_that_cannot_even_be_claimed_has_failed(
        self, small_disk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NEMORUN_HOME", str(small_disk / "home"))
        plan = prepare(run.Script(inline=":"), run.LocalExecutor())
        executor = plan.spec.members[0]
        (plan.spec.job_dir / "logs").mkdir()
        (plan.spec.job_dir / "supervisor.log").write_text("\n")
        fill(small_disk)
        status = ended(executor, executor.submit(plan))
        assert status.state == AppState.FAILED
        assert "did not start" in status.message


# --- what it writes -------------------------------------------------------------------------------------

VALUES = (
    st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none() | st.booleans()
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text("abc_", min_size=1), VALUES | st.lists(VALUES)))
def test_records_are_json_whatever_is_in_them(record: dict[str, Any]) -> None:
    assert json.loads(to_json(record)) == record
