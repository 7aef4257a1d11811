"""Jobs on any scheduler that TorchX knows; `torchx_scheduler.py` is the way back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.base import (
    Capability,
    Check,
    Executor,
    JobHandle,
    JobSpec,
    JobStatus,
    Plan,
    class_name,
)
from nemo_run.core.execution.checks import parse_bytes
from nemo_run.core.execution.probing import probe_home, probe_python
from nemo_run.core.execution.torchx_session import Session, app_name, is_local, session
from nemo_run.errors import NemoRunError, SubmitError, UnsupportedError
from nemo_run.shell import Expand, expands, exports, quote, through_shell

if TYPE_CHECKING:
    from torchx.specs import AppDef, Role

#: What TorchX has no means for, and what its scheduler of local processes ignores.
_NOWHERE = ("timeout", "monitor_resources")
_NOT_LOCAL = ("cpu_limit", "memory_limit", "gpus", "image", "retries")


@dataclass(kw_only=True)
class TorchXExecutor(Executor):
    """Runs tasks on a scheduler of TorchX.

    Jobs of `local_cwd` are processes that end with the one that launched them, so they cannot be detached.
    """

    #: "local_cwd", "local_docker", "slurm", "kubernetes", …: `torchx runopts` lists them and their options.
    scheduler: str = "local_cwd"
    #: Options of the scheduler.
    cfg: dict[str, Any] = field(default_factory=dict)
    #: What the job runs in, where the scheduler has images.
    image: str = ""
    #: GPUs of a job, where the scheduler hands them out.
    gpus: int = 0
    #: Whether jobs elsewhere find this machine's files, under the same paths.
    shared_files: bool = False

    # The base class says these for a class as a whole; here they depend on the scheduler.
    @property
    def capabilities(self) -> Capability:  # type: ignore[override]
        """Jobs can be detached unless they are children of this process."""
        return Capability.NONE if self._local else Capability.DETACH

    @property
    def remote(self) -> bool:  # type: ignore[override]
        """Whether jobs go on when this machine crashes."""
        return not self.scheduler.startswith("local_")

    @property
    def poll_interval(self) -> tuple[float, float]:  # type: ignore[override]
        """TorchX asks a cluster about each job in a call of its own, so not often."""
        return (0.01, 0.25) if self._local else (1.0, 15.0)

    @property
    def _local(self) -> bool:
        return is_local(self.scheduler)

    @property
    def _session(self) -> Session:
        return session(self.scheduler)

    def shares_files(self) -> bool:
        """As told; processes on this machine do."""
        return self._local or self.shared_files

    def parallel_limit(self) -> int | None:
        """As many local processes as there are processors; elsewhere the scheduler has a queue."""
        return super().parallel_limit() if self._local else None

    def cluster(self) -> str:
        """The scheduler."""
        return self.scheduler

    def info(self) -> str:
        """A few words on where jobs run."""
        return f"TorchX scheduler {self.scheduler}"

    def probe(self) -> Iterator[Check]:
        """Whether TorchX can make the scheduler, which imports and asks what it needs."""
        yield probe_home()
        if self.shares_files():
            yield probe_python(self.python)
        try:
            options = ", ".join(sorted(self._session.options))
        except NemoRunError as exc:
            yield Check(name="scheduler", ok=False, found=str(exc))
        else:
            yield Check(
                name="scheduler", ok=True, found=f"{self.scheduler}; its options: {options or 'none'}"
            )

    # --- planning ---------------------------------------------------------------------------------------

    def plan(self, spec: JobSpec) -> Plan:
        """What TorchX would send, by its own dry run; its id of the job and secrets are not in it."""
        self._refuse(spec)
        cfg = self._cfg(spec.job_dir)
        shown = self._session.dryrun(self._app(spec, reveal=False), cfg)
        return Plan(spec=spec, text=f"# {self.info()}\n{shown}\n", request=cfg)

    def _refuse(self, spec: JobSpec) -> None:
        for field_name in (*_NOWHERE, *(_NOT_LOCAL if self._local else ())):
            if getattr(self, field_name):
                raise self._unable(
                    field_name, f"has no means for {field_name}; leave it out, or see what cfg takes"
                )
        role = spec.app.roles[0]
        ours = any(str(spec.job_dir) in word for word in role.args) or self.packager.moves_code
        if ours and not self.shares_files():
            mend = "run a command that is in the image, or give shared_files=True where they do"
            raise self._unable("shared_files", f"runs jobs that do not find this machine's files; {mend}")
        if self.remote and any(not isinstance(value, str) for value in role.env.values()):
            raise self._unable("env_vars", "would write a secret down; have the cluster hand it to the job")

    def _unable(self, capability: str, why: str) -> UnsupportedError:
        message = f"TorchX's scheduler {self.scheduler!r} {why}"
        return UnsupportedError(message, executor=type(self).__name__, capability=capability)

    def _cfg(self, job_dir: Path) -> dict[str, Any]:
        """The options; logs of local jobs go to their folders, where TorchX would make a temporary one."""
        logs = os.path.abspath(self.cfg.get("log_dir") or job_dir / "logs" / "torchx")
        return {**self.cfg, "log_dir": logs} if self._local else dict(self.cfg)

    def _app(self, spec: JobSpec, *, reveal: bool) -> AppDef:
        """The job under a name of its own; made anew each time, as TorchX writes into what it is given."""
        from torchx.specs import AppDef, Resource, Role

        (role,), name = spec.app.roles, app_name(spec.token)
        argv = self._argv(role)
        memory = -(-parse_bytes(self.memory_limit) // 2**20) if self.memory_limit else -1
        env = {key: value for key, value in role.env.items() if not isinstance(value, Expand)}
        made = Role(
            name=name,
            image=self.image,
            entrypoint=argv[0],
            args=[_literal(word) for word in argv[1:]],
            env={key: _literal(_shown(value, reveal)) for key, value in env.items()},
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
        folder, path = quote(role.metadata["workdir"]), role.env.get("PATH")
        # TorchX adds to PATH, so one that was asked for is restored; one log keeps the order of the lines.
        restored = exports({"PATH": path}) if type(path) is str else ""
        script = f'mkdir -p -- {folder} && cd -- {folder} || exit 1\n{restored}exec "$@" 2>&1'
        return ["/bin/sh", "-c", script, "sh", *argv]

    # --- the rest is the session's ----------------------------------------------------------------------

    def submit(self, plan: Plan) -> JobHandle:
        """Have TorchX's runner send it."""
        app = self._app(plan.spec, reveal=True)
        try:
            app_handle, data = self._session.submit(app, plan.request, plan.spec)
        except Exception as exc:  # each scheduler has errors of its own
            refused = f"TorchX's {self.scheduler!r} refused job {plan.spec.id!r}: {exc}"
            raise SubmitError(refused, output=str(exc)) from exc
        return self._handle(app_handle, data)

    def find(self, token: str) -> JobHandle | None:
        """By the name that was made from the token."""
        job_dir = Path(self.job_dir)
        found = self._session.find(app_name(token), self._cfg(job_dir), job_dir)
        return self._handle(*found) if found else None

    def _handle(self, app_handle: str, data: Mapping[str, str]) -> JobHandle:
        return JobHandle(executor=class_name(type(self)), id=app_handle, data=data)

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """TorchX's words."""
        return [self._session.status(handle) for handle in handles]

    def cancel(self, handle: JobHandle) -> None:
        """Ask TorchX to end it."""
        self._session.cancel(handle)

    def logs(self, handle: JobHandle, role: str, replica: int = 0, *, follow: bool = False) -> Iterator[str]:
        """As TorchX gives them."""
        return self._session.logs(handle, replica, follow=follow)


def _literal(word: str) -> str:
    """Keep TorchX from substituting its macros."""
    return word.replace("$", "$$")


def _shown(value: Any, reveal: bool) -> str:
    """An environment's value, with the secret itself or a word for it."""
    if isinstance(value, str):
        return value
    return str(value.resolve()) if reveal else f"<{value}>"
