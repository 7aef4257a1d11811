"""Containers beside `docker run --rm`; as a child process it prints how long jobs and their floor took.

bench/containers.py COUNT WIDTH TIMES
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import measure

if TYPE_CHECKING:
    from groups import Sizes

IMAGE = "debian-py:12"
FLOOR = ["docker", "run", "--rm", IMAGE, "python3", "-c", "pass"]


def containers(sizes: Sizes) -> measure.Group:
    """One, and twenty in a pool as wide."""
    width = os.cpu_count() or 1
    rows = [
        _row("one no-op Python task in a container, warm", 1, 1, 2 * sizes.runs, "≤ 1.5×"),
        _row(f"20 of them, {width} at once", 20, width, sizes.runs, "≤ 1.3×"),
    ]
    return measure.Group(
        title="Containers",
        how="From `Experiment(…)` to the values, in a process that has run a container before; the floor is"
        f" `docker run --rm {IMAGE} python3 -c pass`, {width} at once where we are.",
        rows=[row for row in rows if row],
    )


def _row(what: str, count: int, width: int, times: int, goal: str) -> measure.Row | None:
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode:
        print(f"{what}: left out, as there is no Docker Engine with {IMAGE} (`make services`)")
        return None
    with tempfile.TemporaryDirectory(prefix="nemo-bench-") as home:
        os.environ["NEMORUN_HOME"] = home
        printed = measure.check([sys.executable, __file__, str(count), str(width), str(times)])
        del os.environ["NEMORUN_HOME"]
    taken = json.loads(printed.splitlines()[-1])
    return measure.Row(what=what, ours=taken["ours"], floor=taken["floor"], ratio=taken["ratio"], goal=goal)


def _experiment(count: int, width: int) -> None:
    import noop

    import nemo_run as run

    executor = run.DockerExecutor(
        container_image=IMAGE,
        max_parallel=width,
        packager=run.Packager(),
        volumes=[f"{Path(__file__).parent}:/bench:ro"],
        env_vars={"PYTHONPATH": "/bench"},
    )
    with run.Experiment("bench", executor=executor, clean_mode=True) as experiment:
        for number in range(count):
            experiment.add(run.Partial(noop.noop, number), name=f"job_{number}")
        experiment.run()


def main() -> None:
    """Measure in this process."""
    count, width, times = map(int, sys.argv[1:])
    _experiment(1, 1)  # what is loaded once is loaded before
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        row = measure.pairs(
            "",
            lambda: measure.seconds(lambda: _experiment(count, width)),
            measure.pool(FLOOR, count, width),
            count=times,
        )
    print(json.dumps({"ours": row.ours, "floor": row.floor, "ratio": row.ratio}))


if __name__ == "__main__":
    main()
