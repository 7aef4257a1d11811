"""Whom to ask for a password: nobody, unless whoever has a terminal says that they do."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Asker(Protocol):
    """Puts a question to a person."""

    def __call__(self, prompt: str, *, secret: bool) -> str | None:
        """The answer, or None for none; a `secret` one is not shown while it is typed."""


class _Desk:
    """Who is asked in this process; one question at a time, whatever the thread it comes from."""

    def __init__(self) -> None:
        self.asker: Asker | None = None
        self.lock = threading.Lock()


@functools.cache
def _desk() -> _Desk:
    return _Desk()


@contextmanager
def asking(asker: Asker) -> Iterator[None]:
    """For as long as this lasts, questions of all threads go to this asker."""
    desk = _desk()
    before, desk.asker = desk.asker, asker
    try:
        yield
    finally:
        desk.asker = before


def can_ask() -> bool:
    """Whether there is somebody."""
    return _desk().asker is not None


def ask(prompt: str, *, secret: bool) -> str | None:
    """The answer to a question; None if there is nobody, or none was given."""
    desk = _desk()
    with desk.lock:
        return None if desk.asker is None else desk.asker(prompt, secret=secret)
