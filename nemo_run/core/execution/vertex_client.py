"""Google Cloud as this process talks to it, by REST: the one place that calls google-auth."""

from __future__ import annotations

import functools
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from nemo_run.core import runner
from nemo_run.errors import AuthenticationError, MissingDependencyError, NotFoundError, SubmitError

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
#: Seconds to wait for a connection, and for an answer.
_PATIENCE = (10, 60)
#: Seconds before each new try where the answer is "not now", unless it says how long.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
_NOT_NOW = (429, 503)
#: A connection that cannot be made is given up sooner: most likely the address is wrong.
_LONGEST_CUT = 1.0
#: What may be cut off on its way there and back, and asked once more without harm.
_HARMLESS = ("GET", "HEAD", "PUT", "DELETE")
_LOGIN = "run `gcloud auth application-default login`, or name a key's file by GOOGLE_APPLICATION_CREDENTIALS"
_SESSIONS = threading.local()


class Refusal(SubmitError):
    """It answered, and it said no; `status` is HTTP's."""

    def __init__(self, message: str, *, output: str, status: int, wait: float | None = None) -> None:
        super().__init__(message, output=output)
        self.status = status
        #: Seconds after which it may be asked again, where it says so.
        self.wait = wait


def check_credentials() -> str:
    """Find out whether this machine has any, and for which project; that may be none.

    Raises:
        AuthenticationError: it has none.
        MissingDependencyError: google-auth is not installed.
    """
    return str(_credentials("https://")[1] or "")


def _credentials(url: str) -> tuple[Any, Any]:
    """Credentials and their project; a server that is reached without encryption is told none."""
    try:
        import google.auth
        import google.auth.credentials
        import google.auth.exceptions
        import requests  # noqa: F401
    except ImportError as exc:
        pip = 'pip install "nemo_run[vertex]"'
        raise MissingDependencyError(f"VertexExecutor needs google-auth: {pip}") from exc
    if url.startswith("http://"):
        anonymous: Any = google.auth.credentials.AnonymousCredentials
        return anonymous(), None
    try:
        found: tuple[Any, Any] = google.auth.default(scopes=[_SCOPE])
    except google.auth.exceptions.GoogleAuthError as exc:
        raise AuthenticationError(f"there are no credentials for Google Cloud here: {_LOGIN}") from exc
    return found


#: They refresh themselves, so that one pair of them is enough.
_known_credentials = functools.cache(_credentials)


def _session(url: str) -> Any:
    """This thread's session with a server; one that was made before a fork is the other process's."""
    credentials, _ = _known_credentials(url.partition("//")[0] + "//")
    key = os.getpid(), id(credentials)
    if getattr(_SESSIONS, "key", None) != key:
        from google.auth.transport import requests

        kind: Any = requests.AuthorizedSession
        _SESSIONS.key, _SESSIONS.session = key, kind(credentials)
    return _SESSIONS.session


def ask(
    method: str,
    url: str,
    *,
    params: Mapping[str, Any] | None = None,
    body: Any = None,
    data: IO[bytes] | bytes | None = None,
    stream: bool = False,
) -> Any:
    """What a server answers: a requests.Response that says yes; "not now" is asked again after a while.

    Raises:
        Refusal: it says no; `output` holds its words.
        SubmitError: it does not answer.
        AuthenticationError: nobody says who we are, or what says so has expired.
    """
    harmless = method in _HARMLESS or url.endswith(":list")
    for pause in _PAUSES:
        try:
            return _once(method, url, params, body, data, stream)
        except SubmitError as exc:
            cut_off = not isinstance(exc, Refusal)
            if not (is_not_now(exc) or (cut_off and harmless and pause <= _LONGEST_CUT)):
                raise
            rest(exc, pause)
            if data is not None and not isinstance(data, bytes):
                data.seek(0)
    return _once(method, url, params, body, data, stream)


def is_not_now(error: SubmitError) -> bool:
    """Whether a refusal is one for the moment alone."""
    return isinstance(error, Refusal) and error.status in _NOT_NOW


def rest(error: SubmitError, pause: float) -> None:
    """Wait before the next try: as long as it was said, else about so long."""
    told = error.wait if isinstance(error, Refusal) else None
    time.sleep(pause * random.uniform(0.8, 1.2) if told is None else told)


def _once(method: str, url: str, params: Any, body: Any, data: Any, stream: bool) -> Any:
    session = _session(url)
    import requests
    from google.auth.exceptions import GoogleAuthError, TransportError

    try:
        answer = session.request(
            method, url, params=params, json=body, data=data, stream=stream, timeout=_PATIENCE
        )
    except (requests.RequestException, TransportError) as exc:
        host = "/".join(url.split("/")[:3])
        raise SubmitError(
            f"{host} does not answer: {exc}; check the network, and that the region and the endpoints are"
            " right",
            output=str(exc),
        ) from exc
    except GoogleAuthError as exc:
        raise AuthenticationError(f"Google Cloud takes our credentials no longer ({exc}): {_LOGIN}") from exc
    if answer.status_code >= 400:
        raise _refusal(answer)
    return answer


def _refusal(answer: Any) -> Refusal:
    """An answer that says no, in Google's words."""
    try:
        error = answer.json()["error"]
        said = f"{error['message']} ({error['status']})" if "status" in error else str(error["message"])
    except (ValueError, LookupError, TypeError):
        said = answer.text.strip()[:500] or answer.reason
    answer.close()
    hint = f"; {_LOGIN}" if answer.status_code == 401 else ""
    hint = "; have that role granted to who you are there" if answer.status_code == 403 else hint
    host = "/".join(answer.url.split("/")[2:3])
    told = answer.headers.get("Retry-After", "")
    wait = float(told) if told.isdecimal() else None
    return Refusal(f"{host} refuses: {said}{hint}", output=said, status=answer.status_code, wait=wait)


