"""Whether the fields of an executor can work: a refusal names the field, its value and what to give."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nemo_run.errors import ConfigError, MissingDependencyError, UnsupportedError, suggestion
from nemo_run.shell import is_name

if TYPE_CHECKING:
    from nemo_run.core.execution.base import JobSpec

#: No clock of a job goes further (30 years).
_LONGEST = 1e9
#: Prints those of the named modules that are not there.
_FIND = "import sys; from importlib.util import find_spec as f; print(*(m for m in sys.argv[1:] if not f(m)))"
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


def take_second_spelling(executor: Any, second: str, first: str, *, empty: Any = None) -> None:
    """Move what was given under a field's second name to its first.

    Raises:
        ConfigError: both are given, and they differ.
    """
    value = getattr(executor, second)
    if value is None:
        return
    if getattr(executor, first) not in (empty, value):
        name = type(executor).__name__
        raise ConfigError(
            f"{name}.{second} and {name}.{first} are one setting and differ; give {first} alone"
        )
    setattr(executor, first, value)
    setattr(executor, second, None)


def check_whole_job(spec: JobSpec, names: Iterable[str]) -> None:
    """Refuse a group whose members differ in settings that hold for the job as a whole.

    Raises:
        UnsupportedError: they do.
    """
    first, *others = spec.members
    for name in names:
        if any(getattr(member, name) != getattr(first, name) for member in others):
            raise UnsupportedError(
                f"members of group {spec.id!r} differ in {name!r}, which holds for the group as a whole;"
                " give them the same value",
                executor=type(first).__name__,
                capability=name,
            )


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


def check_installed(
    what: str, modules: Mapping[str, str], programs: Iterable[str], python: str, env: Mapping[str, Any]
) -> None:
    """Refuse to start what needs a module or a program that is not installed on this machine.

    Args:
        what: Who needs it, for the message.
        modules: What to `pip install`, by the name of a module.
        programs: Names of programs.
        python: The interpreter that needs the modules.
        env: What is set beyond this process's environment; where it is not plain text nothing is said.

    Raises:
        MissingDependencyError: a module is missing.
        ConfigError: a program is missing.
    """
    import shutil

    given = {name: env.get(name, os.environ.get(name, "")) for name in ("PYTHONPATH", "PATH")}
    if any(type(value) is not str for value in given.values()):
        return
    for program in programs:
        if not shutil.which(program, path=given["PATH"]):
            raise ConfigError(f"{what} needs the program {program!r}, which is not on PATH; install it")
    if missing := _missing_modules(tuple(modules), python, given["PYTHONPATH"]):
        packages = " ".join(shlex.quote(modules[name]) for name in missing)
        raise MissingDependencyError(
            f"{what} needs {' and '.join(missing)}, which {python} does not have;"
            f" run: {shlex.quote(python)} -m pip install {packages}"
        )


def _missing_modules(names: tuple[str, ...], python: str, python_path: str) -> list[str]:
    """Those of some top-level modules that an interpreter does not find; none of them is imported."""
    if not names:
        return []
    import subprocess

    if python == sys.executable:
        paths = [*filter(None, python_path.split(os.pathsep)), *sys.path]
        return [name for name in names if not (find_spec(name) or PathFinder.find_spec(name, paths))]
    asked = [python, "-c", _FIND, *names]
    try:
        done = subprocess.run(
            asked,
            env={**os.environ, "PYTHONPATH": python_path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return []  # it cannot be asked, and whoever starts it will hear why
    return done.stdout.split() if done.returncode == 0 else []


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
