"""Whether the fields of an executor can work: a refusal names the field, its value and what to give."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from nemo_run.errors import ConfigError, suggestion
from nemo_run.shell import is_name

#: No clock of a job goes further (30 years).
_LONGEST = 1e9
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def check_names(executor: Any) -> None:
    """Refuse an attribute that is no field, which would be lost, and fields that were never set.

    Raises:
        ConfigError: there is one.
    """
    cls, names = type(executor), [entry.name for entry in fields(executor)]
    for name in names:
        if not hasattr(executor, name):
            problem = f"{cls.__name__} has no {name!r}: its __init__ must call super().__init__(**kwargs)"
            raise ConfigError(problem)
    if cls.__module__.partition(".")[0] != __name__.partition(".")[0]:
        return  # users' classes may set what they like
    for name in vars(executor):
        if not name.startswith("_") and name not in names and not hasattr(cls, name):
            raise ConfigError(f"{cls.__name__} has no field {name!r}{suggestion(name, names)}")


def check_env(what: str, env: Any) -> None:
    """Refuse what no environment can carry; values may be secrets.

    Raises:
        ConfigError: there is something.
    """
    if not isinstance(env, Mapping):
        raise ConfigError(f"{what} is of type {type(env).__name__}; give a dict of texts")
    for variable, value in env.items():
        if not isinstance(variable, str) or not is_name(variable):
            raise ConfigError(f"{what}: {variable!r} is not a name of an environment variable")
        if not isinstance(value, str) and not hasattr(value, "resolve"):
            # The value itself may be a password.
            raise ConfigError(f"{what}[{variable!r}] is of type {type(value).__name__}; give it as a str")
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{what}[{variable!r}] holds a NUL, which no environment can carry")


def check_seconds(executor: Any, name: str) -> None:
    """Refuse what is no length of time; None is none.

    Raises:
        ConfigError: it is none.
    """
    value = getattr(executor, name)
    if value is not None and not (_is_number(value, (int, float)) and 0 < value <= _LONGEST):
        raise _refusal(executor, name, "a number of seconds above 0, or None for no limit")


def check_count(executor: Any, name: str, least: int, *, optional: bool = False) -> None:
    """Refuse what is no whole number, or one below `least`.

    Raises:
        ConfigError: it is.
    """
    value = getattr(executor, name)
    if optional and value is None:
        return
    if not (_is_number(value, (int,)) and value >= least):
        raise _refusal(executor, name, f"a whole number, {least} or more" + ", or None" * optional)


def check_path(executor: Any, name: str) -> None:
    """Refuse what is no path; None is none.

    Raises:
        ConfigError: it is not.
    """
    value = getattr(executor, name)
    fits = isinstance(value, (str, os.PathLike)) and os.fspath(value) and "\0" not in os.fspath(value)
    if value is not None and not fits:
        raise _refusal(executor, name, "a path, or None")


def check_kind(executor: Any, name: str, *kinds: type) -> None:
    """Refuse a value of another kind.

    Raises:
        ConfigError: it is.
    """
    if not isinstance(getattr(executor, name), kinds):
        raise _refusal(executor, name, " or ".join(kind.__name__ for kind in kinds))


def parse_bytes(text: str | int, what: str = "size") -> int:
    """Bytes from a number or from text such as "512M", "32G", "1.5GiB"; K, M, G, T are powers of 1024.

    Raises:
        ConfigError: it is no such text, or not above 0.
    """
    digits = str(text).strip().upper().removesuffix("B").removesuffix("I")
    unit = digits[-1:] if digits[-1:].isalpha() else ""
    try:
        size = int(float(digits.removesuffix(unit)) * _UNITS[unit]) if _is_number(text, (int, str)) else 0
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(f'{what} is {text!r}; give bytes, or text such as "512M" or "32G"')
    return size


def _is_number(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _refusal(executor: Any, name: str, wanted: str) -> ConfigError:
    value = getattr(executor, name)
    return ConfigError(f"{type(executor).__name__}.{name} is {value!r}; give {wanted}")
