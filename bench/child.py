"""Launchers that are measured from within, each in a process of its own: `child.py NAME ARGUMENT…`.

Each prints one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import measure
import noop

BARE = [sys.executable, "-c", "pass"]


def parallel(count: int, width: int, times: int, what: str) -> dict[str, Any]:
    """Jobs at once through an experiment, beside a pool of two bare interpreters."""
    ours, floor = lambda: _experiment(count, width, what), measure.pool(BARE, count)
    _experiment(2, width, what)  # what is loaded once is loaded before
    return _paired(ours, floor, times)


def sequence(count: int, times: int) -> dict[str, Any]:
    """Jobs one after the other, beside bare interpreters one after the other."""
    ours, floor = lambda: _experiment(count, 1, "noop", sequential=True), measure.pool(BARE, count, width=1)
    _experiment(2, 1, "noop")
    return _paired(ours, floor, times)


def one(times: int) -> dict[str, Any]:
    """`run.run` of one task, from the call until its value is there."""
    import nemo_run as run

    def ours() -> float:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            executor = run.LocalExecutor()
            return measure.seconds(lambda: run.run(noop.noop, executor, name="one", tail_logs=False))

    ours()
    return _paired(ours, measure.pool(BARE, 1), times)


def units(count: int, times: int) -> dict[str, Any]:
    """Programs that take a second, as units of a launch script and as a shell's."""
    loop = f"at=0; while [ $at -lt {count} ]; do sleep 1 & at=$((at + 1)); done; wait"
    _units(1, "0")
    return _paired(lambda: _units(count, "1"), measure.command("sh", "-c", loop), times)


def many_units(count: int, few: int, times: int) -> dict[str, Any]:
    """Units of programs that do nothing, beside what a few of them take, times as many."""
    _units(2, "0")
    return _paired(lambda: _units(count, "0"), lambda: _units(few, "0") * count / few, times)


def _units(count: int, seconds: str) -> float:
    """Seconds from nothing to the end of the last unit."""
    from nemo_run import xm, xm_local

    start = time.perf_counter()
    local = xm_local.Local(experimental_stream_output=False)
    with xm_local.create_experiment("bench") as experiment:
        [sleep] = experiment.package([xm.binary(xm_local.Local.Spec(), "/bin/sleep")])
        for _ in range(count):
            experiment.add(xm.Job(sleep, local, args=[seconds]))
    return time.perf_counter() - start


def submitit_tasks(count: int, times: int) -> dict[str, Any]:
    """The same tasks through submitit's local executor, beside the same pool."""
    import submitit

    def theirs(count: int = count) -> float:
        with tempfile.TemporaryDirectory() as folder:
            executor = submitit.LocalExecutor(folder)
            executor.update_parameters(timeout_min=5)
            return measure.seconds(lambda: [job.result() for job in _submitted(executor, count)])

    theirs(1)
    return _paired(theirs, measure.pool(BARE, count), times)


def _submitted(executor: Any, count: int) -> list[Any]:
    return [executor.submit(noop.noop, number) for number in range(count)]


def _paired(ours: Any, floor: Any, times: int) -> dict[str, Any]:
    row = measure.pairs("", ours, floor, count=times)
    return {"ours": row.ours, "floor": row.floor, "ratio": row.ratio, "memory": measure.peak_memory()}


def _experiment(count: int, width: int, what: str, *, sequential: bool = False) -> float:
    """Seconds from nothing to the last job's end; a width of 0 is the default."""
    import nemo_run as run

    start = time.perf_counter()
    executor = run.LocalExecutor(max_parallel=width or None)
    with run.Experiment("bench", executor=executor, clean_mode=True) as experiment:
        for number in range(count):
            experiment.add(_task(what, number), name=f"job_{number}")
        experiment.run(sequential=sequential)
    return time.perf_counter() - start


def _task(what: str, number: int) -> Any:
    import nemo_run as run

    if what == "script":
        return run.Script(inline="pass", entrypoint="python")
    return run.Partial(noop.noop, number)


def memory(count: int) -> dict[str, Any]:
    """The launcher's memory: with nothing, with what it imports, and with so many jobs run."""
    bare = measure.peak_memory()
    _experiment(1, 0, "noop")
    imports = measure.peak_memory()
    _experiment(count, 0, "noop")
    return {"bare": bare, "imports": imports, "run": measure.peak_memory()}


# --- adding and reopening -------------------------------------------------------------------------------


def add(count: int) -> dict[str, Any]:
    """Add jobs and write the experiment, without running it."""
    import nemo_run as run

    experiment = run.Experiment("add", executor=run.LocalExecutor(), clean_mode=True)
    experiment.add(run.Partial(noop.noop, 0), name="first")  # what is imported once
    added = measure.seconds(
        lambda: [experiment.add(run.Partial(noop.noop, at), name=f"job_{at}") for at in range(count)]
    )
    trees = experiment._check(False)
    written = measure.seconds(lambda: experiment._create(trees, {}))
    return {"add": added, "write": written}


def reopen(name: str) -> dict[str, Any]:
    """Open an experiment by id and ask for its status, as a new process does."""
    import nemo_run as run

    run.Experiment, run.Partial  # noqa: B018
    import torchx.specs  # noqa: F401

    return {"seconds": measure.seconds(lambda: run.Experiment.from_id(name).status(return_dict=True))}


# --- logs -----------------------------------------------------------------------------------------------

#: Prints when it prints, as a task in the middle of something does.
TICKS = "import time\nfor _ in range({count}): time.sleep(0.05); print(time.time(), flush=True)"


def follow(count: int) -> dict[str, Any]:
    """Seconds from a job's print until `Executor.logs(follow=True)` gives the line, beside a pipe's."""
    import nemo_run as run

    script = run.Script(inline=TICKS.format(count=count), entrypoint="python")
    with run.Experiment("follow", executor=run.LocalExecutor(), clean_mode=True) as experiment:
        experiment.add(script, name="ticks")
        experiment.run(detach=True)
    handle = experiment.status(return_dict=True)["ticks"]["handle"]
    late = [time.time() - float(line) for line in run.LocalExecutor().logs(handle, "ticks", follow=True)]
    argv = [sys.executable, "-c", TICKS.format(count=count)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        piped = [time.time() - float(line) for line in process.stdout]
    return {"median": statistics.median(late), "worst": max(late), "pipe": statistics.median(piped)}


def peak(*argv: str) -> dict[str, Any]:
    """The memory that the `nemo` command takes; what it prints goes nowhere."""
    from nemo_run.__main__ import main

    sys.argv = ["nemo", *argv]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            main()
        except SystemExit as exc:
            if exc.code:
                raise
    return {"memory": measure.peak_memory()}


if __name__ == "__main__":
    name, arguments = sys.argv[1], [int(word) if word.isdigit() else word for word in sys.argv[2:]]
    print(json.dumps(globals()[name](*arguments)))
