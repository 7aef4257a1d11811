"""A text is read by the annotation of what it is for, and what is written reads back the same."""

# ruff: noqa: UP007, UP045  # older ways to write a union are read too
from __future__ import annotations

import enum
import math
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NewType, Optional, TypeVar, Union

import cli_tasks
import pytest
from cli_tasks import Layer, Mode, Model, Optimizer
from hypothesis import given, settings
from hypothesis import strategies as st
from random_configs import TEXTS, strict

import nemo_run as run
from nemo_run.cli.formatting import format_value
from nemo_run.cli.kinds import kind_text
from nemo_run.cli.telling import declared_at
from nemo_run.cli.values import parse_value
from nemo_run.errors import OverrideError

Meters = NewType("Meters", float)
Number = TypeVar("Number", bound=int)


class Weekend(enum.Flag):
    SATURDAY = 1
    SUNDAY = 2


READ: list[tuple[str, Any, Any]] = [
    ("12", int, 12),
    ("-1_000", int, -1000),
    ("1e3", int, 1000),
    ("1.5e3", int, 1500),
    ("0x10", int, 16),
    ("0b11", int, 3),
    ("007", int, 7),
    ("1e-3", float, 0.001),
    ("1_000.5", float, 1000.5),
    ("3", float, 3.0),
    ("-inf", float, -math.inf),
    *[(text, bool, True) for text in ("true", "True", "YES", "1", "on")],
    *[(text, bool, False) for text in ("false", "no", "0", "Off")],
    ("", str, ""),
    (" a  b ", str, " a  b "),
    ("'a'", str, "a"),
    ('"a\\n\'"', str, "a\n'"),
    ("'a' and 'b'", str, "'a' and 'b'"),
    ("it's", str, "it's"),
    ("os.getcwd", str, "os.getcwd"),
    ("math.pi", str, "math.pi"),
    ("os.getcwd()", str, "os.getcwd()"),
    ("__import__('os').abort()", str, "__import__('os').abort()"),
    ("${x}", str, "${x}"),
    ("@me", str, "@me"),
    ("a=b", str, "a=b"),
    ("1", str, "1"),
    ("None", Optional[int], None),
    ("null", str | None, None),
    ("'null'", str | None, "null"),
    ("1", Union[int, str], 1),
    ("1", str | int, 1),
    ("'1'", str | int, "1"),
    ("x", int | str, "x"),
    ("1", float | int, 1),
    ("1.0", int | float, 1.0),
    ("1e22", int | float, 10**22),
    ("true", bool | str, True),
    ("1", bool | int, 1),
    ("[a, b]", str | list[str], ["a", "b"]),
    ("a,b", list[str] | str, "a,b"),
    ("fast", Literal["fast", "slow"], "fast"),
    ("1", Literal["a", 1], 1),
    ("1", Literal["1", 1], 1),
    ("'1'", Literal["1", 1], "1"),
    ("true", Literal[True, "x"], True),
    ("None", Literal["a", None], None),
    ("FAST", Literal[Mode.FAST], Mode.FAST),
    ("FAST", Mode, Mode.FAST),
    ("quick", Mode, Mode.FAST),
    ("2", Mode, Mode.SLOW),
    ("3", Weekend, Weekend.SATURDAY | Weekend.SUNDAY),
    ("~/a b", Path, Path("~/a b")),
    ("/a", PurePosixPath, PurePosixPath("/a")),
    ("[1, 2]", list[int], [1, 2]),
    ("(1, 2)", list[int], [1, 2]),
    ("[1, 2,]", Sequence[int], [1, 2]),
    ("[]", list[int], []),
    ("[a, 'b, c', it's]", list[str], ["a", "b, c", "it's"]),
    ("[[1], []]", list[list[int]], [[1], []]),
    ("[a, 1]", list, ["a", 1]),
    ("[a, 1]", Iterable, ["a", 1]),
    ("(1, a)", tuple[int, str], (1, "a")),
    ("[1, 2, 3]", tuple[int, ...], (1, 2, 3)),
    ("()", tuple[()], ()),
    ("(1,)", tuple, (1,)),
    ("{a, b}", set[str], {"a", "b"}),
    ("[1, 2]", frozenset[int], frozenset({1, 2})),
    ("{}", set[int], set()),
    ("{a: 1, 'b c': 2}", dict[str, int], {"a": 1, "b c": 2}),
    ("{url: http://x:80/}", Mapping[str, str], {"url": "http://x:80/"}),
    ("{1: [a]}", dict[int, list[str]], {1: ["a"]}),
    ("{a: 1}", dict, {"a": 1}),
    ("3", Any, 3),
    ("1e3", Any, 1000.0),
    ("0x10", Any, 16),
    ("True", Any, True),
    ("true", Any, "true"),
    ("007", Any, "007"),
    ("1.2.3", Any, "1.2.3"),
    ("[1, 'a', (2,), {3}]", Any, [1, "a", (2,), {3}]),
    ("{'a': None}", Any, {"a": None}),
    ("{}", Any, {}),
    ("[a]", Any, "[a]"),
    ("(1)", Any, "(1)"),
    ("[1", Any, "[1"),
    ("{x}", Any, "{x}"),
    ("b'\\xff'", Any, b"\xff"),
    ("abc", bytes, b"abc"),
    ("2.5", Meters, 2.5),
    ("2", Number, 2),
    ("2", Annotated[int, "words"], 2),
    ("2", InitVar[int], 2),
    ("[1]", Annotated[Optional[list[Meters]], "words"], [1.0]),
    ("x", object, "x"),
]


