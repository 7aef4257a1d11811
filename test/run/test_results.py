"""Results: what tasks return comes back as it was, or says why it cannot."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import user_tasks
from programs import python, succeeded, write

import nemo_run as run
from nemo_run.run.results import read_outcome

pytestmark = pytest.mark.usefixtures("home")


def returned(task: Any) -> run.Experiment:
    """An experiment whose one job has run this task."""
    with run.Experiment("values", clean_mode=True) as experiment:
        experiment.add(task, name="job")
        experiment.run()
    return experiment


def record(experiment: run.Experiment) -> Path:
    return experiment.path / "job" / "results" / "job_0.json"


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**70),
        0.1,
        float("inf"),
        "",
        "line\nline\x00\x1b[31m é 💥",
        [],
        {},
        (),
        (1,),
        {"a": [1, (2, {"b": None})]},
        {1: "a", None: "b", (1, 2): "c"},
        {"_target_": "os.system", "_tuple_": [1]},
        b"\x00\xff",
        {1, 2},
    ],
    ids=repr,
)
def test_a_value_comes_back_as_exactly_what_it_was(value: Any) -> None:
    got = returned(run.Partial(user_tasks.give, value=value)).result("job")
    assert got == value
    assert type(got) is type(value)


def test_nan_and_tuples_and_odd_keys_come_back_inside_of_others() -> None:
    got = returned(user_tasks.give_odd).result("job")
    assert math.isnan(got.pop("nan"))
    assert got == {"inf": float("-inf"), "pair": (1, [2, (3,)]), "keys": {(1, 2): "a", 3: None}}


def test_an_object_comes_back_as_one_and_is_a_pickle_only_its_owner_can_read() -> None:
    experiment = returned(user_tasks.give_model)
    assert experiment.results() == {"job": user_tasks.Model(7)}
    pickled = record(experiment).with_suffix(".pkl")
    assert pickled.stat().st_mode & 0o777 == 0o600


def test_a_pickle_is_not_loaded_until_asked_for() -> None:
    experiment = returned(user_tasks.give_model)
    value = read_outcome(experiment.path / "job", "job").value
    assert isinstance(value, run.PickledValue)
    assert value.type == "user_tasks.Model"
    assert value.load() == user_tasks.Model(7)


def test_a_value_that_cannot_leave_its_process_says_so_and_the_job_has_succeeded() -> None:
    experiment = returned(user_tasks.give_unpicklable)
    value = experiment.result("job")
    assert value == run.UnpicklableValue(
        type="user_tasks.Unpicklable",
        reason="TypeError: it holds an open connection",
        repr="<Unpicklable>",
    )


def test_a_pickle_that_cannot_be_loaded_here_says_what_to_do() -> None:
    experiment = returned(user_tasks.give_model)
    record(experiment).with_suffix(".pkl").write_bytes(b"cnowhere\nThing\n.")
    with pytest.raises(
        run.StoreError, match=r"cannot load the value of type user_tasks\.Model .* Load it where"
    ):
        experiment.result("job")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")
def test_a_pickle_of_somebody_else_is_not_loaded() -> None:
    experiment = returned(user_tasks.give_model)
    os.chown(record(experiment).with_suffix(".pkl"), 12345, -1)
    with pytest.raises(run.StoreError, match="belongs to user id 12345; pickles of others are not loaded"):
        experiment.result("job")


@pytest.mark.parametrize("text", ["", "{", '{"value"', "[]", "null", "{}"])
def test_a_record_that_is_damaged_is_an_error_that_names_it(text: str) -> None:
    experiment = returned(user_tasks.add)
    record(experiment).write_text(text)
    with pytest.raises(run.StoreError, match=r"cannot read .*job_0\.json"):
        experiment.result("job")


def test_a_task_without_a_record_has_no_value() -> None:
    experiment = returned(run.Script(inline="true"))
    assert experiment.results() == {"job": None}


def test_sys_exit_without_a_code_is_success_without_a_value() -> None:
    assert returned(run.Partial(user_tasks.leave, code=0)).results() == {"job": None}


def test_a_group_has_a_value_for_each_member() -> None:
    tasks = [run.Partial(user_tasks.add, a=n) for n in (1, 10)]
    assert returned([*tasks, user_tasks.give_model]).results() == {
        "job": {"add": 3, "add_1": 12, "give_model": user_tasks.Model(7)}
    }


def test_results_hold_only_what_has_succeeded() -> None:
    with run.Experiment("values", raise_on_failure=False) as experiment:
        experiment.add(user_tasks.fail, name="bad")
        experiment.add(user_tasks.add, name="good")
        experiment.run()
    assert experiment.results() == {"good": 3}
    with pytest.raises(run.JobFailedError, match="ValueError: no such data set"):
        experiment.result("bad")
    with pytest.raises(run.NotFoundError, match="no job 'god'; did you mean 'good'"):
        experiment.result("god")


def test_a_job_that_is_still_running_has_no_value_yet(tmp_path: Path) -> None:
    with run.Experiment("values") as experiment:
        experiment.add(run.Partial(user_tasks.wait_for, path=str(tmp_path / "gate")), name="job")
        experiment.run(detach=True)
    with pytest.raises(run.NotFoundError, match="no value yet of job 'job'"):
        experiment.result("job")
    assert experiment.results() == {}
    (tmp_path / "gate").touch()
    assert experiment.wait() == {"job": "gate"}


def test_the_value_is_that_of_the_attempt_that_succeeded(tmp_path: Path) -> None:
    """The first two attempts fail, each with a log and a result of its own."""
    script = write(
        tmp_path / "script.py",
        f"""
        import nemo_run as run
        import user_tasks

        def train():
            attempt = user_tasks.add_line({str(tmp_path / "attempts")!r})
            print("attempt", attempt)
            if attempt < 3:
                raise RuntimeError(f"attempt {{attempt}}")
            return attempt

        if __name__ == "__main__":
            print("value", run.run(train, run.LocalExecutor(retries=2), name="retried"))
        """,
    )
    done = python(script, env={"PYTHONPATH": str(Path(user_tasks.__file__).parent)})
    assert "value 3\n" in succeeded(done).stdout
    job = run.Experiment.from_title("retried").path / "retried"
    stems = ["retried_0", "retried_0.attempt2", "retried_0.attempt3"]
    assert sorted(path.stem for path in (job / "logs").iterdir()) == stems
    assert sorted(path.stem for path in (job / "results").iterdir()) == stems


def test_an_object_of_a_class_of_the_launching_script_can_be_loaded_from_another(tmp_path: Path) -> None:
    script = write(
        tmp_path / "script.py",
        """
        import dataclasses
        import nemo_run as run

        @dataclasses.dataclass
        class Model:
            size: int

            def double(self):
                return scale(self.size)

        def scale(size):
            return 2 * size

        def train():
            return Model(3)

        if __name__ == "__main__":
            run.run(train, run.LocalExecutor(), name="model")
        """,
    )
    succeeded(python(script))
    model = run.Experiment.from_title("model").result("model")
    assert type(model).__name__ == "Model"
    assert model.double() == 6


def test_a_function_made_inside_of_the_task_comes_back_too(tmp_path: Path) -> None:
    script = write(
        tmp_path / "script.py",
        """
        import nemo_run as run

        def train(by):
            return lambda x: by * x

        print("value", run.run(run.Partial(train, by=3), run.LocalExecutor())(5))
        """,
    )
    assert "value 15\n" in succeeded(python(script)).stdout
