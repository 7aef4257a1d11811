"""What a Kubernetes cluster is sent: a job's objects, and in a Secret its files and all that is secret."""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_run.core import runner
from nemo_run.core.execution.kubernetes_client import ApiError, Cluster, Place, absent_is_fine, path_of
from nemo_run.core.execution.kubernetes_manifest import TOKEN
from nemo_run.core.execution.kubernetes_start import JOB_FILE, LIBRARY_FILE, START
from nemo_run.errors import ConfigError
from nemo_run.secret import Secret

#: The nemo_run that travels along.
PACKAGE = Path(runner.__file__).parents[1]
#: What a job needs of its folder.
TAKEN = ("code", "scripts", "configs", "task.json")
#: Bytes that a Secret can hold, less a little for all that surrounds them.
MOST = 1_000_000
#: What nobody makes: it is only asked whether one may.
_TRIAL = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"generateName": "nemo-run-check-"},
    "spec": {
        "template": {
            "spec": {"restartPolicy": "Never", "containers": [{"name": "task", "image": "scratch"}]},
        }
    },
}

Manifest = dict[str, Any]


def check_access(cluster: Cluster, place: Place) -> None:
    """Find out whether Jobs can be made there, without making one.

    Raises:
        SubmitError: the cluster does not answer, does not know us, or does not let us.
    """
    try:
        cluster.post(path_of("Job", place.namespace), _TRIAL, dryRun="All")
    except ApiError as exc:
        # What it has against this one it may not have against others.
        if exc.status in (0, 401, 404) or (exc.status == 403 and "cannot create" in exc.output):
            raise


# --- objects --------------------------------------------------------------------------------------------


def make(
    cluster: Cluster, namespace: str, objects: Sequence[Manifest], data: Mapping[str, str]
) -> list[Manifest]:
    """Make objects, or find that an earlier try has.

    Args:
        cluster: Where.
        namespace: And in which part of it.
        objects: What `render` gave.
        data: What the Secret among them holds.

    Raises:
        ApiError: the cluster refuses one; those before it are there.
    """
    made = []
    for each in objects:
        body = {name: part for name, part in each.items() if name != "stringData"}
        body["metadata"] = {**each["metadata"], "namespace": namespace}
        made.append(
            _make_one(cluster, namespace, body | {"data": data} if each["kind"] == "Secret" else body)
        )
    return made


def _make_one(cluster: Cluster, namespace: str, body: Manifest) -> Manifest:
    kind, name = body["kind"], body["metadata"]["name"]
    try:
        return cluster.post(path_of(kind, namespace), body) | {"kind": kind}
    except ApiError as exc:
        if exc.status != 409:
            raise
        there = cluster.get(path_of(kind, namespace, name))
        if token_of(there) != body["metadata"]["annotations"][TOKEN]:
            raise
        return there | {"kind": kind}


def own(cluster: Cluster, place: Place, names: Sequence[Sequence[str]], jobs: Sequence[Manifest]) -> None:
    """Have what belongs to the Jobs removed with them; `names` are kinds and names of all objects."""
    owners = [
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2" if job["kind"] == "JobSet" else "batch/v1",
            "kind": job["kind"],
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
        }
        for job in jobs
    ]
    for kind, name in names:
        if kind in ("Secret", "Service"):
            with absent_is_fine():
                path = path_of(kind, place.namespace, name)
                cluster.patch(path, {"metadata": {"ownerReferences": owners}})


def undo(cluster: Cluster, place: Place, names: Sequence[Sequence[str]], token: str) -> None:
    """Remove what was made of a job."""
    for kind, name in reversed(names):
        path = path_of(kind, place.namespace, name)
        with contextlib.suppress(ApiError):
            if token_of(cluster.get(path)) == token:
                cluster.delete(path)


def token_of(there: Mapping[str, Any]) -> str:
    """Whose an object is."""
    return str((there["metadata"].get("annotations") or {}).get(TOKEN, ""))


# --- what is in them ------------------------------------------------------------------------------------


def secret_data(objects: Sequence[Manifest], sources: Mapping[str, Any], job_dir: Path) -> dict[str, str]:
    """What the Secret among some objects holds, in base64.

    Args:
        objects: What `render` gave.
        sources: Where secrets are found, by their keys.
        job_dir: The job's folder.

    Raises:
        ConfigError: a secret has no value here, or the code is too large to travel like that.
    """
    wanted: Mapping[str, str] = next((one["stringData"] for one in objects if one["kind"] == "Secret"), {})
    given = dict[str, bytes]()
    for key, text in wanted.items():
        if key == LIBRARY_FILE:
            given[key] = _library()
        elif key == JOB_FILE:
            given[key] = packed([(job_dir / name, name) for name in TAKEN])
        elif key in sources:
            given[key] = os.fsencode(Secret.from_source(sources[key]).resolve())
        elif key.startswith(START):
            given[key] = os.fsencode(text)
    if (size := sum(map(len, given.values()))) > MOST:
        raise _too_large(len(given.get(JOB_FILE, b"")), size)
    return {key: base64.b64encode(value).decode() for key, value in given.items()}


def _too_large(own: int, size: int) -> ConfigError:
    return ConfigError(
        f"the job's code is {own} bytes when packed, and with what else goes into a Secret {size}, of which"
        f" that holds {MOST}. Have the code travel in the image by run.ImagePackager(push_image_tag=…), or on"
        " a volume by KubernetesExecutor(workdir_pvc=…), or package less of it, such as by"
        ' run.GitArchivePackager(subpath="…")'
    )


def packed(paths: Sequence[tuple[Path, str]]) -> bytes:
    """Files and folders, each under a name, as a compressed tar."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return None if member.name.endswith("__pycache__") else member

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=9) as archive:
        for path, name in paths:
            if path.exists():
                archive.add(path.resolve(), name, filter=plain)
    return stream.getvalue()


@functools.cache
def _library() -> bytes:
    """This nemo_run, packed once."""
    return packed([(PACKAGE, "nemo_run")])


def build_image(build: Mapping[str, Any], job_dir: Path) -> None:
    """Build an image of the code on this machine's Engine, and push it.

    Raises:
        SubmitError: an instruction fails, or the registry refuses it.
    """
    from nemo_run.core.execution.docker_build import ensure_built
    from nemo_run.core.execution.docker_engine import address, connect
    from nemo_run.core.packaging.image import Image

    image = Image(**{**build, "context": Path(build["context"])})
    ensure_built(connect(address(None)), image, job_dir / "build.log")
