"""run(): one task, one executor, one call."""

from __future__ import annotations

from typing import Any

from nemo_run.config import Config
from nemo_run.core.execution.base import Executor
from nemo_run.run.job import as_task, task_name
from nemo_run.run.launch import refuse_while_loading
from nemo_run.run.plugin import Plugin


def run(
    fn_or_script: Any,
    executor: Executor | Config[Any] | None = None,
    plugins: Plugin | list[Plugin] | None = None,
    name: str = "",
    dryrun: bool = False,
    direct: bool = False,
    detach: bool = False,
    tail_logs: bool = True,
    log_level: str = "INFO",
) -> Any:
    """Run one task and return its value.

    Args:
        fn_or_script: A function, Partial, Config or Script.
        executor: Where it runs; None calls it in this process.
        plugins: Applied to copies of the task and the executor.
        name: Title of the experiment; the task's own name by default.
        dryrun: Print what would be submitted, and start nothing.
        direct: Call it in this process even with an executor.
        detach: Return as soon as it is on its way; there is no value yet.
        tail_logs: Print what it prints.
        log_level: Level of nemo_run's own messages.

    Returns:
        The task's value; None where there is none (a script, `dryrun`, `detach`).

    Raises:
        ConfigError: something cannot work; nothing has been started.
        ExecutionError: the task has not succeeded.
    """
    refuse_while_loading()
    task = as_task(fn_or_script)
    if executor is None or direct:
        return _run_here(task, executor, dryrun)
    from nemo_run.run.experiment import Experiment

    with Experiment(name or task_name(task), executor=executor, log_level=log_level) as experiment:
        job_id = experiment.add(task, name=name, plugins=plugins, tail_logs=tail_logs)
        if dryrun:
            experiment.dryrun()
            return None
        return experiment.run(detach=detach).get(job_id)


def _run_here(task: Any, executor: Executor | Config[Any] | None, dryrun: bool) -> Any:
    from nemo_run.run.direct import call_task
    from nemo_run.run.job import as_executor

    if dryrun:
        from nemo_run.describe import dryrun_fn

        return dryrun_fn(task, None)
    return call_task(task, None if executor is None else as_executor(executor))
