"""XManager's deeds: experiments whose units run on this machine, in containers, on clusters, in clouds."""

import sys

#: Where each public name is defined; nothing is imported until it is used (PEP 562).
_MODULES = {
    "Caip": "executors",
    "CaipSpec": "executors",
    "DockerOptions": "executors",
    "Kubernetes": "executors",
    "KubernetesSpec": "specs",
    "Local": "executors",
    "LocalSpec": "specs",
    "Skypilot": "executors",
    "SkypilotSpec": "specs",
    "Slurm": "executors",
    "SlurmSpec": "specs",
    "TensorboardCapability": "executors",
    "TpuCapability": "executors",
    "Vertex": "executors",
    "VertexSpec": "specs",
    "create_experiment": "experiment",
    "get_experiment": "experiment",
    "list_experiments": "experiment",
}
_SUBMODULES = ("executables", "executors", "experiment", "packaging", "specs", "units")

__all__ = list(_MODULES)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_SUBMODULES})


# A script that parses its flags with absl, which refuses those that nobody defined, has imported it by now.
if "absl.flags" in sys.modules:
    from nemo_run.xm_local.flags import define

    define()
