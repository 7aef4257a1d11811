"""From jobs to finished jobs: order, submit, poll, wait.

Before a job is handed to its backend its record says so (the intent), afterwards it holds the handle. Whoever
finds an intent without a handle asks the backend for the token first, so that no job is started twice and
none is forgotten, whenever the process doing this was killed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.base import TERMINAL, AppState, Capability, Executor, JobSpec, JobStatus
from nemo_run.errors import NemoRunError
from nemo_run.run.app import make_spec
from nemo_run.run.look import as_changes, ask, refresh, unfinished
from nemo_run.run.packages import stage_code
from nemo_run.run.records import JobRecord
from nemo_run.run.store import Store

if TYPE_CHECKING:
    from nemo_run.run.job import Job

logger = logging.getLogger(__name__)

#: A hook for whoever wants to show what happens: called with each record that changed.
OnChange = Callable[[JobRecord], None]


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
        self.store = store
        self.jobs = jobs
        self.experiment = store.experiment()
        self.records = {job_id: store.read_job(job_id) for job_id in jobs}
        self.on_change = on_change or (lambda record: None)
        self._workers = workers
        self._dependents: dict[str, list[str]] = defaultdict(list)
        for job in jobs.values():
            for name in job.dependencies:
                self._dependents[name].append(job.id)
        #: Jobs wait for others (held), then for room (ready), then for an answer (submitting), then for
        #: their end (running): settled.
        self._held = dict.fromkeys(jobs)
        self._ready: dict[tuple[type, str], deque[str]] = defaultdict(deque)
        self._submitting: dict[Future[None], str] = {}
        self._polled = 0.0
        self._running: dict[str, None] = {}
        self._unsettled = set(jobs)
        #: Held jobs to look at again, because something they depend on has changed.
        self._stirred = deque(jobs)
        self._unseen_since: dict[str, float] = {}
        #: Running jobs whose submission failed without it being known whether they arrived: the error.
        self._doubtful: dict[str, str] = {}

    # --- the loop ---------------------------------------------------------------------------------------

    def run(self) -> dict[str, JobRecord]:
        """Submit what is due and wait until every job has ended; a job nobody can see any more is UNKNOWN."""
        pause = 0.0
        self._resume()
        with self._pooled():
            while self._unsettled:
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
            if unanswered and (handle := self._executor(job_id).find(record.token)):
                record = self._update(job_id, handle=handle)
            if record.terminal:
                self._settle(job_id)
            elif record.handle:
                self._held.pop(job_id, None)
                self._running[job_id] = None

    # --- order ------------------------------------------------------------------------------------------

    def _settle(self, job_id: str) -> None:
        self._held.pop(job_id, None)
        self._running.pop(job_id, None)
        self._unsettled.discard(job_id)
        self._stirred.extend(self._dependents[job_id])

    def _collect_ready(self) -> None:
        """Pass on to the jobs that may start, over those that never will."""
        while self._stirred:
            job_id = self._stirred.popleft()
            if job_id not in self._held:
                continue
            if blocker := self._blocker(job_id):
                reason = f"never started, because job {blocker.id!r} is {blocker.state}"
                self._update(job_id, state=AppState.CANCELLED, message=reason, ended=time.time())
                self._settle(job_id)
            elif self._may_start(job_id):
                del self._held[job_id]
                self._ready[_backend(self._executor(job_id))].append(job_id)

    def _blocker(self, job_id: str) -> JobRecord | None:
        """A dependency that has ended and did not succeed."""
        settled = (name for name in self.jobs[job_id].dependencies if name not in self._unsettled)
        records = map(self.records.__getitem__, settled)
        return next((record for record in records if record.state != AppState.SUCCEEDED), None)

    def _may_start(self, job_id: str) -> bool:
        """Whether all it depends on has succeeded, or its backend has the rest and starts it after them."""
        executor, unsettled = self._executor(job_id), self._pending_dependencies(job_id)
        native = Capability.DEPENDENCIES in executor.capabilities
        return not unsettled or (
            native
            and all(self.records[name].handle for name in unsettled)
            and {_backend(self._executor(name)) for name in unsettled} == {_backend(executor)}
        )

    def _pending_dependencies(self, job_id: str) -> list[str]:
        return [name for name in self.jobs[job_id].dependencies if name in self._unsettled]

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
        for job_id in due:
            if self._executor(job_id).submit_workers > 1:
                self._submitting[self._pool.submit(self._submit, job_id)] = job_id
            else:
                self._submit(job_id)
                self._submitted(job_id)
        done = [future for future in self._submitting if future.done()]
        for future in done:
            future.result()
            self._submitted(self._submitting.pop(future))
        return bool(due or done)

    def _submitted(self, job_id: str) -> None:
        if self.records[job_id].terminal:
            self._settle(job_id)
        else:
            self._running[job_id] = None
            self._stirred.extend(self._dependents[job_id])

    @contextlib.contextmanager
    def _pooled(self) -> Iterator[None]:
        """Have threads for submissions; whatever ends this, none of them is left half done."""
        asked = (executor.submit_workers for job in self.jobs.values() for executor in job.executors)
        self._pool = ThreadPoolExecutor(min(self._workers, max(asked, default=1)))
        try:
            yield
        finally:
            self._pool.shutdown(cancel_futures=True)

    def _take_due(self) -> list[str]:
        """Of the ready jobs as many as their backends' limits leave room for."""
        begun = (*self._running, *self._submitting.values())
        running = Counter(_backend(self._executor(job_id)) for job_id in begun)
        due: list[str] = []
        for backend, ready in self._ready.items():
            limit = self._executor(ready[0]).parallel_limit() if ready else 0
            room = len(ready) if limit is None else min(limit - running[backend], len(ready))
            due += [ready.popleft() for _ in range(room)]
        return due

    def _submit(self, job_id: str) -> None:
        """Submit one job: intent first, handle after. A refusal is the job's end, not the experiment's."""
        job, executor = self.jobs[job_id], self._executor(job_id)
        try:
            spec = self._stage(job)
            plan = executor.plan(spec)
            self.store.write(f"{job_id}/plan.txt", plan.text)
            if self._update(
                job_id, sync=executor.remote, intent=time.time(), state=AppState.SUBMITTED
            ).terminal:
                return  # somebody cancelled it meanwhile
            if type(executor).execute is Executor.execute:
                handle = executor.submit(plan)
            else:
                handle = executor.execute(job.tasks if job.group else job.tasks[0], spec)
        except Exception as exc:  # a user's executor may raise anything; that is no end of the other jobs
            logger.error("job %s of %s: submitting it failed: %s", job_id, self.store.id, exc)
            self._resolve_doubt(job_id, str(exc) or type(exc).__name__)
        else:
            if self._update(job_id, sync=executor.remote, handle=handle).terminal:
                executor.cancel(handle)  # somebody cancelled it before it could be seen to have arrived

    def _resolve_doubt(self, job_id: str, error: str) -> bool:
        """After a failed submission: the job may have arrived all the same; True once that is known."""
        self._doubtful[job_id] = error
        record = self.records[job_id]
        try:
            handle = self._executor(job_id).find(record.token) if record.intent else None
        except (NemoRunError, OSError):
            return False
        del self._doubtful[job_id]
        if handle:
            self._update(job_id, handle=handle)
        else:
            reason = f"not submitted: {error}"
            self._update(job_id, state=AppState.FAILED, message=reason, ended=time.time())
        return True

    def _stage(self, job: Job) -> JobSpec:
        package = stage_code(self.store, job)
        trees = self.store.read_json(f"{job.id}/task.json")
        pending = map(self.records.__getitem__, self._pending_dependencies(job.id))
        depends_on = tuple(record.handle for record in pending if record.handle)
        return make_spec(job, trees, self.experiment, self.store.path, depends_on=depends_on, package=package)

    # --- polling ----------------------------------------------------------------------------------------

    def _may_poll(self) -> bool:
        """Each answer to a submission wakes us; meanwhile no backend is asked more often than it likes."""
        shortest = min(self._executor(job_id).poll_interval[0] for job_id in self._running)
        return not self._submitting or time.monotonic() >= self._polled + shortest

    def _poll(self) -> bool:
        """Ask each backend once about all its jobs; True if any job has news."""
        self._polled = time.monotonic()
        asked, news = defaultdict(list), False
        for job_id, error in list(self._doubtful.items()):
            # The thread that submits it asks first.
            if job_id in self._running and self._resolve_doubt(job_id, error):
                news = True
                if self.records[job_id].terminal:
                    self._settle(job_id)
        for job_id in self._running:
            if job_id not in self._doubtful:
                asked[_backend(self._executor(job_id))].append(job_id)
        for job_ids in asked.values():
            for job_id, status in zip(job_ids, self._ask(job_ids), strict=True):
                news |= self._take_note(job_id, status)
        return news

    def _ask(self, job_ids: list[str]) -> list[JobStatus]:
        handles = [handle for job_id in job_ids if (handle := self.records[job_id].handle)]
        return ask(self._executor(job_ids[0]), handles)

    def _take_note(self, job_id: str, status: JobStatus) -> bool:
        if status.state == AppState.UNKNOWN:
            return self._unseen(job_id, status)
        self._unseen_since.pop(job_id, None)
        before = self.records[job_id]
        if status.state in TERMINAL:
            self._update(job_id, **as_changes(status))
            self._settle(job_id)
        elif (seen := replace(before, **as_changes(status))) != before:
            # Not written down: whoever opens the experiment asks the backend too.
            self.records[job_id] = seen
            self.on_change(seen)
        return self.records[job_id] != before

    def _unseen(self, job_id: str, status: JobStatus) -> bool:
        """A job that cannot be seen keeps its last state, until waiting for it makes no sense."""
        age = time.monotonic() - self._unseen_since.setdefault(job_id, time.monotonic())
        if age < self._executor(job_id).lost_after:
            return False
        message = f"not seen for {age:.0f} s: {status.message}"
        self._update(job_id, state=AppState.UNKNOWN, message=message)
        self._settle(job_id)
        return True

    def _pause(self, last: float) -> float:
        """Wait longer each time nothing has changed, within what the backends ask for; returns how long."""
        by_backend = {_backend(self._executor(job_id)): self._executor(job_id) for job_id in self._running}
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

    # --- records ----------------------------------------------------------------------------------------

    def _update(self, job_id: str, *, sync: bool = False, **changes: Any) -> JobRecord:
        before = self.records[job_id]
        if all(getattr(before, name) == value for name, value in changes.items()):
            return before
        record = self.records[job_id] = self.store.update_job(job_id, sync=sync, **changes)
        self.on_change(record)
        return record

    def _executor(self, job_id: str) -> Executor:
        return self.jobs[job_id].executors[0]


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


def _backend(executor: Executor) -> tuple[type, str]:
    return type(executor), executor.cluster()
