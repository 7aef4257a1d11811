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
        how="A cluster of two nodes that is up, on SkyPilot's Slurm cloud. The floor is `sky launch --fast"
        " --detach-run` of the same YAML; ours is `executor.submit` until the API server has launched it.",
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

    def floor() -> None:
        path = plans[-1][0].spec.job_dir / "plan.txt"
        path.write_text(plans[-1][0].text)
        argv = ["sky", "launch", "--yes", "--fast", "--detach-run", "--cluster", "tests", str(path)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    ours()  # what is loaded once is loaded before
    row = pairs(
        "a launch on a cluster that is up",
        lambda: seconds(ours),
        lambda: seconds(floor),
        count=sizes.runs,
        goal="≤ 1.1×",
    )
    return [row, _look(*plans[-1])]


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
