"""What a command line asks for: the task with all that was said of it, and where and how it runs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import fiddle as fdl
from fiddle import daglish

from nemo_run.cli.entrypoints import Entrypoint, RunContext
from nemo_run.cli.export import RESERVED, from_data, read_data
from nemo_run.cli.factories import REGISTRY
from nemo_run.cli.kinds import argument_kinds, kind_text
from nemo_run.cli.overrides import Change, apply, apply_data, apply_overrides
from nemo_run.cli.parsing import FactoryReader
from nemo_run.cli.syntax import Override, call_arguments, contents, parse_call, parse_override, steps
from nemo_run.cli.telling import call_name, declared_at
from nemo_run.cli.values import Reader
from nemo_run.config import Config, Partial, configured
from nemo_run.core.execution.base import Executor
from nemo_run.errors import ConfigError, NemoRunError, OverrideError, suggestion
from nemo_run.lookup import built_in_executors
from nemo_run.run.plugin import Plugin


@dataclass
class Request:
    """A task, and the Config of the RunContext that says where and how it runs."""

    task: Any
    settings: Any

    def context(self) -> RunContext:
        """The RunContext, with its executor and plugins built.

        Raises:
            ConfigError: one of them cannot be built.
        """
        try:
            made: RunContext = fdl.build(self.settings)
        except NemoRunError:
            raise
        except Exception as exc:  # whatever somebody's class raises
            raise ConfigError(
                f"run.executor or a plugin cannot be built: {type(exc).__name__}: {exc}"
            ) from exc
        return made


@dataclass(frozen=True)
class Recorded:
    """A change of what a key leads to, other than by a text."""

    key: str
    change: Change


@dataclass(frozen=True)
class _ExecutorReader(FactoryReader):
    """Reads what an executor's name stands for: a factory's, else that of a class of ours."""

    def at(self, owner: Any, argument: str) -> FactoryReader:
        return _ExecutorReader(self.registry, owner, argument)

    def choices(self, kind: Any) -> list[str]:
        return [*super().choices(kind), *(built_in_executors() if kind is Executor else ())]

    def made(self, text: str, kind: Any) -> list[Any]:
        if made := super().made(text, kind):
            return made
        call = parse_call(text)
        if kind is not Executor or call is None or call.name not in built_in_executors():
            return []
        from importlib import import_module

        cls = getattr(import_module("nemo_run"), call.name)
        bound = self.bound(cls, *call_arguments(call.arguments or ""))
        return [Config(cls, *bound.args, **bound.kwargs)]


def task_reader() -> Reader:
    """Reads a task's arguments: names may stand for factories."""
    return FactoryReader(REGISTRY)


def settings_reader() -> Reader:
    """Reads what `run.NAME=` is given."""
    return _ExecutorReader(REGISTRY)


# --- putting it together --------------------------------------------------------------------------------


def make_request(
    entry: Entrypoint,
    *,
    factory: str | None = None,
    files: Iterable[str | Mapping[str, Any]] = (),
    overrides: Iterable[str | Recorded] = (),
    settings: Mapping[str, Any] | None = None,
) -> Request:
    """What a command line makes of an entrypoint; nothing of the task is called.

    Defaults count least, then the factory, the files, and the overrides, each in their order.

    Args:
        entry: the entrypoint.
        factory: what stands for the whole task: a factory's name, with or without arguments, or `@FILE`.
        files: `FILE` or `FILE:section`, or what such a file holds, each.
        overrides: `NAME=VALUE`, or `run.NAME=VALUE` for the settings, or what was recorded, each.
        settings: fields of the RunContext (default: as the entrypoint has them).

    Raises:
        OverrideError: something names nothing or does not fit, or a required argument is not set.
    """
    request = Request(_base(entry, factory), _settings(entry, settings or {}))
    for file in files:
        _apply_file(request, file)
    for given in overrides:
        if isinstance(given, Recorded):
            apply(request.task, steps(given.key), given.key, given.change, task_reader())
            continue
        override = parse_override(given)
        _refuse_context(entry, override)
        if override.key.startswith("run."):
            _apply_setting(request, override)
        else:
            apply_overrides(request.task, [override], task_reader())
    _fill_in(request.task)
    _check_required(entry, request.task)
    return request


def _base(entry: Entrypoint, factory: str | None) -> Any:
    if factory is not None:
        return as_partial(_read_whole(entry, factory))
    default = entry.default_factory
    if default is None:
        return Partial(entry.fn)
    if isinstance(default, str):
        return as_partial(_read_whole(entry, default))
    return as_partial(copy.deepcopy(default if isinstance(default, fdl.Buildable) else configured(default())))


def _read_whole(entry: Entrypoint, text: str) -> Any:
    """What stands for a whole task."""
    if text.startswith("@"):
        return _from_file(entry, read_data(text[1:]), text[1:])
    reader = task_reader()
    if made := reader.made(text, entry.fn):
        return made[0]
    known = reader.choices(entry.fn)
    hint = suggestion(text.partition("(")[0], known) or "; none is registered"
    raise OverrideError(f"no factory {text!r} for {entry.name}{hint}", argument=text, choices=known)


def _from_file(entry: Entrypoint, data: Any, file: str) -> Any:
    request = Request(Partial(entry.fn), None)
    _apply_data(request, data, file)
    return request.task


