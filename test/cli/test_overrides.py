"""Overrides change a config as they say, in their order, or are refused in words; none of them runs code."""

from __future__ import annotations

import copy
import inspect
import random
import re
import string
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cli_tasks
import fiddle as fdl
import pytest
from cli_tasks import BigModel, Layer, Mode, Model, Optimizer, loose, many, train
from hypothesis import given, settings
from hypothesis import strategies as st

import nemo_run as run
from nemo_run.cli import parse_config, parse_partial
from nemo_run.cli.factories import REGISTRY
from nemo_run.cli.overrides import apply_data, apply_overrides
from nemo_run.cli.parsing import FactoryReader
from nemo_run.cli.syntax import Step, parse_override
from nemo_run.config import ArgumentError
from nemo_run.errors import OverrideError


@pytest.fixture(autouse=True)
def ran() -> Iterator[list[str]]:
    """What of the user's code ran in the test."""
    cli_tasks.RAN.clear()
    yield cli_tasks.RAN
    defaults = inspect.signature(train).parameters
    assert defaults["steps"].default == [1]
    assert defaults["given"].default.size == 4


def value(name: str, *overrides: str) -> Any:
    """An argument of `train` after overrides."""
    return parse_partial(train, *overrides).__arguments__[name]


# --- keys and operators -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a=1", ("a", "=", "1")),
        ("a.b[0].c+=1", ("a.b[0].c", "+=", "1")),
        ("a==1", ("a", "=", "=1")),
        ("a=b=c", ("a", "=", "b=c")),
        ("a=", ("a", "=", "")),
        ("a=\n x", ("a", "=", "\n x")),
        ("a['x=y'].b|={}", ("a['x=y'].b", "|=", "{}")),
        ("run.executor=f(a=1)", ("run.executor", "=", "f(a=1)")),
        ("größe/=2", ("größe", "/=", "2")),
    ],
)
def test_an_override_is_a_key_an_operator_and_a_value(text: str, parts: tuple[str, str, str]) -> None:
    override = parse_override(text)
    assert (override.key, override.operator, override.value) == parts
    assert str(override) == text


def test_a_key_has_steps() -> None:
    steps = parse_override("a.b[0][-1]['x.y'][\"z\"][w]=1").steps
    assert steps == (
        Step("a", "name"), Step("b", "name"), Step("0", "index"), Step("-1", "index"), Step("x.y", "key"),
        Step("z", "key"), Step("w", "index"),
    )  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "a", "=1", "a..b=1", ".a=1", "a.=1", "a[=1", "a[]=1", "1a=2", "a b=1", "--a=1", "a:1"]
)
def test_what_is_no_override_is_refused(text: str) -> None:
    with pytest.raises(OverrideError, match=r"is not an override; write NAME=VALUE|is not a key such as"):
        parse_override(text)


# --- setting ----------------------------------------------------------------------------------------------


def test_values_are_set_wherever_the_key_leads() -> None:
    cfg = parse_partial(
        train, "model=Model(size=2)", "model.size=3", "model.layers=[{dim: 1}, {}]", "model.layers[-1].dim=2",
        "model.optimizer.lr=1e-3", "model.optimizer.betas[1]=1", "model.env.A=x", "model.env['B.C']=y",
        "epochs=1e2", "mode=SLOW", "precision=16", "out=a b",
    )  # fmt: skip
    assert cfg == run.Partial(
        train,
        model=run.Config(
            Model,
            size=3,
            layers=[run.Config(Layer, dim=1), run.Config(Layer, dim=2)],
            optimizer=run.Config(Optimizer, lr=0.001, betas=(0.9, 1.0)),
            env={"A": "x", "B.C": "y"},
        ),
        epochs=100,
        mode=Mode.SLOW,
        precision=16,
        out=Path("a b"),
    )


def test_what_is_not_set_is_configured_on_the_way(ran: list[str]) -> None:
    assert value("model", "model.optimizer.lr=1") == run.Config(
        Model, optimizer=run.Config(Optimizer, lr=1.0)
    )
    given = run.Config(Model, size=8, layers=[], env={}, optimizer=run.Config(Optimizer))
    given.spare = run.Config(Optimizer, lr=3)
    assert value("given", "given.size*=2") == given
    assert ran == []


def test_the_default_factory_of_an_argument_stands_where_nothing_is_set() -> None:
    assert value("maybe", "maybe.layers=[]") == run.Config(Model, size=5, layers=[])


