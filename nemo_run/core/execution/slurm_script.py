"""The batch script of a Slurm job: pure text, made from its specification."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.base import JobSpec
from nemo_run.core.execution.checks import parse_bytes
from nemo_run.core.execution.launcher import RAY_LOGS, SlurmRay, get_launcher
from nemo_run.core.execution.macros import ExecutorMacros
from nemo_run.core.runner import JOB_DIR
from nemo_run.errors import ConfigError
from nemo_run.shell import Expand, exports, join, quote, through_shell

if TYPE_CHECKING:
    from torchx.specs import Role

    from nemo_run.core.execution.slurm import SlurmExecutor

#: The job's folder in a container, and where this nemo_run lies there.
RUNDIR, LIBRARY = "/nemo_run", "/nemo_run_library"
#: The names that macros stand for here.
MACROS = ExecutorMacros(
    head_node_ip_var="head_node_ip",
    nproc_per_node_var="SLURM_NTASKS_PER_NODE",
    num_nodes_var="SLURM_NNODES",
    node_rank_var="SLURM_NODEID",
    het_group_host_var="het_group_host",
)
#: Fields that are options of sbatch under their own name.
_OPTIONS = (
    "account", "partition", "qos", "nodes", "cpus_per_gpu", "gpus_per_node", "gpus_per_task", "mem_per_gpu",
    "mem_per_cpu", "constraint", "exclude", "gres", "signal", "exclusive", "array", "open_mode", "segment",
    "network",
)  # fmt: skip
#: Options that hold for a job, not for each component of a heterogeneous one.
_WHOLE = ("array", "comment", "dependency", "kill-on-invalid-dep", "open-mode", "output", "error", "requeue")
_PLAIN = re.compile(r"[A-Za-z0-9@%_+:,./=\[\]*^~-]+\Z")
#: Variables that bash sets by itself, whatever it is told.
_BASHS_OWN = {
    "_", "BASHOPTS", "BASHPID", "BASH_ALIASES", "BASH_ARGC", "BASH_ARGV", "BASH_CMDS", "BASH_COMMAND",
    "BASH_LINENO", "BASH_SOURCE", "BASH_SUBSHELL", "BASH_VERSINFO", "DIRSTACK", "EPOCHREALTIME",
    "EPOCHSECONDS", "EUID", "FUNCNAME", "GROUPS", "HISTCMD", "LINENO", "OPTIND", "PPID", "RANDOM",
    "SECONDS", "SHELLOPTS", "SRANDOM", "UID",
}  # fmt: skip
_LOOKS_EXPANDED = re.compile(r"\$\(|`|\$\{?[A-Za-z_]")


def render_sbatch(spec: JobSpec) -> str:
    """The batch script of a job, as a person might have written it; what it is told beside is in files."""
    executors: list[Any] = list(spec.members)
    rundir = str(executors[0].remote_dir(spec.job_dir))
    parts = ["#!/bin/bash\n", _header(spec, executors, rundir), _waiting(spec), _preamble(spec, executors)]
    for at, (role, executor) in enumerate(zip(spec.app.roles, executors, strict=True)):
        if at and executor.wait_time_for_group_job:
            parts.append(f"sleep {executor.wait_time_for_group_job}\n")
        parts.append(_member(role, executor, executors, rundir, component_of(executors, at)))
    parts.append(f"\n{_finish(executors[0])}\n")
    return "".join(parts)


def job_name(spec: JobSpec) -> str:
    """What Slurm calls the job."""
    executor: Any = spec.members[0]
    name: str = executor.job_details.job_name or executor.name_prefix() + spec.id
    return name


def dependency(spec: JobSpec) -> str:
    """How sbatch is told of the jobs that must end first: of those that have a number yet."""
    executor: Any = spec.members[0]
    numbers = [*executor.dependency_ids(), *(handle.data["job"] for handle in spec.depends_on)]
    return ":".join([executor.dependency_type, *numbers]) if numbers or spec.after else ""


def environment(role: Role, executor: SlurmExecutor) -> dict[str, Any]:
    """The variables of a role's file: all but those that each of its tasks expands by itself."""
    if taken := sorted(_BASHS_OWN & role.env.keys()):
        raise ConfigError(f"{role.name}: bash sets {', '.join(taken)} by itself; name the variable otherwise")
    values = {name: _macro(value) for name, value in role.env.items()}
    if role.metadata.get("task") is not None and not executor.shares_files():
        # The launching script, which the task may be part of, imports nemo_run.
        library = LIBRARY if executor.container_image else os.path.dirname(executor.library())
        values["PYTHONPATH"] = os.pathsep.join(filter(None, (values.get("PYTHONPATH"), library)))
    if isinstance(get_launcher(executor.launcher), SlurmRay):
        values[RAY_LOGS] = f"{values[JOB_DIR]}/logs/{executor.job_details.ray_log_prefix}"
    return {name: value for name, value in values.items() if not _per_task(value)}


