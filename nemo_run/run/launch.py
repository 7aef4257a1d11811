"""What is written down of a launch: the records of an experiment, the script it came from, its git state."""

from __future__ import annotations

import contextlib
import os
import platform
import site
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run._version import __version__
from nemo_run.config import Script
from nemo_run.core.main_module import definitions
from nemo_run.core.runner import LOADING, mentioned_names
from nemo_run.core.serialization import tree_to_yaml
from nemo_run.errors import ConfigError, NemoRunError
from nemo_run.run.app import make_token, script_path
from nemo_run.run.job import Job
from nemo_run.run.packages import git_facts, package_files
from nemo_run.run.records import ExperimentRecord, JobRecord
from nemo_run.run.script import LaunchingScript
from nemo_run.run.store import Store, dump

if TYPE_CHECKING:
    from nemo_run.core.packaging.snapshot import Package

#: Seconds that git may take to look at what is launched, where nothing depends on its answer.
_PATIENCE = 30.0


def launch_record(experiment_id: str, title: str, jobs: list[Job]) -> ExperimentRecord:
    """`experiment.json` of a launch from this process."""
    return ExperimentRecord(
        id=experiment_id,
        title=title,
        created=time.time(),
        jobs=[job.entry() for job in jobs],
        cwd=os.getcwd(),
        python_path=python_path(),
        versions={"nemo_run": __version__, "python": platform.python_version()},
    )


def record_files(
    jobs: list[Job],
    trees_by_job: Mapping[str, Any],
    main: LaunchingScript,
    experiment_id: str,
    packages: Mapping[str, Package] | None = None,
) -> dict[str, str]:
    """Everything that is written when an experiment is made: text by path below its folder.

    Args:
        jobs: The jobs.
        trees_by_job: Their tasks' trees, by job id.
        main: Where what is named `__main__.…` comes from.
        experiment_id: The experiment's id.
        packages: The packages of their code, by job id.

    Raises:
        ConfigError: a task is defined in a session whose source cannot be had.
        SerializationError: an executor holds something that cannot be written down.
    """
    files = {} if main.source is None else {"main.py": main.source}
    for name, what in package_files(jobs, packages or {}).items():
        files[name] = what if isinstance(what, str) else dump(what)
    kept: dict[frozenset[str], str] = {}
    for job in jobs:
        trees, executors = trees_by_job[job.id], job.executor_trees(main.module)
        token = make_token(experiment_id, job.id)
        files[f"{job.id}/task.json"] = dump(trees)
        files[f"{job.id}/task.yaml"] = tree_to_yaml(trees)
        files[f"{job.id}/executor.json"] = dump(executors)
        files[f"{job.id}/job.json"] = dump(JobRecord(id=job.id, token=token).to_json())
        for role, task in zip(job.roles, job.tasks, strict=True):
            if isinstance(task, Script) and task.inline:
                files[f"{job.id}/{script_path(role)}"] = task.inline
        needed = frozenset(mentioned_names([trees, executors]))
        if needed and needed not in kept:
            kept[needed] = _definitions(main.source, needed)
        if needed:
            files[f"{job.id}/configs/main.py"] = kept[needed]
    return files


def _definitions(source: str | None, needed: frozenset[str]) -> str:
    if source is None:
        names = ", ".join(sorted(needed))
        raise ConfigError(
            f"{names} was defined in a session whose source nemo_run cannot read, so a job could not find it;"
            " put it into a .py file and import it"
        )
    return definitions(source, set(needed))


def refuse_while_loading() -> None:
    """Keep a launching script from launching again where a job only needs its definitions.

    Raises:
        ConfigError: that is what is being done.
    """
    if os.environ.get(LOADING):
        raise ConfigError(
            "this script launches while a job loads its definitions; put the launch under"
            ' `if __name__ == "__main__":`'
        )


def python_path() -> list[str]:
    """Where this process imports from, PYTHONPATH included, beyond what is its interpreter's own."""
    own = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    own |= {*site.getsitepackages(), site.getusersitepackages()}
    paths = dict.fromkeys(os.path.abspath(path) for path in sys.path)
    zipped = os.path.join(
        sys.base_prefix, "lib", f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    )
    return [
        path
        for path in paths
        if path not in own
        and path != zipped
        and not any(path.startswith(folder + os.sep) for folder in own)
        and os.path.isdir(path)
    ]


@contextlib.contextmanager
def git_record(store: Store, folder: Path) -> Iterator[None]:
    """Meanwhile write down the commit and the changes of what is launched, where no packager has."""
    if os.path.exists(store.path / "git.json"):
        yield
        return
    thread = threading.Thread(target=_write_git, args=(store, folder), daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(timeout=10)


def _write_git(store: Store, folder: Path) -> None:
    """One question where nothing has changed; what cannot be found out is left out."""
    from nemo_run.core.packaging.repository import git, outside, status, top_level

    with contextlib.suppress(NemoRunError, subprocess.TimeoutExpired):
        found = status(folder, untracked="normal", timeout=_PATIENCE)
        if found.commit is None:
            return
        diff = ""
        if found.changed or found.unmerged:
            words = ("diff", found.commit, "--no-color", "--no-ext-diff", "--no-textconv")
            diff = git(folder, *words, timeout=_PATIENCE).decode(errors="surrogateescape")
        if untracked := found.untracked:
            untracked = outside(store.path.parents[2], top_level(folder), untracked)
        record = git_facts(found.commit, folder, diff, map(os.fsdecode, untracked))
        if diff:  # the experiment may be deleted meanwhile
            store.write("git.diff", diff)
        store.write("git.json", dump(record))
