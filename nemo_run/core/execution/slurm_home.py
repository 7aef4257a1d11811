"""What ended jobs of a Slurm cluster left behind, copied home."""

from __future__ import annotations

from pathlib import Path

from nemo_run.core import runner
from nemo_run.core.execution.base import TERMINAL, AppState, JobHandle, JobStatus
from nemo_run.core.tunnel.base import Tunnel
from nemo_run.errors import TunnelError

#: What jobs leave behind.
_LEFT = ("logs", "results", "artifacts")


def brought_home(tunnel: Tunnel, handle: JobHandle, status: JobStatus) -> JobStatus:
    """The status, once what an ended job left behind is here."""
    folder, home = handle.data["folder"], Path(handle.data["home"])
    if status.state not in TERMINAL or folder == str(home) or not home.is_dir():
        return status
    mark = home / "brought_home"
    if mark.exists():
        return status
    try:
        there = tunnel.run(["sh", "-c", 'cd -- "$0" && ls', folder], check=False, retry=True)
        for name in set(there.text.split("\n")) & set(_LEFT):
            tunnel.get(f"{folder}/{name}", home / name)
    except TunnelError as exc:
        message = f"{status.state}, but what it left in {folder} cannot be copied yet: {exc}"
        return JobStatus(state=AppState.UNKNOWN, message=message)
    runner.write(str(mark), "")
    return status
