"""Launchers make one command from another; what is shell or Python in it is run here."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import venv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import user_tasks
from contracts.executor import HOSTILE, SHOW
from deeds import launch
from hypothesis import given
from hypothesis import strategies as st
from ports import take_ports
from rays import make_stand_in, told

import nemo_run as run
from nemo_run.core import runner
from nemo_run.core.execution.launcher import get_launcher
from nemo_run.run.results import first_error
from nemo_run.shell import concat, join

ONE = run.Topology(procs_per_node=2)
FOUR = run.Topology(
    nodes=4,
    procs_per_node=8,
    head_address=run.Expand("$head_node_ip"),
    node_rank=run.Expand("$SLURM_NODEID"),
    local_rank=run.Expand("$SLURM_LOCALID"),
)
TASK = run.Command(argv=("/py", "/runner.py", "/job", "train", "RANK"), python="/py", rundir="/job")
RENDEZVOUS = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", "6524"]
SIZE = ["--nnodes", "1", "--nproc-per-node", "2", "--node-rank", "0"]
REST = ["--log-dir", "/dev/null", "--no-python"]


def wrapped(launcher: run.Launcher, *argv: str, topology: run.Topology = ONE) -> list[str]:
    """What a launcher makes of a command."""
    return list(launcher.launch(replace(TASK, argv=argv or TASK.argv), topology).argv)


def output(argv: Any, **env: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    return done.stdout


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# --- torchrun -------------------------------------------------------------------------------------------


def test_without_a_launcher_a_command_stays_as_it_is() -> None:
    for launcher in (None, "default", run.Launcher()):
        assert get_launcher(launcher).launch(TASK, FOUR) is TASK


def test_torchrun_on_one_node_meets_at_any_free_port() -> None:
    program = ["/py", "-m", "torch.distributed.run", *RENDEZVOUS, *SIZE, *REST]
    assert wrapped(run.Torchrun()) == [*program, *TASK.argv]
    assert wrapped(get_launcher("torchrun")) == [*program, *TASK.argv]
    assert wrapped(run.Torchrun(rdzv_id=7))[7:9] == ["--rdzv-id", "7"]


def test_torchrun_on_four_nodes_leaves_addresses_to_the_shell_on_the_node() -> None:
    line = join(wrapped(run.Torchrun(rdzv_port=1234), topology=FOUR))
    assert line == (
        "/py -m torch.distributed.run --rdzv-backend c10d"
        ' --rdzv-endpoint "$head_node_ip:1234" --rdzv-id 5870 --nnodes 4 --nproc-per-node 8'
        ' --node-rank "$SLURM_NODEID" --log-dir /dev/null --no-python /py /runner.py /job train RANK'
    )


def test_all_nodes_know_each_other_by_one_number_that_follows_from_where_they_meet() -> None:
    here = run.Topology(nodes=2, head_address="10.0.0.1", head_port="4000")
    lines = [wrapped(run.Torchrun(), topology=replace(here, node_rank=rank)) for rank in ("0", "1")]
    assert lines[0][5:9] == lines[1][5:9] == ["--rdzv-endpoint", "10.0.0.1:4000", "--rdzv-id", "9619"]
    there = wrapped(run.Torchrun(), topology=replace(here, head_port="4001"))
    assert there[5:9] == ["--rdzv-endpoint", "10.0.0.1:4001", "--rdzv-id", "2995"]
    assert wrapped(run.Torchrun(), topology=replace(here, head_address="::1"))[6] == "[::1]:4000"


def test_where_nobody_knows_the_first_node_this_is_said_before_anything_starts(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    executor = run.LocalExecutor(nodes=2, launcher="torchrun")
    with pytest.raises(run.ConfigError, match=r"over 2 nodes.*MASTER_ADDR.*NODE_RANK"):
        run.run(run.Script(inline="true"), executor=executor)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "http")
    with pytest.raises(run.ConfigError, match="MASTER_PORT is 'http'"):
        run.run(run.Script(inline="true"), executor=executor)
    assert not home.exists()


def test_the_launching_environment_says_where_nodes_on_this_machine_meet(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NODE_RANK", raising=False)
    for name, value in {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000", "SLURM_NODEID": "1"}.items():
        monkeypatch.setenv(name, value)
    executor = run.LocalExecutor(nodes=2, ntasks_per_node=3, launcher="torchrun")
    run.run(run.Script(inline="true"), executor=executor, dryrun=True)
    printed = capsys.readouterr().out
    assert (
        "--rdzv-endpoint 10.0.0.1:4000 --rdzv-id 9619 --nnodes 2 --nproc-per-node 3 --node-rank 1" in printed
    )


def test_a_packager_that_asks_for_debugging_makes_torch_verbose_unless_the_user_says_otherwise() -> None:
    command = replace(TASK, debug=True, env={"TORCH_DISTRIBUTED_DEBUG": "INFO", "A": "b"})
    assert run.Torchrun().launch(command, ONE).env == {
        "CUDA_LAUNCH_BLOCKING": "1",
        "NCCL_DESYNC_DEBUG": "1",
        "TORCH_DISTRIBUTED_DEBUG": "INFO",
        "TORCH_SHOW_CPP_STACKTRACES": "1",
        "A": "b",
    }
    assert run.Torchrun().launch(replace(command, debug=False), ONE).env == command.env


def test_what_a_shell_expands_is_expanded_by_each_rank() -> None:
    words = wrapped(run.Torchrun(), "show", run.Expand("$RANK of $(echo two)"), "$RANK")
    # torchrun itself turns `$$` into `$`.
    assert words[-3:] == ["/bin/sh", "-c", "exec show \"$$RANK of $$(echo two)\" '$$RANK'"]
    assert run.Expand not in map(type, words)


# --- the fault-tolerant launcher ------------------------------------------------------------------------


def test_ft_has_an_option_for_each_field() -> None:
    launcher = run.FaultTolerance(
        cfg_path="/cfg.yaml",
        job_results_file="/results",
        rdzv_id=5,
        workload_check_interval=1,
        initial_rank_heartbeat_timeout=60.5,
        rank_heartbeat_timeout=30,
        rank_termination_signal="SIGUSR1",
        log_level="DEBUG",
        max_restarts=3,
    )
    # fmt: off
    assert wrapped(launcher) == [
        "/py", "-m", "nvidia_resiliency_ext.fault_tolerance.launcher", *RENDEZVOUS[:-1], "5", *SIZE,
        "--max-restarts", "3", "--ft-workload-check-interval", "1",
        "--ft-initial-rank-heartbeat-timeout", "60.5", "--ft-rank-heartbeat-timeout", "30",
        "--ft-rank-termination-signal", "SIGUSR1", "--ft-log-level", "DEBUG", "--ft-cfg-path", "/cfg.yaml",
        *REST, *TASK.argv,
    ]
    # fmt: on
    assert launcher.launch(TASK, ONE).env == {
        "FAULT_TOL_CFG_PATH": "/cfg.yaml",
        "FAULT_TOL_JOB_RESULTS_FILE": "/results",
    }


def test_ft_by_its_name_has_the_one_setting_without_which_it_does_not_start() -> None:
    program = ["/py", "-m", "nvidia_resiliency_ext.fault_tolerance.launcher", *RENDEZVOUS, *SIZE]
    assert wrapped(get_launcher("ft")) == [*program, "--ft-log-level", "INFO", *REST, *TASK.argv]


def test_ft_starts_nothing_where_the_training_has_said_that_it_is_finished(tmp_path: Path) -> None:
    flag = tmp_path / "it's $finished"
    launcher = run.FaultTolerance(finished_flag_file=str(flag))
    python = program(tmp_path / "python", '#!/bin/sh\necho "started $FAULT_TOL_FINISHED_FLAG_FILE"\n')
    command = launcher.launch(replace(TASK, python=str(python)), ONE)
    assert output(command.argv, **command.env) == f"started {flag}\n"
    flag.touch()
    assert output(command.argv, **command.env) == f"not started: {flag} says that it is finished\n"


# --- nsys -----------------------------------------------------------------------------------------------

#: Stands for NVIDIA's profiler: says what it was given, and runs the command if it is made of `show`s.
NSYS = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
EXTRA = [
    "--force-overwrite=true", "--capture-range=cudaProfilerApi", "--capture-range-end=stop",
    "--cuda-graph-trace=node", "--cuda-event-trace=false",
]  # fmt: skip


@pytest.fixture
def nsys(tmp_path: Path) -> str:
    """A PATH with a program of that name."""
    return f"{program(tmp_path / 'bin' / 'nsys', NSYS).parent}{os.pathsep}{os.environ['PATH']}"


def test_profiling_is_a_wrap_around_a_wrap(tmp_path: Path, nsys: str) -> None:
    command = replace(TASK, rundir=str(tmp_path / "50% 'job'"))
    inner = list(run.Torchrun().launch(command, ONE).argv)
    argv = run.Torchrun(nsys_profile=True).launch(command, ONE).argv
    target = f"{tmp_path}/50%% 'job'/nsys_profile/profile_%p"
    given = ["profile", "-s", "none", "-t", "nvtx,cuda", "-o", target, *EXTRA, *inner]
    assert json.loads(output(argv, PATH=nsys)) == given
    assert (tmp_path / "50% 'job'" / "nsys_profile").is_dir()


def test_profiling_has_a_folder_a_name_traces_and_words_of_its_own(tmp_path: Path, nsys: str) -> None:
    launcher = run.Launcher(
        nsys_profile=True,
        nsys_folder="a b",
        nsys_filename="$x",
        nsys_trace=["osrt"],
        nsys_extra_args=["-w", "$(no)"],
    )
    argv = launcher.launch(replace(TASK, rundir=str(tmp_path)), ONE).argv
    given = json.loads(output(argv, PATH=nsys))
    assert given == [
        "profile",
        "-s",
        "none",
        "-t",
        "osrt",
        "-o",
        f"{tmp_path}/a b/$x",
        "-w",
        "$(no)",
        *TASK.argv,
    ]


@pytest.mark.parametrize(
    ("nodes", "sampled"),
    [(None, True), ("0", False), ("2", True), ("12", False), ("0,2", True), ("1 2 3", True), ("", False)],
)
def test_gpus_are_sampled_on_the_nodes_that_are_listed_or_on_all(
    tmp_path: Path, nsys: str, nodes: str | None, sampled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPU_METRICS_NODES", raising=False)
    launcher = run.Launcher(nsys_profile=True, nsys_gpu_metrics=True)
    argv = launcher.launch(replace(TASK, rundir=str(tmp_path)), FOUR).argv
    env = {"PATH": nsys, "SLURM_NODEID": "2", "SLURM_LOCALID": "5"}
    given = json.loads(
        output(["sh", "-c", join(argv)], **env, **({"GPU_METRICS_NODES": nodes} if nodes is not None else {}))
    )
    assert ("--gpu-metrics-devices=5" in given) is sampled
    assert given[-len(TASK.argv) :] == list(TASK.argv)
    assert "--gpu-metrics-devices=all" in json.loads(
        output(launcher.launch(replace(TASK, rundir=str(tmp_path)), ONE).argv, PATH=nsys)
    )


def test_a_job_is_profiled_into_a_folder_below_its_own(home: Path, nsys: str) -> None:
    launcher = run.Launcher(nsys_profile=True)
    executor = run.LocalExecutor(launcher=launcher, env_vars={"PATH": nsys})
    experiment = run.Experiment("profiled", executor=executor)
    job = experiment.add(run.Script(inline="echo never", args=[]), name="job")
    experiment.run()
    [line] = log(experiment, job)
    folder = experiment.path / job
    assert json.loads(line)[5:7] == ["-o", f"{folder}/nsys_profile/profile_%p"]
    assert (folder / "nsys_profile").is_dir()


def log(experiment: run.Experiment, job: str) -> list[str]:
    [path] = (experiment.path / job / "logs").glob("*.log")
    return path.read_text().splitlines()


# --- templates ------------------------------------------------------------------------------------------


def test_a_template_starts_the_task_with_its_words_byte_for_byte() -> None:
    launcher = run.SlurmTemplate(
        template_inline="# {{ title }}\n{{ command }}\n", template_vars={"title": "é"}
    )
    argv = wrapped(launcher, sys.executable, "-c", SHOW, *HOSTILE)
    assert argv[:2] == ["bash", "-c"]
    assert json.loads(output(argv, VARIABLES="")) == [os.fsencode(word).hex() for word in HOSTILE]


def test_a_template_gives_its_variables_to_the_shell_as_it_is_told_to() -> None:
    text = "x={{ word | quote }}\necho {{ number }} \"$x\" {{ '{{ kept }}' }}; {{ command }}"
    launcher = run.SlurmTemplate(template_inline=text, template_vars={"word": "a  'b' $c", "number": 3})
    assert (
        output(wrapped(launcher, "echo", run.Expand("$(echo expanded)")))
        == "3 a  'b' $c {{ kept }}\nexpanded\n"
    )


def test_the_exit_code_of_a_template_is_that_of_its_last_command() -> None:
    launcher = run.SlurmTemplate(template_inline="true\n{{ command }}\n")
    assert subprocess.run(wrapped(launcher, "sh", "-c", "exit 7")).returncode == 7


def test_a_templates_file_is_the_one_that_was_meant_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "template.j2").write_text("echo from a file; {{ command }}")
    monkeypatch.chdir(tmp_path)
    launcher = run.SlurmTemplate(template_path="template.j2")
    monkeypatch.chdir("/")
    assert output(wrapped(launcher, "echo", "task")) == "from a file\ntask\n"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"template_inline": "{{ command }} {{ size }}"}, r"inline: 'size' is undefined.*template_vars"),
        ({"template_inline": "\n{% if %}"}, "template_inline, line 2: this is no Jinja template"),
        ({"template_inline": "{{ 1 / 0 }}"}, "cannot be filled in: ZeroDivisionError"),
        ({"template_inline": " \n"}, "template_inline gives an empty script"),
        ({"template_path": "/no/such"}, "template_path cannot be read: .*No such file"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_work_is_refused_before_anything_starts(
    home: Path, fields: dict[str, str], words: str
) -> None:
    executor = run.LocalExecutor(launcher=run.SlurmTemplate(**fields))
    with pytest.raises(run.ConfigError, match=words):
        run.run(run.Script(inline="true"), executor=executor)
    assert not home.exists()


def test_a_template_runs_a_python_task_as_a_job(home: Path) -> None:
    launcher = run.SlurmTemplate(
        template_inline="export WORD={{ word | quote }}\n{{ command }}", template_vars={"word": "é 1"}
    )
    task = run.Partial(user_tasks.environment, "WORD")
    assert run.run(task, executor=run.LocalExecutor(launcher=launcher)) == "é 1"


# --- Ray ------------------------------------------------------------------------------------------------


class RayNodes:
    """Nodes of a Ray cluster, all on this machine, with a stand-in for Ray."""

    def __init__(self, folder: Path) -> None:
        self.env, self.rundir, self.port = make_stand_in(folder), str(folder), take_ports()[0]

    def start(self, rank: int, **fields: Any) -> subprocess.Popen[str]:
        launcher = run.SlurmRay(gcs_server_port=self.port, env_vars={"MINE": "a $b"}, **fields)
        argv = ("sh", "-c", 'echo "$RAY_ADDRESS $MINE"; exit 7')
        command = run.Command(argv=argv, python=sys.executable, rundir=self.rundir)
        topology = run.Topology(nodes=2, head_address="127.0.0.1", node_rank=str(rank))
        started = launcher.launch(command, topology)
        env = {**os.environ, **self.env, **started.env, "SLURM_NODEID": str(rank)}
        return subprocess.Popen(
            started.argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


def test_ray_has_the_task_run_on_the_first_node_and_the_others_join_and_leave(tmp_path: Path) -> None:
    nodes = RayNodes(tmp_path)
    other = nodes.start(1)
    first = nodes.start(0, head_setup="echo 'setting up'", dashboard_port=1234)
    assert first.communicate(timeout=60)[0] == f"setting up\n127.0.0.1:{nodes.port} a $b\n"
    assert (other.communicate(timeout=60)[0], other.returncode, first.returncode) == ("", 0, 7)
    for_all = {
        "node-manager-port": "8077", "object-manager-port": "8076", "dashboard-agent-listen-port": "52365",
        "dashboard-agent-grpc-port": "52366", "metrics-export-port": "9002", "disable-usage-stats": "",
        "log-color": "false", "block": "", "deaf": True,
    }  # fmt: skip
    for_first = {"head": "", "node-ip-address": "127.0.0.1", "port": str(nodes.port)}
    dashboard = {"dashboard-host": "0.0.0.0", "dashboard-port": "1234"}
    assert told(nodes.env, 0) == {**for_all, **for_first, **dashboard}
    assert told(nodes.env, 1) == {**for_all, "address": f"127.0.0.1:{nodes.port}"}
    said = {path.name: path.read_text().split(" --")[0] for path in (tmp_path / "logs").iterdir()}
    assert said == {"ray-head.log": "this is start", "ray-worker-1.log": "this is start"}


def test_ray_says_which_nodes_were_late(tmp_path: Path) -> None:
    nodes, waits = RayNodes(tmp_path), {"head_init_wait_time": 3, "worker_init_wait_time": 0}
    first = nodes.start(0, **waits)
    assert "not all of its 2 node(s) were there within 3 s" in first.communicate(timeout=60)[0]
    other = nodes.start(1, head_init_wait_time=0, worker_init_wait_time=1)
    assert "node 1 found no head within 1 s" in other.communicate(timeout=60)[0]
    assert (first.returncode, other.returncode) == (1, 1)


# --- bad values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("Launcher", {"nsys_profile": True, "nsys_trace": "cuda"}, "nsys_trace is 'cuda'; give a list"),
        ("Launcher", {"nsys_profile": True, "nsys_folder": ""}, "nsys_folder is ''; give a name"),
        ("Torchrun", {"rdzv_backend": None}, "rdzv_backend is None"),
        ("Torchrun", {"rdzv_port": "29500"}, "rdzv_port is '29500'; give a port"),
        ("Torchrun", {"rdzv_port": 0}, "rdzv_port is 0; give a port"),
        ("Torchrun", {"rdzv_port": 70000}, "rdzv_port is 70000; give a port"),
        ("Torchrun", {"rdzv_id": "a"}, "rdzv_id is 'a'; give a whole number, or None"),
        ("FaultTolerance", {"rdzv_backend": "static"}, "the only one that ft_launcher has"),
        ("FaultTolerance", {"max_restarts": -1}, "max_restarts is -1"),
        ("FaultTolerance", {"rank_heartbeat_timeout": 0}, "timeout is 0; give a number of seconds"),
        ("SlurmTemplate", {}, "needs a template_path or a template_inline"),
        ("SlurmTemplate", {"template_inline": "x", "template_vars": {"command": "y"}}, "the task's own"),
        ("SlurmTemplate", {"template_inline": "x", "template_vars": ["y"]}, "give a dict"),
        ("SlurmRay", {"env_vars": {"A": run.Secret("A")}}, "secrets go into the executor's env_vars"),
        ("SlurmRay", {"env_vars": {"A": 1}}, r"env_vars\['A'\] is of type int"),
        ("SlurmRay", {"env_vars": {"A B": "1"}}, "'A B' is not a name"),
        ("SlurmRay", {"metrics_port": None}, "metrics_port is None; give a whole number"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_is_refused_at_once(kind: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(run.ConfigError, match=words) as refusal:
        getattr(run, kind)(**fields)
    assert kind in str(refusal.value)


def test_a_value_that_is_set_later_is_refused_where_the_executor_is_given() -> None:
    executor = run.LocalExecutor(launcher=run.Torchrun())
    executor.launcher.rdzv_port = -1  # type: ignore[union-attr]
    with pytest.raises(run.ConfigError, match="rdzv_port is -1"):
        run.Experiment("x", executor=executor)


def test_names_of_launchers_are_few_and_a_wrong_one_is_answered_with_the_near_ones() -> None:
    names = {"torchrun": run.Torchrun, "ft": run.FaultTolerance, "slurm_ray": run.SlurmRay}
    assert {name: type(get_launcher(name)) for name in names} == names
    with pytest.raises(run.ConfigError, match="no launcher 'torchrum'; did you mean 'torchrun'"):
        get_launcher("torchrum")


def test_the_names_that_documents_use_lead_to_the_same_classes() -> None:
    code = (
        "import nemo_run as run; assert run.core.execution.FaultTolerance is run.FaultTolerance;"
        "from nemo_run.core.execution import Torchrun, LocalExecutor;"
        "from nemo_run.core.execution.launcher import Launcher, SlurmRay, SlurmTemplate;"
        "assert (Torchrun, LocalExecutor, Launcher) == (run.Torchrun, run.LocalExecutor, run.Launcher);"
        "import sys; assert 'jinja2' not in sys.modules;"
        "print(hasattr(run.core.execution, 'NoSuch'), hasattr(run.core, 'NoSuch'))"
    )
    assert output([sys.executable, "-c", code]) == "False False\n"


# --- what has to be installed ---------------------------------------------------------------------------


def test_torch_missing_in_the_tasks_interpreter_is_said_before_anything_starts(
    home: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = str(tmp_path / "bare" / "bin" / "python")
    for launcher, missing in (("torchrun", "torch"), ("ft", "torch and nvidia_resiliency_ext")):
        executor = run.LocalExecutor(launcher=launcher, python_path=python)
        with pytest.raises(run.MissingDependencyError) as refusal:
            run.run(run.Script(inline="true"), executor=executor)
        assert f"needs {missing}, which {python} does not have" in str(refusal.value)
        assert f"{python} -m pip install torch" in str(refusal.value)
    assert not home.exists()


@dataclass(kw_only=True)
class Needy(run.Launcher):
    """Needs a module that nobody has."""

    requires: ClassVar[dict[str, str]] = {"no_such_module": "no-such-package[all]"}


@pytest.mark.parametrize("other", [False, True])
def test_a_module_that_the_job_would_find_on_its_own_path_is_not_missing(
    home: Path, tmp_path: Path, other: bool
) -> None:
    fields: dict[str, Any] = {"launcher": Needy()}
    if other:
        venv.create(tmp_path / "bare", with_pip=False)
        fields["python_path"] = str(tmp_path / "bare" / "bin" / "python")
    with pytest.raises(run.MissingDependencyError, match=r"pip install 'no-such-package\[all\]'"):
        run.run(run.Script(inline="true"), executor=run.LocalExecutor(**fields))
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "no_such_module.py").touch()
    executor = run.LocalExecutor(**fields, env_vars={"PYTHONPATH": str(tmp_path / "modules")})
    run.run(run.Script(inline="true"), executor=executor)


def test_an_interpreter_that_is_not_there_fails_by_itself(home: Path) -> None:
    executor = run.LocalExecutor(launcher="torchrun", python_path="/no/such/python")
    with pytest.raises(run.JobFailedError, match="cannot start '/no/such/python'"):
        run.run(run.Script(inline="true"), executor=executor)


def test_nsys_missing_is_said_before_anything_starts(home: Path, tmp_path: Path) -> None:
    executor = run.LocalExecutor(launcher=run.Launcher(nsys_profile=True), env_vars={"PATH": str(tmp_path)})
    with pytest.raises(run.ConfigError, match="needs the program 'nsys'"):
        run.run(run.Script(inline="true"), executor=executor)
    assert not home.exists()


def test_a_dry_run_and_a_direct_run_need_nothing_installed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    executor = run.LocalExecutor(launcher=Needy())
    run.run(run.Script(inline="true"), executor=executor, dryrun=True)
    assert "true" not in capsys.readouterr().err
    assert run.run(user_tasks.add, executor=executor, direct=True) == 3


# --- launchers of users ---------------------------------------------------------------------------------

#: A launcher defined where the launch is, which records must name and other processes must find again.
OWN = """
from dataclasses import dataclass, replace

