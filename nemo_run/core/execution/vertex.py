"""Jobs on Vertex AI: custom jobs by google-auth and REST, their files by a bucket of Cloud Storage."""

from __future__ import annotations

import configparser
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from nemo_run.core.execution import vertex_machines
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
    check_seconds,
    parse_bytes,
    take_second_spelling,
)
from nemo_run.core.execution.probing import probe_home
from nemo_run.core.execution.vertex_client import Bucket, Jobs, check_credentials
from nemo_run.core.packaging.base import Packager
from nemo_run.core.packaging.git import GitArchivePackager
from nemo_run.core.packaging.image import ImagePackager, is_reference
from nemo_run.errors import ConfigError, NemoRunError, UnsupportedError, suggestion
from nemo_run.shell import Expand

#: The job's folder as its task sees it, and where its Python finds nemo_run there.
RUNDIR, LIBRARY = "/tmp/nemo_run", "/tmp/nemo_run/lib"
#: What stands for an image or a project of which nothing is asked.
NONE = "none"
#: Strategies of scheduling, by the words for them.
STRATEGIES = {"standard": "STANDARD", "spot": "SPOT", "flex-start": "FLEX_START"}
_PLACES = ("us", "europe", "asia", "australia", "northamerica", "southamerica", "me", "africa")
_REGION = re.compile(rf"({'|'.join(_PLACES)})-(central|(north|south)(east|west)?|east|west)[1-9]\d?")
#: Regions of custom training, for suggestions.
_REGIONS = (
    "us-central1", "us-east1", "us-east4", "us-east5", "us-south1", "us-west1", "us-west2", "us-west3",
    "us-west4", "northamerica-northeast1", "northamerica-northeast2", "southamerica-east1",
    "europe-central2", "europe-north1", "europe-southwest1", "europe-west1", "europe-west2", "europe-west3",
    "europe-west4", "europe-west6", "europe-west8", "europe-west9", "asia-east1", "asia-east2",
    "asia-northeast1", "asia-northeast3", "asia-south1", "asia-southeast1", "asia-southeast2",
    "australia-southeast1", "me-west1", "me-central1", "africa-south1",
)  # fmt: skip
_PROJECT = re.compile(r"[a-z0-9][a-z0-9.:-]{1,61}[a-z0-9]\Z")
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[A-Za-z0-9._/-]*)?\Z")
_LABEL = re.compile(r"[\w-]{1,63}\Z")
_NETWORK = re.compile(r"projects/[^/]+/global/networks/[^/]+\Z")
_RESERVATION = re.compile(r"projects/[^/]+/zones/[^/]+/reservations/[^/]+\Z")


