"""How a job does, from what an API server says of its Jobs and their pods; nothing is asked here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from nemo_run.core.execution.base import AppState
from nemo_run.core.execution.kubernetes_manifest import CONTAINER, INDEX, RANK, ROLE

Manifest = Mapping[str, Any]

#: Why a container waits that, left alone, will most likely wait for ever: for its image, and otherwise.
_OF_IMAGE = (
    "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
    "RegistryUnavailable", "SignatureValidationFailed",
)  # fmt: skip
_STUCK = (*_OF_IMAGE, "CreateContainerConfigError", "CreateContainerError", "RunContainerError")
#: And why it waits when all is well.
_FINE = ("", "ContainerCreating", "PodInitializing")
#: Reasons of a pod's failure that are the cluster's and not the task's.
_DISRUPTIONS = {
    "PreemptionByScheduler": "Preempted",
    "DeletionByTaintManager": "Evicted from a tainted or lost node",
    "EvictionByEvictionAPI": "Evicted",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "Evicted",
}


@dataclass(frozen=True)
class Verdict:
    """How a job does, as far as that can be seen."""

    state: AppState
    exit_code: int | None = None
    message: str = ""
    started: float | None = None
    ended: float | None = None
    #: Whether it will not start, left alone, and since when.
    stuck_since: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is recorded."""
        return {"state": self.state.name, "exit_code": self.exit_code, "message": self.message}


@dataclass(frozen=True)
class Pod:
    """A pod, and which of its job's it is."""

    name: str
    uid: str
    role: str
    rank: int
    created: float
    manifest: Manifest

    @classmethod
    def of(cls, manifest: Manifest) -> Pod:
        """What is said of one."""
        meta = manifest["metadata"]
        notes = meta.get("annotations") or {}
        rank = notes.get(RANK) or notes.get(INDEX) or "0"
        return cls(
            meta["name"],
            meta["uid"],
            notes.get(ROLE, ""),
            int(rank),
            seconds(meta["creationTimestamp"]),
            manifest,
        )

    @property
    def phase(self) -> str:
        """Pending, Running, Succeeded, Failed or Unknown."""
        return str(self.manifest.get("status", {}).get("phase", ""))

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def running(self) -> bool:
        """Whether its container runs."""
        return "running" in (self.container.get("state") or {})

    @property
    def leaving(self) -> bool:
        """Whether somebody has deleted it, and it has not ended yet."""
        return is_leaving(self.manifest)

    @property
    def begun(self) -> bool:
        """Whether its container has been started, so that there is a log."""
        state = self.container.get("state") or {}
        return "running" in state or "terminated" in state

    @property
    def container(self) -> Mapping[str, Any]:
        """What is said of the task's container."""
        listed = self.manifest.get("status", {}).get("containerStatuses") or []
        return next((each for each in listed if each["name"] == CONTAINER), {})

    @property
    def terminated(self) -> Mapping[str, Any]:
        """How its container ended."""
        found: Mapping[str, Any] = (self.container.get("state") or {}).get("terminated") or {}
        return found

    def condition(self, kind: str) -> Mapping[str, Any]:
        """One of the things that are said of it."""
        return condition(self.manifest, kind)


# --- one job --------------------------------------------------------------------------------------------


def judge(
    jobs: Sequence[Manifest],
    pods: Sequence[Pod],
    events: Sequence[Manifest] = (),
    timeout: float | None = None,
) -> Verdict:
    """How a job does.

    Args:
        jobs: Its Jobs, or its JobSet.
        pods: Their pods.
        events: What the cluster had to say of Jobs that have no pods.
        timeout: What it was given.
    """
    began = min(
        (seconds(job["status"]["startTime"]) for job in jobs if job.get("status", {}).get("startTime")),
        default=None,
    )
    if failed := [job for job in jobs if is_failed(job)]:
        return _failure(failed, pods, began, timeout, groups=len({pod.role for pod in pods}) > 1)
    if jobs and all(is_complete(job) for job in jobs):
        return Verdict(AppState.SUCCEEDED, 0, "", _first_start(pods) or began, _end(jobs, pods))
    return _underway(jobs, pods, events)


