"""Doubles for tests: a backend whose cluster is a folder, and a way to be killed at a chosen step."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nemo_run.core.execution.base import TERMINAL, AppState, Capability, Executor, JobHandle, JobStatus, Plan
from nemo_run.core.runner import write
from nemo_run.errors import ConfigError, SubmitError, TunnelError

if TYPE_CHECKING:
    from nemo_run.core.execution.base import JobSpec

_NEVER = float("inf")
_UNSEEN = JobStatus(state=AppState.UNKNOWN, message="the cluster does not see it")


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What becomes of a job of a FakeExecutor; a ConfigError if its `state` is none."""

    #: How it ends; RUNNING never ends by itself, UNKNOWN is never seen.
    state: str = "SUCCEEDED"
    #: Seconds that it runs.
    after: float = 0.0
    #: 0 if it succeeds and else 1, where it is not given.
    exit_code: int | None = None
    #: The backend's own word for its end.
    message: str = ""
    #: What it prints.
    log: str = ""
    #: From when until when it cannot be seen, in seconds after it was submitted.
    unseen: tuple[float, float] = (0.0, 0.0)
    #: What the backend says when it refuses it.
    refusal: str = ""
    #: It arrives, but whoever submitted it does not get to know.
    answer_lost: bool = False

    def __post_init__(self) -> None:
        if self.state not in AppState.__members__:
            raise ConfigError(f"Fate: {self.state!r} is no state; give one such as 'FAILED'")


