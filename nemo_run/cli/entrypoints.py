"""Functions as commands: the decorator, the list of them, and what one is told of its run."""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from nemo_run.core.execution.base import Executor
from nemo_run.core.runner import LOADING
from nemo_run.errors import ConfigError, NotFoundError
from nemo_run.run.plugin import Plugin

_Fn = TypeVar("_Fn", bound=Callable[..., Any])


@dataclass(kw_only=True)
class RunContext:
    """What a command line says of its run; a command of type "experiment" gets it as its argument `ctx`."""

    #: What the run is called.
    name: str = ""
    #: Where it runs.
    executor: Executor = None  # type: ignore[assignment]  # the command fills it in
    #: What is applied to each task.
    plugins: list[Plugin] = field(default_factory=list)
    #: Run in this process.
    direct: bool = False
    #: Show what would run, and run nothing.
    dryrun: bool = False
    #: Return as soon as it is on its way.
    detach: bool = False
    #: Print what the jobs print; by default a task's are printed, an experiment's are not.
    tail_logs: bool | None = None
    #: Do not ask before it runs.
    skip_confirmation: bool = False

    def launch(self, experiment: Any, sequential: bool = False) -> dict[str, Any]:
        """Run an experiment as the command line says; returns its values by job id.

        Args:
            experiment: a `run.Experiment` with its jobs added.
            sequential: one job after the other (default: False).

        Raises:
            ConfigError: something cannot work; nothing has been started.
            ExecutionError: a job has not succeeded.
        """
        if self.dryrun:
            experiment.dryrun()
            return {}
        values: dict[str, Any] = experiment.run(
            sequential=sequential, detach=self.detach, tail_logs=bool(self.tail_logs), direct=self.direct
        )
        return values


@dataclass(frozen=True, kw_only=True)
class Entrypoint:
    """A function that is a command."""

    fn: Callable[..., Any]
    name: str
    #: The word before its name: `nemo NAMESPACE NAME`.
    namespace: str
    help: str = ""
    skip_confirmation: bool = False
    enable_executor: bool = True
    default_factory: Any = None
    default_executor: Any = None
    default_plugins: Any = None
    type: Literal["task", "experiment"] = "task"
    #: Values of its options where the command line has none.
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def context(self) -> str:
        """The argument that gets the RunContext; nothing where there is none."""
        return "ctx" if self.type == "experiment" else ""


#: By namespace and name. Decorators run while modules are imported, and have nowhere else to put them.
ENTRYPOINTS: dict[tuple[str, str], Entrypoint] = {}
#: While `nemo run` loads a file: the commands that its main part would have started.
_STARTED: ContextVar[list[Entrypoint] | None] = ContextVar("nemo_run_started", default=None)


@typing.overload
def entrypoint(fn: _Fn) -> _Fn: ...
@typing.overload
def entrypoint(
    fn: None = None,
    *,
    name: str | None = None,
    namespace: str | None = None,
    help: str | None = None,
    skip_confirmation: bool = False,
    enable_executor: bool = True,
    default_factory: Any = None,
    default_executor: Any = None,
    default_plugins: Any = None,
    type: Literal["task", "experiment"] = "task",
) -> Callable[[_Fn], _Fn]: ...
def entrypoint(
    fn: Any = None,
    *,
    name: str | None = None,
    namespace: str | None = None,
    help: str | None = None,
    skip_confirmation: bool = False,
    enable_executor: bool = True,
    default_factory: Any = None,
    default_executor: Any = None,
    default_plugins: Any = None,
    type: Literal["task", "experiment"] = "task",
) -> Any:
    """Make a function a command.

    Args:
        fn: the function, which is returned as it is; by default this is a decorator with options.
        name: the command's name (default: the function's).
        namespace: the word before it, as in `nemo NAMESPACE NAME` (default: the package of its module).
        help: what it does (default: the function's docstring).
        skip_confirmation: do not ask before it runs (default: False).
        enable_executor: it runs on an executor; otherwise it is called in this process (default: True).
        default_factory: what makes the task where there is no --factory: a function, or a factory's name.
        default_executor: where it runs: an Executor, a Config of one, a function, or a factory's name
            (default: a LocalExecutor).
        default_plugins: plugins in the same ways, one or a list.
        type: "task" if the function is to run on the executor, "experiment" if it is to be called here with a
            RunContext as `ctx`, to launch experiments (default: "task").

    Raises:
        ConfigError: the type is none of these, or the function of an experiment has no argument `ctx`.
    """

    def register(fn: Any) -> Any:
        if os.environ.get(LOADING):  # in a job it is only called
            return fn
        made = Entrypoint(
            fn=fn,
            name=name or fn.__name__,
            namespace=namespace or package_of(fn),
            help=help or fn.__doc__ or "",
            skip_confirmation=skip_confirmation,
            enable_executor=enable_executor,
            default_factory=default_factory,
            default_executor=default_executor,
            default_plugins=default_plugins,
            type=type,
        )
        _check(made)
        ENTRYPOINTS[made.namespace, made.name] = made
        return fn

    return register if fn is None else register(fn)


