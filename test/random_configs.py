"""Random configs, and equality that also sees types, order and sharing."""

from __future__ import annotations

import functools
import math
import re
import string
from pathlib import Path
from typing import Any, ClassVar

import fiddle as fdl
import samples
from hypothesis import strategies as st
from samples import Color, Holder, Model, Plain, Point

from nemo_run.config import Config, Partial


def strict(value: Any) -> Any:
    """A stand-in that is equal only where type, order and sharing are equal too."""
    seen: dict[int, int] = {}

    def see(value: Any) -> Any:
        if isinstance(value, (fdl.Buildable, list, dict)):
            if id(value) in seen:
                return ("again", seen[id(value)])
            seen[id(value)] = len(seen)
        if isinstance(value, fdl.Buildable):
            arguments = fdl.ordered_arguments(value)
            return type(value), value.__fn_or_cls__, [(key, see(item)) for key, item in arguments.items()]
        if isinstance(value, dict):
            return dict, [(see(key), see(item)) for key, item in value.items()]
        if isinstance(value, (set, frozenset)):
            return type(value), sorted(map(repr, value))  # a set has no order
        if isinstance(value, (list, tuple)):
            return type(value), [see(item) for item in value]
        if isinstance(value, (Holder, functools.partial, Plain)):
            parts = vars(value) or [value.func, value.args, value.keywords]  # type: ignore[union-attr]
            seen.setdefault(id(value), len(seen))
            return type(value), seen[id(value)], see(parts)
        return type(value), repr(value), str(value)

    return see(value)


TEXTS = st.text(st.characters(exclude_categories=()), max_size=40) | st.text(
    " \n\t\r\x85\u2028\ufeffa:#-'\"|>%@`", max_size=30
)


def is_text(text: str) -> bool:
    return not re.search("[\ud800-\udbff][\udc00-\udfff]", text)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXTS.filter(is_text),
    st.binary(max_size=8),
    st.sampled_from([Color.RED, Color.BLUE, Model, samples.train, Path("/a b"), math.sqrt]),
    st.frozensets(st.integers(), max_size=3),
)
#: Those with a leading underscore are written last, so their order is a matter of its own.
NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=6)
KEYS = st.one_of(TEXTS.filter(is_text), st.integers(), st.tuples(st.integers(), st.booleans()))


class Shared:
    """Strategies that now and then give again what they gave before."""

    kinds: ClassVar[list[Any]] = [Config, Partial]

    @staticmethod
    @st.composite
    def config(draw: Any) -> Any:
        made: list[Any] = []

        def value(depth: int) -> Any:
            if made and draw(st.integers(0, 5)) == 0:
                return draw(st.sampled_from(made))
            kind = (
                draw(st.sampled_from(["leaf", "list", "dict", "tuple", "point", "call", "any"]))
                if depth
                else "leaf"
            )
            if kind == "leaf":
                return draw(LEAVES)
            node = inner(kind, depth - 1)
            made.append(node)
            return node

        def inner(kind: str, depth: int) -> Any:
            size = draw(st.integers(0, 3))
            if kind == "list":
                return [value(depth) for _ in range(size)]
            if kind == "dict":
                return {key: value(depth) for key in draw(st.lists(KEYS, max_size=3))}
            if kind == "tuple":
                return tuple(value(depth) for _ in range(size))
            if kind == "point":
                return Point(value(depth), value(depth))
            node = draw(st.sampled_from(Shared.kinds))
            if kind == "call":
                return node(Holder, **{name: value(depth) for name in draw(st.sets(st.sampled_from("abc")))})
            args = [value(depth) for _ in range(size)]
            return node(
                samples.anything, *args, **{name: value(depth) for name in draw(st.sets(NAMES, max_size=3))}
            )

        return Config(Holder, a=value(4), b=value(4), c=value(2))
