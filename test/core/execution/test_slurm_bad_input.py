"""What is wrong for Slurm is said before anything is queued, where it can be known; else Slurm says it."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tasks
from contracts.executor import prepare
from programs import until
from slurms import Cluster
from sshds import Sshd

import nemo_run as run
from nemo_run.core.execution import slurm_check
from nemo_run.core.execution.slurm import SlurmExecutor, SlurmJobDetails
from nemo_run.core.packaging.pattern import PatternPackager
from nemo_run.core.tunnel.base import Tunnel
from nemo_run.core.tunnel.local import LocalTunnel
from nemo_run.core.tunnel.ssh import SSHTunnel
from nemo_run.errors import (
    AuthenticationError,
    ConfigError,
    HostKeyError,
    NemoRunError,
    SubmitError,
    TunnelError,
    UnsupportedError,
)

pytestmark = pytest.mark.usefixtures("home")

TASK = run.Partial(tasks.double, 21)
#: A Python that says of itself that it is 3.6.
OLD = """#!/bin/sh
shift
exec {python} -c 'import sys
sys.version_info, sys.version = (3, 6, 8, "final", 0), "3.6.8 (default)"
exec(sys.argv[1])' "$@"
"""


def executor(**fields: Any) -> SlurmExecutor:
    return SlurmExecutor(**{"packager": run.Packager(), "time": "5", **fields})


def remote(tunnel: Tunnel, **fields: Any) -> SlurmExecutor:
    """An executor whose code is sent, so that its jobs run elsewhere."""
    tests = str(Path(tasks.__file__).parent)
    code = PatternPackager(include_pattern=f"{tests}/tasks.py", relative_path=tests)
    return executor(**{"packager": code, "tunnel": tunnel, **fields})


def request(task: Any, given: SlurmExecutor) -> dict[str, Any]:
    """What is asked for one job."""
    found: dict[str, Any] = prepare(task, given).request
    return found


def look(tunnel: Tunnel, *requests: dict[str, Any]) -> list[slurm_check.Problem]:
    """What the checks find."""
    script = slurm_check.checking(requests).encode()
    return slurm_check.parse_checking(tunnel.run(["sh", "-s"], stdin=script).stdout, requests)


def program(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def login(tmp_path: Path) -> LocalTunnel:
    """A tunnel to a login node: this machine, with a folder of its own for experiments."""
    return LocalTunnel(job_dir=str(tmp_path / "over there" / "experiments"))


@pytest.fixture
def slurm_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that are called as Slurm's are, first on PATH."""
    folder = tmp_path / "slurm"
    for name in ("sbatch", "squeue", "scancel"):
        program(folder / name, "#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


# --- the checks -----------------------------------------------------------------------------------------


def test_a_cluster_that_has_all_is_told_nothing_and_its_folder_is_made(
    login: LocalTunnel, slurm_commands: Path, tmp_path: Path
) -> None:
    given = remote(
        login,
        python_path=sys.executable + "3",
        job_details=SlurmJobDetails(folder=str(tmp_path / "logs of 'all' $jobs")),
        container_image="some/image",
        container_mounts=[f"{tmp_path}:/data", "/$nemo_run/cache:/cache"],
    )
    assert look(login, request(TASK, given), request(TASK, remote(login))) == []
    assert os.listdir(login.job_dir) == []
    assert os.listdir(tmp_path / "logs of 'all' $jobs") == []


def test_any_number_of_jobs_is_one_command_and_each_thing_is_looked_at_once(login: LocalTunnel) -> None:
    asked = request(TASK, remote(login, python_path="/opt/python"))
    script = slurm_check.checking([asked] * 300)
    assert script == slurm_check.checking([asked])
    assert script.count("/opt/python") == 1


def test_all_that_is_wrong_is_said_at_once_each_with_the_next_step(
    login: LocalTunnel, slurm_commands: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (slurm_commands / "squeue").unlink()
    old = program(tmp_path / "an 'old' one" / "python3", OLD.format(python=sys.executable))
    (tmp_path / "file").touch()
    requests = [
        request(TASK, remote(login, python_path=old)),
        request(TASK, remote(login, python_path="/no/such/python")),
        request(TASK, remote(LocalTunnel(job_dir=str(tmp_path / "file" / "below")))),
        request(TASK, remote(login, container_image="/no.sqsh", container_mounts=["/no/data:/data:ro"])),
    ]
    with_slurm = [problem.text for problem in look(login, *requests) if "on the PATH" not in problem.text]
    assert len(with_slurm) == 5
    with pytest.raises(SubmitError) as caught:
        slurm_check.check(login, requests)
    said = str(caught.value)
    assert f"Python tasks cannot run by {old!r} (it is Python 3.6.8); nemo_run needs Python 3.10" in said
    assert "Python tasks cannot run by '/no/such/python' (env: " in said
    assert f"job_dir {str(tmp_path / 'file' / 'below')!r} cannot be written to (mkdir: " in said
    assert "Not a directory); make room there, or give another folder" in said
    assert "/no/data" not in said
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.split("'")[1] for text in warned] == ["/no.sqsh", "/no/data"]


def test_commands_of_slurm_that_are_missing_are_named(
    login: LocalTunnel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "few programs"
    folder.mkdir()
    for name in ("sh", "mkdir", "mktemp", "head", "rm", "env", "tr", "python3", "sbatch"):
        (folder / name).symlink_to(shutil.which(name) or sys.executable)
    monkeypatch.setenv("PATH", str(folder))
    [problem] = look(login, request(TASK, remote(login)))
    assert problem.fatal
    assert problem.text.startswith("there is no squeue on the PATH; submit where Slurm's commands are")


@pytest.mark.parametrize(("options", "words"), [("size=64k", "No space left"), ("ro", "Read-only file")])
def test_a_full_disk_and_one_that_is_read_only_are_said(
    slurm_commands: Path, tmp_path: Path, options: str, words: str
) -> None:
    with mounted(tmp_path / "disk", options) as disk:
        tunnel = LocalTunnel(job_dir=f"{disk}/experiments")
        [problem] = look(tunnel, request(TASK, remote(tunnel)))
        assert problem.fatal
        assert words in problem.text
        assert not list(disk.rglob("*.probe*"))


def test_a_limit_to_the_size_of_files_is_said(slurm_commands: Path, login: LocalTunnel) -> None:
    script = slurm_check.checking(requests := [request(TASK, remote(login))])
    limited = login.run(["sh", "-c", "ulimit -f 100; sh -s"], stdin=script.encode())
    [problem] = slurm_check.parse_checking(limited.stdout, requests)
    assert problem.fatal
    assert "cannot be written to (" in problem.text
    assert os.listdir(login.job_dir) == []


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """A small file system of its own."""
    path.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if (done := subprocess.run(argv, capture_output=True, text=True)).returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_what_setup_lines_may_bring_is_a_warning_and_a_known_path_is_looked_along(
    login: LocalTunnel, slurm_commands: Path, tmp_path: Path
) -> None:
    old = program(tmp_path / "bin" / "python3", OLD.format(python=sys.executable))
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    cases: dict[str, tuple[Any, dict[str, Any]]] = {
        "plain": (TASK, {"python_path": "python3"}),
        "path": (TASK, {"python_path": "python3", "env_vars": {"PATH": path}}),
        "lines": (TASK, {"python_path": old, "setup_lines": "module load it"}),
        "unknown": (TASK, {"python_path": old, "env_vars": {"PATH": run.Expand("$HOME/bin")}}),
        "container": (TASK, {"python_path": old, "container_image": "some/image"}),
        "script": (run.Script(inline="true"), {"python_path": old}),
    }
    fatal = {
        name: [problem.fatal for problem in look(login, request(task, remote(login, **fields)))]
        for name, (task, fields) in cases.items()
    }
    assert fatal == {
        "plain": [], "path": [True], "lines": [False], "unknown": [False], "container": [], "script": [],
    }  # fmt: skip


def test_what_a_login_prints_on_its_own_is_no_finding(login: LocalTunnel, slurm_commands: Path) -> None:
    requests = [request(TASK, remote(login, python_path="/no/such/python"))]
    printed = b"Welcome!\ncheck your quota\ncheck 99 problems\ncheck 2 gone. \nbye\n"
    [problem] = slurm_check.parse_checking(printed, requests)
    assert "by '/no/such/python' (gone); " in problem.text


def test_over_ssh_the_other_machine_is_looked_at(sshd: Sshd, bare_slurm: Cluster, tmp_path: Path) -> None:
    tunnel = SSHTunnel(job_dir=str(tmp_path / "new" / "experiments"), **sshd.where)
    assert look(tunnel, request(TASK, remote(tunnel))) == []
    assert (tmp_path / "new" / "experiments").is_dir()
    [problem] = look(tunnel, request(TASK, remote(tunnel, python_path="/no/such/python")))
    assert "No such file or directory" in problem.text


# --- from the user's side -------------------------------------------------------------------------------


def refused(kind: type[NemoRunError], cluster: Cluster, given: SlurmExecutor) -> str:
    """What is said of a job that cannot be run; nothing has been queued then."""
    before = cluster.call("squeue", "-h", "-a", "-t", "all", "-o", "%i")
    with pytest.raises(kind) as caught:
        run.run(run.Script(inline="true"), given, name="job")
    assert cluster.call("squeue", "-h", "-a", "-t", "all", "-o", "%i") == before
    return str(caught.value)


@pytest.fixture
def strict(slurm: Cluster) -> Iterator[Cluster]:
    """A cluster that wants to know who pays."""
    plain = slurm.conf.read_text()
    slurm.call("sacctmgr", "-i", "add", "account", "research")
    slurm.call("sacctmgr", "-i", "add", "user", getpass.getuser(), "account=research")
    change(slurm, plain + "AccountingStorageEnforce=associations,limits,qos\n")
    yield slurm
    change(slurm, plain)


def change(cluster: Cluster, conf: str) -> None:
    """Have the controller run with other settings."""
    cluster.conf.write_text(conf)
    cluster.slurmctld.stop()
    cluster.slurmctld.start()
    until(lambda: cluster.call("sinfo", "-h", check=False))


def test_what_slurm_refuses_is_said_in_its_own_words(strict: Cluster) -> None:
    refusals: dict[str, dict[str, Any]] = {
        "invalid partition specified: nowhere": {"partition": "nowhere"},
        "Invalid account or account/partition combination": {"account": "nobody"},
        "Invalid qos specification": {"qos": "golden"},
        "Invalid feature specification": {"constraint": "quantum"},
        "Invalid generic resource": {"gres": "fpga:1"},
    }
    for words, fields in refusals.items():
        assert words in refused(NemoRunError, strict, executor(**{"account": "research", **fields}))


def test_a_host_that_cannot_be_reached_has_changed_or_refuses_us_is_said(
    sshd: Sshd, bare_slurm: Cluster, tmp_path: Path
) -> None:
    def through(**where: Any) -> SlurmExecutor:
        return remote(SSHTunnel(job_dir=str(tmp_path / "there"), **{**sshd.where, **where}))

    other = str(sshd.new_key(tmp_path / "other"))
    assert other in refused(AuthenticationError, bare_slurm, through(identity=other))
    sshd.stop()
    said = refused(TunnelError, bare_slurm, through())
    assert str(sshd.port) in said
    sshd.new_key(sshd.folder / "host_key")
    sshd.start()
    said = refused(HostKeyError, bare_slurm, through())
    assert "shows a key other than the one that is known for it" in said
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("time", ["two hours", "1:2:3:4", "-5", "", "10m", "0", "1-", "00:00:00"])
def test_a_walltime_that_is_none_is_refused_where_it_is_written(time: str) -> None:
    with pytest.raises(ConfigError, match=r"SlurmExecutor\.time is "):
        executor(time=time)


def test_an_array_of_a_group_is_refused_before_anything_is_written(bare_slurm: Cluster, home: Path) -> None:
    experiment = run.Experiment("both", executor(array="0-3"))
    experiment.add([run.Script(inline="true"), run.Script(inline="true")], name="group")
    with pytest.raises(UnsupportedError, match="group 'group' has an array"):
        experiment.run()
    assert not bare_slurm.call("squeue", "-h", "-a", "-o", "%i")
