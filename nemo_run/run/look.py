"""Looking at an experiment from any process: its jobs as they are now, and ending them.

Nothing here needs Fiddle or TorchX, unless a job's tasks are asked for.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core import runner
from nemo_run.core.execution.base import TERMINAL, AppState, Executor, JobHandle, JobStatus
from nemo_run.errors import NemoRunError, NotFoundError, StoreError
from nemo_run.run.logs import Line, Source, masker, read_logs, sources
from nemo_run.run.records import ExperimentRecord, JobEntry, JobRecord
from nemo_run.run.results import first_error
from nemo_run.run.script import LaunchingScript, definitions, whole_script
from nemo_run.run.store import Store
from nemo_run.secret import Secret
from nemo_run.shell import Expand

if TYPE_CHECKING:
    from nemo_run.run.job import Job

logger = logging.getLogger(__name__)

#: Seconds an intent may stand without a handle before somebody else asks the backend about it.
_ANSWER_EXPECTED = 5.0


#: In a task a secret's tree stands for its value; in an executor it is still to be handed over.
_AS_WRITTEN = {
    "_secret_": lambda tree, inner: Secret.from_source(tree["_secret_"]),
    "_expand_": lambda tree, inner: Expand(tree["_expand_"]),
}


def load_executors(store: Store, entry: JobEntry) -> list[Executor]:
    """A job's executors, one per role.

    Raises:
        StoreError: the record cannot be read, or names a class that is not there.
    """
    with _importable(store), definitions(store.job_dir(entry.id)):
        return _build_executors(store, entry)


def _build_executors(store: Store, entry: JobEntry) -> list[Executor]:
    trees = store.read_json(f"{entry.id}/executor.json")
    try:
        executors = [runner.build(tree, _AS_WRITTEN) for tree in trees]
    except Exception as exc:  # building runs the constructors of users' classes, which may raise anything
        raise StoreError(
            f"cannot load the executor of job {entry.id!r} of {store.id!r}: {type(exc).__name__}: {exc}"
        ) from exc
    if len(executors) != len(entry.roles) or not all(isinstance(each, Executor) for each in executors):
        raise StoreError(f"cannot read {store.job_dir(entry.id) / 'executor.json'}: it holds no executor")
    return executors


def load_jobs(store: Store) -> dict[str, Job]:
    """All jobs of an experiment, with their tasks."""
    return load_launch(store)[0]


def load_launch(store: Store) -> tuple[dict[str, Job], LaunchingScript]:
    """All jobs of an experiment with their tasks, and the script whose functions and classes they use."""
    entries = store.experiment().jobs
    records = [[store.read_json(f"{e.id}/{part}.json") for part in ("task", "executor")] for e in entries]
    with _importable(store), whole_script(store.path, runner.mentioned_names(records)) as script:
        return {entry.id: _load_job(store, entry) for entry in entries}, script


@contextlib.contextmanager
def _importable(store: Store) -> Iterator[None]:
    """Let modules be found where the launching process found them, after the places where we look."""
    own = list(sys.path)
    sys.path += [path for path in store.experiment().python_path if path not in own]
    try:
        yield
    finally:
        sys.path[:] = own


def _load_job(store: Store, entry: JobEntry) -> Job:
    from nemo_run.core.serialization import from_tree
    from nemo_run.run.job import Job

    trees = store.read_json(f"{entry.id}/task.json")
    return Job(
        id=entry.id,
        tasks=[_as_task(from_tree(trees[role])) for role in entry.roles],
        executors=_build_executors(store, entry),
        roles=entry.roles,
        dependencies=entry.dependencies,
        plugins=[runner.build(tree, _AS_WRITTEN) for tree in entry.plugins],
        tail_logs=entry.tail_logs,
        group=entry.group,
        origins=_origins(store, entry),
    )


def _origins(store: Store, entry: JobEntry) -> dict[str, str | None]:
    if not (store.job_dir(entry.id) / "package.json").exists():
        return {}
    origins: dict[str, str | None] = store.read_json(f"{entry.id}/package.json")["origins"]
    return origins


def _as_task(loaded: Any) -> Any:
    """A Script is written like any dataclass, and so comes back as a Config of one."""
    from nemo_run.config import Config, Script

    if isinstance(loaded, Config) and loaded.__fn_or_cls__ is Script:
        import fiddle

        return fiddle.build(loaded)
    return loaded


# --- jobs as they are now -------------------------------------------------------------------------------


def refresh(store: Store, experiment: ExperimentRecord | None = None) -> list[JobRecord]:
    """The records of all jobs, brought up to date by one question to each backend.

    What a backend says is only written down when it is an end: everything else is the dispatching process's
    to record. A record that cannot be read is shown as UNKNOWN, with the reason.
    """
    experiment = experiment or store.experiment()
    records = {entry.id: _read(store, entry.id) for entry in experiment.jobs}
    if any(_is_queued(record) for record in records.values()) and store.is_abandoned():
        records = {name: _abandoned(r) if _is_queued(r) else r for name, r in records.items()}
    live = [entry for entry in experiment.jobs if _is_live(records[entry.id])]
    asked: dict[tuple[type, str], list[tuple[JobEntry, Executor]]] = defaultdict(list)
    for entry in live:
        try:
            executor = load_executors(store, entry)[0]
        except StoreError as exc:
            records[entry.id] = replace(records[entry.id], state=AppState.UNKNOWN, message=str(exc))
            continue
        if record := _with_handle(store, records[entry.id], executor):
            records[entry.id] = record
            asked[type(executor), executor.cluster()].append((entry, executor))
    for group in asked.values():
        handles = [handle for entry, _ in group if (handle := records[entry.id].handle)]
        for (entry, _), status in zip(group, ask(group[0][1], handles), strict=True):
            record = replace(records[entry.id], **as_changes(status))
            if record.terminal:
                record = store.update_job(entry.id, **as_changes(status))
            records[entry.id] = record
    return list(records.values())


def ask(executor: Executor, handles: list[JobHandle]) -> list[JobStatus]:
    """One status per handle; a backend that cannot answer knows nothing, which is no verdict on its jobs."""
    try:
        return executor.status(handles)
    except (NemoRunError, OSError) as exc:
        logger.warning("%s does not answer: %s", type(executor).__name__, exc)
        return [JobStatus(state=AppState.UNKNOWN, message=str(exc))] * len(handles)


def as_changes(status: JobStatus) -> dict[str, Any]:
    """What a status changes in a job's record."""
    changes: dict[str, Any] = {"state": AppState(int(status.state)), "message": status.message}
    changes |= {"exit_code": status.exit_code, "attempt": status.attempt}
    for name in ("started", "ended"):
        if (value := getattr(status, name)) is not None:
            changes[name] = value
    if changes["state"] in TERMINAL:
        changes.setdefault("ended", time.time())
    return changes


