"""What can be done with jobs and groups: copy, name, flatten, give arguments."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from nemo_run.errors import suggestion
from nemo_run.xm.arguments import env_from, merge_args
from nemo_run.xm.errors import BadTypeError, BadValueError
from nemo_run.xm.jobs import Constraint, Job, JobGroup, JobType, check_job


class ConstraintClique(NamedTuple):
    """The jobs that a constraint of a group holds for."""

    constraint: Constraint
    jobs: list[Job]
    group_name: str = ""
    size: int = 0
    parent_group_name: str = ""


def shallow_copy_job_type(job: JobType) -> JobType:
    """New Job and JobGroup objects with the same contents; generators and configs as they are."""
    if isinstance(job, JobGroup):
        group = JobGroup(constraints=job.constraints)
        group.jobs = {name: shallow_copy_job_type(inner) for name, inner in job.jobs.items()}
        return group
    return copy.copy(job) if isinstance(job, Job) else job


def populate_job_names(job: JobType) -> None:
    """Name those that have no name: a job alone after its executable, one in groups by its path of keys.

    Raises:
        BadTypeError: a group holds something that is no job.
    """
    if isinstance(job, JobGroup):
        for path, inner in _walk(job):
            inner.name = inner.name or "_".join(path)
    elif isinstance(job, Job):
        job.name = job.name or job.executable.name
    else:
        check_job(job, "what is to be named")


def _walk(group: JobGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Job]]:
    """Each job of a group and its path of keys."""
    for name, inner in group.jobs.items():
        if isinstance(inner, JobGroup):
            yield from _walk(inner, (*path, name))
        elif isinstance(inner, Job):
            yield (*path, name), inner
        else:
            where = ".".join((*path, name))
            raise BadTypeError(
                f"{where!r} of a JobGroup is {inner!r}; a group that runs holds jobs and groups only"
            )


def collect_jobs_by_filter(job: JobType, predicate: Callable[[Job], bool]) -> list[Job]:
    """The jobs, of groups at any depth, for which a function says yes."""
    return [inner for inner in flatten_jobs(job) if predicate(inner)]


def flatten_jobs(job: JobType) -> list[Job]:
    """The jobs of a group at any depth, in order; of a job, itself.

    Raises:
        BadTypeError: it is or holds something that is neither.
    """
    if isinstance(job, Job):
        return [job]
    if isinstance(job, JobGroup):
        return [inner for _, inner in _walk(job)]
    raise BadTypeError(f"jobs are taken from an xm.Job or an xm.JobGroup, not {job!r}")


def get_jobs(job: JobType) -> list[Job]:
    """`flatten_jobs`, and each job has a name of its own.

    Raises:
        BadValueError: two have the same name.
    """
    populate_job_names(job)
    jobs = flatten_jobs(job)
    names = [inner.name for inner in jobs]
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise BadValueError(f"two jobs are named {twice[0]!r}; give each a name of its own")
    return jobs


def aggregate_constraint_cliques(group: JobGroup) -> list[ConstraintClique]:
    """Each constraint with the jobs that it holds for, outer groups first."""
    return list(_cliques(group, "", ""))


def _cliques(group: JobGroup, name: str, parent: str) -> Iterator[ConstraintClique]:
    jobs = flatten_jobs(group)
    for constraint in group.constraints:
        yield ConstraintClique(constraint, jobs, name, len(jobs), parent)
    for key, inner in group.jobs.items():
        if isinstance(inner, JobGroup):
            yield from _cliques(inner, key, name)


def with_args(job: JobType, args: Mapping[str, Any] | None) -> JobType:
    """A copy to which what `experiment.add(job, args=...)` got is added; a generator as it is.

    A job takes `args` and `env_vars`, which win over its own; a group takes the names of its jobs, each with
    what that job takes.

    Raises:
        BadValueError: a key is none of these, or says something that is no argument.
        BadTypeError: `args` is no mapping.
    """
    check_job(job, "what is added")
    return _with_args(shallow_copy_job_type(job), args, "args")


def _with_args(job: JobType, args: Mapping[str, Any] | None, where: str) -> JobType:
    if not args:
        return job
    if not isinstance(args, Mapping):
        raise BadTypeError(f"{where} of add() is a dict, not {args!r}")
    if isinstance(job, Job):
        _check_keys(
            args, ("args", "env_vars"), where, "a Job", f"; arguments go into {where}={{'args': {{...}}}}"
        )
        job.args = merge_args(job.args, args.get("args"))
        job.env_vars = {**job.env_vars, **env_from(args.get("env_vars"), "add()")}
    elif isinstance(job, JobGroup):
        _check_keys(args, tuple(job.jobs), where, "a JobGroup of these jobs")
        for name, inner in args.items():
            job.jobs[name] = _with_args(job.jobs[name], inner, f"{where}[{name!r}]")
    return job


def _check_keys(args: Mapping[str, Any], known: tuple[str, ...], where: str, of: str, hint: str = "") -> None:
    for key in args:
        if key not in known:
            takes = ", ".join(map(repr, known)) or "none"
            raise BadValueError(
                f"{where} of add() has {key!r}, and {of} takes {takes}{_suggested(key, known) or hint}"
            )


def _suggested(key: object, known: tuple[str, ...]) -> str:
    """What was perhaps meant; nothing where nothing is near."""
    words = suggestion(str(key), known)
    return words if "did you mean" in words else ""
