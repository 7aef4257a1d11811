"""Experiment: one task or many, run together and remembered; a thin front over the store and dispatch."""

from __future__ import annotations

import copy
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any

from nemo_run import console
from nemo_run.config import Config
from nemo_run.core.execution.base import AppState, Capability, Executor, Plan
from nemo_run.core.packaging.snapshot import Package
from nemo_run.errors import ConfigError, NotFoundError, UnsupportedError
from nemo_run.run import dispatch, look
from nemo_run.run.app import make_spec
from nemo_run.run.attend import attend
from nemo_run.run.background import run_in_background
from nemo_run.run.errors import raise_for
from nemo_run.run.job import (
    Job,
    as_executor,
    as_plugins,
    as_task,
    check_jobs,
    check_launchers,
    check_secrets,
    make_job,
    task_name,
)
from nemo_run.run.launch import (
    git_record,
    launch_record,
    record_files,
    refuse_while_loading,
)
from nemo_run.run.packages import check_packagers, find_origins, take_packages
from nemo_run.run.plugin import Plugin
from nemo_run.run.records import ExperimentRecord, JobEntry, JobRecord
from nemo_run.run.results import job_value
from nemo_run.run.script import launching_script
from nemo_run.run.store import Store, created_ms, experiment_dir, folder_name, is_experiment, new_id, scan

logger = logging.getLogger("nemo_run")

#: The experiment whose `with` block is being run.
current_experiment: ContextVar[Experiment | None] = ContextVar("nemo_current_experiment", default=None)


class Status(dict[str, dict[str, Any]]):
    """What `Experiment.status` returns: by job id its `name`, `status`, `executor`, `handle`, …"""

    def __str__(self) -> str:
        return ", ".join(f"{job_id}: {entry['status']!s}" for job_id, entry in self.items())


