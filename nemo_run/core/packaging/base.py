"""Packagers bring the user's code to where a job runs; this one leaves it where it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(kw_only=True)
class Packager:
    """Passthrough: the job uses the code where it lies, so it fits machines that share the files."""

    #: Ask launchers for verbose output of their own.
    debug: bool = False
    #: A folder on the cluster to link instead of sending code.
    symlink_from_remote_dir: str | None = None

    def package(self, destination: Path) -> bool:
        """Put code into `destination` and say whether there is any; the passthrough packager has none."""
        return False
