"""What ended jobs of a Slurm cluster left behind, copied home: small things of many jobs by one command."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import secrets
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_run.core import runner
from nemo_run.core.execution.base import TERMINAL, AppState, JobHandle, JobStatus
from nemo_run.core.execution.slurm_packs import Packed, packing, parse_packing
from nemo_run.core.masking import mask_chunks, worth_masking
from nemo_run.core.tunnel.base import Tunnel
from nemo_run.errors import NemoRunError, TunnelError
from nemo_run.secret import Secret

logger = logging.getLogger(__name__)

#: What jobs leave behind.
LEFT = ("logs", "results", "artifacts")
#: Bytes that a job's things may be to be sent with those of others; and those of all of them.
_SMALL, _TOGETHER = 8 << 20, 32 << 20


def is_home(handle: JobHandle) -> bool:
    """Whether what an ended job left on another machine is here."""
    home = Path(handle.data["home"])
    return handle.data["folder"] != str(home) and (home / "brought_home").exists()


def brought_home(
    tunnel: Tunnel, handles: Sequence[JobHandle], statuses: Sequence[JobStatus]
) -> list[JobStatus]:
    """The statuses, those of ended jobs once what they left behind is here."""
    found = {handle.id: status for handle, status in zip(handles, statuses, strict=True)}
    due = [handle for handle in handles if found[handle.id].state in TERMINAL and _is_away(handle)]
    for handle, reason in _bring(tunnel, due):
        state, folder = found[handle.id].state, handle.data["folder"]
        message = f"{state}, but what it left in {folder} cannot be copied yet: {reason}"
        found[handle.id] = JobStatus(state=AppState.UNKNOWN, message=message)
    return [found[handle.id] for handle in handles]


def _is_away(handle: JobHandle) -> bool:
    home = Path(handle.data["home"])
    return handle.data["folder"] != str(home) and home.is_dir() and not is_home(handle)


def _bring(tunnel: Tunnel, due: Sequence[JobHandle]) -> Iterator[tuple[JobHandle, str]]:
    """Copy what some jobs left; gives those of which it cannot be copied, and why."""
    values: dict[str, str] = {}
    while due:
        folders = [handle.data["folder"] for handle in due]
        script = packing(folders, LEFT, _SMALL, _TOGETHER).encode(errors="surrogateescape")
        try:
            answer = parse_packing(tunnel.run(["sh", "-s"], stdin=script, retry=True).stdout)
        except TunnelError as exc:
            yield from ((handle, str(exc)) for handle in due)
            return
        later = []
        for at, handle in enumerate(due):
            packed = answer.get(at, Packed("failed", b"it was not answered"))
            if packed.kind == "later":
                later.append(handle)
            elif reason := _bring_one(tunnel, handle, packed, values):
                yield handle, reason
        due = later if len(later) < len(due) else []


def _bring_one(tunnel: Tunnel, handle: JobHandle, packed: Packed, values: dict[str, str]) -> str:
    """Have one job's things in its folder here, all or none; returns why that cannot be."""
    if packed.kind == "failed":
        return packed.content.decode(errors="replace").strip()
    home = Path(handle.data["home"])
    try:
        with _alone(home) as part:
            if not is_home(handle):
                if packed.kind == "large":
                    _prune(part)  # of an earlier try, so that nothing is written through a link
                    for name in packed.content.decode().split():
                        tunnel.get(f"{handle.data['folder']}/{name}", part / name)
                else:
                    _remove(part)
                    _unpack(packed.content, part)
                skipped = packed.special + _prune(part)
                _mask(part / "logs", _secrets(home, values))
                _place(part, home)
                if skipped:
                    left = ", ".join(sorted(set(skipped)))
                    logger.warning("of %s is not copied home: %s", handle.data["folder"], left)
    except (TunnelError, OSError, tarfile.TarError, EOFError) as exc:
        return str(exc) or type(exc).__name__
    return ""


