"""A Ray cluster of a job's nodes on a real Slurm, by Ray itself where it is installed, else by a stand-in."""

from __future__ import annotations

import json
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest
import tasks
from contracts.executor import ended, prepare, wait_until
from ports import take_ports
from programs import call, write
from rays import make_stand_in, told
from slurms import Cluster

import nemo_run as run
from nemo_run.core.execution.base import AppState, Executor, JobHandle
from nemo_run.core.execution.slurm import SlurmExecutor, SlurmJobDetails
from nemo_run.errors import ConfigError

pytestmark = pytest.mark.usefixtures("home")

Job: TypeAlias = tuple[Executor, JobHandle]

#: All nodes of the test cluster are on this machine, so that each takes ports that are free.
ANY = dict.fromkeys(
    ("dashboard_port", "object_manager_port", "node_manager_port", "dashboard_agent_port",
     "dashboard_agent_grpc_port", "metrics_port"), 0,
)  # fmt: skip
TASK = """
import os, ray
ray.init(address=os.environ["RAY_ADDRESS"], logging_level="ERROR", log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()), "nodes seen from", os.environ["SLURM_NODEID"], flush=True)
"""
LOOK = f"{sys.executable} -c '{TASK}'"


class Ray:
    """Jobs that make a Ray cluster, and what its processes were told."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.told_in = folder / "told"
        self.env = {**env, "RAY_TOLD": str(self.told_in)}

    def launcher(self, **fields: Any) -> run.SlurmRay:
        waits = {"head_init_wait_time": 60, "worker_init_wait_time": 30}
        return run.SlurmRay(**{**ANY, **waits, "gcs_server_port": take_ports()[0], **fields})

    def executor(self, env: dict[str, str] | None = None, **fields: Any) -> SlurmExecutor:
        env = {**self.env, **(env or {})}
        return SlurmExecutor(
            **{"packager": run.Packager(), "time": "5", "nodes": 2, "env_vars": env, **fields}
        )

    def submit(self, text: str, **fields: Any) -> Job:
        fields.setdefault("launcher", self.launcher())
        plan = prepare(run.Script(inline=text), self.executor(**fields))
        member = plan.spec.members[0]
        return member, member.submit(plan)

    def told(self, node: int) -> dict[str, Any]:
        """The options of `ray start` on a node."""
        return told(self.env, node)

    def left(self) -> list[psutil.Process]:
        """Its processes that still run."""
        marks = {f"RAY_TOLD={self.told_in}"}
        return [each for each in psutil.process_iter(["cmdline"]) if marks & environment(each)]


def environment(process: psutil.Process) -> set[str]:
    try:
        return {f"{name}={value}" for name, value in process.environ().items()}
    except psutil.Error:
        return set()


@pytest.fixture
def stand_in(slurm: Cluster, tmp_path: Path) -> Ray:
    """What does nothing but make a cluster of its processes."""
    return Ray(tmp_path, make_stand_in(tmp_path))


@pytest.fixture(params=["stand_in", "installed"])
def ray(request: pytest.FixtureRequest, slurm: Cluster, tmp_path: Path) -> Ray:
    """The stand-in, and Ray itself."""
    if request.param == "stand_in":
        found: Ray = request.getfixturevalue("stand_in")
        return found
    if not find_spec("ray"):
        problem = "needs Ray (CI=true make test installs it)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(problem)
    return Ray(tmp_path, {})


def output(job: Job, rank: int = 0, role: str = "job") -> list[str]:
    return [line for line in job[0].logs(job[1], role, rank) if not line.startswith(("slurmstepd", "srun"))]


def folder(job: Job) -> Path:
    return Path(job[1].data["folder"])


# --- a cluster of two nodes -----------------------------------------------------------------------------


def test_the_task_runs_on_the_first_node_of_a_cluster_of_all_and_ends_it(ray: Ray) -> None:
    details = SlurmJobDetails(ray_log_prefix="of ray ")
    job = ray.submit(f"{LOOK}; exit 7", job_details=details, cpus_per_task=3)
    status = ended(*job, seconds=100)
    assert (output(job), status.exit_code) == (["2 nodes seen from 0"], 7)
    assert status.state == AppState.FAILED
    names = sorted(path.name for path in (folder(job) / "logs").glob("of ray *"))
    assert names == ["of ray head.log", "of ray worker-1.log"]
    wait_until(lambda: not ray.left(), "none of its processes is left")


def test_nodes_leave_when_the_task_has_succeeded(stand_in: Ray) -> None:
    job = stand_in.submit(LOOK, cpus_per_task=3)
    assert ended(*job).state == AppState.SUCCEEDED
    assert output(job) == ["2 nodes seen from 0"]
    assert output(job, rank=1) == []
    head, other = stand_in.told(0), stand_in.told(1)
    assert (head["num-cpus"], other["num-cpus"]) == ("3", "3")
    assert other["address"].endswith(f":{head['port']}")
    assert not stand_in.left()


def test_one_node_is_a_cluster_too_with_a_python_task(stand_in: Ray) -> None:
    task = run.Partial(tasks.environment, ["RAY_ADDRESS"])
    member = stand_in.executor(nodes=1, launcher=stand_in.launcher())
    plan = prepare(task, member)
    job = plan.spec.members[0], plan.spec.members[0].submit(plan)
    assert ended(*job).state == AppState.SUCCEEDED, output(job)
    [result] = (folder(job) / "results").glob("*.json")
    port = stand_in.told(0)["port"]
    assert json.loads(result.read_text())["value"] == tasks.hexed([f"localhost:{port}"])


# --- what goes wrong ------------------------------------------------------------------------------------


def test_a_head_that_does_not_start_ends_the_job_with_its_own_words(stand_in: Ray) -> None:
    job = stand_in.submit("echo never", env={"RAY_BREAKS": "0"})
    status = ended(*job)
    assert (status.state, status.exit_code) == (AppState.FAILED, 1)
    said = output(job)
    assert said[0].endswith(": its head has ended")
    assert said[1:] == [f"the last of {folder(job)}/logs/ray-head.log:", "this Ray does not work"]


def test_a_node_that_cannot_join_ends_the_job_and_is_named(stand_in: Ray) -> None:
    waits = stand_in.launcher(head_init_wait_time=3, worker_init_wait_time=1)
    job = stand_in.submit("echo never", env={"RAY_BREAKS": "1"}, launcher=waits)
    status = ended(*job)
    assert (status.state, status.exit_code) == (AppState.FAILED, 1)
    said = [*output(job), *output(job, rank=1)]
    assert "never" not in said
    assert any("not all of its 2 node(s) were there within 4 s" in line for line in said) or any(
        "it does not run on node 1, which could not join it within 4 s" in line for line in said
    )
    wait_until(lambda: not stand_in.left(), "none of its processes is left")


def test_a_head_that_dies_ends_the_task(stand_in: Ray) -> None:
    job = stand_in.submit(f"{LOOK}; exec sleep 300")
    wait_until(lambda: output(job), "the task runs", 60)
    [head] = [each for each in stand_in.left() if "--head" in (each.info["cmdline"] or ())]
    head.kill()
    status = ended(*job)
    assert (status.state, status.exit_code) == (AppState.FAILED, 1)
    assert output(job)[1].endswith(": its head has ended, and with it the task")
    wait_until(lambda: not stand_in.left(), "none of its processes is left")


def test_a_port_that_somebody_has_is_said(stand_in: Ray) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        job = stand_in.submit("echo never", launcher=stand_in.launcher(gcs_server_port=port))
        assert ended(*job).exit_code == 1
    said = f"Ray at 127.0.0.1:{port}: somebody has its port; give another gcs_server_port"
    assert output(job) == [said]


def test_a_signal_before_the_end_is_for_the_task_and_leaves_ray_alone(stand_in: Ray) -> None:
    text = "trap 'echo saved; exit 5' USR1; echo ready; while :; do sleep 0.1; done"
    job = stand_in.submit(text)
    wait_until(lambda: output(job), "the task runs", 60)
    assert call(["scancel", "--signal=USR1", job[1].data["job"]]).returncode == 0
    assert ended(*job).exit_code == 5
    said = output(job)
    assert (said[0], said[-1]) == ("ready", "saved")
    assert stand_in.told(0)["deaf"]
    assert stand_in.told(1)["deaf"]


def test_a_task_has_its_time_to_end_when_the_job_is_cancelled(stand_in: Ray) -> None:
    job = stand_in.submit(
        "trap 'sleep 0.5; echo saved; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    )
    wait_until(lambda: output(job), "the task runs", 60)
    job[0].cancel(job[1])
    assert ended(*job).state == AppState.CANCELLED
    assert output(job)[-1] == "saved"
    wait_until(lambda: not stand_in.left(), "none of its processes is left")


# --- groups ---------------------------------------------------------------------------------------------


def submit_group(stand_in: Ray, asked: Any, **fields: Any) -> tuple[Job, list[str]]:
    """A job of one member that asks for a Ray cluster and another that waits for it; their names."""
    done = f"{stand_in.told_in}.done"
    beside = run.Script(
        path=str(write(Path(f"{done}.sh"), f"until test -e {done}; do sleep 0.1; done; echo hi"))
    )
    asking = run.Script(inline=f"{LOOK}; touch {done}", metadata={"use_with_ray_cluster": asked})
    executors = [stand_in.executor(**{**fields, "nodes": nodes}) for nodes in (1, 2)]
    plan = prepare([beside, asking], executors)
    # All nodes of the test cluster have one address, so that only this tells where they meet.
    head = 'member_node_ip=$(address_of "$het_group_host_1") member'
    assert (head in plan.text) == executors[0].heterogeneous
    member = plan.spec.members[0]
    return (member, member.submit(plan)), [role.name for role in plan.spec.app.roles]


@pytest.mark.parametrize("heterogeneous", [False, True], ids=["shared", "heterogeneous"])
def test_a_member_of_a_group_has_a_cluster_of_its_nodes_and_others_run_beside(
    stand_in: Ray, heterogeneous: bool
) -> None:
    asked = {**ANY, "gcs_server_port": take_ports()[0], "head_init_wait_time": 60}
    job, (beside, asking) = submit_group(stand_in, asked, heterogeneous=heterogeneous)
    status = ended(*job, seconds=100)
    assert status.state == AppState.SUCCEEDED, (output(job, role=asking), output(job, 1, asking))
    assert output(job, role=asking) == ["2 nodes seen from 0"]
    assert output(job, role=beside) == ["hi"]


# --- what is asked for ----------------------------------------------------------------------------------


def test_the_shell_text_of_a_launcher_is_not_taken_for_a_users_mistake(
    slurm: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    fields: dict[str, Any] = {"packager": run.Packager(), "launcher": run.SlurmRay()}
    prepare(run.Script(inline="true"), SlurmExecutor(**fields))
    assert "will not expand" not in caplog.text
    prepare(run.Script(path=__file__, args=["$HOME"]), SlurmExecutor(**fields))
    assert "will not expand the argument '$HOME', which" in caplog.text


def launcher_of(asked: Any, **fields: Any) -> Any:
    experiment = run.Experiment("asking", SlurmExecutor(packager=run.Packager(), **fields))
    experiment.add(run.Script(inline="true", metadata={"use_with_ray_cluster": asked}), name="job")
    return experiment.jobs[0].executors[0].launcher


def test_metadata_ask_for_a_cluster_with_what_it_is_to_be_like() -> None:
    assert launcher_of(True) == run.SlurmRay()
    assert launcher_of({"gcs_server_port": 1234}) == run.SlurmRay(gcs_server_port=1234)
    assert launcher_of(False) is None
    own = run.SlurmTemplate(template_inline="start ray; {{ command }}")
    assert launcher_of(True, launcher=own) == own


@pytest.mark.parametrize(
    ("asked", "fields", "words"),
    [
        (
            {"gcs_port": 1},
            {},
            "'job' asks for a Ray cluster .* no field 'gcs_port'; did you mean .*'gcs_server_port'",
        ),
        ({"gcs_server_port": 0}, {}, "gcs_server_port is 0; give a port"),
        ({"dashboard_port": 65536}, {}, "dashboard_port is 65536; give a whole number"),
        (True, {"launcher": "torchrun"}, "its executor's launcher is Torchrun; give one of them"),
    ],
)
def test_what_metadata_cannot_ask_for_is_refused_at_once(
    asked: Any, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        launcher_of(asked, **fields)


def test_one_member_of_a_group_makes_the_cluster() -> None:
    asking = run.Script(inline="true", metadata={"use_with_ray_cluster": True})
    experiment = run.Experiment("asking", SlurmExecutor(packager=run.Packager()))
    with pytest.raises(ConfigError, match="'true' and 'true_1' of group 'job' ask for a Ray cluster each"):
        experiment.add([asking, asking], name="job")
