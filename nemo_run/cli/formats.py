"""Plain data in YAML, TOML and JSON: read without surprises, and TOML written."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from nemo_run.errors import OverrideError

#: A file with more than this in it, counting each use of a YAML alias, is no config.
_MOST_NODES = 1_000_000


def parse_data(text: str, kind: str, name: str = "this") -> Any:
    """The plain data in a text of that kind; raises OverrideError where it is none."""
    try:
        return _plain(_PARSERS[kind](text), [_MOST_NODES])
    except RecursionError:
        raise OverrideError(f"{name} is nested too deep") from None
    except ValueError as exc:
        raise OverrideError(f"{name} is not {kind.upper()}: {exc}") from exc


def _plain(data: Any, budget: list[int]) -> Any:
    """The data as what JSON has; numbers, dates and keys that it has not become texts."""
    budget[0] -= 1
    if budget[0] < 0:
        raise ValueError(f"it holds more than {_MOST_NODES:,} values")
    if isinstance(data, dict):
        if set(data) == {"_json_"}:
            return json.loads(str(data["_json_"]))
        return {str(key): _plain(item, budget) for key, item in data.items()}
    if isinstance(data, list):
        return [_plain(item, budget) for item in data]
    is_number = isinstance(data, (bool, int)) or (isinstance(data, float) and math.isfinite(data))
    if data is None or is_number or isinstance(data, str):
        return data
    return {"_float_": repr(data)} if isinstance(data, float) else str(data)


def _from_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as exc:
        raise ValueError(str(exc)) from exc


def _loader() -> Any:
    """YAML less what surprises: `on` and `12:30` and `2026-01-01` are texts, and no object is ever made."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    kinds = {"bool": "tTfF", "int": "-+0123456789", "float": "-+.0123456789", "null": "~nN\0", "merge": "<"}
    tags = {f"tag:yaml.org,2002:{kind}" for kind in kinds}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, _YAML.get(tag, pattern)) for tag, pattern in resolvers if tag in tags]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


#: In place of YAML 1.1's own: no `yes`, no base 60. They take less than those, so what was quoted stays text.
_YAML = {
    "tag:yaml.org,2002:bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0b[01_]+|0x[\da-fA-F_]+|0|[1-9][\d_]*)\Z", re.ASCII),
    "tag:yaml.org,2002:float": re.compile(
        r"([-+]?(\d[\d_]*\.[\d_]*([eE][-+]\d+)?|\.\d[\d_]*([eE][-+]\d+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN))\Z",
        re.ASCII,
    ),
}


def _from_toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    data = tomllib.loads(text)
    return data["_value_"] if set(data) == {"_value_"} else data


_PARSERS: dict[str, Callable[[str], Any]] = {"yaml": _from_yaml, "toml": _from_toml, "json": json.loads}


# --- TOML -----------------------------------------------------------------------------------------------


def tree_to_toml(tree: Any) -> str:
    """A tree as TOML text, in the tree's order; what TOML lacks (None) is `{ _json_ = "null" }`."""
    whole = tree if isinstance(tree, dict) and _is_table(tree) else {"_value_": tree}
    return "".join(_table(whole, ())).lstrip("\n")


def _table(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """A table's lines; a table in it has a heading of its own where nothing but such follows."""
    keys = list(table)
    below = len(keys)
    while below and isinstance(table[keys[below - 1]], dict) and _is_table(table[keys[below - 1]]):
        below -= 1
    if path and (below or not keys):
        yield f"\n[{'.'.join(map(_key, path))}]\n"
    for key in keys[:below]:
        yield f"{_key(key)} = {_inline(table[key])}\n"
    for key in keys[below:]:
        yield from _table(table[key], (*path, key))


def _is_table(value: dict[str, Any]) -> bool:
    """Whether TOML can have it as a table: it has no tables for lone surrogates in keys."""
    return all(map(_is_text, value))


def _is_text(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str) and _is_text(value):
        return _quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, dict) and _is_table(value):
        return "{" + ", ".join(f"{_key(key)} = {_inline(item)}" for key, item in value.items()) + "}"
    return f"{{_json_ = {_quoted(json.dumps(value))}}}"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _quoted(key)


def _quoted(text: str) -> str:
    return '"' + "".join(_escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return f"\\u{ord(char):04x}" if ord(char) < 0x20 or char == "\x7f" else char
