"""A job: one task with its executor, or a group of tasks that start and end together."""

from __future__ import annotations

import copy
import graphlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeAlias

from nemo_run.config import Config, Partial, Script, check_arguments, get_type_namespace
from nemo_run.core.execution.base import Capability, Executor
from nemo_run.core.execution.checks import check_installed
from nemo_run.core.execution.launcher import Launcher, get_launcher, ray_launcher
from nemo_run.core.execution.local import LocalExecutor
from nemo_run.errors import ConfigError, UnsupportedError
from nemo_run.run.plugin import Plugin
from nemo_run.run.records import JobEntry
from nemo_run.run.store import folder_name
from nemo_run.secret import Secret

Task: TypeAlias = Config[Any] | Partial[Any] | Script


@dataclass(kw_only=True)
class Job:
    """What `Experiment.add` made of its arguments."""

    id: str
    tasks: list[Task]
    executors: list[Executor]
    roles: list[str]
    dependencies: list[str] = field(default_factory=list)
    plugins: list[Plugin] = field(default_factory=list)
    tail_logs: bool = False
    group: bool = False
    #: Which folders become which of its code; see `Packager.origins`.
    origins: dict[str, str | None] = field(default_factory=dict)

    def secrets(self) -> list[Secret]:
        """The secrets in the environments of its executors and scripts, and among its tasks' arguments."""
        from fiddle import daglish

        held: list[Any] = [value for executor in self.executors for value in executor.env_vars.values()]
        for task in self.tasks:
            script = isinstance(task, Script)
            held += task.env.values() if script else (value for value, _ in daglish.iterate(task))
        return [value for value in held if isinstance(value, Secret)]

    def set_up(self) -> None:
        """Let the plugins change the tasks and executors."""
        for plugin in self.plugins:
            for task, executor in zip(self.tasks, self.executors, strict=True):
                plugin.setup(task, executor)
                executor.check()
        self._use_ray()

    def _use_ray(self) -> None:
        """Give the member that asks for a Ray cluster by its metadata the launcher that makes one."""
        asking = {
            at: task.metadata["use_with_ray_cluster"]
            for at, task in enumerate(self.tasks)
            if isinstance(task, Script) and task.metadata.get("use_with_ray_cluster")
        }
        if len(asking) > 1:
            names = " and ".join(repr(self.roles[at]) for at in asking)
            raise ConfigError(f"{names} of group {self.id!r} ask for a Ray cluster each; let one do so")
        for at, asked in asking.items():
            executor = self.executors[at]
            executor.launcher = ray_launcher(executor.launcher, asked, self.roles[at])

    def trees(self, main: ModuleType | None = None) -> dict[str, Any]:
        """By role what `task.json` holds; `main` stands for the launching script where that is not running.

        Raises:
            SerializationError: a task holds something that cannot be written down.
        """
        from nemo_run.core.serialization import to_tree

        return {role: to_tree(task, main=main) for role, task in zip(self.roles, self.tasks, strict=True)}

    def executor_trees(self, main: ModuleType | None = None) -> list[Any]:
        """What `executor.json` holds; raises as `trees`."""
        from nemo_run.core.serialization import to_tree

        return [to_tree(executor, main=main) for executor in self.executors]

    def entry(self) -> JobEntry:
        """What `experiment.json` holds of it."""
        from nemo_run.core.serialization import to_tree

        return JobEntry(
            id=self.id,
            roles=self.roles,
            dependencies=self.dependencies,
            tail_logs=self.tail_logs,
            plugins=[to_tree(plugin) for plugin in self.plugins],
            group=self.group,
        )


def make_job(
    task: Any,
    executor: Any,
    *,
    name: str,
    taken: list[str],
    plugins: list[Plugin],
    tail_logs: bool,
    dependencies: list[str],
) -> Job:
    """A job of copies, which may be changed without the user's own objects changing.

    Raises:
        ConfigError: the task or the executor is none, or they do not fit together.
    """
    if not isinstance(name, str):
        raise ConfigError(f"a job's name is a text, not {name!r}")
    group = isinstance(task, list)
    tasks = [_copied(as_task(item)) for item in (task if group else [task])]
    if not tasks:
        raise ConfigError("a group needs at least one task")
    job_id = unique_name(name or ("group" if group else task_name(tasks[0])), taken)
    return Job(
        id=job_id,
        tasks=tasks,
        executors=_executors(executor, len(tasks)),
        roles=role_names(tasks) if group else [job_id],
        dependencies=dependencies,
        plugins=plugins,
        tail_logs=tail_logs,
        group=group,
    )


def _copied(task: Task) -> Task:
    from nemo_run.core.serialization import to_tree

    try:
        return copy.deepcopy(task)
    except Exception:
        to_tree(task)  # what cannot be copied cannot be written down either, and this says where it is
        raise


def as_plugins(given: Any) -> list[Plugin]:
    """Plugins from one or a list of them, each an instance or a Config of one.

    Raises:
        ConfigError: one is neither.
    """
    import fiddle

    listed = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    plugins = [fiddle.build(plugin) if isinstance(plugin, Config) else plugin for plugin in listed]
    for plugin in plugins:
        if not isinstance(plugin, Plugin):
            raise ConfigError(f"plugin is {plugin!r}; give an instance of a subclass of run.Plugin")
    return plugins


def _executors(given: Any, count: int) -> list[Executor]:
    """One executor per task of a job."""
    listed = list(given) if isinstance(given, list) else [given]
    if len(listed) == 1:
        listed = listed * count
    if len(listed) != count:
        raise ConfigError(f"a group of {count} tasks takes one executor or {count}, not {len(listed)}")
    executors = [copy.deepcopy(as_executor(item)) for item in listed]
    if len({type(executor) for executor in executors}) > 1:
        raise ConfigError("the tasks of a group run together, so their executors must be of one class")
    return executors


