"""The launching script without its launch: what a job needs to have the tasks that are defined there.

A job executes these definitions as its `__main__`. A script that guards its launch by
`if __name__ == "__main__":` loses just that; of a script without a guard, what stays is what surely does not
launch: imports, functions and classes, and the assignments that the tasks need.
"""

from __future__ import annotations
import __future__

import ast
import dis
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any

_IMPORTS = (ast.Import, ast.ImportFrom)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_LOADS = {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}
_STORES = {"STORE_NAME", "STORE_GLOBAL"}
#: A code object without it is a module's or a class's, and is run where it stands.
_OPTIMIZED = 1
#: A line of a notebook that is not Python: a magic, a shell command, a question.
_NOT_PYTHON = re.compile(r"^(\s*)((?:[\w, ]+=\s*)?[%!?].*|[\w.]+\?{1,2})$", re.M)
#: Cell magics whose cell is Python that was run here.
_PYTHON_CELL = re.compile(r"%%(time|capture|prun)\b")


def definitions(source: str, needed: set[str] | None = None) -> str:
    """A script without its main part, each line where it was.

    `needed` are the names that the tasks use; None (the default) means all functions and classes.

    Raises:
        SyntaxError: the source is not Python.
    """
    tree = ast.parse(source)
    if any(_mentions_name(statement) for statement in tree.body):
        kept = [statement for statement in tree.body if not _mentions_name(statement)]
    else:
        kept = _without_launch(tree, needed)
    dropped = [statement for statement in tree.body if statement not in kept]
    expected = ast.Module(kept, tree.type_ignores)
    blanked = _blanked(source, dropped)
    return blanked if _same(blanked, expected) else ast.unparse(expected) + "\n"


def without_main_part(source: str) -> str:
    """A script less what it does only when it is run itself; each line stays where it was.

    Raises:
        SyntaxError: the source is not Python.
    """
    return definitions(source) if any(map(_mentions_name, ast.parse(source).body)) else source


def launch_source() -> str | None:
    """The source of the running script or notebook; None where there is none to be had."""
    ipython = sys.modules.get("IPython")
    if shell := ipython and ipython.get_ipython():
        return notebook_source(shell.user_ns.get("In", ()))
    try:
        with tokenize.open(sys.modules["__main__"].__file__ or "") as file:
            return file.read()
    except (AttributeError, OSError, SyntaxError, UnicodeDecodeError):
        return None


def notebook_source(cells: Iterable[str]) -> str:
    """The cells of a notebook as one script, without what is not Python."""
    return "\n".join(filter(_is_python, map(_cell_source, cells)))


def _cell_source(cell: str) -> str:
    if cell.lstrip().startswith("%%") and not _PYTHON_CELL.match(cell.lstrip()):
        return ""
    # `pass` keeps a block whole that holds nothing else.
    return _NOT_PYTHON.sub(r"\1pass  # \2", cell)


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


# --- which statements stay ------------------------------------------------------------------------------


