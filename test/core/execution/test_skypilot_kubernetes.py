"""The executor for SkyPilot on its Kubernetes cloud: a real API server, a real Kubernetes of one node."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tasks
import torch_tasks
from contracts.executor import ended, prepare, wait_until
from kubes import Cluster
from repositories import repository
from skies import IMAGE, INFRA, PACKAGES

import nemo_run as run
from nemo_run.config import Script
from nemo_run.core.execution.base import AppState
from nemo_run.core.execution.skypilot import SkypilotExecutor
from nemo_run.core.packaging.pattern import PatternPackager
from nemo_run.errors import SubmitError

TESTS = Path(__file__).parents[2]
#: Seconds within which a job is done, whatever else this machine has to do.
LONG = 400.0
pytestmark = pytest.mark.timeout(600)


def on_pods(**fields: Any) -> SkypilotExecutor:
    """An executor for the cluster of two pods that is there, with the tests' code."""
    code = PatternPackager(include_pattern=str(TESTS / "*.py"), relative_path=str(TESTS))
    told = {"infra": INFRA, "container_image": IMAGE, "cpus": 1, "memory": 1, "cluster_name": "pods"}
    return SkypilotExecutor(**{**told, "packager": code, **fields})


def test_a_value_and_a_log_come_back_and_a_secret_does_not(
    sky_kubernetes: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "rosebud-7d1")
    executor = on_pods(env_vars={"TOKEN": run.Secret("MY_TOKEN")})
    experiment = run.Experiment("value", executor, clean_mode=True)
    experiment.add(run.Partial(tasks.environment, ["TOKEN"]), name="value")
    experiment.add(Script(inline='echo "the password is $TOKEN"'), name="log")
    assert experiment.run()["value"] == [b"rosebud-7d1".hex()]
    [line] = executor.logs(experiment.status(return_dict=True)["log"]["handle"], "log")
    assert line.startswith("the password is ")
    assert "rosebud" not in line


def test_a_pod_sees_an_edit_that_is_not_committed(
    sky_kubernetes: Cluster, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = repository(tmp_path / "code", {"words.sh": "echo committed\n"})
    (code / "words.sh").write_text("echo edited on $(hostname)\n")
    monkeypatch.chdir(code)
    executor = on_pods(packager=run.GitArchivePackager())
    experiment = run.Experiment("edit", executor, clean_mode=True)
    experiment.add(Script(path="words.sh"), name="words")
    experiment.run()
    [line] = executor.logs(experiment.status(return_dict=True)["words"]["handle"], "words")
    assert line.startswith("edited on pods-")


def test_a_failing_task_keeps_its_exit_code(sky_kubernetes: Cluster, home: Path) -> None:
    plan = prepare(Script(inline="echo before; exit 7"), on_pods())
    executor = plan.spec.members[0]
    handle = executor.submit(plan)
    status = ended(executor, handle, LONG)
    assert (status.state, status.exit_code) == (AppState.FAILED, 7)
    assert list(executor.logs(handle, "job")) == ["before"]


def test_cancelling_ends_the_processes_in_the_pod(sky_kubernetes: Cluster, home: Path) -> None:
    plan = prepare(Script(inline="echo begun; sleep 1234.5"), on_pods())
    executor = plan.spec.members[0]
    handle = executor.submit(plan)
    assert next(iter(executor.logs(handle, "job", follow=True))) == "begun"
    wait_until(lambda: sleepers(sky_kubernetes), "it sleeps")
    executor.cancel(handle)
    assert ended(executor, handle, LONG).state == AppState.CANCELLED
    wait_until(lambda: not sleepers(sky_kubernetes), "it sleeps no more")


def sleepers(kubernetes: Cluster) -> str:
    """What sleeps in the pods of the cluster, on any of which a job may run."""
    ask = ["sh", "-c", "pgrep -xf 'sleep 1234.5' || true"]
    return "".join(kubernetes.kubectl("exec", pod, "--", *ask) for pod in pods(kubernetes))


def test_two_pods_know_their_ranks_and_addresses(sky_kubernetes: Cluster, home: Path) -> None:
    told = 'echo "$SKYPILOT_NODE_RANK of $SKYPILOT_NUM_NODES at $(hostname -i), first $head_node_ip"'
    plan = prepare(Script(inline=told), on_pods(num_nodes=2))
    executor = plan.spec.members[0]
    handle = executor.submit(plan)
    assert ended(executor, handle, LONG).state == AppState.SUCCEEDED
    first, second = pods(sky_kubernetes).values()
    assert list(executor.logs(handle, "job", 0)) == [f"0 of 2 at {first}, first {first}"]
    assert list(executor.logs(handle, "job", 1)) == [f"1 of 2 at {second}, first {first}"]


def pods(kubernetes: Cluster) -> dict[str, str]:
    """The addresses of the cluster's two pods by their names, the first one first."""
    there = json.loads(kubernetes.kubectl("get", "pods", "--output=json"))["items"]
    found = {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in there}
    ours = sorted(name for name in found if name.startswith("pods-"))
    return {name: found[name] for name in ours}  # …-head, …-worker1


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"cpus": 1000}, "does not contain any instances satisfying"), ({"infra": "k8s/nowhere"}, "nowhere")],
    ids=["more than there is", "no such context"],
)
def test_what_cannot_be_had_is_refused_in_skypilots_words_and_makes_no_pod(
    sky_kubernetes: Cluster, home: Path, fields: dict[str, Any], words: str
) -> None:
    plan = prepare(Script(inline="true"), on_pods(cluster_name="refused", **fields))
    with pytest.raises(SubmitError, match=words):
        plan.spec.members[0].submit(plan)
    assert "/refused" not in all_names(sky_kubernetes)


def test_what_it_needs_is_there(sky_kubernetes: Cluster, home: Path) -> None:
    found = {check.name: check for check in on_pods().probe()}
    assert all(check.ok for check in found.values())
    assert found["clouds"].found == "enabled: Kubernetes"


@pytest.mark.skipif(not find_spec("torch"), reason="needs torch")
def test_torchrun_meets_over_two_pods(sky_kubernetes: Cluster, home: Path) -> None:
    executor = on_pods(
        num_nodes=2, torchrun_nproc_per_node=2, launcher="torchrun", env_vars={"PYTHONPATH": PACKAGES}
    )
    experiment = run.Experiment("torch", executor, clean_mode=True)
    experiment.add(run.Partial(torch_tasks.total), name="sum")
    assert experiment.run() == {"sum": 1 + 2 + 3 + 4}


def test_the_pods_of_an_experiment_are_gone_after_its_last_job_where_autodown_says_so(
    sky_kubernetes: Cluster, home: Path
) -> None:
    experiment = run.Experiment("brief", on_pods(cluster_name=None, autodown=True), clean_mode=True)
    experiment.add(run.Partial(tasks.double, 21), name="value")
    assert experiment.run() == {"value": 42}
    handle = experiment.status(return_dict=True)["value"]["handle"]
    named = handle.data["cluster"]
    wait_until(lambda: f"/{named}" not in all_names(sky_kubernetes), f"the pods of {named} are gone", 120)


def all_names(kubernetes: Cluster) -> str:
    return kubernetes.kubectl("get", "pods,services", "--output=name")
