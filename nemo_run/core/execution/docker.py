"""Jobs in containers of a Docker Engine, here or elsewhere; they outlive whoever launched them."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
    check_whole_job,
    parse_bytes,
    take_second_spelling,
)
from nemo_run.core.execution.docker_engine import (
    JOB_DIR,
    ROLE,
    TOKEN,
    address,
    connect,
    is_socket,
    socket_owner,
)
from nemo_run.core.execution.docker_entrypoint import ONE_STREAM, plan_own, plan_own_from_file
from nemo_run.core.execution.docker_job import (
    LIBRARY,
    PACKAGE,
    RUNDIR,
    START,
    DockerJob,
    from_end,
    is_due,
    needs_keeper,
    written,
)
from nemo_run.core.execution.probing import probe_home
from nemo_run.core.packaging.base import Packager
from nemo_run.core.packaging.git import GitArchivePackager
from nemo_run.core.packaging.image import ImagePackager
from nemo_run.errors import ConfigError, NemoRunError, SubmitError
from nemo_run.shell import Expand, expands, exports, join, through_shell

if TYPE_CHECKING:
    from torchx.specs import Role

#: Docker's own word for no image: nothing can be pulled by this name.
NO_IMAGE = "scratch"
#: Seconds between SIGTERM and SIGKILL.
GRACE = 10.0
#: Settings that hold for a job as a whole, so that all members of a group must agree on them.
_WHOLE_JOB = ("timeout", "monitor_resources", "retries", "network", "shared_network", "base_url")
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
_ULIMIT = re.compile(r"([a-z]+)[=:](-?\d+)(?::(-?\d+))?\Z")
_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


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
        _ulimits(self.ulimits)
        _mounts(self.volumes)

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
        check_whole_job(spec, _WHOLE_JOB)
        request = _request(self, spec)
        return Plan(spec=spec, text=_as_script(request), request=request)

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


# --- planning -------------------------------------------------------------------------------------------


def _request(executor: DockerExecutor, spec: JobSpec) -> dict[str, Any]:
    url = address(executor.base_url)
    same_files = is_socket(url) if executor.same_files is None else executor.same_files
    group = len(spec.members) > 1
    own_network = executor.shared_network
    if group and not own_network and executor.network is None:
        own_network = _name(spec, "")
    folders: list[str] = []
    roles = [
        _plan_role(spec, role, member, own_network, url, same_files, folders)
        for role, member in zip(spec.app.roles, spec.members, strict=True)
    ]
    return {
        "token": spec.token,
        "job_dir": str(spec.job_dir),
        "url": url,
        "same_files": same_files,
        "network": own_network,
        "folders": folders,
        "timeout": executor.timeout,
        "retries": executor.retries,
        "grace": GRACE,
        "monitor_resources": executor.monitor_resources,
        "roles": roles,
    }


def _plan_role(
    spec: JobSpec,
    role: Role,
    executor: Any,
    own_network: str | None,
    url: str,
    same_files: bool,
    folders: list[str],
) -> dict[str, Any]:
    workdir = role.metadata["workdir"]
    if workdir.startswith(f"{RUNDIR}/"):  # else the Engine makes it, and it is root's
        folders.append(os.path.relpath(os.path.normpath(workdir), RUNDIR))
    of_image, build = not role.entrypoint, _build(executor, spec)
    user = executor.user or "" if of_image else _user(executor, url)
    nobody = executor.user is None and not of_image and not user.startswith("0:")
    argv, env, start = _start(role, nobody=nobody)
    kwargs = {
        "image": build["tag"] if build else executor.container_image,
        "command": [*ONE_STREAM, *map(str, argv)],
        "environment": env,
        "working_dir": workdir or None,
        "user": user,
        "init": True,
        "labels": {TOKEN: spec.token, JOB_DIR: str(spec.job_dir), ROLE: role.name},
        "name": _name(spec, role.name if len(spec.members) > 1 else ""),
        # An Engine may be told to throw old lines away, or to send all of them elsewhere.
        "log_config": {"type": "json-file", "config": {}},
        **_limits(executor),
        **_network(executor, own_network, role.name, group=len(spec.members) > 1),
    }
    mounts, binds = _mounts(executor.volumes, spec.job_dir, folders, check=same_files)
    if same_files:
        own = _mount("bind", str(PACKAGE), f"{LIBRARY}/nemo_run", read_only=True)
        mounts = [_mount("bind", str(spec.job_dir), RUNDIR), own, *mounts]
    given = dict(executor.additional_kwargs)
    kwargs["labels"] = {**given.pop("labels", {}), **kwargs["labels"]}
    kwargs["mounts"] = mounts + list(given.pop("mounts", []))
    if binds:
        kwargs["volumes"] = binds
    planned = {"name": role.name, "kwargs": kwargs | given, "start": start, "build": build}
    return _of_image(planned, role) if of_image else planned


def _of_image(planned: dict[str, Any], role: Role) -> dict[str, Any]:
    """The same role, to start what the image says."""
    kwargs, start = dict(planned["kwargs"]), planned["start"]
    if "entrypoint" in kwargs:
        problem = "additional_kwargs holds an entrypoint, and the Script asks for the image's own"
        raise ConfigError(f"DockerExecutor.{problem}; leave one of them out")
    if start is None:
        own = plan_own(role.args, role.env)
    else:
        own = plan_own_from_file(START, role.args)
        start = {**start, "argv": start["argv"][1:], "follow": True}
    del kwargs["command"]
    return {**planned, "kwargs": kwargs, "start": start, "own": own}


def _start(role: Role, *, nobody: bool) -> tuple[list[str], dict[str, Any], dict[str, Any] | None]:
    """What an Engine is told to start, in which environment, and what a file has to say instead of it.

    Args:
        role: What is to be started.
        nobody: Whether the image may know nobody of the user's number.
    """
    argv, env = [role.entrypoint, *role.args], dict(role.env)
    if nobody:
        env = {"HOME": "/tmp", "USER": os.environ.get("USER", "nemo_run")} | env
    if role.metadata["task"] is not None:  # the launching script, which it may be part of, imports nemo_run
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), LIBRARY)))
    told = {n: v for n, v in env.items() if _can_be_told(v) and not isinstance(v, Expand)}
    if all(map(_can_be_told, (*env.values(), *argv))):
        return (through_shell(argv, env) if expands(argv, env) else argv), told, None
    untold = {name: written(value) for name, value in env.items() if name not in told}
    return ["/bin/sh", START], told, {"argv": list(map(written, argv)), "env": untold}


def _build(executor: DockerExecutor, spec: JobSpec) -> dict[str, Any] | None:
    """The image that the job's code is to be built into, if it is."""
    if not isinstance(executor.packager, ImagePackager):
        return None
    context = Path(spec.package["code"]) if spec.package else None
    image = executor.packager.image(executor.container_image, spec.package, context)
    return {**asdict(image), "context": str(context)}


