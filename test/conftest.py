"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A NEMORUN_HOME of the test's own, also for the processes it starts."""
    path = tmp_path / "home"
    monkeypatch.setenv("NEMORUN_HOME", str(path))
    return path
