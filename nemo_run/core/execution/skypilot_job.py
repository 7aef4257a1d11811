"""Jobs by SkyPilot: handed over, found again, looked at, read and ended."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import tarfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nemo_run.core import runner
from nemo_run.core.execution.base import TERMINAL, AppState, JobHandle, JobStatus
from nemo_run.core.execution.skypilot_client import client
from nemo_run.core.execution.skypilot_log import Line, Log
from nemo_run.core.execution.skypilot_task import ARCHIVE, LIBRARY
from nemo_run.core.execution.slurm_submit import library_files
from nemo_run.core.logfile import read_lines
from nemo_run.core.records import read_record
from nemo_run.errors import NemoRunError, SubmitError, TunnelError, suggestion

logger = logging.getLogger(__name__)

Record = dict[str, Any]
#: In a job's folder: what was handed over, how the job ended, and that somebody wanted it to end.
_NOTE, _END, _CANCELLED = "skypilot.json", "end.json", "cancelled"
#: What of a job's folder the nodes need.
_TAKEN = ("task.json", "configs", "scripts")
#: SkyPilot's words for a job that has not begun, and for one that has not ended.
_WAITING = {"INIT", "PENDING", "SETTING_UP", "SUBMITTED", "STARTING", "RECOVERING"}
_OPEN = _WAITING | {"RUNNING", "CANCELLING"}
_STATES = {"SUCCEEDED": AppState.SUCCEEDED, "CANCELLED": AppState.CANCELLED}
#: Seconds between two looks for a job whose log is waited for, and for which an API server may be away.
_PAUSE, _PATIENCE = 1.0, 600.0
#: Seconds for which an answer is good enough.
_FRESH = 1.0


# --- submitting -----------------------------------------------------------------------------------------


def submit(request: Record) -> dict[str, str]:
    """Hand a job over, once: what its handle holds.

    Raises:
        SubmitError: SkyPilot refuses it, or nobody has what it asks for.
        TunnelError: the API server cannot be reached.
    """
    home = Path(request["home"])
    if found := find(home, request["token"]):
        return found
    _pack(request, home)
    note = {name: request[name] for name in ("token", "name", "cluster")}
    note |= {"managed": "yes" if request["options"]["managed"] else "", "made": "", "request": ""}
    note |= {"autodown": "yes" if request["options"]["autodown"] else ""}
    note |= {"roles": json.dumps([member["name"] for member in request["starts"]["members"]])}
    secrets = {name: value.resolve() for name, value in request["secrets"].items()}
    path = str(home / _NOTE)
    runner.write(path, json.dumps(note), sync=True)
    try:
        answer = client().ask(
            "launch",
            task=request["task"],
            secrets=secrets,
            cluster=request["cluster"],
            options=request["options"],
            note=path,
        )
    except NemoRunError as exc:
        if not isinstance(exc, TunnelError):
            os.unlink(path)  # it was not begun
        raise _explained(exc, request["options"]["gpus"]) from exc
    return _data(home, {**note, **answer})


def _explained(exc: NemoRunError, gpus: Any) -> NemoRunError:
    """With the nearest names, where it may be the accelerator's name that nobody knows."""
    if not gpus or not isinstance(exc, SubmitError) or "resource" not in exc.output.lower():
        return exc
    with contextlib.suppress(NemoRunError):
        known = client().ask("accelerators")
        for name in gpus if isinstance(gpus, (list, tuple)) else [gpus]:
            kind = str(name).partition(":")[0]
            if kind.upper() not in map(str.upper, known):
                problem = f"SkyPilot knows no accelerator {kind!r}{suggestion(kind, known)}"
                return SubmitError(f"{problem}: {exc.output.strip()}", output=exc.output)
    return exc


def _data(home: Path, note: Mapping[str, str]) -> dict[str, str]:
    names = ("name", "cluster", "managed", "made", "request", "autodown", "roles")
    return {"home": str(home), **{name: note[name] for name in names}}


def connect() -> None:
    """Be able to submit.

    Raises:
        MissingDependencyError: SkyPilot is not installed.
        SubmitError: no cloud is enabled.
        TunnelError: the API server cannot be reached.
    """
    if not client().ask("clouds"):
        raise SubmitError("SkyPilot has no cloud enabled; run `sky check` and follow its hints")


def find(home: Path, token: str) -> dict[str, str] | None:
    """What is known of a submission with this token, if there was one.

    Raises:
        TunnelError: SkyPilot must be asked, and does not answer.
    """
    note = read_record(home / _NOTE)
    if note is None or note["token"] != token:
        return None
    if not note["request"]:
        found = client().ask("find", name=note["name"], cluster=note["cluster"])
        if found is None:
            return None
        note |= found
        runner.write(str(home / _NOTE), json.dumps(note))
    return _data(home, note)


