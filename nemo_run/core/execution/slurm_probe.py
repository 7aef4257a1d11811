"""What jobs need of a Slurm cluster, tried by one command there, and told thing by thing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.base import Check
from nemo_run.core.execution.probing import probe_home, probe_launcher, room
from nemo_run.core.execution.slurm_check import FUNCTIONS, PROGRAMS
from nemo_run.core.execution.slurm_script import directive, options
from nemo_run.core.tunnel.local import LocalTunnel
from nemo_run.errors import AuthenticationError, HostKeyError, NemoRunError, TunnelError
from nemo_run.shell import join

if TYPE_CHECKING:
    from nemo_run.core.execution.slurm import SlurmExecutor

#: Seconds for all of it; a controller that is away keeps its commands busy for a while.
PATIENCE = 180.0
#: The shell's exit code for a program that is not there.
_MISSING = 127
#: Each line of the answer is a name, an exit code, and what was printed.
_FUNCTIONS = """\
try() {
    name=$1
    shift
    said=$("$@" 2>&1 </dev/null)
    code=$?
    printf 'tried %s %s %s\\n' "$name" "$code" "$(printf %s "$said" | tr '\\n' '\\t')"
    return $code
}
free() {
    writable "$1" && df -Pk -- "$1" | awk 'NR == 2 { print $4 }'
}
over_quota() {
    command -v quota >/dev/null || return 0
    said=$(quota -q 2>/dev/null)
    [ -z "$said" ] || { printf '%s\\n' "$said"; return 1; }
}
version() {
    python "$1" "" && env "$1" --version
}
accounts() {
    sacct -n -X -S now >/dev/null && sacctmgr -nP show assoc "user=$(id -un)" format=account | sort -u
}
like_jobs() {
    printf %s "$1" | sbatch --test-only
}
"""
_TRIED = re.compile(r"^tried (\S+) (\d+) (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class _Tried:
    """How one of the commands ended."""

    code: int
    said: str

    @property
    def line(self) -> str:
        """What it printed, on one line, without its own name before each."""
        return " ".join(re.sub(r"^\w+: (error: )?", "", part) for part in self.said.split("\t") if part)


def probe_cluster(executor: SlurmExecutor) -> Iterator[Check]:
    """What jobs of an executor need: the way there, Slurm's own programs, a folder, a Python."""
    yield probe_home()
    if not isinstance(executor.tunnel, LocalTunnel):
        for check in _probe_login(executor):
            yield check
            if not check.ok:
                return
    try:
        script = probing(executor).encode(errors="surrogateescape")
        done = executor.tunnel.run(["sh", "-s"], stdin=script, timeout=PATIENCE, retry=True)
    except TunnelError as exc:
        yield Check(name="shell", ok=False, found=str(exc))
        return
    tried = {name: _Tried(int(code), said) for name, code, said in _TRIED.findall(done.text)}
    yield from _told(executor, tried)
    if executor.launcher is not None and executor.shares_files():
        yield probe_launcher(executor)


def _probe_login(executor: SlurmExecutor) -> Iterator[Check]:
    """Each step of the way in, as far as it goes."""
    tunnel: Any = executor.tunnel
    steps = ("ssh", "host key", "login")
    failed, problem = len(steps), ""
    try:
        tunnel.connect()
    except NemoRunError as exc:
        problem = str(exc)
        failed = 1 if isinstance(exc, HostKeyError) else 2 if isinstance(exc, AuthenticationError) else 0
    found = (f"{tunnel.host} answers", "known, and the right one", f"as {tunnel.key}")
    for at, name in enumerate(steps[: failed + 1]):
        yield Check(name=name, ok=at != failed, found=problem if at == failed else found[at])


def probing(executor: SlurmExecutor) -> str:
    """A script that tries all that can be tried there."""
    lines = [join(["try", "programs", "programs", *PROGRAMS])]
    slurm = ["try version sbatch --version", "try controller sinfo -h -o %P"]
    asked = ["try accounting accounts", join(["try", "job", "like_jobs", _job(executor)])]
    lines.append(f"{' && '.join(slurm)} && {{ {'; '.join(asked)}; }}")
    if folder := executor.tunnel.job_dir:
        lines += [join(["try", "job_dir", "free", folder]), "try quota over_quota"]
    if executor.job_details.folder:
        lines.append(join(["try", "logs", "free", executor.job_details.folder]))
    if executor.container_image:
        lines.append("try pyxis sh -c 'srun --help | grep -q container-image'")
    else:
        lines.append(join(["try", "python", "version", executor.python]))
    lines.append("try rsync command -v rsync")
    return _FUNCTIONS + FUNCTIONS + "\n".join(lines) + "\nexit 0\n"


def _job(executor: SlurmExecutor) -> str:
    """A job like those of an executor, which does nothing."""
    shape = {"nodes": executor.nodes, "ntasks-per-node": executor.tasks_per_node()}
    given = {name.replace("_", "-"): value for name, value in (executor.additional_parameters or {}).items()}
    wanted = {**options(executor), **shape, **given}
    lines = [directive(name, value) for name, value in sorted(wanted.items()) if value not in (None, False)]
    return "".join(["#!/bin/sh\n", *lines, ":\n"])


