"""`nemo experiment …`: look at experiments, and end, finish or delete them, from any process.

These commands need neither Fiddle nor TorchX; what each needs it imports itself, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from nemo_run.run.store import JobEntry, Store

app = typer.Typer(
    help="Look at experiments; end, finish or delete them.", no_args_is_help=True, rich_markup_mode=None
)

_NAME = typer.Argument(..., metavar="ID|TITLE", help="An id, a title (its newest), or how an id begins.")
_JOB = typer.Argument(None, metavar="[JOB]", help="A job's id or its number, from 0.")
_JSON = typer.Option(False, "--json", help="Print JSON.")


@app.command("list")
def list_(
    title: str = typer.Argument("", metavar="[TITLE]", help="Only those of this title."),
    state: str = typer.Option("", help="Only those in this state, such as FAILED."),
    limit: int = typer.Option(20, min=0, help="At most so many, newest first; 0 for all."),
    as_json: bool = _JSON,
) -> None:
    """List experiments, newest first."""
    from nemo_run.console import print_rows
    from nemo_run.run.store import scan

    found = scan(title or None)
    rows = _described(found, _wanted_state(state), limit or len(found))
    if as_json:
        return _print_json(rows)
    if not rows:
        typer.echo("No experiments" + (f" of title {title!r}" if title else "") + ".")
        return
    columns = ("id", "state", "jobs", "age")
    print_rows(columns, [[row[column] for column in columns] for row in rows])
    if len(found) > len(rows) and not state:
        typer.echo(f"{len(rows)} of {len(found)}; --limit 0 shows all.", err=True)


@app.command()
def status(name: str = _NAME, as_json: bool = _JSON) -> None:
    """Show how the jobs of an experiment are doing."""
    from nemo_run import console
    from nemo_run.run import look

    store = _open(name)
    records = look.refresh(store)
    if as_json:
        return _print_json([record.to_json() for record in records])
    console.print_status(store.id, records, resources=look.resources(store, records))


@app.command()
def logs(
    name: str = _NAME,
    job: str = _JOB,
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on until the job ends."),
    regex: str = typer.Option(None, help="Only lines with a match."),
    role: str = typer.Option(None, help="Only this member of a group."),
    as_json: bool = _JSON,
) -> None:
    """Print what a job has printed (the first job, if none is named)."""
    from nemo_run.run import look

    store = _open(name)
    entry = _entry(store, job)
    for line_role, line in look.read_job_logs(store, entry, regex=regex, follow=follow, role=role):
        if as_json:
            sys.stdout.write(json.dumps({"job": entry.id, "role": line_role, "line": line}) + "\n")
        else:
            sys.stdout.write(line + "\n" if len(entry.roles) == 1 else f"{line_role} │ {line}\n")
        if follow:
            sys.stdout.flush()


@app.command()
def cancel(
    name: str = _NAME,
    job: str = _JOB,
    everything: bool = typer.Option(False, "--all", help="All jobs."),
    as_json: bool = _JSON,
) -> None:
    """Ask a job, or --all, to end, and wait until it has."""
    from nemo_run.errors import ConfigError
    from nemo_run.run import look

    store = _open(name)
    entries = store.experiment().jobs
    if job is None and not everything and len(entries) > 1:
        raise ConfigError(f"experiment {store.id!r} has {len(entries)} jobs; name one, or give --all")
    asked = look.cancel(store, None if everything else [_entry(store, job).id])
    records = _ended(store, asked)
    if as_json:
        return _print_json([record.to_json() for record in records])
    for record in records:
        typer.echo(f"{record.id}: {record.state.name}" + (f" ({record.message})" if record.message else ""))
    if not asked:
        typer.echo("Nothing to cancel: it has ended.")
    if any(not record.terminal for record in records):
        raise typer.Exit(1)


@app.command()
def results(name: str = _NAME, job: str = _JOB, as_json: bool = _JSON) -> None:
    """Print the values that jobs returned; pickled values are named, not loaded."""
    from nemo_run.console import print_rows
    from nemo_run.run import look
    from nemo_run.run.results import job_value

    store = _open(name)
    records = {record.id: record for record in look.refresh(store)}
    entries = [_entry(store, job)] if job else store.experiment().jobs
    values = {}
    for entry in entries:
        record = records[entry.id]
        if record.state.name == "SUCCEEDED":
            values[entry.id] = job_value(store.job_dir(entry.id), entry.roles, record.attempt, load=False)
    if as_json:
        return _print_json(values)
    if not values:
        typer.echo("No job has succeeded yet; see `nemo experiment status`.")
        return
    print_rows(("job", "value"), [[job_id, _shown(value)] for job_id, value in values.items()])


@app.command()
def wait(name: str = _NAME, as_json: bool = _JSON) -> None:
    """Wait until all jobs have ended; exit code 1 if one has not succeeded.

    If the process that launched them is gone, this one takes over and submits what was not submitted yet.
    """
    from nemo_run.run import dispatch, look
    from nemo_run.run.errors import raise_for

    store = _open(name)
    found = dispatch.wait(store, lambda: dispatch.Dispatcher(store, look.load_jobs(store)).run())
    records = list(found.values())
    if as_json:
        _print_json([record.to_json() for record in records])
    raise_for(store, records)
    if not as_json:
        typer.echo(f"{len(records)} job(s) succeeded.")


@app.command()
def show(
    name: str = _NAME,
    job: str = _JOB,
    diff: bool = typer.Option(False, "--diff", help="Print the uncommitted changes it was launched with."),
    as_json: bool = _JSON,
) -> None:
    """Show what an experiment is: its tasks, executors, plans and code."""
    from nemo_run.errors import NotFoundError

    store = _open(name)
    if diff:
        path = store.path / "git.diff"
        if not path.exists():
            raise NotFoundError("uncommitted change recorded with experiment", store.id)
        sys.stdout.write(path.read_text(errors="replace"))
        return
    entries = [_entry(store, job)] if job else store.experiment().jobs
    whole = _whole(store, entries)
    if as_json:
        return _print_json(whole)
    _print_whole(store, whole)


@app.command()
def delete(
    name: str = _NAME,
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = _JSON,
) -> None:
    """Delete an experiment with all it holds; refused while a job of it runs."""
    from nemo_run.errors import ConfigError
    from nemo_run.run import look

    store = _open(name)
    running = [record.id for record in look.refresh(store) if not record.terminal and record.handle]
    if running:
        raise ConfigError(
            f"experiment {store.id!r} still runs {', '.join(running)};"
            f" end it first: nemo experiment cancel --all {store.id}"
        )
    if not yes and not typer.confirm(f"Delete {store.path}?"):
        raise typer.Exit(1)
    store.delete()
    if as_json:
        return _print_json({"deleted": store.id})
    typer.echo(f"Deleted {store.id}.")


@app.command()
def gc(as_json: bool = _JSON) -> None:
    """Remove what was left behind by processes that were killed while they made or deleted experiments."""
    from nemo_run.run.store import collect_garbage

    removed = collect_garbage()
    if as_json:
        return _print_json([str(path) for path in removed])
    typer.echo(f"Removed {len(removed)} unfinished folder(s).")


# --- helpers --------------------------------------------------------------------------------------------


def _open(name: str) -> Store:
    from nemo_run.run.store import Store

    return Store.open(name)


def _entry(store: Store, job: str | None) -> JobEntry:
    """A job by id or by number; the first for None."""
    from nemo_run.errors import NotFoundError

    entries = store.experiment().jobs
    for entry in entries:
        if entry.id == job:
            return entry
    number = 0 if job is None else int(job) if job.isdecimal() else -1
    if not 0 <= number < len(entries):
        raise NotFoundError("job", str(job), [entry.id for entry in entries])
    return entries[number]


def _wanted_state(state: str) -> str:
    from nemo_run.core.execution.base import AppState
    from nemo_run.errors import NotFoundError

    if state and state.upper() not in AppState.__members__:
        raise NotFoundError("state", state.upper(), list(AppState.__members__))
    return state.upper()


def _described(paths: Iterable[Path], state: str, limit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in paths:
        if len(rows) >= limit:
            break
        row = _describe(path)
        if not state or row["state"] == state:
            rows.append(row)
    return rows


def _describe(path: Path) -> dict[str, Any]:
    """One row; an experiment that cannot be read is shown as such and hides no other."""
    from nemo_run.errors import StoreError
    from nemo_run.run import look
    from nemo_run.run.store import Store, created_ms, summarize

    created = created_ms(path) / 1000
    row: dict[str, Any] = {"id": path.name, "state": "UNKNOWN", "jobs": 0, "age": _age(created)}
    row["created"] = created
    try:
        experiment = Store(path).experiment()
        records = look.refresh(Store(path), experiment)
    except StoreError as exc:
        return row | {"error": str(exc), "jobs": "unreadable"}
    return row | {"title": experiment.title, "state": summarize(records).name, "jobs": len(records)}


def _age(created: float) -> str:
    seconds = time.time() - created
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


def _ended(store: Store, job_ids: list[str], patience: float = 20.0) -> list[Any]:
    from nemo_run.run import look

    deadline = time.monotonic() + patience
    while True:
        records = [record for record in look.refresh(store) if record.id in job_ids]
        if not look.unfinished(records) or time.monotonic() > deadline:
            return records
        time.sleep(0.05)


def _whole(store: Store, entries: list[JobEntry]) -> dict[str, Any]:
    from dataclasses import asdict

    from nemo_run.errors import StoreError

    record = asdict(store.experiment())
    try:
        record["git"] = store.read_json("git.json")
    except StoreError:
        record["git"] = None
    record["jobs"] = [_whole_job(store, entry) for entry in entries]
    return record


def _whole_job(store: Store, entry: JobEntry) -> dict[str, Any]:
    from dataclasses import asdict

    plan = store.job_dir(entry.id) / "plan.txt"
    return asdict(entry) | {
        "task": store.read_json(f"{entry.id}/task.json"),
        "executor": store.read_json(f"{entry.id}/executor.json"),
        "plan": plan.read_text(errors="surrogateescape") if plan.exists() else None,
        "record": store.read_job(entry.id).to_json(),
    }


def _print_whole(store: Store, whole: dict[str, Any]) -> None:
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(whole["created"]))
    typer.echo(f"Experiment {whole['id']}\n  title    {whole['title']}\n  created  {created}")
    typer.echo(f"  folder   {store.path}\n  launched from {whole['cwd']}")
    if git := whole["git"]:
        changed = ", with uncommitted changes (--diff)" if git["uncommitted_changes"] else ""
        typer.echo(f"  commit   {git['commit']}{changed}")
    for job in whole["jobs"]:
        typer.echo(f"\nJob {job['id']}: {job['record']['state']}")
        if job["dependencies"]:
            typer.echo(f"  after    {', '.join(job['dependencies'])}")
        for part in ("task", "executor"):
            typer.echo(f"  {part}\n" + _indented(json.dumps(job[part], indent=2, ensure_ascii=False)))
        if job["plan"]:
            typer.echo("  plan\n" + _indented(job["plan"]))


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


def _shown(value: Any) -> str:
    from nemo_run.run.results import PickledValue

    if isinstance(value, PickledValue):
        return f"<{value.type}, pickled in {value.path}>"
    return repr(value)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, default=_as_json))


def _as_json(value: Any) -> Any:
    """What JSON has no word for: pickled and lost values, tuples inside of values are lists already."""
    from dataclasses import asdict, is_dataclass

    if is_dataclass(value) and not isinstance(value, type):
        return {name: str(part) for name, part in asdict(value).items()}
    return repr(value)
