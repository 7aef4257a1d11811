"""`nemo launch SCRIPT.py [-- FLAGS]`: a launch script of XManager's kind, run as its `main`."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import sys
import tokenize
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from nemo_run.errors import ConfigError, NotFoundError


def launch(script: str, flags: Sequence[str]) -> None:
    """Run a script's `main(argv)` with flags parsed by absl; one without a `main` is run as a whole.

    Raises:
        NemoRunError: there is no such script, it cannot be loaded, or an experiment of it failed.
        SystemExit: with what `main` returned, if that is no success.
    """
    path = _found(script)
    words = list(flags[1:] if flags[:1] == ["--"] else flags)
    # The folder of `nemo` is not for scripts, that of a script is.
    ours = sys.path[:1] == [os.path.dirname(os.path.abspath(sys.argv[0]))]
    sys.path[: int(ours)] = [str(path.parent)]
    sys.argv = [str(path), f"--xm_launch_script={path}", *words]
    _define_flags()
    source = _read(path)
    if not defines_main(source):
        # Nobody parses flags for it, and it sees what `python SCRIPT.py` shows.
        sys.argv = [str(path), *words]
        _load(path, source)
        return
    from nemo_run.core.main_module import without_main_part

    main = getattr(_load(path, without_main_part(source)), "main", None)
    if not callable(main):
        raise ConfigError(f"main of {script} is {main!r}; define a function: def main(argv): ...")
    _run(_callable(main))


def defines_main(source: str) -> bool:
    """Whether a script defines or imports a `main` at its top level, outside of its main part."""
    names = set()
    for statement in ast.parse(source).body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(statement.name)
        elif isinstance(statement, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in statement.names}
        elif isinstance(statement, ast.Assign):
            names |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return "main" in names


def _found(script: str) -> Path:
    path = Path(script)
    if path.is_file():
        return Path(os.path.abspath(path))
    if script.startswith(("//", ":")):
        raise ConfigError(f"{script} is a target of Bazel's; start it with bazel run {script} -- FLAGS")
    near = [each.name for each in path.parent.glob("*.py")] if path.parent.is_dir() else []
    raise NotFoundError("launch script", script, near)


def _read(path: Path) -> str:
    try:
        with tokenize.open(path) as file:
            source = file.read()
        ast.parse(source)
    except (SyntaxError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot load {path}: {exc}") from exc
    return source


def _load(path: Path, source: str) -> ModuleType:
    """Have a script be this process's `__main__`, a name that no module has, and execute it."""
    module = ModuleType("__main__")
    module.__file__ = str(path)
    sys.modules["__main__"] = module
    exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    return module


def _callable(main: Callable[..., Any]) -> Callable[[list[str]], Any]:
    """A main that may be async, and may take nothing, as a function of the arguments left by the flags."""
    takes_words = bool(inspect.signature(main).parameters)

    def called(argv: list[str]) -> Any:
        made = main(argv) if takes_words else main()
        return asyncio.run(made) if inspect.iscoroutine(made) else made

    return called


def _define_flags() -> None:
    from nemo_run.xm_local.flags import define

    define()


def _run(main: Callable[[list[str]], Any]) -> None:
    from absl import app

    app.run(main, argv=sys.argv)
