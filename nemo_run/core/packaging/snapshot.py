"""The store of packages: code as it was at a launch, kept once for all experiments, copied for each job.

    $NEMORUN_HOME/packages/<key>/
      code/           the files
      package.json    how many, and their size

A package appears by one rename and does not change. A job works in a copy of its own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_run.core.packaging.base import Contents, Packager, Source
from nemo_run.errors import PackagingError

#: Packages that are being made or deleted, and copies that are being made, begin with these.
_NEW, _TRASH, _COPY = ".new-", ".trash-", ".code-"
#: Seconds from the moment a launch takes a package until its records name it; nobody takes this long.
_IN_USE = 3600.0
#: Files are made by so many threads, as the system makes each of them wait.
_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Package:
    """Code as it was at a launch."""

    key: str
    path: Path
    files: int
    bytes: int
    #: What the packager knows of it: `commit`, `tree`, …
    facts: dict[str, str] = field(default_factory=dict)
    diff: str = ""
    untracked: tuple[str, ...] = ()

    @property
    def code(self) -> Path:
        """The folder of its files; it is shared, so that nobody may write into it."""
        return self.path / "code"

    def record(self) -> dict[str, Any]:
        """What a job's `package.json` says of it."""
        return {"key": self.key, **self.facts, "files": self.files, "bytes": self.bytes}


class _Changed(Exception):
    """The files were changed while they were being copied."""


def packages_dir(home: Path) -> Path:
    """Where packages are kept."""
    return home / "packages"


def take(packager: Packager, folder: Path, home: Path) -> Package:
    """The package of the code as it is now: made if there is none like it.

    Args:
        packager: What to take.
        folder: The folder that is launched from.
        home: Where packages are kept.

    Raises:
        PackagingError: the code cannot be packaged.
    """
    name = type(packager).__name__
    try:
        with _folder(packages_dir(home)) as new:
            for _ in range(5):
                with contextlib.suppress(_Changed):
                    return _take(packager, folder, home, new)
        raise PackagingError(f"{name}: the files in {str(folder)!r} are changed all the time; launch again")
    except OSError as exc:
        where = f" ({exc.filename!r})" if exc.filename else ""
        raise PackagingError(f"{name}: cannot package the code: {exc.strerror or exc}{where}") from exc


def _take(packager: Packager, folder: Path, home: Path, new: Path) -> Package:
    work, made = new / "work", new / "package"
    for path in (work, made):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    contents = packager.contents(Source(folder=folder, work=work, leave_out=home))
    key = hashlib.sha256(contents.digest.encode("utf-8", "surrogateescape")).hexdigest()
    final = packages_dir(home) / key
    if not (size := _size(final)):
        size = _make(packager, contents, made)
        _rename(made, final)
    return Package(
        key=key,
        path=final,
        files=size["files"],
        bytes=size["bytes"],
        facts={"packager": type(packager).__name__, **contents.facts},
        diff=contents.diff,
        untracked=contents.untracked,
    )


def _size(package: Path) -> dict[str, int]:
    """What a package holds, and word that it is used again; nothing if there is none."""
    try:
        os.utime(package)
        size: dict[str, int] = json.loads((package / "package.json").read_bytes())
    except FileNotFoundError:
        return {}
    return size


def _make(packager: Packager, contents: Contents, made: Path) -> dict[str, int]:
    code = made / "code"
    code.mkdir()
    contents.write(code)
    sizes = [entry.stat(follow_symlinks=False).st_size for entry in _checked(packager, code)]
    if not sizes:
        raise PackagingError(
            f"{type(packager).__name__}: there is no file to package; see what its settings leave of the code"
        )
    size = {"files": len(sizes), "bytes": sum(sizes)}
    (made / "package.json").write_text(json.dumps(size) + "\n")
    return size


def _checked(packager: Packager, code: Path) -> Iterator[os.DirEntry[str]]:
    """All that is packaged but folders, after a look at where symbolic links lead."""
    root = os.path.realpath(code)
    for entry in walk(str(code)):
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if os.readlink(entry.path).startswith("/") or not (target + "/").startswith(root + "/"):
                raise PackagingError(
                    f"{type(packager).__name__}: the symbolic link {os.path.relpath(entry.path, code)!r}"
                    f" leads out of what is packaged, to {os.readlink(entry.path)!r}; make it a"
                    " relative link to a file that is packaged too, or leave it out"
                )
        yield entry


def _rename(made: Path, final: Path) -> None:
    try:
        made.rename(final)
    except OSError as exc:
        if exc.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        os.utime(final)  # another launch has made the same meanwhile


def changed() -> None:
    """Called by a packager that finds its files changed since it looked: it is asked again."""
    raise _Changed


# --- copies for jobs ------------------------------------------------------------------------------------


