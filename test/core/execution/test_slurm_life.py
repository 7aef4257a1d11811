"""The life of a job on a real Slurm: arrays, chains, retries, requeues, groups, nodes and faults."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest
import tasks
import torch_tasks
from contracts.executor import ended, prepare, wait_until
from ports import take_ports
from slurms import Cluster

import nemo_run as run
from nemo_run.core.execution import slurm_job
from nemo_run.core.execution.base import TERMINAL, AppState, Executor, JobHandle, JobStatus
from nemo_run.core.execution.slurm import SlurmExecutor
from nemo_run.core.tunnel.local import LocalTunnel
from nemo_run.errors import JobFailedError, SubmitError, TunnelError

pytestmark = pytest.mark.usefixtures("home")

Job: TypeAlias = tuple[Executor, JobHandle]


def executor(**fields: Any) -> SlurmExecutor:
    return SlurmExecutor(**{"packager": run.Packager(), "time": "5", **fields})


def submit(task: Any, **fields: Any) -> Job:
    """A job on its way."""
    plan = prepare(task, executor(**fields))
    member = plan.spec.members[0]
    return member, member.submit(plan)


def status_of(job: Job) -> JobStatus:
    [status] = job[0].status([job[1]])
    return status


def until(job: Job, state: AppState) -> JobStatus:
    """Its status once it is in this state."""
    found: list[JobStatus] = []

    def seen() -> bool:
        found[:] = [status_of(job)]
        return found[0].state == state

    try:
        wait_until(seen, f"the job is {state}", 60)
    except AssertionError as exc:
        raise AssertionError(f"{exc}; it is {found[0]}") from None
    return found[0]


def await_saved(cluster: Cluster, job: Job) -> None:
    """Wait until the controller has written down what it knows now, as it does soon after a change."""
    now = time.time()
    cluster.call("scontrol", "update", f"jobid={job[1].data['job']}", "nice=1")
    wait_until(lambda: (cluster.folder / "state" / "job_state").stat().st_mtime > now, "it is saved", 60)


def impatient(cluster: Cluster) -> Path:
    """A configuration with which commands wait for a daemon two seconds, not twenty."""
    conf = cluster.folder / "impatient.conf"
    conf.write_text(cluster.conf.read_text() + "MessageTimeout=2\n")
    return conf


def lines(job: Job, replica: int = 0) -> list[str]:
    return list(own(job[0].logs(job[1], "job", replica)))


def own(found: Iterable[str]) -> Iterator[str]:
    """What a task itself has printed: Slurm says in its log why it is ended."""
    return (line for line in found if not line.startswith("slurmstepd"))


def script(path: Path, text: str, *words: str) -> run.Script:
    """A script in a file, with arguments."""
    path.write_text(text)
    return run.Script(path=str(path), args=list(words), entrypoint="sh")


class Gate:
    """Programs of Slurm that a job has first on its PATH, and that wait until they are let through."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        for name in ("srun", "scontrol"):
            (folder / name).write_text(
                f"#!/bin/sh\ncd {folder}\ntouch {name}.here\n"
                f"until [ -e all ] || mv {name}.go {name}.gone 2>/dev/null; do sleep 0.1; done\n"
                f'cd "$OLDPWD"\n{shutil.which(name)} "$@" && exit\ncode=$?\n'
                f"touch {folder}/{name}.failed\nexit $code\n"
            )
            (folder / name).chmod(0o755)

    def await_at(self, program: str) -> None:
        wait_until((self.folder / f"{program}.here").exists, f"{program} waits", 60)

    def let_through(self, program: str) -> None:
        (self.folder / f"{program}.go").touch()

    def await_failed(self, program: str) -> None:
        wait_until((self.folder / f"{program}.failed").exists, f"{program} has failed", 60)

    def let_all_through(self) -> None:
        (self.folder / "all").touch()


# --- several nodes and tasks ----------------------------------------------------------------------------


