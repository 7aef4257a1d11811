"""Jobs in containers of a Docker Engine, here or elsewhere; they outlive whoever launched them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nemo_run.core.execution.base import (
    AppState,
    Capability,
    Check,
    Executor,
    JobHandle,
    JobSpec,
    JobStatus,
    Plan,
    class_name,
)
from nemo_run.core.execution.checks import (
    check_count,
    check_env,
    check_kind,
    parse_bytes,
    take_second_spelling,
)
from nemo_run.core.execution.docker_engine import (
    JOB_DIR,
    TOKEN,
    address,
    connect,
)
from nemo_run.core.execution.docker_files import LIBRARY, RUNDIR
from nemo_run.core.execution.docker_job import DockerJob, from_end, needs_keeper
from nemo_run.core.execution.docker_plan import make_plan, mounts_of, ulimits
from nemo_run.core.execution.docker_state import is_due
from nemo_run.core.execution.probing import probe_home
from nemo_run.core.packaging.base import Packager
from nemo_run.core.packaging.git import GitArchivePackager
from nemo_run.core.packaging.image import ImagePackager
from nemo_run.errors import ConfigError, NemoRunError, SubmitError

if TYPE_CHECKING:
    pass

#: Docker's own word for no image: nothing can be pulled by this name.
NO_IMAGE = "scratch"
#: Arguments of Docker's library that fields stand for, or that a job could not be found again with.
_OURS = {
    "command": "the task", "detach": "nothing", "environment": "env_vars", "image": "container_image",
    "name": "nothing", "auto_remove": "nothing", "remove": "nothing", "stdin_open": "nothing",
    "tty": "nothing", "user": "user", "volumes": "volumes", "working_dir": "working_dir",
    "network": "network", "network_mode": "network", "mem_limit": "memory_limit", "nano_cpus": "cpu_limit",
    "restart_policy": "retries", "runtime": "runtime",
    "shm_size": "shm_size", "ipc_mode": "ipc_mode", "privileged": "privileged",
    "ulimits": "ulimits", "healthcheck": "healthcheck", "device_requests": "num_gpus",
}  # fmt: skip


@dataclass(kw_only=True)
class DockerExecutor(Executor):
    """Runs tasks in containers; a Python task needs no more of the image than a `python3`.

    The job's folder is /nemo_run in the container, the packaged code /nemo_run/code, where a task starts.
    """

    #: The image; pulled where the Engine does not have it.
    container_image: str = ""
    #: How the code gets there.
    packager: Packager = field(default_factory=GitArchivePackager)
    #: Second spelling of `container_image`.
    image: str | None = field(default=None, repr=False)
    #: Second spelling of `env_vars`.
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    #: What of the Engine's machine the container sees: "/source:/target", "/source:/target:ro",
    #: "name:/target" for a volume, or a dict from source to target. /$nemo_run/… lies in the job's folder.
    volumes: list[str] | dict[str, Any] = field(default_factory=list)
    #: GPUs of the Engine's machine; -1 for all.
    num_gpus: int | None = None
    #: Which they are, by number or UUID, instead.
    gpu_ids: list[str] = field(default_factory=list)
    #: The Engine's runtime, such as "nvidia".
    runtime: str | None = None
    #: "host" for the machine's shared memory; None for the container's own.
    ipc_mode: str | None = None
    #: Size of /dev/shm: bytes, or text such as "30g".
    shm_size: str | int | None = None
    #: Limits such as "memlock=-1:-1", "stack:67108864:67108864", "nofile=1024".
    ulimits: list[str] = field(default_factory=list)
    #: A network of the Engine's; None for its default one, and for a group one of its own.
    network: str | None = None
    #: Instead a network that is made where it is missing, and removed with the last that is in it.
    shared_network: str | None = None
    #: Names by which others in its network find the container, beside its role's in a group.
    aliases: list[str] = field(default_factory=list)
    #: Give the container all rights on the machine.
    privileged: bool = False
    #: As Docker's library takes it: {"test": [...], "interval": ...}.
    healthcheck: dict[str, Any] = field(default_factory=dict)
    #: Arguments of `containers.create` of Docker's library that no field stands for.
    additional_kwargs: dict[str, Any] = field(default_factory=dict)
    #: Processes a launcher such as torchrun starts; without a launcher a task is one process.
    ntasks_per_node: int = 1
    #: Whom a task runs as: "uid:gid", or a name in the image; None for who launches, "" for the image's.
    user: str | None = None
    #: The Engine, such as "ssh://user@host" or "tcp://host:2375"; None for DOCKER_HOST, else the one here.
    base_url: str | None = None
    #: Whether the Engine sees this machine's files; None for what its address says. Else they are copied.
    same_files: bool | None = None
    #: Jobs of an experiment that run at once; None for as many as there are processors here.
    max_parallel: int | None = None

    capabilities: ClassVar[Capability] = Capability.DETACH | Capability.GROUPS | Capability.IMAGES
    #: Starting a container is waiting for the Engine.
    submit_workers: ClassVar[int] = 16
    #: Ends are heard of, so that there is little to be gained by looking.
    poll_interval: ClassVar[tuple[float, float]] = (0.02, 1.0)

    def check(self) -> None:
        """Also refuse a missing image, mounts and limits that no Engine would understand, and what we set."""
        take_second_spelling(self, "image", "container_image", empty="")
        for name in ("environment", "env_vars"):
            check_env(f"DockerExecutor.{name}", getattr(self, name))
        for name in self.environment.keys() & self.env_vars.keys():
            if self.environment[name] != self.env_vars[name]:
                problem = f"DockerExecutor.environment and env_vars differ in {name!r}"
                raise ConfigError(f"{problem}; use env_vars alone")
        self.env_vars = {**self.env_vars, **self.environment}
        self.environment = {}
        super().check()
        check_kind(self, "container_image", str)
        if isinstance(self.packager, ImagePackager):
            self.packager.image(self.container_image, None, None)
        elif not self.container_image:
            raise ConfigError('DockerExecutor has no container_image; give one such as "python:3.12"')
        check_count(self, "ntasks_per_node", 1)
        check_count(self, "num_gpus", -1, optional=True)
        check_count(self, "max_parallel", 1, optional=True)
        check_kind(self, "privileged", bool)
        for name in ("runtime", "ipc_mode", "network", "shared_network", "user", "base_url"):
            check_kind(self, name, str, type(None))
        for one, other in (("network", "shared_network"), ("num_gpus", "gpu_ids")):
            if getattr(self, one) and getattr(self, other):
                raise ConfigError(f"DockerExecutor has {one} and {other}; give one of them")
        for name in ("aliases", "gpu_ids"):
            check_kind(self, name, list)
        for name in ("healthcheck", "additional_kwargs"):
            check_kind(self, name, dict)
        if self.shm_size is not None:
            parse_bytes(self.shm_size, "DockerExecutor.shm_size")
        if not isinstance(self.additional_kwargs.get("labels", {}), Mapping):
            raise ConfigError("DockerExecutor.additional_kwargs: give labels as a dict")
        for name in self.additional_kwargs:
            if name in _OURS:
                raise ConfigError(
                    f"DockerExecutor.additional_kwargs holds {name!r}, which nemo_run sets; use {_OURS[name]}"
                )
        ulimits(self.ulimits)
        mounts_of(self.volumes)

    def nproc_per_node(self) -> int:
        """As told."""
        return self.ntasks_per_node

    def rundir(self, job_dir: Path) -> Path:
        """The same for every job."""
        return Path(RUNDIR)

    def runner_path(self) -> str:
        """This very nemo_run is mounted, so that the image needs none."""
        return f"{LIBRARY}/nemo_run/core/runner.py"

    def shares_files(self) -> bool:
        """A container sees what is mounted."""
        return False

    def parallel_limit(self) -> int | None:
        """`max_parallel`, or as many as there are processors here."""
        return self.max_parallel or super().parallel_limit()

    def cluster(self) -> str:
        """The Engine's address."""
        return address(self.base_url)

    def info(self) -> str:
        """Image and Engine."""
        image = self.container_image or getattr(self.packager, "base_image", "")
        return f"{'any image' if image == NO_IMAGE else image} on the Docker Engine at {self.cluster()}"

    @classmethod
    def bare(cls) -> DockerExecutor:
        """With an image of which nothing is asked."""
        return cls(container_image=NO_IMAGE)

    def probe(self) -> Iterator[Check]:
        """The Engine, the image, and the GPUs and the runtime that are asked for."""
        yield probe_home()
        try:
            about = connect(self.cluster()).about()
        except NemoRunError as exc:
            yield Check(name="engine", ok=False, found=str(exc))
            return
        version, system = about["ServerVersion"], about["OperatingSystem"]
        yield Check(name="engine", ok=True, found=f"{self.cluster()}, version {version} on {system}")
        if self.container_image not in ("", NO_IMAGE):
            yield self._probe_image()
        if self.runtime or self.num_gpus or self.gpu_ids:
            yield self._probe_runtime(about)

    def _probe_image(self) -> Check:
        engine, image = connect(self.cluster()), self.container_image
        try:
            if engine.has_image(image):
                return Check(name="image", ok=True, found=f"{image} is on the Engine")
            engine.check_image(image)
        except SubmitError as exc:
            return Check(name="image", ok=False, found=str(exc))
        return Check(name="image", ok=True, found=f"{image} will be pulled when the first job needs it")

    def _probe_runtime(self, about: Mapping[str, Any]) -> Check:
        wanted, known = self.runtime or "nvidia", sorted(about.get("Runtimes") or ())
        found = f"the Engine has {', '.join(known) or 'none'}; asked for is {wanted}"
        step = "install the NVIDIA Container Toolkit on the Engine's machine, or leave num_gpus out"
        ok = wanted in known or (not self.runtime and bool(about.get("DiscoveredDevices")))
        return Check(name="runtime", ok=ok, found=found, step="" if ok else step)

    # --- the backend ------------------------------------------------------------------------------------

    def plan(self, spec: JobSpec) -> Plan:
        """What Docker's library is told for each member, and the same as `docker run` lines."""
        return make_plan(self, spec)

    def submit(self, plan: Plan) -> JobHandle:
        """Start the containers, all or none."""
        DockerJob(plan.spec.job_dir).submit(plan.request)
        return self._handle(plan.request["token"], plan.spec.job_dir, plan.request["url"])

    def find(self, token: str) -> JobHandle | None:
        """By what is recorded in the job's folder, and where that is no end by the containers' labels."""
        job = DockerJob(job_dir := Path(self.job_dir))
        if (end := job.end()) and end["token"] == token:
            return self._handle(token, job_dir, self.cluster())
        record = job.record()
        if record is None or record["request"]["token"] != token:
            return None
        url = record["request"]["url"]
        return self._handle(token, job_dir, url) if connect(url).containers(token, str(job_dir)) else None

    def _handle(self, token: str, job_dir: Path, url: str) -> JobHandle:
        data = {"job_dir": str(job_dir), "url": url}
        return JobHandle(executor=class_name(type(self)), id=token, data=data)

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """From the jobs' folders, and by one list of each Engine's containers; what is due is done."""
        asked: dict[str, list[JobHandle]] = defaultdict(list)
        seen = {handle.id: status for handle in handles if (status := _settled(handle))}
        for handle in handles:
            if handle.id not in seen:
                asked[handle.data["url"]].append(handle)
        for url, group in asked.items():
            seen |= _ask(url, group)
        return [seen[handle.id] for handle in handles]

    def await_news(self, handles: Sequence[JobHandle], seconds: float) -> None:
        """Wait for the Engine to say that a container has ended."""
        try:
            connect(self.cluster()).await_news(seconds)
        except SubmitError:
            time.sleep(seconds)

    def cancel(self, handle: JobHandle) -> None:
        """SIGTERM to every container, and SIGKILL to those that are still there after 10 s."""
        if (job_dir := Path(handle.data["job_dir"])).is_dir():
            DockerJob(job_dir).cancel()

    def logs(self, handle: JobHandle, role: str, replica: int = 0, *, follow: bool = False) -> Iterator[str]:
        """From the Engine while the job runs, then from its folder."""
        return DockerJob(Path(handle.data["job_dir"])).lines(role, follow=follow)


