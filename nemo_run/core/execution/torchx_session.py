"""One scheduler of TorchX behind its runner: what this process has submitted, and what became of it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.base import TERMINAL, AppState, JobHandle, JobSpec, JobStatus
from nemo_run.core.logfile import read_lines
from nemo_run.core.process import end_orphans
from nemo_run.errors import ConfigError, MissingDependencyError, NotFoundError, SubmitError

if TYPE_CHECKING:
    from torchx.specs import AppDef

logger = logging.getLogger(__name__)

#: Where jobs are known by numbers, each has to be asked about, and schedulers list all they ever had.
_LOOK_BACK = 200
_MAKING = threading.Lock()
#: The runner's name: part of its handles, and of where local logs lie.
NAME = "nemo_run"


def is_local(scheduler: str) -> bool:
    """Whether TorchX keeps the jobs as children of the launching process; containers are the engine's."""
    return scheduler.startswith("local_") and scheduler != "local_docker"


class Session:
    """A scheduler whose jobs live elsewhere."""

    def __init__(self, scheduler: str) -> None:
        from torchx.runner.api import Runner
        from torchx.schedulers import get_scheduler_factories

        factories = get_scheduler_factories()
        if scheduler not in factories:
            raise ConfigError(str(NotFoundError("TorchX scheduler", scheduler, factories)))
        self.scheduler = scheduler
        self.runner = Runner(NAME, {scheduler: factories[scheduler]})
        # In the main thread a local scheduler would take SIGINT and SIGTERM over.
        with self._explained(), ThreadPoolExecutor(1) as thread:
            options = thread.submit(self.runner.scheduler_run_opts, scheduler).result()
        self.options = {name for name, _ in options}
        self._pid = os.getpid()
        atexit.register(self._close_at_exit)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in our words why TorchX cannot make a scheduler or a request."""
        named = f"TorchX's scheduler {self.scheduler!r}"
        try:
            yield
        except (ImportError, NameError) as exc:  # the latter where TorchX hides that an import failed
            mend = f'pip install "torchx[{self.scheduler}]"'
            raise MissingDependencyError(f"{named} lacks a library ({exc}); run: {mend}") from exc
        except Exception as exc:  # each scheduler has errors of its own
            raise ConfigError(f"{named} cannot run this: {exc}") from exc

    def dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> str:
        """The request, with dots for the random end of the id that TorchX gives to a job.

        Raises:
            ConfigError: the scheduler has no such option, or does not take the job.
            MissingDependencyError: a library is not installed.
        """
        for option in cfg.keys() - self.options:
            raise ConfigError(f"cfg: {NotFoundError('option', option, sorted(self.options))}")
        with self._explained():
            text = str(self.runner.dryrun(app, self.scheduler, cfg))
        for random in set(re.findall(rf"{app.name}-([a-z]\w{{7,}})", text)):
            text = text.replace(random, "…")
        return text

    def _close_at_exit(self) -> None:
        if os.getpid() == self._pid:
            self.close()

    def close(self) -> None:
        """Let go of the scheduler; jobs go on."""
        self.runner.close()

    def submit(self, app: AppDef, cfg: Mapping[str, Any], spec: JobSpec) -> tuple[str, dict[str, str]]:
        """Send a job; what its handle holds."""
        return self.runner.run(app, self.scheduler, cfg), {"name": app.name}

    def find(self, name: str, cfg: Mapping[str, Any], job_dir: Path) -> tuple[str, dict[str, str]] | None:
        """The job of this name among those that the scheduler lists.

        Raises:
            SubmitError: it does not answer, so that nobody can say whether the job is there.
        """
        try:
            apps = self.runner.list(self.scheduler)
            numbered = sorted((app for app in apps if app.app_id.isdigit()), key=lambda app: int(app.app_id))
            named = (app.app_handle for app in apps if name in app.app_id)
            cast = (
                app.app_handle for app in numbered[:-_LOOK_BACK:-1] if self._has_role(app.app_handle, name)
            )
            found = next(itertools.chain(named, cast), None)
        except Exception as exc:  # each scheduler has errors of its own
            refused = f"TorchX's {self.scheduler!r} does not list its jobs: {exc}"
            raise SubmitError(refused, output=str(exc)) from exc
        return (found, {"name": name}) if found else None

    def _has_role(self, app_handle: str, name: str) -> bool:
        described = self.runner.describe(app_handle)
        return described is not None and any(role.name == name for role in described.roles)

    def status(self, handle: JobHandle) -> JobStatus:
        """What the scheduler says; it does not say exit codes."""
        try:
            told = self.runner.status(handle.id)
        except Exception as exc:  # each scheduler has errors of its own
            return JobStatus(state=AppState.UNKNOWN, message=f"{type(exc).__name__}: {exc}")
        if told is None:
            return JobStatus(state=AppState.UNKNOWN, message=f"TorchX's {self.scheduler!r} knows no such job")
        state = AppState(int(told.state))
        message = told.msg if told.msg not in ("", "<NONE>") else ""
        return JobStatus(state=state, exit_code=0 if state == AppState.SUCCEEDED else None, message=message)

    def cancel(self, handle: JobHandle) -> None:
        """Ask for its end.

        Raises:
            SubmitError: the scheduler does not take it.
        """
        try:
            self.runner.cancel(handle.id)
        except Exception as exc:  # each scheduler has errors of its own
            raise SubmitError(f"TorchX cannot cancel {handle.id!r}: {exc}", output=str(exc)) from exc

    def logs(self, handle: JobHandle, replica: int, *, follow: bool) -> Iterator[str]:
        """The lines, without their ends."""
        return _whole_lines(
            self.runner.log_lines(handle.id, handle.data["name"], replica, should_tail=follow)
        )


class LocalSession(Session):
    """Processes that TorchX keeps as its children, and ends when it is closed.

    Asked about a job, it writes the job's end to a file. That file is what we go by: every process can read
    it, and TorchX had better not be asked once more, as each time it signals the process group, whose number
    may be another's by then.
    """

    def __init__(self, scheduler: str) -> None:
        super().__init__(scheduler)
        # At DEBUG level it writes down the whole environment of a job, with its secrets.
        logging.getLogger("torchx.schedulers.local_scheduler").setLevel(logging.WARNING)
        #: TorchX's scheduler is not made for threads.
        self._lock = threading.RLock()
        self._started: dict[str, JobHandle] = {}
        self._cancelling: dict[str, threading.Thread] = {}

    def close(self) -> None:
        """End what still runs, so that it is CANCELLED for whoever looks later."""
        for handle in list(self._started.values()):
            if self.status(handle).state not in TERMINAL:
                self._end(handle)
        super().close()

    def submit(self, app: AppDef, cfg: Mapping[str, Any], spec: JobSpec) -> tuple[str, dict[str, str]]:
        """Start a process, unless an earlier submission did."""
        with self._lock:
            if earlier := self.find(app.name, cfg, spec.job_dir):
                return earlier
            Path(cfg["log_dir"]).mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                app_handle, data = super().submit(app, cfg, spec)
            except Exception:
                for folder in _folders(app.name, cfg):  # it is there before the process is
                    shutil.rmtree(folder)
                raise
            [folder] = _folders(app.name, cfg)
            data |= {"folder": str(folder), "job_dir": str(spec.job_dir)}
            self._started[app_handle] = JobHandle(executor="", id=app_handle, data=data)
        _link(spec.job_dir / "logs" / f"{spec.app.roles[0].name}_0.log", _log(data, 0), spec.job_dir)
        return app_handle, data

    def find(self, name: str, cfg: Mapping[str, Any], job_dir: Path) -> tuple[str, dict[str, str]] | None:
        """The job whose log folder has this name, whichever process started it."""
        for folder in _folders(name, cfg):
            data = {"name": name, "folder": str(folder), "job_dir": str(job_dir)}
            return f"{self.scheduler}://{NAME}/{folder.name}", data
        return None

    def status(self, handle: JobHandle) -> JobStatus:
        """From the file with the job's end; until it is there only the launching process knows."""
        folder = Path(handle.data["folder"])
        if not folder.is_dir():
            return JobStatus(state=AppState.UNKNOWN, message=f"its folder is gone: {folder}")
        started = (folder / handle.data["name"]).stat().st_mtime
        with self._lock:
            thread = self._cancelling.get(handle.id)
            if thread and thread.is_alive():
                return JobStatus(state=AppState.RUNNING, message="being cancelled", started=started)
            known = handle.id in self._started
            if known and (told := super().status(handle)).state == AppState.UNKNOWN:
                return told
            if end := _read_end(folder, started):
                self._forget(handle)
                return end
        if known:
            return JobStatus(state=AppState.RUNNING, started=started)
        return JobStatus(state=AppState.UNKNOWN, message="it is known to the process that launched it alone")

    def _forget(self, handle: JobHandle) -> None:
        """Have TorchX forget a job too, as it signals all it remembers when it is closed."""
        self._started.pop(handle.id, None)
        self._cancelling.pop(handle.id, None)
        apps: dict[str, Any] = getattr(self.runner._scheduler(self.scheduler), "_apps", {})
        apps.pop(Path(handle.data["folder"]).name, None)

    def cancel(self, handle: JobHandle) -> None:
        """End it from a thread, as TorchX waits for its end."""
        with self._lock:
            status = self.status(handle)
            if status.state in TERMINAL or handle.id in self._cancelling:
                return
            if status.state == AppState.UNKNOWN:
                if not Path(handle.data["folder"]).is_dir():
                    return
                raise SubmitError(f"cannot cancel {handle.id!r} from here: {status.message}")
            thread = self._cancelling[handle.id] = threading.Thread(target=self._end, args=(handle,))
            thread.start()

    def _end(self, handle: JobHandle) -> None:
        """Have TorchX end the process group and write that down, then end who has left the group."""
        try:
            super().cancel(handle)
        except SubmitError as exc:
            logger.error("%s", exc)
        end_orphans(handle.data["job_dir"])

    def logs(self, handle: JobHandle, replica: int, *, follow: bool) -> Iterator[str]:
        """From the file; TorchX would wait for the job's end in any case."""
        running = AppState.RUNNING
        return read_lines(_log(handle.data, replica), lambda: follow and self.status(handle).state == running)