def _pack(request: Record, home: Path) -> None:
    """All that the nodes need, in one file."""
    for name in (_END, _CANCELLED):
        (home / name).unlink(missing_ok=True)
    temporary = home / f".{ARCHIVE}.{os.getpid()}"
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(number, "wb") as file, tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        _add(archive, "start.json", json.dumps(request["starts"]).encode())
        for name, content in library_files().items():
            _add(archive, f"{LIBRARY}/{name}", content)
        for name in _TAKEN:
            if (home / name).exists():
                archive.add(home / name, name)
        if request["package"]:
            archive.add(request["package"]["code"], "code")
    os.replace(temporary, home / ARCHIVE)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o600
    archive.addfile(entry, io.BytesIO(content))


# --- looking --------------------------------------------------------------------------------------------


def look(handles: Sequence[JobHandle]) -> list[JobStatus]:
    """One status each; ends once what the job left is here."""
    found = {handle.id: status for handle in handles if (status := _settled(handle))}
    open_ones = [handle for handle in handles if handle.id not in found]
    if open_ones:
        try:
            answer = _ask(open_ones)
        except NemoRunError as exc:
            unknown = JobStatus(state=AppState.UNKNOWN, message=str(exc))
            found |= {handle.id: unknown for handle in open_ones}
        else:
            with ThreadPoolExecutor(8) as pool:
                statuses = pool.map(lambda handle: _status(handle, answer), open_ones)
                found |= dict(zip((handle.id for handle in open_ones), statuses, strict=True))
            _take_down([handle for handle in open_ones if found[handle.id].state in TERMINAL])
    return [found[handle.id] for handle in handles]


def _ask(handles: Sequence[JobHandle]) -> Record:
    """What SkyPilot says of some jobs: one request for the jobs of each cluster, and none twice a second."""
    with _TURN:
        names = {handle.data["name"] for handle in handles}
        known, at = _latest()
        if known and time.monotonic() - at[0] < _FRESH and names <= {*known["jobs"], *known["launches"]}:
            return dict(known)
        known.clear()
        known |= _ask_now(handles)
        at[0] = time.monotonic()
        return dict(known)


_TURN = threading.Lock()


@functools.cache
def _latest() -> tuple[Record, list[float]]:
    """The latest answer of this process, and when it came."""
    return {}, [0.0]


def _ask_now(handles: Sequence[JobHandle]) -> Record:
    clusters: dict[str, dict[str, str]] = defaultdict(dict)
    for handle in handles:
        clusters[handle.data["cluster"]][handle.data["name"]] = handle.data["request"]
    answer: Record = {"jobs": {}, "launches": {}}
    managed = clusters.pop("", None)
    parts = [client().ask("managed", jobs=managed)] if managed else []
    parts += [client().ask("look", clusters=clusters)] if clusters else []
    for part in parts:
        answer["jobs"] |= part["jobs"]
        answer["launches"] |= part["launches"]
    return answer


def _settled(handle: JobHandle) -> JobStatus | None:
    """What can be said without asking anybody."""
    home = Path(handle.data["home"])
    if not home.is_dir():
        return JobStatus(state=AppState.UNKNOWN, message=f"its folder is gone: {home}")
    end = read_record(home / _END)
    if end is None or end["token"] != handle.id:
        return None
    return JobStatus(**{**end["status"], "state": AppState[end["status"]["state"]]})


def _status(handle: JobHandle, answer: Record) -> JobStatus:
    name = handle.data["name"]
    if job := answer["jobs"].get(name):
        return _status_of_job(handle, job)
    return _status_of_launch(handle, answer["launches"].get(name) or {"status": ""})


def _status_of_job(handle: JobHandle, job: Record) -> JobStatus:
    word = job["status"]
    if word in _WAITING:
        said = "" if word in ("INIT", "PENDING") else job["said"] or ""
        return JobStatus(state=AppState.PENDING, message=": ".join(filter(None, (word, said))))
    if word in _OPEN:
        message = word if word == "CANCELLING" else ""
        return JobStatus(state=AppState.RUNNING, started=job["started"], message=message)
    try:
        return _bring_home(handle, job)
    except (NemoRunError, OSError, EOFError, ValueError, tarfile.TarError) as exc:
        message = f"{word}, but what it printed and left cannot be had yet: {exc}"
        return JobStatus(state=AppState.UNKNOWN, message=message)


