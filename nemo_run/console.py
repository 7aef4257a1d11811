"""Everything people see: progress while attached, tables, and what to type next.

On a terminal it is drawn with Rich; into a pipe go plain lines, and Rich is not even imported.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from nemo_run.core.execution.base import AppState
from nemo_run.run.store import JobRecord

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: Rows of the live table, so that a sweep of a thousand jobs still fits on a screen.
_ROWS = 15
_STYLES = {
    AppState.SUCCEEDED: "green",
    AppState.FAILED: "bold red",
    AppState.CANCELLED: "yellow",
    AppState.RUNNING: "cyan",
    AppState.UNKNOWN: "magenta",
}


class Progress:
    """Shows the jobs of an attached run on standard error: a live table, or a line per change in a pipe."""

    def __init__(self, title: str, records: Mapping[str, JobRecord], folder: Path, *, quiet: bool = False):
        self._title = title
        self._records = dict(records)
        self._folder = folder
        self._quiet = quiet
        self._live: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(stderr=True), get_renderable=self._table, refresh_per_second=4, transient=True
            )
            self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def update(self, record: JobRecord) -> None:
        """Take note of a changed record."""
        with self._lock:
            before = self._records.get(record.id)
            self._records[record.id] = record
        if self._quiet or self._live is not None or (before and before.state == record.state):
            return
        if record.state in (AppState.SUBMITTED, AppState.PENDING):
            return
        print(_line(record), file=sys.stderr, flush=True)

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            records = list(self._records.values())
        shown = sorted(records, key=_interest)[:_ROWS]
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
        for column in ("job", "state", "time"):
            table.add_column(column, no_wrap=True, overflow="ellipsis", max_width=28)
        table.add_column("last line", ratio=1, no_wrap=True, overflow="ellipsis")
        for record in shown:
            last = record.message or _last_line(self._folder / record.id)
            table.add_row(Text(record.id), _state(record), duration(record), Text(last, style="dim"))
        return Group(Text(f"{self._title}: {_counts(records)}", style="bold"), table)


def _interest(record: JobRecord) -> int:
    order = (AppState.FAILED, AppState.UNKNOWN, AppState.RUNNING, AppState.SUBMITTED, AppState.PENDING)
    return order.index(record.state) if record.state in order else len(order)


def _counts(records: Iterable[JobRecord]) -> str:
    counts = Counter(_word(record) for record in records)
    return ", ".join(f"{count} {word.lower()}" for word, count in counts.most_common())


def _word(record: JobRecord) -> str:
    """The state as shown: what waits here for room or for other jobs is pending."""
    return "PENDING" if record.state == AppState.UNSUBMITTED else record.state.name


def _state(record: JobRecord) -> Any:
    from rich.text import Text

    return Text(_word(record), style=_STYLES.get(record.state, ""))


def _line(record: JobRecord) -> str:
    took = f" after {duration(record)}" if record.terminal and record.started else ""
    return f"{record.id}  {_word(record)}{took}" + (f"  ({record.message})" if record.message else "")


def duration(record: JobRecord) -> str:
    """How long a job has run, or ran: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if record.started is None:
        return ""
    seconds = max(0.0, (record.ended or time.time()) - record.started)
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _last_line(job_dir: Path) -> str:
    try:
        newest = max((job_dir / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime)
        with open(newest, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2048))
            lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    except (ValueError, OSError):
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


# --- tables ---------------------------------------------------------------------------------------------


def print_rows(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, stream: TextIO | None = None
) -> None:
    """A table: drawn by Rich on a terminal, aligned plain text in a pipe."""
    stream = stream or sys.stdout
    if not stream.isatty():
        print(plain_table(columns, rows), file=stream)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell), style=_style_of(cell)) for cell in row))
    Console(file=stream).print(table)


def _style_of(cell: Any) -> str:
    return next((style for state, style in _STYLES.items() if cell == state.name), "")


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Left-aligned columns, two blanks apart, without trailing blanks."""
    lines = [tuple(columns), *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def job_rows(records: Iterable[JobRecord], resources: Mapping[str, str] | None = None) -> list[list[str]]:
    """The rows of a status table: job, state, time, exit code, message."""
    resources = resources or {}
    return [
        [
            record.id,
            _word(record),
            duration(record),
            "" if record.exit_code is None else str(record.exit_code),
            "; ".join(filter(None, (record.message, resources.get(record.id, "")))),
        ]
        for record in records
    ]


JOB_COLUMNS = ("job", "state", "time", "exit", "message")


def print_status(experiment_id: str, records: Iterable[JobRecord], *, resources: Mapping[str, str]) -> None:
    """The status of an experiment."""
    print(f"Experiment {experiment_id}")
    print_rows(JOB_COLUMNS, job_rows(records, resources))


def goodbye(experiment_id: str, records: Sequence[JobRecord], *, left_running: bool) -> None:
    """What became of an experiment, and the commands to come back to it."""
    import shlex

    name = shlex.quote(experiment_id)
    what = "goes on without this process" if left_running else "has ended"
    lines = [f"Experiment {experiment_id} {what}: {_counts(records)}.", "Come back to it with"]
    verbs = ("status", "logs", "wait", "cancel") if left_running else ("status", "logs", "results", "show")
    lines += [f"  nemo experiment {verb} {name}" for verb in verbs]
    lines.append(f'or, in Python, run.Experiment.from_id("{experiment_id}").')
    print("\n".join(lines), file=sys.stderr)


def ask_what_becomes(count: int) -> str:
    """After Ctrl-C: `cancel`, `leave` or `wait`. Without a terminal to ask on it is `cancel`.

    A second Ctrl-C, here or later, ends this process as it would any other.
    """
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return "cancel"
    prompt = f"\n{count} job(s) have not ended. [c]ancel them, [l]eave them running, or [w]ait on? [c] "
    print(prompt, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower()[:1]
    return {"l": "leave", "w": "wait"}.get(answer, "cancel")


def stdout_console() -> Console:
    """A Rich console on standard output."""
    from rich.console import Console

    return Console()
