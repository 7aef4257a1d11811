"""The servers that other tests rely on are what these say they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from programs import until
from slurms import Cluster
from sshds import Sshd


def ssh(sshd: Sshd, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [
        "ssh",
        "-F",
        str(sshd.ssh_config),
        "-p",
        str(sshd.port),
        "-i",
        str(sshd.identity),
        "-oBatchMode=yes",
    ]
    return subprocess.run(
        [*argv, f"{sshd.user}@{sshd.host}", *words], capture_output=True, text=True, timeout=60
    )


def test_a_login_node_reaches_its_cluster(slurm: Cluster, sshd: Sshd) -> None:
    done = ssh(sshd, "sinfo", "-h", "-o", "%R-%D-%t")
    assert (done.stderr, sorted(done.stdout.split())) == (
        "",
        ["debug-4-idle", "spare-4-idle", "urgent-4-idle"],
    )


def test_a_login_node_without_accounting_says_so(bare_slurm: Cluster, sshd: Sshd) -> None:
    done = ssh(sshd, "sacct")
    assert "Slurm accounting storage is disabled" in done.stderr


@pytest.mark.parametrize("kind", ["slurm", "bare_slurm"])
def test_jobs_get_gpus_and_containers(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    cluster: Cluster = request.getfixturevalue(kind)
    out = tmp_path / "out"
    command = "srun -N1 --container-image=img --container-mounts=/a:/b --no-container-mount-home env"
    cluster.call("sbatch", "--nodes=1", "--gres=gpu:2", f"--output={out}", f"--wrap={command}")
    until(lambda: out.exists() and not cluster.call("squeue", "-h"))
    seen = dict(line.partition("=")[::2] for line in out.read_text().splitlines())
    assert seen["CUDA_VISIBLE_DEVICES"] == "0,1"
    pyxis = {name: seen[f"PYXIS_DOUBLE_{name}"] for name in ("IMAGE", "MOUNTS", "MOUNT_HOME", "WRITABLE")}
    assert pyxis == {"IMAGE": "img", "MOUNTS": "/a:/b", "MOUNT_HOME": "0", "WRITABLE": "unset"}


def test_finished_jobs_are_in_the_accounting(slurm: Cluster) -> None:
    job = slurm.call("sbatch", "--parsable", "--output=/dev/null", "--wrap=exit 7").strip()
    ask = ("sacct", "-n", "-X", "-P", "-j", job, "-o", "State,ExitCode")
    until(lambda: slurm.call(*ask) == "FAILED|7:0\n")


def test_a_cluster_comes_back_from_what_a_test_did_to_it(slurm: Cluster) -> None:
    slurm.call("sbatch", "--output=/dev/null", "--wrap=sleep 1000")
    slurm.call("scontrol", "update", "nodename=node1", "state=down", "reason=test")
    slurm.slurmctld.stop()
    slurm.clear()
    assert slurm.call("squeue", "-h") == ""
    assert slurm.call("sinfo", "-h", "-p", "debug", "-o", "%D %t") == "4 idle\n"


def test_connections_are_cut_and_the_server_goes_on(sshd: Sshd) -> None:
    argv = ["ssh", "-F", str(sshd.ssh_config), "-p", str(sshd.port), "-i", str(sshd.identity)]
    waiting = subprocess.Popen(
        [*argv, f"{sshd.user}@{sshd.host}", "echo up; sleep 1000"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with waiting:
        assert waiting.stdout
        assert waiting.stdout.readline() == b"up\n"
        assert sshd.cut() >= 1
        assert waiting.wait(30) == 255
    assert ssh(sshd, "echo", "again").stdout == "again\n"
    sshd.stop()
    assert "Connection refused" in ssh(sshd, "true").stderr
    sshd.restart({"GIVEN": "a b"})
    assert ssh(sshd, 'echo "$GIVEN"').stdout == "a b\n"
