"""Ctrl-C asks once what becomes of the jobs where there is somebody to ask; other signals leave them be."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deeds import NEMO, environment, kill_all, lines, processes_of, script, until

import nemo_run as run
from nemo_run.run.store import Store

#: A job that waits for a file, and one after it.
JOBS = """
trace, go = sys.argv[1:]
exp = run.Experiment("long", run.LocalExecutor(max_parallel=1))
exp.add(run.Partial(deeds.note_and_wait_for, trace, "a", go), name="a")
exp.add(run.Partial(deeds.note, trace, "b"), name="b", dependencies=["a"])
exp.run()
print("all is done")
"""
#: A job that does not end when it is asked to, but says that it was.
STUBBORN = """
trace, go = sys.argv[1:]
text = f"trap 'echo asked >> {trace}' TERM; echo a >> {trace}; while [ ! -e {go} ]; do sleep 0.05; done"
run.run(run.Script(inline=text), run.LocalExecutor(), name="long")
"""
#: A job that prints all the time, and does not end when it is asked to.
CHATTY = """
trace, go = sys.argv[1:]
text = f"trap : TERM; echo a >> {trace}; n=0; while [ ! -e {go} ]; do echo line $((n += 1)); done; echo end"
run.run(run.Script(inline=text), run.LocalExecutor(), name="long")
"""
#: Makes the terminal it is given its own, as a shell would, and becomes the command.
TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
CTRL_C = "\x03"
INTERRUPTED = (130, -signal.SIGINT)
QUESTION = "[c]ancel them, [l]eave them running, or [w]ait on?"


class Terminal:
    """A terminal with one process in it."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        self._master, slave = pty.openpty()
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=cwd,
            env=environment(TERM="xterm", COLUMNS="200", LINES="50"),
        )  # fmt: skip
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def _read(self, seconds: float) -> None:
        if select.select([self._master], [], [], seconds)[0]:
            # Linux says EIO when nobody has the terminal open any more.
            with contextlib.suppress(OSError):
                self.shown += os.read(self._master, 65536).decode(errors="replace")

    def shown_within(self, seconds: float) -> str:
        """All that is shown by then."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._read(left)
        return self.shown

    def wait_for(self, text: str, seconds: float = 30.0, *, after: int = 0) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.shown[after:]:
            assert time.monotonic() < deadline, f"never shown: {text!r}; instead {self.shown!r}"
            self._read(0.05)

    def end(self, seconds: float = 30.0) -> int:
        """Wait for the process's end and give its exit code."""
        deadline = time.monotonic() + seconds
        while (code := self.process.poll()) is None:
            assert time.monotonic() < deadline, f"it does not end; shown: {self.shown!r}"
            self._read(0.05)
        self._read(0)
        return code

    def close(self) -> None:
        """Close the window."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


class Scene:
    """A running job, what it leaves behind, and the experiment it belongs to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trace, self.go = folder, folder / "trace", folder / "go"
        self._started: list[subprocess.Popen[str]] = []
        self._terminals: list[Terminal] = []

    def in_terminal(self, body: str = JOBS) -> Terminal:
        terminal = self.open([sys.executable, *self._args(body)])
        until(lambda: lines(self.trace) == ["a"], "the first job runs")
        return terminal

    def open(self, command: list[str]) -> Terminal:
        terminal = Terminal(command, self.folder)
        self._terminals.append(terminal)
        self._started.append(terminal.process)
        return terminal

    def without_terminal(self, body: str = JOBS) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *self._args(body)], env=environment(), cwd=self.folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._started.append(process)
        until(lambda: lines(self.trace) == ["a"], "the first job runs")
        return process

    def _args(self, body: str) -> list[str]:
        return [str(script(self.folder / "long.py", body)), str(self.trace), str(self.go)]

    @property
    def states(self) -> dict[str, str]:
        exp = run.Experiment.from_title("long")
        return {job: entry["status"].name for job, entry in exp.status(return_dict=True).items()}

    def stop(self) -> None:
        """Leave nothing running, whatever has become of the test."""
        for terminal in self._terminals:
            terminal.close()
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        kill_all(processes_of(self.folder))


