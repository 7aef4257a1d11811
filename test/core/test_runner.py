"""The process on the node: what it makes of a tree, and what it writes down of a task."""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tasks
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_run.core import runner
from nemo_run.run.results import PickledValue, UnpicklableValue, read_outcome

RUNNER = runner.__file__
PATHS = os.pathsep.join([str(Path(tasks.__file__).parent)])


def run(tree: Any, job_dir: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A task in a process of its own, as an executor starts it."""
    (job_dir / "task.json").write_text(json.dumps({"job": tree}))
    argv = [sys.executable, RUNNER, str(job_dir), "job"]
    environment = {**os.environ, "PYTHONPATH": PATHS, **env}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, cwd=job_dir)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """The tree of a call of one of our tasks."""
    return {"_target_": f"tasks.{name}", "_partial_": True, **arguments}


class TestSecrets:
    @pytest.mark.parametrize(
        "size", [3, {"_buildable_": "fiddle.ArgFactory", "_target_": "builtins.int", "_args_": [3]}]
    )
    def test_a_secret_arrives_as_text_and_children_do_not_inherit_it(self, tmp_path: Path, size: Any) -> None:
        token = {"_secret_": {"id": "TOKEN", "name": "TOKEN"}}
        tree = call("secret_and_environment", token=token, size=size)
        done = run(tree, tmp_path, NEMORUN_SECRET_TOKEN="swordfish")
        assert done.returncode == 0, done.stderr
        assert read_outcome(tmp_path, "job").value == ("swordfish", 3, [])


class TestOutcome:
    @pytest.mark.parametrize("kind", ["json", "tuple", "keys", "float"])
    def test_plain_values_are_json_and_come_back_the_same(self, tmp_path: Path, kind: str) -> None:
        assert run(call("value_of", kind=kind), tmp_path).returncode == 0
        value, expected = read_outcome(tmp_path, "job").value, tasks.value_of(kind)
        assert value == expected
        assert repr(value) == repr(expected)
        assert [path.name for path in (tmp_path / "results").iterdir()] == ["job_0.json"]

    def test_other_values_are_pickled_and_loaded_only_on_request(self, tmp_path: Path) -> None:
        assert run(call("value_of", kind="pickled"), tmp_path).returncode == 0
        value = read_outcome(tmp_path, "job").value
        assert isinstance(value, PickledValue)
        assert (value.type, value.load()) == ("builtins.set", {1, 2, 3})

    @pytest.mark.parametrize(("kind", "type_"), [("unpicklable", "builtins.generator"), ("shy", "tasks.Shy")])
    def test_a_value_that_cannot_be_kept_is_no_failure(self, tmp_path: Path, kind: str, type_: str) -> None:
        assert run(call("value_of", kind=kind), tmp_path).returncode == 0
        value = read_outcome(tmp_path, "job").value
        assert isinstance(value, UnpicklableValue)
        assert value.type.endswith(type_)
        assert value.reason
        assert value.repr.startswith("<")

    def test_records_are_their_owners_alone(self, tmp_path: Path) -> None:
        run(call("value_of", kind="pickled"), tmp_path)
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "results").iterdir()}
        assert modes == {"job_0.json": 0o600, "job_0.pkl": 0o600}
        assert (tmp_path / "results").stat().st_mode & 0o777 == 0o700

    def test_an_error_is_recorded_and_printed_without_our_frames(self, tmp_path: Path) -> None:
        done = run(call("fail", message="no luck"), tmp_path)
        assert done.returncode == 1
        outcome = read_outcome(tmp_path, "job")
        assert outcome.error
        assert (outcome.error["type"], outcome.error["message"]) == ("ValueError", "no luck")
        assert outcome.error["traceback"] == done.stderr
        assert "runner.py" not in done.stderr
        assert "raise ValueError(message)" in done.stderr

    @pytest.mark.parametrize(("code", "exit_code"), [(None, 0), (0, 0), (3, 3), ("why", 1)])
    def test_leaving_is_recorded_with_its_code(self, tmp_path: Path, code: Any, exit_code: int) -> None:
        done = run(call("leave", code=code), tmp_path)
        assert done.returncode == exit_code
        outcome = read_outcome(tmp_path, "job")
        assert outcome.recorded
        assert (outcome.error or {}).get("type") == ("SystemExit" if exit_code else None)
        assert done.stderr.strip() == ("why" if code == "why" else "")

    def test_each_replica_and_attempt_has_its_own(self, tmp_path: Path) -> None:
        run(call("double", number=1), tmp_path)
        run(call("double", number=2), tmp_path, NEMORUN_ATTEMPT="2")
        run(call("double", number=3), tmp_path, NEMORUN_REPLICA="1")
        found = [
            read_outcome(tmp_path, "job", attempt, replica).value
            for attempt, replica in ((1, 0), (2, 0), (1, 1))
        ]
        assert found == [2, 4, 6]
        assert not read_outcome(tmp_path, "job", attempt=3).recorded

    def test_nothing_is_left_of_the_writing(self, tmp_path: Path) -> None:
        runner.write(str(tmp_path / "a"), "first")
        runner.write(str(tmp_path / "a"), b"second\xff", sync=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"second\xff"}
        (tmp_path / "folder").mkdir()
        with pytest.raises(OSError, match="directory"):
            runner.write(str(tmp_path / "folder"), "x")


class TestCall:
    def test_a_task_sees_neither_our_folder_nor_our_arguments(self, tmp_path: Path) -> None:
        run(call("interpreter"), tmp_path)
        value = read_outcome(tmp_path, "job").value
        assert value["argv"] == [RUNNER]
        assert str(Path(RUNNER).parent) not in value["path"]

    def test_a_config_is_built_and_a_partial_called(self, tmp_path: Path) -> None:
        tree = {"_target_": "builtins.dict", "a": {"_target_": "tasks.double", "number": 4}}
        for partial in (False, True):
            run({**tree, "_partial_": partial}, tmp_path)
            assert read_outcome(tmp_path, "job").value == {"a": 8}

    def test_what_is_shared_is_built_once(self) -> None:
        shared = {"_target_": "builtins.list", "_id_": 1}
        built = runner.build([shared, {"_ref_": 1}, {"_target_": "builtins.list"}])
        assert built[0] is built[1]
        assert built[0] is not built[2]

    def test_an_error_while_building_says_where(self, tmp_path: Path) -> None:
        inner = {"_target_": "tasks.fail", "message": "no luck"}
        done = run(call("same", value={"_target_": "builtins.dict", "deep": [inner]}), tmp_path)
        assert "ValueError: no luck" in done.stderr
        if sys.version_info >= (3, 11):
            assert "while building the task's argument 'value.deep[0]'" in done.stderr

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nowhere_at_all.f", "No module named 'nowhere_at_all'"),
            ("tasks.nothing", "has no attribute 'nothing'"),
            ("needs_another.f", "No module named 'not_there_either'"),
        ],
    )
    def test_a_name_that_cannot_be_found_says_what_is_missing(
        self, tmp_path: Path, name: str, message: str
    ) -> None:
        (tmp_path / "needs_another.py").write_text("import not_there_either\ndef f(): ...\n")
        path = os.pathsep.join([PATHS, str(tmp_path)])
        done = run({"_target_": name, "_partial_": True}, tmp_path, PYTHONPATH=path)
        assert done.returncode == 1
        assert message in done.stderr
        assert message in (read_outcome(tmp_path, "job").error or {})["message"]

    def test_a_secret_that_was_not_handed_over_says_so(self, tmp_path: Path) -> None:
        tree = call("same", value={"_secret_": {"id": "TOKEN", "name": "TOKEN"}})
        assert "the secret 'TOKEN' was not handed to this process" in run(tree, tmp_path).stderr
        assert run(tree, tmp_path, NEMORUN_SECRET_TOKEN="x").returncode == 0

    def test_definitions_of_the_launching_script_are_main(self, tmp_path: Path) -> None:
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs/main.py").write_text(
            "import pickle\nclass Thing: ...\n"
            "def f():\n    return pickle.dumps(Thing()), __name__, __file__\n"
        )
        assert run({"_target_": "__main__.f", "_partial_": True}, tmp_path).returncode == 0
        value = read_outcome(tmp_path, "job").value
        dumped, name, file = value.load()
        assert (name, file) == ("__main__", str(tmp_path / "configs/main.py"))
        assert b"__main__" in dumped

    def test_it_runs_without_anything_installed(self, tmp_path: Path) -> None:
        """`-S` leaves out site-packages, `-E` the environment, `-X importtime` tells what is imported."""
        (tmp_path / "task.json").write_text(json.dumps({"job": {"_target_": "os.getcwd", "_partial_": True}}))
        argv = [sys.executable, "-E", "-S", "-X", "importtime", RUNNER, str(tmp_path), "job"]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
        assert read_outcome(tmp_path, "job").value == str(tmp_path)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "json" in imported
        assert not {"typing", "logging", "dataclasses", "nemo_run", "fiddle", "torchx"} & imported

    def test_the_oldest_python_it_promises_can_read_it(self) -> None:
        import ast

        source = Path(RUNNER).read_text()
        ast.parse(source, feature_version=(3, 8))
        assert "3.8 or newer" in source


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans(), inner)
    ),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    """Equality that tells 1 from True and 1.0, and finds that NaN is NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (left == right and math.copysign(1, left) == math.copysign(1, right)) or (
            left != left and right != right
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    return bool(left == right)


@settings(deadline=None)
@given(PLAIN)
def test_a_value_written_as_json_is_read_as_itself(value: Any) -> None:
    assert same(runner.unplain(json.loads(json.dumps(runner.plain(value)))), value)


@given(st.sets(st.integers()) | st.binary() | st.builds(Path) | st.complex_numbers())
def test_a_value_that_json_does_not_hold_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        runner.plain(value)
    pickle.dumps(value)


def test_reading_a_record_makes_no_object_of_a_named_class() -> None:
    tree = {"_target_": "os.system", "command": "false", "_instance_": "tasks.Shy"}
    assert runner.unplain(tree) == tree


def test_the_names_a_tree_uses_of_a_module_are_found() -> None:
    tree = {
        "_target_": "__main__.Model.build",
        "a": [{"_enum_": "__main__.Color", "name": "RED"}, {"_target_": "os.path"}],
        "b": {"text": "__main__.not_a_name"},
    }
    assert runner.mentioned_names(tree) == {"Model", "Color"}
