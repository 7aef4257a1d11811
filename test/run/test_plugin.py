"""Plugins: change a task and its executor as they are added, and are remembered with the job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import user_tasks
from user_tasks import SetArgument

import nemo_run as run
from nemo_run.run.plugin import ExperimentPlugin

pytestmark = pytest.mark.usefixtures("home")


@dataclass(kw_only=True)
class Note(run.Plugin):
    """Notes the order in which it is asked."""

    word: str
    seen: list[str]

    def assign(self, experiment_id: str) -> None:
        super().assign(experiment_id)
        self.seen.append(f"assign {self.word}")

    def setup(self, task: Any, executor: Any) -> None:
        self.seen.append(f"setup {self.word} for {task.__fn_or_cls__.__name__}")


def test_each_plugin_knows_its_experiment_before_it_sets_up_each_task_in_order() -> None:
    seen: list[str] = []
    experiment = run.Experiment("plugins")
    plugins = [Note(word="one", seen=seen), Note(word="two", seen=seen)]
    experiment.add([user_tasks.add, user_tasks.give], name="pair", plugins=plugins)
    assert seen == [
        "assign one", "assign two",
        "setup one for add", "setup one for give", "setup two for add", "setup two for give",
    ]  # fmt: skip
    assert plugins[0].experiment_id == experiment.id


def test_a_plugin_with_nothing_to_say_changes_nothing() -> None:
    with run.Experiment("plugins") as experiment:
        experiment.add(user_tasks.add, name="job", plugins=run.Plugin())
        assert experiment.run() == {"job": 3}


def test_a_plugin_may_set_what_is_then_checked() -> None:
    class Wrong(run.Plugin):
        def setup(self, task: Any, executor: Any) -> None:
            executor.timeout = -1

    experiment = run.Experiment("plugins")
    with pytest.raises(run.ConfigError, match=r"LocalExecutor\.timeout is -1"):
        experiment.add(user_tasks.add, plugins=Wrong())
    assert experiment.jobs == []


def test_a_plugin_that_makes_a_task_unwritable_is_refused_with_the_path() -> None:
    class Wrong(run.Plugin):
        def setup(self, task: Any, executor: Any) -> None:
            task.value = {"model": [open]}
            task.value["model"].append(lambda x: x)

    experiment = run.Experiment("plugins")
    with pytest.raises(run.SerializationError) as caught:
        experiment.add(user_tasks.give, plugins=Wrong())
    assert caught.value.path == "value['model'][1]"
    assert experiment.jobs == []


def test_the_older_name_is_the_same_class() -> None:
    assert ExperimentPlugin is run.Plugin


def test_a_plugin_can_change_what_a_launcher_needs() -> None:
    with run.Experiment("plugins") as experiment:
        experiment.add(user_tasks.add, name="job", plugins=[SetArgument(value=1), SetArgument(value=2)])
        assert experiment.run() == {"job": 6}
    assert experiment.jobs[0].executors[0].env_vars == {"SET_BY_PLUGIN": experiment.id}
