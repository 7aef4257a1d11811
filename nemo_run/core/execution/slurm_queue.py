"""What Slurm says of jobs: every state it knows, and what `squeue` and `sacct` print."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nemo_run.core.execution.base import TERMINAL, AppState, JobStatus

#: Every state of Slurm's documentation, those of `squeue` and those of `sacct`.
STATES: Mapping[str, AppState] = {
    "BOOT_FAIL": AppState.FAILED,
    "CANCELLED": AppState.CANCELLED,
    "COMPLETED": AppState.SUCCEEDED,
    "COMPLETING": AppState.RUNNING,
    "CONFIGURING": AppState.PENDING,
    "DEADLINE": AppState.FAILED,
    "EXPEDITING": AppState.PENDING,
    "FAILED": AppState.FAILED,
    "LAUNCH_FAILED": AppState.PENDING,
    "NODE_FAIL": AppState.FAILED,
    "OUT_OF_MEMORY": AppState.FAILED,
    "PENDING": AppState.PENDING,
    "POWER_UP_NODE": AppState.PENDING,
    # Where preempted jobs are queued again they are seen as PENDING.
    "PREEMPTED": AppState.CANCELLED,
    "RECONFIG_FAIL": AppState.FAILED,
    "REQUEUED": AppState.PENDING,
    "REQUEUE_FED": AppState.PENDING,
    "REQUEUE_HOLD": AppState.PENDING,
    "RESIZING": AppState.RUNNING,
    "RESV_DEL_HOLD": AppState.PENDING,
    # Another cluster of a federation runs it, which we do not see.
    "REVOKED": AppState.UNKNOWN,
    "RUNNING": AppState.RUNNING,
    "SIGNALING": AppState.RUNNING,
    "SPECIAL_EXIT": AppState.PENDING,
    "STAGE_OUT": AppState.RUNNING,
    "STOPPED": AppState.RUNNING,
    "SUSPENDED": AppState.RUNNING,
    "TIMEOUT": AppState.FAILED,
    "UPDATE_DB": AppState.RUNNING,
}
#: Columns that are asked for; none before the last holds the character between them.
SQUEUE = "%i|%T|%r"
SACCT = "JobID,State,ExitCode,Start,End"
#: Has them name all tasks of an array, however many there are.
_IN_FULL = ("env", "SLURM_BITSTR_LEN=0")
#: How sacct says that there is none.
NO_ACCOUNTING = b"Slurm accounting storage is disabled"
_EXPLAINED = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETED")
_GRAVEST_FIRST = (
    AppState.RUNNING, AppState.PENDING, AppState.UNKNOWN, AppState.FAILED, AppState.CANCELLED,
)  # fmt: skip
_INDICES = re.compile(r"\d[\d,:-]*(%\d+)?\Z")
_ARRAY = re.compile(r"(\d+)(?:[_+](.+))?\Z")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What Slurm says of one job, or of one task of an array."""

    #: The state's name, in Slurm's own words.
    state: str
    #: Which task of an array, or component of a heterogeneous job; empty for a job that is one.
    part: str = ""
    #: Why it waits.
    reason: str = ""
    exit_code: int | None = None

    @property
    def meaning(self) -> AppState:
        """The state in our words; one that nobody has documented is unknown."""
        return STATES.get(self.state, AppState.UNKNOWN)

    @property
    def message(self) -> str:
        """What a person should know of it, in Slurm's words."""
        if self.meaning == AppState.PENDING and self.reason not in ("", "None"):
            return self.reason
        if self.state == "FAILED" and self.exit_code:
            return f"exit code {self.exit_code}"
        if self.meaning == AppState.FAILED and self.reason not in ("", "None", "NonZeroExitCode"):
            return f"{self.state}: {self.reason}"
        return "" if self.state in _EXPLAINED else self.state

    def status(self) -> JobStatus:
        """As a status."""
        code = self.exit_code if self.meaning in TERMINAL else None
        return JobStatus(state=self.meaning, exit_code=code, message=self.message)


