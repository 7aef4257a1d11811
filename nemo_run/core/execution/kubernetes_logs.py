"""What pods print: read line by line, resumed where it was left, kept at home, less what is not the task's.

Each line comes with the time at which it was printed. Whoever reads on after a cut asks for the lines from
the last time on, and leaves out those that came with it: none is lost, and none comes twice. A pod's log is
kept in a file of the job's folder, times and all, by whoever has the job in view, and becomes the log of its
rank at the end.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import io
import os
import re
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from nemo_run.core import runner
from nemo_run.core.execution.kubernetes_client import ApiError, Cluster, absent_is_fine, path_of
from nemo_run.core.execution.kubernetes_manifest import CONTAINER
from nemo_run.core.execution.kubernetes_pod import MARK
from nemo_run.core.execution.kubernetes_state import Pod
from nemo_run.core.masking import mask_chunks

#: Seconds without a line after which the server is asked anew whether there is more.
_QUIET = 120.0
#: Seconds between two tries.
_PAUSE = 0.5
#: How many logs a process keeps at the same time; those of others are fetched when their pods have ended.
_AT_ONCE = 100
#: An old node writes the time before each part of a line that is longer than this, too.
_PART = 16384
_TIME = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?")
#: What is left of a line that was cut before its text.
_HALF_TIME = re.compile(rb"[\dTZ:.+-]{1,35}")
_MARK = MARK.encode()


# --- reading --------------------------------------------------------------------------------------------


class PodLog:
    """One pod's log, read on from where it was left."""

    def __init__(self, cluster: Cluster, namespace: str, pod: str) -> None:
        self._cluster, self._path = cluster, path_of("Pod", namespace, pod) + "/log"
        #: When the last line was printed, and how many of the lines read were printed then.
        self.time, self.count = b"", 0
        #: A last line that has no end, at least not yet.
        self.rest = b""

    def read(self, *, follow: bool = False) -> Iterator[bytes]:
        """The lines that have come since, each with its time; while following, until the container ends.

        Raises:
            ApiError: there is no log (yet), or the connection is cut.
        """
        since = self.time and _TIME.match(self.time)
        query = {"container": CONTAINER, "timestamps": True, "follow": follow or None}
        if since:
            query["sinceTime"] = (since[1] + since[3]).decode()
        known, self.rest = self.count, b""
        with self._cluster.stream(self._path, _QUIET, **query) as chunks:
            skip = _Skip(self.time, known)
            rest = b""
            for chunk in chunks:
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    self._check(line)
                    if skip.is_new(line):
                        self._note(line)
                        yield line
            if rest and not _HALF_TIME.fullmatch(rest):
                self._check(rest)
                self.rest = rest if skip.is_new(rest) else b""

    @staticmethod
    def _check(line: bytes) -> None:
        """A node says in place of a log why there is none, and that has no time."""
        if not time_of(line):
            said = line.decode(errors="replace")
            raise ApiError(said, status=404, reason="NotFound")

    def start_after(self, lines: Sequence[bytes]) -> None:
        """Go on after these lines, the last of those that were read."""
        for line in lines:
            self._note(line)

    def _note(self, line: bytes) -> None:
        found = time_of(line)
        self.count = self.count + 1 if found == self.time else 1
        self.time = found


class _Skip:
    """Leaves out what was read before."""

    def __init__(self, last: bytes, count: int) -> None:
        self._last, self._count = _sortable(last), count

    def is_new(self, line: bytes) -> bool:
        """Whether it was not; from the first new line on all are."""
        if not self._last:
            return True
        at = _sortable(time_of(line))
        if at < self._last:
            return False
        if at == self._last and self._count:
            self._count -= 1
            return False
        self._last = b""
        return True


def time_of(line: bytes) -> bytes:
    """When a line was printed, as the server wrote it."""
    match = _TIME.match(line)
    return match[0].strip() if match else b""


def _sortable(at: bytes) -> bytes:
    match = _TIME.match(at)
    return match[1] + (match[2] or b"").ljust(9, b"0") if match else b""


def text_of(line: bytes) -> bytes:
    """A line without its time, nor those of its parts."""
    match = _TIME.match(line)
    text = line[match.end() :] if match else line
    at = _PART
    while len(text) > at and (match := _TIME.match(text, at)):
        text = text[:at] + text[match.end() :]
        at += _PART
    return text


class Cutter:
    """Takes out of a log what the task has not printed, and keeps it."""

    def __init__(self) -> None:
        self._parts: dict[int, bytes] = {}
        self._count = 0

    def cut(self, text: bytes) -> bytes | None:
        """What the task printed of a line; None if it is nothing."""
        head, mark, tail = text.partition(_MARK)
        if not mark:
            return text
        with contextlib.suppress(ValueError):
            place, _, part = tail.partition(b" ")
            number, _, count = place.partition(b"/")
            self._parts[int(number)], self._count = part, int(count)
        return head or None

    def unpack(self, folder: Path) -> bool:
        """Write the files that were sent below a folder; False if they are not complete."""
        if not self._count or len(self._parts) != self._count:
            return False
        try:
            packed = base64.b64decode(b"".join(self._parts[number + 1] for number in range(self._count)))
            with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
                for member in archive:
                    unpack(archive, member, folder)
        except (KeyError, ValueError, tarfile.TarError, EOFError, OSError):
            return False
        return True


def unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write a file or a folder that an archive holds below a folder."""
    parts = PurePosixPath(member.name).parts
    if ".." in parts or member.name.startswith("/"):
        raise tarfile.TarError(f"{member.name!r} lies nowhere below it")
    path = folder.joinpath(*parts)
    if member.isdir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif member.isreg() and (source := archive.extractfile(member)):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        runner.write(str(path), source.read())


# --- keeping --------------------------------------------------------------------------------------------


class KeptLog:
    """The file in which a pod's log is kept, as long as the job goes on."""

    def __init__(self, job_dir: Path, uid: str) -> None:
        self.path = job_dir / "pods" / f"{uid}.log"

    def lines(self) -> Iterator[bytes]:
        """What is kept, each line with its time, and its end if it has one."""
        try:
            with open(self.path, "rb") as file:
                yield from file
        except FileNotFoundError:
            return

    def fetch(self, log: PodLog, *, follow: bool = False, patience: float = 0.0, whole: bool = False) -> bool:
        """Add what has come since; False if another does that, and has not ended within so many seconds.

        Args:
            log: Where it comes from.
            follow: Until the container ends.
            patience: Seconds to wait for another.
            whole: Whether the container has ended, so that a last line without an end is one.

        Raises:
            ApiError: there is no log (any more), or the connection is cut.
        """
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        with open(self.path, "ab+", opener=runner.private) as file:
            if not _lock(file, patience):
                return False
            log.start_after(_whole_tail(file))
            for line in log.read(follow=follow):
                file.write(line + b"\n")
                if follow:
                    file.flush()
            if whole and log.rest:
                file.write(log.rest)
            return True


def _lock(file: IO[bytes], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


def _whole_tail(file: IO[bytes]) -> list[bytes]:
    """The last lines of a file, which then ends with the last whole one."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - (1 << 20)))
    tail = file.read()
    whole = tail[: tail.rfind(b"\n") + 1]
    file.truncate(size - len(tail) + len(whole))
    file.seek(0, os.SEEK_END)
    return whole.splitlines()[1 if size > 1 << 20 else 0 :]


@functools.cache
def followers() -> Followers:
    """Those of this process."""
    return Followers()


class Followers:
    """Threads that keep the logs of running pods, so that nothing is lost when a pod goes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: dict[Path, threading.Thread] = {}

    def follow(self, kept: KeptLog, log: PodLog) -> None:
        """Keep a pod's log, if nobody of this process does yet."""
        with self._lock:
            self._threads = {known: thread for known, thread in self._threads.items() if thread.is_alive()}
            if kept.path in self._threads or len(self._threads) >= _AT_ONCE:
                return
            thread = threading.Thread(target=_keep, args=(kept, log), daemon=True)
            self._threads[kept.path] = thread
            thread.start()


def _keep(kept: KeptLog, log: PodLog) -> None:
    # After an error the next look at the job starts another one, if the pod is still there then.
    with contextlib.suppress(ApiError, OSError, ValueError):
        kept.fetch(log, follow=True)


# --- at home --------------------------------------------------------------------------------------------


def save(kept: KeptLog, path: Path, secrets: Sequence[bytes]) -> Cutter:
    """Make of a kept log the log that people read, whole or not at all; gives what was cut out of it."""
    cutter = Cutter()

    def texts() -> Iterator[bytes]:
        for line in kept.lines():
            text = cutter.cut(text_of(line.removesuffix(b"\n")))
            if text is not None:  # before what is sent there is no line end
                yield text + (b"\n" if line.endswith(b"\n") and _MARK not in line else b"")

    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb", opener=runner.private) as file:
        file.writelines(mask_chunks(texts(), secrets) if secrets else texts())
    os.replace(temporary, path)
    return cutter


def pod_lines(cluster: Cluster, namespace: str, pod: str, kept: KeptLog, *, follow: bool) -> Iterator[bytes]:
    """What the task of a pod printed, line by line; while following, until its container ends.

    Raises:
        ApiError: the cluster does not answer, and nobody waits for it.
    """
    log, cutter, ended = PodLog(cluster, namespace, pod), Cutter(), not follow
    while True:
        try:
            yield from _texts(log.read(follow=not ended), cutter)
            if ended:
                yield from _texts([log.rest] if log.rest else [], cutter)
                return
            # Whoever follows may be sent away before the last lines: they are read when it has ended.
            if ended := _has_ended(cluster, namespace, pod):
                continue
        except ApiError as exc:
            if exc.status == 404:  # it is gone; what others have kept of it is all there is
                skip = _Skip(log.time, log.count)
                lines = (line.removesuffix(b"\n") for line in kept.lines())
                yield from _texts((line for line in lines if skip.is_new(line)), cutter)
                return
            if not follow and exc.status != 400:
                raise
            if not follow or (exc.status == 400 and _has_ended(cluster, namespace, pod)):
                return  # its container has not been started, or never was
        time.sleep(_PAUSE)


def _texts(lines: Iterable[bytes], cutter: Cutter) -> Iterator[bytes]:
    for line in lines:
        if (text := cutter.cut(text_of(line))) is not None:
            yield text


def _has_ended(cluster: Cluster, namespace: str, pod: str) -> bool:
    with absent_is_fine():
        there = Pod.of(cluster.get(path_of("Pod", namespace, pod)))
        return there.over or bool(there.terminated)
    return True
