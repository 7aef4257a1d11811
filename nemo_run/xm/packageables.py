"""`xm.binary(executor_spec, path, ...)` and its like: a Packageable in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_run.xm.arguments import UserArgs
from nemo_run.xm.executables import (
    BazelBinary,
    BazelContainer,
    Binary,
    BinaryDependency,
    CommandList,
    Container,
    Dockerfile,
    ModuleName,
    PythonContainer,
)
from nemo_run.xm.jobs import ExecutorSpec, Packageable


def binary(
    executor_spec: ExecutorSpec,
    path: str,
    dependencies: Sequence[BinaryDependency] = (),
    *,
    args: UserArgs | None = None,
    env_vars: Mapping[str, Any] | None = None,
) -> Packageable:
    """A `Binary` to package."""
    return Packageable(Binary(path, list(dependencies)), executor_spec, args, env_vars)


def bazel_binary(
    executor_spec: ExecutorSpec,
    label: str,
    dependencies: Sequence[BinaryDependency] = (),
    bazel_args: Sequence[str] = (),
    *,
    args: UserArgs | None = None,
    env_vars: Mapping[str, Any] | None = None,
) -> Packageable:
    """A `BazelBinary` to package."""
    spec = BazelBinary(label, dependencies, bazel_args)  # type: ignore[arg-type]  # it makes lists of them
    return Packageable(spec, executor_spec, args, env_vars)


def container(
    executor_spec: ExecutorSpec,
    image_path: str | os.PathLike[str] = "",
    *,
    path: str | os.PathLike[str] = "",
    args: UserArgs | None = None,
    env_vars: Mapping[str, Any] | None = None,
) -> Packageable:
    """A `Container` to package."""
    return Packageable(Container(image_path, path=path), executor_spec, args, env_vars)


def bazel_container(
    executor_spec: ExecutorSpec,
    label: str,
    bazel_args: Sequence[str] = (),
    *,
    args: UserArgs | None = None,
    env_vars: Mapping[str, Any] | None = None,
) -> Packageable:
    """A `BazelContainer` to package."""
    spec = BazelContainer(label, bazel_args)  # type: ignore[arg-type]  # it makes a list of it
    return Packageable(spec, executor_spec, args, env_vars)


def python_container(
    executor_spec: ExecutorSpec,
    entrypoint: ModuleName | CommandList,
    path: str = ".",
    base_image: str | None = None,
    docker_instructions: list[str] | None = None,
    use_deep_module: bool = False,
    *,
    args: UserArgs | None = None,
    env_vars: Mapping[str, Any] | None = None,
) -> Packageable:
    """A `PythonContainer` to package."""
    spec = PythonContainer(entrypoint, path, base_image, docker_instructions, use_deep_module)
    return Packageable(spec, executor_spec, args, env_vars)


def dockerfile_container(
    executor_spec: ExecutorSpec,
    path: str = ".",
    dockerfile: str | None = None,
    *,
    args: UserArgs | None = None,
    env_vars: Mapping[str, Any] | None = None,
) -> Packageable:
    """A `Dockerfile` to package."""
    return Packageable(Dockerfile(path, dockerfile), executor_spec, args, env_vars)
