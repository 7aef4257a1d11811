"""Images of packaged code: built by an Engine, once for the same code, and pushed where that is asked for."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tarfile
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from nemo_run.core import runner
from nemo_run.core.execution.docker_engine import Engine, EngineRefusal
from nemo_run.core.packaging.image import Image
from nemo_run.errors import SubmitError

#: The Dockerfile's name among the code's files, where it meets none of theirs.
_DOCKERFILE = ".nemo_run.Dockerfile"
#: So much of what was printed stands in an error.
_TAIL = 10


def ensure_built(engine: Engine, image: Image, log: Path) -> None:
    """Have an image on the Engine: built if it is not there, pushed if that was not done by this process.

    Args:
        engine: Where.
        image: What; its files must be there if it is to be built.
        log: Takes all that the build prints.

    Raises:
        SubmitError: an instruction fails, with its line; or the registry refuses it.
    """
    with engine.building:  # many jobs are submitted at once, and most have the same code
        if not engine.has_image(image.tag):
            _build(engine, image, log)
        if image.push and (image.tag, image.push) not in engine.pushed:
            _push(engine, image.tag, image.push)
            engine.pushed.add((image.tag, image.push))


def _build(engine: Engine, image: Image, log: Path) -> None:
    if image.context is None or not image.context.is_dir():
        problem = f"image {image.tag} is gone, and so is its code ({image.context}); launch again"
        raise SubmitError(problem, output=problem)
    output = _Output(image.dockerfile)
    print(f"building image {image.tag}, see {log}", file=sys.stderr, flush=True)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(log, "w", opener=runner.private, encoding="utf-8"))
        context = stack.enter_context(tempfile.TemporaryFile())
        write_context(image.context, image.dockerfile, context)
        context.seek(0)
        try:
            for text in output.read(engine.build(context, dockerfile=_DOCKERFILE, tag=image.tag)):
                file.write(text)
                file.flush()
        except EngineRefusal as exc:  # it cannot read the Dockerfile
            raise _refused(image, str(exc), exc.output) from exc
    if output.error:
        raise _refused(image, f"{output.place()}: {output.error}", "".join(output.last), log)


def _refused(image: Image, problem: str, said: str, log: Path | None = None) -> SubmitError:
    shown = f"\n{said.rstrip()}\nAll that was printed is in {log}." if log else ""
    what = f"image {image.tag} of the code cannot be built: {problem}; mend ImagePackager's instructions."
    return SubmitError(what + shown, output=said + problem)


def _push(engine: Engine, tag: str, name: str) -> None:
    print(f"pushing image {name}", file=sys.stderr, flush=True)
    try:
        for event in engine.push(tag, name):
            if error := event.get("error"):
                raise EngineRefusal(str(error), output=str(error), status=500)
    except EngineRefusal as exc:
        hint = "check its name, and `docker login` to its registry"
        problem = f"image {name!r} cannot be pushed: {exc.output}"
        raise SubmitError(f"{problem}; {hint}", output=exc.output) from exc


class _Output:
    """What a build prints, and which instruction it has come to."""

    def __init__(self, dockerfile: str) -> None:
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
                print("  " + text.strip(), file=sys.stderr, flush=True)
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

    added = {_DOCKERFILE: dockerfile, ".dockerignore": f"{_DOCKERFILE}\n.dockerignore\n"}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(os.listdir(code)):
            archive.add(code / name, name, filter=plain)
            added.pop(name, None)
        for name, text in added.items():
            member = tarfile.TarInfo(name)
            member.size = len(data := text.encode(errors="surrogateescape"))
            archive.addfile(member, io.BytesIO(data))
