"""A job: one task with its executor, or a group of tasks that start and end together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from nemo_run.config import Config, Partial, Script, get_type_namespace
from nemo_run.core.execution.base import Executor
from nemo_run.errors import ConfigError
from nemo_run.run.plugin import Plugin
from nemo_run.run.store import JobEntry, folder_name

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


def as_task(task: Any) -> Task:
    """A function, class, Config, Partial or Script as a task.

    Raises:
        ConfigError: it is none of these, or a function no other process could find.
    """
    if isinstance(task, (Config, Partial, Script)):
        return task
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


def role_names(job_id: str, tasks: list[Task]) -> list[str]:
    """The job's id for one task; for a group each task's short name, told apart by numbers."""
    if len(tasks) == 1:
        return [job_id]
    names: list[str] = []
    for task in tasks:
        short = task_name(task) if isinstance(task, Script) else task_name(task).rpartition(".")[2]
        names.append(unique_name(short, names))
    return names
