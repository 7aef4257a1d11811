"""The tunnel that leads nowhere else: commands and files of this machine."""

from __future__ import annotations

import contextlib
import filecmp
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_run.core import runner
from nemo_run.core.tunnel.base import CommandResult, Tunnel, shown
from nemo_run.core.tunnel.scripts import check_name
from nemo_run.errors import TunnelError


@dataclass(kw_only=True)
class LocalTunnel(Tunnel):
    """Submits from this machine, where this is the cluster's login node already."""

    host: str = field(default="localhost", init=False)
    user: str = field(default="", init=False)

    def execute(self, argv: Sequence[str], stdin: bytes, timeout: float | None, retry: bool) -> CommandResult:
        """A process like any other."""
        words = [word.encode(errors="surrogateescape") for word in argv]
        try:
            done = subprocess.run(words, input=stdin, capture_output=True, timeout=timeout)
        except OSError as exc:
            raise TunnelError(f"`{shown(argv)}` cannot be run on this machine: {exc.strerror}") from exc
        except subprocess.TimeoutExpired as exc:
            raise TunnelError(f"`{shown(argv)}` was ended after {timeout:g} s", ran=None) from exc
        code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        return CommandResult(argv=tuple(argv), exit_code=code, stdout=done.stdout, stderr=done.stderr)

    def put(self, source: Path, target: str) -> None:
        """Copy what is not there already."""
        with _failures(f"{source} cannot be copied to {target}"):
            copy(source, Path(target))

    def get(self, source: str, target: Path) -> None:
        """Copy what is not there already."""
        with _failures(f"{source} cannot be copied to {target}"):
            copy(Path(source), target)

    def write(self, folder: str, files: Mapping[str, bytes], *, mode: int = 0o600) -> None:
        """Without a shell."""
        for name in files:
            check_name(name)
        with _failures(f"files cannot be written below {folder}"):
            for name, content in files.items():
                path = Path(folder, name)
                make_folder(path if name.endswith("/") else path.parent)
                if name.endswith("/"):
                    continue
                with replacing(path) as temporary:
                    runner.write(str(temporary), content)
                    temporary.chmod(mode)

    def read(self, offsets: Mapping[str, int], *, limit: int = 1 << 20) -> dict[str, bytes]:
        """Without a shell."""
        found = {path: _read_from(path, offset, limit) for path, offset in offsets.items()}
        return {path: content for path, content in found.items() if content}


def copy(source: Path, target: Path) -> None:
    """A file whole or not at all, or a folder with all it holds; what is there and equal stays."""
    if source.is_symlink():
        with replacing(target) as temporary:
            temporary.symlink_to(os.readlink(source))
    elif source.is_dir():
        if target.is_symlink():  # nothing is written through it
            target.unlink()
        make_folder(target)
        for entry in sorted(os.listdir(source)):
            copy(source / entry, target / entry)
        shutil.copystat(source, target)
    elif not source.is_file() and os.path.lexists(source):
        return  # a pipe or a socket, as rsync leaves out too
    elif not (target.is_file() and filecmp.cmp(source, target)):
        make_folder(target.parent)
        with replacing(target) as temporary:
            shutil.copy2(source, temporary)
    else:
        target.chmod(source.stat().st_mode & 0o7777)


def make_folder(path: Path) -> None:
    """A folder with all above it; what is new is readable by us alone."""
    for folder in reversed([path, *path.parents]):
        with contextlib.suppress(FileExistsError):
            if not folder.is_dir():
                folder.mkdir(mode=0o700)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside a file for what becomes that file once it is whole."""
    # Not made of the file's own name, which may be as long as names can be.
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _read_from(path: str, offset: int, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(limit)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as exc:
        raise TunnelError(f"{path} cannot be read: {exc.strerror}") from exc


@contextlib.contextmanager
def _failures(problem: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        where = f" ({exc.filename})" if exc.filename else ""
        raise TunnelError(f"{problem}: {exc.strerror}{where}", ran=True) from exc