def stage(package: Path, code: Path) -> None:
    """Copy a package's files to where a job may write into them, whole or not at all.

    Args:
        package: The package's folder.
        code: The job's own folder, made here; if it is there, so is everything in it.

    Raises:
        PackagingError: the package is gone, or there is no room.
    """
    if code.is_dir():
        return
    for left in code.parent.glob(f"{_COPY}*"):  # by whoever was killed while doing this
        shutil.rmtree(left, ignore_errors=True)
    copy = code.with_name(f"{_COPY}{os.getpid()}.{os.urandom(4).hex()}")
    try:
        copy_tree(package / "code", copy)
        copy.rename(code)
    except FileNotFoundError as exc:
        raise PackagingError(f"the package {package.name[:12]} is gone ({package}); launch again") from exc
    except OSError as exc:
        if code.is_dir():
            return
        raise PackagingError(f"cannot copy the code to {str(code)!r}: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder; symbolic links stay such, files can be executed by whoever could."""
    files = []
    target.mkdir(mode=0o700)
    for folder, entries in _folders(str(source)):
        below = os.path.join(target, os.path.relpath(folder, source))
        for entry in entries:
            path = os.path.join(below, entry.name)
            if entry.is_dir(follow_symlinks=False):
                os.mkdir(path, 0o700)
            elif entry.is_symlink():
                os.symlink(os.readlink(entry.path), path)
            else:
                files.append((entry.path, path))
    copy_files(files)


def copy_files(pairs: list[tuple[str, str]]) -> None:
    """Copy files to where there are none."""
    batches = [pairs[at : at + 200] for at in range(0, len(pairs), 200)]
    if len(batches) < 2:
        return _copy_batch(pairs)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(_copy_batch, batches))


def _copy_batch(pairs: list[tuple[str, str]]) -> None:
    for source, target in pairs:
        copy_file(source, target)


def copy_file(source: str, target: str) -> None:
    """Copy one file to where there is none; without its bytes where the file system can share them."""
    fd = os.open(source, os.O_RDONLY)
    try:
        mode = 0o755 if os.fstat(fd).st_mode & 0o100 else 0o644
        made = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            _copy_bytes(fd, made)
        finally:
            os.close(made)
    finally:
        os.close(fd)


def _copy_bytes(source: int, target: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not everywhere, and not between all file systems
        while os.copy_file_range(source, target, 1 << 30):
            pass
    while block := os.read(source, 1 << 20):  # goes on from where that stopped
        while block:
            block = block[os.write(target, block) :]


def walk(folder: str) -> Iterator[os.DirEntry[str]]:
    """All that lies below a folder but folders; symbolic links are not followed."""
    for _, entries in _folders(folder):
        yield from (entry for entry in entries if not entry.is_dir(follow_symlinks=False))


def _folders(top: str) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Each folder with its entries, outer before inner, in the order of their names."""
    todo = [top]
    while todo:
        folder = todo.pop()
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        yield folder, entries
        todo += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


# --- collecting -----------------------------------------------------------------------------------------


def collect(folder: Path, needed: set[str], in_use: float = _IN_USE) -> tuple[list[Path], list[Path]]:
    """Remove what nobody needs of a folder, by its name, and what killed makers and removers left behind.

    What was made or taken again a short while ago stays: the records of who did may yet appear.

    Args:
        folder: Where packages are kept, or other things by what is in them.
        needed: Names of those that experiments name.
        in_use: Seconds for which one stays that nobody names.

    Returns:
        What was unneeded, and the left-overs, that are gone now.
    """
    unneeded, left = [], []
    for path in _entries(folder):
        if path.name.startswith(_TRASH) or (path.name.startswith(_NEW) and _idle(path, _IN_USE)):
            left.append(path)
            shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith(".") and path.name not in needed and _idle(path, in_use):
            _remove(path, in_use)
            unneeded += [] if path.exists() else [path]
    return unneeded, left


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _idle(path: Path, in_use: float) -> bool:
    try:
        return time.time() - path.stat().st_mtime > in_use
    except FileNotFoundError:
        return False


def _remove(path: Path, in_use: float) -> None:
    """At once by a rename, then file by file, so that nobody takes half of it."""
    trash = path.with_name(f"{_TRASH}{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(trash)
    if not _idle(trash, in_use):  # a launch has taken it between our look and the rename
        with contextlib.suppress(OSError):
            trash.rename(path)
    shutil.rmtree(trash, ignore_errors=True)


@contextlib.contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """A new private folder that is gone afterwards."""
    for above in (*reversed(parent.parents), parent):
        if not above.exists():
            above.mkdir(mode=0o700, exist_ok=True)
    path = parent / f"{_NEW}{os.getpid()}.{os.urandom(4).hex()}"
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
