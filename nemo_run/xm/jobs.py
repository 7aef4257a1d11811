"""What is run where, with which arguments: jobs, groups of jobs, and functions that make jobs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from nemo_run.xm.arguments import SequentialArgs, UserArgs, env_from
from nemo_run.xm.errors import BadTypeError, BadValueError
from nemo_run.xm.executables import ExecutableSpec


@dataclass
class Executable(ABC):
    """What packaging gives: something that can be run."""

    name: str


class ExecutorSpec(ABC):  # noqa: B024  # each has fields of its own
    """How an executable must be packaged for a kind of executor."""


class Executor(ABC):
    """Where a job is run; `Spec` gives what packaging needs to know of it."""

    @classmethod
    @abstractmethod
    def Spec(cls) -> ExecutorSpec:
        """What packaging needs to know."""


class Constraint(ABC):  # noqa: B024  # each has fields of its own
    """Something that the jobs of a group must share."""


class JobConfig(ABC):  # noqa: B024  # each has fields of its own
    """A job in words of a backend's own."""


def _check_executable(value: Any, kind: type, of: str) -> None:
    """See that a spec and what is made of it are not mixed up."""
    if isinstance(value, kind):
        return
    if isinstance(value, ExecutableSpec):
        raise BadTypeError(
            f"{of} is {value!r}, which is not packaged yet: "
            "[executable] = experiment.package([xm.Packageable(spec, executor_spec)])"
        )
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], kind):
        raise BadTypeError(f"{of} is a list; package() gives one executable for each: [executable] = ...")
    raise BadTypeError(f"{of} must be an xm.{kind.__name__}, not {value!r}")


@dataclass(init=False)
class Packageable:
    """What to package and for where; arguments and environment are part of every job made of it."""

    executable_spec: ExecutableSpec
    executor_spec: ExecutorSpec
    args: SequentialArgs
    env_vars: dict[str, Any]

    def __init__(
        self,
        executable_spec: ExecutableSpec,
        executor_spec: ExecutorSpec,
        args: UserArgs | None = None,
        env_vars: Mapping[str, Any] | None = None,
    ) -> None:
        """Say what to package.

        Raises:
            BadTypeError: a part is of the wrong kind.
            BadValueError: `args` is one text, or a variable's name or value is none.
        """
        _check_executable(executable_spec, ExecutableSpec, "executable_spec of Packageable")
        _check_spec(executor_spec)
        self.executable_spec = executable_spec
        self.executor_spec = executor_spec
        self.args = SequentialArgs.from_collection(args)
        self.env_vars = env_from(env_vars, "Packageable")


def _check_spec(spec: Any) -> None:
    if isinstance(spec, ExecutorSpec):
        return
    kind = spec if isinstance(spec, type) else type(spec)
    if issubclass(kind, Executor):
        raise BadTypeError(f"executor_spec of Packageable is {spec!r}; write {kind.__name__}.Spec()")
    raise BadTypeError(
        f"executor_spec of Packageable must be an xm.ExecutorSpec, like xm_local.Local.Spec(), not {spec!r}"
    )


@dataclass(init=False)
class Job:
    """One executable at one place, with arguments and environment of its own."""

    executable: Executable
    executor: Executor
    name: str | None
    args: SequentialArgs
    env_vars: dict[str, Any]

    def __init__(
        self,
        executable: Executable,
        executor: Executor,
        name: str | None = None,
        args: UserArgs | None = None,
        env_vars: Mapping[str, Any] | None = None,
    ) -> None:
        """Say what to run where.

        Raises:
            BadTypeError: a part is of the wrong kind.
            BadValueError: `args` is one text, or a variable's name or value is none.
        """
        _check_executable(executable, Executable, "executable of Job")
        if not isinstance(executor, Executor):
            raise BadTypeError(
                f"executor of Job must be an xm.Executor, such as xm_local.Local(), not {executor!r}"
            )
        self.executable = executable
        self.executor = executor
        self.name = name or None
        self.args = SequentialArgs.from_collection(args)
        self.env_vars = env_from(env_vars, "Job")


class JobGroup:
    """Jobs, or groups, by name, that are started and ended together."""

    def __init__(self, *nameless: Any, constraints: list[Constraint] | None = None, **jobs: JobType) -> None:
        """Name the jobs: `JobGroup(agent=agent_job, observer=observer_job)`; `jobs` may be changed later."""
        if nameless:
            raise BadTypeError(f"JobGroup takes jobs by name, JobGroup(agent=job), not {nameless[0]!r} alone")
        for name, job in jobs.items():
            check_job(job, f"{name!r} of JobGroup")
        self.jobs: dict[str, JobType] = jobs
        self.constraints: list[Constraint] = list(constraints or ())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, JobGroup):
            return NotImplemented
        return (self.jobs, self.constraints) == (other.jobs, other.constraints)

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def __repr__(self) -> str:
        shown = [f"{name}={job!r}" for name, job in self.jobs.items()]
        shown += [f"constraints={self.constraints!r}"] if self.constraints else []
        return f"xm.JobGroup({', '.join(shown)})"


#: `async def make(work_unit, **args)`, which adds jobs to its unit.
JobGeneratorType: TypeAlias = Callable[..., Awaitable[Any]]
#: What `experiment.add` takes.
JobType: TypeAlias = Job | JobGroup | JobGeneratorType | JobConfig


def is_job_generator(job: object) -> bool:
    """Whether it is an async function, or an object that is called like one."""
    from inspect import iscoroutinefunction

    return iscoroutinefunction(job) or iscoroutinefunction(getattr(type(job), "__call__", None))  # noqa: B004


def check_job(job: object, of: str) -> None:
    """See that something can be added to an experiment.

    Raises:
        BadValueError: it is a function that is not async.
        BadTypeError: it is nothing that can be added.
    """
    if isinstance(job, (Job, JobGroup, JobConfig)) or is_job_generator(job):
        return
    if callable(job):
        raise BadValueError(f"{of} is {job!r}: a job generator is an async function; write `async def`")
    if isinstance(job, Executable):
        raise BadTypeError(f"{of} is an executable; write xm.Job(executable=..., executor=...)")
    raise BadTypeError(f"{of} must be an xm.Job, an xm.JobGroup or an async function, not {job!r}")


def get_args_for_all_jobs(job: JobType, args: Mapping[str, Any]) -> dict[str, Any]:
    """What `experiment.add(job, args=...)` takes to give each job of a group the same arguments."""
    if isinstance(job, JobGroup):
        return {name: get_args_for_all_jobs(inner, args) for name, inner in job.jobs.items()}
    return {"args": args}
