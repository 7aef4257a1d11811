"""Servers that tests start: they end with the test, and with the process that runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path


class Daemon:
    """One server as a child process of the tests, with a log of what it says."""

    def __init__(self, argv: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        # Killed with its parent, so that a killed pytest leaves nothing behind.
        self.argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
        self.log = log
        self.env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process is not None, f"{self.argv[4]} was not started"
        return self.process.pid

    def start(self) -> None:
        """Start it; to be ready takes it a moment."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, seconds: float = 10) -> None:
        """Ask it to end, and see to it that it does."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """End it at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def check(self) -> None:
        """It has not ended by itself."""
        assert self.process is not None
        assert self.process.poll() is None, (
            f"{self.argv[4]} ended: {self.log.read_text(errors='replace')[-2000:]}"
        )


def need(service: str, *programs: str) -> None:
    """Skip where a program is missing; where everything must run, fail."""
    if missing := [program for program in programs if not find_program(program)]:
        import pytest

        problem = f"needs {', '.join(missing)} (`make services` installs {service})"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(problem)


def find_program(name: str) -> str | None:
    """Where a program is; servers are often not on a user's path."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/local/sbin")
