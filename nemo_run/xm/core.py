"""Experiments and their units: what each offers, whatever runs them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ContextDecorator
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from nemo_run.errors import ExecutionError, NotFoundError
from nemo_run.xm.errors import BadValueError, StateError
from nemo_run.xm.job_operators import shallow_copy_job_type
from nemo_run.xm.jobs import Executable, JobType, Packageable, check_job, is_job_generator

if TYPE_CHECKING:
    from nemo_run.xm.completion import WorkUnitCompletedAwaitable

__all__ = [
    "AuxiliaryUnit", "AuxiliaryUnitJob", "AuxiliaryUnitRole", "ContextAnnotations", "DebugInterrupt",
    "Experiment", "ExperimentUnit", "ExperimentUnitError", "ExperimentUnitFailedError",
    "ExperimentUnitNotCompletedError", "ExperimentUnitRole", "ExperimentUnitStatus", "Importance",
    "LaunchedJob", "MetadataContext", "NotFoundError", "Package", "ReloadError", "WorkUnit", "WorkUnitRole",
    "current_experiment", "current_framework_labels", "framework_label",
]  # fmt: skip

#: The experiment of the `with` around a script's lines, and the unit for which a generator runs.
_current_experiment: ContextVar[Experiment | None] = ContextVar("experiment", default=None)
_current_experiment_unit: ContextVar[ExperimentUnit | None] = ContextVar("experiment_unit", default=None)


# --- What can go wrong ----------------------------------------------------------------------------------


class ExperimentUnitError(ExecutionError, RuntimeError):
    """A unit of an experiment did not end well; `work_unit` is the one."""

    def __init__(self, message: str = "", *, work_unit: Any = None, record: Any = None) -> None:
        super().__init__(message, record=record)
        self.work_unit = work_unit


class ExperimentUnitFailedError(ExperimentUnitError):
    """A unit's job failed."""


class ExperimentUnitNotCompletedError(ExperimentUnitError):
    """A unit was stopped before its end."""


class ReloadError(ExperimentUnitError):
    """A unit cannot be had anew."""


class DebugInterrupt(BaseException):
    """Leaves an experiment's `with` at once."""


# --- Roles ----------------------------------------------------------------------------------------------


class Importance(Enum):
    """How much a unit matters among the others of its experiment."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass
class ExperimentUnitRole:
    """What a unit is for."""

    importance: Importance = field(default=Importance.NORMAL, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.importance, Importance):
            known = ", ".join(f"xm.Importance.{name}" for name in Importance.__members__)
            raise BadValueError(f"importance must be one of {known}, not {self.importance!r}")


@dataclass
class WorkUnitRole(ExperimentUnitRole):
    """A unit that is part of the result."""

    tags: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass
class AuxiliaryUnitRole(ExperimentUnitRole):
    """A unit that serves the others, and is ended so many seconds after the last of them."""

    termination_delay_secs: float

    def __post_init__(self) -> None:
        super().__post_init__()
        delay = self.termination_delay_secs
        if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not delay >= 0:
            raise BadValueError(f"termination_delay_secs is a number of seconds from 0 on, not {delay!r}")


class AuxiliaryUnitJob:
    """A job, group or generator that is added as an auxiliary unit whatever role `add` is given."""

    def __init__(
        self,
        job: JobType,
        *,
        importance: Importance = Importance.NORMAL,
        termination_delay_secs: float,
    ) -> None:
        check_job(job, "job of AuxiliaryUnitJob")
        self.job = job
        self.role = AuxiliaryUnitRole(termination_delay_secs, importance=importance)

    async def __call__(self, aux_unit: ExperimentUnit, **args: Any) -> None:
        """Add the job to its unit, as a job generator does."""
        if is_job_generator(self.job):
            await self.job(aux_unit, **args)  # type: ignore[operator]  # it is one
        else:
            await aux_unit.add(shallow_copy_job_type(self.job), args=args)

    def __repr__(self) -> str:
        return f"xm.AuxiliaryUnitJob({self.job!r}, role={self.role!r})"


# --- Experiments and units ------------------------------------------------------------------------------


class ExperimentUnitStatus(ABC):
    """How a unit is doing."""

    @property
    @abstractmethod
    def is_active(self) -> bool:
        """Whether it waits or runs."""

    @property
    @abstractmethod
    def is_completed(self) -> bool:
        """Whether it ended well."""

    @property
    @abstractmethod
    def is_failed(self) -> bool:
        """Whether it ended otherwise."""

    @property
    @abstractmethod
    def message(self) -> str:
        """More about it, in words of whatever ran it."""


@dataclass(frozen=True)
class LaunchedJob:
    """A job of a unit that was launched."""

    name: str
    address: str | None = None
    logs: str | None = None


class ContextAnnotations:
    """What people say about an experiment."""

    def __init__(self, title: str = "") -> None:
        self._title = title

    @property
    def title(self) -> str:
        """Its title."""
        return self._title

    def set_title(self, title: str) -> None:
        """Give it another title."""
        self._title = title


@dataclass
class MetadataContext:
    """Who made an experiment, and what was said about it."""

    creator: str
    annotations: ContextAnnotations = field(default_factory=ContextAnnotations)


class ExperimentUnit(ABC):
    """Jobs that are one piece of an experiment."""

    experiment: Experiment
    role: ExperimentUnitRole
    #: A name of one's own choice: adding under it again gives this unit.
    identity: str = ""

    @property
    def experiment_id(self) -> int:
        """The experiment's id."""
        return self.experiment.experiment_id

    @property
    def context(self) -> MetadataContext:
        """The experiment's."""
        return self.experiment.context

    @property
    @abstractmethod
    def experiment_unit_name(self) -> str:
        """Its name, which no unit of another experiment has."""

    def get_full_job_name(self, job_name: str) -> str:
        """The name that one of its jobs goes by outside; containers reach each other by it."""
        return f"{self.experiment_unit_name}_{job_name}"

    @abstractmethod
    def add(
        self, job: JobType, args: Mapping[str, Any] | None = None, *, identity: str = ""
    ) -> Awaitable[None]:
        """Add what it runs: one job, group or generator."""

    @abstractmethod
    def wait_until_complete(self) -> Awaitable[Any]:
        """Wait for its end; raises `ExperimentUnitError` unless that is a good one."""

    @abstractmethod
    def stop(
        self, *, mark_as_failed: bool = False, mark_as_completed: bool = False, message: str | None = None
    ) -> None:
        """End it; it counts as stopped unless marked otherwise."""

    @abstractmethod
    def get_status(self) -> ExperimentUnitStatus:
        """How it is doing."""

    @property
    @abstractmethod
    def launched_jobs(self) -> list[LaunchedJob]:
        """Its jobs that were launched."""