@pytest.mark.parametrize(("text", "kind", "value"), READ)
def test_a_text_is_read_by_the_annotation(text: str, kind: Any, value: Any) -> None:
    assert strict(parse_value(text, kind)) == strict(value)


REFUSED: list[tuple[str, Any, str]] = [
    ("ten", int, "'ten' is not an int"),
    ("1.0", int, "'1.0' is not an int"),
    ("1e-3", int, "not an int"),
    ("1e999999999", int, "not an int"),
    ("1__0", int, "not an int"),
    ("True", int, "not an int"),
    ("9" * 5000, int, "'9999"),
    ("", int, "nothing is not an int"),
    ("0x10", float, "not a number"),
    ("maybe", bool, "not true or false"),
    ("x", Optional[int], "'x' is not an int"),
    ("x", int | bool, "'x' is not a value for int | bool"),
    ("c", Literal["a", "b"], "'c' is none of a, b"),
    ("FASST", Mode, "'FASST' is not a Mode; did you mean 'FAST'?"),
    ("4", Weekend, "not a Weekend"),
    ("", Path, "not a path"),
    ("1,2", list[int], r"'1,2' is not a list[int]; write [a, b]"),
    ("[1, x]", list[int], "'x' is not an int"),
    ("[1,,2]", list[int], "nothing between two commas"),
    ("[1, (2]", list[int], "do not match"),
    ("[1]", tuple[int, int], "'[1]' has 1 items, not the 2 of tuple[int, int]"),
    ("[1]", tuple[()], "has 1 items, not the 0"),
    ("{a}", dict[str, int], "write {key: value}"),
    ("[[1]]", set[list[int]], "where only plain values go"),
    ("[" * 60 + "]" * 60, list, "more than 50 brackets"),
    ("os.getcwd", Model, "'os.getcwd' is not a Model; no factory for it is registered"),
    ("Modell(size=1)", Model, "is not a Model"),
    ("Model(sise=1)", Model, "unknown argument 'sise'; did you mean 'size'? (Model, "),
    ("Model(size=x)", Model, "size: 'x' is not an int (size: int of Model, "),
    ("Model(size=1, size=2)", Model, "given twice"),
    ("Model(size=1, 2)", Model, "comes after an argument with a name"),
    ("Model(1, 2, 3, 4, 5, 6)", Model, "too many positional"),
    ("f", typing.Callable[[int], str], "is not a Callable[[int], str]"),
    ("int", type, "is not a type"),
    ("b'\u0101'", bytes, "not a bytes literal"),
]


