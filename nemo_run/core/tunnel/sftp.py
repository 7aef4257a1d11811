"""Files by SFTP, for where there is no rsync."""

from __future__ import annotations

import contextlib
import os
import posixpath
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_run.core.tunnel.commands import again
from nemo_run.core.tunnel.connection import Connection, CutOff
from nemo_run.core.tunnel.local import make_folder, replacing
from nemo_run.errors import TunnelError

if TYPE_CHECKING:
    from paramiko import SFTPClient


def put(via: Connection, source: Path, target: str) -> None:
    """Copy a file or folder to over there."""
    there = target.encode(errors="surrogateescape")
    again(lambda: _with_client(via, f"{source} → {target}", lambda sftp: _put(sftp, source, there)))


def get(via: Connection, source: str, target: Path) -> None:
    """Copy a file or folder from over there."""
    there = source.encode(errors="surrogateescape")
    again(lambda: _with_client(via, f"{source} → {target}", lambda sftp: _get(sftp, there, target)))


def _with_client(via: Connection, what: str, act: Callable[[SFTPClient], None]) -> None:
    import paramiko

    where = f"copying {what} over {via.settings.shown}"
    with via.session() as channel:
        try:
            channel.invoke_subsystem("sftp")
            act(paramiko.SFTPClient(channel))
        except (paramiko.SSHException, EOFError, OSError) as exc:
            if channel.closed or not isinstance(exc, OSError):
                raise CutOff(f"the connection was cut while {where} ({exc})", ran=None) from exc
            raise TunnelError(f"{where} failed: {exc.strerror or exc}", ran=True) from exc


# --- to over there --------------------------------------------------------------------------------------


def _put(sftp: SFTPClient, source: Path, target: bytes) -> None:
    if source.is_symlink():
        with _replacing(sftp, target) as temporary:
            sftp.symlink(os.fsencode(os.readlink(source)), temporary)
    elif source.is_dir():
        with contextlib.suppress(OSError):  # it is there; if it is not, what follows says why
            sftp.mkdir(target, 0o700)
        for entry in sorted(os.listdir(source)):
            _put(sftp, source / entry, posixpath.join(target, os.fsencode(entry)))
        sftp.chmod(target, _mode(source.stat().st_mode))
    else:
        _put_file(sftp, source, target)


def _put_file(sftp: SFTPClient, source: Path, target: bytes) -> None:
    with open(source, "rb") as file:
        ours = os.fstat(file.fileno())
        try:
            theirs = sftp.lstat(target)
            same = (theirs.st_size, theirs.st_mtime) == (ours.st_size, int(ours.st_mtime))
        except FileNotFoundError:
            same = False
        if same and stat.S_ISREG(theirs.st_mode or 0):
            sftp.chmod(target, _mode(ours.st_mode))
            return
        with _replacing(sftp, target) as temporary:
            sftp.putfo(file, temporary, ours.st_size)
            sftp.chmod(temporary, _mode(ours.st_mode))
            sftp.utime(temporary, (ours.st_atime, ours.st_mtime))


@contextlib.contextmanager
def _replacing(sftp: SFTPClient, path: bytes) -> Iterator[bytes]:
    """A name beside a file for what becomes that file once it is whole."""
    temporary = posixpath.join(posixpath.dirname(path), f".{secrets.token_hex(8)}.part".encode())
    try:
        yield temporary
        sftp.posix_rename(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):  # the connection itself may be what failed
            sftp.remove(temporary)
        raise


# --- from over there ------------------------------------------------------------------------------------


def _get(sftp: SFTPClient, source: bytes, target: Path) -> None:
    theirs = sftp.lstat(source)
    mode, when = theirs.st_mode or 0, theirs.st_mtime or 0
    if stat.S_ISLNK(mode):
        make_folder(target.parent)
        with replacing(target) as temporary:
            temporary.symlink_to(os.fsdecode(sftp.readlink(source) or b""))
    elif stat.S_ISDIR(mode):
        if target.is_symlink():  # nothing is written through it
            target.unlink()
        make_folder(target)
        for entry in sftp.listdir(source):  # type: ignore[arg-type]  # names are bytes
            name = os.fsencode(entry)
            _get(sftp, posixpath.join(source, name), target / os.fsdecode(name))
        target.chmod(_mode(mode))
    elif stat.S_ISREG(mode) and not _is_same(target, theirs.st_size, when):
        make_folder(target.parent)
        with replacing(target) as temporary:
            with open(temporary, "wb") as file:
                sftp.getfo(source, file)
            temporary.chmod(_mode(mode))
            os.utime(temporary, (when, when))


def _is_same(path: Path, size: int | None, when: int) -> bool:
    try:
        ours = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(ours.st_mode) and (ours.st_size, int(ours.st_mtime)) == (size, when)


def _mode(mode: int) -> int:
    return stat.S_IMODE(mode)
