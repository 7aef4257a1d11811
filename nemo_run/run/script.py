"""The launching script: what a launch keeps of it, and how its names resolve again in another process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from nemo_run.core import runner


@dataclass(frozen=True)
class LaunchingScript:
    """The script that a launch comes from: its text, and its module where that is not the running one."""

    source: str | None
    module: ModuleType | None = None


def launching_script() -> LaunchingScript:
    """The script that is running."""
    from nemo_run.core.main_module import launch_source

    return LaunchingScript(launch_source())


@contextlib.contextmanager
def whole_script(experiment_dir: Path, needed: set[str]) -> Iterator[LaunchingScript]:
    """Let the names that the jobs of an experiment use resolve while its records are loaded."""
    from nemo_run.core.main_module import definitions as without_launch

    path = experiment_dir / "main.py"
    source = _text(path)
    if source is None or not needed or _is_running(source):
        yield LaunchingScript(source)
        return
    with _as_main(without_launch(source, needed), path) as module:
        yield LaunchingScript(source, module)


@contextlib.contextmanager
def definitions(job_dir: Path) -> Iterator[None]:
    """Let names of the launching script resolve while records of this job that use them are loaded."""
    path = job_dir / "configs" / "main.py"
    needed, source = _text(path), _text(job_dir.parent / "main.py")
    if needed is None or source is None or _is_running(source):
        yield
        return
    with _as_main(needed, path):
        yield


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None


def _is_running(source: str) -> bool:
    """Whether the running script is the one that launched, so that its own classes are the ones meant."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    try:
        return file is not None and Path(file).read_bytes() == source.encode(errors="surrogateescape")
    except OSError:
        return False


@contextlib.contextmanager
def _as_main(text: str, path: Path) -> Iterator[ModuleType]:
    """Let names of the launching script resolve, as `__main__`, while records that use them are loaded."""
    own_main = sys.modules["__main__"]
    try:
        yield runner.load_main(str(path), text)
    finally:
        sys.modules["__main__"] = own_main
