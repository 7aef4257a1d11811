"""Typer without its wait: since 0.29 it loads pydantic, which takes 80 ms, even to take a text as a text."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand


class App(typer.Typer):
    """A Typer whose commands start quickly."""

    def command(self, *args: Any, **settings: Any) -> Any:
        """As Typer's own."""
        return super().command(*args, **{"cls": _Command, **settings})


class _Command(TyperCommand):
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for param in self.params:
            # Older versions have no such attribute, and do not need one.
            if getattr(param, "_runtime_param", True) is None and param.nargs == 1 and not param.multiple:
                param._runtime_param = _AsItIs()
        return super().parse_args(ctx, args)


class _AsItIs:
    """Stands in for Typer's conversion where there is nothing to convert."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value if it is of its type already; else what Typer makes of it."""
        if value is None or type(value) is param.type_descriptor.annotation:
            return value
        param._runtime_param = None
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)
