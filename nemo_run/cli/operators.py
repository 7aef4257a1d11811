"""What `+=`, `-=`, `*=`, `/=`, `|=` and `&=` make of a value; it is never changed itself."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nemo_run.cli.kinds import container_of, item_kind, kind_text, members, sort_of
from nemo_run.cli.syntax import shown
from nemo_run.errors import OverrideError


@dataclass(frozen=True, repr=False)
class Absent:
    """What an argument has that has no value yet, with the reason."""

    why: str

    def __repr__(self) -> str:
        return self.why


MISSING = Absent("not set")


_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "+=": operator.add, "-=": operator.sub, "*=": operator.mul, "/=": operator.truediv,
    "|=": operator.or_, "&=": operator.and_,
}  # fmt: skip


def operated(sign: str, value: Any, kind: Any, read: Callable[[Any], Any], is_one: bool) -> Any:
    """What an operator makes of a value; `is_one` says that a single item was given, not a list of them."""
    if type(value) in (int, float) and sign in ("+=", "-=", "*=", "/="):
        return _calculated(sign, value, kind, read)
    if type(value) is str and sign == "+=":
        return value + read(str)
    if type(value) in (list, tuple) and sign == "+=":
        return value + type(value)(_more(value, kind, read, is_one))
    if type(value) in (set, frozenset) and sign in ("|=", "&=", "-="):
        return type(value)(_SIGNS[sign](value, read(kind_of(value, kind))))
    if type(value) is dict and sign == "|=":
        return {**value, **read(kind_of(value, kind))}
    if value is None or isinstance(value, Absent):
        raise OverrideError(f"{sign} finds no value to change: it is {value!r}; set it with =")
    raise OverrideError(f"{sign} is not for {shown(value)}; set it with =")


def _calculated(sign: str, value: int | float, kind: Any, read: Callable[[Any], Any]) -> Any:
    operand = read(int | float)
    try:
        made = _SIGNS[sign](value, operand)
    except ArithmeticError as exc:
        raise OverrideError(f"{value} {sign[0]} {operand}: {exc}") from None
    sorts = {sort_of(member) for member in members(kind)}
    if sorts & {"any", "float"}:
        return made if sorts & {"any", "int"} else float(made)
    if "int" in sorts and made == made // 1 and abs(made) < 1e300:
        return int(made)
    raise OverrideError(f"{value} {sign[0]} {operand} is {made}, and {kind_text(kind)} is wanted")


def _more(value: Any, kind: Any, read: Callable[[Any], Any], is_one: bool) -> Any:
    """The items to append: those of a list, else a single one."""
    whole = kind_of(value, kind)
    if not is_one:
        try:
            return read(whole)
        except OverrideError as exc:
            problem = exc
        try:
            return [read(item_kind(whole, -1, type(value)))]  # a list of lists, given one of them
        except OverrideError:
            raise problem from None
    item = read(item_kind(whole, -1, type(value)))
    # A factory of the argument's own may make the whole list.
    return item if isinstance(item, (list, tuple)) else [item]


def kind_of(value: Any, kind: Any) -> Any:
    """The member of an annotation that a container is of."""
    fits = [m for m in members(kind) if sort_of(m) == "container" and container_of(m) is type(value)]
    return fits[0] if fits else type(value)
