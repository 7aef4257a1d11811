"""Submitting many jobs to a Slurm cluster over SSH, beside `sbatch` in a loop of a shell over there."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import FOLDER, Group, Row, check, pairs, seconds

if TYPE_CHECKING:
    from groups import Sizes

_LOOP = """\
set -e
cd {folder}
at=0
while [ $at -lt {count} ]; do
    sbatch --parsable job.sh >>numbers </dev/null
    at=$((at + 1))
done
"""
#: Nothing is to run, so that nothing but the submission is measured.
_JOB = "#!/bin/bash\n#SBATCH --time=5 --begin=now+1hour --output=/dev/null\ntrue\n"
_LATER = {"begin": "now+1hour"}


def slurm(sizes: Sizes) -> Group:
    """Submissions and looks."""
    count = sizes.slurm_jobs
    group = Group(
        title="Slurm over SSH",
        how=f"{count} jobs of a private cluster of four nodes, through an sshd on this machine; the floor is"
        " `sbatch` in a loop of a shell, which keeps no record, brings no code and asks nothing. Our time is"
        " that of `exp.run(detach=True)` as a whole: plans, records, upload, submission.",
    )
    if not shutil.which("sbatch") or not shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin"):
        print("Slurm: left out, as there is no sbatch or no sshd (`make services`)")
        return group
    sys.path.insert(0, str(FOLDER.parent / "test"))
    with (
        tempfile.TemporaryDirectory(prefix="nemo-bench-") as folder,
        _services(Path(folder)) as (cluster, sshd),
    ):
        group.rows = _rows(cluster, sshd, Path(folder), count, sizes)
    return group


def _rows(cluster: Any, sshd: Any, folder: Path, count: int, sizes: Sizes) -> list[Row]:
    import nemo_run as run

    tunnel = run.SSHTunnel(job_dir=str(folder / "there"), **sshd.where)
    executor = run.SlurmExecutor(
        tunnel=tunnel, packager=run.Packager(), time="5", additional_parameters=_LATER
    )
    looks: list[float] = []

    def ours(length: int) -> float:
        exp = run.Experiment("sweep", clean_mode=True)
        for chain in range(count // length):
            before: list[str] = []
            for link in range(length):
                task = run.Script(inline="true")
                before = [exp.add(task, executor, name=f"{chain}-{link}", dependencies=before)]
        taken = seconds(lambda: exp.run(detach=True))
        looks.append(seconds(lambda: run.Experiment.from_id(exp.id).status(return_dict=True)))
        _clear(cluster)
        return taken

    def floor() -> float:
        (folder / "job.sh").write_text(_JOB)
        (folder / "loop.sh").write_text(_LOOP.format(folder=folder, count=count))
        taken = seconds(lambda: check(["sh", str(folder / "loop.sh")]))
        _clear(cluster)
        return taken

    ours(1)  # sends this nemo_run
    rows = [
        pairs(f"submit {count} jobs", lambda: ours(1), floor, count=sizes.runs, goal="≤ 1.5×"),
        pairs("… in chains of 7", lambda: ours(7), floor, count=sizes.runs, goal="≤ 1.5×"),
    ]
    rows.append(Row(what=f"status of {count} jobs that wait", ours=statistics.median(looks)))
    tunnel.close()
    return rows


def _clear(cluster: Any) -> None:
    from programs import until

    cluster.call("scancel", "--state=PENDING", check=False)
    until(lambda: not cluster.call("squeue", "-h", "-o", "%i").strip(), 120)


@contextlib.contextmanager
def _services(folder: Path) -> Iterator[tuple[Any, Any]]:
    from slurms import running_cluster
    from sshds import running_sshd

    before = {name: os.environ.get(name) for name in ("HOME", "SLURM_CONF", "NEMORUN_HOME")}
    with running_cluster(accounting=True) as cluster:
        os.environ |= {"NEMORUN_HOME": str(folder / "home"), **cluster.env}
        try:
            with running_sshd() as sshd:
                os.environ["HOME"] = str(sshd.home)
                yield cluster, sshd
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
