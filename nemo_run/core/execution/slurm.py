"""Jobs of a Slurm cluster, from its login node or over SSH; with Pyxis in containers, and without."""

from __future__ import annotations

import functools
import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Any, ClassVar

from nemo_run.core import runner
from nemo_run.core.execution import slurm_check, slurm_home, slurm_job, slurm_logs, slurm_submit
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
from nemo_run.core.execution.checks import check_count, check_kind, check_whole_job
from nemo_run.core.execution.launcher import SlurmRay, get_launcher
from nemo_run.core.execution.slurm_queue import indices
from nemo_run.core.execution.slurm_script import (
    LIBRARY,
    RUNDIR,
    dependency,
    environment,
    job_name,
    remote_path,
    render_sbatch,
    shown,
    texts,
    unmarked,
)
from nemo_run.core.packaging.base import Packager
from nemo_run.core.packaging.git import GitArchivePackager
from nemo_run.core.tunnel.base import Tunnel
from nemo_run.core.tunnel.local import LocalTunnel
from nemo_run.errors import ConfigError, NemoRunError, UnsupportedError
from nemo_run.shell import Expand

logger = logging.getLogger(__name__)

#: How long a job may take where nobody says.
DEFAULT_TIME = "00:10:00"
#: Settings that hold for a group as a whole, so that all its members must agree on them.
_WHOLE_JOB = (
    "tunnel", "retries", "timeout", "heterogeneous", "dependencies", "dependency_type", "array", "comment",
    "monitor_group_job", "monitor_group_job_wait_time",
)  # fmt: skip
#: And on these where they share one allocation.
_ONE_ALLOCATION = (
    "account", "partition", "qos", "time", "mem", "mem_per_gpu", "mem_per_cpu", "memory_limit", "constraint",
    "exclude", "exclusive", "signal", "requeue_on_timeout", "additional_parameters",
)  # fmt: skip
#: Options of sbatch that a field stands for, or without which a job could not be found again.
_OURS = {
    "array": "array", "chdir": "working_dir", "comment": "comment", "dependency": "dependencies",
    "job_name": "job_details", "output": "job_details", "error": "job_details", "wrap": "nothing",
    "parsable": "nothing", "test_only": "nothing", "wait": "nothing", "hold": "nothing",
}  # fmt: skip
_DEPENDENCY_TYPES = (
    "after",
    "afterany",
    "afterburstbuffer",
    "aftercorr",
    "afternotok",
    "afterok",
    "singleton",
)
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?\Z")
_ENDLESS = ("unlimited", "infinite")
_ARRAY = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?\Z")
#: Signals by which Slurm itself ends and stops jobs, and that of a child's end.
_TAKEN = (Signals.SIGTERM, Signals.SIGKILL, Signals.SIGSTOP, Signals.SIGCONT, Signals.SIGCHLD)
_SIGNAL = re.compile(r"([BR]{1,2}:)?[A-Za-z0-9]+(@\d+)?\Z")
_MEMORY = re.compile(r"\d+[KMGTkmgt]?\Z")


@dataclass(kw_only=True)
class SlurmJobDetails:
    """What a job is called and where it prints; a subclass may override the properties."""

    #: The job's name; None for `job_name_prefix` and the job's id.
    job_name: str | None = None
    #: A folder on the cluster for what the batch script itself prints; None for the job's own `logs`.
    folder: str | None = None
    #: How the logs of a Ray cluster's own processes begin.
    ray_log_prefix: str = "ray-"

    @property
    def stdout(self) -> str | None:
        """Where the batch script prints, as sbatch takes it; None for a file in the job's own folder."""
        return f"{self.folder}/sbatch_%x_%j.out" if self.folder else None

    @property
    def stderr(self) -> str | None:
        """Where its errors go; None for the same place."""
        return None

    @property
    def srun_stdout(self) -> str | None:
        """Where the tasks print, as srun takes it; None for where `nemo_run` reads it."""
        return None

    @property
    def srun_stderr(self) -> str | None:
        """Where their errors go; None for the same place."""
        return None