class Experiment:
    """Tasks that are run together and remembered under NEMORUN_HOME.

    Two forms::

        with run.Experiment("title") as exp:
            exp.add(run.Partial(train, lr=0.1), executor=run.LocalExecutor(), name="train")
            exp.run()

        results = run.Experiment(task=train, executor=run.LocalExecutor(), name="train").run()

    Args:
        title: What experiments of this kind are called; the name of the task where it is left out.
        executor: For tasks added without one; a LocalExecutor by default.
        id: Used instead of `<title>_<milliseconds>`; it must begin with the title and end in `_<something>`.
        log_level: Level of nemo_run's own messages.
        task: The one task of the second form: a function, Partial, Config, Script, or a list for a group.
        name: The second form's title and job id.
        base_dir: Used instead of NEMORUN_HOME.
        clean_mode: Show no progress and no goodbye.
        enable_goodbye_message: Say at the end how to come back.
        threadpool_workers: Jobs that are being submitted at the same time.
        skip_status_at_exit: Show no table of states at the end.
        raise_on_failure: Raise an ExecutionError when a job has not succeeded.
        serialize_metadata_for_scripts: Accepted for scripts that give it; metadata is always kept.
    """

    def __init__(
        self,
        title: str | None = None,
        executor: Executor | Config[Any] | None = None,
        id: str | None = None,
        log_level: str = "INFO",
        *,
        task: Any = None,
        name: str | None = None,
        base_dir: str | os.PathLike[str] | None = None,
        clean_mode: bool = False,
        enable_goodbye_message: bool = True,
        threadpool_workers: int = 16,
        skip_status_at_exit: bool = False,
        serialize_metadata_for_scripts: bool = True,
        raise_on_failure: bool = True,
    ) -> None:
        if not (title or name or task):
            raise ConfigError('an Experiment needs a title: run.Experiment("title")')
        self.title = title or name or _title_of(task)
        if not isinstance(self.title, str):
            raise ConfigError(f"an Experiment's title is a text, not {self.title!r}")
        self.base_dir = Path(base_dir).expanduser().absolute() if base_dir else None
        self._has_own_id = id is not None
        self.id = self._free_id() if id is None else self._checked_id(id)
        self.executor = as_executor(executor)
        self._jobs: list[Job] | None = []
        self.raise_on_failure = raise_on_failure
        self._quiet = clean_mode
        self._goodbye = enable_goodbye_message and not clean_mode
        self._show_status = not (skip_status_at_exit or clean_mode)
        self._workers = threadpool_workers
        self._store: Store | None = None
        self._shown = False  # by a dry run, which is as much as was wanted
        self._main = launching_script()
        self._token: Any = None
        logger.setLevel(log_level)
        if task is not None:
            self.add(task, name=name or "")

    def _checked_id(self, given: str) -> str:
        start = folder_name(self.title) + "_"
        rest = given.removeprefix(start)
        if not given.startswith(start) or not rest or rest != folder_name(rest):
            raise ConfigError(f"id {given!r} is no id for title {self.title!r}; give {start}<something>")
        return given

    def _free_id(self, after: int = 0) -> str:
        """An id that no experiment has; another process may still take it before ours is written."""
        stamp = max(time.time_ns() // 1_000_000, after + 1)
        while os.path.exists(experiment_dir(self.title, new_id(self.title, stamp), self.base_dir)):
            stamp += 1
        return new_id(self.title, stamp)

    @property
    def path(self) -> Path:
        """The experiment's folder; it is there once the experiment is run."""
        return experiment_dir(self.title, self.id, self.base_dir)

    @property
    def jobs(self) -> list[Job]:
        """The jobs; of an experiment that was run before they are loaded when first asked for."""
        if self._jobs is None:
            loaded, self._main = look.load_launch(self._open())
            self._jobs = list(loaded.values())
        return self._jobs

    # --- building ---------------------------------------------------------------------------------------

    def add(
        self,
        task: Any,
        executor: Executor | Config[Any] | list[Any] | None = None,
        name: str = "",
        plugins: Plugin | list[Plugin] | None = None,
        tail_logs: bool = False,
        dependencies: list[str] | None = None,
    ) -> str:
        """Add a job; nothing is written or started.

        Args:
            task: A function, Partial, Config or Script; a list of them is a group, whose members start
                together: one that fails takes the others down, one that succeeds does not.
            executor: Where it runs; the experiment's own by default. For a group one, or one per task.
            name: Its id; a name that is taken gets a number.
            plugins: Applied to copies of the task and the executor.
            tail_logs: Print what it prints while the run is attached.
            dependencies: Ids of jobs that must succeed first.

        Returns:
            The job's id.

        Raises:
            ConfigError: something given cannot work.
            SerializationError: the task holds something that another process could not be given.
        """
        if self._store is not None:
            raise ConfigError(f"experiment {self.id!r} has been run; use reset() for a new one to add to")
        if isinstance(dependencies, str):
            raise ConfigError(f"dependencies is the text {dependencies!r}; give a list of job ids")
        known = [job.id for job in self.jobs]
        for dependency in dependencies or ():
            if dependency not in known:
                raise ConfigError(f"cannot depend on that: {NotFoundError('job', dependency, known)}")
        job = make_job(
            task,
            executor or self.executor,
            name=name,
            taken=known,
            plugins=as_plugins(plugins),
            tail_logs=tail_logs,
            dependencies=list(dependencies or []),
        )
        self._assign(job)
        job.set_up()
        job.trees(self._main.module)
        job.executor_trees(self._main.module)
        self.jobs.append(job)
        return job.id

    def _assign(self, job: Job) -> None:
        for executor in job.executors:
            executor.assign(self.id, str(self.path), job.id, job.id)
        for plugin in job.plugins:
            plugin.assign(self.id)

    # --- running ----------------------------------------------------------------------------------------

    @console.people()
    def run(
        self, sequential: bool = False, detach: bool = False, tail_logs: bool = False, direct: bool = False
    ) -> dict[str, Any]:
        """Run the jobs and wait for them, unless told otherwise.

        Args:
            sequential: One after the other, in the order they were added.
            detach: Return as soon as the jobs are on their way; order and limits are then kept by a process
                that outlives this one.
            tail_logs: Print what all jobs print.
            direct: Call the tasks one after the other in this process.

        Returns:
            The value of each job that has succeeded, by job id.

        Raises:
            ConfigError: something cannot work; nothing has been started.
            ExecutionError: a job has not succeeded, once all have ended (see `raise_on_failure`).
        """
        refuse_while_loading()
        if self._store is not None:
            logger.warning("experiment %s has been run already; reset() gives a new one like it", self.id)
            return self.results()
        if sequential and any(job.dependencies for job in self.jobs):
            raise ConfigError("sequential=True orders jobs itself; leave out their dependencies, or it")
        trees = self._check(detach)
        check_secrets(self.jobs)
        if not direct:
            check_launchers(self.jobs)
            self._connect()
        for before, job in zip(self.jobs, self.jobs[1:], strict=False) if sequential else ():
            job.dependencies = [before.id]
        packages = {} if direct else take_packages(self.jobs, Path.cwd(), self.base_dir)
        store = self._store = self._create(trees, packages)
        if direct:
            from nemo_run.run.direct import run_direct

            run_direct(store, self.jobs)
            return self.results()
        with git_record(store, Path.cwd()):
            records = self._detach(store) if detach else self._attend(store, tail_logs)
        self._say_goodbye(list(records.values()), left_running=detach)
        if self.raise_on_failure:
            raise_for(store, records.values())
        return self.results()

    def _say_goodbye(self, records: list[JobRecord], *, left_running: bool) -> None:
        if self._show_status and sys.stderr.isatty():
            console.print_rows(console.JOB_COLUMNS, console.job_rows(records), stream=sys.stderr)
        if self._goodbye:
            console.goodbye(self.id, records, left_running=left_running, base_dir=self.base_dir)

    def _check(self, detach: bool) -> dict[str, Any]:
        """Find what can be known to fail before anything is written; returns the tasks' trees by job id."""
        if not self.jobs:
            raise ConfigError(f"experiment {self.title!r} has no jobs; add some first: exp.add(task)")
        check_jobs({job.id: job for job in self.jobs})
        check_packagers(self.jobs)
        find_origins(self.jobs, Path.cwd())
        for job in self.jobs if detach else ():
            executor = job.executors[0]
            if Capability.DETACH not in executor.capabilities:
                name = type(executor).__name__
                raise UnsupportedError(
                    f"jobs of {name} end with the process that launched them; run job {job.id!r} attached",
                    executor=name,
                    capability="DETACH",
                )
        trees = {job.id: job.trees(self._main.module) for job in self.jobs}
        for _ in self._plans(trees):
            pass
        return trees

    def _connect(self) -> None:
        """Reach each cluster, before anything is written or shown: a person may be asked for a password."""
        executors = [job.executors[0] for job in self.jobs]
        for executor in {(type(each), each.cluster()): each for each in executors}.values():
            executor.connect()

    def _plans(self, trees: Mapping[str, Any]) -> Iterator[tuple[Job, Plan]]:
        record = self._record()
        for job in self.jobs:
            executor = job.executors[0]
            after = tuple(job.dependencies) if Capability.DEPENDENCIES in executor.capabilities else ()
            yield job, executor.plan(make_spec(job, trees[job.id], record, self.path, after=after))

    def _record(self) -> ExperimentRecord:
        return launch_record(self.id, self.title, self.jobs)

    def _create(self, trees: Mapping[str, Any], packages: Mapping[str, Package]) -> Store:
        while True:
            try:
                files = record_files(self.jobs, trees, self._main, self.id, packages)
                return Store.create(self._record(), files, base=self.base_dir)
            except FileExistsError as exc:
                if self._has_own_id:
                    message = f"there is an experiment {self.id!r} already; give another id, or none"
                    raise ConfigError(message) from exc
                # Another process made an experiment of this title in the same millisecond.
                self.id = self._free_id(after=created_ms(self.path))
                for job in self.jobs:
                    self._assign(job)

    def _detach(self, store: Store) -> dict[str, JobRecord]:
        with store.dispatching() as lock:
            if lock is None:  # a process that waits for it has been quicker
                return {job.id: store.read_job(job.id) for job in self.jobs}
            dispatcher = dispatch.Dispatcher(store, self._by_id(), workers=self._workers)
            if not dispatcher.submit_due():
                run_in_background(store, lock)
        return dispatcher.records

    def _attend(self, store: Store, tail_logs: bool = False) -> dict[str, JobRecord]:
        return attend(store, self._by_id, tail_logs=tail_logs, quiet=self._quiet, workers=self._workers)

    def _by_id(self) -> dict[str, Job]:
        return {job.id: job for job in self.jobs}

    def dryrun(self, log: bool = True, exist_ok: bool = False, delete_exp_dir: bool = True) -> None:
        """Print what each job would submit; nothing is written and nothing started.

        Args:
            log: Whether to print at all, or only check.
            exist_ok: Accepted for scripts that give it; nothing is made that could exist.
            delete_exp_dir: Likewise; there is nothing to delete.
        """
        self._shown = True
        trees = self._check(detach=False)
        for job, plan in self._plans(trees):
            if log:
                print(f"# --- job {job.id} of experiment {self.id}: {job.executors[0].info()}\n{plan.text}")

    # --- looking ----------------------------------------------------------------------------------------

    @console.people()
    def status(self, return_dict: bool = False) -> Status:
        """How the jobs are doing, from any process.

        Args:
            return_dict: Do not print a table as well.
        """
        from torchx.specs import AppState as TorchXState

        store = self._open()
        records = look.refresh(store)
        if not return_dict:
            console.print_status(self.id, records, resources=look.resources(store, records))
        status = Status()
        for record in records:
            executor = self._executors(record.id)[0]
            status[record.id] = {
                "name": record.id,
                "status": TorchXState(int(record.state)),
                "message": record.message,
                "exit_code": record.exit_code,
                "executor": executor.info(),
                "job_id": record.handle.id if record.handle else "",
                "handle": record.handle,
                "local_dir": str(store.job_dir(record.id)),
            }
        return status

    @console.people()
    def logs(
        self, job_id: str, regex: str | None = None, follow: bool = False, rank: int | None = None
    ) -> None:
        """Print what a job has printed, without the values of its secrets.

        Args:
            job_id: Which job.
            regex: Only lines with a match.
            follow: Go on until the job ends.
            rank: Only this one of the ranks (of an array: tasks) that have a log each.

        Raises:
            NotFoundError: there is no such job, or it has not started, or has no such rank.
        """
        entry = self._entry(job_id)
        for line in look.read_job_logs(self._open(), entry, regex=regex, follow=follow, rank=rank):
            print(line.shown)

    @console.people()
    def cancel(self, job_id: str | None = None) -> None:
        """Ask a job, or all of them, to end; it does not wait, and is harmless when they have."""
        look.cancel(self._open(), None if job_id is None else [job_id])

    @console.people()
    def wait(self) -> dict[str, Any]:
        """Wait for the jobs; submits what the process that launched them did not come to, if it is gone.

        Returns, raises: as `run`.
        """
        store = self._open()
        records = self._attend(store)
        if self.raise_on_failure:
            raise_for(store, records.values())
        return self.results()

    def results(self) -> dict[str, Any]:
        """The value of each job that has succeeded, by job id; for a group by role."""
        store = self._open()
        succeeded = (record for record in look.refresh(store) if record.state == AppState.SUCCEEDED)
        return {record.id: self._value(store, record) for record in succeeded}

    def result(self, job_id: str) -> Any:
        """The value of one job.

        Raises:
            NotFoundError: there is no such job.
            ExecutionError: it has not succeeded.
        """
        store, entry = self._open(), self._entry(job_id)
        record = next(record for record in look.refresh(store) if record.id == entry.id)
        if not record.terminal:
            raise NotFoundError("value yet of job", job_id)
        raise_for(store, [record])
        return self._value(store, record)

    def _value(self, store: Store, record: JobRecord) -> Any:
        return job_value(store.job_dir(record.id), self._entry(record.id).roles, record.attempt)

    def artifacts(self, job_id: str) -> Path:
        """The folder with the files a job left."""
        return self._open().job_dir(self._entry(job_id).id) / "artifacts"

    @property
    def tasks(self) -> list[Any]:
        """The tasks of all jobs; a group's as a list."""
        return [job.tasks if job.group else job.tasks[0] for job in self.jobs]

    def to_config(self) -> Config[Experiment]:
        """This experiment, without its jobs, as a Config."""
        base_dir = str(self.base_dir) if self.base_dir else None
        return Config(Experiment, title=self.title, executor=self.executor, id=self.id, base_dir=base_dir)

    def _entry(self, job_id: str) -> JobEntry:
        entries = {entry.id: entry for entry in self._open().experiment().jobs}
        if job_id not in entries:
            raise NotFoundError("job", job_id, list(entries))
        return entries[job_id]

    def _executors(self, job_id: str) -> list[Executor]:
        """A job's executors; what else there is of the experiment is not loaded for them."""
        if self._jobs is not None:
            return next(job.executors for job in self._jobs if job.id == job_id)
        return look.load_executors(self._open(), self._entry(job_id))

    def _open(self) -> Store:
        if self._store is None:
            raise NotFoundError("record yet of experiment", self.id)
        return self._store

    # --- coming back ------------------------------------------------------------------------------------

    @classmethod
    def from_id(cls, id: str, *, base_dir: str | os.PathLike[str] | None = None) -> Experiment:
        """An experiment that was run before, by its id, title or a unique beginning of its id.

        Raises:
            NotFoundError: there is none.
            StoreError: it cannot be read.
        """
        return cls._load(Store.open(id, base=Path(base_dir) if base_dir else None), base_dir)

    @classmethod
    def from_title(cls, title: str, *, base_dir: str | os.PathLike[str] | None = None) -> Experiment:
        """The newest experiment of a title."""
        return cls.from_id(title, base_dir=base_dir)

    @classmethod
    def catalog(cls, title: str = "", *, base_dir: str | os.PathLike[str] | None = None) -> list[str]:
        """The ids of all experiments, or of those of one title, oldest first."""
        found = scan(title or None, base=Path(base_dir) if base_dir else None)
        return [path.name for path in reversed(found) if is_experiment(path)]

    @classmethod
    def _load(cls, store: Store, base_dir: Any) -> Experiment:
        record = store.experiment()
        experiment = cls(record.title, id=record.id, base_dir=base_dir)
        experiment._store = store
        experiment._jobs = None
        return experiment

    def reset(self) -> Experiment:
        """A new experiment with the same jobs, dependencies and plugins, ready to be changed and run.

        What plugins did to tasks and executors is in them already and is not done again; the launching
        script is not run.
        """
        self._open()
        new = Experiment(self.title, self.executor, base_dir=self.base_dir)
        new.raise_on_failure = self.raise_on_failure
        new._jobs, new._main = copy.deepcopy(self.jobs), self._main
        for job in new._jobs:
            new._assign(job)
        return new

    def __enter__(self) -> Experiment:
        self._token = current_experiment.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        current_experiment.reset(self._token)
        if kind is None and self._store is None and self.jobs and not self._shown:
            logger.warning("experiment %s was not run: call exp.run() inside the with block", self.title)

    def __repr__(self) -> str:
        return f"<Experiment {self.id}: {', '.join(job.id for job in self._jobs or ()) or 'no jobs loaded'}>"


def _title_of(task: Any) -> str:
    return task_name(as_task(task[0] if isinstance(task, list) and task else task))
