"""What `torchrun` and `ft_launcher` make of jobs, with real processes that talk by gloo.

Each start of torch costs seconds, so each test asks all that one launch can answer.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch_tasks
from contracts.executor import HOSTILE
from deeds import environment, processes_of, until
from dockers import IMAGE

import nemo_run as run

TEST = Path(__file__).parents[2]


def needs(module: str, package: str) -> pytest.MarkDecorator:
    """In CI the launch itself says what is missing."""
    missing = find_spec(module) is None and "CI" not in os.environ
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install {package}")


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home"), needs("torch", "torch")]
needs_ft = needs("nvidia_resiliency_ext", "nvidia-resiliency-ext")


def torchrun(**fields: Any) -> run.LocalExecutor:
    return run.LocalExecutor(**{"launcher": "torchrun", "ntasks_per_node": 2, "timeout": 100, **fields})


def started(task: Any, executor: run.LocalExecutor) -> run.Experiment:
    """An experiment with this one job, `job`, on its way."""
    experiment = run.Experiment("ranks", executor=executor, clean_mode=True)
    experiment.add(task, name="job")
    experiment.run(detach=True)
    return experiment


def log(experiment: run.Experiment, job: str = "job") -> str:
    [path] = (experiment.path / job / "logs").glob("*.log")
    return path.read_text(errors="surrogateescape")


def records(experiment: run.Experiment, job: str = "job") -> dict[str, Any]:
    folder = experiment.path / job / "results"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


#: Ranks that need no torch: each says its number in a file, and waits.
WAIT = 'echo $$ > "$0.$RANK.new"; mv "$0.$RANK.new" "$0.$RANK"; exec sleep 600'


def waiting(tmp_path: Path) -> tuple[run.Experiment, list[int]]:
    """A job of two ranks that only wait, and their process numbers."""
    script = run.Script(inline=WAIT.replace("$0", f"{tmp_path}/rank"))
    experiment = started(script, torchrun())
    files = [tmp_path / "rank.0", tmp_path / "rank.1"]
    until(lambda: all(file.exists() for file in files), "both ranks run", 60)
    return experiment, [int(file.read_text()) for file in files]


@pytest.mark.timeout(300)
def test_each_kind_of_task_runs_once_per_rank_and_gets_its_words_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_TOKEN", "hunter22")
    env = {"TOKEN": run.Secret("THE_TOKEN"), "PYTHONWARNINGS": "ignore"}
    words = [*HOSTILE, "$$", "$$$local_rank", "${local_rank}", "${macros.local_rank}", "--nproc-per-node=7"]
    program: dict[str, Any] = {"entrypoint": "python", "path": "torch_tasks.py"}
    module: dict[str, Any] = {"entrypoint": "python", "path": "torch_tasks", "m": True}
    shell = f'exec "{sys.executable}" torch_tasks.py "$@"\n'
    (tmp_path / "show.sh").write_text(shell)
    # A `--` that follows the program is one of its own words too.
    (tmp_path / "own.sh").write_text(f'#!/bin/sh\n[ "$1" = -- ] && shift && {shell}')
    (tmp_path / "own.sh").chmod(0o700)
    inline = f'set -- "{tmp_path}/inline" "$RANK" é\n{shell}'
    brief = {"WITHOUT_TORCH": "1"}
    scripts = {
        "path": run.Script(**program, args=[f"{tmp_path}/path", *words]),
        "module": run.Script(**module, args=[f"{tmp_path}/module", *words]),
        "inline": run.Script(inline=inline),
        "bash": run.Script(path=f"{tmp_path}/show.sh", args=[f"{tmp_path}/bash", *words], env=brief),
        "own": run.Script(
            path=f"{tmp_path}/own.sh", entrypoint="", args=["--", f"{tmp_path}/own", *words], env=brief
        ),
        "expanded": run.Script(
            **program, args=[f"{tmp_path}/expanded", run.Expand("$RANK $(echo two)"), *words], env=brief
        ),
    }

    # Two at a time: launches side by side do not meet.
    executor = torchrun(working_dir=str(TEST), env_vars=env, max_parallel=2)
    with run.Experiment("kinds", executor=executor) as experiment:
        for name, script in scripts.items():
            experiment.add(script, name=name)
        secret = run.Secret("THE_TOKEN")
        experiment.add(run.Partial(torch_tasks.reduce, words, password=secret), name="python")
        values = experiment.run()

    hexed = torch_tasks.hexed(words)
    assert values == dict.fromkeys(scripts) | {"python": {"rank": 0, "total": 3.0, "words": hexed}}
    assert records(experiment, "python")["python_1"] == {"value": {"rank": 1, "total": 3.0, "words": hexed}}
    for name in scripts:
        for rank in (0, 1):
            first = {"expanded": [f"{rank} two"], "inline": [str(rank), "é"]}.get(name, [])
            given = torch_tasks.hexed([*first, *(words if name != "inline" else ())])
            total = 3.0 if name in ("path", "module", "inline") else None
            got = json.loads((tmp_path / f"{name}.{rank}").read_text())
            assert (name, rank, got) == (name, rank, {"total": total, "words": given})

    printed = log(experiment, "python").splitlines()
    for rank in (0, 1):  # all that each rank printed, in whole lines
        lines = [line for line in printed if line.startswith(f"rank {rank} ")]
        assert lines == [f"rank {rank} line {number}" for number in range(50)]
    assert printed.count("the password is •••••• ••••••") == 2
    kept = (path for path in experiment.path.rglob("*") if path.is_file())
    assert not [path for path in kept if b"hunter22" in path.read_bytes()]


def test_a_rank_that_fails_ends_one_that_hangs_and_is_the_reason_that_is_given(tmp_path: Path) -> None:
    experiment = run.Experiment("ranks", executor=torchrun())
    experiment.add(run.Partial(torch_tasks.fail_or_hang, str(tmp_path / "rank0")), name="job")
    with pytest.raises(run.JobFailedError) as failure:
        experiment.run()
    assert "\n  rank 1: ValueError: rank 1 cannot go on\n" in str(failure.value)
    assert failure.value.exit_code == 1
    assert not psutil.pid_exists(int((tmp_path / "rank0").read_text()))
    until(lambda: not processes_of(experiment.path), "no process is left")
    assert list(records(experiment)) == ["job_1"]


def test_the_exit_code_of_a_scripts_rank_is_told_in_the_failure() -> None:
    script = run.Script(inline='[ "$RANK" = 0 ] || exit 37; trap "" TERM; sleep 0.1')
    with pytest.raises(run.JobFailedError, match=r"rank +: 1 \(local_rank: 1\)\n +exitcode +: 37 "):
        run.run(script, executor=torchrun())


def test_cancelling_ends_all_ranks(tmp_path: Path) -> None:
    experiment, pids = waiting(tmp_path)
    experiment.cancel()
    with pytest.raises(run.JobCancelledError):
        experiment.wait()
    assert not any(map(psutil.pid_exists, pids))
    until(lambda: not processes_of(experiment.path), "no process is left")


def test_ranks_do_not_outlive_a_torchrun_that_is_killed(tmp_path: Path) -> None:
    experiment, pids = waiting(tmp_path)
    os.kill(psutil.Process(pids[0]).ppid(), signal.SIGKILL)
    with pytest.raises(run.JobFailedError, match="killed by SIGKILL"):
        experiment.wait()
    assert not any(map(psutil.pid_exists, pids))


def test_each_attempt_has_its_own_ranks_records_and_logs() -> None:
    experiment = run.Experiment("again", executor=torchrun(retries=1))
    experiment.add(run.Partial(torch_tasks.fail_in_first_attempt, ""), name="job")
    assert experiment.run() == {"job": [2, 0]}
    found = records(experiment)
    assert found["job_1"]["error"]["message"] == "not yet"
    assert found["job_0.attempt2"] == {"value": [2, 0]}
    assert found["job_1.attempt2"] == {"value": [2, 1]}
    assert len(list((experiment.path / "job" / "logs").glob("*.log"))) == 2


TWO_NODES = """
import nemo_run as run, torch_tasks
executor = run.LocalExecutor(nodes=2, launcher="torchrun", timeout=100)
print(run.run(run.Partial(torch_tasks.reduce, ["word"]), executor=executor, name="node"))
"""


def test_the_same_launch_on_two_nodes_makes_one_whole(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    nodes = []
    for rank in ("0", "1"):
        env = environment(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port, NODE_RANK=rank, NEMORUN_HOME=f"{tmp_path}/{rank}"
        )
        command = [sys.executable, "-c", TWO_NODES]
        nodes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    said = [node.communicate(timeout=110) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    values = []
    for home in (tmp_path / "0", tmp_path / "1"):
        [path] = home.rglob("results/*.json")
        values.append(json.loads(path.read_text())["value"])
    assert sorted((value["rank"], value["total"]) for value in values) == [(0, 3.0), (1, 3.0)]


@needs_ft
def test_ft_starts_all_ranks_again_when_one_fails() -> None:
    experiment = run.Experiment("ft", executor=torchrun(launcher=run.FaultTolerance(max_restarts=1)))
    experiment.add(run.Partial(torch_tasks.fail_in_first_round), name="job")
    assert experiment.run() == {"job": [1, 0, 3.0]}
    assert records(experiment) == {"job_0": {"value": [1, 0, 3.0]}, "job_1": {"value": [1, 1, 3.0]}}
    until(lambda: not processes_of(experiment.path), "no process is left")


@needs_ft
def test_ft_by_its_name_reports_a_rank_that_fails(tmp_path: Path) -> None:
    experiment = run.Experiment("ft", executor=torchrun(launcher="ft"))
    experiment.add(run.Partial(torch_tasks.fail_or_hang, str(tmp_path / "rank0")), name="job")
    start = time.monotonic()
    with pytest.raises(run.JobFailedError, match="rank 1: ValueError: rank 1 cannot go on"):
        experiment.run()
    assert time.monotonic() - start < 60
    until(lambda: not processes_of(experiment.path), "no process is left")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("where", ["process", "docker"])
def test_the_example_trains_one_model_on_two_ranks(
    home: Path, tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    example = Path(__file__).parents[3] / "examples" / "torch_ddp" / "run.py"
    command = [sys.executable, str(example), where, "--epochs", "3"]
    if where == "docker":
        request.getfixturevalue("containers")
        if sys.version_info[:2] != (3, 11):
            pytest.skip("the image's Python is 3.11, and cannot be lent another's torch")
        command += ["--image", IMAGE, "--packages", sysconfig.get_path("purelib")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    ended = {f"train │ rank {rank}: epoch 3 of 3" for rank in (0, 1)}
    assert ended <= {line.partition(",")[0] for line in done.stdout.splitlines()}
    said = re.search(
        r"2 ranks have learned to tell (\S+)% of the points right.\nThe model: (\S+)\n", done.stdout
    )
    assert said is not None
    assert float(said[1]) > 60
    assert Path(said[2]).is_relative_to(home)
    assert Path(said[2]).stat().st_size > 10_000
