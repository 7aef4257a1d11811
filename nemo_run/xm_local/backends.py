"""From XManager's words to the engine's: what each job of a unit runs, and by which executor."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemo_run.config import Script
from nemo_run.core.execution.base import Executor
from nemo_run.core.packaging.base import Packager
from nemo_run.errors import UnsupportedError
from nemo_run.run.job import Job, unique_name
from nemo_run.xm import jobs as xm
from nemo_run.xm.arguments import merge_args
from nemo_run.xm.errors import BadTypeError, BadValueError
from nemo_run.xm.resources import JobRequirements, ResourceType, TpuType
from nemo_run.xm_local import executors, flags
from nemo_run.xm_local.executables import ContainerImage, LocalBinary

logger = logging.getLogger("nemo_run")

#: XManager starts all there is at once.
_ALL = 100_000
#: Whose containers run what they are told, and not what their image says.
_TOLD_COMMANDS = (executors.Slurm, executors.Skypilot)
#: What engines call accelerators that XManager calls otherwise.
_GPUS = {"A100_80GIB": "a100-80gb", "L4_24TH": "l4", "B40_48TH": "rtx-pro-6000"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in an experiment a job is: what it is called, and what it has been given."""

    #: The name that it goes by outside.
    full_name: Callable[[str], str]
    #: The network of the experiment's containers.
    network: str
    #: By name of a job, the GPUs of this machine that are its own.
    gpus: Mapping[str, Sequence[str]] = field(default_factory=dict)


def engine_jobs(job_id: str, group: Sequence[xm.Job], place: Place) -> list[Job]:
    """The jobs that run a group: one for each kind of executor in it.

    Args:
        job_id: The id of the first; further ones have the executor's kind added.
        group: The jobs; each has a name.
        place: Where they are.

    Raises:
        ConfigError: something in them cannot work.
    """
    kinds: dict[str, list[tuple[xm.Job, Script, Executor]]] = {}
    for job in group:
        kind, executor = _executor(job, place)
        kinds.setdefault(kind, []).append((job, _script(job), executor))
    return [
        _engine_job(job_id if number == 0 else f"{job_id}.{kind}", members)
        for number, (kind, members) in enumerate(kinds.items())
    ]


def _engine_job(job_id: str, members: Sequence[tuple[xm.Job, Script, Executor]]) -> Job:
    roles: list[str] = []
    for job, _, _ in members:
        roles.append(unique_name(job.name or job.executable.name, roles))
    return Job(
        id=job_id,
        tasks=[script for _, script, _ in members],
        executors=[executor for _, _, executor in members],
        roles=roles,
        group=len(members) > 1,
    )


def _script(job: xm.Job) -> Script:
    """What is started: a program, or the one that an image is there for."""
    executable = job.executable
    path = executable.path if isinstance(executable, LocalBinary) else ""
    args, env = merged(job)
    if isinstance(executable, ContainerImage) and isinstance(job.executor, _TOLD_COMMANDS):
        path, *args = executable.argv(args, type(job.executor).__name__)
    return Script(path=path, entrypoint="", args=args, env=env)


def merged(job: xm.Job) -> tuple[list[str], dict[str, Any]]:
    """A job's arguments and environment, after those that its executable was packaged with."""
    executable = job.executable
    args = merge_args(getattr(executable, "args", None), job.args).to_argv()
    return args, {**getattr(executable, "env_vars", {}), **job.env_vars}


def local_gpus(job: xm.Job) -> int:
    """How many GPUs of this machine a job asks for."""
    if not isinstance(job.executor, executors.Local):
        return 0
    return int(job.executor.requirements.task_requirements.get(ResourceType.LOCAL_GPU, 0))


def streamed(made: Job, group: Sequence[xm.Job]) -> dict[str, str]:
    """By role the names of those jobs whose lines are to be printed; nothing unless all members are here."""
    names = [
        str(job.name)
        for job in group
        if isinstance(job.executor, executors.Local) and job.executor.experimental_stream_output
    ]
    wanted = {unique_name(name, ()): name for name in names}
    return wanted if set(made.roles) <= wanted.keys() else {}


