"""Imports within nemo_run point one way, and what must start at once imports nothing slow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

#: Lowest first. A module may import from its own layer and those below; a folder stands for all it holds.
LAYERS = (
    {"_version", "errors", "home", "shell", "secret", "lazy", "xm"},
    {"config", "describe", "drawing", "lookup"},
    {
        "checkpoint", "core", "core.forkserver", "core.main_module", "core.monitor", "core.packaging",
        "core.process", "core.runner", "core.serialization", "core.supervisor", "core.tunnel", "rundir",
    },
    {"core.execution"},
    {"run", "console"},
    {"cli", "xm_local", "testing"},
    {"", "__main__"},
)  # fmt: skip

#: Beside the layers: whom → the only ones that may import it.
ONLY = {
    "console": {"console", "run.experiment", "run.attend", "cli"},
    "testing": {"testing"},
    "xm": {"xm", "xm_local"},
}

#: Imports against the direction, each with its reason; one that is no longer needed fails.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("lazy", "core.runner"): "the rule for dotted names stands in runner.py, which must run without nemo_run",
}

#: Vendors' libraries: installed by extras, imported only inside the function that makes a client.
VENDORS = {"docker", "google", "kubernetes", "sky"}
#: Slow to import.
SLOW = {"cloudpickle", "fabric", "fiddle", "jinja2", "paramiko", "psutil", "rich", "torchx", "typer", "yaml"}
#: What every task, every `import nemo_run` and every command that only reads pays for.
QUICK = {
    "", "cli", "cli.entrypoints", "cli.factories", "core.execution.base", "core.execution.local",
    "core.process", "core.runner", "core.supervisor", "errors", "home", "run.dispatch", "run.look",
    "run.results", "run.store", "secret", "shell", "xm",
}  # fmt: skip


class Import(NamedTuple):
    """One import statement's target, and when it takes place."""

    target: str  # a module of nemo_run by its name less `nemo_run.`, else as written
    ours: bool
    line: int
    when: str  # "start", "typing" or "call"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / "nemo_run").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / "nemo_run").rglob("*.py"))}


def statements(node: ast.AST, when: str = "start") -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, when
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from statements(child, "call")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for inner in child.body:
                yield from statements(ast.Module([inner], []), "typing" if when == "start" else when)
            for inner in child.orelse:
                yield from statements(ast.Module([inner], []), when)
        else:
            yield from statements(child, when)


def targets(statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    base = statement.module or ""
    for alias in statement.names:
        inner = f"{base}.{alias.name}"
        is_module = inner.startswith("nemo_run.") and inner.removeprefix("nemo_run.") in FILES
        yield inner if is_module else base


def imports(module: str) -> list[Import]:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    found = {}
    for statement, when in statements(tree):
        for target in targets(statement):
            ours = target.partition(".")[0] == "nemo_run"
            name = target.partition(".")[2] if ours else target
            found.setdefault((name, when), Import(name, ours, statement.lineno, when))
    return list(found.values())


IMPORTS = {module: imports(module) for module in FILES}


def within(module: str, names: set[str]) -> bool:
    """Whether a module, or a folder it lies in, is among the names."""
    return module in names or any(module.startswith(f"{name}.") for name in names if name)


def layer(module: str) -> int:
    """The place of a module in LAYERS: that of the longest name that holds it."""
    held = [(len(name), at) for at, names in enumerate(LAYERS) for name in names if within(module, {name})]
    assert held, f"nemo_run.{module} has no layer; give it one in LAYERS of {Path(__file__).name}"
    return max(held)[1]


def where(module: str, found: Import) -> str:
    return f"{FILES[module].relative_to(ROOT)}:{found.line}"


def objection(module: str, target: str) -> str:
    """Why a module may not import another of ours; nothing where it may."""
    for name, only in ONLY.items():
        if within(target, {name}) and not within(module, only):
            return f"only {', '.join(sorted(only))} may"
    return "" if layer(target) <= layer(module) else f"nemo_run.{target} stands in a layer above it"


@pytest.mark.parametrize("module", FILES)
def test_each_module_has_a_layer(module: str) -> None:
    assert layer(module) in range(len(LAYERS))


@pytest.mark.parametrize("module", FILES)
def test_imports_point_one_way(module: str) -> None:
    wrong = [
        f"{where(module, found)}: nemo_run.{module} imports nemo_run.{found.target}: {why}"
        for found in IMPORTS[module]
        if found.ours and (module, found.target) not in EXCEPTIONS
        if (why := objection(module, found.target))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("module", "target"), EXCEPTIONS)
def test_each_exception_is_still_needed(module: str, target: str) -> None:
    assert any(found.ours and found.target == target for found in IMPORTS[module]), (
        f"nemo_run.{module} no longer imports nemo_run.{target}; take the pair out of EXCEPTIONS"
    )
    assert objection(module, target)


@pytest.mark.parametrize("module", FILES)
def test_vendors_libraries_are_imported_inside_functions(module: str) -> None:
    wrong = [
        f"{where(module, found)}: import {found.target} inside the function that makes its client"
        for found in IMPORTS[module]
        if not found.ours and found.target.partition(".")[0] in VENDORS and found.when != "call"
    ]
    assert not wrong, "\n".join(wrong)


def loaded_with(module: str) -> dict[str, str]:
    """Modules of ours that importing this one executes → the chain of imports that leads there."""
    chains, todo = {module: module or "nemo_run"}, [module]
    while todo:
        current = todo.pop()
        folders = [current.rpartition(".")[0]] if "." in current else []
        started = [found.target for found in IMPORTS[current] if found.ours and found.when == "start"]
        for target in (*folders, *started):
            if target in FILES and target not in chains:
                chains[target] = f"{chains[current]} → {target}"
                todo.append(target)
    return chains


def is_slow(found: Import) -> bool:
    root = found.target.partition(".")[0]
    if found.ours or root not in SLOW | VENDORS or found.when == "call":
        return False
    return found.when == "start" or root != "torchx"  # torchx's nouns may be named in annotations


@pytest.mark.parametrize("module", sorted(QUICK))
def test_what_must_start_at_once_imports_nothing_slow(module: str) -> None:
    if module not in FILES:
        pytest.fail(f"nemo_run.{module} is gone; take it out of QUICK")
    wrong = [
        f"{where(inner, found)}: imports {found.target} at module level ({chain})"
        for inner, chain in loaded_with(module).items()
        for found in IMPORTS[inner]
        if is_slow(found) and (found.when == "start" or inner == module)
    ]
    assert not wrong, "\n".join(wrong)
