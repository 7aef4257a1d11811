"""Jobs of a Slurm cluster through a tunnel: looked at, from their own words and from Slurm's, and ended."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_run.core.execution.base import TERMINAL, AppState, JobHandle, JobStatus
from nemo_run.core.execution.slurm_queue import (
    NO_ACCOUNTING,
    Seen,
    as_one,
    indices,
    parse_sacct,
    parse_squeue,
    parts_of,
    sacct,
    squeue,
)
from nemo_run.core.tunnel.base import Tunnel
from nemo_run.errors import SubmitError, TunnelError

Record = dict[str, Any]
#: Seconds for which an answer of squeue is good enough, so that the controller is left in peace.
_FRESH = 1.0


# --- looking --------------------------------------------------------------------------------------------


class Queue:
    """The queue of one cluster, as this process last saw it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, list[Seen]] = {}
        self._at = -_FRESH

    def look(self, tunnel: Tunnel, numbers: Sequence[str]) -> dict[str, list[Seen]]:
        """By number those of some jobs that Slurm's controller knows, by one command at most."""
        with self._lock:
            fresh = time.monotonic() - self._at < _FRESH
            if not (fresh and all(parts_of(self._seen, number) for number in numbers)):
                self._seen = _squeue(tunnel, numbers)
                self._at = time.monotonic()
            return self._seen


@functools.cache
def queue(tunnel: str, conf: str) -> Queue:
    """The queue that a tunnel with these settings leads to."""
    return Queue()


def _squeue(tunnel: Tunnel, numbers: Sequence[str]) -> dict[str, list[Seen]]:
    result = tunnel.run(squeue(numbers), check=False, retry=True)
    if result.exit_code and b"Invalid job id" not in result.stderr:
        raise TunnelError(f"squeue on {tunnel.key} failed: {result.said}", ran=True, result=result)
    return parse_squeue(result.text)


def _sacct(tunnel: Tunnel, numbers: Sequence[str]) -> dict[str, list[Seen]]:
    result = tunnel.run(sacct(numbers), check=False, retry=True)
    if result.exit_code and NO_ACCOUNTING not in result.stderr + result.stdout:
        raise TunnelError(f"sacct on {tunnel.key} failed: {result.said}", ran=True, result=result)
    return {} if result.exit_code else parse_sacct(result.text)


class Word:
    """The word that a job itself has left of its beginning and its end, in its folder."""

    def __init__(self, handle: JobHandle, files: Mapping[str, bytes]) -> None:
        self.handle = handle
        self.begin = _record(files.get(f"{handle.data['folder']}/begin.json"), handle)
        self.end = _record(files.get(f"{handle.data['folder']}/end.json"), handle)
        if self.begin and self.end and self.end["attempt"] < self.begin["attempt"]:
            self.end = None  # of one whose node was taken for dead while the next ran
        self.cancelled = f"{handle.data['folder']}/cancelled" in files

    @property
    def final(self) -> JobStatus | None:
        """Its end, if it ended by itself: one that was signalled may run again, and Slurm knows why."""
        return self._status(self.end) if self.end and not self.end["signal"] else None

    @property
    def last(self) -> JobStatus | None:
        """Its end, if nobody else knows of it any more."""
        if self.end and self.end["signal"]:
            limit, ran = float(self.handle.data["limit"] or "inf"), self.end["ended"] - self.end["started"]
            if ran >= limit - 30 and not self.cancelled:
                return self.fill(Seen(state="TIMEOUT").status())
        if self.cancelled or (self.end and self.end["signal"]):
            return self.fill(Seen(state="CANCELLED").status())
        return None

    def _status(self, end: Record) -> JobStatus:
        code = int(end["exit_code"])
        message = ""
        if why := end.get("again"):
            what = "TIMEOUT: its time was up" if end["told"] else "it asked to be run again"
            message = f"{what} in attempt {end['attempt']}, and {why}"
        elif code:
            roles = _roles(self.handle)
            who = f"{roles[end['member']]}: " if len(roles) > 1 else ""
            message = who + _failure(code)
        state = AppState.FAILED if code else AppState.SUCCEEDED
        return self.fill(JobStatus(state=state, exit_code=code, message=message))

    def fill(self, status: JobStatus) -> JobStatus:
        """What Slurm says, with what it does not say: exit codes, times, attempts."""
        begin, end = self.begin or {}, self.end or {}
        code, message = status.exit_code, status.message.removesuffix(": TimeLimit")
        if status.state in TERMINAL and code in (None, 0):
            code = {"TIMEOUT": 124, "CANCELLED": 143, "OUT_OF_MEMORY": 137}.get(
                message, end.get("exit_code") if status.state != AppState.SUCCEEDED else 0
            )
        if message == "TIMEOUT":
            limit = self.handle.data["limit"]
            message = f"TIMEOUT: ran longer than {limit} s" if limit else "TIMEOUT: ran longer than allowed"
            message += ", and its retries are spent" if end.get("told") else ""
        elif message == "CANCELLED":
            message = "cancelled"
        elif status.state == AppState.FAILED and message in ("", "FAILED"):
            message = f"FAILED, without word in {self.handle.data['folder']}: "
            message += "a node could not start it again" if begin else "do the nodes see that folder?"
        ended = end.get("ended") if status.state in TERMINAL else None
        return JobStatus(
            state=status.state,
            exit_code=code,
            message=message,
            attempt=int(begin.get("attempt", 1)),
            started=begin.get("started") if status.state != AppState.PENDING else None,
            ended=ended,
        )


