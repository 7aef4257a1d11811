"""The units of an experiment: what was added to it, how each does, and how it ends."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from nemo_run.core.execution.base import AppState
from nemo_run.errors import ConfigError, ExecutionError
from nemo_run.run.errors import raise_for
from nemo_run.run.records import JobRecord, summarize
from nemo_run.xm import core, job_operators
from nemo_run.xm.completion import WorkUnitCompletedAwaitable
from nemo_run.xm.errors import BadTypeError, StateError
from nemo_run.xm.jobs import Job, JobConfig, JobGroup, JobType, is_job_generator
from nemo_run.xm_local.loops import Pending, settled, started

if TYPE_CHECKING:
    from nemo_run.xm_local.experiment import LocalExperiment

logger = logging.getLogger("nemo_run")


@dataclass(frozen=True)
class Status(core.ExperimentUnitStatus):
    """How a unit is doing, from the records of its jobs."""

    state: AppState
    _message: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return not (self.is_completed or self.is_failed or self.is_stopped)

    @property
    def is_completed(self) -> bool:
        """Whether all of its jobs ended well, or it was stopped and marked as completed."""
        return self.state == AppState.SUCCEEDED

    @property
    def is_failed(self) -> bool:
        """Whether a job of it failed, or it could not be started."""
        return self.state in (AppState.FAILED, AppState.UNKNOWN)

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped."""
        return self.state == AppState.CANCELLED

    @property
    def message(self) -> str:
        """The backend's own words, or those that it was stopped with."""
        return self._message


