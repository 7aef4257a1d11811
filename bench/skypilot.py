"""A launch on a cluster that is there, beside `sky launch` of the same task.

It needs a SkyPilot with a cluster `tests`:

.venv/bin/python test/skies.py .venv/bin/python bench/run.py --only skypilot
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from measure import FOLDER, Group, Row, pairs, seconds

if TYPE_CHECKING:
    from groups import Sizes


def skypilot(sizes: Sizes) -> Group:
    """From the submission until the job is on the cluster, and a look at a hundred jobs."""
    group = Group(
        title="SkyPilot",
        how="A cluster of two nodes that is up, on SkyPilot's Slurm cloud. The floors are `sky launch --fast"
        " --detach-run` of the same YAML, and `sky.get(sky.launch(…))` of it in a Python that has imported"
        " SkyPilot already; ours is `executor.submit` until the API server has launched it.",
    )
    if "NEMORUN_TEST_SKYPILOT" not in os.environ:
        print("SkyPilot: left out, as there is none (`make test-skypilot` starts one)")
        return group
    sys.path.insert(0, str(FOLDER.parent / "test"))
    from skies import Sky

    os.environ |= Sky.there().env
    with tempfile.TemporaryDirectory(prefix="nemo-bench-") as folder:
        os.environ["NEMORUN_HOME"] = folder
        group.rows = _rows(sizes)
        del os.environ["NEMORUN_HOME"]
    return group


def _rows(sizes: Sizes) -> list[Row]:
    from nemo_run.core.execution.skypilot_client import client

    plans: list[Any] = []

    def ours() -> None:
        plan = _plan()
        plans.append((plan, plan.spec.members[0].submit(plan)))
        client().ask("number", request=plans[-1][1].data["request"])

    def text() -> str:
        path = plans[-1][0].spec.job_dir / "plan.txt"
        path.write_text(plans[-1][0].text)
        return str(path)

    def command() -> None:
        argv = ["sky", "launch", "--yes", "--fast", "--detach-run", "--cluster", "tests", text()]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    with _Library() as library:
        floors = {
            "`sky launch`": command,
            "SkyPilot's library": lambda: library.launch(text()),
        }
        ours()  # what is loaded once is loaded before
        library.launch(text())
        rows = [
            pairs(
                f"a launch on a cluster that is up, beside {name}",
                lambda: seconds(ours),
                lambda floor=floor: seconds(floor),
                count=sizes.runs,
                goal="≤ 1.1×",
            )
            for name, floor in floors.items()
        ]
    return [*rows, _look(*plans[-1])]


_LAUNCHES = """
import sys
import sky
for line in sys.stdin:
    task = sky.Task.from_yaml(line.strip())
    sky.get(sky.launch(task, cluster_name="tests", fast=True))
    print("launched", file=sys.stderr, flush=True)
"""


class _Library:
    """A Python that has imported SkyPilot, and launches what it is told to."""

    def __enter__(self) -> _Library:
        argv = [os.environ["NEMORUN_SKYPILOT_PYTHON"], "-c", _LAUNCHES]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def launch(self, path: str) -> None:
        """Return once the API server has launched it."""
        assert self._process.stdin
        assert self._process.stderr
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        while (line := self._process.stderr.readline()) != "launched\n":
            if not line:
                raise RuntimeError("SkyPilot's library ended")


def _look(plan: Any, handle: Any) -> Row:
    from nemo_run.core.execution.base import JobHandle

    executor = plan.spec.members[0]
    handles = [JobHandle(executor=handle.executor, id=f"{at}", data=handle.data) for at in range(100)]
    executor.status(handles)
    time.sleep(1.1)  # an answer is good for a second
    taken = seconds(lambda: executor.status(handles))
    return Row(what="a look at 100 jobs of a cluster, which is one request", ours=taken)


def _plan() -> Any:
    from contracts.executor import prepare

    import nemo_run as run

    executor = run.SkypilotExecutor(infra="slurm/nemo", cpus=4, cluster_name="tests", packager=run.Packager())
    return prepare(run.Script(inline="sleep 30"), executor)
