"""Bad input: what cannot work is refused with a clear message before anything is written or started."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import user_tasks

import nemo_run as run


@pytest.fixture(autouse=True)
def nothing_is_written(home: Path) -> Iterator[None]:
    """Whatever is refused here leaves no trace."""
    yield
    assert not home.exists()


def launch(task: Any, executor: Any = None, **arguments: Any) -> None:
    """Add one job and run it."""
    with run.Experiment("bad") as experiment:
        experiment.add(task, executor, **arguments)
        experiment.run()


# --- executors ------------------------------------------------------------------------------------------


def test_an_unknown_field_in_a_config_of_an_executor_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(run.ConfigError, match="unexpected 'timout'; did you mean 'timeout'"):
        run.Config(run.LocalExecutor, timout=3)
    config = run.Config(run.LocalExecutor)
    with pytest.raises(run.ConfigError, match="LocalExecutor takes no argument 'timout'; did you mean"):
        config.timout = 3


def test_an_unknown_field_of_an_executor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"LocalExecutor.*unexpected keyword argument 'timout'"):
        run.LocalExecutor(timout=3)


def test_an_attribute_that_is_no_field_is_refused_before_it_is_lost() -> None:
    executor = run.LocalExecutor()
    executor.timout = 3
    with pytest.raises(run.ConfigError, match="LocalExecutor has no field 'timout'; did you mean 'timeout'"):
        launch(user_tasks.add, executor)


WRONG = {
    "timeout": ["5", 0, -1, True, float("nan"), float("inf"), [1]],
    "retries": [-1, "1", 1.5, None],
    "cpu_limit": [0, -1, 1.5, "2", True],
    "memory_limit": ["", "abc", "12X", "-1G", 0, -5, 1.5, [1], True],
    "working_dir": [5, "", "a\0b"],
    "python_path": [5, "", "a\0b"],
    "log_level": ["VERBOSE", "debug", 10],
    "monitor_resources": ["yes", None, 1],
    "env_vars": [None, ["A"], {"A": 1}, {"A": None}, {"A B": "x"}, {"": "x"}, {1: "x"}, {"A": "x\0"}],
    "packager": [None, "git"],
    "launcher": ["no such", 5],
    "nodes": [0, None, 1.5],
    "ntasks_per_node": [0, "x"],
    "max_parallel": [0, "2", 1.5],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_a_value_that_no_field_can_have_is_refused_wherever_it_is_given(field: str, value: Any) -> None:
    executor = run.LocalExecutor()
    setattr(executor, field, value)
    for attempt in (
        lambda: run.LocalExecutor(**{field: value}),
        lambda: launch(user_tasks.add, run.Config(run.LocalExecutor, **{field: value})),
        lambda: launch(user_tasks.add, executor),
    ):
        with pytest.raises(run.ConfigError, match=field):
            attempt()


def test_a_value_that_is_spoiled_after_add_is_refused_by_run() -> None:
    with run.Experiment("bad") as experiment:
        experiment.add(user_tasks.add)
        experiment.jobs[0].executors[0].timeout = -1
        with pytest.raises(run.ConfigError, match=r"LocalExecutor\.timeout is -1"):
            experiment.run()


@pytest.mark.parametrize("value", [b"hunter2", "hunter2\0", ["hunter2"]], ids=["bytes", "NUL", "list"])
def test_a_message_about_the_environment_never_shows_a_value(value: Any) -> None:
    for attempt in (
        lambda: run.LocalExecutor(env_vars={"PASSWORD": value}),
        lambda: launch(run.Script(inline="true", env={"PASSWORD": value})),
    ):
        with pytest.raises(run.ConfigError, match="PASSWORD") as caught:
            attempt()
        assert "hunter2" not in str(caught.value)


def test_an_executor_whose_constructor_forgets_ours_is_refused_with_what_to_call() -> None:
    class Forgetful(run.Executor):
        def __init__(self) -> None:
            self.mine = 1

    with pytest.raises(run.ConfigError, match=r"its __init__ must call super\(\)\.__init__"):
        launch(user_tasks.add, Forgetful())


def test_members_of_a_group_cannot_differ_in_what_holds_for_all() -> None:
    executors = [run.LocalExecutor(timeout=1), run.LocalExecutor(timeout=2)]
    with pytest.raises(run.UnsupportedError, match="differ in 'timeout'"):
        launch([user_tasks.add, user_tasks.add], executors)


@pytest.mark.parametrize("executor", ["local", run.LocalExecutor, run.Config(user_tasks.Model)], ids=repr)
def test_what_is_no_executor_is_refused(executor: Any) -> None:
    with pytest.raises(run.ConfigError, match=r"give one such as run\.LocalExecutor\(\)"):
        launch(user_tasks.add, executor)
    with pytest.raises(run.ConfigError, match="executor is"):
        run.run(user_tasks.add, executor=executor)


# --- tasks ----------------------------------------------------------------------------------------------


def local_function() -> Any:
    def inner() -> None:
        pass

    return inner


class Callable:
    def __call__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (lambda: 1, "cannot run '<lambda>' as a task"),
        (local_function(), r"local_function\.<locals>\.inner"),
        (run.Partial(lambda: 1), "a lambda, which has no name"),
        (run.Partial(local_function()), "exists only inside a function"),
        ([].append, "importing that leads elsewhere or nowhere"),
        (functools.partial(user_tasks.add, 1), "importing that leads elsewhere or nowhere"),
        (Callable(), "importing that leads elsewhere or nowhere"),
        (5, "cannot run int 5; give a function"),
        ("train.py", "cannot run str 'train.py'; give a function"),
        (None, "cannot run NoneType None"),
        ([[user_tasks.add]], "cannot run list"),
        ([], "a group needs at least one task"),
    ],
)
def test_what_another_process_cannot_call_is_refused(task: Any, message: str) -> None:
    with pytest.raises(run.ConfigError, match=message):
        launch(task)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([1, {"layers": [print, lambda x: x]}], "value[1]['layers'][1]"),
        ({"file": sys.__stdout__}, "value['file']"),
        (run.Config(user_tasks.Model, size=local_function()), "value.size"),
        ((1, object()), "value[1]"),
        ({object(): 1}, "value"),
        ((n for n in range(3)), "value"),
    ],
    ids=["lambda", "file", "in a config", "object", "key", "generator"],
)
def test_an_argument_that_cannot_be_written_down_is_refused_with_its_path(value: Any, path: str) -> None:
    experiment = run.Experiment("bad")
    task = run.Partial(user_tasks.give, value=value)
    with pytest.raises(run.SerializationError) as caught:
        experiment.add(task)
    assert caught.value.path.startswith(path)
    assert path in str(caught.value)
    assert experiment.jobs == []


def test_an_argument_that_a_task_does_not_take_is_refused() -> None:
    with pytest.raises(run.ConfigError, match="unexpected 'epocks'"):
        run.Partial(user_tasks.add, epocks=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs a path or an inline program"),
        ({"path": "a.sh", "args": "a b"}, "args are a list of words"),
        ({"path": "a.sh", "args": None}, "args are a list of words"),
        ({"path": "a.sh", "args": ["a", run.Secret("TOKEN")]}, "hand a Secret over in its env"),
        ({"path": "a.sh", "entrypoint": "bash '"}, "is no command: No closing quotation"),
        ({"path": "a", "m": True}, "m=True needs entrypoint='python', not 'bash'"),
        ({"inline": "echo \0"}, "inline program holds a NUL"),
    ],
    ids=["nothing", "args text", "args None", "secret", "entrypoint", "module", "NUL"],
)
def test_a_script_that_cannot_work_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(run.ConfigError, match=message):
        run.Script(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "missing.sh"}, r"script 'missing\.sh' is not there \(.*; give its path from"),
        ({"path": __file__, "args": ["a\0b"]}, r"cannot be given 'a\\x00b': an argument"),
        ({"path": __file__, "args": ["\ud800"]}, "a lone surrogate"),
        ({"path": __file__, "env": {"A": "a\0b"}}, r"\['A'\] holds a NUL"),
        ({"path": __file__, "env": {"A": "\ud800"}}, "cannot be given A: .* a lone surrogate"),
        ({"path": __file__, "env": {"A": 1}}, r"\['A'\] is of type int"),
        ({"path": __file__, "env": {"A-B": "x"}}, "'A-B' is not a name of an environment variable"),
    ],
    ids=["missing", "NUL", "surrogate", "NUL in env", "surrogate in env", "number in env", "name in env"],
)
def test_a_script_that_cannot_be_started_is_refused_by_run(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(run.ConfigError, match=message):
        launch(run.Script(**arguments))


@pytest.mark.parametrize("plugin", ["x", run.Plugin, [run.Plugin(), 3]], ids=repr)
def test_what_is_no_plugin_is_refused(plugin: Any) -> None:
    with pytest.raises(run.ConfigError, match=r"give an instance of a subclass of run\.Plugin"):
        launch(user_tasks.add, plugins=plugin)


# --- secrets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (run.Secret("NOT_SET_ANYWHERE"), "'NOT_SET_ANYWHERE' is not in the environment. Run `export"),
        (run.Secret(file="/no/such/file"), "'/no/such/file' cannot be read: No such file"),
    ],
    ids=["variable", "file"],
)
def test_a_secret_without_a_value_is_refused_before_anything_starts(secret: run.Secret, message: str) -> None:
    for task, executor in (
        (user_tasks.add, run.LocalExecutor(env_vars={"TOKEN": secret})),
        (run.Script(inline="true", env={"TOKEN": secret}), None),
        (run.Partial(user_tasks.give, value={"token": [secret]}), None),
    ):
        with pytest.raises(run.ConfigError, match=message):
            launch(task, executor)


# --- experiments ----------------------------------------------------------------------------------------


def test_an_unknown_dependency_is_refused_with_the_nearest_name() -> None:
    experiment = run.Experiment("bad")
    experiment.add(user_tasks.add, name="train")
    with pytest.raises(run.ConfigError, match="no job 'trian'; did you mean 'train'"):
        experiment.add(user_tasks.add, dependencies=["trian"])
    with pytest.raises(run.ConfigError, match="dependencies is the text 'train'; give a list"):
        experiment.add(user_tasks.add, dependencies="train")  # type: ignore[arg-type]
    assert [job.id for job in experiment.jobs] == ["train"]


def test_dependencies_that_are_spoiled_after_add_are_refused_by_run() -> None:
    with run.Experiment("bad") as experiment:
        experiment.add(user_tasks.add, name="a")
        experiment.add(user_tasks.add, name="b", dependencies=["a"])
        experiment.jobs[0].dependencies.append("b")
        with pytest.raises(run.ConfigError, match=r"in a circle: (a → b → a|b → a → b)"):
            experiment.run()
        experiment.jobs[0].dependencies = ["a"]
        with pytest.raises(run.ConfigError, match="in a circle: a → a"):
            experiment.run()
        experiment.jobs[0].dependencies = ["c"]
        with pytest.raises(run.ConfigError, match="job 'a' depends on 'c', which is no job"):
            experiment.run()


@pytest.mark.parametrize("title", ["", None])
def test_an_experiment_without_a_title_is_refused(title: Any) -> None:
    with pytest.raises(run.ConfigError, match="needs a title"):
        run.Experiment(title)


def test_titles_and_names_are_texts() -> None:
    with pytest.raises(run.ConfigError, match="title is a text, not 5"):
        run.Experiment(5)  # type: ignore[arg-type]
    with pytest.raises(run.ConfigError, match="name is a text, not 5"):
        launch(user_tasks.add, name=5)


@pytest.mark.parametrize("given", ["other_1", "bad", "bad_", "bad_/../x", "bad_\n"])
def test_an_id_under_which_nobody_would_find_the_experiment_is_refused(given: str) -> None:
    with pytest.raises(run.ConfigError, match="give bad_<something>"):
        run.Experiment("bad", id=given)


class TestIdsThatAreTaken:
    """These leave a trace: the experiment that has the id."""

    @pytest.fixture(autouse=True)
    def nothing_is_written(self) -> None:
        """Not here."""

    def test_an_id_that_is_taken_is_refused_and_the_other_experiment_is_untouched(self, home: Path) -> None:
        for attempt in (1, 2):
            experiment = run.Experiment("taken", id="taken_1", clean_mode=True)
            experiment.add(run.Partial(user_tasks.give, value=attempt), name="job")
            if attempt == 1:
                experiment.run()
            else:
                with pytest.raises(run.ConfigError, match="there is an experiment 'taken_1' already"):
                    experiment.run()
        assert run.Experiment.catalog() == ["taken_1"]
        assert run.Experiment.from_id("taken_1").results() == {"job": 1}
        assert [path.name for path in (home / "experiments" / "taken").iterdir()] == ["taken_1"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            run.Partial(user_tasks.needs_model),
            "needs_model cannot be called: missing a required argument: 'model'",
        ),
        (
            run.Partial(user_tasks.needs_model, model=run.Config(user_tasks.NeedsSize)),
            r"NeedsSize cannot be called \(at model\): missing a required argument: 'size'",
        ),
    ],
)
def test_a_missing_argument_is_found_before_anything_starts(home: Path, task: Any, message: str) -> None:
    with pytest.raises(run.ConfigError, match=message):
        run.Experiment("incomplete", task=task).run()
