"""Processes by what does not change: one from a later one of its number, and all that belong to a job."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False  # `typing` itself takes as long to import as Python takes to start
if TYPE_CHECKING:
    from typing import Any

#: The one field of /proc/<pid>/stat that matters here, counted after the command's closing bracket.
_START_TIME_FIELD = 19


def this_host() -> str:
    """What process numbers mean something on: host, boot and process namespace.

    A process recorded elsewhere cannot be looked at from here, and a boot ends all that ran before it.
    """
    if sys.platform != "linux":
        import platform

        return platform.node()
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return f"{os.uname().nodename} {boot} {os.readlink('/proc/self/ns/pid')}"


def start_time(pid: int) -> str | None:
    """When this process started, in words only equal for the same process; None if none runs.

    On Linux the kernel's tick count since boot, which no clock change moves; a zombie no longer runs.
    """
    if sys.platform != "linux":
        import psutil

        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
        except psutil.NoSuchProcess:
            return None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else fields[_START_TIME_FIELD].decode()


def end_orphans(job_dir: str) -> None:
    """End what a killed supervisor left behind: processes with the job's folder in their environment.

    Again until none is found: they may be starting others meanwhile. One that cannot be ended is given up.
    """
    for _ in range(100):
        pids = _processes_with(f"NEMORUN_JOB_DIR={job_dir}")
        for pid in pids:
            try:
                os.kill(pid, 9)
            except (ProcessLookupError, PermissionError):
                continue
        if not pids:
            return
        time.sleep(0.01)


def _processes_with(variable: str) -> list[int]:
    """All processes but this one with this in their environment, as far as we may look."""
    if sys.platform != "linux":
        import psutil

        name, _, value = variable.partition("=")
        found = (p.pid for p in psutil.process_iter() if _environment(p).get(name) == value)
        return [pid for pid in found if pid != os.getpid()]
    # Not by psutil, whose import takes longer than all the rest of a small job.
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return [pid for pid in pids if os.fsencode(variable) in _environ(pid)]


def _environ(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def _environment(process: Any) -> dict[str, str]:
    import psutil

    try:
        environment: dict[str, str] = process.environ()
        return environment
    except psutil.Error:
        return {}
