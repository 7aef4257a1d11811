"""Jobs of a VertexExecutor run, on a double of Vertex AI whose replicas are containers (see vertexes.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import docker
import pytest
import torch_tasks
from contracts.executor import ExecutorContract, ended, prepare
from dockers import IMAGE, TESTS
from repositories import repository
from vertexes import Fault, Vertex, running_vertex, skip_without_types

import nemo_run as run
from nemo_run.core.execution.base import AppState, Executor, Plan


@pytest.fixture
def vertex(engine: None, home: Path, tmp_path: Path) -> Iterator[Vertex]:
    """A double whose jobs run, and see the test's folder."""
    skip_without_types()
    seen = (f"{TESTS}:{TESTS}:ro", f"{tmp_path}:{tmp_path}")
    with running_vertex(tmp_path / "buckets", run=True, volumes=seen) as double:
        yield double


def executor(vertex: Vertex, **fields: Any) -> run.VertexExecutor:
    """One whose tasks can import this folder's modules."""
    env_vars = {"PYTHONPATH": str(TESTS), **fields.pop("env_vars", {})}
    return vertex.executor(**{"packager": run.Packager(), "env_vars": env_vars, **fields})


class TestVertexExecutor(ExecutorContract):
    @pytest.fixture(autouse=True)
    def _vertex(self, vertex: Vertex) -> None:
        self.vertex = vertex

    def executor(self, **fields: Any) -> Executor:
        return executor(self.vertex, **fields)

    def refuse(self, plan: Plan) -> tuple[Plan, str]:
        job = {**plan.request["job"], "unheardOf": 1}
        return replace(plan, request={**plan.request, "job": job}), "unheardOf"


# --- one job --------------------------------------------------------------------------------------------


def printed(job: tuple[Executor, run.JobHandle], role: str = "job", rank: int = 0) -> list[str]:
    return list(job[0].logs(job[1], role, rank))


def submit(vertex: Vertex, task: Any, **fields: Any) -> tuple[Executor, run.JobHandle]:
    """A job on its way."""
    plan = prepare(task, executor(vertex, **fields))
    return plan.spec.members[0], plan.spec.members[0].submit(plan)


def test_an_images_own_program_gets_its_arguments_and_needs_no_bucket(vertex: Vertex) -> None:
    echo = run.Script(entrypoint="", args=["/bin/echo", "a b", "$HOME"], env={"A": "1"})
    job = submit(vertex, echo, staging_bucket=None)
    assert ended(*job).state == AppState.SUCCEEDED
    assert printed(job) == ["a b $HOME"]
    assert vertex.objects() == {}


def test_a_program_of_the_image_needs_no_bucket_and_what_a_shell_expands_is_expanded(vertex: Vertex) -> None:
    script = run.Script(path="/bin/echo", entrypoint="", args=["a b", run.Expand("$A")], env={"A": "x  y"})
    job = submit(vertex, script, staging_bucket=None)
    assert ended(*job).state == AppState.SUCCEEDED
    assert printed(job) == ["a b x  y"]


