"""Values as text that reads back as the same values."""

from __future__ import annotations

import enum
import math
import re
import typing
from pathlib import PurePath
from typing import Any

from nemo_run.cli.kinds import (
    argument_kinds,
    config_kind,
    in_order,
    item_kind,
    kind_text,
    plain_kind,
    sort_of,
)
from nemo_run.cli.syntax import shown
from nemo_run.cli.values import Reader
from nemo_run.errors import OverrideError

#: A path that needs no quotes between brackets.
_WORD = re.compile(r"[\w./~@%+-]+")
_BRACKETS: dict[type, str] = {list: "[]", tuple: "()", set: "{}", frozenset: "{}", dict: "{}"}


def format_value(value: Any, kind: Any = Any) -> str:
    """A value as the text that `parse_value` reads back as the same for this annotation (default: Any).

    Raises:
        OverrideError: there is no such text.
    """
    kind = plain_kind(kind)
    for inside in (False, True):
        text = _written(value, kind, inside)
        if _reads_back(text, value, kind):
            return text
    raise _unwritten(value, kind)


def _unwritten(value: Any, kind: Any) -> OverrideError:
    return OverrideError(f"{shown(value)} cannot be written as a text for {kind_text(kind)}")


def _written(value: Any, kind: Any, inside: bool = False) -> str:
    """A value as text; `inside` brackets, texts have quotes."""
    if sort_of(kind) == "union":
        return _written_as_member(value, kind, inside)
    if isinstance(value, enum.Enum):
        return value.name if type(value).__members__.get(str(value.name)) is value else str(value.value)
    if type(value) is str:
        return repr(value) if inside else value
    if isinstance(value, PurePath):
        return repr(str(value)) if inside and not _WORD.fullmatch(str(value)) else str(value)
    if type(value) is float and kind is Any and value in (math.inf, -math.inf):
        return "1e999" if value > 0 else "-1e999"  # in Python, inf is but a name
    if value is None or type(value) in (bool, int, float, bytes):
        return repr(value)
    if type(value) in _BRACKETS:
        return _written_items(value, kind)
    if sort_of(kind) == "dtype":
        return str(value).rpartition(".")[2] if type(value).__module__ == "torch" else str(value.str)
    if sort_of(kind) == "class":
        return _written_call(value, kind)
    raise _unwritten(value, kind)


def _written_as_member(value: Any, kind: Any, inside: bool) -> str:
    for member in in_order(kind):
        for quoted in {inside, True}:
            try:
                text = _written(value, member, quoted)
            except OverrideError:
                break
            if _reads_back(text, value, member):
                return text
    raise _unwritten(value, kind)


def _written_items(value: Any, kind: Any) -> str:
    made = type(value)
    if made is dict:
        key_kind, value_kind = typing.get_args(kind) or (Any, Any)
        pairs = ((_written(k, key_kind, True), _written(v, value_kind, True)) for k, v in value.items())
        return "{" + ", ".join(f"{k}: {v}" for k, v in pairs) + "}"
    if not value and made in (set, frozenset):
        return "set()"
    found = [_written(item, item_kind(kind, at, made), True) for at, item in enumerate(value)]
    brackets = _BRACKETS[made]
    found = sorted(found) if made in (set, frozenset) else found
    return brackets[0] + ", ".join(found) + ("," if made is tuple and len(found) == 1 else "") + brackets[1]


def _written_call(value: Any, kind: Any) -> str:
    """A Config as the call that it describes."""
    import fiddle

    _, target = config_kind(kind)
    if not isinstance(value, fiddle.Buildable) or value.__fn_or_cls__ is not target:
        raise _unwritten(value, kind)
    hints = argument_kinds(target)
    arguments = fiddle.ordered_arguments(value)
    if not all(isinstance(name, str) for name in arguments):
        raise _unwritten(value, kind)
    written = (f"{name}={_written(item, hints.get(name, Any), True)}" for name, item in arguments.items())
    return f"{target.__name__}({', '.join(written)})"


def _reads_back(text: str, value: Any, kind: Any) -> bool:
    try:
        return _same(Reader().read(text, kind), value)
    except OverrideError:
        return False


def _same(one: Any, other: Any) -> bool:
    """Equal, with types and the order of what has one."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return _same(list(one.items()), list(other.items()))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, (set, frozenset)):
        return sorted(map(repr, one)) == sorted(map(repr, other))  # a nan is equal to nothing
    return repr(one) == repr(other) if isinstance(one, float) else bool(one == other)
