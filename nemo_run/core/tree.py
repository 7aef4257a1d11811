"""A task as a plain tree, with every name in it checked; the format is described in `serialization.py`."""

from __future__ import annotations

import base64
import dataclasses
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import fiddle as fdl

from nemo_run.config import Config, Partial, init_arguments
from nemo_run.core.runner import resolve
from nemo_run.errors import SerializationError
from nemo_run.lazy import LazyTarget
from nemo_run.secret import Secret
from nemo_run.shell import Expand

#: Two surrogates in this order would be read back from JSON as one other character.
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
#: What the repr of a constant such as `torch.bfloat16` looks like.
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def to_tree(value: Any, *, main: ModuleType | None = None) -> Any:
    """A value as a tree; `main` stands for the module `__main__` (default: the running one).

    Raises:
        SerializationError: something in it cannot be written down, or holds itself; `path` says where.
    """
    finder = _Writer(main, shared={})
    finder.write(value, "")
    shared = {identity: number for number, identity in enumerate(finder.met_again, 1)}
    return _Writer(main, shared).write(value, "")


class _Writer:
    """Writes one value. It is run twice: the first time finds out what is `met_again`, and so is shared."""

    def __init__(self, main: ModuleType | None, shared: Mapping[int, int]) -> None:
        self.main = main
        self.shared = shared
        self.met: set[int] = set()
        self.met_again: dict[int, None] = {}
        self.open: set[int] = set()

    def write(self, value: Any, path: str) -> Any:
        if value is None or type(value) in (bool, int):
            return value
        if leaf := _LEAVES.get(type(value)):
            return leaf(value, path)
        if isinstance(value, Enum):
            return self._enum(value, path)
        if writer := self._node_writer(value):
            return self._node(value, path, writer)
        return self._contents(value, path) or self._named(value, path)

    def _node_writer(self, value: Any) -> Callable[[Any, str], Any] | None:
        """How to write what may be reached along several paths."""
        if type(value) is list:
            return self._list
        if type(value) is dict:
            return self._dict
        if isinstance(value, fdl.Buildable):
            return self._buildable
        if dataclasses.is_dataclass(value) and not isinstance(value, (type, LazyTarget)):
            return self._dataclass
        return None

    def _node(self, value: Any, path: str, write: Callable[[Any, str], Any]) -> Any:
        identity = id(value)
        if identity in self.open:
            raise SerializationError(f"{at_path(path)} holds itself, and so has no end", path=path)
        if identity in self.met:
            self.met_again[identity] = None
            return {"_ref_": self.shared.get(identity)}
        self.met.add(identity)
        self.open.add(identity)
        tree = write(value, path)
        self.open.remove(identity)
        return {"_id_": self.shared[identity], **tree} if identity in self.shared else tree

    def _all(self, values: Iterable[Any], path: str) -> list[Any]:
        return [self.write(value, f"{path}[{at}]") for at, value in enumerate(values)]

    def _list(self, value: list[Any], path: str) -> Any:
        items = self._all(value, path)
        return {"_list_": items} if id(value) in self.shared else items

    def _dict(self, value: dict[Any, Any], path: str) -> Any:
        plain = all(type(key) is str and not key.startswith("_") for key in value)
        if not plain or id(value) in self.shared:
            pairs = ((key, item, f"{path}[{key!r}]") for key, item in value.items())
            return {"_dict_": [[self.write(key, at), self.write(item, at)] for key, item, at in pairs]}
        return {_text(key, path): self.write(item, f"{path}[{key!r}]") for key, item in value.items()}

    def _buildable(self, value: Any, path: str) -> dict[str, Any]:
        kind: dict[str, Any] = {"_partial_": True} if isinstance(value, fdl.Partial) else {}
        if type(value) not in (Config, Partial, fdl.Config, fdl.Partial):
            kind = {"_buildable_": _fiddle_name(value) or self.name(type(value), path)}
        args, kwargs = value.__signature_info__.transform_to_args_kwargs(fdl.ordered_arguments(value))
        tree = {"_target_": self.name(value.__fn_or_cls__, path), **kind, **self._call(args, kwargs, path)}
        if tags := {str(key): tags for key, tags in value.__argument_tags__.items() if tags}:
            tree["_tags_"] = {key: sorted(self.name(tag, path) for tag in tags[key]) for key in tags}
        return tree

    def _call(self, args: Iterable[Any], kwargs: Mapping[str, Any], path: str) -> dict[str, Any]:
        # The order is that in which the tree is built again: what is shared is written where it is built.
        written: dict[str, Any] = {"_args_": self._all(args, path)} if args else {}
        named = {name: below(path, name) for name in kwargs}
        written.update((n, self.write(kwargs[n], at)) for n, at in named.items() if not n.startswith("_"))
        if hidden := [name for name in named if name.startswith("_")]:
            written["_kwargs_"] = {name: self.write(kwargs[name], named[name]) for name in hidden}
        return written

    def _dataclass(self, value: Any, path: str) -> dict[str, Any]:
        name = self.name(type(value), path)
        if init_arguments(value) is None:
            state = {key: self.write(item, below(path, key)) for key, item in _state(value).items()}
            return {"_instance_": name, "state": state}
        arguments = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return {"_target_": name, **self._call((), arguments, path)}

    def _contents(self, value: Any, path: str) -> dict[str, Any] | None:
        """The tree of what is defined by what it holds, and is never changed in place by Fiddle."""
        if type(value) is tuple:
            return {"_tuple_": self._all(value, path)}
        if type(value) in (set, frozenset):
            items = sorted((self.write(item, path) for item in value), key=json.dumps)
            return {f"_{type(value).__name__}_": items}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {"_namedtuple_": self.name(type(value), path), "values": self._all(value, path)}
        return None

    def _enum(self, value: Enum, path: str) -> dict[str, Any]:
        if type(value).__members__.get(str(value.name)) is not value:
            raise SerializationError(f"{at_path(path)} is {value!r}, which has no name of its own", path=path)
        return {"_enum_": self.name(type(value), path), "name": value.name}

    def _named(self, value: Any, path: str) -> dict[str, Any]:
        """What stands for itself by its name: functions, classes, and constants such as `torch.bfloat16`."""
        if callable(value) and hasattr(value, "__qualname__"):
            return {"_target_": self.name(value, path), "_call_": False}
        if (name := _constant_name(value)) and self._find(name) is value:
            return {"_target_": name, "_call_": False}
        raise SerializationError(f"{at_path(path)} {_is_a(value)}. {_mend(value)}", path=path)

    def name(self, value: Any, path: str) -> str:
        """The dotted name that leads to a function or class from everywhere."""
        if isinstance(value, LazyTarget):
            return value.path
        name = _dotted(value)
        if "<lambda>" in name:
            problem = "is a lambda, which has no name. Define a function at the top level of a module."
        elif "<locals>" in name:
            problem = (
                f"is {name}, which exists only inside a function. Define it at the top level of a module."
            )
        elif inspect.ismethod(value) and not isinstance(value.__self__, type):
            problem = f"is a method of an object, {name}. Use a function at the top level of a module."
        elif self._find(name) != value:
            problem = (
                f"is called {name}, but importing that leads elsewhere or nowhere. Give it a name of its own."
            )
        else:
            return name
        raise SerializationError(f"{at_path(path)} {problem}", path=path)

    def _find(self, name: str) -> Any:
        module, _, rest = name.partition(".")
        try:
            return _inside(self.main, rest) if self.main and module == "__main__" else resolve(name)
        except (ImportError, AttributeError, ValueError):
            return None