@pytest.fixture
def scene(tmp_path: Path, home: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.stop()


# --- nobody to ask --------------------------------------------------------------------------------------


def test_without_a_terminal_an_interrupt_cancels_the_jobs(scene: Scene, home: Path) -> None:
    launcher = scene.without_terminal()
    launcher.send_signal(signal.SIGINT)
    _, shown = launcher.communicate(timeout=30)
    assert launcher.returncode in INTERRUPTED
    assert "KeyboardInterrupt" in shown
    assert QUESTION not in shown
    assert scene.states == {"a": "CANCELLED", "b": "CANCELLED"}
    until(lambda: not processes_of(home), "no process is left")
    assert lines(scene.trace) == ["a"]


def test_without_a_terminal_a_second_interrupt_ends_at_once(scene: Scene) -> None:
    launcher = scene.without_terminal(STUBBORN)
    launcher.send_signal(signal.SIGINT)
    until(lambda: "asked" in lines(scene.trace), "the job is asked to end")
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=8)
    assert launcher.returncode in INTERRUPTED
    assert scene.states == {"long": "RUNNING"}


# --- somebody to ask ------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["c", "C", "cancel", ""])
def test_cancel_is_one_answer_and_what_an_empty_one_means(answer: str, scene: Scene, home: Path) -> None:
    terminal = scene.in_terminal()
    terminal.type(CTRL_C)
    terminal.wait_for(QUESTION)
    assert re.search(r"\b2 job\S* have not ended", terminal.shown)
    terminal.type(answer + "\n")
    assert terminal.end() in INTERRUPTED
    assert terminal.shown.count(QUESTION) == 1
    assert scene.states == {"a": "CANCELLED", "b": "CANCELLED"}
    until(lambda: not processes_of(home), "no process is left")


def test_left_alone_the_jobs_go_on_and_those_in_the_queue_are_taken_over(scene: Scene, home: Path) -> None:
    terminal = scene.in_terminal()
    terminal.type(CTRL_C)
    terminal.wait_for(QUESTION)
    terminal.type("l\n")
    assert terminal.end() in INTERRUPTED
    assert terminal.shown.count(QUESTION) == 1
    terminal.close()
    assert scene.states == {"a": "RUNNING", "b": "PENDING"}
    scene.go.touch()
    store = Store(run.Experiment.from_title("long").path)
    until(lambda: store.read_job("b").terminal, "the end of the last job is recorded")
    assert lines(scene.trace) == ["a", "b"]
    assert run.Experiment.from_title("long").results() == {"a": "a", "b": "b"}
    until(lambda: not processes_of(home), "no process is left")


def test_to_wait_on_is_to_go_on_as_before(scene: Scene) -> None:
    terminal = scene.in_terminal()
    terminal.type(CTRL_C)
    terminal.wait_for(QUESTION)
    terminal.type("w\n")
    scene.go.touch()
    terminal.wait_for("all is done")
    assert terminal.end() == 0
    assert lines(scene.trace) == ["a", "b"]


# --- the second time ------------------------------------------------------------------------------------


def test_a_second_interrupt_at_the_question_ends_at_once_and_leaves_the_jobs(scene: Scene) -> None:
    terminal = scene.in_terminal()
    terminal.type(CTRL_C)
    terminal.wait_for(QUESTION)
    terminal.type(CTRL_C)
    assert terminal.end(8) in INTERRUPTED
    assert scene.states == {"a": "RUNNING", "b": "PENDING"}
    scene.go.touch()
    assert run.Experiment.from_title("long").wait() == {"a": "a", "b": "b"}
    assert lines(scene.trace) == ["a", "b"]


