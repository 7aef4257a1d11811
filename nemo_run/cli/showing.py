"""What a command would run, for people: the arguments, the executor, the plugins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import fiddle as fdl

from nemo_run.drawing import name_of

if TYPE_CHECKING:
    from nemo_run.cli.entrypoints import Entrypoint
    from nemo_run.cli.request import Request


def show(entry: Entrypoint, request: Request, *, err: bool = False) -> None:
    """Print a task's arguments and where it would run; with `err` (default: False) on standard error."""
    stream = sys.stderr if err else sys.stdout
    print(_block(f"Arguments of {entry.name}", argument_rows(request.task)), file=stream)
    if entry.enable_executor:
        settings = request.settings
        executor = [("run.executor", _name(settings.executor)), *rows(settings.executor, "run.executor")]
        plugins = rows(settings.plugins, "run.plugins")
        print(_block("Where and how it runs", [*executor, *plugins]), file=stream, flush=True)


def _block(title: str, found: list[tuple[str, str]]) -> str:
    width = max((len(key) for key, _ in found), default=0)
    lines = [f"  {key:<{width}}  {text}" for key, text in found] or ["  none"]
    return "\n".join([title, *lines])


def argument_rows(task: Any) -> list[tuple[str, str]]:
    """A task's arguments with their values, those that are configs with what is set in them."""
    return rows(task, "")


def rows(value: Any, key: str) -> list[tuple[str, str]]:
    """What is inside of a config, list, tuple or dict, each under the key that an override would have."""
    return list(_rows(value, key))


def _rows(value: Any, key: str) -> Iterator[tuple[str, str]]:
    for name, inner in _inside(value, key):
        yield name, _name(inner)
        if _is_open(inner):
            yield from _rows(inner, name)


def _inside(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, fdl.Buildable):
        # Of the task itself all arguments are shown, of what is in it those that are set.
        for name, inner in fdl.ordered_arguments(value, include_defaults=not key).items():
            yield f"{key}.{name}".removeprefix("."), inner
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield f"{key}[{name!r}]", inner
    elif isinstance(value, (list, tuple)):
        for at, inner in enumerate(value):
            yield f"{key}[{at}]", inner


def _is_open(value: Any) -> bool:
    """Whether there is a config in it, which its own rows show better."""
    if isinstance(value, dict):
        return any(map(_is_open, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_is_open, value))
    return isinstance(value, fdl.Buildable)


def _name(value: Any) -> str:
    if isinstance(value, fdl.Buildable):
        return f"{name_of(value.__fn_or_cls__)}:" if value.__arguments__ else name_of(value.__fn_or_cls__)
    if _is_open(value):
        return f"{len(value)} {'item' if len(value) == 1 else 'items'}:"
    return repr(value)
