"""The records of an experiment and of its jobs, as they are written down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from nemo_run.core.execution.base import TERMINAL, AppState, JobHandle

#: The version of the records; a reader refuses what a newer nemo_run wrote, and reads what older ones wrote.
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class JobEntry:
    """A job as the experiment knows it: what does not change."""

    id: str
    #: One per member; the names of their logs and results.
    roles: list[str]
    dependencies: list[str] = field(default_factory=list)
    tail_logs: bool = False
    #: Plugins as trees; what they changed is in the task and the executor already.
    plugins: list[Any] = field(default_factory=list)
    group: bool = False

    @cached_property
    def line(self) -> str:
        """As `experiment.json` holds it; made once, as that is written anew for each job that is added."""
        return json.dumps({entry.name: getattr(self, entry.name) for entry in fields(self)})


@dataclass(frozen=True, kw_only=True)
class ExperimentRecord:
    """`experiment.json`."""

    id: str
    title: str
    created: float
    jobs: list[JobEntry]
    #: Where it was launched, and what Python tasks find their modules by.
    cwd: str
    python_path: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    #: Whether jobs may be added to it while somebody dispatches it.
    grows: bool = False
    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """`job.json`, the one file of a job that changes. Times are seconds since the epoch."""

    id: str
    token: str
    state: AppState = AppState.PENDING
    message: str = ""
    exit_code: int | None = None
    attempt: int = 1
    #: When its submission began: with no handle beside it, an answer is still owed.
    intent: float | None = None
    handle: JobHandle | None = None
    started: float | None = None
    ended: float | None = None

    @property
    def terminal(self) -> bool:
        """Whether this is the end."""
        return self.state in TERMINAL

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        handle = self.handle.to_json() if self.handle else None
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return values | {"state": AppState(self.state).name, "handle": handle}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> JobRecord:
        """From what `to_json` gave."""
        handle = JobHandle.from_json(record["handle"]) if record["handle"] else None
        return cls(**{**record, "state": AppState[record["state"]], "handle": handle})


def summarize(records: Sequence[JobRecord]) -> AppState:
    """One state for a whole experiment: what is still going on, else the worst that happened."""
    states = {record.state for record in records}
    for state in (AppState.RUNNING, AppState.PENDING, AppState.SUBMITTED, AppState.UNKNOWN, AppState.FAILED):
        if state in states:
            return state
    if states == {AppState.SUCCEEDED}:
        return AppState.SUCCEEDED
    if AppState.CANCELLED in states:
        return AppState.CANCELLED
    return AppState.UNSUBMITTED  # no jobs
