"""Functions and classes that tests configure; importable by name, as a user's would be."""

from __future__ import annotations

import enum
from dataclasses import InitVar, dataclass, field
from typing import Annotated, Any, NamedTuple, Optional

import fiddle as fdl

from nemo_run.config import Config, OptionalDefaultConfig, OptionalDefaultPartial, autoconvert


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(NamedTuple):
    x: Any
    y: Any


class Speed(fdl.Tag):
    """How fast."""


@dataclass
class Optimizer:
    lr: float = 0.1
    betas: list[Any] = field(default_factory=list)


@dataclass
class Model:
    optimizer: Any = None
    size: int = 1
    layers: list[Any] = field(default_factory=list)


@dataclass
class Holder:
    """Takes anything anywhere."""

    a: Any = None
    b: Any = None
    c: Any = None


@dataclass(init=False)
class OwnInit:
    """A dataclass with a constructor of its own."""

    left: int = 0

    def __init__(self, total: int, holds: Any = None) -> None:
        self.left = total - 1
        self.holds = holds


@dataclass
class WithInitVar:
    seed: InitVar[int] = 3
    made: int = field(init=False, default=0)


class Plain:
    """No dataclass."""

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self.kwargs == other.kwargs

    @classmethod
    def make(cls) -> Plain:
        return cls()


class Derived(Plain):
    pass


class Text(str):
    pass


def train(model: Any, epochs: int = 1, lr: float = 0.1) -> Any:
    """Train a model."""
    return model, epochs, lr


def anything(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return args, kwargs


def positional(a: Any, b: Any = 2, /, c: Any = 3, *rest: Any, d: Any = 4) -> tuple[Any, ...]:
    return a, b, c, rest, d


def underscored(_hidden: Any = 1, _target_: Any = None, shown: Any = 2) -> tuple[Any, ...]:
    return _hidden, _target_, shown


def with_defaults(
    model: Annotated[Optional[Model], Config[Model]] = None,  # noqa: UP045  # the form the documents use
    optimizer: OptionalDefaultConfig[Optimizer] = None,
    make: OptionalDefaultPartial[Optimizer] = None,
    other: int = 1,
) -> Any:
    return model, optimizer, make, other


@autoconvert
def make_optimizer(lr: float = 0.5) -> Any:
    return Optimizer(lr=lr)


@autoconvert
def make_model(size: int = 2) -> Any:
    return Model(make_optimizer(3.0), size=size)


@autoconvert(partial=True)
def make_partial() -> Any:
    return Model(size=7)


@autoconvert
def make_many() -> Any:
    return [Optimizer(lr=1.0), make_optimizer(2.0), Config(Optimizer, lr=3.0)]
