"""Equal jobs as one array of a real Slurm: each is a job of its own, with its own end, log and retries."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from contracts.executor import wait_until
from programs import python, write
from slurms import Cluster
from sshds import Sshd

import nemo_run as run
from nemo_run.core.execution.base import JobHandle
from nemo_run.core.execution.slurm import SlurmExecutor, SlurmJobDetails
from nemo_run.core.execution.slurm_array import FEWEST, arrays
from nemo_run.core.execution.slurm_scripts import Answer, Order, parse_submitting, submitting

pytestmark = pytest.mark.usefixtures("home")

#: Keeps jobs in the queue.
LATER = {"begin": "now+1hour"}
#: Prints what tasks are told of the job's name and number.
ENV = "env | grep -a -E '^(SLURM_ARRAY_JOB_ID|SLURM_ARRAY_TASK_ID|NEMORUN_REPLICA|SLURM_JOB_NAME)='"


def executor(**fields: Any) -> SlurmExecutor:
    return SlurmExecutor(**{"packager": run.Packager(), "time": "5", **fields})


def sweep(texts: list[str], title: str = "sweep", **fields: Any) -> run.Experiment:
    """A job for each text; none is on its way yet."""
    made = run.Experiment(title, executor(**fields), clean_mode=True, raise_on_failure=False)
    for at, text in enumerate(texts):
        made.add(run.Script(inline=text), name=f"job {at}")
    return made


def record(exp: run.Experiment, at: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(exp.path, exp.jobs[at].id, "job.json").read_bytes())
    return found


def handles(exp: run.Experiment) -> list[JobHandle]:
    return [JobHandle.from_json(record(exp, at)["handle"]) for at in range(len(exp.jobs))]


def numbers(exp: run.Experiment) -> list[str]:
    """Those that Slurm gave the jobs."""
    return [handle.data["job"] for handle in handles(exp)]


def tasks_of(exp: run.Experiment) -> list[str]:
    """Which tasks of one array the jobs are."""
    mains = {number.partition("_")[0] for number in numbers(exp)}
    assert len(mains) == 1, numbers(exp)
    return [number.partition("_")[2] for number in numbers(exp)]


def states(exp: run.Experiment) -> list[str]:
    found = run.Experiment.from_id(exp.id).status(return_dict=True)
    return [found[job.id]["status"].name for job in exp.jobs]


def await_states(exp: run.Experiment, wanted: list[str]) -> None:
    seen: list[list[str]] = []

    def come() -> bool:
        seen[:] = [states(exp)]
        return seen[0] == wanted

    try:
        wait_until(come, f"they are {wanted}", 60)
    except AssertionError as exc:
        raise AssertionError(f"{exc}; they are {seen[0]}") from None


def log(exp: run.Experiment, at: int, attempt: str = "") -> list[str]:
    [path] = Path(exp.path, exp.jobs[at].id, "logs").glob(f"[!s]*_0{attempt}.log")
    return path.read_text().splitlines()


class Sbatch:
    """A program that stands in for sbatch on this machine, and notes how it is called."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path, self._calls = folder / "sbatch", folder / "calls"
        self._real = shutil.which("sbatch")
        self.does('exec $real "$@"')

    def does(self, text: str) -> None:
        """What it does from now on; `$real` is the real one."""
        note = f'printf "%s\\n" "$*" >>{self._calls}'
        self.path.write_text(f"#!/bin/sh\nreal={self._real}\n{note}\n{text}\n")
        self.path.chmod(0o755)

    def calls(self) -> list[str]:
        """With which words, less those that all calls have."""
        return [line.removeprefix("--parsable ") for line in self._calls.read_text().splitlines()]


