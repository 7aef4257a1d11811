"""What SlurmExecutor does on every cluster, however that is reached: `ExecutorContract` for Slurm."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from contracts.executor import ExecutorContract
from slurms import Cluster

from nemo_run.core.execution.base import Executor, JobHandle, Plan
from nemo_run.core.execution.slurm import SlurmExecutor
from nemo_run.core.packaging.base import Packager


class SlurmContract(ExecutorContract):
    """What holds on every cluster, however it is reached."""

    patience = 60.0
    cluster: Cluster

    def executor(self, **fields: Any) -> Executor:
        return SlurmExecutor(**{"packager": Packager(), "time": "5", **fields})

    def refuse(self, plan: Plan) -> tuple[Plan, str]:
        member = plan.spec.members[0]
        assert isinstance(member, SlurmExecutor)
        member.partition = "nowhere"
        return member.plan(plan.spec), "invalid partition specified: nowhere"

    def lose(self, handle: JobHandle, job_dir: Path) -> None:
        shutil.rmtree(job_dir)
        shutil.rmtree(handle.data["folder"], ignore_errors=True)
        job = handle.data["job"]
        gone = lambda: f"{job}\n" not in self.cluster.call("squeue", "-h", "-a", "-t", "all", "-o", "%A")  # noqa: E731
        self.wait_until(gone, "Slurm's controller has forgotten it")
        if self.cluster.accounting:
            socket = f"--socket={self.cluster.folder}/db.sock"
            statement = f"delete from slurm.nemo_job_table where id_job={job}"
            subprocess.run(["mariadb", "--no-defaults", "--user=root", socket, "-e", statement], check=True)

    #: Less those that init has adopted: this cluster tracks processes without cgroups, and loses them.
    family = "sleep {word} & setsid sleep {word} & sh -c 'sleep {word} & sleep {word}' &"
