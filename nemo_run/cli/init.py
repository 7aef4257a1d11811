"""`nemo init`: a script and a workspace to start from."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from nemo_run.errors import ConfigError

_TRAIN = '''\
"""Fit a line to noisy points: something to start from, yours to change.

    nemo run train.py --help                          what there is to set
    nemo run train.py steps=500 start=steep --yes     set it, and run it
    nemo run train.py run.executor=cluster --dryrun   see what another executor would be sent
"""

import random
from dataclasses import dataclass

import nemo_run as run


@dataclass
class Line:
    """Where to begin: y = slope * x + offset."""

    slope: float = 0.0
    offset: float = 0.0


@run.cli.factory
def steep(slope: float = 5.0) -> run.Config[Line]:
    """A line that rises fast."""
    return run.Config(Line, slope=slope)


@run.cli.entrypoint
def train(start: Line = Line(), steps: int = 200, rate: float = 0.1, seed: int = 0) -> float:
    """Fit a line to noisy points, step by step, and return the error that is left."""
    draw = random.Random(seed)
    points = [(x / 50, 2 * x / 50 + 1 + draw.gauss(0, 0.1)) for x in range(-50, 50)]
    slope, offset = start.slope, start.offset
    for step in range(steps + 1):
        errors = [(x, slope * x + offset - y) for x, y in points]
        loss = sum(error**2 for _, error in errors) / len(points)
        if step % 100 == 0:
            print(f"step {step}: loss {loss:.4f}, y = {slope:.2f} x + {offset:.2f}")
        slope -= rate * sum(x * error for x, error in errors) / len(points)
        offset -= rate * sum(error for _, error in errors) / len(points)
    return round(loss, 4)


if __name__ == "__main__":
    run.cli.main(train)
'''
_WORKSPACE = '''\
"""Where this project's tasks run: names for `run.executor=NAME`.

    nemo executors                  lists them
    nemo executors check cluster    tries what one of them needs, and says how to mend it
"""

import nemo_run as run

#: What of this folder goes along to where tasks see no files of this machine.
CODE = run.Config(run.PatternPackager, include_pattern="*.py", relative_path=".")


@run.cli.factory
def here(at_once: int = 2) -> run.Config[run.LocalExecutor]:
    """Processes on this machine."""
    return run.Config(run.LocalExecutor, max_parallel=at_once)


@run.cli.factory
def box(image: str = "python:3.12") -> run.Config[run.DockerExecutor]:
    """Containers of the Docker Engine on this machine."""
    return run.Config(run.DockerExecutor, container_image=image, packager=CODE)


@run.cli.factory
def cluster(nodes: int = 1, time: str = "01:00:00") -> run.Config[run.SlurmExecutor]:
    """A Slurm cluster over SSH."""
    # Put in your login node, and a folder there that its nodes see too.
    tunnel = run.Config(run.SSHTunnel, host="login.example.com", job_dir="/scratch/me/nemo_run")
    return run.Config(run.SlurmExecutor, tunnel=tunnel, nodes=nodes, time=time, packager=CODE)
'''
_FILES = {"train.py": _TRAIN, "workspace.py": _WORKSPACE}
#: What to type next, by the file that it needs.
_NEXT = {
    "train.py": (
        ("nemo run train.py --help", "what there is to set"),
        ("nemo run train.py steps=500 --yes", "run it on this machine"),
        ("nemo experiment list", "what has run"),
    ),
    "workspace.py": (
        ("nemo executors", "where it may run"),
        ("nemo executors check cluster", "once workspace.py has your login node"),
    ),
}


def init(
    folder: Path = typer.Argument(Path(), metavar="[FOLDER]", help="Where to; made if it is not there."),
) -> None:
    """Write a script and a workspace to start from.

    What is there already stays as it is.
    """
    written = [name for name, text in _FILES.items() if _write(folder / name, text)]
    for name in _FILES:
        stays = "" if name in written else " is there already, and stays as it is"
        typer.echo(f"{folder / name}{stays}" if stays else f"wrote {folder / name}")
    steps = [("cd " + shlex.quote(str(folder)), "")] * (folder.resolve() != Path.cwd())
    steps += [step for name in written for step in _NEXT[name]]
    if written:
        typer.echo("Next:")
    for command, why in steps if written else ():
        typer.echo(f"  {command:<36}{why}".rstrip())


def _write(path: Path, text: str) -> bool:
    """Write a file unless there is one; whether it was written.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as exc:
        if path.parent.is_dir():
            return False
        raise ConfigError(f"{exc.filename} is no folder; name another") from exc
    except OSError as exc:
        raise ConfigError(f"{path} cannot be written: {exc.strerror}; name another folder") from exc
    return True
