"""Functions, classes and factories that tests of the command line use; each tells when its code is run."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Optional

import nemo_run as run

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]

#: What ran: only factories may add to it while a command line is read.
RAN: list[str] = []


class Mode(enum.Enum):
    FAST = "quick"
    SLOW = 2


@dataclass
class Optimizer:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        RAN.append("Optimizer")


@dataclass
class Layer:
    dim: int = 8


@dataclass
class Model:
    size: int = 1
    layers: list[Layer] = field(default_factory=list)
    optimizer: Optimizer = field(default_factory=Optimizer)
    spare: Optimizer = field(default_factory=lambda: Optimizer(3))
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        RAN.append("Model")


@dataclass
class BigModel(Model):
    depth: int = 2


def train(
    model: Model,
    epochs: int = 1,
    lr: float = 0.1,
    name: str = "x",
    steps: list[int] = [1],  # noqa: B006  # whose default must not change
    verbose: bool = False,
    mode: Mode = Mode.FAST,
    precision: Literal["bf16", 16, None] = None,
    out: Path | None = None,
    maybe: Optional[Model] = None,  # noqa: UP045  # as documents write it
    runner: int = 1,
    tags: frozenset[str] = frozenset(),
    given: Model = Model(size=4),  # noqa: B008  # a default that is an object
    hook: Callable[[], None] | None = None,
    unknown: Unknown = None,
    anything=None,  # type: ignore[no-untyped-def]
) -> None:
    RAN.append("train")


def loose(first=1, **rest: float) -> None:  # type: ignore[no-untyped-def]
    RAN.append("loose")


def many(models: Sequence[Model] = (), by_name: Mapping[str, Model] | None = None) -> None:
    RAN.append("many")


@run.cli.factory
def llama3(size: int = 70, layers: int = 2) -> run.Config[Model]:
    """A model of a well-known name."""
    RAN.append("llama3")
    return run.Config(Model, size=size, layers=[run.Config(Layer) for _ in range(layers)])


@run.cli.factory(name="big-one")
def big() -> run.Config[BigModel]:
    return run.Config(BigModel, depth=9)


@run.cli.factory
@run.autoconvert
def wide(dim: int = 99) -> Layer:
    return Layer(dim=dim)


@run.cli.factory
def three() -> list[run.Config[Layer]]:
    return [run.Config(Layer, dim=dim) for dim in (1, 2, 3)]


@run.cli.factory
def broken(size: int) -> run.Config[Model]:
    raise RuntimeError(f"no model of {size}")


@run.cli.factory(target=train, target_arg="maybe", is_target_default=True)
def usual() -> run.Config[Model]:
    return run.Config(Model, size=5)


@run.cli.factory(target=train, target_arg="epochs")
def few() -> int:
    return 3


@run.cli.factory(target=train)
def recipe() -> run.Partial[None]:
    return run.Partial(train, epochs=7)
