"""What jobs need of a cluster, looked at by one command for all of them before anything is queued."""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemo_run.core.tunnel.base import Tunnel
from nemo_run.errors import SubmitError
from nemo_run.shell import join

if TYPE_CHECKING:
    from nemo_run.core.execution.base import JobSpec

logger = logging.getLogger(__name__)

Record = Mapping[str, Any]
#: Without these nothing is submitted, found again or ended.
PROGRAMS = ("sbatch", "squeue", "scancel")
#: What each check does; one that finds nothing wrong says nothing.
FUNCTIONS = """\
umask 077
check() {
    at=$1
    shift
    said=$("$@" 2>&1 </dev/null) && return
    printf 'check %s %s\\n' "$at" "$(printf %s "${said:-exit code $?}" | tr '\\n' ' ')"
}
programs() {
    for name do
        command -v "$name" >/dev/null || { echo "$name"; return 1; }
    done
}
writable() {
    mkdir -p -- "$1" && probe=$(mktemp "$1/.probe.XXXXXX") || return
    # What does not compress, so that it takes its room everywhere.
    head -c 1048576 /dev/urandom >"$probe"
    code=$?
    rm -f -- "$probe"
    return $code
}
python() {
    env ${2:+"PATH=$2"} "$1" -c 'import sys
sys.exit(sys.version_info < (3, 10) and "it is Python " + sys.version.split()[0])'
}
"""
_FOUND = re.compile(rb"^check (\d+) (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Problem:
    """Something that is not as jobs need it, with the next step."""

    text: str
    #: Whether jobs cannot run; else the nodes may have what is not seen where jobs are submitted.
    fatal: bool = True


@dataclass(frozen=True)
class _Check:
    #: A function of the script, and its arguments.
    call: tuple[str, ...]
    #: What to say where it fails; `{said}` is what it said itself.
    text: str
    fatal: bool = True


def needs(spec: JobSpec) -> dict[str, Any]:
    """What a job's request holds for the checks: interpreters outside containers, and sources of mounts."""
    members: Sequence[Any] = spec.members
    pythons, mounts = [], []
    for role, member in zip(spec.app.roles, members, strict=True):
        if member.container_image:
            sources = [mount.partition(":")[0] for mount in member.container_mounts]
            images = [member.container_image] if member.container_image.startswith("/") else []
            mounts += [path for path in (*images, *sources) if not path.startswith("/$nemo_run")]
        elif role.metadata.get("task") is not None and member.python != sys.executable:
            path = role.env.get("PATH", "")
            # The lines that come first may bring another, and so may a PATH that is not known here.
            sure = not members[0].setup_lines and type(path) is str
            pythons.append((member.python, path if type(path) is str else "", sure))
    return {"pythons": pythons, "mounts": mounts}


def checking(requests: Sequence[Record]) -> str:
    """A script that looks at all that these jobs need, each thing once, and prints what is wrong."""
    lines = [join(["check", str(at), *check.call]) + "\n" for at, check in enumerate(_checks(requests))]
    return FUNCTIONS + "".join(lines) + "exit 0\n"


def parse_checking(printed: bytes, requests: Sequence[Record]) -> list[Problem]:
    """What that script has found."""
    checks = list(_checks(requests))
    found = {int(at): said.decode(errors="replace").strip() for at, said in _FOUND.findall(printed)}
    return [
        Problem(check.text.replace("{said}", found[at].rstrip(".")), check.fatal)
        for at, check in enumerate(checks)
        if at in found
    ]


def check(tunnel: Tunnel, requests: Sequence[Record]) -> None:
    """Find out by one command whether the cluster has what these jobs need; what may be wrong is logged.

    Raises:
        SubmitError: it has not, and none of them is to be submitted.
        TunnelError: it cannot be asked.
    """
    script = checking(requests).encode(errors="surrogateescape")
    problems = parse_checking(tunnel.run(["sh", "-s"], stdin=script, retry=True).stdout, requests)
    for problem in problems:
        if not problem.fatal:
            _warn(tunnel.key, problem.text)
    if fatal := [problem.text for problem in problems if problem.fatal]:
        raise SubmitError(f"{tunnel.key} is not as these jobs need it: " + "; ".join(fatal))


@functools.lru_cache(maxsize=1000)
def _warn(where: str, text: str) -> None:
    """Once, however many jobs need it."""
    logger.warning("%s: %s", where, text)


def _checks(requests: Sequence[Record]) -> Iterator[_Check]:
    """All that is looked at, each thing once, in the order in which it is told."""
    yield _Check(
        ("programs", *PROGRAMS),
        "there is no {said} on the PATH; submit where Slurm's commands are, or give the run.SSHTunnel a"
        " pre_command that brings them (`module load slurm`)",
    )
    for folder in _distinct(request["base"] for request in requests if request["elsewhere"]):
        yield _Check(
            ("writable", folder),
            f"the tunnel's job_dir {folder!r} cannot be written to ({{said}}); make room there, or give"
            " another folder that you may write to and that the nodes see too",
        )
    for folder in _distinct(request["log_folder"] for request in requests):
        yield _Check(
            ("writable", folder),
            f"the folder {folder!r} of job_details cannot be written to ({{said}}), and Slurm would throw"
            " away what is printed; make room there, or give another",
        )
    for python, path, sure in _distinct(each for request in requests for each in request["pythons"]):
        yield _Check(
            ("python", python, path),
            f"Python tasks cannot run by {python!r} ({{said}}); nemo_run needs Python 3.10 or newer on the"
            " nodes: name one by python_path, or have setup_lines bring one",
            sure,
        )
    for path in _distinct(each for request in requests for each in request["mounts"]):
        yield _Check(
            ("test", "-e", path),
            f"{path!r}, which containers are to see, is not there; if the nodes do not have it either the job"
            " will fail: give the path of something that is there in container_mounts or container_image",
            False,
        )


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(value for value in values if value))
