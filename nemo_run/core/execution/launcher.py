"""Launchers: how the processes of one task are started, as a pure function of command and topology."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nemo_run.core.execution.checks import check_env
from nemo_run.errors import ConfigError, suggestion
from nemo_run.shell import Expand, concat, expands, join, quote, through_shell

if TYPE_CHECKING:
    from nemo_run.config import Script
    from nemo_run.core.execution.base import Topology

#: Tells a Ray cluster's processes how the names of their logs begin.
RAY_LOGS = "NEMORUN_RAY_LOGS"
#: Makes the folder, then becomes `nsys`.
_NSYS = 'mkdir -p "$0" && exec nsys profile "$@"'
#: The same, and has the devices' own counters sampled on the nodes that GPU_METRICS_NODES lists, or on all.
_NSYS_GPUS = """mkdir -p "$0" || exit
node=$1 devices=$2
shift 2
case " $(printf %s "${GPU_METRICS_NODES-$node}" | tr , ' ') " in
*" $node "*) set -- "--gpu-metrics-devices=$devices" "$@" ;;
esac
exec nsys profile "$@"
"""
#: Starts nothing where the training has left word that it is finished.
_UNLESS_FINISHED = """if test -e "$0"; then echo "not started: $0 says that it is finished"; exit 0; fi
exec "$@"
"""
#: What `Packager(debug=True)` asks of torch.
_TORCH_DEBUG = {
    "CUDA_LAUNCH_BLOCKING": "1",
    "NCCL_DESYNC_DEBUG": "1",
    "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
    "TORCH_SHOW_CPP_STACKTRACES": "1",
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is to be started on a node; a launcher makes another from it with `dataclasses.replace`."""

    #: The program and its arguments; a `run.Expand` among them is expanded on the node.
    argv: tuple[str, ...]
    #: The job's environment; what a launcher adds or changes here reaches its processes.
    env: Mapping[str, Any] = field(default_factory=dict)
    #: The interpreter for Python tasks, where the command runs.
    python: str = "python3"
    #: The job's folder, as the command sees it.
    rundir: str = "."
    #: Whether the packager asks for verbose output (`debug=True`).
    debug: bool = False