def environment_text(values: Mapping[str, str]) -> str:
    """The file of a role's environment, which its batch script reads, and in containers each task.

    Commands are carried out once, where the batch script is and Slurm's own programs are.
    """
    plain = {name: value for name, value in values.items() if not isinstance(value, Expand)}
    commands = {name: value for name, value in values.items() if isinstance(value, Expand)}
    if not commands:
        return exports(plain)
    return exports(plain) + f'if [ -z "${{SLURM_STEP_ID-}}" ]; then\n{exports(commands)}fi\n'


def shown(script: str, env: Mapping[str, Mapping[str, Any]]) -> str:
    """A batch script and the files beside it, to read; secrets by name."""
    parts = [script]
    for role, values in env.items():
        told = {n: v if isinstance(v, str) else f"<secret {v.name}>" for n, v in values.items()}
        parts.append(f"\n# --- env/{role}.sh\n{environment_text(told)}")
    return "".join(parts)


def component_of(executors: list[SlurmExecutor], at: int) -> int | None:
    """Which component of a heterogeneous job a member runs in; None where the job is none."""
    first = executors[0]
    if not first.heterogeneous or len(executors) == 1:
        return None
    return first.het_group_indices[at] if first.het_group_indices else at


def unmarked(spec: JobSpec) -> list[str]:
    """What looks as if a shell were meant to expand it, and will arrive as written: where it stands."""
    found = []
    for role, executor in zip(spec.app.roles, spec.members, strict=True):
        env = [name for name in executor.env_vars if _looks_expanded(role.env.get(name))]
        found += [f"the variable {name}" for name in env]
        # What a launcher adds it means as it is.
        given = role.metadata.get("given", role.args)
        found += [f"the argument {word!r}" for word in given if _looks_expanded(word)]
    return found


def _looks_expanded(value: Any) -> bool:
    value = _macro(value)
    return type(value) is str and _LOOKS_EXPANDED.search(value) is not None


# --- directives -----------------------------------------------------------------------------------------


def directive(name: str, value: Any) -> str:
    """One `#SBATCH` line; sbatch's own quotes, in which a backslash keeps what follows it."""
    if value is True:
        return f"#SBATCH --{name}\n"
    text = str(value)
    if "\n" in text or "\0" in text:
        raise ConfigError(f"the option --{name} of sbatch cannot be given {text!r}; take the line end out")
    if not _PLAIN.match(text):
        text = '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    return f"#SBATCH --{name}={text}\n"


def filename(path: str) -> str:
    """A path where Slurm takes a pattern: nothing in it is replaced."""
    return path.replace("%", "%%")


def _header(spec: JobSpec, executors: list[SlurmExecutor], rundir: str) -> str:
    first = executors[0]
    details = first.job_details
    common: dict[str, Any] = {
        "chdir": rundir,
        "comment": f"{first.comment} {spec.token}" if first.comment else spec.token,
        "output": details.stdout or f"{filename(rundir)}/logs/slurm_%j.log",
        "requeue": True,
    }
    if details.stderr:
        common["error"] = str(details.stderr)
    if not spec.after and (given := dependency(spec)):  # sbatch is told of the others when they have numbers
        common |= {"dependency": given, "kill-on-invalid-dep": "yes"}
    if first.heterogeneous and len(executors) > 1:
        return "#SBATCH hetjob\n".join(_components(spec, executors, common))
    merged = {**options(first), **_shape(executors)}
    return _directives({**common, "job-name": job_name(spec), **merged, **_given(first)})


def _waiting(spec: JobSpec) -> str:
    """For who reads it: what cannot be written here, because it is not known before others are submitted."""
    if not spec.after:
        return ""
    others = "".join(f":<number of {name}>" for name in spec.after)
    return f"# sbatch --dependency={quote(dependency(spec) + others)} --kill-on-invalid-dep=yes\n"


def _components(spec: JobSpec, executors: list[SlurmExecutor], common: Mapping[str, Any]) -> Iterator[str]:
    """The directives of each component of a heterogeneous job, made for the first member that runs in it."""
    numbers = [component_of(executors, at) for at in range(len(executors))]
    for number in sorted({each for each in numbers if each is not None}):
        executor = executors[numbers.index(number)]
        given = {**options(executor), **_tasks(executor), **_given(executor)}
        if number:
            given = {name: value for name, value in given.items() if name not in _WHOLE}
        else:
            given = {**common, **given}
        yield _directives({**given, "job-name": f"{job_name(spec)}-{number}", "chdir": common["chdir"]})


