"""Showing what jobs print: of several jobs at once, filtered, and without their secrets."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TextIO

from nemo_run.core.execution.base import Executor, JobHandle
from nemo_run.core.masking import MASK, worth_masking
from nemo_run.errors import ConfigError, NemoRunError, NotFoundError


class Source(NamedTuple):
    """One log of a job: that of a role, or of one of a role's ranks."""

    role: str
    rank: int
    #: Whose lines they are, where the job has several logs: "client", "train/3"; else empty.
    label: str


class Line(NamedTuple):
    """A line of a job's log, and whose it is."""

    source: Source
    text: str

    @property
    def shown(self) -> str:
        """As people read it."""
        return f"{self.source.label} │ {self.text}" if self.source.label else self.text


def sources(
    roles: Sequence[str],
    executors: Sequence[Executor],
    *,
    role: str | None = None,
    rank: int | None = None,
) -> list[Source]:
    """The logs of a job, or those of one role, or of one rank.

    Raises:
        NotFoundError: it has no such role, or none with such a rank.
    """
    if role is not None and role not in roles:
        raise NotFoundError("role", role, roles)
    ranks = {name: executor.replicas() for name, executor in zip(roles, executors, strict=True)}
    wanted = roles if role is None else [role]
    found = [
        Source(name, number, _label(name, number, len(roles), len(ranks[name])))
        for name in wanted
        for number in ranks[name]
        if rank in (None, number)
    ]
    if not found:
        known = sorted({number for name in wanted for number in ranks[name]})
        raise NotFoundError("log of rank", str(rank), [str(number) for number in known])
    return found


def _label(role: str, rank: int, roles: int, ranks: int) -> str:
    if ranks > 1:
        return f"{role}/{rank}"
    return role if roles > 1 else ""


def read_logs(
    executor: Executor,
    handle: JobHandle,
    sources: Sequence[Source],
    *,
    regex: str | None = None,
    follow: bool = False,
    secrets: Iterable[str] = (),
) -> Iterator[Line]:
    """The lines of some of a job's logs, one log after the other; while following, as the lines come.

    Raises:
        ConfigError: `regex` is none.
    """
    wanted, mask = compile_filter(regex), masker(secrets)
    merge = _merged if follow and len(sources) > 1 else _in_turn
    for source, text in merge(executor, handle, sources, follow):
        if wanted(text):
            yield Line(source, mask(text))


def compile_filter(regex: str | None) -> Callable[[str], bool]:
    """Whether a line holds a match.

    Raises:
        ConfigError: `regex` is none.
    """
    if not regex:
        return lambda line: True
    try:
        pattern = re.compile(regex)
    except re.error as exc:
        raise ConfigError(f"{regex!r} is not a regular expression: {exc}") from exc
    return lambda line: pattern.search(line) is not None


def masker(secrets: Iterable[str]) -> Callable[[str], str]:
    """Replaces each secret in a line."""
    found = worth_masking(secrets)
    if not found:
        return lambda line: line
    pattern = re.compile("|".join(map(re.escape, found)))
    return lambda line: pattern.sub(MASK, line)


def _in_turn(
    executor: Executor, handle: JobHandle, sources: Sequence[Source], follow: bool
) -> Iterator[tuple[Source, str]]:
    for source in sources:
        for line in executor.logs(handle, source.role, source.rank, follow=follow):
            yield source, line


def _merged(
    executor: Executor, handle: JobHandle, sources: Sequence[Source], follow: bool
) -> Iterator[tuple[Source, str]]:
    """Lines of several logs as they come, each from a thread of its own."""
    import queue

    lines: queue.Queue[tuple[Source, str | BaseException | None]] = queue.Queue(maxsize=10_000)

    def pump(source: Source) -> None:
        end = None
        try:
            for line in executor.logs(handle, source.role, source.rank, follow=follow):
                lines.put((source, line))
        except BaseException as exc:  # raised where the lines are read
            end = exc
        lines.put((source, end))

    for source in sources:
        threading.Thread(target=pump, args=(source,), daemon=True).start()
    left = len(sources)
    while left:
        source, line = lines.get()
        if isinstance(line, BaseException):
            raise line
        if line is None:
            left -= 1
        else:
            yield source, line


# --- printing -------------------------------------------------------------------------------------------


class Printer:
    """Prints the lines of several threads, each whole and at once, until it is stopped."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._state: Literal["going", "paused", "stopped"] = "going"

    def __call__(self, line: str, *, error: bool = False) -> bool:
        """Print a line, on standard error if it tells of one; False once nobody wants any."""
        with self._turn:
            while self._state == "paused":
                self._turn.wait()
            if self._state == "stopped":
                return False
            try:
                _write(sys.stderr if error else sys.stdout, line + "\n")
            except (OSError, ValueError):  # whoever reads it has gone
                self._state = "stopped"
            return self._state == "going"

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile nothing is printed, for somebody is asked something."""
        self._become("paused")
        try:
            yield
        finally:
            self._become("going")

    def stop(self) -> None:
        """Print nothing more."""
        self._become("stopped")

    def _become(self, state: Literal["going", "paused", "stopped"]) -> None:
        # A line that nobody reads may be stuck in a pipe; what comes after it will see the state.
        held = self._turn.acquire(timeout=1.0)
        if self._state != "stopped":
            self._state = state
        if held:
            self._turn.notify_all()
            self._turn.release()


def _write(stream: TextIO, text: str) -> None:
    """Print text at once, without the lock of the stream's buffer where it has one.

    A thread that holds that lock when Python ends, which asks nobody, has the whole process aborted.
    """
    if type(stream) is not io.TextIOWrapper or type(stream.buffer) is not io.BufferedWriter:
        stream.write(text)
        stream.flush()
        return
    errors = "replace" if stream.errors in (None, "strict") else stream.errors
    number, data = stream.fileno(), text.encode(stream.encoding, errors)
    while data:
        try:
            data = data[os.write(number, data) :]
        except BlockingIOError:  # a terminal may be shared with somebody who does not like to wait
            select.select([], [number], [])


class Tail:
    """Prints a job's lines while it runs, from a thread, each after the job's name."""

    def __init__(self, job_id: str, printer: Printer) -> None:
        self._job_id = job_id
        self._print = printer
        self._thread: threading.Thread | None = None

    def start(
        self, executor: Executor, handle: JobHandle, sources: Sequence[Source], secrets: Iterable[str]
    ) -> None:
        """Begin, once the job has a handle."""
        if self._thread is None:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()  # what was printed before comes first
            self._thread = threading.Thread(
                target=self._follow, args=(executor, handle, sources, tuple(secrets)), daemon=True
            )
            self._thread.start()

    def finish(self, deadline: float) -> None:
        """Wait until the last line is printed, or until it is that late."""
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _follow(
        self, executor: Executor, handle: JobHandle, sources: Sequence[Source], secrets: tuple[str, ...]
    ) -> None:
        several = len({source.role for source in sources}) > 1
        try:
            for source, text in read_logs(executor, handle, sources, follow=True, secrets=secrets):
                if not self._print(self._line(source, text, several)):
                    return
        except NemoRunError as exc:
            self._print(f"{self._job_id} │ [log ends here: {exc}]", error=True)

    def _line(self, source: Source, text: str, several: bool) -> str:
        """A line as it is printed; `several` roles print."""
        whose = source.label if several else source.label.rpartition("/")[2]
        return f"{self._job_id}/{whose} │ {text}" if whose else f"{self._job_id} │ {text}"
