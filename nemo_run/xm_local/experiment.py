"""Experiments of launch scripts: made, added to, seen through and found again."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextvars import Token
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from nemo_run.core.runner import record_stem
from nemo_run.errors import NotFoundError
from nemo_run.run import look
from nemo_run.run.growing import create
from nemo_run.run.launch import refuse_while_loading
from nemo_run.run.records import JobRecord
from nemo_run.run.store import Store, is_experiment, scan
from nemo_run.xm import core
from nemo_run.xm.errors import BadTypeError, BadValueError, StateError
from nemo_run.xm.jobs import Executable, Job, JobGroup, JobType, Packageable
from nemo_run.xm.utils import launch_script
from nemo_run.xm_local import flags
from nemo_run.xm_local.loops import Pending, background_loop, run_loop, started, stay_awake, stop_loop
from nemo_run.xm_local.registry import Registry
from nemo_run.xm_local.session import Session, has_ended
from nemo_run.xm_local.units import Unit, WorkUnit

logger = logging.getLogger("nemo_run")

#: Beside the records of the engine: what XManager's words say of an experiment.
EXPERIMENT = "xm.json"


def create_experiment(experiment_title: str) -> LocalExperiment:
    """A new experiment, to be used by `with` or `async with`.

    Raises:
        BadValueError: it has no title.
    """
    if not isinstance(experiment_title, str) or not experiment_title:
        raise BadValueError(f"experiment_title is a text, not {experiment_title!r}")
    return LocalExperiment(experiment_title)


def get_experiment(experiment_id: int | str) -> LocalExperiment:
    """An experiment that was made before, by its number (or by the id that `nemo experiment list` shows).

    Raises:
        NotFoundError: there is none (it is a KeyError and a ValueError too).
    """
    for path in scan():
        if path.name == str(experiment_id) or path.name.rpartition("_")[2] == str(experiment_id):
            return _loaded(Store(path))
    known = [path.name.rpartition("_")[2] for path in scan()]
    raise NoExperimentError("experiment", str(experiment_id), known)


class NoExperimentError(NotFoundError, ValueError):
    """There is no experiment of that number."""


def list_experiments() -> list[LocalExperiment]:
    """The experiments of launch scripts, oldest first; what is in each is read when it is asked for."""
    return [
        _loaded(Store(path))
        for path in reversed(scan())
        if (path / EXPERIMENT).exists() and is_experiment(path)
    ]


def _loaded(store: Store) -> LocalExperiment:
    experiment = LocalExperiment(store.path.parent.name)
    experiment._open(store)
    return experiment


class LocalExperiment(core.Experiment):
    """An experiment whose jobs this process starts, wherever they then run."""

    def __init__(self, title: str) -> None:
        self._context = _Context(title, self._note_title)
        self._opened: Store | None = None
        self._registry = Registry(self)
        self._session: Session | None = None
        self._thread: threading.Thread | None = None
        self._token: Token[core.Experiment | None] | None = None
        self._watcher: threading.Thread | None = None
        self._changing = threading.RLock()
        self._queue: list[tuple[Packageable, Pending[Executable]]] = []

    # --- what it is -------------------------------------------------------------------------------------

    @property
    def experiment_id(self) -> int:
        """Its number."""
        return int(self.store_id.rpartition("_")[2])

    @property
    def store_id(self) -> str:
        """Its id in `nemo experiment list`."""
        return self._store.id

    @property
    def path(self) -> Path:
        """Its folder: records, logs, artifacts."""
        return self._store.path

    @property
    def context(self) -> core.MetadataContext:
        """Who made it, and its title."""
        return self._context

    @property
    def work_units(self) -> Mapping[int, WorkUnit]:
        """Its work units by their numbers."""
        self._registry.restore(self._store)
        units = (unit for unit in self._registry.units() if isinstance(unit, WorkUnit))
        return {unit.work_unit_id: unit for unit in sorted(units, key=lambda unit: unit.work_unit_id)}

    @property
    def auxiliary_units(self) -> list[Unit]:
        """Its other units."""
        self._registry.restore(self._store)
        return [unit for unit in self._registry.units() if not isinstance(unit, WorkUnit)]

    def __repr__(self) -> str:
        return f"<Experiment {self._opened.id if self._opened else self._context.annotations.title}>"

    # --- on disk ----------------------------------------------------------------------------------------

    @property
    def _store(self) -> Store:
        """Its folder's records; made when they are first needed."""
        with self._changing:
            if self._opened is None:
                title = self._context.annotations.title
                self._opened = create(title, _launch_source(), {EXPERIMENT: self._described()})
            return self._opened

    def _open(self, store: Store) -> None:
        self._opened = store
        with contextlib.suppress(Exception):  # it may be one of another front, or lost
            said = store.read_json(EXPERIMENT)
            self._context = _Context(said["title"], self._note_title, said["creator"])

    def _described(self) -> str:
        said = {"title": self._context.annotations.title, "creator": self._context.creator}
        return json.dumps(said, indent=1) + "\n"

    def _note_title(self) -> None:
        """Keep a title that was set."""
        if self._opened is not None:
            self._opened.write(EXPERIMENT, self._described())

    def _record(self, job_id: str) -> JobRecord:
        """A job's record as it is now."""
        session = self._session
        return (session and session.record(job_id)) or self._fresh([job_id])[0]

    def _fresh(self, job_ids: Sequence[str]) -> list[JobRecord]:
        whole = self._store.experiment()
        entries = [entry for entry in whole.jobs if entry.id in job_ids]
        found = {record.id: record for record in look.refresh(self._store, replace(whole, jobs=entries))}
        return [found.get(job_id) or JobRecord(id=job_id, token="") for job_id in job_ids]

    def _launched(self, unit: Unit) -> list[core.LaunchedJob]:
        jobs = []
        entries = {entry.id: entry for entry in self._store.experiment().jobs}
        for record in self._fresh([job_id for job_id in unit.parts if job_id in entries]):
            if record.handle:
                entry = entries[record.id]
                logs = self._store.job_dir(entry.id) / "logs"
                for role in entry.roles:
                    log = logs / f"{record_stem(role, 0, record.attempt)}.log"
                    jobs.append(core.LaunchedJob(role, record.handle.id, str(log)))
        return jobs

    # --- packaging --------------------------------------------------------------------------------------

    def package(self, packageables: Sequence[Packageable] = ()) -> list[Executable]:  # type: ignore[override]
        """Package these, and all that `package_async` was given; what is given is built side by side.

        Returns:
            An executable for each of these.

        Raises:
            PackagingError: something cannot be built; nothing of it is.
        """
        from nemo_run.xm_local.packaging import package

        if isinstance(packageables, Packageable):
            raise BadTypeError("package() takes a list: [executable] = experiment.package([packageable])")
        given = list(packageables)
        with self._changing:
            queue, self._queue = self._queue, []
        try:
            made = list(package([*given, *(packageable for packageable, _ in queue)]))
        except BaseException as exc:
            for _, pending in queue:
                pending.set_exception(exc)
            raise
        for (_, pending), executable in zip(queue, made[len(given) :], strict=True):
            pending.set_result(executable)
        return made[: len(given)]

    def package_async(self, packageable: Packageable) -> Awaitable[Executable]:  # type: ignore[override]
        """Have this packaged with the next call of `package`, or when it is awaited."""
        if not isinstance(packageable, Packageable):
            raise BadTypeError(f"package_async() takes an xm.Packageable, not {packageable!r}")
        pending = _Packaged(self)
        with self._changing:
            self._queue.append((packageable, pending))
        return pending

    # --- adding -----------------------------------------------------------------------------------------

    def add(
        self,
        job: JobType,
        args: Mapping[str, Any] | None = None,
        *,
        role: core.ExperimentUnitRole | None = None,
        identity: str = "",
    ) -> Awaitable[Unit]:
        """Add a unit that runs a job, a group or a generator; a work unit unless `role` says otherwise.

        What it returns gives the unit once its jobs are written down and on their way: `await` it or, where
        no event loop runs, ask for its `result()`. What is wrong with the job is raised there, and at the end
        of the `with`; other units do not mind.

        Args:
            job: What it runs.
            args: More for it: for a Job `args` and `env_vars`, for a JobGroup that by the names of its jobs,
                for a generator its arguments.
            role: What the unit is for.
            identity: A name of one's own choice: adding under it again, also later and from another process,
                gives the unit that is there.

        Raises:
            StateError: outside of the `with`.
        """
        session = self._running()
        role = job.role if isinstance(job, core.AuxiliaryUnitJob) else role or core.WorkUnitRole()
        if not isinstance(role, core.ExperimentUnitRole):
            raise BadTypeError(f"role of add() is an xm.WorkUnitRole() or the like, not {role!r}")
        self._registry.restore(self._store)
        with self._changing:
            unit, new = self._registry.unit(role, identity)
            if new:
                unit.filling = started(unit.fill(job, args), session.loop)
        return started(unit.filled(), session.loop)

    def _running(self) -> Session:
        """What there is below the `with`.

        Raises:
            StateError: nothing, outside of it.
        """
        if self._session is None:
            raise StateError(
                "jobs are added below `with xm_local.create_experiment(...) as experiment:`"
                " (or `async with`), which has not begun or has ended"
            )
        return self._session

    async def _start(self, unit: Unit, job: Job | JobGroup) -> None:
        await self._running().start(unit, job)

    def _cancel(self, job_ids: Sequence[str]) -> None:
        """Ask jobs to end, in a thread, as some backends take their time to hear of it."""
        session = self._session

        def cancel() -> None:
            try:
                session.cancel(job_ids) if session else look.cancel(self._store, job_ids)
            except Exception as exc:  # they are waited for all the same
                logger.error("cancelling jobs of %s: %s", self.store_id, exc)

        threading.Thread(target=cancel, daemon=True).start()

    # --- waiting without a `with` -----------------------------------------------------------------------

    def _waiting_loop(self) -> asyncio.AbstractEventLoop:
        """A loop in which to wait, also for what another process runs."""
        if self._session is not None:
            return self._session.loop
        self._registry.restore(self._store)
        with self._changing:
            if self._watcher is None or not self._watcher.is_alive():
                self._watcher = threading.Thread(target=self._watch, daemon=True)
                self._watcher.start()
        return asyncio._get_running_loop() or background_loop()

    def _watch(self) -> None:
        """Hear of the ends of jobs that another process sees through, or none."""
        pause = 0.02
        while self._session is None and (waiting := self._registry.unended()):
            records = self._fresh(waiting)
            self._take_ends(records)
            if any(record.intent is None and not record.terminal for record in records):
                self._have_dispatched()
            time.sleep(pause)
            pause = min(pause * 1.5, 2.0)

    def _take_ends(self, records: Sequence[JobRecord]) -> None:
        for record in filter(has_ended, records):
            if unit := self._registry.owner(record.id):
                unit.took_end(record)

    def _have_dispatched(self) -> None:
        """Have a process submit what the one that added it did not come to."""
        from nemo_run.run.background import run_in_background

        with self._store.dispatching() as lock:
            if lock is not None:
                run_in_background(self._store, lock)

    # --- with -------------------------------------------------------------------------------------------

    def __enter__(self) -> LocalExperiment:
        loop = asyncio.new_event_loop()
        try:
            self._begin(loop)
        except BaseException:
            loop.close()
            raise
        self._thread = threading.Thread(target=run_loop, args=(loop,), name="experiment", daemon=True)
        self._thread.start()
        return self

    async def __aenter__(self) -> LocalExperiment:
        loop = asyncio.get_running_loop()
        self._begin(loop)
        stay_awake(loop, lambda: self._session is not None)
        return self

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._session is not None:
            raise StateError(f"experiment {self.store_id} has been entered already")
        refuse_while_loading()
        flags.name_idle()
        self._registry.restore(self._store)
        self._take_ends(self._fresh(self._registry.unended()))
        self._session = Session(self._store, self._registry, loop)
        self._token = core._current_experiment.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, thread = self._running(), self._thread
        assert thread
        left = error is not None
        try:
            if not left:
                left = True
                started(session.see_through(), session.loop).result()
                session.close()
                left = False
        finally:
            try:
                if left:
                    session.leave()
            finally:
                stop_loop(session.loop, thread)
                self._end(session)
        if error is None:
            session.raise_failure()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._running()
        left = error is not None
        try:
            if not left:
                left = True
                await session.see_through()
                await asyncio.to_thread(session.close)
                left = False
        finally:
            try:
                if left:
                    await asyncio.to_thread(session.leave)
            finally:
                self._end(session)
        if error is None:
            session.raise_failure()

    def _end(self, session: Session) -> None:
        session.end()
        if self._token is not None:
            with contextlib.suppress(ValueError):  # it was left in another context than it was entered in
                core._current_experiment.reset(self._token)
        self._session = self._thread = self._token = None


