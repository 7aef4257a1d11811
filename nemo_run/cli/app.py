"""`nemo`: its groups of commands."""

from __future__ import annotations

import sys

import typer

from nemo_run.cli import completion, executors, experiment, init
from nemo_run.cli.namespaces import NemoGroup

# Plain help instead of Rich's: it is there in a third of the time.
app = typer.Typer(
    name="nemo",
    cls=NemoGroup,
    help="Configure a task once, run it anywhere.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,  # `nemo completion` knows overrides, factories and experiments too
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(experiment.app, name="experiment")
app.add_typer(executors.app, name="executors")
app.command("init")(init.init)
app.command("factories")(executors.factories)
app.command("completion")(completion.completion)
app.command("gc")(experiment.gc)


@app.command(
    "run",
    add_help_option=False,
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
)
def run_(
    ctx: typer.Context,
    words: list[str] = typer.Argument(None, metavar="FILE.py [COMMAND] [OPTIONS] [NAME=VALUE]..."),
) -> None:
    """Run a function of a file as a command."""
    if not words or words[0] in ("-h", "--help"):
        typer.echo(ctx.get_help())
        raise typer.Exit(0 if words else 2)
    from nemo_run.cli.runfile import run_file
    from nemo_run.errors import ConfigError

    if ctx.parent and ctx.parent.params.get("lazy"):
        raise ConfigError("--lazy is for the commands of packages; a file is always loaded here")
    run_file(words[0], words[1:])


@app.command(
    "launch",
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
)
def launch_(
    script: str = typer.Argument(..., metavar="SCRIPT.py", help="A launch script."),
    flags: list[str] = typer.Argument(None, metavar="[-- FLAGS]", help="For the script itself."),
) -> None:
    """Run a launch script of XManager's kind."""
    from nemo_run.cli.launch import launch

    launch(script, flags or [])


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
    lazy: bool = typer.Option(
        False, "--lazy", help="Import the package of a command only in its job, not here."
    ),
) -> None:
    if sys.stdin.isatty() and sys.stderr.isatty():
        from nemo_run.console import people

        ctx.with_resource(people())