def as_executor(executor: Executor | Config[Any] | None) -> Executor:
    """An executor from an instance or a Config of one.

    Raises:
        ConfigError: it is neither.
    """
    if executor is None:
        return LocalExecutor()
    if isinstance(executor, Config):
        import fiddle

        executor = fiddle.build(executor)
    if not isinstance(executor, Executor):
        raise ConfigError(
            f"executor is {type(executor).__name__} {executor!r}; give one such as run.LocalExecutor()"
            " or run.Config(run.LocalExecutor, …)"
        )
    executor.check()
    return executor


def as_task(task: Any) -> Task:
    """A function, class, Config, Partial or Script as a task.

    Raises:
        ConfigError: it is none of these, or a function no other process could find.
    """
    if isinstance(task, (Config, Partial, Script)):
        return task
    if resolve := getattr(type(task), "__as_task__", None):  # a LazyEntrypoint knows what it stands for
        return as_task(resolve(task))
    if not callable(task):
        raise ConfigError(
            f"cannot run {type(task).__name__} {task!r}; give a function, or run.Partial(function, …),"
            " run.Config(…) or run.Script(…)"
        )
    if "<lambda>" in (name := getattr(task, "__qualname__", "")) or "<locals>" in name:
        raise ConfigError(
            f"cannot run {name!r} as a task: another process cannot find a lambda or a function defined"
            " inside a function. Define it with `def` at the top level of a module."
        )
    return Partial(task)


def task_name(task: Task) -> str:
    """What a task is called when nobody names it."""
    return task.get_name() if isinstance(task, Script) else get_type_namespace(task.__fn_or_cls__)


def unique_name(name: str, taken: Iterable[str]) -> str:
    """A name for a folder that is not taken: `name`, else `name_1`, `name_2`, …"""
    taken, safe = set(taken), re.sub(r"\s+", " ", folder_name(name))
    candidate, count = safe, 0
    while candidate in taken:
        count += 1
        candidate = f"{safe}_{count}"
    return candidate


def role_names(tasks: list[Task]) -> list[str]:
    """The names of a group's members: each task's short name, told apart by numbers."""
    names: list[str] = []
    for task in tasks:
        short = task_name(task) if isinstance(task, Script) else task_name(task).rpartition(".")[2]
        names.append(unique_name(short, names))
    return names


def check_jobs(jobs: Mapping[str, Job]) -> None:
    """Refuse what cannot be run, before anything is.

    Raises:
        ConfigError: a dependency is unknown or depends on itself in the end; an executor cannot work; a task
            lacks an argument.
        UnsupportedError: a group for a backend without groups, or an image's program for one without images.
    """
    for job in jobs.values():
        for name in job.dependencies:
            if name not in jobs:
                raise ConfigError(f"job {job.id!r} depends on {name!r}, which is no job of this experiment")
        for executor in job.executors:
            executor.check()
        for task, executor in zip(job.tasks, job.executors, strict=True):
            check_arguments(task)
            if isinstance(task, Script) and task.is_of_image:
                _check_runs_image(job.id, executor)
        executor = job.executors[0]
        if job.group and Capability.GROUPS not in executor.capabilities:
            name = type(executor).__name__
            raise UnsupportedError(
                f"{name} cannot run {job.id!r}, a group; add its tasks one by one,"
                " or use an executor with groups",
                executor=name,
                capability="GROUPS",
            )
    try:
        graphlib.TopologicalSorter({job.id: job.dependencies for job in jobs.values()}).prepare()
    except graphlib.CycleError as exc:
        raise ConfigError("jobs depend on each other in a circle: " + " → ".join(exc.args[1])) from exc


def _check_runs_image(job_id: str, executor: Executor) -> None:
    """Refuse to run an image's own ENTRYPOINT where there is no image, or something would stand before it."""
    name, launcher = type(executor).__name__, get_launcher(executor.launcher)
    if Capability.IMAGES not in executor.capabilities:
        raise UnsupportedError(
            f'{name} cannot run {job_id!r}, a Script(entrypoint="") without a path, as its jobs are not in'
            " images; say what is to run, or use run.DockerExecutor",
            executor=name,
            capability="IMAGES",
        )
    if type(launcher) is not Launcher or launcher.nsys_profile:
        raise UnsupportedError(
            f"{name} cannot run {job_id!r}, an image's own ENTRYPOINT, by {type(launcher).__name__}, which"
            " starts commands; leave the launcher out, or give the command as a Script's path",
            executor=name,
            capability="launcher",
        )


def check_launchers(jobs: Iterable[Job]) -> None:
    """Find out whether what the jobs' launchers start is installed, where that is on this machine.

    Raises:
        MissingDependencyError: a module is missing.
        ConfigError: a program is missing.
    """
    for job in jobs:
        for executor in job.executors:
            launcher = get_launcher(executor.launcher)
            if executor.shares_files():
                what = f"job {job.id!r}, started by {type(launcher).__name__},"
                programs = ["nsys"] if launcher.nsys_profile else []
                check_installed(what, launcher.requires, programs, executor.python, executor.env_vars)


def check_secrets(jobs: Iterable[Job]) -> None:
    """Find out whether all secrets of executors and tasks have a value, before anything is started.

    Raises:
        ConfigError: one has none.
    """
    for job in jobs:
        for secret in job.secrets():
            secret.check()
