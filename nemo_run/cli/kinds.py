"""What an annotation wants: the sort of value, what it holds, and how it is told."""

from __future__ import annotations

import enum
import sys
import types
import typing
from collections import abc
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar, Union

#: What each annotation of a container makes; the abstract ones make what is usual.
_LISTS = (list, abc.Sequence, abc.MutableSequence, abc.Iterable, abc.Collection)
_SETS = (set, abc.Set, abc.MutableSet)
_DICTS = (dict, abc.Mapping, abc.MutableMapping)
#: The order in which the members of a union are tried: strict ones first, text last.
_ORDER = (
    "none", "literal", "enum", "int", "float", "bool", "container", "dtype", "class",
    "any", "bytes", "path", "str",
)  # fmt: skip
#: Where Config and Partial are from.
_CONFIGS = ("nemo_run.config", "fiddle.")


def plain_kind(kind: Any) -> Any:
    """An annotation without what wraps it: Annotated, NewType, InitVar, a type alias, a TypeVar."""
    while True:
        if typing.get_origin(kind) is Annotated:
            kind = typing.get_args(kind)[0]
        elif hasattr(kind, "__supertype__"):
            kind = kind.__supertype__
        elif type(kind).__name__ == "TypeAliasType":
            kind = kind.__value__
        elif type(kind).__name__ == "InitVar":
            kind = kind.type
        elif isinstance(kind, TypeVar):
            kind = kind.__bound__ or Any
        else:
            return kind


def members(kind: Any) -> list[Any]:
    """The members of a union, a Literal's values among them one by one; of anything else, itself."""
    kind = plain_kind(kind)
    if typing.get_origin(kind) in (Union, types.UnionType):
        return [inner for arg in typing.get_args(kind) for inner in members(arg)]
    if typing.get_origin(kind) is Literal:
        return [Literal[value] for value in typing.get_args(kind)]
    return [kind]


def in_order(kind: Any) -> list[Any]:
    """The members of a union as they are tried: a reader that takes more comes later."""
    return sorted(members(kind), key=lambda member: _ORDER.index(sort_of(member)))


def takes_text(kind: Any) -> bool:
    """Whether any text at all is a value: for str, and unions of nothing but str and None."""
    return {sort_of(member) for member in members(kind)} - {"none"} == {"str"}


def takes_files(kind: Any) -> bool:
    """Whether `@file` can mean a file's contents: not where a text or a path is wanted."""
    return not {sort_of(member) for member in members(kind)} <= {"none", "str", "path", "literal"}


def item_kind(kind: Any, key: Any, default: type) -> Any:
    """The annotation of what a container of this annotation holds at a key; Any where nothing says."""
    for member in members(kind):
        args = typing.get_args(member)
        if args and sort_of(member) == "container" and container_of(member) is default:
            return _held(default, args, key)
    return Any


def _held(container: type, args: tuple[Any, ...], key: Any) -> Any:
    if container is dict:
        return args[-1]
    if container is not tuple or args[-1] is Ellipsis:
        return args[0]  # what `tuple[int, ...]` and all the others say of each item
    return args[key] if isinstance(key, int) and -len(args) <= key < len(args) else Any


def fixed_length(kind: Any) -> int | None:
    """How many items a tuple of this annotation has; None where any number will do."""
    args = typing.get_args(kind)
    if typing.get_origin(kind) is not tuple or args[-1:] == (Ellipsis,):
        return None
    # `tuple[()]` is the empty tuple; before Python 3.11 its arguments are one empty tuple.
    return 0 if args == ((),) else len(args)


def sort_of(kind: Any) -> str:
    """Which of the readers is for an annotation."""
    origin = typing.get_origin(kind) or kind
    if origin in (Union, types.UnionType):
        return "union"
    if origin is Literal:
        return "literal" if len(typing.get_args(kind)) == 1 else "union"
    if kind is None or kind is type(None):
        return "none"
    if kind is Any or kind is object:
        return "any"
    if not isinstance(origin, type):
        return "class"
    if origin in (int, float, bool, str, bytes):
        return str(origin.__name__)
    if issubclass(origin, enum.Enum):
        return "enum"
    if issubclass(origin, PurePath):
        return "path"
    if origin in (*_LISTS, *_SETS, *_DICTS, tuple, frozenset):
        return "container"
    return "dtype" if dtype_module(origin) else "class"


def dtype_module(cls: type) -> Any:
    """The library whose dtypes these are; who has such an annotation has imported it."""
    owner = cls.__module__.partition(".")[0]
    if owner not in ("numpy", "torch") or cls.__name__ not in ("dtype", "DType"):
        return None
    module = sys.modules[owner]
    return module if module.dtype is cls else None


def container_of(kind: Any) -> Any:
    """The container that an annotation of one makes."""
    origin = typing.get_origin(kind) or kind
    by_kinds = ((list, _LISTS), (set, _SETS), (dict, _DICTS))
    return next((made for made, kinds in by_kinds if origin in kinds), origin)


def a_kind(kind: Any) -> str:
    """An annotation with its article: `an Optimizer`."""
    text = kind_text(kind)
    return f"{'an' if text[:1] in 'AEIOUaeiou' else 'a'} {text}"


def kind_text(kind: Any) -> str:
    """An annotation for a message: `int | None`, `list[Model]`."""
    if kind is type(None) or kind is None:
        return "None"
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " | ".join(map(kind_text, args))
    if origin is Annotated:
        return kind_text(args[0])
    if origin is Literal:
        return " | ".join(map(repr, args))
    name = getattr(origin or kind, "__qualname__", None) or repr(kind).removeprefix("typing.")
    if not args:
        return name
    return f"{name}[{', '.join('…' if arg is ... else _listed(arg) for arg in args)}]"


def _listed(arg: Any) -> str:
    return f"[{', '.join(map(kind_text, arg))}]" if isinstance(arg, list) else kind_text(arg)


def config_kind(kind: Any) -> tuple[str, Any]:
    """ "Config" or "Partial", and the class it is of: for `Config[T]`, `Partial[T]` and T itself."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    name = getattr(origin or kind, "__name__", "")
    is_config = name in ("Config", "Partial") and (origin or kind).__module__.startswith(_CONFIGS)
    if is_config:
        return name, plain_kind(args[0]) if args else None
    return "Config", origin or kind


def argument_kinds(target: Any) -> dict[str, Any]:
    """The annotation of each argument of a function or class; Any for one that leads nowhere here."""
    from fiddle.signatures import get_signature, get_type_hints

    hints: dict[str, Any] = get_type_hints(target, include_extras=True)
    if hints:
        return hints
    try:
        parameters = get_signature(target).parameters.values()
    except (TypeError, ValueError):
        return {}
    # One name that is imported for type checkers only takes the hints of all the others away.
    names = getattr(sys.modules.get(getattr(target, "__module__", "")), "__dict__", {})
    return {p.name: _annotation(p.annotation, names) for p in parameters if p.annotation is not p.empty}


def _annotation(kind: Any, names: dict[str, Any]) -> Any:
    if not isinstance(kind, str):
        return kind
    holder = type("Holder", (), {"__annotations__": {"kind": kind}})
    try:
        return typing.get_type_hints(holder, names, include_extras=True)["kind"]
    except (AttributeError, NameError, SyntaxError, TypeError):
        return Any
