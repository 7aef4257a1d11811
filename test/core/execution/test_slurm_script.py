"""The batch scripts of SlurmExecutor, word for word, and that Slurm reads in them what was meant."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contracts.executor import HOSTILE
from hypothesis import given
from hypothesis import strategies as st
from slurms import Cluster
from tasks import double

import nemo_run
import nemo_run as run
from nemo_run.config import Partial, Script
from nemo_run.core.execution.base import JobHandle, JobSpec
from nemo_run.core.execution.macros import ExecutorMacros
from nemo_run.core.execution.slurm import SlurmExecutor, SlurmJobDetails
from nemo_run.core.execution.slurm_script import MACROS, directive, render_sbatch
from nemo_run.core.packaging.base import Packager
from nemo_run.core.tunnel.ssh import SSHTunnel
from nemo_run.errors import ConfigError, UnsupportedError
from nemo_run.run.app import make_spec
from nemo_run.run.job import make_job
from nemo_run.run.records import ExperimentRecord
from nemo_run.shell import Expand

GOLDEN = Path(__file__).with_name("sbatch")
FOLDER = Path("/home/me/.run/experiments/exp/exp_1")


def executor(**fields: Any) -> SlurmExecutor:
    defaults = {"account": "llm_team", "packager": Packager(), "python_path": "/usr/bin/python3"}
    return SlurmExecutor(**{**defaults, **fields})


def spec(task: Any, *executors: SlurmExecutor, after: tuple[str, ...] = ()) -> JobSpec:
    """The specification of a job called `train`."""
    job = make_job(
        task, list(executors), name="train", taken=[], plugins=[], tail_logs=False, dependencies=[]
    )
    experiment = ExperimentRecord(
        id="exp_1", title="exp", created=0.0, jobs=[], cwd="/home/me/code", python_path=[], versions={}
    )
    handles = tuple(JobHandle(executor="", id=number, data={"job": number}) for number in after)
    return make_spec(job, job.trees(), experiment, FOLDER, depends_on=handles)


def hello(*words: str, **fields: Any) -> Script:
    return Script(path="/home/me/hello.sh", args=list(words), **fields)


SSH = SSHTunnel(host="login", user="me", job_dir="/scratch/me/runs", identity="/home/me/key")

SHAPES: dict[str, Callable[[], JobSpec]] = {
    "script": lambda: spec(hello("a b", "$HOME"), executor()),
    "python": lambda: spec(Partial(double, 21), executor(time="1-00:00:00", partition="debug")),
    "resources": lambda: spec(
        hello(),
        executor(
            nodes=2, ntasks_per_node=2, gpus_per_node=2, memory_limit="1.5G", cpu_limit=2, timeout=90,
            exclude="node3", qos="", exclusive=True, additional_parameters={"nodelist": "node[0-1]"},
        ),
    ),
    "container": lambda: spec(
        hello(),
        executor(
            container_image="nvcr.io/nvidia/nemo:24.07", container_env=["PATH", "LD_LIBRARY_PATH"],
            container_mounts=["/data:/data", "/$nemo_run/cache:/cache"], srun_args=["--mpi=pmix"],
            nodes=2,
        ),
    ),
    "torchrun": lambda: spec(
        Partial(double, 21), executor(nodes=2, ntasks_per_node=8, gpus_per_node=2, launcher="torchrun")
    ),
    "array": lambda: spec(hello(), executor(array="0-9%2")),
    "signal": lambda: spec(hello(), executor(signal="USR1@120", retries=3)),
    "dependencies": lambda: spec(
        hello(),
        executor(dependencies=["slurm_tunnel://nemo_run/12"], dependency_type="afterany"),
        after=("13",),
    ),
    "group": lambda: spec(
        [hello("server"), hello("client")],
        executor(nodes=2),
        executor(ntasks_per_node=4, env_vars={"PATH": "/x"}),
    ),
    "heterogeneous": lambda: spec(
        [hello("big"), hello("small"), hello("beside")],
        *(
            executor(heterogeneous=True, het_group_indices=[0, 1, 1], nodes=nodes, gpus_per_node=gpus)
            for nodes, gpus in ((2, 2), (1, None), (1, None))
        ),
    ),
    "expanded": lambda: spec(
        hello(
            Expand("$SLURM_NODEID"), f"$${ExecutorMacros.HEAD_NODE_IP_VAR}:1", ":",
            f"$${ExecutorMacros.NODE_RANK_VAR}", ExecutorMacros.NUM_NODES_VAR, ExecutorMacros.group_host(1),
        ),
        executor(
            env_vars={
                "RANK": Expand("$SLURM_PROCID"),
                "HEAD": Expand("$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n1)"),
            },
        ),
    ),
    "over_ssh": lambda: spec(
        Partial(double, 21),
        executor(
            tunnel=SSH, packager=run.GitArchivePackager(), python_path=None, setup_lines="module load cuda\n"
        ),
    ),
    "named": lambda: spec(
        hello(),
        executor(
            comment='it is "50%" \\ done',
            job_details=SlurmJobDetails(job_name="é b", folder="/scratch/my logs"),
            network="Instances=1", constraint="[rack1*2&rack2*4]", open_mode="truncate",
        ),
    ),
}  # fmt: skip


@pytest.fixture
def scripts_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a script lies is looked up on this machine; the folder of the golden texts is not on it."""
    monkeypatch.setattr(os.path, "exists", lambda path: True)


