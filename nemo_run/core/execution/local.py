"""Jobs as processes on this machine: each has a supervisor that outlives the launcher and writes its end."""

from __future__ import annotations

import contextlib
import functools
import json
import marshal
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nemo_run.core import runner
from nemo_run.core.execution.base import (
    TERMINAL,
    AppState,
    Executor,
    JobHandle,
    JobSpec,
    JobStatus,
    Plan,
    Topology,
)
from nemo_run.core.execution.checks import check_count, check_whole_job, parse_bytes
from nemo_run.core.forkserver import ForkServer, inherited
from nemo_run.core.logfile import read_lines
from nemo_run.core.masking import worth_masking
from nemo_run.core.process import end_orphans, start_time
from nemo_run.core.process import this_host as _this_host
from nemo_run.core.records import read_record
from nemo_run.errors import SubmitError, UnsupportedError
from nemo_run.shell import Expand, expands, exports, join, through_shell

if TYPE_CHECKING:
    from torchx.specs import Role

#: A process does not change its host, and every look at a job asks.
this_host = functools.cache(_this_host)
#: Seconds between SIGTERM and SIGKILL.
GRACE = 10.0
#: Settings that hold for a job as a whole, so that all members of a group must agree on them.
_WHOLE_JOB = ("timeout", "memory_limit", "monitor_resources", "retries")
#: Variables that an interpreter or its libraries read only while they start.
_READ_AT_START = ("PYTHON", "LD_", "DYLD_", "LC_", "LANG", "MALLOC_", "GLIBC_", "TZ")
#: What the supervisor is started with: this installation of nemo_run, whatever the path says otherwise.
_BOOTSTRAP = "import sys; sys.path.insert(0, {root!r}); from nemo_run.core.supervisor import main; main()"


@dataclass(kw_only=True)
class LocalExecutor(Executor):
    """Runs tasks as processes on this machine, a few at a time; they outlive whoever launched them."""

    #: Processes a launcher such as torchrun starts on each node; without a launcher a task is one process.
    ntasks_per_node: int = 1
    #: Nodes a launcher is told about; start the same script on each (srun, mpirun) with MASTER_ADDR set.
    nodes: int = 1
    #: Jobs of an experiment that run at once; None for as many as there are processors.
    max_parallel: int | None = None

    def check(self) -> None:
        """Also refuse counts below one."""
        super().check()
        for name in ("ntasks_per_node", "nodes"):
            check_count(self, name, 1)
        check_count(self, "max_parallel", 1, optional=True)

    def nnodes(self) -> int:
        """As told."""
        return self.nodes

    def nproc_per_node(self) -> int:
        """As told."""
        return self.ntasks_per_node

    def topology(self) -> Topology:
        """Over several nodes the address of the first and our rank come from the launching environment."""
        return Topology(
            nodes=self.nodes,
            procs_per_node=self.ntasks_per_node,
            head_address=os.environ.get("MASTER_ADDR", "localhost" if self.nodes == 1 else ""),
            head_port=os.environ.get("MASTER_PORT", ""),
            node_rank=os.environ.get("NODE_RANK", os.environ.get("SLURM_NODEID", "0")),
        )

    def parallel_limit(self) -> int | None:
        """`max_parallel`, or as many as there are processors."""
        return self.max_parallel or super().parallel_limit()


# --- planning -------------------------------------------------------------------------------------------


def plan(spec: JobSpec) -> Plan:
    """The request for a supervisor, and the same as a script a person could run."""
    check_whole_job(spec, _WHOLE_JOB)
    first = spec.members[0]
    roles = [_plan_role(role, member) for role, member in zip(spec.app.roles, spec.members, strict=True)]
    request = {
        "token": spec.token,
        "job_dir": str(spec.job_dir),
        "roles": roles,
        "retries": first.retries,
        "timeout": first.timeout,
        "grace": GRACE,
        "memory_limit": parse_bytes(first.memory_limit) if first.memory_limit else None,
        "monitor_resources": first.monitor_resources,
    }
    return Plan(spec=spec, text=_as_script(request), request=request)


