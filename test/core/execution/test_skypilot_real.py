"""The executors for SkyPilot against a real API server, on its Slurm cloud with a cluster of four nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch_tasks
from contracts.executor import ExecutorContract, ended, prepare, wait_until
from ports import take_ports
from repositories import repository
from skies import Sky

import nemo_run as run
from nemo_run.config import Script
from nemo_run.core.execution.base import AppState, Executor, Plan
from nemo_run.core.execution.skypilot import SkypilotExecutor, SkypilotJobsExecutor
from nemo_run.core.packaging.pattern import PatternPackager

TESTS = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("skypilot")
#: Seconds within which a launch is done, whatever else this machine has to do.
LONG = 400.0
pytestmark = pytest.mark.timeout(900)


def on_slurm(**fields: Any) -> dict[str, Any]:
    """The fields of an executor for the cluster that is there, with the tests' code."""
    code = PatternPackager(include_pattern=str(TESTS / "*.py"), relative_path=str(TESTS))
    return {"packager": code, "infra": "slurm/nemo", "cpus": 4, **fields}


class TestOnSlurm(ExecutorContract):
    patience = LONG

    @pytest.fixture(autouse=True)
    def _use(self, skypilot: Sky) -> None:
        self.sky = skypilot

    def executor(self, **fields: Any) -> Executor:
        return SkypilotExecutor(**on_slurm(cluster_name="tests", **fields))

    def refuse(self, plan: Plan) -> tuple[Plan, str]:
        member = plan.spec.members[0]
        assert isinstance(member, SkypilotExecutor)
        member.cluster_name, member.cpus = None, 1000
        return member.plan(plan.spec), "1000"

    #: Less those that init has adopted: this cluster tracks processes without cgroups, and loses them.
    family = "sleep {word} & setsid sleep {word} & sh -c 'sleep {word} & sleep {word}' &"


# --- what only a real one shows -------------------------------------------------------------------------

LOAD = """
import sky, sys, yaml
for path in sys.argv[1:]:
    task = sky.Task.from_yaml_config(yaml.safe_load(open(path)), secrets_overrides=[("TOKEN", "x")])
    print(path, task.name, task.num_nodes)
"""


def test_skypilot_takes_the_text_of_each_plan(skypilot: Sky) -> None:
    shapes = sorted(GOLDEN.glob("*.yaml"))
    argv = [str(skypilot.python), "-c", LOAD, *map(str, shapes)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(shapes) == 10


@pytest.mark.skipif(not find_spec("nvidia_resiliency_ext"), reason="needs the extra dev-torch")
@pytest.mark.parametrize("launcher", [run.Torchrun, run.FaultTolerance])
def test_launchers_meet_over_two_nodes(skypilot: Sky, home: Path, launcher: type[run.Torchrun]) -> None:
    fields = {
        "num_nodes": 2,
        "torchrun_nproc_per_node": 2,
        "launcher": launcher(rdzv_port=take_ports()[0]),  # all nodes have one address
        "python_path": sys.executable,
    }
    executor = SkypilotExecutor(**on_slurm(cluster_name="tests", **fields))
    experiment = run.Experiment("torch", executor, clean_mode=True)
    experiment.add(run.Partial(torch_tasks.total), name="sum")
    assert experiment.run() == {"sum": 1 + 2 + 3 + 4}


def test_a_task_sees_an_edit_that_is_not_committed(
    skypilot: Sky, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = repository(tmp_path / "code", {"words.sh": "echo committed\n"})
    (code / "words.sh").write_text("echo edited\n")
    monkeypatch.chdir(code)
    packager = run.GitArchivePackager()
    executor = SkypilotExecutor(**on_slurm(cluster_name="tests", packager=packager))
    experiment = run.Experiment("edit", executor, clean_mode=True)
    experiment.add(Script(path="words.sh"), name="words")
    experiment.run()
    handle = experiment.status(return_dict=True)["words"]["handle"]
    assert list(executor.logs(handle, "words")) == ["edited"]


def test_a_cluster_that_is_too_small_is_told_and_left_as_it_is(skypilot: Sky, home: Path) -> None:
    plan = prepare(Script(inline="true"), SkypilotExecutor(**on_slurm(cluster_name="tests", num_nodes=4)))
    executor = plan.spec.members[0]
    status = ended(executor, executor.submit(plan), LONG)
    assert status.state == AppState.FAILED
    assert status.message.startswith("SkyPilot: Requested resources do not match the existing cluster.")
    assert status.message.endswith("sky down tests")  # which is SkyPilot's advice; ours would be to do that


LAUNCH = """
import sys
import nemo_run as run
from nemo_run.core.execution.skypilot import SkypilotExecutor
executor = SkypilotExecutor(infra="slurm/nemo", cpus=4, cluster_name="tests", packager=run.Packager())
experiment = run.Experiment("killed", executor)
experiment.add(run.Script(inline="echo started >> " + sys.argv[1]), name="job")
experiment.run()
"""


def test_a_launcher_killed_before_it_has_its_answer_leaves_a_job_that_is_adopted_once(
    skypilot: Sky, home: Path, tmp_path: Path
) -> None:
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH)
    starts = tmp_path / "starts"
    launcher = subprocess.Popen([sys.executable, str(script), str(starts)], start_new_session=True)
    notes = home / "experiments" / "killed"
    # The launch is under way as soon as it is noted who asks for it.
    [note] = wait_until(lambda: list(notes.glob("*/job/skypilot.json")), "it is about to launch", LONG)
    name = json.loads(note.read_text())["name"]
    wait_until(lambda: name in requests(skypilot), "the API server has it", LONG)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    experiment = run.Experiment.from_id(note.parent.parent.name)
    experiment.wait()
    assert experiment.status(return_dict=True)["job"]["status"] == AppState.SUCCEEDED
    assert starts.read_text() == "started\n"


def requests(skypilot: Sky) -> str:
    """What the API server has been asked to launch."""
    ask = (
        "from sky.client import sdk; print(*(each.request_body for each in sdk.api_status(all_status=True)))"
    )
    return subprocess.run([skypilot.python, "-c", ask], capture_output=True, text=True, timeout=120).stdout


@pytest.mark.alone
def test_a_managed_job_survives_a_restart_of_the_api_server(
    skypilot: Sky, home: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    executor = SkypilotJobsExecutor(**on_slurm(cpus=1))
    plan = prepare(Script(inline=f"echo begun; until [ -e {go} ]; do sleep 0.2; done; echo over"), executor)
    executor = plan.spec.members[0]
    handle = executor.submit(plan)
    running = lambda: executor.status([handle])[0].state == AppState.RUNNING  # noqa: E731
    wait_until(running, "the managed job runs", LONG)
    skypilot.stop()
    skypilot.call("api", "start")
    go.touch()
    assert ended(executor, handle, LONG).state == AppState.SUCCEEDED
    assert list(executor.logs(handle, "job")) == ["begun", "over"]
