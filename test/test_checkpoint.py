"""Tasks that are told to make room where nobody runs them again, and as plain functions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import checkpoint_tasks
import pytest
from contracts.executor import ended, prepare, wait_until

import nemo_run as run
from nemo_run import checkpoint
from nemo_run.core.execution.base import AppState

TASK = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import checkpoint_tasks as tasks; "


def started(call: str, **env: str) -> subprocess.Popen[str]:
    """A Python that does this with a task."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("NEMORUN_")}
    return subprocess.Popen([sys.executable, "-c", TASK + call], env={**given, **env}, text=True)


@pytest.mark.parametrize("way", ["on_signal", "requested"])
def test_a_process_that_is_ended_saves_first_and_ends_as_if_by_the_signal(tmp_path: Path, way: str) -> None:
    process = started(f"tasks.{way}({str(tmp_path)!r})")
    wait_until((tmp_path / "begun.0.1").exists, "it has begun")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert (tmp_path / "saved.0").read_text() == "saved "


@pytest.mark.parametrize("way", ["on_signal", "requested"])
def test_a_process_that_no_signal_reaches_is_told_by_the_file(tmp_path: Path, way: str) -> None:
    names = {"NEMORUN_CHECKPOINT": "make_room", "NEMORUN_CHECKPOINT_SIGNAL": "USR1"}
    process = started(f"tasks.{way}({str(tmp_path)!r})", NEMORUN_JOB_DIR=str(tmp_path), **names)
    wait_until((tmp_path / "begun.0.1").exists, "it has begun")
    (tmp_path / "make_room").touch()
    assert process.wait(30) == 0
    assert (tmp_path / "saved.0").read_text() == "saved "
    assert (tmp_path / "make_room.saved").exists()


def test_a_second_signal_does_not_disturb_the_saving(tmp_path: Path) -> None:
    process = started(f"tasks.on_signal({str(tmp_path)!r}, 0.5)")
    wait_until((tmp_path / "begun.0.1").exists, "it has begun")
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert (tmp_path / "saved.0").read_text() == "saved "


def test_after_the_block_signals_mean_what_they_meant_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with checkpoint.on_signal(lambda: None):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_registering_is_an_error_and_asking_is_not() -> None:
    found: list[object] = []

    def ask() -> None:
        found.append(checkpoint.requested())
        with pytest.raises(ValueError, match="main thread"), checkpoint.on_signal(lambda: None):
            found.append("registered")

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_local_job_that_is_cancelled_saves_what_it_has(tmp_path: Path, home: Path) -> None:
    plan = prepare(run.Partial(checkpoint_tasks.on_signal, str(tmp_path)), run.LocalExecutor())
    [executor] = plan.spec.members
    handle = executor.submit(plan)
    wait_until((tmp_path / "begun.0.1").exists, "it has begun")
    executor.cancel(handle)
    assert ended(executor, handle).state == AppState.CANCELLED
    assert (tmp_path / "saved.0").read_text() == "saved "
