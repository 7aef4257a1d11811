"""Tasks and executors as plain trees, JSON and YAML, and back.

A tree holds None, bool, int, str, finite floats, lists, and objects (dicts with text keys) of these kinds:

    {"_target_": "module.Class", <argument>: …}      a call; also `_partial_`, `_args_`, `_kwargs_`, `_tags_`
    {"_target_": "module.name", "_call_": false}     the thing of that name itself
    {"_buildable_": "fiddle.ArgFactory", "_target_": …}    another kind of Fiddle node
    {"_instance_": "module.Class", "state": {…}}     an object of a class with a constructor of its own
    {"_tuple_": […]} {"_namedtuple_": "module.Class", "values": […]} {"_set_": […]} {"_frozenset_": […]}
    {"_dict_": [[key, value], …]} {"_list_": […]}    where plain JSON will not do
    {"_float_": "nan"} {"_bytes_": "base64"} {"_enum_": "module.Class", "name": "RED"} {"_path_": "/a"}
    {"_secret_": {"id": …, "name": …}} {"_expand_": "$HOME"}
    {"_ref_": 1}                                     the object whose tree has `"_id_": 1`, shared
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import fiddle as fdl
import yaml
from fiddle import daglish

from nemo_run.config import Config, Partial
from nemo_run.core.runner import resolve
from nemo_run.core.tree import at_path, below, to_tree
from nemo_run.errors import ConfigError, SerializationError
from nemo_run.secret import Secret
from nemo_run.shell import Expand

__all__ = ["from_json", "from_tree", "from_yaml", "to_json", "to_tree", "to_yaml", "tree_to_yaml"]

#: A text that YAML shows line by line: printable, with no blanks at its edges for an editor to lose.
_LINES = re.compile(r"(?!\s)([\x20-\x7e]*[\x21-\x7e])?(\n([\x20-\x7e]*[\x21-\x7e])?)*(?<!\n\n)\Z")
#: Keys of a call's tree that are not arguments.
_RESERVED = ("_target_", "_partial_", "_buildable_", "_args_", "_kwargs_", "_tags_", "_id_", "_call_")


def to_json(value: Any) -> str:
    """A value as JSON text; raises like `to_tree`."""
    return json.dumps(to_tree(value), indent=2, allow_nan=False) + "\n"


def to_yaml(value: Any) -> str:
    """A value as YAML text; raises like `to_tree`."""
    return tree_to_yaml(to_tree(value))


def tree_to_yaml(tree: Any) -> str:
    """A tree as YAML text."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
    return text


def from_tree(tree: Any) -> Any:
    """The value that a tree describes: calls come back as Config and Partial.

    Raises:
        SerializationError: a name in it leads nowhere, or it is not such a tree.
    """
    return _Reader().read(tree, "")


def from_json(text: str) -> Any:
    """The value in a JSON text; raises like `from_tree`."""
    try:
        return from_tree(json.loads(text))
    except json.JSONDecodeError as exc:
        raise SerializationError(f"this is not JSON: {exc}") from exc


def from_yaml(text: str) -> Any:
    """The value in a YAML text; raises like `from_tree`."""
    try:
        return from_tree(yaml.safe_load(text))
    except yaml.YAMLError as exc:
        raise SerializationError(f"this is not YAML: {exc}") from exc


# --- reading --------------------------------------------------------------------------------------------