@pytest.mark.parametrize(("text", "kind", "message"), REFUSED)
def test_what_does_not_fit_is_refused_in_words(text: str, kind: Any, message: str) -> None:
    with pytest.raises(OverrideError) as told:
        parse_value(text, kind)
    assert message in str(told.value)
    assert len(str(told.value)) < 400


def test_a_class_is_configured_and_nothing_of_it_is_called() -> None:
    cli_tasks.RAN.clear()
    wanted = run.Config(Model, size=3, optimizer=run.Config(Optimizer, lr=0.5))
    for text in ("{size: 3, optimizer: {lr: 0.5}}", "Model(size=3, optimizer=Optimizer(lr=.5))", "Model(3, "
                 "optimizer={'lr': 0.5})"):  # fmt: skip
        assert parse_value(text, Model) == wanted
        assert parse_value(text, run.Config[Model]) == wanted
        assert parse_value(f"[{text}]", Optional[list[Model]]) == [wanted]
    assert parse_value("Layer(dim=1)", run.Partial[Layer]) == run.Partial(Layer, dim=1)
    assert cli_tasks.RAN == []


def test_dtypes_are_known_by_name_where_their_library_is_loaded() -> None:
    numpy = pytest.importorskip("numpy")
    for text in ("float32", "np.float32", "numpy.float32", "<f4"):
        assert parse_value(text, numpy.dtype) == numpy.dtype("float32")
    assert format_value(numpy.dtype("float32"), numpy.dtype) == "<f4"
    for wrong in ("float33", "os.getcwd", "i4,f8", "dtype"):
        with pytest.raises(OverrideError, match=r"not a numpy\.dtype"):
            parse_value(wrong, numpy.dtype)


def test_dtypes_of_torch_are_known_by_name() -> None:
    torch = pytest.importorskip("torch")
    kind = Optional[torch.dtype]
    assert parse_value("torch.bfloat16", kind) is parse_value("bfloat16", kind) is torch.bfloat16
    assert parse_value(format_value(torch.float16, kind), kind) is torch.float16
    for wrong in ("float33", "torch.nn", "_dynamo", "os.abort"):
        with pytest.raises(OverrideError, match=r"not a torch\.dtype"):
            parse_value(wrong, kind)


# --- what is written reads back ---------------------------------------------------------------------------

LITERALS = ["a", "1", 1, None, True, Mode.SLOW, b"x"]
HASHABLE: list[tuple[Any, Any]] = [
    (int, st.integers(-(10**30), 10**30)),
    (float, st.floats()),
    (bool, st.booleans()),
    (str, TEXTS),
    (bytes, st.binary(max_size=8)),
    (None, st.none()),
    (Mode, st.sampled_from(Mode)),
    (Weekend, st.integers(0, 3).map(Weekend)),
    (Path, TEXTS.filter(lambda text: "\0" not in text).map(Path)),
    (Literal["a", "1", 1, None, True, Mode.SLOW, b"x"], st.sampled_from(LITERALS)),
]  # fmt: skip


def python_values() -> Any:
    """What can be had without an annotation."""
    leaf = (
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | st.binary(max_size=4)
    )
    return st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(leaf, inner, max_size=3)
            | st.frozensets(leaf, max_size=3).map(set)
        ),
        max_leaves=6,
    )


@st.composite
def annotated(draw: Any) -> tuple[Any, Any]:
    """An annotation with a value for it."""
    kind, values = draw(kinds(draw(st.integers(0, 3))))
    return kind, draw(values)


