"""What people see: on a terminal a live table, in a pipe plain lines, and at the end how to come back."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from programs import python, succeeded, write
from rich.console import Console

from nemo_run import console
from nemo_run.core.execution.base import AppState
from nemo_run.run.records import JobRecord

SCRIPT = """
import sys
import nemo_run as run

def speak(word: str) -> str:
    import time
    print(f"I say {word}")
    time.sleep(1.5)
    return word

def fail() -> None:
    raise ValueError("no such luck")

if __name__ == "__main__":
    with run.Experiment("talk", raise_on_failure=False) as exp:
        word = "a word that is longer than what fits into one line of it " * 3
        exp.add(run.Partial(speak, word), name="speaks")
        exp.add(fail, name="fails")
        exp.add(run.Partial(speak, "never"), name="waits", dependencies=["fails"])
        exp.run()
    print("rich" in sys.modules)
"""


def record(name: str, state: str, **fields: object) -> JobRecord:
    return JobRecord(id=name, token=name, state=AppState[state], **fields)  # type: ignore[arg-type]


def on_a_terminal(argv: Sequence[str], columns: int = 80, rows: int = 24) -> str:
    """What a program draws on a terminal of this size, as it comes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(argv, env={**env, "TERM": "xterm-256color"}, close_fds=True, **streams)  # type: ignore[call-overload]
    os.close(theirs)
    drawn = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            drawn += chunk
    except OSError:  # how Linux says that nobody writes to it any more
        pass
    os.close(ours)
    assert process.wait(60) == 0, drawn.decode()
    return drawn.decode()


def without_color(text: str) -> str:
    """What was drawn, line after line; a line that is drawn again is one more."""
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines)


def test_in_a_pipe_each_change_is_a_line_and_rich_is_not_loaded(home: Path, tmp_path: Path) -> None:
    done = succeeded(python(write(tmp_path / "talk.py", SCRIPT)))
    lines = done.stderr.splitlines()
    assert re.fullmatch(r"Experiment talk_\d+: 3 pending", lines[0])
    assert any(re.fullmatch(r"speaks  SUCCEEDED after \d\.\d s", line) for line in lines)
    assert any(re.fullmatch(r"fails   FAILED after \d\.\d s  \(exit code 1\)", line) for line in lines)
    assert "waits   CANCELLED  (never started, because job 'fails' is FAILED)" in lines
    assert done.stdout == "False\n"


def test_on_a_terminal_a_live_table_fits_its_width(home: Path, tmp_path: Path) -> None:
    drawn = on_a_terminal([sys.executable, str(write(tmp_path / "talk.py", SCRIPT))])
    seen = without_color(drawn)
    assert re.search(r"talk  ━+  .*1 running", seen)
    assert re.search(r"speaks +RUNNING +\d\.\d s +I say a word that is longer .*…", seen)
    assert max(map(len, seen.splitlines()[: seen.splitlines().index("Come back to it with")])) <= 80


def test_what_stays_on_the_terminal_is_the_end_of_each_job(home: Path, tmp_path: Path) -> None:
    drawn = on_a_terminal([sys.executable, str(write(tmp_path / "talk.py", SCRIPT))])
    last = without_color(drawn).rpartition("exit  message")[2]
    assert re.search(r"^speaks +SUCCEEDED +\d\.\d s +0$", last, re.MULTILINE)
    assert "has ended: 1 succeeded, 1 failed, 1 cancelled." in last
    assert re.search(r"nemo experiment logs talk_\d+ fails$", last, re.MULTILINE)


def test_on_a_terminal_what_goes_into_a_file_stays_out_of_the_table(home: Path, tmp_path: Path) -> None:
    script = write(tmp_path / "talk.py", SCRIPT)
    drawn = on_a_terminal(["sh", "-c", f"{sys.executable} {script} >{tmp_path}/out"])
    assert "True" not in without_color(drawn)
    assert (tmp_path / "out").read_text() == "True\n"


def drawn_table(records: list[JobRecord]) -> list[str]:
    progress = console.Progress("many", {r.id: r for r in records}, Path("/nowhere"))
    sheet = Console(file=io.StringIO(), width=80, record=True)
    sheet.print(progress._table())
    return sheet.export_text().splitlines()


def test_jobs_that_fit_are_shown_as_they_were_added() -> None:
    states = ["SUCCEEDED", "PENDING", "FAILED", "RUNNING"]
    lines = drawn_table([record(f"job-{at}", state) for at, state in enumerate(states)])
    assert [line.split()[1] for line in lines[2:]] == states
    assert lines[0].endswith("1 succeeded, 1 failed, 1 running, 1 pending")


def test_of_a_thousand_jobs_those_are_shown_that_matter() -> None:
    records = [record(f"job-{at}", "SUCCEEDED") for at in range(990)]
    records += [record(f"job-{at}", "RUNNING") for at in range(990, 999)] + [record("broken", "FAILED")]
    lines = drawn_table(records)
    assert len(lines) < 20
    assert lines[2].split() == ["broken", "FAILED"]
    assert sum("RUNNING" in line for line in lines) == 9
    assert lines[-1].strip() == "and 985 more"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (12.4, "12 s"),
        (61, "1 min 01 s"),
        (3599, "59 min 59 s"),
        (7805, "2 h 10 min"),
    ],
)
def test_durations_are_told_in_the_units_people_use(seconds: float, shown: str) -> None:
    assert console.duration(record("job", "SUCCEEDED", started=1000.0, ended=1000.0 + seconds)) == shown


def test_a_job_that_runs_is_timed_until_now() -> None:
    assert console.duration(record("job", "RUNNING", started=time.time() - 90)).startswith("1 min 3")
    assert console.duration(record("job", "PENDING")) == ""


@pytest.mark.parametrize("left_running", [True, False])
def test_goodbye_names_commands_that_exist(capsys: pytest.CaptureFixture[str], left_running: bool) -> None:
    console.goodbye("a b_1", [record("one", "RUNNING"), record("two", "FAILED")], left_running=left_running)
    said = capsys.readouterr().err
    commands = re.findall(r"experiment (\w+) 'a b_1'( two)?$", said, re.MULTILINE)
    expected = ["status", "logs", *(("wait", "cancel") if left_running else ("results", "show"))]
    assert [name for name, _ in commands] == expected
    assert dict(commands)["logs"] == " two"
    for name in expected:
        succeeded(python("-m", "nemo_run", "experiment", name, "--help"))


@pytest.mark.parametrize("on_the_path", [True, False])
def test_goodbye_calls_nemo_as_it_can_be_called_from_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_the_path: bool
) -> None:
    ours = Path(sys.executable).with_name("nemo")
    other = write(tmp_path / "bin" / "nemo", "#!/bin/sh\n")  # a file manager, say
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(ours.parent if on_the_path else other.parent))
    monkeypatch.chdir(tmp_path)
    console.goodbye("x_1", [record("one", "SUCCEEDED")], left_running=False)
    command = "nemo" if on_the_path else str(ours)
    assert f"  {command} experiment status x_1\n" in capsys.readouterr().err


def test_without_a_terminal_to_ask_on_ctrl_c_means_cancel(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.ask_what_becomes(3) == "cancel"
    assert capsys.readouterr().err == ""


def test_a_plain_table_is_aligned_and_has_no_trailing_blanks() -> None:
    assert console.plain_table(("job", "state"), [("a", 1), ("long one", "")]) == (
        "job       state\na         1\nlong one"
    )
