"""Who sees an experiment through when the process that launched it has gone, and who waits for that."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nemo_run.core.runner import private
from nemo_run.run import dispatch, look
from nemo_run.run.records import JobRecord
from nemo_run.run.store import Store


def run_in_background(store: Store, lock: int) -> int:
    """Start a process that sees an experiment through after this one has gone; returns its number.

    Args:
        store: The experiment.
        lock: What `store.dispatching()` gave. It is handed on, as a process that only waits for the
            experiment would otherwise take over in between, without this one's environment and secrets.
    """
    root = str(Path(__file__).parents[2])
    start = "from nemo_run.run.background import main; main(sys.argv[1], int(sys.argv[2]))"
    code = f"import sys; sys.path.insert(1, {root!r}); {start}"
    with open(store.path / "dispatcher.log", "ab", opener=private) as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(store.path), str(lock)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=store.path,
            env=dict(os.environ),
            start_new_session=True,
            pass_fds=[lock],
        )
    process.returncode = 0  # it is meant to outlive us, so `subprocess` need not warn that it does
    return process.pid


def main(path: str, lock: int) -> None:
    """Dispatch the experiment in this folder to its end, holding its lock until then."""
    os.set_inheritable(lock, False)
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
    store = Store(Path(path))
    dispatch.Dispatcher(store, look.load_jobs(store)).run()


def wait(store: Store, see_through: Callable[[], dict[str, JobRecord]]) -> dict[str, JobRecord]:
    """Wait until all jobs have ended, or whoever dispatches them has given up those it cannot see.

    Args:
        store: The experiment; where jobs may still be added to it, whoever adds them is waited for too.
        see_through: Dispatches it; called once no other process does.
    """
    pause = 0.02
    while True:
        with store.dispatching() as ours:
            if ours is not None:
                return see_through()
        records = {record.id: record for record in look.refresh(store)}
        if not look.unfinished(records.values()) and not store.experiment().grows:
            return records
        time.sleep(pause)
        pause = min(pause * 1.5, 2.0)