class _Context(core.MetadataContext):
    """Who made an experiment, and its title, which is kept."""

    def __init__(self, title: str, note: Callable[[], None], creator: str | None = None) -> None:
        super().__init__(creator or getpass.getuser(), _Annotations(title, note))


class _Annotations(core.ContextAnnotations):
    def __init__(self, title: str, note: Callable[[], None]) -> None:
        super().__init__(title)
        self._note = note

    def set_title(self, title: str) -> None:
        super().set_title(title)
        self._note()


class _Packaged(Pending[Executable]):
    """What packaging will make of something; whoever awaits it before `package` has it packaged then."""

    def __init__(self, experiment: LocalExperiment) -> None:
        super().__init__()
        self._experiment = experiment

    def __await__(self) -> Generator[Any, None, Executable]:
        return self._packaged().__await__()

    async def _packaged(self) -> Executable:
        if not self.done():
            await asyncio.to_thread(self._experiment.package)
        return await asyncio.wrap_future(self)

    def result(self, timeout: float | None = None) -> Executable:
        """What was made of it."""
        if not self.done():
            self._experiment.package()
        return super().result(timeout)


def _launch_source() -> str | None:
    """The text of the launching script, as it is now."""
    from nemo_run.core.main_module import launch_source

    script = launch_script()
    try:
        return script.read_text(encoding="utf-8") if script else launch_source()
    except (OSError, UnicodeDecodeError):
        return None