def as_partial(made: Any) -> Any:
    """A config of a task as a Partial; raises OverrideError where it is none."""
    if isinstance(made, fdl.Partial):
        return made
    if isinstance(made, fdl.Config):
        return fdl.cast(Partial, made)
    raise OverrideError(f"{made!r} is no task; a Config or Partial is wanted")


def _apply_file(request: Request, file: str | Mapping[str, Any]) -> None:
    data, name = (read_data(file), file) if isinstance(file, str) else (file, "the file")
    settings = data["run"] if isinstance(data, dict) and isinstance(data.get("run"), dict) else None
    if settings is not None:
        data = {key: item for key, item in data.items() if key != "run"}
    _apply_data(request, data, name)
    if settings is not None:
        with _about(name):
            apply_data(_line(request), {"run": settings}, settings_reader())


def _apply_data(request: Request, data: Any, file: str) -> None:
    """Change the task as a file says, or put in its place what the file has."""
    with _about(file):
        if not isinstance(data, dict):
            raise OverrideError(f"there are no names and values in it, but {data!r}")
        if "_factory_" in data:
            rest = {name: item for name, item in data.items() if name != "_factory_"}
            fn = request.task.__fn_or_cls__
            request.task = as_partial(task_reader().read(str(data["_factory_"]), fn))
            data = rest
        if RESERVED & data.keys():
            request.task = as_partial(from_data(data))
        else:
            apply_data(request.task, data, task_reader())


@contextmanager
def _about(file: str) -> Iterator[None]:
    """Say with an error which file it is about."""
    try:
        yield
    except OverrideError as exc:
        raise OverrideError(f"{file}: {exc}", argument=exc.argument, choices=exc.choices) from exc


# --- settings -------------------------------------------------------------------------------------------


def command(run: RunContext) -> None:
    """What `run.NAME` is a name of."""


def _line(request: Request) -> Any:
    return Config(command, run=request.settings)


def _settings(entry: Entrypoint, given: Mapping[str, Any]) -> Any:
    settings = Config(RunContext, **{"skip_confirmation": entry.skip_confirmation, **given})
    if entry.enable_executor:
        settings.executor = _made(entry.default_executor or "LocalExecutor", Executor)
        plugins = entry.default_plugins or []
        each = plugins if isinstance(plugins, (list, tuple)) else [plugins]
        settings.plugins = [inner for plugin in each for inner in _as_list(_made(plugin, Plugin))]
    return settings


def _made(default: Any, kind: Any) -> Any:
    """What a default of the decorator stands for, as a Config where it can be one."""
    if isinstance(default, str):
        return settings_reader().at(RunContext, "").read(default, kind)
    if isinstance(default, type):
        return Config(default)
    is_made = isinstance(default, (fdl.Buildable, kind)) or not callable(default)
    return configured(copy.deepcopy(default) if is_made else default())


def _as_list(made: Any) -> list[Any]:
    return list(made) if isinstance(made, (list, tuple)) else [made]


def _apply_setting(request: Request, override: Override) -> None:
    is_one = contents(override.value, "[(") is None and not override.value.startswith("@")
    if override.key == "run.plugins" and override.operator == "=" and is_one:
        # A factory may make all of them; else it is one.
        whole = settings_reader().at(RunContext, "plugins").made(override.value, list[Plugin])
        if not whole:
            override = replace(override, value=f"[{override.value}]")
    apply_overrides(_line(request), [override], settings_reader())


# --- what is left ---------------------------------------------------------------------------------------


def _refuse_context(entry: Entrypoint, override: Override) -> None:
    if entry.context and override.steps[0].text == entry.context:
        raise OverrideError(
            f"{override.key}: {entry.context} is not for the command line; write run.NAME=VALUE",
            argument=override.key,
        )


def _fill_in(task: Any) -> None:
    """Set what has a factory as its default and is not set."""
    wanted = [found.namespace.rpartition(".")[2] for found in REGISTRY.all() if found.is_default]
    for node, _ in list(daglish.iterate(task)) if wanted else ():
        if isinstance(node, fdl.Buildable):
            for name in set(wanted) & set(node.__signature_info__.valid_param_names) - set(
                node.__arguments__
            ):
                kind = argument_kinds(node.__fn_or_cls__).get(name, Any)
                if made := task_reader().at(node.__fn_or_cls__, name).default(kind):
                    setattr(node, name, made[0])


def _check_required(entry: Entrypoint, task: Any) -> None:
    """Refuse a task with an argument that has to be set and is not."""
    target, kinds = task.__fn_or_cls__, argument_kinds(task.__fn_or_cls__)
    for name in required_arguments(target):
        if name in task.__arguments__ or name == entry.context:
            continue
        choices = task_reader().at(target, name).choices(kinds.get(name, Any))
        known = f", for instance {name}={choices[0]}" if choices else ""
        where = declared_at(target, name)
        place = (f"{name}: {kind_text(kinds[name])} of " if name in kinds else "") + call_name(target)
        raise OverrideError(
            f"{name} is not set; write {name}=VALUE{known} ({place}{where and f', {where}'})",
            argument=name,
            choices=choices,
        )


def required_arguments(target: Any) -> list[str]:
    """The names of the arguments that have no default."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
