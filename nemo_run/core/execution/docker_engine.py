"""A Docker Engine as this process talks to it: the one place that calls Docker's library."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import shutil
import sys
import tarfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from nemo_run.errors import MissingDependencyError, SubmitError

logger = logging.getLogger(__name__)

#: Where an Engine listens unless told otherwise.
DEFAULT_URL = "unix:///var/run/docker.sock"
#: Seconds after which a question counts as unanswered.
PATIENCE = 120
_CONNECTING = threading.Lock()
#: Seconds for which the word that a container had no memory left may come after that of its end.
_LATE = 0.5
#: The labels by which a job's containers are found.
TOKEN, JOB_DIR, ROLE, ATTEMPT = "nemo_run.token", "nemo_run.job_dir", "nemo_run.role", "nemo_run.attempt"


class EngineRefusal(SubmitError):
    """The Engine answered, and it said no; `status` is HTTP's."""

    def __init__(self, message: str, *, output: str, status: int) -> None:
        super().__init__(message, output=output)
        self.status = status


def address(base_url: str | None) -> str:
    """Which Engine is meant."""
    return base_url or os.environ.get("DOCKER_HOST") or DEFAULT_URL


def is_socket(url: str) -> bool:
    """Whether an Engine is reached by a file of this machine, and so most likely sees its files."""
    return url.startswith(("unix:", "http+unix:"))


def socket_owner(url: str) -> int | None:
    """Whose the socket is; None if there is none."""
    try:
        return os.stat(_path(url)).st_uid
    except OSError:
        return None


def connect(url: str) -> Engine:
    """The Engine at an address; one client per process serves all its jobs.

    Raises:
        MissingDependencyError: Docker's library is not installed.
        SubmitError: no Engine answers.
    """
    with _CONNECTING:  # a cache alone would make one for each thread that is early
        return _engine(url)


@functools.cache
def _engine(url: str) -> Engine:
    return Engine(url)


@contextlib.contextmanager
def _answered(url: str, deed: str) -> Iterator[None]:
    """Map what Docker's library and those below it raise."""
    import requests
    from docker import errors

    try:
        yield
    except errors.APIError as exc:
        said = str(exc.explanation or exc)
        raise EngineRefusal(f"{deed}: {said}", output=said, status=exc.status_code or 500) from exc
    except errors.InvalidArgument:
        raise
    except (errors.DockerException, requests.RequestException, OSError) as exc:
        raise SubmitError(_unreachable(url, exc), output=str(exc)) from exc


def _path(url: str) -> str:
    """The file of an Engine's socket."""
    return "/" + url.removeprefix("http+").removeprefix("unix:").lstrip("/")


def _unreachable(url: str, why: object) -> str:
    elsewhere = "or name another by base_url or DOCKER_HOST"
    if is_socket(url) and not os.path.exists(_path(url)):
        start = "`sudo systemctl start docker`, or Docker Desktop"
        return f"no Docker Engine is at {url}: start it ({start}), {elsewhere}"
    if is_socket(url) and not os.access(_path(url), os.R_OK | os.W_OK):
        return (
            f"no permission to use the Docker Engine at {url}: join its group"
            f" (`sudo usermod -aG docker $USER`, then log in again), {elsewhere}"
        )
    return f"the Docker Engine at {url} does not answer: {why}; see that it runs, {elsewhere}"


