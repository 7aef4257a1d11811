"""Executors of launch scripts: what each becomes, and local ones on processes and on a real Engine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deeds import environment, lines, nemo, until
from dockers import IMAGE, Containers
from xms import ends_in, launch, script, sh

import nemo_run as run
from nemo_run import xm, xm_local
from nemo_run.run.store import Store
from nemo_run.xm_local import backends
from nemo_run.xm_local.executables import ContainerImage, LocalBinary

pytestmark = pytest.mark.usefixtures("home")

REFERENCE = "registry.example/team/train@sha256:" + "0" * 64
PLACE = backends.Place(full_name=lambda name: f"17_1_{name}", network="nemo_run_17")
QUIET: dict[str, Any] = {"experimental_stream_output": False}


def image(executor: xm.Executor, name: str = "job", **given: Any) -> xm.Job:
    return xm.Job(ContainerImage(name="train", image=REFERENCE), executor, name=name, **given)


def program(executor: xm.Executor, name: str = "job", **given: Any) -> xm.Job:
    return xm.Job(LocalBinary(name="sh", path="/bin/sh"), executor, name=name, **given)


def made(job: xm.Job) -> Any:
    """The engine's executor of a job."""
    ((engine_job),) = backends.engine_jobs("1", [job], PLACE)
    return engine_job.executors[0]


def differing(executor: Any, plain: Any) -> dict[str, Any]:
    """Those fields that are not as in a plain one."""
    return {name: value for name, value in vars(executor).items() if value != getattr(plain, name)}


# --- what scripts write ---------------------------------------------------------------------------------

NEEDS = xm.JobRequirements(cpu=2, ram=4 * xm.GiB)


@pytest.mark.parametrize(
    "kind",
    [xm_local.Local, xm_local.Vertex, xm_local.Caip, xm_local.Kubernetes, xm_local.Slurm, xm_local.Skypilot],
)
def test_requirements_are_given_first_or_by_either_name(kind: Any) -> None:
    assert kind(NEEDS) == kind(requirements=NEEDS) == kind(resources=NEEDS)
    assert kind(NEEDS) != kind()
    assert kind().requirements == xm.JobRequirements()
    with pytest.raises(TypeError, match="mean the same"):
        kind(NEEDS, resources=NEEDS)
    with pytest.raises(TypeError, match="requirements of"):
        kind({"cpu": 2})


