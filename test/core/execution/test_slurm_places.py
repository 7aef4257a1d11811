"""All that jobs on Slurm do, at once: from the login node and over SSH, with and without accounting."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch_tasks
from contracts.executor import wait_until
from ports import take_ports
from slurms import Cluster, hurrying

import nemo_run as run
from nemo_run.core.execution.base import TERMINAL, AppState
from nemo_run.core.execution.slurm import SlurmExecutor
from nemo_run.core.packaging.pattern import PatternPackager

TESTS = Path(__file__).parents[2]
LONG = 90.0
S, F, C = AppState.SUCCEEDED, AppState.FAILED, AppState.CANCELLED


class Place:
    """A cluster, and how it is reached; jobs leave traces in a folder."""

    def __init__(self, cluster: Cluster, tunnel: run.Tunnel, trace: Path) -> None:
        self.cluster, self.trace = cluster, trace
        self._tunnel = tunnel

    def executor(self, **fields: Any) -> SlurmExecutor:
        return SlurmExecutor(
            **{"tunnel": self._tunnel, "packager": run.Packager(), "time": "5", "retries": 0, **fields}
        )

    def script(self, text: str) -> run.Script:
        """A script with `$trace`, and `begun` to say that an attempt is under way."""
        begun = 'begun() { touch "$trace/$NEMORUN_JOB_ID.$NEMORUN_ATTEMPT"; }'
        return run.Script(inline=f"trace={self.trace}; {begun}; {text}")

    def await_begun(self, job: str, attempt: int) -> None:
        wait_until((self.trace / f"{job}.{attempt}").exists, f"attempt {attempt} of {job} runs", LONG)

    def number(self, experiment: run.Experiment, job: str) -> str:
        handle = experiment.status(return_dict=True)[job]["handle"]
        return str(handle.data["job"])


@pytest.fixture(params=["login node", "SSH"])
def place(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Iterator[Place]:
    """A place on the cluster that the test's module has been given, whose requeued jobs start soon."""
    cluster: Cluster = request.getfixturevalue(request.node.get_closest_marker("cluster").args[0])
    (tmp_path / "trace").mkdir()
    if request.param == "SSH":
        sshd = request.getfixturevalue("sshd")
        tunnel: run.Tunnel = run.SSHTunnel(job_dir=str(tmp_path / "there"), **sshd.where)
    else:
        tunnel = run.LocalTunnel()
    with hurrying(cluster):
        yield Place(cluster, tunnel, tmp_path / "trace")
    tunnel.close()


def everything(place: Place) -> run.Experiment:
    """One experiment with a job of each kind."""
    exp = run.Experiment("everything", place.executor(), clean_mode=True, raise_on_failure=False)
    meet = "touch $trace/{0}; until [ -e $trace/{1} ]; do sleep 0.05; done"
    exp.add([place.script(meet.format("one", "two")), place.script(meet.format("two", "one"))], name="pair")
    het = [place.executor(heterogeneous=True), place.executor(heterogeneous=True, nodes=2)]
    exp.add([place.script("echo $SLURM_HET_SIZE")] * 2, het, name="het")
    exp.add(place.script("echo task $SLURM_ARRAY_TASK_ID"), place.executor(array="0-2"), name="array")
    note = place.script("echo $NEMORUN_JOB_ID >>$trace/order")
    exp.add(note, name="a")
    exp.add(note, name="b", dependencies=["a"])
    exp.add(note, name="c", dependencies=["a"])
    exp.add(note, name="d", dependencies=["b", "c"])
    exp.add(place.script("exit 3"), name="broken")
    exp.add(note, name="never", dependencies=["broken"])
    exp.add(place.script('[ "$NEMORUN_ATTEMPT" = 2 ]'), place.executor(retries=1), name="retried")
    saving = "trap 'echo saved; exit 5' USR2; begun; until [ -e $trace/go ]; do sleep 0.05; done; echo done"
    exp.add(place.script(saving), place.executor(requeue_on_timeout=True, retries=2), name="saving")
    exp.add(place.script("begun; until [ -e $trace/go ]; do sleep 0.05; done"), name="by-hand")
    exp.add(place.script("begun; sleep 300"), name="cancelled")
    if find_spec("torch"):
        code = PatternPackager(include_pattern=str(TESTS / "*.py"), relative_path=str(TESTS))
        torchrun = run.Torchrun(rdzv_port=take_ports()[0])  # all nodes have one address
        fields = {"nodes": 2, "ntasks_per_node": 2, "launcher": torchrun, "python_path": sys.executable}
        exp.add(run.Partial(torch_tasks.total), place.executor(packager=code, **fields), name="torch")
    return exp