class Engine:
    """One Engine: what jobs need of it, in its own words and with our errors."""

    def __init__(self, url: str) -> None:
        try:
            import docker
            from docker.utils import kwargs_from_env
        except ImportError as exc:
            raise MissingDependencyError(
                'DockerExecutor needs Docker\'s library: pip install "nemo_run[docker]"'
            ) from exc
        self.url = url
        if is_socket(url) and not os.access(_path(url), os.R_OK | os.W_OK):
            raise SubmitError(_unreachable(url, ""), output=f"{_path(url)} cannot be opened")
        with _answered(url, "connecting"):
            options = kwargs_from_env(environment={**os.environ, "DOCKER_HOST": url})
            self._client = docker.DockerClient(timeout=PATIENCE, **options)
        self._api = self._client.api
        self._news = _News(self._api)
        self._making: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        #: The images this process has pushed: by tag and name the digest that the registry knows it by.
        self.pushed: dict[tuple[str, str], str] = {}

    def making(self, tag: str) -> threading.Lock:
        """Held by whoever builds or pushes this image."""
        with _CONNECTING:
            return self._making[tag]

    @functools.cached_property
    def id(self) -> str:
        """What tells this Engine from all others, also at the same address."""
        with _answered(self.url, "asking the Engine who it is"):
            return str(self._api.info()["ID"])

    def about(self) -> dict[str, Any]:
        """What it says of itself, as `docker info` shows it."""
        with _answered(self.url, "asking the Engine about itself"):
            found: dict[str, Any] = self._api.info()
            return found

    # --- images -----------------------------------------------------------------------------------------

    def require_image(self, image: str) -> None:
        """Have an image on the Engine, pulled if it is not there.

        Raises:
            SubmitError: it is not there and cannot be pulled.
        """
        if not self.has_image(image):
            self._pull(image)

    def has_image(self, image: str) -> bool:
        """Whether an image is there."""
        try:
            with _answered(self.url, f"looking for image {image!r}"):
                self._api.inspect_image(image)
        except EngineRefusal as exc:
            if exc.status != 404:
                raise
            return False
        return True

    def inspect_image(self, image: str) -> dict[str, Any]:
        """All about an image that is there: Id, Config, RepoDigests, …"""
        with _answered(self.url, f"looking at image {image!r}"):
            found: dict[str, Any] = self._api.inspect_image(image)
            return found

    def check_image(self, image: str) -> None:
        """Find out whether an image that is not there could be pulled.

        Raises:
            SubmitError: it could not.
        """
        try:
            with _answered(self.url, f"asking for image {image!r}"):
                self._api.inspect_distribution(image)
        except SubmitError as exc:
            raise _no_image(image, exc.output) from exc

    def build(self, context: IO[bytes], *, dockerfile: str, tag: str) -> Iterator[dict[str, Any]]:
        """Build an image from a tar; gives the Engine's events, of which one may be an `error`."""
        with _answered(self.url, "the Engine cannot build the image"):
            yield from self._api.build(
                fileobj=context, custom_context=True, dockerfile=dockerfile, tag=tag, rm=True, forcerm=True,
                decode=True,
            )  # fmt: skip

    def push(self, tag: str, name: str) -> Iterator[dict[str, Any]]:
        """Push an image by another name; gives the Engine's events, of which one may be an `error`."""
        from docker.utils import parse_repository_tag

        repository, version = parse_repository_tag(name)
        with _answered(self.url, f"pushing {name}"):
            self._api.tag(tag, repository, version or "latest")
            yield from self._api.push(repository, tag=version or "latest", stream=True, decode=True)

    def load(self, archive: IO[bytes]) -> Iterator[dict[str, Any]]:
        """Load what `docker save` wrote; gives the Engine's events, of which one may be an `error`."""
        with _answered(self.url, "the Engine cannot load it"):
            yield from self._api.load_image(archive)

    def _pull(self, image: str) -> None:
        from docker.utils import parse_repository_tag

        repository, tag = parse_repository_tag(image)
        progress = _PullProgress(image)
        try:
            with _answered(self.url, "pulling"):
                for event in self._api.pull(repository, tag=tag or "latest", stream=True, decode=True):
                    progress.show(event)
        except SubmitError as exc:
            raise _no_image(image, exc.output) from exc
        if progress.error:
            raise _no_image(image, progress.error)

    # --- containers -------------------------------------------------------------------------------------

    def create(self, kwargs: Mapping[str, Any]) -> None:
        """Make a container, or find that it has been made already for the same job.

        Raises:
            SubmitError: the Engine refuses, or another container has that name.
        """
        import docker.errors

        labels = kwargs["labels"]
        try:
            with _answered(self.url, "the Engine refuses the container"):
                self._client.containers.create(**kwargs)
        except EngineRefusal as exc:
            if exc.status != 409 or not (there := self.inspect(kwargs["name"])):
                raise
            if any(there["Config"]["Labels"].get(name) != value for name, value in labels.items()):
                raise
        except (TypeError, ValueError, docker.errors.InvalidArgument) as exc:  # by additional_kwargs
            problem = f"Docker's library refuses the container: {exc}"
            raise EngineRefusal(problem, output=str(exc), status=400) from exc

    def inspect(self, name: str) -> dict[str, Any] | None:
        """All about a container; None if there is none."""
        try:
            with _answered(self.url, f"looking at {name}"):
                found: dict[str, Any] = self._api.inspect_container(name)
                return found
        except EngineRefusal as exc:
            if exc.status == 404:
                return None
            raise

    def saw_too_much_memory(self, name: str, since: float) -> bool:
        """Whether a container was ended for its memory; the Engine may hear of that after the end itself."""
        filters = {"container": [name], "event": ["oom"]}
        with (
            _answered(self.url, f"looking at {name}"),
            contextlib.closing(
                self._api.events(since=f"{since:.6f}", until=f"{time.time() + _LATE:.6f}", filters=filters)
            ) as events,
        ):
            return any(True for _ in events)

    def containers(self, token: str | None = None, job_dir: str | None = None) -> list[dict[str, Any]]:
        """The containers of all jobs, or of one, as lists of containers tell of them."""
        self._news.take_note()
        wanted = [TOKEN if token is None else f"{TOKEN}={token}"]
        wanted += [] if job_dir is None else [f"{JOB_DIR}={job_dir}"]
        with _answered(self.url, "listing containers"):
            found: list[dict[str, Any]] = self._api.containers(all=True, filters={"label": wanted})
            return found

    def start(self, name: str) -> None:
        """Start a container; harmless if it runs."""
        try:
            with _answered(self.url, "the Engine cannot start the container"):
                self._api.start(name)
        except EngineRefusal as exc:
            if "device driver" not in exc.output:
                raise
            hint = "it knows of no GPU: install the NVIDIA Container Toolkit there, or leave num_gpus out"
            raise EngineRefusal(f"{exc}; {hint}", output=exc.output, status=exc.status) from exc

    def signal(self, name: str, number: str) -> None:
        """Send a signal; one that has ended or is gone needs none."""
        try:
            with _answered(self.url, f"sending {number}"):
                self._api.kill(name, signal=number)
        except EngineRefusal as exc:
            if exc.status not in (404, 409):
                raise

    def remove(self, name: str) -> None:
        """Remove a container, running or not; harmless if it is gone or going."""
        try:
            with _answered(self.url, f"removing {name}"):
                self._api.remove_container(name, force=True, v=True)
        except EngineRefusal as exc:
            if exc.status not in (404, 409):
                raise

    def log(self, name: str, *, follow: bool = False) -> Iterator[bytes]:
        """What a container printed, both streams in order; nothing once it is gone."""
        try:
            with _answered(self.url, f"reading what {name} printed"):
                chunks = self._api.logs(name, stdout=True, stderr=True, stream=True, follow=follow)
                yield from chunks
        except EngineRefusal as exc:
            if exc.status not in (404, 409):
                raise

    def stats(self, name: str) -> dict[str, Any]:
        """What a container uses now; empty when it is gone."""
        try:
            with _answered(self.url, f"measuring {name}"):
                used: dict[str, Any] = self._api.stats(name, stream=False, one_shot=True)
                return used
        except EngineRefusal:
            return {}

    # --- files ------------------------------------------------------------------------------------------

    def put(self, name: str, archive: bytes | Iterator[bytes]) -> None:
        """Unpack a tar into a container's root folder."""
        with _answered(self.url, "handing files to the container"):
            self._api.put_archive(name, "/", archive)

    def fetch(self, name: str, path: str, into: Path) -> None:
        """Copy a folder of a container below `into`; nothing if it has none.

        What is no plain file or folder, or would lie elsewhere, is left behind.
        """
        try:
            with _answered(self.url, f"fetching {path}"):
                chunks, _ = self._api.get_archive(name, path)
                with tarfile.open(fileobj=_Chunks(chunks), mode="r|") as archive:
                    for member in archive:
                        if _is_harmless(member):
                            _unpack(archive, member, into)
                for _ in chunks:  # what is read to its end lets go of its connection
                    pass
        except EngineRefusal as exc:
            if exc.status != 404:
                raise

    def has_path(self, name: str, path: str) -> bool:
        """Whether a container, running or not, has something at a path."""
        try:
            with _answered(self.url, f"looking for {path}"):
                chunks, _ = self._api.get_archive(name, path)
                for _ in chunks:  # what is read to its end lets go of its connection
                    pass
        except EngineRefusal as exc:
            if exc.status != 404:
                raise
            return False
        return True

    # --- networks ---------------------------------------------------------------------------------------

    def create_network(self, name: str, labels: Mapping[str, str]) -> bool:
        """Make a bridge network unless it is there; whether it was not."""
        try:
            problem = f"the Engine cannot make the network {name}"
            with self.making(f"network {name}"), _answered(self.url, problem):
                if any(network["Name"] == name for network in self._api.networks(names=[name])):
                    return False
                self._api.create_network(name, driver="bridge", labels=dict(labels), check_duplicate=True)
                return True
        except EngineRefusal as exc:
            if exc.status != 409:  # else another process was quicker
                raise
            return True

    def remove_network(self, name: str) -> None:
        """Remove a network; harmless if it is gone, or a container is in it or about to be."""
        for pause in (0.1, 0.3, 0.6, 0.0):
            try:
                with self.making(f"network {name}"), _answered(self.url, f"removing network {name}"):
                    # A container that was made but not started is in its network for nobody but this list.
                    if not self._api.containers(all=True, quiet=True, filters={"network": name}):
                        self._api.remove_network(name)
                return
            except EngineRefusal as exc:
                if exc.status not in (403, 404):
                    raise
                if "active endpoints" not in exc.output:  # it is gone, or one of the Engine's own
                    return
            time.sleep(pause)
        # It may keep count of one that is gone: https://github.com/moby/moby/issues/42119
        logger.warning(
            "the Docker Engine at %s does not remove the network %s, though no container is in it; once the"
            " Engine has been restarted: docker network rm %s",
            self.url,
            name,
            name,
        )

    def started(self) -> str:
        """When the Engine itself was started: it then makes its default network anew."""
        try:
            with _answered(self.url, "asking for the default network"):
                return str(self._api.inspect_network("bridge")["Created"])
        except EngineRefusal:  # an Engine may be told to have none
            return ""

    def await_news(self, seconds: float) -> None:
        """Wait until a container of any job has ended since the last list of them, or so long."""
        self._news.wait(seconds)


