"""An API server of Kubernetes as this process talks to it: the one place that calls its client library.

Objects go and come as plain dicts. The library reads kubeconfigs and knows how to log in; requests are made
by its connection pool, which all of its versions have.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from nemo_run.errors import ConfigError, MissingDependencyError, SubmitError, suggestion

#: Seconds to reach a server, and to wait for its answer.
_CONNECT, _ANSWER = 5.0, 30.0
#: Where a pod finds who it is.
_IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CONNECTING = threading.Lock()


class Place(NamedTuple):
    """Where jobs are, as others find it again: whatever becomes of the current context meanwhile."""

    #: The kubeconfig, or several as KUBECONFIG names them; empty within a cluster.
    config: str
    context: str
    namespace: str


class ApiError(SubmitError):
    """A server said no, or nothing: `status` is HTTP's, 0 for no answer; `reason` is its own short word."""

    def __init__(self, message: str, *, output: str = "", status: int = 0, reason: str = "") -> None:
        super().__init__(message, output=output or message)
        self.status = status
        self.reason = reason


# --- where ----------------------------------------------------------------------------------------------


def locate(context: str | None, namespace: str | None) -> Place:
    """The place that is meant; only files are read.

    Raises:
        ConfigError: there is no such context, or nothing says where a cluster is.
    """
    text = os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [Path(part).expanduser().absolute() for part in text.split(os.pathsep) if part]
    there = [path for path in files if path.is_file()]
    if not there:
        return _locate_inside(context, namespace, files)
    current, contexts = _read(there)
    name = context or current
    if name not in contexts:
        what = f"context {name!r}" if name else "current context"
        known = suggestion(name, sorted(contexts))
        raise ConfigError(
            f"{os.pathsep.join(map(str, there))} has no {what}{known}"
            + (
                ""
                if name
                else "; choose one by `kubectl config use-context`, or give KubernetesExecutor.context"
            )
        )
    own = namespace or contexts[name] or "default"
    return Place(os.pathsep.join(map(str, there)), name, own)


def _locate_inside(context: str | None, namespace: str | None, files: list[Path]) -> Place:
    if not os.environ.get("KUBERNETES_SERVICE_HOST"):
        raise ConfigError(
            f"no Kubernetes cluster is configured: there is no {' or '.join(map(str, files))}. Get a"
            " kubeconfig from whoever runs the cluster, or by its cloud's command; set KUBECONFIG if it lies"
            " elsewhere"
        )
    if context:
        raise ConfigError(
            f"KubernetesExecutor.context is {context!r}, and there is no kubeconfig to look it up in"
        )
    with contextlib.suppress(OSError):
        namespace = namespace or (_IN_CLUSTER / "namespace").read_text().strip()
    return Place("", "", namespace or "default")


def _read(files: list[Path]) -> tuple[str, dict[str, str]]:
    """The current context, and the namespace of each context; what comes first in several files wins."""
    import yaml

    current, contexts = "", dict[str, str]()
    for path in files:
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            current = current or config.get("current-context") or ""
            for each in config.get("contexts") or ():
                contexts.setdefault(each["name"], (each.get("context") or {}).get("namespace") or "")
        except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError) as exc:
            raise ConfigError(f"the kubeconfig {path} cannot be read: {exc}") from exc
    return current, contexts


def namespace_of(context: str | None, namespace: str | None) -> str:
    """The namespace that jobs go to, as far as that is known without a cluster."""
    try:
        return namespace or locate(context, None).namespace
    except ConfigError:
        return "default"


# --- connecting -----------------------------------------------------------------------------------------


def connect(place: Place) -> Cluster:
    """The cluster of a place; one client per process serves all its jobs.

    Raises:
        MissingDependencyError: the client's library is not installed.
        SubmitError: the kubeconfig cannot be used.
    """
    with _CONNECTING:
        return _cluster(place.config, place.context)


