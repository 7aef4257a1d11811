"""Typer without its wait: since 0.29 it loads pydantic, which takes 80 ms, even to take a text as a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

_F = TypeVar("_F", bound=Callable[..., Any])


class App(typer.Typer):
    """A Typer whose commands start quickly."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"cls": _Group, **settings})

    def command(self, name: str | None = None, **settings: Any) -> Callable[[_F], _F]:
        """As Typer's own."""
        return super().command(name, **{"cls": _Command, **settings})


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _converting_less(super().get_params(ctx))


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _converting_less(super().get_params(ctx))


def _converting_less(params: list[Any]) -> list[Any]:
    for param in params:
        # Older versions have no such attribute, and do not need one.
        if getattr(param, "_runtime_param", True) is None and param.nargs == 1 and not param.multiple:
            param._runtime_param = _AsItIs()
    return params


class _AsItIs:
    """Stands in for Typer's conversion where there is nothing to convert."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value if it is of its type already; else what Typer makes of it."""
        if value is None or type(value) is param.type_descriptor.annotation:
            return value
        param._runtime_param = None
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)