def _is_queued(record: JobRecord) -> bool:
    return record.state == AppState.PENDING and record.intent is None


def _abandoned(record: JobRecord) -> JobRecord:
    return replace(record, message="the launching process is gone; `nemo experiment wait` goes on")


def _is_live(record: JobRecord) -> bool:
    return not record.terminal and record.intent is not None


def _read(store: Store, job_id: str) -> JobRecord:
    try:
        return store.read_job(job_id)
    except StoreError as exc:
        return JobRecord(id=job_id, token="", state=AppState.UNKNOWN, message=str(exc))


def _with_handle(store: Store, record: JobRecord, executor: Executor) -> JobRecord | None:
    """The record with its handle, asking the backend for the token where the answer is overdue."""
    if record.handle:
        return record
    if record.intent is None or time.time() - record.intent < _ANSWER_EXPECTED:
        return None
    try:
        handle = executor.find(record.token)
    except (NemoRunError, OSError) as exc:
        logger.warning("%s does not answer: %s", type(executor).__name__, exc)
        return None
    return store.update_job(record.id, handle=handle) if handle else None


def unfinished(records: Iterable[JobRecord]) -> list[JobRecord]:
    """Those that have not ended."""
    return [record for record in records if not record.terminal]


# --- ending and explaining ------------------------------------------------------------------------------


def cancel(store: Store, job_ids: Iterable[str] | None = None) -> list[str]:
    """Ask jobs (all of them by default) to end, and keep those not yet submitted from starting.

    Returns:
        The ids of the jobs that had not ended.

    Raises:
        NotFoundError: there is no such job.
        NemoRunError: one could not be asked; the others have been.
    """
    entries = {entry.id: entry for entry in store.experiment().jobs}
    asked, errors = [], []
    # Last first, so that no dependent starts because what it waits for has just ended.
    for job_id in reversed(list(entries if job_ids is None else job_ids)):
        if job_id not in entries:
            raise NotFoundError("job", job_id, list(entries))
        try:
            if _cancel_one(store, entries[job_id]):
                asked.append(job_id)
        except NemoRunError as exc:
            errors.append(exc)
    if errors:
        raise errors[0]
    return asked