@dataclass(kw_only=True)
class Louder(run.Launcher):
    word: str = "loud"

    def wrap(self, command, topology):
        argv = ("sh", "-c", 'echo "$0 $LEVEL $(($1 * $2))"; shift 2; exec "$@"', self.word,
                str(topology.nodes), str(topology.procs_per_node), *command.argv)
        return replace(command, argv=argv, env={**command.env, "LEVEL": "11"})

class Older(run.Launcher):
    def transform(self, cmd):
        return run.Script(inline="echo " + str(len(cmd)) + "; exec " + " ".join(map(repr, cmd)))

def level():
    import os
    return os.environ.get("LEVEL")

if __name__ == "__main__":
    with run.Experiment("own") as exp:
        loud = run.LocalExecutor(launcher=Louder(word="a 'b'"), ntasks_per_node=2)
        first = exp.add(run.Partial(level), loud, name="first")
        second = exp.add(run.Partial(level), loud, name="second", dependencies=[first])
        old = run.LocalExecutor(launcher=Older())
        exp.add(run.Script(inline="true"), old, name="third", dependencies=[second])
        exp.run(detach=True)
    print(exp.id)
"""


def test_a_users_own_launcher_works_detached_too_and_from_other_processes(home: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("import nemo_run as run\n" + OWN)
    done = launch(tmp_path / "own.py")
    assert done.returncode == 0, done.stderr
    experiment = run.Experiment.from_id(done.stdout.strip())
    assert experiment.wait() == {"first": "11", "second": "11", "third": None}
    assert log(experiment, "first") == log(experiment, "second") == ["a 'b' 11 2"]
    assert log(experiment, "third") == ["2"]
    again = experiment.reset()
    assert again.run()["first"] == "11"


class Wrong(run.Launcher):
    def wrap(self, command: run.Command, topology: run.Topology) -> Any:
        return list(command.argv)


def test_a_launcher_that_gives_something_else_is_told_what_to_give(home: Path) -> None:
    with pytest.raises(run.ConfigError, match=r"Wrong.wrap gave \[.*return dataclasses.replace"):
        run.run(run.Script(inline="true"), executor=run.LocalExecutor(launcher=Wrong()))


@dataclass(kw_only=True)
class TwoOf(run.Launcher):
    """Two processes of everything, one after the other, that tell themselves apart by NUMBER."""

    rank_variable: ClassVar[str] = "NUMBER"

    def wrap(self, command: run.Command, topology: run.Topology) -> run.Command:
        shell = 'NUMBER=1 "$@" && NUMBER=0 "$@"'
        return replace(command, argv=("sh", "-c", shell, "two", *command.argv))


def test_a_users_launcher_says_which_variable_holds_the_rank(home: Path) -> None:
    experiment = run.Experiment("two", executor=run.LocalExecutor(launcher=TwoOf()))
    job = experiment.add(run.Partial(user_tasks.environment, "NUMBER"), name="job")
    assert experiment.run() == {"job": "0"}
    records = {
        path.name: json.loads(path.read_text()) for path in (experiment.path / job / "results").iterdir()
    }
    assert records == {"job_0.json": {"value": "0"}, "job_1.json": {"value": "1"}}


# --- records of ranks -----------------------------------------------------------------------------------


def rank_of(job_dir: Path, rank: int, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, runner.__file__, str(job_dir), "train", "RANK"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "RANK": str(rank), **env}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)


def test_the_error_of_a_job_is_that_of_the_rank_that_failed_first(tmp_path: Path) -> None:
    tree = {"_target_": "tasks.fail", "_partial_": True, "message": "no"}
    (tmp_path / "task.json").write_text(json.dumps({"train": tree}))
    for rank in (2, 0, 10):
        assert rank_of(tmp_path, rank).returncode == 1
    error = first_error(tmp_path, "train")
    assert error is not None
    assert (error["rank"], error["type"], error["message"]) == ("2", "ValueError", "no")
    assert first_error(tmp_path, "train", attempt=2) is None
    assert first_error(tmp_path, "trai") is None


def test_a_rank_that_is_started_again_leaves_nothing_of_its_earlier_life(tmp_path: Path) -> None:
    tree = {"_target_": "tasks.fail", "_partial_": True, "message": "no"}
    (tmp_path / "task.json").write_text(json.dumps({"train": tree}))
    assert rank_of(tmp_path, 1).returncode == 1
    tree = {"_target_": "tasks.leave_at_once", "_partial_": True, "code": 9}
    (tmp_path / "task.json").write_text(json.dumps({"train": tree}))
    assert rank_of(tmp_path, 1).returncode == 9
    assert first_error(tmp_path, "train") is None


# --- shell text -----------------------------------------------------------------------------------------


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), max_size=3))
def test_texts_beside_one_that_a_shell_expands_arrive_as_they_are(parts: list[str]) -> None:
    word = concat(*parts, run.Expand("$(printf x)"), *parts)
    printed = subprocess.run(
        ["sh", "-c", f"printf %s {join([word])}"], stdout=subprocess.PIPE, timeout=60, check=True
    ).stdout
    assert printed == ("".join(parts) + "x" + "".join(parts)).encode()
    assert type(concat(*parts)) is str