def _executor(job: xm.Job, place: Place) -> tuple[str, Executor]:
    """The kind of a job's executor in a word, and the engine's executor that does it."""
    if not isinstance(job.executable, (LocalBinary, ContainerImage)):
        raise BadTypeError(
            f"job {job.name!r} has the executable {job.executable!r}, which experiment.package() did not make"
        )
    for kind, (word, make) in _MAKERS.items():
        if isinstance(job.executor, kind):
            made: Executor = make(job, place)
            return (_word(made) if word is None else word), made
    known = ", ".join(f"xm_local.{kind.__name__}" for kind in _MAKERS)
    raise BadTypeError(f"job {job.name!r} has the executor {job.executor!r}; there are {known}")


def _word(made: Executor) -> str:
    return type(made).__name__.removesuffix("Executor").lower()


def _image(job: xm.Job, where: str) -> ContainerImage:
    if isinstance(job.executable, ContainerImage):
        return job.executable
    raise UnsupportedError(
        f"job {job.name!r}: {where} runs images, and {job.executable.name!r} is a program of this machine;"
        " package it as an xm.PythonContainer, xm.Dockerfile or xm.Container",
        executor=where,
        capability="IMAGES",
    )


def _given(**fields: Any) -> dict[str, Any]:
    """Those fields of which something is said."""
    return {name: value for name, value in fields.items() if value is not None}


def _accelerator(requirements: JobRequirements) -> tuple[str | None, str | None]:
    """A GPU's short name, or a TPU's."""
    kind = requirements.accelerator
    if kind is None or kind is ResourceType.LOCAL_GPU:
        return None, None
    if kind in TpuType:
        return None, kind.name.removeprefix("TPU_").lower()
    return _GPUS.get(kind.name, kind.name.lower().replace("_", "-")), None


def _total(requirements: JobRequirements) -> int:
    return int(sum(requirements.task_requirements.get(kind, 0) for kind in TpuType))


def _whole(number: float | None) -> int | None:
    return None if number is None else max(1, math.ceil(number))


# --- this machine ---------------------------------------------------------------------------------------


def _local(job: xm.Job, place: Place) -> Executor:
    wanted = job.executor.requirements  # type: ignore[attr-defined]  # it is a Local
    if wanted.accelerator not in (None, ResourceType.LOCAL_GPU):
        logger.warning("job %s: %r is not looked at on this machine; local_gpu is", job.name, wanted)
    limits: dict[str, Any] = {
        "cpu_limit": _cpus_here(wanted.cpu),
        "memory_limit": wanted.memory_bytes or None,
    }
    gpus = place.gpus.get(str(job.name), ())
    if isinstance(job.executable, ContainerImage):
        return _docker(job, place, gpus, limits)
    from nemo_run.core.execution.local import LocalExecutor

    if getattr(job.executor, "docker_options", None):
        raise BadValueError(f"job {job.name!r} has docker_options, and its executable is no container")
    env = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    return LocalExecutor(max_parallel=_ALL, env_vars=env, packager=Packager(), **limits)


def _cpus_here(cpus: float | None) -> int | None:
    return min(_whole(cpus) or 1, os.cpu_count() or 1) if cpus else None


def _docker(job: xm.Job, place: Place, gpus: Sequence[str], limits: Mapping[str, Any]) -> Executor:
    from nemo_run.core.execution.docker import DockerExecutor

    options = job.executor.docker_options or executors.DockerOptions()  # type: ignore[attr-defined]
    full_name = place.full_name(str(job.name))
    more: dict[str, Any] = {"hostname": re.sub(r"[^A-Za-z0-9_.-]", "-", full_name)[:63].rstrip("-.")}
    if options.ports:
        more["ports"] = {str(inner): outer for inner, outer in options.ports.items()}
    return DockerExecutor(
        container_image=job.executable.image,  # type: ignore[attr-defined]
        packager=Packager(),
        max_parallel=_ALL,
        shared_network=place.network,
        aliases=[full_name],
        gpu_ids=list(gpus),
        volumes=volumes(options),
        additional_kwargs=more,
        **limits,
    )