def test_each_executor_has_its_spec() -> None:
    assert xm_local.Local.Spec() == xm_local.Local().Spec() == xm_local.LocalSpec()
    assert xm_local.Caip.Spec(push_image_tag="x").push_image_tag == "x"
    assert xm_local.Kubernetes.Spec(push_image_tag="x") == xm_local.KubernetesSpec("x")
    assert (xm_local.Slurm.Spec(), xm_local.Skypilot.Spec()) == (
        xm_local.SlurmSpec(),
        xm_local.SkypilotSpec(),
    )
    assert (xm_local.Caip, xm_local.CaipSpec) == (xm_local.Vertex, xm_local.VertexSpec)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: xm_local.Local(docker_options={"ports": {}}), "docker_options of Local"),
        (lambda: xm_local.DockerOptions(volumes=["/a:/b"]), "DockerOptions.volumes is a dict"),
        (lambda: xm_local.DockerOptions(ports=8080), "DockerOptions.ports is a dict"),
    ],
)
def test_options_of_a_wrong_kind_are_refused(wrong: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        wrong()


def test_a_program_cannot_run_where_only_images_do() -> None:
    for executor in (xm_local.Kubernetes(), xm_local.Vertex()):
        with pytest.raises(run.UnsupportedError, match="runs images, and 'sh' is a program of this machine"):
            made(program(executor))


# --- what they become -----------------------------------------------------------------------------------


def test_a_local_program_is_a_process_with_its_limits() -> None:
    executor = made(program(xm_local.Local(NEEDS)))
    assert type(executor) is run.LocalExecutor
    assert (executor.cpu_limit, executor.memory_limit) == (min(2, os.cpu_count() or 1), 4 * xm.GiB)
    assert executor.parallel_limit() > 1000  # XManager starts all there are


def test_a_local_image_is_a_container_with_its_limits_ports_and_volumes(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("gcs", ".config/gcloud", "data"):
        (tmp_path / folder).mkdir(parents=True)
    volumes = {"~/data": "/data"}
    options = xm_local.DockerOptions(ports={8080: 9090}, volumes=volumes)
    executor = made(image(xm_local.Local(NEEDS, options), name="web"))
    assert type(executor) is run.DockerExecutor
    assert (executor.container_image, executor.memory_limit) == (REFERENCE, 4 * xm.GiB)
    assert (executor.shared_network, executor.aliases) == ("nemo_run_17", ["17_1_web"])
    assert executor.additional_kwargs == {"hostname": "17_1_web", "ports": {"8080": 9090}}
    assert executor.volumes == [
        f"{tmp_path}/data:/data",
        f"{tmp_path}/gcs:/gcs",
        f"{tmp_path}/.config/gcloud:/root/.config/gcloud:ro",
    ]
    assert volumes == {"~/data": "/data"}, "the script's own dict is as it was"
    bare = xm_local.Local(docker_options=xm_local.DockerOptions(mount_gcs_path=False))
    assert made(image(bare)).volumes == []


def test_what_local_jobs_cannot_be_given_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made(program(xm_local.Local(xm.JobRequirements(T4=1))))
    assert "T4" in caplog.text.upper()
    with pytest.raises(ValueError, match="its executable is no container"):
        made(program(xm_local.Local(docker_options=xm_local.DockerOptions(ports={1: 2}))))


@pytest.mark.parametrize(
    ("requirements", "fields"),
    [
        (xm.JobRequirements(), {}),
        (xm.JobRequirements(cpu=1.5, ram=3 * xm.GiB), {"cpus_per_task": 2, "mem": "3072M"}),
        (xm.JobRequirements(local_gpu=2), {"gpus_per_node": 2}),
        (xm.JobRequirements(a100=4, replicas=3), {"gres": "gpu:a100:4", "nodes": 3}),
        (xm.JobRequirements(h100="8x2"), {"gres": "gpu:h100:8", "nodes": 2}),
    ],
)
def test_requirements_on_slurm(requirements: xm.JobRequirements, fields: dict[str, Any]) -> None:
    template = run.SlurmExecutor(account="team", partition="gpu", time="1:00:00", packager=run.Packager())
    assert differing(made(program(xm_local.Slurm(requirements, executor=template))), template) == fields


@pytest.mark.parametrize(
    ("requirements", "fields"),
    [
        (xm.JobRequirements(), {}),
        (
            xm.JobRequirements(cpu=0.5, ram=2 * xm.GiB, ephemeral_storage=xm.GiB, replicas=2),
            {"cpus": 0.5, "memory": 2 * xm.GiB, "ephemeral_storage": xm.GiB, "nodes": 2},
        ),
        (xm.JobRequirements(t4=2), {"gpus_per_node": 2, "gpu_type": "t4"}),
        (xm.JobRequirements(a100_80gib="8x2"), {"gpus_per_node": 8, "gpu_type": "a100-80gb", "nodes": 2}),
        (xm.JobRequirements(local_gpu=1), {"gpus_per_node": 1}),
        (xm.JobRequirements(tpu_v5e="4x4"), {"tpu_type": "v5e", "tpu_topology": "4x4", "nodes": 4}),
        (xm.JobRequirements(tpu_v6e=8), {"tpu_type": "v6e", "tpu_topology": "2x4"}),
    ],
)
def test_requirements_on_kubernetes(requirements: xm.JobRequirements, fields: dict[str, Any]) -> None:
    template = run.KubernetesExecutor(container_image=REFERENCE, namespace="team", packager=run.Packager())
    executor = made(image(xm_local.Kubernetes(requirements, executor=template)))
    assert differing(executor, template) == fields


def test_kubernetes_of_another_provider_has_no_labels_of_google_s() -> None:
    executor = made(image(xm_local.Kubernetes(xm.JobRequirements(t4=1), cloud_provider="MINE")))
    assert (executor.gpus_per_node, executor.gpu_type, executor.container_image) == (1, None, REFERENCE)
    capable = xm_local.Kubernetes(tpu_capability=xm_local.TpuCapability("2.6"))
    assert made(image(capable)).annotations == {"tf-version.cloud-tpus.google.com": "2.6"}


@pytest.mark.parametrize(
    ("requirements", "fields"),
    [
        (xm.JobRequirements(), {}),
        (
            xm.JobRequirements(cpu=1, ram=4 * xm.GiB, T4=1),
            {"cpus": 1, "memory": 4 * xm.GiB, "gpus_per_node": 1, "gpu_type": "t4"},
        ),
        (xm.JobRequirements(a100="8x2"), {"gpus_per_node": 8, "gpu_type": "a100", "nodes": 2}),
        (xm.JobRequirements(TPU_V2=8), {"tpu_type": "v2", "tpus": 8}),
        (xm.JobRequirements(tpu_v5e=16), {"tpu_type": "v5e", "tpus": 16}),
    ],
)
def test_requirements_on_vertex(requirements: xm.JobRequirements, fields: dict[str, Any]) -> None:
    template = run.VertexExecutor(
        container_image=REFERENCE, project="my-project", region="europe-west4", packager=run.Packager()
    )
    executor = made(image(xm_local.Vertex(requirements, executor=template)))
    assert differing(executor, template) == fields


@pytest.mark.parametrize(
    ("requirements", "fields"),
    [
        (xm.JobRequirements(), {}),
        (xm.JobRequirements(cpu=4, ram=16 * xm.GB), {"cpus": "4+", "memory": "16+"}),
        (xm.JobRequirements(a100_80gib="8x2"), {"gpus": "A100-80GB", "gpus_per_node": 8, "num_nodes": 2}),
    ],
)
def test_requirements_on_skypilot(requirements: xm.JobRequirements, fields: dict[str, Any]) -> None:
    template = run.SkypilotExecutor(cloud="aws", use_spot=True, packager=run.Packager())
    assert differing(made(program(xm_local.Skypilot(requirements, executor=template))), template) == fields


def test_skypilot_is_told_accelerators_in_its_own_words() -> None:
    for requirements in (xm.JobRequirements(tpu_v5e="2x4"), xm.JobRequirements(local_gpu=1)):
        with pytest.raises(run.UnsupportedError, match="SkyPilot has its own names"):
            made(program(xm_local.Skypilot(requirements)))


def test_vertex_takes_project_and_bucket_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
    monkeypatch.setenv("GOOGLE_CLOUD_BUCKET_NAME", "bucket")
    monkeypatch.setattr(sys, "argv", ["launcher.py", "--xm_gcp_service_account_name=trainer"])
    board = xm_local.TensorboardCapability("123", base_output_directory="bucket/logs")
    executor = made(image(xm_local.Vertex(tensorboard=board)))
    assert (executor.project, executor.staging_bucket) == ("my-project", "gs://bucket")
    assert (executor.tensorboard, executor.base_output_dir) == ("123", "gs://bucket/logs")
    assert executor.service_account == "trainer@my-project.iam.gserviceaccount.com"


def test_the_service_account_of_pods_is_that_of_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["launcher.py", "--xm_k8s_service_account_name", "runner"])
    assert made(image(xm_local.Kubernetes())).service_account == "runner"


def test_an_executor_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match=r"executor of xm_local.Slurm is a run.SlurmExecutor"):
        made(program(xm_local.Slurm(executor=run.LocalExecutor())))  # type: ignore[arg-type]


