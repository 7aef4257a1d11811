"""Images: made of projects and Dockerfiles, loaded from tars, found or pulled; pushed where needed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_run.core.execution.docker_build import ensure_image, ensure_pushed
from nemo_run.core.execution.docker_engine import Engine, address, connect
from nemo_run.core.packaging.image import is_reference
from nemo_run.errors import ConfigError, MissingDependencyError, PackagingError, SubmitError
from nemo_run.home import open_home
from nemo_run.xm.errors import BadValueError
from nemo_run.xm.executables import Container, Dockerfile, PythonContainer
from nemo_run.xm.jobs import ExecutorSpec
from nemo_run.xm_local.packaging.binaries import find
from nemo_run.xm_local.packaging.context import Context, build_files, project_files
from nemo_run.xm_local.packaging.dockerfile import ENTRYPOINT_FILE, dockerfile, entrypoint, folder_of
from nemo_run.xm_local.specs import LocalSpec, SkypilotSpec, SlurmSpec

#: Where images go that are to be pushed and have no name of their own.
REPOSITORY = "NEMORUN_IMAGE_REPOSITORY"
_FROM = re.compile(r"^\s*FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image that is where its executor finds it: what to run it by, and its digest as far as known."""

    reference: str
    digest: str
    #: What it says of its containers; None where nobody has looked.
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an image is built of."""

    name: str
    dockerfile: str
    context: Context
    #: What to do about an instruction that fails.
    mend: str


# --- what is refused before anything is built -----------------------------------------------------------


def check(executable: Container | Dockerfile | PythonContainer, spec: ExecutorSpec) -> None:
    """Refuse what cannot be built, or has nowhere to go.

    Raises:
        ConfigError: a folder, a Dockerfile, a tar or a name to push by is not there, or no such thing.
    """
    if isinstance(executable, Container):
        _check_container(executable.image_path, spec)
        return
    if not os.path.isdir(executable.path):
        raise BadValueError(f"path of {type(executable).__name__}: there is no folder {executable.path}")
    if isinstance(executable, Dockerfile) and not os.path.isfile(str(executable.dockerfile)):
        raise BadValueError(f"dockerfile of Dockerfile: there is no file {executable.dockerfile}")
    push_name(spec, executable.name, "key")


def _check_container(image: str, spec: ExecutorSpec) -> None:
    if find(image) is not None:
        push_name(spec, "name", "key")
    elif image.endswith(".tar") or not is_reference(image):
        raise BadValueError(
            f"image_path of Container: there is no file {image!r}, and it is no image's name such as"
            ' "registry.example/team/name:tag"'
        )


def push_name(spec: ExecutorSpec, name: str, key: str) -> str | None:
    """Under which name an image goes to a registry; None for jobs that run on the Engine here.

    Raises:
        ConfigError: nobody has said, or it is none.
    """
    if isinstance(spec, LocalSpec):
        return None
    kind, given = type(spec).__name__, getattr(spec, "push_image_tag", None)
    where = f"push_image_tag of {kind}" if given else REPOSITORY
    repository = os.environ.get(REPOSITORY, "").rstrip("/")
    if not (given or repository):
        raise ConfigError(
            f"{kind} runs images from a registry: say where this one is to be pushed, by"
            f' {kind}(push_image_tag="registry.example/team/{name}:1") or, for all images, by'
            f" {REPOSITORY}=registry.example/team"
        )
    reference = given or f"{repository}/{repository_part(name)}:{key}"
    if "@" in reference or not is_reference(reference):
        raise ConfigError(f'{where}: {reference!r} is no name such as "registry.example/team/name:tag"')
    return str(reference)


def repository_part(name: str) -> str:
    """A name as registries take it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "image"


# --- recipes --------------------------------------------------------------------------------------------


def recipe(executable: Dockerfile | PythonContainer) -> Recipe:
    """What to build.

    Raises:
        PackagingError: a file cannot be read.
    """
    return _of_project(executable) if isinstance(executable, PythonContainer) else _of_dockerfile(executable)


def _of_project(spec: PythonContainer) -> Recipe:
    """Instructions may name files by the project's folder, or as they lie in it."""
    folder, files = folder_of(spec), project_files(Path(spec.path))
    named = [(f"{folder}/{name}", path) for name, path in files]
    if spec.docker_instructions:
        named += [(name, path) for name, path in files if name.partition("/")[0] != folder]
    has_requirements = any(name == "requirements.txt" for name, _ in files)
    return Recipe(
        name=spec.name,
        dockerfile=dockerfile(spec, has_requirements=has_requirements),
        context=Context(files=named, texts={ENTRYPOINT_FILE: entrypoint(spec)}),
        mend="mend docker_instructions, or what they copy",
    )


def _of_dockerfile(spec: Dockerfile) -> Recipe:
    folder, path = Path(spec.path), Path(str(spec.dockerfile))
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as exc:
        raise PackagingError(f"cannot read {path}: {exc.strerror}") from exc
    context = Context(files=build_files(folder, path), keep_modes=True)
    return Recipe(name=spec.name, dockerfile=text, context=context, mend=f"mend {path}")


