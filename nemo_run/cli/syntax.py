"""The shape of what is typed: keys, operators, lists, calls, quoted texts. Nothing is looked up here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from nemo_run.errors import OverrideError

#: Brackets within brackets, or steps of a key: more than anybody types, and less than the stack holds.
_DEEPEST = 50
_PAIRS = {"[": "]", "(": ")", "{": "}"}

_QUOTED = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""", re.DOTALL)
_ESCAPE = re.compile(r"\\(x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\", "'": "'", '"': '"', "\n": ""}

_STEP = re.compile(r"""(?:^|(?<=.)\.)([^\W\d]\w*)|\[(?:'([^']*)'|"([^"]*)"|([^\[\]'"]+))\]""")
_KEY = r"""[^\W\d]\w*(?:\.[^\W\d]\w*|\['[^']*'\]|\["[^"]*"\]|\[[^\[\]'"]+\])*"""
_OVERRIDE = re.compile(rf"({_KEY})\s*([-+*/|&]?=)(.*)", re.DOTALL)
_CALL = re.compile(r"""([^\s()\[\]{}'",=:]+)(?:\((.*)\))?""", re.DOTALL)
_NAMED = re.compile(r"([^\W\d]\w*)\s*=(?!=)(.*)", re.DOTALL)


class Step(NamedTuple):
    """One step of a key: a name, or what stands in brackets."""

    text: str
    #: "name", "index" (in brackets) or "key" (in brackets and quotes).
    kind: str


@dataclass(frozen=True)
class Override:
    """One `KEY OPERATOR VALUE` as it was typed."""

    key: str
    operator: str
    value: str

    @property
    def steps(self) -> tuple[Step, ...]:
        """The key, step by step."""
        return steps(self.key)

    def __str__(self) -> str:
        return f"{self.key}{self.operator}{self.value}"


class Call(NamedTuple):
    """`name` or `name(1, b=2)`: a name, and the texts of its arguments; None where there are no brackets."""

    name: str
    arguments: str | None


def parse_override(text: str) -> Override:
    """What an argument such as `model.layers[0].size+=1` says.

    Raises:
        OverrideError: it is no override, or its key is no path.
    """
    if found := _OVERRIDE.fullmatch(text):
        return Override(*found.groups())
    key, equals, _ = text.partition("=")
    if not equals:
        raise OverrideError(f"{shortened(text)} is not an override; write NAME=VALUE", argument=text)
    problem = f"{shortened(key)} (in {shortened(text)}) is not a key such as model.layers[0].size"
    raise OverrideError(problem, argument=key)


def steps(key: str) -> tuple[Step, ...]:
    """The steps of a key; raises OverrideError where it is none."""
    if not re.fullmatch(_KEY, key):
        raise OverrideError(f"{shortened(key)} is not a key such as model.layers[0].size", argument=key)
    found = tuple(map(_step, _STEP.finditer(key)))
    if len(found) > _DEEPEST:
        raise OverrideError(f"{shortened(key)} has more than {_DEEPEST} steps", argument=key)
    return found


def _step(found: re.Match[str]) -> Step:
    name, single, double, index = found.groups()
    if name is not None:
        return Step(name, "name")
    return Step(index, "index") if index is not None else Step(single if double is None else double, "key")


def parse_call(text: str) -> Call | None:
    """A text as a name with or without arguments; None where it is something else."""
    found = _CALL.fullmatch(text.strip())
    return Call(*found.groups()) if found else None


def call_arguments(text: str) -> tuple[list[str], dict[str, str]]:
    """The arguments of a call: those by place and those by name.

    Raises:
        OverrideError: brackets do not match, one by place comes after one by name, or a name comes twice.
    """
    by_place: list[str] = []
    by_name: dict[str, str] = {}
    for piece in items(text):
        if named := _NAMED.fullmatch(piece):
            if named[1] in by_name:
                raise OverrideError(f"{named[1]!r} is given twice in {shortened(text)}")
            by_name[named[1]] = named[2].strip()
        elif by_name:
            raise OverrideError(f"{shortened(piece)} comes after an argument with a name; give it one too")
        else:
            by_place.append(piece)
    return by_place, by_name


def contents(text: str, brackets: str) -> str | None:
    """What stands between brackets of these kinds, if they enclose the whole text; else None."""
    text = text.strip()
    if len(text) < 2 or text[0] not in brackets or text[-1] != _PAIRS[text[0]]:
        return None
    return text[1:-1]


def items(text: str) -> list[str]:
    """A text between brackets, split at its commas; one at its end adds nothing.

    Raises:
        OverrideError: brackets do not match, an item is empty, or brackets are nested too deep.
    """
    found = split(text, ",")
    if found and not found[-1]:
        found.pop()
    if not all(found):
        raise OverrideError(f"there is nothing between two commas of {shortened(text)}")
    return found


def split(text: str, separator: str, most: int = -1) -> list[str]:
    """A text in pieces, cut where a separator stands outside of brackets and quotes; at `most` so often.

    Raises:
        OverrideError: brackets do not match, or are nested too deep.
    """
    found: list[str] = []
    opened: list[str] = []
    start = at = 0
    # A quote opens a text only where a value begins: the one in `it's` is an apostrophe.
    fresh = True
    while at < len(text):
        char = text[at]
        if fresh and char in "'\"b" and (quoted := _QUOTED.match(text, at + (char == "b"))):
            at, fresh = quoted.end(), False
            continue
        if char in _PAIRS:
            opened.append(_PAIRS[char])
        elif char in _PAIRS.values() and (not opened or opened.pop() != char):
            raise OverrideError(f"the brackets of {shortened(text)} do not match")
        elif char == separator and not opened and len(found) != most:
            found.append(text[start:at].strip())
            start = at + 1
        if len(opened) > _DEEPEST:
            raise OverrideError(f"{shortened(text)} has more than {_DEEPEST} brackets within brackets")
        fresh = char in "[({,:=" or (fresh and char.isspace())
        at += 1
    if opened:
        raise OverrideError(f"the brackets of {shortened(text)} do not match")
    return [*found, text[start:].strip()]


def is_quoted(text: str) -> bool:
    """Whether a text is one quoted text from end to end."""
    return text[:1] in ("'", '"') and _QUOTED.fullmatch(text) is not None


def unquoted(text: str) -> str:
    """A quoted text as Python reads it; any other as it is."""
    found = _QUOTED.fullmatch(text)
    if not found:
        return text
    return _ESCAPE.sub(_unescaped, found[1] if found[2] is None else found[2])


def _unescaped(found: re.Match[str]) -> str:
    code = found[1]
    if len(code) > 1 and int(code[1:], 16) < 0x110000:
        return chr(int(code[1:], 16))
    return _ESCAPES.get(code, found[0])


def shortened(text: str, most: int = 60) -> str:
    """A text for a message: its repr, cut where it is long."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}…"


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    try:
        text = repr(value)
    except Exception:  # whatever a foreign __repr__ raises, the message is about something else
        text = object.__repr__(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
