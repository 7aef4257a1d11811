"""From a job to its submission: the only maker of AppDefs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.base import Executor, JobSpec
from nemo_run.core.execution.checks import check_env
from nemo_run.core.execution.launcher import Command, get_launcher
from nemo_run.core.runner import JOB_DIR, SECRET, SECRETS
from nemo_run.errors import ConfigError

if TYPE_CHECKING:
    from torchx.specs import AppDef, Role

    from nemo_run.config import Script
    from nemo_run.core.execution.base import JobHandle
    from nemo_run.run.job import Job, Task
    from nemo_run.run.records import ExperimentRecord


def make_spec(
    job: Job,
    trees: dict[str, Any],
    experiment: ExperimentRecord,
    experiment_dir: Path,
    *,
    attempt: int = 1,
    depends_on: tuple[JobHandle, ...] = (),
    after: tuple[str, ...] = (),
    package: Mapping[str, Any] | None = None,
) -> JobSpec:
    """One submission of a job.

    Args:
        job: The tasks and their executors.
        trees: By role, what `task.json` holds.
        experiment: Where it was launched from.
        experiment_dir: Its folder.
        attempt: Counts submissions of the same job.
        depends_on: For backends that start a job after others themselves.
        after: Likewise, ids of those that are submitted together with it.
        package: What is recorded of the package of its code, if there is one already.

    Raises:
        ConfigError: a launcher or a script that is not there.
    """
    job_dir = experiment_dir / job.id
    return JobSpec(
        id=job.id,
        experiment_id=experiment.id,
        app=make_app(job, trees, experiment, job_dir),
        members=tuple(job.executors),
        job_dir=job_dir,
        token=make_token(experiment.id, job.id, attempt),
        depends_on=depends_on,
        after=after,
        package=package,
    )


def make_token(experiment_id: str, job_id: str, attempt: int = 1) -> str:
    """The key under which a backend finds a submission again."""
    return f"{experiment_id}/{job_id}/{attempt}"


def make_app(job: Job, trees: dict[str, Any], experiment: ExperimentRecord, job_dir: Path) -> AppDef:
    """A job as TorchX describes it, one role per member."""
    from torchx.specs import AppDef

    members = zip(job.roles, job.tasks, job.executors, strict=True)
    roles = [
        _make_role(name, task, trees[name], executor, experiment, job_dir, job.origins)
        for name, task, executor in members
    ]
    return AppDef(name=job.id, roles=roles)


def script_path(role: str) -> str:
    """Where an inline script's text lies, below the job's folder."""
    return f"scripts/{role}.sh"


def _make_role(
    name: str,
    task: Task,
    tree: Any,
    executor: Executor,
    experiment: ExperimentRecord,
    job_dir: Path,
    origins: Mapping[str, str | None],
) -> Role:
    from torchx.specs import Resource, Role

    from nemo_run.config import Script

    # An image's own program starts in the image's own folder, for which "" stands.
    own = isinstance(task, Script) and task.is_of_image and not executor.working_dir
    workdir = "" if own else _workdir(executor, experiment, job_dir)
    launcher = get_launcher(executor.launcher)
    env = _common_env(experiment, executor, job_dir)
    if isinstance(task, Script):
        argv = _script_argv(task, name, executor, job_dir, workdir)
        check_env(f"env of script {name!r}", task.env)
        env |= executor.env_vars | task.env
        in_process = None
    else:
        argv = [executor.python, executor.runner_path(), str(executor.rundir(job_dir)), name]
        argv += [launcher.rank_variable] if launcher.rank_variable else []
        env |= executor.env_vars | _secrets(tree)
        found = _python_path(executor, experiment, job_dir, origins)
        given = env.get("PYTHONPATH")  # an executor's own comes after
        env["PYTHONPATH"] = os.pathsep.join([*found, *([given] if given else [])])
        in_process = tree
    _refuse_unpassable(name, argv, env)
    if secret := [variable for variable, value in env.items() if not isinstance(value, str)]:
        env[SECRETS] = ",".join(secret)
    command = launcher.launch(
        Command(
            argv=tuple(argv),
            env=env,
            python=executor.python,
            rundir=str(executor.rundir(job_dir)),
            debug=executor.packager.debug,
        ),
        executor.topology(),
    )
    return Role(
        name=name,
        image="",
        entrypoint=command.argv[0],
        args=list(command.argv[1:]),
        env={**env, **command.env},
        max_retries=executor.retries,
        num_replicas=1,
        resource=Resource(cpu=executor.cpu_limit or -1, gpu=-1, memMB=-1),
        metadata={"workdir": workdir, "task": in_process, "given": argv if in_process is None else []},
    )


def _refuse_unpassable(role: str, argv: Iterable[str], env: Mapping[str, Any]) -> None:
    """Refuse what no process can be given as an argument or in its environment."""
    # A variable's value may be a password, so that only its name is told.
    for shown, word in [*((repr(word), word) for word in argv), *env.items()]:
        try:
            passable = not isinstance(word, str) or b"\0" not in os.fsencode(word)
        except UnicodeEncodeError:
            passable = False
        if not passable:
            raise ConfigError(
                f"{role!r} cannot be given {shown}: an argument or variable holds neither a NUL nor a lone"
                " surrogate; hand it over in a file"
            )


def _common_env(experiment: ExperimentRecord, executor: Executor, job_dir: Path) -> dict[str, Any]:
    env = {
        JOB_DIR: str(executor.rundir(job_dir)),
        "NEMORUN_EXPERIMENT_ID": experiment.id,
        "NEMORUN_JOB_ID": job_dir.name,
        "PYTHONUNBUFFERED": "1",
    }
    if executor.log_level:
        env |= {"NEMORUN_LOG_LEVEL": executor.log_level, "LOGLEVEL": executor.log_level}
    return env


def _workdir(executor: Executor, experiment: ExperimentRecord, job_dir: Path) -> str:
    """`working_dir` against the packaged code, or against the launching folder where that is used itself."""
    here, folder, given = executor.shares_files(), executor.rundir(job_dir), executor.working_dir or ""
    if executor.packager.moves_code:
        folder = executor.packager.code_dir(folder)
    elif here:
        folder = Path(experiment.cwd)
    # Another machine has another home.
    return os.path.join(folder, os.path.expanduser(given) if here else given).rstrip("/") or "/"


def _python_path(
    executor: Executor, experiment: ExperimentRecord, job_dir: Path, origins: Mapping[str, str | None]
) -> list[str]:
    """What the launching script could import, the job can: from the packaged code, or from where it lies."""
    paths = experiment.python_path if executor.shares_files() else []
    if not executor.packager.moves_code:
        return paths
    code = str(executor.packager.code_dir(executor.rundir(job_dir)))
    places = {path: _place(path, origins) for path in experiment.python_path}
    moved = [os.path.normpath(os.path.join(code, place)) for place in places.values() if place]
    return list(dict.fromkeys([code, *moved, *(path for path in paths if places[path] == "")]))


def _place(path: str, origins: Mapping[str, str | None]) -> str | None:
    """Where a folder is found below the packaged code; "" for one that has nothing to do with it."""
    real = os.path.realpath(path)
    above = [origin for origin in origins if (real + "/").startswith(os.path.realpath(origin) + "/")]
    if not above:
        return ""
    nearest = max(above, key=lambda origin: len(os.path.realpath(origin)))
    below = origins[nearest]
    return None if below is None else os.path.join(below, os.path.relpath(real, os.path.realpath(nearest)))


def _script_argv(script: Script, role: str, executor: Executor, job_dir: Path, workdir: str) -> list[str]:
    if not script.inline and not script.m and executor.shares_files() and not executor.packager.moves_code:
        path = os.path.join(workdir, os.path.expanduser(script.path))
        if not os.path.exists(path):
            raise ConfigError(f"script {script.path!r} is not there ({path}); give its path from {workdir!r}")
    return script.to_command(executor.python, str(executor.rundir(job_dir) / script_path(role)))


def _secrets(tree: Any) -> dict[str, Any]:
    """The secrets among a task's arguments, by the environment variable that hands each over."""
    from nemo_run.secret import Secret

    if isinstance(tree, list):
        return {name: value for item in tree for name, value in _secrets(item).items()}
    if not isinstance(tree, dict):
        return {}
    if "_secret_" in tree:
        secret = Secret.from_source(tree["_secret_"])
        return {SECRET + secret.name: secret}
    return {name: value for item in tree.values() for name, value in _secrets(item).items()}
