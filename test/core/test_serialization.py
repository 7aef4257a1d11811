"""What is written as a tree, JSON or YAML comes back; what cannot be written is refused with its place."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import sys
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import fiddle as fdl
import pytest
import samples
import yaml
from hypothesis import HealthCheck, given, settings
from random_configs import TEXTS, Shared, is_text, strict
from samples import Color, Holder, Model, Optimizer, OwnInit, Plain, Point, Speed

from nemo_run.config import Config, Partial, Script
from nemo_run.core import runner
from nemo_run.core.serialization import from_json, from_tree, from_yaml, to_json, to_tree, to_yaml
from nemo_run.errors import ConfigError, SerializationError
from nemo_run.lazy import LazyTarget
from nemo_run.secret import Secret
from nemo_run.shell import Expand


def survivors(value: Any) -> list[Any]:
    """The value through each kind of text."""
    return [from_tree(to_tree(value)), from_json(to_json(value)), from_yaml(to_yaml(value))]


# --- each kind of value ---------------------------------------------------------------------------------

TREES = [
    (None, None),
    (True, True),
    (3, 3),
    ("text", "text"),
    (0.5, 0.5),
    (math.inf, {"_float_": "inf"}),
    (-math.inf, {"_float_": "-inf"}),
    (math.nan, {"_float_": "nan"}),
    ([1, [2]], [1, [2]]),
    ({"a": {"b": 1}}, {"a": {"b": 1}}),
    ({1: "a"}, {"_dict_": [[1, "a"]]}),
    ({"_a": 1}, {"_dict_": [["_a", 1]]}),
    ({(1, 2): 3}, {"_dict_": [[{"_tuple_": [1, 2]}, 3]]}),
    ((1, (2,)), {"_tuple_": [1, {"_tuple_": [2]}]}),
    (Point(1, (2,)), {"_namedtuple_": "samples.Point", "values": [1, {"_tuple_": [2]}]}),
    ({2, 1}, {"_set_": [1, 2]}),
    (frozenset({"b", "a"}), {"_frozenset_": ["a", "b"]}),
    (b"\x00\xff", {"_bytes_": "AP8="}),
    (Color.RED, {"_enum_": "samples.Color", "name": "RED"}),
    (Path("/a b"), {"_path_": "/a b"}),
    (Secret("T"), {"_secret_": {"id": "T", "name": "T"}}),
    (Secret(file="~/t"), {"_secret_": {"id": Secret(file="~/t").name, "file": "~/t"}}),
    (Secret(command=["a", "b"]), {"_secret_": {"id": Secret(command="a b").name, "command": ["a", "b"]}}),
    (Expand("$HOME"), {"_expand_": "$HOME"}),
    (samples.train, {"_target_": "samples.train", "_call_": False}),
    (Model, {"_target_": "samples.Model", "_call_": False}),
    (samples.Derived.make, {"_target_": "samples.Derived.make", "_call_": False}),
    (int, {"_target_": "builtins.int", "_call_": False}),
    (math.sqrt, {"_target_": "math.sqrt", "_call_": False}),
    (Any, {"_target_": "typing.Any", "_call_": False}),
    (Config(Model, size=3), {"_target_": "samples.Model", "size": 3}),
    (Partial(samples.train), {"_target_": "samples.train", "_partial_": True}),
    (
        Config(samples.positional, 1, 2, 3, 5, d=6),
        {"_target_": "samples.positional", "_args_": [1, 2, 3, 5], "d": 6},
    ),
    (
        Config(samples.underscored, _hidden=3, _target_=4, shown=5),
        {"_target_": "samples.underscored", "shown": 5, "_kwargs_": {"_hidden": 3, "_target_": 4}},
    ),
    (Config({"a": 1}), {"_target_": "builtins.dict", "a": 1}),
    (Config(samples.train, bind_args=False, odd=1), {"_target_": "samples.train", "odd": 1}),
]


@pytest.mark.parametrize(("value", "tree"), TREES)
def test_each_kind_of_value_has_its_tree(value: Any, tree: Any) -> None:
    assert to_tree(value) == tree


@pytest.mark.parametrize("value", [value for value, _ in TREES])
def test_each_kind_of_value_comes_back(value: Any) -> None:
    assert [strict(back) for back in survivors(value)] == [strict(value)] * 3


def test_a_pure_path_comes_back_as_a_path() -> None:
    assert survivors(PurePosixPath("/a")) == [Path("/a")] * 3


def test_constants_go_by_the_name_they_show(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dtype:
        def __repr__(self) -> str:
            return "fake_torch.bfloat16"

    module = ModuleType("fake_torch")
    module.bfloat16 = Dtype()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_torch", module)
    cfg = Config(Holder, a=module.bfloat16)
    assert to_tree(cfg)["a"] == {"_target_": "fake_torch.bfloat16", "_call_": False}
    assert from_json(to_json(cfg)).a is module.bfloat16
    with pytest.raises(SerializationError):
        to_tree(Config(Holder, a=Dtype()))


def test_what_is_lazy_is_written_unseen() -> None:
    cfg = Partial(LazyTarget("not_here.train"), act=LazyTarget("not_here.relu"))
    assert to_tree(cfg) == {
        "_target_": "not_here.train",
        "_partial_": True,
        "act": {"_target_": "not_here.relu", "_call_": False},
    }


# --- fiddle's other kinds -------------------------------------------------------------------------------


def test_arg_factories_come_back_and_build() -> None:
    cfg = Partial(samples.train, model=fdl.ArgFactory(Model, size=2))
    assert to_tree(cfg)["model"] == {
        "_target_": "samples.Model",
        "_buildable_": "fiddle.ArgFactory",
        "size": 2,
    }
    for back in survivors(cfg):
        assert back == cfg
        assert fdl.build(back)()[0] == Model(size=2)
    with pytest.raises(runner.NeedsFiddle):
        runner.build(to_tree(cfg))


def test_tags_come_back() -> None:
    cfg = Config(Optimizer, lr=1)
    fdl.add_tag(cfg, "lr", Speed)
    fdl.add_tag(cfg, "betas", Speed)
    assert to_tree(cfg)["_tags_"] == {"lr": ["samples.Speed"], "betas": ["samples.Speed"]}
    for back in survivors(cfg):
        fdl.set_tagged(back, tag=Speed, value=7)
        assert (back.lr, back.betas) == (7, 7)
    assert runner.build(to_tree(cfg)) == Optimizer(1)


def test_tagged_values_in_a_list_come_back() -> None:
    cfg = Config(Holder, a=[Speed.new(3)])
    assert [fdl.build(back) for back in survivors(cfg)] == [Holder([3])] * 3


def test_defaults_that_were_taken_out_stay_out() -> None:
    cfg = Config(samples.with_defaults)
    del cfg.model
    assert "model" not in from_json(to_json(cfg)).__arguments__


# --- executors and other objects ------------------------------------------------------------------------


def test_a_dataclass_instance_is_written_with_all_its_fields() -> None:
    assert to_tree(Optimizer(3)) == {"_target_": "samples.Optimizer", "lr": 3, "betas": []}
    script = Script("x.sh", args=[Expand("$A")], env={"T": Secret("T")})
    assert fdl.build(from_json(to_json(script))) == script


def test_an_instance_with_a_constructor_of_its_own_is_written_as_its_state() -> None:
    value = OwnInit(7, holds=[Optimizer(2), Optimizer(3)])
    tree = to_tree(value)
    assert tree["_instance_"] == "samples.OwnInit"
    assert tree["state"]["left"] == 6
    for back in [*survivors(value), runner.build(tree)]:
        assert (back.left, back.holds) == (6, [Optimizer(2), Optimizer(3)])


# --- sharing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [Config(Optimizer), [1], {"a": 1}, {1: 2}, Partial(samples.train)])
def test_what_is_shared_stays_shared(shared: Any) -> None:
    cfg = Config(Holder, a=shared, b=(shared,), c={"x": shared})
    for back in survivors(cfg):
        assert back.a is back.b[0] is back.c["x"]
    built = runner.build(to_tree(cfg))
    assert built.a is built.b[0] is built.c["x"]


def test_sharing_is_written_where_it_is_built_first() -> None:
    shared = Config(Optimizer)
    tree = to_tree(Config(samples.underscored, _hidden=shared, shown=shared))
    assert tree["shown"] == {"_id_": 1, "_target_": "samples.Optimizer"}
    assert tree["_kwargs_"] == {"_hidden": {"_ref_": 1}}
    hidden, _, shown = runner.build(tree)
    assert hidden is shown


def test_equal_things_are_not_shared() -> None:
    back = from_json(to_json(Config(Holder, a=[1], b=[1])))
    assert back.a is not back.b


@pytest.mark.parametrize("kind", [list, dict, Config])
def test_what_holds_itself_is_refused(kind: Any) -> None:
    loop: Any = {list: [], dict: {}, Config: Config(Holder)}[kind]
    outer = Config(Holder, a=loop)
    if kind is list:
        loop.append([loop])
    elif kind is dict:
        loop["b"] = loop
    else:
        loop.b = [loop]
    with pytest.raises(SerializationError, match="holds itself"):
        to_tree(outer)


# --- refusals -------------------------------------------------------------------------------------------


class Array:
    def __array__(self) -> None: ...


class Callback:
    pass


def local_function() -> Any:
    def local() -> None: ...

    return local


REFUSED = [
    (lambda: 1, "top level of a module"),
    (local_function(), "only inside a function"),
    (Callback(), r"run\.Config\(Callback, …\)"),
    (samples.Text("x"), r"samples\.Text.*str\("),
    (functools.partial(samples.train), r"run\.Config\(partial"),
    (Array(), "file's path"),
    (sys.stdout, "file's path"),
    (Plain().__eq__, "method of an object"),
    (re.compile("x"), r"re\.Pattern"),
    (re.A | re.I, "no name of its own"),
    ("\ud83d\ude00", "surrogates"),
    (1j, "complex"),
    (list[int], r"builtins\.list"),
    (os, "module"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED)
def test_what_cannot_be_written_is_refused_with_its_path(value: Any, message: str) -> None:
    cfg = Partial(samples.train, model=Config(Holder, a=[0, {"k": value}]))
    with pytest.raises(SerializationError, match=message) as caught:
        to_tree(cfg)
    assert caught.value.path == "model.a[1]['k']"
    assert "model.a[1]['k']" in str(caught.value)


def test_a_target_that_cannot_be_found_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Partial(samples.positional)
    monkeypatch.setattr(samples, "positional", print)
    with pytest.raises(SerializationError, match=r"samples\.positional.*elsewhere"):
        to_tree(task)


def test_names_of_main_are_looked_up_in_main(monkeypatch: pytest.MonkeyPatch) -> None:
    def task() -> None: ...

    task.__module__, task.__qualname__ = "__main__", "task"
    main = ModuleType("__main__")
    with pytest.raises(SerializationError, match=r"__main__\.task"):
        to_tree(Partial(task), main=main)
    main.task = task  # type: ignore[attr-defined]
    assert to_tree(Partial(task), main=main)["_target_"] == "__main__.task"
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert from_json(to_json(Partial(task))) == Partial(task)


@pytest.mark.parametrize(
    "tree",
    [
        {"_target_": "not_here.train"},
        {"_target_": "samples.nothing"},
        {"_enum_": "samples.Color", "name": "GREEN"},
        {"_ref_": 9},
        {"_float_": "x"},
        {"_secret_": {}},
        {"_target_": "samples.train", "_args_": [1, 2, 3, 4]},
    ],
)
def test_a_tree_that_makes_no_sense_is_refused_with_its_path(tree: Any) -> None:
    with pytest.raises(SerializationError, match="cannot be read") as caught:
        from_tree({"_target_": "samples.Holder", "a": [tree]})
    assert caught.value.path == "a[0]"


def test_texts_that_are_not_trees_are_refused() -> None:
    for read, text in ((from_json, "{"), (from_yaml, "a: ["), (from_yaml, "when: 2020-01-01")):
        with pytest.raises(ConfigError):
            read(text)


# --- YAML -----------------------------------------------------------------------------------------------


def test_yaml_is_for_people() -> None:
    cfg = Partial(samples.train, model=Config(Model, size=3, layers=["ü", "a\nb\n", "yes", "1e5"]))
    assert to_yaml(cfg) == (
        "_target_: samples.train\n"
        "_partial_: true\n"
        "model:\n"
        "  _target_: samples.Model\n"
        "  size: 3\n"
        "  layers:\n"
        "  - ü\n"
        "  - |\n"
        "    a\n"
        "    b\n"
        "  - 'yes'\n"
        "  - 1e5\n"
    )


@given(TEXTS.filter(is_text))
@settings(max_examples=500, deadline=None)
def test_every_text_survives_as_value_and_as_key(text: str) -> None:
    value = {"v": text, "k": {text: [text]}, "l": [text, [text]]}
    assert survivors(value) == [value] * 3
    to_yaml(value).encode("utf-8")
    to_json(value).encode("ascii")


# --- random configs -------------------------------------------------------------------------------------


@given(Shared.config())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_configs_survive_and_are_built_as_fiddle_builds_them(cfg: Any) -> None:
    assert [strict(back) for back in survivors(cfg)] == [strict(cfg)] * 3
    tree = json.loads(json.dumps(to_tree(cfg)))
    assert strict(runner.build(tree)) == strict(fdl.build(cfg))
    assert yaml.safe_load(to_yaml(cfg)) == tree
