"""`nemo executors` and `nemo factories`: what is registered, where it stands, and whether it would work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from nemo_run.cli.output import print_json

if TYPE_CHECKING:
    from nemo_run.cli.factories import Factory
    from nemo_run.core.execution.base import Check, Executor

app = typer.Typer(
    help="List executors; try what one of them needs.", invoke_without_command=True, rich_markup_mode=None
)
_JSON = typer.Option(False, "--json", help="Print JSON.")


@app.callback()
def list_(ctx: typer.Context, as_json: bool = _JSON) -> None:
    """List the executors that have a name; try what one of them needs."""
    if ctx.invoked_subcommand:
        return
    from nemo_run.cli.factories import REGISTRY
    from nemo_run.cli.workspace import use_workspaces
    from nemo_run.core.execution.base import Executor
    from nemo_run.lookup import built_in_executors

    use_workspaces()
    rows = [_row(found) for found in REGISTRY.fitting(Executor).values()]
    rows += [{"name": name, "makes": name, "where": "built in"} for name in built_in_executors()]
    _print(rows, as_json)


@app.command()
def check(
    name: str = typer.Argument(
        ...,
        metavar="NAME",
        help="A factory's name, with arguments or not, or a class's: SlurmExecutor, slurm.",
    ),
    overrides: list[str] = typer.Argument(None, metavar="[FIELD=VALUE]...", help="Fields to check it with."),
    as_json: bool = _JSON,
) -> None:
    """Try what an executor needs; exit code 1 if it lacks something.

    What is lacking comes with how to mend it. Nothing is submitted.
    """
    executor = _executor(name, overrides or [])
    if not as_json:
        typer.echo(executor.info())
    checks = []
    for each in _checks(executor):
        checks.append(each)
        if not as_json:
            _print_check(each)
    if as_json:
        print_json([asdict(each) for each in checks])
    if not all(each.ok for each in checks):
        raise typer.Exit(1)


def factories(
    kind: str = typer.Argument("", metavar="TYPE", help="Only those for this class, or for those above it."),
    as_json: bool = _JSON,
) -> None:
    """List what names on the command line may stand for."""
    from nemo_run.cli.factories import REGISTRY
    from nemo_run.cli.workspace import use_workspaces
    from nemo_run.errors import NotFoundError

    use_workspaces()
    found = REGISTRY.all()
    known = sorted({each for factory in found for each in _kinds(factory)})
    if kind and kind not in known:
        raise NotFoundError("factory for", kind, known)
    _print([_row(factory) for factory in found if not kind or kind in _kinds(factory)], as_json)


# --- listing --------------------------------------------------------------------------------------------


def _row(found: Factory) -> dict[str, Any]:
    from nemo_run.cli.kinds import kind_text

    makes = kind_text(found.makes) if found.makes is not None else found.namespace
    return {"name": found.name, "makes": makes, "where": found.where}


def _kinds(found: Factory) -> Iterator[str]:
    """What a factory can be asked for by: the class it makes and those above, with their modules or not."""
    from nemo_run.lookup import get_type_namespace

    makes = found.makes if isinstance(found.makes, type) else None
    names = [found.namespace, *(get_type_namespace(cls) for cls in (makes.__mro__[:-1] if makes else ()))]
    for name in names:
        yield name
        yield name.rpartition(".")[2]


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    from nemo_run.console import print_rows

    if as_json:
        return print_json(rows)
    if not rows:
        return typer.echo("No factory is registered; `nemo init` writes a workspace.py with some.")
    print_rows(list(rows[0]), [list(row.values()) for row in rows])


# --- checking -------------------------------------------------------------------------------------------


def _executor(text: str, overrides: Iterable[str]) -> Executor:
    """The executor that a name on the command line stands for.

    Raises:
        NemoRunError: there is none, or it cannot be made.
    """
    from importlib import import_module

    from fiddle import build

    from nemo_run.cli.overrides import apply_overrides
    from nemo_run.cli.request import settings_reader
    from nemo_run.cli.syntax import parse_call
    from nemo_run.cli.workspace import use_workspaces
    from nemo_run.config import configured
    from nemo_run.core.execution.base import Executor
    from nemo_run.errors import ConfigError, NotFoundError, OverrideError
    from nemo_run.lookup import built_in_executors

    use_workspaces()
    reader = settings_reader()
    known = reader.choices(Executor)
    text = _in_full(text, known)
    call = parse_call(text)
    if call is None or call.name not in known:
        raise NotFoundError("executor", call.name if call else text, known)
    if text in built_in_executors():
        made = configured(getattr(import_module("nemo_run"), text).bare())
    else:
        made = reader.read(text, Executor)
    try:
        executor: Executor = build(apply_overrides(made, overrides, reader))
    except OverrideError:
        raise
    except ConfigError as exc:
        # Fiddle adds to it which of its configs that is, with all of its arguments.
        raise ConfigError(str(exc).partition("\n\nFiddle context")[0]) from exc
    return executor


def _in_full(text: str, known: Iterable[str]) -> str:
    """A class of ours that is called without its `Executor`, such as `slurm`, unless something else is."""
    from nemo_run.lookup import built_in_executors

    if text in known:
        return text
    return next((name for name in built_in_executors() if name.lower() == f"{text}executor".lower()), text)


def _checks(executor: Executor) -> Iterator[Check]:
    from nemo_run.core.execution.base import Check
    from nemo_run.errors import NemoRunError

    try:
        yield from executor.probe()
    except NemoRunError as exc:
        yield Check(name="executor", ok=False, found=str(exc))


def _print_check(each: Check) -> None:
    word = typer.style("ok    ", fg="green") if each.ok else typer.style("failed", fg="red", bold=True)
    typer.echo(f"{word}  {each.name:<10}  {' '.join(each.found.split())}")
    if each.step:
        typer.echo(f"{'':20}next: {each.step}")
