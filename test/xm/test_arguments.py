"""Arguments: how they are merged, and which words a program gets."""

from __future__ import annotations

import copy
import enum
import pickle
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nemo_run as run
from nemo_run import xm

HOSTILE = ["a b", "a'b", 'a"b', "$HOME", "`id`", ";", "\\", "a\nb", "héllo", "", "--", "-x", "a=b", "*"]


class Color(enum.Enum):
    RED = "#f00"


WORDS: list[tuple[Any, list[str]]] = [
    (None, []),
    ([], []),
    ({}, []),
    (["a", 1, 2.5, True, None], ["a", "1", "2.5", "True", "None"]),
    (("a", "b"), ["a", "b"]),
    ({"a": 1, "b": "x"}, ["--a=1", "--b=x"]),
    ({"yes": True, "no": False}, ["--yes", "--nono"]),
    ({"gone": None, "kept": 0}, ["--kept=0"]),
    ({"each": [1, 2]}, ["--each=1", "--each=2"]),
    ({"each": ("x", "y z")}, ["--each=x", "--each=y z"]),
    ({"none": []}, []),
    ({"nested": [[1], [2]]}, ["--nested=[[1], [2]]"]),
    ({"nested": [1, (2,)]}, ["--nested=[1, (2,)]"]),
    ({"dict": {"a": 1}}, ["--dict={'a': 1}"]),
    ({"set": {1}}, ["--set={1}"]),
    ({"color": Color.RED}, ["--color=RED"]),
    ({"kind": xm.ResourceType["ram"]}, ["--kind=MEMORY"]),
    ({"path": Path("/a b")}, ["--path=/a b"]),
    ({3: 4}, ["--3=4"]),
    (xm.merge_args({"a": 1}, ["--"], ["b"]), ["--a=1", "--", "b"]),
]


@pytest.mark.parametrize(("given_", "words"), WORDS, ids=lambda value: repr(value)[:40])
def test_arguments_become_these_words(given_: Any, words: list[str]) -> None:
    args = xm.SequentialArgs.from_collection(given_)
    assert args.to_argv() == words
    assert args.to_list(str) == words
    assert shlex.split(" ".join(args.to_list())) == words


MERGES: list[tuple[list[Any], list[str]]] = [
    ([], []),
    ([None, {}, []], []),
    ([{"a": 1, "b": 2}, ["--"], {"a": 3}], ["--a=3", "--b=2", "--"]),
    ([["x"], ["x"]], ["x", "x"]),
    ([{"a": 1}, {"a": None}], []),
    ([{"a": None}, ["x"], {"a": 1}], ["--a=1", "x"]),
    ([["--a=1"], {"a": 2}], ["--a=1", "--a=2"]),
    ([{"a": [1, 2]}, {"a": [3]}], ["--a=3"]),
]


@pytest.mark.parametrize(("parts", "words"), MERGES)
def test_merging_adds_positional_arguments_and_overrides_keywords(parts: list[Any], words: list[str]) -> None:
    assert xm.merge_args(*parts).to_argv() == words


def test_a_keyword_and_a_positional_argument_of_one_name_are_two_things() -> None:
    assert xm.merge_args({"a": True}) != xm.merge_args(["a"])
    assert xm.merge_args(["a"], {"a": 1}, ["a"]).to_argv() == ["a", "--a=1", "a"]


def test_merging_changes_none_of_what_it_is_given() -> None:
    first, second = xm.merge_args({"a": 1}), xm.merge_args({"a": 2}, ["x"])
    xm.merge_args(first, second)
    assert (first.to_argv(), second.to_argv()) == (["--a=1"], ["--a=2", "x"])
    dictionary = {"a": 1}
    copied = xm.SequentialArgs.from_collection(dictionary)
    dictionary["a"] = 2
    assert copied.to_argv() == ["--a=1"]


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)
values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), names, st.sampled_from(HOSTILE),
    st.lists(st.integers() | names, max_size=3), st.lists(st.lists(st.integers()), min_size=1, max_size=2),
)  # fmt: skip
scalars = st.one_of(st.integers(), names, st.sampled_from(HOSTILE))
collections = st.one_of(st.none(), st.lists(scalars, max_size=4), st.dictionaries(names, values, max_size=4))


@given(st.lists(collections, max_size=4))
def test_shell_text_says_the_same_as_the_argument_list(parts: list[Any]) -> None:
    args = xm.merge_args(*parts)
    assert shlex.split(" ".join(args.to_list())) == args.to_argv() == args.to_list(xm.utils.ARGV_ESCAPER)


@given(
    st.lists(collections, max_size=3), st.lists(collections, max_size=3), st.lists(collections, max_size=3)
)
def test_merging_may_be_grouped_in_any_way(a: list[Any], b: list[Any], c: list[Any]) -> None:
    whole = xm.merge_args(*a, *b, *c)
    assert whole == xm.merge_args(xm.merge_args(*a, *b), *c) == xm.merge_args(*a, xm.merge_args(*b, *c))


