"""The custom job of Vertex AI that a submission is: pure data, made from its specification."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.base import JobSpec, Plan
from nemo_run.core.execution.checks import check_whole_job
from nemo_run.core.execution.launcher import Launcher, get_launcher
from nemo_run.core.execution.vertex import LIBRARY, RUNDIR, STRATEGIES, unable
from nemo_run.core.execution.vertex_files import library_digest
from nemo_run.core.packaging.image import planned_image
from nemo_run.errors import ConfigError
from nemo_run.shell import expands, exports, join, through_shell

if TYPE_CHECKING:
    from torchx.specs import Role

    from nemo_run.core.execution.vertex import VertexExecutor

#: The labels by which jobs are found.
TOKEN, EXPERIMENT = "nemo_run", "nemo_run_experiment"
#: Settings that hold for a job as a whole, so that all members of a group must agree on them.
_WHOLE_JOB = (
    "timeout", "retries", "project", "region", "staging_bucket", "service_account", "scheduling", "max_wait",
    "restart_on_worker_restart", "retry_internal_errors", "network", "tensorboard", "base_output_dir",
    "persistent_resource", "enable_web_access", "labels", "api_endpoint", "storage_endpoint",
    "logging_endpoint",
)  # fmt: skip
_NO_MEANS = {
    "retries": "starts a job again only after errors that are not the task's; leave retries out",
    "memory_limit": "gives each container a machine of its own; ask for its size by memory",
    "cpu_limit": "gives each container a machine of its own; ask for its size by cpus",
    "monitor_resources": "shows the use of CPU, memory and GPUs in Google's console; leave that out",
}
#: A bucket may take its time to be mounted.
_WAIT = 'n=0; until [ -e "$0" ] || [ "$n" -ge 60 ]; do sleep 1; n=$((n+1)); done; exec /bin/sh "$0" "$@"'
_START = Path(__file__).with_name("vertex_start.sh")
_MOST_POOLS, _MOST_VARIABLES = 4, 100


def plan(executor: VertexExecutor, spec: JobSpec) -> Plan:
    """What is sent to Vertex AI, and what is put into the bucket before that.

    Raises:
        UnsupportedError: something asked for cannot be done there.
        ConfigError: the job needs a bucket, and none is given.
    """
    _refuse(spec)
    pools = _pools(spec)
    stage = _stage(executor, spec)
    maker = _Containers(spec, pools, stage)
    containers = [maker.container(at) for at in range(len(spec.members))]
    job = {
        "displayName": f"{spec.experiment_id}/{spec.id}"[:128],
        "labels": {**executor.labels, TOKEN: digest(spec.token), EXPERIMENT: digest(spec.experiment_id)},
        "jobSpec": {
            "workerPoolSpecs": [
                {**_pool(_members(spec)[at], count), "containerSpec": containers[at]} for at, count in pools
            ],
            **_job_spec(executor, stage),
        },
    }
    request = {
        "token": spec.token,
        "job": job,
        "stage": stage if maker.starts else "",
        "bucket": executor.staging()[0].name if executor.staging_bucket else "",
        "starts": maker.starts,
        "archives": _archives(executor, spec, stage),
        "code": str(spec.package["code"]) if spec.package and executor.packager.copies_code else None,
        "builds": [
            build
            for member in _members(spec)
            if (build := planned_image(member.packager, member.container_image, spec.package))
        ],
        "endpoints": [executor.endpoint, executor.storage_endpoint, executor.logging_endpoint],
        "parent": executor.parent,
        "tasks": {role.name: tasks_of(pools, at) for at, role in enumerate(spec.app.roles)},
    }
    return Plan(spec=spec, text=json.dumps(job, indent=2, ensure_ascii=False) + "\n", request=request)


def digest(text: str) -> str:
    """A text as the value of a label, which may not hold much."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def _members(spec: JobSpec) -> Sequence[Any]:
    return spec.members


def _refuse(spec: JobSpec) -> None:
    check_whole_job(spec, _WHOLE_JOB)
    for role, member in zip(spec.app.roles, _members(spec), strict=True):
        for name, why in _NO_MEANS.items():
            if getattr(member, name):
                raise unable(name, why)
        secrets = [name for name, value in role.env.items() if not isinstance(value, str)]
        if secrets:
            raise unable(
                "Secret",
                f"would show the secret {secrets[0]} to everybody who may look at the job; put it into Secret"
                " Manager, give the job's service_account the role secretmanager.secretAccessor, and have the"
                " task read it there",
            )
        if len(role.env) > _MOST_VARIABLES:
            raise unable("env_vars", f"takes {_MOST_VARIABLES} variables, not {len(role.env)}")
    if len(spec.members) > 1 and any(member.tpu_type for member in _members(spec)):
        raise unable("GROUPS", "runs TPUs in jobs of one replica alone; add that task on its own")


