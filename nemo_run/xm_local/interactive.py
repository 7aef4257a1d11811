"""A shell in a container, for the person who launches: `DockerOptions(interactive=True)`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

from nemo_run.errors import SubmitError, UnsupportedError
from nemo_run.xm.jobs import Job
from nemo_run.xm_local import backends
from nemo_run.xm_local.executables import ContainerImage
from nemo_run.xm_local.executors import DockerOptions, Local


def is_interactive(job: Job) -> bool:
    """Whether a shell is to be opened for a job.

    Raises:
        UnsupportedError: nobody is there to use it, or nothing to open it with.
    """
    options = job.executor.docker_options if isinstance(job.executor, Local) else None
    if not (isinstance(job.executable, ContainerImage) and options and options.interactive):
        return False
    problem = ""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        problem = "needs a terminal, and standard input and output are none"
    elif not shutil.which("docker"):
        problem = "needs the program `docker`, which is not on PATH"
    if problem:
        message = f"job {job.name!r}: DockerOptions.interactive=True {problem}; leave it out"
        raise UnsupportedError(message, executor="Local", capability="interactive")
    return True


def open_shell(job: Job, full_name: str) -> None:
    """Open a shell in a job's container and wait until the person leaves it; how they do is no matter.

    Raises:
        SubmitError: the container could not be started; the Engine's words are on the terminal.
    """
    words = command(job, full_name)
    print(f"[{job.name}] a shell in {words[-1]}; `exit` leaves it", flush=True)
    code = subprocess.run(words).returncode
    if code == 125:  # Docker's own, as it says on the terminal
        raise SubmitError(f"job {job.name!r}: no shell could be opened in {words[-1]}; see above")


def command(job: Job, full_name: str) -> list[str]:
    """`docker run` for a shell: what the job's program would have, in the place of that a shell."""
    options = getattr(job.executor, "docker_options", None) or DockerOptions()
    _, env = backends.merged(job)
    words = ["docker", "run", "--rm", "--interactive", "--tty", "--entrypoint", "bash"]
    words += ["--hostname", re.sub(r"[^A-Za-z0-9_.-]", "-", full_name)[:63]]
    for inner, outer in (options.ports or {}).items():
        words += ["--publish", f"{outer}:{inner}"]
    for volume in backends.volumes(options):
        words += ["--volume", volume]
    for name, value in env.items():
        words += ["--env", f"{name}={value}"]
    if count := backends.local_gpus(job):
        words += ["--gpus", str(count)]
    return [*words, job.executable.image]  # type: ignore[attr-defined]  # it is a ContainerImage
