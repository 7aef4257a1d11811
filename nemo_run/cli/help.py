"""The help screen of a command: what it takes, of which types, with which defaults, and what fits."""

from __future__ import annotations

import inspect
import re
import shutil
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from nemo_run.cli.entrypoints import Entrypoint, RunContext
from nemo_run.cli.factories import REGISTRY, Factory
from nemo_run.cli.kinds import argument_kinds, kind_text
from nemo_run.cli.telling import declared_at

Row = tuple[str, str]

#: Wider lines are hard to read.
_WIDEST = 100
#: A heading of a docstring in Google's way, and a line of its `Args:`.
_HEADING = re.compile(r"(Args|Arguments|Attributes|Examples?|Notes?|Raises|Returns|Yields):\s*$")
_DESCRIBED = re.compile(r"( *)\*{0,2}(\w+)(?: \([^)]*\))?: *(.*)")


def help_text(entry: Entrypoint, program: str, options: Iterable[Row], *, docs: bool = False) -> str:
    """The help screen of a command.

    Args:
        entry: the command.
        program: how it is called.
        options: its options, each with what it does.
        docs: show all of the function's docstring (default: its first paragraph).
    """
    import click

    width = min(shutil.get_terminal_size().columns, _WIDEST) - 1
    page = click.HelpFormatter(width=max(width, 40))
    page.write_usage(program, "[OPTIONS] [NAME=VALUE]...")
    doc = inspect.cleandoc(entry.help)
    with page.indentation():
        for paragraph in doc.split("\n\n") if docs else [summary(doc)]:
            page.write_text(f"\b\n{paragraph}" if docs else paragraph)
    whole = [_factory_row(f"--factory {found.name}", found) for found in REGISTRY.fitting(entry.fn).values()]
    sections = {
        f"Arguments of {entry.name} ({declared_at(entry.fn)})": list(_arguments(entry, doc)),
        "All of them at once": whole,
        "Where and how it runs": list(_settings(entry)) if entry.enable_executor else [],
        "Options": list(options),
    }
    wide = max([len(term) for rows in sections.values() for term, _ in rows], default=0)
    for title, rows in sections.items():
        if rows:
            with page.section(title):
                page.write_dl([(term.ljust(min(wide, 26)), text) for term, text in rows], col_max=26)
    return page.getvalue().rstrip("\n")


def summary(doc: str) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(doc.split("\n\n")[0].split())


def _arguments(entry: Entrypoint, doc: str) -> Iterator[Row]:
    kinds, described = argument_kinds(entry.fn), descriptions(doc)
    for parameter in inspect.signature(entry.fn).parameters.values():
        if parameter.name == entry.context or parameter.kind is parameter.VAR_POSITIONAL:
            continue
        name = "NAME" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
        kind = kinds.get(parameter.name, Any)
        fitting = REGISTRY.fitting(kind, entry.fn, parameter.name).values()
        defaults = [found.name for found in fitting if found.is_default]
        about = described.get(parameter.name, "")
        yield name, _type_and_default(parameter, kind, defaults) + (f": {about}" if about else "")
        for found in fitting:
            yield _factory_row(f"  {name}={found.name}", found)


def _type_and_default(parameter: inspect.Parameter, kind: Any, defaults: list[str]) -> str:
    what = kind_text(kind) if parameter.annotation is not parameter.empty else "any value"
    if defaults:
        return f"{what} = {defaults[-1]}"
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"{what}, any number of them"
    if parameter.default is parameter.empty:
        return f"{what}, required"
    return f"{what} = {default_text(parameter.default)}"


def default_text(value: Any) -> str:
    """A default for a person: what it is, cut where it is long."""
    text = value.__name__ if inspect.isroutine(value) or inspect.isclass(value) else repr(value)
    # The address of an object says nothing, and is another one each time.
    text = re.sub(r"<([\w.]+)( object)? at 0x[0-9a-f]+>", r"<\1>", " ".join(text.split()))
    return text if len(text) <= 50 else f"{text[:50]}…"


def _factory_row(term: str, found: Factory) -> Row:
    target = getattr(found.fn, "wrapped", found.fn)
    takes = ", ".join(map(_taken, inspect.signature(target).parameters.values()))
    about = summary(inspect.getdoc(target) or "")
    return term, " ".join(filter(None, (about, takes and f"Takes {takes}.", found.where)))


def _taken(parameter: inspect.Parameter) -> str:
    has_default = parameter.default is not parameter.empty
    return f"{parameter.name}={default_text(parameter.default)}" if has_default else parameter.name


def _settings(entry: Entrypoint) -> Iterator[Row]:
    """The rows of `run.executor` and `run.plugins`; the other settings are options too."""
    kinds = argument_kinds(RunContext)
    for name, default in (("executor", entry.default_executor), ("plugins", entry.default_plugins)):
        kind = kinds[name]
        text = "LocalExecutor" if default is None and name == "executor" else default_text(default or [])
        yield f"run.{name}", f"{kind_text(kind)} = {text}"
        fitting = REGISTRY.fitting(kind)
        for item in typing.get_args(kind):  # one plugin is as good as a list of them
            fitting |= REGISTRY.fitting(item)
        for found in fitting.values():
            yield _factory_row(f"  run.{name}={found.name}", found)


def descriptions(doc: str) -> dict[str, str]:
    """What a docstring says of each argument under `Args:`."""
    found: dict[str, str] = {}
    inside, indent, name = False, None, ""
    for line in doc.splitlines():
        if _HEADING.match(line):
            inside, indent = line.startswith("Arg"), None
        elif inside and line.strip() and not line.startswith(" "):
            inside = False
        elif inside and (told := _DESCRIBED.fullmatch(line)) and indent in (None, len(told[1])):
            indent, name = len(told[1]), told[2]
            found[name] = told[3]
        elif inside and name and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found
