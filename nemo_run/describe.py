"""Printing what a task takes, and what it would be called with."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import fiddle as fdl

from nemo_run.drawing import name_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def dryrun_fn(task: Any, executor: Any = None, build: bool = False) -> None:
    """Print the arguments a task would be called with, and its executor's fields if one is given.

    With `build=True` (default: False) its objects are built, as a check; nothing is called.

    Raises:
        whatever building raises.
    """
    from rich.console import Console

    console = Console()
    console.print(_table("Resolved Arguments", task))
    if executor is not None:
        console.print(_table("Executor", executor))
    if build and isinstance(task, fdl.Buildable):
        fdl.build(task)


def help(
    entity: Any, with_docs: bool = True, console: Console | None = None, namespace: str | None = None
) -> None:
    """Print the arguments of a function, class or config with their types and defaults.

    `with_docs` (default: True) adds its docstring; `namespace` (default: its module) goes before the name.
    """
    import rich
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    target = entity.__fn_or_cls__ if isinstance(entity, fdl.Buildable) else entity
    doc = inspect.getdoc(target) if with_docs else None
    parts: list[RenderableType] = [Text(doc + "\n")] if doc else []
    title = f"{namespace or getattr(target, '__module__', '')}.{name_of(target)}".lstrip(".")
    panel = Panel(Group(*parts, _parameters(entity, target)), title=title, title_align="left")
    (console or rich.get_console()).print(panel)


def _table(title: str, described: Any) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    name, rows = _arguments(described)
    table = Table("Argument", "Value", title=f"{title} of {name}", title_justify="left")
    for argument, value in rows:
        table.add_row(Text(str(argument)), Text(value if isinstance(value, str) else repr(value)))
    return table


def _arguments(described: Any) -> tuple[str, Iterator[tuple[str, Any]]]:
    """What a task or executor is called, and its arguments with their values."""
    if isinstance(described, fdl.Buildable):
        set_or_default = fdl.ordered_arguments(described, include_defaults=True)
        return name_of(described.__fn_or_cls__), iter(set_or_default.items())
    if dataclasses.is_dataclass(described) and not isinstance(described, type):
        names = [f.name for f in dataclasses.fields(described) if f.repr and not f.name.startswith("_")]
        return type(described).__name__, ((name, getattr(described, name)) for name in names)
    defaults = _signature(described).items()
    return name_of(described), ((n, p.default) for n, p in defaults if p.default is not p.empty)


def _parameters(entity: Any, target: Any) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    given = entity.__arguments__ if isinstance(entity, fdl.Buildable) else {}
    table = Table("Argument", "Type", "Value" if given else "Default")
    for name, parameter in _signature(target).items():
        default = "required" if parameter.default is parameter.empty else repr(parameter.default)
        value = repr(given[name]) if name in given else default
        table.add_row(*map(Text, (name, _type_text(parameter), value)))
    return table


def _signature(target: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}


def _type_text(parameter: inspect.Parameter) -> str:
    kind = parameter.annotation
    return (
        "" if kind is parameter.empty else kind if isinstance(kind, str) else inspect.formatannotation(kind)
    )