@dataclass(kw_only=True)
class VertexExecutor(Executor):
    """Runs tasks as custom jobs of Vertex AI; a Python task needs no more of the image than a `python3`.

    The job's folder is /tmp/nemo_run in the container, the packaged code /tmp/nemo_run/code, where a task
    starts; both get there through `staging_bucket`, and so do results and artifacts on their way back. An
    image that has all it needs, and a `run.Script` of it, does without.
    """

    #: The image, in a registry that Vertex AI can pull from.
    container_image: str = ""
    #: How the code gets there.
    packager: Packager = field(default_factory=GitArchivePackager)
    #: Second spelling of `container_image`.
    image: str | None = field(default=None, repr=False)
    #: The project's id; by default that of GOOGLE_CLOUD_PROJECT, else the one that gcloud uses.
    project: str = ""
    #: Where jobs run.
    region: str = "us-central1"
    #: A bucket in that region, or a folder in one: "gs://bucket/folder".
    staging_bucket: str | None = None
    #: Whom jobs run as; None for Vertex AI's own service agent.
    service_account: str | None = None
    #: Machines of a job: one, or the first and its workers.
    nodes: int = 1
    #: What kind of machine each is; by default the cheapest that has what is asked for.
    machine_type: str | None = None
    #: Processors that each has at least.
    cpus: int | None = None
    #: Memory that each has at least: bytes, or text such as "60G".
    memory: str | int | None = None
    #: GPUs of each.
    gpus_per_node: int | None = None
    #: Their kind: "t4", "h100", "nvidia-tesla-t4".
    gpu_type: str | None = None
    #: TPUs instead: "v2", "v3", "v5e", "v6e", "v7x".
    tpu_type: str | None = None
    #: How these are laid out: "2x4"; by default the smallest.
    tpu_topology: str | None = None
    #: How many they are instead: cores of v2 and v3, chips of the others.
    tpus: int | None = None
    #: Processes a launcher such as torchrun starts on each node; by default one for each GPU.
    ntasks_per_node: int | None = None
    #: Size of each machine's disk in GB, from 100 on; None for 100.
    disk_size_gb: int | None = None
    #: "pd-ssd", "pd-standard" or "hyperdisk-balanced"; None for what suits the machine.
    disk_type: str | None = None
    #: Which machines are taken: "standard", "spot" (may be lost at any time), "flex-start" (when there are).
    scheduling: str | None = None
    #: Seconds to wait for them at most, with "flex-start".
    max_wait: float | None = None
    #: Start all replicas again when one of them is started again.
    restart_on_worker_restart: bool = False
    #: Whether Vertex AI may start a job again after an error that is not the task's.
    retry_internal_errors: bool = True
    #: "any", "none", or reservations by full name: "projects/…/zones/…/reservations/…".
    reservation: str | list[str] | None = None
    #: A peered network by full name: "projects/<number>/global/networks/<name>".
    network: str | None = None
    #: A Vertex AI TensorBoard: its number, or its full name; it needs `service_account`.
    tensorboard: str | None = None
    #: Where AIP_MODEL_DIR, AIP_CHECKPOINT_DIR and AIP_TENSORBOARD_LOG_DIR of the task lie: "gs://…".
    base_output_dir: str | None = None
    #: Machines that are kept for jobs: the id of a persistent resource.
    persistent_resource: str | None = None
    #: Let people open a shell in the containers while they run.
    enable_web_access: bool = False
    #: Labels of the jobs: lower-case letters, digits, "_" and "-".
    labels: dict[str, str] = field(default_factory=dict)
    #: Where Vertex AI is; by default "https://<region>-aiplatform.googleapis.com".
    api_endpoint: str | None = None
    #: Where Cloud Storage is.
    storage_endpoint: str = "https://storage.googleapis.com"
    #: Where Cloud Logging is.
    logging_endpoint: str = "https://logging.googleapis.com"

    capabilities: ClassVar[Capability] = Capability.DETACH | Capability.GROUPS | Capability.IMAGES
    remote: ClassVar[bool] = True
    submit_workers: ClassVar[int] = 8
    poll_interval: ClassVar[tuple[float, float]] = (2.0, 20.0)
    #: Where containers see buckets as folders.
    mounted: ClassVar[str] = "/gcs"
    #: Seconds between two looks at a log that is followed: a project may look once a second.
    log_interval: ClassVar[float] = 5.0
    #: Seconds by which the last lines of a log, and the reason of a failure, may come after a job's end.
    log_lag: ClassVar[float] = 15.0
    error_lag: ClassVar[float] = 90.0

    def check(self) -> None:
        """Also refuse names that Google Cloud would not understand, and machines that it does not have."""
        take_second_spelling(self, "image", "container_image", empty="")
        self.project = self.project or known_project()
        super().check()
        self._check_image()
        self._check_texts()
        self._check_labels()
        for name in ("nodes", "ntasks_per_node", "cpus", "gpus_per_node", "tpus"):
            check_count(self, name, 1, optional=name != "nodes")
        check_count(self, "disk_size_gb", 100, optional=True)
        check_seconds(self, "max_wait")
        for name in ("restart_on_worker_restart", "retry_internal_errors", "enable_web_access"):
            check_kind(self, name, bool)
        self.reservation_affinity()
        try:
            self.machine()
        except ConfigError as exc:
            raise ConfigError(f"VertexExecutor: {exc}") from exc
        if self.nodes > 1 and self.tpu_type:
            problem = "TPUs are one machine to Vertex AI, however many hosts their topology has"
            raise ConfigError(f"VertexExecutor.nodes is {self.nodes}: {problem}; leave nodes out")

    def _check_image(self) -> None:
        check_kind(self, "container_image", str)
        if isinstance(self.packager, ImagePackager):
            self.packager.image(self.container_image, None, None)
            if not self.packager.push_image_tag:
                raise ConfigError(
                    "Vertex AI pulls images from a registry; give ImagePackager a"
                    ' push_image_tag="us-docker.pkg.dev/project/repository/name:1"'
                )
        elif not self.container_image:
            example = "us-docker.pkg.dev/project/repository/name:1"
            raise ConfigError(f'VertexExecutor has no container_image; give one such as "{example}"')
        elif not is_reference(self.container_image):
            raise ConfigError(f"VertexExecutor.container_image is {self.container_image!r}; that is no image")

    def _check_texts(self) -> None:
        if not self.project:
            raise ConfigError(
                "VertexExecutor has no project; give its id (project=…), `export GOOGLE_CLOUD_PROJECT=…`, or"
                " `gcloud config set project …`"
            )
        self._matches("project", _PROJECT, "a project's id, such as my-project-123")
        if not isinstance(self.region, str) or not _REGION.fullmatch(self.region):
            near = suggestion(str(self.region), _REGIONS)
            raise ConfigError(f"VertexExecutor.region is {self.region!r}, which is no region{near}")
        for name in ("staging_bucket", "base_output_dir"):
            self._matches(name, _BUCKET, "gs://bucket or gs://bucket/folder")
        self._matches("network", _NETWORK, 'a full name: "projects/<number>/global/networks/<name>"')
        self._matches("service_account", re.compile(r"\S+@\S+\Z"), "its e-mail address")
        for name in ("machine_type", "gpu_type", "tpu_type", "tpu_topology", "persistent_resource"):
            check_kind(self, name, str, type(None))
        self._matches(
            "disk_type", re.compile("pd-ssd|pd-standard|hyperdisk-balanced"), '"pd-ssd" or the like'
        )
        self._matches("scheduling", re.compile("|".join(STRATEGIES)), f"one of {', '.join(STRATEGIES)}")
        for name in ("api_endpoint", "storage_endpoint", "logging_endpoint"):
            self._matches(name, re.compile(r"https?://[^/\s]+\Z"), 'an address such as "https://host"')
        self._matches(
            "tensorboard", re.compile(r"\d+|projects/.+/tensorboards/\d+"), "its number or full name"
        )
        if self.tensorboard and not self.service_account:
            raise ConfigError("VertexExecutor.tensorboard needs a service_account that may write to it")

    def _matches(self, name: str, pattern: re.Pattern[str], wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
            raise ConfigError(f"VertexExecutor.{name} is {value!r}; give {wanted}")

    def _check_labels(self) -> None:
        check_kind(self, "labels", dict)
        for key, value in self.labels.items():
            texts = isinstance(key, str) and isinstance(value, str)
            fits = texts and _LABEL.match(key) and key[0].isalpha() and (not value or _LABEL.match(value))
            if not fits or (key + value).lower() != key + value or key.startswith("nemo_run"):
                raise ConfigError(
                    f"VertexExecutor.labels: {key!r}: {value!r} is none; up to 63 lower-case letters, digits,"
                    ' "_" and "-" each, the key from a letter on and not from "nemo_run" on'
                )

    # --- what it means ----------------------------------------------------------------------------------

    def machine(self) -> vertex_machines.Machine:
        """What each of its machines is.

        Raises:
            ConfigError: there is none like that.
        """
        return vertex_machines.choose(
            machine_type=self.machine_type,
            cpus=self.cpus,
            memory=None if self.memory is None else parse_bytes(self.memory, "memory"),
            gpu_type=self.gpu_type,
            gpus=self.gpus_per_node,
            tpu_type=self.tpu_type,
            tpu_topology=self.tpu_topology,
            tpus=self.tpus,
        )

    def reservation_affinity(self) -> dict[str, Any] | None:
        """Which reserved machines are used, as a `MachineSpec` says it.

        Raises:
            ConfigError: that is no reservation.
        """
        if self.reservation is None:
            return None
        if self.reservation in ("any", "none"):
            return {
                "reservationAffinityType": f"{str(self.reservation).upper()}_RESERVATION".replace(
                    "NONE", "NO"
                )
            }
        names = [self.reservation] if isinstance(self.reservation, str) else self.reservation
        for name in names:
            if not isinstance(name, str) or not _RESERVATION.match(name):
                wanted = '"any", "none" or full names: "projects/…/zones/…/reservations/…"'
                raise ConfigError(f"VertexExecutor.reservation is {name!r}; give {wanted}")
        return {
            "reservationAffinityType": "SPECIFIC_RESERVATION",
            "key": "compute.googleapis.com/reservation-name",
            "values": list(names),
        }

    @property
    def parent(self) -> str:
        """Where its jobs are, by name."""
        return f"projects/{self.project}/locations/{self.region}"

    @property
    def endpoint(self) -> str:
        """Where Vertex AI is."""
        return self.api_endpoint or f"https://{self.region}-aiplatform.googleapis.com"

    def nnodes(self) -> int:
        """As told."""
        return self.nodes

    def nproc_per_node(self) -> int:
        """As told, or one for each GPU."""
        gpus = 0 if self.tpu_type else self.machine().accelerator_count
        return self.ntasks_per_node or gpus or 1

    def replicas(self) -> Sequence[int]:
        """One log for each node."""
        return range(self.nodes)

    def topology(self) -> Topology:
        """What vertex_start.sh finds out on each node."""
        several = self.nodes > 1
        return Topology(
            nodes=self.nodes,
            procs_per_node=self.nproc_per_node(),
            head_address=Expand("$MASTER_ADDR") if several else "localhost",
            head_port=Expand("$MASTER_PORT") if several else "",
            node_rank=Expand("$NODE_RANK") if several else "0",
        )

    def rundir(self, job_dir: Path) -> Path:
        """The same for every job."""
        return Path(RUNDIR)

    def runner_path(self) -> str:
        """This very nemo_run is brought there, so that the image needs none."""
        return f"{LIBRARY}/nemo_run/core/runner.py"

    def cluster(self) -> str:
        """Endpoint, project and region."""
        return f"{self.endpoint}/{self.parent}"

    def info(self) -> str:
        """Image, project and region."""
        image = self.container_image or getattr(self.packager, "base_image", "")
        project = "any project" if self.project == NONE else self.project
        return f"{'any image' if image == NONE else image} on Vertex AI, {project} in {self.region}"

    # --- looking at what it needs -----------------------------------------------------------------------

    @classmethod
    def bare(cls) -> VertexExecutor:
        """With an image of which nothing is asked, and the project that is usual here."""
        return cls(container_image=NONE, project=known_project() or NONE)

    def probe(self) -> Iterator[Check]:
        """Credentials, project, machine, whether Vertex AI lets us in, and the bucket."""
        yield probe_home()
        yield Check(name="machine", ok=True, found=f"{self.nodes} × {self.machine()}")
        if self.project == NONE:
            step = "give project=…, or `gcloud config set project …`"
            yield Check(name="project", ok=False, found="none is given", step=step)
            return
        if self.endpoint.startswith("https://"):
            try:
                whose = check_credentials() or "no project of their own"
            except NemoRunError as exc:
                yield Check(name="credentials", ok=False, found=str(exc))
                return
            yield Check(name="credentials", ok=True, found=whose)
        yield self._probe("vertex", f"{self.endpoint}, {self.parent}", Jobs(self.endpoint, self.parent))
        if self.staging_bucket:
            bucket, folder = self.staging()
            yield self._probe("bucket", f"gs://{bucket.name}/{folder}", bucket)
        else:
            found = "none; enough for images that have all they need, and no Python tasks"
            yield Check(name="bucket", ok=True, found=found)

    def _probe(self, name: str, what: str, there: Jobs | Bucket) -> Check:
        try:
            there.look()
        except NemoRunError as exc:
            return Check(name=name, ok=False, found=str(exc))
        return Check(name=name, ok=True, found=what)

    def staging(self) -> tuple[Bucket, str]:
        """The bucket, and the folder in it below which everything lies; "" or one that ends in a slash."""
        name, _, folder = str(self.staging_bucket).removeprefix("gs://").partition("/")
        return Bucket(self.storage_endpoint, name), f"{folder.strip('/')}/" if folder.strip("/") else ""

    # --- the backend ------------------------------------------------------------------------------------

    def plan(self, spec: JobSpec) -> Plan:
        """The custom job, as it would be sent."""
        from nemo_run.core.execution import vertex_plan

        return vertex_plan.plan(self, spec)

    def connect(self) -> None:
        """Find out whether Vertex AI lets us in, before anything is written."""
        Jobs(self.endpoint, self.parent).look()

    def submit(self, plan: Plan) -> JobHandle:
        """Bring the files to the bucket, then create the custom job, unless an earlier try has."""
        from nemo_run.core.execution import vertex_job

        return vertex_job.submit(plan, class_name(type(self)))

    def find(self, token: str) -> JobHandle | None:
        """By what is recorded in the job's folder, else by its label."""
        from nemo_run.core.execution import vertex_job

        return vertex_job.find(token, Path(self.job_dir), class_name(type(self)))

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """One question for each experiment; what an ended job left is brought home first."""
        from nemo_run.core.execution import vertex_job

        return vertex_job.statuses(self, handles)

    def await_news(self, handles: Sequence[JobHandle], seconds: float) -> None:
        """Nobody tells."""
        time.sleep(seconds)

    def cancel(self, handle: JobHandle) -> None:
        """Ask Vertex AI to end it."""
        Jobs(handle.data["endpoint"], handle.data["parent"]).cancel(handle.data["name"])

    def logs(self, handle: JobHandle, role: str, replica: int = 0, *, follow: bool = False) -> Iterator[str]:
        """From Cloud Logging while the job runs, then from its folder."""
        from nemo_run.core.execution import vertex_job

        return vertex_job.lines(self, handle, role, replica, follow=follow)


def known_project() -> str:
    """The project that the environment names, else that of gcloud's active configuration; empty for none."""
    for name in ("GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT"):
        if project := os.environ.get(name):
            return project
    folder = Path(os.environ.get("CLOUDSDK_CONFIG") or Path.home() / ".config" / "gcloud")
    settings = configparser.ConfigParser(interpolation=None)
    try:
        active = (
            os.environ.get("CLOUDSDK_ACTIVE_CONFIG_NAME") or (folder / "active_config").read_text().strip()
        )
        settings.read(folder / "configurations" / f"config_{active}", encoding="utf-8")
    except (OSError, ValueError, configparser.Error):  # nobody has set gcloud up, or not in a way we know
        return ""
    return settings.get("core", "project", fallback="")


def unable(capability: str, why: str) -> UnsupportedError:
    """Something that Vertex AI has no means for."""
    return UnsupportedError(f"VertexExecutor {why}", executor="VertexExecutor", capability=capability)
