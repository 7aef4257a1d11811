"""The help screen of a command, to the letter, at 80 columns and in a pipe; and how soon it is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import NEMO, call, succeeded, write

from nemo_run.cli.help import descriptions

SCRIPT = '''
from dataclasses import dataclass
from typing import Literal

import nemo_run as run


@dataclass
class Model:
    size: int = 1


class Local(run.LocalExecutor):
    pass


@run.cli.factory
def llama3(size: int = 70, layers: int = 2) -> run.Config[Model]:
    """A model of a well-known name."""
    return run.Config(Model, size=size)


@run.cli.factory
def here() -> run.Config[run.LocalExecutor]:
    return run.Config(run.LocalExecutor)


@run.cli.entrypoint(default_executor=here)
def train(
    model: Model,
    data: list[str],
    lr: float = 0.1,
    precision: Literal["bf16", 16] = "bf16",
    maybe: Model | None = None,
    anything=None,
    **more: int,
):
    """Train a model on some data, for as long
    as it takes.

    There is more to say.

    Args:
        model: what to train.
        lr (float): how far each step goes, in a sentence that is longer than a line
            of a screen has room for.

    Returns:
        maybe: nothing.
    """


@run.cli.factory(target=train)
def recipe(epochs: int) -> run.Partial[None]:
    """All of it."""
    return run.Partial(train)


@run.cli.factory(target=train, target_arg="data", is_target_default=True)
def usual_data() -> list[str]:
    return ["a"]


if __name__ == "__main__":
    run.cli.main(train)
'''

HELP = """\
Usage: python train.py [OPTIONS] [NAME=VALUE]...
  Train a model on some data, for as long as it takes.

Arguments of train (train.py:28):
  model                       Model, required: what to train.
    model=llama3              A model of a well-known name. Takes size=70,
                              layers=2. train.py:17
  data                        list[str] = usual_data
    data=usual_data           train.py:59
  lr                          float = 0.1: how far each step goes, in a
                              sentence that is longer than a line of a screen
                              has room for.
  precision                   'bf16' | 16 = 'bf16'
  maybe                       Model | None = None
    maybe=llama3              A model of a well-known name. Takes size=70,
                              layers=2. train.py:17
  anything                    any value = None
  NAME                        int, any number of them

All of them at once:
  --factory recipe            All of it. Takes epochs. train.py:53

Where and how it runs:
  run.executor                Executor = here
    run.executor=here         train.py:23
  run.plugins                 list[Plugin] = []

Options:
  -n, --name TEXT             What the run is called (default: train).
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's with a script; NEMORUN_HOME is beside it."""
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(write(tmp_path / "work" / "train.py", SCRIPT.lstrip("\n")).parent)
    return tmp_path / "work"


def test_the_help_screen_of_a_script(folder: Path) -> None:
    shown = succeeded(call([sys.executable, "train.py", "--help"])).stdout
    assert shown.startswith(HELP)
    assert max(map(len, shown.splitlines())) < 80
    assert "\x1b" not in shown
    assert succeeded(call([sys.executable, "train.py", "-h", "model=x"])).stdout == shown
    assert not (folder.parent / "home").exists()


def test_the_help_screen_of_a_file_is_the_same_but_for_its_name(folder: Path) -> None:
    shown = succeeded(call([NEMO, "run", "train.py", "--help"])).stdout
    assert shown.startswith(HELP.replace("python train.py", "nemo run train.py"))


def test_each_option_is_told(folder: Path) -> None:
    options = succeeded(call([sys.executable, "train.py", "--help"])).stdout.partition("\nOptions:\n")[2]
    for name in (
        "--name", "--direct", "--dryrun", "--detach", "--tail-logs", "--yes", "--no-confirm", "--factory",
        "--yaml", "--repl", "--verbose", "--to-yaml", "--to-toml", "--to-json", "--rich-exceptions", "--docs",
        "--help",
    ):  # fmt: skip
        assert f"{name} " in options or f"{name}\n" in options or f"{name}," in options


def test_the_whole_docstring_is_shown_on_request(folder: Path) -> None:
    brief = succeeded(call([sys.executable, "train.py", "--help"])).stdout
    whole = succeeded(call([sys.executable, "train.py", "--help", "--docs"])).stdout
    assert "There is more to say." in whole
    assert "There is more to say." not in brief


def test_a_narrow_screen_is_kept_to(folder: Path) -> None:
    shown = succeeded(call([sys.executable, "train.py", "--help"], env={"COLUMNS": "60"})).stdout
    assert max(map(len, shown.splitlines())) < 60


def test_what_a_docstring_says_of_arguments_is_found() -> None:
    arguments = "    a: one\n      more\n    *b (int): two: 2\n    c:\n        three\n"
    doc = f"Do.\n\nArgs:\n{arguments}\nReturns:\n    d: no\n"
    assert descriptions(doc) == {"a": "one more", "b": "two: 2", "c": "three"}
    assert descriptions("No arguments: here.") == {}


def seconds(*argv: str) -> float:
    """The processor's time that a command takes; other processes count little in it."""
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return used.ru_utime + used.ru_stime


def ratio(slow: list[str], quick: list[str], wanted: float) -> float:
    """How many times longer one command takes than another, of several rounds with the least noise."""
    found: list[tuple[float, float]] = []
    while not found or (min(s for s, _ in found) > wanted * min(q for _, q in found) and len(found) < 12):
        found.append((seconds(*slow), seconds(*quick)))
    return min(s for s, _ in found) / min(q for _, q in found)


def test_help_is_there_soon(folder: Path) -> None:
    assert ratio([NEMO, "--help"], [sys.executable, "-c", "pass"], 8) <= 8
    importing = [sys.executable, "-c", "import train, fiddle"]
    assert ratio([sys.executable, "train.py", "--help"], importing, 1.5) <= 1.5