class WorkUnit(ExperimentUnit):
    """A unit that is part of an experiment's result."""

    @property
    @abstractmethod
    def work_unit_id(self) -> int:
        """Its number: 1, 2, 3 in the order of adding."""

    @abstractmethod
    def wait_until_complete(self) -> WorkUnitCompletedAwaitable:
        """Wait for its end; what this gives knows its unit, so that several can be waited for."""


class AuxiliaryUnit(ExperimentUnit):
    """A unit that serves the others."""


class Experiment(AbstractContextManager["Experiment", None], AbstractAsyncContextManager["Experiment", None]):
    """Units that belong together; used by `with` or `async with`."""

    @property
    @abstractmethod
    def experiment_id(self) -> int:
        """Its number."""

    @property
    @abstractmethod
    def context(self) -> MetadataContext:
        """Who made it, and what was said about it."""

    @property
    @abstractmethod
    def work_units(self) -> Mapping[int, WorkUnit]:
        """Its work units by their numbers."""

    @property
    def work_unit_count(self) -> int:
        """How many work units it has."""
        return len(self.work_units)

    @classmethod
    @abstractmethod
    def package(cls, packageables: Sequence[Packageable] = ()) -> Sequence[Executable]:
        """Package these and all that `package_async` was given; returns an executable for each of these."""

    @classmethod
    @abstractmethod
    def package_async(cls, packageable: Packageable) -> Awaitable[Executable]:
        """Have this packaged with the next call of `package`."""

    @abstractmethod
    def add(
        self,
        job: JobType,
        args: Mapping[str, Any] | None = None,
        *,
        role: ExperimentUnitRole | None = None,
        identity: str = "",
    ) -> Awaitable[ExperimentUnit]:
        """Add a unit that runs a job, a group or a generator; a work unit unless `role` says otherwise."""


def current_experiment() -> Experiment:
    """The experiment of the `with` around.

    Raises:
        StateError: there is none.
    """
    if experiment := _current_experiment.get():
        return experiment
    raise StateError(
        "there is no experiment here; write this below `with xm_local.create_experiment(...) as experiment:`"
    )


def Package(*packageables: Packageable | Sequence[Packageable]) -> Sequence[Executable]:
    """`experiment.package` of the experiment around, as some documents have it."""
    given: list[Packageable] = []
    for one in packageables:
        given += [one] if isinstance(one, Packageable) else one
    return current_experiment().package(given)


# --- Labels ---------------------------------------------------------------------------------------------

_framework_labels: ContextVar[tuple[str, ...]] = ContextVar("framework_labels", default=())
_LABEL = re.compile(r"[a-zA-Z0-9_-]+")


class framework_label(ContextDecorator):
    """Around lines or a function of a library that adds jobs: says which library it was."""

    def __init__(self, label: str) -> None:
        if not isinstance(label, str) or not _LABEL.fullmatch(label):
            raise BadValueError(f"a framework's label is made of letters, digits, _ and -, not {label!r}")
        self._label = label
        self._tokens: list[Token[tuple[str, ...]]] = []

    def _recreate_cm(self) -> framework_label:
        return framework_label(self._label)

    def __enter__(self) -> framework_label:
        self._tokens.append(_framework_labels.set((*_framework_labels.get(), self._label)))
        return self

    def __exit__(self, *exc: object) -> None:
        _framework_labels.reset(self._tokens.pop())


def current_framework_labels() -> tuple[str, ...]:
    """The labels around, outermost first."""
    return _framework_labels.get()