def test_a_group_of_several_kinds_is_a_job_for_each(tmp_path: Path) -> None:
    group = [
        program(xm_local.Local(), name="a"),
        image(xm_local.Local(), name="b"),
        program(xm_local.Local(), name="c"),
    ]
    jobs = backends.engine_jobs("7", group, PLACE)
    assert {job.id: job.roles for job in jobs} == {"7": ["a", "c"], "7.docker": ["b"]}


def test_args_of_the_executable_come_before_those_of_the_job() -> None:
    executable = ContainerImage(
        name="train",
        image=REFERENCE,
        args=xm.merge_args({"lr": 1, "n": 2}, ["x"]),
        env_vars={"A": "1", "B": "2"},
    )
    job = xm.Job(executable, xm_local.Local(), args={"lr": 3}, env_vars={"B": "3"})
    ((engine_job),) = backends.engine_jobs("1", [job], PLACE)
    (task,) = engine_job.tasks
    assert isinstance(task, run.Script)
    assert (task.entrypoint, task.path, task.args) == ("", "", ["--lr=3", "--n=2", "x"])
    assert task.env == {"A": "1", "B": "3"}


# --- on this machine ------------------------------------------------------------------------------------


def test_a_process_is_held_to_its_requirements(tmp_path: Path) -> None:
    needs = xm.JobRequirements(cpu=1, ram=100 * xm.MiB)
    taking = "import os, time; print(len(os.sched_getaffinity(0)), flush=True); x = b'x' * (400 << 20)"
    taking += "; time.sleep(30)"
    job = xm.Job(
        LocalBinary(name="python", path=sys.executable), xm_local.Local(needs, **QUIET), args=["-c", taking]
    )
    with (
        ends_in(xm.ExperimentUnitFailedError, "OUT_OF_MEMORY"),
        xm_local.create_experiment("held") as experiment,
    ):
        experiment.add(job)
    assert (experiment.path / "1" / "logs" / "python_0.log").read_text().startswith("1\n")