# --- jobs -----------------------------------------------------------------------------------------------


class Jobs:
    """The custom jobs of one project and region.

    Args:
        endpoint: Where they are asked for.
        parent: "projects/…/locations/…".
    """

    def __init__(self, endpoint: str, parent: str) -> None:
        self._url = f"{endpoint}/v1/{parent}/customJobs"
        self._root = f"{endpoint}/v1/"

    def create(self, job: Mapping[str, Any], label: str) -> str:
        """Submit one; its name. By a label that no other has it is not submitted twice.

        Raises:
            SubmitError: it is refused, or nobody knows whether it arrived.
        """
        for pause in _PAUSES:
            try:
                return str(_once("POST", self._url, None, job, None, False).json()["name"])
            except Refusal as exc:
                if not is_not_now(exc):
                    raise
                rest(exc, pause)
            if there := next(self.list(label, job["labels"][label]), None):  # it was taken all the same
                return str(there["name"])
        return str(_once("POST", self._url, None, job, None, False).json()["name"])

    def get(self, name: str) -> dict[str, Any] | None:
        """One as it is now; None if there is none."""
        try:
            found: dict[str, Any] = ask("GET", self._root + name).json()
        except Refusal as exc:
            if exc.status == 404:
                return None
            raise
        return found

    def list(self, label: str, value: str) -> Iterator[dict[str, Any]]:
        """All that have a label, the newest first."""
        params = {"filter": f"labels.{label}={value}", "pageSize": "100"}
        while True:
            page = ask("GET", self._url, params=params).json()
            yield from page.get("customJobs", ())
            if not (token := page.get("nextPageToken")):
                return
            params["pageToken"] = token

    def look(self) -> None:
        """Find out whether we are let in."""
        ask("GET", self._url, params={"pageSize": "1"}).close()

    def cancel(self, name: str) -> None:
        """Ask for its end; harmless if it has ended or is gone."""
        try:
            ask("POST", f"{self._root}{name}:cancel", body={}).close()
        except Refusal as exc:
            # 400: it is in no state to be cancelled.
            if exc.status not in (400, 404):
                raise


# --- files ----------------------------------------------------------------------------------------------


class Bucket:
    """One bucket of Cloud Storage.

    Args:
        endpoint: Where it is asked for.
        name: Its name.
    """

    def __init__(self, endpoint: str, name: str) -> None:
        self._endpoint, self.name = endpoint, name
        self._url = f"{endpoint}/storage/v1/b/{quote(name, safe='')}"

    def look(self) -> None:
        """Find out whether it is there, and we are let in.

        Raises:
            NotFoundError: it is not.
        """
        try:
            ask("GET", f"{self._url}/o", params={"maxResults": "1"}).close()
        except Refusal as exc:
            if exc.status == 404:
                raise NotFoundError("bucket", self.name) from exc
            raise

    def has(self, name: str) -> bool:
        """Whether there is an object of this name."""
        try:
            ask("GET", self._object(name), params={"fields": "name"}).close()
        except Refusal as exc:
            if exc.status == 404:
                return False
            raise
        return True

    def put(self, name: str, data: IO[bytes] | bytes) -> None:
        """Write an object, anew if it is there."""
        url = f"{self._endpoint}/upload/storage/v1/b/{quote(self.name, safe='')}/o"
        try:
            ask("POST", url, params={"uploadType": "media", "name": name}, data=data).close()
        except Refusal as exc:
            what = f"gs://{self.name}/{name} cannot be written: {exc}"
            raise Refusal(what, output=exc.output, status=exc.status) from exc

    def fetch(self, prefix: str, into: Path) -> None:
        """Copy all objects below a prefix into a folder; what would lie elsewhere is left behind."""
        for name in self._names(prefix):
            parts = name.removeprefix(prefix).split("/")
            if parts[-1] and not {"", ".", ".."} & set(parts) and "\0" not in name:
                self._fetch(name, into.joinpath(*parts))

    def _names(self, prefix: str) -> Iterator[str]:
        params = {"prefix": prefix, "fields": "items(name),nextPageToken"}
        while True:
            page = ask("GET", f"{self._url}/o", params=params).json()
            yield from (item["name"] for item in page.get("items", ()))
            if not (token := page.get("nextPageToken")):
                return
            params["pageToken"] = token

    def _fetch(self, name: str, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        answer = ask("GET", self._object(name), params={"alt": "media"}, stream=True)
        with answer, open(temporary, "wb", opener=runner.private) as file:
            for chunk in answer.iter_content(1 << 18):
                file.write(chunk)
        os.replace(temporary, path)

    def _object(self, name: str) -> str:
        return f"{self._url}/o/{quote(name, safe='')}"


# --- logs -----------------------------------------------------------------------------------------------


def log_entries(endpoint: str, project: str, wanted: str, since: str = "") -> Iterator[dict[str, Any]]:
    """Entries of Cloud Logging, the oldest first.

    Args:
        endpoint: Where they are asked for.
        project: Whose they are.
        wanted: The filter.
        since: A time, as an entry has it; older ones are left out.
    """
    body = {
        "resourceNames": [f"projects/{project}"],
        "filter": wanted + (f' AND timestamp>="{since}"' if since else ""),
        "orderBy": "timestamp asc",
        "pageSize": 1000,
    }
    while True:
        page = ask("POST", f"{endpoint}/v2/entries:list", body=body).json()
        yield from page.get("entries", ())
        if not (token := page.get("nextPageToken")):
            return
        body["pageToken"] = token
