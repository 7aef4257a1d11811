"""How a role's container starts: its words and variables, and what lies there for it; nothing is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core.runner import ATTEMPT
from nemo_run.errors import UnsupportedError
from nemo_run.secret import Secret
from nemo_run.shell import Expand, expands, exports, join, quote, through_shell

if TYPE_CHECKING:
    from torchx.specs import Role

    from nemo_run.core.execution.kubernetes import KubernetesExecutor

#: Where the job's folder is as its task sees it, and where its Python finds nemo_run.
RUNDIR, LIBRARY = "/nemo_run", "/.nemo_run/lib"
#: Where a pod finds what travels along: nemo_run, the job's files, and a start whose words no API takes.
GIVEN = "/.nemo_run/given"
LIBRARY_FILE, JOB_FILE, START = "library.tar.gz", "job.tar.gz", "start"
#: The variable by which the shell hears how often this pod has failed before.
FAILURES = "JOB_FAILURE_COUNT"
#: What stands between a Python task and its container.
_POD = "nemo_run/core/execution/kubernetes_pod.py"


@dataclass(frozen=True)
class Start:
    """How a role's container starts."""

    #: `command`, `args` and `workingDir` of the container.
    container: dict[str, Any]
    env: list[dict[str, Any]]
    #: Keys of the Secret whose values are files in the container.
    files: list[str]
    #: The text of a script, where the API cannot be told its words.
    script: str | None = None


def start(role: Role, executor: KubernetesExecutor, at: int) -> Start:
    """What a role's container is told to start, and in which environment.

    Raises:
        UnsupportedError: an image's own program is to be given what only a shell could give it.
    """
    if not role.entrypoint:
        return _start_own(role)
    argv, env = [role.entrypoint, *role.args], dict(role.env)
    is_task, files = role.metadata["task"] is not None, []
    if is_task:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), LIBRARY)))
        files.append(LIBRARY_FILE)
    if not executor.workdir_pvc:
        files.append(JOB_FILE)
    told = {name: value for name, value in env.items() if _can_be_told(value)}
    script = None
    if len(told) < len(env) or not all(map(_can_be_told, argv)):
        untold = {name: value for name, value in env.items() if name not in told}
        script = f"{exports(untold)}exec {join(argv)}\n"
        files.append(f"{START}-{at}")
        argv = ["/bin/sh", f"{GIVEN}/{START}"]
    elif expands(argv, told):
        argv = through_shell(argv, told)
    if is_task and not executor.workdir_pvc:  # it sends home what came of it
        argv = [executor.python, f"{LIBRARY}/{_POD}", *argv]
    rundir = str(executor.rundir(Path(executor.job_dir)))
    python = executor.python if is_task else "python3"
    boot = _boot(files, rundir, role.metadata["workdir"], python, counts=bool(executor.retries))
    container = {"command": ["/bin/sh", "-c", boot, "sh"], "args": [_literal(word) for word in argv]}
    return Start(container, list(_env(told)), files, script)


def _start_own(role: Role) -> Start:
    """The image's own ENTRYPOINT, of which nothing is known here."""
    words = [*role.args, *(value for value in role.env.values() if not isinstance(value, Secret))]
    if any(isinstance(word, Expand) or not _can_be_told(word) for word in words):
        raise UnsupportedError(
            f"{role.name!r} runs its image's own ENTRYPOINT, so that there is no shell to expand a run.Expand"
            " or to hand over what is no UTF-8; say what is to run, by Script(path=…)",
            executor="KubernetesExecutor",
            capability="Expand",
        )
    container: dict[str, Any] = {"args": [_literal(word) for word in role.args]} if role.args else {}
    if role.metadata["workdir"]:
        container["workingDir"] = role.metadata["workdir"]
    return Start(container, list(_env(role.env)), [])


def _boot(files: Sequence[str], rundir: str, workdir: str, python: str, *, counts: bool) -> str:
    """Shell text that makes the job's folder what it is elsewhere, and becomes the words after it."""
    lines = []
    for name, folder in ((LIBRARY_FILE, LIBRARY), (JOB_FILE, rundir)):
        if name in files:
            archive = f"{GIVEN}/{name}"
            unpack = f"{quote(python)} -m tarfile -e {archive} {folder}"
            lines.append(f"tar -xzf {archive} -C {folder} 2>/dev/null || {unpack} || exit 126")
    if counts:
        lines.append(f"export {ATTEMPT}=$(({FAILURES} + 1))")
    there = f"cd {quote(rundir)} && mkdir -p results artifacts {quote(workdir)} && cd {quote(workdir)}"
    # One stream keeps the order of lines.
    return "\n".join([*lines, f"{there} || exit 126", 'exec "$@" 2>&1'])


def _env(env: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in env.items():
        if isinstance(value, Secret):
            yield {"name": name, "valueFrom": {"secretKeyRef": {"name": "", "key": value.name}}}
        elif not isinstance(value, Expand):
            yield {"name": name, "value": _literal(value)}


def _literal(word: str) -> str:
    """Keep Kubernetes from expanding `$(NAME)`, and from taking `$$` for `$`."""
    return str(word).replace("$", "$$") if "$(" in word or "$$" in word else str(word)


def _can_be_told(word: Any) -> bool:
    """Whether JSON can say it: bytes that are no UTF-8 it cannot; secrets go another way."""
    try:
        str(word).encode() if isinstance(word, str) else None
    except UnicodeEncodeError:
        return False
    return True