# --- here -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[Path]:
    """A folder in which what comes is gathered, for one process at a time; it outlives one that is killed."""
    number = os.open(home / ".bringing", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(number, fcntl.LOCK_EX)
        part = home / ".brought.part"
        part.mkdir(mode=0o700, exist_ok=True)
        yield part
    finally:
        os.close(number)


def _unpack(content: bytes, folder: Path) -> None:
    """Write the files, folders and links that an archive holds below a folder."""
    links: list[tuple[Path, str]] = []
    if not content:
        return
    stream = io.BytesIO(content)
    with tarfile.open(fileobj=stream, mode="r:gz", encoding="utf-8", errors="surrogateescape") as archive:
        for entry in archive:
            parts = PurePosixPath(entry.name).parts
            if ".." in parts or entry.name.startswith("/"):
                raise tarfile.TarError(f"{entry.name!r} lies nowhere below it")
            path = folder.joinpath(*parts)
            if entry.isdir():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif entry.issym():
                links.append((path, entry.linkname))
            elif entry.isreg():
                _unpack_file(archive, entry, path)
    for path, target in links:  # last, so that nothing is written through one
        path.symlink_to(target)


def _unpack_file(archive: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 | entry.mode & 0o700)
    with os.fdopen(number, "wb") as file, archive.extractfile(entry) or io.BytesIO() as source:
        shutil.copyfileobj(source, file)
    os.utime(path, (entry.mtime, entry.mtime))


def _prune(folder: Path) -> list[str]:
    """Take out the links that lead out of a folder; what they lead to is not here, or is another's."""
    pruned = []
    for where, folders, files in os.walk(folder):
        for path in (os.path.join(where, name) for name in (*folders, *files)):
            if os.path.islink(path):
                target = os.path.join(os.path.relpath(where, folder), os.readlink(path))
                if os.path.normpath(target).split("/")[0] in ("", ".."):
                    os.unlink(path)
                    pruned.append(os.path.relpath(path, folder))
    return pruned


def _place(part: Path, home: Path) -> None:
    """Put what is all there in its place; the mark is the last."""
    for name in LEFT:
        if (part / name).is_dir():
            old = home / f".old.{secrets.token_hex(8)}"
            with contextlib.suppress(FileNotFoundError):
                os.rename(home / name, old)
            os.rename(part / name, home / name)
            _remove(old)
    _remove(part)
    runner.write(str(home / "brought_home"), "")


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


# --- secrets --------------------------------------------------------------------------------------------


def _secrets(home: Path, values: dict[str, str]) -> list[bytes]:
    """The values of a job's secrets, as far as they can be read here; each is read once."""
    for name in ("executor.json", "task.json"):
        with contextlib.suppress(OSError, ValueError):
            for source in _sources(json.loads((home / name).read_bytes())):
                if (key := json.dumps(source)) not in values:
                    values[key] = ""
                    with contextlib.suppress(NemoRunError):
                        values[key] = Secret.from_source(source).resolve()
    return [value.encode(errors="surrogateescape") for value in worth_masking(values.values())]


def _sources(tree: Any) -> Iterator[dict[str, Any]]:
    """Where the secrets in a tree are found."""
    if isinstance(tree, dict):
        if "_secret_" in tree:
            yield tree["_secret_"]
        tree = list(tree.values())
    if isinstance(tree, list):
        for each in tree:
            yield from _sources(each)


def _mask(logs: Path, secrets: Sequence[bytes]) -> None:
    """Have no log hold a secret."""
    for path in logs.rglob("*") if secrets else ():
        if path.is_symlink() or not path.is_file():
            continue
        temporary = path.with_name(".masking")
        with open(path, "rb") as source, open(temporary, "wb") as sink:
            os.fchmod(sink.fileno(), 0o600)
            for chunk in mask_chunks(iter(lambda: source.read(1 << 20), b""), secrets):
                sink.write(chunk)
        os.replace(temporary, path)
