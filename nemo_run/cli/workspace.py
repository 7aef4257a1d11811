"""Workspace files: Python that registers factories for whoever works in a folder."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from nemo_run.cli.factories import REGISTRY
from nemo_run.errors import ConfigError
from nemo_run.home import get_nemorun_home

#: In the order in which they are run: what a later one registers counts more.
_NAMES = ("workspace.py", "workspace_private.py")


def use_workspaces() -> None:
    """Have the workspace files run before the first look-up of a factory."""
    if load_workspaces not in REGISTRY.sources:
        REGISTRY.sources.append(load_workspaces)


def load_workspaces() -> None:
    """Run the workspace files; what the running script registers itself counts more than what they do.

    Raises:
        ConfigError: one of them fails.
    """
    before = list(REGISTRY.factories.values())
    for path in workspace_files():
        _run(path)
    for factory in before:
        if factory.fn.__module__ == "__main__":
            REGISTRY.add(factory)


def workspace_files() -> list[Path]:
    """The workspace files that count here, the nearest last.

    They are looked for in NEMORUN_HOME, and from the root of the repository, if this is one, down to the
    current folder.
    """
    if os.environ.get("INCLUDE_WORKSPACE_FILE", "true").lower() in ("false", "0", "no"):
        return []
    places = [(get_nemorun_home(), _NAMES[:1])] + [(folder, _NAMES) for folder in _folders()]
    found = [folder / name for folder, names in places for name in names]
    return list(dict.fromkeys(path for path in found if path.is_file()))


def _folders() -> Iterator[Path]:
    """The folders from the repository's root down to the current one; without a repository, that alone."""
    here = Path.cwd()
    upwards = [here, *here.parents]
    root = next((at for at, folder in enumerate(upwards) if (folder / ".git").exists()), 0)
    return reversed(upwards[: root + 1])


def _run(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses, and whoever asks where a class is from, look there
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        raise ConfigError(
            f"cannot load {failure(str(path), exc)};"
            " mend it, or leave workspace files out by INCLUDE_WORKSPACE_FILE=false"
        ) from exc


def failure(path: str, exc: Exception) -> str:
    """What went wrong in a file, and in which line of it."""
    lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if frame.filename == path]
    line = exc.lineno if isinstance(exc, SyntaxError) else lines[-1] if lines else None
    message = exc.msg if isinstance(exc, SyntaxError) else str(exc)
    below_here = os.path.relpath(path)
    place = path if below_here.startswith("..") else below_here
    place += f":{line}" if line else ""
    return f"{place}: {type(exc).__name__}{message and f': {message}'}"