def _mentions_name(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "__name__" in {
        node.id for node in ast.walk(statement.test) if isinstance(node, ast.Name)
    }


def _without_launch(tree: ast.Module, needed: set[str] | None) -> list[ast.stmt]:
    facts = [_Facts(statement, tree) for statement in tree.body]
    if needed is None:
        needed = {name for fact in facts if isinstance(fact.statement, _DEFINITIONS) for name in fact.binds}
    kept = _reached(facts, {name.partition(".")[0] for name in needed})
    kept |= {fact for fact in facts if _is_harmless(fact.statement)}
    spare = {fact for fact in facts if isinstance(fact.statement, _DEFINITIONS)} - kept
    # A definition stays only where all that it evaluates is there; without it, others may go too.
    while hopeless := {fact for fact in spare if fact.evaluates & _lost(facts, kept | spare)}:
        spare -= hopeless
    return [fact.statement for fact in facts if fact in kept | spare]


class _Facts:
    """What a top-level statement binds, what it evaluates when it is run, and all that it ever refers to."""

    def __init__(self, statement: ast.stmt, tree: ast.Module) -> None:
        self.statement = statement
        # Under `from __future__ import annotations` they are not evaluated, but still refer to names.
        flags = __future__.annotations.compiler_flag if _has_lazy_annotations(tree) else 0
        self.evaluates = set(_names(_compiled(statement, flags), _LOADS, inside=False))
        code = _compiled(statement, 0)
        self.refers = set(_names(code, _LOADS, inside=True))
        self.binds = {*_names(code, _STORES, inside=False), *_changed(statement)}
        self.does_something = not isinstance(statement, (ast.Expr, ast.Assert, ast.Delete, ast.Raise))


def _reached(facts: list[_Facts], names: set[str]) -> set[_Facts]:
    """The statements that bind these names, and those that bind what they refer to, and so on."""
    reached: set[_Facts] = set()
    while new := {f for f in facts if f.does_something and f.binds & names} - reached:
        reached |= new
        names = names.union(*(fact.refers for fact in new))
    return reached


def _lost(facts: list[_Facts], kept: set[_Facts]) -> set[str]:
    there = {name for fact in kept for name in fact.binds}
    return {name for fact in facts for name in fact.binds if fact not in kept} - there


def _is_harmless(statement: ast.stmt) -> bool:
    """Imports, also where they are tried or for type checkers only, and the docstring."""
    if isinstance(statement, ast.Try):
        return all(isinstance(inner, _IMPORTS) for inner in statement.body)
    if isinstance(statement, ast.If):
        return ast.unparse(statement.test).rpartition(".")[2] == "TYPE_CHECKING"
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    return isinstance(statement, _IMPORTS)


def _has_lazy_annotations(tree: ast.Module) -> bool:
    futures = (s for s in tree.body if isinstance(s, ast.ImportFrom) and s.module == "__future__")
    return any(alias.name == "annotations" for statement in futures for alias in statement.names)


def _compiled(statement: ast.stmt, flags: int) -> CodeType:
    module = ast.Module([statement], [])
    flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code: CodeType = compile(module, "<script>", "exec", flags, dont_inherit=True)
    return code


def _names(code: CodeType, operations: set[str], *, inside: bool) -> Iterator[str]:
    """The global names that code loads or stores; with `inside`, also in the functions it defines."""
    yield from (step.argval for step in dis.get_instructions(code) if step.opname in operations)
    for inner in code.co_consts:
        if isinstance(inner, CodeType) and (inside or _runs_at_once(inner)):
            yield from _names(inner, operations, inside=inside)


def _runs_at_once(code: CodeType) -> bool:
    is_class = not code.co_flags & _OPTIMIZED
    is_comprehension_or_generic = code.co_name.startswith("<") and code.co_name != "<lambda>"
    return is_class or is_comprehension_or_generic


def _changed(statement: ast.stmt) -> Iterator[str]:
    """The names of what a statement changes inside: `x` for `x.a = 1` and for `x["a"] = 1`."""
    for node in () if isinstance(statement, _DEFINITIONS) else ast.walk(statement):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            root: Any = node
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            if isinstance(root, ast.Name):
                yield root.id


# --- taking statements out ------------------------------------------------------------------------------


def _blanked(source: str, dropped: Iterable[ast.stmt]) -> str:
    """The source with these statements' text gone, and every line still where it was."""
    # Only these count as line ends in Python; columns are counted in UTF-8 bytes.
    lines = [line.encode("utf-8", "surrogatepass") for line in io.StringIO(source, newline="")]
    for statement in dropped:
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
        last = statement.end_lineno or first
        for number in range(first, last + 1):
            line = lines[number - 1]
            text = line.rstrip(b"\r\n")
            start = statement.col_offset if number == first else 0
            end = (statement.end_col_offset or 0) if number == last else len(text)
            left = line[:start] + b" " * (end - start) + text[end:]
            lines[number - 1] = left.rstrip() + line[len(text) :]
    return b"".join(lines).decode("utf-8", "surrogatepass")


def _same(source: str, expected: ast.Module) -> bool:
    try:
        return ast.dump(ast.parse(source), include_attributes=True) == ast.dump(
            expected, include_attributes=True
        )
    except SyntaxError:
        return False
