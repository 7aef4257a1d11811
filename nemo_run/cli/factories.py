"""Factories: functions that a name on the command line may call, and the registry that knows them."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from nemo_run.cli.kinds import (
    config_kind,
    container_of,
    members,
    plain_kind,
    sort_of,
)
from nemo_run.cli.telling import declared_at
from nemo_run.core.runner import LOADING
from nemo_run.errors import ConfigError, NotFoundError, suggestion
from nemo_run.lookup import get_type_namespace

_Fn = TypeVar("_Fn", bound=Callable[..., Any])


@dataclass(frozen=True)
class Factory:
    """A registered function, and what it is for."""

    fn: Callable[..., Any]
    name: str
    #: The type whose Configs it makes (`list[T]` for lists of them), or the function or class it is for.
    makes: Any = None
    #: Under what it is looked up: the type's dotted name, with the argument where it is for one only.
    namespace: str = ""
    #: Whether it stands for an argument that is not set.
    is_default: bool = False

    @property
    def where(self) -> str:
        """`file:line` of the function."""
        return declared_at(getattr(self.fn, "wrapped", self.fn))


class Registry:
    """What is registered, and where more of it is to be found when somebody asks for the first time."""

    def __init__(self, sources: list[Callable[[], None]] | None = None) -> None:
        self.factories: dict[tuple[str, str], Factory] = {}
        #: Each is called once, before the first look-up, and registers what it finds.
        self.sources = sources or []

    def add(self, factory: Factory) -> None:
        """Register a factory; a later one takes the place of an earlier one of the same name and use."""
        # It moves to the end, where the newest are.
        self.factories.pop((factory.namespace, factory.name), None)
        self.factories[factory.namespace, factory.name] = factory

    def all(self) -> list[Factory]:
        """Every factory, in the order of registration."""
        while self.sources:
            self.sources.pop(0)()
        return list(self.factories.values())

    def under(self, namespace: str) -> dict[str, Factory]:
        """The factories looked up under a dotted name, by their own names."""
        return {found.name: found for found in self.all() if found.namespace == namespace}

    def fitting(self, kind: Any, owner: Any = None, argument: str = "") -> dict[str, Factory]:
        """The factories for an annotation, by name; one for the argument itself hides others of its name."""
        # A factory for plain values is that of one argument, and known with it: no need to look further.
        known = self.all() if _has_class(kind) else self.factories.values()
        ranked = [(_rank(found, kind, owner, argument), found) for found in known]
        # Later ones win: the best last.
        best_last = sorted((pair for pair in ranked if pair[0]), key=lambda pair: -pair[0])
        return {found.name: found for _, found in best_last}

    @contextmanager
    def scope(self) -> Iterator[Registry]:
        """Forget, at the end of a `with` block, what it registered."""
        kept, sources = dict(self.factories), list(self.sources)
        try:
            yield self
        finally:
            self.factories, self.sources = kept, sources


def _has_class(kind: Any) -> bool:
    """Whether an annotation, or what it holds, is a class that factories may make."""
    inner = members(kind) if kind is not ... else []
    held = (arg for member in inner if sort_of(member) == "container" for arg in typing.get_args(member))
    return any(sort_of(member) == "class" for member in inner) or any(map(_has_class, held))


def _rank(factory: Factory, kind: Any, owner: Any, argument: str) -> int:
    """How well a factory fits: 1 for the argument itself, 2 for the type, 3 for a subtype, 0 for not."""
    if factory.makes is None:
        places = owner.__mro__ if isinstance(owner, type) else [owner] if owner is not None else []
        return int(any(factory.namespace == f"{get_type_namespace(place)}.{argument}" for place in places))
    return min(filter(None, (_fits(factory.makes, member) for member in members(kind))), default=0)


def _fits(makes: Any, kind: Any) -> int:
    if sort_of(kind) == "container" and sort_of(makes) == "container":
        items = typing.get_args(kind)
        if container_of(kind) is not container_of(makes) or not items:
            return 0
        return max(_fits(typing.get_args(makes)[0], member) for member in members(items[0]))
    if sort_of(kind) != "class" or sort_of(makes) != "class":
        return 0
    wanted = config_kind(kind)[1]
    if wanted is makes:
        return 2
    is_class = isinstance(wanted, type) and isinstance(makes, type)
    return 3 if is_class and issubclass(makes, wanted) else 0


def _load_entry_points() -> None:
    """Import what installed packages offer under `nemo_run.cli`; one that fails is told of, and left out."""
    from importlib.metadata import entry_points

    for entry in entry_points(group="nemo_run.cli"):
        try:
            entry.load()
        except Exception as exc:
            import logging

            logging.getLogger(__name__).warning(
                "cannot load %r of the entry points nemo_run.cli: %s: %s",
                entry.value,
                type(exc).__name__,
                exc,
            )


#: The one registry: decorators run while modules are imported, and have nowhere else to put what they find.
REGISTRY = Registry([_load_entry_points])


# --- registering and finding ----------------------------------------------------------------------------


@typing.overload
def factory(fn: _Fn) -> _Fn: ...
@typing.overload
def factory(
    fn: None = None,
    target: Any = None,
    *,
    target_arg: str | None = None,
    is_target_default: bool = False,
    name: str | None = None,
    namespace: str | None = None,
) -> Callable[[_Fn], _Fn]: ...
def factory(
    fn: Any = None,
    target: Any = None,
    *,
    target_arg: str | None = None,
    is_target_default: bool = False,
    name: str | None = None,
    namespace: str | None = None,
) -> Any:
    """Let a function's name stand for what it makes, on the command line and in files.

    Args:
        fn: the function, which is returned as it is; by default this is a decorator with options.
        target: what it is for: a class, or the function of a command (default: what its annotation says it
            returns: `Config[T]`, `Partial[T]`, a list of them, or T).
        target_arg: it is for this argument of the target only (default: for the target itself).
        is_target_default: it stands for that argument where nothing is given (default: False).
        name: its name (default: that of the function).
        namespace: the dotted name to look it up under (default: the target's).

    Raises:
        ConfigError: there is neither target nor annotation, or the target has no such argument.
    """

    def register(fn: Any) -> Any:
        if os.environ.get(
            LOADING
        ):  # in a job nobody looks it up, and its annotation may be of what is not there
            return fn
        makes = None if target_arg else plain_kind(target) if target is not None else _returned(fn, namespace)
        under = namespace or _namespace(target if target is not None else makes, target_arg)
        REGISTRY.add(Factory(fn, name or fn.__name__, makes, under, is_target_default))
        return fn

    _check_target(target, target_arg, is_target_default)
    return register if fn is None else register(fn)


def _check_target(target: Any, argument: str | None, is_default: bool) -> None:
    if argument and target is None:
        raise ConfigError(f"target_arg={argument!r} needs the target= that has this argument")
    if is_default and not argument:
        raise ConfigError(
            "is_target_default=True needs the target= and target_arg= that it is the default of"
        )
    if argument:
        import inspect

        parameters = inspect.signature(target).parameters
        variadic = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if argument not in parameters and not variadic:
            raise ConfigError(
                f"{target.__qualname__} has no argument {argument!r}{suggestion(argument, list(parameters))}"
            )


def _returned(fn: Any, namespace: str | None) -> Any:
    """What a function's annotation says that it makes: T, or list[T]."""
    try:
        kind = plain_kind(typing.get_type_hints(getattr(fn, "wrapped", fn)).get("return", Any))
    except (NameError, TypeError) as exc:
        raise ConfigError(f"the annotation of {fn.__qualname__} leads nowhere: {exc}; give target=") from exc
    if sort_of(kind) == "container" and container_of(kind) in (list, tuple) and typing.get_args(kind):
        item = config_kind(plain_kind(typing.get_args(kind)[0]))[1]
        return list[item]  # type: ignore[valid-type]  # made as we go
    makes = config_kind(kind)[1] if sort_of(kind) == "class" else None
    if makes is None and not namespace:
        raise ConfigError(
            f"factory {fn.__qualname__} does not say what it makes; "
            f"annotate what it returns (-> run.Config[T]), or give target="
        )
    return makes


def _namespace(target: Any, argument: str | None = None) -> str:
    if sort_of(target) == "container":
        return f"list[{get_type_namespace(typing.get_args(target)[0])}]"
    name = get_type_namespace(target)
    return f"{name}.{argument}" if argument else name


def _found(type_or_namespace: Any) -> dict[str, Factory]:
    if isinstance(type_or_namespace, str):
        return REGISTRY.under(type_or_namespace)
    kind = plain_kind(type_or_namespace)
    return {**REGISTRY.fitting(kind), **REGISTRY.under(_namespace(_target_of(kind)))}


def _target_of(kind: Any) -> Any:
    if sort_of(kind) == "container":
        item = config_kind(plain_kind(typing.get_args(kind)[0]))[1]
        return list[item]  # type: ignore[valid-type]
    return config_kind(kind)[1] if sort_of(kind) == "class" else kind


def resolve_factory(target: Any, name: str) -> Callable[..., Any]:
    """The function registered under a name for a type, a function or a dotted name.

    Raises:
        NotFoundError: there is none.
    """
    known = _found(target)
    if name not in known:
        what = target if isinstance(target, str) else get_type_namespace(target)
        raise NotFoundError(f"factory for {what}:", name, known)
    return known[name].fn


def list_factories(type_or_namespace: Any = None) -> list[Callable[..., Any]]:
    """The functions registered for a type, a function or a dotted name; all of them by default."""
    found = REGISTRY.all() if type_or_namespace is None else _found(type_or_namespace).values()
    return [each.fn for each in found]