# --- pools ----------------------------------------------------------------------------------------------


def _pools(spec: JobSpec) -> list[tuple[int, int]]:
    """Which role each worker pool is for, and how many replicas it has; the first has one, as it must."""
    pools = []
    for at, member in enumerate(_members(spec)):
        counts = [member.nodes] if at or member.nodes == 1 else [1, member.nodes - 1]
        pools += [(at, count) for count in counts]
    if len(pools) > _MOST_POOLS:
        raise unable(
            "GROUPS",
            f"has {_MOST_POOLS} worker pools for a job, and {spec.id!r} needs {len(pools)}: one for each"
            " member, and one more if the first has several nodes",
        )
    return pools


def tasks_of(pools: Sequence[tuple[int, int]], role: int) -> list[str]:
    """Vertex AI's names of a role's replicas, in the order of their ranks."""
    return [
        f"workerpool{number}-{index}"
        for number, (at, count) in enumerate(pools)
        if at == role
        for index in range(count)
    ]


def _pool(member: VertexExecutor, count: int) -> dict[str, Any]:
    machine = member.machine().spec()
    if affinity := member.reservation_affinity():
        machine["reservationAffinity"] = affinity
    pool: dict[str, Any] = {"machineSpec": machine, "replicaCount": str(count)}
    disk = {"bootDiskType": member.disk_type, "bootDiskSizeGb": member.disk_size_gb}
    if disk := {name: value for name, value in disk.items() if value}:
        pool["diskSpec"] = disk
    return pool


def _job_spec(executor: VertexExecutor, stage: str) -> dict[str, Any]:
    """What holds for all pools."""
    tensorboard, output = executor.tensorboard, executor.base_output_dir
    if tensorboard and tensorboard.isdecimal():
        tensorboard = f"{executor.parent}/tensorboards/{tensorboard}"
    if tensorboard and not output:
        if not executor.staging_bucket:
            raise ConfigError("VertexExecutor.tensorboard needs base_output_dir, where its logs are written")
        output = f"gs://{executor.staging()[0].name}/{stage}/output"
    named = {
        "scheduling": _scheduling(executor),
        "serviceAccount": executor.service_account,
        "network": executor.network,
        "baseOutputDirectory": {"outputUriPrefix": output} if output else None,
        "tensorboard": tensorboard,
        "persistentResourceId": executor.persistent_resource,
        "enableWebAccess": executor.enable_web_access,
    }
    return {name: value for name, value in named.items() if value}


def _scheduling(executor: VertexExecutor) -> dict[str, Any]:
    named = {
        "strategy": STRATEGIES[executor.scheduling] if executor.scheduling else None,
        "timeout": _duration(executor.timeout),
        "maxWaitDuration": _duration(executor.max_wait),
        "restartJobOnWorkerRestart": executor.restart_on_worker_restart,
        "disableRetries": not executor.retry_internal_errors,
    }
    return {name: value for name, value in named.items() if value}


def _duration(seconds: float | None) -> str | None:
    """As JSON has durations."""
    return None if seconds is None else f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


# --- containers ---------------------------------------------------------------------------------------


