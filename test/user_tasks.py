"""Tasks, plugins and executors as users write them, importable by the jobs that tests launch."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nemo_run as run


def add(a: int = 1, b: int = 2) -> int:
    """Add two numbers."""
    print(f"adding {a} and {b}")
    return a + b


def give(value: Any = None) -> Any:
    return value


def give_odd() -> dict[str, Any]:
    """Values that JSON has no words for."""
    return {"nan": float("nan"), "inf": float("-inf"), "pair": (1, [2, (3,)]), "keys": {(1, 2): "a", 3: None}}


@dataclass
class Model:
    size: int = 1


def give_model(size: int = 7) -> Model:
    return Model(size)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("it holds an open connection")

    def __repr__(self) -> str:
        return "<Unpicklable>"


def give_unpicklable() -> Any:
    return Unpicklable()


def fail(message: str = "no such data set") -> None:
    print("about to fail")
    raise ValueError(message)


def leave(code: int = 3) -> None:
    sys.exit(code)


def say(lines: int = 3, word: str = "line") -> int:
    for number in range(lines):
        print(f"{word} {number}")
    return lines


def wait_for(path: str, seconds: float = 60) -> str:
    """Run until a file is there."""
    print("waiting", flush=True)
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.01)
    print("seen", flush=True)
    return Path(path).name


def write_artifact(name: str = "report.txt", text: str = "done\n") -> str:
    (run.artifacts_dir() / name).write_text(text)
    return name


def read_artifact(job: str, name: str = "report.txt") -> str:
    return (run.artifacts_dir(job) / name).read_text()


def environment(name: str) -> str | None:
    return os.environ.get(name)


def add_line(path: str, line: str = "ran") -> int:
    """Add a line to a file, so that one can count how often this was called."""
    with open(path, "a") as file:
        file.write(line + "\n")
    return len(Path(path).read_text().splitlines())


@dataclass(kw_only=True)
class SetArgument(run.Plugin):
    """Sets an argument of the task and a variable of the executor, and counts how often it was asked to."""

    value: int = 100
    log: str = ""

    def setup(self, task: Any, executor: Any) -> None:
        task.a = self.value + getattr(task, "a", 0)
        executor.env_vars["SET_BY_PLUGIN"] = self.experiment_id
        if self.log:
            add_line(self.log, f"setup for {self.experiment_id}")


def count_at_once(folder: str, gate: str) -> int:
    """How many of those that share a folder are running at the same time as this one, itself included."""
    own = Path(folder) / str(os.getpid())
    own.mkdir(parents=True)
    wait_for(gate)
    count = len(list(Path(folder).iterdir()))
    time.sleep(0.1)
    own.rmdir()
    return count


class NeedsSize:
    def __init__(self, size: int) -> None:
        self.size = size


def needs_model(model: Any, rate: float = 0.1) -> str:
    return type(model).__name__
