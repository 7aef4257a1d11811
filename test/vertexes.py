"""A double of what VertexExecutor talks to: Vertex AI's job service, Cloud Storage and Cloud Logging.

No server of these can be had, so this is one on 127.0.0.1, over plain HTTP, with the routes of their REST
references. What makes it worth something: each custom job is parsed by the published types of
google-cloud-aiplatform, with unknown fields refused, and what is answered is written by the same types;
Google's own client reads it back in a test. Beyond the types it refuses what the documentation says that
Vertex AI refuses. With `run=True` jobs do run: each replica is a container of the Docker Engine with the
bucket's folder at /gcs/<bucket> and a CLUSTER_SPEC, started, ended, logged and judged as the documentation
says. What it is not: quotas, permissions, machines, or any word on how long things take.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from dockers import IMAGE

from nemo_run.core.execution.vertex import VertexExecutor

#: States that a job does not leave.
ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED")
_LABEL = re.compile(r"[a-z0-9_-]{0,63}\Z")


def lacking() -> str:
    """What there is not of the published types; empty if they are there."""
    try:
        there = find_spec("google.cloud.aiplatform_v1")  # which takes seconds to import
    except ModuleNotFoundError:
        there = None
    return "" if there else "Google's types: pip install 'nemo_run[dev-vertex]'"


def skip_without_types() -> None:
    """Skip where they are not installed; where everything must run, fail."""
    if problem := lacking():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs {problem}")


class HurriedVertexExecutor(VertexExecutor):
    """One that looks often, as the double has its answers ready."""

    poll_interval = (0.02, 0.2)
    log_interval = 0.05
    log_lag = 0.0
    error_lag = 0.0


class Refused(Exception):
    """What the double answers instead of yes."""

    def __init__(self, code: int, status: str, message: str) -> None:
        super().__init__(message)
        self.code, self.status = code, status


@dataclass
class Fault:
    """What happens to the next requests like this instead of an answer."""

    #: A regular expression for "METHOD /path".
    request: str
    #: The status to answer with; 0 cuts the connection.
    code: int = 503
    #: How many of them.
    times: int = 1
    #: Whether the request is carried out all the same.
    after: bool = False


@dataclass
class Vertex:
    """The double, as a test sees it."""

    folder: Path
    run: bool = False
    #: What containers see of this machine, as Docker takes it.
    volumes: list[str] = field(default_factory=list)
    url: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    #: "METHOD /path" of each request.
    asked: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    threads: list[threading.Thread] = field(default_factory=list)
    pages: int = 100
    #: Names of objects that lie nowhere, as some could on no file system.
    odd_names: list[str] = field(default_factory=list)

    def executor(self, **fields: Any) -> VertexExecutor:
        """One whose services are all this."""
        given = {"container_image": IMAGE, "project": "my-project", "staging_bucket": "gs://bucket/work"}
        endpoints = dict.fromkeys(("api_endpoint", "storage_endpoint", "logging_endpoint"), self.url)
        return HurriedVertexExecutor(**{**given, **endpoints, **fields})

    def job(self) -> dict[str, Any]:
        """The only job there is."""
        [job] = self.jobs.values()
        return job

    def become(self, state: str, *, error: str = "", job: dict[str, Any] | None = None) -> None:
        """Have a job, by default the only one, reach a state."""
        with self.lock:
            job = job or self.job()
            job["state"] = f"JOB_STATE_{state}"
            if state == "RUNNING":
                job.setdefault("startTime", _now())
            if job["state"] in ENDED:
                job["endTime"] = _now()
            if error:
                job["error"] = {"code": 3, "message": error}

    def print(self, number: str, task: str, *texts: str) -> None:
        """Add entries to a job's log."""
        with self.lock:
            self.entries += [
                _entry(f"e{len(self.entries)}-{at}", number, task, t, _now()) for at, t in enumerate(texts)
            ]

    def objects(self) -> dict[str, bytes]:
        """What is in the buckets, by bucket and name."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


@contextlib.contextmanager
def running_vertex(folder: Path, *, run: bool = False, volumes: tuple[str, ...] = ()) -> Iterator[Vertex]:
    """A double with one bucket, `bucket`; nothing of it is left at the end."""
    (folder / "bucket").mkdir(parents=True)
    vertex = Vertex(folder, run, list(volumes))
    handler = type("Handler", (_Handler,), {"vertex": vertex})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        vertex.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield vertex
        finally:
            for name in list(vertex.jobs):
                with contextlib.suppress(Refused):
                    _cancel(vertex, name)
            for runner in vertex.threads:
                runner.join()
            server.shutdown()
            thread.join()


# --- the server -----------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    vertex: Vertex
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def _go(self) -> None:
        split = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        body = self._body()
        line = f"{self.command} {split.path}"
        self.vertex.asked.append(line)
        fault = next((f for f in self.vertex.faults if f.times and re.search(f.request, line)), None)
        if fault:
            fault.times -= 1
            if fault.after:
                self._answer(split.path, query, body)
            if not fault.code:
                self.close_connection = True
                return
            self._send_error(Refused(fault.code, "UNAVAILABLE", "come again"))
            return
        try:
            self._send(200, self._answer(split.path, query, body))
        except Refused as exc:
            self._send_error(exc)

    do_GET = do_POST = do_DELETE = _go

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send_error(self, exc: Refused) -> None:
        error = {"code": exc.code, "status": exc.status, "message": str(exc)}
        self._send(exc.code, {"error": error}, **({"Retry-After": "0"} if exc.code in (429, 503) else {}))

    def _send(self, code: int, answer: Any, **headers: str) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        with contextlib.suppress(OSError):  # whoever asked has gone
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def _answer(self, path: str, query: dict[str, str], body: bytes) -> Any:
        for method, pattern, verb in _ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                return verb(self.vertex, *map(unquote, match.groups()), query=query, body=body)
        raise Refused(404, "NOT_FOUND", f"no such method: {self.command} {path}")


# --- jobs -----------------------------------------------------------------------------------------------


def _create(vertex: Vertex, parent: str, *, query: dict[str, str], body: bytes) -> Any:
    from google.cloud.aiplatform_v1.types import CustomJob
    from google.protobuf.json_format import ParseError

    try:
        job = CustomJob.from_json(body.decode(), ignore_unknown_fields=False)
    except ParseError as exc:
        raise Refused(400, "INVALID_ARGUMENT", f"Invalid JSON payload received. {exc}") from exc
    _validate(job)
    with vertex.lock:
        number = str(10**15 + len(vertex.jobs))
        job.name = f"{parent}/customJobs/{number}"
        made = _written(job)
        made |= {"state": "JOB_STATE_PENDING", "createTime": _now()}
        vertex.jobs[job.name] = made
    if vertex.run:
        thread = threading.Thread(target=_run, args=(vertex, made))
        vertex.threads.append(thread)
        thread.start()
    return _shown(made)


def _validate(job: Any) -> None:
    """What the documentation says beyond the types."""

    def require(fits: object, message: str) -> None:
        if not fits:
            raise Refused(400, "INVALID_ARGUMENT", message)

    spec = job.job_spec
    require(0 < len(job.display_name) <= 128, "display_name must be of 1 to 128 characters")
    require(1 <= len(spec.worker_pool_specs) <= 4, "there must be 1 to 4 worker pools")
    require(spec.worker_pool_specs[0].replica_count == 1, "the first worker pool must have 1 replica")
    require(len(job.labels) <= 64, "there may be 64 labels")
    for name, value in job.labels.items():
        require(
            _LABEL.match(name) and _LABEL.match(value) and name[:1].isalpha(), f"label {name!r} is invalid"
        )
    require(not spec.tensorboard or spec.service_account, "tensorboard needs a service account")
    require(
        not spec.tensorboard or spec.base_output_directory.output_uri_prefix, "it needs an output directory"
    )
    for pool in spec.worker_pool_specs:
        machine, container = pool.machine_spec, pool.container_spec
        require(machine.machine_type, "machine_type is required")
        require(container.image_uri, "image_uri is required")
        require(bool(machine.accelerator_type) == bool(machine.accelerator_count), "accelerators lack a half")
        require(len(container.env) <= 100, "there may be 100 variables")
        tpus = machine.tpu_topology or machine.machine_type == "cloud-tpu"
        require(not tpus or (len(spec.worker_pool_specs) == 1 == pool.replica_count), "TPUs are one replica")


def _written(job: Any) -> dict[str, Any]:
    from google.cloud.aiplatform_v1.types import CustomJob

    written = CustomJob.to_json(job, use_integers_for_enums=False, always_print_fields_with_no_presence=False)
    made: dict[str, Any] = json.loads(written)
    return made


def _shown(job: dict[str, Any]) -> dict[str, Any]:
    """A job as it is answered: nothing that the types do not know."""
    from google.cloud.aiplatform_v1.types import CustomJob

    return _written(CustomJob.from_json(json.dumps(job), ignore_unknown_fields=False))


def _found(vertex: Vertex, name: str) -> dict[str, Any]:
    if name not in vertex.jobs:
        raise Refused(404, "NOT_FOUND", f"The CustomJob does not exist: {name}")
    return vertex.jobs[name]


def _get(vertex: Vertex, name: str, *, query: dict[str, str], body: bytes) -> Any:
    with vertex.lock:
        return _shown(_found(vertex, name))


def _list(vertex: Vertex, parent: str, *, query: dict[str, str], body: bytes) -> Any:
    with vertex.lock:
        found = [job for name, job in reversed(vertex.jobs.items()) if name.startswith(f"{parent}/")]
        if wanted := query.get("filter"):
            match = re.fullmatch(r"labels\.([a-z0-9_-]+)=([a-z0-9_-]+)", wanted)
            if not match:
                raise Refused(400, "INVALID_ARGUMENT", f"the filter is beyond this double: {wanted}")
            found = [job for job in found if job.get("labels", {}).get(match[1]) == match[2]]
        return _page(vertex, [_shown(job) for job in found], query.get("pageToken"), "customJobs")


def _page(vertex: Vertex, found: list[Any], token: str | None, name: str) -> dict[str, Any]:
    start = int(token or 0)
    page: dict[str, Any] = {name: found[start : start + vertex.pages]} if found else {}
    if len(found) > start + vertex.pages:
        page["nextPageToken"] = str(start + vertex.pages)
    return page


def _cancel(vertex: Vertex, name: str, *, query: Any = None, body: bytes = b"") -> Any:
    with vertex.lock:
        job = _found(vertex, name)
        if job["state"] in ENDED:
            raise Refused(400, "FAILED_PRECONDITION", f"the job is in state {job['state']}")
        job["state"] = "JOB_STATE_CANCELLING" if vertex.run else "JOB_STATE_CANCELLED"
    return {}


def _delete(vertex: Vertex, name: str, *, query: dict[str, str], body: bytes) -> Any:
    with vertex.lock:
        _found(vertex, name)
        del vertex.jobs[name]
    empty = {"@type": "type.googleapis.com/google.protobuf.Empty"}
    return {"name": f"{name}/operations/1", "done": True, "response": empty}


# --- storage and logs -----------------------------------------------------------------------------------


def _bucket(vertex: Vertex, name: str) -> Path:
    if not (vertex.folder / name).is_dir():
        raise Refused(404, "NOT_FOUND", "The specified bucket does not exist.")
    return vertex.folder / name


def _upload(vertex: Vertex, bucket: str, *, query: dict[str, str], body: bytes) -> Any:
    path = _bucket(vertex, bucket) / query["name"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return {"name": query["name"], "bucket": bucket, "size": str(len(body))}


def _objects(vertex: Vertex, bucket: str, *, query: dict[str, str], body: bytes) -> Any:
    root = _bucket(vertex, bucket)
    names = sorted(str(path.relative_to(root)) + "/" * path.is_dir() for path in root.rglob("*"))
    names += vertex.odd_names
    found = [{"name": name} for name in names if name.startswith(query.get("prefix", ""))]
    return _page(vertex, found, query.get("pageToken"), "items")


def _object(vertex: Vertex, bucket: str, name: str, *, query: dict[str, str], body: bytes) -> Any:
    path = _bucket(vertex, bucket) / name
    if not path.is_file():
        raise Refused(404, "NOT_FOUND", f"No such object: {bucket}/{name}")
    return path.read_bytes() if query.get("alt") == "media" else {"name": name}


_TERMS = re.compile(
    r'resource\.type="ml_job" AND resource\.labels\.job_id="(\d+)"'
    r' AND resource\.labels\.task_name="([\w-]+)"(?: AND timestamp>="([^"]+)")?'
)


def _entries(vertex: Vertex, *, query: dict[str, str], body: bytes) -> Any:
    asked = json.loads(body)
    match = _TERMS.fullmatch(asked["filter"])
    if not match or asked["orderBy"] != "timestamp asc" or asked["resourceNames"] != ["projects/my-project"]:
        raise Refused(400, "INVALID_ARGUMENT", f"the question is beyond this double: {asked}")
    with vertex.lock:
        found = [
            entry
            for entry in vertex.entries
            if entry["resource"]["labels"]["job_id"] == match[1]
            and entry["resource"]["labels"]["task_name"] == match[2]
            and entry["timestamp"] >= (match[3] or "")
        ]
    return _page(vertex, found, asked.get("pageToken"), "entries")


def _entry(key: str, number: str, task: str, text: str, when: str) -> dict[str, Any]:
    """As Vertex AI's agents write them."""
    labels = {"job_id": number, "task_name": task, "project_id": "my-project"}
    return {
        "insertId": key,
        "timestamp": when,
        "severity": "INFO",
        "logName": f"projects/my-project/logs/{task}",
        "resource": {"type": "ml_job", "labels": labels},
        "jsonPayload": {"levelname": "INFO", "message": text, "attrs": {"tag": task}},
    }


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


