"""Tasks that save how far they are when they are told to make room, and go on from there when run again."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from nemo_run import checkpoint


def begin(folder):
    """Say that this rank runs and listens; where it saves, and what an earlier attempt has saved."""
    attempt, rank = os.environ.get("NEMORUN_ATTEMPT", "1"), os.environ.get("RANK", "0")
    saved = Path(folder, f"saved.{rank}")
    found = saved.read_text() if saved.exists() else ""
    Path(folder, f"begun.{rank}.{attempt}").touch()
    return saved, found


def wait(folder):
    """Until the test is through with it."""
    while not Path(folder, "go").exists():
        time.sleep(0.02)


def on_signal(folder, seconds=0.0):
    """Saves when it is told, which takes so many seconds; its value is what it has found."""

    def save():
        time.sleep(seconds)
        saved.write_text(found + "saved ")

    with checkpoint.on_signal(save):
        saved, found = begin(folder)
        wait(folder)
    return found


def requested(folder):
    """The same, asked at the end of each step."""
    checkpoint.requested()
    saved, found = begin(folder)
    while not Path(folder, "go").exists():
        time.sleep(0.02)
        if checkpoint.requested():
            saved.write_text(found + "saved ")
            checkpoint.again()
    return found


def handler(folder):
    """The same without nemo_run: told by the signal, and run again however it ends then but with 0."""
    told = threading.Event()
    signal.signal(signal.SIGUSR2, lambda *_: told.set())
    saved, found = begin(folder)
    while not Path(folder, "go").exists():
        time.sleep(0.02)
        if told.is_set():
            saved.write_text(found + "saved ")
            raise SystemExit(3)
    return found


def finishing(folder):
    """Is told and ends its work all the same."""
    checkpoint.requested()
    begin(folder)
    while not checkpoint.requested():
        time.sleep(0.02)
    return "done"


def deaf(folder):
    """Takes no notice."""
    saved, found = begin(folder)
    saved.write_text(found + "saved ")
    wait(folder)
    return found
