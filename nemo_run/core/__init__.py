"""What users do not import by itself, but may reach: `run.core.execution.FaultTolerance`."""


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name != "execution":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