class _News:
    """Counts the ends of jobs' containers, by the Engine's events, from the first wait on."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._changed = threading.Condition()
        self._ends = self._seen = 0
        self._listening = False
        self._thread: threading.Thread | None = None

    def take_note(self) -> None:
        """A look at the containers begins: only later ends are news."""
        with self._changed:
            self._seen = self._ends

    def wait(self, seconds: float) -> None:
        """Until there is news; briefly while nobody listens, as an end may pass unheard."""
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._listen, daemon=True)
                self._thread.start()
            self._changed.wait_for(
                lambda: self._ends > self._seen, seconds if self._listening else min(seconds, 0.05)
            )

    def _listen(self) -> None:
        wanted = {"type": ["container"], "event": ["die", "destroy"], "label": [TOKEN]}
        with (
            contextlib.suppress(Exception),  # whatever ends this, the next wait begins it anew
            contextlib.closing(self._api.events(filters=wanted)) as events,
        ):
            self._tell(listening=True)
            for _ in events:
                self._tell(ends=1)
        self._tell(listening=False, ends=1)

    def _tell(self, *, ends: int = 0, listening: bool = True) -> None:
        with self._changed:
            self._listening = listening
            self._ends += ends
            self._changed.notify_all()


class _PullProgress:
    """Shows a pull's layers on standard error, a line every few seconds."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._layers: dict[str, tuple[int, int]] = {}
        self._shown = 0.0
        self.error = ""

    def show(self, event: Mapping[str, Any]) -> None:
        """Take note of one event."""
        self.error = str(event.get("error", self.error))
        detail = event.get("progressDetail") or {}
        if event.get("status") == "Downloading" and "total" in detail:
            self._layers[event["id"]] = (detail["current"], detail["total"])
        if time.monotonic() - self._shown > 2.0 and not self.error:
            self._shown = time.monotonic()
            done, total = (sum(sizes) / 1e6 for sizes in zip(*self._layers.values(), (0, 0), strict=True))
            size = f", {done:.0f} of {total:.0f} MB" if total else ""
            print(f"pulling {self._image}: {event.get('status', '')}{size}", file=sys.stderr, flush=True)


def _no_image(image: str, said: str) -> SubmitError:
    return SubmitError(
        f"image {image!r} is not on the Engine and cannot be pulled: {said}; check its name,"
        " `docker login` where it is private, or `docker build -t` it",
        output=said,
    )


class _Chunks(io.RawIOBase):
    """Pieces of bytes as a file that is read once."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            try:
                self._rest = next(self._chunks)
            except StopIteration:
                return 0
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _is_harmless(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file or folder below where it is unpacked, and nothing else."""
    parts = Path(member.name).parts
    return (member.isfile() or member.isdir()) and ".." not in parts and not os.path.isabs(member.name)


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    target = into / member.name
    if member.isdir():
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif source := archive.extractfile(member):
        with open(target, "wb") as sink:
            shutil.copyfileobj(source, sink)
        target.chmod(member.mode & 0o777)
