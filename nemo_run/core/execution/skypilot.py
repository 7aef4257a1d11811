"""Jobs by SkyPilot: on clusters of clouds, of Kubernetes and of Slurm, and as managed jobs that recover."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from nemo_run.core.execution import skypilot_job
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
from nemo_run.core.execution.checks import check_count, check_kind, check_whole_job, take_second_spelling
from nemo_run.core.execution.macros import ExecutorMacros
from nemo_run.core.execution.skypilot_task import (
    ALTERNATIVES,
    LIBRARY,
    cluster_name,
    job_name,
    make_task,
    render,
    resources,
    rundir,
    starts,
)
from nemo_run.core.packaging.base import Packager
from nemo_run.core.packaging.git import GitArchivePackager
from nemo_run.errors import ConfigError, UnsupportedError
from nemo_run.shell import Expand

#: The names that macros stand for here; the program on the node sets those that SkyPilot does not.
MACROS = ExecutorMacros(
    head_node_ip_var="head_node_ip",
    nproc_per_node_var="SKYPILOT_NUM_GPUS_PER_NODE",
    num_nodes_var="SKYPILOT_NUM_NODES",
    node_rank_var="SKYPILOT_NODE_RANK",
    het_group_host_var="het_group_host",
)
#: Settings that hold for a group as a whole, so that all its members must agree on them.
_WHOLE_JOB = (
    *ALTERNATIVES, "gpus_per_node", "num_nodes", "container_image", "ports", "file_mounts", "storage_mounts",
    "cluster_name", "own_cluster", "setup", "autodown", "idle_minutes_to_autostop", "retry_until_up",
    "network_tier", "cluster_config_overrides", "timeout", "retries", "memory_limit", "cpu_limit",
)  # fmt: skip
_CLUSTER = re.compile(r"[a-zA-Z]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?\Z")


@dataclass(kw_only=True)
class SkypilotExecutor(Executor):
    """Runs jobs on clusters that SkyPilot makes: of clouds, of Kubernetes, of Slurm.

    Values in a list are alternatives, in the same order in all lists: SkyPilot takes the cheapest that it can
    have. "none" in a list stands for nothing said.
    """

    #: An image for the nodes; SkyPilot's own words ("docker:…", "ami-…") are taken as they are.
    container_image: str | None = None
    #: "aws", "gcp", "kubernetes", "slurm", …; None for whatever is cheapest.
    cloud: str | list[str] | None = None
    #: A region of the cloud; of Slurm the cluster, of Kubernetes the context.
    region: str | list[str] | None = None
    #: A zone of the region; of Slurm the partition.
    zone: str | list[str] | None = None
    #: Cloud, region and zone in one: "aws/us-east-1", "k8s/my-context", "slurm/my-cluster/gpus".
    infra: str | list[str] | None = None
    #: The kind of GPU: "H100", "A100-80GB".
    gpus: str | list[str] | None = None
    #: How many of them each node has.
    gpus_per_node: int | None = None
    #: Processors of each node: 8, or "8+" for at least as many; `cpu_limit` is the same.
    cpus: int | float | str | list[int | float | str] | None = None
    #: GB of memory of each node: 32, or "32+" for at least as much; `memory_limit` is the same.
    memory: int | float | str | list[int | float | str] | None = None
    #: A machine by the cloud's own name, such as "g4dn.xlarge".
    instance_type: str | list[str] | None = None
    #: Machines.
    num_nodes: int = 1
    #: Second spelling of `num_nodes`.
    nodes: int | None = field(default=None, repr=False)
    #: Take machines that cost less and may be taken away.
    use_spot: bool | list[bool] | None = None
    #: GB of each node's disk.
    disk_size: int | list[int] | None = None
    #: "low", "medium", "high", "ultra" or "best".
    disk_tier: str | list[str] | None = None
    #: Ports that the cluster opens: "8080", "9000-9010".
    ports: Sequence[str | int] | None = None
    #: What nodes find: by path there a path here or a bucket's URL.
    file_mounts: dict[str, str] | None = None
    #: Buckets: by path there what SkyPilot's YAML says of one: {"source": "s3://…", "mode": "MOUNT"}.
    storage_mounts: dict[str, dict[str, Any]] | None = None
    #: The cluster; made if it is not there. None for one of the experiment's, for each kind of resources.
    cluster_name: str | None = None
    #: Give each job a cluster of its own, where no name is given.
    own_cluster: bool = False
    #: Bash that is run on each node before the first job, in the packaged code.
    setup: str | None = None
    #: Take down a cluster that jobs of ours have made, once no job needs it.
    autodown: bool = False
    #: Stop (with `autodown`: take down) the cluster after so many minutes without a job.
    idle_minutes_to_autostop: int | None = None
    #: Processes that torchrun starts on each node.
    torchrun_nproc_per_node: int | None = None
    #: Settings of SkyPilot's `config.yaml` for this job alone.
    cluster_config_overrides: dict[str, Any] | None = None
    #: "best" for the fastest network that there is.
    network_tier: str | None = None
    #: Try again until there are machines.
    retry_until_up: bool = False
    #: How the code gets there.
    packager: Packager = field(default_factory=GitArchivePackager)

    capabilities: ClassVar[Capability] = Capability.DETACH | Capability.GROUPS
    remote: ClassVar[bool] = True
    #: A submission is mostly waiting for the API server.
    submit_workers: ClassVar[int] = 8
    #: A look at a cluster's queue takes SkyPilot some seconds.
    poll_interval: ClassVar[tuple[float, float]] = (1.0, 15.0)
    #: Whether jobs are managed ones.
    managed: ClassVar[bool] = False

    def check(self) -> None:
        """Also refuse what SkyPilot would only refuse later, or would not understand."""
        take_second_spelling(self, "nodes", "num_nodes", empty=1)
        super().check()
        name = type(self).__name__
        check_count(self, "num_nodes", 1)
        for each in ("gpus_per_node", "torchrun_nproc_per_node"):
            check_count(self, each, 1, optional=True)
        check_count(self, "idle_minutes_to_autostop", 0, optional=True)
        for each in ("own_cluster", "autodown", "retry_until_up"):
            check_kind(self, each, bool)
        for each in ("container_image", "setup", "network_tier", "cluster_name"):
            check_kind(self, each, str, type(None))
        for each in ("file_mounts", "storage_mounts", "cluster_config_overrides"):
            check_kind(self, each, dict, type(None))
        if self.cluster_name is not None and not _CLUSTER.match(self.cluster_name):
            raise ConfigError(
                f"{name}.cluster_name is {self.cluster_name!r}; give letters, digits and -, a letter first"
            )
        if self.infra and (self.cloud or self.region or self.zone):
            raise ConfigError(
                f"{name}.infra says cloud, region and zone in one; give infra alone, or leave it out"
            )
        for one, other in (("cpus", "cpu_limit"), ("memory", "memory_limit")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ConfigError(f"{name}.{one} and {other} are one setting here; give one of them")
        if self.gpus_per_node and not self.gpus:
            raise ConfigError(f"{name}.gpus_per_node needs the kind of GPU; give gpus, such as 'H100'")
        if self.monitor_resources:
            raise self._unable(
                "monitor_resources", "leave it out; SkyPilot's dashboard shows what clusters use"
            )
        if self.retries and self.num_nodes > 1 and not self.managed:
            raise self._unable(
                "retries", "over several nodes use run.SkypilotJobsExecutor, which starts again"
            )
        resources(self)

    def _unable(self, name: str, step: str) -> UnsupportedError:
        kind = type(self).__name__
        return UnsupportedError(f"{kind} cannot honour {name}; {step}", executor=kind, capability=name)

    # --- what tasks and launchers ask -------------------------------------------------------------------

    def nnodes(self) -> int:
        """As told."""
        return self.num_nodes

    def nproc_per_node(self) -> int:
        """What is said of torchrun, else a process for each GPU."""
        return self.torchrun_nproc_per_node or self.gpus_per_node or 1

    def replicas(self) -> Sequence[int]:
        """A log for each node."""
        return range(self.num_nodes)

    def topology(self) -> Topology:
        """The nodes know it when they run."""
        return Topology(
            nodes=self.num_nodes,
            procs_per_node=self.nproc_per_node(),
            head_address=Expand("$head_node_ip") if self.num_nodes > 1 else "localhost",
            node_rank=Expand("$SKYPILOT_NODE_RANK"),
        )

    def rundir(self, job_dir: Path) -> Path:
        """A folder of the nodes that no other job has."""
        return Path(rundir(job_dir))

    def runner_path(self) -> str:
        """This very nemo_run is sent along, so that the nodes need none."""
        return f"{rundir(Path(self.job_dir))}/{LIBRARY}/nemo_run/core/runner.py"

    def cluster(self) -> str:
        """Whoever launches has one API server."""
        return os.environ.get("SKYPILOT_API_SERVER_ENDPOINT", "")

    def info(self) -> str:
        """Nodes, and what of."""
        words = [str(self.infra or self.cloud or "whatever cloud is cheapest")]
        if self.gpus:
            words.append(f"{self.gpus}:{self.gpus_per_node or 1}")
        what = f"{self.num_nodes} node{'s' * (self.num_nodes > 1)}"
        return f"{'managed jobs on ' * self.managed}{what} by SkyPilot ({', '.join(words)})"

    def probe(self) -> Iterator[Check]:
        """SkyPilot itself, its API server, and the clouds that it may use."""
        from nemo_run.core.execution import skypilot_probe

        return skypilot_probe.probe(self)

    # --- the backend ------------------------------------------------------------------------------------

    def plan(self, spec: JobSpec) -> Plan:
        """SkyPilot's task, and what the program on the nodes is told."""
        check_whole_job(spec, _WHOLE_JOB)
        name = job_name(spec.token, (self.managed and self.cluster_name) or spec.id)
        task = make_task(self, spec, name)
        told = starts(spec, MACROS)
        secrets = _secrets(spec)
        request: dict[str, Any] = {
            "token": spec.token,
            "name": name,
            "home": str(spec.job_dir),
            "cluster": "" if self.managed else cluster_name(self, spec),
            "task": task,
            "starts": told,
            "package": dict(spec.package) if spec.package and self.packager.copies_code else None,
            "options": self._options(),
            "secrets": secrets,
        }
        return Plan(spec=spec, text=render(task, secrets, told), request=request)

    def _options(self) -> dict[str, Any]:
        """How SkyPilot is told to launch."""
        return {
            "managed": self.managed,
            "autodown": self.autodown,
            "idle": self.idle_minutes_to_autostop,
            "retry": self.retry_until_up,
            # Setup is not run again by it, which only matters where somebody else's cluster may lack it.
            "fast": not (self.cluster_name and self.setup),
            "gpus": self.gpus,
        }

    def connect(self) -> None:
        """Have SkyPilot, its API server, and a cloud."""
        skypilot_job.connect()

    def submit(self, plan: Plan) -> JobHandle:
        """Pack its files, hand it to the API server, and do not wait for machines."""
        data = skypilot_job.submit(plan.request)
        return self._handle(plan.request["token"], data)

    def find(self, token: str) -> JobHandle | None:
        """By what was noted here, and where that is not enough by the task's name."""
        data = skypilot_job.find(Path(self.job_dir), token)
        return None if data is None else self._handle(token, data)

    def _handle(self, token: str, data: dict[str, str]) -> JobHandle:
        return JobHandle(executor=class_name(type(self)), id=token, data=data)

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """By one request for the jobs of each cluster; what ended jobs left is brought home first."""
        return skypilot_job.look(handles)

    def await_news(self, handles: Sequence[JobHandle], seconds: float) -> None:
        """Let the time pass: SkyPilot tells nobody."""
        time.sleep(seconds)

    def cancel(self, handle: JobHandle) -> None:
        """End the job, or its launch; a cluster that goes on running is named, with what it costs."""
        skypilot_job.cancel(handle)

    def logs(self, handle: JobHandle, role: str, replica: int = 0, *, follow: bool = False) -> Iterator[str]:
        """From SkyPilot while it runs, then from its folder; a replica is a node."""
        return skypilot_job.log_lines(handle, role, replica, follow=follow)


@dataclass(kw_only=True)
class SkypilotJobsExecutor(SkypilotExecutor):
    """Runs managed jobs: SkyPilot makes a cluster for each, starts it again elsewhere, and takes it down.

    `cluster_name` is what SkyPilot's names for the jobs begin with.
    """

    managed: ClassVar[bool] = True

    def check(self) -> None:
        """Also refuse what has no meaning where SkyPilot itself looks after clusters."""
        super().check()
        name = type(self).__name__
        for each in ("own_cluster", "idle_minutes_to_autostop"):
            if getattr(self, each):
                raise ConfigError(f"{name}.{each} means nothing for managed jobs; leave it out")


def _secrets(spec: JobSpec) -> dict[str, Any]:
    """The secrets of all members by variable; none of them stands in the task."""
    found: dict[str, Any] = {}
    for role in spec.app.roles:
        for variable, value in role.env.items():
            if not isinstance(value, str) and found.setdefault(variable, value) != value:
                raise ConfigError(
                    f"members of group {spec.id!r} have different secrets in {variable}; name one otherwise"
                )
    return found
