"""The snippets of the documents that concern running here are run as they are written, as scripts.

It reads them where the project's specification lies beside the repository (`../shared/spec/seeds`).
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from programs import python, succeeded

SEEDS = Path(__file__).parents[2] / "shared" / "spec" / "seeds"
PATTERN, EXECUTION = "nemo_run_executor_pattern.md", "nemo_run_execution.md"

pytestmark = [
    pytest.mark.usefixtures("home"),
    pytest.mark.skipif(not SEEDS.is_dir(), reason=f"the documents are not there ({SEEDS})"),
]

#: What a snippet takes from its reader: tasks that can be told apart by what they give.
READERS_TASKS = """
import os
import time
import nemo_run as run

def my_training_function():
    print("training")
    return {"loss": 0.5, "in": os.path.basename(os.getcwd())}

def my_function():
    raise RuntimeError("no such data")

def training_function():
    return "trained"

def environment():
    return dict(os.environ)

def watched_function():
    samples = os.path.join(os.environ["NEMORUN_JOB_DIR"], "resources.jsonl")
    deadline = time.monotonic() + 60
    while not (os.path.exists(samples) and os.path.getsize(samples)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return open(samples).readline()
"""


class Snippet(NamedTuple):
    """What stands around a snippet in a script, and what that prints in the end."""

    before: str = ""
    after: str = ""
    prints: tuple[str, ...] = ()


#: By document and heading; each is run as it stands.
RUN_HERE = {
    (PATTERN, "Executor Abstraction"): Snippet(
        after="print(experiment.title, experiment.executor.working_dir, experiment.executor.timeout)",
        prints=("script.my_training_function /tmp/experiments 3600\n",),
    ),
    (PATTERN, "Local Executor"): Snippet(
        after="""
            try:
                run.run(my_training_function, local_executor)
            except run.ExecutionError as exc:
                print("clear:", exc)
        """,
        prints=("cannot start '/path/to/venv/bin/python': No such file or directory", "exit code 127"),
    ),
    (PATTERN, "Docker Executor"): Snippet(
        after="""
            docker_executor.packager = run.Packager()
            try:
                run.Experiment(task=my_training_function, executor=docker_executor).dryrun()
            except run.ConfigError as exc:
                print("clear:", exc)
            docker_executor.base_url = "ssh://me@elsewhere"
            run.Experiment(task=my_training_function, executor=docker_executor).dryrun()
        """,
        prints=(
            "clear: DockerExecutor.volumes: '/host/data' is not there",
            "nvidia/cuda:11.8-devel-ubuntu20.04",
            "--workdir /workspace",
            "--mount type=bind,source=/host/models,target=/container/models",
            "--env CUDA_VISIBLE_DEVICES=0,1,2,3",
        ),
    ),
    (EXECUTION, "DockerExecutor"): Snippet(
        before="executor = \\",
        after="""
            executor.base_url = "tcp://elsewhere:2375"
            run.Experiment(task=my_training_function, executor=executor).dryrun()
        """,
        prints=(
            "python:3.12 ",
            "--gpus all",
            "--runtime nvidia",
            "--ipc host",
            "--shm-size 32212254720",
            "--mount type=bind,source=/local/path,target=/path/in/container",
        ),
    ),
    (PATTERN, "Common Parameters"): Snippet(
        after="""
            experiment = run.Experiment(task=my_training_function, executor=executor_config)
            experiment.dryrun()
        """,
        prints=(
            "export CUDA_VISIBLE_DEVICES=0,1\n",
            "cd /path/to/workspace\n",
            "/path/to/python ",
            "timeout: 3600",
        ),
    ),
    (PATTERN, "Environment Variables"): Snippet(
        after="""
            given = run.run(environment, executor)
            print([given[name] for name in ("NCCL_DEBUG", "DATA_PATH", "PYTHONUNBUFFERED")])
            print(given["PYTHONPATH"].endswith("/path/to/code:/path/to/libs"))
        """,
        prints=("['INFO', '/path/to/data', '1']\n", "True\n"),
    ),
    (PATTERN, "Timeout and Resource Limits"): Snippet(
        after="print(run.run(my_training_function, executor)['loss'])", prints=("0.5\n",)
    ),
    (PATTERN, "Basic Execution"): Snippet(
        after="print(result, experiment.title)",
        prints=("{'transformer_training': {'loss': 0.5, 'in': 'experiments'}} transformer_training\n",),
    ),
    (PATTERN, "Custom Executors"): Snippet(
        after="print(run.run(my_training_function, custom_executor))",
        prints=(
            "Executing with custom parameter: special_value\n",
            "{'loss': 0.5, 'in': 'experiments'}\n",
        ),
    ),
    (PATTERN, "1. Initialization"): Snippet(
        after="print(run.run(my_training_function, executor))",
        prints=("{'loss': 0.5, 'in': 'experiments'}\n",),
    ),
    (PATTERN, "2. Configure Resource Limits"): Snippet(
        after="print(run.run(my_training_function, executor)['loss'])", prints=("0.5\n",)
    ),
    (PATTERN, "3. Use Environment Variables"): Snippet(
        after="print(run.run(environment, executor)['EXPERIMENT_NAME'])", prints=("my_experiment\n",)
    ),
    (PATTERN, "4. Handle Errors Gracefully"): Snippet(
        before="executor = run.LocalExecutor()",
        prints=("Execution failed: job 'script.my_function' of experiment", "RuntimeError: no such data"),
    ),
    (PATTERN, "5. Monitor Resource Usage"): Snippet(
        after="""
            print("sampled", "rss_bytes" in run.run(watched_function, executor))
        """,
        prints=("sampled True\n",),
    ),
}

#: Makes the folder a repository, as that of whoever reads on would be.
REPOSITORY = """
import subprocess
subprocess.run(["git", "init", "-q", "."], check=True)
subprocess.run(["git", "add", "script.py"], check=True)
me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
subprocess.run(["git", *me, "commit", "-qm", "a script"], check=True)
"""
#: The same for snippets with jobs on Slurm; those that run them need a cluster.
RUN_HERE |= {
    (PATTERN, "Slurm Executor"): Snippet(
        before=REPOSITORY,
        after="run.Experiment(task=my_training_function, executor=slurm_executor).dryrun()",
        prints=(
            "--partition=gpu\n", "--nodes=2\n", "--ntasks-per-node=1\n", "--cpus-per-task=8\n",
            "--gpus-per-node=4\n", "--time=24:00:00\n", "--account=my_account\n",
            "--chdir=/scratch/experiments ",
        ),
    ),
    (PATTERN, "Distributed Execution"): Snippet(
        before=REPOSITORY + "distributed_training_function = my_training_function",
        after="experiment.dryrun()",
        prints=("--nodes=4\n", "--gpus-per-node=8\n", "--partition=gpu\n"),
    ),
    (PATTERN, "Conditional Execution"): Snippet(
        before=REPOSITORY, after="experiment.dryrun()", prints=("--partition=gpu\n",)
    ),
    (PATTERN, "1. Choose the Right Executor"): Snippet(
        before=REPOSITORY,
        after="run.Experiment(task=my_training_function, executor=prod_executor).dryrun()",
        prints=("--nodes=8\n", "--gpus-per-node=8\n", "--time=48:00:00\n"),
    ),
    (PATTERN, "Integration with Experiments"): Snippet(
        before=REPOSITORY,
        prints=(
            "Experiment status: distributed_training: SUCCEEDED\n",
            "Training completed: {'distributed_training': 'trained'}\n",
        ),
    ),
    (EXECUTION, "SlurmExecutor"): Snippet(
        before="""
            from nemo_run import GitArchivePackager

            DEFAULT_IMAGE = "nvcr.io/nvidia/nemo:24.07"
            common_envs = lambda: {"A": "b"}
            mounts_for_your_hubs = lambda: ["/data:/data"]
            your_slurm_cluster = lambda **fields: fields
        """,
        after="your_slurm_executor(nodes=8, container_image='your-nemo-image'); print('made')",
        prints=("made\n",),
    ),
}  # fmt: skip
ON_A_CLUSTER = {(PATTERN, "Integration with Experiments")}

#: With jobs by SkyPilot, which a dry run does not need.
RUN_HERE |= {
    (PATTERN, "SkyPilot Executor"): Snippet(
        before=REPOSITORY,
        after="run.Experiment(task=my_training_function, executor=skypilot_executor).dryrun()",
        prints=(
            "num_nodes: 4\n", "region: us-west-2\n", "instance_type: g4dn.xlarge\n", "disk_size: 100\n",
            "# cd /workspace\n",
        ),
    ),
}  # fmt: skip
#: Snippets that are no Python as they stand: what is put in the place of what.
MENDED = {
    (EXECUTION, "SkypilotExecutor"): {
        "nodes = nodes\n": "nodes = nodes,\n",
        "env_vars=common_envs()\n": "env_vars=common_envs(),\n",
        "executor = your_skypilot_cluster": "executor = your_skypilot_executor",
    }
}


def snippets(document: str) -> dict[tuple[str, str], str]:
    """The Python blocks of a document by the heading they stand under."""
    text = (SEEDS / document).read_text(encoding="utf-8")
    found: dict[tuple[str, str], str] = {}
    heading = ""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$|^#+ ([^\n]*)$", text, re.M | re.S):
        language, block, title = match.groups()
        if title is not None:
            heading = title
        elif language == "python":
            assert (document, heading) not in found, f"two blocks under {heading!r}"
            found[document, heading] = block
    return found


def run_script(folder: Path, *parts: str) -> str:
    """What a script of these parts prints."""
    script = folder / "script.py"
    script.write_text("\n".join(textwrap.dedent(part) for part in parts), encoding="utf-8")
    return succeeded(python(script, cwd=folder)).stdout


def test_every_snippet_is_run_here() -> None:
    assert {**snippets(PATTERN), **snippets(EXECUTION)}.keys() == {**RUN_HERE, **MENDED}.keys()


def test_the_snippet_for_skypilot_does_what_it_says_once_it_is_python(tmp_path: Path) -> None:
    where = (EXECUTION, "SkypilotExecutor")
    block = snippets(EXECUTION)[where]
    with pytest.raises(SyntaxError):
        compile(block, "", "exec")
    for old, new in MENDED[where].items():
        assert old in block
        block = block.replace(old, new)
    before = "from nemo_run import SkypilotExecutor\ncommon_envs = lambda: {'A': 'b'}"
    after = "run.Experiment(task=my_training_function, executor=executor).dryrun()"
    printed = run_script(tmp_path, READERS_TASKS, REPOSITORY, before, block, after)
    for words in ("num_nodes: 8\n", "RTX5880-ADA-GENERATION:8\n", "nvidia-smi\n", "# export A=b\n"):
        assert words in printed


@pytest.mark.parametrize("where", RUN_HERE, ids=lambda where: where[1])
def test_a_snippet_does_what_the_document_says(
    where: tuple[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if where in ON_A_CLUSTER:
        request.getfixturevalue("slurm")
    before, after, prints = RUN_HERE[where]
    printed = run_script(tmp_path, READERS_TASKS, before, snippets(where[0])[where], after)
    for words in prints:
        assert words in printed


def test_what_is_said_of_status_and_results_holds_here_too(tmp_path: Path) -> None:
    """The snippet is for Slurm; but for its executor it is run as it stands."""
    block = snippets(PATTERN)[PATTERN, "Integration with Experiments"]
    here = block.replace("run.Config(run.SlurmExecutor, nodes=4)", "run.Config(run.LocalExecutor)")
    assert here != block
    printed = run_script(tmp_path, READERS_TASKS, here)
    assert "Experiment status: distributed_training: SUCCEEDED\n" in printed
    assert "Training completed: {'distributed_training': 'trained'}\n" in printed


def test_the_easiest_executor_is_as_the_document_describes_it(tmp_path: Path) -> None:
    text = (SEEDS / EXECUTION).read_text(encoding="utf-8")
    assert "The easiest way to define one is to call `run.LocalExecutor()`" in text
    assert "from your current working directory" in text
    assert "By default, the value for `NEMORUN_HOME` value is `~/.run`" in text
    (tmp_path / "work").mkdir()
    printed = run_script(
        tmp_path / "work",
        READERS_TASKS,
        """
            os.environ.pop("NEMORUN_HOME")
            os.environ["HOME"] = os.path.dirname(os.getcwd())
            executor = run.LocalExecutor()
            executor.launcher = None
            executor.packager = run.Packager()
            print(run.run(my_training_function, executor))
            print(os.listdir(os.path.expanduser("~/.run/experiments")))
        """,
    )
    assert "{'loss': 0.5, 'in': 'work'}\n" in printed
    assert "['script.my_training_function']\n" in printed