@functools.cache
def _make(scheduler: str, pid: int) -> Session:
    return (LocalSession if is_local(scheduler) else Session)(scheduler)


def session(scheduler: str) -> Session:
    """This process's one session with a scheduler: TorchX keeps what it started in memory."""
    with _MAKING:
        # The children of a process are not those of its forks, which would take them for ended.
        return _make(scheduler, os.getpid())


def app_name(token: str) -> str:
    """A name by which a job is found again, fit for every scheduler."""
    job = re.sub(r"[^a-z0-9]+", "-", token.split("/")[-2:][0].lower()).strip("-")
    return f"{job[:20].rstrip('-') or 'job'}-{hashlib.sha256(token.encode()).hexdigest()[:12]}"


def _folders(name: str, cfg: Mapping[str, Any]) -> list[Path]:
    """TorchX's folders for jobs of this name: none or one, as names are made from tokens."""
    return list(Path(cfg["log_dir"], NAME).glob(f"{name}-*"))


def _log(data: Mapping[str, str], replica: int) -> Path:
    return Path(data["folder"], data["name"], str(replica), "stdout.log")


def _link(path: Path, log: Path, job_dir: Path) -> None:
    """Have the log where those of all jobs are; by a path that holds in a copy of the folder, if it can."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(log, path.parent) if log.is_relative_to(job_dir) else log)


def _read_end(folder: Path, started: float) -> JobStatus | None:
    """What TorchX wrote of a job's end; a job that it ended itself was still running for it."""
    path = folder / "SUCCESS"  # it is called so whatever the end
    try:
        end, ended = json.loads(path.read_bytes()), path.stat().st_mtime
    except (OSError, ValueError):
        return None  # not there, or not yet whole
    state = AppState[end["final_state"]]
    if state not in TERMINAL:
        state = AppState.CANCELLED
    [[replica]] = end["roles"].values()
    code = replica["exitcode"]
    exit_code = 128 - code if code < 0 else code
    message = "" if state == AppState.SUCCEEDED else _words(code)
    return JobStatus(state=state, exit_code=exit_code, message=message, started=started, ended=ended)


def _words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _whole_lines(pieces: Iterable[str]) -> Iterator[str]:
    """Lines without their ends; TorchX may break one in two where it read it in two."""
    line = ""
    for piece in pieces:
        line += piece
        if line.endswith("\n"):
            yield line.removesuffix("\n")
            line = ""
    if line:
        yield line