def _directives(options: Mapping[str, Any]) -> str:
    return "".join(directive(name, value) for name, value in sorted(options.items()) if value is not None)


def options(executor: SlurmExecutor) -> dict[str, Any]:
    """The options of sbatch that an executor's fields stand for."""
    values = {name.replace("_", "-"): getattr(executor, name) for name in _OPTIONS}
    values["time"] = executor.walltime()
    if executor.requeue_on_timeout and (notice := executor.notice()):
        values["signal"] = f"B:{notice[0]}@{notice[1]}"
    values["cpus-per-task"] = executor.cpus_per_task or executor.cpu_limit
    if executor.mem is not None:
        values["mem"] = executor.mem
    elif executor.memory_limit is not None:
        values["mem"] = f"{math.ceil(parse_bytes(executor.memory_limit) / 2**20)}M"
    return {name: value for name, value in values.items() if value not in (None, "", False)}


def _given(executor: SlurmExecutor) -> dict[str, Any]:
    """`additional_parameters`, which win over everything; False and None take an option away."""
    given = executor.additional_parameters or {}
    return {name.replace("_", "-"): None if value is False else value for name, value in given.items()}


def _tasks(executor: SlurmExecutor) -> dict[str, Any]:
    return {"nodes": executor.nodes, "ntasks-per-node": executor.tasks_per_node()}


def _shape(executors: list[SlurmExecutor]) -> dict[str, Any]:
    """The allocation that holds every member of a group, side by side on the same nodes."""
    shape: dict[str, Any] = {
        "nodes": max(executor.nodes for executor in executors),
        "ntasks-per-node": max(executor.tasks_per_node() for executor in executors),
    }
    for name in ("gpus_per_node", "gpus_per_task"):
        if any(values := [getattr(executor, name) or 0 for executor in executors]):
            shape[name.replace("_", "-")] = max(values)
    return shape


# --- the body -------------------------------------------------------------------------------------------


def _preamble(spec: JobSpec, executors: list[SlurmExecutor]) -> str:
    first = executors[0]
    lines = ["\nsource ./slurm_job.sh || exit 126\n"]
    if first.requeue_on_timeout:
        lines.append(_room(spec, first))
    if first.heterogeneous and len(executors) > 1:
        numbers = {component_of(executors, at) or 0 for at in range(len(executors))}
        lines += [
            f'export het_group_host_{number}=$(first_host "$SLURM_JOB_NODELIST_HET_GROUP_{number}")\n'
            for number in sorted(numbers)
        ]
    if first.nodes > 1 or first.heterogeneous or _mentions(spec, MACROS.head_node_ip_var):
        lines.append('export head_node_ip=$(address_of "$(first_host "$SLURM_JOB_NODELIST")")\n')
    if first.setup_lines:
        lines.append(first.setup_lines.rstrip("\n") + "\n")
    return "".join(lines)


def _room(spec: JobSpec, executor: SlurmExecutor) -> str:
    """What is done when the time is nearly up; a tenth of what is left is for the requeue itself.

    A launcher would end by the signal and not hand it on, and our runner hears of it otherwise.
    """
    name, seconds = executor.notice() or ("", 0)
    plain = [
        role.name
        for role, member in zip(spec.app.roles, spec.members, strict=True)
        if role.metadata.get("task") is None and not get_launcher(member.launcher).rank_variable
    ]
    return join(["room_on", name, str(seconds - math.ceil(seconds / 10)), *plain]) + "\n"


def _mentions(spec: JobSpec, name: str) -> bool:
    words = [word for role in spec.app.roles for word in (role.entrypoint, *role.args, *role.env.values())]
    return any(isinstance(word, str) and name in _macro(word) for word in words)


