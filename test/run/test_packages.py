"""Jobs run the code as it was at their launch, each in a copy of its own, whenever they start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from deeds import TEST, nemo, until
from repositories import CLEAN, git, repository, state, write

import nemo_run as run
from nemo_run.core.packaging.snapshot import packages_dir
from nemo_run.run.packages import collect_packages
from nemo_run.run.store import Store

#: A library of the user's, which is in the repository, and a task that is in the launching script.
FILES = {
    "lib/__init__.py": "",
    "lib/work.py": """
import os, time
VERSION = "committed"
def version():
    return [VERSION, os.getcwd(), __file__]
def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return version()
def leave(name):
    with open("output", "x") as file:
        file.write(name)
    return sorted(os.listdir())
""",
    "tools/helper.py": "def told():\n    return 'committed'\n",
    "show.sh": "cat note; pwd\n",
    "note": "committed\n",
}


@pytest.fixture
def repo(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in CLEAN.items():
        monkeypatch.setenv(name, value)
    made = repository(tmp_path / "repo", FILES)
    monkeypatch.chdir(made)
    monkeypatch.syspath_prepend(str(made))
    # Importing it here, for a task, would leave bytecode in it.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("lib", "helper")]:
        monkeypatch.delitem(sys.modules, name)
    return made


def edit(repo: Path, version: str) -> None:
    path = repo / "lib/work.py"
    path.write_text(FILES["lib/work.py"].replace("committed", version))


def task(name: str, *args: Any) -> Any:
    import lib.work  # type: ignore[import-not-found]

    return run.Partial(getattr(lib.work, name), *args)


def local(**fields: Any) -> run.LocalExecutor:
    return run.LocalExecutor(**{"packager": run.GitArchivePackager(), **fields})


def job_dir(experiment: run.Experiment, job: str) -> Path:
    return Store(experiment.path).job_dir(job)


def packages(home: Path) -> list[str]:
    return sorted(path.name for path in packages_dir(home).iterdir())


def test_a_job_runs_the_working_tree_as_it_is_in_a_folder_of_its_own(repo: Path) -> None:
    edit(repo, "edited")
    write(repo, {"lib/extra.py": "", "note": "edited\n"})
    before = state(repo)
    exp = run.Experiment("package", local(), clean_mode=True)
    exp.add(task("version"), name="python")
    exp.add(run.Script("show.sh"), name="script")
    value = exp.run()["python"]
    code = str(job_dir(exp, "python") / "code")
    assert value == ["edited", code, f"{code}/lib/work.py"]
    script = job_dir(exp, "script")
    assert (script / "logs/script_0.log").read_text() == f"edited\n{script}/code\n"
    assert (script / "code/lib/extra.py").exists()
    assert state(repo) == before


def test_without_a_packager_the_code_is_used_where_it_lies(repo: Path) -> None:
    exp = run.Experiment("package", run.LocalExecutor(), clean_mode=True)
    exp.add(task("version"), name="python")
    assert exp.run()["python"] == ["committed", str(repo), f"{repo}/lib/work.py"]
    assert not (job_dir(exp, "python") / "package.json").exists()


def test_jobs_share_a_package_and_do_not_see_what_each_other_writes(repo: Path, home: Path) -> None:
    exp = run.Experiment("package", local(), clean_mode=True)
    for name in ("a", "b"):
        exp.add(task("leave", name), name=name)
    found = exp.run()
    assert found["a"] == found["b"]
    assert [(job_dir(exp, name) / "code/output").read_text() for name in ("a", "b")] == ["a", "b"]
    [key] = packages(home)
    assert not (packages_dir(home) / key / "code/output").exists()
    records = [json.loads((job_dir(exp, name) / "package.json").read_text()) for name in ("a", "b")]
    assert records[0] == records[1]
    assert records[0]["key"] == key
    assert records[0]["files"] == len(FILES)


def test_edits_after_the_launch_do_not_reach_a_job_that_is_held(repo: Path, tmp_path: Path) -> None:
    exp = run.Experiment("package", local(), clean_mode=True)
    exp.add(task("wait_for", str(tmp_path / "go")), name="first")
    exp.add(task("version"), name="second", dependencies=["first"])
    exp.run(detach=True)
    edit(repo, "edited after the launch")
    (repo / "note").unlink()
    (tmp_path / "go").touch()
    found = run.Experiment.from_id(exp.id).wait()
    assert [value[0] for value in found.values()] == ["committed"] * 2
    assert (job_dir(exp, "second") / "code/note").read_text() == "committed\n"


KILLED = """
import os, signal, sys
import nemo_run as run
from nemo_run.testing import kill_at
sys.path.insert(0, os.getcwd())
import lib.work