def _plan_role(role: Role, executor: Executor) -> dict[str, Any]:
    if executor.cpu_limit and not hasattr(os, "sched_setaffinity"):
        raise UnsupportedError(
            "this system cannot bind a process to some of its processors; leave cpu_limit out",
            executor=type(executor).__name__,
            capability="cpu_limit",
        )
    argv = [role.entrypoint, *role.args]
    env: dict[str, Any] = dict(role.env)
    shell = expands(argv, env)
    return {
        "name": role.name,
        "argv": through_shell(argv, env) if shell else argv,
        "env": env,
        "cwd": role.metadata["workdir"],
        "cpus": executor.cpu_limit or 0,
        "task": None if shell or not _runs_in_place(argv, env) else role.metadata.get("task"),
    }


def _runs_in_place(argv: list[str], env: Mapping[str, Any]) -> bool:
    """Whether a fork of the supervisor can be the task: same interpreter, nothing set that it starts with."""
    same = argv[:2] == [sys.executable, runner.__file__]
    return same and not any(
        name.startswith(_READ_AT_START)
        for name, value in env.items()
        if name != "PYTHONPATH"
        and os.environ.get(name) != value
        and (name, value) != ("PYTHONUNBUFFERED", "1")
    )


def _as_script(request: dict[str, Any]) -> str:
    limits = {name: request[name] for name in ("timeout", "memory_limit", "retries") if request[name]}
    lines = ["#!/bin/sh", "# A process on this machine, under a supervisor that records its end."]
    lines += [f"# {name}: {value}" for name, value in limits.items()]
    for role in request["roles"]:
        if len(request["roles"]) > 1:
            lines.append(f"\n# --- {role['name']}")
        lines.append(f"cd {join([role['cwd']])}")
        lines.append(exports(_shown(role["env"])) + join(role["argv"]))
    return "\n".join(lines) + "\n"


def _shown(env: Mapping[str, Any]) -> dict[str, str]:
    """An environment to read: secrets by name; what a shell expands stands in the command already."""
    return {
        name: value if isinstance(value, str) else f"<secret {value.name}>"
        for name, value in env.items()
        if not isinstance(value, Expand)
    }


# --- submitting -----------------------------------------------------------------------------------------


def submit(plan: Plan, executor: str) -> JobHandle:
    """Start a supervisor for a plan.

    The request goes through an unlinked file, so that environments, which may hold secrets, are neither in
    an argument list nor in a file that anybody could open.
    """
    request, job_dir = plan.request, plan.spec.job_dir
    roles = [_resolved(role, at) for at, role in enumerate(request["roles"])]
    try:
        (job_dir / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
        with _anonymous_file() as stream:
            marshal.dump({**request, "roles": roles, "secrets": _secrets(request["roles"], roles)}, stream)
            stream.seek(0)
            pid = _fork_supervisor(str(job_dir), stream) or _start_supervisor(str(job_dir), stream)
    except OSError as exc:
        raise SubmitError(f"cannot start a process for job {plan.spec.id!r}: {exc}", output=str(exc)) from exc
    return _handle(executor, request["token"], job_dir, pid)


def _fork_supervisor(job_dir: str, request: IO[bytes]) -> int | None:
    """Have a supervisor forked from a Python that is running already; its number, or None without such."""
    if sys.platform == "linux":
        for _ in range(2):  # the one that is there may just be ending
            try:
                return _fork_server(inherited(_READ_AT_START)).start(job_dir, request)
            except OSError:
                _fork_server.cache_clear()
    return None


@functools.lru_cache(maxsize=1)
def _fork_server(inherited: object) -> ForkServer:
    """The latest server, until something that its forks would inherit has changed."""
    return ForkServer()


def _start_supervisor(job_dir: str, request: IO[bytes]) -> int:
    root = str(Path(runner.__file__).parents[2])
    with open(os.path.join(job_dir, "supervisor.log"), "ab", opener=runner.private) as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP.format(root=root)],
            stdin=request,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=job_dir,
            # By the folder `end_orphans` knows what was forked from the supervisor.
            env={**os.environ, "PYTHONUNBUFFERED": "1", runner.JOB_DIR: job_dir},
            start_new_session=True,
        )
    process.returncode = 0  # it is meant to outlive us, so `subprocess` need not warn that it does
    return process.pid