def _can_be_told(word: Any) -> bool:
    """Whether an Engine may be told: it takes nothing but UTF-8, and shows everybody what it is told."""
    if not isinstance(word, str):
        return False
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(spec: JobSpec, role: str) -> str:
    """A name for people to know the job by, that no other job on the Engine has."""
    key = hashlib.sha256("\0".join((spec.token, str(spec.job_dir), role)).encode(errors="surrogateescape"))
    words = "-".join(filter(None, (spec.experiment_id, spec.id, role)))
    return f"{re.sub('[^A-Za-z0-9_.-]+', '_', words)[:100].lstrip('_.-') or 'job'}-{key.hexdigest()[:10]}"


def _user(executor: DockerExecutor, url: str) -> str:
    """Who launches; to a rootless Engine, whose socket is the user's own, that is root."""
    if executor.user is not None:
        return executor.user
    rootless = is_socket(url) and socket_owner(url) == os.getuid() != 0
    return "0:0" if rootless else f"{os.getuid()}:{os.getgid()}"


def _limits(executor: DockerExecutor) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if executor.memory_limit is not None:
        # Without the second, as much again of swap would be allowed.
        limits["mem_limit"] = limits["memswap_limit"] = parse_bytes(executor.memory_limit)
    if executor.cpu_limit is not None:
        limits["nano_cpus"] = executor.cpu_limit * 10**9
    if executor.num_gpus:
        limits["device_requests"] = [{"Driver": "", "Count": executor.num_gpus, "Capabilities": [["gpu"]]}]
    if executor.gpu_ids:
        which = {"DeviceIDs": list(executor.gpu_ids)}
        limits["device_requests"] = [{"Driver": "", **which, "Capabilities": [["gpu"]]}]
    if executor.shm_size is not None:
        limits["shm_size"] = parse_bytes(executor.shm_size)
    if executor.ulimits:
        limits["ulimits"] = _ulimits(executor.ulimits)
    for name in ("runtime", "ipc_mode", "privileged", "healthcheck"):
        if value := getattr(executor, name):
            limits[name] = value
    return limits


