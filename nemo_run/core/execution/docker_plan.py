"""What Docker's library is told for a job, as pure data, and the same as `docker run` lines for people."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.base import JobSpec, Plan
from nemo_run.core.execution.checks import check_whole_job, parse_bytes
from nemo_run.core.execution.docker_engine import JOB_DIR, ROLE, TOKEN, address, is_socket, socket_owner
from nemo_run.core.execution.docker_entrypoint import ONE_STREAM, plan_own, plan_own_from_file
from nemo_run.core.execution.docker_files import LIBRARY, PACKAGE, RUNDIR, START, written
from nemo_run.core.packaging.image import planned_image
from nemo_run.errors import ConfigError
from nemo_run.shell import Expand, expands, exports, join, through_shell

if TYPE_CHECKING:
    from torchx.specs import Role

    from nemo_run.core.execution.docker import DockerExecutor

#: Seconds between SIGTERM and SIGKILL.
GRACE = 10.0
#: Settings that hold for a job as a whole, so that all members of a group must agree on them.
_WHOLE_JOB = ("timeout", "monitor_resources", "retries", "network", "shared_network", "base_url")
_ULIMIT = re.compile(r"([a-z]+)[=:](-?\d+)(?::(-?\d+))?\Z")
_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\Z")


def make_plan(executor: DockerExecutor, spec: JobSpec) -> Plan:
    """What is sent for a job.

    Raises:
        ConfigError: the members of a group differ in what holds for all, or something is missing.
    """
    check_whole_job(spec, _WHOLE_JOB)
    request = _request(executor, spec)
    return Plan(spec=spec, text=_as_script(request), request=request)


def _request(executor: DockerExecutor, spec: JobSpec) -> dict[str, Any]:
    url = address(executor.base_url)
    same_files = is_socket(url) if executor.same_files is None else executor.same_files
    group = len(spec.members) > 1
    own_network = executor.shared_network
    if group and not own_network and executor.network is None:
        own_network = _name(spec, "")
    folders: list[str] = []
    roles = [
        _plan_role(spec, role, member, own_network, url, same_files, folders)
        for role, member in zip(spec.app.roles, spec.members, strict=True)
    ]
    return {
        "token": spec.token,
        "job_dir": str(spec.job_dir),
        "url": url,
        "same_files": same_files,
        "network": own_network,
        "folders": folders,
        "timeout": executor.timeout,
        "retries": executor.retries,
        "grace": GRACE,
        "monitor_resources": executor.monitor_resources,
        "roles": roles,
    }


def _plan_role(
    spec: JobSpec,
    role: Role,
    executor: Any,
    own_network: str | None,
    url: str,
    same_files: bool,
    folders: list[str],
) -> dict[str, Any]:
    workdir = role.metadata["workdir"]
    if workdir.startswith(f"{RUNDIR}/"):  # else the Engine makes it, and it is root's
        folders.append(os.path.relpath(os.path.normpath(workdir), RUNDIR))
    of_image = not role.entrypoint
    build = planned_image(executor.packager, executor.container_image, spec.package)
    user = executor.user or "" if of_image else _user(executor, url)
    nobody = executor.user is None and not of_image and not user.startswith("0:")
    argv, env, start = _start(role, nobody=nobody)
    kwargs = {
        "image": build["tag"] if build else executor.container_image,
        "command": [*ONE_STREAM, *map(str, argv)],
        "environment": env,
        "working_dir": workdir or None,
        "user": user,
        "init": True,
        "labels": {TOKEN: spec.token, JOB_DIR: str(spec.job_dir), ROLE: role.name},
        "name": _name(spec, role.name if len(spec.members) > 1 else ""),
        # An Engine may be told to throw old lines away, or to send all of them elsewhere.
        "log_config": {"type": "json-file", "config": {}},
        **_limits(executor),
        **_network(executor, own_network, role.name, group=len(spec.members) > 1),
    }
    mounts, binds = mounts_of(executor.volumes, spec.job_dir, folders, check=same_files)
    if same_files:
        own = _mount("bind", str(PACKAGE), f"{LIBRARY}/nemo_run", read_only=True)
        mounts = [_mount("bind", str(spec.job_dir), RUNDIR), own, *mounts]
    given = dict(executor.additional_kwargs)
    kwargs["labels"] = {**given.pop("labels", {}), **kwargs["labels"]}
    kwargs["mounts"] = mounts + list(given.pop("mounts", []))
    if binds:
        kwargs["volumes"] = binds
    planned = {"name": role.name, "kwargs": kwargs | given, "start": start, "build": build}
    return _of_image(planned, role) if of_image else planned


def _of_image(planned: dict[str, Any], role: Role) -> dict[str, Any]:
    """The same role, to start what the image says."""
    kwargs, start = dict(planned["kwargs"]), planned["start"]
    if "entrypoint" in kwargs:
        problem = "additional_kwargs holds an entrypoint, and the Script asks for the image's own"
        raise ConfigError(f"DockerExecutor.{problem}; leave one of them out")
    if start is None:
        own = plan_own(role.args, role.env)
    else:
        own = plan_own_from_file(START, role.args)
        start = {**start, "argv": start["argv"][1:], "follow": True}
    del kwargs["command"]
    return {**planned, "kwargs": kwargs, "start": start, "own": own}


def _start(role: Role, *, nobody: bool) -> tuple[list[str], dict[str, Any], dict[str, Any] | None]:
    """What an Engine is told to start, in which environment, and what a file has to say instead of it.

    Args:
        role: What is to be started.
        nobody: Whether the image may know nobody of the user's number.
    """
    argv, env = [role.entrypoint, *role.args], dict(role.env)
    if nobody:
        env = {"HOME": "/tmp", "USER": os.environ.get("USER", "nemo_run")} | env
    if role.metadata["task"] is not None:  # the launching script, which it may be part of, imports nemo_run
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), LIBRARY)))
    told = {n: v for n, v in env.items() if _can_be_told(v) and not isinstance(v, Expand)}
    if all(map(_can_be_told, (*env.values(), *argv))):
        return (through_shell(argv, env) if expands(argv, env) else argv), told, None
    untold = {name: written(value) for name, value in env.items() if name not in told}
    return ["/bin/sh", START], told, {"argv": list(map(written, argv)), "env": untold}


def _can_be_told(word: Any) -> bool:
    """Whether an Engine may be told: it takes nothing but UTF-8, and shows everybody what it is told."""
    if not isinstance(word, str):
        return False
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(spec: JobSpec, role: str) -> str:
    """A name for people to know the job by, that no other job on the Engine has."""
    key = hashlib.sha256("\0".join((spec.token, str(spec.job_dir), role)).encode(errors="surrogateescape"))
    words = "-".join(filter(None, (spec.experiment_id, spec.id, role)))
    return f"{re.sub('[^A-Za-z0-9_.-]+', '_', words)[:100].lstrip('_.-') or 'job'}-{key.hexdigest()[:10]}"


def _user(executor: DockerExecutor, url: str) -> str:
    """Who launches; to a rootless Engine, whose socket is the user's own, that is root."""
    if executor.user is not None:
        return executor.user
    rootless = is_socket(url) and socket_owner(url) == os.getuid() != 0
    return "0:0" if rootless else f"{os.getuid()}:{os.getgid()}"