class _Containers:
    """The containers of a job's roles; `starts` takes the scripts in the bucket that they begin with."""

    def __init__(self, spec: JobSpec, pools: Sequence[tuple[int, int]], stage: str) -> None:
        self._spec, self._pools, self._stage = spec, pools, stage
        self.starts: dict[str, str] = {}

    def container(self, at: int) -> dict[str, Any]:
        """What each replica of a role runs."""
        role, member = self._spec.app.roles[at], _members(self._spec)[at]
        command: list[str] = []
        if not role.entrypoint:
            words, told = _of_image(role, member)
        elif member.staging_bucket:
            command = ["/bin/sh", "-c", _WAIT]
            words, told = self._staged(at, role, member)
        else:
            _refuse_without_bucket(role, member)
            argv = [role.entrypoint, *role.args]
            command, words = [], through_shell(argv, role.env) if expands(argv, role.env) else argv
            command, words, told = words[:1], words[1:], _plain(role.env)
        shown = [*((repr(word), word) for word in words), *told.items()]  # a value may be a password
        if bad := [what for what, word in shown if not _is_text(word)]:
            mend = "hand it over in a file" if member.staging_bucket else "give a staging_bucket"
            raise ConfigError(f"{role.name!r} cannot be given {bad[0]}: Vertex AI takes UTF-8 alone; {mend}")
        build = planned_image(member.packager, member.container_image, self._spec.package)
        container = {
            "imageUri": build["push"] if build else member.container_image,
            "command": command,
            "args": [str(word) for word in words],
            "env": [{"name": name, "value": str(value)} for name, value in told.items()],
        }
        return {name: value for name, value in container.items() if value}

    def _staged(self, at: int, role: Role, member: VertexExecutor) -> tuple[list[str], dict[str, Any]]:
        """The words and variables of a role that is started by a script in the bucket."""
        argv, env = [role.entrypoint, *role.args], dict(role.env)
        if role.metadata["task"] is not None:  # the script that it may be part of imports nemo_run
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), LIBRARY)))
        told = {name: value for name, value in _plain(env).items() if _is_text(value)}
        untold = {name: value for name, value in env.items() if name not in told}
        if untold or not all(map(_is_text, argv)):
            self.starts[f"task-{at}.sh"] = f"{exports(untold)}exec {join(argv)}\n"
            argv = ["/bin/sh", f"{self._mounted(member)}/{self._stage}/task-{at}.sh"]
        elif expands(argv, env):
            argv = through_shell(argv, env)
        self.starts[f"start-{at}.sh"] = self._start(at, member)
        script = f"{self._mounted(member)}/{self._stage}/start-{at}.sh"
        return [script, role.metadata["workdir"], *argv], told

    def _mounted(self, member: VertexExecutor) -> str:
        return f"{member.mounted}/{member.staging()[0].name}"

    def _start(self, at: int, member: VertexExecutor) -> str:
        """The script that begins a role: what vertex_start.sh is to know, then that."""
        first = next(number for number, (role, _) in enumerate(self._pools) if role == at)
        everybody = [name for role in range(len(self._spec.members)) for name in tasks_of(self._pools, role)]
        several = len(everybody) > 1
        archives = _archives(member, self._spec, self._stage)
        head = {
            "bucket": self._mounted(member),
            "stage": f"{self._mounted(member)}/{self._stage}",
            "rundir": RUNDIR,
            "archives": " ".join(f"{where}={name}" for name, where in archives.items()),
            "first_pool": str(first) if several else "",
            "others": " ".join(everybody[1:]),
        }
        lines = [f"{name}={join([value])}" for name, value in head.items()]
        return "\n".join(["#!/bin/sh", *lines, _START.read_text(encoding="utf-8")])


def _of_image(role: Role, member: VertexExecutor) -> tuple[list[str], dict[str, Any]]:
    """The arguments and variables of an image's own program."""
    if member.working_dir:
        raise unable("working_dir", "starts an image's own program in the image's own folder")
    if expands(role.args, role.env):
        raise unable("Expand", "has no shell expand the arguments of an image's own program")
    return list(role.args), dict(role.env)


def _refuse_without_bucket(role: Role, member: VertexExecutor) -> None:
    """Refuse a role that needs more than its image has and more than Vertex AI can be told."""
    files = any(RUNDIR in word for word in (role.entrypoint, *role.args))
    launched = type(get_launcher(member.launcher)) is not Launcher and member.nodes > 1
    code = member.packager.copies_code or role.metadata["task"] is not None
    if files or launched or code or member.working_dir:
        what = "its task" if role.metadata["task"] is not None else "what it runs"
        raise ConfigError(
            f"VertexExecutor.staging_bucket is not set, and {role.name!r} needs one to bring {what} there;"
            ' give a bucket in its region, such as "gs://my-bucket"'
        )


def _archives(executor: VertexExecutor, spec: JobSpec, stage: str) -> dict[str, str]:
    """What is unpacked below the job's folder in a container: by its name in the bucket, where."""
    if not executor.staging_bucket:
        return {}
    folder = executor.staging()[1] + "nemo_run/"
    archives = {f"{folder}library/{library_digest()}.tar.gz": "lib", f"{stage}/job.tar.gz": "."}
    if executor.packager.copies_code:
        key = spec.package["key"] if spec.package else "the-code-as-it-is-packaged"
        archives[f"{folder}packages/{key}.tar.gz"] = "code"
    return archives


def _stage(executor: VertexExecutor, spec: JobSpec) -> str:
    """The job's own folder in the bucket; its name holds nothing that a shell or an address would mind."""
    if not executor.staging_bucket:
        return ""
    plain = [re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:100] for name in (spec.experiment_id, spec.id)]
    return f"{executor.staging()[1]}nemo_run/{plain[0]}/{plain[1]}-{digest(spec.token)[:8]}"


def _plain(env: Mapping[str, Any]) -> dict[str, Any]:
    """What needs no shell."""
    return {name: value for name, value in env.items() if not expands([], {name: value})}


def _is_text(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
