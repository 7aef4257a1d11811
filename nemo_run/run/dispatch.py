"""From jobs to finished jobs: order, submit, poll, wait."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace
from typing import TYPE_CHECKING

from nemo_run.core.execution.base import TERMINAL, AppState, Capability, JobStatus
from nemo_run.run.ledger import Backend, Ledger, OnChange
from nemo_run.run.look import as_changes, ask, refresh, unfinished
from nemo_run.run.records import JobRecord
from nemo_run.run.store import Store
from nemo_run.run.submit import Submitter, takes_many

if TYPE_CHECKING:
    from nemo_run.run.job import Job


class Dispatcher:
    """Sees the jobs of one experiment through; it holds nothing that is not on disk too."""

    def __init__(
        self,
        store: Store,
        jobs: Mapping[str, Job],
        *,
        workers: int = 16,
        on_change: OnChange | None = None,
    ) -> None:
        self.ledger = Ledger(store, jobs, on_change)
        self.records = self.ledger.records
        self._submitter = Submitter(self.ledger)
        asked = (executor.submit_workers for job in jobs.values() for executor in job.executors)
        #: Threads for submissions; they are started when there is something for them to do.
        self._pool = ThreadPoolExecutor(min(workers, max(asked, default=1)))
        self._dependents: dict[str, list[str]] = defaultdict(list)
        for job in jobs.values():
            for name in job.dependencies:
                self._dependents[name].append(job.id)
        #: Jobs wait for others (held), then for room (ready), then for an answer (submitting), then for
        #: their end (running): settled.
        self._held = dict.fromkeys(jobs)
        self._ready: dict[Backend, dict[str, None]] = defaultdict(dict)
        self._submitting: dict[Future[None], str] = {}
        self._polled = 0.0
        self._running: dict[str, None] = {}
        #: Held jobs to look at again, because something they depend on has changed.
        self._stirred = deque(jobs)
        self._unseen_since: dict[str, float] = {}

    # --- the loop ---------------------------------------------------------------------------------------

    def run(self) -> dict[str, JobRecord]:
        """Submit what is due and wait until every job has ended; a job nobody can see any more is UNKNOWN."""
        pause = 0.0
        self._resume()
        with self._pooled():
            while self.ledger.unsettled:
                changed = self._submit_due()
                if self._running and self._may_poll():
                    changed |= self._poll()
                pause = 0.0 if changed else self._pause(pause)
        return self.records

    def submit_due(self) -> bool:
        """Submit what can start now, and say whether that was everything."""
        self._resume()
        with self._pooled():
            while self._submit_due() or self._submitting:
                wait_for(self._submitting, return_when=FIRST_COMPLETED)
        return not self._held and not any(self._ready.values())

    def _resume(self) -> None:
        """Take over where an earlier process stopped: adopt what it submitted without hearing of it."""
        for job_id, record in self.records.items():
            unanswered = record.intent and not record.handle and not record.terminal
            if unanswered and (handle := self.ledger.executor(job_id).find(record.token)):
                record = self.ledger.update(job_id, handle=handle)
            if record.terminal:
                self._settle(job_id)
            elif record.handle:
                self._held.pop(job_id, None)
                self._running[job_id] = None

    # --- order ------------------------------------------------------------------------------------------

    def _settle(self, job_id: str) -> None:
        self._held.pop(job_id, None)
        self._running.pop(job_id, None)
        self.ledger.unsettled.discard(job_id)
        self._stirred.extend(self._dependents[job_id])

    def _collect_ready(self) -> None:
        """Pass on to the jobs that may start, over those that never will."""
        while self._stirred:
            job_id = self._stirred.popleft()
            if job_id not in self._held:
                continue
            if blocker := self.ledger.blocker(job_id):
                reason = f"never started, because job {blocker.id!r} is {blocker.state}"
                self.ledger.update(job_id, state=AppState.CANCELLED, message=reason, ended=time.time())
                self._settle(job_id)
            elif self._may_start(job_id):
                del self._held[job_id]
                self._ready[self.ledger.backend(job_id)][job_id] = None

    def _may_start(self, job_id: str) -> bool:
        """Whether all it depends on has succeeded, or its backend has the rest and starts it after them."""
        executor, unsettled = self.ledger.executor(job_id), self.ledger.pending_dependencies(job_id)
        native = Capability.DEPENDENCIES in executor.capabilities
        sent_first = self._ready[self.ledger.backend(job_id)] if takes_many(executor) else {}
        return not unsettled or (
            native
            and all(self.records[name].handle or name in sent_first for name in unsettled)
            and {self.ledger.backend(name) for name in unsettled} == {self.ledger.backend(job_id)}
        )

    # --- submitting -------------------------------------------------------------------------------------

    def _submit_due(self) -> bool:
        """Submit until nothing more may start; True if that was anything."""
        waves = 0
        while self._submit_wave():
            waves += 1  # what has just been submitted may be all that others wait for
        return waves > 0

    def _submit_wave(self) -> bool:
        """Begin what may start now, and take up what has been submitted meanwhile."""
        self._collect_ready()
        due = self._take_due()
        for job_ids in due.values():
            self._begin(job_ids)
        done = [future for future in self._submitting if future.done()]
        for future in done:
            future.result()
            self._submitted(self._submitting.pop(future))
        return bool(due or done)

    def _begin(self, job_ids: list[str]) -> None:
        """Submit jobs of one backend in the way that suits it best."""
        executor = self.ledger.executor(job_ids[0])
        if takes_many(executor):
            self._submit_together(job_ids)
            return
        for job_id in job_ids:
            if executor.submit_workers > 1:
                self._submitting[self._pool.submit(self._submitter.submit, job_id)] = job_id
            else:
                self._submitter.submit(job_id)
                self._submitted(job_id)

    def _submit_together(self, job_ids: list[str]) -> None:
        left = dict.fromkeys(job_ids)
        for job_id in self._submitter.submit_together(job_ids):
            del left[job_id]
            self._submitted(job_id)
        self._held |= left
        self._stirred.extend(left)

    def _submitted(self, job_id: str) -> None:
        """Pass on a job that was submitted; one that never arrived is submitted again."""
        record = self.records[job_id]
        if record.terminal:
            self._settle(job_id)
            return
        if record.handle or job_id in self._submitter.doubtful:
            self._running[job_id] = None
        else:
            self._ready[self.ledger.backend(job_id)][job_id] = None
        self._stirred.extend(self._dependents[job_id])

    @contextlib.contextmanager
    def _pooled(self) -> Iterator[None]:
        """Whatever ends this, no submission is left half done."""
        try:
            yield
        finally:
            self._pool.shutdown(cancel_futures=True)

    def _take_due(self) -> dict[Backend, list[str]]:
        """Of the ready jobs of each backend as many as its limit leaves room for."""
        begun = (*self._running, *self._submitting.values())
        running = Counter(self.ledger.backend(job_id) for job_id in begun)
        due = {}
        for backend, ready in self._ready.items():
            limit = self.ledger.executor(next(iter(ready))).parallel_limit() if ready else 0
            room = None if limit is None else max(0, limit - running[backend])
            if taken := list(itertools.islice(ready, room)):
                due[backend] = taken
            for job_id in taken:
                del ready[job_id]
        return due

    # --- polling ----------------------------------------------------------------------------------------

    def _may_poll(self) -> bool:
        """Each answer to a submission wakes us; meanwhile no backend is asked more often than it likes."""
        shortest = min(self.ledger.executor(job_id).poll_interval[0] for job_id in self._running)
        return not self._submitting or time.monotonic() >= self._polled + shortest

    def _poll(self) -> bool:
        """Ask each backend once about all its jobs; True if any job has news."""
        self._polled = time.monotonic()
        asked, news = defaultdict(list), self._resolve_doubts()
        for job_id in self._running:
            if job_id not in self._submitter.doubtful:
                asked[self.ledger.backend(job_id)].append(job_id)
        for job_ids in asked.values():
            for job_id, status in zip(job_ids, self._ask(job_ids), strict=True):
                news |= self._take_note(job_id, status)
        return news

    def _resolve_doubts(self) -> bool:
        """Ask whether jobs arrived whose submission was cut off; True if that is known of any now."""
        news, silent = False, set[Backend]()
        for job_id in list(self._submitter.doubtful):
            backend = self.ledger.backend(job_id)
            # The thread that submits a job asks first; and who does not answer for one is not asked for all.
            if job_id not in self._running or backend in silent:
                continue
            if self._submitter.resolve_doubt(job_id):
                del self._running[job_id]
                self._submitted(job_id)
                news = True
            else:
                silent.add(backend)
        return news

    def _ask(self, job_ids: list[str]) -> list[JobStatus]:
        handles = [handle for job_id in job_ids if (handle := self.records[job_id].handle)]
        return ask(self.ledger.executor(job_ids[0]), handles)

    def _take_note(self, job_id: str, status: JobStatus) -> bool:
        if status.state == AppState.UNKNOWN:
            return self._unseen(job_id, status)
        self._unseen_since.pop(job_id, None)
        before = self.records[job_id]
        if status.state in TERMINAL:
            self.ledger.update(job_id, **as_changes(status))
            self._settle(job_id)
        elif (seen := replace(before, **as_changes(status))) != before:
            self.ledger.note(seen)
        return self.records[job_id] != before

    def _unseen(self, job_id: str, status: JobStatus) -> bool:
        """A job that cannot be seen keeps its last state, until waiting for it makes no sense."""
        age = time.monotonic() - self._unseen_since.setdefault(job_id, time.monotonic())
        if age < self.ledger.executor(job_id).lost_after:
            return False
        message = f"not seen for {age:.0f} s: {status.message}"
        self.ledger.update(job_id, state=AppState.UNKNOWN, message=message)
        self._settle(job_id)
        return True

    def _pause(self, last: float) -> float:
        """Wait longer each time nothing has changed, within what the backends ask for; returns how long."""
        by_backend = {self.ledger.backend(job_id): self.ledger.executor(job_id) for job_id in self._running}
        intervals = [executor.poll_interval for executor in by_backend.values()] or [(0.01, 0.01)]
        shortest, longest = min(low for low, _ in intervals), min(high for _, high in intervals)
        # The end of a submission wakes nobody.
        seconds = max(shortest, min(last * 1.5, 0.05 if self._submitting else longest))
        if len(by_backend) == 1:
            (executor,) = by_backend.values()
            executor.await_news(
                [h for job_id in self._running if (h := self.records[job_id].handle)], seconds
            )
        else:
            time.sleep(seconds)
        return seconds


def wait(store: Store, see_through: Callable[[], dict[str, JobRecord]]) -> dict[str, JobRecord]:
    """Wait until all jobs have ended, or whoever dispatches them has given up those it cannot see.

    Args:
        store: The experiment.
        see_through: Dispatches it; called once no other process does.
    """
    pause = 0.02
    while True:
        with store.dispatching() as ours:
            if ours is not None:
                return see_through()
        records = {record.id: record for record in refresh(store)}
        if not unfinished(records.values()):
            return records
        time.sleep(pause)
        pause = min(pause * 1.5, 2.0)
