"""What jobs of a Slurm cluster print, read by offset: one remote command for all that is followed."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from nemo_run.core import runner
from nemo_run.core.execution.base import TERMINAL, AppState, JobHandle
from nemo_run.core.execution.slurm_home import is_home
from nemo_run.core.execution.slurm_job import Word, look
from nemo_run.core.logfile import read_lines
from nemo_run.core.tunnel.base import Tunnel
from nemo_run.errors import AuthenticationError, HostKeyError, TunnelError

logger = logging.getLogger(__name__)

#: Seconds between two looks at all logs: while they grow, and at most. And between two looks at the states of
#: jobs whose logs do not.
_QUICK, _SLOW, _STATUS_PAUSE = 0.2, 1.0, 5.0
#: Seconds after which a job that cannot be seen is no longer read.
_LOST = 600.0
#: Seconds between two tries while the cluster does not answer, at most.
_OUTAGE = 15.0
#: Bytes that one look brings, of all logs together and of each.
_AT_ONCE, _EACH = 32 << 20, 1 << 20


def log_lines(tunnel: Tunnel, handle: JobHandle, role: str, replica: int, *, follow: bool) -> Iterator[str]:
    """Line by line, attempt after attempt, by offset; of a job that is home from there."""
    if is_home(handle):
        return _lines_at_home(Path(handle.data["home"], "logs"), role, replica)
    return _lines(tunnel, handle, role, replica, follow)


def _lines_at_home(folder: Path, role: str, replica: int) -> Iterator[str]:
    stem = runner.record_stem(role, replica, 1)
    for path in sorted(folder.glob(f"{escape(stem)}.*log"), key=_attempt_of):
        yield from read_lines(path, lambda: False)


def _attempt_of(path: Path) -> int:
    number = path.name.rpartition(".attempt")[2].removesuffix(".log")
    return int(number) if number.isdecimal() else 1


def _lines(tunnel: Tunnel, handle: JobHandle, role: str, replica: int, follow: bool) -> Iterator[str]:
    attempt, latest = 1, 1
    while attempt <= latest:
        latest = yield from _attempt_lines(tunnel, handle, role, replica, attempt, follow)
        attempt += 1


def _attempt_lines(
    tunnel: Tunnel, handle: JobHandle, role: str, replica: int, attempt: int, follow: bool
) -> Generator[str, None, int]:
    """One attempt's lines; returns the number of the latest attempt."""
    path = f"{handle.data['folder']}/logs/{runner.record_stem(role, replica, attempt)}.log"
    part = f"_{replica}" if handle.data["array"] else ""
    wish, rest, last = Wish(handle, path, attempt, part), b"", not follow
    reader = reader_of(repr(tunnel), os.environ.get("SLURM_CONF", ""))
    while True:
        if follow:
            reader.fulfil(tunnel, wish)
        else:
            wish.take(tunnel.read(wish.offsets, limit=_EACH))
        if wish.chunk:
            whole, newline, rest = (rest + wish.chunk).rpartition(b"\n")
            if newline:
                yield from whole.decode(errors="replace").split("\n")
        if last and len(wish.chunk) < (1 if follow else _EACH):
            if rest:
                yield rest.decode(errors="replace")
            return wish.latest
        # What it printed before its end is read once more after that is known.
        last = last or wish.over


class Wish:
    """What one follower waits for: what a log holds from an offset on, and whether it will hold more."""

    def __init__(self, handle: JobHandle, path: str, attempt: int, part: str = "") -> None:
        self.handle, self.path, self.attempt = handle, path, attempt
        #: Which task of an array it is: the tasks leave a word each.
        self.part = part
        self.offset, self.chunk = 0, b""
        self.latest, self.over = 1, False
        self.error: TunnelError | None = None
        self.fulfilled = threading.Event()

    @property
    def offsets(self) -> dict[str, int]:
        """What must be read for it."""
        return {self.path: self.offset, self._word("begin"): 0, self._word("end"): 0}

    def _word(self, name: str) -> str:
        return f"{self.handle.data['folder']}/{name}{self.part}.json"

    def take(self, files: Mapping[str, bytes], skipped: int = 0) -> None:
        """Take its part of what was read; of its log what another follower needs may come first."""
        self.chunk = files.get(self.path, b"")[skipped:]
        self.offset += len(self.chunk)
        begin, ended = self._told(files)
        self.latest = int(begin.get("attempt", 1))
        self.over = ended or self.latest > self.attempt

    def _told(self, files: Mapping[str, bytes]) -> tuple[Mapping[str, Any], bool]:
        """What the job itself says of its beginning, and whether it has ended."""
        if not self.part:
            word = Word(self.handle, files)
            return word.begin or {}, word.final is not None
        begin, end = (json.loads(files.get(self._word(name), b"{}")) for name in ("begin", "end"))
        return begin, bool(end) and not end["signal"]


