"""What jobs on Vertex AI need of this machine's files, as archives."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nemo_run.core import runner

#: This nemo_run, which is brought to the jobs so that none has to be in the image.
PACKAGE = Path(runner.__file__).parents[1]
#: What a job needs of its folder.
_TAKEN = ("task.json", "scripts", "configs")


def _sources() -> Iterator[Path]:
    for folder, folders, names in os.walk(PACKAGE):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (Path(folder, name) for name in sorted(names) if not name.endswith((".pyc", ".pyo")))


@functools.cache
def library_digest() -> str:
    """What tells this nemo_run from every other."""
    known = hashlib.sha256()
    for path in _sources():
        known.update(f"{path.relative_to(PACKAGE)}\0".encode(errors="surrogateescape"))
        known.update(hashlib.sha256(path.read_bytes()).digest())
    return known.hexdigest()[:20]


def pack_library(file: IO[bytes]) -> None:
    """This nemo_run, as a folder `nemo_run`."""
    with _archive(file) as archive:
        for path in _sources():
            archive.add(path, f"nemo_run/{path.relative_to(PACKAGE)}", recursive=False, filter=_plain)


def pack_code(code: Path, file: IO[bytes]) -> None:
    """A package of code, less the folder around it."""
    with _archive(file) as archive:
        for name in sorted(os.listdir(code)):
            archive.add(code / name, name, filter=_plain)


def pack_job(job_dir: Path) -> bytes:
    """What a job needs of its folder."""
    file = io.BytesIO()
    with _archive(file) as archive:
        for name in _TAKEN:
            if (job_dir / name).exists():
                archive.add(job_dir / name, name, filter=_plain)
    return file.getvalue()


def _archive(file: IO[bytes]) -> tarfile.TarFile:
    """An archive that is the same for the same files."""
    packed = gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=6)
    return _Closing.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT)


class _Closing(tarfile.TarFile):
    """One that closes what it is written to, as a compressed file is whole only then."""

    def close(self) -> None:
        super().close()
        if self.fileobj is not None:
            self.fileobj.close()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Nobody's in particular; whoever runs the task may read and change it."""
    if member.name.endswith("__pycache__"):
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o777 if member.isdir() or member.mode & 0o100 else 0o666
    return member
