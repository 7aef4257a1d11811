"""The command line, and what scripts say to it: `run.cli.factory`, `run.cli.parse_partial` and others."""

#: Where each name is defined; nothing is imported until it is used, as in `nemo_run` itself.
_MODULES = {
    "LazyEntrypoint": "lazily",
    "RunContext": "entrypoints",
    "entrypoint": "entrypoints",
    "factory": "factories",
    "list_entrypoints": "entrypoints",
    "list_factories": "factories",
    "main": "entrypoints",
    "parse_cli_args": "parsing",
    "parse_config": "parsing",
    "parse_partial": "parsing",
    "resolve_factory": "factories",
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
