"""Executors and launchers; each public one is an attribute too, imported when it is used (PEP 562)."""


def __getattr__(name: str) -> object:
    from importlib import import_module

    package = import_module("nemo_run")
    if not package._MODULES.get(name, "").startswith("core.execution."):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(package, name)
