"""What a Kubernetes cluster says of jobs: asked for many of them at once, by their labels."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_run.core.execution.kubernetes_client import ApiError, Cluster, path_of
from nemo_run.core.execution.kubernetes_manifest import JOB
from nemo_run.core.execution.kubernetes_state import Pod, is_over, seconds, waiting

#: Jobs that one question is about, at most.
TOGETHER = 100
#: Seconds for which a Job may be without a pod, and a pod wait without a reason, until it is asked why.
_SOON = 3.0

Manifest = dict[str, Any]


@dataclass
class Seen:
    """What a cluster says of one job."""

    jobs: list[Manifest] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)
    #: Warnings about what has not started.
    events: list[Manifest] = field(default_factory=list)


def ask(cluster: Cluster, namespace: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Seen]:
    """What it says of some jobs, by what they are labelled with.

    Raises:
        ApiError: it does not answer.
    """
    seen = {record["digest"]: Seen() for record in records}
    for kind in sorted({record["kind"] for record in records}):
        digests = [record["digest"] for record in records if record["kind"] == kind]
        for job in list_all(cluster, namespace, kind, digests):
            seen[job["metadata"]["labels"][JOB]].jobs.append(job)
    for pod in list_pods(cluster, namespace, list(seen)):
        seen[pod.manifest["metadata"]["labels"][JOB]].pods.append(pod)
    for each in seen.values():
        each.events = _warnings(cluster, namespace, each)
    return seen


def list_pods(cluster: Cluster, namespace: str, digests: Sequence[str]) -> list[Pod]:
    """The pods of some jobs; raises as `ask`."""
    return [Pod.of(each) for each in list_all(cluster, namespace, "Pod", digests)]


def list_all(cluster: Cluster, namespace: str, kind: str, digests: Sequence[str]) -> list[Manifest]:
    """All objects of a kind that belong to some jobs; raises as `ask`."""
    found: list[Manifest] = []
    for at in range(0, len(digests), TOGETHER):
        chosen = selector(digests[at : at + TOGETHER])
        listed, version = cluster.items(path_of(kind, namespace), labelSelector=chosen)
        versions(cluster)[namespace, kind, chosen] = version
        # In a list nothing says of what kind its items are.
        found += [each | {"kind": kind} for each in listed]
    return found


def selector(digests: Sequence[str]) -> str:
    """Chooses what belongs to some jobs."""
    return f"{JOB} in ({','.join(digests)})"


@functools.cache
def versions(cluster: Cluster) -> dict[tuple[str, str, str], str]:
    """As of which version each list was last read, from which on it can be watched."""
    return {}


def _warnings(cluster: Cluster, namespace: str, seen: Seen) -> list[Manifest]:
    """Why there is no pod, or why the first of those that wait does, where they do not say it themselves."""
    silent: list[Mapping[str, Any]] = [pod.manifest for pod in seen.pods if not pod.over and _is_silent(pod)]
    if not seen.pods:
        silent = [job for job in seen.jobs if not is_over(job)]
    silent = [one for one in silent if time.time() - seconds(one["metadata"]["creationTimestamp"]) > _SOON]
    if not silent:
        return []
    chosen = f"involvedObject.name={silent[0]['metadata']['name']},type=Warning"
    with contextlib.suppress(ApiError):  # not everybody may read events
        return cluster.items(path_of("Event", namespace), fieldSelector=chosen)[0]
    return []


def _is_silent(pod: Pod) -> bool:
    return not pod.begun and not waiting(pod)[0]