def check_everything(place: Place) -> None:
    exp = everything(place)
    exp.run(detach=True)
    for job in ("saving", "by-hand", "cancelled"):
        place.await_begun(job, 1)
    place.cluster.call("scancel", "--signal=USR2", "--batch", place.number(exp, "saving"))
    place.cluster.call("scontrol", "requeue", place.number(exp, "by-hand"))
    exp.cancel("cancelled")
    for job in ("saving", "by-hand"):
        place.await_begun(job, 2)
    (place.trace / "go").touch()
    exp.wait()
    found = {name: entry["status"] for name, entry in exp.status(return_dict=True).items()}
    ends = {"broken": F, "never": C, "cancelled": C}
    assert found == {job.id: ends.get(job.id, S) for job in exp.jobs}
    order = (place.trace / "order").read_text().split()
    assert (order[0], sorted(order[1:3]), order[3:]) == ("a", ["b", "c"], ["d"])
    logs: Callable[[str], Path] = lambda job: exp.path / job / "logs"  # noqa: E731
    assert [(logs("array") / f"array_{at}.log").read_text() for at in range(3)] == [
        f"task {at}\n" for at in range(3)
    ]
    ranks = [path for path in logs("het").iterdir() if not path.name.startswith(("slurm_", "srun_"))]
    assert [path.read_text() for path in ranks] == ["2\n"] * 3
    saving = [(logs("saving") / f"saving_0{suffix}.log").read_text() for suffix in ("", ".attempt2")]
    assert [text.splitlines()[-1] for text in saving] == ["saved", "done"]
    if find_spec("torch"):
        assert exp.result("torch") == 1 + 2 + 3 + 4


def check_node_failure(place: Place) -> None:
    exp = run.Experiment("crash", place.executor(), clean_mode=True)
    text = "echo $NEMORUN_ATTEMPT; begun; until [ -e $trace/go ]; do sleep 0.05; done"
    exp.add(place.script(text), name="job")
    exp.run(detach=True)
    place.await_begun("job", 1)
    node = place.cluster.call("squeue", "-h", "-o", "%N", "-j", place.number(exp, "job")).strip()
    place.cluster.crash(node)

    def runs_again() -> bool:
        assert exp.status(return_dict=True)["job"]["status"] not in TERMINAL
        return (place.trace / "job.2").exists()

    wait_until(runs_again, "it runs again", LONG)
    (place.trace / "go").touch()
    exp.wait()
    assert exp.status(return_dict=True)["job"]["status"] == S
    logs = exp.path / "job" / "logs"
    assert [(logs / f"job_0{suffix}.log").read_text() for suffix in ("", ".attempt2")] == ["1\n", "2\n"]


@pytest.mark.cluster("slurm")
def test_with_accounting_everything_ends_as_it_should(place: Place) -> None:
    check_everything(place)


@pytest.mark.cluster("bare_slurm")
def test_without_accounting_everything_ends_as_it_should(place: Place) -> None:
    check_everything(place)


@pytest.mark.cluster("slurm")
def test_with_accounting_a_job_outlives_its_node(place: Place) -> None:
    check_node_failure(place)


@pytest.mark.cluster("bare_slurm")
def test_without_accounting_a_job_outlives_its_node(place: Place) -> None:
    check_node_failure(place)
