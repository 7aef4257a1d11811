"""A container is all that a DockerExecutor's fields say it is, on a real Docker Engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import tasks
from contracts.executor import ExecutorContract, ended, prepare, wait_until, write
from dockers import IMAGE, TESTS, Containers
from repositories import git, repository

import nemo_run as run
from nemo_run.core.execution.base import AppState, Executor, JobHandle, Plan
from nemo_run.core.execution.docker_engine import JOB_DIR, TOKEN, address, connect
from nemo_run.errors import ConfigError, JobFailedError, JobTimeoutError, SubmitError, UnsupportedError

pytestmark = pytest.mark.usefixtures("containers")

Job: TypeAlias = tuple[Executor, JobHandle]


def executor(**fields: Any) -> run.DockerExecutor:
    """One whose tasks can import this folder's modules."""
    volumes = fields.pop("volumes", [])
    env_vars = {"PYTHONPATH": str(TESTS), **fields.pop("env_vars", {})}
    defaults = {"container_image": IMAGE, "packager": run.Packager(), "env_vars": env_vars}
    return run.DockerExecutor(**defaults | fields, volumes=[f"{TESTS}:{TESTS}:ro", *volumes])


class TestDockerExecutor(ExecutorContract):
    @pytest.fixture(autouse=True)
    def _containers(self, tmp_path: Path, containers: Containers) -> None:
        self.seen = tmp_path
        self.containers = containers

    def executor(self, **fields: Any) -> Executor:
        """Its tasks see the test's folder."""
        return executor(volumes=[f"{self.seen}:{self.seen}"], **fields)

    def refuse(self, plan: Plan) -> tuple[Plan, str]:
        [role] = plan.request["roles"]
        kwargs = {**role["kwargs"], "nano_cpus": 10**15}
        return replace(plan, request={**plan.request, "roles": [{**role, "kwargs": kwargs}]}), "Range of CPUs"

    def running(self, word: str) -> list[int]:
        return self.containers.processes(word)


# --- how a test runs a job ------------------------------------------------------------------------------


def value(task: Any, **fields: Any) -> Any:
    """What a task returns from a container."""
    return run.run(task, executor(**fields), name="job", tail_logs=False)


def submit(task: Any, grace: float | None = None, **fields: Any) -> Job:
    """A job on its way; between SIGTERM and SIGKILL it has `grace` seconds."""
    plan = prepare(task, executor(**fields))
    if grace is not None:
        plan = replace(plan, request={**plan.request, "grace": grace})
    member = plan.spec.members[0]
    return member, member.submit(plan)


def printed(program: str, **fields: Any) -> list[str]:
    """What a program prints that succeeds."""
    job = submit(run.Script(inline=program), **fields)
    status = ended(*job)
    lines = log(job)
    assert status.state == AppState.SUCCEEDED, (status, lines)
    return lines


def log(job: Job) -> list[str]:
    """What a job has printed so far."""
    return list(job[0].logs(job[1], "job"))


def folder_of(job: Job) -> Path:
    return Path(job[1].data["job_dir"])


# --- fields ---------------------------------------------------------------------------------------------


