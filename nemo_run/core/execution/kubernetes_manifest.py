"""From a submission to the objects that a Kubernetes cluster is given for it; nothing is asked or read here.

A role is a Job, over several nodes an Indexed one, of one pod per node. Roles and nodes find each other by a
headless Service. What is secret, and files that travel along, are in a Secret; its values are filled in when
it is sent.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.kubernetes_nodes import quantity
from nemo_run.core.execution.kubernetes_start import (
    FAILURES,
    GIVEN,
    JOB_FILE,
    LIBRARY,
    LIBRARY_FILE,
    RUNDIR,
    START,
    Start,
    start,
)
from nemo_run.core.runner import REPLICA

if TYPE_CHECKING:
    from nemo_run.core.execution.base import JobSpec
    from nemo_run.core.execution.kubernetes import KubernetesExecutor

#: The label by which a job's objects are found, and annotations that say whose they are.
JOB = "nemo-run/job"
TOKEN, ROLE, RANK = "nemo-run/token", "nemo-run/role", "nemo-run/rank"
#: Where Indexed Jobs say which of its pods one is.
INDEX = "batch.kubernetes.io/job-completion-index"
#: And servers from 1.29 on, how often that one has failed.
FAILURE_COUNT = "batch.kubernetes.io/job-index-failure-count"
CONTAINER = "task"
#: The version of Kubernetes from which on it has all that Indexed Jobs need here.
INDEXED_SINCE = (1, 24)
#: Names of volumes that are ours.
VOLUMES = ("nemo-run", "nemo-run-lib", "nemo-run-given", "nemo-run-shm")

Manifest = dict[str, Any]


# --- names ----------------------------------------------------------------------------------------------


def slug(text: str, length: int) -> str:
    """A text as part of a DNS label."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].rstrip("-")


def digest(token: str, job_dir: Path) -> str:
    """What a job's objects are labelled with; no other job has it."""
    key = "\0".join((token, str(job_dir))).encode(errors="surrogateescape")
    return hashlib.sha256(key).hexdigest()[:24]


def base_name(spec: JobSpec) -> str:
    """A name for people to know the job by; with a role's and a number after it it is still a DNS label."""
    words = "-".join(filter(None, (slug(spec.experiment_id, 14), slug(spec.id, 12))))
    if not words[:1].isalpha():
        words = f"job-{words}"[:26].rstrip("-")
    return f"{words}-{digest(spec.token, spec.job_dir)[:8]}"


def role_hosts(roles: Sequence[str]) -> list[str]:
    """For each role of a group a short DNS label that no other of them has."""
    found: list[str] = []
    for role in roles:
        host, count = slug(role, 40) or "role", 1
        while host in found:
            count += 1
            host = f"{slug(role, 40) or 'role'}-{count}"
        found.append(host)
    return found


def _job_names(base: str, roles: Sequence[str]) -> list[str]:
    if len(roles) == 1:
        return [base]
    names: list[str] = []
    for at, role in enumerate(roles):
        name = f"{base}-{slug(role, 14)}".rstrip("-")
        names.append(name if name not in names else f"{name[: len(base) + 12]}-{at}")
    return names


# --- all objects ----------------------------------------------------------------------------------------


def render(spec: JobSpec, namespace: str) -> list[Manifest]:
    """The objects of a job, in the order in which they are made.

    Raises:
        UnsupportedError: something is asked for that no pod can be given.
    """
    members: Sequence[Any] = spec.members
    base, roles = base_name(spec), [role.name for role in spec.app.roles]
    meta = _Meta(spec, namespace, base)
    starts = [
        start(role, member, at) for at, (role, member) in enumerate(zip(spec.app.roles, members, strict=True))
    ]
    objects = []
    if meets := len(roles) > 1 or members[0].nodes > 1:
        objects += [] if members[0].use_jobset else [_service(meta)]
    if secret := _secret(meta, starts):
        objects.append(secret)
    made = [
        _role_job(meta, role.name, member, begin, name, host, meets=meets)
        for role, member, begin, name, host in zip(
            spec.app.roles, members, starts, _job_names(base, roles), role_hosts(roles), strict=True
        )
    ]
    objects += [_jobset(meta, members[0], made, role_hosts(roles))] if members[0].use_jobset else made
    return objects