def _status_of_launch(handle: JobHandle, launch: Record) -> JobStatus:
    word = launch["status"].upper()
    cluster = handle.data["cluster"]
    if word == "CANCELLED" or (word in ("FAILED", "SUCCEEDED") and _is_cancelled(handle)):
        return _keep(handle, JobStatus(state=AppState.CANCELLED, exit_code=143, message="cancelled"))
    if word == "FAILED":
        left = launch["cluster"] if handle.data["made"] and not handle.data["autodown"] else ""
        step = f"; cluster {cluster} is left {left}: `sky down {cluster}` ends it" if left else ""
        return _keep(handle, JobStatus(state=AppState.FAILED, message=f"SkyPilot: {launch['said']}{step}"))
    if word == "SUCCEEDED":
        message = f"cluster {cluster!r} is gone or stopped, and how the job ended was not seen before"
        return JobStatus(state=AppState.UNKNOWN, message=message)
    if not word:
        return JobStatus(state=AppState.UNKNOWN, message="SkyPilot's API server knows nothing of it")
    return JobStatus(state=AppState.PENDING, message=launch["words"] or "SkyPilot is launching it")


# --- ends -----------------------------------------------------------------------------------------------


def _bring_home(handle: JobHandle, job: Record) -> JobStatus:
    """Have what a job printed and left in its folder here, then keep how it ended."""
    home, roles = Path(handle.data["home"]), json.loads(handle.data["roles"])
    log = Log(roles)
    lines: dict[tuple[str, int], list[str]] = defaultdict(list)
    for line in log.read(
        client().stream("lines", cluster=handle.data["cluster"], job=job["job"], follow=False)
    ):
        lines[line.role, line.node].append(line.text)
    (home / "logs").mkdir(mode=0o700, exist_ok=True)
    if not lines and job["status"] != "SUCCEEDED":
        lines[roles[0], 0] = log.words  # why it never began
    for (role, node), texts in lines.items():
        content = "".join(f"{text}\n" for text in texts)
        runner.write(str(home / "logs" / f"{runner.record_stem(role, node, 1)}.log"), content)
    runner.write(str(home / "logs" / "skypilot.log"), "".join(f"{word}\n" for word in log.words))
    log.unpack(home)
    return _keep(handle, _end(handle, job, log))


def _end(handle: JobHandle, job: Record, log: Log) -> JobStatus:
    """From the nodes' own words, which SkyPilot's are not as exact as."""
    state = _STATES.get(job["status"], AppState.FAILED)
    failed = sorted((end for end in log.ends.values() if end["exit_code"]), key=lambda end: end["ended"])
    first: Record = failed[0] if failed else {}
    code = 0 if state == AppState.SUCCEEDED else first.get("exit_code")
    if state == AppState.CANCELLED:
        code, message = 143, "cancelled"
    elif state == AppState.SUCCEEDED:
        message = ""
    else:
        message = _failure(job, first, json.loads(handle.data["roles"]))
    return JobStatus(
        state=state,
        exit_code=code,
        message=message,
        attempt=max((end["attempt"] for end in log.ends.values()), default=1),
        started=job["started"],
        ended=job["ended"],
    )


def _failure(job: Record, end: Record, roles: Sequence[str]) -> str:
    import signal

    if not end:
        return ": ".join(filter(None, (job["status"], job["said"])))
    if end["why"] == "timeout":
        return f"TIMEOUT: ran longer than {end['ended'] - end['started']:.0f} s"
    code = end["exit_code"]
    message = f"exit code {code}"
    with contextlib.suppress(ValueError):
        if code > 128:
            message = f"killed by {signal.Signals(code - 128).name}"
    return f"{end['member']}: {message}" if len(roles) > 1 else message


def _keep(handle: JobHandle, status: JobStatus) -> JobStatus:
    """Write an end down, which outlives the cluster."""
    told = {name: value for name, value in vars(status).items() if name != "state"}
    record = {"token": handle.id, "status": {**told, "state": status.state.name}}
    runner.write(str(Path(handle.data["home"]) / _END), json.dumps(record))
    return status


def _is_cancelled(handle: JobHandle) -> bool:
    return (Path(handle.data["home"]) / _CANCELLED).exists()


# --- clusters that are no longer needed -----------------------------------------------------------------


def _take_down(ended: Sequence[JobHandle]) -> None:
    """Take down clusters that were made for such jobs, where that was asked for and none is left."""
    due = {(each.data["cluster"], Path(each.data["home"]).parent) for each in ended if each.data["autodown"]}
    for cluster, experiment in due:
        notes = [read_record(path) for path in experiment.glob(f"*/{_NOTE}")]
        ours = any(note and note["cluster"] == cluster and note["made"] for note in notes)
        if not (cluster and ours) or _is_needed(experiment, cluster):
            continue
        try:
            client().ask("down", cluster=cluster)
        except NemoRunError as exc:
            logger.warning("cluster %s could not be taken down: %s; run `sky down %s`", cluster, exc, cluster)


