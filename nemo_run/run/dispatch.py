"""From jobs to finished jobs: order, submit, poll, wait."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import TYPE_CHECKING

from nemo_run.core.execution.base import AppState, Capability, Executor
from nemo_run.run.ledger import Backend, Ledger, OnChange
from nemo_run.run.poll import Poller
from nemo_run.run.records import JobRecord
from nemo_run.run.store import Store
from nemo_run.run.submit import Submitter, takes_many

if TYPE_CHECKING:
    from nemo_run.run.job import Job


class Dispatcher:
    """Sees the jobs of one experiment through; it holds nothing that is not on disk too.

    Args:
        store: The experiment.
        jobs: Its jobs.
        workers: Jobs that are being submitted at the same time.
        on_change: Called with each record that changed, by whichever thread changed it.
        growing: Other threads will `add` jobs, and `close` it when no more are to come.
    """

    def __init__(
        self,
        store: Store,
        jobs: Mapping[str, Job],
        *,
        workers: int = 16,
        on_change: OnChange | None = None,
        growing: bool = False,
    ) -> None:
        self.ledger = Ledger(store, on_change)
        self.records = self.ledger.records
        self._submitter = Submitter(self.ledger)
        self._poller = Poller(self.ledger)
        self._workers = workers
        #: Threads for submissions, by their number; they are started when there is something for them to do.
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._dependents: dict[str, list[str]] = defaultdict(list)
        #: Jobs wait for others (held), then for room (ready), then for an answer (submitting), then for
        #: their end (running): settled.
        self._held: dict[str, None] = {}
        self._ready: dict[Backend, dict[str, None]] = defaultdict(dict)
        self._submitting: dict[Future[None], str] = {}
        self._running: dict[str, None] = {}
        #: Held jobs to look at again, because something they depend on has changed.
        self._stirred = deque[str]()
        #: What other threads want done here.
        self._wishes = deque[Callable[[], None]]()
        self._growing = growing
        self._take_in(jobs)

    # --- the loop ---------------------------------------------------------------------------------------

    def run(self) -> dict[str, JobRecord]:
        """Submit what is due and wait until every job has ended; a job nobody can see any more is UNKNOWN."""
        pause = 0.0
        self._resume(list(self.records))
        with self._pooled():
            while self.ledger.unsettled or self._growing or self._wishes:
                while self._wishes:
                    self._wishes.popleft()()
                changed = self._submit_due()
                if self._running and self._poller.may_poll(self._running, bool(self._submitting)):
                    changed |= self._poll()
                pause = 0.0 if changed else self._pause(pause)
        return self.records

    def submit_due(self) -> bool:
        """Submit what can start now, and say whether that was everything."""
        self._resume(list(self.records))
        with self._pooled():
            while self._submit_due() or self._submitting:
                wait_for(self._submitting, return_when=FIRST_COMPLETED)
        return not self._held and not any(self._ready.values())

    def _pause(self, last: float) -> float:
        if not (self.ledger.unsettled or self._growing) or self._wishes:
            return 0.0
        submitting = bool(self._submitting)
        return self._poller.pause(last, self._running, submitting=submitting, may_ring=self._growing)

    def _resume(self, job_ids: Iterable[str]) -> None:
        """Take over where an earlier process stopped: adopt what it submitted without hearing of it."""
        for job_id in job_ids:
            record = self.records[job_id]
            unanswered = record.intent and not record.handle and not record.terminal
            if unanswered and (handle := self.ledger.executor(job_id).find(record.token)):
                record = self.ledger.update(job_id, handle=handle)
            if record.terminal:
                self._settle(job_id)
            elif record.handle:
                self._held.pop(job_id, None)
                self._running[job_id] = None

    # --- what other threads ask for ---------------------------------------------------------------------

    def add(self, jobs: Mapping[str, Job]) -> None:
        """Take on jobs too that the store holds by now, and that depend on jobs that are known here."""
        self._wish(lambda: self._take_in(jobs))

    def heed(self, job_ids: Iterable[str]) -> None:
        """Look again at records of jobs that are not submitted yet: somebody may have cancelled them."""
        self._wish(lambda: self._look_again(job_ids))

    def close(self) -> None:
        """Let `run` end once all jobs have: no more are to come."""
        self._growing = False
        self._poller.ring()

    def _wish(self, deed: Callable[[], None]) -> None:
        self._wishes.append(deed)
        self._poller.ring()

    def _take_in(self, jobs: Mapping[str, Job]) -> None:
        self.ledger.add(jobs)
        for job in jobs.values():
            for name in job.dependencies:
                self._dependents[name].append(job.id)
        self._held |= dict.fromkeys(jobs)
        self._stirred.extend(jobs)

    def _look_again(self, job_ids: Iterable[str]) -> None:
        begun = {*self._running, *self._submitting.values()}
        for job_id in self.ledger.unsettled.intersection(job_ids) - begun:
            if self.ledger.reread(job_id).terminal:
                self._ready[self.ledger.backend(job_id)].pop(job_id, None)
                self._settle(job_id)

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
                self._submitting[self._pool(executor).submit(self._submitter.submit, job_id)] = job_id
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

    def _pool(self, executor: Executor) -> ThreadPoolExecutor:
        threads = min(self._workers, executor.submit_workers)
        if threads not in self._pools:
            self._pools[threads] = ThreadPoolExecutor(threads)
        return self._pools[threads]

    @contextlib.contextmanager
    def _pooled(self) -> Iterator[None]:
        """Whatever ends this, no submission is left half done."""
        try:
            yield
        finally:
            for pool in self._pools.values():
                pool.shutdown(cancel_futures=True)

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

    def _poll(self) -> bool:
        """Ask about all jobs that their backends have; True if any job has news."""
        resolved = self._resolve_doubts()
        news, settled = self._poller.poll(self._sent())
        for job_id in settled:
            self._settle(job_id)
        return resolved or news

    def _sent(self) -> list[str]:
        return [job_id for job_id in self._running if job_id not in self._submitter.doubtful]

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
