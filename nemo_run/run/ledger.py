"""The jobs of one experiment while somebody dispatches them, and what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.base import AppState, Executor
from nemo_run.run.records import JobRecord
from nemo_run.run.store import Store

if TYPE_CHECKING:
    from nemo_run.run.job import Job

#: A hook for whoever wants to show what happens: called with each record that changed.
OnChange = Callable[[JobRecord], None]
#: Jobs of one class and one cluster are submitted and asked about together.
Backend = tuple[type, str]


class Ledger:
    """Records by job id, in the jobs' order; what is changed in them is on disk too."""

    def __init__(self, store: Store, on_change: OnChange | None = None) -> None:
        self.store = store
        self.experiment = store.experiment()
        self.jobs: dict[str, Job] = {}
        self.records: dict[str, JobRecord] = {}
        self.on_change = on_change or (lambda record: None)
        #: Jobs of which it is not known how they ended, and that nobody has given up.
        self.unsettled: set[str] = set()

    def add(self, jobs: Mapping[str, Job]) -> None:
        """Know of further jobs."""
        self.records.update({job_id: self.store.read_job(job_id) for job_id in jobs})
        self.jobs |= jobs
        self.unsettled |= jobs.keys()

    def reread(self, job_id: str) -> JobRecord:
        """A job's record as somebody else may have changed it; an end is told of in any case."""
        record = self.store.read_job(job_id)
        if record.terminal or record != self.records[job_id]:
            self.note(record)
        return record

    def update(self, job_id: str, *, sync: bool = False, **changes: Any) -> JobRecord:
        """Change a record and write it down, unless nothing changes; returns how it is now."""
        before = self.records[job_id]
        if all(getattr(before, name) == value for name, value in changes.items()):
            return before
        return self.update_all({job_id: changes}, sync=sync)[0]

    def update_all(self, changes: Mapping[str, Mapping[str, Any]], *, sync: bool = False) -> list[JobRecord]:
        """Change the records of several jobs at once and write them down; returns how they are now."""
        found = self.store.update_jobs(changes, sync=sync)
        self.records |= found
        for record in found.values():
            self.on_change(record)
        return list(found.values())

    def note(self, record: JobRecord) -> None:
        """Know of a change that is not written down: whoever opens the experiment asks the backend too."""
        self.records[record.id] = record
        self.on_change(record)

    def executor(self, job_id: str) -> Executor:
        """The executor that submits a job: its first member's."""
        return self.jobs[job_id].executors[0]

    def backend(self, job_id: str) -> Backend:
        """What a job is submitted to."""
        executor = self.executor(job_id)
        return type(executor), executor.cluster()

    def pending_dependencies(self, job_id: str) -> list[str]:
        """Those of a job's dependencies that have not ended."""
        return [name for name in self.jobs[job_id].dependencies if name in self.unsettled]

    def blocker(self, job_id: str) -> JobRecord | None:
        """A dependency that has ended and did not succeed."""
        settled = (name for name in self.jobs[job_id].dependencies if name not in self.unsettled)
        records = map(self.records.__getitem__, settled)
        return next((record for record in records if record.state != AppState.SUCCEEDED), None)