@functools.cache
def reader_of(tunnel: str, conf: str) -> Reader:
    """The one that a tunnel with these settings has in this process."""
    return Reader()


class Reader:
    """Reads the logs of one cluster for all who follow one, by one command for all of them at a time.

    Its thread is there for as long as somebody waits. A cluster that stops answering is waited for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Wish] = []
        self._thread: threading.Thread | None = None
        self._answered, self._asked, self._failing = False, 0.0, 0.0
        self._seen: dict[str, float] = {}

    def fulfil(self, tunnel: Tunnel, wish: Wish) -> None:
        """Wait until a wish was looked after; it may have brought nothing.

        Raises:
            TunnelError: the cluster never answered, or refuses us.
        """
        wish.fulfilled.clear()
        with self._lock:
            self._waiting.append(wish)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, args=(tunnel,), daemon=True)
                self._thread.start()
        wish.fulfilled.wait()
        if wish.error:
            raise wish.error

    def _serve(self, tunnel: Tunnel) -> None:
        pause = _QUICK / 4  # others may be about to come
        while True:
            time.sleep(pause)
            with self._lock:
                wishes, self._waiting = self._waiting, []
                if not wishes:
                    self._thread = None
                    return
            pause = self._pause(pause, self._answer(tunnel, wishes))

    @staticmethod
    def _pause(last: float, news: bool | None) -> float:
        """Longer and longer while there is no news, and longer still while there is no answer."""
        return _QUICK if news else min(last * 1.5, _SLOW) if news is False else min(last * 2, _OUTAGE)

    def _answer(self, tunnel: Tunnel, wishes: list[Wish]) -> bool | None:
        """Look after some wishes: whether there was news; None if nobody answered and they must wait."""
        try:
            self._read(tunnel, wishes)
            with contextlib.suppress(TunnelError):  # what was read is passed on; the next look will say it
                self._look(tunnel, [wish for wish in wishes if not (wish.chunk or wish.over)])
        except TunnelError as exc:
            if self._is_passing(exc):
                self._say_once(tunnel, exc)
                with self._lock:
                    self._waiting += wishes
                return None
            error: TunnelError | None = exc
        except BaseException as exc:  # no follower is left waiting, whatever this is
            error = TunnelError(f"the logs on {tunnel.key} cannot be read: {exc!r}")
        else:
            self._answered, self._failing, error = True, 0.0, None
        news = any(wish.chunk for wish in wishes)
        for wish in wishes:
            wish.error = error
            wish.fulfilled.set()
        return news

    def _read(self, tunnel: Tunnel, wishes: Sequence[Wish]) -> None:
        offsets: dict[str, int] = {}
        for wish in wishes:
            offsets |= wish.offsets | {wish.path: min(wish.offset, offsets.get(wish.path, wish.offset))}
        files = tunnel.read(offsets, limit=min(_EACH, max(1 << 16, _AT_ONCE // len(wishes))))
        for wish in wishes:
            wish.take(files, skipped=wish.offset - offsets[wish.path])

    def _look(self, tunnel: Tunnel, wishes: Sequence[Wish]) -> None:
        """Whether jobs without news have ended without a word, or have been out of sight for very long."""
        handles, now = {wish.handle.id: wish.handle for wish in wishes}, time.monotonic()
        if not handles or now - self._asked < _STATUS_PAUSE:
            return
        self._asked = now
        over = set()
        for name, status in zip(handles, look(tunnel, list(handles.values())), strict=True):
            if status.state != AppState.UNKNOWN:
                self._seen[name] = now
            if status.state in TERMINAL or now - self._seen.setdefault(name, now) > _LOST:
                over.add(name)
        for wish in wishes:
            wish.over = wish.handle.id in over

    def _is_passing(self, exc: TunnelError) -> bool:
        """Whether it is worth waiting for the cluster to answer again."""
        if not self._answered or isinstance(exc, (AuthenticationError, HostKeyError)):
            return False
        return not exc.ran or time.monotonic() - (self._failing or time.monotonic()) < _LOST

    def _say_once(self, tunnel: Tunnel, exc: TunnelError) -> None:
        if not self._failing:
            self._failing = time.monotonic()
            logger.warning("logs on %s are read on once it answers again: %s", tunnel.key, exc)
