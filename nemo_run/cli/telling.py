"""Errors about arguments: which one, what it wants, and where it is declared."""

from __future__ import annotations

import ast
import inspect
import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nemo_run.cli.kinds import kind_text
from nemo_run.errors import OverrideError, suggestion

_FIELDS = "__dataclass_fields__"


def unknown_argument(key: str, name: str, target: Any, known: list[str]) -> OverrideError:
    """The error about an argument that a function or class does not take."""
    where = declared_at(target)
    message = (
        f"unknown argument {key!r}{suggestion(name, known)} ({call_name(target)}{where and f', {where}'})"
    )
    return OverrideError(message, argument=key, choices=known)


@contextmanager
def explaining(target: Any, name: str, kind: Any, key: str = "") -> Iterator[None]:
    """Say with an error which argument it is about, what it wants, and where it is declared."""
    try:
        yield
    except OverrideError as exc:
        if exc.argument:  # it says so itself
            raise
        where = declared_at(target, name)
        place = f"{name}: {kind_text(kind)} of {call_name(target)}{where and f', {where}'}"
        raise OverrideError(
            f"{key or name}: {exc} ({place})", argument=key or name, choices=exc.choices
        ) from exc


def call_name(target: Any) -> str:
    """What a function or class is called."""
    return getattr(target, "__qualname__", None) or repr(target)


def declared_at(target: Any, argument: str = "") -> str:
    """`file:line` of a function or class, or of one of its arguments; nothing where nobody can say."""
    try:
        owner = _declarer(inspect.unwrap(target), argument)
        lines, first = inspect.getsourcelines(owner)
        file = inspect.getsourcefile(owner) or ""
    except (OSError, TypeError, ValueError):
        return ""
    below_here = os.path.relpath(file)
    shown = file if below_here.startswith("..") else below_here
    return f"{shown}:{max(first, 1) + _line_within(lines, argument)}"


def _declarer(target: Any, argument: str) -> Any:
    """The class or function whose source has the argument."""
    if not isinstance(target, type):
        return target
    for cls in target.__mro__:
        if argument in inspect.get_annotations(cls):
            return cls
        if (
            argument
            and inspect.isfunction(init := cls.__dict__.get("__init__"))
            and not hasattr(cls, _FIELDS)
        ):
            return init
    return target


def _line_within(lines: list[str], argument: str) -> int:
    """How many lines below its first an argument stands in a function's or class's source."""
    try:
        [tree] = ast.parse(textwrap.dedent("".join(lines))).body
    except (SyntaxError, ValueError):
        return 0
    fields = tree.body if isinstance(tree, ast.ClassDef) else ()
    found = [f.lineno for f in fields if isinstance(f, ast.AnnAssign) and ast.unparse(f.target) == argument]
    if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)):
        found = [
            node.lineno for node in ast.walk(tree.args) if isinstance(node, ast.arg) and node.arg == argument
        ]
    return found[0] - 1 if found else tree.lineno - 1 if hasattr(tree, "lineno") else 0