class TestFields:
    def test_second_spellings_mean_the_first(self) -> None:
        mine = run.DockerExecutor(
            image="a:1", environment={"A": "1"}, env_vars={"B": "2"}, volumes={"/tmp": "/data"}
        )
        assert (mine.container_image, mine.env_vars) == ("a:1", {"B": "2", "A": "1"})
        mine.image = "b:1"
        with pytest.raises(ConfigError, match=r"image and DockerExecutor\.container_image are one setting"):
            mine.check()
        with pytest.raises(ConfigError, match="environment and env_vars differ in 'A'"):
            run.DockerExecutor(image="a", environment={"A": "1"}, env_vars={"A": "2"})

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"container_image": ""}, "has no container_image"),
            ({"num_gpus": -2}, "num_gpus is -2"),
            ({"ulimits": ["memlock"]}, "ulimits: 'memlock' is none"),
            ({"volumes": ["/only"]}, "'/only' is no mount"),
            ({"volumes": ["relative/path:/x"]}, "neither a path from / or ~ nor a volume's name"),
            ({"volumes": "/a:/b"}, "give a list"),
            ({"shm_size": "big"}, "shm_size is 'big'"),
            ({"additional_kwargs": {"name": "x"}}, "holds 'name', which nemo_run sets"),
            ({"additional_kwargs": {"mem_limit": "1g"}}, "use memory_limit"),
            ({"privileged": "yes"}, "privileged is 'yes'"),
            ({"network": 3}, "network is 3"),
        ],
    )
    def test_what_cannot_work_is_refused_by_name(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(message)):
            run.DockerExecutor(**{"container_image": IMAGE, **fields})

    def test_a_task_starts_in_the_jobs_folder_or_in_working_dir_below_it(self, home: Path) -> None:
        assert value(run.Partial(os.getcwd)) == "/nemo_run"
        assert value(run.Partial(os.getcwd), working_dir="deep/er") == "/nemo_run/deep/er"
        assert value(run.Partial(os.getcwd), working_dir="/somewhere") == "/somewhere"

    def test_limits_are_the_containers(self, home: Path) -> None:
        asked = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/memory/memory.limit_in_bytes"
        shown = "df -B1 --output=size /dev/shm | tail -1; ulimit -n; ulimit -Hn; ulimit -s"
        lines = printed(
            f"{asked} 2>/dev/null || cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max; {shown}",
            cpu_limit=1,
            memory_limit="64M",
            shm_size="8m",
            ulimits=["nofile=1000:2000", "stack:1024000:1024000"],
        )
        assert [line.split()[0] for line in lines] == [
            "100000", str(64 << 20), str(8 << 20), "1000", "2000", "1000",
        ]  # fmt: skip

    def test_volumes_are_mounted_as_they_are_written(self, home: Path, tmp_path: Path) -> None:
        (tmp_path / "data with space").mkdir()
        write(tmp_path / "data with space" / "file", "content")
        volumes = [
            f"{tmp_path}/data with space:/data:ro",
            "/$nemo_run/kept:/kept",
            f"{tmp_path}:/with/options:rw,z",
        ]
        program = (
            "cat /data/file; echo; touch /data/new 2>/dev/null || echo read-only;"
            " echo x > /kept/file; ls /with/options"
        )
        job = submit(run.Script(inline=program), volumes=volumes)
        assert ended(*job).state == AppState.SUCCEEDED
        assert log(job)[:2] == ["content", "read-only"]
        assert "data with space" in log(job)
        assert (folder_of(job) / "kept" / "file").read_text() == "x\n"

    def test_a_dict_of_volumes_in_both_its_forms(self, home: Path, tmp_path: Path) -> None:
        write(tmp_path / "file", "content")
        volumes = {str(tmp_path): "/one:ro", str(tmp_path / "file"): {"bind": "/two", "mode": "ro"}}
        job = run.DockerExecutor(image=IMAGE, volumes=volumes, packager=run.Packager())
        assert run.run(run.Script(inline="cmp /one/file /two"), job, tail_logs=False) is None

    def test_a_volume_whose_source_is_missing_is_refused_and_not_made(
        self, home: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match="missing' is not there"):
            prepare(run.Script(inline="true"), executor(volumes=[f"{tmp_path}/missing:/x"]))
        assert not (tmp_path / "missing").exists()

    def test_the_images_python_runs_tasks_unless_python_path_says_otherwise(self, home: Path) -> None:
        executable, version, holds_nemo_run = value(run.Partial(tasks.python_version))
        assert (executable, holds_nemo_run) == ("/usr/bin/python3", False)
        assert version[0] == 3
        named = value(run.Partial(tasks.python_version), python_path="/usr/bin/python3.11")
        assert named[0] == "/usr/bin/python3.11"

    def test_what_no_field_stands_for_is_passed_on(self, home: Path) -> None:
        more = {"hostname": "somebody", "labels": {"mine": "x"}, "extra_hosts": {"there": "10.1.2.3"}}
        assert printed("hostname; getent hosts there", additional_kwargs=more) == [
            "somebody",
            "10.1.2.3        there",
        ]
        with pytest.raises(JobFailedError, match="unexpected keyword argument"):
            value(run.Script(inline="true"), additional_kwargs={"hostnam": "x"})

    def test_host_namespaces_healthchecks_and_rights(self, home: Path, containers: Containers) -> None:
        healthcheck = {"test": ["CMD", "true"], "interval": 10**9}
        fields = {"ipc_mode": "host", "network": "host", "privileged": True, "healthcheck": healthcheck}
        # Made and not started, as not every machine may give all rights away.
        [role] = prepare(run.Script(inline="true"), executor(**fields)).request["roles"]
        there = containers.client.containers.create(**role["kwargs"])
        config = there.attrs["HostConfig"]
        assert (config["IpcMode"], config["NetworkMode"], config["Privileged"]) == ("host", "host", True)
        assert there.attrs["Config"]["Healthcheck"]["Test"] == ["CMD", "true"]

    def test_expressions_are_expanded_in_the_container(self, home: Path) -> None:
        script = run.Script(
            path="/bin/echo",
            entrypoint="env",
            args=["$HOME", run.Expand("$(pwd)"), run.Expand("$THERE")],
            env={"THERE": run.Expand("$(uname)"), "ODD": "\udcff"},
        )
        job = submit(script)
        assert ended(*job).state == AppState.SUCCEEDED
        assert log(job) == ["$HOME /nemo_run Linux"]

    def test_a_plan_shows_what_docker_run_would_be_told(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOKEN", "not to be shown")
        fields = {"memory_limit": "1G", "num_gpus": -1, "ulimits": ["nofile=9"], "runtime": "runc"}
        script = run.Script(inline="true", env={"A": "b c"})
        plan = prepare(script, executor(**fields, env_vars={"T": run.Secret("TOKEN")}))
        for words in ("docker run", "--memory 1073741824", "--gpus all", "--ulimit nofile=9:9", "'A=b c'"):
            assert words in plan.text
        assert "export T='<secret TOKEN>'" in plan.text
        assert "not to be shown" not in plan.text + json.dumps(plan.request)


# --- whose files ----------------------------------------------------------------------------------------


def test_files_of_a_task_belong_to_who_launched(home: Path) -> None:
    job = submit(run.Partial(tasks.note_in_job, "by the task"))
    assert ended(*job).state == AppState.SUCCEEDED, log(job)
    made = [path for path in folder_of(job).rglob("*") if path.name != "docker.lock"]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(os.getuid(), os.getgid())}
    assert (folder_of(job) / "artifacts" / "note").read_text() == "by the task"
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in made if path.name != "note")


