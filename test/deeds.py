"""Tasks that leave traces, the steps at which a launcher can be killed, and what tests ask of processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

TEST = Path(__file__).parent
NEMO = str(Path(sys.executable).with_name("nemo"))


# --- tasks ----------------------------------------------------------------------------------------------


def note(path: str, name: str, seconds: float = 0.0) -> str:
    """Append a line to a file, in one write, and return the name."""
    append(path, f"{name}\n")
    time.sleep(seconds)
    return name


def note_and_fail(path: str, name: str) -> None:
    append(path, f"{name}\n")
    raise ValueError(f"{name} cannot be done")


def note_and_wait_for(path: str, name: str, needed: str) -> str:
    """Append a line and end once a file is there."""
    append(path, f"{name}\n")
    until(lambda: os.path.exists(needed), f"{needed} is there", 60)
    return name


def append(path: str, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, line.encode())
    os.close(fd)


# --- steps ----------------------------------------------------------------------------------------------


def _written(event: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """The job record that is about to take the place of its predecessor."""
    if event != "os.rename" or not str(args[1]).endswith("/job.json"):
        return {}
    record: dict[str, Any] = json.loads(Path(args[0]).read_bytes())
    return record


def _opened(ending: str) -> Callable[[str, tuple[Any, ...]], bool]:
    return lambda event, args: event == "open" and str(args[0]).endswith(ending)


#: Where a process that runs local jobs can be killed: what tells from an audit event that it is there.
STEPS: dict[str, Callable[[str, tuple[Any, ...]], object]] = {
    "while the experiment is made": lambda event, args: event == "open" and "/.new-" in str(args[0]),
    "before the experiment appears": lambda event, args: event == "os.rename" and "/.new-" in str(args[0]),
    "before the intent": lambda event, args: (job := _written(event, args)) and not job["handle"],
    "before a server starts": lambda event, args: (
        event == "subprocess.Popen" and "forkserver" in str(args[1])
    ),
    "after the intent": lambda event, args: event == "socket.sendmsg",
    "after the process starts": _opened("/stat"),
    "before the handle is recorded": lambda event, args: (
        (job := _written(event, args)) and job["handle"] and not job["ended"]
    ),
    "while waiting": _opened("/end.json"),
    "while recording the end": lambda event, args: (job := _written(event, args)) and job["ended"],
}


# --- processes ------------------------------------------------------------------------------------------


def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Wait for a condition to hold and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return found


def environment(**more: str) -> dict[str, str]:
    """For processes that import what tests use."""
    return {**os.environ, "PYTHONPATH": str(TEST), **more}


def script(path: Path, body: str) -> Path:
    """A launching script: the body, after the imports that all of them need."""
    head = "import sys\nimport nemo_run as run\nimport deeds\nfrom nemo_run.testing import *\n"
    path.write_text(head + body)
    return path


def launch(path: Path, *args: str, timeout: float = 60.0, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, in a process of its own."""
    command = [sys.executable, str(path), *args]
    return subprocess.run(
        command, env=environment(**env), capture_output=True, text=True, timeout=timeout, cwd=path.parent
    )


def nemo(*args: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """The real console script."""
    return subprocess.run(
        [NEMO, *args], env=environment(), capture_output=True, text=True, timeout=timeout, errors="replace"
    )


def processes_of(folder: Path) -> list[psutil.Process]:
    """The live processes that know of a folder: by their environment, their arguments or where they are."""
    return [process for process in psutil.process_iter() if _mentions(process, str(folder))]


def _mentions(process: psutil.Process, folder: str) -> bool:
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return folder in process.environ().get("NEMORUN_JOB_DIR", "") or folder in process.cwd()
    except psutil.Error:
        return False


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill them, of which some may end of themselves meanwhile, by the death of another."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