def test_order_on_the_command_line_is_the_order_of_application() -> None:
    assert value("lr", "lr=1", "lr+=1", "lr+=2", "lr*=10") == 40
    assert value("model", "model.size=3", "model=Model()") == run.Config(Model)
    assert value("model", "model=Model()", "model.size=3", "model.size-=1").size == 2


def test_defaults_and_lists_of_the_caller_are_never_changed() -> None:
    mine = [1, 2]
    cfg = run.Partial(train, steps=mine)
    apply_overrides(cfg, ["steps+=[3]", "steps[0]=9"])
    assert (cfg.steps, mine) == ([9, 2, 3], [1, 2])
    for _ in range(2):
        assert value("steps", "steps+=[2]", "steps+=99") == [1, 2, 99]


def test_a_default_that_cannot_be_copied_can_be_replaced() -> None:
    def task(given: list[Any] = [threading.Lock()]) -> None: ...  # noqa: B006, B008

    assert parse_partial(task, "given=[1]") == run.Partial(task, given=[1])
    with pytest.raises(
        OverrideError, match=r"it is a default that cannot be copied \(TypeError\); set it with ="
    ):
        parse_partial(task, "given+=[1]")


def test_a_shared_config_stays_shared() -> None:
    shared = run.Config(Layer)
    cfg = run.Partial(train, model=run.Config(Model, layers=[shared, shared]))
    apply_overrides(cfg, ["model.layers[0].dim=3", "model.layers+=Layer(dim=1)"])
    assert cfg.model.layers[0] is cfg.model.layers[1] is shared
    assert shared.dim == 3


@pytest.mark.parametrize(
    ("overrides", "name", "expected"),
    [
        (["epochs+=2"], "epochs", 3),
        (["epochs=8", "epochs/=2"], "epochs", 4),
        (["epochs*=2.0"], "epochs", 2),
        (["lr-=1"], "lr", -0.9),
        (["lr/=2"], "lr", 0.05),
        (["name+=yz"], "name", "xyz"),
        (["steps+=[2, 3]"], "steps", [1, 2, 3]),
        (["tags|={a, b}", "tags|=[c]", "tags&={a, c}", "tags-={a}"], "tags", frozenset({"c"})),
        (["anything={1, 2}", "anything|={3}"], "anything", {1, 2, 3}),
        (["anything=[[1]]", "anything+=[2]"], "anything", [[1], 2]),
        (["anything=(1,)", "anything+=(2, 3)"], "anything", (1, 2, 3)),
        (["anything={'a': 1}", "anything|={'b': 2}", "anything.a+=1"], "anything", {"a": 2, "b": 2}),
        (["anything=3", "anything/=2"], "anything", 1.5),
    ],
)
def test_operators_change_what_is_there(overrides: list[str], name: str, expected: Any) -> None:
    made = value(name, *overrides)
    assert (type(made), made) == (type(expected), expected)


def test_names_that_begin_like_those_of_options_are_arguments() -> None:
    assert value("runner", "runner=2") == 2
    cfg = parse_partial(
        many, "models=[Model(size=1)]", "by_name={a: Model()}", "by_name.a.size=2", "by_name.b={}"
    )
    assert cfg == run.Partial(
        many,
        models=[run.Config(Model, size=1)],
        by_name={"a": run.Config(Model, size=2), "b": run.Config(Model)},
    )


def test_a_class_is_configured_too() -> None:
    assert parse_config(Optimizer, "lr=2") == run.Config(Optimizer, lr=2.0)
    free = run.Config(dict, a=1)
    assert apply_overrides(free, ["a=2", "b=[1]"]) == run.Config(dict, a=2, b=[1])


def test_a_function_that_takes_any_argument_says_of_what_kind() -> None:
    assert parse_partial(loose, "first=[1]", "second=1") == run.Partial(loose, first=[1], second=1.0)
    with pytest.raises(OverrideError, match="second: 'x' is not a number"):
        parse_partial(loose, "second=x")


# --- factories --------------------------------------------------------------------------------------------


