"""Which kind of thing is made of which spec, for which executor; all of one call at the same time."""

from __future__ import annotations

import copy
import functools
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from nemo_run.errors import NemoRunError, PackagingError, SubmitError
from nemo_run.xm.errors import BadTypeError
from nemo_run.xm.executables import (
    BazelBinary,
    BazelContainer,
    Binary,
    Container,
    Dockerfile,
    PythonContainer,
)
from nemo_run.xm.jobs import Executable, Packageable
from nemo_run.xm_local.executables import ContainerImage, LocalBinary
from nemo_run.xm_local.packaging import bazel, binaries, images
from nemo_run.xm_local.specs import KubernetesSpec, LocalSpec, SkypilotSpec, SlurmSpec, VertexSpec

T = TypeVar("T")

#: Whose jobs may be programs; the others' are images.
_RUN_PROGRAMS = (LocalSpec, SlurmSpec, SkypilotSpec)
_SPECS = (*_RUN_PROGRAMS, VertexSpec, KubernetesSpec)
#: So many images are built at once.
_AT_ONCE = 8


def package(packageables: Sequence[Packageable]) -> list[Executable]:
    """Make what can be run, in the same order; builds go on at the same time.

    Raises:
        ConfigError: one cannot be made as it is written; nothing has been built then.
        PackagingError: a build fails, an image is not to be had, or a registry refuses it.
    """
    packageables = [_meant(each) for each in packageables]
    for each in packageables:
        _check(each)
    built = bazel.build(
        (spec.label, tuple(spec.bazel_args))
        for each in packageables
        if isinstance(spec := each.executable_spec, (BazelBinary, BazelContainer))
    )
    return _at_once([functools.partial(_made, each, built) for each in packageables])


def _meant(packageable: Packageable) -> Packageable:
    """A BazelBinary where a Binary's path is a label, as some documents write it."""
    spec = packageable.executable_spec
    if (
        isinstance(spec, Binary)
        and re.fullmatch(r"//[^:]*:[^:]+", spec.path)
        and not binaries.find(spec.path)
    ):
        return replace(packageable, executable_spec=BazelBinary(spec.path))
    return packageable


def _check(packageable: Packageable) -> None:
    """Refuse what cannot work."""
    spec, target = packageable.executable_spec, packageable.executor_spec
    if not isinstance(target, _SPECS):
        known = ", ".join(kind.__name__.removesuffix("Spec") + ".Spec()" for kind in _SPECS)
        raise BadTypeError(f"executor_spec of Packageable is {target!r}; xm_local has {known}")
    if isinstance(spec, (Binary, BazelBinary)):
        if not isinstance(target, _RUN_PROGRAMS):
            raise BadTypeError(
                f"{type(target).__name__} runs images, and {type(spec).__name__} {spec.name!r} is a program;"
                " package it as an xm.PythonContainer or by an xm.Dockerfile"
            )
        if isinstance(spec, Binary):
            binaries.program(spec.path, target)
    elif isinstance(spec, (Container, Dockerfile, PythonContainer)):
        images.check(spec, target)
    elif isinstance(spec, BazelContainer):
        images.push_name(target, spec.name, "key")
    else:
        raise BadTypeError(f"executable_spec of Packageable is {spec!r}, which xm_local cannot package")


def _made(packageable: Packageable, built: bazel.Built) -> Executable:
    try:
        return _make(packageable, built)
    except SubmitError as exc:
        raise PackagingError(f"{packageable.executable_spec.name!r}: {exc}") from exc


def _make(packageable: Packageable, built: bazel.Built) -> Executable:
    spec, target = packageable.executable_spec, packageable.executor_spec
    common: dict[str, Any] = {"args": copy.copy(packageable.args), "env_vars": dict(packageable.env_vars)}
    if isinstance(spec, Binary):
        return LocalBinary(name=spec.name, path=binaries.program(spec.path, target), **common)
    if isinstance(spec, BazelBinary):
        path = binaries.keep(built.program(spec.label, spec.bazel_args))
        return LocalBinary(name=spec.name, path=str(path), **common)
    if isinstance(spec, BazelContainer):
        image = images.load(built.file(spec.label, spec.bazel_args), spec.name, target)
    else:
        image = images.make(cast("Container | Dockerfile | PythonContainer", spec), target)
    if (config := image.config) is not None:
        common["entrypoint"] = list(config.get("Entrypoint") or ())
        common |= {"cmd": list(config.get("Cmd") or ()), "workdir": config.get("WorkingDir") or "/"}
    return ContainerImage(name=spec.name, image=image.reference, digest=image.digest, **common)


def _at_once(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Call all, each in a thread, and raise what went wrong once all have ended.

    The threads are no reason for this process to live: who interrupts it waits for none of them.
    """
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}
    room = threading.BoundedSemaphore(_AT_ONCE)

    def call(at: int) -> None:
        try:
            with room:
                results[at] = tasks[at]()
        except BaseException as exc:
            errors[at] = exc

    threads = [threading.Thread(target=call, args=(at,), daemon=True) for at in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise _as_one([errors[at] for at in sorted(errors)])
    return [results[at] for at in range(len(tasks))]


def _as_one(errors: list[BaseException]) -> BaseException:
    told = list(dict.fromkeys(map(str, errors)))
    if len(told) == 1 or not all(isinstance(exc, NemoRunError) for exc in errors):
        return errors[0]
    error = PackagingError(f"{len(errors)} executables cannot be packaged:\n- " + "\n- ".join(told))
    error.__cause__ = errors[0]
    return error
