"""Jobs that are forked from one Python are as if each had been started by the launcher."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from contracts.executor import ended, prepare, wait_until
from deeds import environment, launch, lines, script

import nemo_run as run
from nemo_run.core.execution import local
from nemo_run.core.execution.base import AppState, JobHandle, Plan
from nemo_run.core.forkserver import ForkServer
from nemo_run.core.process import start_time

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: elsewhere each job is started")

#: Compares what a task is told of its surroundings with what the launcher is, before and after they change.
SURROUNDINGS = """
import os, resource, subprocess, time

def surroundings():
    shell = subprocess.run(["sh", "-c", "umask; ulimit -n"], capture_output=True, text=True).stdout.split()
    return [os.nice(0), *shell, list(time.tzname), sorted(os.sched_getaffinity(0)), os.environ.get("ANY")]

def change():
    os.nice(3)
    os.umask(0o027)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ |= {"TZ": "Asia/Tokyo", "ANY": "thing"}
    time.tzset()

if __name__ == "__main__":
    for name in ("before", "after"):
        exp = run.Experiment(name, run.LocalExecutor(), clean_mode=True)
        exp.add(run.Partial(surroundings), name="job")
        exp.run()
        assert exp.result("job") == surroundings(), name
        change()
"""


def is_server(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "forkserver" in " ".join(process.cmdline())
    return False


def our_server() -> psutil.Process:
    """The one that serves this process."""
    return next(child for child in psutil.Process().children() if is_server(child))


def test_what_the_launcher_has_changed_of_itself_holds_for_the_jobs_that_follow(tmp_path: Path) -> None:
    done = launch(script(tmp_path / "surroundings.py", SURROUNDINGS), NEMORUN_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr


def test_a_job_and_what_it_forks_are_known_by_the_folder_of_the_job(home: Path) -> None:
    plan = prepare(run.Script(inline="sleep 600"), run.LocalExecutor())
    executor = plan.spec.members[0]
    handle = executor.submit(plan)
    wait_until((plan.spec.job_dir / "process.json").exists, "it is claimed")
    environ = Path(f"/proc/{handle.data['pid']}/environ").read_bytes().split(b"\0")
    assert f"NEMORUN_JOB_DIR={plan.spec.job_dir}".encode() in environ
    executor.cancel(handle)
    assert ended(executor, handle).state == AppState.CANCELLED


def test_one_server_forks_all_jobs_and_ends_soon_after_its_launcher(home: Path, tmp_path: Path) -> None:
    source = """
import os, psutil

def ancestors():
    return [os.getppid(), psutil.Process(os.getppid()).ppid()]

if __name__ == "__main__":
    exp = run.Experiment("many", run.LocalExecutor(), clean_mode=True)
    for number in range(6):
        exp.add(run.Partial(ancestors))
    exp.run()
    supervisors, servers = zip(*exp.results().values())
    assert len(set(supervisors)) == 6
    assert len(set(servers)) == 1
    print(servers[0])
"""
    done = launch(script(tmp_path / "many.py", source))
    assert done.returncode == 0, done.stderr
    server = int(done.stdout)
    wait_until(lambda: not psutil.pid_exists(server), "the server has ended", seconds=10)


def test_a_server_nobody_asks_ends_and_leaves_no_zombie_and_the_next_job_runs(home: Path) -> None:
    assert run.run(run.Partial(os.getpid), run.LocalExecutor()) > 0
    server = our_server()
    wait_until(lambda: not server.is_running(), "the server has ended", seconds=10)
    assert run.run(run.Partial(os.getpid), run.LocalExecutor()) > 0


def test_a_server_that_was_killed_is_replaced(home: Path) -> None:
    assert run.run(run.Partial(os.getpid), run.LocalExecutor()) > 0
    our_server().kill()
    assert run.run(run.Partial(os.getpid), run.LocalExecutor()) > 0


def test_a_job_whose_server_is_killed_goes_on(home: Path, tmp_path: Path) -> None:
    plan = prepare(
        run.Script(inline=f"while ! test -e {tmp_path}/go; do sleep 0.05; done"), run.LocalExecutor()
    )
    executor = plan.spec.members[0]
    handle = executor.submit(plan)
    wait_until((plan.spec.job_dir / "process.json").exists, "it is claimed")
    our_server().kill()
    wait_until(lambda: executor.status([handle])[0].state == AppState.RUNNING, "it runs")
    (tmp_path / "go").touch()
    assert ended(executor, handle).state == AppState.SUCCEEDED


def test_sigterm_before_the_claim_starts_nothing(home: Path, tmp_path: Path) -> None:
    """A supervisor whose request has not come whole is one that has claimed nothing."""
    plan = prepare(run.Script(inline=f"touch {tmp_path}/started"), run.LocalExecutor())
    source, sink = os.pipe()
    with os.fdopen(source, "rb") as request, os.fdopen(sink, "wb"):
        pid = ForkServer().start(str(plan.spec.job_dir), request)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: start_time(pid) is None, "it has ended")
    data = {"job_dir": str(plan.spec.job_dir), "pid": str(pid), "start_time": "1", "host": local.this_host()}
    status = local.status(JobHandle(executor="x", id=plan.spec.token, data=data))
    assert (status.state, status.message) == (AppState.FAILED, "its supervisor did not start")
    assert not (tmp_path / "started").exists()


def test_what_a_supervisor_has_to_say_before_it_claims_is_told(home: Path, tmp_path: Path) -> None:
    plan = prepare(run.Script(inline=":"), run.LocalExecutor())
    (tmp_path / "request").write_bytes(b"?")
    with (tmp_path / "request").open("rb") as request:
        pid = ForkServer().start(str(plan.spec.job_dir), request)
    wait_until(lambda: start_time(pid) is None, "it has ended")
    data = {"job_dir": str(plan.spec.job_dir), "pid": str(pid), "start_time": "1", "host": local.this_host()}
    status = local.status(JobHandle(executor="x", id=plan.spec.token, data=data))
    assert status.state == AppState.FAILED
    assert status.message == "its supervisor did not start: ValueError: bad marshal data (unknown type code)"


def test_jobs_may_be_submitted_by_threads_and_by_forks_of_the_launcher(home: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    plans = [prepare(run.Script(inline=f"echo {n} >> {trace}"), run.LocalExecutor()) for n in range(10)]

    def submit(plan: Plan) -> None:
        executor = plan.spec.members[0]
        assert ended(executor, executor.submit(plan)).state == AppState.SUCCEEDED

    submit(plans[0])
    fork = multiprocessing.get_context("fork").Process(target=submit, args=(plans[1],))
    fork.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(submit, plans[2:]))
    fork.join(30)
    assert fork.exitcode == 0
    assert sorted(lines(trace)) == [str(n) for n in range(10)]


def test_where_there_can_be_no_server_each_job_is_started(home: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'forkserver' in ' '.join(sys.orig_argv):\n    os._exit(1)\n"
    )
    source = """
import os, psutil

def ancestors():
    return [os.getppid(), psutil.Process(os.getppid()).ppid()]

if __name__ == "__main__":
    assert run.run(run.Partial(ancestors), run.LocalExecutor())[1] == os.getpid()
"""
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    done = launch(script(tmp_path / "alone.py", source), PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