@pytest.mark.usefixtures("scripts_exist")
@pytest.mark.parametrize("name", SHAPES)
def test_a_script_is_what_a_person_would_have_written(name: str) -> None:
    text = settled(render_sbatch(SHAPES[name]()))
    path = GOLDEN / f"{name}.sh"
    if "NEMO_RUN_REWRITE" in os.environ:
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", SHAPES)
def test_slurm_and_bash_accept_it(name: str, slurm: Cluster) -> None:
    path = GOLDEN / f"{name}.sh"
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    for left_out in ("account=", "dependency=", "segment=", "network=", "constraint="):
        # What only the cluster of whoever wrote it has.
        text = "".join(line for line in text.splitlines(True) if not line.startswith(f"#SBATCH --{left_out}"))
    done = subprocess.run(
        ["sbatch", "--test-only"], input=text, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr


def settled(text: str) -> str:
    """The same wherever this nemo_run lies, and whatever its version."""
    from nemo_run.core.execution.slurm_submit import library_name

    return text.replace(str(Path(nemo_run.__file__).parent), "/opt/nemo_run").replace(
        library_name(), "VERSION"
    )


# --- single words ---------------------------------------------------------------------------------------


def test_sbatch_reads_an_option_as_it_was_given(slurm: Cluster, tmp_path: Path) -> None:
    comments = [word for word in HOSTILE if word.strip() and word.isprintable() and len(word) < 100]
    comments += [word for word in HOSTILE if "\t" in word or "\udc80" in word]
    for comment in comments:
        script = f"#!/bin/bash\n{directive('comment', f'<{comment}>')}true\n"
        done = subprocess.run(
            ["sbatch", "--parsable", "--hold", f"--output={tmp_path}/log"],
            input=script.encode(errors="surrogateescape"),
            capture_output=True,
            check=True,
        )
        shown = subprocess.run(
            ["squeue", "-h", "-o", "%k", "-j", done.stdout.decode().strip()], capture_output=True, check=True
        )
        assert shown.stdout.decode(errors="surrogateescape") == f"<{comment}>\n"


@given(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"])))
def test_an_option_is_one_line_whatever_it_holds(value: str) -> None:
    line = directive("comment", value)
    assert line.startswith("#SBATCH --comment=")
    assert line.endswith("\n")
    assert line.count("\n") == 1


def test_an_option_that_no_line_can_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"comment of sbatch cannot be given 'a\\nb'"):
        directive("comment", "a\nb")


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ("plain", "plain"),
        (ExecutorMacros.HEAD_NODE_IP_VAR, "head_node_ip"),
        (f"$${ExecutorMacros.HEAD_NODE_IP_VAR}:29500", Expand("${head_node_ip}:29500")),
        (f"a`b $${ExecutorMacros.NODE_RANK_VAR}_1", Expand("a\\`b ${SLURM_NODEID}_1")),
        (ExecutorMacros.group_host(2), Expand("${het_group_host_2}")),
        (ExecutorMacros.FT_LAUNCHER_CFG_PATH_VAR, "FAULT_TOL_CFG_PATH"),
        ("$$ ${other_var}", "$$ ${other_var}"),
        (Expand("$$${head_node_ip_var}"), Expand("$$${head_node_ip_var}")),
    ],
)
def test_macros_become_what_the_nodes_know(given: str, becomes: str) -> None:
    found = MACROS.substitute(given)
    assert (found, type(found)) == (becomes, type(becomes))


@pytest.mark.usefixtures("scripts_exist")
def test_a_value_that_looks_like_an_expansion_gets_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    made = spec(
        hello("$(hostname)", "fine", Expand("$HOME")),
        executor(env_vars={"LOOKS": "$HOME/x", "IS": Expand("$HOME"), "PRICE": "5$", "TICK": "`a`"}),
    )
    with caplog.at_level(logging.WARNING):
        made.members[0].plan(made)
        made.members[0].plan(made)
    [record] = caplog.records
    assert "the variable LOOKS, the variable TICK, the argument '$(hostname)'" in record.getMessage()
    assert "run.Expand" in record.getMessage()