def _text(value: str, path: str) -> str:
    if _SURROGATE_PAIR.search(value):
        raise SerializationError(
            f"{at_path(path)} is no Unicode text: it holds a pair of surrogates", path=path
        )
    return value


def _float(value: float, path: str) -> Any:
    return value if math.isfinite(value) else {"_float_": repr(value)}


#: How to write what holds nothing else; its type must be this very one.
_LEAVES: dict[type, Callable[[Any, str], Any]] = {
    str: _text,
    float: _float,
    bytes: lambda value, path: {"_bytes_": base64.b64encode(value).decode()},
    type(Path()): lambda value, path: {"_path_": _text(str(value), path)},
    PurePosixPath: lambda value, path: {"_path_": _text(str(value), path)},
    Expand: lambda value, path: {"_expand_": _text(str(value), path)},
    Secret: lambda value, path: {"_secret_": {"id": value.name, **value.source()}},
}


def _dotted(value: Any) -> str:
    if inspect.ismethod(value) and isinstance(value.__self__, type):
        # A class method that is inherited goes by the class it is asked of.
        return f"{_dotted(value.__self__)}.{value.__name__}"
    module = getattr(value, "__module__", None) or getattr(type(value), "__module__", "")
    return f"{module}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _constant_name(value: Any) -> str | None:
    """The dotted name that a constant goes by: its repr."""
    try:
        name = repr(value)
    except Exception:  # whatever a foreign __repr__ raises, this is no constant
        return None
    return name if _DOTTED.fullmatch(name) else None


def _fiddle_name(value: Any) -> str | None:
    """The public name of one of fiddle's own kinds; the module it is written in is private."""
    name = type(value).__name__
    return f"fiddle.{name}" if getattr(fdl, name, None) is type(value) else None


def _state(value: Any) -> Mapping[str, Any]:
    names = vars(value) if hasattr(value, "__dict__") else [f.name for f in dataclasses.fields(value)]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _inside(module: Any, rest: str) -> Any:
    for part in rest.split("."):
        module = getattr(module, part)
    return module


def below(path: str, name: str) -> str:
    """The path of an argument of what is at `path`."""
    return f"{path}.{name}".removeprefix(".")


def at_path(path: str) -> str:
    """Where something is, in a message."""
    return f"{path!r} in the task" if path else "the task"


def _is_a(value: Any) -> str:
    kind = type(value)
    return f"is a value of type {kind.__module__}.{kind.__qualname__}, which cannot be written down"


def _mend(value: Any) -> str:
    """What to write instead of a value that is refused."""
    for plain in (bool, int, float, str, list, dict):
        if isinstance(value, plain):
            return f"Convert it: {plain.__name__}(…)."
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return "Convert it: .item()."
    if hasattr(value, "read") or hasattr(value, "__array__"):
        return "Give the task a file's path and open it there."
    return f"Describe how it is made: run.Config({type(value).__name__}, …), or make it inside the task."
