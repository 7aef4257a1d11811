"""`nemo NAMESPACE NAME`: the commands that installed packages offer, imported when they are asked for."""

from __future__ import annotations

import glob
import os
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from nemo_run.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from nemo_run.cli.entrypoints import Entrypoint

#: Where packages say which module has commands and factories: `llm = package.llm` offers `nemo llm …`.
GROUP = "nemo_run.cli"


class NemoGroup(TyperGroup):
    """`nemo` with the namespaces of installed packages beside its own commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        # Help is to be there at once, and most often there is nothing to be asked for.
        offered = {entry.name for entry in _entry_points()} if _is_any_offered() else set()
        return [*own, *sorted(offered - set(own))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if own := super().get_command(ctx, cmd_name):
            return own
        found = _entry_points(cmd_name)
        return _namespace(cmd_name, found, is_lazy=bool(ctx.params.get("lazy"))) if found else None


def _namespace(namespace: str, found: list[EntryPoint], is_lazy: bool) -> Any:
    """A command that hands all words on to those of a namespace."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    settings = {"allow_interspersed_args": False, "ignore_unknown_options": True}
    what = f"Commands of {', '.join(sorted({entry.module for entry in found}))}."

    @app.command(namespace, help=what, add_help_option=False, context_settings=settings)
    def pass_on(words: list[str] = typer.Argument(None)) -> None:
        from nemo_run.cli.command import run_group

        commands = {} if is_lazy else commands_of(namespace)
        run_group(namespace, what, commands, words or [], is_lazy=is_lazy)

    return typer.main.get_command(app)


def _entry_points(namespace: str | None = None) -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return [entry for entry in entry_points(group=GROUP) if namespace in (None, entry.name)]


def _is_any_offered() -> bool:
    """Whether an installed package names the group at all, found out without importlib.metadata."""
    for folder in sys.path:
        for path in glob.iglob(os.path.join(glob.escape(folder), "*-info", "entry_points.txt")):
            try:
                with open(path, "rb") as file:
                    if GROUP.encode() in file.read():
                        return True
            except OSError:
                pass
    return False


def commands_of(namespace: str) -> dict[str, Entrypoint]:
    """The commands of a namespace by name; the packages that offer them are imported.

    Raises:
        ConfigError: such a package cannot be imported.
    """
    from nemo_run.cli.entrypoints import ENTRYPOINTS, package_of

    modules = [_imported(entry) for entry in _entry_points(namespace)]

    def is_offered(entry: Entrypoint) -> bool:
        module = str(entry.fn.__module__)
        within = any(f"{module}.".startswith(f"{name}.") for name in modules)
        return entry.namespace == namespace or (within and entry.namespace == package_of(entry.fn))

    return {entry.name: entry for entry in ENTRYPOINTS.values() if is_offered(entry)}


def command_of(namespace: str, name: str) -> Entrypoint:
    """One command; raises like `commands_of`, and NotFoundError where there is none."""
    commands = commands_of(namespace)
    if name not in commands:
        raise NotFoundError(f"command in {namespace}:", name, commands)
    return commands[name]


def _imported(entry: EntryPoint) -> str:
    try:
        entry.load()
    except Exception as exc:
        problem = f"{type(exc).__name__}: {exc}"
        raise ConfigError(f"cannot load {entry.value!r} for `nemo {entry.name}`: {problem}") from exc
    return entry.module