def test_each_rank_has_a_log_and_a_result_of_its_own(slurm: Cluster) -> None:
    experiment = run.Experiment("ranks", executor(nodes=2, ntasks_per_node=2))
    experiment.add(run.Partial(tasks.environment, ["SLURM_PROCID", "SLURM_NODEID"]), name="job")
    experiment.run()
    job_dir = Path(experiment.jobs[0].executors[0].job_dir)
    shown = [json.loads(path.read_text())["value"] for path in sorted(job_dir.glob("results/*.json"))]
    assert shown == [tasks.hexed([str(rank), str(rank // 2)]) for rank in range(4)]
    job = submit(run.Script(inline="echo $SLURM_PROCID on $SLURMD_NODENAME"), nodes=2, ntasks_per_node=2)
    assert ended(*job).state == AppState.SUCCEEDED
    assert [lines(job, rank)[0].split()[0] for rank in range(4)] == ["0", "1", "2", "3"]
    assert len({lines(job, rank)[0].split()[2] for rank in range(4)}) == 2


def test_a_rank_that_fails_ends_the_others(slurm: Cluster) -> None:
    job = submit(run.Script(inline='[ "$SLURM_PROCID" = 1 ] && exit 7; sleep 300'), ntasks_per_node=2)
    status = ended(*job)
    assert (status.state, status.exit_code, status.message) == (AppState.FAILED, 7, "exit code 7")


def test_what_is_marked_is_expanded_by_each_task_or_once_by_the_batch_script(
    slurm: Cluster, tmp_path: Path
) -> None:
    hosts = run.Expand("$(scontrol show hostnames $SLURM_JOB_NODELIST | tr '\\n' ,)")
    env = {"HOSTS": hosts, "RANK": run.Expand("rank $SLURM_PROCID")}
    macro = f"$${run.ExecutorMacros.HEAD_NODE_IP_VAR}"
    task = run.Script(inline='echo "$HOSTS|$RANK|$PLAIN|$head_node_ip"', env={**env, "PLAIN": "$HOME"})
    job = submit(task, nodes=2)
    assert ended(*job).state == AppState.SUCCEEDED
    shown = [lines(job, rank)[0].split("|") for rank in (0, 1)]
    assert [line[1:] for line in shown] == [[f"rank {rank}", "$HOME", "127.0.0.1"] for rank in (0, 1)]
    assert shown[0][0] == shown[1][0]
    assert shown[0][0].count("node") == 2
    word = submit(script(tmp_path / "show.sh", 'echo "$1"', macro), nodes=2)
    assert ended(*word).state == AppState.SUCCEEDED
    assert lines(word) == ["127.0.0.1"]


def test_a_single_colon_is_an_argument_like_any_other(slurm: Cluster, tmp_path: Path) -> None:
    job = submit(script(tmp_path / "show.sh", 'echo "$@"', ":", "a", " : "))
    assert ended(*job).state == AppState.SUCCEEDED
    assert lines(job) == [": a  : "]


def test_limits_are_those_that_slurm_was_given(slurm: Cluster) -> None:
    fields = {"memory_limit": "300M", "cpu_limit": 3, "gpus_per_node": 2, "timeout": 120, "time": None}
    job = submit(
        run.Script(inline="echo $SLURM_CPUS_PER_TASK $SLURM_MEM_PER_NODE $CUDA_VISIBLE_DEVICES"), **fields
    )
    assert ended(*job).state == AppState.SUCCEEDED
    assert lines(job) == ["3 300 0,1"]
    shown = slurm.call("scontrol", "show", "job", job[1].data["job"])
    assert "TimeLimit=00:02:00" in shown


# --- arrays ---------------------------------------------------------------------------------------------


def test_the_tasks_of_an_array_are_one_job_with_a_log_and_a_result_each(slurm: Cluster) -> None:
    experiment = run.Experiment("array", executor(array="1-3%2"))
    experiment.add(run.Partial(tasks.environment, ["SLURM_ARRAY_TASK_ID"]), name="job")
    experiment.run()
    job_dir = Path(experiment.jobs[0].executors[0].job_dir)
    shown = {path.stem: json.loads(path.read_text())["value"] for path in job_dir.glob("results/*.json")}
    assert shown == {f"job_{index}": tasks.hexed([str(index)]) for index in (1, 2, 3)}


@pytest.mark.parametrize("cluster", ["slurm", "bare_slurm"])
def test_an_array_ends_with_its_last_task_and_fails_if_one_has(
    cluster: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(cluster)
    job = submit(
        run.Script(inline="echo $SLURM_ARRAY_TASK_ID; exit $((SLURM_ARRAY_TASK_ID == 2 ? 5 : 0))"),
        array="0-3",
    )
    status = ended(*job, seconds=60)
    assert (status.state, status.exit_code) == (AppState.FAILED, 5)
    assert "2: " in status.message
    assert [lines(job, index) for index in range(4)] == [["0"], ["1"], ["2"], ["3"]]


def test_cancelling_an_array_ends_all_of_it(slurm: Cluster) -> None:
    job = submit(run.Script(inline="sleep 300"), array="0-9%2")
    until(job, AppState.RUNNING)
    job[0].cancel(job[1])
    assert ended(*job).state == AppState.CANCELLED


# --- chains ---------------------------------------------------------------------------------------------


def test_a_chain_is_in_slurms_hands_at_once(slurm: Cluster, tmp_path: Path) -> None:
    with run.Experiment("chain", executor()) as experiment:
        for name, after in (("a", []), ("b", ["a"]), ("c", ["b"])):
            script = run.Script(inline=f"[ -e {tmp_path}/go ] || sleep 2; echo {name} >> {tmp_path}/order")
            experiment.add(script, name=name, dependencies=after)
        experiment.run(detach=True)
        queued = slurm.call("squeue", "-h", "-o", "%j %E").split("\n")
        assert sum("afterok:" in line for line in queued) == 2
    (tmp_path / "go").touch()
    done = run.Experiment.from_id(experiment.id)
    done.wait()
    assert (tmp_path / "order").read_text() == "a\nb\nc\n"


def test_what_waits_for_a_job_that_failed_is_ended(slurm: Cluster) -> None:
    with run.Experiment("chain", executor(), raise_on_failure=False) as experiment:
        experiment.add(run.Script(inline="sleep 1; exit 3"), name="a")
        experiment.add(run.Script(inline="true"), name="b", dependencies=["a"])
        experiment.add(run.Script(inline="true"), name="c", dependencies=["b"])
        experiment.run()
    states = experiment.status(return_dict=True)
    assert {name: states[name]["status"].name for name in "abc"} == {
        "a": "FAILED",
        "b": "CANCELLED",
        "c": "CANCELLED",
    }


# --- again ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hurried")
def test_a_job_that_fails_is_queued_again_until_its_retries_are_spent(slurm: Cluster) -> None:
    job = submit(run.Script(inline="echo attempt $NEMORUN_ATTEMPT; exit 3"), retries=2)
    status = ended(*job, seconds=120)
    assert (status.state, status.exit_code, status.attempt) == (AppState.FAILED, 3, 3)
    assert lines(job) == ["attempt 1", "attempt 2", "attempt 3"]


@pytest.mark.usefixtures("hurried")
def test_a_job_that_succeeds_at_last_has_succeeded(slurm: Cluster) -> None:
    job = submit(run.Script(inline="[ $NEMORUN_ATTEMPT = 2 ]"), retries=3)
    following = list(job[0].logs(job[1], "job", follow=True))
    status = ended(*job, seconds=120)
    assert (status.state, status.attempt, following) == (AppState.SUCCEEDED, 2, []), status


@pytest.mark.usefixtures("hurried")
def test_a_job_requeued_by_hand_goes_on_and_no_line_is_lost(slurm: Cluster, tmp_path: Path) -> None:
    job = submit(
        run.Script(inline=f"echo begun $NEMORUN_ATTEMPT; until [ -e {tmp_path}/go ]; do sleep 0.1; done")
    )
    following = own(job[0].logs(job[1], "job", follow=True))
    assert next(following) == "begun 1"
    slurm.call("scontrol", "requeue", job[1].data["job"])
    assert next(following) == "begun 2"
    assert status_of(job).state == AppState.RUNNING
    (tmp_path / "go").touch()
    assert list(following) == []
    status = ended(*job)
    assert (status.state, status.attempt) == (AppState.SUCCEEDED, 2)


# --- ends of all kinds ----------------------------------------------------------------------------------


def test_a_job_cancelled_by_somebody_else_is_cancelled(slurm: Cluster) -> None:
    job = submit(run.Script(inline="sleep 300"))
    until(job, AppState.RUNNING)
    slurm.call("scancel", job[1].data["job"])
    assert ended(*job).state == AppState.CANCELLED


def test_a_job_cancelled_before_it_starts_is_cancelled(slurm: Cluster) -> None:
    job = submit(run.Script(inline="true"), additional_parameters={"begin": "now+1hour"})
    status = until(job, AppState.PENDING)
    assert status.message == "BeginTime"
    job[0].cancel(job[1])
    assert ended(*job).state == AppState.CANCELLED


@pytest.mark.usefixtures("hurried")
def test_a_job_whose_node_fails_is_queued_again(slurm: Cluster, tmp_path: Path) -> None:
    job = submit(run.Script(inline=f"echo $NEMORUN_ATTEMPT; until [ -e {tmp_path}/go ]; do sleep 0.1; done"))
    wait_until(lambda: lines(job) == ["1"], "it runs", 60)
    node = slurm.call("squeue", "-h", "-o", "%N", "-j", job[1].data["job"]).strip()
    slurm.crash(node)
    seen = set[AppState]()

    def runs_again() -> bool:
        seen.add(status_of(job).state)
        return lines(job) == ["1", "2"]

    wait_until(runs_again, "it runs again", 60)
    assert seen <= {AppState.RUNNING, AppState.PENDING, AppState.UNKNOWN}
    until(job, AppState.RUNNING)
    (tmp_path / "go").touch()
    assert ended(*job).state == AppState.SUCCEEDED


@dataclass(kw_only=True)
class Tardy(LocalTunnel):
    """A tunnel through which Slurm is asked only once a job has ended."""

    go: str
    cluster: Cluster

    def run(self, command: Any, **options: Any) -> Any:
        if "squeue" in command:
            Path(self.go).touch()
            wait_until(lambda: not self.cluster.call("squeue", "-h", "-t", "R,CG"), "it has ended", 60)
        return super().run(command, **options)


@pytest.mark.parametrize("cluster", ["slurm", "bare_slurm"])
def test_a_job_that_ends_while_it_is_looked_at_has_its_own_last_word(
    cluster: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    slurm: Cluster = request.getfixturevalue(cluster)
    text = f"touch {tmp_path}/begun; until [ -e {tmp_path}/go ]; do sleep 0.1; done; exit 4"
    _, handle = submit(run.Script(inline=text))
    wait_until((tmp_path / "begun").exists, "it runs", 60)
    [status] = slurm_job.look(Tardy(go=f"{tmp_path}/go", cluster=slurm), [handle])
    assert (status.state, status.exit_code, status.message) == (AppState.FAILED, 4, "exit code 4")
    assert status.started
    assert status.ended


def test_a_job_whose_node_is_only_taken_for_dead_has_not_succeeded(slurm: Cluster) -> None:
    """Its batch script sees srun end with 0, and may have time to say so."""
    job = submit(run.Script(inline="sleep 300"))
    until(job, AppState.RUNNING)
    node = slurm.call("squeue", "-h", "-o", "%N", "-j", job[1].data["job"]).strip()
    slurm.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    folder, watched = Path(job[1].data["folder"]), time.monotonic() + 10
    while not (folder / "end.json").exists() and time.monotonic() < watched:
        assert status_of(job).state not in TERMINAL
    assert status_of(job).state not in TERMINAL


def test_an_end_in_the_accounting_is_no_verdict_while_nobody_can_say_whether_the_job_is_queued_again(
    slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(run.Script(inline="sleep 300"))
    until(job, AppState.RUNNING)
    number = job[1].data["job"]
    slurm.crash(slurm.call("squeue", "-h", "-o", "%N", "-j", number).strip())
    failed = lambda: slurm.call("sacct", "-XnP", "-j", number, "-o", "State") == "NODE_FAIL\n"  # noqa: E731
    wait_until(failed, "the accounting knows of the node", 60)
    until(job, AppState.PENDING)
    slurm.slurmctld.stop()
    monkeypatch.setenv("SLURM_CONF", str(impatient(slurm)))
    seen = status_of(job)
    assert (seen.state, "squeue" in seen.message) == (AppState.UNKNOWN, True)


@pytest.mark.parametrize("daemon", ["slurmctld", "slurmdbd"])
def test_a_daemon_that_is_away_for_a_while_is_no_verdict(
    slurm: Cluster, daemon: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"touch {tmp_path}/begun; until [ -e {tmp_path}/go ]; do sleep 0.1; done; exit 4"
    job = submit(run.Script(inline=text))
    wait_until((tmp_path / "begun").exists, "it runs", 60)
    monkeypatch.setenv("SLURM_CONF", str(impatient(slurm)))
    getattr(slurm, daemon).stop()
    wait_until(
        lambda: status_of(job).state == (AppState.UNKNOWN if daemon == "slurmctld" else AppState.RUNNING),
        "",
        60,
    )
    assert status_of(job).message or daemon == "slurmdbd"
    (tmp_path / "go").touch()
    status = ended(*job)  # from its own word
    assert (status.state, status.exit_code) == (AppState.FAILED, 4)
    slurm.revive()
    # A node says only after a minute what it could not say while nobody heard; this is faster.
    slurm.call("scontrol", "update", "nodename=node[0-3]", "state=down", "reason=test")


@pytest.mark.slow
def test_a_job_begins_and_is_queued_again_when_the_controller_is_back(
    slurm: Cluster, hurried: None, tmp_path: Path
) -> None:
    """Each when a controller that is away has been asked in vain."""
    gate = Gate(tmp_path / "gate")
    lines = f"export SLURM_CONF={impatient(slurm)} PATH={gate.folder}:$PATH"
    task = run.Script(inline=f"touch {tmp_path}/$NEMORUN_ATTEMPT; [ $NEMORUN_ATTEMPT = 2 ]")
    job = submit(task, retries=1, setup_lines=lines)
    wait_until((Path(job[1].data["folder"]) / "begin.json").exists, "it has begun", 60)
    for program in ("srun", "scontrol"):
        gate.await_at(program)
        slurm.slurmctld.stop()
        gate.let_through(program)
        gate.await_failed(program)
        slurm.revive()
        # Until a node has said what it has Slurm starts nothing there, and looks again after a minute.
        wait_until(lambda: not slurm.call("sinfo", "-h", "-t", "unknown", "-o", "%D"), "all are known", 60)
        gate.let_through(program)
        wait_until((tmp_path / "1").exists, "its task runs", 60)
    gate.let_all_through()
    status = ended(*job, seconds=60)
    assert (status.state, status.attempt) == (AppState.SUCCEEDED, 2)


def test_cancelling_while_the_controller_is_away_is_an_error_and_changes_nothing(slurm: Cluster) -> None:
    job = submit(run.Script(inline="sleep 300"))
    until(job, AppState.RUNNING)
    await_saved(slurm, job)
    slurm.slurmctld.stop()
    with pytest.raises(SubmitError, match="cannot cancel"):
        job[0].cancel(job[1])
    slurm.revive()
    assert until(job, AppState.RUNNING).state not in TERMINAL


# --- sent once ------------------------------------------------------------------------------------------


def _forget(handle: JobHandle) -> None:
    """Lose what is known of a submission, but that it was begun."""
    folder = Path(handle.data["folder"])
    (folder / "submission").write_text(f"{handle.id}\n")
    (folder / "begin.json").unlink()


def test_a_submission_whose_answer_was_lost_is_found_in_the_queue(slurm: Cluster) -> None:
    member, handle = submit(run.Script(inline="sleep 300"), comment="my own words")
    wait_until(lambda: (Path(handle.data["folder"]) / "begin.json").exists(), "it runs")
    _forget(handle)
    assert member.find(handle.id) == handle


def test_a_submission_whose_answer_was_lost_is_found_in_the_accounting(slurm: Cluster) -> None:
    member, handle = submit(run.Script(inline="true"))
    ended(member, handle)
    _forget(handle)
    job = handle.data["job"]
    wait_until(lambda: f"{job}\n" not in slurm.call("squeue", "-h", "-t", "all", "-o", "%A"), "forgotten", 60)
    assert member.find(handle.id) == handle


def test_nobody_concludes_anything_while_the_controller_is_away(slurm: Cluster) -> None:
    member, handle = submit(run.Script(inline="true"))
    ended(member, handle)
    _forget(handle)
    slurm.slurmctld.stop()
    with pytest.raises(TunnelError):
        member.find(handle.id)


# --- groups ---------------------------------------------------------------------------------------------


def test_members_of_a_heterogeneous_job_have_nodes_of_their_own_kind(slurm: Cluster) -> None:
    script = "echo $SLURM_HET_SIZE $SLURM_NNODES ${CUDA_VISIBLE_DEVICES-none} $het_group_host_1"
    members = [executor(heterogeneous=True, gpus_per_node=1), executor(heterogeneous=True, nodes=2)]
    with run.Experiment("het", members[0]) as experiment:
        experiment.add([run.Script(inline=script), run.Script(inline=script)], members, name="job")
        experiment.run()
    logs = Path(experiment.jobs[0].executors[0].job_dir, "logs")
    shown = {path.name: path.read_text().split() for path in logs.iterdir() if path.name[:4] == "echo"}
    assert len(shown) == 3
    assert {tuple(words[:3]) for words in shown.values()} == {("2", "1", "0"), ("2", "2", "none")}
    assert len({words[3] for words in shown.values()}) == 1


def test_a_member_that_fails_is_named(slurm: Cluster) -> None:
    experiment = run.Experiment("group", executor())
    experiment.add([run.Script(inline="sleep 300"), run.Script(inline="exit 9")], name="job")
    with pytest.raises(JobFailedError, match="exit code 9") as caught:
        experiment.run()
    assert caught.value.record.message.startswith(experiment.jobs[0].roles[1] + ": ")


# --- secrets --------------------------------------------------------------------------------------------


def test_a_secret_is_in_no_script_argument_log_or_file_of_others(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "canary-5e1a")
    task = run.Script(inline=f"until [ -e {tmp_path}/go ]; do sleep 0.1; done; [ ${{#KEY}} = 11 ]")
    job = submit(task, env_vars={"KEY": run.Secret("CANARY"), "PLAIN": "plain"})
    until(job, AppState.RUNNING)
    argv = [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or ()]
    assert not [word for word in argv if "canary-5e1a" in word]
    folder = Path(job[1].data["folder"])
    held = [path for path in folder.rglob("*") if path.is_file() and b"canary-5e1a" in path.read_bytes()]
    assert [path.relative_to(folder).parts[0] for path in held] == ["env"]
    for path in (folder, *held):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    shown = slurm.call("scontrol", "show", "job", "-d", job[1].data["job"])
    shown += slurm.call("scontrol", "write", "batch_script", job[1].data["job"], "-")
    assert "canary-5e1a" not in shown
    (tmp_path / "go").touch()
    assert ended(*job).state == AppState.SUCCEEDED
    assert os.environ["CANARY"] == "canary-5e1a"


# --- containers and torchrun ----------------------------------------------------------------------------


def test_a_container_is_what_pyxis_is_asked_for(slurm: Cluster, tmp_path: Path) -> None:
    """The double of Pyxis shows what it was asked for, and contains nothing: paths are not those inside."""
    made = prepare(
        run.Script(inline="true"),
        executor(
            container_image="image.sqsh",
            container_mounts=["/data:/data", "/$nemo_run/c:/c"],
            container_env=["PATH"],
        ),
    )
    folder = made.request["folder"]
    # What would be the job's folder in there.
    lines = made.request["script"].replace(" /nemo_run/", f" {folder}/").replace("=/nemo_run", f"={folder}")
    lines = lines.replace(f"bash {folder}/scripts/job.sh", "env")
    member = made.spec.members[0]
    job = member, member.submit(replace(made, request={**made.request, "script": lines}))
    assert ended(*job).state == AppState.SUCCEEDED
    shown = dict(line.split("=", 1) for line in job[0].logs(job[1], "job") if "=" in line)
    assert shown["PYXIS_DOUBLE_IMAGE"] == "image.sqsh"
    library = f"{Path(run.__file__).parent}:/nemo_run_library/nemo_run"
    assert shown["PYXIS_DOUBLE_MOUNTS"] == f"/data:/data,{folder}/c:/c,{folder}:/nemo_run,{library}"
    assert shown["PYXIS_DOUBLE_ENV"] == "PATH"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None and "CI" not in os.environ, reason="torch is not installed")
def test_torchrun_over_two_nodes_adds_up_all_ranks(slurm: Cluster) -> None:
    launcher = run.Torchrun(rdzv_port=take_ports()[0])  # all nodes have one address
    with run.Experiment("torchrun", executor(nodes=2, ntasks_per_node=2, launcher=launcher)) as experiment:
        experiment.add(run.Partial(torch_tasks.total), name="job")
        experiment.run()
    job_dir = Path(experiment.jobs[0].executors[0].job_dir)
    assert len(list(job_dir.glob("results/job_*.json"))) == 4
    assert experiment.result("job") == 1 + 2 + 3 + 4
