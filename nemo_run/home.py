"""NEMORUN_HOME: where everything nemo_run remembers lives."""

from __future__ import annotations

import os
from pathlib import Path

from nemo_run.errors import ConfigError, StoreError

#: Used when the environment names no other folder.
DEFAULT_HOME = "~/.run"


def get_nemorun_home() -> Path:
    """The folder named by NEMORUN_HOME, read anew at each call; `~/.run` where it is not set.

    Raises:
        ConfigError: the path is relative to a home folder that cannot be found.
    """
    named = os.environ.get("NEMORUN_HOME") or DEFAULT_HOME
    try:
        return Path(named).expanduser().absolute()
    except RuntimeError as exc:
        raise ConfigError(
            f"cannot expand NEMORUN_HOME={named!r}: {exc}. Set NEMORUN_HOME to an absolute path."
        ) from exc


def set_nemorun_home(path: str | os.PathLike[str]) -> None:
    """Use another folder from now on, in this process and in those it starts."""
    os.environ["NEMORUN_HOME"] = str(Path(path).expanduser().absolute())


def open_home() -> Path:
    """The home folder, made private (0700) if it is new, checked for use if it is not.

    Raises:
        StoreError: it is not a folder, belongs to somebody else, or cannot be written to.
    """
    home = get_nemorun_home()
    mend = "Set NEMORUN_HOME to a folder of your own."
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = home.stat().st_uid
    except OSError as exc:
        raise StoreError(f"cannot use NEMORUN_HOME {str(home)!r}: {exc.strerror}. {mend}") from exc
    if owner != os.getuid():
        raise StoreError(f"NEMORUN_HOME {str(home)!r} belongs to user id {owner}, not you. {mend}")
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        raise StoreError(f"NEMORUN_HOME {str(home)!r} is not readable and writable. {mend}")
    return home
