"""SlurmExecutor against a real cluster of four nodes, from its login node."""

from __future__ import annotations

import pytest
from contracts.slurm import SlurmContract
from slurms import Cluster


class TestWithAccounting(SlurmContract):
    @pytest.fixture(autouse=True)
    def _use(self, slurm: Cluster) -> None:
        self.cluster = slurm


class TestWithoutAccounting(SlurmContract):
    @pytest.fixture(autouse=True)
    def _use(self, bare_slurm: Cluster) -> None:
        self.cluster = bare_slurm