def _check(entry: Entrypoint) -> None:
    if entry.type not in ("task", "experiment"):
        raise ConfigError(f"type={entry.type!r} of {entry.name} is neither 'task' nor 'experiment'")
    if entry.context:
        import inspect

        if "ctx" not in inspect.signature(entry.fn).parameters:
            raise ConfigError(
                f'{entry.name} is of type "experiment" but takes no RunContext; give it an argument'
                " `ctx: run.cli.RunContext`"
            )


def package_of(fn: Any) -> str:
    """The first name of a function's module; for a script, the script's own."""
    module = str(fn.__module__).partition(".")[0]
    if module == "__main__" and (file := getattr(sys.modules["__main__"], "__file__", None)):
        return Path(file).stem
    return module


def entrypoint_of(fn: Callable[..., Any]) -> Entrypoint:
    """The command that a function is, or would be."""
    known = [found for found in ENTRYPOINTS.values() if found.fn is fn]
    return known[-1] if known else undecorated(fn)


def undecorated(fn: Callable[..., Any]) -> Entrypoint:
    """The command that a function would be."""
    return Entrypoint(fn=fn, name=fn.__name__, namespace=package_of(fn), help=fn.__doc__ or "")


def list_entrypoints(namespace: str | None = None) -> dict[str, Any]:
    """The functions that are commands: by namespace and name, or those of one namespace by name.

    Installed packages that offer commands are imported.

    Raises:
        NotFoundError: no command has this namespace.
    """
    from nemo_run.cli.factories import REGISTRY

    REGISTRY.all()
    found: dict[str, dict[str, Any]] = {}
    for entry in ENTRYPOINTS.values():
        found.setdefault(entry.namespace, {})[entry.name] = entry.fn
    if namespace is None:
        return found
    if namespace not in found:
        raise NotFoundError("namespace of commands", namespace, found)
    return found[namespace]


def main(
    fn: Callable[..., Any],
    default_factory: Any = None,
    default_executor: Any = None,
    default_plugins: Any = None,
    cmd_defaults: Mapping[str, Any] | None = None,
) -> None:
    """Be the command that a function is: do as the command line says; leave with an error if that fails.

    It returns when the function has been run; after `--help`, `--dryrun` and the like the script ends here.

    Args:
        fn: a function, decorated with `entrypoint` or not.
        default_factory: as for `entrypoint`.
        default_executor: as for `entrypoint`.
        default_plugins: as for `entrypoint`.
        cmd_defaults: options where the command line has none, such as `{"skip_confirmation": True}`.
    """
    given = {
        "default_factory": default_factory,
        "default_executor": default_executor,
        "default_plugins": default_plugins,
        "defaults": cmd_defaults,
    }
    entry = replace(entrypoint_of(fn), **{name: value for name, value in given.items() if value is not None})
    if (started := _STARTED.get()) is not None:
        started.append(entry)
        return
    if os.environ.get(LOADING):
        from nemo_run.run.launch import refuse_while_loading

        refuse_while_loading()
    from nemo_run.cli.command import run_command
    from nemo_run.cli.guard import guarded

    program = os.path.basename(sys.argv[0])
    with guarded(program):
        run_command(entry, sys.argv[1:], _call() or program)


def _call() -> str:
    """How the running script was called, if it was by `python`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"python {sys.argv[0]}" if sys.argv[0].endswith(".py") else ""


@contextmanager
def holding_back() -> Iterator[list[Entrypoint]]:
    """Meanwhile `main` starts nothing; the list gets what it would have started."""
    started: list[Entrypoint] = []
    token = _STARTED.set(started)
    try:
        yield started
    finally:
        _STARTED.reset(token)
