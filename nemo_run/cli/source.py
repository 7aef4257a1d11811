"""What Python files say of commands, arguments and factories, read without running any of them."""

from __future__ import annotations

import ast
import functools
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path

#: Imports of imports that are followed, and classes above classes.
_DEEPEST = 8
#: What holds the annotation that counts in its brackets.
_LISTS = ("list", "List", "Sequence", "tuple", "Tuple")
_WRAPPERS = ("Annotated", "Config", "Partial", "Optional", "Union", *_LISTS)

Function = ast.FunctionDef | ast.AsyncFunctionDef
Import = ast.Import | ast.ImportFrom


@dataclass(frozen=True)
class Place:
    """A class or a function in a file."""

    module: Module
    node: ast.ClassDef | Function

    @property
    def name(self) -> str:
        """What it is called there."""
        return self.node.name


@dataclass(frozen=True)
class Argument:
    """An annotation, and the file it is written in."""

    kind: ast.expr | None
    module: Module


@dataclass(frozen=True)
class Made:
    """A factory: its name, what it says that it makes, and the one argument it is for, if it is."""

    name: str
    makes: Argument
    argument: str = ""


class Module:
    """A file of Python."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self.path = path
        self.tree = tree
        self.functions = [node for node in tree.body if isinstance(node, Function)]
        statements = [node for node in ast.walk(tree) if isinstance(node, Import)]
        self.imports = [(node, alias) for node in statements for alias in node.names]

    def find(self, name: str, depth: int = _DEEPEST) -> Place | None:
        """The class or function that a dotted name means in this file, wherever it is from."""
        first, _, rest = name.partition(".")
        for node in self.tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
                return Place(self, node)
        for statement, alias in self.imports if depth else ():
            if (alias.asname or alias.name.partition(".")[0]) == first:
                return self._imported(statement, alias, rest, depth - 1)
        return None

    def _imported(self, node: Import, alias: ast.alias, rest: str, depth: int) -> Place | None:
        if isinstance(node, ast.Import):
            return found_in(alias.name, rest, self.path.parent, depth)
        folder = self.path.parent if node.level < 2 else self.path.parents[min(node.level - 1, 8)]
        name = ".".join(filter(None, (alias.name, rest)))
        if node.module:
            return found_in(node.module, name, folder, depth, relative=bool(node.level))
        return found_in(alias.name, rest, folder, depth, relative=True)


def read(path: Path) -> Module | None:
    """A file; None where it cannot be read, or is not Python."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


@functools.lru_cache(maxsize=500)
def _read(path: Path, changed: int) -> Module:
    with tokenize.open(path) as file:
        return Module(path, ast.parse(file.read()))


def module_file(name: str, folder: Path, *, relative: bool = False) -> Path | None:
    """Where a module's source is, seen from a file in a folder; nothing is imported."""
    places: list[str] | None = [str(folder)] if relative else [str(folder), *sys.path]
    spec = None
    for part in name.split("."):
        try:
            spec = PathFinder.find_spec(part, places) if places else None
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def found_in(
    module: str, name: str, folder: Path, depth: int = _DEEPEST, *, relative: bool = False
) -> Place | None:
    """The class or function that a name means in a module, seen from a file in a folder."""
    if not name:
        return None
    if module == "nemo_run" and name in (public := import_module(module)._MODULES):
        module = f"{module}.{public[name]}"
    file = module_file(module, folder, relative=relative)
    found = read(file) if file else None
    return found.find(name, depth) if found else None


def beside(module: Module) -> Iterator[Module]:
    """The files of its own folder that a file imports."""
    folder = module.path.parent
    names = {
        (node.module or "" if isinstance(node, ast.ImportFrom) else each.name)
        for node, each in module.imports
    }
    for name in sorted(names):
        file = module_file(name, folder, relative=True) if name else None
        if file and (found := read(file)):
            yield found


# --- functions ------------------------------------------------------------------------------------------


def commands(module: Module) -> dict[str, Place]:
    """A file's commands by name: its decorated functions, else all its public ones."""
    marked = {
        _keyword(call, "name") or node.name: Place(module, node)
        for node in module.functions
        for call in node.decorator_list
        if _last(call) == "entrypoint"
    }
    return marked or {node.name: Place(module, node) for node in module.functions if node.name[0] != "_"}


def factories(module: Module) -> Iterator[Made]:
    """The factories that a file registers."""
    for node in module.functions:
        for call in node.decorator_list:
            if _last(call) == "factory":
                yield Made(
                    _keyword(call, "name") or node.name,
                    Argument(node.returns, module),
                    _keyword(call, "target_arg"),
                )