def _ulimits(given: Any) -> list[dict[str, Any]]:
    """As Docker's library takes them, from `type=soft:hard` or `type:soft:hard`."""
    limits = []
    for text in given if isinstance(given, (list, tuple)) else [given]:
        if not isinstance(text, str) or not (match := _ULIMIT.match(text)):
            raise ConfigError(
                f'DockerExecutor.ulimits: {text!r} is none; give a list such as ["memlock=-1:-1"]'
            )
        soft = int(match[2])
        limits.append({"Name": match[1], "Soft": soft, "Hard": int(match[3] or soft)})
    return limits


def _shown_gpus(request: Mapping[str, Any]) -> str:
    if which := request.get("DeviceIDs"):
        return f'"device={",".join(which)}"'
    return "all" if request["Count"] < 0 else str(request["Count"])


def _network(executor: DockerExecutor, own: str | None, role: str, *, group: bool) -> dict[str, Any]:
    """A group's members share a network and go by their roles' names there, and by those that are given."""
    network = own or executor.network
    if network is None:
        return {}
    names = {role, re.sub(r"[^A-Za-z0-9_.-]+", "-", role)} if group else set()
    names |= set(executor.aliases)
    if not names or network in ("host", "none", "bridge") or network.startswith("container:"):
        return {"network": network} if network not in ("host", "none") else {"network_mode": network}
    return {"network": network, "networking_config": {network: {"Aliases": sorted(names)}}}