def volumes(options: executors.DockerOptions) -> list[str]:
    """What containers see of this machine."""
    seen = [
        f"{os.path.abspath(os.path.expanduser(here))}:{there}"
        for here, there in (options.volumes or {}).items()
    ]
    if options.mount_gcs_path:
        if (gcs := Path.home() / "gcs").is_dir():
            seen.append(f"{gcs}:/gcs")
        if (gcloud := Path.home() / ".config" / "gcloud").is_dir():
            seen.append(f"{gcloud}:/root/.config/gcloud:ro")
    return seen


# --- elsewhere ------------------------------------------------------------------------------------------


def _slurm(job: xm.Job, place: Place) -> Executor:
    from nemo_run.core.execution.slurm import SlurmExecutor

    wanted: JobRequirements = job.executor.requirements  # type: ignore[attr-defined]
    gpu, tpu = _accelerator(wanted)
    if tpu:
        raise UnsupportedError(
            f"job {job.name!r}: Slurm has no {tpu} TPUs; ask for GPUs", executor="Slurm", capability="tpu"
        )
    image = job.executable if isinstance(job.executable, ContainerImage) else None
    memory = wanted.memory_bytes
    fields = _given(
        container_image=image.image if image else None,
        working_dir=image.workdir or None if image else None,
        nodes=wanted.replicas if wanted.replicas > 1 else None,
        cpus_per_task=_whole(wanted.cpu),
        mem=None if memory is None else f"{math.ceil(memory / 2**20)}M",
        gres=f"gpu:{gpu}:{wanted.accelerator_count}" if gpu else None,
        gpus_per_node=wanted.accelerator_count or None if not gpu else None,
    )
    return _like(job, SlurmExecutor, fields | {"packager": Packager()})


def _kubernetes(job: xm.Job, place: Place) -> Executor:
    from nemo_run.core.execution.kubernetes import KubernetesExecutor

    given: executors.Kubernetes = job.executor  # type: ignore[assignment]
    wanted, image = given.requirements, _image(job, "Kubernetes").image
    gpu, tpu = _accelerator(wanted)
    google = given.cloud_provider == "GOOGLE_KUBERNETES_ENGINE"
    fields = _given(
        nodes=wanted.hosts if wanted.hosts > 1 else None,
        cpus=wanted.cpu,
        memory=wanted.memory_bytes,
        ephemeral_storage=wanted.ephemeral_storage_bytes,
        gpus_per_node=wanted.accelerator_count or None if not tpu else None,
        gpu_type=gpu if google else None,
        tpu_type="tpu7x" if tpu == "v7x" else tpu,
        tpu_topology=wanted.tpu_topology,
        service_account=flags.value("xm_k8s_service_account_name"),
    )
    if given.tpu_capability and google:
        version = {"tf-version.cloud-tpus.google.com": given.tpu_capability.tpu_runtime_version}
        fields["annotations"] = {**(given.executor.annotations if given.executor else {}), **version}
    return _like(job, KubernetesExecutor, fields | {"container_image": image, "packager": Packager()})


def _vertex(job: xm.Job, place: Place) -> Executor:
    from nemo_run.core.execution.vertex import VertexExecutor

    given: executors.Vertex = job.executor  # type: ignore[assignment]
    wanted, image = given.requirements, _image(job, "Vertex AI").image
    gpu, tpu = _accelerator(wanted)
    board, bucket = given.tensorboard, os.environ.get("GOOGLE_CLOUD_BUCKET_NAME")
    fields = _given(
        nodes=wanted.replicas if wanted.replicas > 1 else None,
        cpus=_whole(wanted.cpu),
        memory=wanted.memory_bytes,
        gpus_per_node=wanted.accelerator_count if gpu else None,
        gpu_type=gpu,
        tpu_type=tpu,
        tpu_topology=str(wanted.topology) if tpu and wanted.topology else None,
        tpus=_total(wanted) if tpu and not wanted.topology else None,
        tensorboard=board.name if board else None,
        base_output_dir=_bucket(board.base_output_directory) if board else None,
        staging_bucket=_bucket(bucket) if bucket and not given.executor else None,
        service_account=_vertex_account(given.executor),
    )
    return _like(job, VertexExecutor, fields | {"container_image": image, "packager": Packager()})


