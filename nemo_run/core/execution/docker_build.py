"""Images: built by an Engine, once for the same contents, and pushed where that is asked for."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from nemo_run.core import runner
from nemo_run.core.execution.docker_engine import Engine, EngineRefusal
from nemo_run.core.packaging.image import Image
from nemo_run.errors import SubmitError

#: The Dockerfile's name among the files it copies from, where it meets none of theirs.
DOCKERFILE = ".nemo_run.Dockerfile"
#: So much of what was printed stands in an error.
_TAIL = 10


def ensure_built(engine: Engine, image: Image, log: Path) -> None:
    """Have an image of packaged code on the Engine: built if it is not there, pushed if that is not done yet.

    Args:
        engine: Where.
        image: What; its files must be there if it is to be built.
        log: Takes all that the build prints.

    Raises:
        SubmitError: an instruction fails, with its line; or the registry refuses it.
    """

    def write(file: IO[bytes]) -> None:
        if image.context is None or not image.context.is_dir():
            problem = f"image {image.tag} is gone, and so is its code ({image.context}); launch again"
            raise SubmitError(problem, output=problem)
        write_context(image.context, image.dockerfile, file)

    ensure_image(engine, image.tag, image.dockerfile, write, log, mend="mend ImagePackager's instructions")
    if image.push:
        ensure_pushed(engine, image.tag, image.push)


def ensure_image(
    engine: Engine,
    tag: str,
    dockerfile: str,
    write: Callable[[IO[bytes]], None],
    log: Path,
    *,
    mend: str,
) -> None:
    """Have an image on the Engine; it is built if there is none of that tag, by one thread alone.

    Args:
        engine: Where.
        tag: Its tag, which stands for what is in it.
        dockerfile: What is built.
        write: Puts the files that it copies from into a tar, with the Dockerfile as `DOCKERFILE`.
        log: Takes all that the build prints.
        mend: What to do about an instruction that fails.

    Raises:
        SubmitError: one fails, with its line.
    """
    with engine.making(tag):  # many jobs are submitted at once, and most have the same code
        if not engine.has_image(tag):
            _build(engine, tag, dockerfile, write, log, mend)


def ensure_pushed(engine: Engine, tag: str, name: str) -> str:
    """Have an image in a registry, pushed once by each process; returns the digest it has there.

    Raises:
        SubmitError: the registry refuses it.
    """
    with engine.making(tag):
        if (tag, name) not in engine.pushed:
            engine.pushed[tag, name] = _push(engine, tag, name)
        return engine.pushed[tag, name]


def _build(
    engine: Engine, tag: str, dockerfile: str, write: Callable[[IO[bytes]], None], log: Path, mend: str
) -> None:
    output = _Output(tag, dockerfile)
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(tempfile.TemporaryFile())
        write(context)
        context.seek(0)
        print(f"building image {tag}, see {log}", file=sys.stderr, flush=True)
        file = stack.enter_context(open(log, "w", opener=runner.private, encoding="utf-8"))
        try:
            for text in output.read(engine.build(context, dockerfile=DOCKERFILE, tag=tag)):
                file.write(text)
                file.flush()
        except EngineRefusal as exc:  # it cannot read the Dockerfile
            raise _refused(tag, str(exc), exc.output, mend) from exc
    if output.error:
        raise _refused(tag, f"{output.place()}: {output.error}", "".join(output.last), mend, log)


def _refused(tag: str, problem: str, said: str, mend: str, log: Path | None = None) -> SubmitError:
    shown = f"\n{said.rstrip()}\nAll that was printed is in {log}." if log else ""
    return SubmitError(f"image {tag} cannot be built: {problem}; {mend}.{shown}", output=said + problem)


def _push(engine: Engine, tag: str, name: str) -> str:
    print(f"pushing image {name}", file=sys.stderr, flush=True)
    digest = ""
    try:
        for event in engine.push(tag, name):
            if error := event.get("error"):
                raise EngineRefusal(str(error), output=str(error), status=500)
            digest = (event.get("aux") or {}).get("Digest", digest)
    except EngineRefusal as exc:
        hint = "check its name, and `docker login` to its registry"
        problem = f"image {name!r} cannot be pushed: {exc.output}"
        raise SubmitError(f"{problem}; {hint}", output=exc.output) from exc
    return digest


class _Output:
    """What a build prints, and which instruction it has come to."""

    def __init__(self, tag: str, dockerfile: str) -> None:
        self._tag = tag
        self._dockerfile = dockerfile
        self._step = 0
        self.error = ""
        self.last: deque[str] = deque(maxlen=_TAIL)

    def read(self, events: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        """The text of the Engine's events; instructions are also shown on standard error."""
        for event in events:
            self.error = str(event.get("error", self.error))
            text = str(event.get("stream", ""))
            if text.startswith("Step "):
                self._step = int(text[5:].partition("/")[0])
                self.last.clear()
                print(f"{self._tag}: {text.strip()}", file=sys.stderr, flush=True)
            elif text:
                self.last.append(text)
            yield text

    def place(self) -> str:
        """The line of the Dockerfile, with what stands there."""
        instructions = list(_instructions(self._dockerfile))
        if not 0 < self._step <= len(instructions):
            return "its Dockerfile"
        number, text = instructions[self._step - 1]
        return f"line {number} of its Dockerfile, {text!r}"


def _instructions(dockerfile: str) -> Iterator[tuple[int, str]]:
    """Each instruction with the number of its line; one that ends in a backslash goes on in the next."""
    continued = False
    for number, line in enumerate(dockerfile.splitlines(), start=1):
        if not continued and line.strip() and not line.lstrip().startswith("#"):
            yield number, line
        continued = line.rstrip().endswith("\\")


def write_context(code: Path, dockerfile: str, file: IO[bytes]) -> None:
    """What a build may copy from, as a tar that is the same for the same files.

    Everybody may read and write them: as whom tasks run in the image is not known when it is built.
    """

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        member.mode = 0o777 if member.isdir() or member.mode & 0o100 else 0o666
        return member

    added = {DOCKERFILE: dockerfile, ".dockerignore": f"{DOCKERFILE}\n.dockerignore\n"}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(os.listdir(code)):
            archive.add(code / name, name, filter=plain)
            added.pop(name, None)
        for name, text in added.items():
            add_text(archive, name, text)


def add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    """Add a file of this text, the same at all times."""
    member = tarfile.TarInfo(name)
    member.size = len(data := text.encode(errors="surrogateescape"))
    archive.addfile(member, io.BytesIO(data))
