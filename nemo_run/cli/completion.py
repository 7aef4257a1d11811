"""`nemo completion`: what may stand where the cursor is, for bash and zsh; no file is run for it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from nemo_run.cli.source import Argument, Made, Module, Place

_BASH = """\
# Completion of nemo for bash. For now: eval "$(nemo completion bash)"
_nemo() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <("$1" completion bash -- "${COMP_LINE:0:COMP_POINT}" "$2" 2>/dev/null </dev/null)
}
complete -o nospace -F _nemo nemo nemorun
"""
_ZSH = """\
#compdef nemo nemorun
# Completion of nemo for zsh. For now, after compinit: eval "$(nemo completion zsh)"
_nemo() {
    local -a found
    local line="${(j: :)words[1,CURRENT-1]} $QIPREFIX$PREFIX"
    found=("${(@f)$("${words[1]}" completion zsh -- "$line" "$PREFIX" 2>/dev/null </dev/null)}")
    (( ${#found[1]} )) && compadd -U -Q -S '' -- "${found[@]}"
}
if [[ ${zsh_eval_context[-1]} == loadautofunc ]]; then
    _nemo "$@"
else
    compdef _nemo nemo nemorun
fi
"""
#: So many of the newest experiments are offered.
_MOST = 200
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH}
_OVERRIDE = re.compile(r"([^=\s]*?)([-+*/|&]?=)(.*)", re.DOTALL)
_ESCAPE = "\\"
#: What a shell would take apart, expand or run: outside of quotes, and between double ones.
_SPECIAL = {"": re.compile(r"""([\s\\'"`$&|;<>()*?{}\[\]!#~^])"""), '"': re.compile(r"""([\\"`$!])""")}


def completion(
    shell: str = typer.Argument(..., metavar="SHELL", help="bash or zsh."),
    line: str = typer.Argument(None, metavar="[LINE]", help="A command line, up to the cursor."),
    word: str = typer.Argument("", metavar="[WORD]", help="What of its end the shell would replace."),
) -> None:
    """Print what makes a shell complete nemo's lines.

    With a LINE, print what may stand at its end.
    """
    from nemo_run.errors import NotFoundError

    if shell not in _SCRIPTS:
        raise NotFoundError("completion for shell", shell, list(_SCRIPTS))
    if line is None:
        return typer.echo(_SCRIPTS[shell], nl=False)
    words, quote = _split(line)
    for each in sorted(filter(str.isprintable, set(candidates(words[1:])))):
        typer.echo(_as_typed(each, words[-1], word.lstrip("'\""), quote))


def _as_typed(candidate: str, current: str, word: str, quote: str) -> str:
    """A candidate as it takes the place of the word that a shell sees: bash breaks words at `=` and `:`."""
    # The blank after a whole word is not part of it.
    blank = " " * candidate.endswith(" ")
    text = candidate.removesuffix(" ")[len(current) - len(word) if current.endswith(word) else 0 :]
    if quote == "'":
        return text.replace("'", "'\\''")
    return _SPECIAL[quote].sub(r"\\\1", text) + blank * (not quote)


def _split(line: str) -> tuple[list[str], str]:
    """The words of a command line, the last up to the cursor; and the quote that is open there, if one is."""
    for end in ("", "'", '"'):
        try:
            # With a letter more the last word is there even when nothing of it is typed yet.
            words = shlex.split(f"{line.removesuffix(_ESCAPE)}.{end}")
        except ValueError:
            continue
        if len(words) > 1:
            return [*words[:-1], words[-1][:-1]], end
    return ["nemo", ""], ""


# --- where the cursor is --------------------------------------------------------------------------------


def candidates(words: Sequence[str]) -> Iterator[str]:
    """What may stand in place of the last word; a blank at the end says that the word is whole.

    Args:
        words: those after `nemo`, the last up to the cursor.
    """
    from typer.main import get_command

    from nemo_run.cli.app import app

    *before, current = words
    before = before[before[:1] == ["--lazy"] :]
    if before[:1] == ["run"]:
        yield from _starting(_after_run(before[1:], current), current)
        return
    command: Any = get_command(app)
    while before and (inner := getattr(command, "commands", {}).get(before[0])):
        command, before = inner, before[1:]
    if getattr(command, "commands", None) and before and not before[0].startswith("-"):
        if len(before) == 1:
            yield from _starting(_names(_offered(before[0])), current)
        elif place := _offered(before[0]).get(before[1]):
            yield from _starting(_overrides(place, before[2:], current), current)
        return
    yield from _starting(_of_command(command, before, current), current)


def _starting(found: Iterable[str], current: str) -> Iterator[str]:
    return (each for each in found if each.startswith(current))


def _names(found: Iterable[str]) -> Iterator[str]:
    return (f"{name} " for name in found)


def _of_command(command: Any, before: Sequence[str], current: str) -> Iterator[str]:
    """The commands of a group, and the options and arguments of a command."""
    options = {name: param for param in command.params for name in (*param.opts, *param.secondary_opts)}
    taking = {
        name for name, param in options.items() if name[:1] == "-" and not getattr(param, "is_flag", True)
    }
    if before and before[-1] in taking:
        yield from _OPTIONS.get(before[-1], _nothing)(before)
        return
    if current.startswith("-"):
        yield from _names(name for name in options if name.startswith("--"))
        yield "--help "
        return
    yield from _names(_listed(command))
    places = [param for param in command.params if param.param_type_name == "argument"]
    filled = [
        word for at, word in enumerate(before) if word[:1] != "-" and (not at or before[at - 1] not in taking)
    ]
    if places:
        param = places[min(len(filled), len(places) - 1)]
        yield from _ARGUMENTS.get(param.metavar or "", _nothing)([*filled, current])


def _listed(command: Any) -> list[str]:
    """The commands of a group; to those of `nemo` itself belong the namespaces of installed packages."""
    own = [name for name, each in getattr(command, "commands", {}).items() if not each.hidden]
    return own + (sorted({entry.name for entry in _entry_points()} - set(own)) if "experiment" in own else [])


def _entry_points() -> Iterable[Any]:
    from importlib.metadata import entry_points

    return entry_points(group="nemo_run.cli")


# --- what there is --------------------------------------------------------------------------------------


def _nothing(words: Sequence[str]) -> Iterator[str]:
    return iter(())


def _experiments(words: Sequence[str]) -> Iterator[str]:
    from nemo_run.run.store import newest

    yield from _names(path.name for path in newest(_MOST))


def _titles(words: Sequence[str]) -> Iterator[str]:
    from nemo_run.run.store import newest

    yield from _names({path.parent.name for path in newest(_MOST)})


def _jobs(words: Sequence[str]) -> Iterator[str]:
    from nemo_run.errors import NemoRunError
    from nemo_run.run.store import Store

    try:
        yield from _names(entry.id for entry in Store.open(words[0]).experiment().jobs)
    except NemoRunError:
        return


def _executors(words: Sequence[str]) -> Iterator[str]:
    from nemo_run.lookup import built_in_executors

    yield from _names([*_fitting("executor", _executor(), _modules()), *built_in_executors()])


def _fields(words: Sequence[str]) -> Iterator[str]:
    """The fields of the executor named before."""
    modules = _modules()
    if place := _made_by(words[0], "executor", _executor(), modules):
        yield from _settable(place, words[-1], {}, modules)


def _files(words: Sequence[str], *suffixes: str) -> Iterator[str]:
    """Files, and folders to look for them in."""
    shown = os.path.dirname(words[-1])
    folder = Path(os.path.expanduser(shown or "."))
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        hidden = path.name.startswith(".") and not os.path.basename(words[-1]).startswith(".")
        name = os.path.join(shown, path.name)
        if path.is_dir() and not hidden:
            yield f"{name}/"
        elif not hidden and (not suffixes or path.suffix in suffixes):
            yield f"{name} "


def _folders(words: Sequence[str]) -> Iterator[str]:
    return (name for name in _files(words) if name.endswith("/"))


def _states(words: Sequence[str]) -> Iterator[str]:
    from nemo_run.core.execution.base import AppState

    return _names(AppState.__members__)


Completer = Callable[[Sequence[str]], Iterator[str]]
#: What completes an argument, by the word for it in the help; and the value of an option.
_ARGUMENTS: dict[str, Completer] = {
    "ID|TITLE": _experiments,
    "TITLE": _titles,
    "JOB": _jobs,
    "NAME": _executors,
    "[FIELD=VALUE]...": _fields,
    "[FOLDER]": _folders,
    "SHELL": lambda words: _names(_SCRIPTS),
}
_OPTIONS: dict[str, Completer] = {"--state": _states}


# --- commands of files and packages ---------------------------------------------------------------------


def _offered(namespace: str) -> dict[str, Place]:
    """The commands of a namespace that installed packages offer."""
    from nemo_run.cli.source import commands

    found: dict[str, Place] = {}
    for module in _offering(namespace):
        found |= commands(module)
    return found


def _offering(namespace: str = "") -> Iterator[Module]:
    """The files by which installed packages offer commands and factories."""
    from nemo_run.cli.source import module_file, read

    for entry in _entry_points():
        if namespace in ("", entry.name):
            file = module_file(entry.module, Path.cwd())
            if file and (module := read(file)):
                yield module


def _after_run(before: Sequence[str], current: str) -> Iterator[str]:
    """What may stand after `nemo run`."""
    from nemo_run.cli.source import commands, read

    if not before:
        yield from ["--help "] if current.startswith("-") else _files([current], ".py")
        return
    module = read(Path(os.path.expanduser(before[0])))
    if module is None:
        return
    known, rest = commands(module), list(before[1:])
    if rest and rest[0] in known:
        known = {rest[0]: known[rest.pop(0)]}
    elif not rest and len(known) > 1:
        yield from _names(known)
    for place in known.values() if len(known) == 1 else ():
        yield from _overrides(place, rest, current)


def _overrides(place: Place, before: Sequence[str], current: str) -> Iterator[str]:
    """The options of a command, and what may be set."""
    from nemo_run.cli.command import options
    from nemo_run.cli.entrypoints import Entrypoint

    params = options(Entrypoint(fn=print, name="", namespace=""))
    taking = [name for param in params if not getattr(param, "is_flag", True) for name in param.opts]
    if before and before[-1] in taking:
        if before[-1] == "--yaml":
            yield from _files([current], ".yaml", ".yml", ".toml", ".json")
    elif current.startswith("-"):
        yield from _names(name for param in params for name in param.opts if name.startswith("--"))
        yield "--help "
    else:
        given = {found[1]: found[3] for word in before if (found := _OVERRIDE.fullmatch(word))}
        yield from _settable(place, current, given, _modules(place.module))


def _settable(place: Place, current: str, given: dict[str, str], modules: list[Module]) -> Iterator[str]:
    """The keys that may be set, and the values for one."""
    if found := _OVERRIDE.fullmatch(current):
        *outer, last = found[1].split(".")
        owner = _owner(place, outer, given, modules)
        if argument := _arguments(owner).get(last) if owner else None:
            key = "".join(found.groups()[:2])
            yield from (f"{key}{value} " for value in _values(last, argument, modules))
        return
    outer = current.split(".")[:-1]
    start = "".join(f"{step}." for step in outer)
    if owner := _owner(place, outer, given, modules):
        for name, argument in _arguments(owner).items():
            if name != "run":
                yield f"{start}{name}="
            if _inside(argument):
                yield f"{start}{name}."


def _arguments(place: Place) -> dict[str, Argument]:
    """What may be set of a class or function; of a function also how it runs."""
    import ast

    from nemo_run.cli.source import Argument, arguments

    found = arguments(place)
    if isinstance(place.node, ast.ClassDef):
        return found
    return {name: each for name, each in found.items() if name != "ctx"} | {
        "run": Argument(ast.Name("RunContext"), _own("cli.entrypoints"))
    }


def _owner(place: Place, steps: Sequence[str], given: dict[str, str], modules: list[Module]) -> Place | None:
    """What the first steps of a key lead to: what the factory named there makes, else what is annotated."""
    owner: Place | None = place
    for at, step in enumerate(steps):
        argument = _arguments(owner).get(step) if owner else None
        if argument is None:
            return None
        text = given.get(".".join(steps[: at + 1]), "")
        owner = _made_by(text, step, argument, modules) or next(iter(_inside(argument)), None)
    return owner


def _inside(argument: Argument) -> list[Place]:
    """The classes of an annotation of which something may be set; what is in a list is set by its number."""
    from nemo_run.cli.source import arguments, classes, is_list

    return [] if is_list(argument) else [place for place in classes(argument) if arguments(place)]


def _made_by(text: str, name: str, argument: Argument, modules: list[Module]) -> Place | None:
    """The class that a factory's name stands for where an argument is set; or that of an executor of ours."""
    from nemo_run.cli.source import classes, found_in
    from nemo_run.lookup import built_in_executors

    word = text.partition("(")[0]
    if made := _fitting(name, argument, modules).get(word):
        return next(iter(classes(made.makes)), None)
    return found_in("nemo_run", word, Path.cwd()) if word in built_in_executors() else None


def _values(name: str, argument: Argument, modules: list[Module]) -> Iterator[str]:
    from nemo_run.cli.source import classes, values
    from nemo_run.lookup import built_in_executors

    yield from values(argument)
    yield from _fitting(name, argument, modules)
    if any(place.name == "Executor" for place in classes(argument)):
        yield from built_in_executors()


def _fitting(name: str, argument: Argument, modules: list[Module]) -> dict[str, Made]:
    """The factories of these files for an argument, by name."""
    from nemo_run.cli.source import classes, factories, is_within

    wanted = classes(argument)

    def fits(made: Made) -> bool:
        if made.argument:
            return made.argument == name
        return any(is_within(place, above) for place in classes(made.makes) for above in wanted)

    return {made.name: made for module in modules for made in factories(module) if fits(made)}


def _modules(*first: Module) -> list[Module]:
    """The files that may register factories: these, with those beside them that they import; then others'."""
    from nemo_run.cli.source import beside, read
    from nemo_run.cli.workspace import workspace_files

    found = [*first, *filter(None, map(read, workspace_files()))]
    return [*(each for module in found for each in (module, *beside(module))), *_offering()]


def _executor() -> Argument:
    """Where an executor is wanted."""
    import ast

    from nemo_run.cli.source import Argument

    return Argument(ast.Name("Executor"), _own("core.execution.base"))


def _own(name: str) -> Module:
    """A file of nemo_run."""
    from nemo_run.cli.source import read
    from nemo_run.errors import StoreError

    path = Path(__file__).parents[1] / f"{name.replace('.', '/')}.py"
    if module := read(path):
        return module
    raise StoreError(f"{path} cannot be read; install nemo_run anew")
