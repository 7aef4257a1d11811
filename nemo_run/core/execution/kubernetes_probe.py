"""What jobs on Kubernetes need, tried one thing after the other; nothing is made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemo_run.core.execution.base import Check
from nemo_run.core.execution.kubernetes_client import ApiError, Cluster, Place, connect, locate
from nemo_run.core.execution.kubernetes_manifest import INDEXED_SINCE
from nemo_run.core.execution.kubernetes_send import check_access
from nemo_run.core.execution.probing import probe_home
from nemo_run.errors import NemoRunError

if TYPE_CHECKING:
    from nemo_run.core.execution.kubernetes import KubernetesExecutor

_JOBSET = "/apis/jobset.x-k8s.io/v1alpha2"
_KUEUE = "/apis/kueue.x-k8s.io/v1beta1"


def probe_cluster(executor: KubernetesExecutor) -> Iterator[Check]:
    """The cluster, what we may do there, and whatever is asked of it by name."""
    yield probe_home()
    try:
        place = locate(executor.context, executor.namespace)
        cluster = connect(place)
        version = ".".join(map(str, cluster.version))
    except NemoRunError as exc:
        yield Check(name="cluster", ok=False, found=str(exc))
        return
    shape = "" if cluster.version >= INDEXED_SINCE else "; too old for Indexed Jobs, so each rank is a Job"
    yield Check(name="cluster", ok=True, found=f"{cluster.url}, version {version}{shape}")
    try:
        check_access(cluster, place)
    except NemoRunError as exc:
        yield Check(name="access", ok=False, found=str(exc))
        return
    yield Check(name="access", ok=True, found=f"Jobs can be made in namespace {place.namespace!r}")
    yield from _probe_named(executor, cluster, place)


def _probe_named(executor: KubernetesExecutor, cluster: Cluster, place: Place) -> Iterator[Check]:
    """What somebody has to have made before."""
    own, core = f"namespaces/{place.namespace}", "/api/v1"
    wanted = {
        "claim": (executor.workdir_pvc, f"{core}/{own}/persistentvolumeclaims"),
        "account": (executor.service_account, f"{core}/{own}/serviceaccounts"),
        "priority": (executor.priority_class, "/apis/scheduling.k8s.io/v1/priorityclasses"),
        "queue": (executor.queue, f"{_KUEUE}/{own}/localqueues"),
    }
    for name, (given, path) in wanted.items():
        if given:
            yield _probe_object(cluster, name, given, f"{path}/{given}")
    for secret in executor.image_pull_secrets:
        yield _probe_object(cluster, "pull", secret, f"{core}/{own}/secrets/{secret}")
    if executor.use_jobset:
        yield _probe_object(cluster, "jobset", "the controller of JobSets", _JOBSET)


def _probe_object(cluster: Cluster, name: str, what: str, path: str) -> Check:
    try:
        cluster.get(path)
    except ApiError as exc:
        if exc.status == 403:  # who may not look at it may still use it
            return Check(name=name, ok=True, found=f"{what}, which we may not look at")
        step = f"make it, or ask whoever runs the cluster at {cluster.url} for it"
        return Check(name=name, ok=False, found=f"{what}: {exc.output}", step=step)
    return Check(name=name, ok=True, found=f"{what} is there")
