"""Configs in files: written as YAML, TOML or JSON and read back the same, and what people write there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from nemo_run.cli.formats import parse_data, tree_to_toml
from nemo_run.cli.syntax import Step, shortened, steps
from nemo_run.errors import ConfigError, OverrideError, suggestion

#: Keys that make an object in a file more than data: what `core/serialization.py` writes, and `_factory_`.
RESERVED = frozenset({
    "_target_", "_instance_", "_list_", "_dict_", "_tuple_", "_set_", "_frozenset_", "_namedtuple_", "_enum_",
    "_float_", "_bytes_", "_path_", "_expand_", "_secret_", "_ref_", "_factory_",
})  # fmt: skip
_SECTION = re.compile(r"(.*):([^\W\d][^:/\\]*)", re.DOTALL)
_FORMATS = {".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}


def export(value: Any, target: str, kind: str = "", *, main: ModuleType | None = None) -> Path:
    """Write a config, or a section of it, into a file; returns its path.

    Args:
        value: a Config or Partial.
        target: `PATH` or `PATH:section`, the section being a key such as `model.layers[0]`.
        kind: `yaml`, `toml` or `json` (default: by the file's ending).
        main: what stands for the module `__main__` (default: the running one).

    Raises:
        OverrideError: the section is not there, or the file's ending says nothing.
        SerializationError: something in it cannot be written down.
        ConfigError: the file cannot be written.
    """
    path, section = split_section(target)
    text = dump(find_section(value, section), kind or _format_of(path), main=main)
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as exc:
        raise ConfigError(f"cannot write {str(path)!r}: {_reason(exc)}") from exc
    return path


def dump(value: Any, kind: str, *, main: ModuleType | None = None) -> str:
    """A value as `yaml`, `toml` or `json`; raises SerializationError."""
    from nemo_run.core.serialization import to_tree, tree_to_yaml

    tree = to_tree(value, main=main)
    if kind == "yaml":
        return tree_to_yaml(tree)
    return tree_to_toml(tree) if kind == "toml" else json.dumps(tree, indent=2, allow_nan=False) + "\n"


def load(target: str) -> Any:
    """The value in `PATH` or `PATH:section`: what `export` wrote, exactly.

    Names in it are imported, so it must be a file that you trust; nothing is called.

    Raises:
        OverrideError: it is not there, or holds no such value.
    """
    return from_data(read_data(target))


def from_data(data: Any) -> Any:
    """The value that the plain data of a file describes; nothing is called to make it.

    Raises:
        OverrideError: it describes none.
    """
    from nemo_run.core.serialization import from_tree

    _check_calls_nothing(data)
    try:
        return from_tree(data)
    except (ConfigError, RecursionError, LookupError, TypeError, ValueError) as exc:
        raise OverrideError(f"this is not the description of a config: {exc}") from exc


def _check_calls_nothing(data: Any) -> None:
    """Refuse objects with a state that has to be built: reading them would call what they name."""
    for node in _nodes(data):
        if isinstance(node, dict) and "_instance_" in node:
            for inner in _nodes(node.get("state")):
                if isinstance(inner, dict) and "_target_" in inner and inner.get("_call_") is not False:
                    name = shortened(str(node["_instance_"]))
                    raise OverrideError(f"a {name} cannot be read from a file: its parts would be built")


def _nodes(data: Any) -> Iterator[Any]:
    todo = [data]
    while todo:
        node = todo.pop()
        yield node
        todo.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())


# --- sections -------------------------------------------------------------------------------------------


def split_section(target: str) -> tuple[Path, str]:
    """`PATH:section` as its two parts; the section is empty where there is none."""
    found = _SECTION.fullmatch(target)
    # A colon may also be part of the path itself.
    if found and Path(found[1]).suffix.lower() in _FORMATS and not os.path.exists(target):
        return Path(found[1]), found[2]
    return Path(target), ""


def find_section(value: Any, section: str, shared: Mapping[Any, Any] | None = None) -> Any:
    """The part of a config, or of a file's data, that a key leads to.

    `shared` is what the data's `_ref_`s mean (default: it has none).

    Raises:
        OverrideError: it leads nowhere.
    """
    for step in steps(section) if section else ():
        value = _inside(_held(value, shared or {}), step, section)
    return value


def _held(value: Any, shared: Mapping[Any, Any]) -> Any:
    """The list or dict of what a config, or the tree of something, holds."""
    held = getattr(value, "__arguments__", value)
    if not isinstance(held, dict):
        return held
    held = shared.get(held.get("_ref_"), held)
    if "_dict_" in held:
        return {json.dumps(key) if isinstance(key, dict) else str(key): item for key, item in held["_dict_"]}
    items = held.get("_list_", held.get("_tuple_", held.get("values") if "_namedtuple_" in held else None))
    return {**held, **held.get("_kwargs_", {})} if items is None else items


def _inside(held: Any, step: Step, section: str) -> Any:
    if isinstance(held, (list, tuple)) and step.kind == "index" and re.fullmatch(r"-?\d{1,9}", step.text):
        if -len(held) <= int(step.text) < len(held):
            return held[int(step.text)]
    elif isinstance(held, dict):
        by_text = {str(key): key for key in held}
        if step.text in by_text:
            return held[by_text[step.text]]
        raise OverrideError(f"no section {section!r}{suggestion(step.text, list(by_text))}", argument=section)
    raise OverrideError(f"no section {section!r}: there is no {step.text!r} in it", argument=section)


def _shared(tree: Any) -> dict[Any, Any]:
    """What the `_ref_`s in a tree mean."""
    return {node["_id_"]: node for node in _nodes(tree) if isinstance(node, dict) and "_id_" in node}


def _with_shared(tree: Any, shared: Mapping[Any, Any], seen: set[Any]) -> Any:
    """A part of a tree that needs no other part of it."""
    if isinstance(tree, list):
        return [_with_shared(item, shared, seen) for item in tree]
    if not isinstance(tree, dict):
        return tree
    # It is written out where it comes first.
    if "_ref_" in tree and tree["_ref_"] in shared and tree["_ref_"] not in seen:
        tree = shared[tree["_ref_"]]
    seen.add(tree.get("_id_"))
    return {key: _with_shared(item, shared, seen) for key, item in tree.items()}


# --- files ----------------------------------------------------------------------------------------------


def read_data(target: str) -> Any:
    """The plain data in a file, or in a section of it: None, bools, numbers, texts, lists and dicts.

    Raises:
        OverrideError: there is no such file or section, or it cannot be read.
    """
    path, section = split_section(target)
    whole = parse_data(_text_of(path), _format_of(path), str(path))
    if not section:
        return whole
    shared = _shared(whole)
    return _with_shared(find_section(whole, section, shared), shared, set())


def _format_of(path: Path) -> str:
    if path.suffix.lower() not in _FORMATS:
        raise OverrideError(
            f"{str(path)!r} is no YAML, TOML or JSON file by its name; end it in .yaml, .toml, .json"
        )
    return _FORMATS[path.suffix.lower()]


def _text_of(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise OverrideError(f"there is no file {str(path)!r}{_near(path)}") from None
    except (OSError, ValueError, RuntimeError) as exc:
        raise OverrideError(f"cannot read {str(path)!r}: {_reason(exc)}") from exc


def _near(path: Path) -> str:
    try:
        names = [each.name for each in path.expanduser().parent.iterdir() if each.suffix.lower() in _FORMATS]
    except (OSError, RuntimeError):
        return ""
    return suggestion(path.name, sorted(names))


def _reason(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or str(exc)
