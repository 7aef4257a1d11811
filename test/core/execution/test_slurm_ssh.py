"""SlurmExecutor against a real cluster, through a real sshd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contracts.slurm import SlurmContract
from slurms import Cluster
from sshds import Sshd

from nemo_run.core.execution.base import Executor
from nemo_run.core.execution.slurm import SlurmExecutor
from nemo_run.core.packaging.pattern import PatternPackager
from nemo_run.core.tunnel.ssh import SSHTunnel

TESTS = Path(__file__).parents[2]


class SSHContract(SlurmContract):
    @pytest.fixture(autouse=True)
    def _login(self, sshd: Sshd, tmp_path: Path) -> None:
        self.sshd = sshd
        self.over_there = tmp_path / "over there"

    def executor(self, **fields: Any) -> Executor:
        tunnel = SSHTunnel(job_dir=str(self.over_there), **self.sshd.where)
        code = PatternPackager(include_pattern=str(TESTS / "*.py"), relative_path=str(TESTS))
        return SlurmExecutor(**{"packager": code, "time": "5", "tunnel": tunnel, **fields})


class TestOverSSH(SSHContract):
    @pytest.fixture(autouse=True)
    def _use(self, slurm: Cluster) -> None:
        self.cluster = slurm


class TestOverSSHWithoutAccounting(SSHContract):
    @pytest.fixture(autouse=True)
    def _use(self, bare_slurm: Cluster) -> None:
        self.cluster = bare_slurm
