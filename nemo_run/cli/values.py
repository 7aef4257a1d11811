"""Values read from text, by the annotation of what they are for."""

from __future__ import annotations

import enum
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from pathlib import PurePath
from typing import Any

from nemo_run.cli.kinds import (
    a_kind,
    argument_kinds,
    config_kind,
    container_of,
    dtype_module,
    fixed_length,
    in_order,
    kind_text,
    members,
    plain_kind,
    sort_of,
    takes_text,
)
from nemo_run.cli.syntax import (
    call_arguments,
    contents,
    is_quoted,
    items,
    parse_call,
    shortened,
    split,
    unquoted,
)
from nemo_run.cli.telling import call_name, explaining, unknown_argument
from nemo_run.errors import ConfigError, OverrideError, suggestion

#: An int may be typed as 1e6; more digits than these are a slip.
_MOST_DIGITS = 300
_INT = re.compile(r"[-+]?(0[xX][\da-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[\d_]+)", re.ASCII)
_WHOLE = re.compile(r"([-+]?)(\d+)(?:\.(\d+))?[eE]\+?(\d{1,3})", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?", re.ASCII)
_TRUE, _FALSE = ("true", "yes", "1", "on"), ("false", "no", "0", "off")
_NONE = ("none", "null")
_NUMBERS = ("literal", "int", "float")


class Reader:
    """Reads texts by annotations; subclasses know what else a name may stand for."""

    def at(self, owner: Any, argument: str) -> Reader:
        """The reader for an argument of a function or class."""
        return self

    def made(self, text: str, kind: Any) -> list[Any]:
        """What a text stands for beyond values, in a list; an empty list where it is nothing such."""
        return []

    def default(self, kind: Any) -> list[Any]:
        """What stands for an argument that is not set, in a list; an empty list where nothing does."""
        return []

    def choices(self, kind: Any) -> list[str]:
        """The names that stand for something of this annotation."""
        return []

    def read(self, text: str, kind: Any) -> Any:
        """The value that a text means for an argument of this annotation.

        Raises:
            OverrideError: it means none.
        """
        kind = plain_kind(kind)
        if not takes_text(kind) and (made := self.made(text, kind)):
            return made[0]
        return _READERS[sort_of(kind)](self, text, kind)

    def bound(self, target: Any, by_place: list[str], by_name: dict[str, str]) -> inspect.BoundArguments:
        """The arguments typed for a function or class, each read by its annotation.

        Raises:
            OverrideError: one is not taken, or has no such value.
        """
        try:
            signature, kinds = inspect.signature(target), argument_kinds(target)
        except (TypeError, ValueError):
            raise OverrideError(f"nobody can say what arguments {call_name(target)} takes") from None
        _check_names(signature, by_name, target)
        try:
            bound = signature.bind_partial(*by_place, **by_name)
        except TypeError as exc:
            raise OverrideError(f"{call_name(target)}: {exc}") from None
        for name, given in bound.arguments.items():
            kind, reader = kinds.get(name, Any), self.at(target, name)
            with explaining(target, name, kind):
                bound.arguments[name] = _each(given, reader, kind)
        return bound


def _each(given: Any, reader: Reader, kind: Any) -> Any:
    """What was typed for one parameter: a text, or several for `*args` and `**kwargs`."""
    if isinstance(given, dict):
        return {name: reader.read(text, kind) for name, text in given.items()}
    if isinstance(given, tuple):
        return tuple(reader.read(text, kind) for text in given)
    return reader.read(given, kind)


def _check_names(signature: inspect.Signature, given: Iterable[str], target: Any) -> None:
    parameters = signature.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in given:
        if name not in known:
            raise unknown_argument(name, name, target, known)


def parse_value(text: str, kind: Any = Any) -> Any:
    """The value that a text means for an annotation (default: whatever Python would read, else the text).

    Raises:
        OverrideError: it means none.
    """
    return Reader().read(text, kind)


def _wrong(text: str, wanted: str) -> OverrideError:
    given = "nothing" if not text.strip() else shortened(text)
    return OverrideError(f"{given} is not {wanted}")


def _none(reader: Reader, text: str, kind: Any) -> None:
    if text.strip().lower() not in _NONE:
        raise _wrong(text, "None")


def _int(reader: Reader, text: str, kind: Any) -> int:
    bare = text.strip()
    try:
        if _INT.fullmatch(bare):
            return int(bare) if bare.lstrip("+-0_").isdecimal() else int(bare, 0)
        if value := _whole(bare):
            return value[0]
    except ValueError:
        pass
    raise _wrong(text, "an int")


def _whole(text: str) -> list[int]:
    """A whole number typed with an exponent, such as 1.5e3, in a list; an empty list for anything else."""
    found = _WHOLE.fullmatch(text)
    if not found or int(found[4]) > _MOST_DIGITS:
        return []
    fraction = (found[3] or "").rstrip("0")
    zeros = int(found[4]) - len(fraction)
    return [int(found[1] + found[2] + fraction + "0" * zeros)] if zeros >= 0 else []


def _float(reader: Reader, text: str, kind: Any) -> float:
    try:
        return float(text)
    except ValueError:
        raise _wrong(text, "a number") from None


def _bool(reader: Reader, text: str, kind: Any) -> bool:
    bare = text.strip().lower()
    if bare not in _TRUE + _FALSE:
        raise _wrong(text, "true or false (yes, no, on, off, 1, 0)")
    return bare in _TRUE


def _str(reader: Reader, text: str, kind: Any) -> str:
    return unquoted(text)


def _bytes(reader: Reader, text: str, kind: Any) -> bytes:
    try:
        if text[:1] == "b" and is_quoted(text[1:]):
            return unquoted(text[1:]).encode("latin-1")
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _wrong(text, r"a bytes literal; write other letters as \xff") from None


def _path(reader: Reader, text: str, kind: Any) -> PurePath:
    if not text:
        raise _wrong(text, "a path; write . for this folder")
    return typing.cast(PurePath, kind(unquoted(text)))


def _literal(reader: Reader, text: str, kind: Any) -> Any:
    [wanted] = typing.get_args(kind)
    try:
        value = Reader().read(text, type(wanted))
    except OverrideError:
        raise _wrong(text, repr(wanted)) from None
    if type(value) is not type(wanted) or value != wanted:
        raise _wrong(text, repr(wanted))
    return wanted


def _enum(reader: Reader, text: str, kind: Any) -> Any:
    """A member by its name, else by its value."""
    bare = text.strip()
    if bare in kind.__members__:
        return kind.__members__[bare]
    by_value = [member for member in kind if bare == str(member.value)]
    if not by_value and issubclass(kind, enum.Flag) and bare.isdecimal():
        try:
            return kind(int(bare))
        except ValueError:
            pass
    if not by_value:
        names = list(kind.__members__)
        message = f"{shortened(text)} is not {a_kind(kind)}{suggestion(bare, names)}"
        raise OverrideError(message, choices=names)
    return by_value[0]


def _container_of(reader: Reader, text: str, kind: Any) -> Any:
    made, args = container_of(kind), typing.get_args(kind)
    if made is dict:
        return _dict(reader, text, kind)
    brackets = "[(" if made in (list, tuple) else "[({"
    inside = "" if made in (set, frozenset) and text.strip() == "set()" else contents(text, brackets)
    if inside is None:
        example = {list: "[a, b]", tuple: "(a, b) or [a, b]"}.get(made, "{a, b} or [a, b]")
        raise _wrong(text, f"{a_kind(kind)}; write {example}")
    found = items(inside)
    length = fixed_length(kind)
    if length not in (None, len(found)):
        message = f"{shortened(text)} has {len(found)} items, not the {length} of {kind_text(kind)}"
        raise OverrideError(message)
    kinds = args if length else (args[0] if args else Any,) * len(found)
    return _hashed(made, (reader.read(item, inner) for item, inner in zip(found, kinds, strict=True)), text)


def _dict(reader: Reader, text: str, kind: Any) -> dict[Any, Any]:
    key_kind, value_kind = typing.get_args(kind) or (Any, Any)
    pairs = _pairs(text, kind)
    made: dict[Any, Any] = _hashed(
        dict, ((reader.read(k, key_kind), reader.read(v, value_kind)) for k, v in pairs), text
    )
    return made


def _pairs(text: str, kind: Any) -> list[list[str]]:
    inside = contents(text, "{")
    pairs = [split(item, ":", 1) for item in items(inside)] if inside is not None else []
    if inside is None or any(len(pair) != 2 for pair in pairs):
        raise _wrong(text, f"{a_kind(kind)}; write {{key: value}}")
    return pairs


def _hashed(made: Callable[[Iterable[Any]], Any], found: Iterable[Any], text: str) -> Any:
    try:
        return made(found)
    except TypeError:
        raise OverrideError(f"{shortened(text)} has a list, set or dict where only plain values go") from None


def _any(reader: Reader, text: str, kind: Any) -> Any:
    """What Python would read, where it is written as Python would write it; else the text itself."""
    try:
        return _python(text)
    except OverrideError:
        return text


def _python(text: str) -> Any:
    bare = text.strip()
    if bare in ("None", "True", "False"):
        return {"None": None, "True": True, "False": False}[bare]
    if is_quoted(bare):
        return unquoted(bare)
    if bare[:1] == "b" and is_quoted(bare[1:]):
        return _bytes(_LITERALS, bare, bytes)
    if bare[:1] in ("[", "(", "{") or bare == "set()":
        return _LITERALS.read(bare, list if bare[0] == "[" else tuple if bare[0] == "(" else _braces(bare))
    if re.fullmatch(r"[-+]?(0[xX][\da-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|0+|[1-9][\d_]*)", bare, re.ASCII):
        return _int(_LITERALS, bare, int)
    if _NUMBER.fullmatch(bare) and not bare.lstrip("+-").replace("_", "").isdecimal():
        return _float(_LITERALS, bare, float)
    raise _wrong(text, "written as Python would write it")


def _braces(text: str) -> type:
    inside = items(contents(text, "{") or "")
    return set if text == "set()" or (inside and len(split(inside[0], ":", 1)) == 1) else dict


class _LiteralReader(Reader):
    """Reads what Python would read, and nothing else; `(a)` is no tuple."""

    def read(self, text: str, kind: Any) -> Any:
        if kind is Any:
            return _python(text)
        if kind is tuple and len(found := items(contents(text, "(") or "")) == 1 and not text.endswith(",)"):
            raise _wrong(found[0], "a tuple")
        return super().read(text, kind)


_LITERALS = _LiteralReader()


def _union(reader: Reader, text: str, kind: Any) -> Any:
    """By the member that would write it just so, else by the first that can read it; as text at last."""
    inner = members(kind)
    if str in inner and is_quoted(text):
        return unquoted(text)
    found: list[tuple[Any, str]] = []
    problems = []
    for member in in_order(kind):
        try:
            found.append((reader.read(text, member), sort_of(member)))
        except OverrideError as exc:
            problems.append(exc)
    if not found:
        raise _none_fits(text, kind, problems)
    # 1 is an int and 1e22 a float where both are wanted, though each could be read as the other.
    just_so = (value for value, sort in found if sort in _NUMBERS and repr(value) == text.strip())
    return next(just_so, found[0][0])


def _none_fits(text: str, kind: Any, problems: list[OverrideError]) -> OverrideError:
    """What is wrong with the only member that matters, else with all of them."""
    inner = members(kind)
    if all(sort_of(member) == "literal" for member in inner):
        choices = [str(typing.get_args(member)[0]) for member in inner]
        return OverrideError(f"{shortened(text)} is none of {', '.join(choices)}", choices=choices)
    told = [problem for problem in problems if not str(problem).endswith(" is not None")]
    return told[0] if len(told) == 1 else _wrong(text, f"a value for {kind_text(kind)}")


def _dtype(reader: Reader, text: str, kind: Any) -> Any:
    cls = typing.get_origin(kind) or kind
    module = dtype_module(cls)
    name = text.strip().removeprefix(f"{module.__name__}.").removeprefix("np.")
    if module.__name__ == "torch":
        value = vars(module).get(name)  # not getattr, by which torch imports more of itself
    else:
        try:
            value = cls(name) if re.fullmatch(r"[<>=|]?\w+(\[\w+\])?", name, re.ASCII) else None
        except (TypeError, ValueError, DeprecationWarning):
            value = None
    if not isinstance(value, cls):
        raise _wrong(text, f"a {module.__name__}.dtype such as float32")
    return value


def _class(reader: Reader, text: str, kind: Any) -> Any:
    """A Config of a class, written as `{size: 3}` or `Model(size=3)`; nothing of it is called."""
    name, target = config_kind(kind)
    if is_dataclass(target) and contents(text, "{") is not None:
        pairs = {unquoted(key): value for key, value in _pairs(text, kind)}
        return _config(name, target, reader.bound(target, [], pairs))
    call = parse_call(text)
    if call and call.arguments is not None and isinstance(target, type) and call.name == target.__name__:
        return _config(name, target, reader.bound(target, *call_arguments(call.arguments)))
    known = reader.choices(kind)
    hint = suggestion(call.name if call else text, known) or "; no factory for it is registered"
    raise OverrideError(f"{shortened(text)} is not {a_kind(kind)}{hint}", choices=known)


def _config(name: str, target: Any, bound: inspect.BoundArguments) -> Any:
    from nemo_run import config  # only this needs Fiddle

    try:
        return getattr(config, name)(target, *bound.args, **bound.kwargs)
    except ConfigError as exc:
        raise OverrideError(str(exc)) from exc


_READERS: Mapping[str, Callable[[Reader, str, Any], Any]] = {
    "none": _none, "int": _int, "float": _float, "bool": _bool, "str": _str, "path": _path,
    "literal": _literal, "enum": _enum, "container": _container_of, "any": _any, "union": _union,
    "dtype": _dtype, "class": _class, "bytes": _bytes,
}  # fmt: skip
