"""What jobs need of this machine, tried one thing after the other."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_run.core.execution.base import Check
from nemo_run.core.execution.checks import check_installed
from nemo_run.core.execution.launcher import get_launcher
from nemo_run.errors import ConfigError, MissingDependencyError, StoreError
from nemo_run.home import open_home

if TYPE_CHECKING:
    from nemo_run.core.execution.base import Executor

#: Bytes below which a folder counts as full.
ENOUGH = 100 << 20
_VERSION = "import sys; print('%d.%d.%d' % sys.version_info[:3]); sys.exit(sys.version_info < (3, 10))"


def probe_here(executor: Executor) -> Iterator[Check]:
    """What processes on this machine need."""
    yield probe_home()
    yield probe_python(executor.python)
    if executor.working_dir:
        yield _probe_working_dir(Path(executor.working_dir))
    if executor.launcher is not None:
        yield probe_launcher(executor)


def probe_home() -> Check:
    """Whether there is room for experiments in NEMORUN_HOME."""
    try:
        home = open_home()
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(bytes(1 << 16))
    except StoreError as exc:
        return Check(name="home", ok=False, found=str(exc))
    except OSError as exc:
        step = "set NEMORUN_HOME to a folder that you may write to"
        return Check(name="home", ok=False, found=f"{home} cannot be written to: {exc.strerror}", step=step)
    return room("home", str(home), shutil.disk_usage(home).free, "set NEMORUN_HOME to another")


def room(name: str, folder: str, free: int, otherwise: str) -> Check:
    """Whether there is room in a folder that can be written to."""
    ok = free >= ENOUGH
    found = f"{folder}, {size(free)} free"
    return Check(name=name, ok=ok, found=found, step="" if ok else f"make room there, or {otherwise}")


def probe_python(python: str) -> Check:
    """Whether an interpreter of this machine can run Python tasks."""
    step = "name one by python_path that is Python 3.10 or newer"
    try:
        done = subprocess.run(
            [python, "-c", _VERSION], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
    except OSError as exc:
        return Check(name="python", ok=False, found=f"{python} cannot be run: {exc.strerror}", step=step)
    except subprocess.TimeoutExpired:
        return Check(name="python", ok=False, found=f"{python} does not end", step=step)
    said = done.stdout.strip() or done.stderr.strip()[-200:] or f"exit code {done.returncode}"
    if done.returncode == 0:
        return Check(name="python", ok=True, found=f"{python} is Python {said}")
    return Check(name="python", ok=False, found=f"{python} runs no Python tasks: {said}", step=step)


def probe_launcher(executor: Executor) -> Check:
    """Whether what a launcher starts is installed."""
    launcher = get_launcher(executor.launcher)
    what, needed = type(launcher).__name__, ["nsys"] if launcher.nsys_profile else []
    try:
        check_installed(what, launcher.requires, needed, executor.python, executor.env_vars)
    except (ConfigError, MissingDependencyError) as exc:
        return Check(name="launcher", ok=False, found=str(exc))
    parts = [*launcher.requires, *needed]
    return Check(name="launcher", ok=True, found=f"{what}, with {' and '.join(parts)}" if parts else what)


def _probe_working_dir(folder: Path) -> Check:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        found = str(folder) if there == folder.absolute() else f"{folder}, which will be made"
        return Check(name="working_dir", ok=True, found=found)
    kind = "cannot be written to" if there.is_dir() else "is no folder"
    step = f"give another working_dir, or look at `ls -ld {shlex.quote(str(there))}`"
    return Check(name="working_dir", ok=False, found=f"{there} {kind}", step=step)


def size(count: int) -> str:
    """Bytes for people."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6)):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} bytes"