def _cancel_one(store: Store, entry: JobEntry) -> bool:
    """Ask one job to end: False if it had ended.

    Whoever dispatches it may be submitting it meanwhile. So its record is changed only if it still is as it
    was seen: else a job that has just begun would be written down as cancelled, and nobody would end it.
    """
    record = store.read_job(entry.id)
    if record.terminal:
        return False
    cancelled: dict[str, Any] = {"state": AppState.CANCELLED, "ended": time.time()}
    before = cancelled | {"message": "cancelled before it started"}
    if store.update_job(entry.id, when=lambda now: now.intent is None, **before).terminal:
        return True
    executor = load_executors(store, entry)[0]
    for _ in range(2):  # the handle may come while we ask; it does not go again
        record = store.read_job(entry.id)
        if handle := record.handle or executor.find(record.token):
            executor.cancel(handle)
            return True
        without = cancelled | {"message": "cancelled"}
        if store.update_job(entry.id, when=lambda now: now.handle is None, **without).terminal:
            return True
    return True


def read_job_logs(
    store: Store,
    entry: JobEntry,
    *,
    regex: str | None = None,
    follow: bool = False,
    role: str | None = None,
    rank: int | None = None,
) -> Iterator[Line]:
    """What a job printed, without the values of its secrets.

    Raises:
        NotFoundError: it has not started, or has no such role or rank.
    """
    executors = load_executors(store, entry)
    found = sources(entry.roles, executors, role=role, rank=rank)
    while True:
        record = store.read_job(entry.id)
        handle = record.handle or (executors[0].find(record.token) if record.intent else None)
        if handle or record.terminal:
            break
        if not follow:
            raise NotFoundError("log yet of job", entry.id)
        time.sleep(0.1)
    if handle is None:
        whose, text = Source(entry.roles[0], 0, ""), log_tail(store, entry, record, 10**9)
        return iter([Line(whose, line) for line in text.splitlines()])
    secrets = secret_values(executors)
    return read_logs(executors[0], handle, found, regex=regex, follow=follow, secrets=secrets)


def secret_values(executors: Iterable[Executor]) -> list[str]:
    """The values of executors' secrets as far as they can be read here, to be kept out of what is shown."""
    values = []
    for executor in executors:
        for value in executor.env_vars.values():
            if hasattr(value, "resolve"):
                with contextlib.suppress(NemoRunError):
                    values.append(value.resolve())
    return values


def failed_role(entry: JobEntry, record: JobRecord) -> str:
    """The member of a group whose failure was the group's, as its message says; else the first."""
    return next((role for role in entry.roles if record.message.startswith(role + ": ")), entry.roles[0])


def error_of(store: Store, entry: JobEntry, record: JobRecord) -> Mapping[str, str] | None:
    """The error that a Python task of this job recorded."""
    for role in (failed_role(entry, record), *entry.roles):
        if error := first_error(store.job_dir(entry.id), role, record.attempt):
            return error
    return None


def log_path(store: Store, entry: JobEntry, record: JobRecord) -> Path:
    """Where the log of a job's last attempt lies, of a group's the log of the member that failed."""
    stem = runner.record_stem(failed_role(entry, record), 0, record.attempt)
    return store.job_dir(entry.id) / "logs" / f"{stem}.log"


def log_tail(store: Store, entry: JobEntry, record: JobRecord, lines: int = 20) -> str:
    """The last lines of that log."""
    path = log_path(store, entry, record)
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def masked(store: Store, entry: JobEntry, text: str) -> str:
    """A text of a job without the values of its secrets, as far as they can be read here."""
    try:
        secrets = secret_values(load_executors(store, entry))
    except StoreError:
        return text
    return masker(secrets)(text)


def resources(store: Store, records: Iterable[JobRecord]) -> dict[str, str]:
    """By job id what a monitored job uses, by its last sample, and the most memory it has used."""
    shown = {}
    for record in records:
        try:
            lines = (store.job_dir(record.id) / "resources.jsonl").read_text().splitlines()
        except FileNotFoundError:
            continue
        samples = [json.loads(line) for line in lines if line.endswith("}")]
        if samples:
            peak = max(sample["rss_bytes"] for sample in samples)
            shown[record.id] = _usage(samples[-1], peak, record.terminal)
    return shown


def _usage(sample: Mapping[str, Any], peak: int, ended: bool) -> str:
    parts = [f"peak memory {peak / 2**20:.0f} MiB"]
    if not ended:
        parts.insert(0, f"CPU {sample['cpu_percent']:.0f} %")
        for gpu in sample.get("gpus", ()):
            parts.append(f"GPU {gpu['index']} {gpu['percent']} %")
    return ", ".join(parts)
