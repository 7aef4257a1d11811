"""A job's folder on a volume of the cluster: a pod that does nothing else takes files there and fetches them.

Nobody outside reaches a PersistentVolumeClaim but by a pod that has it mounted.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_run.core.execution.kubernetes_client import ApiError, Cluster, Place, path_of
from nemo_run.core.execution.kubernetes_logs import unpack
from nemo_run.core.execution.kubernetes_manifest import CONTAINER
from nemo_run.core.execution.kubernetes_send import TAKEN, packed
from nemo_run.core.execution.kubernetes_state import Pod, waiting, why
from nemo_run.errors import SubmitError

#: Seconds for such a pod to start, and after which one that says nothing is given up.
_START, _QUIET = 300.0, 120.0
#: Bytes that are sent at once.
_CHUNK = 1 << 16
#: What is fetched.
FETCHED = ("results", "artifacts")


def stage(cluster: Cluster, place: Place, claim: Mapping[str, Any], job_dir: Path) -> None:
    """Take what a job needs of its folder to the claim.

    Raises:
        SubmitError: that cannot be done.
    """
    data, folder = packed([(job_dir / name, name) for name in TAKEN]), shlex.quote(claim["folder"])
    given = f"{folder}/.given"
    lines = [
        f"mkdir -p {folder} && head -c {len(data)} >{given} || exit",
        f"tar -xzf {given} -C {folder} || python3 -m tarfile -e {given} {folder} || exit",
        f"rm {given}",
    ]
    with _running(cluster, place, claim["pod"]) as pod:
        _run(cluster, place, pod, "\n".join(lines), data)


def fetch(cluster: Cluster, place: Place, claim: Mapping[str, Any], job_dir: Path) -> None:
    """Take home what a job left on the claim; raises as `stage`."""
    with _running(cluster, place, claim["pod"]) as pod:
        folder = shlex.quote(claim["folder"])
        data = _run(cluster, place, pod, f"cd {folder} && exec tar -czf - {' '.join(FETCHED)}", b"")
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            for member in archive:
                unpack(archive, member, job_dir)
    except (tarfile.TarError, OSError, EOFError) as exc:
        raise SubmitError(f"what came from the claim cannot be read: {exc}", output=str(exc)) from exc


@contextlib.contextmanager
def _running(cluster: Cluster, place: Place, pod: Mapping[str, Any]) -> Iterator[str]:
    """A pod that has the claim, while it is needed."""
    name = pod["metadata"]["name"]
    path = path_of("Pod", place.namespace, name)
    try:
        cluster.post(path_of("Pod", place.namespace), pod)
    except ApiError as exc:
        if exc.status != 409:  # else one that was left behind
            raise
    try:
        deadline = time.monotonic() + _START
        while not (there := Pod.of(cluster.get(path))).running:
            reason, stuck = waiting(there)
            if there.over or stuck or time.monotonic() > deadline:
                problem = why(there) if there.over else reason or f"it has not started within {_START:g} s"
                raise SubmitError(f"pod {name!r}, which takes files to the claim: {problem}", output=problem)
            time.sleep(0.2)
        yield name
    finally:
        with contextlib.suppress(ApiError):
            cluster.delete(path, grace=0)


def _run(cluster: Cluster, place: Place, pod: str, script: str, data: bytes) -> bytes:
    """What a script in a pod prints, given some bytes to read."""
    from kubernetes import client
    from kubernetes.stream import stream

    # The library changes a client for as long as it connects by it.
    core = client.CoreV1Api(client.ApiClient(cluster.client.configuration))
    try:
        session = stream(
            core.connect_get_namespaced_pod_exec,
            pod,
            place.namespace,
            container=CONTAINER,
            command=["/bin/sh", "-c", script],
            stdin=bool(data),
            stdout=True,
            stderr=True,
            tty=False,
            binary=True,
            _preload_content=False,
        )
        try:
            out, said = _exchange(session, data)
            code = session.returncode
        finally:
            session.close()
            session.sock.shutdown()  # which the line above leaves out where the other side was first
    except Exception as exc:  # of the library, of websockets, and of sockets
        if isinstance(exc, SubmitError):
            raise
        raise SubmitError(f"cannot run anything in pod {pod!r}: {exc}", output=str(exc)) from exc
    if code:
        words = said.decode(errors="replace").strip()
        raise SubmitError(f"pod {pod!r} cannot take files to or from the claim: {words}", output=words)
    return out


def _exchange(session: Any, data: bytes) -> tuple[bytes, bytes]:
    """Send, then read both outputs to their ends."""
    for at in range(0, len(data), _CHUNK):
        session.write_stdin(data[at : at + _CHUNK])
    out: list[bytes] = []
    errors: list[bytes] = []
    heard = time.monotonic()
    while session.is_open():
        session.update(timeout=1)
        if _collect(session, out, errors):
            heard = time.monotonic()
        elif time.monotonic() - heard > _QUIET:
            raise SubmitError(f"nothing has come from a pod for {_QUIET:g} s", output="")
    _collect(session, out, errors)
    return b"".join(out), b"".join(errors)


def _collect(session: Any, out: list[bytes], errors: list[bytes]) -> bool:
    before = len(out), len(errors)
    if session.peek_stdout():
        out.append(session.read_stdout())
    if session.peek_stderr():
        errors.append(session.read_stderr())
    return (len(out), len(errors)) != before


def helper(job: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A pod with the volumes and on the nodes of a Job's, that waits for what it is told.

    Args:
        job: One of the Jobs.
        name: The pod's.
    """
    pod = job["spec"]["template"]["spec"]
    names: Sequence[str] = (
        "serviceAccountName", "nodeSelector", "tolerations", "affinity", "imagePullSecrets",
        "securityContext", "runtimeClassName", "priorityClassName",
    )  # fmt: skip
    [container] = pod["containers"]
    parts = ("image", "imagePullPolicy", "securityContext")
    own = {part: container[part] for part in parts if part in container}
    mounts = [mount for mount in container["volumeMounts"] if mount["name"] == "nemo-run"]
    spec = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": 3600,
        "terminationGracePeriodSeconds": 0,
        **{part: pod[part] for part in names if part in pod},
        "containers": [
            {"name": CONTAINER, **own, "command": ["/bin/sh", "-c", "sleep 3600"], "volumeMounts": mounts}
        ],
        "volumes": [volume for volume in pod["volumes"] if volume["name"] == "nemo-run"],
    }
    described = {part: job["metadata"][part] for part in ("namespace", "annotations")}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **described}, "spec": spec}
