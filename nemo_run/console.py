"""Everything people see: progress while attached, tables, and what to type next.

On a terminal it is drawn with Rich; into a pipe go plain lines, and Rich is not even imported.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from nemo_run.core.execution.base import AppState
from nemo_run.run.records import JobRecord

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Rows of the live table, so that a sweep of a thousand jobs still fits on a screen.
_ROWS = 15
#: Letters of a job's id that are shown beside its state, and of the bar above.
_WIDTH, _BAR = 28, 24
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
        if self._quiet:
            return self
        if not sys.stderr.isatty():
            _say(f"Experiment {self._folder.name}: {_counts(self._records.values())}")
            return self
        from rich.console import Console
        from rich.live import Live

        self._live = Live(
            console=Console(stderr=True),
            get_renderable=self._table,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a file or pipe is not ours to move
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
        told = self._quiet or self._live is not None or (before and before.state == record.state)
        if not told and record.state not in (AppState.SUBMITTED, AppState.PENDING):
            _say(_line(record, min(max(map(len, self._records)), _WIDTH)))

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            records = list(self._records.values())
        # All of them as they were added; of more than there is room for, those to look at first.
        shown = records if len(records) <= _ROWS else sorted(records, key=_interest)[:_ROWS]
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim")
        for column in ("job", "state", "time"):
            table.add_column(column, no_wrap=True, overflow="ellipsis", max_width=_WIDTH)
        table.add_column("last line", ratio=1, no_wrap=True, overflow="ellipsis")
        for record in shown:
            last = record.message or _last_line(self._folder / record.id)
            state = Text(record.state.name, _STYLES.get(record.state, "dim"))
            table.add_row(Text(record.id), state, duration(record), Text(last, "dim"))
        more = len(records) - len(shown)
        return Group(_headline(self._title, records), table, *[Text(f"and {more} more", "dim")] * bool(more))


def _headline(title: str, records: Sequence[JobRecord]) -> RenderableType:
    """The title, how far it is as a bar, and how many jobs are in which state."""
    from rich.text import Text

    line, left = Text.assemble((title, "bold"), "  ", overflow="ellipsis", no_wrap=True), _BAR
    for state in (AppState.SUCCEEDED, AppState.FAILED, AppState.CANCELLED, AppState.RUNNING):
        share = round(_BAR * sum(record.state == state for record in records) / len(records))
        line.append("━" * min(share, left), _STYLES[state])
        left -= min(share, left)
    return line.append("━" * left, "bright_black").append("  " + _counts(records))


def _interest(record: JobRecord) -> int:
    order = (AppState.FAILED, AppState.UNKNOWN, AppState.RUNNING, AppState.SUBMITTED, AppState.PENDING)
    return order.index(record.state) if record.state in order else len(order)


def _counts(records: Iterable[JobRecord]) -> str:
    counts = Counter(record.state.name for record in records)
    order = ("SUCCEEDED", "FAILED", "CANCELLED", "UNKNOWN", "RUNNING", "SUBMITTED", "PENDING")
    return ", ".join(f"{counts[word]} {word.lower()}" for word in order if counts[word])


def _line(record: JobRecord, width: int = 0) -> str:
    took = f" after {duration(record)}" if record.terminal and record.started else ""
    message = f"  ({record.message})" if record.message else ""
    return f"{record.id:{width}}  {record.state.name}{took}{message}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def job_rows(records: Iterable[JobRecord], resources: Mapping[str, str] | None = None) -> list[list[str]]:
    """The rows of a status table: job, state, time, exit code, message."""
    resources = resources or {}
    return [
        [
            record.id,
            record.state.name,
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


def goodbye(
    experiment_id: str, records: Sequence[JobRecord], *, left_running: bool, base_dir: Path | None = None
) -> None:
    """What became of an experiment, and the commands to come back to it."""
    import shlex

    name, nemo, where = shlex.quote(experiment_id), _nemo(), ""
    if base_dir:
        nemo, where = f"NEMORUN_HOME={shlex.quote(str(base_dir))} {nemo}", f", base_dir={str(base_dir)!r}"
    what = "goes on without this process" if left_running else "has ended"
    verbs = ("status", "logs", "wait", "cancel") if left_running else ("status", "logs", "results", "show")
    lines = [f"Experiment {experiment_id} {what}: {_counts(records)}.", "Come back to it with"]
    # Of several jobs' logs the one to look at: the first that failed, else the last.
    telling = next((record.id for record in records if record.state == AppState.FAILED), records[-1].id)
    for verb in verbs:
        which = f" {shlex.quote(telling)}" if verb == "logs" and len(records) > 1 else ""
        lines.append(f"  {nemo} experiment {verb} {name}{which}")
    lines.append(f"or, in Python, run.Experiment.from_id({json.dumps(experiment_id)}{where}).")
    _say("\n".join(lines))


def _nemo() -> str:
    """How to call `nemo` from here: a virtual environment's is often not on the path, or another is."""
    import shlex
    import shutil

    found, ours, here = shutil.which("nemo"), Path(sys.executable).with_name("nemo"), Path.cwd()
    if not ours.exists():
        return f"{shlex.quote(sys.executable)} -m nemo_run"
    if found and os.path.samefile(found, ours):
        return "nemo"
    return shlex.quote(str(ours.relative_to(here) if ours.is_relative_to(here) else ours))


@contextmanager
def people() -> Iterator[None]:
    """While this lasts, what machines want to know of a person (a password, a key) is asked on our terminal.

    Without a terminal nobody is asked.
    """
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        yield
        return
    from nemo_run.core.tunnel.asking import asking

    with asking(_answer):
        yield


def _answer(prompt: str, *, secret: bool) -> str | None:
    try:
        if secret:
            import getpass

            return getpass.getpass(prompt) or None
        print(prompt, end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip() or None
    except EOFError:
        return None


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