def step(event, args):
    return event == "os.rename" and str(args[1]).endswith(sys.argv[1])

exp = run.Experiment("killed", run.LocalExecutor(packager=run.GitArchivePackager()), clean_mode=True)
exp.add(run.Partial(lib.work.version), name="job")
kill_at(step)
exp.run()
"""


@pytest.mark.parametrize("before", ["/code", "/job/plan.txt", "/job/job.json"])
def test_whoever_takes_over_from_a_killed_launcher_uses_the_code_of_the_launch(
    repo: Path, before: str
) -> None:
    argv = [sys.executable, "-c", KILLED, before]
    assert subprocess.run(argv, cwd=repo, timeout=60).returncode == -signal.SIGKILL
    edit(repo, "edited after the launch")
    exp = run.Experiment.from_title("killed")
    assert exp.wait()["job"][0] == "committed"
    assert not list(job_dir(exp, "job").glob(".code-*"))


def test_what_is_imported_from_within_the_repository_comes_from_the_package(
    repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A launching script's own folder is on its path; below the repository it moves with the code."""
    write(tmp_path, {"outside/other.py": "def told():\n    return __file__\n"})
    monkeypatch.syspath_prepend(str(repo / "tools"))
    monkeypatch.syspath_prepend(str(tmp_path / "outside"))
    import helper  # type: ignore[import-not-found]
    import other  # type: ignore[import-not-found]

    write(repo, {"tools/helper.py": "def told():\n    return __file__\n"})
    exp = run.Experiment("package", local(), clean_mode=True)
    exp.add(run.Partial(helper.told), name="helper")
    exp.add(run.Partial(other.told), name="other")
    assert exp.run() == {
        "helper": str(job_dir(exp, "helper") / "code/tools/helper.py"),
        "other": str(tmp_path / "outside/other.py"),
    }


def test_a_relative_working_dir_is_one_of_the_package(repo: Path) -> None:
    exp = run.Experiment("package", local(working_dir="tools"), clean_mode=True)
    exp.add(task("version"), name="python")
    assert exp.run()["python"][1] == str(job_dir(exp, "python") / "code/tools")


def test_every_packager_serves_a_local_job(repo: Path, home: Path) -> None:
    pattern = run.PatternPackager(include_pattern="lib/**", relative_path=".")
    hybrid = run.HybridPackager(sub_packagers={"x": pattern, "y": run.GitArchivePackager(subpath="tools")})
    exp = run.Experiment("package", clean_mode=True)
    exp.add(task("version"), local(packager=pattern), name="pattern")
    exp.add(task("leave", "x"), local(packager=hybrid), name="hybrid")
    found = exp.run()
    assert found["pattern"][2] == str(job_dir(exp, "pattern") / "code/lib/work.py")
    assert found["hybrid"] == ["output", "x", "y"]
    assert len(packages(home)) == 2


def test_a_group_has_one_package_and_refuses_two(repo: Path) -> None:
    exp = run.Experiment("package", clean_mode=True)
    exp.add([task("version"), task("version")], local(), name="group")
    found = exp.run()["group"]
    assert {value[1] for value in found.values()} == {str(job_dir(exp, "group") / "code")}
    exp = run.Experiment("package", clean_mode=True)
    exp.add([task("version"), task("version")], [local(), local(packager=run.Packager())], name="group")
    with pytest.raises(
        run.UnsupportedError, match=r"members of group 'group' have different packagers.*Hybrid"
    ):
        exp.run()