_JOB = r"/v1/(projects/[^/]+/locations/[^/]+/customJobs/[^/:]+)"
_JOBS = r"/v1/(projects/[^/]+/locations/[^/]+)/customJobs"
_ROUTES: list[tuple[str, str, Any]] = [
    ("POST", _JOBS, _create),
    ("GET", _JOBS, _list),
    ("GET", _JOB, _get),
    ("DELETE", _JOB, _delete),
    ("POST", f"{_JOB}:cancel", _cancel),
    ("POST", r"/upload/storage/v1/b/([^/]+)/o", _upload),
    ("GET", r"/storage/v1/b/([^/]+)/o", _objects),
    ("GET", r"/storage/v1/b/([^/]+)/o/([^/]+)", _object),
    ("POST", r"/v2/entries:list", _entries),
]


# --- jobs that run --------------------------------------------------------------------------------------


def _run(vertex: Vertex, job: dict[str, Any]) -> None:
    """Run a job's replicas as containers, as Vertex AI says that it does."""
    import docker

    client = docker.from_env()
    replicas = _Replicas(vertex, client, job)
    try:
        replicas.start()
        with vertex.lock:
            if job["state"] == "JOB_STATE_PENDING":
                vertex.become("RUNNING", job=job)
        replicas.watch()
    except docker.errors.APIError as exc:
        vertex.become("FAILED", error=str(exc.explanation), job=job)
    finally:
        replicas.remove()
        client.close()