def test_files_are_the_users_also_where_the_image_knows_no_such_user(
    containers: Containers, unprivileged: tuple[Path, str]
) -> None:
    folder, python = unprivileged
    program = f"""
import sys; sys.path[:0] = {[str(TESTS), *sys.path]!r}
import nemo_run as run, tasks
here = run.DockerExecutor(
    image={IMAGE!r}, packager=run.Packager(), volumes=["{TESTS}:/t:ro"], env_vars={{"PYTHONPATH": "/t"}}
)
with run.Experiment("mine", here, clean_mode=True) as exp:
    exp.add(run.Partial(tasks.note_in_job, "x"), name="task")
    exp.add(run.Script(inline="id -u; echo $HOME $USER; touch $HOME/x"), name="script")
    exp.run()
"""
    group = os.stat("/var/run/docker.sock").st_gid
    done = subprocess.run(
        [python, "-c", program],
        env={"NEMORUN_HOME": f"{folder}/home", "PATH": os.environ["PATH"], "USER": "somebody"},
        cwd=folder,
        user=1234,
        group=1234,
        extra_groups=[group],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    made = list((folder / "home").rglob("*"))
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(1234, 1234)}
    [log] = folder.glob("home/experiments/mine/*/script/logs/script_0.log")
    assert log.read_text().splitlines() == ["1234", "/tmp somebody"]


