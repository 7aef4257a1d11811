"""Jobs on a real Slurm that are told to make room, save what they have, and are run again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import checkpoint_tasks
import pytest
from contracts.executor import ended, prepare, wait_until
from ports import take_ports
from slurms import Cluster

import nemo_run as run
from nemo_run.core.execution import slurm
from nemo_run.core.execution.base import AppState, Executor, JobHandle
from nemo_run.core.execution.slurm import SlurmExecutor
from nemo_run.core.execution.slurm_job import Word
from nemo_run.core.execution.slurm_queue import Seen
from nemo_run.errors import ConfigError

pytestmark = pytest.mark.usefixtures("home")

Job: TypeAlias = tuple[Executor, JobHandle]
#: Every kind of it that is here; one there is.
AWKS = [name for name in ("gawk", "mawk", "busybox") if shutil.which(name)] or ["awk"]
HELPER = Path(slurm.__file__).with_name("slurm_job.sh")


def submit(task: Any, **fields: Any) -> Job:
    """A job on its way that is run again three times at most."""
    given = {"packager": run.Packager(), "time": "5", "retries": 3, "requeue_on_timeout": True, **fields}
    plan = prepare(task, SlurmExecutor(**given))
    member = plan.spec.members[0]
    return member, member.submit(plan)


def await_begun(folder: Path, attempt: int, ranks: int = 1) -> None:
    """Wait until all ranks of a task run and listen."""
    paths = [folder / f"begun.{rank}.{attempt}" for rank in range(ranks)]
    wait_until(lambda: all(path.exists() for path in paths), f"attempt {attempt} has begun", 60)


def tell(cluster: Cluster, job: Job, signal: str = "USR2") -> None:
    """Send the batch script what Slurm sends it before the time is up."""
    cluster.call("scancel", f"--signal={signal}", "--batch", job[1].data["job"])


def value_of(job: Job, attempt: int = 2, rank: int = 0) -> Any:
    name = f"job_{rank}" + (f".attempt{attempt}" if attempt > 1 else "")
    return json.loads(Path(job[1].data["home"], "results", f"{name}.json").read_text())["value"]


def script(folder: Path, text: str) -> run.Script:
    """A script that says when it has begun, with `$folder` and `$attempt`."""
    begin = f"folder={folder} attempt=$NEMORUN_ATTEMPT; {text}"
    return run.Script(inline=begin.replace("BEGIN", "touch $folder/begun.0.$attempt"))


# --- told and run again ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("hurried")
def test_a_task_that_is_told_goes_on_where_it_was(slurm: Cluster, tmp_path: Path) -> None:
    ways, jobs = ("on_signal", "requested", "handler"), []
    for way in ways:
        (tmp_path / way).mkdir()
        jobs.append(submit(run.Partial(getattr(checkpoint_tasks, way), str(tmp_path / way))))
    for way, job in zip(ways, jobs, strict=True):
        await_begun(tmp_path / way, 1)
        tell(slurm, job)
    for way, job in zip(ways, jobs, strict=True):
        await_begun(tmp_path / way, 2)
        (tmp_path / way / "go").touch()
        status = ended(*job)
        assert (status.state, status.attempt, status.message) == (AppState.SUCCEEDED, 2, "")
        assert value_of(job) == "saved "


@pytest.mark.usefixtures("hurried")
def test_a_script_is_told_by_the_signal_until_its_retries_are_spent(
    bare_slurm: Cluster, tmp_path: Path
) -> None:
    text = "trap 'echo saved; exit 5' USR1; BEGIN; while :; do sleep 0.05; done"
    job = submit(script(tmp_path, text), signal="SIGUSR1@30", retries=1)
    for attempt in (1, 2):
        await_begun(tmp_path, attempt)
        tell(bare_slurm, job, "USR1")
    status = ended(*job)
    assert (status.state, status.exit_code, status.attempt) == (AppState.FAILED, 5, 2)
    assert status.message == "TIMEOUT: its time was up in attempt 2, and its retries are spent"
    assert [line for line in job[0].logs(job[1], "job") if line == "saved"] == ["saved"] * 2


def test_a_task_that_ends_its_work_after_all_is_done(slurm: Cluster, tmp_path: Path) -> None:
    job = submit(run.Partial(checkpoint_tasks.finishing, str(tmp_path)))
    await_begun(tmp_path, 1)
    tell(slurm, job)
    status = ended(*job)
    assert (status.state, status.attempt, value_of(job, 1)) == (AppState.SUCCEEDED, 1, "done")


@pytest.mark.usefixtures("hurried")
def test_a_task_that_takes_no_notice_is_ended_before_the_time_is_up(slurm: Cluster, tmp_path: Path) -> None:
    job = submit(run.Partial(checkpoint_tasks.deaf, str(tmp_path)), signal="USR2@3")
    await_begun(tmp_path, 1)
    tell(slurm, job)
    await_begun(tmp_path, 2)
    (tmp_path / "go").touch()
    status = ended(*job)
    assert (status.state, status.attempt, value_of(job)) == (AppState.SUCCEEDED, 2, "saved ")


@pytest.mark.usefixtures("hurried")
def test_a_script_may_ask_for_another_run_by_itself(slurm: Cluster, tmp_path: Path) -> None:
    job = submit(script(tmp_path, "[ $attempt = 2 ] || exit 75"))
    status = ended(*job, seconds=60)
    assert (status.state, status.attempt) == (AppState.SUCCEEDED, 2)


@pytest.mark.usefixtures("hurried")
def test_members_of_a_group_all_have_their_time_to_save(slurm: Cluster, tmp_path: Path) -> None:
    folders = [tmp_path / "fast", tmp_path / "slow"]
    members = []
    for folder, seconds in zip(folders, (0.0, 1.0), strict=True):
        folder.mkdir()
        members.append(run.Partial(checkpoint_tasks.on_signal, str(folder), seconds))
    executor = SlurmExecutor(packager=run.Packager(), time="5", retries=1, requeue_on_timeout=True)
    with run.Experiment("group", executor) as experiment:
        experiment.add(members, name="job")
        experiment.run(detach=True)
    for attempt in (1, 2):
        for folder in folders:
            await_begun(folder, attempt)
        if attempt == 1:
            number = slurm.call("squeue", "-h", "-o", "%A").strip()
            slurm.call("scancel", "--signal=USR2", "--batch", number)
    for folder in folders:
        (folder / "go").touch()
    done = run.Experiment.from_id(experiment.id)
    done.wait()
    assert [(folder / "saved.0").read_text() for folder in folders] == ["saved ", "saved "]


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
@pytest.mark.skipif(find_spec("torch") is None and "CI" not in os.environ, reason="torch is not installed")
def test_every_rank_of_torchrun_has_its_time_to_save(slurm: Cluster, tmp_path: Path) -> None:
    task = run.Partial(checkpoint_tasks.on_signal, str(tmp_path), 0.5)
    launcher = run.Torchrun(rdzv_port=take_ports()[0])  # all nodes have one address
    job = submit(task, nodes=2, ntasks_per_node=2, launcher=launcher)
    await_begun(tmp_path, 1, ranks=4)
    tell(slurm, job)
    await_begun(tmp_path, 2, ranks=4)
    (tmp_path / "go").touch()
    status = ended(*job, seconds=60)
    assert (status.state, status.attempt) == (AppState.SUCCEEDED, 2), status
    assert [value_of(job, rank=rank) for rank in range(4)] == ["saved "] * 4


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_slurm_tells_a_job_before_its_time_is_up(slurm: Cluster, tmp_path: Path) -> None:
    """Slurm looks twice a minute which jobs are to be told, and thinks half a minute ahead."""
    job = submit(run.Partial(checkpoint_tasks.requested, str(tmp_path)), time="1", signal="USR2@45")
    await_begun(tmp_path, 1)
    await_begun(tmp_path, 2)
    (tmp_path / "go").touch()
    status = ended(*job)
    assert (status.state, status.attempt, value_of(job)) == (AppState.SUCCEEDED, 2, "saved ")


# --- what Slurm itself ends -----------------------------------------------------------------------------


@pytest.mark.usefixtures("hurried")
def test_a_job_that_is_preempted_uses_up_no_retry(slurm: Cluster, tmp_path: Path) -> None:
    """Nor one that knows nothing of all this, and ends by a code of its own."""
    saving, plain = tmp_path / "saving", tmp_path / "plain"
    for folder in (saving, plain):
        folder.mkdir()
    text = "trap 'exit 9' TERM; BEGIN; until [ -e $folder/go ]; do sleep 0.05; done"
    place: dict[str, Any] = {"partition": "spare", "exclusive": True}
    jobs = [
        submit(run.Partial(checkpoint_tasks.on_signal, str(saving)), **place, retries=1),
        submit(script(plain, text), **place, retries=0, requeue_on_timeout=False),
    ]
    await_begun(saving, 1)
    await_begun(plain, 1)
    # All nodes, so that some must be made free.
    slurm.call("sbatch", "-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    for folder in (saving, plain):
        await_begun(folder, 2)
        (folder / "go").touch()
    for job in jobs:
        status = ended(*job)
        assert (status.state, status.attempt) == (AppState.SUCCEEDED, 2)
        assert not (Path(job[1].data["folder"]) / "failures").exists()


def test_a_job_that_is_cancelled_does_not_come_back(slurm: Cluster, tmp_path: Path) -> None:
    job = submit(run.Partial(checkpoint_tasks.on_signal, str(tmp_path)))
    await_begun(tmp_path, 1)
    job[0].cancel(job[1])
    assert ended(*job).state == AppState.CANCELLED
    assert (tmp_path / "saved.0").read_text() == "saved "
    number = job[1].data["job"]
    gone = lambda: number not in slurm.call("squeue", "-h", "-t", "running,completing,pending", "-o", "%A")  # noqa: E731
    wait_until(gone, "it is gone", 60)
    assert f"{number}|CANCELLED" in slurm.call("sacct", "-XnP", "-j", number, "-o", "jobid,state")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "do the nodes see that folder?"),
        ({"/job/begin.json": b'{"job": "7", "attempt": 2, "started": 1}'}, "a node could not start it again"),
    ],
)
def test_a_job_that_failed_without_a_word_of_its_own_is_told_from_one_that_did(
    files: dict[str, bytes], words: str
) -> None:
    data = {"job": "7", "folder": "/job", "home": "/job", "array": "", "limit": "60"}
    word = Word(JobHandle(executor="", id="", data=data), files)
    status = word.fill(Seen(state="FAILED").status())
    assert (status.state, status.message) == (AppState.FAILED, f"FAILED, without word in /job: {words}")


# --- what cannot work -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"retries": 0}, "needs retries"),
        ({"signal": "TERM@60"}, "one that a task can catch"),
        ({"signal": "9@60"}, "one that a task can catch"),
        ({"signal": "NONE@60"}, "one that a task can catch"),
        ({"signal": "USR1@300"}, "comes 300 s before the end of a job of 5"),
        ({"additional_parameters": {"signal": "USR1"}}, "use signal for it"),
        ({"requeue_on_timeout": "yes"}, "requeue_on_timeout"),
    ],
)
def test_what_cannot_be_requeued_is_refused_at_once(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SlurmExecutor(**{"requeue_on_timeout": True, "retries": 1, "time": "5", **fields})


@pytest.mark.parametrize(
    ("fields", "option", "room"),
    [
        ({"time": "1-0"}, "B:USR2@120", "room_on USR2 108"),
        ({"time": "1"}, "B:USR2@15", "room_on USR2 13"),
        ({"signal": "usr1"}, "B:USR1@60", "room_on USR1 54"),
        ({"signal": "B:10@20"}, "B:USR1@20", "room_on USR1 18"),
    ],
)
def test_the_batch_script_is_told_in_good_time(fields: dict[str, Any], option: str, room: str) -> None:
    given = {"packager": run.Packager(), "retries": 1, "requeue_on_timeout": True, "time": "5", **fields}
    text = prepare(run.Partial(checkpoint_tasks.deaf, "."), SlurmExecutor(**given)).text
    assert f"#SBATCH --signal={option}\n" in text
    assert f"\n{room}\n" in text


# --- secrets in logs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [False, True])
def test_a_secret_that_a_task_prints_is_masked_in_its_log_when_it_ends(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    secret = "canary-5e1a\nsecond $`'\" line"
    monkeypatch.setenv("CANARY", secret)
    text = f'echo "it is $KEY."; printf \'and at the end %s\' "$KEY" >&2; exit {7 * failing}'
    env = {"KEY": run.Secret("CANARY"), "PLAIN": "it"}
    job = submit(run.Script(inline=text), env_vars=env, retries=0, requeue_on_timeout=False)
    assert ended(*job).state == (AppState.FAILED if failing else AppState.SUCCEEDED)
    first, second = map(len, secret.split("\n"))
    shown = f"{'*' * first}\n{'*' * second}"
    log = Path(job[1].data["folder"], "logs", "job_0.log")
    assert log.read_text().startswith(f"it is {shown}.\nand at the end {shown}")
    for path in log.parent.iterdir():
        assert b"canary" not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("awk", AWKS)
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_masking_keeps_the_size_of_a_log_whatever_awk_there_is(tmp_path: Path, awk: str, end: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "awk").symlink_to(str(shutil.which(awk)))
    (tmp_path / "env").mkdir()
    secrets = {"A": "abc", "B": "xabcy", "C": "***", "D": "é\\n&[.]*", "E": "ab", "PATH": "/nowhere"}
    (tmp_path / "env" / "job.sh").write_text(
        "export NEMORUN_SECRETS=A,B,C,D,E\n"
        + "".join(f"export {name}='{value}'\n" for name, value in secrets.items())
    )
    log, other = tmp_path / "log", tmp_path / "other"
    text = b"abc xabcy ab \xff abcabc\r\n\n***** \xc3\xa9\\n&[.]* " + b"z" * 20000 + b" abc" + end.encode()
    log.write_bytes(text)
    other.write_bytes(b"nothing of it\n")
    before = other.stat()
    functions = HELPER.read_text()
    functions = functions[functions.index("mask() (") : functions.index("# again RETRIES")]
    command = f'umask 077; PATH={tmp_path}/bin:$PATH\n{functions}\nmask job "$@"'
    subprocess.run(["bash", "-c", command, "bash", "log", "other"], cwd=tmp_path, check=True)
    hidden = log.read_bytes()
    assert hidden == (
        b"*** ***** ab \xff ******\r\n\n***** " + b"*" * 9 + b" " + b"z" * 20000 + b" ***" + end.encode()
    )
    assert len(hidden) == len(text)
    assert (other.stat().st_ino, other.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
