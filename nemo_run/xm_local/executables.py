"""What packaging makes of executable specs: programs of this machine, and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_run.errors import UnsupportedError
from nemo_run.xm.arguments import SequentialArgs
from nemo_run.xm.jobs import Executable


@dataclass
class LocalBinary(Executable):
    """A program of this machine."""

    name: str
    #: Where it lies, from the root.
    path: str
    #: What it is given before a job's own arguments.
    args: SequentialArgs = field(default_factory=SequentialArgs)
    #: What its environment has unless a job says otherwise.
    env_vars: dict[str, Any] = field(default_factory=dict)


@dataclass
class ContainerImage(Executable):
    """An image, run by its own ENTRYPOINT."""

    name: str
    #: What to run it by; it means the same image for as long as that is there.
    image: str
    #: The SHA-256 that a registry knows it by, or the Engine where it is in no registry; empty if unknown.
    digest: str = ""
    #: What its ENTRYPOINT is given before a job's own arguments.
    args: SequentialArgs = field(default_factory=SequentialArgs)
    #: What its environment has unless a job says otherwise.
    env_vars: dict[str, Any] = field(default_factory=dict)
    #: Its ENTRYPOINT, CMD and WORKDIR, for backends that do not start these by themselves; None where nobody
    #: here has looked into it.
    entrypoint: list[str] | None = None
    cmd: list[str] = field(default_factory=list)
    workdir: str = ""

    def argv(self, args: Sequence[str], where: str) -> list[str]:
        """The whole command that its ENTRYPOINT is with these arguments.

        Args:
            args: Where there are none its CMD is used.
            where: Who asks, for the message.

        Raises:
            UnsupportedError: its ENTRYPOINT is not known, or it says nothing to start.
        """
        words = [*(self.entrypoint or []), *(args or self.cmd)]
        if self.entrypoint is not None and words:
            return words
        problem = "nobody here knows its ENTRYPOINT: `docker pull` it before you launch"
        if self.entrypoint is not None:
            problem = "it has neither an ENTRYPOINT nor a CMD: say by args what to run"
        raise UnsupportedError(
            f"image {self.image!r} cannot be run on {where}, which is to be told a whole command; {problem}",
            executor=where,
            capability="IMAGES",
        )