@given(st.lists(st.lists(st.integers(), max_size=3) | st.dictionaries(names, values, max_size=3), max_size=5))
def test_of_each_keyword_the_last_value_counts_and_positional_arguments_keep_their_order(
    parts: list[Any],
) -> None:
    args = xm.merge_args(*parts)
    keywords = {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
    assert args.to_dict(kwargs_only=True) == keywords
    for name in keywords:
        args = args.remove_args(name)
    assert args.to_argv() == [str(value) for part in parts if isinstance(part, list) for value in part]


@given(st.lists(collections, max_size=4))
def test_copies_of_arguments_are_equal_and_their_own(parts: list[Any]) -> None:
    args = xm.merge_args(*parts)
    for twin in (
        copy.deepcopy(args),
        pickle.loads(pickle.dumps(args)),
        xm.SequentialArgs.from_collection(args),
    ):
        assert twin == args
        assert xm.merge_args(twin, ["one more"]) != args


@settings(max_examples=20, deadline=None)
@given(st.lists(scalars, min_size=1, max_size=6), st.dictionaries(names, scalars, max_size=3))
def test_a_real_shell_hands_over_what_was_written(positional: list[Any], keywords: dict[str, Any]) -> None:
    args = xm.merge_args(positional, keywords)
    told = subprocess.run(
        ["sh", "-c", """printf '%s\\0' """ + " ".join(args.to_list())], capture_output=True, check=True
    )
    assert told.stdout.decode().split("\0")[:-1] == args.to_argv()


# --- Text that a shell expands --------------------------------------------------------------------------


def test_text_for_a_shell_stays_as_it_is_and_is_marked_for_the_engine() -> None:
    args = xm.merge_args(
        [xm.ShellSafeArg("$HOME/x")], {"cost": xm.ShellSafeArg("$N"), "$a": xm.ShellSafeArg("$b")}
    )
    assert args.to_list() == ["$HOME/x", "--cost=$N", "'--$a'=$b"]
    argv = args.to_argv()
    assert argv == ["$HOME/x", "--cost=$N", "--\\$a=$b"]
    assert all(isinstance(word, run.Expand) for word in argv)
    assert not any(isinstance(word, run.Expand) for word in xm.merge_args(["$HOME"], {"a": "$b"}).to_argv())


def test_text_for_a_shell_has_no_text_of_its_own() -> None:
    with pytest.raises(RuntimeError, match="a shell makes it where the job runs"):
        str(xm.ShellSafeArg("$HOME"))
    assert xm.ShellSafeArg("$HOME") == xm.ShellSafeArg("$HOME") != xm.ShellSafeArg("$PWD")


# --- Its other methods ----------------------------------------------------------------------------------


def test_arguments_as_a_dict() -> None:
    args = xm.merge_args({"a": 1}, ["x", 2])
    assert args.to_dict() == {"a": 1, "x": True, "2": True}
    only = args.to_dict(kwargs_only=True)
    only["a"] = 5
    assert args.to_dict(kwargs_only=True) == {"a": 1}


def test_rewriting_touches_text_alone_and_gives_new_arguments() -> None:
    args = xm.merge_args({"a": "x", "b": 1}, ["x", 2])
    assert args.rewrite_args(str.upper).to_argv() == ["--a=X", "--b=1", "X", "2"]
    assert args.to_argv() == ["--a=x", "--b=1", "x", "2"]


def test_removing_takes_the_keyword_and_positional_arguments_of_a_name() -> None:
    args = xm.merge_args({"a": 1, "b": 2}, ["a", "c"])
    assert args.remove_args("a").to_argv() == ["--b=2", "c"]
    assert args.remove_args("nothing") == args


def test_arguments_show_what_they_are() -> None:
    assert repr(xm.merge_args({"a": 1}, ["x"])) == "SequentialArgs(a=1, 'x')"
    assert not xm.SequentialArgs()
    assert xm.merge_args({"a": None})
    with pytest.raises(TypeError, match="unhashable"):
        hash(xm.SequentialArgs())


def test_the_joiner_is_ones_own_choice() -> None:
    args = xm.merge_args({"a": "x y"})
    assert args.to_list(str, lambda flag, value: f"{flag} {value}") == ["--a x y"]


@pytest.mark.parametrize("text", ["--lr=1", b"--lr=1", ""])
def test_one_text_in_place_of_a_list_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"args are a list or a dict, not the text .*: write \[") as caught:
        xm.merge_args(text)
    assert isinstance(caught.value, run.ConfigError)


@pytest.mark.parametrize("value", [5, {1, 2}, object(), iter(())])
def test_what_is_no_collection_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="args are a list, a mapping or SequentialArgs, not"):
        xm.SequentialArgs.from_collection(value)
