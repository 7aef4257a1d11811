"""`import nemo_run` offers every public name and loads nothing but itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nemo_run

ROOT = Path(__file__).parents[1]
THIRD_PARTIES = {"fiddle", "paramiko", "psutil", "rich", "torchx", "typer", "yaml"}


def in_fresh_python(code: str) -> Any:
    """What the code prints as JSON on its last line, with warnings as errors."""
    argv = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def modules_after(statement: str) -> set[str]:
    return set(
        in_fresh_python(
            f"{statement}\nimport sys\nnames = list(sys.modules)\nimport json\nprint(json.dumps(names))"
        )
    )


@pytest.mark.parametrize("name", nemo_run.__all__)
def test_each_public_name_resolves(name: str) -> None:
    assert getattr(nemo_run, name) is not None


def test_the_table_is_sorted() -> None:
    assert list(nemo_run._MODULES) == sorted(nemo_run._MODULES)


def test_no_name_is_listed_twice() -> None:
    assert len(nemo_run.__all__) == len(set(nemo_run.__all__))


def test_dir_shows_every_public_name() -> None:
    assert set(nemo_run.__all__) <= set(dir(nemo_run))


def test_a_wrong_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Experimint"):
        _ = nemo_run.Experimint  # type: ignore[attr-defined]


def test_import_loads_no_module_but_our_own() -> None:
    extra = modules_after("import nemo_run") - modules_after("pass")
    assert {name for name in extra if name.partition(".")[0] != "nemo_run"} == set()


def test_import_loads_no_third_party() -> None:
    roots = {name.partition(".")[0] for name in modules_after("import nemo_run")}
    assert not roots & THIRD_PARTIES


@pytest.mark.parametrize(
    "before", ["pass", "import nemo_run.run.store", "run.Experiment", "from nemo_run.run import experiment"]
)
def test_run_stays_callable_whatever_was_imported(before: str) -> None:
    assert in_fresh_python(f"import nemo_run as run\n{before}\nprint(str(callable(run.run)).lower())")
