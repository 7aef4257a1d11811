"""Where jobs of a launch script run, in XManager's words; what each becomes is said in `backends`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from nemo_run.xm.errors import BadTypeError
from nemo_run.xm.jobs import Executor, ExecutorSpec
from nemo_run.xm.resources import JobRequirements
from nemo_run.xm_local.specs import KubernetesSpec, LocalSpec, SkypilotSpec, SlurmSpec, VertexSpec

if TYPE_CHECKING:
    from nemo_run.core.execution.kubernetes import KubernetesExecutor
    from nemo_run.core.execution.skypilot import SkypilotExecutor
    from nemo_run.core.execution.slurm import SlurmExecutor
    from nemo_run.core.execution.vertex import VertexExecutor

CaipSpec = VertexSpec


@dataclass
class DockerOptions:
    """What else a local container is given."""

    #: Which port of the machine each port of the container is.
    ports: dict[int, int] | None = None
    #: Which folder of the container each folder of the machine is.
    volumes: dict[str, str] | None = None
    #: Let the container see ~/gcs as /gcs, and the credentials of gcloud, where they are there.
    mount_gcs_path: bool = True
    #: Open a shell in the container instead of starting its program; it needs a terminal.
    interactive: bool = False

    def __post_init__(self) -> None:
        for name in ("ports", "volumes"):
            given = getattr(self, name)
            if given is not None and not isinstance(given, Mapping):
                raise BadTypeError(f"DockerOptions.{name} is a dict, not {given!r}")


@dataclass
class TensorboardCapability:
    """A Vertex AI TensorBoard that shows what a job writes."""

    #: Its full name, or its number.
    name: str
    #: Below which folder of a bucket the job writes: `logs/` of it is shown.
    base_output_directory: str | None = None


@dataclass
class TpuCapability:
    """What TPUs of a cluster run."""

    #: The version of TensorFlow on them.
    tpu_runtime_version: str


def _requirements(executor: Any, second: JobRequirements | None) -> None:
    """Take `resources`, the other word for `requirements`."""
    name, given = type(executor).__name__, executor.requirements
    if second is not None:
        if given is not None and given != JobRequirements():
            raise BadTypeError(f"{name} has requirements and resources; they mean the same, so give one")
        given = second
    if given is None:
        given = JobRequirements()
    if not isinstance(given, JobRequirements):
        raise BadTypeError(f"requirements of {name} are xm.JobRequirements(...), not {given!r}")
    executor.requirements = given


@dataclass
class Local(Executor):
    """This machine: a program runs as a process, an image as a container of its Docker Engine.

    Of its requirements cpu, ram and local_gpu are heeded.
    """

    requirements: JobRequirements = field(default_factory=JobRequirements)
    docker_options: DockerOptions | None = None
    #: Print what the job prints, each line after `[its name]`.
    experimental_stream_output: bool = True
    resources: InitVar[JobRequirements | None] = field(default=None, kw_only=True)

    Spec: ClassVar[type[ExecutorSpec]] = LocalSpec

    def __post_init__(self, resources: JobRequirements | None) -> None:
        _requirements(self, resources)
        if not isinstance(self.docker_options, (DockerOptions, type(None))):
            raise BadTypeError(
                f"docker_options of Local are xm_local.DockerOptions(...), not {self.docker_options!r}"
            )


@dataclass
class Vertex(Executor):
    """Vertex AI; each unit is one custom job, and each job of its group one pool of workers.

    `executor` is a `run.VertexExecutor` that says all that is not said here: project, region, bucket, …; its
    image is not looked at.
    """

    requirements: JobRequirements = field(default_factory=JobRequirements)
    tensorboard: TensorboardCapability | None = None
    resources: InitVar[JobRequirements | None] = field(default=None, kw_only=True)
    executor: VertexExecutor | None = field(default=None, kw_only=True)

    Spec: ClassVar[type[ExecutorSpec]] = VertexSpec

    def __post_init__(self, resources: JobRequirements | None) -> None:
        _requirements(self, resources)


Caip = Vertex


@dataclass
class Kubernetes(Executor):
    """A Kubernetes cluster; `executor` is a `run.KubernetesExecutor` that says all that is not said here."""

    requirements: JobRequirements = field(default_factory=JobRequirements)
    #: Labels and names are those of Google's clusters; any other text for none of that.
    cloud_provider: str = "GOOGLE_KUBERNETES_ENGINE"
    tpu_capability: TpuCapability | None = None
    resources: InitVar[JobRequirements | None] = field(default=None, kw_only=True)
    executor: KubernetesExecutor | None = field(default=None, kw_only=True)

    Spec: ClassVar[type[ExecutorSpec]] = KubernetesSpec

    def __post_init__(self, resources: JobRequirements | None) -> None:
        _requirements(self, resources)


@dataclass
class Slurm(Executor):
    """A Slurm cluster; `executor` is a `run.SlurmExecutor` that says account, partition, tunnel, …"""

    requirements: JobRequirements = field(default_factory=JobRequirements)
    resources: InitVar[JobRequirements | None] = field(default=None, kw_only=True)
    executor: SlurmExecutor | None = field(default=None, kw_only=True)

    Spec: ClassVar[type[ExecutorSpec]] = SlurmSpec

    def __post_init__(self, resources: JobRequirements | None) -> None:
        _requirements(self, resources)


@dataclass
class Skypilot(Executor):
    """SkyPilot's clouds; `executor` is a `run.SkypilotExecutor` that says which, and all else."""

    requirements: JobRequirements = field(default_factory=JobRequirements)
    resources: InitVar[JobRequirements | None] = field(default=None, kw_only=True)
    executor: SkypilotExecutor | None = field(default=None, kw_only=True)

    Spec: ClassVar[type[ExecutorSpec]] = SkypilotSpec

    def __post_init__(self, resources: JobRequirements | None) -> None:
        _requirements(self, resources)
