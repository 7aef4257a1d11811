"""Running what users run: their scripts and the `nemo` command, as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: The console script of the environment that the tests run in.
NEMO = str(Path(sys.executable).with_name("nemo"))


def write(path: Path, source: str) -> Path:
    """A script with this text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source))
    return path


def python(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python as a user would."""
    return call([sys.executable, *map(str, args)], **options)


def nemo(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `nemo experiment …` as a user would, in a pipe 80 columns wide."""
    return call([NEMO, "experiment", *map(str, args)], **options)


def nemo_json(*args: Any) -> Any:
    """What a command that succeeds prints with --json, held to the letter of JSON."""
    done = nemo(*args, "--json")
    assert done.returncode == 0, done.stderr
    return strict_json(done.stdout)


def strict_json(text: str) -> Any:
    """JSON without the words that only Python adds to it (NaN, Infinity)."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def call(
    argv: list[str], *, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 100
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; nothing to read, both outputs caught."""
    return subprocess.run(
        argv,
        env={**os.environ, "COLUMNS": "80", **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def succeeded(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """The same, after a look at how it ended."""
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def failed(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """What a command that failed as it should said: no traceback, and in one go."""
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback (most recent call last):\n  File" not in done.stderr, done.stderr
    return done.stderr


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of a condition; it must come true in this time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return value
