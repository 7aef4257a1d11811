"""Telling one process from a later one that got the same number."""

from __future__ import annotations

import os
import sys

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
