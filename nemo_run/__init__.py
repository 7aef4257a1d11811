"""Configure a task once and run it anywhere: here, in a container, on a cluster, in a cloud."""

from nemo_run._version import __version__

__package_name__ = "nemo_run"

#: Where each public name is defined; nothing is imported until it is used (PEP 562).
_MODULES = {
    "AppState": "core.execution.base",
    "Capability": "core.execution.base",
    "Check": "core.execution.base",
    "Command": "core.execution.launcher",
    "Config": "config",
    "ConfigError": "errors",
    "ConfigurableMixin": "config",
    "DockerExecutor": "core.execution.docker",
    "ExecutionError": "errors",
    "Executor": "core.execution.base",
    "ExecutorMacros": "core.execution.macros",
    "ExecutorScheduler": "core.execution.torchx_scheduler",
    "Expand": "shell",
    "Experiment": "run.experiment",
    "FaultTolerance": "core.execution.launcher",
    "GitArchivePackager": "core.packaging.git",
    "HybridPackager": "core.packaging.hybrid",
    "ImagePackager": "core.packaging.image",
    "JobCancelledError": "errors",
    "JobFailedError": "errors",
    "JobHandle": "core.execution.base",
    "JobLostError": "errors",
    "JobSpec": "core.execution.base",
    "JobStatus": "core.execution.base",
    "JobTimeoutError": "errors",
    "KubernetesExecutor": "core.execution.kubernetes",
    "Launcher": "core.execution.launcher",
    "LazyEntrypoint": "cli.lazily",
    "LocalExecutor": "core.execution.local",
    "LocalTunnel": "core.tunnel.local",
    "MissingDependencyError": "errors",
    "NemoRunError": "errors",
    "NotFoundError": "errors",
    "Packager": "core.packaging.base",
    "PackagingError": "errors",
    "Partial": "config",
    "PatternPackager": "core.packaging.pattern",
    "PickledValue": "run.results",
    "Plan": "core.execution.base",
    "Plugin": "run.plugin",
    "SSHTunnel": "core.tunnel.ssh",
    "Script": "config",
    "Secret": "secret",
    "SerializationError": "errors",
    "SkypilotExecutor": "core.execution.skypilot",
    "SkypilotJobsExecutor": "core.execution.skypilot",
    "SlurmExecutor": "core.execution.slurm",
    "SlurmJobDetails": "core.execution.slurm",
    "SlurmRay": "core.execution.launcher",
    "SlurmTemplate": "core.execution.launcher",
    "StoreError": "errors",
    "SubmitError": "errors",
    "Topology": "core.execution.base",
    "TorchXExecutor": "core.execution.torchx",
    "Torchrun": "core.execution.launcher",
    "UnpicklableValue": "run.results",
    "UnsupportedError": "errors",
    "VertexExecutor": "core.execution.vertex",
    "artifacts_dir": "rundir",
    "autoconvert": "config",
    "dryrun_fn": "describe",
    "help": "describe",
    "import_executor": "config",
    "lazy_imports": "lazy",
}
#: Reached as attributes without an import of their own; calling `run` runs one task.
_SUBMODULES = ("checkpoint", "cli", "config", "core", "errors", "run", "xm", "xm_local")

__all__ = [*_MODULES, "run", "__package_name__", "__version__"]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_SUBMODULES})