@dataclass(kw_only=True)
class SlurmExecutor(Executor):
    """Runs jobs on a Slurm cluster: from its login node, or through a `run.SSHTunnel` from anywhere."""

    #: Who pays.
    account: str = ""
    #: Where it queues; None for the cluster's default.
    partition: str | None = None
    #: What the names of jobs begin with; None for the account.
    job_name_prefix: str | None = None
    #: The longest it may take: "02:00:00", "1-12", minutes as "90"; None for `timeout`, else 10 minutes.
    time: str | None = None
    #: Machines.
    nodes: int = 1
    #: Processes on each; with torchrun those that it starts there.
    ntasks_per_node: int = 1
    #: Processors for each process; `cpu_limit` is the same.
    cpus_per_task: int | None = None
    #: Processors for each GPU.
    cpus_per_gpu: int | None = None
    #: GPUs of each node.
    gpus_per_node: int | None = None
    #: GPUs of each process.
    gpus_per_task: int | None = None
    #: Quality of service.
    qos: str | None = None
    #: Memory of each node: "32G", "0" for all; `memory_limit` is the same.
    mem: str | None = None
    #: Memory for each GPU.
    mem_per_gpu: str | None = None
    #: Memory for each processor.
    mem_per_cpu: str | None = None
    #: Words that Slurm keeps with the job, before those by which it is found again.
    comment: str | None = None
    #: Features that nodes must have.
    constraint: str | None = None
    #: Nodes to do without.
    exclude: str | None = None
    #: Generic resources: "gpu:h100:2".
    gres: str | None = None
    #: A signal before the time is up: "USR1@120" for the tasks, "B:USR1@120" for the batch script.
    signal: str | None = None
    #: Have tasks save what they have before the time is up, and run the job again until `retries` are spent.
    requeue_on_timeout: bool = False
    #: Whether nodes are shared with nobody; or "user", "mcs", "topo".
    exclusive: bool | str | None = None
    #: Run as many equal tasks, each with its own SLURM_ARRAY_TASK_ID: "0-9", "1,5,7", "0-99%10".
    array: str | None = None
    #: How the batch script's own log is opened: "append" or "truncate".
    open_mode: str = "append"
    #: An image for Pyxis; None for no container.
    container_image: str | None = None
    #: What of the nodes' files containers see: "/source:/target". /$nemo_run/… lies in the job's folder.
    container_mounts: list[str] = field(default_factory=list)
    #: Variables of the job that win over the image's own.
    container_env: list[str] | None = None
    #: Further options of sbatch, without their dashes; True for those that take no value.
    additional_parameters: dict[str, Any] | None = None
    #: Further words for srun.
    srun_args: list[str] | None = None
    #: Give each member of a group its own kind of nodes, in one heterogeneous job.
    heterogeneous: bool = False
    #: Which component of it each member runs in; None for its own.
    het_group_indices: list[int] | None = None
    #: Not supported; see `monitor_resources`.
    memory_measure: bool = False
    #: Names and folders.
    job_details: SlurmJobDetails = field(default_factory=SlurmJobDetails)
    #: How the cluster is reached.
    tunnel: Tunnel = field(default_factory=LocalTunnel)
    #: How the code gets there.
    packager: Packager = field(default_factory=GitArchivePackager)
    #: Numbers (or handles) of other jobs that must end first.
    dependencies: list[str] = field(default_factory=list)
    #: How they must end: "afterok", "afterany", "afternotok", …
    dependency_type: str = "afterok"
    #: Processes that torchrun starts on each node.
    torchrun_nproc_per_node: int | None = None
    #: Seconds between the starts of a group's members.
    wait_time_for_group_job: int = 0
    #: Whether a member of a group that fails ends the others.
    monitor_group_job: bool = True
    #: Seconds that they are left then.
    monitor_group_job_wait_time: int = 0
    #: Lines of bash for the batch script, before anything is started.
    setup_lines: str | None = None
    #: Nodes that lie close together, so many at a time.
    segment: int | None = None
    #: What the network is asked for.
    network: str | None = None
    #: Accepted for older scripts: jobs that wait show their reason.
    poll_estimated_start_time: bool = True

    capabilities: ClassVar[Capability] = Capability.DETACH | Capability.DEPENDENCIES | Capability.GROUPS
    remote: ClassVar[bool] = True
    #: A controller does best when asked by one at a time.
    submit_workers: ClassVar[int] = 1
    #: One command for so many, so that the first numbers are known before the last job is submitted.
    submit_batch: ClassVar[int] = 50
    #: Ends are seen in the jobs' own folders; the controller is asked less and less often.
    poll_interval: ClassVar[tuple[float, float]] = (0.5, 15.0)

    def check(self) -> None:
        """Also refuse what Slurm would not understand, or would only say much later."""
        super().check()
        check_kind(self, "tunnel", Tunnel)
        check_kind(self, "job_details", SlurmJobDetails)
        check_kind(self, "account", str)
        for name in ("nodes", "ntasks_per_node"):
            check_count(self, name, 1)
        for name in ("cpus_per_task", "cpus_per_gpu", "torchrun_nproc_per_node", "segment"):
            check_count(self, name, 1, optional=True)
        for name in ("gpus_per_node", "gpus_per_task"):
            check_count(self, name, 0, optional=True)
        for name in ("wait_time_for_group_job", "monitor_group_job_wait_time"):
            check_count(self, name, 0)
        check_kind(self, "requeue_on_timeout", bool)
        self._check_forms()
        if self.requeue_on_timeout:
            self._check_requeue()
        self._check_lists()
        self._check_supported()

    def _check_forms(self) -> None:
        forms = {
            "time": (_TIME, 'Slurm\'s own, such as "02:30:00", "1-12:00:00" or minutes as "90"'),
            "array": (_ARRAY, 'such as "0-9", "1,5,7" or "0-99%10"'),
            "signal": (_SIGNAL, 'such as "USR1@120" or "B:TERM@60"'),
            "mem": (_MEMORY, 'such as "32G", or "0" for all of a node\'s'),
            "mem_per_gpu": (_MEMORY, 'such as "32G"'),
            "mem_per_cpu": (_MEMORY, 'such as "4G"'),
        }
        for name, (form, wanted) in forms.items():
            value = getattr(self, name)
            endless = name == "time" and isinstance(value, str) and value.lower() in _ENDLESS
            if value is not None and not endless and not (isinstance(value, str) and form.match(value)):
                raise self._refusal(name, wanted)
        if self.time is not None and _minutes(self.time) == 0:
            raise self._refusal("time", "more than no time")
        if self.dependency_type not in _DEPENDENCY_TYPES:
            raise self._refusal("dependency_type", f"one of {', '.join(_DEPENDENCY_TYPES)}")
        if self.open_mode not in ("append", "truncate"):
            raise self._refusal("open_mode", '"append" or "truncate"')
        for one, other in (("cpus_per_task", "cpu_limit"), ("mem", "memory_limit")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ConfigError(f"SlurmExecutor.{one} and {other} are one setting here; give one of them")

    def _check_requeue(self) -> None:
        name = type(self).__name__
        if not self.retries:
            raise ConfigError(f"{name}.requeue_on_timeout needs retries; say how often it may run again")
        if "signal" in (self.additional_parameters or {}):
            raise ConfigError(f"{name}.additional_parameters holds 'signal'; use signal for it")
        if (notice := self.notice()) is None:
            raise self._refusal("signal", 'one that a task can catch, and not TERM, such as "USR1@120"')
        if notice[1] >= 60 * _minutes(self.walltime()):
            raise ConfigError(
                f"{name}.signal comes {notice[1]} s before the end of a job of {self.walltime()}: before its"
                " beginning; give it more time, or a later signal"
            )

    def _check_lists(self) -> None:
        for name in ("container_mounts", "container_env", "srun_args", "dependencies"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (list, tuple)) and texts(value)):
                raise self._refusal(name, "a list of texts, each on one line")
        for mount in self.container_mounts:
            if "," in mount or ":" not in mount:
                raise ConfigError(f'SlurmExecutor.container_mounts: {mount!r} is no "/source:/target"')
        self.dependency_ids()
        for name in self.additional_parameters or {}:
            if not isinstance(name, str) or (key := name.replace("-", "_")) in _OURS:
                use = _OURS.get(key, "nothing") if isinstance(name, str) else "texts"
                raise ConfigError(f"SlurmExecutor.additional_parameters holds {name!r}; use {use} for it")

    def _check_supported(self) -> None:
        for name in ("monitor_resources", "memory_measure"):
            if getattr(self, name):
                raise UnsupportedError(
                    f"SlurmExecutor cannot honour {name}; leave it out, and ask `sstat` what a job uses",
                    executor="SlurmExecutor",
                    capability=name,
                )

    def _refusal(self, name: str, wanted: str) -> ConfigError:
        return ConfigError(f"{type(self).__name__}.{name} is {getattr(self, name)!r}; give {wanted}")

    # --- what tasks and launchers ask -------------------------------------------------------------------

    def nnodes(self) -> int:
        """As told."""
        return self.nodes

    def nproc_per_node(self) -> int:
        """What is said of torchrun; else the GPUs, where nothing is said of processes; else the processes."""
        if self.torchrun_nproc_per_node:
            return self.torchrun_nproc_per_node
        if self.ntasks_per_node == 1 and self.gpus_per_node:
            return self.gpus_per_node
        if self.gpus_per_task and self.tasks_per_node() == self.ntasks_per_node:
            return self.gpus_per_task
        return self.ntasks_per_node

    def tasks_per_node(self) -> int:
        """How many processes Slurm starts on each node: one where a launcher starts the others."""
        launcher = get_launcher(self.launcher)
        return 1 if launcher.rank_variable or isinstance(launcher, SlurmRay) else self.ntasks_per_node

    def replicas(self) -> Sequence[int]:
        """A log for each process that Slurm starts, or for each task of an array."""
        if self.array:
            return [int(number) for number in indices(self.array)]
        return range(self.nodes * self.tasks_per_node())

    def topology(self) -> Topology:
        """The nodes know it when they run."""
        several = self.tasks_per_node() > 1
        # Members of a heterogeneous job meet on their own component's first node.
        head = Expand("${member_node_ip:-$head_node_ip}" if self.heterogeneous else "$head_node_ip")
        return Topology(
            nodes=self.nodes,
            procs_per_node=self.nproc_per_node(),
            head_address=head if self.nodes > 1 else "localhost",
            node_rank=Expand("$SLURM_NODEID"),
            local_rank=Expand("$SLURM_LOCALID") if several else "",
        )

    def remote_dir(self, job_dir: Path) -> Path:
        """The job's folder on the cluster."""
        return Path(remote_path(job_dir, self.tunnel.job_dir))

    def rundir(self, job_dir: Path) -> Path:
        """The job's folder on the cluster, or where it is mounted."""
        return Path(RUNDIR) if self.container_image else self.remote_dir(job_dir)

    def library(self) -> str:
        """Where this nemo_run lies on the cluster."""
        if isinstance(self.tunnel, LocalTunnel):
            return str(slurm_submit.PACKAGE)
        return f"{self._library_folder()}/nemo_run"

    def _library_folder(self) -> str:
        return f"{self.tunnel.job_dir}/{slurm_submit.SHARED}/library/{slurm_submit.library_name()}"

    def runner_path(self) -> str:
        """This very nemo_run is there."""
        if self.container_image:
            return f"{LIBRARY}/nemo_run/core/runner.py"
        return runner.__file__ if self.shares_files() else f"{self.library()}/core/runner.py"

    def shares_files(self) -> bool:
        """Jobs on this machine's cluster see its files, unless they are in a container."""
        return isinstance(self.tunnel, LocalTunnel) and not self.container_image

    def cluster(self) -> str:
        """Who we are there, and where experiments are."""
        return ":".join(filter(None, (self.tunnel.key, self.tunnel.job_dir)))

    def info(self) -> str:
        """Nodes, partition and cluster."""
        where = f", partition {self.partition}" if self.partition else ""
        return f"{self.nodes} node{'s' * (self.nodes > 1)} of Slurm on {self.cluster()}{where}"

    def probe(self) -> Iterator[Check]:
        """The way there, Slurm's programs, its controller, a job like these, a folder, a Python."""
        from nemo_run.core.execution import slurm_probe

        return slurm_probe.probe_cluster(self)

    # --- what the script asks ---------------------------------------------------------------------------

    def name_prefix(self) -> str:
        """What the job's name begins with."""
        if self.job_name_prefix is not None:
            return self.job_name_prefix
        return f"{self.account}-{self.account.rpartition('_')[2]}." if self.account else ""

    def walltime(self) -> str:
        """`--time`: the shorter one of `time` and `timeout`; Slurm counts in minutes."""
        limit = None if self.timeout is None else math.ceil(self.timeout / 60)
        if self.time is None:
            return DEFAULT_TIME if limit is None else str(limit)
        given = _minutes(self.time)
        return self.time if limit is None or given <= limit else str(limit)

    def notice(self) -> tuple[str, int] | None:
        """The signal before a requeue, and how many seconds before the end it comes; None if it cannot be.

        Where nothing is said of it it is USR2, 120 s before the end, or at three quarters of a short time.
        """
        if self.signal is None:
            return "USR2", int(min(120, 15 * _minutes(self.walltime())))
        name, _, seconds = self.signal.rpartition(":")[2].partition("@")
        return (found, int(seconds or 60)) if (found := _signal_name(name)) else None

    def dependency_ids(self) -> list[str]:
        """The numbers of the jobs that must end first; a handle ends with one."""
        numbers = [str(each).rstrip("/").rpartition("/")[2] for each in self.dependencies]
        for given, number in zip(self.dependencies, numbers, strict=True):
            if not re.fullmatch(r"\d+([_+]\d+)?", number):
                raise ConfigError(f"SlurmExecutor.dependencies: {given!r} names no job; give a job's number")
        return numbers

    # --- the backend ------------------------------------------------------------------------------------

    def plan(self, spec: JobSpec) -> Plan:
        """The batch script, and the environments that are sent beside it."""
        check_whole_job(spec, _WHOLE_JOB if self.heterogeneous else (*_WHOLE_JOB, *_ONE_ALLOCATION))
        self._check_job(spec)
        if found := unmarked(spec):
            _warn_of_unmarked(spec.id, ", ".join(found))
        request = self._request(spec, render_sbatch(spec))
        return Plan(spec=spec, text=shown(request["script"], request["env"]), request=request)

    def _check_job(self, spec: JobSpec) -> None:
        if self.array and len(spec.members) > 1:
            raise UnsupportedError(
                f"group {spec.id!r} has an array, and Slurm repeats whole jobs; give the group no array",
                executor=type(self).__name__,
                capability="array",
            )
        indices = self.het_group_indices
        if self.heterogeneous and indices and len(indices) != len(spec.members):
            raise ConfigError(
                f"SlurmExecutor.het_group_indices has {len(indices)} numbers for the {len(spec.members)}"
                f" members of {spec.id!r}; give one for each"
            )
        if not isinstance(self.tunnel, LocalTunnel) and not self.tunnel.job_dir.startswith("/"):
            raise ConfigError(
                f"SlurmExecutor.tunnel.job_dir is {self.tunnel.job_dir!r}; give the folder for experiments on"
                " the cluster, from / on"
            )
        folder = str(self.remote_dir(spec.job_dir))
        if "\\" in folder or "\n" in folder:
            raise ConfigError(f"Slurm cannot write to {folder!r}; use a folder without backslash or line end")

    def _request(self, spec: JobSpec, text: str) -> dict[str, Any]:
        folder = str(self.remote_dir(spec.job_dir))
        return {
            "id": spec.id,
            "token": spec.token,
            "script": text,
            "name": job_name(spec),
            "array_name": self._array_name(spec),
            "comment": self.comment or "",
            "folder": folder,
            "home": str(spec.job_dir),
            "base": self.tunnel.job_dir,
            "dependency": dependency(spec),
            "after": tuple(str(self.remote_dir(spec.job_dir.parent / name)) for name in spec.after),
            "log_folder": self.job_details.folder,
            "elsewhere": folder != str(spec.job_dir),
            "library": "" if isinstance(self.tunnel, LocalTunnel) else self._library_folder(),
            "package": dict(spec.package) if spec.package and self.packager.copies_code else None,
            "env": {
                role.name: environment(role, member)  # type: ignore[arg-type]  # members are of one class
                for role, member in zip(spec.app.roles, spec.members, strict=True)
            },
            **slurm_check.needs(spec),
        }

    def _array_name(self, spec: JobSpec) -> str:
        """What Slurm calls jobs like this one together; nothing if this one's names or logs are its own."""
        if self.job_details != SlurmJobDetails():
            return ""
        return self.name_prefix() + spec.job_dir.parent.parent.name

    def connect(self) -> None:
        """Be logged in where jobs are submitted."""
        self.tunnel.connect()

    def prepare(self, plans: Sequence[Plan]) -> None:
        """Their files in one upload, after the code that they share."""
        slurm_submit.prepare(self.tunnel, [plan.request for plan in plans])

    def submit_many(self, plans: Sequence[Plan]) -> list[JobHandle | NemoRunError]:
        """One command that runs sbatch for each, once."""
        outcomes = slurm_submit.submit(self.tunnel, [plan.request for plan in plans])
        return [
            outcome if isinstance(outcome, NemoRunError) else _handle(plan, outcome)
            for plan, outcome in zip(plans, outcomes, strict=True)
        ]

    def submit(self, plan: Plan) -> JobHandle:
        """Send its files, then the job, once."""
        self.prepare([plan])
        [outcome] = self.submit_many([plan])
        if isinstance(outcome, NemoRunError):
            raise outcome
        return outcome

    def find(self, token: str) -> JobHandle | None:
        """By what was noted on the cluster, and where that is nothing by the job's comment."""
        job_dir = Path(self.job_dir)
        number = slurm_submit.find(self.tunnel, str(self.remote_dir(job_dir)), token)
        return None if number is None else self.handle(token, job_dir, number)

    def handle(self, token: str, job_dir: Path, number: str) -> JobHandle:
        """What is kept of a job, once it has a number."""
        minutes = _minutes(self.walltime())
        data = {
            "job": number,
            "folder": str(self.remote_dir(job_dir)),
            "home": str(job_dir),
            "array": self.array or "",
            "limit": "" if minutes == math.inf else str(minutes * 60),
        }
        return JobHandle(executor=class_name(type(self)), id=token, data=data)

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """From the jobs' own words; for the others one squeue, and for those gone from there one sacct."""
        found = slurm_job.look(self.tunnel, handles) if handles else []
        return slurm_home.brought_home(self.tunnel, handles, found)

    def await_news(self, handles: Sequence[JobHandle], seconds: float) -> None:
        """Where the jobs' folders are here their ends are seen at once."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if isinstance(self.tunnel, LocalTunnel) and slurm_job.any_ended(self.tunnel, handles):
                return
            time.sleep(min(left, 0.1))

    def cancel(self, handle: JobHandle) -> None:
        """`scancel`: SIGTERM to every process, SIGKILL to those that are still there a while after."""
        slurm_job.cancel(self.tunnel, handle)

    def logs(self, handle: JobHandle, role: str, replica: int = 0, *, follow: bool = False) -> Iterator[str]:
        """From the cluster by offset; a replica is a rank, or a task of an array."""
        return slurm_logs.log_lines(self.tunnel, handle, role, replica, follow=follow)


def _handle(plan: Plan, number: str) -> JobHandle:
    executor: Any = plan.spec.members[0]
    handle: JobHandle = executor.handle(plan.spec.token, plan.spec.job_dir, number)
    return handle


@functools.lru_cache(maxsize=1000)
def _warn_of_unmarked(job: str, found: str) -> None:
    """Once, however often the job is planned."""
    logger.warning(
        "job %s: a shell will not expand %s, which will arrive as written; mark with run.Expand(…) what the"
        " node's shell is to expand",
        job,
        found,
    )


def _signal_name(given: str) -> str | None:
    """A signal's name, less its SIG, if a task can wait for it; it is given by name or by number."""
    try:
        name = given.upper().removeprefix("SIG")
        number = Signals(int(name)) if name.isdigit() else Signals[f"SIG{name}"]
    except (KeyError, ValueError):
        return None
    return None if number in _TAKEN else number.name.removeprefix("SIG")


def _minutes(time_text: str) -> float:
    """How many minutes a time in one of Slurm's forms is, rounded up."""
    if time_text.lower() in _ENDLESS or not (match := _TIME.match(time_text)):
        return math.inf
    days, *numbers = match.groups()
    given = [int(number) for number in numbers if number is not None]
    if days is not None:  # days-hours:minutes:seconds
        hours, minutes, seconds = [*given, 0, 0][:3]
    elif len(given) == 3:  # hours:minutes:seconds
        hours, minutes, seconds = given
    else:  # minutes:seconds
        hours, (minutes, seconds) = 0, [*given, 0][:2]
    return int(days or 0) * 1440 + hours * 60 + minutes + math.ceil(seconds / 60)
