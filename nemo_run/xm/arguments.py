"""Command-line arguments: positional ones in order, keyword ones by name, and how both become words."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from nemo_run.shell import Expand, concat, is_name
from nemo_run.xm.errors import BadTypeError, BadValueError


@dataclass(frozen=True)
class ShellSafeArg:
    """Text that a shell where the job runs expands (`$HOME/data`); it stays one word.

    It has no text of its own: whoever makes a command of it decides how (see `SequentialArgs.to_argv`).
    """

    arg: str

    def __str__(self) -> str:
        raise RuntimeError(f"{self!r} has no text of its own: a shell makes it where the job runs")


def ARG_ESCAPER(value: object) -> str:
    """A value as one word of shell text; what a `ShellSafeArg` holds stays as it is."""
    return value.arg if isinstance(value, ShellSafeArg) else shlex.quote(str(value))


def ARGV_ESCAPER(value: object) -> str:
    """A value as one word of an argument list, with nothing added; an `Expand` for a `ShellSafeArg`."""
    return Expand(value.arg) if isinstance(value, ShellSafeArg) else str(value)


def _with_equals(flag: str, value: str) -> str:
    return f"{flag}={value}"


class _Flag(str):
    """The name of a keyword argument, at its place among the positional ones."""

    __slots__ = ()


class SequentialArgs:
    """Arguments in their order; a keyword one has one value, and the place where it first stood."""

    __slots__ = ("_items", "_values")

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._values: dict[str, Any] = {}

    @staticmethod
    def from_collection(collection: UserArgs | None) -> SequentialArgs:
        """Arguments from what scripts write: a mapping gives keyword ones, a sequence positional ones.

        Raises:
            BadValueError: it is one text, where a list of texts is meant.
            BadTypeError: it is no collection.
        """
        args = SequentialArgs()
        if isinstance(collection, SequentialArgs):
            args._merge(collection)
        elif isinstance(collection, Mapping):
            for name, value in collection.items():
                args._set(str(name), value)
        elif isinstance(collection, (str, bytes)):
            raise BadValueError(
                f"args are a list or a dict, not the text {collection!r}: write [{collection!r}]"
            )
        elif isinstance(collection, Sequence):
            args._items += collection
        elif collection is not None:
            raise BadTypeError(f"args are a list, a mapping or SequentialArgs, not {collection!r}")
        return args

    def _set(self, name: str, value: Any) -> None:
        if name not in self._values:
            self._items.append(_Flag(name))
        self._values[name] = value

    def _merge(self, other: SequentialArgs) -> None:
        for item in other._items:
            if isinstance(item, _Flag):
                self._set(str(item), other._values[item])
            else:
                self._items.append(item)

    def to_list(
        self,
        escaper: Callable[[Any], str] = ARG_ESCAPER,
        kwargs_joiner: Callable[[str, str], str] = _with_equals,
    ) -> list[str]:
        """The words that a program gets, `--name=value` for keyword arguments.

        True is `--name` and False `--noname`; None leaves the flag out; a list or a tuple repeats the flag
        for each element, but one that holds lists is one value; a member of an enum gives its name.

        Args:
            escaper: Makes text of each part; the default quotes for a shell.
            kwargs_joiner: Makes one word of a flag and its value.
        """
        words: list[str] = []
        for item in self._items:
            if isinstance(item, _Flag):
                words += _flag_words(f"--{item}", f"--no{item}", self._values[item], escaper, kwargs_joiner)
            else:
                words.append(escaper(item))
        return words

    def to_argv(self) -> list[str]:
        """The words as an argument list: nothing is quoted, and a `ShellSafeArg` gives a `run.Expand`."""
        return self.to_list(ARGV_ESCAPER, lambda flag, value: concat(flag, "=", value))

    def to_dict(self, kwargs_only: bool = False) -> dict[str, Any]:
        """Keyword arguments and their values and, unless `kwargs_only`, positional ones as `{text: True}`."""
        if kwargs_only:
            return {str(item): self._values[item] for item in self._items if isinstance(item, _Flag)}
        return {str(item): self._values[item] if isinstance(item, _Flag) else True for item in self._items}

    def rewrite_args(self, rewrite: Callable[[str], str]) -> SequentialArgs:
        """The same arguments with each value that is text put through a function."""

        def rewritten(value: Any) -> Any:
            return rewrite(value) if isinstance(value, str) else value

        args = SequentialArgs()
        args._items = [item if isinstance(item, _Flag) else rewritten(item) for item in self._items]
        args._values = {name: rewritten(value) for name, value in self._values.items()}
        return args

    def remove_args(self, name: str) -> SequentialArgs:
        """The same arguments without the keyword argument of that name and positional ones equal to it."""
        args = SequentialArgs()
        args._items = [item for item in self._items if item != name]
        args._values = {key: value for key, value in self._values.items() if key != name}
        return args

    def __bool__(self) -> bool:
        return bool(self._items)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SequentialArgs):
            return NotImplemented
        return list(self._pairs()) == list(other._pairs())

    __hash__ = None  # type: ignore[assignment]  # it is compared by what it holds

    def _pairs(self) -> Iterator[tuple[bool, Any, Any]]:
        for item in self._items:
            flag = isinstance(item, _Flag)
            yield flag, item, self._values[item] if flag else None

    def __repr__(self) -> str:
        shown = (f"{item}={value!r}" if flag else repr(item) for flag, item, value in self._pairs())
        return f"SequentialArgs({', '.join(shown)})"


#: What scripts write for `args`.
UserArgs: TypeAlias = Mapping[str, Any] | Sequence[Any] | SequentialArgs


def _flag_words(
    flag: str, negated: str, value: Any, escaper: Callable[[Any], str], joiner: Callable[[str, str], str]
) -> list[str]:
    """The words of one keyword argument."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [escaper(flag if value else negated)]
    if type(value) in (list, tuple) and not any(isinstance(element, (list, tuple)) for element in value):
        return [joiner(escaper(flag), escaper(_named(element))) for element in value]
    return [joiner(escaper(flag), escaper(_named(value)))]


