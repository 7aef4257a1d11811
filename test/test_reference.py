"""The reference pages name all that there is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import nemo_run
from nemo_run import errors, xm, xm_local
from nemo_run.cli.app import app

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
#: What `automodule` and text take care of.
ELSEWHERE = {"__version__", "__package_name__"}


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def documented() -> set[str]:
    """The last part of each name that a page has Sphinx document."""
    text = page("python.md") + page("errors.md")
    return {
        found.rpartition(".")[2]
        for found in re.findall(r"^\.\. auto(?:class|function|exception):: (\S+)", text, re.M)
    }


@pytest.mark.parametrize("name", sorted(set(nemo_run.__all__) - ELSEWHERE))
def test_each_public_name_has_its_place_in_the_reference(name: str) -> None:
    assert name in documented()


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_what_is_no_function_or_class_is_told_in_words(name: str) -> None:
    assert f"`run.{name}`" in page("python.md")


@pytest.mark.parametrize("name", xm.__all__)
def test_each_word_of_xmanager_has_its_place_in_the_reference(name: str) -> None:
    assert re.search(rf"^\.\. auto\w+:: {name}$|`xm\.{name}`", page("xm.md"), re.M)


@pytest.mark.parametrize("name", xm_local.__all__)
def test_each_deed_of_xmanager_has_its_place_in_the_reference(name: str) -> None:
    assert re.search(rf"^\.\. auto\w+:: {name}$|`xm_local\.{name}`", page("xm.md"), re.M)


def test_each_exception_has_its_place_in_the_reference() -> None:
    kinds = [
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)
    ]
    assert set(kinds) <= documented()
    assert len(kinds) > 10


def test_the_tree_of_errors_is_that_of_the_code() -> None:
    drawn = {line.split()[0] for line in tree(errors.__doc__ or "")}
    assert drawn == {line.split()[0] for line in tree(page("errors.md"))}
    kinds = {
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    assert kinds <= drawn


def tree(text: str) -> Iterator[str]:
    return (
        line.strip("│├└─ ") for line in text.splitlines() if re.match(r"[│├└ ]*[├└]─|NemoRunError$", line)
    )


def commands(command: Any, path: str = "nemo") -> Iterator[tuple[str, Any]]:
    """Each command that does something, with its full name."""
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, child in inner.items():
        yield from commands(child, f"{path} {name}")


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_described_with_all_its_options(name: str) -> None:
    group, _, word = name.rpartition(" ")
    section = page("cli.md").split(f"## `{group}`\n")[1].split("\n## ")[0]
    [line] = re.findall(rf"^`({word}\b.*)`$", section, re.M)
    options = {option for param in COMMANDS[name].params for option in param.opts if option.startswith("--")}
    assert set(re.findall(r"--[a-z-]+", line)) == options - {"--help"}


def test_each_environment_variable_is_described() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "nemo_run").rglob("*.py"))
    used = set(re.findall(r"NEMORUN_[A-Z_]+", source))
    assert used == set(re.findall(r"NEMORUN_[A-Z_]+", page("environment.md")))


def test_each_page_is_in_a_table_of_contents() -> None:
    pages = {path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts}
    listed = {ROOT / "docs" / "index.md"}
    for path in pages:
        for toctree in re.findall(r"```\{toctree\}\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
            for entry in (line.strip() for line in toctree.splitlines()):
                listed |= (
                    set(path.parent.glob(f"{entry}.md")) if entry and not entry.startswith(":") else set()
                )
    assert pages == listed
