"""What README.md and docs/ show is run.

Per file, in a new folder with a new NEMORUN_HOME: all ```python blocks as one script, in order, then the
commands of all ```console and ```bash blocks in one shell, in order.

    $ command               is run and has to succeed; it goes on after a `\\` at its end and after `> `
    output                  is compared with what the command above it printed: `…` stands for any text, white
                            space for any other; where no output is shown any will do
    # words                 are a comment

Above a block, on a line of its own:

    <!-- not run: why -->   leaves the block out
    <!-- file: train.py --> writes the block into that file first, for a command to use
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from dockers import IMAGE, skip_without_engine

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"^(?:[ ]*<!--[ ]*(?P<mark>not run|file):(?P<word>.*?)-->[ ]*\n(?:[ ]*\n)*)?"
    r"^(?P<indent>[ ]*)```(?P<language>python|console|bash)[ ]*\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
DONE = "<<test_docs: exit code"
#: Pages whose commands need a module that not every machine has.
NEEDS = {"use-torchrun": "torch"}
#: Pages whose commands need a Docker Engine.
ENGINE = {"build-images-from-code", "package-executables", "run-in-containers"}
#: Pages whose commands need a machine `cluster` that is reached over SSH.
SSHD = {"connect-over-ssh", "laptop-to-cluster"}
#: Pages whose commands need a Slurm cluster.
SLURM = {"run-on-slurm", "laptop-to-cluster"}


class Block(NamedTuple):
    """A block of code in a Markdown file."""

    language: str
    text: str
    line: int  # of its first line of code
    mark: str  # "", "not run" or "file"
    word: str  # the reason, or the file's name


class Command(NamedTuple):
    """A command in a console block and the output shown for it."""

    text: str
    line: int
    output: str


def documents() -> list[Path]:
    docs = (ROOT / "docs").rglob("*.md")
    return [ROOT / "README.md", *sorted(path for path in docs if "_build" not in path.parts)]


def blocks(text: str) -> list[Block]:
    return [
        Block(
            language=found["language"],
            text=textwrap.dedent(found["text"]),
            line=text.count("\n", 0, found.start("text")) + 1,
            mark=found["mark"] or "",
            word=(found["word"] or "").strip(),
        )
        for found in BLOCK.finditer(text)
    ]


def script(python: list[Block]) -> str:
    """One script, each line at its number in the document, so that a traceback points there."""
    lines: list[str] = []
    for block in python:
        lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    return "\n".join(lines) + "\n"


def commands(block: Block) -> Iterator[Command]:
    text, output, at, more = "", "", 0, False
    for number, line in enumerate(block.text.splitlines(), block.line):
        if more or (text and not output and line.startswith("> ")):
            text += "\n" + line.removeprefix("> ")
            more = line.endswith("\\")
        elif line.startswith("$ "):
            if text:
                yield Command(text, at, output)
            text, output, at, more = line[2:], "", number, line.endswith("\\")
        elif text and not (not output and line.startswith("#")):
            output += line + "\n"
    if text:
        yield Command(text, at, output)


def matches(expected: str, actual: str) -> bool:
    parts = (re.escape(" ".join(part.split())) for part in expected.split("…"))
    printed = " ".join(actual.split())
    return not expected.strip() or re.fullmatch(".*".join(parts), printed) is not None


def run(argv: list[str], folder: Path, home: Path, input: str = "") -> subprocess.CompletedProcess[str]:
    """A process as a reader would start it, errors among its output."""
    env = {**os.environ, "NEMORUN_HOME": str(home), "COLUMNS": "100", "NO_COLOR": "1", "IMAGE": IMAGE}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return subprocess.run(
        argv,
        cwd=folder,
        env=env,
        input=input,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        timeout=100,
    )


def run_commands(shown: list[Command], folder: Path, home: Path) -> Iterator[tuple[Command, int, str]]:
    """Each command with its exit code and output; one shell runs them all, so `cd` and `export` hold."""
    lines = [f"{{ {command.text}\n}} </dev/null\nprintf '\\n{DONE} %s>>\\n' $?" for command in shown]
    printed = run(["bash", "-s"], folder, home, input="\n".join(lines) + "\n").stdout
    parts = re.split(rf"\n{DONE} (\d+)>>\n", printed)
    assert len(parts) == 2 * len(shown) + 1, f"the shell ended early:\n{printed}"
    for command, output, code in zip(shown, parts[::2], parts[1::2], strict=False):
        yield command, int(code), output


@pytest.mark.slow
@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_does_what_it_says(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    needed = NEEDS.get(path.stem, "sys")
    if find_spec(needed) is None and "CI" not in os.environ:
        pytest.skip(f"{needed} is not installed: pip install {needed}")
    if path.stem in ENGINE:
        skip_without_engine()
    if path.stem in SLURM:  # before sshd, for what is run over SSH is to see it
        request.getfixturevalue("slurm")
    if path.stem in SSHD:
        request.getfixturevalue("sshd").call("cluster")
    name, found = path.relative_to(ROOT), blocks(path.read_text(encoding="utf-8"))
    home, folder = tmp_path / "home", tmp_path / "work"
    folder.mkdir()
    for block in found:
        assert block.mark == "" or block.word, (
            f"{name}:{block.line}: say why it is not run, or the file's name"
        )
        if block.mark == "file":
            (folder / block.word).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.word).write_text(block.text, encoding="utf-8")

    shown = [block for block in found if not block.mark]
    if python := [block for block in shown if block.language == "python"]:
        file = folder / f"{path.stem.lower().replace('-', '_')}.py"
        file.write_text(script(python), encoding="utf-8")
        done = run([sys.executable, str(file)], folder, home)
        assert done.returncode == 0, (
            f"{name}: its script failed (line numbers are the document's)\n{done.stdout}"
        )

    lines = [command for block in shown if block.language != "python" for command in commands(block)]
    for command, code, output in run_commands(lines, folder, home) if lines else ():
        assert code == 0, f"{name}:{command.line}: exit code {code} from `{command.text}`\n{output}"
        assert matches(command.output, output), (
            f"{name}:{command.line}: `{command.text}` is shown to print\n{command.output}It printed\n{output}"
        )


def test_every_block_left_out_says_why(record_property: pytest.RecordProperty) -> None:
    left_out = [
        (f"{path.relative_to(ROOT)}:{block.line}", block.word)
        for path in documents()
        for block in blocks(path.read_text(encoding="utf-8"))
        if block.mark == "not run"
    ]
    record_property("blocks_not_run", len(left_out))
    assert [at for at, why in left_out if not why] == []
