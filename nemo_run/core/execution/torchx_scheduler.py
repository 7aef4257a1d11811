"""An executor as a scheduler of TorchX, for programs that drive TorchX's own runner."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler, Stream, filter_regex
from torchx.schedulers.ids import make_unique
from torchx.specs import AppDef, AppDryRunInfo, AppState, ReplicaStatus, Role, RoleStatus, macros

from nemo_run.core.execution.base import Capability, Executor, JobHandle, JobSpec, Plan
from nemo_run.core.packaging.base import Packager
from nemo_run.core.runner import JOB_DIR, write
from nemo_run.errors import NotFoundError, UnsupportedError
from nemo_run.home import get_nemorun_home, open_home


class ExecutorScheduler(Scheduler[Mapping[str, Any]]):
    """Runs TorchX's apps on an executor; a job is known under NEMORUN_HOME, so from any process::

        factories = {"nemo": lambda session_name, **_: ExecutorScheduler(session_name, run.LocalExecutor())}
        runner = torchx.runner.Runner("mine", factories)

    The executor says where and within which limits an app runs. As with TorchX's own `local_cwd`, a role's
    resources are no limits and its image is not used, unless the executor has a use for them.

    Args:
        session_name: As the runner gives it.
        executor: Where the apps run.

    Raises:
        UnsupportedError: the executor has a launcher or a packager, which TorchX has means of its own for.
    """

    def __init__(self, session_name: str, executor: Executor) -> None:
        super().__init__("nemo_run", session_name)
        self._executor = executor
        for unused, given in (
            ("launcher", executor.launcher is not None),
            ("packager", type(executor.packager) is not Packager),
        ):
            if given:
                _refuse(
                    executor,
                    unused,
                    "leave it out: a TorchX component starts processes and brings code itself",
                )

    # --- submitting -------------------------------------------------------------------------------------

    def _validate(self, app: AppDef, scheduler: str) -> None:
        replicas = sum(role.num_replicas for role in app.roles)
        if replicas > 1 and Capability.GROUPS not in self._executor.capabilities:
            _refuse(
                self._executor,
                "GROUPS",
                f"it runs no apps of several replicas, and {app.name!r} has {replicas}",
            )
        if any(role.mounts for role in app.roles):
            _refuse(self._executor, "mounts", f"it has no use for the mounts of {app.name!r}")

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[Plan]:
        app_id = make_unique(re.sub(r"[^\w.-]+", "-", app.name).strip(".-") or "app")
        executor = self._executor_of(app_id)
        executor.retries = max(executor.retries, *(role.max_retries for role in app.roles))
        roles = [
            self._replica(role, at, app_id, executor) for role in app.roles for at in range(role.num_replicas)
        ]
        spec = JobSpec(
            id=app.name,
            experiment_id=self.session_name,
            app=AppDef(name=app.name, roles=roles, metadata=app.metadata),
            members=(executor,) * len(roles),
            job_dir=_folder(app_id),
            token=app_id,
        )
        return AppDryRunInfo(executor.plan(spec), lambda plan: plan.text)

    def _executor_of(self, app_id: str) -> Executor:
        executor = copy.deepcopy(self._executor)
        executor.assign(self.session_name, str(_folder(app_id).parent), app_id, app_id)
        return executor

    def _replica(self, role: Role, at: int, app_id: str, executor: Executor) -> Role:
        """One replica as a role of its own, in the folder that `local_cwd` would run it in too."""
        folder = os.path.abspath(os.path.expanduser(executor.working_dir or "."))
        head = "TORCHX_RANK0_HOST"
        values = macros.Values(img_root=folder, app_id=app_id, replica_id=str(at), rank0_env=head)
        filled = values.apply(role)
        env: dict[str, Any] = {**executor.env_vars, **filled.env, head: executor.topology().head_address}
        env.setdefault(JOB_DIR, str(executor.rundir(_folder(app_id))))
        metadata = {**filled.metadata, "workdir": folder, "task": None}
        return replace(filled, name=_member(role.name, at), num_replicas=1, env=env, metadata=metadata)

    def schedule(self, dryrun_info: AppDryRunInfo[Plan]) -> str:
        """Submit a plan; what is needed to find the job again is written down before and after."""
        plan = dryrun_info.request
        spec, app = plan.spec, dryrun_info._app
        open_home()
        spec.job_dir.mkdir(mode=0o700, parents=True)
        roles = [
            {
                "name": r.name,
                "image": r.image,
                "entrypoint": r.entrypoint,
                "args": r.args,
                "num_replicas": r.num_replicas,
            }
            for r in (app.roles if app else ())
        ]
        record: dict[str, Any] = {"session": self.session_name, "roles": roles, "handle": None}
        _write(spec.job_dir, record)
        try:
            handle = spec.members[0].submit(plan)
        except BaseException:
            shutil.rmtree(spec.job_dir, ignore_errors=True)
            raise
        _write(spec.job_dir, record | {"handle": handle.to_json()})
        return spec.token

    # --- looking and ending -----------------------------------------------------------------------------

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """What has become of an app, whichever process submitted it."""
        record, handle = self._find(app_id)
        if handle is None:
            return None
        [status] = self._executor_of(app_id).status([handle])
        state = AppState(int(status.state))
        roles = [Role(**role) for role in record["roles"]]
        return DescribeAppResponse(
            app_id=app_id,
            state=state,
            num_restarts=status.attempt - 1,
            msg=status.message,
            ui_url=(_folder(app_id) / "logs").as_uri(),
            roles=roles,
            roles_statuses=[_role_status(role, state) for role in roles],
        )

    def list(self) -> list[ListAppResponse]:
        """The apps of this session, asked about in one call."""
        found = [
            (path.parent.name, *self._find(path.parent.name)) for path in sorted(_root().glob("*/app.json"))
        ]
        ours = [
            (app_id, handle)
            for app_id, record, handle in found
            if handle and record["session"] == self.session_name
        ]
        statuses = self._executor.status([handle for _, handle in ours])
        return [
            ListAppResponse(app_id=app_id, state=AppState(int(status.state)))
            for (app_id, _), status in zip(ours, statuses, strict=True)
        ]

    def _cancel_existing(self, app_id: str) -> None:
        _, handle = self._find(app_id)
        if handle:
            self._executor_of(app_id).cancel(handle)

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """The lines of a replica, with their ends; times are not known, so `since` and `until` are not used.

        Raises:
            NotFoundError: there is no such app, role or replica.
            ValueError: one stream alone is asked for; both are in one log.
        """
        if streams not in (None, Stream.COMBINED):
            raise ValueError(f"stdout and stderr of {app_id!r} are in one log; leave out streams={streams}")
        record, handle = self._find(app_id)
        if handle is None:
            raise NotFoundError("app", app_id)
        members = [
            _member(role["name"], at) for role in record["roles"] for at in range(role["num_replicas"])
        ]
        if (member := _member(role_name, k)) not in members:
            raise NotFoundError("replica", member, members)
        logs = self._executor_of(app_id).logs(handle, member, follow=should_tail)
        lines = (line + "\n" for line in logs)
        return filter_regex(regex, lines) if regex else lines

    def _find(self, app_id: str) -> tuple[dict[str, Any], JobHandle | None]:
        """An app's record and handle; an executor that never answered is asked for the job."""
        try:
            record: dict[str, Any] = json.loads((_folder(app_id) / "app.json").read_bytes())
        except (FileNotFoundError, ValueError):  # a record that was spoilt hides no other
            return {}, None
        if record["handle"]:
            return record, JobHandle.from_json(record["handle"])
        return record, self._executor_of(app_id).find(app_id)


def _refuse(executor: Executor, capability: str, why: str) -> None:
    name = type(executor).__name__
    raise UnsupportedError(f"{name} as a TorchX scheduler: {why}", executor=name, capability=capability)


def _root() -> Path:
    return get_nemorun_home() / "torchx"


def _folder(app_id: str) -> Path:
    return _root() / app_id


def _write(job_dir: Path, record: Mapping[str, Any]) -> None:
    write(str(job_dir / "app.json"), json.dumps(record, indent=1) + "\n")


def _member(role: str, replica: int) -> str:
    return f"{role}-{replica}"


def _role_status(role: Role, state: AppState) -> RoleStatus:
    replicas = [
        ReplicaStatus(id=at, state=state, role=role.name, hostname="") for at in range(role.num_replicas)
    ]
    return RoleStatus(role.name, replicas)
