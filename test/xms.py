"""Programs and launch scripts for tests of XManager's deeds."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from deeds import environment, until

from nemo_run import xm, xm_local
from nemo_run.xm_local.executables import LocalBinary

#: What a launch script of a test begins with; `sh` is a job of a shell's words.
HEAD = """
import asyncio, os, sys, time
from nemo_run import xm, xm_local
from nemo_run.xm_local.executables import LocalBinary

def sh(*words, **given):
    binary = LocalBinary(name="sh", path="/bin/sh")
    return xm.Job(binary, given.pop("executor", xm_local.Local()), args=["-c", *words], **given)
"""


def sh(*words: str, name: str | None = None, **given: Any) -> xm.Job:
    """A job of a shell: its program, then its arguments from $0 on."""
    binary = LocalBinary(name="sh", path="/bin/sh")
    executor = given.pop("executor", None) or xm_local.Local(experimental_stream_output=False)
    return xm.Job(binary, executor, name=name, args=["-c", *words], **given)


def script(path: Path, body: str) -> Path:
    """A launch script."""
    path.write_text(HEAD + textwrap.dedent(body))
    return path


def launch(path: Path, *args: str, timeout: float = 60.0, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a launch script to its end."""
    return subprocess.run(
        [sys.executable, str(path), *args],
        env=environment(**env), capture_output=True, text=True, timeout=timeout, cwd=path.parent,
        errors="replace",
    )  # fmt: skip


class Launchers:
    """Launch scripts that run beside a test, each in a session of its own, and none after it."""

    def __init__(self) -> None:
        self._begun: list[subprocess.Popen[str]] = []

    def begin(self, *command: str, cwd: Path) -> subprocess.Popen[str]:
        """Start one, to which Ctrl-C means what it means to a program in a terminal."""
        process = subprocess.Popen(
            command,
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
            start_new_session=True,
            # Where tests run in the background SIGINT may be ignored, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        self._begun.append(process)
        return process

    def script(self, path: Path) -> subprocess.Popen[str]:
        """Start a launch script."""
        return self.begin(sys.executable, str(path), cwd=path.parent)

    def end(self) -> None:
        """See that none is left."""
        for process in self._begun:
            process.kill()
            process.communicate()


def wait_or_end(process: subprocess.Popen[str], condition: Callable[[], Any], what: str) -> None:
    """Wait for something that a launch script does; one that ends before is shown."""

    def seen() -> bool:
        if process.poll() is not None:
            pytest.fail(f"it has ended before {what}: {process.communicate()}")
        return bool(condition())

    until(seen, what, 60)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids(folder: Path) -> list[int]:
    """The numbers that processes of a test left in files `*.pid`."""
    return [int(path.read_text()) for path in folder.glob("*.pid") if path.read_text().strip()]


def leaves_word(folder: Path) -> str:
    """A shell's words that leave its process's number in the folder, whole or not at all."""
    return f"echo $$ >{folder}/$$.new; mv {folder}/$$.new {folder}/$$.pid; "


@contextmanager
def ends_in(kind: Any, match: str) -> Iterator[pytest.ExceptionInfo[Any]]:
    """What is below, an experiment mostly, ends with such an error."""
    with pytest.raises(kind, match=match) as caught:
        yield caught
