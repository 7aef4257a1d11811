"""What every backend is made of: Executor, and its nouns JobSpec, Plan, JobHandle, JobStatus, Topology.

A new backend is a subclass of `Executor` in a file of its own that overrides `plan`, `submit`, `find`,
`status`, `cancel` and `logs`. `Executor` itself is a backend too: it runs a process on this machine.
"""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nemo_run.core.execution.checks import (
    check_count,
    check_env,
    check_kind,
    check_names,
    check_path,
    check_seconds,
    parse_bytes,
)
from nemo_run.core.execution.launcher import Launcher, get_launcher
from nemo_run.core.packaging.base import Packager
from nemo_run.errors import ConfigError, NemoRunError

if TYPE_CHECKING:
    from torchx.specs import AppDef


class AppState(int, enum.Enum):
    """TorchX's AppState, word for word and equal to it, for places that must not wait for TorchX's import."""

    UNSUBMITTED = 0
    SUBMITTED = 1
    PENDING = 2
    RUNNING = 3
    SUCCEEDED = 4
    FAILED = 5
    CANCELLED = 6
    UNKNOWN = 7

    def __str__(self) -> str:
        return self.name


#: States that a job does not leave.
TERMINAL = frozenset({AppState.SUCCEEDED, AppState.FAILED, AppState.CANCELLED})


class Capability(enum.Flag):
    """What a backend can do beyond running one job while its launcher lives."""

    NONE = 0
    #: Jobs outlive the process that launched them and can be found from another.
    DETACH = enum.auto()
    #: `JobSpec.depends_on` is honoured: the backend itself starts a job after others.
    DEPENDENCIES = enum.auto()
    #: A job may have several roles that start together and end together.
    GROUPS = enum.auto()
    #: One job may stand for many equal ones.
    ARRAYS = enum.auto()
    #: Jobs run in an image that may have been built from their code.
    IMAGES = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Topology:
    """What a launcher needs to know of the machines: numbers and addresses, or shell text for them."""

    nodes: int = 1
    procs_per_node: int = 1
    #: Where the first node is; empty where nobody knows.
    head_address: str = "localhost"
    node_rank: str = "0"
    #: The port to meet at there; empty for the launcher's own.
    head_port: str = ""
    #: Which of its node's processes it is, where the backend itself starts several on each; else empty.
    local_rank: str = ""


@dataclass(frozen=True, kw_only=True)
class JobHandle:
    """Everything needed to find a job again from any process, as plain JSON."""

    executor: str
    id: str
    data: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"executor": self.executor, "id": self.id, "data": dict(self.data)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> JobHandle:
        """From what `to_json` gave."""
        return cls(executor=record["executor"], id=record["id"], data=record["data"])


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One submission, complete."""

    id: str
    experiment_id: str
    #: One Role per member.
    app: AppDef
    members: tuple[Executor, ...]
    job_dir: Path
    #: Equal for every try at the same submission: the key by which a backend finds an unanswered one again.
    token: str
    #: Jobs that must succeed first, for backends with `Capability.DEPENDENCIES`.
    depends_on: tuple[JobHandle, ...] = ()
    #: Ids of further ones that are submitted just before it, together with it.
    after: tuple[str, ...] = ()
    #: What is recorded of the package of its code, with its files' folder as `code`; None where code is used
    #: as it lies, and in a dry run, where nothing is packaged.
    package: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Exactly what would be sent, for people (`text`) and for the backend (`request`)."""

    spec: JobSpec
    text: str
    request: Any = None


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What a backend says of a job: `message` is in its own words, times are seconds since the epoch."""

    state: AppState
    exit_code: int | None = None
    message: str = ""
    attempt: int = 1
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that jobs need: whether it is as they need it, what was found, and the next step if not."""

    name: str
    ok: bool
    found: str
    #: Empty where all is well, and where what was found says it already.
    step: str = ""