def _limits(executor: DockerExecutor) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if executor.memory_limit is not None:
        # Without the second, as much again of swap would be allowed.
        limits["mem_limit"] = limits["memswap_limit"] = parse_bytes(executor.memory_limit)
    if executor.cpu_limit is not None:
        limits["nano_cpus"] = executor.cpu_limit * 10**9
    if executor.num_gpus:
        limits["device_requests"] = [{"Driver": "", "Count": executor.num_gpus, "Capabilities": [["gpu"]]}]
    if executor.gpu_ids:
        which = {"DeviceIDs": list(executor.gpu_ids)}
        limits["device_requests"] = [{"Driver": "", **which, "Capabilities": [["gpu"]]}]
    if executor.shm_size is not None:
        limits["shm_size"] = parse_bytes(executor.shm_size)
    if executor.ulimits:
        limits["ulimits"] = ulimits(executor.ulimits)
    for name in ("runtime", "ipc_mode", "privileged", "healthcheck"):
        if value := getattr(executor, name):
            limits[name] = value
    return limits


def ulimits(given: Any) -> list[dict[str, Any]]:
    """As Docker's library takes them, from `type=soft:hard` or `type:soft:hard`."""
    limits = []
    for text in given if isinstance(given, (list, tuple)) else [given]:
        if not isinstance(text, str) or not (match := _ULIMIT.match(text)):
            raise ConfigError(
                f'DockerExecutor.ulimits: {text!r} is none; give a list such as ["memlock=-1:-1"]'
            )
        soft = int(match[2])
        limits.append({"Name": match[1], "Soft": soft, "Hard": int(match[3] or soft)})
    return limits


