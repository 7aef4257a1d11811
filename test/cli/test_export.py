"""A config written as YAML, TOML or JSON is read back equal; what cannot be read is refused in words."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import cli_tasks
import pytest
import samples
from cli_tasks import Layer, Mode, Model, Optimizer, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_configs import TEXTS, Shared, is_text, strict

import nemo_run as run
from nemo_run.cli.export import dump, export, from_data, load, read_data, split_section
from nemo_run.cli.formats import parse_data
from nemo_run.core.serialization import to_tree
from nemo_run.errors import ConfigError, OverrideError, SerializationError

KINDS = ("yaml", "toml", "json")

SHARED = run.Config(Optimizer, lr=0.5)
TWICE = [7, run.Config(Layer)]
TASK = run.Partial(
    train,
    model=run.Config(
        Model, size=3, layers=[run.Config(Layer, dim=1)], optimizer=SHARED, env={"A b": "on", "C": "1"}
    ),
    maybe=run.Config(Model, optimizer=SHARED, spare=None),
    mode=Mode.SLOW,
    out=Path("a b"),
    lr=math.inf,
    steps=TWICE,
    unknown=[TWICE],
    anything=[None, (1, None), {2: "x"}, b"\xff", {"": []}, "\udcff", {}],
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_is_exported_and_read_back_equal(kind: str, tmp_path: Path) -> None:
    path = export(TASK, f"{tmp_path}/task.{kind}")
    assert strict(load(str(path))) == strict(TASK)
    back = load(str(path))
    assert back.model.optimizer is back.maybe.optimizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("section", "part"),
    [("model", TASK.model), ("model.layers[0]", TASK.model.layers[0]), ("model.layers", TASK.model.layers),
     ("maybe.optimizer", SHARED), ("model.env['A b']", "on"), ("lr", math.inf), ("maybe.spare", None),
     ("maybe.optimizer.lr", 0.5), ("anything[1][0]", 1), ("anything[2][2]", "x"), ("steps[0]", 7),
     ("unknown[0][1]", run.Config(Layer))],
)  # fmt: skip
def test_a_section_is_exported_and_a_section_is_read(
    kind: str, section: str, part: Any, tmp_path: Path
) -> None:
    export(TASK, f"{tmp_path}/part.{kind}:{section}")
    assert strict(load(f"{tmp_path}/part.{kind}")) == strict(part)
    export(TASK, f"{tmp_path}/whole.{kind}")
    assert strict(load(f"{tmp_path}/whole.{kind}:{section}")) == strict(part)


@given(st.one_of(Shared.config(), TEXTS.filter(is_text), st.none(), st.lists(st.none() | st.integers())))
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_configs_are_read_back_equal(cfg: Any) -> None:
    for kind in KINDS:
        text = dump(cfg, kind)
        assert strict(from_data(parse_data(text.encode().decode(), kind))) == strict(cfg)


@given(
    st.recursive(
        st.none() | st.integers() | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)
    )
)
@settings(max_examples=150, deadline=None)
def test_any_tree_survives_as_toml(tree: Any) -> None:
    text = dump(tree, "toml") if not _has_pair(tree) else dump("x", "toml")
    back = parse_data(text, "toml")
    assert json.dumps(back) == json.dumps(to_tree(tree) if not _has_pair(tree) else "x")


def _has_pair(tree: Any) -> bool:
    """Whether a text in it is none that JSON could hold."""
    try:
        to_tree(tree)
    except SerializationError:
        return True
    return False


def test_exports_can_be_read_by_people() -> None:
    cfg = run.Partial(
        train, model=run.Config(Model, size=3, optimizer=run.Config(Optimizer)), epochs=2, out=None
    )
    assert dump(cfg, "toml") == (
        '_target_ = "cli_tasks.train"\n_partial_ = true\n'
        'model = {_target_ = "cli_tasks.Model", size = 3, optimizer = {_target_ = "cli_tasks.Optimizer"}}\n'
        'epochs = 2\nout = {_json_ = "null"}\n'
    )
    assert dump(cfg.model, "toml") == (
        '_target_ = "cli_tasks.Model"\nsize = 3\n\n[optimizer]\n_target_ = "cli_tasks.Optimizer"\n'
    )
    assert dump(cfg.model, "yaml") == (
        "_target_: cli_tasks.Model\nsize: 3\noptimizer:\n  _target_: cli_tasks.Optimizer\n"
    )


def test_what_another_toml_reader_sees_is_the_same(tmp_path: Path) -> None:
    tomllib = pytest.importorskip("tomllib")
    assert tomllib.loads(dump(TASK.model, "toml"))["layers"] == [{"_target_": "cli_tasks.Layer", "dim": 1}]


SCRIPT = """
import sys
from dataclasses import dataclass

import nemo_run as run
from nemo_run.cli.export import export, load


@dataclass
class Net:
    size: int = 1


def train(net: Net, epochs: int = 1):
    pass


