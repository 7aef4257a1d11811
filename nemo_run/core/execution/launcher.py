"""Launchers: how the processes of one task are started, as a pure function of command and topology."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nemo_run.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from nemo_run.core.execution.base import Topology


@dataclass(frozen=True, kw_only=True)
class Command:
    """What one process is: its argument list and what its environment has beyond the job's."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Launcher:
    """Starts a command as it is; subclasses wrap it in a program that starts many."""

    def wrap(self, command: Command, topology: Topology) -> Command:
        """The command that starts `command` on each node of `topology`; no side effects."""
        return command


#: Launchers that have a short name.
_BY_NAME: dict[str, type[Launcher]] = {"default": Launcher}


def get_launcher(launcher: Launcher | str | None) -> Launcher:
    """The launcher meant by an executor's `launcher` field.

    Raises:
        ConfigError: no launcher has that name, or it is none.
    """
    if launcher is None:
        return Launcher()
    if isinstance(launcher, str):
        if launcher not in _BY_NAME:
            raise ConfigError(f"no launcher {launcher!r}{suggestion(launcher, list(_BY_NAME))}")
        return _BY_NAME[launcher]()
    if not isinstance(launcher, Launcher):
        raise ConfigError(f"launcher is {launcher!r}; give a Launcher, or one of {', '.join(_BY_NAME)}")
    return launcher