@pytest.fixture
def unprivileged() -> Iterator[tuple[Path, str]]:
    """A folder of somebody else's, and a Python that they may run; only root can become them."""
    if os.getuid() != 0:
        pytest.skip("needs root, to be somebody else")
    pythons = [sys.executable, "/usr/bin/python3"]
    ask = ["-c", f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"]
    usable = [python for python in pythons if runs_as_somebody([python, *ask])]
    if not usable:
        pytest.skip(f"needs a Python {sys.version_info[0]}.{sys.version_info[1]} that all users may run")
    folder = Path(tempfile.mkdtemp(prefix="nemo_run-"))
    os.chown(folder, 1234, 1234)
    yield folder, usable[0]
    shutil.rmtree(folder)


def runs_as_somebody(argv: list[str]) -> bool:
    try:
        return subprocess.run(argv, user=1234, group=1234, capture_output=True, cwd="/").returncode == 0
    except OSError:
        return False


# --- code -----------------------------------------------------------------------------------------------


class TestCode:
    def test_the_code_of_the_working_tree_travels_as_it_is(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        work = repository(tmp_path / "work", {"kept.txt": "as committed", "edited.txt": "as committed"})
        write(work / "edited.txt", "as edited")
        write(work / "new.txt", "untracked")
        before = git(work, "status", "--porcelain")
        monkeypatch.chdir(work)
        here = run.DockerExecutor(image=IMAGE)
        with run.Experiment("code", here, clean_mode=True) as experiment:
            experiment.add(run.Script(inline="pwd; cat kept.txt edited.txt new.txt"), name="job")
            experiment.run()
        log = (experiment.path / "job" / "logs" / "job_0.log").read_text()
        assert log == "/nemo_run/code\nas committedas editeduntracked"
        assert git(work, "status", "--porcelain") == before

    def test_outside_a_repository_a_launch_says_what_to_do(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, containers: Containers
    ) -> None:
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        with pytest.raises(run.PackagingError, match="git"):
            run.run(run.Script(inline="true"), run.DockerExecutor(image=IMAGE))
        assert containers.all() == []


# --- ends -----------------------------------------------------------------------------------------------


class TestEnds:
    def test_too_much_memory_is_told_from_other_ends(self, home: Path) -> None:
        job = submit(run.Partial(tasks.use_memory, 200), memory_limit="64M")
        status = ended(*job)
        assert (status.state, status.exit_code) == (AppState.FAILED, 137)
        assert status.message == "OUT_OF_MEMORY: used more than its limit of 64 MiB"

    def test_a_container_removed_by_hand_is_told_from_other_ends(
        self, home: Path, containers: Containers
    ) -> None:
        job = submit(run.Script(inline="sleep 1000"))
        [there] = containers.all()
        there.remove(force=True)
        status = ended(*job)
        assert (status.state, status.exit_code) == (AppState.FAILED, None)
        assert status.message == "its container was removed before its end was recorded"
        assert job[0].status([job[1]]) == [status]
        assert log(job) == []

    def test_a_container_stopped_by_hand_has_failed(self, home: Path, containers: Containers) -> None:
        job = submit(run.Script(inline="sleep 1000"))
        containers.all()[0].kill()
        status = ended(*job)
        assert (status.exit_code, status.message) == (137, "killed by SIGKILL")

    def test_a_job_that_takes_too_long_is_ended(self, home: Path) -> None:
        with pytest.raises(JobTimeoutError, match=r"ran longer than 0\.5 s"):
            value(run.Script(inline="sleep 1000"), timeout=0.5)

    def test_one_that_ignores_this_is_killed(self, home: Path, tmp_path: Path) -> None:
        started = str(tmp_path / "started")
        volumes = [f"{tmp_path}:{tmp_path}"]
        job = submit(run.Partial(tasks.ignore_sigterm, started), grace=0.5, timeout=1.5, volumes=volumes)
        status = ended(*job)
        assert (status.state, status.exit_code) == (AppState.FAILED, 124)
        assert status.message == "TIMEOUT: ran longer than 1.5 s"
        assert os.path.exists(started)

    def test_a_cancelled_one_may_clean_up(self, home: Path, tmp_path: Path) -> None:
        started = tmp_path / "started"
        job = submit(run.Partial(tasks.clean_up_on_sigterm, str(started)), volumes=[f"{tmp_path}:{tmp_path}"])
        wait_until(started.exists, "it has started")
        job[0].cancel(job[1])
        status = ended(*job)
        assert (status.state, status.exit_code, status.message) == (AppState.CANCELLED, 143, "cancelled")
        assert (tmp_path / "started.end").read_text() == "cleaned up"

    def test_a_cancelled_one_that_ignores_it_is_killed_though_nobody_looks(
        self, home: Path, tmp_path: Path, containers: Containers
    ) -> None:
        started = tmp_path / "started"
        volumes = [f"{tmp_path}:{tmp_path}"]
        job = submit(run.Partial(tasks.ignore_sigterm, str(started)), grace=0.5, volumes=volumes)
        wait_until(started.exists, "it has started")
        job[0].cancel(job[1])
        wait_until(lambda: not containers.all(), "its container is gone")
        assert json.loads((folder_of(job) / "end.json").read_text())["state"] == "CANCELLED"

    def test_retries_are_kept_apart(self, home: Path) -> None:
        experiment = run.Experiment("again", executor(retries=3), clean_mode=True)
        experiment.add(run.Partial(tasks.fail_until, 3), name="job")
        assert experiment.run() == {"job": 3}
        record = experiment.status(return_dict=True)["job"]
        assert (record["status"], record["exit_code"]) == (AppState.SUCCEEDED, 0)
        folder = experiment.path / "job"
        logs = [folder / "logs" / f"job_0{stem}.log" for stem in ("", ".attempt2", ".attempt3")]
        assert [path.read_text().splitlines()[0] for path in logs] == ["attempt 1", "attempt 2", "attempt 3"]
        assert sorted(path.name for path in (folder / "results").iterdir()) == [
            "job_0.attempt2.json", "job_0.attempt3.json", "job_0.json",
        ]  # fmt: skip
        attempts = json.loads((folder / "end.json").read_text())["attempts"]
        assert [each["exit_code"] for each in attempts] == [1, 1, 0]

    def test_the_last_attempts_failure_is_the_jobs(self, home: Path) -> None:
        job = submit(run.Script(inline='echo "$NEMORUN_ATTEMPT"; exit $((10 + NEMORUN_ATTEMPT))'), retries=1)
        status = ended(*job)
        assert (status.state, status.exit_code, status.attempt) == (AppState.FAILED, 12, 2)
        for follow in (False, True):
            assert list(job[0].logs(job[1], "job", follow=follow)) == ["1", "2"]

    def test_resources_are_sampled(self, home: Path) -> None:
        job = submit(run.Partial(tasks.be_busy, 3.0), monitor_resources=True)
        assert ended(*job).state == AppState.SUCCEEDED
        samples = [json.loads(line) for line in (folder_of(job) / "resources.jsonl").read_text().splitlines()]
        assert samples
        assert {"time", "processes", "cpu_percent", "rss_bytes"} <= samples[-1].keys()
        assert max(sample["cpu_percent"] for sample in samples) > 10
        assert max(sample["rss_bytes"] for sample in samples) > 2**20


# --- the Engine refuses ---------------------------------------------------------------------------------


def refusal(task: Any = None, **fields: Any) -> SubmitError:
    """Why a job is not submitted; nothing of it is left then, and no one finds it."""
    plan = prepare(task or run.Script(inline="true"), executor(**fields))
    member = plan.spec.members[0]
    with pytest.raises(SubmitError) as caught:
        member.submit(plan)
    assert member.find(plan.spec.token) is None
    assert not (plan.spec.job_dir / "docker.json").exists()
    return caught.value


class TestRefusals:
    def test_an_image_that_is_nowhere(self, home: Path, containers: Containers) -> None:
        said = str(refusal(container_image="localhost:1/no/such:image"))
        assert "image 'localhost:1/no/such:image' is not on the Engine and cannot be pulled" in said
        assert "docker login" in said
        assert containers.all() == []

    def test_a_gpu_where_there_is_none(self, home: Path, containers: Containers) -> None:
        said = str(refusal(num_gpus=1))
        assert "could not select device driver" in said
        assert "NVIDIA Container Toolkit" in said
        assert containers.all() == []

    def test_a_runtime_that_is_not_there(self, home: Path) -> None:
        assert "runtime" in str(refusal(runtime="nvidia"))

    def test_a_network_that_is_not_there(self, home: Path, containers: Containers) -> None:
        assert "no-such-net" in str(refusal(network="no-such-net"))
        assert containers.all() == []

    def test_a_port_that_is_taken(self, home: Path, containers: Containers) -> None:
        with socket.create_server(("", 0)) as server:
            ports = {"80/tcp": server.getsockname()[1]}
            said = str(refusal(additional_kwargs={"ports": ports}))
        assert "address already in use" in said
        assert containers.all() == []

    def test_a_name_that_is_taken(self, home: Path, containers: Containers) -> None:
        plan = prepare(run.Script(inline="true"), executor())
        [role] = plan.request["roles"]
        other = containers.client.containers.create(IMAGE, "true", name=role["kwargs"]["name"])
        try:
            with pytest.raises(SubmitError, match="is already in use by container"):
                plan.spec.members[0].submit(plan)
        finally:
            other.remove()

    def test_no_engine(self, home: Path, tmp_path: Path) -> None:
        nowhere = executor(base_url=f"unix://{tmp_path}/sock")
        plan = prepare(run.Script(inline="true"), nowhere)
        with pytest.raises(SubmitError, match=r"no Docker Engine is at unix://.*sock: start it"):
            plan.spec.members[0].submit(plan)
        plan = prepare(run.Script(inline="true"), executor(base_url="tcp://127.0.0.1:1"))
        with pytest.raises(SubmitError, match="does not answer"):
            plan.spec.members[0].submit(plan)

    def test_an_engine_that_does_not_answer_makes_no_job_a_failure(self, home: Path, tmp_path: Path) -> None:
        job = submit(run.Script(inline="sleep 100"))
        data = {**job[1].data, "url": f"unix://{tmp_path}/sock"}
        [status] = job[0].status([replace(job[1], data=data)])
        assert status.state == AppState.UNKNOWN
        assert "no Docker Engine" in status.message
        job[0].cancel(job[1])

    def test_members_of_a_group_agree_on_what_holds_for_all(self, home: Path) -> None:
        experiment = run.Experiment("group", clean_mode=True)
        script = run.Script(inline="true")
        experiment.add([script, script], [executor(timeout=1), executor(timeout=2)], name="group")
        with pytest.raises(UnsupportedError, match="differ in 'timeout'"):
            experiment.run()

    def test_without_dockers_library_the_pip_line_is_told(self, home: Path) -> None:
        code = (
            "import sys; sys.modules['docker'] = None\n"
            "from nemo_run.core.execution.docker_engine import connect\nconnect('unix:///x')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stderr.strip().splitlines()[-1] == (
            "nemo_run.errors.MissingDependencyError: DockerExecutor needs Docker's library: "
            'pip install "nemo_run[docker]"'
        )


# --- groups ---------------------------------------------------------------------------------------------


class TestGroups:
    def test_members_reach_each_other_by_name(self, home: Path, containers: Containers) -> None:
        experiment = run.Experiment("names", executor(), clean_mode=True)
        experiment.add(
            [run.Partial(tasks.serve_once, "hello"), run.Partial(tasks.ask_server, "serve_once")], name="pair"
        )
        assert experiment.run() == {"pair": {"serve_once": None, "ask_server": "hello"}}
        containers.assert_gone()

    def test_the_failure_of_one_is_named_and_ends_the_others(
        self, home: Path, containers: Containers
    ) -> None:
        experiment = run.Experiment("group", executor(), clean_mode=True, raise_on_failure=False)
        experiment.add([run.Script(inline="sleep 1000"), run.Script(inline="exit 7")], name="group")
        experiment.run()
        record = experiment.status(return_dict=True)["group"]
        assert (record["status"], record["exit_code"]) == (AppState.FAILED, 7)
        assert record["message"] == "exit_7: exit code 7"
        containers.assert_gone()

    def test_a_group_is_cancelled_as_a_whole(self, home: Path, containers: Containers) -> None:
        experiment = run.Experiment("group", executor(), clean_mode=True, raise_on_failure=False)
        experiment.add([run.Script(inline="sleep 1000")] * 2, name="group")
        experiment.run(detach=True)
        wait_until(lambda: len(containers.all()) == 2, "both are there")
        experiment.cancel("group")
        containers.assert_gone(within=30)
        assert experiment.status(return_dict=True)["group"]["status"] == AppState.CANCELLED

    @pytest.mark.parametrize("refusals", [2, 9])
    def test_a_network_that_the_engine_keeps_is_tried_again_and_then_named(
        self,
        home: Path,
        tmp_path: Path,
        containers: Containers,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        refusals: int,
    ) -> None:
        """A double in place of the Engine's refusal, in the words of one that miscounted."""
        import docker
        import requests

        name, engine = f"kept-{tmp_path.name}", connect(address(None))
        engine.create_network(name, {TOKEN: "t", JOB_DIR: f"{tmp_path}/job"})
        remove, refused = engine._api.remove_network, list[str]()

        def refusing(name: str) -> None:
            if len(refused) < refusals:
                refused.append(name)
                said = f"error while removing network: network {name} id 9dcb has active endpoints"
                response = requests.Response()
                response.status_code = 403
                raise docker.errors.APIError("403 Client Error", response, said)
            remove(name)

        monkeypatch.setattr(engine._api, "remove_network", refusing)
        engine.remove_network(name)
        assert bool(containers.networks()) == (refusals == 9)
        assert (f"docker network rm {name}" in caplog.text) == (refusals == 9)

    def test_a_network_of_the_engine_s_own_is_left_without_a_word(
        self, home: Path, containers: Containers, caplog: pytest.LogCaptureFixture
    ) -> None:
        connect(address(None)).remove_network("none")
        assert "none" in [network.name for network in containers.client.networks.list()]
        assert not caplog.text


# --- what it costs --------------------------------------------------------------------------------------


def test_what_needs_no_engine_does_not_ask_one(home: Path) -> None:
    job = submit(run.Script(inline="echo done"))
    status = ended(*job)
    code = (
        "import json, sys; from nemo_run.core.execution.base import JobHandle\n"
        "from nemo_run.core.execution.docker import DockerExecutor\n"
        "handle = JobHandle.from_json(json.loads(sys.argv[1])); it = DockerExecutor(container_image='x')\n"
        "print(it.status([handle])[0].state.name, *it.logs(handle, 'job'), 'docker' in sys.modules)"
    )
    argv = [sys.executable, "-c", code, json.dumps(job[1].to_json())]
    env = {**os.environ, "DOCKER_HOST": "unix:///nowhere"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env)
    assert (done.stdout, status.state) == ("SUCCEEDED done False\n", AppState.SUCCEEDED), done.stderr


def test_a_job_that_has_ended_leaves_nothing_on_the_engine(home: Path, containers: Containers) -> None:
    job = submit(run.Script(inline="echo something"))
    ended(*job)
    assert containers.all() == []
    names = {path.name for path in folder_of(job).iterdir()}
    assert "end.json" in names
    assert "docker.json" not in names


def test_a_job_that_needs_nobody_while_it_runs_has_no_keeper(home: Path) -> None:
    job = submit(run.Script(inline="true"))
    ended(*job)
    assert not (folder_of(job) / "keeper.json").exists()


def test_many_looks_at_once_do_not_harm_each_other(home: Path) -> None:
    job = submit(run.Script(inline="seq 1000"))
    code = (
        "import json, sys; from nemo_run.core.execution.base import JobHandle\n"
        "from nemo_run.core.execution.docker import DockerExecutor\n"
        "handle = JobHandle.from_json(json.loads(sys.argv[1])); it = DockerExecutor(container_image='x')\n"
        "while (s := it.status([handle])[0]).state.name not in ('SUCCEEDED', 'FAILED', 'UNKNOWN'): pass\n"
        "print(s.state.name, s.exit_code, len(list(it.logs(handle, 'job'))))"
    )
    argv = [sys.executable, "-c", code, json.dumps(job[1].to_json())]
    lookers = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [looker.communicate(timeout=60)[0] for looker in lookers] == ["SUCCEEDED 0 1000\n"] * 4
