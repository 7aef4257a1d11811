"""The least that can be packaged, run and run on, for tests of launch scripts' words."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_run import xm


@dataclass
class Spec(xm.ExecutorSpec):
    """What packaging is told."""

    where: str = "here"


@dataclass
class Place(xm.Executor):
    """An executor that runs nothing."""

    Spec = Spec


@dataclass
class Program(xm.Executable):
    """What packaging gave."""

    path: str = "/bin/true"


PROGRAM, PLACE = Program("true"), Place()


def job(name: str | None = None, **given: object) -> xm.Job:
    """A job that runs nothing."""
    return xm.Job(PROGRAM, PLACE, name, **given)  # type: ignore[arg-type]