class _Meta:
    """What the metadata of all objects of a job have in common."""

    def __init__(self, spec: JobSpec, namespace: str, base: str) -> None:
        self.spec, self.base, self.namespace = spec, base, namespace
        self.labels = {"app.kubernetes.io/managed-by": "nemo-run", JOB: digest(spec.token, spec.job_dir)}
        self.annotations = {TOKEN: spec.token}
        self.folder = slug(spec.experiment_id, 200)

    def of(self, name: str, executor: Any = None, **annotations: str) -> Manifest:
        """The metadata of an object; the user's words come first, ours win."""
        given = executor or _NOBODY
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": {**given.labels, **self.labels},
            "annotations": {**given.annotations, **self.annotations, **annotations},
        }


class _NOBODY:
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}


def _service(meta: _Meta) -> Manifest:
    """Gives pods their names, also before they are ready."""
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {JOB: meta.labels[JOB]}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta.of(meta.base), "spec": spec}


def _secret(meta: _Meta, starts: Sequence[Start]) -> Manifest | None:
    """What travels along; each value only says here what will stand there."""
    said = {LIBRARY_FILE: "<nemo_run>", JOB_FILE: "<the job's files>"}
    data = dict[str, str]()
    for begin in starts:
        data |= {key: said.get(key) or begin.script or "" for key in begin.files}
        for variable in begin.env:
            if _key(variable):
                data[_key(variable)] = f"<secret {_key(variable)}>"
    if not data:
        return None
    made = {"apiVersion": "v1", "kind": "Secret", "metadata": meta.of(meta.base), "type": "Opaque"}
    return {**made, "stringData": data}


def _key(variable: Mapping[str, Any]) -> str:
    """The key of the Secret that a variable's value is found by; empty where it is given."""
    return str(variable.get("valueFrom", {}).get("secretKeyRef", {}).get("key", ""))


# --- one role -------------------------------------------------------------------------------------------