def _mounts(
    volumes: Any, job_dir: Path | None = None, folders: list[str] | None = None, *, check: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """What `volumes` means: mounts, and in Docker's older form those with options that mounts do not have.

    Args:
        volumes: The field.
        job_dir: What /$nemo_run stands for.
        folders: Takes the folders below it that are to be made.
        check: Whether sources must be there.

    Raises:
        ConfigError: one is no mount, or its source is not there.
    """
    mounts, binds = [], []
    for source, target, mode in map(_mount_parts, _listed(volumes)):
        inner = source.removeprefix("/$nemo_run")
        if inner != source and (not inner or inner.startswith("/")):
            if folders is not None and inner.strip("/"):
                folders.append(inner.strip("/"))
            source = str(job_dir or "") + inner
        elif source.startswith(("/", "~")):
            source = os.path.expanduser(source)
            if check and not os.path.exists(source):
                raise ConfigError(
                    f"DockerExecutor.volumes: {source!r} is not there; make it, or mend the path"
                )
        elif not _VOLUME_NAME.match(source):
            raise ConfigError(
                f"DockerExecutor.volumes: {source!r} is neither a path from / or ~ nor a volume's name"
            )
        target = target.replace("/$nemo_run", RUNDIR, 1) if target.startswith("/$nemo_run") else target
        if set(mode.split(",")) <= {"", "ro", "rw"}:
            kind = "bind" if source.startswith("/") else "volume"
            mounts.append(_mount(kind, source, target, read_only="ro" in mode.split(",")))
        else:
            binds.append(f"{source}:{target}:{mode}")
    return mounts, binds


def _mount(kind: str, source: str, target: str, *, read_only: bool = False) -> dict[str, Any]:
    return {"Type": kind, "Source": source, "Target": target, "ReadOnly": read_only}


def _listed(volumes: Any) -> list[Any]:
    if isinstance(volumes, Mapping):
        return list(volumes.items())
    if isinstance(volumes, (list, tuple)):
        return list(volumes)
    raise ConfigError(
        f'DockerExecutor.volumes is {volumes!r}; give a list such as ["/data:/data"], or a dict'
    )


def _mount_parts(entry: Any) -> tuple[str, str, str]:
    """(source, target, mode) of one entry of `volumes`."""
    if isinstance(entry, tuple):
        source, rest = entry
        if isinstance(rest, Mapping) and isinstance(rest.get("bind"), str):
            target, mode = rest["bind"], rest.get("mode", "")
        else:
            target, _, mode = rest.partition(":") if isinstance(rest, str) else ("", "", "")
        parts = [os.fspath(source), target, mode]
    else:
        parts = [*(entry.split(":") if isinstance(entry, str) else []), ""]
    if len(parts) not in (3, 4) or not parts[0] or not parts[1].startswith("/"):
        raise ConfigError(f'DockerExecutor.volumes: {entry!r} is no mount; give it as "/source:/target"')
    return parts[0], parts[1], parts[2]


# --- showing --------------------------------------------------------------------------------------------


def _as_script(request: Mapping[str, Any]) -> str:
    lines = [
        "#!/bin/sh",
        f"# Containers of the Docker Engine at {request['url']}, as `docker run` would make them.",
    ]
    lines += [f"# {name}: {request[name]}" for name in ("timeout", "retries") if request[name]]
    if not request["same_files"]:
        lines.append(
            f"# copied in: {request['job_dir']} as {RUNDIR}; copied out at the end: results, artifacts"
        )
    if request["network"]:
        lines.append(join(["docker", "network", "create", request["network"]]))
    for role in request["roles"]:
        if len(request["roles"]) > 1:
            lines.append(f"\n# --- {role['name']}")
        if role["build"]:
            lines.append(f"# image {role['build']['tag']} is built of the packaged code by")
            lines += [f"#   {line}" for line in role["build"]["dockerfile"].splitlines()]
        lines.append(_as_command(role))
    return "\n".join(lines) + "\n"


def _as_command(role: Mapping[str, Any]) -> str:
    kwargs = dict(role["kwargs"])
    flags = [["--detach"], ["--init"] if kwargs.pop("init") else []]
    image, own = kwargs.pop("image"), role.get("own")
    command = own["args"] if own else kwargs.pop("command")
    for name, flag in _FLAGS.items():
        if kwargs.get(name):
            flags.append([flag, str(kwargs.pop(name))])
    for mount in kwargs.pop("mounts"):
        words = {"type": mount["Type"], "source": mount["Source"], "target": mount["Target"]}
        text = ",".join(f"{name}={value}" for name, value in words.items())
        flags.append(["--mount", text + ",readonly" * mount["ReadOnly"]])
    flags += [["--volume", bind] for bind in kwargs.pop("volumes", ())]
    flags += [
        ["--ulimit", f"{limit['Name']}={limit['Soft']}:{limit['Hard']}"]
        for limit in kwargs.pop("ulimits", ())
    ]
    for request in kwargs.pop("device_requests", ()):
        flags.append(["--gpus", _shown_gpus(request)])
    flags += [["--privileged"]] if kwargs.pop("privileged", False) else []
    for endpoint in kwargs.pop("networking_config", {}).values():
        flags += [["--network-alias", alias] for alias in endpoint["Aliases"]]
    flags += [["--label", f"{name}={value}"] for name, value in kwargs.pop("labels").items()]
    flags += [["--env", f"{name}={value}"] for name, value in kwargs.pop("environment").items()]
    kwargs.pop("log_config")
    kwargs.pop("memswap_limit", None)
    rest = [f"# and {name}={value!r}" for name, value in kwargs.items() if value is not None]
    if own:
        before = join(own["prefix"])
        rest.append(f"# the image's ENTRYPOINT, or where it has none its CMD, is started by {before}")
    lines = " \\\n    ".join(
        ["docker run", *(join(words) for words in flags if words), join([image, *command])]
    )
    return "\n".join([*rest, lines, *_shown_start(role["start"])])


#: Arguments of Docker's library, and what the command calls them.
_FLAGS = {
    "name": "--name", "user": "--user", "working_dir": "--workdir", "network": "--network",
    "network_mode": "--network", "mem_limit": "--memory", "runtime": "--runtime", "ipc_mode": "--ipc",
    "shm_size": "--shm-size",
}  # fmt: skip


def _shown_start(start: Mapping[str, Any] | None) -> list[str]:
    """What lies in the file that a container starts from, with secrets by name."""
    if start is None:
        return []

    def shown(value: Any) -> str:
        if isinstance(value, Mapping) and "_secret_" in value:
            from nemo_run.secret import Secret

            return f"<secret {Secret.from_source(value['_secret_']).name}>"
        return Expand(value["_expand_"]) if isinstance(value, Mapping) else str(value)

    env = {name: shown(value) for name, value in start["env"].items()}
    given = '"$@" ' if start.get("follow") else ""
    text = f"{exports(env)}exec {given}{join(map(shown, start['argv']))}"
    return [f"# {START} is put into the container before it starts, and removes itself. It says:"] + [
        f"# {line}" for line in text.split("\n")
    ]
