"""`nemo init` writes a script and a workspace that run as they are, and never over what is there."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from dockers import IMAGE, Containers
from programs import NEMO, call, failed, succeeded

pytestmark = pytest.mark.usefixtures("home")


def nemo(folder: Path, *args: Any, **options: Any) -> Any:
    env = {"PATH": f"{Path(NEMO).parent}:{os.environ['PATH']}"}
    return call([NEMO, *map(str, args)], cwd=folder, env=env, **options)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with what `nemo init` writes."""
    succeeded(nemo(tmp_path, "init", "project"))
    return tmp_path / "project"


def test_init_says_what_it_wrote_and_what_to_do_next(tmp_path: Path) -> None:
    assert succeeded(nemo(tmp_path, "init", "my project")).stdout == (
        "wrote my project/train.py\n"
        "wrote my project/workspace.py\n"
        "Next:\n"
        "  cd 'my project'\n"
        "  nemo run train.py --help            what there is to set\n"
        "  nemo run train.py steps=500 --yes   run it on this machine\n"
        "  nemo experiment list                what has run\n"
        "  nemo executors                      where it may run\n"
        "  nemo executors check cluster        once workspace.py has your login node\n"
    )


def test_init_takes_this_folder_where_none_is_named(tmp_path: Path) -> None:
    printed = succeeded(nemo(tmp_path, "init")).stdout
    assert printed.startswith("wrote train.py\nwrote workspace.py\nNext:\n  nemo run train.py")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.py", "workspace.py"]


def test_init_never_writes_over_anything(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("mine")
    printed = succeeded(nemo(tmp_path, "init")).stdout
    assert printed.splitlines()[:3] == [
        "train.py is there already, and stays as it is",
        "wrote workspace.py",
        "Next:",
    ]
    assert "nemo run train.py" not in printed
    assert (tmp_path / "train.py").read_text() == "mine"
    assert "Next:" not in succeeded(nemo(tmp_path, "init")).stdout
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "workspace.py").symlink_to("nowhere")
    assert "workspace.py is there already" in succeeded(nemo(tmp_path, "init", "linked")).stdout
    assert (tmp_path / "linked" / "workspace.py").is_symlink()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "name another" in failed(nemo(tmp_path, "init", "file"))
    assert "name another" in failed(nemo(tmp_path, "init", "file/below"))
    assert "name another folder" in failed(nemo(tmp_path, "init", "/proc/below"))


def test_the_steps_it_names_all_work(project: Path) -> None:
    assert "start=steep" in succeeded(nemo(project, "run", "train.py", "--help")).stdout
    ran = succeeded(nemo(project, "run", "train.py", "steps=500", "start=steep(slope=9)", "--yes"))
    assert "step 500: loss 0.0" in ran.stdout + ran.stderr
    assert "train_" in succeeded(nemo(project, "experiment", "list")).stdout
    assert [line.split()[0] for line in succeeded(nemo(project, "executors")).stdout.splitlines()[1:4]] == [
        "here", "box", "cluster",
    ]  # fmt: skip
    done = nemo(project, "executors", "check", "cluster")
    assert done.returncode == 1
    assert "login.example.com cannot be reached" in done.stdout


def test_the_script_is_one_that_python_runs_too(project: Path) -> None:
    ran = succeeded(
        call([sys.executable, "train.py", "steps=100", "run.executor=here", "--yes"], cwd=project)
    )
    assert "step 100: loss" in ran.stdout + ran.stderr


def test_its_cluster_can_be_planned_without_one(project: Path) -> None:
    args = ["run.executor=cluster(nodes=2)", "run.executor.partition=big", "--dryrun"]
    printed = succeeded(nemo(project, "run", "train.py", *args)).stdout
    assert "#SBATCH --nodes=2\n" in printed.replace("  ", "")
    assert "--partition=big" in printed


def test_its_box_runs_it_in_a_container(project: Path, containers: Containers) -> None:
    ran = succeeded(
        nemo(project, "run", "train.py", "steps=0", f"run.executor=box(image='{IMAGE}')", "--yes")
    )
    assert "step 0: loss" in ran.stdout + ran.stderr


def test_what_it_writes_is_documented_python(project: Path) -> None:
    for name in ("train.py", "workspace.py"):
        text = (project / name).read_text()
        tree = ast.parse(text, feature_version=(3, 10))
        assert ast.get_docstring(tree)
        assert all(ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef))
        assert max(map(len, text.splitlines())) <= 110