# --- what was found -------------------------------------------------------------------------------------


def _told(executor: SlurmExecutor, tried: Mapping[str, _Tried]) -> Iterator[Check]:
    yield from _slurm_checks(tried)
    yield from _folder_checks(executor, tried)
    if "python" in tried:
        yield _python(executor, tried["python"])
    if "pyxis" in tried:
        ok = tried["pyxis"].code == 0
        step = "" if ok else "have Pyxis installed there, or leave container_image out"
        yield Check(name="pyxis", ok=ok, found=f"srun takes {'' if ok else 'no '}images", step=step)
    if not isinstance(executor.tunnel, LocalTunnel):
        yield _rsync(tried["rsync"].code == 0, shutil.which("rsync") is not None)


def _slurm_checks(tried: Mapping[str, _Tried]) -> Iterator[Check]:
    programs = tried["programs"]
    if programs.code:
        step = "log in where they are, or bring them by the tunnel's pre_command (`module load slurm`)"
        found = f"there is no {programs.line} on the PATH"
        yield Check(name="slurm", ok=False, found=found, step=step)
    elif "version" in tried:
        version = tried["version"]
        step = "" if version.code == 0 else "have `sbatch --version` work there; ask its administrator how"
        yield Check(name="slurm", ok=version.code == 0, found=version.line, step=step)
    if "controller" in tried:
        controller = tried["controller"]
        named = [name.replace("*", " (the default)") for name in controller.line.split()]
        ok = controller.code == 0
        found = (
            f"it answers; partitions: {', '.join(named)}" if ok else f"it does not answer: {controller.line}"
        )
        step = "" if ok else "ask its administrator, or try `sinfo` there again later"
        yield Check(name="controller", ok=ok, found=found, step=step)
    if "accounting" in tried:
        yield _accounting(tried["accounting"])
    if "job" in tried:
        job = tried["job"]
        step = "" if job.code == 0 else "change what it refuses; partitions and accounts are named above"
        yield Check(name="job", ok=job.code == 0, found=f"sbatch --test-only: {job.line}", step=step)


def _accounting(tried: _Tried) -> Check:
    if tried.code == 0:
        accounts = ", ".join(tried.line.split())
        found = f"on; your accounts: {accounts}" if accounts else "on; you have no account of your own there"
        return Check(name="accounting", ok=True, found=found)
    if tried.code == _MISSING or "disabled" in tried.said:
        return Check(name="accounting", ok=True, found="off; jobs are followed by their own records")
    step = "ask its administrator; jobs are followed by their own records meanwhile"
    return Check(name="accounting", ok=False, found=f"it does not answer: {tried.line}", step=step)


def _folder_checks(executor: SlurmExecutor, tried: Mapping[str, _Tried]) -> Iterator[Check]:
    base = executor.tunnel.job_dir
    if not base.startswith("/") and not (isinstance(executor.tunnel, LocalTunnel) and not base):
        step = "give the folder for experiments on the cluster, from / on"
        yield Check(name="job_dir", ok=False, found=f"the tunnel's job_dir is {base!r}", step=step)
    elif "job_dir" in tried:
        yield _folder("job_dir", base, tried["job_dir"])
    if "logs" in tried:
        yield _folder("logs", executor.job_details.folder or "", tried["logs"])
    if "quota" in tried:
        over = tried["quota"].line
        step = "delete what is not needed there: until then no job can write" if over else ""
        yield Check(name="quota", ok=not over, found=over or "nothing is over its quota", step=step)


def _folder(name: str, folder: str, tried: _Tried) -> Check:
    step = "another folder that you may write to and that the nodes see too"
    if tried.code:
        found = f"{folder} cannot be written to: {tried.line}"
        return Check(name=name, ok=False, found=found, step=f"make room there, or give {step}")
    return room(name, folder, int(tried.line or 0) * 1024, f"give {step}")


def _python(executor: SlurmExecutor, tried: _Tried) -> Check:
    python = executor.python
    if tried.code == 0:
        return Check(name="python", ok=True, found=f"{python} is {tried.line}")
    if executor.setup_lines or "PATH" in executor.env_vars:
        found = f"{python} is none yet ({tried.line}); setup_lines or PATH may bring one on the nodes"
        return Check(name="python", ok=True, found=found)
    step = "name one by python_path that is Python 3.10 or newer, or have setup_lines bring one"
    return Check(name="python", ok=False, found=f"{python} runs no Python tasks: {tried.line}", step=step)


def _rsync(there: bool, here: bool) -> Check:
    if there and here:
        return Check(name="rsync", ok=True, found="on both sides")
    missing = "on neither side" if not (there or here) else "not on this side" if there else "not over there"
    return Check(name="rsync", ok=True, found=f"{missing}: files go by SFTP, which is slower")
