"""An experiment to which jobs are added while it runs: one thread dispatches it, any thread may add."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_run.errors import ConfigError
from nemo_run.run import look
from nemo_run.run.app import make_spec
from nemo_run.run.dispatch import Dispatcher
from nemo_run.run.job import Job, check_jobs, check_launchers, check_secrets
from nemo_run.run.launch import git_record, launch_record, record_files
from nemo_run.run.ledger import OnChange
from nemo_run.run.packages import check_packagers, find_origins, take_packages
from nemo_run.run.records import JobRecord
from nemo_run.run.script import LaunchingScript
from nemo_run.run.store import Store, new_id, scan

#: Seconds to wait for whoever may only be looking.
_PATIENCE = 1.0


def create(title: str, main: str | None = None, files: Mapping[str, str] | None = None) -> Store:
    """An experiment without jobs, with a number at the end of its id that no other here has.

    Args:
        title: What experiments of this kind are called.
        main: The text of the launching script.
        files: More to write: text by path below the experiment's folder.

    Raises:
        ConfigError: the title cannot be one.
        StoreError: it cannot be written.
    """
    if not isinstance(title, str) or not title:
        raise ConfigError(f"an experiment's title is a text, not {title!r}")
    written = dict(files or {}) | ({} if main is None else {"main.py": main})
    taken = {path.name.rpartition("_")[2] for path in scan()}
    stamp = time.time_ns() // 1_000_000
    while True:
        if str(stamp) not in taken:
            record = launch_record(new_id(title, stamp), title, [])
            try:
                return Store.create(replace(record, grows=True), written)
            except FileExistsError:  # another process was quicker
                pass
        stamp += 1


class Growing:
    """Dispatches an experiment in a thread of its own, from `start` until `close`.

    Args:
        store: The experiment.
        on_change: Called with each record that changed, by whichever thread changed it.
        on_end: Called when no more records will change, with what kept jobs from being dispatched, if
            anything did.
    """

    def __init__(
        self,
        store: Store,
        on_change: OnChange | None = None,
        on_end: Callable[[BaseException | None], None] | None = None,
    ) -> None:
        self.store = store
        self._on_change = on_change
        self._on_end = on_end or (lambda error: None)
        self._main = LaunchingScript(_text(store.path / "main.py"))
        self._adding = threading.Lock()
        self._dispatcher: Dispatcher | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begin to dispatch; jobs that the experiment has already are seen through too.

        Raises:
            ConfigError: another process does.
        """
        begun = threading.Event()
        name = f"dispatch {self.store.id}"
        self._thread = threading.Thread(target=self._dispatch, args=(begun,), name=name, daemon=True)
        self._thread.start()
        begun.wait()
        self._raise_error()

    def _dispatch(self, begun: threading.Event) -> None:
        try:
            with self._dispatching():
                known = look.load_jobs(self.store)
                self._dispatcher = Dispatcher(self.store, known, on_change=self._on_change, growing=True)
                begun.set()
                with git_record(self.store, Path.cwd()):
                    self._dispatcher.run()
        except BaseException as exc:  # raised where somebody waits for it
            self._error = exc
        finally:
            begun.set()
            if self._dispatcher:
                self._on_end(self._error)

    @contextlib.contextmanager
    def _dispatching(self) -> Iterator[None]:
        """Hold the experiment's lock; one who only looks whether somebody does holds it for a moment too."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            with self.store.dispatching() as ours:
                if ours is not None:
                    yield
                    return
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"experiment {self.store.id!r} is being run by another process; add jobs there, or wait"
                    f" until it has ended: nemo experiment wait {self.store.id}"
                )
            time.sleep(0.05)

    def record(self, job_id: str) -> JobRecord | None:
        """What is known of a job at this moment."""
        return self._dispatcher.records.get(job_id) if self._dispatcher else None

    def add(self, jobs: Sequence[Job], files: Mapping[str, str] | None = None) -> None:
        """Check jobs, write them down and have them started; from any thread.

        Args:
            jobs: The jobs; they may depend on each other.
            files: More to write: text by path below the experiment's folder.

        Raises:
            ConfigError: something cannot work; none of them is added.
            StoreError: they cannot be written.
            FileExistsError: there is a job of such an id.
        """
        assert self._dispatcher, "not started"
        self._raise_error()
        trees = self._check(jobs)
        for executor in {(type(e), e.cluster()): e for job in jobs for e in job.executors[:1]}.values():
            executor.connect()
        with self._adding:
            packages = take_packages(jobs, Path.cwd(), None)
            written = record_files(list(jobs), trees, self._main, self.store.id, packages) | dict(files or {})
            written.pop("main.py", None)
            self.store.add_jobs([job.entry() for job in jobs], written)
            self._dispatcher.add({job.id: job for job in jobs})

    def _check(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """Find what can be known to fail before anything is written; returns the tasks' trees by job id."""
        for job in jobs:
            for executor in job.executors:
                executor.assign(self.store.id, str(self.store.path), job.id, job.id)
        check_jobs({job.id: job for job in jobs})
        check_packagers(jobs)
        find_origins(jobs, Path.cwd())
        check_secrets(jobs)
        check_launchers(jobs)
        trees = {job.id: job.trees() for job in jobs}
        record = self.store.experiment()
        for job in jobs:
            job.executors[0].plan(make_spec(job, trees[job.id], record, self.store.path))
        return trees

    def cancel(self, job_ids: Iterable[str] | None = None) -> None:
        """Ask jobs (all of them by default) to end; it does not wait."""
        named = [entry.id for entry in self.store.experiment().jobs] if job_ids is None else list(job_ids)
        try:
            look.cancel(self.store, named)
        finally:
            if self._dispatcher:
                self._dispatcher.heed(named)

    def close(self, timeout: float | None = None) -> bool:
        """Wait until all jobs have ended, as no more are to come; False where that takes longer.

        Raises:
            Exception: whatever kept the jobs from being dispatched.
        """
        if self._dispatcher:
            self._dispatcher.close()
        deadline = None if timeout is None else time.monotonic() + timeout
        # Not all at once: a signal that comes just before a wait begins does not end it.
        while self._thread and self._thread.is_alive() and (not deadline or time.monotonic() < deadline):
            self._thread.join(0.2)
        self._raise_error()
        return self._thread is None or not self._thread.is_alive()

    def _raise_error(self) -> None:
        if self._error:
            raise self._error


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
