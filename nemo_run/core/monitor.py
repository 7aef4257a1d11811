"""A child of the supervisor that samples what a job's processes use and tells when it is too much."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from typing import Any

import psutil

#: Seconds between two looks at the memory, and between two lines of `resources.jsonl`.
MEMORY_INTERVAL, SAMPLE_INTERVAL = 0.1, 1.0


def watch(supervisor: int, job_dir: str, request: dict[str, Any]) -> bool:
    """Sample until the supervisor ends; True once the job's processes use more than `memory_limit` bytes."""
    limit, record = request["memory_limit"], request["monitor_resources"]
    processes = Processes(supervisor)
    next_sample = 0.0
    while os.getppid() == supervisor:
        now = time.monotonic()
        if record and now >= next_sample:
            append_sample(os.path.join(job_dir, "resources.jsonl"), processes.sample() | gpus())
            next_sample = now + SAMPLE_INTERVAL
        if limit and (used := processes.memory(limit)) > limit:
            with open(os.path.join(job_dir, "memory.txt"), "w") as file:
                file.write(f"used {used / 2**20:.0f} MiB, over the limit of {limit / 2**20:.0f} MiB")
            return True
        time.sleep(MEMORY_INTERVAL if limit else SAMPLE_INTERVAL)
    return False


class Processes:
    """All processes below a supervisor, this one excepted."""

    def __init__(self, supervisor: int) -> None:
        self._supervisor = psutil.Process(supervisor)
        self._known: dict[int, psutil.Process] = {}

    def _current(self) -> list[psutil.Process]:
        # Kept from look to look, because a process's CPU use is measured between two looks.
        found = {child.pid: child for child in self._supervisor.children(recursive=True)}
        found.pop(os.getpid(), None)
        self._known = {pid: self._known.get(pid, child) for pid, child in found.items()}
        return list(self._known.values())

    def memory(self, limit: int) -> int:
        """Bytes in use together; pages that processes share are counted once where the system can tell."""
        processes = self._current()
        resident = sum(_bytes(process, "rss") for process in processes)
        if resident <= limit:
            return resident
        return sum(_bytes(process, "pss") for process in processes)

    def sample(self) -> dict[str, Any]:
        """Time, processes, CPU in percent of one processor, resident bytes."""
        cpu, resident = 0.0, 0
        processes = self._current()
        for process in processes:
            try:
                cpu += process.cpu_percent()
                resident += process.memory_info().rss
            except psutil.Error:
                continue
        sample = {"time": time.time(), "processes": len(processes), "cpu_percent": round(cpu, 1)}
        return sample | {"rss_bytes": resident}


def gpus() -> dict[str, Any]:
    """Use in percent and bytes of each GPU of this machine, by nvidia-smi; nothing where there is none."""
    if not (tool := shutil.which("nvidia-smi")):
        return {}
    query = "--query-gpu=index,utilization.gpu,memory.used"
    try:
        done = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    return {
        "gpus": [
            {"index": int(row[0]), "percent": _number(row[1]), "memory_bytes": _number(row[2]) * 2**20}
            for row in rows
            if len(row) == 3
        ]
    }


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0  # "[N/A]" on parts of a shared GPU


def _bytes(process: psutil.Process, kind: str) -> int:
    try:
        if kind == "pss":
            full = process.memory_full_info()
            return int(getattr(full, "pss", full.rss))
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def append_sample(path: str, record: dict[str, Any]) -> None:
    """Add one sample to a file of them, a line each."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(json.dumps(record) + "\n")
