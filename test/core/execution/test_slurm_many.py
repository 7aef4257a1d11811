"""Hundreds of jobs of a real cluster over a real sshd: few round trips, each sent once, in their order."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from slurms import Cluster
from sshds import Sshd

import nemo_run as run
from nemo_run.core.execution.base import AppState
from nemo_run.core.execution.slurm import SlurmExecutor

CHAINS, LENGTH = 40, 7
#: `wc` because each upload counts its bytes.
_COUNTED = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "wc", "rsync")


class Counted:
    """Programs on the path of an sshd that note each of their calls, and then are the real ones."""

    def __init__(self, folder: Path) -> None:
        self._notes = folder / "calls"
        self.path = folder / "counted"
        self.path.mkdir()
        self._notes.touch()
        for name in _COUNTED:
            wrapper = self.path / name
            wrapper.write_text(f'#!/bin/sh\necho {name} >>{self._notes}\nexec {shutil.which(name)} "$@"\n')
            wrapper.chmod(0o755)

    def calls(self) -> Counter[str]:
        """How often each has been called, since this was asked last."""
        counted = Counter(self._notes.read_text().split())
        self._notes.write_text("")
        return counted


@pytest.fixture
def counted(sshd: Sshd, tmp_path: Path) -> Counted:
    programs = Counted(tmp_path)
    sshd.restart({"PATH": f"{programs.path}:{os.environ['PATH']}"})
    return programs


def _executor(sshd: Sshd, folder: Path, **fields: object) -> SlurmExecutor:
    tunnel = run.SSHTunnel(job_dir=str(folder / "over there"), **sshd.where)  # type: ignore[arg-type]
    return SlurmExecutor(**{"tunnel": tunnel, "packager": run.Packager(), "time": "5", **fields})  # type: ignore[arg-type]


def _chains(
    title: str, executor: SlurmExecutor, task: run.Script, chains: int, length: int
) -> run.Experiment:
    exp = run.Experiment(title, clean_mode=True)
    for chain in range(chains):
        before: list[str] = []
        for link in range(length):
            before = [exp.add(task, executor, name=f"{chain}-{link}", dependencies=before)]
    return exp


def _states(exp: run.Experiment) -> set[AppState]:
    return {entry["status"] for entry in exp.status(return_dict=True).values()}


def test_280_jobs_in_40_chains_take_one_upload_and_less_than_20_commands(
    slurm: Cluster, sshd: Sshd, counted: Counted, home: Path, tmp_path: Path
) -> None:
    executor = _executor(sshd, tmp_path, additional_parameters={"begin": "now+1hour"})
    _chains("first", executor, run.Script(inline="true"), 1, 1).run(detach=True)  # sends this nemo_run
    slurm.call("scancel", "--state=PENDING")
    counted.calls()
    exp = _chains("many", executor, run.Script(inline="true"), CHAINS, LENGTH)
    sessions, logins = sshd.sessions(), sshd.logins()
    exp.run(detach=True)
    calls = counted.calls()
    assert calls["sbatch"] == CHAINS * LENGTH
    assert (calls["wc"], calls["rsync"]) == (1, 0)
    assert sshd.logins() - logins <= 10
    assert sshd.sessions() - sessions <= 20
    queue = slurm.call("squeue", "-h", "-t", "PENDING", "-o", "%k|%E").splitlines()
    assert len({line.partition("|")[0] for line in queue}) == CHAINS * LENGTH == len(queue)
    assert sum("afterok:" in line for line in queue) == CHAINS * (LENGTH - 1)

    again = run.Experiment.from_id(exp.id)
    assert _states(again) == {AppState.PENDING}
    calls = counted.calls()
    assert calls["squeue"] + calls["sacct"] + calls["scontrol"] <= 2


def test_the_jobs_of_chains_that_are_sent_together_run_once_and_in_order(
    slurm: Cluster, sshd: Sshd, home: Path, tmp_path: Path
) -> None:
    noted = tmp_path / "noted"
    task = run.Script(inline=f'echo "$NEMORUN_JOB_ID" >>{noted}')
    exp = _chains("order", _executor(sshd, tmp_path), task, 3, 3)
    exp.run()
    ran = noted.read_text().split()
    assert sorted(ran) == sorted(job.id for job in exp.jobs)
    for chain in range(3):
        assert [job for job in ran if job.startswith(f"{chain}-")] == [f"{chain}-{link}" for link in range(3)]


def test_of_jobs_sent_together_a_refused_one_takes_down_its_dependents_alone(
    slurm: Cluster, sshd: Sshd, home: Path, tmp_path: Path
) -> None:
    exp = run.Experiment("refused", clean_mode=True, raise_on_failure=False)
    good, bad = _executor(sshd, tmp_path), _executor(sshd, tmp_path, partition="nowhere")
    task = run.Script(inline="true")
    exp.add(task, good, name="first")
    exp.add(task, bad, name="refused", dependencies=["first"])
    exp.add(task, good, name="after", dependencies=["refused"])
    exp.add(task, good, name="beside", dependencies=["first"])
    exp.run()
    found = {job_id: entry["status"] for job_id, entry in exp.status(return_dict=True).items()}
    assert found == {
        "first": AppState.SUCCEEDED,
        "refused": AppState.FAILED,
        "after": AppState.CANCELLED,
        "beside": AppState.SUCCEEDED,
    }
    messages = {job_id: entry["message"] for job_id, entry in exp.status(return_dict=True).items()}
    assert "invalid partition specified: nowhere" in messages["refused"]
    assert messages["after"] == "never started, because job 'refused' is FAILED"


def test_a_dry_run_shows_what_a_job_will_wait_for(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = run.Experiment("dry")
    executor = SlurmExecutor(dependencies=["17"], packager=run.Packager())
    exp.add(run.Script(inline="true"), executor, name="prepare")
    exp.add(run.Script(inline="true"), executor, name="train", dependencies=["prepare"])
    exp.dryrun()
    shown = capsys.readouterr().out
    assert "\n#SBATCH --dependency=afterok:17\n" in shown.partition("# --- job train")[0]
    line = "\n# sbatch --dependency='afterok:17:<number of prepare>' --kill-on-invalid-dep=yes\n"
    assert line in shown.partition("# --- job train")[2]