def _record(text: bytes | None, handle: JobHandle) -> Record | None:
    """A record that a job wrote; one of another job that had this folder does not count."""
    try:
        record: Record = json.loads(text or b"null") or {}
    except ValueError:
        return None
    return record if record.get("job") == handle.data["job"] else None


def _roles(handle: JobHandle) -> list[str]:
    """The members of a job in their order, where its folder is still here."""
    with contextlib.suppress(OSError):
        return list(json.loads(Path(handle.data["home"], "task.json").read_bytes()))
    return []


def _failure(code: int) -> str:
    import signal

    with contextlib.suppress(ValueError):
        if code > 128:
            return f"killed by {signal.Signals(code - 128).name}"
    return f"exit code {code}"


def read_words(tunnel: Tunnel, handles: Sequence[JobHandle]) -> dict[str, Word]:
    """What jobs say of themselves, by their handles' ids, in one round trip."""
    names = ("begin.json", "end.json", "cancelled")
    paths = {f"{handle.data['folder']}/{name}": 0 for handle in handles for name in names}
    files = tunnel.read(paths)
    return {handle.id: Word(handle, files) for handle in handles}


def any_ended(tunnel: Tunnel, handles: Sequence[JobHandle]) -> bool:
    """Whether one of them has said that it ended."""
    return any(word.final for word in read_words(tunnel, handles).values())


def look(tunnel: Tunnel, handles: Sequence[JobHandle]) -> list[JobStatus]:
    """One status each: from the job's own word, the queue, the accounting, in this order."""
    words = read_words(tunnel, handles)
    rest = [handle for handle in handles if not words[handle.id].final]
    seen, accounted, problem = _ask_slurm(tunnel, rest)
    if not problem:
        # A job may end between its word and Slurm's; by now its last word is there.
        over = [handle for handle in rest if not _goes_on(seen.get(handle.data["job"], []))]
        words |= read_words(tunnel, over) if over else {}
    found = []
    for handle in handles:
        word, parts = words[handle.id], seen.get(handle.data["job"], [])
        if not (status := word.final):
            parts = _with_own_words(tunnel, handle, parts)
            status = word.fill(as_one(parts)) if parts else _unseen(word, problem, accounted)
        found.append(status)
    return found


def _ask_slurm(
    tunnel: Tunnel, handles: Sequence[JobHandle]
) -> tuple[dict[str, list[Seen]], dict[str, list[Seen]], str]:
    """What Slurm says of each job, all that its accounting says, and why it could not be asked."""
    seen: dict[str, list[Seen]] = {}
    answer: dict[str, list[Seen]] = {}
    for ask in (_ask_queue, _sacct):
        asked = [
            h.data["job"] for h in handles if not _is_settled(h, seen.get(h.data["job"], []), ask is _sacct)
        ]
        try:
            answer = ask(tunnel, asked) if asked else {}
        except TunnelError as exc:
            # Without the queue there is no telling whether a job that has ended will run again.
            return seen, {}, str(exc)
        for number in asked:
            if parts := parts_of(answer, number):
                seen[number] = _together(seen.get(number, []), parts, ends_alone=ask is _sacct)
    return seen, answer, ""


