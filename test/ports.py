"""Ports for servers of tests: no two processes on this machine are ever given the same."""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import tempfile
from pathlib import Path

#: Below those that systems give to whoever connects, which would come and go.
_FIRST, _LAST, _BLOCK = 21000, 31000, 10
_held: list[int] = []


def take_ports() -> range:
    """Ten free ports; they are this process's for as long as it lives."""
    folder = Path(tempfile.gettempdir(), f"nemo_run-ports-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    for first in itertools.count(_FIRST, _BLOCK):
        assert first < _LAST, f"no free ports: all of {folder} are locked or in use"
        ports = range(first, first + _BLOCK)
        if _lock(folder / str(first)) and all(map(_is_free, ports)):
            return ports
    raise AssertionError


def _lock(path: Path) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    _held.append(fd)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