def is_complete(job: Manifest) -> bool:
    """Whether a Job, or a JobSet, has succeeded."""
    return any(condition(job, kind) for kind in ("Complete", "Completed"))


def is_failed(job: Manifest) -> bool:
    """Whether it has failed, and no pod of it will be started again."""
    return bool(condition(job, "Failed"))


def is_over(job: Manifest) -> bool:
    """Whether it has ended."""
    return is_complete(job) or is_failed(job)


def is_leaving(job: Manifest) -> bool:
    """Whether somebody has deleted it, and it waits for its pods to end."""
    return bool(job["metadata"].get("deletionTimestamp"))


def condition(there: Manifest, kind: str) -> Mapping[str, Any]:
    """A condition that holds; empty if it does not."""
    for each in there.get("status", {}).get("conditions") or ():
        if each["type"] == kind and each["status"] == "True":
            found: Mapping[str, Any] = each
            return found
    return {}


def _first_start(pods: Iterable[Pod]) -> float | None:
    starts = [pod.terminated.get("startedAt") for pod in pods]
    starts += [(pod.container.get("state") or {}).get("running", {}).get("startedAt") for pod in pods]
    return min((seconds(each) for each in starts if each), default=None)


def _end(jobs: Sequence[Manifest], pods: Sequence[Pod]) -> float | None:
    ends = [pod.terminated.get("finishedAt") for pod in pods]
    ends += [job["status"].get("completionTime") for job in jobs]
    return max((seconds(each) for each in ends if each), default=None)


# --- failures -------------------------------------------------------------------------------------------


def _failure(
    failed: Sequence[Manifest],
    pods: Sequence[Pod],
    began: float | None,
    timeout: float | None,
    *,
    groups: bool,
) -> Verdict:
    """The first failure is the job's: those that come later come of it."""
    job = min(failed, key=lambda each: str(condition(each, "Failed").get("lastTransitionTime", "")))
    said = condition(job, "Failed")
    times = {"started": _first_start(pods) or began, "ended": _end(failed, pods)}
    times["ended"] = times["ended"] or seconds(said.get("lastTransitionTime") or "")
    # Why one of its Jobs failed a JobSet does not say.
    took = (times["ended"] or 0.0) - (times["started"] or 0.0)
    late = job["kind"] == "JobSet" and timeout is not None and took >= timeout
    if late or said.get("reason") == "DeadlineExceeded":
        after = f"{timeout:g} s" if timeout else "its deadline"
        return Verdict(AppState.FAILED, 124, f"TIMEOUT: ran longer than {after} (DeadlineExceeded)", **times)
    own: list[Pod] = [
        pod for pod in pods if job["kind"] == "JobSet" or _owner(pod) == job["metadata"]["name"]
    ]
    if culprit := _culprit(own or pods):
        ranks = len({(pod.role, pod.rank) for pod in pods if pod.role == culprit.role}) > 1
        who = (f"{culprit.role}: " if groups else "") + (f"rank {culprit.rank}: " if ranks else "")
        return Verdict(AppState.FAILED, exit_code(culprit), who + why(culprit), **times)
    words = ": ".join(filter(None, (said.get("reason"), said.get("message"))))
    return Verdict(AppState.FAILED, None, words or "it failed, and nothing says why", **times)


def _owner(pod: Pod) -> str:
    owners = pod.manifest["metadata"].get("ownerReferences") or [{}]
    return str(owners[0].get("name", ""))


def _culprit(pods: Sequence[Pod]) -> Pod | None:
    """Of the last pods of each rank the one that failed first."""
    last: dict[tuple[str, int], Pod] = {}
    for pod in sorted(pods, key=lambda pod: pod.created):
        last[pod.role, pod.rank] = pod
    failed = [pod for pod in last.values() if pod.phase == "Failed" or pod.terminated.get("exitCode")]
    return min(failed, key=lambda pod: str(pod.terminated.get("finishedAt") or "~"), default=None)


def exit_code(pod: Pod) -> int | None:
    """The code with which its container ended, if it did by itself."""
    code = pod.terminated.get("exitCode")
    return None if code is None else int(code)


