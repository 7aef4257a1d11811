"""`nemo experiment …`: look at experiments, and end, finish or delete them, from any process.

These commands need neither Fiddle nor TorchX; what each needs it imports itself, so that `--help` is quick.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import typer

from nemo_run.cli.output import describe, print_json, print_whole, readable, shown, whole

if TYPE_CHECKING:
    from nemo_run.run.records import JobEntry, JobRecord
    from nemo_run.run.store import Store

app = typer.Typer(
    help="Look at experiments; end, finish or delete them.", no_args_is_help=True, rich_markup_mode=None
)

_NAME = typer.Argument(..., metavar="ID|TITLE", help="An id, a title (its newest), or how an id begins.")
_JOB = typer.Argument(None, metavar="JOB", help="A job's id or its number, from 0.")
_JSON = typer.Option(False, "--json", help="Print JSON.")


@app.command("list")
def list_(
    title: str = typer.Argument("", metavar="TITLE", help="Only those of this title."),
    state: str = typer.Option("", help="Only those in this state, such as FAILED."),
    limit: int = typer.Option(20, min=0, help="At most so many, newest first; 0 for all."),
    as_json: bool = _JSON,
) -> None:
    """List experiments, newest first."""
    from nemo_run.console import print_rows
    from nemo_run.run.store import is_experiment, newest, scan

    wanted = _wanted_state(state)
    found = scan(title or None) if title or wanted or not limit else newest(limit + 1)
    rows: list[dict[str, Any]] = []
    for path in found:
        if limit and len(rows) >= limit:
            break
        row = describe(path)
        if "error" in row and not is_experiment(path):
            continue  # another tool's, or deleted meanwhile
        if row["state"] == wanted or not wanted:
            rows.append(row)
    if as_json:
        return print_json(rows)
    if not rows:
        what = (f" of title {title!r}" if title else "") + (f" in state {wanted}" if wanted else "")
        return typer.echo(f"No experiments{what}.")
    columns = ("id", "state", "jobs", "age")
    cells = [["unreadable" if row[name] is None else row[name] for name in columns] for row in rows]
    print_rows(columns, cells)
    for row in rows:
        if "error" in row:
            typer.echo(f"nemo: {row['error']}", err=True)
    if len(found) > len(rows) and not wanted:
        typer.echo(f"The newest {len(rows)}; --limit 0 shows all.", err=True)


@app.command()
def status(name: str = _NAME, as_json: bool = _JSON) -> None:
    """Show how the jobs of an experiment are doing."""
    from nemo_run import console
    from nemo_run.run import look

    store = _open(name)
    records = look.refresh(store)
    if as_json:
        return print_json([record.to_json() for record in records])
    console.print_status(store.id, records, resources=look.resources(store, records))


@app.command()
def logs(
    name: str = _NAME,
    job: str = _JOB,
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on until the job ends."),
    regex: str = typer.Option(None, help="Only lines with a match."),
    role: str = typer.Option(None, help="Only this member of a group."),
    rank: int = typer.Option(None, min=0, help="Only this rank, or task of an array."),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON object per line."),
) -> None:
    """Print what a job has printed; the first job, if none is named."""
    from nemo_run.run import look

    store = _open(name)
    entry = _entry(store, job)
    for line in look.read_job_logs(store, entry, regex=regex, follow=follow, role=role, rank=rank):
        if as_json:
            whose = {"job": entry.id, "role": line.source.role, "rank": line.source.rank}
            sys.stdout.write(json.dumps({**whose, "line": line.text}) + "\n")
        else:
            sys.stdout.write(line.shown + "\n")
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
        print_json([record.to_json() for record in records])
    else:
        for record in records:
            message = f" ({record.message})" if record.message else ""
            typer.echo(f"{record.id}: {record.state.name}{message}")
        if not asked:
            typer.echo("Nothing to cancel: it has ended.")
    if any(not record.terminal for record in records):
        raise typer.Exit(1)


@app.command()
def results(name: str = _NAME, job: str = _JOB, as_json: bool = _JSON) -> None:
    """Print the values that jobs returned; pickles are only named."""
    from nemo_run.console import print_rows
    from nemo_run.errors import NotFoundError
    from nemo_run.run import look
    from nemo_run.run.errors import raise_for
    from nemo_run.run.results import job_value

    store = _open(name)
    records = {record.id: record for record in look.refresh(store)}
    entries = [_entry(store, job)] if job else store.experiment().jobs
    values = {}
    for entry in entries:
        record = records[entry.id]
        if record.state.name == "SUCCEEDED":
            values[entry.id] = job_value(store.job_dir(entry.id), entry.roles, record.attempt, load=False)
        elif job:
            raise_for(store, [record])
            raise NotFoundError("value yet of job", entry.id)
    if as_json:
        return print_json(values)
    if not values:
        return typer.echo(f"No job has succeeded; see `nemo experiment status {store.id}`.")
    print_rows(("job", "value"), [[job_id, shown(value)] for job_id, value in values.items()])


@app.command()
def wait(name: str = _NAME, as_json: bool = _JSON) -> None:
    """Wait until all jobs have ended; exit code 1 if one failed.

    If the process that launched them is gone, this one takes over and submits what was not submitted yet.
    """
    from nemo_run.run import background, dispatch, look
    from nemo_run.run.errors import raise_for

    store = _open(name)
    found = background.wait(store, lambda: dispatch.Dispatcher(store, look.load_jobs(store)).run())
    records = list(found.values())
    if as_json:
        print_json([record.to_json() for record in records])
    raise_for(store, records)
    if not as_json:
        typer.echo("1 job succeeded." if len(records) == 1 else f"{len(records)} jobs succeeded.")


@app.command()
def show(
    name: str = _NAME,
    job: str = _JOB,
    diff: bool = typer.Option(False, "--diff", help="Print the uncommitted changes it was launched with."),
    as_json: bool = _JSON,
) -> None:
    """Show what an experiment is: its tasks, executors, plans, code."""
    store = _open(name)
    if diff:
        return _show_diff(store, as_json)
    entries = [_entry(store, job)] if job else store.experiment().jobs
    found = whole(store, entries)
    return print_json(found) if as_json else print_whole(store, found)


@app.command()
def delete(
    name: str = _NAME,
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    as_json: bool = _JSON,
) -> None:
    """Delete an experiment and all it holds, unless a job of it runs."""
    from nemo_run.errors import ConfigError

    store = _open(name)
    if busy := _busy(store):
        raise ConfigError(
            f"experiment {store.id!r} still runs {busy};"
            f" end it first: nemo experiment cancel --all {store.id}"
        )
    if not yes and not typer.confirm(f"Delete {store.path}?", err=True):
        raise typer.Exit(1)
    store.delete()
    if as_json:
        return print_json({"deleted": store.id})
    typer.echo(f"Deleted {store.id}.")


@app.command()
def gc(as_json: bool = _JSON) -> None:
    """Remove code no experiment needs, and what killed processes left."""
    from nemo_run.run.packages import collect_packages
    from nemo_run.run.store import collect_garbage
    from nemo_run.xm_local.packaging.binaries import collect_binaries

    removed = collect_garbage()
    packages, left = collect_packages()
    binaries, half_made = collect_binaries()
    removed += left + half_made
    if as_json:
        return print_json([str(path) for path in (*removed, *packages, *binaries)])
    typer.echo(f"Removed {len(removed)} unfinished folder{'' if len(removed) == 1 else 's'}.")
    if packages:
        typer.echo(f"Removed {len(packages)} unneeded package{'' if len(packages) == 1 else 's'} of code.")
    if binaries:
        typer.echo(f"Removed {len(binaries)} unneeded program{'' if len(binaries) == 1 else 's'}.")


def _show_diff(store: Store, as_json: bool) -> None:
    """The patch byte for byte, beside it the files that git did not know."""
    from nemo_run.errors import NotFoundError

    path, git = store.path / "git.diff", readable(lambda: store.read_json("git.json")) or {}
    patch = path.read_bytes() if path.exists() else b""
    untracked = git.get("untracked", [])
    if not patch and not untracked:
        raise NotFoundError("uncommitted change recorded with experiment", store.id)
    if as_json:
        return print_json({"diff": patch.decode(errors="replace"), "untracked": untracked})
    sys.stdout.buffer.write(patch)
    sys.stdout.flush()
    for name in untracked:
        typer.echo(f"not known to git: {name!r}", err=True)


# --- helpers --------------------------------------------------------------------------------------------


def _open(name: str) -> Store:
    from nemo_run.run.store import Store

    return Store.open(name)


def _entry(store: Store, job: str | None) -> JobEntry:
    """A job by id or by number; the first for None."""
    from nemo_run.errors import ConfigError, NotFoundError

    entries = store.experiment().jobs
    if not entries:
        raise ConfigError(f"experiment {store.id!r} has no jobs")
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


def _ended(store: Store, job_ids: list[str], patience: float = 20.0) -> list[JobRecord]:
    from nemo_run.run import look

    deadline = time.monotonic() + patience
    while True:
        records = [record for record in look.refresh(store) if record.id in job_ids]
        if not look.unfinished(records) or time.monotonic() > deadline:
            return records
        time.sleep(0.05)


def _busy(store: Store) -> str:
    """What of an experiment is still going on, in words; nothing is known of one that cannot be read."""
    from nemo_run.errors import StoreError
    from nemo_run.run import look

    try:
        records = look.refresh(store)
    except StoreError:
        return ""
    running = [record.id for record in records if not record.terminal and record.handle]
    with store.dispatching() as ours:
        left = [] if ours is not None else [record.id for record in look.unfinished(records)]
    return ", ".join(running or left)
