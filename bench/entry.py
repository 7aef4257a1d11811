"""A script that is a command, and a config of a thousand nodes to set something in."""

from __future__ import annotations

from dataclasses import dataclass, field

import fiddle  # noqa: F401  # as its floor imports it too

import nemo_run as run


@dataclass
class Layer:
    """A leaf."""

    dim: int = 1


@dataclass
class Model:
    """Ninety-nine leaves."""

    layers: list[Layer] = field(default_factory=list)


def train(models: list[Model], steps: int = 10, rate: float = 0.1) -> None:
    """Takes them."""


def thousand_nodes() -> run.Partial[None]:
    """Ten models of ninety-nine layers."""
    models = [run.Config(Model, layers=[run.Config(Layer) for _ in range(99)]) for _ in range(10)]
    return run.Partial(train, models=models)


if __name__ == "__main__":
    run.cli.main(train)