def bases(text: str) -> Iterator[str]:
    """The images that a Dockerfile builds on, as far as it names them itself."""
    stages: set[str] = set()
    for image, stage in _FROM.findall(text):
        if image.lower() not in stages | {"scratch"} and "$" not in image:
            yield image
        stages.add(stage.lower())


# --- deeds ----------------------------------------------------------------------------------------------


def local_engine() -> Engine:
    """The Engine that builds, and that jobs of Local run on.

    Raises:
        SubmitError: none answers.
    """
    return connect(address(None))


def make(executable: Container | Dockerfile | PythonContainer, spec: ExecutorSpec) -> Image:
    """Have an image where its executor finds it.

    Raises:
        SubmitError: it cannot be built, loaded, pulled or pushed.
        PackagingError: a file cannot be read, or a tar holds another number of images than one.
    """
    if isinstance(executable, Container):
        return _existing(executable.image_path, executable.name, spec)
    engine, made = local_engine(), recipe(executable)
    tag = _tag(engine, made)
    folder = open_home() / "builds"
    folder.mkdir(mode=0o700, exist_ok=True)
    ensure_image(
        engine,
        tag,
        made.dockerfile,
        lambda file: made.context.write(made.dockerfile, file),
        folder / f"{tag.replace('/', '-').replace(':', '-')}.log",
        mend=made.mend,
    )
    return _placed(engine, tag, tag, executable.name, spec)


def _tag(engine: Engine, made: Recipe) -> str:
    """A name by what is in it: the files, the instructions, and the images that it builds on."""
    parts = [made.dockerfile, made.context.digest()]
    for base in bases(made.dockerfile):
        engine.require_image(base)
        parts.append(str(engine.inspect_image(base)["Id"]))
    digest = hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
    return f"nemo_run/{repository_part(made.name)}:{digest[:24]}"


def _existing(image: str, name: str, spec: ExecutorSpec) -> Image:
    """One on the Engine, else in a tar, else in a registry."""
    tar = find(image)
    if not isinstance(spec, LocalSpec):
        if tar is None and not getattr(spec, "push_image_tag", None):
            return Image(reference=image, digest=image.partition("@")[2], config=_known(image, spec))
        engine = local_engine()
        if tar is not None:
            return load(tar, name, spec)
        engine.require_image(image)
        return _placed(engine, image, image, name, spec)
    engine = local_engine()
    if tar is not None and not (is_reference(image) and engine.has_image(image)):
        return load(tar, name, spec)
    engine.require_image(image)
    return _placed(engine, image, _pinned(engine, image), name, spec)


def _known(image: str, spec: ExecutorSpec) -> Mapping[str, Any] | None:
    """What an image says of its containers, where the Engine here has it and somebody is to be told."""
    if isinstance(spec, (SlurmSpec, SkypilotSpec)):
        with contextlib.suppress(SubmitError, MissingDependencyError):  # there need be no Engine
            engine = local_engine()
            return dict(engine.inspect_image(image)["Config"] or {})
    return None


def load(tar: Path, name: str, spec: ExecutorSpec) -> Image:
    """Have the image of a tar where its executor finds it.

    Raises:
        PackagingError: it cannot be read, or holds another number of images than one.
        SubmitError: the Engine or the registry refuses it.
    """
    engine = local_engine()
    try:
        with open(tar, "rb") as file:
            said = list(engine.load(file))
    except OSError as exc:
        raise PackagingError(f"cannot read {tar}: {exc.strerror}") from exc
    except SubmitError as exc:
        raise PackagingError(f"{tar} is no image as `docker save` writes it: {exc}") from exc
    if error := next((event["error"] for event in said if "error" in event), None):
        raise PackagingError(f"{tar} is no image as `docker save` writes it: {error}")
    text = "".join(str(event.get("stream", "")) for event in said)
    names = re.findall(r"Loaded image(?: ID)?: (\S+)", text)
    ids = {str(engine.inspect_image(name)["Id"]) for name in names}
    if len(ids) != 1:
        raise PackagingError(
            f"{tar} holds {len(ids)} images{': ' if names else ''}{', '.join(names)}; give a tar of one"
        )
    return _placed(engine, ids.pop(), None, name, spec)


def _placed(engine: Engine, image: str, here: str | None, name: str, spec: ExecutorSpec) -> Image:
    """Push an image unless it is run here; `here` is what to run it by in that case, by default its id."""
    about = engine.inspect_image(image)
    identity, config = str(about["Id"]), about["Config"] or {}
    pushed = push_name(spec, name, identity.removeprefix("sha256:")[:24])
    if pushed is None:
        return Image(reference=here or identity, digest=identity, config=config)
    digest = ensure_pushed(engine, image, pushed)
    # Pyxis takes no digest; the name that is made here is made of the contents.
    by_name = isinstance(spec, SlurmSpec) or not digest
    reference = pushed if by_name else f"{untagged(pushed)}@{digest}"
    return Image(reference=reference, digest=digest, config=config)


def _pinned(engine: Engine, image: str) -> str | None:
    """A name that goes on meaning this image: the registry's digest of it, where it comes from one."""
    known = engine.inspect_image(image).get("RepoDigests") or []
    return next((each for each in known if each.partition("@")[0] == untagged(image)), None)


def untagged(reference: str) -> str:
    """A reference less its tag or digest."""
    return re.sub(r":[^/:]*\Z", "", reference.partition("@")[0])