@st.composite
def kinds(draw: Any, depth: int) -> tuple[Any, Any]:
    hashable = draw(st.sampled_from(HASHABLE))
    shape = draw(st.sampled_from(["leaf", "any", "list", "tuple", "fixed", "dict", "set", "union", "class"]))
    if not depth or shape == "leaf":
        return hashable
    if shape == "any":
        return Any, python_values()
    kind, values = draw(kinds(depth - 1))
    if shape == "list":
        return draw(st.sampled_from([list[kind], Sequence[kind]])), st.lists(values, max_size=3)
    if shape == "tuple":
        return tuple[kind, ...], st.lists(values, max_size=3).map(tuple)
    if shape == "fixed":
        return tuple[kind, hashable[0]], st.tuples(values, hashable[1])
    if shape == "dict":
        return dict[hashable[0], kind], st.dictionaries(hashable[1], values, max_size=3)
    if shape == "set":
        return frozenset[hashable[0]], st.frozensets(hashable[1], max_size=3)
    if shape == "class":
        layers = st.builds(lambda dim: run.Config(Layer, dim=dim), st.integers())
        models = st.builds(
            lambda size, of: run.Config(Model, size=size, layers=of), st.integers(), st.lists(layers)
        )
        return Model, models
    return Optional[kind], st.none() | values


@given(annotated())
@settings(max_examples=1000, deadline=None)
def test_what_is_written_reads_back_the_same(kind_and_value: tuple[Any, Any]) -> None:
    kind, value = kind_and_value
    assert strict(parse_value(format_value(value, kind), kind)) == strict(value)


@given(
    st.sampled_from(
        [int | float | str | None, str | bool | int, bool | float | list[str | int], bytes | str]
    ),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.lists(st.integers() | TEXTS, max_size=3),
)
@settings(max_examples=500, deadline=None)
def test_what_is_written_for_a_union_reads_back_as_the_same_member(kind: Any, value: Any) -> None:
    try:
        text = format_value(value, kind)
    except OverrideError:
        assert type(value) not in {typing.get_origin(member) or member for member in typing.get_args(kind)}
        return
    assert strict(parse_value(text, kind)) == strict(value)


@given(TEXTS, st.sampled_from([kind for _, kind, _ in READ]))
@settings(max_examples=1000, deadline=None)
def test_any_text_is_read_or_refused(text: str, kind: Any) -> None:
    try:
        parse_value(text, kind)
    except OverrideError:
        pass


@pytest.mark.parametrize("value", [object(), math.nan, os.getcwd, {1: object()}])
def test_what_has_no_text_is_refused(value: Any) -> None:
    with pytest.raises(OverrideError, match="cannot be written as a text for Any"):
        format_value(value)


# --- words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (int, "int"),
        (Optional[int], "int | None"),
        (list[Model], "list[Model]"),
        (Annotated[Optional[Model], "words"], "Model | None"),
        (Literal["a", 1], "'a' | 1"),
        (tuple[int, ...], "tuple[int, …]"),
        (typing.Callable[[int], None], "Callable[[int], None]"),
        (Any, "Any"),
        (run.Config[Model], "Config[Model]"),
    ],
)
def test_an_annotation_is_told_in_short(kind: Any, text: str) -> None:
    assert kind_text(kind) == text


def test_an_argument_is_declared_in_its_own_line() -> None:
    lines = Path(cli_tasks.__file__).read_text(encoding="utf-8").splitlines()

    def line(of: Any, argument: str = "") -> str:
        return lines[int(declared_at(of, argument).rpartition(":")[2]) - 1].strip()

    assert line(cli_tasks.train, "epochs") == "epochs: int = 1,"
    assert line(cli_tasks.Model, "size") == "size: int = 1"
    assert line(cli_tasks.BigModel, "size") == "size: int = 1"
    assert line(cli_tasks.train) == "def train("
    assert declared_at(dict, "a") == declared_at(3) == ""
