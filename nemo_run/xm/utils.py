"""Small tools for launch scripts."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from nemo_run.xm.arguments import ARG_ESCAPER, ARGV_ESCAPER, ShellSafeArg
from nemo_run.xm.errors import BadTypeError

__all__ = [
    "ARGV_ESCAPER",
    "ARG_ESCAPER",
    "ShellSafeArg",
    "launch_dir",
    "launch_script",
    "run_in_asyncio_loop",
]

P = ParamSpec("P")
T = TypeVar("T")

_FLAG = "xm_launch_script"


def run_in_asyncio_loop(main: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    """Make a function of a coroutine function: `app.run(xm.run_in_asyncio_loop(main))`.

    It runs in an event loop of its own; where one is running already (a notebook), in a thread of its own.
    """
    if not callable(main):
        raise BadTypeError(f"run_in_asyncio_loop takes an async function, not {main!r}; name it without ()")

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        import asyncio
        import contextvars
        from concurrent.futures import ThreadPoolExecutor

        async def whole() -> T:
            return await main(*args, **kwargs)

        if asyncio._get_running_loop() is None:
            return asyncio.run(whole())
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(contextvars.copy_context().run, asyncio.run, whole()).result()

    return run


def launch_script() -> Path | None:
    """The script that is launching: `--xm_launch_script`, else what Python runs; None where there is none."""
    return next((path for path in map(_as_script, _candidates()) if path), None)


def _candidates() -> list[Any]:
    """What may be the path of the script, best first."""
    given: list[Any] = []
    for word, following in zip(sys.argv[1:], [*sys.argv[2:], None], strict=False):
        flag, equals, value = word.partition("=")
        given += [value if equals else following] if flag.lstrip("-") == _FLAG else []
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if not main:  # Python runs no script: a notebook's argv names what serves the notebook
        return given
    # The script may have gone to another folder, and argv then leads nowhere; Python's own path does not.
    return given + sorted([sys.argv[0], main], key=lambda path: not os.path.isabs(path))


def _as_script(path: Any) -> Path | None:
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).endswith(".py"):
        return None
    return Path(os.path.realpath(path))


def launch_dir() -> Path:
    """The folder of the launching script; the current one where there is none (a notebook, `python -c`)."""
    script = launch_script()
    return script.parent if script else Path.cwd()