def _is_needed(experiment: Path, cluster: str) -> bool:
    """Whether a job of the experiment is still to run by SkyPilot, or anybody's job is on the cluster."""
    for path in experiment.glob("*/job.json"):
        record, end = read_record(path), (path.parent / _END).exists()
        waits = record is not None and AppState[record["state"]] not in TERMINAL and not end
        if waits and "skypilot" in (path.parent / "executor.json").read_text():
            return True
    with contextlib.suppress(NemoRunError):
        jobs = client().ask("look", clusters={cluster: {}})["jobs"].values()
        return any(job["status"] in _OPEN for job in jobs)
    return True


# --- ending ---------------------------------------------------------------------------------------------


def cancel(handle: JobHandle) -> None:
    """Ask for a job's end, and say what is left running.

    Raises:
        SubmitError: SkyPilot refuses.
        TunnelError: it cannot be asked.
    """
    if _settled(handle):
        return
    runner.write(str(Path(handle.data["home"]) / _CANCELLED), "")
    name, cluster = handle.data["name"], handle.data["cluster"]
    answer = _ask([handle])
    if job := answer["jobs"].get(name):
        if job["status"] in (*_WAITING, "RUNNING"):
            client().ask("cancel", cluster=cluster, job=job["job"])
    elif handle.data["request"]:
        client().ask("cancel_launch", request=handle.data["request"])
    with _TURN:
        _latest.cache_clear()  # what was true before is not now
    if cluster and not handle.data["autodown"]:
        _tell_what_is_left(cluster)


def _tell_what_is_left(cluster: str) -> None:
    with contextlib.suppress(NemoRunError):
        if there := client().ask("clusters", names=[cluster]).get(cluster):
            # SkyPilot knows no price of Kubernetes and Slurm, which need not be for nothing.
            cost = f" and costs ${there['cost']:.2f} an hour" if there["cost"] else ""
            logger.warning(
                "cluster %s (%s) is %s%s; `sky down %s` ends it",
                cluster, there["resources"], there["status"], cost, cluster,
            )  # fmt: skip


# --- reading --------------------------------------------------------------------------------------------


def log_lines(handle: JobHandle, role: str, replica: int, *, follow: bool) -> Iterator[str]:
    """Of an ended job from its folder; else from SkyPilot, which first tells what it makes a cluster of."""
    path = Path(handle.data["home"]) / "logs" / f"{runner.record_stem(role, replica, 1)}.log"
    if _settled(handle):
        yield from read_lines(path, lambda: False)
        return
    if follow and handle.data["made"] and (role, replica) == (json.loads(handle.data["roles"])[0], 0):
        for said in client().stream("launch_lines", request=handle.data["request"], follow=True):
            yield f"(skypilot) {said}"
    if (number := _number(handle, follow)) is None:
        if _settled(handle):
            yield from read_lines(path, lambda: False)
        return
    for line in _live(handle, number, follow):
        if (line.role, line.node) == (role, replica):
            yield line.text


def _number(handle: JobHandle, follow: bool) -> int | None:
    """A job's number on its cluster, once it has one; None if it has none, or never will."""
    request = handle.data["request"]
    deadline = time.monotonic() + _PATIENCE
    while not _settled(handle):
        try:
            if follow and request:
                number: int | None = client().ask("number", request=request)
                return number
            job = _ask([handle])["jobs"].get(handle.data["name"])
        except SubmitError:
            return None  # the launch failed
        except NemoRunError:
            if time.monotonic() > deadline or not follow:
                raise
            job = None
        if job or not follow:
            return int(job["job"]) if job else None
        time.sleep(_PAUSE)
    return None


def _live(handle: JobHandle, number: int, follow: bool) -> Iterator[Line]:
    """A job's lines as they come; where that stops before the job does it is read again from there.

    It stops where a connection is cut, and of itself where a job takes seconds to begin.
    """
    seen, deadline = 0, time.monotonic() + _PATIENCE
    roles = json.loads(handle.data["roles"])
    while True:
        chunks = client().stream("lines", cluster=handle.data["cluster"], job=number, follow=follow)
        log = Log(roles)
        try:
            for at, line in enumerate(log.read(chunks)):
                if at >= seen:
                    seen, deadline = at + 1, time.monotonic() + _PATIENCE
                    yield line
            if not follow or log.ends or not _goes_on(handle):
                return
        except NemoRunError:
            if not follow or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)


def _goes_on(handle: JobHandle) -> bool:
    """Whether SkyPilot knows of a job that has not ended."""
    job = None if _settled(handle) else _ask([handle])["jobs"].get(handle.data["name"])
    return job is not None and job["status"] in _OPEN
