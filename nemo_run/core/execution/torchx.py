"""Jobs on any scheduler that TorchX knows; `torchx_scheduler.py` is the way back."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nemo_run.core.execution.base import (
    TERMINAL,
    AppState,
    Capability,
    Executor,
    JobHandle,
    JobSpec,
    JobStatus,
    Plan,
    class_name,
    parse_bytes,
)
from nemo_run.core.execution.local import _lines as read_lines
from nemo_run.errors import ConfigError, MissingDependencyError, NotFoundError, SubmitError, UnsupportedError
from nemo_run.shell import Expand, expands, exports, quote, through_shell

if TYPE_CHECKING:
    from torchx.specs import AppDef, Role

#: TorchX's session: it is part of its handles and of the path of its logs.
SESSION = "nemo_run"
#: What TorchX has no means for, and what its scheduler of local processes ignores.
_NOWHERE = ("timeout", "monitor_resources")
_NOT_HERE = ("cpu_limit", "memory_limit", "gpus", "image", "retries")


@dataclass(kw_only=True)
class TorchXExecutor(Executor):
    """Runs tasks on a scheduler of TorchX.

    Jobs of `local_cwd` are processes that end with the one that launched them; they cannot be detached.
    """

    #: "local_cwd", "local_docker", "slurm", "kubernetes", …: `torchx runopts` lists them and their options.
    scheduler: str = "local_cwd"
    #: Options of the scheduler.
    cfg: dict[str, Any] = field(default_factory=dict)
    #: What the job runs in, where the scheduler has images.
    image: str = ""
    #: GPUs of a job, where the scheduler hands them out.
    gpus: int = 0
    #: Whether jobs find this machine's files under the same paths; None: if they run on it.
    shared_files: bool | None = None

    # The base class declares these for a class as a whole; here they depend on the scheduler.
    @property
    def capabilities(self) -> Capability:  # type: ignore[override]
        """Detached jobs, unless they are children of this process."""
        return Capability.NONE if self._here else Capability.DETACH

    @property
    def remote(self) -> bool:  # type: ignore[override]
        """Whether jobs go on when this machine crashes."""
        return not self.scheduler.startswith("local_")

    @property
    def poll_interval(self) -> tuple[float, float]:  # type: ignore[override]
        """A cluster is asked about each job in a call of its own, so not often."""
        return (0.01, 0.25) if self._here else (1.0, 15.0)

    @property
    def _here(self) -> bool:
        """Whether TorchX keeps the jobs as children of this process; containers are the engine's."""
        return self.scheduler.startswith("local_") and self.scheduler != "local_docker"

    def shares_files(self) -> bool:
        """As told, or whether jobs are processes on this machine."""
        return self._here if self.shared_files is None else self.shared_files

    def parallel_limit(self) -> int | None:
        """As many local processes as there are processors; elsewhere the scheduler has a queue."""
        return super().parallel_limit() if self._here else None

    def cluster(self) -> str:
        """The scheduler."""
        return self.scheduler

    def info(self) -> str:
        """A few words on where jobs run."""
        return f"TorchX scheduler {self.scheduler}"

    # --- planning and submitting ------------------------------------------------------------------------

    def plan(self, spec: JobSpec) -> Plan:
        """What TorchX would send, by its own dry run; its ids and our secrets are not known yet."""
        self._refuse(spec)
        session, cfg = _session(self.scheduler), self._cfg(spec.job_dir)
        for option in cfg.keys() - session.options.keys():
            why = NotFoundError("option", option, sorted(session.options))
            raise ConfigError(f"{type(self).__name__}.cfg for {self.scheduler!r}: {why}")
        app = self._app(spec, reveal=False)
        try:
            shown = str(session.runner.dryrun(app, self.scheduler, cfg))
        except Exception as exc:  # each scheduler has errors of its own
            raise ConfigError(f"TorchX's {self.scheduler!r} cannot run job {spec.id!r}: {exc}") from exc
        text = re.sub(rf"{app.name}-\w+", f"{app.name}-…", shown)
        return Plan(spec=spec, text=f"# {self.info()}\n{text}\n", request=cfg)

    def _refuse(self, spec: JobSpec) -> None:
        name = type(self).__name__
        for unable in (*_NOWHERE, *(_NOT_HERE if self._here else ())):
            if getattr(self, unable):
                reason = f"TorchX's {self.scheduler!r} has no means for it; leave it out, or use cfg"
                raise UnsupportedError(f"{name}.{unable}: {reason}", executor=name, capability=unable)
        role = spec.app.roles[0]
        ours = any(str(spec.job_dir) in word for word in role.args) or (spec.job_dir / "code").is_dir()
        if ours and not self.shares_files():
            reason = f"jobs of TorchX's {self.scheduler!r} do not see the files of this machine"
            mend = "give a command that is in the image, or shared_files=True where they do"
            raise UnsupportedError(
                f"job {spec.id!r}: {reason}; {mend}", executor=name, capability="shared_files"
            )

    def _cfg(self, job_dir: Path) -> dict[str, Any]:
        """The options; local logs go to the job's folder, as TorchX makes a temporary one otherwise."""
        logs = os.path.abspath(self.cfg.get("log_dir") or job_dir / "logs" / "torchx")
        return {**self.cfg, "log_dir": logs} if self._here else dict(self.cfg)

    def _app(self, spec: JobSpec, *, reveal: bool) -> AppDef:
        """The job with a name of its own, made anew because TorchX writes into what it is given."""
        from torchx.specs import AppDef, Resource, Role

        (role,), name = spec.app.roles, _name(spec.token)
        argv = self._argv(role)
        memory = -(-parse_bytes(self.memory_limit) // 2**20) if self.memory_limit else -1
        made = Role(
            name=name,
            image=self.image,
            entrypoint=argv[0],
            args=[_literal(word) for word in argv[1:]],
            env={key: _literal(_shown(value, reveal)) for key, value in _plain(role.env).items()},
            max_retries=role.max_retries,
            resource=Resource(cpu=self.cpu_limit or -1, gpu=self.gpus, memMB=memory),
        )
        return AppDef(name=name, roles=[made])

    def _argv(self, role: Role) -> list[str]:
        """The command, through a shell where it takes one to expand words or to change the folder."""
        argv = [role.entrypoint, *role.args]
        if expands(argv, role.env):
            argv = through_shell(argv, role.env)
        if not (self.shares_files() or self.working_dir):
            return argv
        folder = quote(role.metadata["workdir"])
        # TorchX adds to PATH; where one was asked for it is restored here.
        path = exports({key: value for key, value in _plain(role.env).items() if key == "PATH"})
        script = f'mkdir -p -- {folder} && cd -- {folder} || exit 1\n{path}exec "$@"'
        return ["/bin/sh", "-c", script, "sh", *argv]

    def submit(self, plan: Plan) -> JobHandle:
        """Have TorchX's runner send it, once."""
        session, spec = _session(self.scheduler), plan.spec
        if self._here and (earlier := self._find_here(spec.token, spec.job_dir)):
            return earlier
        app = self._app(spec, reveal=True)
        try:
            with session.lock:
                if self._here:
                    Path(plan.request["log_dir"]).mkdir(mode=0o700, parents=True, exist_ok=True)
                app_handle = session.runner.run(app, self.scheduler, plan.request)
        except Exception as exc:  # each scheduler has errors of its own
            refused = f"TorchX's {self.scheduler!r} refused job {spec.id!r}: {exc}"
            raise SubmitError(refused, output=str(exc)) from exc
        if not self._here:
            return self._handle(app_handle, name=app.name)
        folder = Path(plan.request["log_dir"], SESSION, app_handle.rpartition("/")[2])
        handle = self._handle(app_handle, name=app.name, folder=str(folder), job_dir=str(spec.job_dir))
        _link(spec.job_dir / "logs" / f"{spec.app.roles[0].name}_0.log", _log(handle))
        return handle

    def _handle(self, app_handle: str, **data: str) -> JobHandle:
        return JobHandle(executor=class_name(type(self)), id=app_handle, data=data)

    def find(self, token: str) -> JobHandle | None:
        """By the name made from the token: that of a log folder, or part of what the scheduler lists."""
        if self._here:
            return self._find_here(token, Path(self.job_dir))
        session, name = _session(self.scheduler), _name(token)
        try:
            for app in session.runner.list(self.scheduler):
                if name in app.app_id or session.has_role(app.app_handle, name):
                    return self._handle(app.app_handle, name=name)
        except Exception as exc:  # each scheduler has errors of its own
            refused = f"TorchX's {self.scheduler!r} does not list its jobs: {exc}"
            raise SubmitError(refused, output=str(exc)) from exc
        return None

    def _find_here(self, token: str, job_dir: Path) -> JobHandle | None:
        name = _name(token)
        for folder in Path(self._cfg(job_dir)["log_dir"], SESSION).glob(f"{name}-*"):
            app_handle = f"{self.scheduler}://{SESSION}/{folder.name}"
            return self._handle(app_handle, name=name, folder=str(folder), job_dir=str(job_dir))
        return None

    # --- looking and ending -----------------------------------------------------------------------------

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """TorchX's words."""
        session = _session(self.scheduler)
        return [session.status_here(handle) if self._here else session.status(handle) for handle in handles]

    def cancel(self, handle: JobHandle) -> None:
        """A local job is ended from a thread, as TorchX waits for it."""
        session = _session(self.scheduler)
        if self._here:
            return session.cancel_here(handle)
        try:
            session.runner.cancel(handle.id)
        except Exception as exc:  # each scheduler has errors of its own
            raise SubmitError(f"TorchX cannot cancel {handle.id!r}: {exc}", output=str(exc)) from exc

    def logs(self, handle: JobHandle, role: str, replica: int = 0, *, follow: bool = False) -> Iterator[str]:
        """Local ones from their file, as TorchX would wait for the end of the job in any case."""
        session = _session(self.scheduler)
        if not self._here:
            return _whole_lines(
                session.runner.log_lines(handle.id, handle.data["name"], replica, should_tail=follow)
            )
        running = (AppState.PENDING, AppState.RUNNING)
        return read_lines(_log(handle), lambda: follow and session.status_here(handle).state in running)


class _Session:
    """TorchX's runner with one of its schedulers; local ones remember what they started, so it is kept."""

    def __init__(self, scheduler: str, here: bool) -> None:
        from torchx.runner import Runner
        from torchx.schedulers import get_scheduler_factories

        # At DEBUG level it writes down whole environments, and secrets are among them.
        logging.getLogger("torchx.schedulers.local_scheduler").setLevel(logging.WARNING)
        factories = get_scheduler_factories()
        if scheduler not in factories:
            raise ConfigError(str(NotFoundError("TorchX scheduler", scheduler, factories)))
        self.runner = Runner(SESSION, {scheduler: factories[scheduler]})
        #: Local schedulers are not made for threads.
        self.lock: AbstractContextManager[Any] = threading.RLock() if here else contextlib.nullcontext()
        self._cancelling: dict[str, threading.Thread] = {}
        try:
            # In the main thread a local scheduler would take SIGINT and SIGTERM over.
            with ThreadPoolExecutor(1) as thread:
                self.options = dict(thread.submit(self.runner.scheduler_run_opts, scheduler).result())
        except ImportError as exc:
            what = f"TorchX's {scheduler!r} needs {exc.name}"
            raise MissingDependencyError(f'{what}; run: pip install "torchx[{scheduler}]"') from exc
        atexit.register(self.close)

    def close(self) -> None:
        """End what runs here, each with a record of its end."""
        for app in self.started:
            ...

