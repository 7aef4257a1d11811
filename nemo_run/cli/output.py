"""What the commands print: tables for people, JSON that any reader of JSON takes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from nemo_run.run.records import JobEntry
    from nemo_run.run.store import Store


def print_json(value: Any) -> None:
    """A value as JSON."""
    typer.echo(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """A value in JSON's own words: a tuple is a list, every key and every odd number a text."""
    from dataclasses import asdict, is_dataclass

    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else repr(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()  # a lone surrogate is no text
    if is_dataclass(value) and not isinstance(value, type):
        return {name: str(part) for name, part in asdict(value).items()}
    return repr(value)


def shown(value: Any) -> str:
    """A task's value in a table."""
    from nemo_run.run.results import PickledValue, UnpicklableValue

    if isinstance(value, PickledValue):
        return f"<{value.type}, pickled in {value.path}>"
    if isinstance(value, UnpicklableValue):
        return f"<{value.type}, not kept: {value.reason}>"
    if isinstance(value, dict):  # a group's values by role are such, and each may be pickled
        return "{" + ", ".join(f"{key!r}: {shown(item)}" for key, item in value.items()) + "}"
    return repr(value)


# --- list -----------------------------------------------------------------------------------------------


def describe(path: Path) -> dict[str, Any]:
    """One experiment of many; one that cannot be read is shown as such and hides no other."""
    from nemo_run.errors import StoreError
    from nemo_run.run import look
    from nemo_run.run.records import summarize
    from nemo_run.run.store import Store, created_ms

    created = created_ms(path) / 1000
    row: dict[str, Any] = {"id": path.name, "title": path.parent.name, "state": "UNKNOWN", "jobs": None}
    row |= {"created": created, "age": age(created) if created else ""}
    try:
        store = Store(path)
        experiment = store.experiment()
        records = look.refresh(store, experiment)
    except StoreError as exc:
        return row | {"error": str(exc)}
    return row | {"title": experiment.title, "state": summarize(records).name, "jobs": len(records)}


def age(created: float) -> str:
    """How long ago, in one unit."""
    seconds = time.time() - created
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"


# --- show -----------------------------------------------------------------------------------------------


def whole(store: Store, entries: list[JobEntry]) -> dict[str, Any]:
    """Everything an experiment's records say; what cannot be read is None."""
    from dataclasses import asdict

    record = asdict(store.experiment())
    record["git"] = readable(lambda: store.read_json("git.json"))
    record["jobs"] = [_whole_job(store, entry) for entry in entries]
    return record


def _whole_job(store: Store, entry: JobEntry) -> dict[str, Any]:
    from dataclasses import asdict

    plan = store.job_dir(entry.id) / "plan.txt"
    return asdict(entry) | {
        "task": readable(lambda: store.read_json(f"{entry.id}/task.json")),
        "executor": readable(lambda: store.read_json(f"{entry.id}/executor.json")),
        "package": readable(lambda: store.read_json(f"{entry.id}/package.json")),
        "plan": plan.read_text(errors="replace") if plan.exists() else None,
        "record": readable(lambda: store.read_job(entry.id).to_json()),
    }


def readable(read: Callable[[], Any]) -> Any:
    """A record, or None for one that cannot be read."""
    from nemo_run.errors import StoreError

    try:
        return read()
    except StoreError:
        return None


def print_whole(store: Store, whole: Mapping[str, Any]) -> None:
    """The same for people."""
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(whole["created"]))
    rows = {"title": whole["title"], "created": created, "launched": f"from {whole['cwd']}"}
    if git := whole["git"]:
        changed = ", with uncommitted changes (--diff)" if git["uncommitted_changes"] else ""
        rows["commit"] = (git["commit"] or "none") + changed
    _print_rows(f"Experiment {whole['id']}", rows | {"folder": store.path})
    for job in whole["jobs"]:
        state = job["record"]["state"] if job["record"] else "UNKNOWN"
        after = {"after": ", ".join(job["dependencies"])} if job["dependencies"] else {}
        if package := job["package"]:
            size = f"{package['files']:,} files, {package['bytes']:,} bytes"
            after |= {"code": f"{package['key'][:12]} by {package['packager']}: {size}"}
        _print_rows(f"\nJob {job['id']}: {state}", after)
        for part in ("task", "executor"):
            typer.echo(f"  {part}\n" + _indented(json.dumps(job[part], indent=2, ensure_ascii=False)))
        if job["plan"]:
            typer.echo("  plan\n" + _indented(job["plan"]))


def _print_rows(head: str, rows: Mapping[str, Any]) -> None:
    typer.echo(head)
    for name, value in rows.items():
        typer.echo(f"  {name:<9} {value}")


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())
