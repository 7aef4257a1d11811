"""Real git repositories for tests, and all that there is to see of one."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import nemo_run as run
from nemo_run.core.packaging.snapshot import Package, take

#: Git as it comes, whoever runs the tests, and with leave to use submodules that lie on this machine.
CLEAN = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
}


def git(folder: Path, *args: str | bytes, input: bytes = b"") -> bytes:
    """What a git command prints; it has to succeed."""
    argv = ["git", "-c", "protocol.file.allow=always", *args]
    return subprocess.run(
        argv, cwd=folder, env={**os.environ, **CLEAN}, input=input, stdout=subprocess.PIPE, check=True
    ).stdout


def repository(folder: Path, files: dict[str, str] | None = None) -> Path:
    """A new repository with one commit of these files."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q", "-b", "main")
    given = {"kept.py": "kept\n", "changed.py": "before\n", "src/lib/inner.py": "inner\n"}
    commit(folder, given if files is None else files)
    return folder


def commit(folder: Path, files: dict[str, str]) -> str:
    """Write and commit files; the commit's hash."""
    write(folder, files)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "a commit", "--allow-empty")
    return git(folder, "rev-parse", "HEAD").decode().strip()


def write(folder: Path, files: dict[str, str]) -> None:
    """Files by their path."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(folder: Path) -> dict[bytes, tuple[str, bytes]]:
    """By path the kind of each file ("file", "exec" or "link") and its bytes; no empty folders."""
    found: dict[bytes, tuple[str, bytes]] = {}
    top = os.fsencode(folder)
    for where, folders, files in os.walk(top):
        for name in (*files, *folders):
            path = os.path.join(where, name)
            inner = os.path.relpath(path, top)
            if os.path.islink(path):
                found[inner] = ("link", os.readlink(path))
            elif os.path.isfile(path):
                kind = "exec" if os.stat(path).st_mode & 0o100 else "file"
                with open(path, "rb") as file:
                    found[inner] = (kind, file.read())
    return found


def texts(folder: Path) -> dict[str, str]:
    """By path the text of each file."""
    return {os.fsdecode(name): content.decode() for name, (_, content) in contents(folder).items()}


def state(root: Path) -> tuple[bytes, str]:
    """What `git status` says, and a hash of the name, kind and bytes of all files, those of git included.

    The files first, as `git status` may itself write to the index.
    """
    total = hashlib.sha256()
    for name, (kind, content) in sorted(contents(root).items()):
        total.update(name + kind.encode() + hashlib.sha256(content).digest())
    return git(root, "--no-optional-locks", "status", "--porcelain=v2", "--ignored"), total.hexdigest()


def package(packager: run.Packager, folder: Path) -> Package:
    """What a launch from that folder packages, kept in the home of the test."""
    return take(packager, folder, Path(os.environ["NEMORUN_HOME"]))


def packaged(packager: run.Packager, folder: Path) -> dict[str, str]:
    """The texts that a launch from that folder packages."""
    return texts(package(packager, folder).code)
