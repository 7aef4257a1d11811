"""Overrides applied to a config, one after the other, as they stand on the command line."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import fiddle as fdl
from fiddle.signatures import get_signature

from nemo_run.cli.export import RESERVED, from_data, read_data
from nemo_run.cli.kinds import (
    argument_kinds,
    config_kind,
    container_of,
    fixed_length,
    item_kind,
    kind_text,
    members,
    sort_of,
    takes_files,
)
from nemo_run.cli.operators import MISSING, Absent, kind_of, operated
from nemo_run.cli.syntax import Override, Step, contents, parse_override, shown, steps
from nemo_run.cli.telling import explaining, unknown_argument
from nemo_run.cli.values import Reader
from nemo_run.config import Config, Partial, configured
from nemo_run.drawing import name_of
from nemo_run.errors import ConfigError, OverrideError, suggestion

#: Makes a new value from the one that is there, its annotation, and the reader for that place.
Change = Callable[[Any, Any, Reader], Any]


def apply_overrides(cfg: Any, overrides: Iterable[str | Override], reader: Reader | None = None) -> Any:
    """Apply overrides to a Config or Partial in place, in their order; returns it.

    Lists, dicts and sets in it are replaced by changed copies, so that no default of a function changes.
    `reader` says what names stand for; by default there are no factories.

    Raises:
        OverrideError: one of them names nothing, or has a value that does not fit; those before it are done.
    """
    for given in overrides:
        override = parse_override(given) if isinstance(given, str) else given
        apply(cfg, override.steps, override.key, _typed(override), reader or Reader())
    return cfg


def apply_data(cfg: Any, data: Mapping[str, Any], reader: Reader | None = None) -> Any:
    """Apply what a file says to a Config or Partial in place; returns it.

    A key is that of an override, with or without an operator (`size*`, or `size*=`).

    Raises:
        OverrideError: as for `apply_overrides`.
    """
    for key, item in data.items():
        name = str(key).removesuffix("=").rstrip()
        sign = name[-1:] if name[-1:] in "+-*/|&" else ""
        name = name.removesuffix(sign).rstrip()
        apply(cfg, steps(name), name, _given(sign + "=", item), reader or Reader())
    return cfg


def apply(cfg: Any, path: tuple[Step, ...], key: str, change: Change, reader: Reader) -> None:
    """Change what a path in a config leads to.

    Raises:
        OverrideError: it leads nowhere, or the change does not fit.
    """
    try:
        _updated(cfg, Any, list(path), change, reader, "")
    except OverrideError as exc:
        if exc.argument:
            raise
        raise OverrideError(f"{key}: {exc}", argument=key, choices=exc.choices) from exc
    except (ConfigError, AttributeError, TypeError, ValueError) as exc:
        raise OverrideError(f"{key} cannot be set: {exc}", argument=key) from exc


# --- along a path ---------------------------------------------------------------------------------------


def _updated(value: Any, kind: Any, path: list[Step], change: Change, reader: Reader, key: str) -> Any:
    """The value with what the path leads to changed: a config in place, a list, tuple or dict as a copy."""
    if not path:
        return change(value, kind, reader)
    step, *rest = path
    if rest or not isinstance(value, fdl.Buildable):
        value = _opened(value, kind, reader)
    key = f"{key}.{step.text}".removeprefix(".") if step.kind == "name" else f"{key}[{step.text}]"
    if isinstance(value, fdl.Buildable):
        _update_argument(value, step, rest, change, reader, key)
        return value
    if isinstance(value, (list, tuple)):
        at, items = _index(value, step, key), list(value)
        items[at] = _updated(items[at], item_kind(kind, at, type(value)), rest, change, reader, key)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        name = _dict_key(value, step, rest, key)
        inner = item_kind(kind, name, dict)
        changed = _updated(value.get(name, MISSING), inner, rest, change, reader, key)
        return {**value, name: changed}
    raise _closed(value, kind, step, key, reader)


def _update_argument(
    node: Any, step: Step, rest: list[Step], change: Change, reader: Reader, key: str
) -> None:
    target, name = node.__fn_or_cls__, step.text
    _check_argument(node, step, key)
    kind = _argument_kind(target, name)
    inner = reader.at(target, name)
    with explaining(target, name, kind, key):
        value = _current(node, name)
        changed = _updated(value, kind, rest, change, inner, key)
    if changed is not value or name not in node.__arguments__:
        setattr(node, name, changed)


def _check_argument(node: Any, step: Step, key: str) -> None:
    signature = node.__signature_info__
    known = list(signature.valid_param_names)
    is_name = step.kind == "name" and not (step.text.startswith("__") and step.text.endswith("__"))
    if is_name and (step.text in known or step.text in node.__arguments__):
        return
    parameter = signature.parameters.get(step.text)
    if not (is_name and signature.has_var_keyword and parameter is None):
        raise unknown_argument(key, step.text, node.__fn_or_cls__, known)


def _argument_kind(target: Any, name: str) -> Any:
    kinds, parameters = argument_kinds(target), get_signature(target).parameters
    rest = [p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    return kinds.get(name if name in parameters or not rest else rest[0], Any)


def _current(node: Any, name: str) -> Any:
    """What an argument is: as set, else a copy of its default."""
    if name in node.__arguments__:
        return node.__arguments__[name]
    parameter = node.__signature_info__.parameters.get(name)
    if parameter is None or parameter.default is parameter.empty:
        return MISSING
    fields = {f.name: f for f in dataclasses.fields(node.__fn_or_cls__)} if _is_dataclass(node) else {}
    if name in fields and fields[name].default_factory is not dataclasses.MISSING:
        return _from_default_factory(fields[name].default_factory)
    default = configured(parameter.default)
    is_open = isinstance(default, (fdl.Buildable, list, tuple, dict, set))
    return _copied(default) if is_open else default


def _copied(default: Any) -> Any:
    try:
        return copy.deepcopy(default)
    except Exception as exc:  # whatever a foreign object raises
        return Absent(f"a default that cannot be copied ({type(exc).__name__})")


def _is_dataclass(node: Any) -> bool:
    target = node.__fn_or_cls__
    return isinstance(target, type) and dataclasses.is_dataclass(target)


def _from_default_factory(make: Any) -> Any:
    """What a field's default factory makes, where that needs no code of the user's to run."""
    if make in (list, dict, set, tuple, frozenset):
        return make()
    return (
        Config(make)
        if isinstance(make, type) and dataclasses.is_dataclass(make)
        else Absent(f"made by {name_of(make)}")
    )


def _opened(value: Any, kind: Any, reader: Reader) -> Any:
    """What is not there yet, where something can be in its place: its default factory, or a dataclass."""
    if value is not None and value is not MISSING:
        return value
    if made := reader.default(kind):
        return made[0]
    if value is None:
        return None
    classes = [config_kind(member) for member in members(kind) if sort_of(member) == "class"]
    if len(classes) == 1 and dataclasses.is_dataclass(classes[0][1]):
        name, target = classes[0]
        return (Partial if name == "Partial" else Config)(target)
    return {} if _is_dict(kind) else value


def _is_dict(kind: Any) -> bool:
    return all(sort_of(m) == "container" and container_of(m) is dict for m in members(kind))


def _closed(value: Any, kind: Any, step: Step, key: str, reader: Reader) -> OverrideError:
    outer = key[: -len(step.text) - (1 if step.kind == "name" else 2)]
    if not (value is None or isinstance(value, Absent)):
        return OverrideError(f"{outer} is {shown(value)}, which has no {step.text!r}")
    names = reader.choices(kind)
    known = f", for instance to {' or '.join(names[:3])}" if names else ""
    return OverrideError(f"{outer} is {value!r}; set {outer} itself first{known}", choices=names)


def _index(value: Any, step: Step, key: str) -> int:
    try:
        at = int(step.text) if step.kind == "index" else len(value)
    except ValueError:
        at = len(value)
    if not -len(value) <= at < len(value):
        raise OverrideError(f"there is no {key}: it has {len(value)} items, from 0; append one with +=[…]")
    return at


def _dict_key(value: dict[Any, Any], step: Step, rest: list[Step], key: str) -> Any:
    name: Any = step.text
    if step.kind == "index":
        name = next((known for known in value if str(known) == step.text), step.text)
    if rest and name not in value:
        raise OverrideError(f"there is no {key}{suggestion(step.text, [str(known) for known in value])}")
    return name


# --- changes --------------------------------------------------------------------------------------------


def _typed(override: Override) -> Change:
    """The change that an override asks for."""
    sign, text = override.operator, override.value

    def change(value: Any, kind: Any, reader: Reader) -> Any:
        def read(wanted: Any) -> Any:
            if text.startswith("@") and takes_files(wanted):
                return _data_value(read_data(text[1:]), wanted, reader)
            return reader.read(text, wanted)

        is_one = contents(text, "[({") is None and not text.startswith("@")
        return read(kind) if sign == "=" else operated(sign, value, kind, read, is_one)

    return change


def _given(sign: str, data: Any) -> Change:
    """The change that a file asks for."""

    def change(value: Any, kind: Any, reader: Reader) -> Any:
        is_plain = isinstance(data, dict) and not RESERVED & data.keys()
        if is_plain and sign == "=" and isinstance(node := _opened(value, kind, reader), fdl.Buildable):
            return apply_data(node, data, reader)

        def read(wanted: Any) -> Any:
            return _data_value(data, wanted, reader)

        return read(kind) if sign == "=" else operated(sign, value, kind, read, not isinstance(data, list))

    return change


def _data_value(data: Any, kind: Any, reader: Reader) -> Any:
    """The value that plain data of a file means for an annotation."""
    sorts = {sort_of(member) for member in members(kind)}
    if isinstance(data, str):
        return data if sorts & {"str", "any"} else reader.read(data, kind)
    if isinstance(data, dict):
        return _from_mapping(data, kind, reader)
    if isinstance(data, list) and sorts & {"any", "container"}:
        return _from_list(data, kind, reader)
    if (data is None and sorts & {"any", "none"}) or (not isinstance(data, list) and "any" in sorts):
        return data
    return reader.read(repr(data), kind)


def _from_list(data: list[Any], kind: Any, reader: Reader) -> Any:
    """The list, tuple or set of an annotation with the items of a list."""
    whole = next(
        (m for m in members(kind) if sort_of(m) == "container" and container_of(m) is not dict), list
    )
    made = container_of(whole)
    length = fixed_length(whole)
    if length not in (None, len(data)):
        raise OverrideError(f"{shown(data)} has {len(data)} items, not the {length} of {kind_text(whole)}")
    items = [_data_value(item, item_kind(whole, at, made), reader) for at, item in enumerate(data)]
    return items if made is list else made(items)


def _from_mapping(data: dict[str, Any], kind: Any, reader: Reader) -> Any:
    if "_factory_" in data:
        rest = {name: item for name, item in data.items() if name != "_factory_"}
        made = reader.read(str(data["_factory_"]), kind)
        return apply_data(made, rest, reader) if rest else made
    if RESERVED & data.keys():
        return from_data(data)
    if isinstance(node := _opened(MISSING, kind, reader), fdl.Buildable):
        return apply_data(node, data, reader)
    whole = kind_of({}, kind)
    return {name: _data_value(item, item_kind(whole, name, dict), reader) for name, item in data.items()}