def test_code_travels_by_the_bucket_once_and_artifacts_come_home(
    vertex: Vertex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository(tmp_path / "code", {"mine.py": "def word():\n    return 'from the code'\n"})
    (folder / "main.py").write_text(MAIN)
    monkeypatch.chdir(folder)
    given = {name: getattr(vertex.executor(), name) for name in ENDPOINTS}
    done = python(str(folder / "main.py"), json.dumps(given))
    assert json.loads(done) == {"one": ["from the code", 1], "two": ["from the code", 2]}
    [exp] = run.Experiment.catalog()
    assert (run.Experiment.from_id(exp).path / "two" / "artifacts" / "note").read_text() == "noted"
    names = [name for name in vertex.objects() if name.startswith("bucket/work/nemo_run/packages/")]
    assert len(names) == 1
    uploads = [line for line in vertex.asked if line.startswith("POST /upload")]
    assert len(uploads) == 2 + 2 * 2  # the library, the code, and of each job its folder and its beginning


def test_code_travels_in_an_image_that_is_built_and_pushed(
    vertex: Vertex, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = uuid.uuid4().hex
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "mine.py").write_text(f"print({word!r}, __import__('os').getcwd())")
    monkeypatch.chdir(tmp_path / "work")
    name = f"{registry}/team/it:{word}"
    code = run.PatternPackager(include_pattern="*.py", relative_path=".")
    packager = run.ImagePackager(base_image=IMAGE, push_image_tag=name, code=code)
    fields = {"container_image": "", "packager": packager, "staging_bucket": None}
    job = submit(vertex, run.Script(path="mine.py", entrypoint="python"), **fields)
    client = docker.from_env()
    try:
        assert ended(*job).state == AppState.SUCCEEDED
        assert printed(job) == [f"{word} /code"]
        assert client.images.get_registry_data(name).has_platform("linux/amd64")
    finally:
        client.images.remove(client.images.get(name).id, force=True)
        client.close()


ENDPOINTS = (
    "project",
    "container_image",
    "staging_bucket",
    "api_endpoint",
    "storage_endpoint",
    "logging_endpoint",
)
MAIN = """
import json, os, sys
import mine
import nemo_run as run

def task(number):
    with open(run.artifacts_dir() / "note", "w") as file:
        file.write("noted")
    return [mine.word(), number]

if __name__ == "__main__":
    from vertexes import HurriedVertexExecutor
    exp = run.Experiment("code", HurriedVertexExecutor(**json.loads(sys.argv[1])), clean_mode=True)
    for name, number in (("one", 1), ("two", 2)):
        exp.add(run.Partial(task, number), name=name)
    print(json.dumps(exp.run()))
"""


def python(script: str, *args: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, script, *args], env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_that_runs_too_long_is_ended_by_vertex_and_says_so(vertex: Vertex) -> None:
    with pytest.raises(run.JobTimeoutError, match=r"TIMEOUT: ran longer than 1\.5 s"):
        run.run(run.Script(inline="sleep 600"), executor(vertex, timeout=1.5), name="slow")


def test_an_answer_that_is_lost_leaves_one_job_that_is_found_again(vertex: Vertex, tmp_path: Path) -> None:
    vertex.faults.append(Fault("POST .*/customJobs", code=0, after=True))
    script = run.Script(inline=f"echo started >> {tmp_path}/starts")
    run.run(script, executor(vertex), name="once")
    assert (tmp_path / "starts").read_text() == "started\n"
    assert len(vertex.jobs) == 1


# --- several replicas -----------------------------------------------------------------------------------


WHO = """
import json, os
spec = json.loads(os.environ["CLUSTER_SPEC"])
task = "{type}-{index}".format(**spec["task"])
print(task, os.environ["NODE_RANK"], os.environ["NEMORUN_REPLICA"], os.environ["MASTER_PORT"])
print(os.environ["MASTER_ADDR"] == spec["cluster"]["workerpool0"][0].split(":")[0])
"""


def test_each_node_knows_its_rank_and_where_the_first_is_and_has_a_log_of_its_own(vertex: Vertex) -> None:
    script = run.Script(inline=WHO, entrypoint="python", env={"JSON": '{"index": 7, "type": "workerpool9"}'})
    job = submit(vertex, script, nodes=3)
    assert ended(*job).state == AppState.SUCCEEDED
    tasks = ("workerpool0-0", "workerpool1-0", "workerpool1-1")
    expected = [[f"{task} {rank} {rank} 2222", str(rank > 0)] for rank, task in enumerate(tasks)]
    assert [printed(job, rank=rank) for rank in range(3)] == expected


def test_the_members_of_a_group_find_each_other_and_a_failure_is_the_members(vertex: Vertex) -> None:
    client = f"""
import json, os, sys
sys.path.insert(0, {str(TESTS)!r})
import tasks
print(tasks.ask_server(json.loads(os.environ["CLUSTER_SPEC"])["cluster"]["workerpool0"][0].split(":")[0]))
sys.exit(5)
"""
    exp = run.Experiment("talk", executor(vertex), clean_mode=True, raise_on_failure=False)
    server = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import tasks; tasks.serve_once('hello')"
    programs = {"server": server, "client": client}
    exp.add([run.Script(inline=text, entrypoint="python") for text in programs.values()], name="group")
    exp.run()
    [entry] = exp.status(return_dict=True).values()
    roles = exp.jobs[0].roles
    assert (entry["status"], entry["exit_code"]) == (AppState.FAILED, 5)
    assert entry["message"].startswith(f"{roles[1]}: The replica workerpool1-0 exited with a non-zero status")
    assert (exp.path / "group" / "logs" / f"{roles[1]}_0.log").read_text() == "hello\n"


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("torch") is None and "CI" not in os.environ, reason="torch is not installed: pip install torch"
)
def test_torchrun_makes_one_whole_of_two_nodes(vertex: Vertex) -> None:
    vertex.volumes += [f"{path}:{path}:ro" for path in {sys.prefix, sys.base_prefix} - {"/usr"}]
    fields = {"nodes": 2, "launcher": "torchrun", "python_path": sys.executable}
    exp = run.Experiment("ranks", executor(vertex, **fields), clean_mode=True)
    exp.add(run.Partial(torch_tasks.reduce, ["word"]), name="job")
    exp.run()
    results = [
        json.loads(path.read_text())["value"] for path in (exp.path / "job" / "results").glob("*.json")
    ]
    assert sorted((value["rank"], value["total"]) for value in results) == [(0, 3.0), (1, 3.0)]
