"""What SkyPilot is told of a job: pure text and plain values, made from its specification."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.base import JobSpec
from nemo_run.core.execution.checks import parse_bytes
from nemo_run.core.execution.macros import ExecutorMacros
from nemo_run.errors import ConfigError
from nemo_run.shell import Expand, exports, join, through_shell

if TYPE_CHECKING:
    from nemo_run.core.execution.skypilot import SkypilotExecutor

#: Below a job's folder on the nodes: where this nemo_run lies.
LIBRARY = "library"
#: What is sent, as it lies in the job's folder here.
ARCHIVE = "skypilot.tar.gz"
#: Fields that may be lists of alternatives, by SkyPilot's own names for them.
ALTERNATIVES = {
    "infra": "infra", "cloud": "cloud", "region": "region", "zone": "zone", "gpus": "accelerators",
    "cpus": "cpus", "memory": "memory", "instance_type": "instance_type", "use_spot": "use_spot",
    "disk_size": "disk_size", "disk_tier": "disk_tier",
}  # fmt: skip
#: How images begin that are taken as they are; everything else is a container's.
_IMAGES = ("docker:", "skypilot:", "ami-", "projects/", "ocid1.", "/subscriptions/", "image-")


# --- names ----------------------------------------------------------------------------------------------


def job_name(token: str, begins: str) -> str:
    """The task's name, by which a job is found: no other submission has it."""
    return f"{_words(begins, 30) or 'job'}-{_digest(token)}"


def rundir(job_dir: Path) -> str:
    """The job's folder on the nodes, where no other user's and no other job's can be."""
    return f"/tmp/nemo_run-{_words(job_dir.name, 30)}-{_digest('/'.join(job_dir.parts[-2:]))}"


def cluster_name(executor: SkypilotExecutor, spec: JobSpec) -> str:
    """The name given, or that of a cluster for all jobs of the experiment that ask for the same."""
    if executor.cluster_name:
        return executor.cluster_name
    asked = [resources(executor), executor.num_nodes, executor.setup, executor.cluster_config_overrides]
    asked += [spec.id] if executor.own_cluster else []
    title = _words(spec.experiment_id.rpartition("_")[0], 20)
    return f"nemo-{title}-{_digest(repr((spec.experiment_id, asked)))}"


def _words(text: str, most: int) -> str:
    """What SkyPilot takes of a text as part of a name."""
    return re.sub("[^a-z0-9]+", "-", text.lower())[:most].strip("-")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:10]


# --- resources ------------------------------------------------------------------------------------------


def resources(executor: SkypilotExecutor) -> dict[str, Any]:
    """The task's `resources`; where fields hold lists, one entry of `any_of` for each of their places.

    Raises:
        ConfigError: the lists differ in length.
    """
    given = {name: getattr(executor, name) for name in ALTERNATIVES}
    if executor.cpu_limit is not None:
        given["cpus"] = f"{executor.cpu_limit}+"
    if executor.memory_limit is not None:
        given["memory"] = f"{math.ceil(parse_bytes(executor.memory_limit) / 2**30)}+"
    lists = {name: len(value) for name, value in given.items() if isinstance(value, (list, tuple))}
    if len(set(lists.values())) > 1 or 0 in lists.values():
        told = ", ".join(f"{name} has {length}" for name, length in lists.items())
        raise ConfigError(
            f"{type(executor).__name__}: lists hold alternatives, and {told}; give as many in each"
        )
    common = _common(executor)
    if not lists:
        return _one(executor, given, None) | common
    places = range(next(iter(lists.values())))
    return common | {"any_of": [_one(executor, given, place) for place in places]}


def _one(executor: SkypilotExecutor, given: Mapping[str, Any], place: int | None) -> dict[str, Any]:
    found = {}
    for name, theirs in ALTERNATIVES.items():
        value = given[name]
        value = value[place] if place is not None and isinstance(value, (list, tuple)) else value
        if value is None or value == "none":
            continue
        if name == "gpus" and ":" not in str(value):
            value = f"{value}:{executor.gpus_per_node or 1}"
        found[theirs] = value
    return found


def _common(executor: SkypilotExecutor) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if image := executor.container_image:
        found["image_id"] = image if image.startswith(_IMAGES) else f"docker:{image}"
    if executor.ports:
        found["ports"] = [port if isinstance(port, int) else str(port) for port in executor.ports]
    if executor.network_tier:
        found["network_tier"] = executor.network_tier
    if executor.managed and executor.retries:
        found["job_recovery"] = {"max_restarts_on_errors": executor.retries}
    return found