@dataclass(kw_only=True)
class Executor:
    """Where a task runs. This one runs it in a process on this machine; backends are its subclasses.

    Raises:
        ConfigError: a field has a value that cannot work; the message names it.
    """

    #: How the code gets there.
    packager: Packager = field(default_factory=Packager)
    #: How a task's processes are started: a Launcher, its short name, or None for one plain process.
    launcher: Launcher | str | None = None
    #: Environment of the task, beyond what the backend gives it; values may be `run.Secret` or `run.Expand`.
    env_vars: dict[str, str] = field(default_factory=dict)
    #: How often a failed job is started again.
    retries: int = 0
    #: The folder a task starts in; made if it is not there.
    working_dir: str | None = None
    #: Seconds until the job is ended and FAILED; None for no limit.
    timeout: float | None = None
    #: The Python that runs Python tasks; None for the one that launches, or elsewhere for `python3`.
    python_path: str | None = None
    #: Level of the root logger in Python tasks ("DEBUG"); None leaves logging alone.
    log_level: str | None = None
    #: Memory of all processes of a job together: bytes, or text such as "32G"; None for no limit.
    memory_limit: str | int | None = None
    #: Processors a task may use; None for all.
    cpu_limit: int | None = None
    #: Sample CPU, memory and GPU use to `resources.jsonl`.
    monitor_resources: bool = False
    #: Set when the executor is given a job of an experiment.
    experiment_id: str | None = field(default=None, repr=False)
    job_dir: str = field(default="", repr=False)
    experiment_dir: str = field(init=False, default="", repr=False)

    capabilities: ClassVar[Capability] = Capability.DETACH | Capability.GROUPS
    #: Whether jobs go on when the launching machine crashes, so that their records must too.
    remote: ClassVar[bool] = False
    #: How many submissions at once are worth their threads; starting a process here is not.
    submit_workers: ClassVar[int] = 1
    #: How many jobs `submit_many` is given at most.
    submit_batch: ClassVar[int] = 1
    #: Shortest and longest pause between two looks at this backend's jobs, in seconds.
    poll_interval: ClassVar[tuple[float, float]] = (0.02, 0.25)
    #: Seconds for which a job may be UNKNOWN before nobody waits for it any longer.
    lost_after: ClassVar[float] = 600.0

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse values that cannot work; subclasses add their own and call this one."""
        name = type(self).__name__
        check_names(self)
        check_env(f"{name}.env_vars", self.env_vars)
        check_seconds(self, "timeout")
        check_count(self, "retries", 0)
        check_count(self, "cpu_limit", 1, optional=True)
        check_path(self, "working_dir")
        check_path(self, "python_path")
        check_kind(self, "monitor_resources", bool)
        check_kind(self, "packager", Packager)
        get_launcher(self.launcher)
        if self.memory_limit is not None:
            parse_bytes(self.memory_limit, f"{name}.memory_limit")
        if self.log_level is not None and self.log_level not in LOG_LEVELS:
            raise ConfigError(f"{name}.log_level is {self.log_level!r}; give one of {', '.join(LOG_LEVELS)}")

    # --- what tasks and launchers ask -------------------------------------------------------------------

    @property
    def python(self) -> str:
        """The interpreter for Python tasks, never a bare `python`: ours, or elsewhere that on the path."""
        return os.fspath(self.python_path or (sys.executable if self.shares_files() else "python3"))

    def nnodes(self) -> int:
        """How many machines a job takes."""
        return 1

    def nproc_per_node(self) -> int:
        """How many processes a launcher starts on each."""
        return 1

    def replicas(self) -> Sequence[int]:
        """The numbers of a role's logs: one log of all its processes, unless the backend keeps them apart."""
        return (0,)

    def topology(self) -> Topology:
        """What launchers need to know."""
        return Topology(nodes=self.nnodes(), procs_per_node=self.nproc_per_node())

    def rundir(self, job_dir: Path) -> Path:
        """The job's folder as its task sees it."""
        return job_dir

    def runner_path(self) -> str:
        """`core/runner.py` as the task's interpreter finds it."""
        from nemo_run.core import runner

        return runner.__file__

    def shares_files(self) -> bool:
        """Whether tasks see this machine's files, so that code can stay where it is."""
        return not self.remote

    def parallel_limit(self) -> int | None:
        """How many jobs run at once; None where the backend has a queue of its own."""
        return None if self.remote else os.cpu_count() or 1

    def cluster(self) -> str:
        """Jobs of one class and one cluster are asked about in one call."""
        return ""

    def assign(self, exp_id: str, exp_dir: str, task_id: str, task_dir: str) -> None:
        """Tell the executor which job of which experiment it serves."""
        self.experiment_id = exp_id
        self.experiment_dir = exp_dir
        self.job_dir = str(Path(exp_dir) / task_dir)

    def info(self) -> str:
        """A few words on where jobs run."""
        return f"{type(self).__name__} on this machine"

    @classmethod
    def bare(cls) -> Executor:
        """One of which nothing is said, to look at what all of its kind need."""
        return cls()

    def probe(self) -> Iterator[Check]:
        """Try what jobs need, one thing after the other; nothing is submitted."""
        from nemo_run.core.execution import probing

        return probing.probe_here(self)

    # --- the backend ------------------------------------------------------------------------------------

    def plan(self, spec: JobSpec) -> Plan:
        """Exactly what would be submitted; no side effects.

        Raises:
            UnsupportedError: something asked for cannot be done here.
        """
        from nemo_run.core.execution import local

        return local.plan(spec)

    def submit(self, plan: Plan) -> JobHandle:
        """Stage files and send.

        Raises:
            SubmitError: the backend refused.
        """
        from nemo_run.core.execution import local

        return local.submit(plan, class_name(type(self)))

    def connect(self) -> None:
        """Be able to submit, so that whatever a person must be asked is asked before anything is written.

        Raises:
            NemoRunError: it cannot be reached, or refuses us.
        """

    def prepare(self, plans: Sequence[Plan]) -> None:
        """Send ahead what these jobs need, for all of them at once; nothing is started.

        It comes before `submit_many`, where `submit_batch` is more than 1.

        Raises:
            NemoRunError: something is not as these jobs need it, and none of them is to be submitted.
        """

    def submit_many(self, plans: Sequence[Plan]) -> list[JobHandle | NemoRunError]:
        """Submit several jobs in few round trips: for each its handle, or why it has none.

        Raises:
            NemoRunError: it is unknown what became of them.
        """
        raise NotImplementedError(f"{type(self).__name__} submits one job at a time")

    def find(self, token: str) -> JobHandle | None:
        """The job of an earlier submission with this token, if it arrived."""
        from nemo_run.core.execution import local

        return local.find(token, Path(self.job_dir), class_name(type(self)))

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """One status per handle, in one call; UNKNOWN for what cannot be seen, never FAILED."""
        from nemo_run.core.execution import local

        return [local.status(handle) for handle in handles]

    def await_news(self, handles: Sequence[JobHandle], seconds: float) -> None:
        """Wait before the next look at these jobs: at most so long, less if one of them may have ended."""
        from nemo_run.core.execution import local

        local.await_news(handles, seconds)

    def cancel(self, handle: JobHandle) -> None:
        """Ask the job to end; harmless when it has, and it does not wait."""
        from nemo_run.core.execution import local

        local.cancel(handle)

    def logs(self, handle: JobHandle, role: str, replica: int = 0, *, follow: bool = False) -> Iterator[str]:
        """The lines a replica printed, without their ends; `follow` waits for more until the job ends."""
        from nemo_run.core.execution import local

        return local.logs(handle, role, replica, follow=follow)

    def execute(self, task: Any, config: JobSpec) -> JobHandle:
        """The one hook through which dispatch starts a job; a custom executor may do more around it.

        Args:
            task: What runs: a Partial, Config or Script, or a list of them for a group.
            config: The submission.
        """
        return self.submit(self.plan(config))


#: Names that `log_level` takes: those of Python's `logging`.
LOG_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "NOTSET")


def class_name(cls: type) -> str:
    """A class as a dotted name."""
    return f"{cls.__module__}.{cls.__qualname__}"
