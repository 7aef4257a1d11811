"""`nemo`: its groups of commands."""

from __future__ import annotations

import sys

import typer

from nemo_run.cli import experiment

# Plain help instead of Rich's: it is there in a third of the time.
app = typer.Typer(
    name="nemo",
    help="Configure a task once, run it anywhere.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(experiment.app, name="experiment")
app.command("gc")(experiment.gc)


def _version(show: bool) -> None:
    if show:
        from nemo_run._version import __version__

        typer.echo(f"nemo_run {__version__}")
        raise typer.Exit


@app.callback()
def _nemo(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    if sys.stdin.isatty() and sys.stderr.isatty():
        from nemo_run.console import people

        ctx.with_resource(people())
