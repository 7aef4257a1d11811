"""How things are timed: ours and the floor in turn, and the median of the pairs' ratios."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent
PYTHON = sys.executable


@dataclass(kw_only=True)
class Row:
    """One line of the table; times are seconds unless `unit` says otherwise."""

    what: str
    ours: float
    floor: float | None = None
    #: Median of the pairs' ratios, which is steadier than the ratio of the medians.
    ratio: float | None = None
    #: In the words of the table: "≤ 2×", "< 0.2 s"; empty where there is nothing to compare with.
    goal: str = ""
    submitit: float | None = None
    unit: str = "s"

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if not self.goal:
            return None
        limit = float(self.goal.split()[1].rstrip("×"))
        value = self.ratio if self.goal.endswith("×") else self.ours
        return value is not None and value <= limit


@dataclass(kw_only=True)
class Group:
    """Rows that were taken in one way."""

    title: str
    how: str
    rows: list[Row] = field(default_factory=list)


def pairs(
    what: str, ours: Callable[[], float], floor: Callable[[], float], *, count: int, goal: str = ""
) -> Row:
    """Measure both alternately, `count` times."""
    taken = []
    for _ in range(count):
        least = floor()
        taken.append((ours(), least))
    return Row(
        what=what,
        ours=statistics.median(mine for mine, _ in taken),
        floor=statistics.median(least for _, least in taken),
        ratio=statistics.median(mine / least for mine, least in taken),
        goal=goal,
    )


def median_of(measure: Callable[[], float], count: int) -> float:
    """The median of `count` measurements after one that is thrown away."""
    measure()
    return statistics.median(measure() for _ in range(count))


def command(*argv: str) -> Callable[[], float]:
    """Measures how long a command takes; one that fails stops the benchmark and is shown."""
    return lambda: seconds(lambda: check(argv))


def python(code: str) -> Callable[[], float]:
    """Measures how long an interpreter takes to run this."""
    return command(PYTHON, "-c", code)


def seconds(act: Callable[[], object]) -> float:
    """How long this takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def check(argv: Sequence[str]) -> str:
    """A command's output; SystemExit with what it said if it fails."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}\nfailed with exit code {done.returncode}:\n{done.stderr}")
    return done.stdout


def pool(argv: Sequence[str], count: int, width: int = 2) -> Callable[[], float]:
    """Measures `count` runs of a command, `width` at a time: what a job cannot be cheaper than."""
    return lambda: seconds(lambda: _run_pool(argv, count, width))


def _run_pool(argv: Sequence[str], count: int, width: int) -> None:
    """By the least there is: start a process, wait for any."""
    running: dict[int, subprocess.Popen[bytes]] = {}
    for _ in range(count):
        if len(running) == width:
            _wait_for_one(running)
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        running[process.pid] = process
    while running:
        _wait_for_one(running)


def _wait_for_one(running: dict[int, subprocess.Popen[bytes]]) -> None:
    pid, status = os.waitpid(-1, 0)
    if process := running.pop(pid, None):
        process.returncode = os.waitstatus_to_exitcode(status)


def peak_memory() -> float:
    """The most memory this process has had in use, in MB."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
    except FileNotFoundError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


# --- where ----------------------------------------------------------------------------------------------


def machine() -> str:
    """This machine in words that compare, and that tell nobody whose it is."""
    parts = (
        f"{os.cpu_count()} CPUs ({_cpu()})",
        f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        time.strftime("%Y-%m-%d"),
    )
    return ", ".join(parts)


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (FileNotFoundError, StopIteration):
        return platform.machine()


def load() -> float:
    """How many processes want a CPU, over the last minute."""
    return os.getloadavg()[0]
