"""From a job that is due to one that its backend has: intent first, then the submission, then the handle.

Before a job is handed to its backend its record says so (the intent), afterwards it holds the handle. Whoever
finds an intent without a handle asks the backend for the token first, so that no job is started twice and
none is forgotten, whenever the process doing this was killed.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from nemo_run.core.execution.base import AppState, Executor, JobHandle, Plan
from nemo_run.errors import NemoRunError, TunnelError
from nemo_run.run.app import make_spec
from nemo_run.run.ledger import Ledger
from nemo_run.run.packages import stage_code

logger = logging.getLogger(__name__)

#: How often a job is submitted whose submission is cut off each time.
_TRIES = 3


def takes_many(executor: Executor) -> bool:
    """Whether several jobs go to a backend in one call."""
    return executor.submit_batch > 1 and type(executor).execute is Executor.execute


class Submitter:
    """Submits jobs of one experiment. A refusal is a job's end, not the experiment's."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        #: Jobs whose submission failed without it being known whether they arrived: the error.
        self.doubtful: dict[str, Exception] = {}
        #: How often a job has been submitted in vain because the connection was cut.
        self._cut_off = Counter[str]()

    def submit(self, job_id: str) -> None:
        """Submit one job."""
        executor = self._ledger.executor(job_id)
        try:
            plan = self._plan(job_id)
            if self._intend(executor, [job_id]):
                self._arrived(executor, {job_id: self._execute(job_id, executor, plan)})
        except Exception as exc:  # a user's executor may raise anything; that is no end of the other jobs
            self._failed(job_id, exc)

    def submit_together(self, job_ids: Sequence[str]) -> Iterator[str]:
        """Submit jobs of one backend that takes many at once, each after those that it waits for.

        Yields each job whose fate is known, for the caller to settle what has ended before the next one is
        looked at. Those it does not yield wait for one that was not submitted.
        """
        plans, executor = dict[str, Plan](), self._ledger.executor(job_ids[0])
        for job_id in job_ids:
            if self._ledger.blocker(job_id):
                continue
            try:
                plans[job_id] = self._plan(job_id, together=plans)
            except Exception as exc:  # of a user's packager or class; that is no end of the other jobs
                self._failed(job_id, exc)
                yield job_id
        try:
            if plans:
                executor.prepare(list(plans.values()))
        except Exception as exc:
            for job_id in plans:
                self._failed(job_id, exc)
                yield job_id
            return
        yield from self._submit_batches(executor, plans)

    def _submit_batches(self, executor: Executor, plans: dict[str, Plan]) -> Iterator[str]:
        """One batch is on its way while the records of those before and after it are written."""
        left, sent = iter(plans), None
        with ThreadPoolExecutor(1) as sender:
            while batch := list(itertools.islice(left, executor.submit_batch)):
                ready = self._intend(executor, [each for each in batch if not self._ledger.blocker(each)])
                answers = sender.submit(executor.submit_many, [plans[job_id] for job_id in ready])
                if sent:
                    yield from self._take_up(executor, *sent)
                sent = ready, answers
            if sent:
                yield from self._take_up(executor, *sent)

    def _take_up(
        self, executor: Executor, ready: list[str], sent: Future[list[JobHandle | NemoRunError]]
    ) -> Iterator[str]:
        """Write down what became of a batch."""
        answers: Sequence[JobHandle | Exception]
        try:
            answers = sent.result()
        except Exception as exc:
            logger.error("%d jobs of %s: submitting them failed: %s", len(ready), self._ledger.store.id, exc)
            self.doubtful |= dict.fromkeys(ready, exc)
            yield from ready
            return
        told = dict(zip(ready, answers, strict=True))
        self._arrived(executor, {name: each for name, each in told.items() if isinstance(each, JobHandle)})
        for job_id, answer in told.items():
            if not isinstance(answer, JobHandle):
                if self._is_ahead(job_id):
                    continue
                self._failed(job_id, answer)
            yield job_id

    def _is_ahead(self, job_id: str) -> bool:
        """Whether one that this job waits for has not been submitted, or ended without success."""
        pending = self._ledger.pending_dependencies(job_id)
        missing = any(self._ledger.records[name].handle is None for name in pending)
        return missing or self._ledger.blocker(job_id) is not None

    def resolve_doubt(self, job_id: str) -> bool:
        """After a failed submission: the job may have arrived all the same; True once that is known.

        One that has not, because the connection was cut, is neither failed nor doubtful then, but to be
        submitted again.
        """
        record, executor = self._ledger.records[job_id], self._ledger.executor(job_id)
        try:
            handle = executor.find(record.token) if record.intent else None
        except (NemoRunError, OSError):
            return False
        error = self.doubtful.pop(job_id)
        if handle:
            self._ledger.update(job_id, handle=handle)
            return True
        if record.intent and isinstance(error, TunnelError) and error.ran is not True:
            self._cut_off[job_id] += 1
            if self._cut_off[job_id] < _TRIES:
                return True
        reason = f"not submitted: {str(error) or type(error).__name__}"
        self._ledger.update(job_id, state=AppState.FAILED, message=reason, ended=time.time())
        return True

    # --- one step each ----------------------------------------------------------------------------------

    def _plan(self, job_id: str, together: dict[str, Plan] | None = None) -> Plan:
        """Stage a job's code and plan it; `together` holds the plans that are submitted before it."""
        ledger, job = self._ledger, self._ledger.jobs[job_id]
        package = stage_code(ledger.store, job)
        trees = ledger.store.read_json(f"{job_id}/task.json")
        pending = ledger.pending_dependencies(job_id)
        handles = (ledger.records[name].handle for name in pending)
        spec = make_spec(
            job,
            trees,
            ledger.experiment,
            ledger.store.path,
            depends_on=tuple(handle for handle in handles if handle),
            after=tuple(name for name in pending if together and name in together),
            package=package,
        )
        plan = ledger.executor(job_id).plan(spec)
        ledger.store.write(f"{job_id}/plan.txt", plan.text)
        return plan

    def _intend(self, executor: Executor, job_ids: Sequence[str]) -> list[str]:
        """Write down that jobs are about to be submitted; returns those that nobody cancelled meanwhile."""
        changes = {"intent": time.time(), "state": AppState.SUBMITTED}
        records = self._ledger.update_all(dict.fromkeys(job_ids, changes), sync=executor.remote)
        return [record.id for record in records if not record.terminal]

    def _execute(self, job_id: str, executor: Executor, plan: Plan) -> JobHandle:
        if type(executor).execute is Executor.execute:
            return executor.submit(plan)
        job = self._ledger.jobs[job_id]
        return executor.execute(job.tasks if job.group else job.tasks[0], plan.spec)

    def _arrived(self, executor: Executor, handles: Mapping[str, JobHandle]) -> None:
        changes = {job_id: {"handle": handle} for job_id, handle in handles.items()}
        for record in self._ledger.update_all(changes, sync=executor.remote):
            if record.terminal:  # somebody cancelled it before it could be seen to have arrived
                executor.cancel(handles[record.id])

    def _failed(self, job_id: str, error: Exception) -> None:
        logger.error("job %s of %s: submitting it failed: %s", job_id, self._ledger.store.id, error)
        self.doubtful[job_id] = error
        self.resolve_doubt(job_id)