class Unit(core.ExperimentUnit):
    """One unit; its jobs are jobs of the engine whose ids begin with its own."""

    def __init__(
        self, experiment: LocalExperiment, job_id: str, role: core.ExperimentUnitRole, identity: str = ""
    ) -> None:
        self.experiment: LocalExperiment = experiment
        self.role = role
        self.identity = identity
        #: The id of its first job.
        self.job_id = job_id
        #: The ends of its jobs, and the names of their members, by their ids.
        self.parts: dict[str, Pending[JobRecord]] = {}
        self.names: dict[str, list[str]] = {}
        #: While it is filled, and what came of that.
        self.filling: asyncio.Future[Any] | Pending[Any] | None = None
        self.stopped = False
        #: Whether a person had a shell in it, which is no job of the engine's.
        self.attended = False
        #: When it was first known not to end well; 0 before.
        self.failed_at = 0.0
        #: What was added to it under an identity.
        self._added: set[str] = set()
        self._adding: list[Awaitable[None]] = []
        self._marked: Status | None = None
        self._error: BaseException | None = None
        self._numbers = itertools.count(1)

    @property
    def experiment_unit_name(self) -> str:
        """`<experiment>_<unit>`."""
        return f"{self.experiment.experiment_id}_{self.job_id}"

    @property
    def launched_jobs(self) -> list[core.LaunchedJob]:
        """Its jobs that were launched, each with the path of its log."""
        return self.experiment._launched(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.experiment_unit_name}: {self.get_status().state}>"

    # --- adding -----------------------------------------------------------------------------------------

    def add(
        self, job: JobType, args: Mapping[str, Any] | None = None, *, identity: str = ""
    ) -> Awaitable[None]:
        """Add what it runs; under the identity of what it has already, nothing is added.

        Raises:
            StateError: outside of the experiment's `with`.
        """
        adding = started(self._add(job, args, identity), self.experiment._running().loop)
        self._adding.append(adding)
        return adding

    def new_part(self) -> str:
        """An id for further jobs of it."""
        number = next(self._numbers)
        return self.job_id if number == 1 else f"{self.job_id}.{number}"

    async def filled(self) -> Any:
        """This unit, once what it was made for has been added to it."""
        if self.filling is not None:
            await settled(self.filling)
            if self.filling.cancelled():
                raise core.ExperimentUnitNotCompletedError(f"unit {self.job_id} was stopped", work_unit=self)
            if error := self.filling.exception():
                raise error
        return self

    async def fill(self, job: JobType, args: Mapping[str, Any] | None) -> None:
        """Add what the unit was made for; whatever goes wrong with that is the unit's own failure."""
        token = core._current_experiment_unit.set(self)
        try:
            await self._add(job, args, "")
            for adding in self._adding:  # generators seldom await what they add
                await adding
            if not (self.parts or self.stopped or self.attended):
                raise StateError(f"{job!r} added no job to unit {self.job_id}")
        except BaseException as exc:
            self._fail(exc)
            raise
        finally:
            core._current_experiment_unit.reset(token)

    async def _add(self, job: JobType, args: Mapping[str, Any] | None, identity: str) -> None:
        if identity and identity in self._added:
            return
        job = job_operators.with_args(job, args)
        if is_job_generator(job):
            await _called(job, self, args or {})
            return
        if isinstance(job, JobConfig):
            raise BadTypeError(f"{job!r} is in words of another backend; add an xm.Job or an xm.JobGroup")
        if identity:
            self._added.add(identity)
        await self.experiment._start(self, cast("Job | JobGroup", job))

    # --- ending -----------------------------------------------------------------------------------------

    def wait_until_complete(self) -> Any:
        """Wait for its end: `await` it or, where no event loop runs, ask for its `result()`.

        Raises:
            ExperimentUnitFailedError: a job failed, or the unit could not be filled.
            ExperimentUnitNotCompletedError: it was stopped.
        """
        return started(self._completed(), self.experiment._waiting_loop())

    async def _completed(self) -> Any:
        await self.ended(itself=core._current_experiment_unit.get() is self)
        if error := self.failure():
            raise error
        return self

    async def ended(self, *, itself: bool = False) -> None:
        """Wait until nothing more is to come; `itself`, its own generator, waits for its jobs alone."""
        if self.filling is not None and not itself:
            await settled(self.filling)
        while waiting := [part for part in list(self.parts.values()) if not part.done()]:
            await asyncio.wait([asyncio.wrap_future(part) for part in waiting])

    def _fail(self, error: BaseException) -> None:
        """Take note that it cannot be filled; what it has already is ended."""
        self._error = self._error or error
        self.failed_at = self.failed_at or time.time()
        if not isinstance(error, asyncio.CancelledError):
            logger.error("unit %s of %s: %s", self.job_id, self.experiment.store_id, error)
        self._end_parts()

    def failure_to_raise(self) -> BaseException | None:
        """What ends the experiment's `with`: nothing where somebody stopped it who said nothing else."""
        if self.stopped and not (self._marked and self._marked.is_failed):
            return None
        if self._error and not self._marked and not isinstance(self._error, asyncio.CancelledError):
            return self._error
        return self.failure()

    def failure(self) -> core.ExperimentUnitError | None:
        """Why it did not end well; None if it did, or has not ended."""
        if self._marked:
            return None if self._marked.is_completed else self._marked_failure()
        if self._error and not isinstance(self._error, asyncio.CancelledError):
            message = f"unit {self.job_id} of {self.experiment.store_id}: {self._error}"
            error = core.ExperimentUnitFailedError(message, work_unit=self)
            error.__cause__ = self._error
            return error
        return self._job_failure()

    def _job_failure(self) -> core.ExperimentUnitError | None:
        try:
            raise_for(self.experiment._store, self._records())
        except ExecutionError as exc:
            stopped = exc.record.state == AppState.CANCELLED
            kind = core.ExperimentUnitNotCompletedError if stopped else core.ExperimentUnitFailedError
            return kind(str(exc), work_unit=self, record=exc.record)
        if self.stopped and not self.parts:
            return core.ExperimentUnitNotCompletedError(f"unit {self.job_id} was stopped", work_unit=self)
        return None

    def _marked_failure(self) -> core.ExperimentUnitError:
        assert self._marked
        kind = (
            core.ExperimentUnitFailedError if self._marked.is_failed else core.ExperimentUnitNotCompletedError
        )
        why = f": {self._marked.message}" if self._marked.message else ""
        return kind(f"unit {self.job_id} of {self.experiment.store_id} was stopped{why}", work_unit=self)

    def _records(self) -> list[JobRecord]:
        """The records of its jobs as far as they are known."""
        ended = [part.result() for part in self.parts.values() if part.done()]
        known = {record.id for record in ended}
        return ended + [self.experiment._record(job_id) for job_id in self.parts if job_id not in known]

    def get_status(self) -> Status:
        """How it is doing, from any process."""
        if self._marked:
            return self._marked
        if self._error and not self.stopped:
            return Status(AppState.FAILED, str(self._error))
        if not self.parts:
            unused = AppState.SUCCEEDED if self.attended else AppState.PENDING
            return Status(AppState.CANCELLED if self.stopped else unused)
        records = self._records()
        state = summarize(records)
        message = next((record.message for record in records if record.state == state), "")
        return Status(state, message)

    def stop(
        self, *, mark_as_failed: bool = False, mark_as_completed: bool = False, message: str | None = None
    ) -> None:
        """Ask all of its jobs to end; it does not wait.

        Args:
            mark_as_failed: It counts as failed, and the experiment with it.
            mark_as_completed: It counts as completed.
            message: Why.
        """
        if mark_as_failed and mark_as_completed:
            raise ConfigError("a unit is marked as failed or as completed, not both")
        self.stopped = True
        if mark_as_failed or mark_as_completed or message:
            state = AppState.CANCELLED
            if mark_as_failed or mark_as_completed:
                state = AppState.FAILED if mark_as_failed else AppState.SUCCEEDED
            self._marked = Status(state, message or "")
            if mark_as_failed:
                self.failed_at = self.failed_at or time.time()
        if self.filling is not None and core._current_experiment_unit.get() is not self:
            self.experiment._running().in_loop(self.filling.cancel)
        self._end_parts()

    def unended(self) -> list[str]:
        """The ids of its jobs whose ends are not known."""
        return [job_id for job_id, part in list(self.parts.items()) if not part.done()]

    def _end_parts(self) -> None:
        if left := self.unended():
            self.experiment._cancel(left)

    def took_end(self, record: JobRecord) -> None:
        """Hear that one of its jobs has ended: one that fails takes those of other backends down."""
        part = self.parts[record.id]
        if part.done():
            return
        if record.state != AppState.SUCCEEDED:
            self.failed_at = self.failed_at or record.ended or time.time()
        part.set_result(record)
        if record.state != AppState.SUCCEEDED:
            self._end_parts()

    def lost(self, job_id: str, error: BaseException | None) -> None:
        """Hear that nothing will be heard of one of its jobs, and why."""
        if error:
            self._error = self._error or error
            self.failed_at = self.failed_at or time.time()
        part = self.parts[job_id]
        if not part.done():
            part.set_result(
                JobRecord(id=job_id, token="", state=AppState.UNKNOWN, message="not seen to its end")
            )


class WorkUnit(Unit, core.WorkUnit):
    """A unit that is part of the result."""

    @property
    def work_unit_id(self) -> int:
        """Its number: 1, 2, 3, … in the order of adding."""
        return int(self.job_id)

    def wait_until_complete(self) -> Any:
        """Wait for its end: `await` it or, where no event loop runs, ask for its `result()`.

        Raises:
            ExperimentUnitFailedError: a job failed, or the unit could not be filled.
            ExperimentUnitNotCompletedError: it was stopped.
        """
        if asyncio._get_running_loop() is None:
            waiting = super().wait_until_complete()
            waiting.work_unit = self
            return waiting
        return WorkUnitCompletedAwaitable(self, _completion(self))


async def _called(generator: Any, unit: Unit, args: Mapping[str, Any]) -> None:
    try:
        await generator(unit, **args)
    except SystemExit as exc:  # which would end the event loop, and so all other units
        raise StateError(f"{generator!r} left with exit code {exc.code!r}") from exc


async def _completion(unit: Unit) -> Any:
    return await started(unit._completed(), unit.experiment._waiting_loop())


class AuxiliaryUnit(Unit, core.AuxiliaryUnit):
    """A unit that serves the others."""
