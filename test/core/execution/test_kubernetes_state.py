"""How a job does, as read from what API servers say: recorded from one, and as newer ones document it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from nemo_run.core.execution.base import AppState
from nemo_run.core.execution.kubernetes_state import Pod, Verdict, judge, seconds, waiting

RECORDED = Path(__file__).with_name("kubernetes") / "recorded"


def recorded(name: str) -> dict[str, Any]:
    """What a Kubernetes 1.20.2 said of a job: its Jobs, pods and events."""
    said: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return said


def judged(said: dict[str, Any], timeout: float | None = None) -> Verdict:
    return judge(said["jobs"], [Pod.of(each) for each in said["pods"]], said["events"], timeout)


ENDS = {
    "succeeded": (AppState.SUCCEEDED, 0, ""),
    "exit-3": (AppState.FAILED, 3, "exit code 3"),
    "killed": (AppState.FAILED, 137, "killed by SIGKILL"),
    "out-of-memory": (
        AppState.FAILED, 137, "OUT_OF_MEMORY: used more memory than its limit of 64Mi (OOMKilled)",
    ),
    "again": (AppState.FAILED, 5, "exit code 5"),
    "two-ranks": (AppState.FAILED, 4, "rank 1: exit code 4"),
    "deadline": (AppState.FAILED, 124, "TIMEOUT: ran longer than 2 s (DeadlineExceeded)"),
    "running": (AppState.RUNNING, None, ""),
    "unschedulable": (
        AppState.PENDING, None,
        "Unschedulable: 0/1 nodes are available: 1 node(s) didn't match Pod's node affinity.",
    ),
    "unpullable": (
        AppState.PENDING, None,
        'ImagePullBackOff: Back-off pulling image "registry.example.invalid/no/such:1"',
    ),
    "no-such-key": (AppState.PENDING, None, 'CreateContainerConfigError: secret "no-such" not found'),
    "no-such-volume": (
        AppState.PENDING, None,
        'FailedMount: MountVolume.SetUp failed for volume "a" : configmap "no-such" not found',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_what_a_server_said_is_understood(name: str) -> None:
    verdict = judged(recorded(name), timeout=2.0)
    assert (verdict.state, verdict.exit_code, verdict.message) == ENDS[name]


def test_the_image_that_cannot_be_pulled_is_named_when_the_server_does_not() -> None:
    message = judged(recorded("pulling-failed")).message
    assert message.startswith("ErrImagePull registry.example.invalid/no/such:2: rpc error: ")


def test_why_there_is_no_pod_is_told_by_the_clusters_own_warnings() -> None:
    message = judged(recorded("no-such-account")).message
    assert message.startswith("FailedCreate: Error creating: pods")
    assert message.endswith('serviceaccount "nobody" not found')


def test_what_will_not_start_by_itself_is_told_from_what_may() -> None:
    stuck = {
        name for name in ("unpullable", "pulling-failed", "no-such-key") if judged(recorded(name)).stuck_since
    }
    assert stuck == {"unpullable", "pulling-failed", "no-such-key"}
    for name in ("unschedulable", "no-such-volume", "no-such-account", "running"):
        assert judged(recorded(name)).stuck_since is None


def test_times_are_those_of_the_containers() -> None:
    verdict = judged(recorded("succeeded"))
    assert verdict.started is not None
    assert verdict.ended is not None
    assert verdict.started <= verdict.ended
    assert seconds("2026-11-21T08:48:01Z") == 1795250881.0
    assert seconds("") == 0.0


# --- words of newer servers -----------------------------------------------------------------------------


def changed(name: str, **status: Any) -> dict[str, Any]:
    """The same with another status of its first pod."""
    said = copy.deepcopy(recorded(name))
    said["pods"][0]["status"] = {**said["pods"][0]["status"], **status}
    return said


def test_a_pod_that_was_preempted_says_so() -> None:
    lost = {
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod",
    }  # fmt: skip
    verdict = judged(changed("killed", conditions=[lost]))
    assert verdict.message == "Preempted: default-scheduler: preempting to accommodate a higher priority pod"
    assert verdict.exit_code == 137


def test_a_pod_that_was_evicted_says_so() -> None:
    said = changed(
        "exit-3", phase="Failed", reason="Evicted", containerStatuses=[],
        message="The node was low on resource: ephemeral-storage. ",
    )  # fmt: skip
    verdict = judged(said)
    assert verdict.message == "Evicted: The node was low on resource: ephemeral-storage. "
    assert verdict.exit_code is None


def test_a_node_that_is_not_heard_of_is_named_while_its_pod_may_still_run() -> None:
    words = "Node node0 which was running pod x is unresponsive"
    verdict = judged(changed("running", reason="NodeLost", message=words))
    assert (verdict.state, verdict.message) == (AppState.RUNNING, f"NodeLost: {words}")


def test_a_container_that_cannot_be_started_says_why() -> None:
    said = recorded("exit-3")
    [container] = said["pods"][0]["status"]["containerStatuses"]
    container["state"]["terminated"] |= {
        "exitCode": 128, "reason": "StartError", "message": "exec: no such file or directory\n",
    }  # fmt: skip
    assert judged(said).message == "StartError: exec: no such file or directory"


def test_a_job_in_a_queue_waits_for_its_turn() -> None:
    said = {"jobs": recorded("running")["jobs"], "pods": [], "events": []}
    said["jobs"][0]["spec"]["suspend"] = True
    verdict = judged(said)
    assert (verdict.state, verdict.message) == (
        AppState.PENDING,
        "Suspended: it waits for its turn in the queue",
    )


def test_a_job_that_failed_for_a_reason_of_its_own_says_that() -> None:
    said = {"jobs": recorded("exit-3")["jobs"], "pods": [], "events": []}
    assert judged(said).message == "BackoffLimitExceeded: Job has reached the specified backoff limit"


def test_between_two_attempts_the_last_failure_is_told() -> None:
    said = recorded("again")
    said["jobs"][0]["status"] = {"failed": 1}
    verdict = judged(said)
    assert (verdict.state, verdict.message) == (AppState.PENDING, "is started again after: exit code 5")


def test_a_jobset_is_judged_by_its_own_conditions() -> None:
    jobset = {"kind": "JobSet", "metadata": {"name": "x"}, "spec": {}, "status": {}}
    done = {
        "type": "Completed",
        "status": "True",
        "reason": "AllJobsCompleted",
        "message": "jobset completed",
    }
    pods = recorded("succeeded")["pods"]
    verdict = judged({"jobs": [jobset | {"status": {"conditions": [done]}}], "pods": pods, "events": []})
    assert (verdict.state, verdict.exit_code) == (AppState.SUCCEEDED, 0)
    bad = {"type": "Failed", "status": "True", "reason": "ReachedMaxRestarts", "message": "no more"}
    pods = recorded("exit-3")["pods"]
    verdict = judged({"jobs": [jobset | {"status": {"conditions": [bad]}}], "pods": pods, "events": []})
    assert (verdict.state, verdict.exit_code, verdict.message) == (AppState.FAILED, 3, "exit code 3")


def test_a_jobset_whose_time_was_up_is_told_by_the_time_it_took() -> None:
    bad = {
        "type": "Failed", "status": "True", "reason": "FailJobSetFailurePolicyAction",
        "lastTransitionTime": "2026-11-21T08:48:40Z",
    }  # fmt: skip
    said = {
        "jobs": [{"kind": "JobSet", "metadata": {"name": "x"}, "status": {"conditions": [bad]}}],
        "events": [],
    }
    pods = recorded("killed")["pods"]
    end = pods[0]["status"]["containerStatuses"][0]["state"]["terminated"]
    end |= {"startedAt": "2026-11-21T08:48:00Z", "finishedAt": "2026-11-21T08:48:31Z"}
    assert judged({**said, "pods": pods}, timeout=30.0).message.startswith("TIMEOUT: ran longer than 30 s")
    assert judged({**said, "pods": pods}, timeout=60.0).message == "killed by SIGKILL"


def test_the_first_member_of_a_group_to_fail_is_named() -> None:
    said = recorded("two-ranks")
    for manifest in said["pods"]:
        notes = manifest["metadata"]["annotations"]
        notes["nemo-run/role"] = "learner" if notes["nemo-run/rank"] == "0" else "actor"
        notes["nemo-run/rank"] = "0"
    assert judged(said).message == "actor: exit code 4"


def test_one_rank_that_waits_is_named_while_others_run() -> None:
    said = recorded("running")
    waits = copy.deepcopy(recorded("unschedulable")["pods"][0])
    waits["metadata"] |= {"uid": "other", "name": "other-1"}
    said["pods"].append(waits)
    verdict = judged(said)
    assert verdict.state == AppState.RUNNING
    assert verdict.message.startswith("other-1: Unschedulable: ")


def test_a_pod_without_any_status_yet_is_no_surprise() -> None:
    pod = Pod.of(
        {"metadata": {"name": "x", "uid": "1", "creationTimestamp": "2026-11-21T08:48:01Z"}, "spec": {}}
    )
    assert (pod.phase, pod.begun, pod.over, pod.running, waiting(pod)) == (
        "",
        False,
        False,
        False,
        ("", False),
    )
    assert judge([{"kind": "Job", "metadata": {"name": "x"}}], []).state == AppState.PENDING
