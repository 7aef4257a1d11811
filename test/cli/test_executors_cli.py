"""`nemo executors`, `nemo executors check` and `nemo factories`, against real services that may be broken."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from dockers import IMAGE
from ports import take_ports
from programs import NEMO, call, failed, strict_json, succeeded, write
from slurms import Cluster
from sshds import Sshd

pytestmark = pytest.mark.usefixtures("home")

WORKSPACE = """
    import nemo_run as run

    @run.cli.factory
    def here(n: int = 1) -> run.Config[run.LocalExecutor]:
        return run.Config(run.LocalExecutor, ntasks_per_node=n)

    @run.cli.factory
    def cluster() -> run.Config[run.SlurmExecutor]:
        tunnel = run.SSHTunnel(host="login", job_dir="{job_dir}")
        return run.Config(run.SlurmExecutor, tunnel=tunnel, partition="debug")
"""


def nemo(folder: Path, *args: Any, **options: Any) -> Any:
    return call([NEMO, *map(str, args)], cwd=folder, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where commands are typed; its workspace has the factories `here` and `cluster`."""
    write(tmp_path / "work" / "workspace.py", WORKSPACE.replace("{job_dir}", str(tmp_path / "jobs")))
    return tmp_path / "work"


def checked(folder: Path, *args: Any, code: int = 0, **options: Any) -> dict[str, dict[str, Any]]:
    """What `nemo executors check … --json` found, by the names of the checks, in their order."""
    done = nemo(folder, "executors", "check", *args, "--json", **options)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    found = {each["name"]: each for each in strict_json(done.stdout)}
    assert code == int(any(each["ok"] is False for each in found.values()))
    return found


def wrong(found: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, each in found.items() if not each["ok"]]


# --- what is registered ---------------------------------------------------------------------------------


def test_executors_of_the_workspace_are_listed_with_file_and_line(folder: Path) -> None:
    printed = succeeded(nemo(folder, "executors")).stdout
    assert [line.split() for line in printed.splitlines()[:3]] == [
        ["name", "makes", "where"],
        ["here", "LocalExecutor", "workspace.py:5"],
        ["cluster", "SlurmExecutor", "workspace.py:9"],
    ]
    assert "DockerExecutor" in printed


def test_factories_are_listed_by_what_they_make_and_by_what_is_above_it(folder: Path) -> None:
    def names(*args: str) -> list[str]:
        return [
            row["name"] for row in strict_json(succeeded(nemo(folder, "factories", *args, "--json")).stdout)
        ]

    assert (
        names() == names("Executor") == names("nemo_run.core.execution.base.Executor") == ["here", "cluster"]
    )
    assert names("LocalExecutor") == ["here"]
    said = failed(nemo(folder, "factories", "LokalExecutor"))
    assert "no factory for 'LokalExecutor'; did you mean 'LocalExecutor'" in said


def test_without_a_workspace_there_is_a_hint_how_to_have_one(tmp_path: Path) -> None:
    assert "`nemo init` writes a workspace.py" in succeeded(nemo(tmp_path, "factories")).stdout
    assert strict_json(succeeded(nemo(tmp_path, "factories", "--json")).stdout) == []


# --- this machine ---------------------------------------------------------------------------------------


def test_a_factory_is_checked_with_its_arguments_and_with_fields(folder: Path) -> None:
    found = checked(folder, "here(n=2)", "launcher=torchrun", f"working_dir={folder}")
    assert list(found) == ["home", "python", "working_dir", "launcher"]
    python, _, version = found["python"]["found"].partition(" is Python ")
    assert Path(python).samefile(sys.executable)
    assert version.startswith("3.")


def test_our_own_executors_are_known_without_the_word_executor(folder: Path) -> None:
    assert list(checked(folder, "local")) == list(checked(folder, "LocalExecutor")) == ["home", "python"]
    assert "server" in wrong(checked(folder, "skypilot", code=1))
    # A factory of that name comes first.
    write(folder / "workspace.py", WORKSPACE.replace("def here", "def docker").replace("{job_dir}", "jobs"))
    assert succeeded(nemo(folder, "executors", "check", "docker")).stdout.startswith("LocalExecutor")