# --- looking --------------------------------------------------------------------------------------------


def _settled(handle: JobHandle) -> JobStatus | None:
    """What can be said without an Engine."""
    job_dir = Path(handle.data["job_dir"])
    job = DockerJob(job_dir)
    if (end := job.end()) and not job.record():
        return from_end(end)
    if not job_dir.is_dir():
        return JobStatus(state=AppState.UNKNOWN, message=f"its folder is gone: {job_dir}")
    return None


def _ask(url: str, handles: Sequence[JobHandle]) -> dict[str, JobStatus]:
    """Jobs whose containers all run, with nothing due, need no closer look."""
    try:
        running = defaultdict(set)
        for there in connect(url).containers():
            if there["State"] == "running":
                running[there["Labels"][TOKEN], there["Labels"].get(JOB_DIR)].add(there["Names"][0][1:])
        return {handle.id: _look(handle, running) for handle in handles}
    except SubmitError as exc:
        return {handle.id: JobStatus(state=AppState.UNKNOWN, message=str(exc)) for handle in handles}


def _look(handle: JobHandle, running: Mapping[tuple[str, str], set[str]]) -> JobStatus:
    job = DockerJob(Path(handle.data["job_dir"]))
    if (record := job.record()) is None or is_due(record, running[handle.id, handle.data["job_dir"]]):
        status = job.tend()
    else:
        status = JobStatus(state=AppState.RUNNING, attempt=record["attempt"], started=record["started"])
    if record and status.state == AppState.RUNNING and needs_keeper(record["request"]):
        job.ensure_keeper()
    return status
