"""The files that a build copies from: which they are, what tells them from others, and as a tar."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from nemo_run.core.execution.docker_build import DOCKERFILE, add_text
from nemo_run.errors import PackagingError
from nemo_run.home import get_nemorun_home

#: Left out of projects unless their .dockerignore says `!…`: what changes and does not matter.
_NEVER_MEANT = ("**/__pycache__", "**/.git")


@dataclass(frozen=True, kw_only=True)
class Context:
    """Files by their names in it; everybody may read and write them in the image, unless modes are kept."""

    files: Sequence[tuple[str, Path]]
    #: Further files: their texts.
    texts: Mapping[str, str] = field(default_factory=dict)
    keep_modes: bool = False

    def digest(self) -> str:
        """Equal for equal contents, and for no others.

        Raises:
            PackagingError: a file cannot be read.
        """
        found = hashlib.sha256()
        known: dict[Path, bytes] = {}
        for name, path in self.files:
            if path not in known:
                known[path] = self._content(path)
            found.update(b"%s\0%s\0" % (os.fsencode(name), known[path]))
        for name, text in self.texts.items():
            found.update(f"{name}\0{text}\0".encode(errors="surrogateescape"))
        return found.hexdigest()

    def _content(self, path: Path) -> bytes:
        with _readable(path):
            about = path.lstat()
            if stat.S_ISLNK(about.st_mode):
                return b"link " + os.fsencode(os.readlink(path))
            mode = self._mode(about.st_mode)
            if not stat.S_ISREG(about.st_mode):
                return b"%o" % (mode | stat.S_IFMT(about.st_mode))
            return b"%o %s" % (mode, _sha256(path))

    def _mode(self, mode: int) -> int:
        if self.keep_modes:
            return mode & 0o7777
        return 0o777 if stat.S_ISDIR(mode) or mode & 0o100 else 0o666

    def write(self, dockerfile: str, file: IO[bytes]) -> None:
        """Put all into a tar, together with the Dockerfile, which is not to be copied itself.

        Raises:
            PackagingError: a file cannot be read, or changes meanwhile.
        """
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, path in self.files:
                with _readable(path):
                    self._add(archive, name, path)
            for name, text in self.texts.items():
                add_text(archive, name, text)
            add_text(archive, DOCKERFILE, dockerfile)
            add_text(archive, ".dockerignore", f"{DOCKERFILE}\n.dockerignore\n")

    def _add(self, archive: tarfile.TarFile, name: str, path: Path) -> None:
        member = archive.gettarinfo(path, name)
        if member is None:  # a socket
            return
        if member.islnk():  # an Engine's cache does not see that what a link leads to has changed
            member.type, member.size = tarfile.REGTYPE, path.stat().st_size
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        member.mode = self._mode(path.lstat().st_mode)
        if not member.isreg():
            archive.addfile(member)
            return
        with open(path, "rb") as source:
            archive.addfile(member, source)


def _sha256(path: Path) -> bytes:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.digest()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say which file it was that could not be read."""
    try:
        yield
    except OSError as exc:
        leave_out = "mend its rights, or name it in a .dockerignore"
        where = exc.filename or path
        raise PackagingError(f"cannot read {where}: {exc.strerror or exc}; {leave_out}") from exc


def project_files(folder: Path) -> list[tuple[str, Path]]:
    """What a project's image is made of, by names below its folder.

    Raises:
        PackagingError: its .dockerignore cannot be read.
    """
    return _listed(folder, [*_NEVER_MEANT, *_ignored(folder / ".dockerignore")])


def build_files(folder: Path, dockerfile: Path) -> list[tuple[str, Path]]:
    """What a Dockerfile may copy from, by names below its context; one's own .dockerignore wins."""
    own = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    patterns = _ignored(own if own.exists() else folder / ".dockerignore")
    return [each for each in _listed(folder, patterns) if each[0] != ".dockerignore"]


def _ignored(path: Path) -> list[str]:
    if not path.exists():
        return []
    with _readable(path):
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _listed(folder: Path, patterns: list[str]) -> list[tuple[str, Path]]:
    """Files and folders less those that the patterns leave out, in a fixed order."""
    from docker.utils.build import PatternMatcher

    # What is kept there grows with every launch. Of patterns the last counts.
    home = os.path.relpath(os.path.realpath(get_nemorun_home()), os.path.realpath(folder))
    own = [] if home.startswith("..") or home == "." else [home]
    with _readable(folder):
        names = sorted(PatternMatcher([*patterns, *own]).walk(folder))
    return [(name, folder / name) for name in names]
