"""The only place where words become shell text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Expand(str):
    """Text that the shell on the node expands (`$(hostname)`, `$HOME/x`); everything else arrives as written.

    It stands for one argument or one environment value, and stays one word whatever it expands to.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Expand({str.__repr__(self)})"


def is_name(name: str) -> bool:
    """Whether a POSIX shell takes this as the name of a variable."""
    return _NAME.match(name) is not None


def quote(word: str) -> str:
    """One word as shell text: byte for byte, except that an `Expand` is expanded inside double quotes."""
    if isinstance(word, Expand):
        return '"' + _escape_outside_substitution(word) + '"'
    # Scripts with line ends of another system's are refused by sbatch, so none is to be seen in them.
    return shlex.quote(word).replace("\r\n", "\r''\n")


def join(argv: Iterable[str]) -> str:
    """An argument list as one line of shell."""
    return " ".join(map(quote, argv))


def concat(*parts: str) -> str:
    """Texts one after the other as one word: an `Expand` if one of them is, the others as they are."""
    if not any(isinstance(part, Expand) for part in parts):
        return "".join(parts)
    return Expand("".join(p if isinstance(p, Expand) else re.sub(r'([$`"\\])', r"\\\1", p) for p in parts))


def exports(env: Mapping[str, str]) -> str:
    """One `export NAME=value` line per variable."""
    return "".join(f"export {name}={quote(value)}\n" for name, value in env.items())


def expands(argv: Iterable[str], env: Mapping[str, str]) -> bool:
    """Whether anything here needs a shell at all."""
    return any(isinstance(word, Expand) for word in (*argv, *env.values()))


def through_shell(argv: Iterable[str], env: Mapping[str, str], *, follow: bool = False) -> list[str]:
    """An argument list that has `sh` expand what is marked, then become the command.

    Args:
        argv: The command.
        env: Its environment; what is marked in it is set.
        follow: The command's first words are those that will stand after this list, and `argv` the rest.
    """
    marked = {name: value for name, value in env.items() if isinstance(value, Expand)}
    if follow:
        return ["/bin/sh", "-c", f'{exports(marked)}exec "$@" {join(argv)}', "sh"]
    return ["/bin/sh", "-c", f"{exports(marked)}exec {join(argv)}"]


def _escape_outside_substitution(text: str) -> str:
    """Keep a double quote, or a last backslash, of the text itself from changing where its quotes close.

    Inside `$( )` and backquotes double quotes belong to the inner command and stay as they are.
    """
    out, opened, escaped = [], [""], False
    for at, char in enumerate(text):
        inner = opened[-1]
        out.append('\\"' if char == '"' and not inner and not escaped else char)
        if escaped:
            escaped = False
        elif char == "\\" and inner != "'":
            escaped = True
        elif char == inner or (char, inner) == (")", "("):
            opened.pop()
        elif inner != "'" and (
            char == "`"
            or (char == "(" and (inner == "(" or text[at - 1 : at] == "$"))
            or (char == '"' and inner)
            or (char == "'" and inner in ("(", "`"))
        ):
            opened.append(char)
    return "".join(out) + "\\" * escaped