def test_checks_are_lines_that_people_can_read(folder: Path) -> None:
    printed = succeeded(nemo(folder, "executors", "check", "LocalExecutor")).stdout.splitlines()
    assert printed[0] == "LocalExecutor on this machine"
    assert [line.split()[:2] for line in printed[1:]] == [["ok", "home"], ["ok", "python"]]
    done = nemo(folder, "executors", "check", "here", "python_path=/no/python")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-2:] == [
        "failed  python      /no/python cannot be run: No such file or directory",
        "                    next: name one by python_path that is Python 3.10 or newer",
    ]


@pytest.mark.parametrize(
    ("fields", "name", "words"),
    [
        (["python_path=/bin/false"], "python", "/bin/false runs no Python tasks: exit code 1"),
        (["working_dir=/etc/passwd/x"], "working_dir", "/etc/passwd is no folder"),
        (["launcher=torchrun", "python_path=/usr/bin/python3"], "launcher", "-m pip install torch"),
    ],
)
def test_what_this_machine_lacks_is_told(folder: Path, fields: list[str], name: str, words: str) -> None:
    found = checked(folder, "LocalExecutor", *fields, code=1)
    assert name in wrong(found)
    assert words in found[name]["found"]


def test_a_home_that_cannot_be_used_is_told(folder: Path) -> None:
    found = checked(folder, "here", code=1, env={"NEMORUN_HOME": "/proc/nobody"})
    assert wrong(found) == ["home"]
    assert "Set NEMORUN_HOME to a folder of your own" in found["home"]["found"]


def test_a_scheduler_of_torchx_is_made_to_see_whether_it_can_be(folder: Path) -> None:
    assert "log_dir" in checked(folder, "TorchXExecutor")["scheduler"]["found"]
    found = checked(folder, "TorchXExecutor", "scheduler=slurmm", code=1)
    assert wrong(found) == ["scheduler"]
    assert "did you mean 'slurm'" in found["scheduler"]["found"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["her"], "no executor 'her'; did you mean 'here'"),
        (["os.getcwd"], "no executor 'os.getcwd'"),
        (["here", "nods=2"], "unknown argument 'nods'; did you mean 'nodes'?"),
        (["here", "nodes=many"], "'many' is not an int"),
        (["here", "nodes=0"], "LocalExecutor.nodes is 0; give a whole number, 1 or more\n"),
        (["here(m=2)"], "unknown argument 'm'; there are 'n' (here, workspace.py:5)"),
    ],
)
def test_a_name_or_field_that_is_not_there_is_explained(folder: Path, args: list[str], words: str) -> None:
    done = nemo(folder, "executors", "check", *args)
    assert done.returncode in (1, 2)
    assert words in failed(done, code=done.returncode)
    assert done.stdout == ""


# --- Docker ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("engine")
def test_an_engine_tells_its_version_and_whether_it_has_the_image(folder: Path) -> None:
    assert ", version " in checked(folder, "DockerExecutor")["engine"]["found"]
    found = checked(folder, "DockerExecutor", f"container_image={IMAGE}")
    assert list(found) == ["home", "engine", "image"]
    found = checked(
        folder, "DockerExecutor", "container_image=localhost:1/nothing", "runtime=nothing", code=1
    )
    assert wrong(found) == ["image", "runtime"]
    assert "docker login" in found["image"]["found"]


def test_an_engine_that_is_not_there_is_told_with_how_to_start_it(folder: Path) -> None:
    found = checked(folder, "DockerExecutor", "base_url=unix:///no/socket", code=1)
    assert wrong(found) == ["engine"]
    assert "start it (`sudo systemctl start docker`" in found["engine"]["found"]


# --- Slurm ----------------------------------------------------------------------------------------------


def test_a_cluster_over_ssh_is_looked_at_from_the_login_to_a_job(
    folder: Path, slurm: Cluster, sshd: Sshd
) -> None:
    sshd.call("login")
    found = checked(folder, "cluster", f"python_path={sys.executable}")
    assert list(found) == [
        "home", "ssh", "host key", "login", "slurm", "controller", "accounting", "job", "job_dir", "quota",
        "python", "rsync",
    ]  # fmt: skip
    assert found["slurm"]["found"].startswith("slurm")
    assert found["controller"]["found"] == "it answers; partitions: debug (the default), spare, urgent"
    assert found["accounting"]["found"].startswith("on; ")
    assert "to start at" in found["job"]["found"]
    assert " free" in found["job_dir"]["found"]
    assert sshd.logins() == 1
    assert list((folder.parent / "jobs").iterdir()) == []


