"""Programs that exist: found, looked at, and kept as they are now."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nemo_run.core.packaging.snapshot import collect
from nemo_run.errors import PackagingError, StoreError
from nemo_run.home import get_nemorun_home, open_home
from nemo_run.run.packages import job_dirs
from nemo_run.xm.errors import BadValueError
from nemo_run.xm.jobs import ExecutorSpec
from nemo_run.xm.utils import launch_dir
from nemo_run.xm_local.specs import LocalSpec

#: How a record names a copy.
_KEPT = re.compile(r"/binaries/([0-9a-f]{32})/")
#: Seconds from the moment a program is packaged until a job of it is recorded: a launch script that adds one
#: job after another may come to it late.
_IN_USE = 7 * 24 * 3600.0


def places(path: str) -> list[Path]:
    """Where a path may lie, from the root: at the launching script, else where that was started."""
    given = os.path.expanduser(path)
    return [Path(os.path.abspath(os.path.join(folder, given))) for folder in (launch_dir(), Path.cwd())]


def find(path: str) -> Path | None:
    """The file that is meant; None if there is none."""
    return next((place for place in places(path) if place.is_file()), None)


def program(path: str, spec: ExecutorSpec) -> str:
    """The path, from the root, of a program that exists.

    Args:
        path: As it was written.
        spec: Where it will run; a cluster may have it where this machine does not.

    Raises:
        BadValueError: it is not there, or is no program.
    """
    found = next((place for place in places(path) if place.exists()), None)
    if found is None and os.path.isabs(path) and not isinstance(spec, LocalSpec):
        return path
    if found is None:
        looked = " and ".join(dict.fromkeys(map(str, places(path))))
        raise BadValueError(f"path of Binary: {path!r} is not there (looked for {looked}); mend the path")
    if not found.is_file():
        raise BadValueError(f"path of Binary: {found} is a folder; name the program in it")
    if not os.access(found, os.X_OK):
        raise BadValueError(f"path of Binary: {found} may not be executed; `chmod +x {found}`")
    return str(found)


def keep(path: Path) -> Path:
    """A copy of a program and its runfiles, by what is in them, so that a later build does not change it.

    Raises:
        PackagingError: there is no room, or a file cannot be read.
    """
    folder = open_home() / "binaries"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        key = _digest(path)
        try:
            os.utime(folder / key)  # `collect_binaries` sees that it is needed again
        except FileNotFoundError:
            _copy(path, folder, key)
    except OSError as exc:
        problem = f"cannot keep a copy of {path} in {folder}: {exc.strerror or exc}"
        raise PackagingError(f"{problem}; make room, or mend its rights") from exc
    return folder / key / path.name


def collect_binaries() -> tuple[list[Path], list[Path]]:
    """Remove copies that no task of an experiment names, and what killed makers left; returns both.

    Raises:
        StoreError: a record cannot be read, so that nobody knows what it names.
    """
    home = get_nemorun_home()
    if not (home / "binaries").is_dir():
        return [], []
    needed = {key for path in job_dirs(home) for key in _named(path / "task.json")}
    return collect(home / "binaries", needed, _IN_USE)


def _named(task: Path) -> list[str]:
    try:
        return _KEPT.findall(task.read_text(errors="replace"))
    except FileNotFoundError:
        return []  # the experiment has just been deleted
    except OSError as exc:
        raise StoreError(f"cannot read {task}, so that it is unknown what it needs: {exc.strerror}") from exc


def _copy(path: Path, folder: Path, key: str) -> None:
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as work:
        new = Path(work, "new")
        new.mkdir(mode=0o700)
        for source, name in _parts(path):
            target = new / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            try:
                os.rename(new, folder / key)
            except OSError:
                if not (folder / key).is_dir():  # else another process was faster
                    raise


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    for source, name in _parts(path):
        with open(source, "rb") as file:
            content = hashlib.sha256()
            while chunk := file.read(1 << 20):
                content.update(chunk)
        mode = b"x" if os.access(source, os.X_OK) else b"-"
        found.update(os.fsencode(name) + b"\0" + mode + content.digest())
    return found.hexdigest()[:32]


def _parts(path: Path) -> Iterator[tuple[Path, str]]:
    """The program and the files beside it that it reads, by their places in the copy.

    A manifest is left out: it leads to files by their places of today, and what reads it takes the folder.
    """
    yield path, path.name
    runfiles = path.with_name(f"{path.name}.runfiles")
    for folder, folders, files in os.walk(runfiles, followlinks=True):
        folders.sort()
        for name in sorted(files):
            source = Path(folder, name)
            if name != "MANIFEST" or folder != str(runfiles):
                yield source, os.path.join(runfiles.name, os.path.relpath(source, runfiles))
