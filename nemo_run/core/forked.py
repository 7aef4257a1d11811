"""What a fork of the supervisor does to be a task: become what the role asks for, run, end."""

from __future__ import annotations

import os
import sys
import time

from nemo_run.core import runner

TYPE_CHECKING = False  # `typing` itself takes as long to import as Python takes to start
if TYPE_CHECKING:
    from typing import Any

    Role = dict[str, Any]

#: Seconds up to which a task is brief: what Python's own exit adds to it would be felt.
_BRIEF = 1.0


def run_forked(task: Any, job_dir: str, role: str) -> None:
    """Run a task in this process and end it: as brief tasks may end, or as Python ends."""
    started, code = time.monotonic(), None
    try:
        runner.run(task, job_dir, role)
    except SystemExit as exc:
        code = exc.code
    if time.monotonic() - started > _BRIEF:
        sys.exit(code)
    _exit_like_python(code)


def _exit_like_python(code: object) -> None:
    """Do at a task's end what Python does, but do not take the interpreter down.

    Threads are waited for, exit handlers are called, output is written out; tearing down what the kernel
    takes back anyway would be half the cost of a small task, as a forked process copies each page it touches.
    """
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    import atexit

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    _flush_open_files()
    call_libc("exit", (code or 0) & 0xFF)


def _flush_open_files() -> None:
    """Write out what files that the task has left open still hold; older objects than its own are frozen."""
    import _io
    import gc

    for thing in gc.get_objects():
        if issubclass(type(thing), _io._IOBase):
            try:
                thing.flush()
            except Exception:  # it is closed, or nobody takes what it holds
                continue


def become(role: Role, output: int, attempt: int) -> None:
    """Make this process the one that a role asks for: log, folder, environment, processors."""
    null = os.open(os.devnull, os.O_RDONLY)
    for source, number in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, number)
    os.close(output)
    os.close(null)
    sys.stderr = sys.__stderr__  # a supervisor writes elsewhere
    if role["cpus"]:
        os.sched_setaffinity(0, role["cpus"])
    os.makedirs(role["cwd"], exist_ok=True)
    os.chdir(role["cwd"])
    role["env"][runner.ATTEMPT] = str(attempt)
    if role["task"] is not None:
        import gc

        gc.freeze()
        _set_environment(role["env"])


def _set_environment(env: dict[str, str]) -> None:
    """Give a forked interpreter the environment and import path it would have had from a start of its own."""
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ.clear()
    os.environ.update(env)
    own = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    # The first entry is what our own start put there.
    sys.path[:] = own + [path for path in sys.path[1:] if path not in ("", *inherited, *own)]
    sys.argv[:] = [runner.__file__]


def call_libc(name: str, *args: int) -> None:
    """Call a function of the C library as `ctypes` does, which itself takes 3 ms of a 20 ms job to import."""
    import _ctypes

    library = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # None is this very program
    _ctypes.call_function(_ctypes.dlsym(library, name), args)