def _named(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value


def merge_args(*operands: UserArgs | None) -> SequentialArgs:
    """One after the other: positional arguments add up, of a keyword argument the last value counts.

    A keyword argument keeps its first place: `merge_args({"a": 1, "b": 2}, ["--"], {"a": 3})` is
    `--a=3 --b=2 --`.
    """
    merged = SequentialArgs()
    for operand in operands:
        merged._merge(SequentialArgs.from_collection(operand))
    return merged


def env_from(env_vars: Mapping[str, Any] | None, of: str) -> dict[str, Any]:
    """Environment variables as a dict of our own: texts (numbers become texts) and `run.Secret`s.

    Raises:
        BadValueError: a name is none that a shell takes, or a value is or holds what no environment can.
        BadTypeError: it is no mapping.
    """
    if not isinstance(env_vars, Mapping):
        if env_vars is None:
            return {}
        raise BadTypeError(f"env_vars of {of} is a dict of names and values, not {env_vars!r}")
    return {_env_name(name, of): _env_value(name, value, of) for name, value in env_vars.items()}


def _env_name(name: Any, of: str) -> str:
    if isinstance(name, str) and is_name(name):
        return name
    raise BadValueError(
        f"env_vars of {of}: {name!r} is no name of a variable; use letters, digits and _, and no digit first"
    )


def _env_value(name: str, value: Any, of: str) -> Any:
    if isinstance(value, (int, float)):
        return str(value)
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(text, str):
        if "\0" not in text:
            return text
    elif _is_secret(value):
        return value
    kind = "holds a NUL" if isinstance(text, str) else f"is no text: {value!r}"
    raise BadValueError(f"env_vars of {of}: the value of {name!r} {kind}")


def _is_secret(value: Any) -> bool:
    from nemo_run.secret import Secret

    return isinstance(value, Secret)
