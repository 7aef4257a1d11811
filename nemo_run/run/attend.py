"""Seeing an experiment through in front of a person: progress, printed logs, and what Ctrl-C means."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from nemo_run import console
from nemo_run.run import dispatch, look
from nemo_run.run.background import run_in_background
from nemo_run.run.job import Job
from nemo_run.run.logs import Tail
from nemo_run.run.records import JobRecord
from nemo_run.run.store import Store


def attend(
    store: Store,
    jobs: Callable[[], Mapping[str, Job]],
    *,
    tail_logs: bool = False,
    quiet: bool = False,
    workers: int = 16,
) -> dict[str, JobRecord]:
    """Wait until all jobs have ended, dispatching them if nobody else does.

    Args:
        store: The experiment.
        jobs: Gives its jobs; called only if it is for this process to dispatch them.
        tail_logs: Print what all jobs print, instead of those only that ask for it.
        quiet: Show no progress.
        workers: Jobs that are being submitted at the same time.

    Raises:
        KeyboardInterrupt: the jobs were cancelled or left to themselves after Ctrl-C.
    """

    def see_through() -> dict[str, JobRecord]:
        dispatcher = dispatch.Dispatcher(store, jobs(), workers=workers)
        with _shown(dispatcher, tail_logs, quiet):
            return dispatcher.run()

    try:
        return dispatch.wait(store, see_through)
    except KeyboardInterrupt:
        if _interrupted(store) != "wait":
            raise
    return dispatch.wait(store, see_through)  # a second Ctrl-C is not asked about


@contextlib.contextmanager
def _shown(dispatcher: dispatch.Dispatcher, tail_logs: bool, quiet: bool) -> Iterator[None]:
    """Meanwhile show how the jobs do, and print the logs of those that are tailed."""
    ledger = dispatcher.ledger
    store, jobs = ledger.store, ledger.jobs
    tails = {job.id: Tail(job.id) for job in jobs.values() if tail_logs or job.tail_logs}
    title = ledger.experiment.title
    with console.Progress(title, ledger.records, store.path, quiet=quiet or bool(tails)) as progress:

        def on_change(record: JobRecord) -> None:
            progress.update(record)
            if record.handle and (tail := tails.get(record.id)):
                job = jobs[record.id]
                tail.start(job.executors[0], record.handle, job.roles, look.secret_values(job.executors))

        ledger.on_change = on_change
        yield
        for tail in tails.values():
            tail.finish()


def _interrupted(store: Store) -> str:
    """After Ctrl-C: find out what becomes of the jobs, and see to it."""
    left = look.unfinished(store.read_job(entry.id) for entry in store.experiment().jobs)
    answer = console.ask_what_becomes(len(left)) if left else "leave"
    if answer == "cancel":
        look.cancel(store)
        _show_ends(store)
    elif answer == "leave" and any(record.handle is None for record in left):
        with store.dispatching() as lock:
            if lock is not None:  # else somebody who waits for it has gone on in our place
                run_in_background(store, lock)
    return answer


def _show_ends(store: Store, patience: float = 30.0) -> None:
    deadline = time.monotonic() + patience
    while look.unfinished(records := look.refresh(store)) and time.monotonic() < deadline:
        time.sleep(0.1)
    console.print_rows(console.JOB_COLUMNS, console.job_rows(records), stream=sys.stderr)