def _ask_queue(tunnel: Tunnel, numbers: Sequence[str]) -> dict[str, list[Seen]]:
    return queue(repr(tunnel), os.environ.get("SLURM_CONF", "")).look(tunnel, numbers)


def _is_settled(handle: JobHandle, parts: Sequence[Seen], asked: bool) -> bool:
    """Whether the queue has said enough of a job: all of it, or that some of it goes on."""
    if not asked or not parts:
        return False
    return _goes_on(parts) or len(parts) >= _count(handle)


def _goes_on(parts: Sequence[Seen]) -> bool:
    return any(part.meaning not in TERMINAL for part in parts)


def _count(handle: JobHandle) -> int:
    """How many parts a job has, as far as that is known: the tasks of an array."""
    return len(indices(handle.data["array"])) if handle.data["array"] else 1


def _together(known: list[Seen], parts: Sequence[Seen], *, ends_alone: bool) -> list[Seen]:
    """What two answers say of the parts of a job; what is no longer queued cannot be waiting or running."""
    names = {part.part for part in known}
    return known + [
        part for part in parts if part.part not in names and not (ends_alone and part.meaning not in TERMINAL)
    ]


def _with_own_words(tunnel: Tunnel, handle: JobHandle, parts: list[Seen]) -> list[Seen]:
    """Of an array's tasks also what they say themselves: exit codes, and ends that Slurm has forgotten."""
    if not handle.data["array"] or _goes_on(parts):
        return parts
    by_name = {part.part: part for part in parts}
    paths = {f"{handle.data['folder']}/end_{name}.json": name for name in indices(handle.data["array"])}
    for path, text in tunnel.read(dict.fromkeys(paths, 0)).items():
        end = json.loads(text)
        if not end["signal"]:
            state = "FAILED" if end["exit_code"] else "COMPLETED"
            by_name[paths[path]] = Seen(state=state, part=paths[path], exit_code=end["exit_code"])
    for name in paths.values():
        by_name.setdefault(name, Seen(state="LOST", part=name))
    return list(by_name.values()) if any(part.state != "LOST" for part in by_name.values()) else []


def _unseen(word: Word, problem: str, accounted: Mapping[str, list[Seen]]) -> JobStatus:
    """A job of which Slurm knows nothing; if it could be asked, what the job said last counts."""
    if not problem and (status := word.last):
        return status
    number = word.handle.data["job"]
    whole, _, task = number.partition("_")
    if task and not problem and not word.begin and whole in accounted:
        # What is taken out of an array before it begins is never heard of again.
        return word.fill(Seen(state="CANCELLED").status())
    message = problem or f"Slurm knows of no job {number} any more, and it has left no word of its end"
    return JobStatus(state=AppState.UNKNOWN, message=message)


# --- ending ---------------------------------------------------------------------------------

_CANCEL = """\
said=$(scancel "$1" 2>&1) || case $said in
*'Invalid job id'* | *'already comple'*) exit 0 ;;
*) printf '%s\\n' "$said" >&2; exit 1 ;;
esac
umask 077
cd -- "$2" 2>/dev/null && echo "$1" >cancelled
exit 0
"""


def cancel(tunnel: Tunnel, handle: JobHandle) -> None:
    """Have Slurm end a job, unless it has ended.

    Raises:
        SubmitError: Slurm does not answer.
    """
    if read_words(tunnel, [handle])[handle.id].final:
        return
    result = tunnel.run(
        ["sh", "-c", _CANCEL, "sh", handle.data["job"], handle.data["folder"]], check=False, retry=True
    )
    if result.exit_code:
        raise SubmitError(f"cannot cancel {handle.id!r}: {result.said}", output=result.said)