def why(pod: Pod) -> str:
    """Why a pod failed, in the cluster's words where it has some."""
    status, end = pod.manifest.get("status", {}), pod.terminated
    if lost := pod.condition("DisruptionTarget"):
        kind = _DISRUPTIONS.get(lost.get("reason", ""), lost.get("reason", "Disrupted"))
        return f"{kind}: {lost.get('message') or 'the cluster took its node from it'}"
    if end.get("reason") == "OOMKilled":
        limit = _limit(pod)
        over = f"used more memory than its limit of {limit}" if limit else "the node had no more memory"
        return f"OUT_OF_MEMORY: {over} (OOMKilled)"
    if status.get("reason"):
        return f"{status['reason']}: {status.get('message') or 'no more is said'}"
    if not end:
        return waiting(pod)[0] or "its container never started"
    code, said = int(end.get("exitCode", 0)), str(end.get("message") or "").strip()
    if end.get("reason") in ("Error", "Completed", None):
        return f"killed by {_signal_name(code)}" if _signal_name(code) else f"exit code {code}"
    return f"{end['reason']}: {said or f'exit code {code}'}"


def _limit(pod: Pod) -> str:
    containers = pod.manifest["spec"]["containers"]
    own: Mapping[str, Any] = next((each for each in containers if each["name"] == CONTAINER), {})
    return str((own.get("resources", {}).get("limits") or {}).get("memory", ""))


def _signal_name(code: int) -> str:
    import signal

    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return ""


# --- under way ------------------------------------------------------------------------------------------


def _underway(jobs: Sequence[Manifest], pods: Sequence[Pod], events: Sequence[Manifest]) -> Verdict:
    alive = [pod for pod in pods if not pod.over]
    running = [pod for pod in alive if pod.running]
    waits = [(pod, *waiting(pod)) for pod in alive if pod not in running]
    told = next(((pod, words, stuck) for pod, words, stuck in waits if words), None)
    several = len(alive) > 1
    message, stuck_since = "", None
    if told:
        pod, words, stuck = told
        message = (f"{pod.name}: " if several else "") + words
        stuck_since = pod.created if stuck else None
    if running:
        lost = next((f"{p.name}: " * several + lost_words(p) for p in running if lost_words(p)), "")
        return Verdict(AppState.RUNNING, None, lost or message, _first_start(pods), stuck_since=stuck_since)
    if not alive and any(job.get("spec", {}).get("suspend") for job in jobs):
        message = "Suspended: it waits for its turn in the queue"
    elif events and not message:
        said = max(events, key=lambda each: str(each.get("lastTimestamp") or each.get("eventTime") or ""))
        message = f"{said.get('reason')}: {said.get('message')}"
    elif not alive and any(pod.phase == "Failed" for pod in pods):
        message = f"is started again after: {why(max(pods, key=lambda pod: pod.created))}"
    return Verdict(AppState.PENDING, None, message, stuck_since=stuck_since)


def lost_words(pod: Pod) -> str:
    """What is said of a running pod whose node is not heard of."""
    status = pod.manifest.get("status", {})
    if status.get("reason") == "NodeLost" or pod.phase == "Unknown":
        return f"NodeLost: {status.get('message') or 'its node is not heard of'}"
    return ""


def waiting(pod: Pod) -> tuple[str, bool]:
    """Why a pod does not run yet, if that is worth telling; and whether it will not by itself."""
    for each in pod.manifest.get("status", {}).get("conditions") or ():
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return f"{each.get('reason', 'Unschedulable')}: {each.get('message', '')}".rstrip(": "), False
    status = pod.manifest.get("status", {})
    listed = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    for each in listed:
        found = (each.get("state") or {}).get("waiting") or {}
        if (reason := str(found.get("reason") or "")) not in _FINE:
            message, image = str(found.get("message") or ""), str(each.get("image") or "")
            shown = f" {image}" if reason in _OF_IMAGE and image not in message else ""
            return f"{reason}{shown}: {message}".rstrip(": "), reason in _STUCK
    return "", False


def seconds(text: str) -> float:
    """Seconds since the epoch of a time as Kubernetes writes it; 0 for none."""
    try:
        return datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return 0.0