def _member(
    role: Role, executor: SlurmExecutor, executors: list[SlurmExecutor], rundir: str, component: int | None
) -> str:
    workdir = role.metadata["workdir"]
    lines = "\n"
    if executor.working_dir and not executor.container_image:
        lines += f"mkdir -p {quote(workdir)}\n"
    if executor.container_image:
        lines += "".join(f"[ -e {path} ] || mkdir -p {path}\n" for path in _own_sources(executor, rundir))
    steps = _step_options(executor, executors, component)
    logs = executor.job_details.srun_stdout
    pattern = filename(f"{rundir}/logs/{role.name}_") + ("" if executor.array else "%t")
    where = quote(f"--output={logs}" if logs else f"--output={pattern}")
    if not logs:
        where += ("$SLURM_ARRAY_TASK_ID" if executor.array else "") + '"$suffix".log'
    words = [where, *map(quote, steps), *_container(executor, workdir, rundir)]
    if executor.job_details.srun_stderr:
        words.append(quote(f"--error={executor.job_details.srun_stderr}"))
    words += map(quote, executor.srun_args or ())
    program = "srun" if "PATH" not in role.env else quote(Expand("$srun"))
    if "PATH" in role.env:
        lines += "srun=$(command -v srun)\n"
    if component and executor.nodes > 1:
        lines += f'member_node_ip=$(address_of "$het_group_host_{component}") '
    return (
        lines
        + " \\\n    ".join([f"member {quote(role.name)} {program}", *words, _command(role, executor)])
        + "\n"
    )


def _step_options(
    executor: SlurmExecutor, executors: list[SlurmExecutor], component: int | None
) -> Iterator[str]:
    yield "--kill-on-bad-exit=1"
    if component is not None:
        yield f"--het-group={component}"
    if len(executors) > 1:
        # Slurm gives a step all that the job has, unless steps share it.
        yield "--overlap"
    if len(executors) > 1 and component is None:
        yield f"--nodes={executor.nodes}"
        yield f"--ntasks={executor.nodes * executor.tasks_per_node()}"
    # Steps do not inherit this.
    if cpus := executor.cpus_per_task or executor.cpu_limit:
        yield f"--cpus-per-task={cpus}"


def _container(executor: SlurmExecutor, workdir: str, rundir: str) -> Iterator[str]:
    if not executor.container_image:
        yield quote(f"--chdir={workdir}")
        return
    mounts = [_mount(mount, rundir) for mount in executor.container_mounts]
    mounts += [f"{rundir}:{RUNDIR}", f"{executor.library()}:{LIBRARY}/nemo_run"]
    yield quote(f"--container-image={executor.container_image}")
    yield quote(f"--container-mounts={','.join(mounts)}")
    yield quote(f"--container-workdir={workdir}")
    if executor.container_env:
        yield quote(f"--container-env={','.join(executor.container_env)}")


def _own_sources(executor: SlurmExecutor, rundir: str) -> Iterator[str]:
    """What containers see of the job's folder, as shell text; without it they would not start."""
    for mount in executor.container_mounts:
        if mount.startswith("/$nemo_run/"):
            yield quote(_mount(mount.partition(":")[0], rundir))


def _mount(mount: str, rundir: str) -> str:
    """What stands after `/$nemo_run` lies in the job's folder."""
    return re.sub(r"\A/\$nemo_run(?=[/:]|\Z)", lambda match: rundir, mount)


def _command(role: Role, executor: SlurmExecutor) -> str:
    """What each task runs: the role's words, after what it must expand or set for itself."""
    argv = [_macro(word) for word in (role.entrypoint, *role.args)]
    env = {name: value for name, value in ((n, _macro(v)) for n, v in role.env.items()) if _per_task(value)}
    several = executor.nodes * executor.tasks_per_node() > 1
    ranked = get_launcher(executor.launcher).rank_variable
    if several and not ranked and role.metadata.get("task") is not None:
        env["NEMORUN_REPLICA"] = Expand("$SLURM_PROCID")
    if env or any(isinstance(word, Expand) for word in argv) or ":" in argv:
        argv = through_shell(argv, env)  # srun takes a single colon for the end of a command
    if executor.container_image:
        # An image's own variables would win over those of the job.
        argv = ["/bin/sh", "-c", '. "$0" && exec "$@"', f"{RUNDIR}/env/{role.name}.sh", *argv]
    return join(argv)


def _finish(executor: SlurmExecutor) -> str:
    grace = executor.monitor_group_job_wait_time if executor.monitor_group_job else "never"
    return f"finish {executor.retries}" + (f" {grace}" if grace else "")


# --- words ----------------------------------------------------------------------------------------------


def _macro(word: Any) -> Any:
    return MACROS.substitute(word) if isinstance(word, str) else word


def _per_task(value: Any) -> bool:
    """Whether a variable is expanded by each task; a command in it runs once, where Slurm's programs are."""
    return isinstance(value, Expand) and "$(" not in value and "`" not in value


def remote_path(job_dir: Path, base: str) -> str:
    """A job's folder on the cluster: as here if `base` is empty."""
    return os.path.join(base, *job_dir.parts[-3:]) if base else str(job_dir)


def texts(values: Iterable[Any]) -> bool:
    """Whether all of them are texts on one line."""
    return all(isinstance(value, str) and value and not set(value) & {"\n", "\0"} for value in values)