def _resolved(role: dict[str, Any], at: int) -> dict[str, Any]:
    """A role with its whole environment, secrets included, and the processors it is bound to."""
    env = dict(os.environ)
    for name, value in role["env"].items():
        if not isinstance(value, Expand):  # the shell that starts the role exports those
            env[name] = value if isinstance(value, str) else value.resolve()
    return {**role, "argv": list(map(str, role["argv"])), "env": env, "cpus": _choose_cpus(role["cpus"], at)}


def _secrets(planned: list[dict[str, Any]], resolved: list[dict[str, Any]]) -> list[bytes]:
    """The values of all secrets of a job, to be kept out of its logs."""
    values = [
        resolved_role["env"][name]
        for role, resolved_role in zip(planned, resolved, strict=True)
        for name, value in role["env"].items()
        if not isinstance(value, str)
    ]
    return [os.fsencode(value) for value in worth_masking(values)]


def _choose_cpus(count: int, offset: int) -> list[int]:
    """`count` of the processors we may use ourselves; different jobs start at different ones."""
    if not count:
        return []
    allowed = sorted(os.sched_getaffinity(0))
    start = (time.monotonic_ns() // 1000 + offset * count) % len(allowed)
    return (allowed[start:] + allowed[:start])[:count]


def _anonymous_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("nemo_run"), "w+b")
    return tempfile.TemporaryFile()


def _handle(executor: str, token: str, job_dir: Path, pid: int) -> JobHandle:
    data = {
        "job_dir": str(job_dir),
        "pid": str(pid),
        "start_time": start_time(pid) or "",
        "host": this_host(),
    }
    return JobHandle(executor=executor, id=token, data=data)


def find(token: str, job_dir: Path, executor: str) -> JobHandle | None:
    """The job whose supervisor has claimed `job_dir` under this token."""
    claim = read_record(job_dir / "process.json")
    if claim is None or claim["token"] != token:
        return None
    data = {"job_dir": str(job_dir), "pid": str(claim["pid"])}
    data |= {"start_time": claim["start_time"], "host": claim["host"]}
    return JobHandle(executor=executor, id=token, data=data)


# --- looking --------------------------------------------------------------------------------------------


def status(handle: JobHandle) -> JobStatus:
    """From the job's end if it has one, else from its claim and the process that made it."""
    job_dir = Path(handle.data["job_dir"])
    if end := read_record(job_dir / "end.json"):
        _reap(handle)
        return _from_end(end)
    if not job_dir.is_dir():
        return JobStatus(state=AppState.UNKNOWN, message=f"its folder is gone: {job_dir}")
    claim = read_record(job_dir / "process.json")
    if claim and not claim["pid"]:  # whoever claims it to cancel it writes its end a moment later
        return _from_end(_never_started(claim["token"], claim["started"]))
    process: Mapping[str, str] = {**handle.data} if claim is None else claim
    if process["host"] != this_host():
        return _seen_from_elsewhere(process["host"])
    if _is_alive(process):
        if claim is None:
            return JobStatus(state=AppState.SUBMITTED, message="starting")
        return JobStatus(state=AppState.RUNNING, started=claim["started"])
    _reap(handle)
    # It may have written its claim or its end between our look at the file and at the process.
    if end := read_record(job_dir / "end.json"):
        return _from_end(end)
    if claim is None and (job_dir / "process.json").exists():
        return status(handle)
    end_orphans(str(job_dir))
    if claim is None:
        return JobStatus(state=AppState.FAILED, exit_code=1, message=_start_failure(job_dir))
    message = "killed by SIGKILL, together with its supervisor"
    return JobStatus(state=AppState.FAILED, exit_code=137, message=message, started=claim["started"])


def _from_end(end: Mapping[str, Any]) -> JobStatus:
    return JobStatus(
        state=AppState[end["state"]],
        exit_code=end["exit_code"],
        message=end["message"],
        attempt=end["attempt"],
        started=end["started"],
        ended=end["ended"],
    )


