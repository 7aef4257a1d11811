"""What jobs of a Slurm cluster print, read through a tunnel by offset."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator

from nemo_run.core import runner
from nemo_run.core.execution.base import TERMINAL, AppState, JobHandle
from nemo_run.core.execution.slurm_job import Word, look
from nemo_run.core.tunnel.base import Tunnel

#: Seconds between two looks at a log, and at a job whose log says nothing new.
_LOG_PAUSE, _STATUS_PAUSE = (0.05, 1.0), 5.0
#: Seconds after which a job that cannot be seen is no longer read.
_LOST = 600.0


def log_lines(tunnel: Tunnel, handle: JobHandle, role: str, replica: int, *, follow: bool) -> Iterator[str]:
    """Line by line, attempt after attempt, by offset."""
    attempt, latest = 1, 1
    while attempt <= latest:
        latest = yield from _attempt_lines(tunnel, handle, role, replica, attempt, follow)
        attempt += 1


def _attempt_lines(
    tunnel: Tunnel, handle: JobHandle, role: str, replica: int, attempt: int, follow: bool
) -> Generator[str, None, int]:
    """One attempt's lines; returns the number of the latest attempt."""
    folder = handle.data["folder"]
    path = f"{folder}/logs/{runner.record_stem(role, replica, attempt)}.log"
    offset, rest, pause, over = 0, b"", _LOG_PAUSE[0], _Over(tunnel, handle)
    last = not follow
    while True:
        found = tunnel.read({path: offset, f"{folder}/begin.json": 0, f"{folder}/end.json": 0})
        word = Word(handle, found)
        latest = int((word.begin or {}).get("attempt", 1))
        if chunk := found.get(path, b""):
            offset, pause = offset + len(chunk), _LOG_PAUSE[0]
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                yield from whole.decode(errors="replace").split("\n")
        elif last or latest > attempt:
            if rest:
                yield rest.decode(errors="replace")
            return latest
        # What it printed before its end is read once more after that is known.
        elif not (last := word.final is not None or over()):
            time.sleep(pause)
            pause = min(pause * 1.5, _LOG_PAUSE[1])


class _Over:
    """Whether a job of which there is no news has ended, or been out of sight for very long."""

    def __init__(self, tunnel: Tunnel, handle: JobHandle) -> None:
        self._tunnel, self._handle = tunnel, handle
        self._asked = self._seen = time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._asked < _STATUS_PAUSE:
            return False
        [status] = look(self._tunnel, [self._handle])
        self._asked = time.monotonic()
        if status.state != AppState.UNKNOWN:
            self._seen = now
        return status.state in TERMINAL or now - self._seen > _LOST
