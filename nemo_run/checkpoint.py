"""What a task does that can be interrupted and run again: save what it has when it is told to, and say so.

A task is told by SIGTERM, by the signal of `SlurmExecutor(requeue_on_timeout=True)`, or where signals do not
reach it by a file; none of that is there when the task is called as a plain function, and no harm is done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from nemo_run.core.runner import CHECKPOINT, CHECKPOINT_SIGNAL, JOB_DIR, watch_for_notice

#: Seconds for which a look at the file is good enough.
_FRESH = 1.0


class _Notice:
    """Whether this process has been told to make room, and by which signal."""

    def __init__(self) -> None:
        self.number = 0
        self.listening = False
        self.looked = -_FRESH

    def take(self, number: int, frame: object = None) -> None:
        self.number = self.number or number


#: A process has one set of signal handlers, and so one of these.
_notice = _Notice()


def requested() -> bool:
    """Whether the task is to save what it has and end; cheap enough for every step of a training loop.

    From the first call on, which is best made in the main thread, SIGTERM does not end the process any more:
    that is left to the task, by `again()`.
    """
    if not _notice.listening and threading.current_thread() is threading.main_thread():
        _notice.listening = True
        for number in _signals():
            signal.signal(number, _notice.take)
    now = time.monotonic()
    if not _notice.number and now - _notice.looked > _FRESH:
        _notice.looked = now
        if (path := _path()) and os.path.exists(path):
            _notice.take(signal.SIGTERM)
    return _notice.number != 0


def again() -> NoReturn:
    """End this process, saying that the job has saved what it has and is to be run again.

    Where nobody runs it again the exit code is that of a process ended by the signal.
    """
    number = _notice.number or signal.SIGTERM
    if not (path := _path()):
        sys.exit(128 + number)
    with open(path + ".saved", "a"):
        pass
    sys.exit(0)  # or Slurm would end the ranks that are still saving


@contextlib.contextmanager
def on_signal(save: Callable[[], object]) -> Iterator[None]:
    """While the block runs, call `save` when the task is told to make room, then `again()`.

    It is called in the main thread, between any two steps of Python's: what it saves must make sense at any
    time. Where that is asked too much, ask `requested()` at a good moment instead.

    Args:
        save: Writes the checkpoint; an error that it raises ends the task.

    Raises:
        ValueError: this is not the main thread, the only one that signals reach.
    """

    def handle(number: int, frame: object) -> None:
        if not _notice.number:
            _notice.take(number)
            save()
            again()

    before = {number: signal.signal(number, handle) for number in _signals()}
    listening, _notice.listening = _notice.listening, True
    watch_for_notice()
    try:
        yield
    finally:
        _notice.listening = listening
        for number, handler in before.items():
            signal.signal(number, handler)


def _signals() -> set[int]:
    name = os.environ.get(CHECKPOINT_SIGNAL)
    return {signal.SIGTERM} | ({signal.Signals[f"SIG{name}"]} if name else set())


def _path() -> str:
    name = os.environ.get(CHECKPOINT)
    return os.path.join(os.environ.get(JOB_DIR, ""), name) if name else ""