def _role_job(
    meta: _Meta, role: str, executor: KubernetesExecutor, begin: Start, name: str, host: str, *, meets: bool
) -> Manifest:
    several, grouped = executor.nodes > 1, meets and executor.nodes == 1
    spec: Manifest = {"backoffLimit": executor.retries * executor.nodes}
    # Only pods of an Indexed Job are told which attempt they are; they cannot have a name of their own.
    indexed = several or bool(executor.retries and not grouped)
    if indexed or executor.use_jobset:
        mode = "Indexed" if indexed else "NonIndexed"
        spec |= {"completionMode": mode, "completions": executor.nodes, "parallelism": executor.nodes}
    if indexed and executor.retries and not executor.use_jobset:
        spec |= {"backoffLimitPerIndex": executor.retries, "maxFailedIndexes": 0}
    if executor.timeout:
        spec["activeDeadlineSeconds"] = math.ceil(executor.timeout)
    if executor.ttl is not None:
        spec["ttlSecondsAfterFinished"] = executor.ttl
    if executor.retries:  # what the cluster takes from us is no failure of ours
        rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        spec["podFailurePolicy"] = {"rules": [rule]}
    if executor.queue:
        spec["suspend"] = True
    pod = _pod(meta, executor, begin)
    if meets:
        pod |= {"subdomain": meta.base} | ({} if indexed else {"hostname": host})
        # So that members of a group also find each other by nothing but their names.
        pod["dnsConfig"] = {"searches": [f"{meta.base}.{meta.namespace}.svc.cluster.local"]}
    if several:
        head = f"{meta.base}-{host}-0-0" if executor.use_jobset else f"{name}-0"
        env = pod["containers"][0]["env"]
        given = {variable["name"] for variable in env}
        env += [variable for variable in _ranks(f"{head}.{meta.base}") if variable["name"] not in given]
    if "backoffLimitPerIndex" in spec:
        pod["containers"][0]["env"].append(_field(FAILURES, FAILURE_COUNT))
    described = meta.of(name, executor, **{ROLE: role})
    if executor.queue:
        described["labels"]["kueue.x-k8s.io/queue-name"] = executor.queue
    template_meta = {part: dict(described[part]) for part in ("labels", "annotations")}
    template_meta["labels"].pop("kueue.x-k8s.io/queue-name", None)
    spec["template"] = {"metadata": template_meta, "spec": {**pod, **executor.pod_spec}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": described, "spec": spec}


def _ranks(head: str) -> list[dict[str, Any]]:
    """What a pod of several is told of the others."""
    return [{"name": "MASTER_ADDR", "value": head}, _field("NODE_RANK", INDEX), _field(REPLICA, INDEX)]


def _field(name: str, annotation: str) -> dict[str, Any]:
    """A variable with the value of an annotation of the pod, or none."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}}


def _pod(meta: _Meta, executor: KubernetesExecutor, begin: Start) -> Manifest:
    selector, resources = executor.node_labels(), executor.resources()
    container: Manifest = {"name": CONTAINER, "image": executor.image_of(meta.spec), **begin.container}
    if policy := executor.pull_policy():
        container["imagePullPolicy"] = policy
    container["env"] = list(begin.env)
    for variable in container["env"]:
        if _key(variable):
            variable["valueFrom"]["secretKeyRef"]["name"] = meta.base
    if resources:
        container["resources"] = {"limits": resources, "requests": dict(resources)}
    volumes, mounts = _volumes(meta, executor, begin)
    pod: Manifest = {
        "restartPolicy": "Never",
        # A signal ends a process at once, and a process whose parent has gone is no zombie.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": executor.grace,
        "enableServiceLinks": False,
    }
    named = {
        "serviceAccountName": executor.service_account,
        "priorityClassName": executor.priority_class,
        "nodeSelector": {**selector, **executor.node_selector},
        "tolerations": copy.deepcopy(executor.tolerations),
        "affinity": copy.deepcopy(executor.affinity),
        "imagePullSecrets": [{"name": name} for name in executor.image_pull_secrets],
    }
    pod |= {name: value for name, value in named.items() if value}
    if mounts:
        container["volumeMounts"] = mounts
    pod["containers"] = [{**container, **executor.container_spec}]
    if volumes:
        pod["volumes"] = volumes
    return pod


def _volumes(
    meta: _Meta, executor: KubernetesExecutor, begin: Start
) -> tuple[list[Manifest], list[Manifest]]:
    volumes, mounts = [], []

    def add(name: str, path: str, source: Manifest, **options: Any) -> None:
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": path, **options})

    if executor.workdir_pvc:
        claim = {"persistentVolumeClaim": {"claimName": executor.workdir_pvc}}
        add("nemo-run", RUNDIR, claim, subPath=meta.folder)
    elif "command" in begin.container:
        add("nemo-run", RUNDIR, {"emptyDir": {}})
    if LIBRARY_FILE in begin.files:
        add("nemo-run-lib", LIBRARY, {"emptyDir": {}})
    if begin.files:
        items = [{"key": key, "path": START if key.startswith(START) else key} for key in begin.files]
        add("nemo-run-given", GIVEN, {"secret": {"secretName": meta.base, "items": items}}, readOnly=True)
    if executor.shm_size is not None:
        memory = {"emptyDir": {"medium": "Memory", "sizeLimit": quantity(executor.shm_size)}}
        add("nemo-run-shm", "/dev/shm", memory)
    volumes += copy.deepcopy(executor.volumes)
    return volumes, mounts + copy.deepcopy(executor.volume_mounts)


# --- other shapes ---------------------------------------------------------------------------------------


def _jobset(
    meta: _Meta, executor: KubernetesExecutor, jobs: Sequence[Manifest], hosts: Sequence[str]
) -> Manifest:
    """All roles as one object, whose controller starts all of them again when one fails."""
    replicated = []
    for job, host in zip(jobs, hosts, strict=True):
        spec = {name: value for name, value in job["spec"].items() if name not in _OF_JOBSETS}
        spec["backoffLimit"] = 0
        inner = {part: job["metadata"][part] for part in ("labels", "annotations")}
        replicated.append({"name": host, "replicas": 1, "template": {"metadata": inner, "spec": spec}})
    described = meta.of(meta.base, executor)
    if executor.queue:
        described["labels"]["kueue.x-k8s.io/queue-name"] = executor.queue
        for each in replicated:
            each["template"]["metadata"]["labels"].pop("kueue.x-k8s.io/queue-name", None)  # type: ignore[index]
    policy: Manifest = {"maxRestarts": executor.retries}
    if executor.timeout:  # no attempt follows one whose time was up
        rule = {"name": "timeout", "action": "FailJobSet", "onJobFailureReasons": ["DeadlineExceeded"]}
        policy["rules"] = [rule]
    spec = {
        "network": {"enableDNSHostnames": True, "subdomain": meta.base},
        "failurePolicy": policy,
        **{name: jobs[0]["spec"][name] for name in _OF_JOBSETS if name in jobs[0]["spec"]},
        "replicatedJobs": replicated,
    }
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": described, "spec": spec}


#: What a JobSet says for all of its Jobs.
_OF_JOBSETS = ("suspend", "ttlSecondsAfterFinished")


def for_version(objects: Sequence[Manifest], version: tuple[int, int]) -> list[Manifest]:
    """The same objects for a server of this version: an old one is given a Job for each rank."""
    if version >= INDEXED_SINCE:
        return list(objects)
    return [each for one in objects for each in (_per_rank(one) if one["kind"] == "Job" else [one])]


#: What an old server does not know of Jobs.
_NEW = (
    "completionMode", "parallelism", "podFailurePolicy", "suspend", "backoffLimitPerIndex",
    "maxFailedIndexes",
)  # fmt: skip


def _per_rank(job: Manifest) -> Iterator[Manifest]:
    plain = copy.deepcopy(job)
    ranks = plain["spec"].pop("completions", None)
    for name in _NEW:
        plain["spec"].pop(name, None)
    variables = plain["spec"]["template"]["spec"]["containers"][0]["env"]
    variables[:] = [variable for variable in variables if variable["name"] != FAILURES]
    if ranks in (None, 1):
        yield plain
        return
    plain["spec"]["backoffLimit"] //= ranks
    for rank in range(ranks):
        one = copy.deepcopy(plain)
        name = f"{job['metadata']['name']}-{rank}"
        one["metadata"]["name"] = name
        for described in (one["metadata"], one["spec"]["template"]["metadata"]):
            described["annotations"][RANK] = str(rank)
        pod = one["spec"]["template"]["spec"]
        pod["hostname"] = name
        for variable in pod["containers"][0]["env"]:
            if variable.get("valueFrom", {}).get("fieldRef"):
                del variable["valueFrom"]
                variable["value"] = str(rank)
        yield one


# --- for people -----------------------------------------------------------------------------------------


def as_text(objects: Sequence[Manifest], heading: str = "") -> str:
    """Objects as YAML; long texts are shown as they are."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Shows texts of several lines line by line, and says equal things twice."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text.strip("\n") else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent)
    parts = [
        yaml.dump(_shown(each), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10**6)
        for each in objects
    ]
    return heading + "---\n".join(parts)


def _shown(value: Any) -> Any:
    """With other bytes than UTF-8 as Python shows them."""
    if isinstance(value, dict):
        return {key: _shown(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return (
        value.encode(errors="surrogateescape").decode(errors="backslashreplace")
        if isinstance(value, str)
        else value
    )
