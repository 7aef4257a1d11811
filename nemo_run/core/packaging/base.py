"""Packagers find the code that a job needs; this one leaves it where it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a packager looks."""

    #: The folder that was launched from.
    folder: Path
    #: An empty folder for files of its own; gone once the package is made.
    work: Path
    #: What is never packaged: the folder in which experiments and packages are kept.
    leave_out: Path

    def below(self, name: str) -> Source:
        """The same with a folder for temporary files of its own."""
        work = self.work / name
        work.mkdir()
        return Source(folder=self.folder, work=work, leave_out=self.leave_out)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a packager has found."""

    #: Equal for equal contents, and for no others.
    digest: str
    #: Puts them into an empty folder.
    write: Callable[[Path], None]
    #: What is known of the code beyond its files: `commit`, `tree`, …
    facts: Mapping[str, str] = field(default_factory=dict)
    #: Its differences from the commit, as a patch.
    diff: str = ""
    #: Files among it that git does not know.
    untracked: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Packager:
    """Passthrough: the job uses the code where it lies, so it fits machines that share the files.

    A packager of one's own is a subclass with `contents`.
    """

    #: Ask launchers for verbose output of their own.
    debug: bool = False
    #: A folder on the cluster to link instead of sending code.
    symlink_from_remote_dir: str | None = None

    def contents(self, source: Source) -> Contents:
        """Find what is to be packaged; asked once per launch, before anything is started.

        Raises:
            PackagingError: something that was asked for is not there.
        """
        raise NotImplementedError(f"{type(self).__name__} packages nothing")

    def origins(self, folder: Path) -> dict[str, str | None]:
        """Which folders here become which below the packaged code ("." for the code itself).

        Places below these that jobs import from are then taken from the code; None keeps them from being
        used at all.

        Args:
            folder: The folder that is launched from.

        Raises:
            PackagingError: a folder that was asked for is not there.
        """
        return {}

    def code_dir(self, rundir: Path) -> Path:
        """Where a job finds its code, given its folder as it sees that."""
        return rundir / "code"

    @property
    def copies_code(self) -> bool:
        """Whether each job's folder gets a copy of the code."""
        return self.moves_code

    @property
    def moves_code(self) -> bool:
        """Whether jobs get code of their own, and do not use it where it lies."""
        return type(self).contents is not Packager.contents
