"""Jobs on a Kubernetes cluster: a Job for each role, and a pod of it on each node."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from nemo_run.core.execution import kubernetes_claim, kubernetes_job, kubernetes_look, kubernetes_send
from nemo_run.core.execution.base import (
    Capability,
    Check,
    Executor,
    JobHandle,
    JobSpec,
    JobStatus,
    Plan,
    Topology,
    class_name,
)
from nemo_run.core.execution.checks import (
    check_count,
    check_kind,
    check_whole_job,
    parse_bytes,
    take_second_spelling,
)
from nemo_run.core.execution.kubernetes_client import Place, connect, locate, namespace_of
from nemo_run.core.execution.kubernetes_manifest import (
    LIBRARY,
    RUNDIR,
    VOLUMES,
    as_text,
    base_name,
    digest,
    render,
)
from nemo_run.core.execution.kubernetes_nodes import (
    GPU_LABEL,
    TPU_RESOURCE,
    amount,
    gpu_selector,
    quantity,
    tpu_selector,
)
from nemo_run.core.packaging.base import Packager
from nemo_run.core.packaging.git import GitArchivePackager
from nemo_run.core.packaging.image import ImagePackager
from nemo_run.errors import ConfigError, UnsupportedError
from nemo_run.shell import Expand

#: The name of no image: for executors of which nothing is said.
NO_IMAGE = "scratch"
#: Settings that hold for a group as a whole, so that all its members must agree on them.
_WHOLE_JOB = ("context", "namespace", "use_jobset", "workdir_pvc", "start_patience", "timeout", "ttl")
#: What fields, or we, say of a pod and of its container.
_POD = {
    "restartPolicy": "nothing", "containers": "container_spec", "volumes": "volumes", "hostname": "nothing",
    "subdomain": "nothing", "serviceAccountName": "service_account", "priorityClassName": "priority_class",
    "nodeSelector": "node_selector", "tolerations": "tolerations", "affinity": "affinity",
    "imagePullSecrets": "image_pull_secrets", "terminationGracePeriodSeconds": "grace",
    "activeDeadlineSeconds": "timeout",
}  # fmt: skip
_CONTAINER = {
    "name": "nothing", "image": "container_image", "command": "the task", "args": "the task",
    "env": "env_vars", "resources": "cpus, memory and gpus_per_node", "volumeMounts": "volume_mounts",
    "workingDir": "working_dir", "imagePullPolicy": "image_pull_policy",
}  # fmt: skip
_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?\Z")
_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?\Z")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")
_POLICIES = ("Always", "IfNotPresent", "Never")


@dataclass(kw_only=True)
class KubernetesExecutor(Executor):
    """Runs tasks in pods; a Python task needs no more of the image than a `python3`.

    The job's folder is /nemo_run in its pods, the packaged code /nemo_run/code, where a task starts.
    """

    #: The image.
    container_image: str = ""
    #: Second spelling of `container_image`.
    image: str | None = field(default=None, repr=False)
    #: How the code gets there.
    packager: Packager = field(default_factory=GitArchivePackager)
    #: Pods, one on each machine that it takes.
    nodes: int = 1
    #: GPUs of each pod.
    gpus_per_node: int | None = None
    #: Which: "t4", "l4", "a100", "h100", "h200", … or what `gpu_label` says of them.
    gpu_type: str | None = None
    #: The label by which nodes say which GPUs they have; that of GKE, or "nvidia.com/gpu.product".
    gpu_label: str = GPU_LABEL
    #: What GPUs are called where they are counted.
    gpu_resource: str = "nvidia.com/gpu"
    #: Which TPUs, on GKE: "v4", "v5e", "v5p", "v6e", "tpu7x".
    tpu_type: str | None = None
    #: How they are arranged: "2x4", for v4 and v5p "2x2x2". It decides how many `nodes` there must be.
    tpu_topology: str | None = None
    #: Processors of each pod: 4, 0.5, "500m"; `cpu_limit` is the same.
    cpus: int | float | str | None = None
    #: Memory of each pod: bytes, or as Kubernetes writes it, "32Gi"; `memory_limit` is the same.
    memory: int | str | None = None
    #: Room on the node's disk for each pod, likewise.
    ephemeral_storage: int | str | None = None
    #: Size of /dev/shm, likewise; it counts as memory.
    shm_size: int | str | None = None
    #: Processes that a launcher such as torchrun starts in each pod; None for one for each GPU, or one.
    ntasks_per_node: int | None = None
    #: Where jobs go; None for the namespace of the context.
    namespace: str | None = None
    #: Which cluster, by the kubeconfig's name for it; None for the current one.
    context: str | None = None
    #: Whom pods are to the cluster.
    service_account: str | None = None
    #: Labels that nodes must have.
    node_selector: dict[str, str] = field(default_factory=dict)
    #: Taints that they may have, as in a pod's `tolerations`.
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    #: As in a pod's `affinity`.
    affinity: dict[str, Any] = field(default_factory=dict)
    #: As in a pod's `volumes`.
    volumes: list[dict[str, Any]] = field(default_factory=list)
    #: As in a container's `volumeMounts`.
    volume_mounts: list[dict[str, Any]] = field(default_factory=list)
    #: A claim on which the folders of an experiment's jobs lie, their code and artifacts among it.
    workdir_pvc: str | None = None
    #: Names of Secrets by which the image may be pulled.
    image_pull_secrets: list[str] = field(default_factory=list)
    #: "Always", "IfNotPresent", "Never"; None for what Kubernetes does with such an image.
    image_pull_policy: str | None = None
    #: Labels and annotations of the Job and its pods.
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    #: The name of a PriorityClass.
    priority_class: str | None = None
    #: A queue of Kueue in which the job waits for its turn.
    queue: str | None = None
    #: Seconds after which an ended job is removed from the cluster; None for never. Until then it must have
    #: been looked at once, as its log is taken home then.
    ttl: int | None = 86400
    #: Seconds between SIGTERM and SIGKILL.
    grace: int = 30
    #: Seconds after which a job is given up whose image cannot be pulled, or whose container cannot be made.
    start_patience: float = 300.0
    #: Have all roles as one JobSet, which starts all pods again when one fails.
    use_jobset: bool = False
    #: What a pod has beyond all this, as in its `spec`.
    pod_spec: dict[str, Any] = field(default_factory=dict)
    #: And its container.
    container_spec: dict[str, Any] = field(default_factory=dict)

    capabilities: ClassVar[Capability] = Capability.DETACH | Capability.GROUPS | Capability.IMAGES
    remote: ClassVar[bool] = True
    #: Making a job is waiting for the API server.
    submit_workers: ClassVar[int] = 8
    #: Ends are heard of; why a job waits is looked up.
    poll_interval: ClassVar[tuple[float, float]] = (0.1, 5.0)

    def check(self) -> None:
        """Also refuse what the API server would refuse much later, and what it would silently not do."""
        take_second_spelling(self, "image", "container_image", empty="")
        super().check()
        self._check_image()
        check_count(self, "nodes", 1)
        check_count(self, "grace", 0)
        for name, least in (("gpus_per_node", 0), ("ntasks_per_node", 1), ("ttl", 0)):
            check_count(self, name, least, optional=True)
        self._check_limits()
        self.node_labels()
        for name in ("node_selector", "labels", "annotations"):
            self._check_labels(name)
        for name in ("namespace", "service_account", "workdir_pvc", "priority_class", "queue"):
            self._check_name(name, getattr(self, name))
        check_kind(self, "image_pull_secrets", list, tuple)
        for secret in self.image_pull_secrets:
            self._check_name("image_pull_secrets", secret)
        self._check_objects()
        check_kind(self, "use_jobset", bool)
        check_kind(self, "context", str, type(None))
        if self.image_pull_policy not in (None, *_POLICIES):
            raise self._refusal("image_pull_policy", f"one of {', '.join(_POLICIES)}")
        patience = self.start_patience
        if isinstance(patience, bool) or not isinstance(patience, (int, float)) or patience < 0:
            raise self._refusal("start_patience", "a number of seconds")
        if self.monitor_resources:
            raise UnsupportedError(
                "KubernetesExecutor cannot honour monitor_resources; leave it out, and ask `kubectl top pod`"
                " what a job uses",
                executor="KubernetesExecutor",
                capability="monitor_resources",
            )

    def _check_image(self) -> None:
        check_kind(self, "container_image", str)
        if not isinstance(self.packager, ImagePackager):
            if not self.container_image or self.container_image != self.container_image.strip():
                raise self._refusal("container_image", 'an image such as "python:3.12"')
            return
        self.packager.image(self.container_image, None, None)
        if not self.packager.push_image_tag and self.image_pull_policy != "Never":
            raise ConfigError(
                "KubernetesExecutor has an ImagePackager without push_image_tag, so that no node can pull the"
                ' image; give it one such as "registry.example/team/name", or image_pull_policy="Never" where'
                " the nodes use this machine's Engine"
            )

    def _check_limits(self) -> None:
        for one, other, size in (
            ("cpus", self.cpu_limit, self.cpu_limit),
            (
                "memory",
                self.memory_limit,
                None if self.memory_limit is None else parse_bytes(self.memory_limit),
            ),
        ):
            value = getattr(self, one)
            if value is not None and amount(value, f"KubernetesExecutor.{one}") != (
                size or amount(value, one)
            ):
                limit = "cpu_limit" if one == "cpus" else "memory_limit"
                raise ConfigError(
                    f"KubernetesExecutor.{one} is {value!r} and {limit} is {other!r}, which are one"
                    f" setting; give {one} alone"
                )
        for name in ("ephemeral_storage", "shm_size"):
            if (value := getattr(self, name)) is not None:
                amount(value, f"KubernetesExecutor.{name}")
        check_kind(self, "gpu_type", str, type(None))
        if self.gpu_type and not self.gpus_per_node:
            raise ConfigError(
                f"KubernetesExecutor.gpu_type is {self.gpu_type!r}; say how many in gpus_per_node too"
            )
        if self.tpu_type and self.gpus_per_node:
            raise ConfigError("KubernetesExecutor has a tpu_type and gpus_per_node; give one of them")
        if self.tpu_topology and not self.tpu_type:
            raise ConfigError("KubernetesExecutor.tpu_topology is given without a tpu_type; give both")
        for name in ("gpu_label", "gpu_resource"):
            if not isinstance(getattr(self, name), str) or not _KEY.match(getattr(self, name)):
                raise self._refusal(name, 'a name such as "nvidia.com/gpu"')

    def _check_labels(self, name: str) -> None:
        given = getattr(self, name)
        check_kind(self, name, dict)
        for key, value in given.items():
            fits = isinstance(key, str) and _KEY.match(key) and isinstance(value, str)
            if not fits or (name != "annotations" and not _LABEL.match(value)):
                rule = "63 letters, digits, - _ . at most" if name != "annotations" else "text"
                raise ConfigError(f"KubernetesExecutor.{name}: {key!r}: {value!r} is none; a value is {rule}")
            if key.startswith("nemo-run/"):
                raise ConfigError(f"KubernetesExecutor.{name} holds {key!r}, which nemo_run sets; rename it")

    def _check_name(self, name: str, value: Any) -> None:
        if value is not None and not (isinstance(value, str) and _NAME.match(value)):
            raise ConfigError(
                f"KubernetesExecutor.{name} is {value!r}; give a name of small letters, digits, - and ."
            )

    def _check_objects(self) -> None:
        for name in ("affinity", "pod_spec", "container_spec"):
            check_kind(self, name, dict)
        for name in ("tolerations", "volumes", "volume_mounts"):
            given = getattr(self, name)
            if not isinstance(given, (list, tuple)) or not all(isinstance(each, Mapping) for each in given):
                raise self._refusal(name, "a list of dicts, as in the manifest of a pod")
        known = [each.get("name") for each in self.volumes]
        if taken := {*known} & {*VOLUMES}:
            raise ConfigError(
                f"KubernetesExecutor.volumes: {taken.pop()!r} is a name of nemo_run's; rename it"
            )
        for mount in self.volume_mounts:
            if not {"name", "mountPath"} <= mount.keys() or mount["name"] not in known:
                raise ConfigError(
                    f"KubernetesExecutor.volume_mounts: {dict(mount)!r} names none of volumes; give it as"
                    ' {"name": …, "mountPath": "/…"}'
                )
        for name, ours in (("pod_spec", _POD), ("container_spec", _CONTAINER)):
            for key in getattr(self, name):
                if key in ours:
                    raise ConfigError(f"KubernetesExecutor.{name} holds {key!r}; use {ours[key]} for it")

    def _refusal(self, name: str, wanted: str) -> ConfigError:
        return ConfigError(f"{type(self).__name__}.{name} is {getattr(self, name)!r}; give {wanted}")

    # --- what tasks and launchers ask -------------------------------------------------------------------

    @property
    def python(self) -> str:
        """The image's own, wherever it lies on its path."""
        return os.fspath(self.python_path or "python3")

    def nnodes(self) -> int:
        """As told."""
        return self.nodes

    def nproc_per_node(self) -> int:
        """As told, or one for each GPU."""
        return self.ntasks_per_node or self.gpus_per_node or 1

    def replicas(self) -> Sequence[int]:
        """A log for each pod."""
        return range(self.nodes)

    def topology(self) -> Topology:
        """The pods know it when they run."""
        several = self.nodes > 1
        return Topology(
            nodes=self.nodes,
            procs_per_node=self.nproc_per_node(),
            head_address=Expand("$MASTER_ADDR") if several else "localhost",
            node_rank=Expand("$NODE_RANK") if several else "0",
        )

    def rundir(self, job_dir: Path) -> Path:
        """The same for every job; on a claim, those of one experiment lie side by side."""
        return Path(RUNDIR, job_dir.name) if self.workdir_pvc else Path(RUNDIR)

    def runner_path(self) -> str:
        """This very nemo_run comes along, so that the image needs none."""
        return f"{LIBRARY}/nemo_run/core/runner.py"

    def shares_files(self) -> bool:
        """A pod sees what is mounted."""
        return False

    def parallel_limit(self) -> int | None:
        """A cluster has a scheduler of its own."""
        return None

    def cluster(self) -> str:
        """Context and namespace."""
        return f"{self.context or ''}/{self.namespace or ''}"

    def info(self) -> str:
        """Pods, image and where."""
        image = self.container_image or getattr(self.packager, "base_image", "")
        pods = "a pod" if self.nodes == 1 else f"{self.nodes} pods"
        where = f", context {self.context}" if self.context else ""
        return (
            f"{pods} of {'any image' if image == NO_IMAGE else image} on Kubernetes{where},"
            f" namespace {namespace_of(self.context, self.namespace)}"
        )

    @classmethod
    def bare(cls) -> KubernetesExecutor:
        """With an image of which nothing is asked."""
        return cls(container_image=NO_IMAGE)

    def probe(self) -> Iterator[Check]:
        """The cluster, who we are there, what we may do, and what is asked of it by name."""
        from nemo_run.core.execution import kubernetes_probe

        return kubernetes_probe.probe_cluster(self)

    # --- what the manifest asks -------------------------------------------------------------------------

    def image_of(self, spec: JobSpec) -> str:
        """The image of its pods."""
        if (build := _build(self, spec)) is None:
            return self.container_image
        return str(build["push"] or build["tag"])

    def pull_policy(self) -> str | None:
        """An image that is pushed under one name again and again is always looked up."""
        if isinstance(self.packager, ImagePackager) and not self.image_pull_policy:
            return "Always"
        return self.image_pull_policy

    def node_labels(self) -> dict[str, str]:
        """What nodes must have for the GPUs or TPUs that are asked for."""
        if self.tpu_type:
            return tpu_selector(self.tpu_type, self.tpu_topology, self.nodes)[0]
        return gpu_selector(self.gpu_type, self.gpu_label) if self.gpu_type else {}

    def resources(self) -> dict[str, str]:
        """What each pod gets, and cannot get more of."""
        memory = self.memory
        if memory is None and self.memory_limit is not None:
            memory = parse_bytes(self.memory_limit)
        wanted = {
            "cpu": self.cpu_limit if self.cpus is None else self.cpus,
            "memory": memory,
            "ephemeral-storage": self.ephemeral_storage,
            self.gpu_resource: self.gpus_per_node or None,
        }
        if self.tpu_type:
            wanted[TPU_RESOURCE] = tpu_selector(self.tpu_type, self.tpu_topology, self.nodes)[1]
        return {name: quantity(value) for name, value in wanted.items() if value is not None}

    # --- the backend ------------------------------------------------------------------------------------

    def plan(self, spec: JobSpec) -> Plan:
        """The objects that the cluster is given, as YAML."""
        check_whole_job(spec, _WHOLE_JOB)
        namespace = namespace_of(self.context, self.namespace)
        objects = render(spec, namespace)
        where = f"context {self.context}" if self.context else "the current context"
        heading = f"# What the cluster of {where} is given; what stands between < and > is filled in then.\n"
        claim = self._claim(spec, objects)
        request: dict[str, Any] = {
            "token": spec.token,
            "digest": digest(spec.token, spec.job_dir),
            "kind": "JobSet" if self.use_jobset else "Job",
            "namespace": namespace,
            "context": self.context,
            "objects": objects,
            "heading": heading,
            "timeout": self.timeout,
            "grace": max(member.grace for member in spec.members),  # type: ignore[attr-defined]
            "ttl": self.ttl,
            "start_patience": self.start_patience,
            "claim": claim,
            "secrets": _secrets(spec),
            "build": _build(self, spec),
        }
        sent = [claim["pod"], *objects] if claim else objects
        return Plan(spec=spec, text=as_text(sent, heading), request=request)

    def _claim(self, spec: JobSpec, objects: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """The pod that takes the job's files to the claim, and fetches them from there."""
        if not self.workdir_pvc:
            return None
        pod = kubernetes_claim.helper(objects[-1], f"{base_name(spec)}-files")
        return {"name": self.workdir_pvc, "folder": str(self.rundir(spec.job_dir)), "pod": pod}

    def connect(self) -> None:
        """Be known to the cluster, and allowed to make jobs there."""
        place = locate(self.context, self.namespace)
        kubernetes_send.check_access(connect(place), place)

    def submit(self, plan: Plan) -> JobHandle:
        """Make the objects, all or none."""
        place = kubernetes_job.KubernetesJob(plan.spec.job_dir).submit(plan.request)
        return self._handle(plan.spec.token, plan.spec.job_dir, place)

    def find(self, token: str) -> JobHandle | None:
        """By what is recorded in the job's folder, and where that is no end by the label."""
        job = kubernetes_job.KubernetesJob(Path(self.job_dir))
        place = job.find(token)
        return self._handle(token, job.job_dir, place) if place else None

    def _handle(self, token: str, job_dir: Path, place: Place) -> JobHandle:
        data = {"job_dir": str(job_dir), **place._asdict()}
        return JobHandle(executor=class_name(type(self)), id=token, data=data)

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """From the jobs' folders, and for the others by two lists of each namespace; what is due is done."""
        return kubernetes_look.look(handles)

    def await_news(self, handles: Sequence[JobHandle], seconds: float) -> None:
        """Watch the jobs, and keep what their pods print, meanwhile."""
        kubernetes_look.await_news(handles, seconds)

    def cancel(self, handle: JobHandle) -> None:
        """Delete its Jobs, and with them their pods: SIGTERM, and SIGKILL after `grace`."""
        if (job_dir := Path(handle.data["job_dir"])).is_dir():
            kubernetes_job.KubernetesJob(job_dir).cancel()

    def logs(self, handle: JobHandle, role: str, replica: int = 0, *, follow: bool = False) -> Iterator[str]:
        """From the cluster while the job runs, then from its folder; a replica is a pod."""
        return kubernetes_job.KubernetesJob(Path(handle.data["job_dir"])).lines(role, replica, follow=follow)


def _secrets(spec: JobSpec) -> dict[str, Any]:
    """Where the values of a job's secrets are found, by their keys in the Secret."""
    from nemo_run.secret import Secret

    values = (value for role in spec.app.roles for value in role.env.values())
    return {value.name: value.source() for value in values if isinstance(value, Secret)}


def _build(executor: KubernetesExecutor, spec: JobSpec) -> dict[str, Any] | None:
    """The image that the job's code is to be built into, if it is."""
    if not isinstance(executor.packager, ImagePackager):
        return None
    context = Path(spec.package["code"]) if spec.package else None
    image = executor.packager.image(executor.container_image, spec.package, context)
    return {**asdict(image), "context": str(context)}
