"""Jobs on their way to Slurm through a tunnel: their files, their code, and the one submission of each."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_run.core import runner
from nemo_run.core.execution.slurm_array import arrays
from nemo_run.core.execution.slurm_check import check
from nemo_run.core.execution.slurm_script import environment_text
from nemo_run.core.execution.slurm_scripts import (
    Answer,
    Order,
    finding,
    parse_finding,
    parse_submitting,
    submitting,
)
from nemo_run.core.tunnel.base import Tunnel
from nemo_run.errors import SubmitError, TunnelError
from nemo_run.shell import join

Record = dict[str, Any]
#: This nemo_run, which jobs on other machines are sent.
PACKAGE = Path(runner.__file__).parents[1]
#: What every batch script reads.
_HELPER = Path(__file__).with_name("slurm_job.sh")
#: Below the folder of all experiments over there: what they share.
SHARED = ".nemo_run"
#: What sbatch says when the controller is away, or did not answer in time: no verdict on the job.
_AWAY = ("Unable to contact slurm controller", "Socket timed out", "Zero Bytes were transmitted or received")
#: Files of a job's folder here that a job elsewhere needs.
_NEEDED = ("task.json", "configs", "scripts")


def prepare(tunnel: Tunnel, requests: Sequence[Record]) -> None:
    """Have all that these jobs need lie on the cluster; nothing is started.

    Raises:
        SubmitError: the cluster lacks something that they need.
        TunnelError: something cannot be written there.
        SecretError: a secret cannot be read.
    """
    elsewhere = [request for request in requests if request["elsewhere"]]
    check(tunnel, requests)
    _send_shared(tunnel, elsewhere)
    below = defaultdict[str, dict[str, bytes]](dict)
    for request in requests:
        above, name = os.path.split(request["folder"])
        below[above] |= {f"{name}/{path}": content for path, content in _files(request).items()}
    for above, files in below.items():
        tunnel.write(above, files)
    if copies := [(_package(each), each["folder"]) for each in elsewhere if each["package"]]:
        words = [word for pair in copies for word in pair]
        tunnel.run(["sh", "-s"], stdin=_COPY.encode() + _arguments("copy", words, 2), retry=True)


def submit(tunnel: Tunnel, requests: Sequence[Record]) -> list[str | SubmitError | TunnelError]:
    """Submit jobs whose files are there, each unless it has been already: their numbers, or Slurm's refusals.

    Raises:
        TunnelError: it is unknown what became of them.
    """
    answers = _submit(tunnel, requests)
    lost = [at for at, answer in enumerate(answers) if answer.kind == "tried"]
    for at in lost:
        if number := find(tunnel, requests[at]["folder"], requests[at]["token"]):
            answers[at] = Answer("submitted", number)
    if lost:  # and what waits for them has not been tried at all
        for kind, again in (("tried", True), ("blocked", False)):
            left = [at for at, answer in enumerate(answers) if answer.kind == kind]
            for at, answer in zip(
                left, _submit(tunnel, [requests[at] for at in left], again=again), strict=True
            ):
                answers[at] = answer
    return [_outcome(request["id"], answer) for request, answer in zip(requests, answers, strict=True)]


def _order(request: Record) -> Order:
    names = ("folder", "token", "dependency", "after")
    return Order(**{name: request[name] for name in names})


def _submit(tunnel: Tunnel, requests: Sequence[Record], *, again: bool = False) -> list[Answer]:
    answers: dict[str, Answer] = {}
    for above, those in _by_experiment(requests).items():
        equal = [] if again else arrays(those)  # each is looked for by itself then
        text = submitting(above, [_order(request) for request in those], equal, again=again)
        script = text.encode(errors="surrogateescape")
        # Only what nobody has tried is tried, so that this may be asked twice.
        result = tunnel.run(["sh", "-s"], stdin=script, check=False, retry=not again)
        said = parse_submitting(result.stdout)
        silent = Answer("unknown" if result.exit_code else "refused", result.said)
        answers |= {request["token"]: said.get(at, silent) for at, request in enumerate(those)}
    return [answers[request["token"]] for request in requests]


def _by_experiment(requests: Sequence[Record]) -> dict[str, list[Record]]:
    found = defaultdict[str, list[Record]](list)
    for request in requests:
        found[os.path.dirname(request["folder"])].append(request)
    return found


def _outcome(job_id: str, answer: Answer) -> str | SubmitError | TunnelError:
    if answer.kind == "submitted":
        return answer.text.partition(";")[0]
    if answer.kind == "blocked":
        return SubmitError(f"job {job_id!r} waits for one that has not been submitted ({answer.text})")
    words = answer.text or "sbatch said nothing"
    if answer.kind == "unknown" or any(said in words for said in _AWAY):
        return TunnelError(f"job {job_id!r} cannot be submitted: {words}", ran=None)
    return SubmitError(f"Slurm refuses job {job_id!r}: {words}", output=words)


# --- files ----------------------------------------------------------------------------------------------

#: Prints the arguments at which nothing is whole yet.
_MISSING = 'missing() { [ -e "$1/complete" ] || printf "%s\\0" "$1"; }\n'
#: Gives a job its own copy of the code, unless it has one.
_COPY = """\
copy() {
    [ -e "$2/code" ] && return
    rm -rf "$2/.code" && cp -a --reflink=auto "$1/code" "$2/.code" && mv "$2/.code" "$2/code" || exit
}
"""


def _arguments(function: str, words: Sequence[str], each: int) -> bytes:
    """Calls of a shell function, with so many words each."""
    calls = (join([function, *words[at : at + each]]) for at in range(0, len(words), each))
    return "".join(f"{call}\n" for call in calls).encode(errors="surrogateescape")


def _files(request: Record) -> dict[str, bytes]:
    """What lies in a job's folder before it starts."""
    # Slurm writes the first log before the job can make a folder for it.
    files = {
        "sbatch.sh": request["script"].encode(errors="surrogateescape"),
        "slurm_job.sh": _HELPER.read_bytes(),
        "logs/": b"",
    }
    for role, env in request["env"].items():
        values = {name: value if isinstance(value, str) else value.resolve() for name, value in env.items()}
        files[f"env/{role}.sh"] = environment_text(values).encode(errors="surrogateescape")
    return files | (_files_below(Path(request["home"]), _NEEDED) if request["elsewhere"] else {})


