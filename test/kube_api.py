"""An API server that says what a test wants, over real connections; a real one does not do that on demand."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

#: What is said to a request: a status and an object, or the pieces of a stream; None cuts the connection.
Answer = tuple[int, Any]


class Request:
    """What was asked."""

    def __init__(self, method: str, target: str, headers: Any, body: bytes) -> None:
        parts = urlsplit(target)
        self.method, self.path, self.headers = method, parts.path, headers
        self.query = dict(parse_qsl(parts.query))
        self.body = json.loads(body) if body else None


class Api:
    """A server and what it was asked; `answer` says what it says, and raises to say nothing for ever."""

    def __init__(self, folder: Path, answer: Callable[[Request], Answer]) -> None:
        self.asked: list[Request] = []
        self.answer = answer
        self.silent = threading.Event()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                request = Request(self.command, self.path, self.headers, self.rfile.read(size))
                api.asked.append(request)
                with contextlib.suppress(OSError):
                    self.say(*api.answer(request))

            do_POST = do_PATCH = do_DELETE = do_GET

            def say(self, status: int, body: Any) -> None:
                self.send_response(status)
                if isinstance(body, dict):
                    data = json.dumps(body).encode()
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                    return
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for piece in body:
                    if piece is None:
                        self.close_connection = True
                        return
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.config = folder / "kubeconfig"
        self.config.write_text(kubeconfig(self.url))

    @contextlib.contextmanager
    def running(self) -> Iterator[Api]:
        """Meanwhile it answers."""
        thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.silent.set()
            self.server.shutdown()
            thread.join()
            self.server.server_close()


def kubeconfig(url: str, **changes: Any) -> str:
    """A kubeconfig for a server, as YAML."""
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "it", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": "a-token"}}],
        "contexts": [
            {"name": "here", "context": {"cluster": "it", "user": "me", "namespace": "mine"}},
            {"name": "there", "context": {"cluster": "it", "user": "me"}},
        ],
    }  # fmt: skip
    return yaml.safe_dump(config | changes)


def refusal(status: int, reason: str, message: str) -> Answer:
    """How a server says no."""
    return status, {
        "kind": "Status",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": status,
    }


class Objects:
    """What a cluster holds that does nothing by itself: objects are made, listed, changed and removed."""

    def __init__(self, version: str = "30") -> None:
        self.version = version
        self.there: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, bytes] = {}
        #: What is said instead to requests for which this gives something.
        self.instead: Callable[[Request], Answer | None] = lambda request: None
        self._count = 0

    def answer(self, request: Request) -> Answer:
        """What such a cluster says."""
        if said := self.instead(request):
            return said
        if request.path == "/version":
            return 200, {"major": "1", "minor": self.version}
        if request.query.get("dryRun"):
            return 201, request.body
        name = {"GET": self._get, "POST": self._post, "PATCH": self._patch, "DELETE": self._delete}
        return name[request.method](request)

    def kind(self, plural: str) -> list[dict[str, Any]]:
        """All objects of a kind."""
        return [one for path, one in self.there.items() if path.split("/")[-2] == plural]

    def add_pod(self, name: str, job: dict[str, Any], **status: Any) -> dict[str, Any]:
        """A pod of a Job's, as its controller would make it."""
        template = job["spec"]["template"]
        pod = {"metadata": {**template["metadata"], "name": name}, "spec": template["spec"], "status": status}
        pod["metadata"]["ownerReferences"] = [{"name": job["metadata"]["name"]}]
        return self._add(f"/api/v1/namespaces/mine/pods/{name}", pod)

    def _add(self, path: str, one: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        meta = one["metadata"]
        meta |= {"uid": f"uid-{self._count}", "creationTimestamp": f"2026-11-21T08:00:{self._count % 60:02}Z"}
        self.there[path] = one
        return one

    def _get(self, request: Request) -> Answer:
        if request.path.endswith("/log"):
            return 200, iter([self.logs.get(request.path.split("/")[-2], b"")])
        if request.query.get("watch"):
            return 200, iter([b'{"type": "MODIFIED"}\n'])
        if found := self.there.get(request.path):
            return 200, found
        if request.path.split("/")[-2] == "namespaces" or request.path.split("/")[-3] != "namespaces":
            return refusal(404, "NotFound", f"{request.path} not found")
        wanted = set(request.query.get("labelSelector", "()").partition("(")[2].rstrip(")").split(","))
        items = [
            one
            for path, one in self.there.items()
            if path.rpartition("/")[0] == request.path
            and one["metadata"].get("labels", {}).get("nemo-run/job") in wanted
        ]
        return 200, {"metadata": {"resourceVersion": "7"}, "items": items}

    def _post(self, request: Request) -> Answer:
        path = f"{request.path}/{request.body['metadata']['name']}"
        if path in self.there:
            return refusal(409, "AlreadyExists", f"{path} already exists")
        return 201, self._add(path, request.body)

    def _patch(self, request: Request) -> Answer:
        if request.path not in self.there:
            return refusal(404, "NotFound", "not found")
        self.there[request.path]["metadata"] |= request.body["metadata"]
        return 200, self.there[request.path]

    def _delete(self, request: Request) -> Answer:
        if request.path not in self.there:
            return refusal(404, "NotFound", "not found")
        gone = self.there.pop(request.path)
        for path, one in list(self.there.items()):  # as the garbage collector does it
            if gone["metadata"]["name"] in [o["name"] for o in one["metadata"].get("ownerReferences", ())]:
                self.there.pop(path)
        return 200, {}
