"""Values that are read where they are needed and never written down."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_run.errors import ConfigError

_PLAIN = re.compile(r"[A-Za-z0-9_]+\Z")


@dataclass(frozen=True, repr=False)
class Secret:
    """A password or token: this says where it is found on the launching machine, never what it is.

    It is given as one of `Secret("HF_TOKEN")` (an environment variable), `Secret(file="~/.token")` and
    `Secret(command=["pass", "show", "x"])`, and may stand wherever a text may: in `env_vars`, in a Script's
    arguments and environment, in a task's arguments.

    Raises:
        ConfigError: none or more than one of the three is given, or one is empty.
    """

    variable: str | None = None
    file: str | None = None
    command: tuple[str, ...] | None = None

    def __init__(
        self,
        variable: str | None = None,
        *,
        file: str | os.PathLike[str] | None = None,
        command: Sequence[str] | str | None = None,
    ) -> None:
        if sum(source is not None for source in (variable, file, command)) != 1:
            raise ConfigError('a Secret is one of Secret("NAME"), Secret(file=…) and Secret(command=[…])')
        if not (variable or command or (file and os.fspath(file))):
            raise ConfigError("a Secret's source is empty; name a variable, a file or a command")
        argv = shlex.split(command) if isinstance(command, str) else command
        object.__setattr__(self, "variable", variable)
        object.__setattr__(self, "file", None if file is None else os.fspath(file))
        object.__setattr__(self, "command", None if argv is None else tuple(argv))

    @property
    def name(self) -> str:
        """A short name that stays the same and may be part of an environment variable's name."""
        if self.variable is not None and _PLAIN.match(self.variable):
            return self.variable
        return hashlib.sha256(json.dumps(self.source()).encode()).hexdigest()[:12]

    def source(self) -> dict[str, str | list[str]]:
        """Where the value is found, as JSON: `Secret.from_source` reads it again."""
        if self.variable is not None:
            return {"name": self.variable}
        if self.file is not None:
            return {"file": self.file}
        return {"command": list(self.command or ())}

    @classmethod
    def from_source(cls, source: dict[str, str | list[str]]) -> Secret:
        """The Secret whose `source()` this is.

        Raises:
            ConfigError: it names no source, or more than one.
        """
        name, file, command = (source.get(key) for key in ("name", "file", "command"))
        return cls(
            None if name is None else str(name),
            file=None if file is None else str(file),
            command=None if command is None else list(command),
        )

    def resolve(self) -> str:
        """The value, read now; the line end that closes a file or a command's output is not part of it.

        Raises:
            ConfigError: the variable is not set, the file cannot be read, or the command fails.
        """
        if self.variable is not None:
            return _from_environment(self.variable)
        if self.file is not None:
            return _from_file(self.file)
        return _from_command(self.command or ())

    def check(self) -> None:
        """Find out before anything is started whether there is a value; commands are left alone.

        Raises:
            ConfigError: the variable is not set, or the file cannot be read.
        """
        if self.command is None:
            self.resolve()

    def __repr__(self) -> str:
        if self.variable is not None:
            return f"Secret({self.variable!r})"
        if self.file is not None:
            return f"Secret(file={self.file!r})"
        return f"Secret(command={list(self.command or ())!r})"


def _from_environment(variable: str) -> str:
    try:
        return os.environ[variable]
    except KeyError:
        raise ConfigError(
            f"the secret {variable!r} is not in the environment. Run `export {variable}=…` first, or use "
            "Secret(file=…) or Secret(command=[…])."
        ) from None


def _from_file(file: str) -> str:
    try:
        return _without_line_end(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, RuntimeError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise ConfigError(f"the secret's file {file!r} cannot be read: {why}. Name another.") from exc
    except UnicodeDecodeError as exc:
        # The error itself holds the file's bytes.
        raise ConfigError(f"the secret's file {file!r} is not UTF-8 text (byte {exc.start}).") from None


def _from_command(command: Sequence[str]) -> str:
    shown = shlex.join(command)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    except OSError as exc:
        raise ConfigError(f"the secret's command `{shown}` cannot be run: {exc.strerror}.") from exc
    except subprocess.CalledProcessError as exc:
        # Not chained: the error holds what the command printed.
        raise ConfigError(
            f"the secret's command `{shown}` failed with exit code {exc.returncode}. Run it by hand to see."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"the secret's command `{shown}` printed what is not UTF-8 text.") from None
    return _without_line_end(done.stdout)


def _without_line_end(text: str) -> str:
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
