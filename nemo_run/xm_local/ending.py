"""What a signal means to a launch script: SIGTERM ends its experiment, as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Endings:
    """From `begin` to `end`, SIGTERM raises SystemExit in the main thread, which ends a `with` in order."""

    def __init__(self) -> None:
        self._before: Any = None
        self._ours = False

    def begin(self) -> None:
        """Heed SIGTERM, unless the script does so itself or this is not the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._before = signal.signal(signal.SIGTERM, _leave)
            self._ours = True

    def end(self) -> None:
        """As it was before."""
        if self._ours and signal.getsignal(signal.SIGTERM) is _leave:
            signal.signal(signal.SIGTERM, self._before)
        self._ours = False


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