@dataclass(kw_only=True)
class Launcher:
    """Starts a command as it is; subclasses wrap it in a program that starts many.

    Raises:
        ConfigError: a field has a value that cannot work; the message names it.
    """

    #: Run the whole under NVIDIA's profiler, `nsys profile`.
    nsys_profile: bool = False
    #: Where its reports go, below the job's folder.
    nsys_folder: str = "nsys_profile"
    #: What a report is called; `%p` is the number of the process, `%h` the host.
    nsys_filename: str = "profile_%p"
    #: What is traced.
    nsys_trace: list[str] = field(default_factory=lambda: ["nvtx", "cuda"])
    #: Further words for `nsys profile`.
    nsys_extra_args: list[str] = field(
        default_factory=lambda: [
            "--force-overwrite=true",
            "--capture-range=cudaProfilerApi",
            "--capture-range-end=stop",
            "--cuda-graph-trace=node",
            "--cuda-event-trace=false",
        ]
    )
    #: Also sample the GPUs' own counters, on the nodes listed in the variable GPU_METRICS_NODES, or on all.
    nsys_gpu_metrics: bool = False

    #: Modules that the interpreter must have, each with what to `pip install` for it.
    requires: ClassVar[Mapping[str, str]] = {}
    #: The variable that tells each process its rank, where this starts several of one Python task.
    rank_variable: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse values that cannot work; subclasses add their own and call this one."""
        if not self.nsys_profile:
            return
        for name in ("nsys_trace", "nsys_extra_args"):
            self._check(name, _are_texts(getattr(self, name)), "a list of texts")
        for name in ("nsys_folder", "nsys_filename"):
            self._check(name, _is_text(getattr(self, name)), "a name")

    def wrap(self, command: Command, topology: Topology) -> Command:
        """The command that starts `command` on each node of `topology`; no side effects."""
        script = self.transform(list(command.argv))
        return command if script is None else _as_command(script, command)

    def transform(self, cmd: list[str]) -> Script | None:
        """A script to run instead of a command; None (the default) for the command itself."""
        return None

    def launch(self, command: Command, topology: Topology) -> Command:
        """What an executor starts on each node: the wrapped command, under the profiler if asked for."""
        wrapped = self.wrap(command, topology)
        if not isinstance(wrapped, Command):
            problem = f"{type(self).__name__}.wrap gave {wrapped!r}"
            raise ConfigError(f"{problem}; return dataclasses.replace(command, argv=(…))")
        return self._profiled(wrapped, topology) if self.nsys_profile else wrapped

    def _profiled(self, command: Command, topology: Topology) -> Command:
        folder = f"{command.rundir}/{self.nsys_folder}"
        target = folder.replace("%", "%%") + "/" + self.nsys_filename
        words = ["-s", "none", "-t", ",".join(self.nsys_trace), "-o", target, *self.nsys_extra_args]
        if self.nsys_gpu_metrics:
            shell = [_NSYS_GPUS, folder, topology.node_rank, topology.local_rank or "all"]
        else:
            shell = [_NSYS, folder]
        return replace(command, argv=("/bin/sh", "-c", *shell, *words, *command.argv))

    def _check(self, name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise ConfigError(f"{type(self).__name__}.{name} is {getattr(self, name)!r}; give {wanted}")


@dataclass(kw_only=True)
class Torchrun(Launcher):
    """Starts a task as `procs_per_node` processes on each node, by `torchrun`."""

    #: How the nodes find each other.
    rdzv_backend: str = "c10d"
    #: Where they do, on the first node; one node alone takes any free port.
    rdzv_port: int = 29500
    #: The number by which they know each other; by default one that follows from the address.
    rdzv_id: int | None = None

    requires: ClassVar[Mapping[str, str]] = {"torch": "torch"}
    rank_variable: ClassVar[str] = "RANK"
    #: What is started, as `python -m`.
    module: ClassVar[str] = "torch.distributed.run"

    def check(self) -> None:
        """Also refuse what is no backend or no port."""
        super().check()
        self._check("rdzv_backend", _is_text(self.rdzv_backend), 'a name such as "c10d"')
        self._check("rdzv_port", _is_count(self.rdzv_port) and 0 < self.rdzv_port < 2**16, "a port")
        self._check("rdzv_id", self.rdzv_id is None or _is_count(self.rdzv_id), "a whole number, or None")

    def wrap(self, command: Command, topology: Topology) -> Command:
        """By the command's own interpreter, whatever `torchrun` is on the path."""
        command = super().wrap(command, topology)
        program = [command.python, "-m", self.module, *self._rendezvous(topology), *self._options()]
        # What the processes print goes where the launcher's own output goes. Files in between would hold
        # secrets that are masked only in what comes after them.
        program += ["--log-dir", os.devnull, "--no-python"]
        env = {**_TORCH_DEBUG, **command.env} if command.debug else command.env
        return replace(command, argv=(*program, *_for_torch(command.argv)), env=env)

    def _options(self) -> list[str]:
        """What subclasses say beyond it."""
        return []

    def _rendezvous(self, topology: Topology) -> list[str]:
        endpoint = self._endpoint(topology)
        options = {
            "--rdzv-backend": self.rdzv_backend,
            "--rdzv-endpoint": endpoint,
            "--rdzv-id": str(_number_from(endpoint) if self.rdzv_id is None else self.rdzv_id),
            "--nnodes": str(topology.nodes),
            "--nproc-per-node": str(topology.procs_per_node),
            "--node-rank": topology.node_rank if topology.nodes > 1 else "0",
        }
        return [word for option in options.items() for word in option]

    def _endpoint(self, topology: Topology) -> str:
        if topology.nodes == 1:
            return "localhost:0"  # any free port, so that launches side by side do not meet
        head, port = topology.head_address, topology.head_port or str(self.rdzv_port)
        if not head:
            raise ConfigError(
                f"{type(self).__name__} over {topology.nodes} nodes needs to know where they meet: set"
                " MASTER_ADDR to the address of the first, and on each NODE_RANK to its number from 0"
            )
        if not isinstance(port, Expand) and not port.isdecimal():
            raise ConfigError(f"MASTER_PORT is {port!r}; give the number of a port")
        is_ipv6 = ":" in head and not head.startswith("[") and not isinstance(head, Expand)
        return concat(f"[{head}]" if is_ipv6 else head, ":", port)