def _vertex_account(given: Any) -> str | None:
    """The account of --xm_gcp_service_account_name, in the project that the job runs in."""
    name = flags.value("xm_gcp_service_account_name")
    project = getattr(given, "project", "") or os.environ.get("GOOGLE_CLOUD_PROJECT")
    if not name or "@" in name or not project:
        return name or None
    return f"{name}@{project}.iam.gserviceaccount.com"


def _bucket(path: str | None) -> str | None:
    return path if not path or path.startswith("gs://") else f"gs://{path}"


def _skypilot(job: xm.Job, place: Place) -> Executor:
    from nemo_run.core.execution.skypilot import SkypilotExecutor

    wanted: JobRequirements = job.executor.requirements  # type: ignore[attr-defined]
    gpu, tpu = _accelerator(wanted)
    if tpu or wanted.accelerator is ResourceType.LOCAL_GPU:
        raise UnsupportedError(
            f"job {job.name!r}: SkyPilot has its own names for TPUs, and for GPUs there is none said; write"
            ' one: xm_local.Skypilot(executor=run.SkypilotExecutor(gpus="tpu-v5litepod-8", gpus_per_node=1))',
            executor="Skypilot",
            capability="accelerator",
        )
    image = job.executable if isinstance(job.executable, ContainerImage) else None
    gigabytes = None if wanted.memory_bytes is None else math.ceil(wanted.memory_bytes / 10**9)
    fields = _given(
        container_image=f"docker:{image.image}" if image else None,
        working_dir=image.workdir or None if image else None,
        num_nodes=wanted.replicas if wanted.replicas > 1 else None,
        cpus=None if wanted.cpu is None else f"{wanted.cpu:g}+",
        memory=None if gigabytes is None else f"{gigabytes}+",
        gpus=gpu.upper() if gpu else None,
        gpus_per_node=wanted.accelerator_count if gpu else None,
    )
    return _like(job, SkypilotExecutor, fields | {"packager": Packager()})


def _like(job: xm.Job, kind: type[Executor], fields: Mapping[str, Any]) -> Executor:
    """An executor of a class; all that `fields` does not say is as in the one that the job's was given."""
    given: Any = job.executor.executor  # type: ignore[attr-defined]
    if given is None:
        return kind(**fields)
    if not isinstance(given, kind):
        name = type(job.executor).__name__
        raise BadTypeError(f"executor of xm_local.{name} is a run.{kind.__name__}(...), not {given!r}")
    return replace(given, **fields)


_MAKERS: dict[type[xm.Executor], tuple[str | None, Callable[[Any, Place], Any]]] = {
    executors.Local: (None, _local),
    executors.Slurm: ("slurm", _slurm),
    executors.Kubernetes: ("kubernetes", _kubernetes),
    executors.Vertex: ("vertex", _vertex),
    executors.Skypilot: ("skypilot", _skypilot),
}


# --- what is written down -------------------------------------------------------------------------------


def described(group: Iterable[xm.Job]) -> list[dict[str, Any]]:
    """What `unit.json` holds of jobs: in XManager's words, beside what task.json and executor.json hold."""
    return [_described(job) for job in group]


def _described(job: xm.Job) -> dict[str, Any]:
    executable = job.executable
    what = {"kind": type(executable).__name__, "name": executable.name}
    for name in ("path", "image", "digest"):
        if value := getattr(executable, name, ""):
            what[name] = value
    arguments = merge_args(getattr(executable, "args", None), job.args).to_dict(kwargs_only=True)
    return {
        "name": job.name,
        "executor": type(job.executor).__name__,
        "requirements": repr(getattr(job.executor, "requirements", None)),
        "executable": what,
        "args": {name: value if _is_plain(value) else str(value) for name, value in arguments.items()},
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)
