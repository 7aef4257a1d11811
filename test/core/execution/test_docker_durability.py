"""However a launcher or keeper is killed, each container runs once, and its true end and value are there."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from contracts.executor import wait_until
from dockers import IMAGE, TESTS, Containers
from killed import GROUP, SINGLE, assert_each_ran_once, assert_ran_once, killed

import nemo_run as run
from nemo_run.run.look import refresh
from nemo_run.run.store import Store

pytestmark = pytest.mark.usefixtures("home", "containers")

#: What tells from an audit event that a launcher is at a step: a request to the Engine, or a record.
HEAD = """
import tasks
from killed import sends, writes

IMAGE, TESTS, step, count, trace = sys.argv[1:]

STEPS = {
    "before the intent is followed": sends(b"GET ", b"/images/"),
    "before anything is recorded": writes("/docker.json", '"creating"'),
    "before the container is made": sends(b"POST ", b"/containers/create"),
    "after the container is made": sends(b"GET ", b"/containers/", b"/json HTTP"),
    "before the first start": writes("/docker.json", '"starting"'),
    "before the container is started": sends(b"POST ", b"/start HTTP"),
    "after the container is started": writes("/docker.json", '"started"'),
    "before the handle is recorded": writes("/job.json", '"url"'),
    "while waiting": sends(b"GET ", b"/containers/json"),
    "before the log is saved": sends(b"GET ", b"/logs?"),
    "before the end is recorded": writes("/end.json"),
    "before the container is removed": sends(b"DELETE ", b"/containers/"),
    "after the container is removed": lambda event, args: (
        event == "os.remove" and str(args[0]).endswith("/docker.json")
    ),
    "before the result is recorded": writes("/job.json", '"SUCCEEDED"'),
}
if step:
    kill_at(STEPS[step], int(count))
executor = run.DockerExecutor(
    container_image=IMAGE, volumes=[f"{TESTS}:{TESTS}:ro", f"{trace}:{trace}"],
    env_vars={"PYTHONPATH": TESTS}, packager=run.Packager(),
)
"""
STEPS = [
    "before the intent is followed", "before anything is recorded", "before the container is made",
    "after the container is made", "before the first start", "before the container is started",
    "after the container is started", "before the handle is recorded", "while waiting",
    "before the log is saved", "before the end is recorded", "before the container is removed",
    "after the container is removed", "before the result is recorded",
]  # fmt: skip


def killed_at(step: str, folder: Path, body: str, count: int = 1) -> Path:
    """Run a launching script that is killed at a step; where its tasks leave their traces."""
    return killed(folder, HEAD + body, IMAGE, str(TESTS), step, str(count))


@pytest.mark.parametrize("step", STEPS)
def test_a_launcher_killed_at_a_step_loses_and_doubles_nothing(
    step: str, tmp_path: Path, containers: Containers
) -> None:
    assert_ran_once(killed_at(step, tmp_path, SINGLE))
    assert containers.all() == []


@pytest.mark.parametrize(
    ("step", "count"),
    [
        ("before the container is made", 2),
        ("before the container is started", 1),
        ("before the container is started", 2),
        ("after the container is started", 1),
        ("while waiting", 1),
    ],
)
def test_a_group_is_not_started_in_part(
    step: str, count: int, tmp_path: Path, containers: Containers
) -> None:
    assert_each_ran_once(killed_at(step, tmp_path, GROUP, count))
    containers.assert_gone(within=30)


LIMITED = """
executor.timeout, executor.monitor_resources = 3.0, True
with run.Experiment("limited", executor, clean_mode=True) as exp:
    exp.add(run.Script(inline="touch " + trace + "/here; sleep 1000"), name="job")
    exp.run()
"""


def test_limits_hold_when_the_launcher_is_gone(tmp_path: Path, containers: Containers) -> None:
    trace = killed_at("while waiting", tmp_path, LIMITED, 2)
    wait_until((trace.parent / "here").exists, "it runs")
    [job_dir] = tmp_path.glob("home/experiments/limited/*/job")
    wait_until((job_dir / "end.json").exists, "it has been ended though nobody looks")
    assert json.loads((job_dir / "end.json").read_text())["message"] == "TIMEOUT: ran longer than 3 s"
    assert (job_dir / "resources.jsonl").read_text()
    wait_until(lambda: containers.all() == [], "its container is gone")
    assert run.Experiment.from_title("limited").status(return_dict=True)["job"]["exit_code"] == 124


def test_a_killed_keeper_is_replaced_by_the_next_look(tmp_path: Path, containers: Containers) -> None:
    killed_at("while waiting", tmp_path, LIMITED.replace("3.0", "8.0"), 2)
    [job_dir] = tmp_path.glob("home/experiments/limited/*/job")
    first = keeper(job_dir)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(first), "it is dead")
    exp = run.Experiment.from_title("limited")
    refresh(Store(exp.path))
    assert keeper(job_dir) != first
    wait_until((job_dir / "end.json").exists, "the other has ended the job though nobody looks")


def keeper(job_dir: Path) -> int:
    """The number of the process that keeps a job."""
    record = wait_until(lambda: (job_dir / "keeper.json").exists(), "there is a keeper")
    assert record
    return int(json.loads((job_dir / "keeper.json").read_text())["pid"])