def _shown_gpus(request: Mapping[str, Any]) -> str:
    if which := request.get("DeviceIDs"):
        return f'"device={",".join(which)}"'
    return "all" if request["Count"] < 0 else str(request["Count"])


def _network(executor: DockerExecutor, own: str | None, role: str, *, group: bool) -> dict[str, Any]:
    """A group's members share a network and go by their roles' names there, and by those that are given."""
    network = own or executor.network
    if network is None:
        return {}
    names = {role, re.sub(r"[^A-Za-z0-9_.-]+", "-", role)} if group else set()
    names |= set(executor.aliases)
    if not names or network in ("host", "none", "bridge") or network.startswith("container:"):
        return {"network": network} if network not in ("host", "none") else {"network_mode": network}
    return {"network": network, "networking_config": {network: {"Aliases": sorted(names)}}}


def mounts_of(
    volumes: Any, job_dir: Path | None = None, folders: list[str] | None = None, *, check: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """What `volumes` means: mounts, and in Docker's older form those with options that mounts do not have.

    Args:
        volumes: The field.
        job_dir: What /$nemo_run stands for.
        folders: Takes the folders below it that are to be made.
        check: Whether sources must be there.

    Raises:
        ConfigError: one is no mount, or its source is not there.
    """
    mounts, binds = [], []
    for source, target, mode in map(_mount_parts, _listed(volumes)):
        inner = source.removeprefix("/$nemo_run")
        if inner != source and (not inner or inner.startswith("/")):
            if folders is not None and inner.strip("/"):
                folders.append(inner.strip("/"))
            source = str(job_dir or "") + inner
        elif source.startswith(("/", "~")):
            source = os.path.expanduser(source)
            if check and not os.path.exists(source):
                raise ConfigError(
                    f"DockerExecutor.volumes: {source!r} is not there; make it, or mend the path"
                )
        elif not _VOLUME_NAME.match(source):
            raise ConfigError(
                f"DockerExecutor.volumes: {source!r} is neither a path from / or ~ nor a volume's name"
            )
        target = target.replace("/$nemo_run", RUNDIR, 1) if target.startswith("/$nemo_run") else target
        if set(mode.split(",")) <= {"", "ro", "rw"}:
            kind = "bind" if source.startswith("/") else "volume"
            mounts.append(_mount(kind, source, target, read_only="ro" in mode.split(",")))
        else:
            binds.append(f"{source}:{target}:{mode}")
    return mounts, binds


def _mount(kind: str, source: str, target: str, *, read_only: bool = False) -> dict[str, Any]:
    return {"Type": kind, "Source": source, "Target": target, "ReadOnly": read_only}


def _listed(volumes: Any) -> list[Any]:
    if isinstance(volumes, Mapping):
        return list(volumes.items())
    if isinstance(volumes, (list, tuple)):
        return list(volumes)
    raise ConfigError(
        f'DockerExecutor.volumes is {volumes!r}; give a list such as ["/data:/data"], or a dict'
    )


def _mount_parts(entry: Any) -> tuple[str, str, str]:
    """(source, target, mode) of one entry of `volumes`."""
    if isinstance(entry, tuple):
        source, rest = entry
        if isinstance(rest, Mapping) and isinstance(rest.get("bind"), str):
            target, mode = rest["bind"], rest.get("mode", "")
        else:
            target, _, mode = rest.partition(":") if isinstance(rest, str) else ("", "", "")
        parts = [os.fspath(source), target, mode]
    else:
        parts = [*(entry.split(":") if isinstance(entry, str) else []), ""]
    if len(parts) not in (3, 4) or not parts[0] or not parts[1].startswith("/"):
        raise ConfigError(f'DockerExecutor.volumes: {entry!r} is no mount; give it as "/source:/target"')
    return parts[0], parts[1], parts[2]


# --- showing --------------------------------------------------------------------------------------------


def _as_script(request: Mapping[str, Any]) -> str:
    lines = [
        "#!/bin/sh",
        f"# Containers of the Docker Engine at {request['url']}, as `docker run` would make them.",
    ]
    lines += [f"# {name}: {request[name]}" for name in ("timeout", "retries") if request[name]]
    if not request["same_files"]:
        lines.append(
            f"# copied in: {request['job_dir']} as {RUNDIR}; copied out at the end: results, artifacts"
        )
    if request["network"]:
        lines.append(join(["docker", "network", "create", request["network"]]))
    for role in request["roles"]:
        if len(request["roles"]) > 1:
            lines.append(f"\n# --- {role['name']}")
        if role["build"]:
            lines.append(f"# image {role['build']['tag']} is built of the packaged code by")
            lines += [f"#   {line}" for line in role["build"]["dockerfile"].splitlines()]
        lines.append(_as_command(role))
    return "\n".join(lines) + "\n"


def _as_command(role: Mapping[str, Any]) -> str:
    kwargs = dict(role["kwargs"])
    flags = [["--detach"], ["--init"] if kwargs.pop("init") else []]
    image, own = kwargs.pop("image"), role.get("own")
    command = own["args"] if own else kwargs.pop("command")
    for name, flag in _FLAGS.items():
        if kwargs.get(name):
            flags.append([flag, str(kwargs.pop(name))])
    for mount in kwargs.pop("mounts"):
        words = {"type": mount["Type"], "source": mount["Source"], "target": mount["Target"]}
        text = ",".join(f"{name}={value}" for name, value in words.items())
        flags.append(["--mount", text + ",readonly" * mount["ReadOnly"]])
    flags += [["--volume", bind] for bind in kwargs.pop("volumes", ())]
    flags += [
        ["--ulimit", f"{limit['Name']}={limit['Soft']}:{limit['Hard']}"]
        for limit in kwargs.pop("ulimits", ())
    ]
    for request in kwargs.pop("device_requests", ()):
        flags.append(["--gpus", _shown_gpus(request)])
    flags += [["--privileged"]] if kwargs.pop("privileged", False) else []
    for endpoint in kwargs.pop("networking_config", {}).values():
        flags += [["--network-alias", alias] for alias in endpoint["Aliases"]]
    flags += [["--label", f"{name}={value}"] for name, value in kwargs.pop("labels").items()]
    flags += [["--env", f"{name}={value}"] for name, value in kwargs.pop("environment").items()]
    kwargs.pop("log_config")
    kwargs.pop("memswap_limit", None)
    rest = [f"# and {name}={value!r}" for name, value in kwargs.items() if value is not None]
    if own:
        before = join(own["prefix"])
        rest.append(f"# the image's ENTRYPOINT, or where it has none its CMD, is started by {before}")
    lines = " \\\n    ".join(
        ["docker run", *(join(words) for words in flags if words), join([image, *command])]
    )
    return "\n".join([*rest, lines, *_shown_start(role["start"])])


#: Arguments of Docker's library, and what the command calls them.
_FLAGS = {
    "name": "--name", "user": "--user", "working_dir": "--workdir", "network": "--network",
    "network_mode": "--network", "mem_limit": "--memory", "runtime": "--runtime", "ipc_mode": "--ipc",
    "shm_size": "--shm-size",
}  # fmt: skip


def _shown_start(start: Mapping[str, Any] | None) -> list[str]:
    """What lies in the file that a container starts from, with secrets by name."""
    if start is None:
        return []

    def shown(value: Any) -> str:
        if isinstance(value, Mapping) and "_secret_" in value:
            from nemo_run.secret import Secret

            return f"<secret {Secret.from_source(value['_secret_']).name}>"
        return Expand(value["_expand_"]) if isinstance(value, Mapping) else str(value)

    env = {name: shown(value) for name, value in start["env"].items()}
    given = '"$@" ' if start.get("follow") else ""
    text = f"{exports(env)}exec {given}{join(map(shown, start['argv']))}"
    return [f"# {START} is put into the container before it starts, and removes itself. It says:"] + [
        f"# {line}" for line in text.split("\n")
    ]