def _seen_from_elsewhere(host: str) -> JobStatus:
    name, _, boot = host.partition(" ")
    here, _, boot_here = this_host().partition(" ")
    if name == here and boot.split(" ")[:1] != boot_here.split(" ")[:1]:
        return JobStatus(state=AppState.FAILED, message=f"{name} was restarted while it ran")
    return JobStatus(state=AppState.UNKNOWN, message=f"runs on {name}; ask there")


def _is_alive(process: Mapping[str, Any]) -> bool:
    return bool(start_time(int(process["pid"])) == process["start_time"])


def _reap(handle: JobHandle) -> None:
    """Let go of a supervisor that was our child, now or once it ends, so that no zombie stays."""
    with contextlib.suppress(ChildProcessError):
        if not os.waitpid(pid := int(handle.data["pid"]), os.WNOHANG)[0]:
            threading.Thread(target=_reap_later, args=(pid,), daemon=True).start()


def _reap_later(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _start_failure(job_dir: Path) -> str:
    try:
        said = (job_dir / "supervisor.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        said = []
    return "its supervisor did not start" + (f": {said[-1]}" if said else "")


def await_news(handles: Sequence[JobHandle], seconds: float) -> None:
    """Wait for the end of any of these jobs' supervisors where the system can (Linux), else for a while."""
    if not hasattr(os, "pidfd_open"):
        time.sleep(min(seconds, 0.05))
        return
    poll = select.poll()
    fds = []
    try:
        for handle in handles:
            # An adopted job's supervisor may be another than the handle's, and the handle of a backend that
            # leaves this to us names none: then the time ends this.
            with contextlib.suppress(OSError, LookupError, ValueError):
                fds.append(os.pidfd_open(int(handle.data["pid"])))
                poll.register(fds[-1], select.POLLIN)
                continue
            if "job_dir" in handle.data and os.path.exists(f"{handle.data['job_dir']}/end.json"):
                return  # it has ended in the meantime
        poll.poll(seconds * 1000)
    finally:
        for fd in fds:
            os.close(fd)


# --- ending and reading ---------------------------------------------------------------------------------


def cancel(handle: JobHandle) -> None:
    """Ask the supervisor to end the job; a job not yet claimed is claimed here, so that it never starts."""
    job_dir = Path(handle.data["job_dir"])
    if (job_dir / "end.json").exists() or not job_dir.is_dir():
        return
    if _claim_to_cancel(handle, job_dir):
        return
    claim = read_record(job_dir / "process.json")
    if claim is None or claim["host"] != this_host():
        raise SubmitError(f"cannot cancel {handle.id!r} from here: {status(handle).message}")
    if _is_alive(claim):
        import signal

        try:
            os.kill(claim["pid"], signal.SIGTERM)
        except ProcessLookupError:
            pass
    elif not (job_dir / "end.json").exists():
        end_orphans(str(job_dir))


def _claim_to_cancel(handle: JobHandle, job_dir: Path) -> bool:
    now = time.time()
    claim = {"token": handle.id, "pid": 0, "start_time": "", "host": this_host(), "started": now}
    temporary = job_dir / f"process.json.{os.getpid()}.cancel"
    runner.write(str(temporary), json.dumps(claim))
    try:
        os.link(temporary, job_dir / "process.json")
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    runner.write(str(job_dir / "end.json"), json.dumps(_never_started(handle.id, now)))
    return True


def _never_started(token: str, when: float) -> dict[str, Any]:
    end = {"token": token, "attempt": 1, "state": "CANCELLED", "exit_code": 143}
    return end | {"message": "cancelled before it started", "started": when, "ended": when}


def logs(handle: JobHandle, role: str, replica: int = 0, *, follow: bool = False) -> Iterator[str]:
    """Line by line, attempt after attempt."""
    attempt, job_dir = 1, Path(handle.data["job_dir"]) / "logs"
    while True:
        path = job_dir / f"{runner.record_stem(role, replica, attempt)}.log"
        following = job_dir / f"{runner.record_stem(role, replica, attempt + 1)}.log"
        yield from read_lines(path, lambda: follow and not (following.exists() or _ended(handle)))  # noqa: B023
        if not following.exists():
            return
        attempt += 1


def _ended(handle: JobHandle) -> bool:
    return status(handle).state in (*TERMINAL, AppState.UNKNOWN)