def test_a_second_interrupt_after_waiting_on_ends_without_another_question(scene: Scene) -> None:
    terminal = scene.in_terminal()
    terminal.type(CTRL_C)
    terminal.wait_for(QUESTION)
    terminal.type("w\n")
    until(lambda: _is_dispatched(scene), "it waits on")
    terminal.type(CTRL_C)
    assert terminal.end(8) in INTERRUPTED
    assert terminal.shown.count(QUESTION) == 1
    assert scene.states == {"a": "RUNNING", "b": "PENDING"}


def _is_dispatched(scene: Scene) -> bool:
    with Store(run.Experiment.from_title("long").path).dispatching() as ours:
        return ours is None


def test_a_second_interrupt_while_a_stubborn_job_is_ending_ends_at_once(scene: Scene) -> None:
    terminal = scene.in_terminal(STUBBORN)
    terminal.type(CTRL_C)
    terminal.wait_for(QUESTION)
    terminal.type("c\n")
    until(lambda: "asked" in lines(scene.trace), "the job is asked to end")
    terminal.type(CTRL_C)
    assert terminal.end(8) in INTERRUPTED, terminal.shown


@pytest.mark.parametrize("time", range(3))
def test_a_second_interrupt_while_a_job_prints_all_the_time_ends_at_once(time: int, scene: Scene) -> None:
    """A thread that is printing when Python ends must not have it aborted (SIGABRT)."""
    terminal = scene.in_terminal(CHATTY)
    terminal.wait_for("│ line")
    terminal.type(CTRL_C)
    terminal.wait_for(QUESTION)
    terminal.type("c\n")
    terminal.wait_for("│ line", after=len(terminal.shown))
    terminal.type(CTRL_C)
    assert terminal.end(8) in INTERRUPTED, terminal.shown[-2000:]


def test_nothing_is_printed_over_the_question_and_to_wait_on_repeats_no_line(scene: Scene) -> None:
    terminal = scene.in_terminal(CHATTY)
    terminal.wait_for("│ line")
    terminal.type(CTRL_C)
    terminal.wait_for("[c] ")
    before = terminal.shown
    assert terminal.shown_within(0.5) == before
    terminal.type("w\n")
    terminal.wait_for("│ line", after=len(before))
    scene.go.touch()
    assert terminal.end() == 0
    numbers = [int(number) for number in re.findall(r"│ line (\d+)\r\n", terminal.shown)]
    assert numbers == sorted(set(numbers))  # a terminal throws some away itself at Ctrl-C
    assert terminal.shown.count("│ end") == 1


# --- other ends of a launcher ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_launcher_that_is_told_to_end_leaves_its_jobs_running(number: signal.Signals, scene: Scene) -> None:
    launcher = scene.without_terminal()
    launcher.send_signal(number)
    launcher.communicate(timeout=30)
    assert launcher.returncode == -number
    assert scene.states == {"a": "RUNNING", "b": "PENDING"}
    scene.go.touch()
    assert run.Experiment.from_title("long").wait() == {"a": "a", "b": "b"}
    assert lines(scene.trace) == ["a", "b"]


def test_closing_the_terminal_leaves_the_jobs_running(scene: Scene) -> None:
    terminal = scene.in_terminal()
    terminal.close()
    terminal.process.wait(30)
    assert scene.states == {"a": "RUNNING", "b": "PENDING"}
    scene.go.touch()
    assert run.Experiment.from_title("long").wait() == {"a": "a", "b": "b"}


def test_interrupting_a_command_that_waits_leaves_the_jobs_running(scene: Scene) -> None:
    launcher = scene.without_terminal()
    launcher.kill()
    launcher.wait()
    waiter = scene.open([sys.executable, NEMO, "experiment", "wait", "long"])
    until(lambda: _is_dispatched(scene), "it waits")
    waiter.type(CTRL_C)
    assert waiter.end() != 0
    assert "Traceback" not in waiter.shown
    assert scene.states == {"a": "RUNNING", "b": "PENDING"}
    scene.go.touch()
    assert run.Experiment.from_title("long").wait() == {"a": "a", "b": "b"}
    assert lines(scene.trace) == ["a", "b"]