def _files_below(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    paths = [path for name in names for path in ([folder / name, *(folder / name).rglob("*")])]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


@functools.cache
def library_files() -> dict[str, bytes]:
    """This nemo_run, by path below its folder."""
    paths = (path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".j2", ".sh"))
    return {str(path.relative_to(PACKAGE.parent)): path.read_bytes() for path in sorted(paths)}


@functools.cache
def library_name() -> str:
    """A name that no other version of nemo_run has."""
    digest = hashlib.sha256()
    for name, content in library_files().items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _send_shared(tunnel: Tunnel, requests: Sequence[Record]) -> None:
    """Have what jobs share lie over there, whole: this nemo_run, and packages of code; each is sent once."""
    libraries = {request["library"]: None for request in requests if request["library"]}
    packages = {
        _package(request): Path(request["package"]["code"]) for request in requests if request["package"]
    }
    wanted = [*libraries, *packages]
    if not wanted:
        return
    said = tunnel.run(["sh", "-s"], stdin=_MISSING.encode() + _arguments("missing", wanted, 1), retry=True)
    missing = set(said.text.split("\0"))
    for folder in missing.intersection(libraries):
        tunnel.write(folder, library_files())
        tunnel.write(folder, {"complete": b""})
    for folder in missing.intersection(packages):
        tunnel.put(packages[folder], f"{folder}/code")
        tunnel.write(folder, {"complete": b""})


def _package(request: Record) -> str:
    """Where a job's package lies, for all jobs and experiments."""
    return f"{request['base']}/{SHARED}/packages/{request['package']['key']}"


# --- looking for what was sent --------------------------------------------------------------------------


def find(tunnel: Tunnel, folder: str, token: str) -> str | None:
    """The number of the job that was submitted from this folder, if one was.

    Raises:
        TunnelError: neither the folder nor Slurm can be asked, so that nobody knows.
    """
    result = tunnel.run(finding(folder, token), retry=True)
    return parse_finding(result.text, folder, token)
