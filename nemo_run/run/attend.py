"""Seeing an experiment through in front of a person: progress, printed logs, and what Ctrl-C means."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from nemo_run import console
from nemo_run.run import dispatch, look
from nemo_run.run.background import run_in_background, wait
from nemo_run.run.job import Job
from nemo_run.run.logs import Printer, Tail, sources
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
    printer, tails = Printer(), dict[str, Tail]()

    def see_through() -> dict[str, JobRecord]:
        known = jobs()
        dispatcher = dispatch.Dispatcher(store, known, workers=workers)
        for job in known.values():
            if tail_logs or job.tail_logs:
                tails.setdefault(job.id, Tail(job.id, printer))
        with _shown(dispatcher, tails, quiet):
            return dispatcher.run()

    try:
        try:
            return wait(store, see_through)
        except KeyboardInterrupt:
            answer = _interrupted(store, printer)
            if answer == "cancel":
                _finish(tails, patience=1.0)
            if answer != "wait":
                raise
        return wait(store, see_through)  # a second Ctrl-C is not asked about
    finally:
        printer.stop()


@contextlib.contextmanager
def _shown(dispatcher: dispatch.Dispatcher, tails: Mapping[str, Tail], quiet: bool) -> Iterator[None]:
    """Meanwhile show how the jobs do, and print the logs of those that are tailed."""
    ledger = dispatcher.ledger
    store, jobs = ledger.store, ledger.jobs
    title = ledger.experiment.title
    with console.Progress(title, ledger.records, store.path, quiet=quiet or bool(tails)) as progress:

        def on_change(record: JobRecord) -> None:
            progress.update(record)
            if record.handle and (tail := tails.get(record.id)):
                job = jobs[record.id]
                found, secrets = sources(job.roles, job.executors), look.secret_values(job.executors)
                tail.start(job.executors[0], record.handle, found, secrets)

        ledger.on_change = on_change
        yield
        _finish(tails, patience=30.0)


def _finish(tails: Mapping[str, Tail], patience: float) -> None:
    """Have the last lines printed too."""
    deadline = time.monotonic() + patience
    for tail in tails.values():
        tail.finish(deadline)


def _interrupted(store: Store, printer: Printer) -> str:
    """After Ctrl-C: find out what becomes of the jobs, and see to it."""
    left = look.unfinished(store.read_job(entry.id) for entry in store.experiment().jobs)
    with printer.paused():
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
