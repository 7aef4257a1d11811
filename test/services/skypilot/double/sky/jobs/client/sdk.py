"""The questions about managed jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sky.client.sdk import _tail
from sky.state import begin, called, folder, request


def launch(task: Any, name: str) -> str:
    called("jobs.launch")
    return begin("jobs.launch", task.config, None, "{}")


def queue_v2(refresh: bool, all_users: bool = False, fields: Any = None) -> str:
    called("jobs.queue")
    return request("jobs.queue", None)


def cancel(job_ids: list[int]) -> str:
    called("jobs.cancel")
    for job in job_ids:
        (folder() / "jobs" / "managed" / f"{job}.cancel").touch()
    return request("jobs.cancel", None)


def tail_logs(job_id: int, follow: bool, preload_content: bool = True) -> Iterator[str | None]:
    called("jobs.tail_logs")
    return _tail(folder() / "jobs" / "managed", job_id, follow)
