"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dockers import Containers, skip_without_engine, stop_keepers


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
