"""The life of a job on Vertex AI: submitted once, looked at, and brought home when it has ended."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import re
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core import runner
from nemo_run.core.execution import vertex_files
from nemo_run.core.execution.base import TERMINAL, AppState, JobHandle, JobStatus, Plan
from nemo_run.core.execution.vertex_client import Bucket, Jobs, Refusal, log_entries
from nemo_run.core.execution.vertex_plan import EXPERIMENT, TOKEN, digest
from nemo_run.core.logfile import read_lines
from nemo_run.core.packaging.image import Image
from nemo_run.core.records import read_record
from nemo_run.errors import NemoRunError, SubmitError

if TYPE_CHECKING:
    from nemo_run.core.execution.vertex import VertexExecutor

#: What Vertex AI's states are here; a job that is being ended still runs.
_STATES = {
    "JOB_STATE_QUEUED": AppState.PENDING,
    "JOB_STATE_PENDING": AppState.PENDING,
    "JOB_STATE_RUNNING": AppState.RUNNING,
    "JOB_STATE_SUCCEEDED": AppState.SUCCEEDED,
    "JOB_STATE_FAILED": AppState.FAILED,
    "JOB_STATE_CANCELLING": AppState.RUNNING,
    "JOB_STATE_CANCELLED": AppState.CANCELLED,
    "JOB_STATE_PAUSED": AppState.PENDING,
    "JOB_STATE_EXPIRED": AppState.FAILED,
    "JOB_STATE_UPDATING": AppState.RUNNING,
    "JOB_STATE_PARTIALLY_SUCCEEDED": AppState.FAILED,
}
#: So many ended jobs are brought home at a time.
_AT_ONCE = 8
#: Held by whoever brings what several jobs need.
_SHARING = threading.Lock()
#: What it says of a replica that failed, and of one that had no memory left.
_EXIT_CODE = re.compile(r"non-zero status of (\d+)")
_REPLICA = re.compile(r"workerpool\d+-\d+")
_OUT_OF_MEMORY = re.compile(r"out[ -]of[ -]memory")
#: What follows is an address in Google's console, longer than all the rest.
_MORE = " To find out more"


# --- submitting -----------------------------------------------------------------------------------------


def submit(plan: Plan, executor: str) -> JobHandle:
    """Bring the files and create the custom job, unless an earlier try has.

    Raises:
        SubmitError: it is refused, or nobody knows whether it arrived.
    """
    request, job_dir = plan.request, plan.spec.job_dir
    if handle := find(request["token"], job_dir, executor):
        return handle
    for build in request["builds"]:
        _ensure_pushed(build, job_dir)
    if request["stage"]:
        _stage(request, job_dir)
    record = _record(request, plan.spec.experiment_id, job_dir)
    _write(record, job_dir)
    api, parent = record["data"]["endpoint"], record["data"]["parent"]
    try:
        record["data"]["name"] = Jobs(api, parent).create(request["job"], TOKEN)
    except SubmitError as exc:
        problem = f"Vertex AI did not take job {plan.spec.id!r}: {exc}"
        raise SubmitError(problem, output=exc.output) from exc
    _write(record, job_dir)
    return JobHandle(executor=executor, id=request["token"], data=record["data"])


def _record(request: Mapping[str, Any], experiment: str, job_dir: Path) -> dict[str, Any]:
    """What finds the job again, once its name is known."""
    endpoint, storage, logging = request["endpoints"]
    data = {
        "job_dir": str(job_dir),
        "endpoint": endpoint,
        "storage": storage,
        "logging": logging,
        "parent": request["parent"],
        "experiment": digest(experiment),
        "bucket": request["bucket"],
        "stage": request["stage"],
        "tasks": json.dumps(request["tasks"]),
    }
    return {"token": request["token"], "data": data}


def _ensure_pushed(build: Mapping[str, Any], job_dir: Path) -> None:
    from nemo_run.core.execution.docker_build import ensure_built
    from nemo_run.core.execution.docker_engine import address, connect

    image = Image(**{**build, "context": Path(build["context"])})
    ensure_built(connect(address(None)), image, job_dir / "build.log")


def _stage(request: Mapping[str, Any], job_dir: Path) -> None:
    """Put what the job needs into the bucket: what others need too only if it is not there."""
    bucket = Bucket(request["endpoints"][1], request["bucket"])
    for name, where in request["archives"].items():
        if where == ".":
            bucket.put(name, vertex_files.pack_job(job_dir))
            continue
        with _SHARING:  # many jobs are submitted at once, and most have the same code
            if not bucket.has(name):
                _put(bucket, name, where, request["code"])
    for name, text in request["starts"].items():
        bucket.put(f"{request['stage']}/{name}", text.encode(errors="surrogateescape"))


def _put(bucket: Bucket, name: str, where: str, code: str | None) -> None:
    with tempfile.TemporaryFile() as file:
        if where == "lib":
            vertex_files.pack_library(file)
        else:
            vertex_files.pack_code(Path(str(code)), file)
        file.seek(0)
        bucket.put(name, file)


def find(token: str, job_dir: Path, executor: str) -> JobHandle | None:
    """The job of an earlier submission, by its record if that has its name, else by its label."""
    record = read_record(job_dir / "vertex.json")
    if record is None or record["token"] != token:
        return None  # a submission is recorded before it is sent
    data = record["data"]
    if "name" not in data:
        found = Jobs(data["endpoint"], data["parent"]).list(TOKEN, digest(token))
        if not (job := next(found, None)):
            return None
        data["name"] = job["name"]
        _write(record, job_dir)
    return JobHandle(executor=executor, id=token, data=data)


# --- looking --------------------------------------------------------------------------------------------


def statuses(executor: VertexExecutor, handles: Sequence[JobHandle]) -> list[JobStatus]:
    """One status per handle: several of an experiment are asked for together."""
    seen = {handle.id: status for handle in handles if (status := _settled(handle))}
    asked: dict[tuple[str, str, str], list[JobHandle]] = defaultdict(list)
    for handle in handles:
        if handle.id not in seen:
            data = handle.data
            asked[data["endpoint"], data["parent"], data["experiment"]].append(handle)
    for (endpoint, parent, experiment), group in asked.items():
        found = _jobs(Jobs(endpoint, parent), experiment, group)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            pairs = [(handle, found[handle.id]) for handle in group]
            answers = pool.map(lambda pair: _brought_home(executor, *pair), pairs)
            seen |= {handle.id: answer for (handle, _), answer in zip(pairs, answers, strict=True)}
    return [seen[handle.id] for handle in handles]


def _settled(handle: JobHandle) -> JobStatus | None:
    """What can be said without asking."""
    job_dir = Path(handle.data["job_dir"])
    if not job_dir.is_dir():
        return JobStatus(state=AppState.UNKNOWN, message=f"its folder is gone: {job_dir}")
    end = read_record(job_dir / "end.json")
    if end is None or end["token"] != handle.id:
        return None
    fields = {name: end[name] for name in ("exit_code", "message", "started", "ended")}
    return JobStatus(state=AppState[end["state"]], **fields)


def _jobs(jobs: Jobs, experiment: str, handles: Sequence[JobHandle]) -> dict[str, dict[str, Any] | None]:
    """The custom jobs of some handles of one experiment; None for one that is not there."""
    names = {handle.id: handle.data["name"] for handle in handles}
    by_name, missing = {}, set(names.values())
    for job in jobs.list(EXPERIMENT, experiment) if len(names) > 1 else ():
        by_name[job["name"]] = job
        missing.discard(job["name"])
        if not missing:
            break
    return {key: by_name[name] if name in by_name else jobs.get(name) for key, name in names.items()}


def read_status(job: Mapping[str, Any], tasks: Mapping[str, Sequence[str]]) -> JobStatus:
    """What Vertex AI says of a job, in our words.

    Args:
        job: A CustomJob, as JSON.
        tasks: By role, its names of the role's replicas.
    """
    word = job.get("state", "JOB_STATE_UNSPECIFIED")
    state, said = _STATES.get(word, AppState.UNKNOWN), str(job.get("error", {}).get("message", ""))
    started, ended = _seconds(job.get("startTime")), _seconds(job.get("endTime"))
    said = " ".join(said.partition(_MORE)[0].split()) or _words(word)
    code, match = None, _EXIT_CODE.search(said)
    if state == AppState.SUCCEEDED or word == "JOB_STATE_RUNNING":
        code, said = (None if state == AppState.RUNNING else 0), ""
    elif match:
        code = int(match[1])
    elif state in TERMINAL and (limit := _used_up(job, started, ended)):
        state, code, said = AppState.FAILED, 124, f"TIMEOUT: ran longer than {limit:g} s"
    if state == AppState.FAILED:
        said = f"OUT_OF_MEMORY: {said}" if _OUT_OF_MEMORY.search(said) else said
        said = _whose(said, tasks) + said
    return JobStatus(state=state, exit_code=code, message=said, started=started, ended=ended)


def _words(state: str) -> str:
    return state.removeprefix("JOB_STATE_").lower().replace("_", " ")


def _used_up(job: Mapping[str, Any], started: float | None, ended: float | None) -> float:
    """The limit of time that a job has run into; 0 for none."""
    told = job.get("jobSpec", {}).get("scheduling", {}).get("timeout", "0s")
    limit = float(told.removesuffix("s"))
    return limit if started and ended and ended - started >= limit else 0.0


def _whose(said: str, tasks: Mapping[str, Sequence[str]]) -> str:
    """The member of a group that a replica is of, for the beginning of a message."""
    replica = _REPLICA.search(said)
    if replica is None or len(tasks) == 1:
        return ""
    return next((f"{role}: " for role, names in tasks.items() if replica[0] in names), "")


def _seconds(text: str | None) -> float | None:
    """Seconds since the epoch, of a time as Google writes it."""
    if not text:
        return None
    whole, _, rest = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{rest[:6]:0<6}+00:00").timestamp()


# --- bringing home --------------------------------------------------------------------------------------


def _brought_home(executor: VertexExecutor, handle: JobHandle, job: Mapping[str, Any] | None) -> JobStatus:
    """How a job is; one that has ended has only once what it left behind is here."""
    if job is None:
        return JobStatus(state=AppState.UNKNOWN, message=f"Vertex AI has no {handle.data['name']} any more")
    status = read_status(job, json.loads(handle.data["tasks"]))
    if status.state not in TERMINAL:
        return status
    age = time.time() - (status.ended or 0.0)
    unexplained = status.state == AppState.FAILED and not job.get("error")
    if age < (executor.error_lag if unexplained else executor.log_lag):
        what = "why, is not known yet" if unexplained else "the last lines of its log are waited for"
        return JobStatus(state=AppState.RUNNING, message=f"{status.state}; {what}", started=status.started)
    try:
        _bring_home(handle, status)
    except (NemoRunError, OSError) as exc:
        message = f"{status.state}, but what it left cannot be copied yet: {exc}"
        return JobStatus(state=AppState.UNKNOWN, message=message)
    return status


def _bring_home(handle: JobHandle, status: JobStatus) -> None:
    """Copy results, artifacts and logs into the job's folder, then record the end; once, whoever looks."""
    data, job_dir = handle.data, Path(handle.data["job_dir"])
    with open(job_dir / "vertex.lock", "ab", opener=runner.private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (job_dir / "end.json").exists():
            return
        if data["stage"]:
            bucket = Bucket(data["storage"], data["bucket"])
            for folder in ("results", "artifacts"):
                (job_dir / folder).mkdir(mode=0o700, exist_ok=True)
                bucket.fetch(f"{data['stage']}/{folder}/", job_dir / folder)
        (job_dir / "logs").mkdir(mode=0o700, exist_ok=True)
        for role, tasks in json.loads(data["tasks"]).items():
            for rank, task in enumerate(tasks):
                runner.write(str(_log_path(job_dir, role, rank)), _whole_log(handle, task))
        end: dict[str, Any] = {"token": handle.id, "state": status.state.name}
        end |= {
            "exit_code": status.exit_code,
            "message": status.message,
            "started": status.started,
            "ended": status.ended,
        }
        runner.write(str(job_dir / "end.json"), json.dumps(end, indent=1) + "\n", sync=True)


def _whole_log(handle: JobHandle, task: str) -> str:
    """All that a replica printed; a log that nobody lets us read keeps no job from having ended."""
    try:
        return "".join(f"{line}\n" for line in _Log(handle, task).more())
    except Refusal as exc:
        if exc.status not in (403, 404):
            raise
        return f"[this log cannot be read: {exc}]\n"


def _log_path(job_dir: Path, role: str, rank: int) -> Path:
    return job_dir / "logs" / f"{runner.record_stem(role, rank, 1)}.log"


# --- reading --------------------------------------------------------------------------------------------


class _Log:
    """What one replica has printed, as far as Cloud Logging has it by now."""

    def __init__(self, handle: JobHandle, task: str) -> None:
        data = handle.data
        self._endpoint, self._project = data["logging"], data["parent"].split("/")[1]
        number = data["name"].rpartition("/")[2]
        self._filter = (
            f'resource.type="ml_job" AND resource.labels.job_id="{number}"'
            f' AND resource.labels.task_name="{task}"'
        )
        self._since, self._seen = "", set[str]()

    def more(self) -> Iterator[str]:
        """The lines that have come since."""
        for entry in log_entries(self._endpoint, self._project, self._filter, self._since):
            if entry["insertId"] not in self._seen:
                self._seen.add(entry["insertId"])
                self._since = max(self._since, entry["timestamp"])
                yield from _text(entry).split("\n")


def _text(entry: Mapping[str, Any]) -> str:
    """What was printed, of an entry: without its line end, and with its structure where it was JSON."""
    payload = entry.get("jsonPayload", {})
    if not payload:
        return str(entry.get("textPayload", "")).removesuffix("\n")
    if set(payload) - {"message", "levelname", "attrs", "filename", "funcName", "lineno", "pathname"}:
        return json.dumps(payload, ensure_ascii=False)
    return str(payload.get("message", "")).removesuffix("\n")


def lines(
    executor: VertexExecutor, handle: JobHandle, role: str, rank: int, *, follow: bool
) -> Iterator[str]:
    """What a replica printed: from Cloud Logging while it runs, what is missing then from its folder."""
    job_dir, tasks = Path(handle.data["job_dir"]), json.loads(handle.data["tasks"])
    path, log, seen = _log_path(job_dir, role, rank), _Log(handle, tasks[role][rank]), 0
    # All logs of a job are followed at once, and a project may look once a second.
    pause = executor.log_interval * sum(map(len, tasks.values()))
    while not _is_home(handle):
        try:
            new = list(log.more())
        except SubmitError:  # while it is followed, the next look may be let in
            if not follow:
                raise
            new = []
        seen += len(new)
        yield from new
        if not follow:
            return
        with contextlib.suppress(SubmitError):
            statuses(executor, [handle])
        if not job_dir.is_dir():
            return
        if not _is_home(handle):
            time.sleep(pause)
    yield from itertools.islice(read_lines(path, lambda: False), seen, None)


def _is_home(handle: JobHandle) -> bool:
    return (Path(handle.data["job_dir"]) / "end.json").exists()


# --- records --------------------------------------------------------------------------------------------


def _write(record: Mapping[str, Any], job_dir: Path) -> None:
    runner.write(str(job_dir / "vertex.json"), json.dumps(record, indent=1) + "\n", sync=True)
