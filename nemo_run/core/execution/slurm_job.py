"""Jobs of a Slurm cluster through a tunnel: sent, found again, looked at, read, ended, brought home."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_run.core import runner
from nemo_run.core.execution.base import TERMINAL, AppState, JobHandle, JobStatus
from nemo_run.core.execution.slurm_queue import (
    NO_ACCOUNTING,
    Seen,
    as_one,
    indices,
    parse_sacct,
    parse_squeue,
    sacct,
    squeue,
)
from nemo_run.core.execution.slurm_script import environment_text
from nemo_run.core.execution.slurm_scripts import (
    Answer,
    finding,
    parse_finding,
    parse_submitting,
    submitting,
)
from nemo_run.core.tunnel.base import Tunnel
from nemo_run.errors import SubmitError, TunnelError

Record = dict[str, Any]
#: This nemo_run, which jobs on other machines are sent.
PACKAGE = Path(runner.__file__).parents[1]
#: What every batch script reads.
_HELPER = Path(__file__).with_name("slurm_job.sh")
#: Below the folder of all experiments over there: what they share.
SHARED = ".nemo_run"
#: Seconds for which an answer of squeue is good enough, so that the controller is left in peace.
_FRESH = 1.0
#: Seconds between two looks at a log, and at a job whose log says nothing new.
_LOG_PAUSE, _STATUS_PAUSE = (0.05, 1.0), 5.0
#: Seconds after which a job that cannot be seen is no longer read.
_LOST = 600.0
#: Files of a job's folder here that a job elsewhere needs.
_NEEDED = ("task.json", "configs", "scripts")
#: What jobs leave behind.
_LEFT = ("logs", "results", "artifacts")


# --- sending --------------------------------------------------------------------------------------------


def submit(tunnel: Tunnel, request: Record) -> str:
    """Send a job's files and the job, unless it is there already; its number.

    Raises:
        SubmitError: Slurm refuses it.
        TunnelError: it is unknown what became of it.
    """
    _send_files(tunnel, request)
    job = request["folder"], request["token"]
    answer = _submit(tunnel, job)
    if answer.kind == "tried":
        if number := find(tunnel, *job):
            return number
        answer = _submit(tunnel, job, again=True)
    if answer.kind != "submitted":
        words = answer.text or "sbatch said nothing"
        raise SubmitError(f"Slurm refuses job {request['id']!r}: {words}", output=words)
    return answer.text.partition(";")[0]


def _submit(tunnel: Tunnel, job: tuple[str, str], *, again: bool = False) -> Answer:
    script = submitting([job], again=again).encode(errors="surrogateescape")
    result = tunnel.run(["sh", "-s"], stdin=script, check=False)
    answers = parse_submitting(result.stdout)
    return answers.get(0) or Answer("refused", result.said)


def _send_files(tunnel: Tunnel, request: Record) -> None:
    folder, home = request["folder"], Path(request["home"])
    files = {
        "sbatch.sh": request["script"].encode(errors="surrogateescape"),
        "slurm_job.sh": _HELPER.read_bytes(),
    }
    for role, env in request["env"].items():
        values = {name: value if isinstance(value, str) else value.resolve() for name, value in env.items()}
        files[f"env/{role}.sh"] = environment_text(values).encode(errors="surrogateescape")
    if request["elsewhere"]:
        files |= _files_below(home, _NEEDED)
        if library := request["library"]:
            send_library(tunnel, library)
        if package := request["package"]:
            send_package(tunnel, request["base"], package)
    if logs := request["log_folder"]:  # where it is not, Slurm throws away what is printed
        tunnel.run(["mkdir", "-p", logs], retry=True)
    tunnel.write(folder, files)
    if request["elsewhere"] and (package := request["package"]):
        _unpack(tunnel, request["base"], package, folder)


def _files_below(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    paths = [path for name in names for path in ([folder / name, *(folder / name).rglob("*")])]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


@functools.cache
def library_files() -> dict[str, bytes]:
    """This nemo_run, by path below its folder."""
    paths = (path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".j2", ".sh"))
    return {str(path.relative_to(PACKAGE.parent)): path.read_bytes() for path in sorted(paths)}


@functools.cache
def library_name() -> str:
    """A name that no other version of nemo_run has."""
    digest = hashlib.sha256()
    for name, content in library_files().items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def send_library(tunnel: Tunnel, folder: str) -> None:
    """Have this nemo_run lie in a folder over there, whole; sent once."""
    if tunnel.run(["test", "-e", f"{folder}/complete"], check=False, retry=True).exit_code:
        tunnel.write(folder, library_files())
        tunnel.write(folder, {"complete": b""})


def send_package(tunnel: Tunnel, base: str, package: Mapping[str, Any]) -> None:
    """Have a package of code lie over there, whole; sent once for all jobs and experiments."""
    target = f"{base}/{SHARED}/packages/{package['key']}"
    if tunnel.run(["test", "-e", f"{target}/complete"], check=False, retry=True).exit_code:
        tunnel.put(Path(package["code"]), f"{target}/code")
        tunnel.write(target, {"complete": b""})


def _unpack(tunnel: Tunnel, base: str, package: Mapping[str, Any], folder: str) -> None:
    """Give a job its own copy of the code, unless it has one."""
    script = """[ -e "$2/code" ] || {
    rm -rf "$2/.code" && cp -a --reflink=auto "$1/code" "$2/.code" && mv "$2/.code" "$2/code"
}"""
    source = f"{base}/{SHARED}/packages/{package['key']}"
    tunnel.run(["sh", "-c", script, "sh", source, folder], retry=True)


def find(tunnel: Tunnel, folder: str, token: str) -> str | None:
    """The number of the job that was submitted from this folder, if one was.

    Raises:
        TunnelError: neither the folder nor Slurm can be asked, so that nobody knows.
    """
    result = tunnel.run(finding(folder, token), retry=True)
    return parse_finding(result.text, folder, token)


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
            if not (fresh and all(number in self._seen for number in numbers)):
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
        if code:
            roles = _roles(self.handle)
            who = f"{roles[end['member']]}: " if len(roles) > 1 else ""
            message = who + _failure(code)
        state = AppState.FAILED if code else AppState.SUCCEEDED
        return self.fill(JobStatus(state=state, exit_code=code, message=message))

    def fill(self, status: JobStatus) -> JobStatus:
        """What Slurm says, with what it does not say: exit codes, times, attempts."""
        begin, end = self.begin or {}, self.end or {}
        code, message = status.exit_code, status.message
        if status.state in TERMINAL and code in (None, 0):
            code = {"TIMEOUT": 124, "CANCELLED": 143, "OUT_OF_MEMORY": 137}.get(
                message, end.get("exit_code") if status.state != AppState.SUCCEEDED else 0
            )
        if message == "TIMEOUT":
            limit = self.handle.data["limit"]
            message = f"TIMEOUT: ran longer than {limit} s" if limit else "TIMEOUT: ran longer than allowed"
        elif message == "CANCELLED":
            message = "cancelled"
        elif status.state == AppState.FAILED and not message:
            message = f"FAILED, without word in {self.handle.data['folder']}: do the nodes see that folder?"
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
    found = {key: status for key, word in words.items() if (status := word.final)}
    rest, problem = [handle for handle in handles if handle.id not in found], ""
    seen: dict[str, list[Seen]] = {}
    for ask in (_ask_queue, _sacct):
        asked = [
            h.data["job"] for h in rest if not _is_settled(h, seen.get(h.data["job"], []), ask is _sacct)
        ]
        try:
            answer = ask(tunnel, asked) if asked else {}
        except TunnelError as exc:
            problem, answer = problem or str(exc), {}
        for number in asked:
            if parts := answer.get(number):
                seen[number] = _together(seen.get(number, []), parts, ends_alone=ask is _sacct)
    for handle in rest:
        parts = _with_own_words(tunnel, handle, seen.get(handle.data["job"], []))
        word = words[handle.id]
        found[handle.id] = word.fill(as_one(parts)) if parts else _unseen(word, problem)
    return [_brought_home(tunnel, handle, found[handle.id]) for handle in handles]


def _ask_queue(tunnel: Tunnel, numbers: Sequence[str]) -> dict[str, list[Seen]]:
    return queue(repr(tunnel), os.environ.get("SLURM_CONF", "")).look(tunnel, numbers)


def _is_settled(handle: JobHandle, parts: Sequence[Seen], asked: bool) -> bool:
    """Whether the queue has said enough of a job: all of it, or that some of it goes on."""
    if not asked or not parts:
        return False
    goes_on = any(part.meaning not in TERMINAL for part in parts)
    return goes_on or len(parts) >= _count(handle)


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
    if not handle.data["array"] or any(part.meaning not in TERMINAL for part in parts):
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


def _unseen(word: Word, problem: str) -> JobStatus:
    """A job of which Slurm knows nothing; if it could be asked, what the job said last counts."""
    if not problem and (status := word.last):
        return status
    number = word.handle.data["job"]
    message = problem or f"Slurm knows of no job {number} any more, and it has left no word of its end"
    return JobStatus(state=AppState.UNKNOWN, message=message)


# --- bringing home --------------------------------------------------------------------------------------


def _brought_home(tunnel: Tunnel, handle: JobHandle, status: JobStatus) -> JobStatus:
    """The status, once what an ended job left behind is here."""
    folder, home = handle.data["folder"], Path(handle.data["home"])
    if status.state not in TERMINAL or folder == str(home) or not home.is_dir():
        return status
    mark = home / "brought_home"
    if mark.exists():
        return status
    try:
        there = tunnel.run(["sh", "-c", 'cd -- "$0" && ls', folder], check=False, retry=True)
        for name in set(there.text.split("\n")) & set(_LEFT):
            tunnel.get(f"{folder}/{name}", home / name)
    except TunnelError as exc:
        message = f"{status.state}, but what it left in {folder} cannot be copied yet: {exc}"
        return JobStatus(state=AppState.UNKNOWN, message=message)
    runner.write(str(mark), "")
    return status


# --- ending and reading ---------------------------------------------------------------------------------

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


def log_lines(tunnel: Tunnel, handle: JobHandle, role: str, replica: int, *, follow: bool) -> Iterator[str]:
    """Line by line, attempt after attempt, by offset."""
    attempt, latest = 1, 1
    while attempt <= latest:
        latest = yield from _attempt_lines(tunnel, handle, role, replica, attempt, follow)
        attempt += 1


def _attempt_lines(
    tunnel: Tunnel, handle: JobHandle, role: str, replica: int, attempt: int, follow: bool
) -> Generator[str, None, int]:
    """One attempt's lines; returns the number of the latest attempt."""
    folder = handle.data["folder"]
    path = f"{folder}/logs/{runner.record_stem(role, replica, attempt)}.log"
    offset, rest, pause, over = 0, b"", _LOG_PAUSE[0], _Over(tunnel, handle)
    last = not follow
    while True:
        found = tunnel.read({path: offset, f"{folder}/begin.json": 0, f"{folder}/end.json": 0})
        word = Word(handle, found)
        latest = int((word.begin or {}).get("attempt", 1))
        if chunk := found.get(path, b""):
            offset, pause = offset + len(chunk), _LOG_PAUSE[0]
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                yield from whole.decode(errors="replace").split("\n")
        elif last or latest > attempt:
            if rest:
                yield rest.decode(errors="replace")
            return latest
        # What it printed before its end is read once more after that is known.
        elif not (last := word.final is not None or over()):
            time.sleep(pause)
            pause = min(pause * 1.5, _LOG_PAUSE[1])


class _Over:
    """Whether a job of which there is no news has ended, or been out of sight for very long."""

    def __init__(self, tunnel: Tunnel, handle: JobHandle) -> None:
        self._tunnel, self._handle = tunnel, handle
        self._asked = self._seen = time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._asked < _STATUS_PAUSE:
            return False
        [status] = look(self._tunnel, [self._handle])
        self._asked = time.monotonic()
        if status.state != AppState.UNKNOWN:
            self._seen = now
        return status.state in TERMINAL or now - self._seen > _LOST