def test_names_stand_for_factories() -> None:
    assert value("model", "model=llama3(size=7, layers=1)") == cli_tasks.llama3(7, 1)
    assert value("model", "model=llama3(8)") == value("model", "model=llama3", "model.size=8")
    assert value("model", "model=big-one", "model.depth+=1") == run.Config(BigModel, depth=10)
    assert value("maybe", "maybe=usual") == run.Config(Model, size=5)
    assert value("epochs", "epochs=few") == 3
    layers = [run.Config(Layer, dim=99), run.Config(Layer, dim=1), run.Config(Layer, dim=2)]
    assert value("model", "model.layers=[wide, wide(dim=1), Layer(dim=2)]").layers == layers
    assert value("model", "model.layers=three", "model.layers+=wide", "model.layers+=[wide(2)]").layers == [
        *(run.Config(Layer, dim=dim) for dim in (1, 2, 3, 99, 2))
    ]


def test_each_use_of_a_factory_is_a_new_object() -> None:
    one, other = value("model", "model.layers=[wide, wide]").layers
    assert one is not other


def test_a_text_is_never_the_name_of_a_factory(ran: list[str]) -> None:
    assert value("name", "name=llama3(size=1)") == "llama3(size=1)"
    assert value("model", "model.env={a: llama3}").env == {"a": "llama3"}
    assert value("anything", "anything=llama3") == "llama3"
    assert ran == []


# --- files ------------------------------------------------------------------------------------------------


def test_a_value_can_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a b.yaml"
    path.write_text(
        """
        small: {size: 2, layers: [{dim: 1}, {_factory_: wide(dim=5)}]}
        named: {_factory_: llama3(layers=0), "size*": 2, "env|=": {A: 1}}
        exact: {_target_: cli_tasks.Model, size: 4}
        texts: {A: on, B: 12:30, C: 2026-01-01, D: "1"}
        steps: [1, 1e1]
        betas: [0.5, 1]
        """
    )
    layers = [run.Config(Layer, dim=1), run.Config(Layer, dim=5)]
    assert value("model", f"model=@{path}:small") == run.Config(Model, size=2, layers=layers)
    assert value("model", f"model=@{path}:named") == run.Config(Model, size=140, layers=[], env={"A": "1"})
    assert value("model", f"model=@{path}:exact", "model.size+=1") == run.Config(Model, size=5)
    assert value("model", f"model.env=@{path}:texts").env == {
        "A": "on",
        "B": "12:30",
        "C": "2026-01-01",
        "D": "1",
    }
    assert value("model", f"model.layers=@{path}:small.layers").layers == layers
    assert value("steps", f"steps=@{path}:steps", f"steps+=@{path}:steps") == [1, 10, 1, 10]
    assert value("steps", f"steps+=@{path}:steps") == [1, 1, 10]
    betas = value("model", f"model.optimizer.betas=@{path}:betas").optimizer.betas
    assert (type(betas), betas) == (tuple, (0.5, 1.0))
    with pytest.raises(OverrideError, match="has 3 items, not the 2 of"):
        apply_data(run.Config(Optimizer), {"betas": [1, 2, 3]})
    assert value("tags", f"tags=@{path}:steps") == frozenset({"1", "1e1"})
    assert value("name", f"name=@{path}") == f"@{path}"
    assert value("out", f"out=@{path}") == Path(f"@{path}")


def test_what_a_file_says_is_applied_in_its_order() -> None:
    cfg = run.Partial(train, model=run.Config(Model, size=3, optimizer=run.Config(Optimizer)))
    data = {
        "model": {"size*=": 2, "optimizer": {"lr": "1e-3"}},
        "epochs+": 1,
        "model.size": 7,
        "steps+=": [5],
        "lr": 2,
    }
    apply_data(cfg, data, FactoryReader(REGISTRY))
    assert cfg == run.Partial(
        train,
        model=run.Config(Model, size=7, optimizer=run.Config(Optimizer, lr=0.001)),
        epochs=2,
        steps=[1, 5],
        lr=2.0,
    )
    assert type(cfg.lr) is float


# --- what is refused --------------------------------------------------------------------------------------