@dataclass(kw_only=True)
class FaultTolerance(Torchrun):
    """Starts a task as torchrun does, by NVIDIA's `ft_launcher`: it also restarts processes that hang."""

    #: Its YAML file, as the task sees it.
    cfg_path: str = ""
    #: A file that the training makes when there is nothing left to do: then nothing is started again.
    finished_flag_file: str = ""
    #: Where backends that requeue jobs count their failures; the job finds it in FAULT_TOL_JOB_RESULTS_FILE.
    job_results_file: str = ""
    #: Seconds between two looks at the processes.
    workload_check_interval: float | None = None
    #: Seconds within which a process sends its first heartbeat.
    initial_rank_heartbeat_timeout: float | None = None
    #: Seconds between two heartbeats beyond which a process is taken to hang.
    rank_heartbeat_timeout: float | None = None
    #: The signal that ends a process which hangs ("SIGKILL").
    rank_termination_signal: str | None = None
    #: How much it prints ("DEBUG").
    log_level: str | None = None
    #: How often the processes are started again within one attempt at the job.
    max_restarts: int | None = None

    requires: ClassVar[Mapping[str, str]] = {
        "torch": "torch",
        "nvidia_resiliency_ext": "nvidia-resiliency-ext",
    }
    module: ClassVar[str] = "nvidia_resiliency_ext.fault_tolerance.launcher"

    def check(self) -> None:
        """Also refuse what is no length of time, and any rendezvous but c10d."""
        super().check()
        self._check("rdzv_backend", self.rdzv_backend == "c10d", '"c10d", the only one that ft_launcher has')
        restarts = self.max_restarts
        self._check("max_restarts", restarts is None or _is_count(restarts), "a whole number, or None")
        for name in _FT_SECONDS:
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            self._check(name, value is None or (number and value > 0), "a number of seconds, or None")

    def wrap(self, command: Command, topology: Topology) -> Command:
        """Unless the training has said that it is finished."""
        files = {
            "FAULT_TOL_CFG_PATH": self.cfg_path,
            "FAULT_TOL_FINISHED_FLAG_FILE": self.finished_flag_file,
            "FAULT_TOL_JOB_RESULTS_FILE": self.job_results_file,
        }
        wrapped = super().wrap(command, topology)
        env = {**wrapped.env, **{name: path for name, path in files.items() if path}}
        argv = wrapped.argv
        if self.finished_flag_file:
            argv = ("/bin/sh", "-c", _UNLESS_FINISHED, self.finished_flag_file, *argv)
        return replace(wrapped, argv=argv, env=env)

    def _options(self) -> list[str]:
        options = ["--max-restarts", str(self.max_restarts)] if self.max_restarts is not None else []
        for name in (*_FT_SECONDS, "rank_termination_signal", "log_level"):
            if (value := getattr(self, name)) is not None:
                options += ["--ft-" + name.replace("_", "-"), str(value)]
        if self.cfg_path:
            options += ["--ft-cfg-path", self.cfg_path]
        # It does not start without any setting of its own; this is its default.
        return options if any(word.startswith("--ft-") for word in options) else [*options, *_FT_DEFAULT]


_FT_SECONDS = ("workload_check_interval", "initial_rank_heartbeat_timeout", "rank_heartbeat_timeout")
_FT_DEFAULT = ("--ft-log-level", "INFO")