if __name__ == "__main__":
    task = run.Partial(train, net=run.Config(Net, size=3))
    if sys.argv[1] == "write":
        export(task, sys.argv[2])
    assert load(sys.argv[2]) == task
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_script_reads_what_it_exported_in_another_run(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for deed in ("write", "read"):
        subprocess.run([sys.executable, script, deed, f"{tmp_path}/x.{kind}"], check=True)


# --- what people write ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: on\nb: yes\nc: 12:30:00", {"a": "on", "b": "yes", "c": "12:30:00"}),
        ("d: 2026-01-01\ne: 010", {"d": "2026-01-01", "e": "010"}),
        ("a: true\nb: 0x10\nc: 1_000\nd: .5", {"a": True, "b": 16, "c": 1000, "d": 0.5}),
        ("e: ~\nf:\ng: 1e3\n", {"e": None, "f": None, "g": "1e3"}),
        ("a: .inf\n", {"a": {"_float_": "inf"}}),
        ("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n", {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}),
        ("1: a\n", {"1": "a"}),
        ("", None),
    ],
)  # fmt: skip
def test_yaml_is_read_without_surprises(text: str, data: Any) -> None:
    assert parse_data(text, "yaml") == data


def test_a_section_follows_the_last_colon_of_a_file(tmp_path: Path) -> None:
    assert split_section("a.yaml") == (Path("a.yaml"), "")
    assert split_section("a.yaml:b.c[0]") == (Path("a.yaml"), "b.c[0]")
    assert split_section("a:b.yaml") == (Path("a:b.yaml"), "")
    assert split_section("/a:b/c.toml:d") == (Path("/a:b/c.toml"), "d")
    odd = tmp_path / "a.yaml:b.yaml"
    odd.write_text("c: 1")
    assert read_data(str(odd)) == {"c": 1}
    assert read_data(f"{odd}:c") == 1


# --- what is refused --------------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = [
    ("x.yaml", "a: [1", "is not YAML"),
    ("x.yaml", "a: &a [*a]", "nested too deep"),
    ("x.yaml", BOMB, "holds more than 1,000,000 values"),
    ("x.yaml", "a: !!python/object/apply:os.abort []", "is not YAML"),
    ("x.yaml", "[" * 5000, "nested too deep"),
    ("x.json", "{", "is not JSON"),
    ("x.json", "[" * 100000, "nested too deep"),
    ("x.json", "9" * 5000, "is not JSON"),
    ("x.toml", "a = ", "is not TOML"),
    ("x.toml", "a = {_json_ = 'x'}", "is not TOML"),
    ("x.txt", "a", "is no YAML, TOML or JSON file by its name"),
    ("x.yaml", b"\xff", "cannot read"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_file_that_cannot_be_read_is_refused(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(OverrideError, match=message):
        read_data(str(path))


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    export(TASK, f"{tmp_path}/task.yaml")
    with pytest.raises(OverrideError, match=r"there is no file .*; did you mean 'task\.yaml'\?"):
        read_data(f"{tmp_path}/tsak.yaml")
    with pytest.raises(OverrideError, match="no section 'modle'; did you mean 'mode' or 'model'"):
        read_data(f"{tmp_path}/task.yaml:modle")
    with pytest.raises(OverrideError, match=r"no section 'model.layers\[7\]': there is no '7' in it"):
        export(TASK, f"{tmp_path}/part.yaml:model.layers[7]")
    with pytest.raises(OverrideError, match="cannot read"):
        read_data(f"{tmp_path}/\0.yaml")
    for folder in ("no/such", "x" * 300):
        with pytest.raises(ConfigError, match="cannot write"):
            export(TASK, f"{tmp_path}/{folder}/x.yaml")
        with pytest.raises(OverrideError):
            read_data(f"{tmp_path}/{folder}/x.yaml:a")


NAMEDTUPLE = {"_namedtuple_": "cli_tasks.RAN.append", "values": ["called"]}


@pytest.mark.parametrize(
    "data",
    [
        NAMEDTUPLE,
        {"_buildable_": "cli_tasks.RAN.append", "_target_": "cli_tasks.Model"},
        {"_enum_": "cli_tasks.RAN", "name": 0},
        {"_instance_": "cli_tasks.train", "state": {}},
        {"_instance_": "samples.OwnInit", "state": {"holds": {"_target_": "cli_tasks.Model"}}},
        {"_target_": "cli_tasks.Model", "size": NAMEDTUPLE},
        {"_target_": "no.such.module"},
        {"_target_": 3},
        {"_target_": "cli_tasks.Model", "_args_": 3},
        {"_target_": "cli_tasks.Model", "_tags_": {"size": ["cli_tasks.RAN.append"]}},
        {"_ref_": 7},
        {"_bytes_": 3},
        {"_float_": []},
        {"_dict_": [[[], 1]]},
    ],
)
def test_nothing_that_a_file_names_is_called(data: Any) -> None:
    cli_tasks.RAN.clear()
    with pytest.raises(OverrideError, match=r"this is not the description of a config|would be built"):
        from_data(data)
    assert cli_tasks.RAN == []


def test_configs_of_a_file_are_described_and_not_made() -> None:
    cli_tasks.RAN.clear()
    assert from_data({"_target_": "cli_tasks.llama3", "size": 3}) == run.Config(cli_tasks.llama3, size=3)
    assert from_data({"_target_": "os.abort"}) == run.Config(os.abort)
    assert cli_tasks.RAN == []


def test_what_cannot_be_written_is_told_with_its_place(tmp_path: Path) -> None:
    task = run.Partial(train, model=run.Config(Model, size=lambda: 3))
    with pytest.raises(SerializationError, match="model"):
        export(task, f"{tmp_path}/x.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_for_whom_the_umask_says(tmp_path: Path) -> None:
    path = export(run.Config(samples.Model), f"{tmp_path}/x.json")
    beside = tmp_path / "beside"
    beside.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(beside.stat().st_mode)