def squeue(numbers: Sequence[str]) -> list[str]:
    """The command that asks the queue for some jobs; for tasks of an array it asks for that."""
    options = ["--noheader", "--all", "--states=all", f"--jobs={_whole(numbers)}", f"--format={SQUEUE}"]
    return [*_IN_FULL, "squeue", *options]


def sacct(numbers: Sequence[str]) -> list[str]:
    """The command that asks the accounting for some jobs; for tasks of an array it asks for that."""
    options = ["--allocations", "--noheader", "--parsable2", f"--jobs={_whole(numbers)}"]
    return [*_IN_FULL, "sacct", *options, f"--format={SACCT}"]


def _whole(numbers: Sequence[str]) -> str:
    return ",".join(dict.fromkeys(number.partition("_")[0] for number in numbers))


def parse_squeue(printed: str) -> dict[str, list[Seen]]:
    """By a job's number what that command printed of it; lines of another form are left out."""
    found = defaultdict(list)
    for line in printed.splitlines():
        name, state, reason = (*line.split("|", 2), "", "")[:3]
        if (match := _ARRAY.match(name)) and state:
            for part in _parts(match[2] or ""):
                found[match[1]].append(Seen(state=state, part=part, reason=reason.strip("()")))
    return dict(found)


def parse_sacct(printed: str) -> dict[str, list[Seen]]:
    """By a job's number what that command printed of it; lines of another form are left out."""
    found = defaultdict(list)
    for line in printed.splitlines():
        words = line.split("|")
        if len(words) >= 3 and (match := _ARRAY.match(words[0])) and words[1]:
            state, code = _first_word(words[1]), _exit_code(words[2])
            for part in _parts(match[2] or ""):
                found[match[1]].append(Seen(state=state, part=part, exit_code=code))
    return dict(found)


def parts_of(seen: Mapping[str, list[Seen]], number: str) -> list[Seen]:
    """What has been seen of a job; one that is the task of an array has its part of what was seen of that."""
    whole, _, task = number.partition("_")
    found = seen.get(whole, [])
    return [replace(part, part="") for part in found if part.part == task] if task else found


def as_one(parts: Sequence[Seen]) -> JobStatus:
    """One status of a job of several parts: it goes on while one of them does, and fails if one has."""
    by_meaning = {part.meaning: part for part in reversed(parts)}
    ended = any(meaning in TERMINAL for meaning in by_meaning)
    for state in (AppState.RUNNING, AppState.PENDING):
        if state in by_meaning and len(parts) > 1:
            state = AppState.RUNNING if ended else state
            return JobStatus(state=state, message=_counts(parts))
    for state in _GRAVEST_FIRST:
        if state in by_meaning:
            part = by_meaning[state]
            status = part.status()
            if len(parts) > 1 and state in (AppState.FAILED, AppState.CANCELLED):
                return replace(status, message=f"{part.part}: {status.message}")
            return status
    return JobStatus(state=AppState.SUCCEEDED, exit_code=0)


def _counts(parts: Iterable[Seen]) -> str:
    states = [part.state for part in parts]
    return ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))


def _parts(name: str) -> list[str]:
    """The tasks of an array that one line is for: `[3-9%2]` are those that have not begun."""
    inner = name.strip("[]")
    return indices(inner) if name.startswith("[") and _INDICES.match(inner) else [name]


def indices(array: str) -> list[str]:
    """The numbers of an array's tasks, from sbatch's own words for them."""
    found: list[str] = []
    for part in array.partition("%")[0].split(","):
        bounds, _, step = part.partition(":")
        first, _, last = bounds.partition("-")
        found += map(str, range(int(first), int(last or first) + 1, int(step or 1)))
    return found


def _first_word(state: str) -> str:
    """`CANCELLED by 1000` is CANCELLED."""
    return state.split(" ")[0].rstrip("+")


def _exit_code(text: str) -> int | None:
    """From `code:signal`."""
    code, _, signal = text.partition(":")
    if not code.isdigit() or not (signal or "0").isdigit():
        return None
    return 128 + int(signal) if signal not in ("", "0") else int(code)
