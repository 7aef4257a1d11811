"""The command that an entrypoint is: its options, and what each has done."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from nemo_run.cli.entrypoints import Entrypoint
from nemo_run.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from nemo_run.cli.entrypoints import RunContext
    from nemo_run.cli.request import Request

#: The options that are fields of the RunContext.
_SETTINGS = ("name", "direct", "dryrun", "detach", "tail_logs", "skip_confirmation")
_FORMATS = ("yaml", "toml", "json")
#: Exceptions that are how a command ends, and no failures of a function.
_ENDINGS = (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError)
_EXPORTS = [f"to_{kind}" for kind in _FORMATS]


class _NothingToRun(SystemExit):
    """What was asked for is done, and was not to run anything: the script ends here."""


def _flag(*names: str, help: str, **more: Any) -> click.Option:
    return click.Option(names, is_flag=True, default=None, help=help, **more)


def options(entry: Entrypoint) -> list[click.Parameter]:
    """The options of an entrypoint's command."""
    executor = [
        click.Option(
            ("--name", "-n"), metavar="TEXT", help=f"What the run is called (default: {entry.name})."
        ),
        _flag("--direct/--no-direct", help="Call it in this process."),
        _flag("--detach/--no-detach", help="Return as soon as it is on its way."),
        _flag("--tail-logs/--no-tail-logs", help="Print what the jobs print."),
    ]
    exports = [
        click.Option(
            (f"--to-{kind}",),
            metavar="PATH[:SECTION]",
            help=f"Write the arguments, or a section of them, as {kind.upper()}, and run nothing.",
        )
        for kind in _FORMATS
    ]
    return [
        *(executor if entry.enable_executor else []),
        _flag("--dryrun/--no-dryrun", help="Show the arguments and the plan, and run nothing."),
        _flag("--yes", "-y", "--no-confirm", "skip_confirmation", help="Do not ask before it runs."),
        click.Option(("--factory", "-f"), metavar="NAME|@FILE", help="What to start from."),
        click.Option(
            ("--yaml", "files"), metavar="FILE", multiple=True,
            help="Take arguments from a YAML, TOML or JSON file, or FILE:SECTION of one.",
        ),
        *exports,
        _flag("--repl", "-r", help="Open a Python prompt with the task, and run nothing by itself."),
        _flag("--verbose", "-v", help="Say more; show tracebacks."),
        _flag("--rich-exceptions/--no-rich-exceptions", help="Show tracebacks, drawn by Rich."),
        _flag("--rich-traceback-full/--rich-traceback-short", help="With all frames, or the last ones."),
        _flag("--rich-show-locals/--rich-hide-locals", help="With the values of variables."),
        click.Option(("--rich-theme",), metavar="NAME", help="In the colours of this theme.", hidden=True),
    ]  # fmt: skip


