"""Finding and setting things by their names: executors in a file, values in a config, types in modules."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_run.errors import ConfigError, NotFoundError, suggestion
from nemo_run.home import get_nemorun_home

#: One step of a path: a name, or a bracketed index or key.
_STEP = re.compile(r"(?:^|(?<=.)\.)([^\W\d]\w*)|\[([^\[\]]+)\]")


class SetValueError(ConfigError):
    """A path such as `model.layers[0].size` leads nowhere."""


def import_executor(name: str, file_path: str | Path | None = None, call: bool = True, **kwargs: Any) -> Any:
    """The executor that a file of executors defines by that name; the file is run anew each time.

    `file_path` defaults to `executors.py` under NEMORUN_HOME. With `call=False` (default: True) a function
    is returned as it is, otherwise it is called with `kwargs`.

    Raises:
        NotFoundError: the file is not there, or has no such name.
        ConfigError: arguments are given for something that takes none.
    """
    path = Path(file_path).expanduser() if file_path else get_nemorun_home() / "executors.py"
    if not path.is_file():
        raise NotFoundError("file of executors", str(path))
    known = _run_file(path)
    if name not in known:
        raise NotFoundError(f"executor in {path}:", name, known)
    found = known[name]
    if call and callable(found):
        return found(**kwargs)
    if kwargs:
        raise ConfigError(f"{name!r} of {path} is not called, so it takes no {', '.join(kwargs)}")
    return found


def built_in_executors() -> list[str]:
    """The names of our own executors' classes, which `run.executor=` knows."""
    names = importlib.import_module("nemo_run").__all__
    return sorted(name for name in names if name.endswith("Executor") and name != "Executor")


def _run_file(path: Path) -> dict[str, Any]:
    """The public names that a file defines, without those it only imports."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {n: v for n, v in vars(module).items() if not n.startswith("_") and _is_own(v, module)}


def _is_own(value: Any, module: Any) -> bool:
    named = inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value)
    return not named or getattr(value, "__module__", None) == module.__name__


def from_dict(raw: Any, cls: Any) -> Any:
    """A dataclass instance from the plain data of its fields, and so on inside.

    Raises:
        ConfigError: the data has a key that is not a field.
    """
    cls = next((arg for arg in typing.get_args(cls) if dataclasses.is_dataclass(arg)), cls)
    if isinstance(raw, list):
        return [from_dict(item, cls) for item in raw]
    if not (isinstance(raw, Mapping) and isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        return raw
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    for name in raw:
        if name not in known:
            raise ConfigError(f"{cls.__name__} has no field {name!r}{suggestion(str(name), known)}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: from_dict(item, hints[name]) for name, item in raw.items()})


def set_value(cfg: Any, path: str, value: Any) -> None:
    """Set what a path such as `model.layers[0].size` or `env['A']` leads to.

    Raises:
        SetValueError: the path is malformed, or leads nowhere.
    """
    steps = _STEP.findall(path)
    if not steps or _STEP.sub("", path):
        raise SetValueError(f"{path!r} is not a path such as model.layers[0].size")
    try:
        for name, key in steps[:-1]:
            cfg = cfg[_key(cfg, name or key)] if _has_keys(cfg, key) else getattr(cfg, name)
        name, key = steps[-1]
        if _has_keys(cfg, key):
            cfg[_key(cfg, name or key)] = value
        else:
            setattr(cfg, name, value)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as exc:
        raise SetValueError(f"cannot set {path!r}: {exc}") from exc


def _has_keys(container: Any, key: str) -> bool:
    return bool(key) or isinstance(container, Mapping)


def _key(container: Any, text: str) -> Any:
    """A bracketed text as what the container goes by: quoted or not for a dict, else a number."""
    bare = text.strip("'\"")
    if not isinstance(container, Mapping):
        return int(text)
    return int(text) if text.isdigit() and int(text) in container else bare


def get_type_namespace(t: Any) -> str:
    """The dotted name of a class, function or config's target, with a script's own name for `__main__`."""
    # A config is known by its target; asking it for attributes would ask for arguments.
    t = vars(t).get("__fn_or_cls__", t) if hasattr(t, "__dict__") else t
    t = t if hasattr(t, "__qualname__") else type(t)
    module = t.__module__
    if module == "__main__" and (file := getattr(sys.modules["__main__"], "__file__", None)):
        module = Path(file).stem
    return f"{module}.{t.__qualname__}"
