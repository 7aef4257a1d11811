"""Running the jobs of an experiment one after the other in this very process."""

from __future__ import annotations

import contextlib
import graphlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import fiddle
from fiddle import daglish

from nemo_run.config import Partial, Script
from nemo_run.core import runner
from nemo_run.core.execution.base import AppState, Executor
from nemo_run.errors import ConfigError, JobFailedError
from nemo_run.run.job import Job, Task
from nemo_run.run.logs import masker
from nemo_run.run.store import Store
from nemo_run.secret import Secret


def call_task(task: Task, executor: Executor | None = None) -> Any:
    """Call a task here and now: a Python task's value, or None for a script.

    Raises:
        whatever a Python task raises.
        JobFailedError: a script ended with another exit code than 0.
        ConfigError: it is the ENTRYPOINT of an image.
    """
    if isinstance(task, Script):
        return _run_script(task, executor)
    with _environment(_resolved(executor.env_vars if executor else {})):
        built = fiddle.build(daglish.MemoizedTraversal.run(_told, task))
        return built() if isinstance(task, Partial) else built


def _told(value: Any, state: Any) -> Any:
    """A task with the values of the secrets among its arguments, which a job is told by its environment."""
    if isinstance(value, Secret):
        return value.resolve()
    return state.map_children(value) if state.is_traversable(value) else value


def _resolved(env: Mapping[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else value.resolve() for name, value in env.items()}


def _run_script(script: Script, executor: Executor | None) -> None:
    import tempfile

    if script.is_of_image:
        problem = "the ENTRYPOINT of an image cannot be run in this process"
        raise ConfigError(f"{problem}; run it without direct=True")
    python = executor.python if executor else sys.executable
    env = _resolved({**(executor.env_vars if executor else {}), **script.env})
    with tempfile.TemporaryDirectory() as folder:
        inline = Path(folder) / "script.sh"
        inline.write_text(script.inline)
        sys.stdout.flush()
        done = subprocess.run(
            script.to_command(python, str(inline)), env={**os.environ, **env}, stdout=_file_of(sys.stdout)
        )
    if done.returncode:
        message = f"{script.get_name()!r} ended with exit code {done.returncode}"
        raise JobFailedError(message, exit_code=done.returncode)


def _file_of(stream: Any) -> IO[str] | None:
    """Where a subprocess can write what we would print, if it is a file at all."""
    try:
        stream.fileno()
    except (OSError, AttributeError, ValueError):
        return None
    return stream  # type: ignore[no-any-return]  # it has a file number, which is all that is asked


def run_direct(store: Store, jobs: list[Job]) -> None:
    """Call all jobs' tasks in the order of their dependencies; the first error ends it.

    Raises:
        ConfigError: there is a group, whose members would have to run at the same time.
        whatever a task raises.
    """
    if groups := [job.id for job in jobs if job.group]:
        raise ConfigError(f"group {groups[0]!r} cannot be run in this process; run it without direct=True")
    by_id = {job.id: job for job in jobs}
    order = graphlib.TopologicalSorter({job.id: job.dependencies for job in jobs}).static_order()
    with store.dispatching():
        for job_id in order:
            _run_job(store, by_id[job_id])


def _run_job(store: Store, job: Job) -> None:
    started = time.time()
    store.update_job(job.id, state=AppState.RUNNING, intent=started, started=started, message="direct")
    job_dir = store.job_dir(job.id)
    for folder in ("logs", "results"):
        (job_dir / folder).mkdir(mode=0o700, exist_ok=True)
    stem = runner.record_stem(job.id, 0, 1)
    secrets = [secret.resolve() for secret in job.secrets()]
    mask = masker(secrets)
    try:
        with (
            _tee(job_dir / "logs" / f"{stem}.log", mask),
            _environment({runner.JOB_DIR: str(job_dir)}),
        ):
            value = call_task(job.tasks[0], job.executors[0])
    except BaseException as exc:
        runner.record_error(str(job_dir / "results" / stem), exc, secrets)
        reason = mask(f"{type(exc).__name__}: {exc}")
        store.update_job(job.id, state=AppState.FAILED, message=reason, exit_code=1, ended=time.time())
        raise
    runner.record_value(str(job_dir / "results" / stem), value)
    store.update_job(job.id, state=AppState.SUCCEEDED, exit_code=0, ended=time.time())


@contextlib.contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    """Meanwhile this process has these variables too."""
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Tee:
    """Writes to a stream as it comes, and to a log line by line, where no secret is in two pieces."""

    def __init__(self, stream: Any, log: IO[str], mask: Callable[[str], str]) -> None:
        self._stream, self._log, self._mask = stream, log, mask
        self._line = ""

    def write(self, text: str) -> int:
        self._stream.write(self._mask(text))
        whole, end, self._line = (self._line + text).rpartition("\n")
        self._log.write(self._mask(whole) + end)
        return len(text)

    def finish(self) -> None:
        self._log.write(self._mask(self._line))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _tee(path: Path, mask: Callable[[str], str]) -> Iterator[None]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(fd, "w", buffering=1, errors="replace") as log:
        out, err = _Tee(sys.stdout, log, mask), _Tee(sys.stderr, log, mask)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                yield
        finally:
            out.finish()
            err.finish()
