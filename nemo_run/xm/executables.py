"""What is run: programs, images, and what those are made from."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nemo_run.xm.errors import BadTypeError, BadValueError
from nemo_run.xm.utils import launch_dir


class BinaryDependency(ABC):  # noqa: B024  # there is nothing that all of them do
    """Something that a binary needs beside it; comparable and hashable. Nothing here makes use of one."""


class ModuleName(NamedTuple):
    """A Python module to run, as `python3 -m` takes it."""

    module_name: str


class CommandList(NamedTuple):
    """Commands to run one after the other; the last one gets the arguments, others where they say `$@`."""

    commands: list[str]


class ExecutableSpec(ABC):
    """What is to be packaged; two of one kind are equal if they say the same."""

    @property
    @abstractmethod
    def name(self) -> str:
        """A name for people and for jobs that were given none."""


@dataclass(init=False)
class Container(ExecutableSpec):
    """An image that exists: in a registry, in the local Engine, or as a tar file of `docker save`."""

    image_path: str

    def __init__(self, image_path: str | os.PathLike[str] = "", *, path: str | os.PathLike[str] = "") -> None:
        """Name the image by `image_path` or, as some documents have it, by `path`."""
        if image_path and path:
            raise BadTypeError(
                f"Container has image_path={image_path!r} and path={path!r}; they mean the same"
            )
        self.image_path = _text(image_path or path, "image_path of Container")

    @property
    def path(self) -> str:
        """The same as `image_path`."""
        return self.image_path

    @property
    def name(self) -> str:
        return name_of(self.image_path)


@dataclass
class Binary(ExecutableSpec):
    """A program that exists."""

    path: str
    dependencies: list[BinaryDependency] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path = _text(self.path, "path of Binary")
        self.dependencies = _items(self.dependencies, "dependencies of Binary")

    @property
    def name(self) -> str:
        return name_of(self.path)


@dataclass
class BazelContainer(ExecutableSpec):
    """A Bazel target that gives an image as a tar file (often `…:image.tar`)."""

    label: str
    bazel_args: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.label = _label(self.label, "label of BazelContainer")
        self.bazel_args = _texts(self.bazel_args, "bazel_args of BazelContainer")

    @property
    def name(self) -> str:
        return name_of(self.label)


@dataclass
class BazelBinary(ExecutableSpec):
    """A Bazel target that gives a program."""

    label: str
    dependencies: list[BinaryDependency] = field(default_factory=list)
    bazel_args: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.label = _label(self.label, "label of BazelBinary")
        self.dependencies = _items(self.dependencies, "dependencies of BazelBinary")
        self.bazel_args = _texts(self.bazel_args, "bazel_args of BazelBinary")

    @property
    def name(self) -> str:
        return name_of(self.label)


@dataclass
class PythonContainer(ExecutableSpec):
    """A folder of Python that an image is made of.

    A relative `path` starts at the folder of the launching script. `docker_instructions`, where given, stand
    in place of those that copy the folder and install its requirements.
    """

    entrypoint: ModuleName | CommandList
    path: str = "."
    base_image: str | None = None
    docker_instructions: list[str] | None = None
    use_deep_module: bool = False

    def __post_init__(self) -> None:
        _check_entrypoint(self.entrypoint)
        self.path = from_launch_dir(self.path, "path of PythonContainer")
        if self.base_image is not None:
            self.base_image = _text(self.base_image, "base_image of PythonContainer")
        if self.docker_instructions is not None:
            self.docker_instructions = _texts(
                self.docker_instructions, "docker_instructions of PythonContainer"
            )

    @property
    def name(self) -> str:
        return name_of(self.path)


@dataclass
class Dockerfile(ExecutableSpec):
    """An image that a Dockerfile makes of a folder.

    A relative `path` starts at the folder of the launching script; a relative `dockerfile` likewise or, where
    there is none, in `path`. Its default is the one in `path`.
    """

    path: str = "."
    dockerfile: str | None = None

    def __post_init__(self) -> None:
        self.path = from_launch_dir(self.path, "path of Dockerfile")
        if self.dockerfile is None:
            self.dockerfile = os.path.join(self.path, "Dockerfile")
            return
        given = _text(self.dockerfile, "dockerfile of Dockerfile")
        here = from_launch_dir(given, "dockerfile of Dockerfile")
        in_path = os.path.join(self.path, given)
        self.dockerfile = in_path if os.path.exists(in_path) and not os.path.exists(here) else here

    @property
    def name(self) -> str:
        return name_of(self.path)


def name_of(path: str) -> str:
    """The last part of a path, label or reference, with `_` for all that is no letter or digit."""
    return re.sub(r"\W", "_", os.path.basename(path.rstrip("/")))


def from_launch_dir(path: Any, of: str) -> str:
    """A path in full; a relative one starts at the folder of the launching script."""
    return os.path.realpath(os.path.join(launch_dir(), _text(path, of)))


def _text(value: Any, of: str) -> str:
    """A text that says something; a path is one."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise BadTypeError(f"{of} is a text, not {value!r}")
    if not text or "\0" in text:
        raise BadValueError(f"{of} is {'empty' if not text else 'a text with a NUL in it'}: {text!r}")
    return text


def _label(value: Any, of: str) -> str:
    label = _text(value, of)
    if label.startswith("-"):
        raise BadValueError(f"{of}: {label!r} would be an option of bazel; options are given as bazel_args")
    return label


def _items(values: Any, of: str) -> list[Any]:
    """A list of one's own."""
    if isinstance(values, (str, bytes)):
        raise BadValueError(f"{of} is a list, not the text {values!r}: write [{values!r}]")
    if not isinstance(values, Iterable):
        raise BadTypeError(f"{of} is a list, not {values!r}")
    return list(values)


def _texts(values: Any, of: str) -> list[str]:
    texts = _items(values, of)
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadTypeError(f"{of}: item {at} is no text: {text!r}")
    return texts


def _check_entrypoint(entrypoint: Any) -> None:
    of = "entrypoint of PythonContainer"
    if isinstance(entrypoint, CommandList):
        if not _texts(entrypoint.commands, of):
            raise BadValueError(f"{of} has no commands; name at least one")
    elif isinstance(entrypoint, ModuleName):
        _check_module(_text(entrypoint.module_name, of), of)
    else:
        raise BadTypeError(
            f"{of} is xm.ModuleName('module') or xm.CommandList(['command', ...]), not {entrypoint!r}"
        )


def _check_module(name: str, of: str) -> None:
    if name.endswith(".py") or "/" in name:
        meant = name.removesuffix(".py").strip("./").replace("/", ".")
        raise BadValueError(f"{of}: {name!r} is a file; write the module's name: xm.ModuleName({meant!r})")
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name) or name.startswith("-"):
        raise BadValueError(f"{of}: {name!r} is no name of a module; write one like 'train.main'")