def python(program: str) -> str:
    """Words of a shell that run a Python program."""
    return f'python3 -c "import os, socket; {program}"'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def container(words: str, name: str | None = None, **options: Any) -> xm.Job:
    """A container that runs a shell's words."""
    executor = xm_local.Local(docker_options=xm_local.DockerOptions(**options), **QUIET)
    return xm.Job(ContainerImage(name="sh", image=IMAGE), executor, name=name, args=["sh", "-c", words])


def test_a_container_that_fails_is_a_failure(containers: Containers) -> None:
    """XManager took each end of a container for a success."""
    with (
        ends_in(xm.ExperimentUnitFailedError, "exit code 3"),
        xm_local.create_experiment("code") as experiment,
    ):
        experiment.add(container("echo oh no; exit 3"))
    containers.assert_gone()


def test_the_logs_of_twenty_short_containers_are_complete(containers: Containers, capfd: Any) -> None:
    """XManager lost eighteen of them."""
    with xm_local.create_experiment("short") as experiment:
        for number in range(20):
            job = container(f"echo begin {number}; echo end {number} >&2")
            job.executor.experimental_stream_output = True  # type: ignore[attr-defined]
            experiment.add(job)
    for number in range(20):
        log = experiment.path / str(number + 1) / "logs" / "sh_0.log"
        assert log.read_text() == f"begin {number}\nend {number}\n"
    printed = capfd.readouterr().out.splitlines()
    assert sorted(printed) == sorted(f"[sh] {word} {n}" for n in range(20) for word in ("begin", "end"))
    containers.assert_gone()


def test_containers_of_an_experiment_reach_each_other_by_their_full_names(containers: Containers) -> None:
    server = python("s = socket.create_server(('', 8000)); s.accept()[0].send(b'hello')")
    ask = python("print(socket.create_connection((os.environ['HOST'], 8000)).recv(9).decode())")
    client = f"for i in $(seq 100); do {ask} 2>/dev/null && exit 0; sleep 0.1; done; exit 1"

    async def serve(unit: xm.WorkUnit) -> None:
        await unit.add(container(server, name="server"))
        await unit.experiment.add(
            container(client, name="client"), {"env_vars": {"HOST": unit.get_full_job_name("server")}}
        )

    with xm_local.create_experiment("talk") as experiment:
        experiment.add(serve)
    assert (experiment.path / "2" / "logs" / "client_0.log").read_text() == "hello\n"
    containers.assert_gone()


