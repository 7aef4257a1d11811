"""What a task may ask about the job it is part of."""

from __future__ import annotations

import os
from pathlib import Path

from nemo_run.core.runner import JOB_DIR
from nemo_run.errors import ConfigError


def artifacts_dir(job: str | None = None) -> Path:
    """The folder for files that outlast a task: its own, or that of another job of the same experiment.

    Outside of a job it is `./artifacts`, so that a task can also be called as a plain function.

    Args:
        job: The id of a job this one depends on; None for this job.

    Raises:
        ConfigError: the other job has no artifacts.
    """
    job_dir = os.environ.get(JOB_DIR)
    if job is None:
        own = Path(job_dir or ".") / "artifacts"
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        return own
    other = (Path(job_dir).parent / job if job_dir else Path()) / "artifacts"
    if not other.is_dir():
        raise ConfigError(
            f"job {job!r} has no artifacts here ({other}); check its id, and add it to `dependencies`"
        )
    return other