def make_command(entry: Entrypoint, program: str) -> click.Command:
    """The command of an entrypoint, for click; `program` is how it is called."""

    def show_help(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
        if asked:
            from nemo_run.cli.help import help_text

            given = [each for each in ctx.command.params if isinstance(each, click.Option)]
            rows = [row for each in given if (row := each.get_help_record(ctx))]
            with_docs = any(word in ("--docs", "-d") for word in sys.argv)
            click.echo(help_text(entry, program, rows, docs=with_docs))
            raise _NothingToRun(0)

    asking = {"is_eager": True, "expose_value": False}
    shown = [
        _flag("--docs", "-d", help="With --help: show the whole docstring.", **asking),
        _flag("--help", "-h", help="Show this and exit.", callback=show_help, **asking),
    ]
    words = click.Argument(("overrides",), nargs=-1, type=click.UNPROCESSED, metavar="[NAME=VALUE]...")
    return click.Command(
        entry.name,
        params=[words, *options(entry), *shown],
        callback=lambda **given: _run(entry, given),
        add_help_option=False,
        short_help=entry.help.strip().partition("\n")[0],
    )


def lazy_command(namespace: str, name: str) -> click.Command:
    """The command of an entrypoint that is imported only in its job."""
    from nemo_run.cli.lazily import call_recorded

    def run(**given: Any) -> None:
        from nemo_run.cli.factories import REGISTRY
        from nemo_run.cli.lazily import recording
        from nemo_run.cli.workspace import load_workspaces

        REGISTRY.sources[:] = [load_workspaces]  # nothing of any package is imported
        entry, rest = recording(namespace, name, given)
        recorded = {key: value for key, value in given.items() if key not in ("factory", "files")}
        _run(entry, {**recorded, "overrides": tuple(rest)})

    unknown = Entrypoint(fn=call_recorded, name=name, namespace=namespace)
    wanted = [each for each in options(unknown) if each.name not in ("direct", "repl", *_EXPORTS)]
    words = click.Argument(("overrides",), nargs=-1, type=click.UNPROCESSED, metavar="[NAME=VALUE]...")
    names = {"help_option_names": ["-h", "--help"]}
    what = "Have a job import it, with what is said here. What it takes is not known here."
    return click.Command(name, params=[words, *wanted], callback=run, help=what, context_settings=names)


def run_command(entry: Entrypoint, words: Sequence[str], program: str) -> None:
    """Do what the words of a command line ask of an entrypoint.

    Raises:
        SystemExit: they are wrong, ask for help, or were taken back.
        NemoRunError: it failed.
    """
    _main(make_command(entry, program), words, program)


def run_group(
    namespace: str,
    what: str,
    commands: Mapping[str, Entrypoint],
    words: Sequence[str],
    *,
    is_lazy: bool = False,
) -> None:
    """Do what the words of a command line ask of one of several commands; raises like `run_command`.

    Args:
        namespace: the word before their names.
        what: what they are.
        commands: the commands by name.
        words: the rest of the command line.
        is_lazy: take each name for that of a command, and import none (default: False).
    """

    class Group(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return sorted(commands)

        def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
            if is_lazy:
                return lazy_command(namespace, name)
            return make_command(commands[name], f"nemo {namespace} {name}") if name in commands else None

    names = {"help_option_names": ["-h", "--help"]}
    _main(Group(help=what, context_settings=names, no_args_is_help=True), words, f"nemo {namespace}")


def _main(command: click.Command, words: Sequence[str], program: str) -> None:
    from nemo_run.cli.workspace import use_workspaces

    use_workspaces()
    try:
        command.main(args=list(words), prog_name=program)
    except SystemExit as exc:
        if exc.code or isinstance(exc, _NothingToRun):
            raise


# --- doing it -------------------------------------------------------------------------------------------


def _run(entry: Entrypoint, given: dict[str, Any]) -> None:
    """Do what the options and overrides say."""
    given = {name: value for name, value in given.items() if value not in (None, ())}
    given = {**_defaults(entry), **given}
    with _tracebacks(given):
        from nemo_run.cli.request import make_request

        request = make_request(
            entry,
            factory=given.get("factory"),
            files=given.get("files", ()),
            overrides=given.get("overrides", ()),
            settings={name: given[name] for name in _SETTINGS if name in given},
        )
        if exported := {kind: given[f"to_{kind}"] for kind in _FORMATS if f"to_{kind}" in given}:
            _export(request, exported)
        elif given.get("repl"):
            _repl(entry, request)
        else:
            return _carry_out(entry, request, "DEBUG" if given.get("verbose") else "INFO")
    raise _NothingToRun(0)


def _defaults(entry: Entrypoint) -> Mapping[str, Any]:
    """The values of options where the command line has none; raises ConfigError for one that is no option."""
    known = [str(each.name) for each in options(entry)]
    for name in entry.defaults:
        if name not in known:
            raise ConfigError(f"cmd_defaults of {entry.name}: no option {name!r}{suggestion(name, known)}")
    return entry.defaults


def _export(request: Request, exported: Mapping[str, str]) -> None:
    from nemo_run.cli.export import export

    for kind, target in exported.items():
        click.echo(f"Wrote {export(request.task, target, kind)}.", err=True)


def _carry_out(entry: Entrypoint, request: Request, level: str) -> None:
    """Show it, or ask and run it."""
    from nemo_run.cli.showing import show

    ctx = request.context()
    if ctx.dryrun:
        show(entry, request)
    elif not ctx.skip_confirmation:
        _ask(entry, request)
    call(entry, request.task, ctx, level)
    if ctx.dryrun:
        raise _NothingToRun(0)


def call(entry: Entrypoint, task: Any, ctx: RunContext, level: str = "INFO") -> Any:
    """Run the task of an entrypoint as its context says; returns its value.

    Raises:
        ExecutionError: it failed.
    """
    from nemo_run.run.api import run

    logging.getLogger("nemo_run").setLevel(level)
    if entry.context:
        import fiddle

        ctx.name = ctx.name or entry.name
        return fiddle.build(task)(**{entry.context: ctx})
    if not entry.enable_executor or (ctx.direct and ctx.dryrun):
        if ctx.dryrun:
            return click.echo("It would be called in this process.")
        return run(task)
    for plugin in ctx.plugins if ctx.direct else ():
        plugin.setup(task, ctx.executor)  # in a job, that is done when it is added to its experiment
    return run(
        task,
        executor=ctx.executor,
        plugins=ctx.plugins,
        name=ctx.name or entry.name,
        dryrun=ctx.dryrun,
        direct=ctx.direct,
        detach=ctx.detach,
        tail_logs=ctx.tail_logs is not False,
        log_level=level,
    )


def _ask(entry: Entrypoint, request: Request) -> None:
    """Ask on the terminal whether to go on; leave if not."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(
            f"nobody can be asked whether to run {entry.name}: this is no terminal;"
            " give --yes (-y) to run it without being asked, or --dryrun to see what would run"
        )
    from nemo_run.cli.showing import show

    show(entry, request, err=True)
    try:
        goes_on = click.confirm("Continue?", err=True)
    except click.Abort:  # Ctrl-C, Ctrl-D
        click.echo(err=True)
        goes_on = False
    if not goes_on:
        click.echo("Nothing was run.", err=True)
        raise click.exceptions.Exit(1)


def _repl(entry: Entrypoint, request: Request) -> None:
    """A Python prompt in which the task can be looked at, changed and run."""

    def run_task() -> Any:
        """Run the task as it is now."""
        return call(entry, request.task, request.context())

    names = {"task": request.task, "settings": request.settings, "run_task": run_task}
    banner = f"`task` is {entry.name} with its arguments; run_task() runs it, settings say where and how."
    try:
        ipython: Any = import_module("IPython")
    except ImportError:
        import code

        code.interact(banner=banner, local=names, exitmsg="")
        return
    print(banner)
    ipython.start_ipython(argv=["--no-banner"], user_ns=names)


@contextmanager
def _tracebacks(given: Mapping[str, Any]) -> Iterator[None]:
    """Show the traceback of what a function raised here; of our own errors only where that is asked for."""
    from nemo_run.errors import NemoRunError

    try:
        yield
    except _ENDINGS:
        raise
    except Exception as exc:
        is_ours, whole = isinstance(exc, NemoRunError), bool(given.get("verbose"))
        if given.get("rich_exceptions"):
            _draw(exc, given)
        elif whole or not is_ours:
            _print(exc, whole)
        if is_ours:  # it is told as well, in one message
            raise
        raise click.exceptions.Exit(1) from exc


def _draw(error: Exception, given: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.traceback import Traceback

    drawn = Traceback.from_exception(
        type(error),
        error,
        error.__traceback__,
        show_locals=bool(given.get("rich_show_locals")),
        max_frames=100 if given.get("rich_traceback_full") else 4,
        theme=given.get("rich_theme"),
    )
    Console(stderr=True).print(drawn)


def _print(error: Exception, whole: bool) -> None:
    """Print a traceback; unless it is to be `whole`, without the frames that lead to the function's own."""
    import traceback

    import fiddle

    own = tuple(os.path.dirname(str(each.__file__)) for each in (import_module("nemo_run"), click, fiddle))
    first = error.__traceback__
    while first is not None and not whole and first.tb_frame.f_code.co_filename.startswith(own):
        first = first.tb_next
    traceback.print_exception(type(error), error, first or error.__traceback__)
