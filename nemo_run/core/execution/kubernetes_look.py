"""Looking at many jobs on Kubernetes at once, and waiting for news of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from nemo_run.core.execution.base import AppState, JobHandle, JobStatus
from nemo_run.core.execution.kubernetes_client import Cluster, Place, connect, path_of
from nemo_run.core.execution.kubernetes_job import KubernetesJob, Record, from_end
from nemo_run.core.execution.kubernetes_logs import KeptLog, PodLog, followers
from nemo_run.core.execution.kubernetes_manifest import JOB
from nemo_run.core.execution.kubernetes_seen import TOGETHER, ask, list_pods, selector, versions
from nemo_run.errors import NemoRunError


def look(handles: Sequence[JobHandle]) -> list[JobStatus]:
    """How jobs are, by two lists of each namespace; of those that have ended from their folders."""
    found, asked = dict[str, JobStatus](), defaultdict[Place, list[JobHandle]](list)
    for handle in handles:
        if status := _settled(handle):
            found[handle.id] = status
        else:
            asked[_place(handle)].append(handle)
    for place, group in asked.items():
        found |= _look(place, group)
    return [found[handle.id] for handle in handles]


def _place(handle: JobHandle) -> Place:
    return Place(*(handle.data[name] for name in Place._fields))


def _settled(handle: JobHandle) -> JobStatus | None:
    """What can be said without a cluster."""
    job_dir = Path(handle.data["job_dir"])
    job = KubernetesJob(job_dir)
    if end := job.end():
        return from_end(end)
    if job.record():
        return None
    gone = f"no record of it is in {job_dir}" if job_dir.is_dir() else f"its folder is gone: {job_dir}"
    return JobStatus(state=AppState.UNKNOWN, message=gone)


def _look(place: Place, handles: Sequence[JobHandle]) -> dict[str, JobStatus]:
    jobs = {handle.id: KubernetesJob(Path(handle.data["job_dir"])) for handle in handles}
    records = {name: record for name, job in jobs.items() if (record := job.record())}
    found = dict[str, JobStatus]()
    try:
        cluster = connect(place)
        seen = ask(cluster, place.namespace, list(records.values()))
    except NemoRunError as exc:
        return {name: JobStatus(state=AppState.UNKNOWN, message=str(exc)) for name in jobs}
    for name, job in jobs.items():
        try:
            found[name] = job.tend(cluster, seen[records[name]["digest"]] if name in records else None)
        except (NemoRunError, OSError) as exc:
            found[name] = JobStatus(state=AppState.UNKNOWN, message=str(exc))
    return found


def await_news(handles: Sequence[JobHandle], wait: float) -> None:
    """Wait until the cluster has news of one of these jobs, and keep the logs of their pods meanwhile."""
    deadline = time.monotonic() + wait
    records = [KubernetesJob(Path(handle.data["job_dir"])).record() for handle in handles]
    live = {record["digest"]: record for record in records if record}
    try:
        if live:
            return _watch(_place(handles[0]), handles, live.values(), wait)
    except (NemoRunError, OSError):
        pass  # also when nothing has come for so long
    time.sleep(max(0.0, deadline - time.monotonic()))


def _watch(place: Place, handles: Sequence[JobHandle], records: Iterable[Record], wait: float) -> None:
    """Return with the next change of a Job, of which the list that was read last knew nothing."""
    cluster, first = connect(place), next(iter(records))
    digests = [record["digest"] for record in records if record["kind"] == first["kind"]]
    _keep_logs(cluster, place, handles)
    chosen = selector(digests[:TOGETHER])
    version = versions(cluster).get((place.namespace, first["kind"], chosen), "")
    query = {"labelSelector": chosen, "watch": True, "timeoutSeconds": max(1, round(wait))}
    path = path_of(first["kind"], place.namespace)
    with cluster.stream(path, wait, resourceVersion=version, **query) as chunks:
        next(chunks, None)


def _keep_logs(cluster: Cluster, place: Place, handles: Sequence[JobHandle]) -> None:
    """Have the logs of running pods kept as they come."""
    folders = {}
    for handle in handles:
        job_dir = Path(handle.data["job_dir"])
        if record := KubernetesJob(job_dir).record():
            folders[record["digest"]] = job_dir
    for pod in list_pods(cluster, place.namespace, list(folders)):
        if pod.running:
            kept = KeptLog(folders[pod.manifest["metadata"]["labels"][JOB]], pod.uid)
            followers().follow(kept, PodLog(cluster, place.namespace, pod.name))
