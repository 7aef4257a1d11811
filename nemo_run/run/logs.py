"""Showing what jobs print: of several jobs at once, filtered, and without their secrets."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from nemo_run.core.execution.base import Executor, JobHandle
from nemo_run.core.masking import MASK, worth_masking
from nemo_run.errors import ConfigError, NemoRunError


def read_logs(
    executor: Executor,
    handle: JobHandle,
    roles: list[str],
    *,
    regex: str | None = None,
    follow: bool = False,
    secrets: Iterable[str] = (),
) -> Iterator[tuple[str, str]]:
    """(role, line) of a job, role after role; while following, as the lines come.

    Raises:
        ConfigError: `regex` is none.
    """
    wanted, mask = compile_filter(regex), masker(secrets)
    lines = (
        _merged(executor, handle, roles)
        if follow and len(roles) > 1
        else _in_turn(executor, handle, roles, follow)
    )
    for role, line in lines:
        if wanted(line):
            yield role, mask(line)


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
    executor: Executor, handle: JobHandle, roles: list[str], follow: bool
) -> Iterator[tuple[str, str]]:
    for role in roles:
        for line in executor.logs(handle, role, follow=follow):
            yield role, line


def _merged(executor: Executor, handle: JobHandle, roles: list[str]) -> Iterator[tuple[str, str]]:
    """Lines of several roles as they come, each from a thread of its own."""
    import queue

    lines: queue.Queue[tuple[str, str | None]] = queue.Queue(maxsize=10_000)

    def pump(role: str) -> None:
        try:
            for line in executor.logs(handle, role, follow=True):
                lines.put((role, line))
        finally:
            lines.put((role, None))

    for role in roles:
        threading.Thread(target=pump, args=(role,), daemon=True).start()
    open_roles = len(roles)
    while open_roles:
        role, line = lines.get()
        if line is None:
            open_roles -= 1
        else:
            yield role, line


class Tail:
    """Prints a job's lines while it runs, from a thread, each after the job's name."""

    def __init__(self, job_id: str, stream: TextIO | None = None) -> None:
        self._job_id = job_id
        self._stream = stream
        self._thread: threading.Thread | None = None

    def start(self, executor: Executor, handle: JobHandle, roles: list[str], secrets: Iterable[str]) -> None:
        """Begin, once the job has a handle."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._print, args=(executor, handle, roles, tuple(secrets)), daemon=True
            )
            self._thread.start()

    def finish(self, timeout: float = 30.0) -> None:
        """Wait until the last line is printed."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _print(
        self, executor: Executor, handle: JobHandle, roles: list[str], secrets: tuple[str, ...]
    ) -> None:
        try:
            for role, line in read_logs(executor, handle, roles, follow=True, secrets=secrets):
                label = self._job_id if len(roles) == 1 else f"{self._job_id}/{role}"
                stream = self._stream or sys.stdout
                stream.write(f"{label} │ {line}\n")  # at once, as other jobs print too
                stream.flush()
        except NemoRunError as exc:
            print(f"{self._job_id} │ [log ends here: {exc}]", file=self._stream or sys.stderr, flush=True)
