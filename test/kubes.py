"""The Kubernetes that tests use, and what they have on it; `make test-kubernetes` starts one for them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from programs import until

#: The folder of a cluster that `test/services/kubernetes/start` started; those that a person works with are
#: never asked.
VARIABLE = "NEMORUN_TEST_KUBERNETES"
IMAGE = "debian-py:12"
#: What each namespace has from the beginning.
_OWN = ("configmap/kube-root-ca.crt", "secret/default-token-")


class Cluster:
    """A cluster of one node, seen by its own `kubectl`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config"

    @property
    def url(self) -> str:
        """Where its API server is."""
        [found] = re.findall(r'server: "([^"]+)"', self.config.read_text())
        return str(found)

    def kubectl(self, *words: str, make: dict[str, Any] | None = None) -> str:
        """What it says to a command, which may be given an object to make."""
        argv = [f"{self.folder}/kubectl", f"--kubeconfig={self.config}", f"--cache-dir={self.folder}/cache"]
        done = subprocess.run(
            [*argv, *words],
            input=json.dumps(make) if make else "",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def lend_namespace(self) -> Iterator[Namespace]:
        """A namespace of its own, gone with all that is in it when it is given back."""
        namespace = Namespace(self, f"test-{secrets.token_hex(4)}")
        self.kubectl("create", "namespace", namespace.name)
        try:
            until(lambda: namespace.list("serviceaccounts"))  # before there is one, no pod can be made
            yield namespace
        finally:
            self.kubectl("delete", "namespace", namespace.name, "--wait=false")

    def make_image(self, name: str, *entrypoint: str) -> None:
        """Give the node an image: that of all tests, with a program of its own."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "nemo_run")
        with tempfile.TemporaryDirectory() as folder:
            image = f"{folder}/image.tar"
            script = Path(__file__).parent / "services" / "kubernetes" / "image.py"
            root = cache / "debian-py-12.tar"
            subprocess.run(
                [sys.executable, script, root, f"docker.io/library/{name}", image, *entrypoint], check=True
            )
            self.load_image(image)

    def load_image(self, path: str) -> None:
        """Give the node the image that a file holds."""
        address = f"--address={self.folder}/containerd.sock"
        subprocess.run(["ctr", address, "--namespace=k8s.io", "images", "import", path], check=True)


class Namespace:
    """What a test has on the cluster."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def write_config(self, path: Path, server: str = "") -> Path:
        """A kubeconfig in which this is the usual namespace; the server may have another address."""
        text = self.cluster.config.read_text()
        text = text.replace("context: {cluster", f"context: {{namespace: {self.name}, cluster")
        if server:
            text = re.sub(r'server: "[^"]+"', f'server: "{server}", tls-server-name: kubernetes', text)
        path.write_text(text)
        return path

    def kubectl(self, *words: str, make: dict[str, Any] | None = None) -> str:
        """What the cluster says to a command about this namespace."""
        return self.cluster.kubectl("--namespace", self.name, *words, make=make)

    def list(self, kinds: str) -> list[dict[str, Any]]:
        """Its objects of some kinds."""
        listed = json.loads(self.kubectl("get", kinds, "--output=json"))["items"]
        return [each for each in listed if not name_of(each).startswith(_OWN)]

    def pods(self) -> list[dict[str, Any]]:
        """Its pods."""
        return self.list("pods")

    def jobs(self) -> list[dict[str, Any]]:
        """Its Jobs."""
        return self.list("jobs")

    def names(self) -> set[str]:
        """All that somebody made in it, as `kind/name`."""
        return {name_of(each) for each in self.list("pods,jobs,services,secrets,configmaps")}

    def delete(self, there: dict[str, Any], *words: str) -> None:
        """What `kubectl delete` does."""
        self.kubectl("delete", "--wait=false", name_of(there), *words)


def name_of(there: dict[str, Any]) -> str:
    """An object as commands call it."""
    return f"{there['kind'].lower()}/{there['metadata']['name']}"


def lacking() -> str:
    """What there is not of a cluster for tests; empty if there is one."""
    if os.environ.get(VARIABLE):
        return ""
    return "needs a Kubernetes: `make test-kubernetes` starts one and runs these tests"