@dataclass(kw_only=True)
class FakeExecutor(Executor):
    """A backend whose cluster is a folder: its jobs outlive processes, run nothing, and end as foretold."""

    #: The cluster; executors with the same folder share it.
    folder: str
    #: By job id a Fate, or only the state it ends in.
    outcomes: dict[str, str | Fate] = field(default_factory=dict)
    #: The fate of jobs that `outcomes` does not name.
    default: str | Fate = "SUCCEEDED"
    #: Jobs of an experiment that run at once; None for all.
    max_parallel: int | None = None

    #: As backends elsewhere do it, so that dispatch is seen to bear it.
    submit_workers: ClassVar[int] = 16

    def parallel_limit(self) -> int | None:
        """As told."""
        return self.max_parallel

    def cluster(self) -> str:
        """The folder."""
        return self.folder

    def plan(self, spec: JobSpec) -> Plan:
        """The record that `submit` would leave in the folder."""
        fate = self.outcomes.get(spec.id, self.default)
        request = {
            "token": spec.token,
            "name": spec.id,
            "depends_on": [handle.id for handle in spec.depends_on],
            "fate": asdict(fate if isinstance(fate, Fate) else Fate(state=fate)),
        }
        return Plan(spec=spec, text=json.dumps(request, indent=1) + "\n", request=request)

    def submit(self, plan: Plan) -> JobHandle:
        """Leave a record in the folder, and another one if the same job is submitted again."""
        self._count("submit", plan.spec.token)
        name, fate = plan.spec.id, plan.request["fate"]
        if fate["refusal"]:
            raise SubmitError(f"job {name!r} was refused: {fate['refusal']}", output=fate["refusal"])
        job = {**plan.request, "id": uuid.uuid4().hex, "submitted": time.time()}
        write(self._path(f"{job['id']}.json"), json.dumps(job))
        if fate["answer_lost"]:
            raise TunnelError(f"the connection was lost while job {name!r} was being submitted")
        return self._handle(job["id"])

    def find(self, token: str) -> JobHandle | None:
        """The first job that was submitted under this token."""
        self._count("find", token)
        return next((self._handle(job["id"]) for job in self.jobs() if job["token"] == token), None)

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """What each job has come to by now."""
        self._count("status", *(handle.id for handle in handles))
        jobs, statuses = self._statuses([handle.id for handle in handles])
        for job_id, job in jobs.items():
            begin, end = job["fate"]["unseen"]
            if begin <= time.time() - job["submitted"] < end:
                statuses[job_id] = _UNSEEN
        return [statuses.get(handle.id, _UNSEEN) for handle in handles]

    def cancel(self, handle: JobHandle) -> None:
        """Leave word in the folder, unless it has been left."""
        self._count("cancel", handle.id)
        if not os.path.exists(path := self._path(f"{handle.id}.cancelled")):
            write(path, repr(time.time()))

    def logs(self, handle: JobHandle, role: str, replica: int = 0, *, follow: bool = False) -> Iterator[str]:
        """What its fate says that it prints, at once; to follow is to wait for its end."""
        jobs, statuses = self._statuses([handle.id])
        yield from jobs[handle.id]["fate"]["log"].splitlines()
        while follow and statuses[handle.id].state not in (*TERMINAL, AppState.UNKNOWN):
            time.sleep(0.01)
            _, statuses = self._statuses([handle.id])

    def jobs(self) -> list[dict[str, Any]]:
        """For tests: the cluster's records of its jobs, in the order they arrived."""
        found = [json.loads(path.read_bytes()) for path in Path(self.folder).glob("*.json")]
        return sorted(found, key=lambda job: job["submitted"])

    def calls(self) -> Counter[str]:
        """For tests: how often each verb was called, by whatever process."""
        with open(self._path("calls.log"), "a+") as log:
            log.seek(0)
            return Counter(line.partition(" ")[0] for line in log)

    def _path(self, name: str) -> str:
        os.makedirs(self.folder, exist_ok=True)
        return os.path.join(self.folder, name)

    def _handle(self, job_id: str) -> JobHandle:
        name = f"{type(self).__module__}.{type(self).__qualname__}"
        return JobHandle(executor=name, id=job_id, data={"folder": self.folder})

    def _count(self, verb: str, *what: str) -> None:
        with open(self._path("calls.log"), "a") as log:
            log.write(f"{verb} {json.dumps(what)}\n")

    def _statuses(self, job_ids: list[str]) -> tuple[dict[str, Any], dict[str, JobStatus]]:
        """The records and states of jobs and of all they depend on."""
        jobs, todo = dict[str, Any](), list(job_ids)
        while todo:
            path = Path(self._path(f"{todo.pop()}.json"))
            if path.stem not in jobs and path.exists():
                jobs[path.stem] = json.loads(path.read_bytes())
                todo += jobs[path.stem]["depends_on"]
        statuses = dict[str, JobStatus]()
        for job in sorted(jobs.values(), key=lambda job: job["submitted"]):
            statuses[job["id"]] = self._status(job, [statuses[name] for name in job["depends_on"]])
        return jobs, statuses

    def _status(self, job: Mapping[str, Any], before: list[JobStatus]) -> JobStatus:
        fate, word = job["fate"], self._path(f"{job['id']}.cancelled")
        cancelled = float(Path(word).read_text()) if os.path.exists(word) else _NEVER
        if any(status.state in (AppState.FAILED, AppState.CANCELLED) for status in before):
            return JobStatus(state=AppState.CANCELLED, message="DependencyNeverSatisfied")
        waits = any(status.state != AppState.SUCCEEDED for status in before)
        started = max([job["submitted"], *(status.ended or 0.0 for status in before)])
        ended = _NEVER if waits or fate["state"] == "RUNNING" else started + fate["after"]
        if cancelled < ended:
            return JobStatus(state=AppState.CANCELLED, exit_code=143, message="cancelled", ended=cancelled)
        if ended > time.time():
            return JobStatus(state=AppState.PENDING if waits else AppState.RUNNING, started=started)
        state = AppState[fate["state"]]
        code = int(state != AppState.SUCCEEDED) if fate["exit_code"] is None else fate["exit_code"]
        return JobStatus(state=state, exit_code=code, message=fate["message"], started=started, ended=ended)


class FakeQueue(FakeExecutor):
    """One whose cluster itself starts a job after those it depends on."""

    capabilities: ClassVar[Capability] = FakeExecutor.capabilities | Capability.DEPENDENCIES


def kill_at(step: Callable[[str, tuple[Any, ...]], object], count: int = 1) -> None:
    """End this process by SIGKILL just before the `count`-th audit event (PEP 578) that is the `step`."""
    times = itertools.count(1)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if step(event, args) and next(times) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
