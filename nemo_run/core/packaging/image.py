"""ImagePackager: the packaged code as an image, for jobs in containers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nemo_run.core.packaging.base import Contents, Packager, Source
from nemo_run.core.packaging.git import GitArchivePackager
from nemo_run.errors import ConfigError

#: Where an image has the code, and where its processes start.
CODE = PurePosixPath("/code")
#: A registry's host, a path, a tag: https://docs.docker.com/reference/cli/docker/image/tag/
_REFERENCE = re.compile(r"[a-z0-9][\w.-]*(:\d+)?(/[a-z0-9._-]+)*(:[\w][\w.-]{0,127})?\Z", re.ASCII)
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}\Z")


def is_reference(text: str) -> bool:
    """Whether this could be an image's name, with or without a tag or a digest."""
    return _REFERENCE.match(_DIGEST.sub("", text)) is not None


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that is to be built; an image with this tag is this one."""

    tag: str
    dockerfile: str
    #: The folder that its instructions copy from; None in a dry run, where nothing is packaged.
    context: Path | None
    #: Under which name it goes to a registry; None for none.
    push: str | None = None


@dataclass(kw_only=True)
class ImagePackager(Packager):
    """Builds an image of the packaged code, once for the same code, and jobs run in it.

    The image is the base image, then `docker_instructions`, then the code at /code, where tasks start. So
    what the instructions install is built anew only when they change; one that needs files of the code
    copies those itself: `COPY requirements.txt .`.

    Raises:
        ConfigError: a setting cannot work.
    """

    #: The image to build on; by default the executor's `container_image`.
    base_image: str = ""
    #: Lines of a Dockerfile; what they COPY comes from the packaged code.
    docker_instructions: list[str] = field(default_factory=list)
    #: The image's ENTRYPOINT, to which a task's command is then given; None for the base image's.
    entrypoint: list[str] | None = None
    #: Push the image to a registry, by this name ("registry.example/team/name:tag").
    push_image_tag: str | None = None
    #: Finds the code.
    code: Packager = field(default_factory=GitArchivePackager)

    def __post_init__(self) -> None:
        self._check("base_image", isinstance(self.base_image, str), 'a name such as "python:3.12"')
        lines = self.docker_instructions
        self._check("docker_instructions", _are_lines(lines), "a list of lines of a Dockerfile")
        words = self.entrypoint
        self._check("entrypoint", words is None or _are_lines(words), "a list of words, or None")
        name = self.push_image_tag
        named = isinstance(name, str) and _REFERENCE.match(name)
        self._check(
            "push_image_tag", name is None or bool(named), 'a name such as "registry.example/team/it:1"'
        )
        packages = isinstance(self.code, Packager) and self.code.moves_code
        self._check("code", packages, "a packager that packages, such as run.GitArchivePackager()")

    def _check(self, name: str, fits: bool, wanted: str) -> None:
        if not fits:
            raise ConfigError(f"ImagePackager.{name} is {getattr(self, name)!r}; give {wanted}")

    def contents(self, source: Source) -> Contents:
        """What `code` finds."""
        return self.code.contents(source)

    def origins(self, folder: Path) -> dict[str, str | None]:
        """As `code` says."""
        return self.code.origins(folder)

    def code_dir(self, rundir: Path) -> Path:
        """In the image."""
        return Path(CODE)

    @property
    def copies_code(self) -> bool:
        """Whether jobs get a copy of the code in their folder: the image has it."""
        return False

    def image(self, base_image: str, package: Mapping[str, Any] | None, context: Path | None) -> Image:
        """The image of a package.

        Args:
            base_image: What to build on where `base_image` is not given.
            package: What is recorded of the package; None before there is one.
            context: Its files.

        Raises:
            ConfigError: there are two base images, or none.
        """
        if self.base_image and base_image and self.base_image != base_image:
            raise ConfigError(
                f"ImagePackager.base_image is {self.base_image!r} and the executor's container_image is"
                f" {base_image!r}; give the image to build on once"
            )
        dockerfile = self.dockerfile(base_image)
        return Image(
            tag=_tag(dockerfile, package), dockerfile=dockerfile, context=context, push=self.push_image_tag
        )

    def dockerfile(self, base_image: str) -> str:
        """What is built, as a Dockerfile.

        Args:
            base_image: What to build on where `base_image` is not given.

        Raises:
            ConfigError: there is no base image.
        """
        if not (base := self.base_image or base_image):
            raise ConfigError('there is no image to build on; give ImagePackager a base_image="python:3.12"')
        lines = [f"FROM {base}", f"WORKDIR {CODE}", *self.docker_instructions, f"COPY . {CODE}"]
        lines += [f"WORKDIR {CODE}"] if self.docker_instructions else []
        lines += [f"ENTRYPOINT {json.dumps(self.entrypoint)}"] if self.entrypoint is not None else []
        return "\n".join(lines) + "\n"


def planned_image(
    packager: Packager, base_image: str, package: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """The image that a job's code is to be built into, as JSON; None where it travels otherwise.

    Args:
        packager: What brings the code.
        base_image: What the executor calls its image.
        package: What is recorded of the packaged code, if there is any yet.
    """
    if not isinstance(packager, ImagePackager):
        return None
    context = Path(package["code"]) if package else None
    return {**asdict(packager.image(base_image, package, context)), "context": str(context)}


def _are_lines(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str) and all(map(_is_line, given))


def _is_line(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip()) and "\0" not in text


def _tag(dockerfile: str, package: Mapping[str, Any] | None) -> str:
    """A name by what is in it: the code's tree, then a digest of all."""
    if package is None:
        return "nemo_run:the-code-as-it-is-packaged"
    digest = hashlib.sha256(f"{package['key']}\n{dockerfile}".encode(errors="surrogateescape")).hexdigest()
    return f"nemo_run:{package.get('tree', package['key'])[:12]}-{digest[:12]}"