def test_each_thing_that_a_cluster_lacks_is_told(folder: Path, slurm: Cluster, sshd: Sshd) -> None:
    sshd.call("login")
    sshd.wrap("quota", "echo 'Disk quotas for user: /scratch 9000* over'; exit 1")
    found = checked(
        folder, "cluster", "partition=debugg", "python_path=/no/python", "tunnel.job_dir=/proc/jobs", code=1
    )
    assert wrong(found) == ["job", "job_dir", "quota", "python"]
    assert "nvalid partition" in found["job"]["found"]
    assert found["job_dir"]["found"].startswith("/proc/jobs cannot be written to: ")
    assert "another folder that you may write to and that the nodes see too" in found["job_dir"]["step"]
    assert "/scratch 9000*" in found["quota"]["found"]
    assert "setup_lines" in found["python"]["step"]


def test_a_folder_of_jobs_that_is_read_only_or_not_given_is_told(
    folder: Path, slurm: Cluster, sshd: Sshd, tmp_path: Path
) -> None:
    sshd.call("login")
    (tmp_path / "jobs").write_text("a file where the folder should be")
    found = checked(folder, "cluster", "python_path=python3", code=1)
    assert wrong(found) == ["job_dir"]
    found = checked(folder, "cluster", "tunnel.job_dir=''", code=1)
    assert wrong(found) == ["job_dir"]
    assert "from / on" in found["job_dir"]["step"]


def test_a_cluster_without_accounting_is_as_good(folder: Path, bare_slurm: Cluster) -> None:
    found = checked(folder, "SlurmExecutor", "container_image=/no/image.sqsh")
    assert found["accounting"]["found"].startswith("off; ")
    assert list(found) == ["home", "slurm", "controller", "accounting", "job", "pyxis"]


def test_a_machine_without_slurm_or_without_its_programs_is_told(folder: Path, sshd: Sshd) -> None:
    sshd.call("login")
    programs = folder / "bin"
    programs.mkdir()
    for name in ("sh", "mkdir", "mktemp", "head", "rm", "tr", "df", "awk", "env", "python3"):
        (programs / name).symlink_to(shutil.which(name) or name)
    sshd.restart({"PATH": str(programs)})
    fields = [f"python_path={sys.executable}", f"tunnel.pre_command=export PATH={programs}"]
    found = checked(folder, "cluster", *fields, code=1)
    assert wrong(found) == ["slurm"]
    assert found["slurm"]["found"] == "there is no sbatch on the PATH"
    assert "module load slurm" in found["slurm"]["step"]
    assert found["rsync"]["found"] == "not over there: files go by SFTP, which is slower"


def test_how_far_the_way_in_leads_is_told(folder: Path, sshd: Sshd) -> None:
    sshd.call("login")
    sshd.known_hosts.write_text("")
    found = checked(folder, "cluster", code=1)
    assert list(found) == ["home", "ssh", "host key"]
    assert "ssh-keyscan" in found["host key"]["found"]
    sshd.trust()
    (sshd.folder / "authorized_keys").write_text("")
    found = checked(folder, "cluster", code=1)
    assert list(found) == ["home", "ssh", "host key", "login"]
    assert wrong(found) == ["login"]
    sshd.stop()
    found = checked(folder, "cluster", code=1)
    assert list(found) == ["home", "ssh"]
    assert "Try `ssh -p" in found["ssh"]["found"]


def test_a_controller_that_is_away_is_told(folder: Path, bare_slurm: Cluster) -> None:
    conf, nobody = folder / "slurm.conf", f"SlurmctldPort={take_ports()[0]}"
    conf.write_text(re.sub(r"SlurmctldPort=\d+", nobody, bare_slurm.conf.read_text()) + "MessageTimeout=2\n")
    found = checked(folder, "SlurmExecutor", code=1, env={"SLURM_CONF": str(conf)})
    assert wrong(found) == ["controller"]
    assert "ask its administrator" in found["controller"]["step"]
    assert "job" not in found


# --- a backend of one's own -----------------------------------------------------------------------------


def test_an_executor_of_ones_own_brings_its_own_checks(folder: Path) -> None:
    write(
        folder / "workspace.py",
        """
        import nemo_run as run

        class Mine(run.Executor):
            def probe(self):
                yield run.Check(name="moon", ok=False, found="it is new", step="wait two weeks")

        @run.cli.factory
        def mine() -> Mine:
            return Mine()
        """,
    )
    done = nemo(folder, "executors", "check", "mine")
    assert done.returncode == 1
    assert done.stdout.endswith("failed  moon        it is new\n                    next: wait two weeks\n")
