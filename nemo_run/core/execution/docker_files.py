"""What a container gets of a job: its folder, where that is copied, and the script its task starts from."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_run.core import runner
from nemo_run.core.masking import worth_masking
from nemo_run.secret import Secret
from nemo_run.shell import Expand, exports, join

#: The job's folder as its task sees it.
RUNDIR = "/nemo_run"
#: What starts a task whose words an Engine cannot be told: it is put into the container and removes itself.
START = "/.nemo_run/start"
#: Where its Python finds nemo_run: the package that launched, so that none has to be in the image.
LIBRARY, PACKAGE = "/.nemo_run/lib", Path(runner.__file__).parents[1]
#: What a job needs of its folder where the Engine does not see that, and what is fetched from it at the end.
TAKEN, FETCHED = ("code", "scripts", "configs", "task.json"), ("results", "artifacts")

Record = dict[str, Any]


def written(value: Any) -> Any:
    """A word or variable's value as JSON: secrets by where they are found."""
    if isinstance(value, Secret):
        return {"_secret_": value.source()}
    return {"_expand_": str(value)} if isinstance(value, Expand) else value


def secrets_of(request: Record) -> Iterator[Secret]:
    """The secrets among what a job is started with."""
    for role in request["roles"]:
        for value in (role["start"] or {"env": {}})["env"].values():
            if isinstance(value, dict) and "_secret_" in value:
                yield Secret.from_source(value["_secret_"])


def values_of(request: Record, known: Mapping[str, str]) -> dict[str, str]:
    """The values of all secrets of a job by their names; each is read once.

    Raises:
        ConfigError: one cannot be read here.
    """
    values = dict(known)
    for secret in secrets_of(request):
        if secret.name not in values:
            values[secret.name] = secret.resolve()
    return values


def to_mask(values: Mapping[str, str]) -> list[bytes]:
    """The bytes of secrets that are not to be seen in logs."""
    return [os.fsencode(value) for value in worth_masking(values.values())]


def start_archive(start: Record, values: Mapping[str, str]) -> bytes:
    """A script that sets what no Engine is told, removes itself and becomes the task; as a tar.

    It lies in the container's own layer, never in the job's folder. Whom the task runs as may be a name of
    the image's, so that everybody in there may read and remove it.
    """

    def read(value: Any) -> str:
        if isinstance(value, dict) and "_secret_" in value:
            return values[Secret.from_source(value["_secret_"]).name]
        return Expand(value["_expand_"]) if isinstance(value, dict) else str(value)

    env = {name: read(value) for name, value in start["env"].items()}
    argv = [read(word) for word in start["argv"]]
    given = '"$@" ' if start.get("follow") else ""  # an image's ENTRYPOINT
    text = f"rm -f {START} || exit 126\n{exports(env)}exec {given}{join(argv)}\n"
    data = text.encode(errors="surrogateescape")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(_folder(os.path.dirname(START)[1:], 0o777))
        member = tarfile.TarInfo(START[1:])
        member.size, member.mode = len(data), 0o644
        archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def folder_archive(job_dir: Path, user: str) -> Iterator[bytes]:
    """The job's folder, less what comes of it, as a tar that grows as it is read."""
    uid, gid = _numbers(user)

    def owned(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid, member.gid, member.uname, member.gname = uid, gid, "", ""
        return member

    def sources(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if member.name.endswith("__pycache__") else member

    def fill() -> None:
        with (
            contextlib.suppress(BrokenPipeError),  # whoever read this has had enough of it
            os.fdopen(sink, "wb") as file,
            tarfile.open(fileobj=file, mode="w|") as archive,
        ):
            archive.add(PACKAGE, f"{LIBRARY[1:]}/nemo_run", filter=sources)
            archive.addfile(owned(_folder(RUNDIR[1:], 0o755)))
            for name in FETCHED:
                archive.addfile(owned(_folder(f"{RUNDIR[1:]}/{name}", 0o700)))
            for name in TAKEN:
                if (path := job_dir / name).exists():
                    archive.add(path.resolve(), f"{RUNDIR[1:]}/{name}", filter=owned)

    source, sink = os.pipe()
    threading.Thread(target=fill, daemon=True).start()
    with os.fdopen(source, "rb") as file:
        while chunk := file.read(1 << 18):
            yield chunk


def _folder(name: str, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, mode
    return member


def _numbers(user: str) -> tuple[int, int]:
    uid, _, gid = user.partition(":")
    return (int(uid), int(gid or 0)) if uid.isdigit() and (gid or "0").isdigit() else (0, 0)
