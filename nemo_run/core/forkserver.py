"""Starts supervisors as forks of one clean Python, so that no job waits for an interpreter of its own.

A launcher on Linux starts one such process when it first needs it. The process ends by itself when nobody
has asked for a while, so that a long session does not start jobs from an interpreter that has grown old.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # as in `supervisor.py`, every job has this
import _socket
import os
import select
import sys

from nemo_run.core import runner, supervisor

TYPE_CHECKING = False  # `typing` itself takes as long to import as Python takes to start
if TYPE_CHECKING:
    from typing import IO, Any

#: Seconds without a request after which a server ends.
_IDLE = 2.0
#: Room in the server's environment for the folder of the job that a fork of it belongs to.
_ROOM = 4096
_BOOTSTRAP = "import sys; sys.path.insert(0, {root!r}); from nemo_run.core.forkserver import main; main()"
#: What a process has from the one that starts it, of /proc/self/status.
_INHERITED = ("Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "Cap", "NoNewPrivs", "Seccomp", "Cpus_al")


# --- the launcher's side --------------------------------------------------------------------------------


class ForkServer:
    """A process that forks supervisors, as the launcher sees it; it serves until nobody holds it."""

    def __init__(self) -> None:
        import socket
        import subprocess
        import threading
        import weakref

        self._lock = threading.Lock()
        root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        weakref.finalize(self, self._socket.close)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP.format(root=root)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={**os.environ, "PYTHONUNBUFFERED": "1", runner.JOB_DIR: "-" * _ROOM},
                start_new_session=True,
            )
        threading.Thread(target=process.wait, daemon=True).start()

    def start(self, job_dir: str, request: IO[bytes]) -> int:
        """Fork a supervisor that reads this request; returns its process number.

        Raises:
            OSError: there is no server any more; the supervisor may have been started all the same.
        """
        import socket

        with self._lock:
            socket.send_fds(self._socket, [os.fsencode(job_dir)], [request.fileno()])
            answer = int(self._socket.recv(16) or 0)
        if answer <= 0:
            raise OSError(-answer, os.strerror(-answer) if answer else "the server has ended")
        return answer


def inherited(variables: tuple[str, ...]) -> tuple[Any, ...]:
    """What a process started now would have of this one, and a fork of an earlier one may not have.

    Args:
        variables: Beginnings of the names of variables that an interpreter reads only while it starts.
    """
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith(variables)))
    with open("/proc/self/status", "rb") as file:
        names = tuple(name.encode() for name in _INHERITED)
        status = tuple(line for line in file if line.startswith(names))
    with open("/proc/self/limits", "rb") as limits, open("/proc/self/cgroup", "rb") as cgroup:
        return (
            os.getpid(),
            os.getpriority(os.PRIO_PROCESS, 0),
            environment,
            status,
            limits.read(),
            cgroup.read(),
        )


# --- the server's side ----------------------------------------------------------------------------------


def main() -> None:
    """Serve the launcher at standard input; in a fork, be a supervisor."""
    serve(_socket.socket(fileno=0))
    supervisor.main()


def serve(launcher: _socket.socket) -> None:
    """Fork once for each request, and return in the forks alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors that have ended leave no zombie
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    place = _place_of(runner.JOB_DIR)
    while select.select([launcher], [], [], _IDLE)[0]:
        job_dir, control, _, _ = launcher.recvmsg(_ROOM, _socket.CMSG_SPACE(4))
        if not control:
            break
        request = int.from_bytes(control[0][2], sys.byteorder)
        try:
            pid = os.fork()
        except OSError as exc:
            pid = -(exc.errno or 1)
        if pid == 0:
            launcher.detach()
            return _leave_server(job_dir, request, place)
        os.close(request)
        launcher.send(str(pid).encode())
    os._exit(0)


def _leave_server(job_dir: bytes, request: int, place: int) -> None:
    """In a fork: become what a process started for this job would be."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir(job_dir)
    # Opened anew, as the launcher may give what it has open to another, should it not hear of this one.
    os.dup2(os.open(f"/proc/self/fd/{request}", os.O_RDONLY), 0)
    os.closerange(3, request + 2)
    sys.stderr = _LateLog(os.fsdecode(job_dir) + "/supervisor.log")
    os.environ[runner.JOB_DIR] = os.fsdecode(job_dir)
    _write_memory(place, job_dir.ljust(_ROOM, b"\0"))


class _LateLog:
    """A log that is made when something is written to it, as hardly any supervisor has anything to say."""

    def __init__(self, path: str) -> None:
        self._path = path

    def write(self, text: str) -> None:
        with open(self._path, "a", opener=runner.private) as file:
            file.write(text)

    def flush(self) -> None:
        pass


def _place_of(variable: str) -> int:
    """Where in memory the system reads this variable when it is asked for our environment.

    `end_orphans` finds by it what a killed supervisor left behind. A fork keeps the environment that the
    first process was started with, so the value is written over in place.
    """
    with open("/proc/self/environ", "rb") as file:
        at = (b"\0" + file.read()).index(b"\0" + variable.encode() + b"=")
    with open("/proc/self/stat", "rb") as file:
        start = int(file.read().rpartition(b")")[2].split()[47])  # env_start, of proc(5)
    place = start + at + len(variable) + 1
    _write_memory(place, b"-")  # where that is not allowed there is no server
    return place


def _write_memory(place: int, data: bytes) -> None:
    fd = os.open("/proc/self/mem", os.O_WRONLY)
    try:
        os.pwrite(fd, data, place)
    finally:
        os.close(fd)
