"""Reading a log while it is being written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path


def read_lines(path: Path, more_to_come: Callable[[], bool]) -> Iterator[str]:
    """The lines of a growing file; the last one too if it has no end.

    Whether more is to come is asked before each read, so that what was written before the end is read.
    """
    pause, rest = 0.01, b""
    while True:
        coming = more_to_come()
        try:
            with open(path, "rb") as file:
                while True:
                    while chunk := file.read(1 << 20):
                        pause = 0.01
                        whole, newline, rest = (rest + chunk).rpartition(b"\n")
                        if newline:
                            yield from whole.decode(errors="replace").split("\n")
                    if not coming:
                        break
                    time.sleep(pause)
                    pause = min(pause * 1.5, 0.1)
                    coming = more_to_come()
        except FileNotFoundError:
            if coming:
                time.sleep(pause)
                continue
        if rest:
            yield rest.decode(errors="replace")
        return