def _last(decorator: ast.expr) -> str:
    """The last part of a decorator's name."""
    return ast.unparse(decorator).partition("(")[0].rpartition(".")[2]


def _keyword(decorator: ast.expr, name: str) -> str:
    given = decorator.keywords if isinstance(decorator, ast.Call) else []
    values = [each.value.value for each in given if each.arg == name and isinstance(each.value, ast.Constant)]
    return str(values[0]) if values else ""


# --- arguments ------------------------------------------------------------------------------------------


def arguments(place: Place, depth: int = _DEEPEST) -> dict[str, Argument]:
    """The arguments of a function, or those that a class is made with."""
    if isinstance(place.node, Function):
        return _parameters(place.module, place.node)
    found: dict[str, Argument] = {}
    for base in bases(place) if depth else ():
        found |= arguments(base, depth - 1)
    for node in place.node.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return {name: each for name, each in _parameters(place.module, node).items() if name != "self"}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not _is_hidden(node):
            found[node.target.id] = Argument(node.annotation, place.module)
    return found


def _parameters(module: Module, node: Function) -> dict[str, Argument]:
    args = node.args
    return {
        each.arg: Argument(each.annotation, module)
        for each in (*args.posonlyargs, *args.args, *args.kwonlyargs)
    }


def _is_hidden(node: ast.AnnAssign) -> bool:
    return ast.unparse(node.target).startswith("_") or "ClassVar" in ast.unparse(node.annotation)


def bases(place: Place) -> Iterator[Place]:
    """The classes just above a class, as far as their sources are found."""
    for base in place.node.bases if isinstance(place.node, ast.ClassDef) else ():
        if found := place.module.find(ast.unparse(base).partition("[")[0]):
            yield found


def is_within(place: Place, above: Place, depth: int = _DEEPEST) -> bool:
    """Whether a class is another, or below it."""
    if (place.module.path, place.name) == (above.module.path, above.name):
        return True
    return depth > 0 and any(is_within(base, above, depth - 1) for base in bases(place))


def classes(argument: Argument) -> list[Place]:
    """The classes that an annotation names, in unions, lists and Configs of them too."""
    found = (argument.module.find(ast.unparse(each)) for each in members(argument.kind) if _is_name(each))
    return [each for each in found if each and isinstance(each.node, ast.ClassDef)]


def is_list(argument: Argument) -> bool:
    """Whether an annotation is that of a list."""
    return _wrapper(argument.kind) in _LISTS


def values(argument: Argument) -> Iterator[str]:
    """The values that an annotation allows, where these are few."""
    for each in members(argument.kind):
        text = ast.unparse(each)
        if text == "bool":
            yield from ("true", "false")
        elif text == "None":
            yield "None"
        elif isinstance(each, ast.Subscript) and _wrapper(each) == "Literal":
            inside = each.slice.elts if isinstance(each.slice, ast.Tuple) else [each.slice]
            yield from (str(item.value) for item in inside if isinstance(item, ast.Constant))
        elif _is_name(each) and (place := argument.module.find(text)) and _is_enum(place):
            yield from _assigned(place.node)


def members(kind: ast.expr | None) -> Iterator[ast.expr]:
    """What an annotation consists of, less what only wraps it."""
    if isinstance(kind, ast.Constant) and isinstance(kind.value, str):
        try:
            yield from members(ast.parse(kind.value, mode="eval").body)
        except SyntaxError:
            return
    elif isinstance(kind, ast.BinOp):
        yield from (*members(kind.left), *members(kind.right))
    elif isinstance(kind, ast.Subscript) and _wrapper(kind) in _WRAPPERS:
        inside: Iterable[ast.expr] = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
        for each in inside:
            yield from members(each)
        if ast.unparse(kind.value).endswith("Optional"):
            yield ast.Constant(None)
    elif kind is not None:
        yield kind


def _wrapper(kind: ast.expr | None) -> str:
    """What stands before an annotation's brackets."""
    return ast.unparse(kind.value).rpartition(".")[2] if isinstance(kind, ast.Subscript) else ""


def _is_name(kind: ast.expr) -> bool:
    return isinstance(kind, (ast.Name, ast.Attribute))


def _is_enum(place: Place) -> bool:
    return isinstance(place.node, ast.ClassDef) and any(
        "Enum" in ast.unparse(base) for base in place.node.bases
    )


def _assigned(node: ast.AST) -> Iterator[str]:
    for each in getattr(node, "body", ()):
        if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
            yield each.targets[0].id
