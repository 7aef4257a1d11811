"""Configs as text and as drawings: what they hold, and how two of them differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fiddle as fdl
from fiddle import daglish

from nemo_run.errors import MissingDependencyError


def name_of(target: Any) -> str:
    """What a function, class or config's target is called."""
    target = target.__fn_or_cls__ if isinstance(target, fdl.Buildable) else target
    return getattr(target, "__qualname__", None) or repr(target)


@dataclass(frozen=True, repr=False)
class ConfigDiff:
    """What differs between two configs; as text it has a line for each argument."""

    old: Any
    new: Any
    #: Leave out what is the same in both.
    trim: bool = True

    def __repr__(self) -> str:
        old, new = _leaves(self.old), _leaves(self.new)
        paths = [path for path in {**old, **new} if not self.trim or old.get(path) != new.get(path)]
        return "\n".join(_diff_line(path, old.get(path), new.get(path)) for path in paths) or "no difference"

    def visualize(self) -> Any:
        """The difference as a `graphviz.Graph`."""
        return graphviz().render_diff(old=self.old, new=self.new, trim=self.trim)

    def _repr_svg_(self) -> str | None:
        return svg(self.visualize)


def _diff_line(path: str, old: str | None, new: str | None) -> str:
    if old == new:
        return f"= {path}: {new}"
    if old is None:
        return f"+ {path}: {new}"
    return f"- {path}: {old}" if new is None else f"~ {path}: {old} → {new}"


def _leaves(cfg: Any) -> dict[str, str]:
    """Every path in a config with what is found there, as text."""
    found = {}
    for value, path in daglish.iterate(cfg, memoized=False):
        if isinstance(value, fdl.Buildable):
            found[path] = f"{type(value).__name__}({name_of(value)})"
        elif not (isinstance(value, (list, tuple, dict)) and value):
            found[path] = repr(value)
    return {daglish.path_str(path).removeprefix(".") or "<root>": text for path, text in found.items()}


def graphviz() -> Any:
    """Fiddle's maker of graphs.

    Raises:
        MissingDependencyError: the graphviz package is not installed.
    """
    try:
        import fiddle.graphviz
    except ImportError as exc:
        raise MissingDependencyError("drawing a config needs graphviz: pip install graphviz") from exc
    return fiddle.graphviz


def draw(graph: Any, format: str) -> bytes:
    """A graph as an image file.

    Raises:
        MissingDependencyError: Graphviz's program is not installed.
    """
    from graphviz import ExecutableNotFound  # type: ignore[import-untyped]

    try:
        return bytes(graph.pipe(format=format))
    except ExecutableNotFound as exc:
        raise MissingDependencyError(
            "drawing a config needs Graphviz's program `dot`, which is not on PATH: apt-get install graphviz "
            "(or brew, conda). `print(...)` shows the same as text."
        ) from exc


def svg(make_graph: Callable[[], Any]) -> str | None:
    """A drawing for notebooks; None, for which they show the text, where Graphviz is not installed."""
    try:
        return draw(make_graph(), "svg").decode()
    except MissingDependencyError:
        return None
