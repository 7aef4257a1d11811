"""From a job's record to the error a script sees."""

from __future__ import annotations

from collections.abc import Iterable

from nemo_run.core.execution.base import AppState
from nemo_run.errors import (
    ExecutionError,
    JobCancelledError,
    JobFailedError,
    JobLostError,
    JobTimeoutError,
)
from nemo_run.run import look
from nemo_run.run.records import JobEntry, JobRecord
from nemo_run.run.store import Store


def raise_for(store: Store, records: Iterable[JobRecord]) -> None:
    """Raise for jobs that have ended without success; jobs that are still going on are no failures.

    Raises:
        ExecutionError: of the first job that failed by itself, else of the first that was cancelled.
    """
    bad = [record for record in records if _is_bad(record)]
    if not bad:
        return
    order = (AppState.FAILED, AppState.UNKNOWN, AppState.CANCELLED)
    bad.sort(key=lambda record: order.index(record.state))
    entries = {entry.id: entry for entry in store.experiment().jobs}
    raise _error(store, entries[bad[0].id], bad[0], bad[1:])


def _is_bad(record: JobRecord) -> bool:
    return record.state in (AppState.FAILED, AppState.CANCELLED) or (
        record.state == AppState.UNKNOWN and record.message.startswith("not seen")
    )


def _error(store: Store, entry: JobEntry, record: JobRecord, others: list[JobRecord]) -> ExecutionError:
    kinds = {
        AppState.CANCELLED: (JobCancelledError, "was cancelled"),
        AppState.UNKNOWN: (JobLostError, "is lost"),
    }
    if record.state in kinds:
        kind, what = kinds[record.state]
        return kind(_message(store, entry, record, others, what), record=record)
    if record.message.startswith("TIMEOUT"):
        return JobTimeoutError(_message(store, entry, record, others, "ran out of time"), record=record)
    tail = look.masked(store, entry, look.log_tail(store, entry, record))
    message = _message(store, entry, record, others, "failed", tail)
    return JobFailedError(message, record=record, exit_code=record.exit_code, log_tail=tail)


def _message(
    store: Store, entry: JobEntry, record: JobRecord, others: list[JobRecord], what: str, tail: str = ""
) -> str:
    lines = [f"job {record.id!r} of experiment {store.id} {what}: {record.message or 'no reason given'}"]
    if error := look.error_of(store, entry, record):
        rank = f"rank {error['rank']}: " if "rank" in error else ""
        lines.append(look.masked(store, entry, f"  {rank}{error['type']}: {error['message']}"))
    if tail:
        lines += ["  its last lines:", *("    " + line for line in tail.splitlines())]
    if (path := look.log_path(store, entry, record)).exists():
        lines.append(f"  its whole log: {path}")
    if others:
        named = ", ".join(f"{other.id} ({other.state})" for other in others[:8])
        lines.append(f"  not succeeded either: {named}" + (" …" if len(others) > 8 else ""))
    return "\n".join(lines)