def test_a_group_of_containers_goes_by_short_names_too(containers: Containers) -> None:
    server = "exec python3 -m http.server 8000 >/dev/null 2>&1"
    client = (
        "for i in $(seq 100); do python3 -c 'import urllib.request as u; u.urlopen(\"http://server:8000\")'"
        " 2>/dev/null && exit 7; sleep 0.1; done; exit 1"
    )
    with (
        ends_in(xm.ExperimentUnitFailedError, "exit code 7"),
        xm_local.create_experiment("group") as experiment,
    ):
        experiment.add(xm.JobGroup(server=container(server), client=container(client)))
    containers.assert_gone()


def test_arguments_and_environment_of_a_container_arrive_byte_for_byte(
    containers: Containers, tmp_path: Path
) -> None:
    words = ["a b", "a'b", 'a"b', "$a", "`a`", ";", "\\", "new\nline", "é日", "", "*"]
    program = 'printf \'%s\\0\' "$X" "$@" >/out/got'
    job = container(program, volumes={str(tmp_path): "/out"})
    with xm_local.create_experiment("bytes") as experiment:
        experiment.add(job, {"args": ["sh", *words], "env_vars": {"X": 'k="v $a'}})
    assert (tmp_path / "got").read_bytes().decode().split("\0")[:-1] == ['k="v $a', *words]


def test_ports_and_volumes_of_a_container(containers: Containers, tmp_path: Path) -> None:
    (tmp_path / "page").write_text("from the volume")
    port = free_port()
    job = container(
        "cd /data; exec python3 -m http.server 8000", ports={8000: port}, volumes={str(tmp_path): "/data"}
    )
    with xm_local.create_experiment("web") as experiment:
        unit = experiment.add(job).result(60)
        fetch = [
            "python3",
            "-c",
            f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/page').read().decode())",
        ]

        def fetched() -> str:
            return subprocess.run(fetch, capture_output=True, text=True).stdout.strip()

        assert until(fetched, "the server answers", 30) == "from the volume"
        unit.stop()


def test_containers_that_come_and_go_share_their_network(containers: Containers) -> None:
    """The network goes with its last container, while others may be about to join it."""

    async def one_by_one(unit: xm.WorkUnit) -> None:
        for number in range(3):
            await unit.add(container("true", name=f"job{number}"))
            await unit.wait_until_complete()

    with xm_local.create_experiment("network") as experiment:
        for _ in range(5):
            experiment.add(one_by_one)
    assert all(unit.get_status().is_completed for unit in experiment.work_units.values())
    containers.assert_gone(within=10)


def test_a_group_of_programs_and_containers_ends_together(containers: Containers, tmp_path: Path) -> None:
    with (
        ends_in(xm.ExperimentUnitFailedError, "exit code 4"),
        xm_local.create_experiment("mixed") as experiment,
    ):
        experiment.add(xm.JobGroup(here=sh("sleep 1; exit 4"), there=container("exec sleep 600")))
    found = {record.id for record in Store(experiment.path).experiment().jobs}
    assert found == {"1", "1.docker"}
    assert experiment.work_units[1].get_status().is_failed
    containers.assert_gone()


def test_the_digest_of_an_image_is_kept(containers: Containers) -> None:
    executable = ContainerImage(name="sh", image=IMAGE, digest="sha256:abc")
    with xm_local.create_experiment("digest") as experiment:
        experiment.add(xm.Job(executable, xm_local.Local(**QUIET), args=["true"]))
    kept = json.loads((experiment.path / "1" / "unit.json").read_text())["jobs"][0]["executable"]
    assert kept == {"kind": "ContainerImage", "name": "sh", "image": IMAGE, "digest": "sha256:abc"}
    executor = json.loads((experiment.path / "1" / "executor.json").read_text())
    assert IMAGE in json.dumps(executor)


