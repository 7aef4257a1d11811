"""Files by rsync, whose other side is a command on the connection that is open already."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_run.core.tunnel import rsh
from nemo_run.core.tunnel.commands import again
from nemo_run.core.tunnel.connection import Connection, CutOff
from nemo_run.errors import TunnelError

if TYPE_CHECKING:
    from paramiko import Channel

#: Makes a command into what the other side's shell takes.
Line = Callable[[Sequence[str]], bytes]
#: Folders, links, modes, times, compressed, with holes, and names not through a shell; a file is written
#: beside its name and then renamed.
_OPTIONS = ["-rlptzsS"]


def put(via: Connection, line: Line, source: Path, target: str) -> None:
    """Copy a file or folder to over there."""
    slash = b"/" if source.is_dir() and not source.is_symlink() else b""
    _copy(via, line, os.fsencode(source.absolute()) + slash, _there(target) + slash)


def get(via: Connection, line: Line, source: str, target: Path, is_folder: bool) -> None:
    """Copy a file or folder from over there."""
    from nemo_run.core.tunnel.local import make_folder

    make_folder(target.absolute().parent)
    slash = b"/" if is_folder else b""
    _copy(via, line, _there(source) + slash, os.fsencode(target.absolute()) + slash)


def _there(path: str) -> bytes:
    """A path over there; one that is relative may begin with a blank, `-` or `~` and is still a path."""
    plain = path if path.startswith("/") else f"./{path}"
    return b"there:" + plain.rstrip("/").encode(errors="surrogateescape")


def _copy(via: Connection, line: Line, source: bytes, target: bytes) -> None:
    """What has arrived before the connection was cut is not sent again, so it may be tried again."""
    again(lambda: _copy_once(via, line, source, target))


def _copy_once(via: Connection, line: Line, source: bytes, target: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile() as errors:
        with theirs:
            shell = f"'{sys.executable}' -IS '{rsh.__file__}' {theirs.fileno()}"
            argv: list[str | bytes] = ["rsync", *_OPTIONS, "--rsh", shell, "--", source, target]
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "LC_ALL": "C"},
            )
        try:
            there = _serve(via, line, ours)
            with contextlib.suppress(OSError):  # it may have gone already
                ours.shutdown(socket.SHUT_RDWR)  # also for the thread that still reads
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        said = (errors.read() + there.said).decode(errors="replace").strip()
    if code or there.code or there.cut:
        shown = (
            (source + b" to " + target).decode(errors="replace").replace("there:", f"{via.settings.shown}:")
        )
        if there.cut:
            raise CutOff(f"the connection was cut while rsync copied {shown} ({there.cut})", ran=None)
        raise TunnelError(f"rsync cannot copy {shown}: {said[-2000:]}", ran=True)


@dataclass
class _End:
    """How the other side ended."""

    code: int = 0
    said: bytes = b""
    cut: str = ""


def _serve(via: Connection, line: Line, link: socket.socket) -> _End:
    """Be the other side of one rsync until that ends."""
    import paramiko

    size = int.from_bytes(_read(link, 4), "big")
    if not size:
        return _End()  # ours ended before it wanted anything from over there
    argv, end = json.loads(_read(link, size)), _End()
    with via.session() as channel:
        try:
            channel.exec_command(line(argv))
            threading.Thread(target=_send, args=(link, channel), daemon=True).start()
            while data := channel.recv(1 << 16):
                if not _passed_on(link, data):
                    return end
            end.code = channel.recv_exit_status()
            while data := channel.recv_stderr(1 << 16):
                end.said += data
            end.cut = "it has no end" if end.code < 0 else ""
        except (paramiko.SSHException, EOFError, OSError) as exc:
            end.cut = str(exc) or type(exc).__name__
    return end


def _passed_on(link: socket.socket, data: bytes) -> bool:
    """Whether our rsync took it; one that has ended says itself why."""
    try:
        link.sendall(data)
    except OSError:
        return False
    return True


def _send(link: socket.socket, channel: Channel) -> None:
    with contextlib.suppress(OSError, EOFError):
        while data := link.recv(1 << 16):
            channel.sendall(data)
        channel.shutdown_write()


def _read(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (chunk := link.recv(size - len(data))):
        data += chunk
    return data