def test_a_dry_run_shows_the_plan_and_packages_nothing(
    repo: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = run.Experiment("package", local(), clean_mode=True)
    exp.add(task("version"), name="python")
    exp.dryrun()
    shown = capsys.readouterr().out
    assert not home.exists()
    exp.run()
    plan = (job_dir(exp, "python") / "plan.txt").read_text()
    assert plan in shown
    assert f"cd {job_dir(exp, 'python')}/code\n" in plan


@pytest.mark.parametrize(
    ("packager", "words"),
    [
        (run.GitArchivePackager(ref="nope"), "'nope' names nothing"),
        (run.GitArchivePackager(subpath="nope"), "there is no folder 'nope'"),
        (run.GitArchivePackager(basepath="/"), "'/' is not in a git repository"),
        (run.PatternPackager(include_pattern="*.nope", relative_path="."), "no file below"),
    ],
)
def test_code_that_cannot_be_packaged_is_refused_before_anything_starts(
    repo: Path, home: Path, packager: run.Packager, words: str
) -> None:
    exp = run.Experiment("package", local(packager=packager), clean_mode=True)
    exp.add(task("version"), name="python")
    with pytest.raises(run.PackagingError, match=words):
        exp.run()
    assert not (home / "experiments").exists()
    assert not (home / "packages").exists() or packages(home) == []


def test_a_package_that_somebody_removed_by_hand_fails_the_job_in_words(repo: Path, home: Path) -> None:
    argv = [sys.executable, "-c", KILLED, "/job/plan.txt"]
    assert subprocess.run(argv, cwd=repo, timeout=60).returncode == -signal.SIGKILL
    exp = run.Experiment.from_title("killed")
    for folder in (packages_dir(home) / packages(home)[0], job_dir(exp, "job") / "code"):
        subprocess.run(["rm", "-r", str(folder)], check=True)
    with pytest.raises(
        run.ExecutionError, match=r"not submitted: the package \w{12} is gone .*; launch again"
    ):
        exp.wait()


def test_packages_lie_beside_the_experiments(repo: Path, home: Path, tmp_path: Path) -> None:
    exp = run.Experiment("package", local(), base_dir=tmp_path / "base", clean_mode=True)
    exp.add(task("version"), name="python")
    assert exp.run()["python"][0] == "committed"
    assert len(packages(tmp_path / "base")) == 1
    assert not packages_dir(home).exists()


# --- what is kept ---------------------------------------------------------------------------------------


def launched(packager: run.Packager | None = None) -> run.Experiment:
    exp = run.Experiment("package", local(packager=packager or run.GitArchivePackager()), clean_mode=True)
    exp.add(task("version"), name="python")
    exp.run()
    return exp


def kept(exp: run.Experiment) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((exp.path / "git.json").read_text())
    return found


@pytest.mark.parametrize("packager", [run.GitArchivePackager(), run.Packager()])
def test_the_commit_the_diff_and_unknown_files_are_kept_and_shown(repo: Path, packager: run.Packager) -> None:
    (repo / ".gitignore").write_text("__pycache__/\n")
    git(repo, "add", ".gitignore")
    git(repo, "commit", "-qm", "ignore")
    edit(repo, "edited")
    write(repo, {"new.py": "new\n"})
    exp = launched(packager)
    head = git(repo, "rev-parse", "HEAD").decode().strip()
    assert (kept(exp)["commit"], kept(exp)["uncommitted_changes"]) == (head, True)
    assert kept(exp)["untracked"] == ["new.py"]
    shown = nemo("experiment", "show", "--diff", exp.id)
    assert (shown.returncode, shown.stderr) == (0, "not known to git: 'new.py'\n")
    assert '\n+VERSION = "edited"\n' in shown.stdout
    assert shown.stdout == (exp.path / "git.diff").read_text()
    assert ("+++ b/new.py" in shown.stdout) is packager.moves_code
    as_json = json.loads(nemo("experiment", "show", "--diff", "--json", exp.id).stdout)
    assert as_json == {"diff": shown.stdout, "untracked": ["new.py"]}


def test_the_tree_of_what_was_packaged_is_kept_and_its_size_shown(repo: Path) -> None:
    exp = launched(run.GitArchivePackager(ref="main"))
    assert kept(exp)["tree"] == git(repo, "rev-parse", "HEAD^{tree}").decode().strip()
    assert not (exp.path / "git.diff").exists()
    shown = nemo("experiment", "show", exp.id).stdout
    assert f"by GitArchivePackager: {len(FILES)} files, " in shown
    found = json.loads(nemo("experiment", "show", "--json", exp.id).stdout)
    assert found["jobs"][0]["package"]["tree"] == kept(exp)["tree"]


# --- collecting -----------------------------------------------------------------------------------------


def make_old(home: Path) -> None:
    for path in packages_dir(home).iterdir():
        os.utime(path, (time.time() - 2 * 3600,) * 2)


@pytest.mark.parametrize("command", [("gc",), ("experiment", "gc")])
def test_a_package_goes_once_no_experiment_needs_it(repo: Path, home: Path, command: tuple[str, ...]) -> None:
    first = launched()
    edit(repo, "edited")
    second = launched()
    make_old(home)
    assert nemo(*command).stdout == "Removed 0 unfinished folders.\n"
    assert len(packages(home)) == 2
    key = json.loads((job_dir(first, "python") / "package.json").read_text())["key"]
    assert nemo("experiment", "delete", "-y", first.id).returncode == 0
    assert json.loads(nemo(*command, "--json").stdout) == [str(packages_dir(home) / key)]
    make_old(home)
    assert nemo("experiment", "delete", "-y", second.id).returncode == 0
    assert nemo(*command).stdout == "Removed 0 unfinished folders.\nRemoved 1 unneeded package of code.\n"
    assert packages(home) == []


def test_a_package_that_has_just_been_taken_stays(repo: Path, home: Path) -> None:
    exp = launched()
    assert nemo("experiment", "delete", "-y", exp.id).returncode == 0
    assert nemo("gc").returncode == 0
    assert len(packages(home)) == 1


def test_nothing_is_collected_while_it_is_unknown_what_is_needed(repo: Path, home: Path) -> None:
    exp = launched()
    make_old(home)
    (job_dir(exp, "python") / "package.json").write_text("{")
    done = nemo("gc")
    assert done.returncode == 1
    assert f"cannot read {job_dir(exp, 'python')}/package.json" in done.stderr
    assert len(packages(home)) == 1


def test_it_collects_while_experiments_come_and_go(repo: Path, home: Path) -> None:
    """Folders that are gone by the time they are looked into are no error, and nothing needed is missed."""
    kept = launched()
    key = json.loads((job_dir(kept, "python") / "package.json").read_text())["key"]
    churn = "import os, shutil, sys\nwhile True:\n"
    churn += " os.makedirs(sys.argv[1] + '/x_1/job', exist_ok=True)\n shutil.rmtree(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", churn, str(home / "experiments/x")])
    try:
        for _ in range(2000):
            make_old(home)
            assert collect_packages() == ([], [])
    finally:
        process.kill()
        process.wait()
    assert packages(home) == [key]


def test_many_launches_at_once_from_one_repository_all_get_their_code(repo: Path, home: Path) -> None:
    program = """
import os, sys
sys.path.insert(0, os.getcwd())
import nemo_run as run, lib.work
exp = run.Experiment("many", run.LocalExecutor(packager=run.GitArchivePackager()), clean_mode=True)
exp.add(run.Partial(lib.work.version), name="job")
print(exp.run()["job"][0])
"""
    git(repo, "config", "core.excludesFile", str(repo.parent / "ignored"))
    (repo.parent / "ignored").write_text("__pycache__/\n")
    edit(repo, "edited")
    write(repo, {"new.py": ""})
    before = git(repo, "--no-optional-locks", "status", "--porcelain=v2"), (repo / ".git/index").read_bytes()
    env = {**os.environ, "PYTHONPATH": str(TEST)}
    argv = [sys.executable, "-c", program]
    running = [subprocess.Popen(argv, cwd=repo, env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in running] == ["edited\n"] * 4
    assert len(packages(home)) == 1
    after = git(repo, "--no-optional-locks", "status", "--porcelain=v2"), (repo / ".git/index").read_bytes()
    assert after == before
    until(lambda: len(list(home.glob("experiments/many/*"))) == 4, "four experiments", 1)
