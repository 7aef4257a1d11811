"""What jobs of a cluster print and leave behind: followed by one command for all, and copied home."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from contracts.executor import ended, prepare, wait_until
from programs import failed, nemo, succeeded
from slurms import Cluster
from sshds import Sshd

import nemo_run as run
from nemo_run.core.execution.base import AppState, Executor, JobHandle, JobStatus
from nemo_run.core.execution.slurm import SlurmExecutor
from nemo_run.core.execution.slurm_home import brought_home
from nemo_run.core.masking import MASK
from nemo_run.core.tunnel.base import CommandResult, Tunnel
from nemo_run.core.tunnel.local import LocalTunnel
from nemo_run.core.tunnel.ssh import SSHTunnel
from nemo_run.errors import TunnelError

#: Prints its rank, waits until a file is there, and prints a hundred lines.
CHATTY = 'echo "here $SLURM_PROCID"; while [ ! -e "$GO" ]; do sleep 0.1; done; seq 1 100'


def executor(**fields: object) -> SlurmExecutor:
    return SlurmExecutor(**{"packager": run.Packager(), "time": "5", **fields})  # type: ignore[arg-type]


def submit(task: run.Script, **fields: object) -> tuple[Executor, JobHandle]:
    """A job on its way."""
    plan = prepare(task, executor(**fields))
    return plan.spec.members[0], plan.spec.members[0].submit(plan)


class Follower(threading.Thread):
    """Follows one log, from a thread of its own."""

    def __init__(self, job: tuple[Executor, JobHandle], rank: int = 0) -> None:
        super().__init__(daemon=True)
        self.lines: list[str] = []
        self._found = job[0].logs(job[1], "job", rank, follow=True)
        self.start()

    def run(self) -> None:
        for line in self._found:
            self.lines.append(line)  # at once, for others look at them meanwhile

    def all_lines(self) -> list[str]:
        """What it has read once it has ended."""
        self.join(60)
        assert not self.is_alive(), f"it has not ended; {self.lines}"
        return self.lines


def commands(sshd: Sshd) -> int:
    """How many commands have been run over there."""
    return len(re.findall("^Starting session: command", sshd.log.read_text(errors="replace"), re.M))


# --- following ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("home")
def test_forty_logs_are_followed_by_one_command_a_second(slurm: Cluster, sshd: Sshd, tmp_path: Path) -> None:
    go = tmp_path / "go"
    tunnel = SSHTunnel(job_dir=str(tmp_path / "over there"), **sshd.where)  # type: ignore[arg-type]
    job = submit(run.Script(inline=CHATTY, env={"GO": str(go)}), tunnel=tunnel, nodes=4, ntasks_per_node=10)
    followers = [Follower(job, rank) for rank in range(40)]
    wait_until(lambda: all(follower.lines for follower in followers), "all tasks have printed", 60)
    time.sleep(2)  # until it asks as seldom as it ever does
    before, began = commands(sshd), time.monotonic()
    time.sleep(4)
    count, took = commands(sshd) - before, time.monotonic() - began
    assert 1 <= count <= took + 5, f"{count} commands in {took:.1f} s"  # a look at the states is a few more
    go.touch()
    numbers = [str(number) for number in range(1, 101)]
    for rank, follower in enumerate(followers):
        assert follower.all_lines() == [f"here {rank}", *numbers]


@pytest.mark.usefixtures("home")
def test_no_line_is_lost_or_doubled_when_the_connection_is_cut(
    slurm: Cluster, sshd: Sshd, tmp_path: Path
) -> None:
    tunnel = SSHTunnel(job_dir=str(tmp_path / "over there"), **sshd.where)  # type: ignore[arg-type]
    job = submit(
        run.Script(inline="for i in $(seq 1 80); do echo $i; sleep 0.1; done; printf end"), tunnel=tunnel
    )
    follower = Follower(job)
    wait_until(lambda: len(follower.lines) > 5, "it prints", 60)
    for _ in range(3):
        assert sshd.cut()
        before = len(follower.lines)
        wait_until(lambda: len(follower.lines) > before + 3, "it is read on")  # noqa: B023
    sshd.stop()
    sshd.cut()
    time.sleep(1)
    sshd.start()
    assert follower.all_lines() == [*map(str, range(1, 81)), "end"]


@dataclass(kw_only=True)
class Unsteady(LocalTunnel):
    """A tunnel through which nothing gets while a file is there."""

    outage: str

    def read(self, *args: object, **options: object) -> dict[str, bytes]:
        if os.path.exists(self.outage):
            raise TunnelError("the machine cannot be reached")
        return super().read(*args, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("home")
def test_an_outage_of_any_length_is_waited_for_and_told_once(
    slurm: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go, outage = tmp_path / "go", tmp_path / "outage"
    tunnel = Unsteady(outage=str(outage))
    job = submit(run.Script(inline=CHATTY, env={"GO": str(go)}), tunnel=tunnel)
    follower = Follower(job)
    wait_until(lambda: follower.lines, "it prints", 60)
    with caplog.at_level(logging.WARNING):
        outage.touch()
        wait_until(lambda: "read on once it answers" in caplog.text, "it is told")
        go.touch()
        time.sleep(2)
        outage.unlink()
        assert follower.all_lines() == ["here 0", *map(str, range(1, 101))]
    assert caplog.text.count("read on once it answers") == 1


@pytest.mark.usefixtures("home")
def test_a_cluster_that_never_answered_is_an_error_at_once(tmp_path: Path) -> None:
    outage = tmp_path / "outage"
    outage.touch()
    data = {"job": "1", "folder": str(tmp_path), "home": str(tmp_path), "array": "", "limit": ""}
    handle = JobHandle(executor="x", id="x", data=data)
    for follow in (False, True):
        with pytest.raises(TunnelError, match="cannot be reached"):
            list(executor(tunnel=Unsteady(outage=str(outage))).logs(handle, "job", follow=follow))


# --- ranks ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("home")
def test_ranks_are_told_apart_and_one_can_be_asked_for(
    slurm: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    with run.Experiment("ranks", clean_mode=True) as experiment:
        say = run.Script(inline='echo "I am $SLURM_PROCID"')
        experiment.add(say, executor=executor(nodes=2, ntasks_per_node=2), name="job", tail_logs=True)
        experiment.run()
    labelled = [f"job/{rank} │ I am {rank}\n" for rank in range(4)]
    assert sorted(capfd.readouterr().out.splitlines(keepends=True)) == labelled
    experiment.logs("job")
    assert capfd.readouterr().out == "".join(labelled)
    experiment.logs("job", rank=2)
    assert capfd.readouterr().out == labelled[2]
    assert succeeded(nemo("logs", "ranks", "job", "--rank", "3")).stdout == labelled[3]
    whole = [json.loads(line) for line in succeeded(nemo("logs", "ranks", "--json")).stdout.splitlines()]
    assert whole[1] == {"job": "job", "role": "job", "rank": 1, "line": "I am 1"}
    assert failed(nemo("logs", "ranks", "--rank", "9")) == (
        "nemo: no log of rank '9'; there are '0', '1', '2', '3'\n"
    )


@pytest.mark.usefixtures("home")
def test_a_task_of_an_array_is_followed_by_its_number(slurm: Cluster) -> None:
    job = submit(run.Script(inline='echo "task $SLURM_ARRAY_TASK_ID"; sleep 1; echo end'), array="3,5")
    assert list(job[0].replicas()) == [3, 5]
    followers = [Follower(job, number) for number in (3, 5)]
    assert [each.all_lines() for each in followers] == [["task 3", "end"], ["task 5", "end"]]


# --- home -----------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Counting(LocalTunnel):
    """Counts what it is asked to run and to copy."""

    def __post_init__(self) -> None:
        self.asked: list[str] = []

    def execute(self, argv: Sequence[str], stdin: bytes, timeout: float | None, retry: bool) -> CommandResult:
        self.asked.append("run")
        return super().execute(argv, stdin, timeout, retry)

    def get(self, source: str, target: Path) -> None:
        self.asked.append("get")
        super().get(source, target)


class Jobs:
    """Jobs that have ended, with folders over there and at home."""

    def __init__(self, folder: Path, count: int) -> None:
        self.there = [folder / "over 't \"$here" / str(at) for at in range(count)]
        self.home = [folder / "home" / str(at) for at in range(count)]
        for path in self.home:
            path.mkdir(parents=True)
        for at, path in enumerate(self.there):
            for name in ("logs", "results", "artifacts"):
                (path / name).mkdir(parents=True)
            (path / "logs" / "job_0.log").write_text(f"line of {at}\n")

    def bring(self, tunnel: Tunnel) -> list[JobStatus]:
        handles = [
            JobHandle(
                executor="x", id=f"job{at}",
                data={"job": str(at), "folder": str(there), "home": str(home), "array": "", "limit": ""},
            )
            for at, (there, home) in enumerate(zip(self.there, self.home, strict=True))
        ]  # fmt: skip
        succeeded = JobStatus(state=AppState.SUCCEEDED, exit_code=0)
        return brought_home(tunnel, handles, [succeeded] * len(handles))


def states(statuses: Iterable[JobStatus]) -> list[str]:
    return [status.state.name for status in statuses]


def test_what_many_jobs_left_comes_by_one_command(tmp_path: Path, sshd: Sshd) -> None:
    jobs = Jobs(tmp_path, 100)
    tunnel = SSHTunnel(**sshd.where)  # type: ignore[arg-type]
    before = commands(sshd)
    assert states(jobs.bring(tunnel)) == ["SUCCEEDED"] * 100
    assert commands(sshd) - before == 1
    for at, home in enumerate(jobs.home):
        assert (home / "logs" / "job_0.log").read_text() == f"line of {at}\n"
        assert {path.name for path in home.iterdir()} == {
            "logs", "results", "artifacts", "brought_home", ".bringing",
        }  # fmt: skip
    assert states(jobs.bring(tunnel)) == ["SUCCEEDED"] * 100
    assert commands(sshd) - before == 1  # what is home is not asked about again


def test_a_job_that_cannot_be_copied_is_unknown_and_holds_up_no_other(tmp_path: Path) -> None:
    jobs, tunnel = Jobs(tmp_path, 3), Counting()
    away = jobs.there[1].rename(tmp_path / "away")
    statuses = jobs.bring(tunnel)
    assert states(statuses) == ["SUCCEEDED", "UNKNOWN", "SUCCEEDED"]
    assert statuses[1].message.startswith(f"SUCCEEDED, but what it left in {jobs.there[1]} cannot be copied")
    assert "cd: " in statuses[1].message
    assert not (jobs.home[1] / "logs").exists()
    away.rename(jobs.there[1])
    assert states(jobs.bring(tunnel)) == ["SUCCEEDED"] * 3
    assert (jobs.home[1] / "logs" / "job_0.log").read_text() == "line of 1\n"


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["here", "over ssh"])
def way(request: pytest.FixtureRequest) -> Iterator[Tunnel]:
    if request.param == "here":
        yield Counting()
    else:
        sshd = request.getfixturevalue("sshd")
        yield SSHTunnel(**sshd.where)


def fill(artifacts: Path, size: str) -> None:
    """Everything that a task may leave behind."""
    for name in (b"a b", b"-n", b"line\nend", b"\xff", "é".encode(), b"'\"$(touch x)"):
        Path(os.fsdecode(os.fsencode(artifacts) + b"/" + name)).write_bytes(name)
    (artifacts / "empty folder").mkdir()
    (artifacts / "program").write_text("#!/bin/sh\n")
    (artifacts / "program").chmod(0o755)
    (artifacts / "twin").hardlink_to(artifacts / "a b")
    (artifacts / "inside").symlink_to("a b")
    (artifacts / "dangling").symlink_to("nothing")
    (artifacts / "outside").symlink_to("../../../secret")
    (artifacts / "absolute").symlink_to("/etc")
    os.mkfifo(artifacts / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(artifacts)  # its name may be longer than a socket's can be
        listener.bind("socket")
    with open(artifacts / "hole", "wb") as file:
        file.truncate((64 << 20) if size == "large" else 1 << 20)


def test_whatever_a_task_leaves_comes_home_and_nothing_is_written_elsewhere(
    size: str, way: Tunnel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)  # and back in the end
    jobs = Jobs(tmp_path, 1)
    fill(jobs.there[0] / "artifacts", size)
    # What a process that was killed may have left: a link that leads to somebody else's files.
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (jobs.home[0] / ".brought.part").mkdir()
    (jobs.home[0] / ".brought.part" / "artifacts").symlink_to(elsewhere)
    (jobs.home[0] / "results").symlink_to(elsewhere)
    with caplog.at_level(logging.WARNING):
        assert states(jobs.bring(way)) == ["SUCCEEDED"]
    if isinstance(way, Counting):
        assert way.asked == ["run", *["get"] * (3 if size == "large" else 0)]
    found = jobs.home[0] / "artifacts"
    for name in (b"a b", b"-n", b"line\nend", b"\xff", "é".encode(), b"'\"$(touch x)"):
        assert Path(os.fsdecode(os.fsencode(found) + b"/" + name)).read_bytes() == name
    assert (found / "empty folder").is_dir()
    assert os.access(found / "program", os.X_OK)
    assert (found / "twin").read_text() == "a b"
    assert os.readlink(found / "inside") == "a b"
    assert os.readlink(found / "dangling") == "nothing"
    assert (found / "hole").stat().st_size == (64 << 20 if size == "large" else 1 << 20)
    left = {"artifacts/outside", "artifacts/absolute", "artifacts/pipe", "artifacts/socket"}
    assert not any(os.path.lexists(jobs.home[0] / name) for name in left)
    assert all(name in caplog.text for name in left)
    assert not list(elsewhere.iterdir())


def test_no_log_at_home_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hf_abcdef")
    jobs = Jobs(tmp_path, 2)
    for there, home in zip(jobs.there, jobs.home, strict=True):
        (there / "logs" / "job_0.log").write_text("it is hf_abcdef.\n")
        tree = [{"env_vars": {"HF": {"_secret_": run.Secret("TOKEN").source()}}}]
        (home / "executor.json").write_text(json.dumps(tree))
    assert states(jobs.bring(LocalTunnel())) == ["SUCCEEDED"] * 2
    for home in jobs.home:
        assert (home / "logs" / "job_0.log").read_text() == f"it is {MASK}.\n"
        assert [path.name for path in (home / "logs").iterdir()] == ["job_0.log"]


@pytest.mark.usefixtures("home")
def test_a_job_that_is_home_is_read_there(slurm: Cluster, tmp_path: Path) -> None:
    there = tmp_path / "over there"
    job = submit(run.Script(inline="echo attempt 1"), tunnel=LocalTunnel(job_dir=str(there)))
    assert Follower(job).all_lines() == ["attempt 1"]
    assert ended(*job).state == AppState.SUCCEEDED
    for attempt in (10, 2):
        log = Path(job[1].data["home"], "logs", f"job_0.attempt{attempt}.log")
        log.write_text(f"attempt {attempt}\n")
    there.rename(tmp_path / "gone")
    for follow in (False, True):
        lines = list(job[0].logs(job[1], "job", follow=follow))
        assert lines == ["attempt 1", "attempt 2", "attempt 10"]