@functools.cache
def _cluster(config: str, context: str) -> Cluster:
    cluster = Cluster(config, context)
    cluster.log_in()
    return cluster


class Cluster:
    """One API server, as one context knows it; any thread may ask it."""

    def __init__(self, config: str, context: str) -> None:
        self.config, self.context = config, context
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The library's own client."""
        return self._client

    @property
    def url(self) -> str:
        """Where the server is."""
        return str(self._client.configuration.host)

    def log_in(self) -> None:
        """Read who we are, anew.

        Raises:
            MissingDependencyError: the client's library is not installed.
            SubmitError: the kubeconfig cannot be used.
        """
        try:
            from kubernetes import client, config
        except ImportError as exc:
            raise MissingDependencyError(
                'KubernetesExecutor needs the Kubernetes client: pip install "nemo_run[kubernetes]"'
            ) from exc
        settings = client.Configuration()
        settings.connection_pool_maxsize = 200
        try:
            if self.config:
                config.load_kube_config(self.config, self.context or None, settings, persist_config=False)
            else:
                config.load_incluster_config(settings)
        except Exception as exc:  # login programs and broken files raise whatever they like
            where = (
                f"context {self.context!r} of {self.config}" if self.config else "this pod's service account"
            )
            raise ApiError(
                f"{where} cannot be used: {str(exc) or type(exc).__name__}; try `kubectl get pods`"
            ) from exc
        self._client = client.ApiClient(settings)

    # --- asking -----------------------------------------------------------------------------------------

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """An object or a list of objects.

        Raises:
            ApiError: the server refuses, or does not answer.
        """
        return self._ask("GET", path, query)

    def post(self, path: str, body: Mapping[str, Any], **query: Any) -> dict[str, Any]:
        """Make an object; raises as `get`."""
        return self._ask("POST", path, query, body)

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change parts of an object; raises as `get`."""
        return self._ask("PATCH", path, {}, body)

    def delete(self, path: str, *, grace: int | None = None) -> None:
        """Remove an object, after all that belongs to it, if it is there; raises as `get`."""
        options: dict[str, Any] = {"propagationPolicy": "Foreground"}
        with absent_is_fine():
            self._ask("DELETE", path, {}, options if grace is None else {"gracePeriodSeconds": grace})

    def items(self, path: str, **query: Any) -> tuple[list[dict[str, Any]], str]:
        """A list of objects, and its version, from which it can be watched; raises as `get`."""
        answer = self.get(path, **query)
        return answer.get("items") or [], answer["metadata"].get("resourceVersion", "")

    @functools.cached_property
    def version(self) -> tuple[int, int]:
        """The server's version; raises as `get`."""
        found = self.get("/version")
        numbers = [re.match(r"\d*", str(found.get(part, "")))[0] for part in ("major", "minor")]  # type: ignore[index]
        return int(numbers[0] or 1), int(numbers[1] or 0)

    def _ask(
        self, method: str, path: str, query: Mapping[str, Any], body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        with self._answer(method, path, query, body, _ANSWER) as response:
            data = self._read(response)
        try:
            answer: dict[str, Any] = json.loads(data or b"{}")
        except ValueError as exc:
            shown = data[:200].decode(errors="replace")
            raise ApiError(f"what answers at {self.url} is no Kubernetes: {shown}") from exc
        return answer

    def _read(self, response: Any) -> bytes:
        return b"".join(self._chunks(response))

    @contextlib.contextmanager
    def stream(self, path: str, patience: float, **query: Any) -> Iterator[Iterator[bytes]]:
        """The bytes of an answer as they come; it is cut when nothing has come for so many seconds.

        Raises:
            ApiError: the server refuses, or the connection is cut (then `status` is 0), also while reading.
        """
        with self._answer("GET", path, query, None, patience) as response:
            yield self._chunks(response)

    def _chunks(self, response: Any) -> Iterator[bytes]:
        import urllib3

        try:
            yield from response.stream(1 << 16)
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            raise self._silence(exc) from exc

    @contextlib.contextmanager
    def _answer(
        self, method: str, path: str, query: Mapping[str, Any], body: Any, patience: float
    ) -> Iterator[Any]:
        response = self._send(method, path, query, body, patience)
        if response.status == 401:  # what was read of who we are may be outdated
            response.close()
            self.log_in()
            response = self._send(method, path, query, body, patience)
        try:
            if response.status >= 400:
                raise self._refusal(method, path, response)
            yield response
        finally:
            response.close()
            response.release_conn()

    def _send(self, method: str, path: str, query: Mapping[str, Any], body: Any, patience: float) -> Any:
        import urllib3

        settings = self._client.configuration
        headers = {**self._client.default_headers, "Accept": "application/json"}
        try:
            for each in settings.auth_settings().values():
                headers[each["key"]] = each["value"]
        except Exception as exc:  # a login program that cannot log us in
            raise ApiError(f"cannot log in to the cluster at {self.url}: {exc}") from exc
        if body is not None:
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            headers["Content-Type"] = kind
        given = {name: _word(value) for name, value in query.items() if value not in (None, "")}
        url = self.url + path + ("?" + urlencode(given) if given else "")
        try:
            return self._client.rest_client.pool_manager.request(
                method,
                url,
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                preload_content=False,
                redirect=False,
                retries=False,
                timeout=urllib3.Timeout(connect=_CONNECT, read=patience),
            )
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as exc:
            raise self._silence(exc) from exc

    # --- what goes wrong --------------------------------------------------------------------------------

    def _silence(self, exc: Exception) -> ApiError:
        why = (
            re.sub(r"<urllib3\.[^>]*>:? ?|HTTPS?Connection(?:Pool)?\([^)]*\):? ?", "", str(exc))
            or type(exc).__name__
        )
        return ApiError(
            f"no Kubernetes answers at {self.url}: {why}; is the cluster up, and does"
            f" `kubectl {f'--context {self.context} ' if self.context else ''}get nodes` work?",
            output=why,
        )

    def _refusal(self, method: str, path: str, response: Any) -> ApiError:
        data = self._read(response)
        try:
            said = json.loads(data)
            words, reason = str(said["message"]), str(said.get("reason", ""))
        except (ValueError, KeyError, TypeError):
            words, reason = data[:500].decode(errors="replace").strip(), ""
        status = int(response.status)
        words = words or f"HTTP status {status}"
        return ApiError(words + self._hint(status, words), output=words, status=status, reason=reason)

    def _hint(self, status: int, words: str) -> str:
        if status == 401:
            return (
                f" (401): the cluster at {self.url} does not take context {self.context!r} for anybody it"
                " knows; log in again, or get a new kubeconfig"
            )
        if status == 403 and "quota" not in words:
            return "; ask whoever runs the cluster for that right, or give another namespace or context"
        if status == 404 and words.startswith("namespaces "):
            return "; make it, or give KubernetesExecutor another namespace"
        return ""


@contextlib.contextmanager
def absent_is_fine() -> Iterator[None]:
    """What is not there needs not be removed."""
    try:
        yield
    except ApiError as exc:
        if exc.status != 404:
            raise


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


#: Under which paths objects of each kind are found.
_PATHS = {
    "Job": ("apis/batch/v1", "jobs"),
    "JobSet": ("apis/jobset.x-k8s.io/v1alpha2", "jobsets"),
    "Pod": ("api/v1", "pods"),
    "Secret": ("api/v1", "secrets"),
    "Service": ("api/v1", "services"),
    "Event": ("api/v1", "events"),
}


def path_of(kind: str, namespace: str, name: str = "") -> str:
    """The path of an object, or of all objects of its kind."""
    group, plural = _PATHS[kind]
    return f"/{group}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")
