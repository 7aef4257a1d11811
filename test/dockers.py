"""The Docker Engine that tests use, and what they leave on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from contracts.executor import wait_until

#: Made by `make services`.
IMAGE = "debian-py:12"
TESTS = Path(__file__).parent


def lacking() -> str:
    """What there is not of an Engine with the image; empty if all is there."""
    try:
        import docker
    except ImportError:
        return "Docker's library: pip install 'nemo_run[docker]'"
    try:
        client = docker.from_env()
    except docker.errors.DockerException as exc:
        return f"a Docker Engine (`make services` starts one): {exc}"
    try:
        client.images.get(IMAGE)
    except docker.errors.ImageNotFound:
        return f"the image {IMAGE} (`make services` makes it)"
    finally:
        client.close()
    return ""


def skip_without_engine() -> None:
    """Skip where there is no Engine; where everything must run, fail."""
    if problem := lacking():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"needs {problem}")


class Containers:
    """The containers and networks of one test's jobs, which lie below its folder."""

    def __init__(self, client: Any, folder: Path) -> None:
        self.client = client
        self.folder = folder

    def all(self) -> list[Any]:
        """Its containers, whatever their state."""
        found = self.client.containers.list(
            all=True, filters={"label": "nemo_run.token"}, ignore_removed=True
        )
        return [each for each in found if self._is_ours(each.labels)]

    def networks(self) -> list[Any]:
        """Its groups' networks."""
        return [
            each
            for each in self.client.networks.list(filters={"label": "nemo_run.token"})
            if self._is_ours(each.attrs["Labels"])
        ]

    def processes(self, word: str) -> list[int]:
        """The processes, in whatever container on this machine, that have this among their arguments."""
        return [p.pid for p in psutil.process_iter(["cmdline"]) if word in (p.info["cmdline"] or ())]

    def remove(self) -> None:
        """Leave nothing behind."""
        import docker.errors

        for container in self.all():
            try:
                container.remove(force=True)
            except docker.errors.APIError as exc:
                if exc.status_code not in (404, 409):  # it is gone, or going
                    raise
        for network in self.networks():
            try:
                network.remove()
            except docker.errors.APIError as exc:
                if exc.status_code not in (403, 404):  # see assert_gone
                    raise

    def assert_gone(self, within: float = 0.0) -> None:
        """Nothing of the test's jobs is left on the Engine, after some seconds at most.

        But for networks that it refuses to remove though no container is in them: it may keep count of one
        that is gone (https://github.com/moby/moby/issues/42119).
        """
        import docker.errors

        deadline = time.monotonic() + within
        while (left := (self.all(), self.networks())) != ([], []) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left[0] == []
        for network in left[1]:
            with pytest.raises(docker.errors.APIError, match="has active endpoints"):
                network.remove()

    def _is_ours(self, labels: dict[str, str]) -> bool:
        return labels.get("nemo_run.job_dir", "").startswith(f"{self.folder}/")


def stop_keepers(folder: Path) -> None:
    """End the keepers of a test's jobs."""
    for process in psutil.process_iter(["cmdline"]):
        try:
            ours = any("docker_job import keep" in word for word in process.info["cmdline"] or ())
            if ours and process.cwd().startswith(f"{folder}/"):
                process.kill()
        except psutil.Error:
            continue


@contextlib.contextmanager
def running_registry(folder: Path) -> Iterator[str]:
    """A registry of the test's own, with its images in a folder: its address."""
    if not (program := shutil.which("docker-registry")):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = f"127.0.0.1:{port}"
    (folder / "registry.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/kept}}}}\n"
        f"http: {{addr: '{where}'}}\n"
    )
    with subprocess.Popen([program, "serve", str(folder / "registry.yml")]) as process:
        try:
            wait_until(lambda: _answers(port), "the registry answers")
            yield where
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