@pytest.fixture
def sbatch(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sbatch:
    made = Sbatch(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.path.parent}:{os.environ['PATH']}")
    return made


# --- which jobs -----------------------------------------------------------------------------------------


def test_fewer_than_fill_the_lanes_are_submitted_one_by_one(sbatch: Sbatch) -> None:
    sweep(["true"] * (FEWEST - 1), additional_parameters=LATER).run(detach=True)
    assert sbatch.calls() == ["sbatch.sh"] * (FEWEST - 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"job_details": SlurmJobDetails(job_name="mine")},
        {"array": "0-1"},
        {"dependencies": ["1"], "dependency_type": "afterany"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_jobs_with_something_of_their_own_stay_alone(fields: dict[str, Any], sbatch: Sbatch) -> None:
    sweep(["true"] * FEWEST, additional_parameters=LATER, **fields).run(detach=True)
    assert [call.split()[-1] for call in sbatch.calls()] == ["sbatch.sh"] * FEWEST


def test_jobs_that_ask_for_other_things_are_another_array(slurm: Cluster, sbatch: Sbatch) -> None:
    exp = sweep(["true"] * FEWEST, job_name_prefix="us.", additional_parameters=LATER)
    for _ in range(FEWEST):
        exp.add(run.Script(inline="true"), executor(time="7", comment="mine", additional_parameters=LATER))
    exp.add(run.Script(inline="true"), executor(time="8", additional_parameters=LATER))
    exp.run(detach=True)
    assert sorted(sbatch.calls()) == ["array.sh", "array.sh", "sbatch.sh"]
    queue = slurm.call("squeue", "-h", "-r", "-o", "%j|%l|%k").splitlines()
    comment = f"{exp.id}/{exp.jobs[FEWEST].id}/1 and {FEWEST - 1} more"
    assert queue.count(f"us.sweep|5:00|{exp.id}/job 0/1 and {FEWEST - 1} more") == FEWEST
    assert queue.count(f"sweep|7:00|mine {comment}") == FEWEST


def test_a_large_sweep_is_a_few_arrays_and_is_looked_at_as_one(slurm: Cluster, sbatch: Sbatch) -> None:
    exp = sweep(["true"] * 120, additional_parameters=LATER)
    exp.run(detach=True)
    assert sbatch.calls() == ["array.sh"] * 3
    assert len(set(numbers(exp))) == 120
    assert set(states(exp)) == {"PENDING"}


def test_what_waits_for_a_whole_sweep_starts_after_it(sbatch: Sbatch, tmp_path: Path) -> None:
    exp = sweep(["true"] * (FEWEST - 1) + [f"sleep 1; touch {tmp_path}/done"])
    exp.add(run.Script(inline=f"ls {tmp_path}/done"), name="all", dependencies=[job.id for job in exp.jobs])
    exp.run()
    assert states(exp) == ["SUCCEEDED"] * (FEWEST + 1)
    calls = sbatch.calls()
    assert calls[0] == "array.sh"
    main = numbers(exp)[0].partition("_")[0]
    assert calls[1].startswith("--dependency=afterok:" + ":".join(f"{main}_{at}" for at in range(FEWEST)))


# --- each is a job of its own ---------------------------------------------------------------------------


def test_each_job_of_a_sweep_has_its_own_end_log_and_name(slurm: Cluster, sbatch: Sbatch) -> None:
    title = 'a\'b "c" $d `e` ;é'
    exp = sweep([f"echo {at}; {ENV}; exit {at}" for at in range(FEWEST)], title, job_name_prefix="us.")
    exp.run()
    assert sbatch.calls() == ["array.sh"]
    assert tasks_of(exp) == [str(at) for at in range(FEWEST)]
    assert states(exp) == ["SUCCEEDED"] + ["FAILED"] * (FEWEST - 1)
    for at, number in enumerate(numbers(exp)):
        assert record(exp, at)["exit_code"] == at
        assert log(exp, at) == [str(at), f"SLURM_JOB_NAME=us.job {at}"]
        folder = Path(exp.path, exp.jobs[at].id)
        assert json.loads((folder / "begin.json").read_bytes())["job"] == number
        assert [path.name for path in folder.glob("logs/slurm_*")] == [f"slurm_{number}.log"]
        assert not list(folder.glob("slurm_[0-9]*"))
        assert all(stat.S_IMODE(path.stat().st_mode) & 0o77 == 0 for path in folder.glob("array*"))


def test_two_nodes_and_ranks_are_as_they_are_alone(slurm: Cluster) -> None:
    exp = sweep(["echo $SLURM_PROCID $SLURM_NNODES"] * FEWEST, nodes=2)
    exp.run()
    assert tasks_of(exp)
    assert states(exp) == ["SUCCEEDED"] * FEWEST
    for job in exp.jobs:
        shown = [path.read_text() for path in sorted(Path(exp.path, job.id, "logs").glob("[!s]*_?.log"))]
        assert shown == ["0 2\n", "1 2\n"]


def test_one_that_is_cancelled_ends_alone_whether_it_runs_or_waits(slurm: Cluster) -> None:
    exp = sweep(["sleep 300"] * FEWEST)
    exp.run(detach=True)
    await_states(exp, ["RUNNING"] * FEWEST)
    exp.cancel("job 1")
    await_states(exp, ["RUNNING", "CANCELLED", *["RUNNING"] * (FEWEST - 2)])
    later = sweep(["true"] * FEWEST, additional_parameters=LATER)
    later.run(detach=True)
    later.cancel("job 0")
    await_states(later, ["CANCELLED", *["PENDING"] * (FEWEST - 1)])
    # By hand, so that nobody but the accounting can tell that it is not just out of sight.
    slurm.call("scancel", numbers(later)[2])
    await_states(later, ["CANCELLED", "PENDING", "CANCELLED", *["PENDING"] * (FEWEST - 3)])


def test_without_accounting_what_was_cancelled_before_it_began_is_known_too(bare_slurm: Cluster) -> None:
    exp = sweep(["true"] * FEWEST, additional_parameters=LATER)
    exp.run(detach=True)
    exp.cancel("job 1")
    await_states(exp, ["PENDING", "CANCELLED", *["PENDING"] * (FEWEST - 2)])
    assert bare_slurm.call("squeue", "-h", "-o", "%i").strip().endswith(f"_[0,2-{FEWEST - 1}]")


def test_one_that_is_queued_again_has_attempts_and_retries_of_its_own(slurm: Cluster, hurried: None) -> None:
    once = '[ "$NEMORUN_ATTEMPT" = 2 ] || {}; echo again'
    texts = [once.format("exit 3"), once.format("sleep 300"), "exit 4", *["sleep 300"] * (FEWEST - 3)]
    exp = sweep(texts, retries=1)
    exp.run(detach=True)
    wait_until(lambda: Path(exp.path, "job 1", "begin.json").exists(), "it runs")
    slurm.call("scontrol", "requeue", numbers(exp)[1])
    await_states(exp, ["SUCCEEDED", "SUCCEEDED", "FAILED", *["RUNNING"] * (FEWEST - 3)])
    assert [record(exp, at)["attempt"] for at in range(3)] == [2, 2, 2]
    assert log(exp, 0, ".attempt2") == log(exp, 1, ".attempt2") == ["again"]
    names = sorted(path.name for path in Path(exp.path, "job 1", "logs").glob("slurm_*"))
    assert names == [f"slurm_{numbers(exp)[1]}{suffix}.log" for suffix in (".attempt2", "")]


def waiting(folder: Path, at: int, trap: str) -> str:
    """A script that does this when it gets a signal, and says when it has begun."""
    begun = f"touch {folder}/{at}.$NEMORUN_ATTEMPT; until [ -e {folder}/go ]; do sleep 0.05; done"
    return f"trap {trap}; {begun}; echo done"


def await_begun(folder: Path, jobs: range, attempt: int) -> None:
    paths = [folder / f"{at}.{attempt}" for at in jobs]
    wait_until(lambda: all(path.exists() for path in paths), f"attempt {attempt} of {jobs} runs", 60)


def test_one_whose_time_is_nearly_up_saves_and_is_queued_again_alone(
    slurm: Cluster, hurried: None, tmp_path: Path
) -> None:
    texts = [waiting(tmp_path, at, "'echo saved; exit 5' USR2") for at in range(FEWEST)]
    exp = sweep(texts, requeue_on_timeout=True, retries=1)
    exp.run(detach=True)
    await_begun(tmp_path, range(FEWEST), 1)
    slurm.call("scancel", "--signal=USR2", "--batch", numbers(exp)[1])
    await_begun(tmp_path, range(1, 2), 2)
    (tmp_path / "go").touch()
    exp.wait()
    assert states(exp) == ["SUCCEEDED"] * FEWEST
    assert [record(exp, at)["attempt"] for at in range(FEWEST)] == [1, 2, *[1] * (FEWEST - 2)]
    assert [log(exp, 1)[-1], log(exp, 1, ".attempt2")] == ["saved", ["done"]]


def test_those_that_are_preempted_are_queued_again(slurm: Cluster, hurried: None, tmp_path: Path) -> None:
    """Four of them have a node each; one waits for the first that ends."""
    exp = sweep(
        [waiting(tmp_path, at, "'exit 9' TERM") for at in range(FEWEST)], partition="spare", exclusive=True
    )
    exp.run(detach=True)
    await_begun(tmp_path, range(4), 1)
    slurm.call("sbatch", "-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    again = lambda: len(list(tmp_path.glob("[0-3].2"))) >= 3  # noqa: E731
    wait_until(again, "they run again, beside the one that has waited", 60)
    (tmp_path / "go").touch()
    exp.wait()
    assert states(exp) == ["SUCCEEDED"] * FEWEST
    assert [record(exp, at)["attempt"] for at in range(FEWEST)] == [2, 2, 2, 2, 1]
    assert not list(exp.path.glob("*/failures"))


# --- sent once ------------------------------------------------------------------------------------------


def test_all_are_told_why_slurm_refuses_them(sbatch: Sbatch) -> None:
    exp = sweep(["true"] * FEWEST, partition="nowhere")
    exp.run()
    assert sbatch.calls() == ["array.sh"]
    assert states(exp) == ["FAILED"] * FEWEST
    assert all("invalid partition specified: nowhere" in record(exp, at)["message"] for at in range(FEWEST))


def test_a_cluster_that_does_not_take_such_an_array_is_given_the_jobs_one_by_one(sbatch: Sbatch) -> None:
    sbatch.does('case $* in *array.sh) exec $real --array=0-1000000 "$@" ;; esac; exec $real "$@"')
    exp = sweep(["true"] * FEWEST)
    exp.run()
    assert states(exp) == ["SUCCEEDED"] * FEWEST
    assert sbatch.calls() == ["array.sh", *["sbatch.sh"] * FEWEST]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders of jobs, where an sbatch of our own answers with numbers, and notes what it is given."""
    calls = tmp_path / "calls"
    (tmp_path / "sbatch").write_text(f'echo "$*" >>{calls}; echo $((7 + $(wc -l <{calls})))')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = [tmp_path / "experiment" / f"job {at}" for at in range(FEWEST)]
    for folder in found:
        folder.mkdir(parents=True)
    return [str(folder) for folder in found]


def submitted(folders: list[str], *, token: str = "t") -> list[Answer]:
    """What is said of equal jobs that are submitted together."""
    orders = [Order(folder=folder, token=f"{token}{at}") for at, folder in enumerate(folders)]
    script = "#!/bin/bash\n#SBATCH --time=5\n\ntrue\n"
    own = {"script": script, "name": "n", "array_name": "a", "comment": "", "dependency": "", "after": ()}
    [array] = arrays([{**own, "folder": order.folder, "token": order.token} for order in orders])
    text = submitting(str(Path(folders[0]).parent), orders, [array])
    done = subprocess.run(["sh", "-s"], input=text.encode(), capture_output=True, check=True)
    said = parse_submitting(done.stdout)
    return [said.get(at, Answer("silent", "")) for at in range(FEWEST)]


def test_an_array_that_was_submitted_is_not_submitted_again(folders: list[str], tmp_path: Path) -> None:
    wanted = [Answer("submitted", f"8_{at}") for at in range(FEWEST)]
    assert submitted(folders) == submitted(folders) == wanted
    assert (tmp_path / "calls").read_text() == "--parsable array.sh\n"
    Path(folders[0], "end.json").touch()
    assert submitted(folders, token="u") == [Answer("submitted", f"9_{at}") for at in range(FEWEST)]
    assert not Path(folders[0], "end.json").exists()


def test_jobs_of_which_one_has_been_tried_are_submitted_one_by_one(
    folders: list[str], tmp_path: Path
) -> None:
    Path(folders[1], "submission").write_text("t1\n")
    assert [answer.text for answer in submitted(folders)] == ["8", "", "9", "10", "11"]
    assert submitted(folders)[1] == Answer("tried", "")
    assert "array.sh" not in (tmp_path / "calls").read_text()


def test_a_job_whose_folder_is_gone_does_not_hold_up_the_others(folders: list[str]) -> None:
    Path(folders[1]).rmdir()
    assert [answer.text for answer in submitted(folders)] == ["8", "", "9", "10", "11"]


def forget(handle: JobHandle) -> None:
    """Lose what is known of a submission, but that it was begun, and when."""
    note = Path(handle.data["folder"], "submission")
    begun = note.stat().st_mtime
    note.write_text(f"{handle.id}\n")
    os.utime(note, (begun, begun))


def finder(exp: run.Experiment, at: int) -> SlurmExecutor:
    found = exp.jobs[at].executors[0]
    assert isinstance(found, SlurmExecutor)
    return found


def test_a_sweep_whose_answer_was_lost_is_found_in_the_queue(slurm: Cluster) -> None:
    exp = sweep(["true"] * FEWEST, comment="my own words", additional_parameters=LATER)
    exp.run(detach=True)
    for at, handle in enumerate(handles(exp)):
        forget(handle)
        assert finder(exp, at).find(handle.id) == handle
        assert Path(handle.data["folder"], "submission").read_text() == f"{handle.id}\n{handle.data['job']}\n"


def test_a_sweep_whose_answer_was_lost_is_found_by_its_words_and_in_the_accounting(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exp = sweep(["true"] * FEWEST)
    exp.run()
    first, *others = handles(exp)
    forget(first)
    assert finder(exp, 0).find(first.id) == first
    for handle in others:
        forget(handle)
        Path(handle.data["folder"], "begin.json").unlink()
    main = first.data["job"].partition("_")[0]
    ended = lambda: slurm.call("sacct", "-X", "-n", f"--jobs={main}").count("COMPLETED") == FEWEST  # noqa: E731
    wait_until(ended, "the accounting knows their end", 60)
    squeue = tmp_path / "squeue"  # as it is when the controller has forgotten them
    squeue.write_text("#!/bin/sh\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for at, handle in enumerate(others, start=1):
        assert finder(exp, at).find(handle.id) == handle


def test_a_sweep_that_is_cut_off_after_sbatch_runs_once(slurm: Cluster, sshd: Sshd, tmp_path: Path) -> None:
    text = 'said=$($real "$@")\necho x >>"$0.calls"\nmkdir "$0.killed" && kill -9 0\necho "$said"'
    wrapper = sshd.wrap("sbatch", text)
    tunnel = run.SSHTunnel(job_dir=str(tmp_path / "over there"), **sshd.where)  # type: ignore[arg-type]
    exp = sweep([f"echo x >>{tmp_path}/{at}; echo {at}" for at in range(FEWEST)], tunnel=tunnel)
    exp.run()
    assert states(exp) == ["SUCCEEDED"] * FEWEST
    assert Path(f"{wrapper}.calls").read_text() == "x\n"
    assert [(tmp_path / str(at)).read_text() for at in range(FEWEST)] == ["x\n"] * FEWEST
    assert [log(exp, at) for at in range(FEWEST)] == [[str(at)] for at in range(FEWEST)]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_launcher_killed_when_it_submits_a_sweep_loses_and_doubles_nothing(
    sbatch: Sbatch, tmp_path: Path, moment: str
) -> None:
    kill = f"kill -9 $(cat {tmp_path}/pid)"
    sbatch.does({"before": f'{kill}; exec $real "$@"', "after": f'$real "$@"; {kill}'}[moment])
    launcher = write(
        tmp_path / "launch.py",
        f"""
        import os, sys
        import nemo_run as run
        open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
        exp = run.Experiment("sweep", run.SlurmExecutor(time="5", packager=run.Packager()))
        for at in range({FEWEST}):
            exp.add(run.Script(inline=f"echo x >>{tmp_path}/{{at}}"), name=f"job {{at}}")
        exp.run()
        """,
    )
    assert python(launcher).returncode == -signal.SIGKILL
    sbatch.does('exec $real "$@"')
    exp = run.Experiment.from_title("sweep")
    exp.wait()
    assert states(exp) == ["SUCCEEDED"] * FEWEST
    assert sbatch.calls() == ["array.sh"]
    assert [(tmp_path / str(at)).read_text() for at in range(FEWEST)] == ["x\n"] * FEWEST