class _Replicas:
    """The containers of one job."""

    def __init__(self, vertex: Vertex, client: Any, job: dict[str, Any]) -> None:
        self.vertex, self.client, self.job = vertex, client, job
        self.number = job["name"].rpartition("/")[2]
        self.key = f"{os.getpid():x}{id(vertex) % 2**20:x}{self.number[-3:]}"
        self.pools = job["jobSpec"]["workerPoolSpecs"]
        self.containers: dict[str, Any] = {}
        self.printed: dict[str, int] = {}
        self.network: Any = None
        self.timeout = float(job["jobSpec"].get("scheduling", {}).get("timeout", "604800s")[:-1])

    def start(self) -> None:
        cluster = {
            f"workerpool{at}": [
                f"cmle-training-workerpool{at}-{self.key}-{index}:2222"
                for index in range(int(pool["replicaCount"]))
            ]
            for at, pool in enumerate(self.pools)
        }
        if sum(map(len, cluster.values())) > 1:
            self.network = self.client.networks.create(f"nemo-run-vertex-{self.key}", driver="bridge")
        for at, pool in enumerate(self.pools):
            for index, address in enumerate(cluster[f"workerpool{at}"]):
                self._create(pool["containerSpec"], f"workerpool{at}-{index}", address[:-5], cluster)
        for container in self.containers.values():
            container.start()

    def _create(self, spec: dict[str, Any], task: str, name: str, cluster: dict[str, Any]) -> None:
        pool, _, index = task.partition("-")
        told = {
            "cluster": cluster,
            "environment": "cloud",
            "task": {"type": pool, "index": int(index)},
            "job": self.job["jobSpec"],
        }
        env = {each["name"]: each.get("value", "") for each in spec.get("env", ())}
        own = {"CLUSTER_SPEC": json.dumps(told), "CLOUD_ML_JOB_ID": self.number, "HOME": "/tmp"}
        folders = [f"{path}:/gcs/{path.name}" for path in self.vertex.folder.iterdir()]
        self.containers[task] = self.client.containers.create(
            spec["imageUri"],
            spec.get("args"),
            **({"entrypoint": spec["command"]} if "command" in spec else {}),
            name=name,
            hostname=name,
            environment={**own, **env},
            volumes=[*folders, *self.vertex.volumes],
            user=f"{os.getuid()}:{os.getgid()}",
            network=self.network.name if self.network else "none",
            labels={"nemo_run.vertex": str(self.vertex.folder)},
        )

    def watch(self) -> None:
        """Until the primary replica has ended well, any has not, or somebody wants no more."""
        began = time.monotonic()
        while True:
            time.sleep(0.03)
            with self.vertex.lock:
                if self.job["state"] == "JOB_STATE_CANCELLING":
                    return self.end("CANCELLED")
            if time.monotonic() > began + self.timeout:
                return self.end("CANCELLED")
            codes = {}
            for task, container in self.containers.items():
                container.reload()
                if container.status == "exited":
                    codes[task] = container.attrs["State"]["ExitCode"]
            self.collect()
            for task, code in codes.items():
                if code:
                    words = f"The replica {task} exited with a non-zero status of {code}."
                    more = " To find out more about why your job exited please check the logs: https://…"
                    return self.end("FAILED", words + more)
            if "workerpool0-0" in codes:
                return self.end("SUCCEEDED")

    def end(self, state: str, error: str = "") -> None:
        for container in self.containers.values():
            with contextlib.suppress(Exception):
                container.kill()
        for container in self.containers.values():
            container.wait()
        self.collect(last=True)
        self.vertex.become(state, error=error, job=self.job)

    def collect(self, *, last: bool = False) -> None:
        """Bring what was printed to the log, line by line as agents do; a line without an end at the end."""
        for task, container in self.containers.items():
            text = container.logs(timestamps=True).decode(errors="replace")
            *whole, rest = text.split("\n")
            lines = [*whole, rest] if last and rest else whole
            for at in range(self.printed.get(task, 0), len(lines)):
                when, _, line = lines[at].partition(" ")
                entry = _entry(f"{task}-{at}", self.number, task, line, when)
                with self.vertex.lock:
                    self.vertex.entries.append(entry)
            self.printed[task] = len(lines)

    def remove(self) -> None:
        for container in self.containers.values():
            container.remove(force=True)
        if self.network:
            self.network.remove()
