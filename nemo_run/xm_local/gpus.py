"""The GPUs of this machine: each is lent to one local job at a time, whichever launcher asks.

Who has which stands in `gpus.json` under NEMORUN_HOME. A GPU is free again when its job has ended or, before
that job has a record, when the process that wanted to start it has gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_run.core.process import start_time, this_host
from nemo_run.core.runner import private, write
from nemo_run.errors import ConfigError, StoreError
from nemo_run.home import open_home
from nemo_run.run import look
from nemo_run.run.store import Store

#: Seconds that `nvidia-smi` may take.
_PATIENCE = 60.0


class Gpus:
    """The GPUs here, as far as this process may use them."""

    def __init__(self) -> None:
        self._home = open_home()
        self.all = _visible()

    def claim(self, count: int, job_dir: Path) -> list[str] | None:
        """So many GPUs for a job that is about to be added; None while others have too many of them.

        Raises:
            ConfigError: there are not so many.
        """
        if count > len(self.all):
            raise ConfigError(
                f"{count} GPUs of this machine are asked for (local_gpu), and "
                + (f"it has {len(self.all)}: {', '.join(self.all)}" if self.all else _NONE)
            )
        with self._claims() as claims:
            for gpu, claim in list(claims.items()):
                if not _holds(claim):
                    del claims[gpu]
            free = [gpu for gpu in self.all if gpu not in claims]
            if len(free) < count:
                return None
            mine = {"job_dir": str(job_dir), "host": this_host(), "pid": os.getpid()}
            mine["start_time"] = start_time(os.getpid())
            claims.update(dict.fromkeys(free[:count], mine))
            return free[:count]

    def release(self, job_dir: Path) -> None:
        """A job has ended, or was not added after all."""
        with self._claims() as claims:
            for gpu, claim in list(claims.items()):
                if claim["job_dir"] == str(job_dir):
                    del claims[gpu]

    @contextlib.contextmanager
    def _claims(self) -> Iterator[dict[str, Any]]:
        """Who has which, to be changed; meanwhile nobody else does."""
        path = self._home / "gpus.json"
        with open(self._home / "gpus.lock", "ab", opener=private) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                claims = json.loads(path.read_bytes())
            except (FileNotFoundError, ValueError):
                claims = {}
            before = dict(claims)
            yield claims
            if claims != before:
                write(str(path), json.dumps(claims, indent=1) + "\n")


_NONE = "`nvidia-smi` finds none; leave local_gpu out, or see that `nvidia-smi -L` lists them"


def _visible() -> list[str]:
    """GPUs by number or UUID: those of CUDA_VISIBLE_DEVICES, else all that the driver knows."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu.strip() for gpu in given.split(",") if gpu.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    words: Sequence[str] = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split() if done.returncode == 0 else []


def _holds(claim: Mapping[str, Any]) -> bool:
    """Whether a GPU is still somebody's."""
    job_dir = Path(claim["job_dir"])
    if not (job_dir / "job.json").exists():
        return bool(claim["host"] == this_host() and start_time(claim["pid"]) == claim["start_time"])
    try:
        return not any(
            record.terminal for record in look.refresh(Store(job_dir.parent)) if record.id == job_dir.name
        )
    except StoreError:
        return True