REFUSED = [
    (["epocks=3"], "unknown argument 'epocks'; did you mean 'epochs' or 'steps'? (train, {tasks}:LINE)",
     ["epochs"]),
    (["epochs=ten"], "epochs: 'ten' is not an int (epochs: int of train, {tasks}:LINE)", []),
    (["epochs=1.5"], "'1.5' is not an int", []),
    (["mode=FASTT"], "did you mean 'FAST'?", ["FAST", "SLOW"]),
    (["precision=8"], "'8' is none of bf16, 16", []),
    (["verbose=maybe"], "not true or false", []),
    (["model=lama3"], "'lama3' is not a Model; did you mean 'llama3'?", ["big-one", "broken", "llama3"]),
    (["model=os.getcwd"], "is not a Model", []),
    (["hook=os.getcwd"], "is not a Callable", []),
    (["model=llama3(sise=3)"], "unknown argument 'sise'; did you mean 'size'? (llama3, ", []),
    (["model=llama3(size=x)"], "size: 'x' is not an int (size: int of llama3, ", []),
    (["model=llama3(1, 2, 3)"], "too many positional", []),
    (["model=broken"], "missing a required argument: 'size'", []),
    (["model=broken(3)"], "failed: RuntimeError: no model of 3", []),
    (["model.sise=3"], "unknown argument 'model.sise'; did you mean 'size'? (Model, ", ["size", "layers"]),
    (["model.size.x=3"], "model.size is 1, which has no 'x'", []),
    (["model.spare.lr=3"], "model.spare is made by Model.<lambda>; set model.spare itself first", []),
    (["model.layers[0].dim=3"], "there is no model.layers[0]: it has 0 items", []),
    (["model.env.A.b=3"], "there is no model.env.A", []),
    (["model[0]=3"], "unknown argument", []),
    (["out.x=3"], "out is None; set out itself first", []),
    (["unknown.x=3"], "unknown is None; set unknown itself first", []),
    (["epochs/=0"], "1 / 0: division by zero", []),
    (["epochs*=1.5"], "1 * 1.5 is 1.5, and int is wanted", []),
    (["epochs|=2"], "|= is not for 1", []),
    (["model+=1"], "+= finds no value to change: it is not set; set it with =", []),
    (["out+=x"], "finds no value to change: it is None", []),
    (["verbose+=1"], "+= is not for False", []),
    (["steps+=[x]"], "'x' is not an int", []),
    (["steps[x]=1"], "there is no steps[x]", []),
    (["model=@/no/such.yaml"], "there is no file '/no/such.yaml'", []),
    (["model=@Makefile"], "is no YAML, TOML or JSON file by its name", []),
    (["__fn_or_cls__=x"], "unknown argument", []),
    (["model.__class__=x"], "unknown argument", []),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message", "choices"), REFUSED)
def test_what_names_nothing_or_does_not_fit_is_refused(
    overrides: list[str], message: str, choices: list[str]
) -> None:
    with pytest.raises(OverrideError) as told:
        parse_partial(train, *overrides)
    text = re.sub(r":\d+\)", ":LINE)", str(told.value)).replace(str(Path(cli_tasks.__file__)), "{tasks}")
    text = re.sub(r"\S*cli_tasks\.py", "{tasks}", text)
    assert message in text
    assert set(choices) <= set(told.value.choices)
    assert told.value.argument
    assert text.count("(epochs: int") <= 1


@dataclass
class Chain:
    next: Chain


def test_a_key_of_any_length_is_refused_in_words() -> None:
    assert parse_config(Chain, "next.next.next={}").next.next.next == run.Config(Chain)
    with pytest.raises(OverrideError, match="has more than 50 steps"):
        parse_config(Chain, "next" + ".next" * 5000 + "={}")


def test_an_error_leaves_what_came_before_it_and_no_half_of_its_own() -> None:
    cfg = run.Partial(train, model=run.Config(Model))
    with pytest.raises(OverrideError):
        apply_overrides(cfg, ["epochs=2", "model.layers=[Layer(), Layer(dim=x)]"])
    assert cfg == run.Partial(train, model=run.Config(Model), epochs=2)


def test_errors_of_configs_are_errors_of_overrides() -> None:
    assert not issubclass(ArgumentError, OverrideError)
    with pytest.raises(OverrideError, match="unknown argument 'sise'; did you mean 'size'"):
        apply_overrides(run.Config(Model), ["sise=3"])


# --- any command line -------------------------------------------------------------------------------------

WORDS = [
    "model", "epochs", "lr", "steps", "name", "maybe", "given", "anything", "tags", "size", "layers", "env",
    "optimizer", "betas", "llama3", "wide", "three", "usual", "few", "Model", "Layer", "os", "system",
    "getcwd", "__import__", "__class__", "__init__", "eval", "exec", "lambda", "None", "True", "1", "0", "-1",
    "1e3",
    "nan", "[", "]", "(", ")", "{", "}", "'", '"', ",", ":", ".", "=", "+=", "|=", "*=", "@", "/", "~", "\\",
    " ", "\n", "\0", "${x}", "$(id)", "`id`", ".yaml", "é", "\ud800", "lr=", "model=", "model.layers=[",
]  # fmt: skip
#: Looks like what somebody would do to get code run.
HOSTILE = [
    "os.abort()", "os.abort", "__import__('os').abort()", "eval('1')", "cli_tasks.train", "getattr",
    "{_target_: os.abort}", "Config(os.abort)", "lambda: os.abort()", "@cli_tasks.py", "(lambda: 0)()",
    "[x for x in [1]]", "1 if 2 else 3", "antigravity", "this.s", "!!python/object:os.abort",
    "${oc.env:HOME}", "cli_tasks.RAN.append(1)",
]  # fmt: skip
KEYS = [
    "model",
    "epochs",
    "lr",
    "name",
    "steps",
    "anything",
    "model.layers",
    "model.size",
    "hook",
    "maybe",
    "mode",
]


#: Fine, but for a word somewhere in it.
GOOD = [
    "model=llama3(size=7, layers=1)", "model.layers=[wide, wide(dim=1), {dim: 2}]",
    "model.env={a: b, 'c d': e}", "model.layers+=Layer(dim=2)", "steps+=[1, 2, 3]",
    "anything=[1, (2, 'x'), {3: None}]", "lr*=1e-3",
    "model.optimizer.betas[1]=0.5", "mode=SLOW", "maybe.layers=three", "tags|={a, b}", "name='a b'",
]  # fmt: skip


def command_line(chance: random.Random) -> list[str]:
    """Something that somebody, or a cat, might type."""
    kind = chance.randrange(5)
    if kind == 0:
        return ["".join(chance.choices(string.printable + "é\0\u2028", k=chance.randrange(30)))]
    if kind == 1:
        return [f"{chance.choice(KEYS)}{chance.choice(['=', '+=', '|='])}{chance.choice(HOSTILE)}"]
    if kind == 4:
        good = chance.choice(GOOD)
        at = chance.randrange(len(good))
        return [good[:at] + chance.choice(WORDS) + good[at + chance.randrange(2) :]]
    if kind == 2:
        values = (
            "".join(chance.choices(WORDS, k=chance.randrange(8))) for _ in range(chance.randrange(1, 4))
        )
        return [f"{chance.choice(KEYS)}={value}" for value in values]
    return ["".join(chance.choices(WORDS, k=chance.randrange(1, 12))) for _ in range(chance.randrange(1, 4))]


def fuzz(count: int, seed: int) -> int:
    """Read that many command lines; how many of them were taken. Only factories may have run."""
    chance = random.Random(seed)
    before, cfg = set(sys.modules), run.Partial(train, model=run.Config(Model))
    taken = 0
    for _ in range(count):
        line = command_line(chance)
        try:
            apply_overrides(copy.copy(cfg), line, FactoryReader(REGISTRY))
            taken += 1
        except OverrideError:
            pass
        assert set(cli_tasks.RAN) <= {"llama3"}, line
        cli_tasks.RAN.clear()
    assert not {name for name in set(sys.modules) - before if name in ("antigravity", "this", "turtle")}
    return taken


def test_no_command_line_raises_anything_else_or_runs_code() -> None:
    assert 100 < fuzz(2000, seed=1) < 1900


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_none_of_a_hundred_thousand_command_lines_runs_code() -> None:
    assert fuzz(100_000, seed=2) > 1000


@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=40), max_size=3))
@settings(max_examples=100, deadline=None)
def test_no_text_at_all_raises_anything_else(line: list[str]) -> None:
    for text in line:
        for key in ("", "model=", "steps+=", "anything=", "model.layers=[", "model=llama3("):
            try:
                parse_partial(train, key + text)
            except OverrideError:
                pass


# --- speed ------------------------------------------------------------------------------------------------


def test_two_hundred_overrides_on_a_thousand_nodes_take_under_5_ms_each() -> None:
    models = [run.Config(Model, layers=[run.Config(Layer) for _ in range(99)]) for _ in range(10)]
    cfg = run.Partial(many, models=models)
    overrides = [f"models[{at % 10}].layers[{at % 99}].dim={at}" for at in range(200)]
    start = time.perf_counter()
    apply_overrides(cfg, overrides, FactoryReader(REGISTRY))
    assert (time.perf_counter() - start) / 200 < 0.005
    assert cfg.models[9].layers[1].dim == 199
    assert len([1 for node, _ in fdl.daglish.iterate(cfg) if isinstance(node, fdl.Buildable)]) >= 1000