# --- the task -------------------------------------------------------------------------------------------

#: Has the job's files lie in its folder, once, whoever comes first where nodes share a disk.
_UNPACK = """\
dir={folder}
[ -e $dir/.{name} ] || {{
    rm -rf $dir && mkdir -p $dir.$$ && tar -xzf $dir.tar.gz -C $dir.$$ && touch $dir.$$/.{name}
    mv -T $dir.$$ $dir 2>/dev/null || rm -rf $dir.$$
}}
"""


def make_task(executor: SkypilotExecutor, spec: JobSpec, name: str) -> dict[str, Any]:
    """The task as SkyPilot's YAML has it; secrets are handed over beside it."""
    folder = rundir(spec.job_dir)
    unpack = _UNPACK.format(folder=folder, name=name)
    node = f"{LIBRARY}/nemo_run/core/execution/skypilot_node.py"
    task: dict[str, Any] = {"name": name, "num_nodes": executor.num_nodes, "resources": resources(executor)}
    if secrets := _secret_names(spec):
        task["secrets"] = dict.fromkeys(secrets)
    mounts: dict[str, Any] = dict(executor.file_mounts or {})
    for path, storage in (executor.storage_mounts or {}).items():
        mounts[path] = dict(storage)
    task["file_mounts"] = {**mounts, f"{folder}.tar.gz": str(spec.job_dir / ARCHIVE)}
    if executor.cluster_config_overrides:
        task["config"] = executor.cluster_config_overrides
    if executor.setup:
        code = executor.packager.code_dir(Path("$dir")) if executor.packager.moves_code else "$dir"
        task["setup"] = f'{unpack}cd "{code}"\n{executor.setup.rstrip()}\n'
    task["run"] = f"{unpack}exec python3 $dir/{node} $dir\n"
    return task


def _secret_names(spec: JobSpec) -> list[str]:
    env = [item for role in spec.app.roles for item in role.env.items()]
    return list(dict.fromkeys(name for name, value in env if not isinstance(value, str)))


def starts(spec: JobSpec, macros: ExecutorMacros) -> dict[str, Any]:
    """What the program on the nodes is told: how each member is started."""
    first = spec.members[0]
    return {
        "timeout": first.timeout,
        # A managed job is started again by SkyPilot.
        "retries": 0 if getattr(first, "managed", False) else first.retries,
        "members": [_member(spec, at, macros) for at in range(len(spec.members))],
    }


def _member(spec: JobSpec, at: int, macros: ExecutorMacros) -> dict[str, Any]:
    role = spec.app.roles[at]
    argv = [macros.substitute(word) for word in (role.entrypoint, *role.args)]
    env = {n: macros.substitute(v) if isinstance(v, str) else v for n, v in role.env.items()}
    if role.metadata.get("task") is not None:
        # The launching script, which the task may be part of, imports nemo_run.
        library = f"{rundir(spec.job_dir)}/{LIBRARY}"
        env["PYTHONPATH"] = ":".join(filter(None, (env.get("PYTHONPATH"), library)))
    marked = {name: value for name, value in env.items() if isinstance(value, Expand)}
    plain = {n: v for n, v in env.items() if isinstance(v, str) and not isinstance(v, Expand)}
    shell = bool(marked) or any(isinstance(word, Expand) for word in argv)
    return {
        "name": role.name,
        "argv": through_shell(argv, marked) if shell else list(argv),
        "env": plain,
        "workdir": role.metadata["workdir"],
    }


# --- showing --------------------------------------------------------------------------------------------


def render(task: Mapping[str, Any], secrets: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    """The task as YAML that `sky launch` takes, after it what the node is told, for who reads it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Any, value: str) -> Any:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    told_secrets = "".join(f"# secret {variable}: from {value.name}\n" for variable, value in secrets.items())
    body = yaml.dump(dict(task), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
    parts = [told_secrets, body]
    for name in ("timeout", "retries"):
        if told[name]:
            parts.append(f"\n# {name}: {told[name]}")
    for member in told["members"]:
        script = f"cd {join([member['workdir']])}\n{exports(member['env'])}{join(member['argv'])}"
        parts.append(f"\n# --- {member['name']}, on each node\n")
        parts += [f"# {_printable(line)}\n" for line in script.split("\n")]
    return "".join(parts)


def _printable(text: str) -> str:
    """As YAML takes it, even in a comment."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
