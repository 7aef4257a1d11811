"""Containers that run an image's own ENTRYPOINT: what it is, is only known when the Engine has the image.

Like every container they go through a shell that makes one stream of the two a program prints to, so that
the order of lines is kept. Where the image has no shell they do without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_run.core.execution.docker_engine import Engine, EngineRefusal
from nemo_run.shell import expands, is_name, through_shell

#: The two streams of a program as one: an Engine reads them as it happens to. Words are not touched.
ONE_STREAM = ("/bin/sh", "-c", 'exec "$@" 2>&1', "sh")
_SHELL = "/bin/sh"


def plan_own(args: Sequence[str], env: Mapping[str, Any]) -> dict[str, Any]:
    """What is to stand before and after the image's words, as JSON, where an Engine may be told all of it."""
    if expands(args, env):
        prefix = [*ONE_STREAM, *through_shell(args, env, follow=True)]
        return {"prefix": prefix, "args": [], "given": bool(args), "needs_shell": True}
    return {"prefix": list(ONE_STREAM), "args": list(args), "given": bool(args), "needs_shell": False}


def plan_own_from_file(path: str, args: Sequence[Any]) -> dict[str, Any]:
    """The same where a script in the container holds what no Engine may be told."""
    return {"prefix": [*ONE_STREAM, _SHELL, path], "args": [], "given": bool(args), "needs_shell": True}


def create(engine: Engine, kwargs: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Make a container, or find that it has been made, that starts the image's ENTRYPOINT.

    Args:
        engine: Where; it has the image.
        kwargs: What Docker's library is told, less what is started.
        own: What `plan_own` gave.

    Raises:
        SubmitError: the image says nothing to start, or lacks a shell that is needed; or the Engine refuses.
    """
    config = engine.inspect_image(kwargs["image"])["Config"] or {}
    odd = [name for name in _names(config) if not is_name(name)]
    if odd and not own["needs_shell"]:  # a shell would keep such variables from the program
        engine.create({**kwargs, **_plain(own)})
        return
    engine.create({**kwargs, **_through_shell(own, config, kwargs["image"])})
    if engine.has_path(kwargs["name"], _SHELL):
        return
    engine.remove(kwargs["name"])
    if own["needs_shell"]:
        raise _refusal(
            f"image {kwargs['image']!r} has no {_SHELL}, which a secret, a run.Expand, and bytes that are no"
            " UTF-8 need; give it plain text"
        )
    engine.create({**kwargs, **_plain(own)})


def _plain(own: Mapping[str, Any]) -> dict[str, Any]:
    return {"command": own["args"] or None}


def _through_shell(own: Mapping[str, Any], config: Mapping[str, Any], image: str) -> dict[str, Any]:
    """An Engine that is told an ENTRYPOINT forgets the image's CMD too, so both are told."""
    entrypoint, cmd = config.get("Entrypoint") or [], config.get("Cmd") or []
    words = [*entrypoint, *(own["args"] if own["given"] else cmd)]
    if not (words or own["given"]):
        raise _refusal(f"image {image!r} has neither an ENTRYPOINT nor a CMD; say by args what to run in it")
    return {"entrypoint": own["prefix"], "command": words}


def _names(config: Mapping[str, Any]) -> list[str]:
    return [text.partition("=")[0] for text in config.get("Env") or []]


def _refusal(problem: str) -> EngineRefusal:
    return EngineRefusal(problem, output=problem, status=400)