@dataclass(kw_only=True)
class SlurmTemplate(Launcher):
    """Runs a bash script made from a Jinja template, in which `{{ command }}` stands for the task.

    `{{ text | quote }}` is a text as one word of shell. A variable that nobody gave is an error.
    """

    #: The template's file.
    template_path: str | None = None
    #: The template itself; it wins over the file.
    template_inline: str | None = None
    #: What its other variables stand for.
    template_vars: dict[str, Any] = field(default_factory=dict)

    #: The file where neither is given.
    default_path: ClassVar[Path | None] = None

    def check(self) -> None:
        """Also refuse to be without a template."""
        super().check()
        self._check("template_vars", isinstance(self.template_vars, dict), "a dict")
        if "command" in self.template_vars:
            raise ConfigError(f"{type(self).__name__}.template_vars has 'command', which is the task's own")
        if self.template_inline is None and self.template_path is None and self.default_path is None:
            raise ConfigError(f"{type(self).__name__} needs a template_path or a template_inline")
        if self.template_path is not None:
            # Whoever submits the job may do so from another folder.
            self.template_path = os.path.abspath(os.path.expanduser(self.template_path))

    def transform(self, cmd: list[str]) -> Script | None:
        """The template with its variables filled in."""
        return self.render(cmd, {})

    def render(self, cmd: list[str], variables: Mapping[str, Any]) -> Script:
        """The script that a template becomes with these variables too.

        Raises:
            ConfigError: there is no such file, it is no template, or it has a variable that nobody gave.
        """
        from nemo_run.config import Script

        where = "template_inline" if self.template_inline is not None else self._path()
        text = _rendered(self._template(), {**variables, **self.template_vars, "command": join(cmd)}, where)
        if not text.strip():
            raise ConfigError(f"{type(self).__name__}: {where} gives an empty script, which starts nothing")
        return Script(inline=text)

    def _template(self) -> str:
        if self.template_inline is not None:
            return self.template_inline
        try:
            return self._path().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{type(self).__name__}.template_path cannot be read: {exc}") from exc

    def _path(self) -> Path:
        return Path(self.template_path or self.default_path or "")


@dataclass(kw_only=True)
class SlurmRay(SlurmTemplate):
    """Makes one Ray cluster of all nodes and runs the task on the first, with RAY_ADDRESS set.

    `Script(metadata={"use_with_ray_cluster": True})` asks for the same, or with a dict for its fields.
    """

    #: The head's ports: the one by which the cluster is known, and its dashboard's.
    gcs_server_port: int = 6379
    dashboard_port: int = 8265
    #: Ports on each node; 0, as for the dashboard, is any that is free.
    object_manager_port: int = 8076
    node_manager_port: int = 8077
    dashboard_agent_port: int = 52365
    dashboard_agent_grpc_port: int = 52366
    metrics_port: int = 9002
    #: Print what `nvidia-smi` says, on each node.
    display_nvidia_smi_output: bool = False
    #: Shell text to run on the first node before Ray is started there.
    head_setup: str | None = None
    #: Seconds that the head may take to start.
    head_init_wait_time: int = 10
    #: Seconds within which all nodes have joined it then.
    worker_init_wait_time: int = 60
    #: Environment of Ray and of the task.
    env_vars: dict[str, str] | None = None

    requires: ClassVar[Mapping[str, str]] = {"ray": "ray[default]"}
    default_path: ClassVar[Path | None] = Path(__file__).with_name("ray.sh.j2")

    def check(self) -> None:
        """Also refuse what is no port and no number of seconds."""
        super().check()
        check_env(what := f"{type(self).__name__}.env_vars", env := self.env_vars or {})
        if not all(isinstance(value, str) for value in env.values()):
            raise ConfigError(f"{what} holds a secret; secrets go into the executor's env_vars")
        for name, value in vars(self).items():
            if name.endswith(("_port", "_wait_time")):
                self._check(name, _is_count(value) and value < 2**16, "a whole number")
        self._check("gcs_server_port", self.gcs_server_port > 0, "a port")

    def wrap(self, command: Command, topology: Topology) -> Command:
        """The template is also given the topology, each value as shell text, and its own fields."""
        command = replace(command, env={**command.env, **(self.env_vars or {})})
        variables = {
            **{
                name: value
                for name, value in vars(self).items()
                if not name.startswith(("nsys_", "template_"))
            },
            "python": quote(command.python),
            "nodes": topology.nodes,
            "node_rank": quote(topology.node_rank),
            "head_address": quote(topology.head_address),
            "logs": quote(f"{command.rundir}/logs/ray-"),
        }
        return _as_command(self.render(list(command.argv), variables), command)


