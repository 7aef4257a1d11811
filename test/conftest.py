"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("contracts")  # before they are imported, so that they say what differs

import kubes
import skies
from dockers import Containers, running_registry, skip_without_engine, stop_keepers
from kubes import Namespace
from slurms import Cluster, hurrying, running_cluster
from sshds import Sshd, running_sshd


def pytest_configure() -> None:
    """Take Ctrl-C: a shell that starts something in the background has it, and all it starts, ignore that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A NEMORUN_HOME of the test's own, also for the processes it starts."""
    path = tmp_path / "home"
    monkeypatch.setenv("NEMORUN_HOME", str(path))
    return path


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker Engine that answers; without one the test is skipped, or fails where all must run."""
    skip_without_engine()


@pytest.fixture
def containers(engine: None, tmp_path: Path) -> Iterator[Containers]:
    """What the test's jobs have on the Engine; gone when the test is over."""
    import docker

    client = docker.from_env()
    found = Containers(client, tmp_path)
    try:
        yield found
    finally:
        stop_keepers(tmp_path)
        found.remove()
        client.close()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of a registry of the test's own."""
    with running_registry(tmp_path) as where:
        yield where


@pytest.fixture(scope="session")
def _accounted_cluster() -> Iterator[Cluster]:
    with running_cluster(accounting=True) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _bare_cluster() -> Iterator[Cluster]:
    with running_cluster(accounting=False) as cluster:
        yield cluster


@pytest.fixture
def slurm(_accounted_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A Slurm of four idle nodes with accounting, which Slurm's commands find."""
    yield from _lend(_accounted_cluster, monkeypatch)


@pytest.fixture
def bare_slurm(_bare_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The same without accounting."""
    yield from _lend(_bare_cluster, monkeypatch)


@pytest.fixture
def hurried(request: pytest.FixtureRequest) -> Iterator[None]:
    """Jobs of `slurm`, or of `bare_slurm`, that are queued again start soon."""
    name = "bare_slurm" if "bare_slurm" in request.fixturenames else "slurm"
    with hurrying(request.getfixturevalue(name)):
        yield


def _lend(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    yield cluster
    cluster.clear()


@pytest.fixture
def sshd(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """An sshd of the test's own; with `slurm` or `bare_slurm` beside it, the login node of that cluster.

    HOME is a folder in which the server's key is known.
    """
    for name in ("slurm", "bare_slurm"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    with running_sshd() as server:
        monkeypatch.setenv("HOME", str(server.home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        yield server


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a Kubernetes or SkyPilot are known by a mark: `make test-kubernetes` runs these."""
    for item in items:
        for name in ("kubernetes", "skypilot"):
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(name)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """They are named in one line where there is none."""
    if item.get_closest_marker("kubernetes") and (reason := kubes.lacking()):
        pytest.skip(reason)
    if item.get_closest_marker("skypilot") and (reason := skies.lacking()):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def _kubernetes() -> kubes.Cluster:
    return kubes.Cluster(Path(os.environ[kubes.VARIABLE]))


@pytest.fixture
def kubernetes(
    _kubernetes: kubes.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Namespace]:
    """A namespace of the test's own on a Kubernetes of one node; KUBECONFIG says that it is the usual one."""
    with _kubernetes.lend_namespace() as namespace:
        monkeypatch.setenv("KUBECONFIG", str(namespace.write_config(tmp_path / "kubeconfig")))
        yield namespace


@pytest.fixture
def skypilot(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[skies.Sky]:
    """A SkyPilot with a Slurm of four nodes, which nemo_run and `sky` find."""
    sky = skies.Sky.there()
    for name, value in sky.env.items():
        monkeypatch.setenv(name, value)
    yield sky
    skies.clear_nodes(home)


@pytest.fixture
def sky_kubernetes(skypilot: skies.Sky) -> kubes.Cluster:
    """The Kubernetes that this SkyPilot makes clusters on, where it has one of two pods."""
    if skypilot.kubernetes is None:
        pytest.skip(f"needs a Kubernetes: {skypilot.without}")
    return skypilot.kubernetes
