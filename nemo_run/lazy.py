"""Naming things in modules that are slow to import, or are installed only where the task runs."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from nemo_run.errors import ConfigError


@dataclass(frozen=True)
class LazyTarget:
    """Something known by its dotted name alone; it is imported when it is called."""

    path: str

    def __post_init__(self) -> None:
        # Whoever wants to show or name it asks for what functions and classes have.
        module, _, name = self.path.rpartition(".")
        self.__dict__.update(__module__=module, __qualname__=name, __name__=name)

    def __getattr__(self, name: str) -> LazyTarget:
        # Protocols (copy, pickle, inspect, notebooks) ask for dunders and must see that there are none.
        if name.startswith("__"):
            raise AttributeError(name)
        return LazyTarget(f"{self.path}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.resolve()(*args, **kwargs)

    def resolve(self) -> Any:
        """The thing itself.

        Raises:
            ImportError, AttributeError: there is no such thing here.
        """
        from nemo_run.core.runner import resolve

        return resolve(self.path)


class LazyModule(ModuleType):
    """A module that has not been imported; its attributes are `LazyTarget`s."""

    def __getattr__(self, name: str) -> LazyTarget:
        if name.startswith("__"):
            raise AttributeError(name)
        return LazyTarget(f"{self.__name__}.{name}")


@contextmanager
def lazy_imports(fallback_to_lazy: bool = False) -> Iterator[None]:
    """Make the imports written in this `with` block lazy.

    What is already imported, and Python's own library, is imported as always. With `fallback_to_lazy`
    (default: False) a module is lazy only where importing it fails.

    Raises:
        ConfigError: the block imports from a relative module, or everything (`*`) from a lazy one.
    """
    original = builtins.__import__
    # Imports that other modules make in the meantime are theirs, not the block's.
    block = sys._getframe(2).f_globals

    def lazy(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        eager = name in sys.modules or name.partition(".")[0] in sys.stdlib_module_names
        if globals is not block or (eager and not level):
            return original(name, globals, locals, fromlist or (), level)
        try:
            if fallback_to_lazy:
                return original(name, globals, locals, fromlist or (), level)
        except ImportError:
            pass
        return _lazy_module(name, tuple(fromlist or ()), level)

    builtins.__import__ = lazy
    try:
        yield
    finally:
        builtins.__import__ = original


def _lazy_module(name: str, fromlist: tuple[str, ...], level: int) -> ModuleType:
    if level:
        raise ConfigError(f"lazy_imports cannot import relatively; write {'.' * level}{name} in full")
    if "*" in fromlist:
        raise ConfigError(f"`from {name} import *` cannot be lazy; name what you need")
    # `import a.b` binds `a`; `from a.b import c` asks `a.b` for c.
    return LazyModule(name if fromlist else name.partition(".")[0])