def _as_command(script: Script, command: Command) -> Command:
    argv = tuple(script.to_command(command.python))
    return replace(command, argv=argv, env={**command.env, **script.env})


def _rendered(template: str, variables: Mapping[str, Any], where: Any) -> str:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["quote"] = lambda text: quote(text if isinstance(text, str) else str(text))
    try:
        return environment.from_string(template).render(variables)
    except jinja2.TemplateSyntaxError as exc:
        raise ConfigError(f"{where}, line {exc.lineno}: this is no Jinja template: {exc.message}") from exc
    except jinja2.UndefinedError as exc:
        known = ", ".join(sorted(variables))
        problem = f"{where}: {exc.message}; give it in template_vars. There are {known}"
        raise ConfigError(problem) from exc
    except Exception as exc:  # what a template's own expressions raise
        raise ConfigError(f"{where} cannot be filled in: {type(exc).__name__}: {exc}") from exc


def _for_torch(argv: tuple[str, ...]) -> list[str]:
    """A command as torchrun's last arguments, so that each process gets it as it was."""
    # What a shell expands is expanded by each process, which knows its own rank; and torchrun takes a
    # `--` that follows the program for one of its own.
    words = through_shell(argv, {}) if expands(argv, {}) or argv[1:2] == ("--",) else list(argv)
    # In arguments it replaces `$local_rank`, and `$$` by `$`.
    return [words[0], *(word.replace("$", "$$") for word in words[1:])]


def _number_from(text: str) -> int:
    """A number that is the same wherever it is made from the same text."""
    import zlib

    return zlib.crc32(os.fsencode(text)) % 9999 + 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _are_texts(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(map(_is_text, values))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


#: Launchers that have a short name.
_BY_NAME: dict[str, type[Launcher]] = {
    "default": Launcher,
    "torchrun": Torchrun,
    "ft": FaultTolerance,
    "slurm_template": SlurmTemplate,
    "slurm_ray": SlurmRay,
}


def get_launcher(launcher: Launcher | str | None) -> Launcher:
    """The launcher meant by an executor's `launcher` field.

    Raises:
        ConfigError: no launcher has that name, or it is none, or it cannot work.
    """
    if launcher is None:
        return Launcher()
    if isinstance(launcher, str):
        if launcher not in _BY_NAME:
            raise ConfigError(f"no launcher {launcher!r}{suggestion(launcher, list(_BY_NAME))}")
        return _BY_NAME[launcher]()
    if not isinstance(launcher, Launcher):
        raise ConfigError(f"launcher is {launcher!r}; give a Launcher, or one of {', '.join(_BY_NAME)}")
    launcher.check()
    return launcher


def ray_launcher(launcher: Launcher | str | None, asked: Any, role: str) -> SlurmTemplate:
    """The launcher of a script whose metadata ask for a Ray cluster, with what its executor has.

    Args:
        launcher: The executor's; one that starts a template's script is kept.
        asked: `True`, or fields of SlurmRay.
        role: Whose it is, for messages.

    Raises:
        ConfigError: the executor has another launcher, or SlurmRay has no such field.
    """
    given = get_launcher(launcher)
    if isinstance(given, SlurmTemplate):
        return given
    what = f"{role!r} asks for a Ray cluster (use_with_ray_cluster)"
    if given != Launcher():
        raise ConfigError(f"{what}, and its executor's launcher is {type(given).__name__}; give one of them")
    values = asked if isinstance(asked, dict) else {}
    known = [entry.name for entry in fields(SlurmRay)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{what}, and SlurmRay has no field {name!r}{suggestion(str(name), known)}")
    return SlurmRay(**values)
