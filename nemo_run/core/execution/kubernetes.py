"""Jobs on a Kubernetes cluster: a Job for each role, and a pod of it on each node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
from nemo_run.core.execution.checks import check_whole_job, parse_bytes, take_second_spelling
from nemo_run.core.execution.kubernetes_checks import check_fields
from nemo_run.core.execution.kubernetes_client import Place, connect, locate, namespace_of
from nemo_run.core.execution.kubernetes_manifest import as_text, base_name, digest, render
from nemo_run.core.execution.kubernetes_nodes import (
    GPU_LABEL,
    TPU_RESOURCE,
    gpu_selector,
    quantity,
    tpu_selector,
)
from nemo_run.core.execution.kubernetes_start import LIBRARY, RUNDIR
from nemo_run.core.packaging.base import Packager
from nemo_run.core.packaging.git import GitArchivePackager
from nemo_run.core.packaging.image import ImagePackager, planned_image
from nemo_run.errors import UnsupportedError
from nemo_run.shell import Expand

#: The name of no image: for executors of which nothing is said.
NO_IMAGE = "scratch"
#: Settings that hold for a group as a whole, so that all its members must agree on them.
_WHOLE_JOB = ("context", "namespace", "use_jobset", "workdir_pvc", "start_patience", "timeout", "ttl")


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
        check_fields(self)
        if self.monitor_resources:
            raise UnsupportedError(
                "KubernetesExecutor cannot honour monitor_resources; leave it out, and ask `kubectl top pod`"
                " what a job uses",
                executor="KubernetesExecutor",
                capability="monitor_resources",
            )

    # --- what tasks and launchers ask -------------------------------------------------------------------

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
        if (build := planned_image(self.packager, self.container_image, spec.package)) is None:
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
            "build": planned_image(self.packager, self.container_image, spec.package),
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
