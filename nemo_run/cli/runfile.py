"""`nemo run FILE.py`: a function of a file as a command, without a main part in the file."""

from __future__ import annotations

import ast
import inspect
import os
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from nemo_run.cli.entrypoints import ENTRYPOINTS, Entrypoint, holding_back, main, undecorated
from nemo_run.cli.workspace import failure
from nemo_run.errors import ConfigError, NotFoundError


def run_file(file: str, words: Sequence[str]) -> None:
    """Do what the words of a command line ask of a file's function.

    Raises:
        NemoRunError: there is no such file or function, or it failed.
    """
    from nemo_run.cli.command import run_command

    commands, chosen = load_file(file)
    named = bool(words) and "=" not in words[0] and not words[0].startswith("-")
    if named:
        entry = _named(file, commands, words[0])
    elif chosen or len(commands) == 1:
        entry = chosen or next(iter(commands.values()))
    elif commands and words and words[0] in ("-h", "--help"):
        return _list(file, commands)
    else:
        raise ConfigError(_which(file, commands))
    sys.argv = [file, *words]
    run_command(entry, words[named:], " ".join(["nemo run", file, *words[:named]]))


def _list(file: str, commands: dict[str, Entrypoint]) -> None:
    import click

    from nemo_run.cli.help import summary

    page = click.HelpFormatter(width=79)
    page.write_usage(f"nemo run {file}", "COMMAND [OPTIONS] [NAME=VALUE]...")
    with page.section("Commands"):
        page.write_dl([(name, summary(entry.help)) for name, entry in commands.items()])
    click.echo(page.getvalue(), nl=False)


def load_file(file: str) -> tuple[dict[str, Entrypoint], Entrypoint | None]:
    """A file's commands by name, and the one that its main part would start.

    The file becomes this process's `__main__`, as if it were run, so that its jobs find what it defines.
    Where it has no decorated function, all its public functions are commands.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it cannot be loaded.
    """
    path = Path(file)
    if not path.is_file():
        near = [each.name for each in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise NotFoundError("file", file, near)
    before = set(ENTRYPOINTS)
    with holding_back() as started:
        module = _load(path)
    own = {e.name: e for key, e in ENTRYPOINTS.items() if key not in before and e.fn.__module__ == "__main__"}
    own |= {entry.name: entry for entry in started}
    return own or _functions(module), started[-1] if started else None


def _load(path: Path) -> ModuleType:
    """Run a file without its main part, but for what this says to `run.cli.main`."""
    from nemo_run.core.main_module import without_main_part

    file = str(path.absolute())
    module = ModuleType("__main__")
    module.__file__ = file
    sys.modules["__main__"] = module
    own = sys.path[:1] == [os.path.dirname(os.path.abspath(sys.argv[0]))]  # that of `nemo` is not for files
    sys.path[: int(own)] = [os.path.dirname(file)]
    try:
        with tokenize.open(file) as opened:
            source = opened.read()
        exec(compile(without_main_part(source), file, "exec", dont_inherit=True), module.__dict__)
        for call in _main_calls(source):
            if _named_in(module, ast.unparse(call.value.func)) is main:
                exec(compile(ast.Module([call], []), file, "exec", dont_inherit=True), module.__dict__)
    except Exception as exc:
        raise ConfigError(f"cannot load {failure(file, exc)}") from exc
    return module


def _main_calls(source: str) -> Iterator[Any]:
    """The statements of a file's main part that are but calls."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
            for inner in statement.body:
                if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Call):
                    yield inner


def _named_in(module: ModuleType, name: str) -> Any:
    """What a dotted name means in a module; None where it means nothing."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _functions(module: ModuleType) -> dict[str, Entrypoint]:
    found = {name: value for name, value in vars(module).items() if inspect.isfunction(value)}
    return {
        name: undecorated(value)
        for name, value in found.items()
        if value.__module__ == "__main__" and not name.startswith("_")
    }


def _named(file: str, commands: dict[str, Entrypoint], name: str) -> Entrypoint:
    if name in commands:
        return commands[name]
    functions = _functions(sys.modules["__main__"])
    if name in functions:
        return functions[name]
    raise NotFoundError(f"command in {os.path.basename(file)}:", name, commands)


def _which(file: str, commands: dict[str, Entrypoint]) -> str:
    if not commands:
        return f"{file} defines no function; write one, and @run.cli.entrypoint above it"
    return f"{file} has several commands; name one: nemo run {file} {' | '.join(commands)}"