@pytest.mark.usefixtures("scripts_exist")
def test_a_plan_shows_the_environment_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "canary")
    made = spec(hello(), executor(env_vars={"A": "b c", "KEY": run.Secret("TOKEN")}))
    plan = made.members[0].plan(made)
    assert "export A='b c'" in plan.text
    assert "<secret TOKEN>" in plan.text
    assert "canary" not in plan.text
    assert "b c" not in plan.request["script"]
    assert "KEY" not in plan.request["script"]


# --- fields ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"time": "tomorrow"}, "time is 'tomorrow'"),
        ({"time": "1:2:3:4"}, "time is '1:2:3:4'"),
        ({"time": 30}, "time is 30"),
        ({"array": "0..9"}, "array is '0..9'"),
        ({"signal": "USR1 120"}, "signal is 'USR1 120'"),
        ({"mem": "32 GB"}, "mem is '32 GB'"),
        ({"nodes": 0}, "nodes is 0"),
        ({"ntasks_per_node": "8"}, "ntasks_per_node is '8'"),
        ({"dependency_type": "afterwards"}, "dependency_type is 'afterwards'"),
        ({"dependencies": ["train"]}, "'train' names no job"),
        ({"open_mode": "w"}, "open_mode is 'w'"),
        ({"container_mounts": "/a:/b"}, "container_mounts is '/a:/b'"),
        ({"container_mounts": ["/a"]}, "'/a' is no"),
        ({"container_mounts": ["/a:/b,/c:/d"]}, "is no"),
        ({"srun_args": "--mpi=pmix"}, "srun_args is '--mpi=pmix'"),
        ({"additional_parameters": {"comment": "x"}}, "holds 'comment'; use comment"),
        ({"additional_parameters": {"job-name": "x"}}, "holds 'job-name'; use job_details"),
        ({"mem": "1G", "memory_limit": "1G"}, "mem and memory_limit are one setting"),
        ({"cpus_per_task": 2, "cpu_limit": 2}, "cpus_per_task and cpu_limit are one setting"),
        ({"monitor_resources": True}, "cannot honour monitor_resources"),
        ({"memory_measure": True}, "cannot honour memory_measure"),
        ({"tunnel": "me@login"}, "tunnel is 'me@login'"),
        ({"job_details": "train"}, "job_details is 'train'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        executor(**fields)
    assert words in str(caught.value)


@pytest.mark.usefixtures("scripts_exist")
def test_a_group_in_an_array_is_refused() -> None:
    made = spec([hello(), hello()], executor(array="0-1"), executor(array="0-1"))
    with pytest.raises(UnsupportedError, match="give the group no array"):
        made.members[0].plan(made)


@pytest.mark.usefixtures("scripts_exist")
def test_a_folder_on_the_cluster_is_told_in_full() -> None:
    made = spec(hello(), executor(tunnel=SSHTunnel(host="login", user="me", job_dir="runs")))
    with pytest.raises(ConfigError, match=r"tunnel\.job_dir is 'runs'"):
        made.members[0].plan(made)


@pytest.mark.usefixtures("scripts_exist")
def test_members_that_share_an_allocation_agree_on_what_holds_for_it() -> None:
    made = spec([hello(), hello()], executor(partition="a"), executor(partition="b"))
    with pytest.raises(UnsupportedError, match="differ in 'partition'"):
        made.members[0].plan(made)


@pytest.mark.parametrize(
    ("fields", "time"),
    [
        ({}, "00:10:00"),
        ({"timeout": 60}, "1"),
        ({"timeout": 61}, "2"),
        ({"time": "02:00:00"}, "02:00:00"),
        ({"time": "1-12", "timeout": 3600}, "60"),
        ({"time": "30:30", "timeout": 3600}, "30:30"),
        ({"time": "unlimited", "timeout": 60}, "1"),
        ({"time": "UNLIMITED"}, "UNLIMITED"),
    ],
)
def test_the_time_is_the_shorter_of_two_limits(fields: dict[str, Any], time: str) -> None:
    assert executor(**fields).walltime() == time


@pytest.mark.parametrize(
    ("fields", "processes"),
    [
        ({}, 1),
        ({"ntasks_per_node": 4}, 4),
        ({"gpus_per_node": 8}, 8),
        ({"gpus_per_node": 8, "ntasks_per_node": 4}, 4),
        ({"gpus_per_task": 2, "ntasks_per_node": 4}, 2),
        ({"gpus_per_node": 8, "torchrun_nproc_per_node": 3}, 3),
        ({"gpus_per_node": 8, "ntasks_per_node": 8, "launcher": "torchrun"}, 8),
        ({"gpus_per_task": 1, "ntasks_per_node": 4, "launcher": "torchrun"}, 4),
    ],
)
def test_torchrun_starts_as_many_processes_as_is_said_of_it(fields: dict[str, Any], processes: int) -> None:
    assert executor(**fields).nproc_per_node() == processes
