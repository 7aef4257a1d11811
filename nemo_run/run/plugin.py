"""Plugins change a task and its executor when they are added to an experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nemo_run.core.execution.base import Executor


@dataclass(kw_only=True)
class Plugin:
    """Override `setup`; it may change the task and the executor it is given, which are copies."""

    experiment_id: str = field(init=False, default="")

    def assign(self, experiment_id: str) -> None:
        """Tell the plugin which experiment it serves; called before `setup`."""
        self.experiment_id = experiment_id

    def setup(self, task: Any, executor: Executor) -> None:
        """Change `task` and `executor` in place; called once per task, before anything is written or sent."""


ExperimentPlugin = Plugin