class _Reader:
    """Reads one tree; remembers what has an `_id_`."""

    def __init__(self) -> None:
        self.shared: dict[int, Any] = {}

    def read(self, tree: Any, path: str) -> Any:
        if tree is None or type(tree) in (bool, int, float, str):
            return tree
        if type(tree) is list:
            return [self.read(item, f"{path}[{at}]") for at, item in enumerate(tree)]
        if type(tree) is not dict:
            problem = f"{at_path(path)} is a {type(tree).__name__}; put quotes around it to make it a text"
            raise SerializationError(problem, path=path)
        with _reading(path):
            value = self._object(tree, path)
        if "_id_" in tree:
            self.shared[tree["_id_"]] = value
        return value

    def _object(self, tree: dict[str, Any], path: str) -> Any:
        if "_ref_" in tree:
            return self.shared[tree["_ref_"]]
        if "_target_" in tree:
            return resolve(tree["_target_"]) if tree.get("_call_") is False else self._call(tree, path)
        if "_instance_" in tree:
            return self._instance(tree, path)
        if kind := next((kind for kind in _KINDS if kind in tree), None):
            return _KINDS[kind](tree, lambda item: self.read(item, path))
        return {key: self.read(item, f"{path}[{key!r}]") for key, item in tree.items()}

    def _call(self, tree: dict[str, Any], path: str) -> Any:
        kind: Any = Partial if tree.get("_partial_") else Config
        if "_buildable_" in tree:
            kind = _resolved(tree["_buildable_"], fdl.Buildable)
        args = [self.read(item, f"{path}[{at}]") for at, item in enumerate(tree.get("_args_", ()))]
        arguments = {name: item for name, item in tree.items() if name not in _RESERVED}
        arguments.update(tree.get("_kwargs_", {}))
        kwargs = {name: self.read(item, below(path, name)) for name, item in arguments.items()}
        checked = {"bind_args": False} if kind in (Config, Partial) else {}
        cfg = kind(resolve(tree["_target_"]), *args, **checked, **kwargs)
        for key in {*cfg.__argument_tags__} - {*tree.get("_tags_", {})}:
            fdl.clear_tags(cfg, key)
        for key, tags in tree.get("_tags_", {}).items():
            fdl.set_tags(cfg, int(key) if key.isdigit() else key, {_resolved(tag, fdl.Tag) for tag in tags})
        return cfg

    def _instance(self, tree: dict[str, Any], path: str) -> Any:
        cls = _resolved(tree["_instance_"], object)
        instance = cls.__new__(cls)
        state = {name: self.read(item, below(path, name)) for name, item in tree["state"].items()}
        if any(isinstance(value, fdl.Buildable) for value, _ in daglish.iterate(state)):
            state = fdl.build(state)  # the object held real ones, not configs of them
        for name, value in state.items():
            object.__setattr__(instance, name, value)
        return instance


def _resolved(name: str, base: type) -> Any:
    """The class of that name; nothing else, which reading a file could then be made to call."""
    cls = resolve(name)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(f"{name} is not a class of the kind {base.__name__}")
    return cls


_KINDS: dict[str, Callable[[Any, Callable[[Any], Any]], Any]] = {
    "_list_": lambda tree, read: [read(item) for item in tree["_list_"]],
    "_dict_": lambda tree, read: {read(key): read(item) for key, item in tree["_dict_"]},
    "_tuple_": lambda tree, read: tuple(read(item) for item in tree["_tuple_"]),
    "_set_": lambda tree, read: {read(item) for item in tree["_set_"]},
    "_frozenset_": lambda tree, read: frozenset(read(item) for item in tree["_frozenset_"]),
    "_namedtuple_": lambda tree, read: _resolved(tree["_namedtuple_"], tuple)(*map(read, tree["values"])),
    "_enum_": lambda tree, read: _resolved(tree["_enum_"], Enum)[tree["name"]],
    "_float_": lambda tree, read: float(tree["_float_"]),
    "_bytes_": lambda tree, read: base64.b64decode(tree["_bytes_"]),
    "_path_": lambda tree, read: Path(tree["_path_"]),
    "_expand_": lambda tree, read: Expand(tree["_expand_"]),
    "_secret_": lambda tree, read: Secret.from_source(tree["_secret_"]),
}


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except SerializationError:
        raise
    except (ImportError, AttributeError, ConfigError, KeyError, TypeError, ValueError) as exc:
        problem = f"{at_path(path)} cannot be read: {type(exc).__name__}: {exc}"
        raise SerializationError(problem, path=path) from exc


# --- YAML -----------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Writes texts so that they come back byte for byte."""

    def ignore_aliases(self, data: Any) -> bool:
        # What is shared says so itself.
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text and _LINES.match(text) else None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
