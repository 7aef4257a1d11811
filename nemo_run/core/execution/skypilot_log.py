"""What SkyPilot shows of a job's output, taken apart: whose line it is, and what the nodes sent last."""

from __future__ import annotations

import binascii
import io
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from nemo_run.core.execution.skypilot_node import END, PART

_COLOURS = r"(?:\x1b\[[0-9;]*m)*"
#: `(task, pid=7) text`; over several nodes `(head, rank=0, pid=7) …`, `(worker1, rank=1, pid=7, ip=…) …`.
_LINE = re.compile(
    rf"{_COLOURS}\([^()]*?, (?:rank=(?P<rank>\d+), )?pid=\d+(?:, ip=[^()]*)?\){_COLOURS} ?(?P<text>.*)",
    re.DOTALL,
)
_ANY_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Line(NamedTuple):
    """A line that a member printed on one of the nodes."""

    role: str
    node: int
    text: str


class Log:
    """A job's output as it comes: the members' lines, how each node's part ended, and what was sent."""

    def __init__(self, roles: Sequence[str]) -> None:
        self._roles = roles
        #: How each node's part ended.
        self.ends: dict[int, dict[str, Any]] = {}
        #: What SkyPilot itself said, setup included.
        self.words: list[str] = []
        self._sent: dict[int, dict[int, str]] = defaultdict(dict)
        self._parts: dict[int, int] = {}

    def read(self, chunks: Iterable[str]) -> Iterator[Line]:
        """The members' lines; what else there is is kept."""
        rest = ""
        for chunk in chunks:
            *whole, rest = (rest + chunk).split("\n")
            for line in whole:
                yield from self._take(line)
        if rest:
            yield from self._take(rest)

    def _take(self, line: str) -> Iterator[Line]:
        if not (match := _LINE.match(line)):
            self.words.append(_ANY_COLOUR.sub("", line).strip("\r"))
            return
        node, text = int(match["rank"] or 0), match["text"]
        before, mark, told = text.partition(END)
        if mark:
            self.ends[node] = json.loads(told)
        elif PART in text:
            before, _, told = text.partition(PART)
            place, _, part = told.partition(" ")
            at, _, count = place.partition("/")
            self._sent[node][int(at)], self._parts[node] = part, int(count)
        else:
            yield self._line(node, text)
            return
        if before:
            yield self._line(node, before)

    def _line(self, node: int, text: str) -> Line:
        if len(self._roles) > 1:
            for role in self._roles:
                if text.startswith(f"[{role}] "):
                    return Line(role, node, text[len(role) + 3 :])
        return Line(self._roles[0], node, text)

    def unpack(self, folder: Path) -> None:
        """Write what all nodes sent below a folder, as far as all of it came."""
        for node, parts in self._sent.items():
            if len(parts) == self._parts[node]:
                packed = binascii.a2b_base64("".join(parts[at] for at in sorted(parts)))
                _unpack(packed, folder)


def _unpack(packed: bytes, folder: Path) -> None:
    """The files and folders of an archive; nothing that leads out of it."""
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        for entry in archive:
            parts = PurePosixPath(entry.name).parts
            if ".." in parts or entry.name.startswith("/"):
                continue
            path = folder.joinpath(*parts)
            if entry.isdir():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif entry.isreg() and (source := archive.extractfile(entry)):
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.write_bytes(source.read())
                path.chmod(0o600 | entry.mode & 0o100)