def test_gpus_of_containers_are_named_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    place = backends.Place(full_name=lambda name: name, network="x", gpus={"job": ["0", "3"]})
    ((engine_job),) = backends.engine_jobs(
        "1", [image(xm_local.Local(xm.JobRequirements(local_gpu=2)))], place
    )
    executor = engine_job.executors[0]
    assert isinstance(executor, run.DockerExecutor)
    assert (executor.gpu_ids, executor.num_gpus) == (["0", "3"], None)


def test_what_containers_share_is_shown_in_their_plan(capsys: pytest.CaptureFixture[str]) -> None:
    executor = run.DockerExecutor(
        container_image=IMAGE,
        shared_network="net",
        aliases=["me"],
        gpu_ids=["0", "3"],
        packager=run.Packager(),
    )
    experiment = run.Experiment("plan", clean_mode=True)
    experiment.add(run.Script(inline="true"), executor, name="job")
    experiment.dryrun()
    text = capsys.readouterr().out
    for words in ("docker network create net", "--network net", "--network-alias me", "'\"device=0,3\"'"):
        assert words in text
    for fields in ({"network": "a", "shared_network": "b"}, {"num_gpus": 1, "gpu_ids": ["0"]}):
        with pytest.raises(run.ConfigError, match="give one of them"):
            run.DockerExecutor(container_image=IMAGE, **fields)  # type: ignore[arg-type]


def test_an_interactive_container_needs_a_terminal(tmp_path: Path) -> None:
    path = script(
        tmp_path / "interactive.py",
        f"""
        from nemo_run.xm_local.executables import ContainerImage
        options = xm_local.DockerOptions(interactive=True)
        with xm_local.create_experiment("interactive") as experiment:
            job = xm.Job(ContainerImage(name="sh", image="{IMAGE}"), xm_local.Local(docker_options=options))
            experiment.add(job)
        """,
    )
    done = launch(path)
    assert done.returncode == 1
    assert "interactive=True needs a terminal" in done.stderr


def test_a_person_has_a_shell_in_a_container(containers: Containers, tmp_path: Path) -> None:
    path = script(
        tmp_path / "interactive.py",
        f"""
        from nemo_run.xm_local.executables import ContainerImage
        options = xm_local.DockerOptions(interactive=True, volumes={{"{tmp_path}": "/out"}})
        with xm_local.create_experiment("interactive") as experiment:
            image = ContainerImage(name="sh", image="{IMAGE}", env_vars={{"WORD": "hello"}})
            experiment.add(xm.Job(image, xm_local.Local(docker_options=options)))
        print("the experiment has ended")
        """,
    )
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, str(path)], stdin=slave, stdout=slave, stderr=slave, env=environment(), cwd=tmp_path
    ) as process:
        os.close(slave)
        os.write(master, b"echo $WORD >/out/said; exit 3\n")
        shown = b""
        with contextlib.suppress(OSError):  # Linux says EIO when nobody has the terminal open any more
            while part := os.read(master, 65536):
                shown += part
    os.close(master)
    assert (process.returncode, lines(tmp_path / "said")) == (0, ["hello"]), shown
    assert b"the experiment has ended" in shown


# --- on a cluster ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("slurm")
def test_a_sweep_of_a_program_runs_on_slurm(tmp_path: Path) -> None:
    """What XManager never had."""
    executor = xm_local.Slurm(
        xm.JobRequirements(cpu=1), executor=run.SlurmExecutor(time="5", packager=run.Packager())
    )
    with xm_local.create_experiment("slurm") as experiment:
        for number in range(3):
            experiment.add(
                sh(f'echo "$SLURM_CPUS_PER_TASK $@" >>{tmp_path}/trace', "sh", executor=executor),
                {"args": {"n": number}},
            )
    assert sorted(lines(tmp_path / "trace")) == ["1 --n=0", "1 --n=1", "1 --n=2"]
    assert "SUCCEEDED" in nemo("experiment", "status", "slurm").stdout
