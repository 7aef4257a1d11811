"""A package is written whole or not at all, once for all, does not change, and goes when nobody needs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from deeds import until
from repositories import contents, git, package, repository, texts, write

import nemo_run as run
from nemo_run.core.packaging.base import Contents, Source
from nemo_run.core.packaging.snapshot import collect, packages_dir, stage, take

TEST = Path(__file__).parents[2]


@pytest.fixture
def repo(home: Path, tmp_path: Path) -> Path:
    return repository(tmp_path / "repo")


def age(path: Path, seconds: float = 2 * 3600) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


class Counting(run.PatternPackager):
    """Counts how often files are written."""

    written = 0

    def contents(self, source: Source) -> Contents:
        found = super().contents(source)

        def write(code: Path) -> None:
            Counting.written += 1
            found.write(code)

        return Contents(digest=found.digest, write=write)


def test_unchanged_code_is_not_written_again(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "written", 0)
    packager = Counting(include_pattern="src", relative_path=".")
    first, second = package(packager, repo), package(packager, repo)
    assert (Counting.written, first) == (1, second)
    write(repo, {"src/new.py": ""})
    package(packager, repo)
    assert Counting.written == 2


def test_files_that_change_while_they_are_copied_are_looked_at_again(repo: Path) -> None:
    class Hasty(run.PatternPackager):
        def contents(self, source: Source) -> Contents:
            found = super().contents(source)
            if not (repo / "edited").exists():
                write(repo, {"src/lib/inner.py": "edited meanwhile", "edited": ""})
            return found

    made = package(Hasty(include_pattern="src", relative_path="."), repo)
    assert texts(made.code) == {"src/lib/inner.py": "edited meanwhile"}
    again = package(run.PatternPackager(include_pattern="src", relative_path="."), repo)
    assert again.key == made.key


def test_a_packager_of_one_s_own_needs_one_method(home: Path, tmp_path: Path) -> None:
    class Mine(run.Packager):
        def contents(self, source: Source) -> Contents:
            return Contents(digest="v1", write=lambda code: (code / "made.txt").write_text("made") and None)

    assert texts(package(Mine(), tmp_path).code) == {"made.txt": "made"}


def test_packages_are_for_their_owner_alone(repo: Path, home: Path) -> None:
    made = package(run.GitArchivePackager(), repo)
    for folder in (home, home / "packages", made.path.parent):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_copy_is_whole_private_and_writable(repo: Path, tmp_path: Path) -> None:
    write(repo, {f"many/{number}.txt": "x" * number for number in range(500)})
    write(repo, {"run.sh": "#!/bin/sh\n"})
    (repo / "run.sh").chmod(0o755)
    (repo / "link").symlink_to("run.sh")
    made = package(run.GitArchivePackager(), repo)
    before = contents(made.code)
    stage(made.path, tmp_path / "code")
    assert contents(tmp_path / "code") == before
    for name in before:
        path = tmp_path / "code" / os.fsdecode(name)
        if not path.is_symlink():
            assert path.stat().st_nlink == 1
            with open(path, "r+b") as file:
                file.write(b"changed in place")
    assert contents(made.code) == before


def test_a_copy_that_is_there_is_left_alone_and_half_of_one_is_removed(repo: Path, tmp_path: Path) -> None:
    made = package(run.GitArchivePackager(), repo)
    write(tmp_path / "job", {".code-1.aa/half": ""})
    stage(made.path, tmp_path / "job/code")
    write(tmp_path / "job/code", {"output": "mine"})
    stage(made.path, tmp_path / "job/code")
    assert texts(tmp_path / "job/code")["output"] == "mine"
    assert os.listdir(tmp_path / "job") == ["code"]


def test_a_package_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(run.PackagingError, match=r"the package nope is gone .*; launch again"):
        stage(tmp_path / "nope", tmp_path / "code")
    assert os.listdir(tmp_path) == []


# --- killed ---------------------------------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
import nemo_run as run
from nemo_run.core.packaging.snapshot import stage, take
from nemo_run.testing import kill_at

repo, home, code, step = sys.argv[1:]
steps = {
    "while asking git": lambda event, args: event == "subprocess.Popen" and "status" in args[1],
    "while adding": lambda event, args: event == "subprocess.Popen" and "write-tree" in args[1],
    "while writing": lambda event, args: event == "subprocess.Popen" and "checkout-index" in args[1],
    "before it appears": lambda event, args: event == "os.rename" and str(args[1]).startswith(home),
    "while copying": lambda event, args: event == "open" and "/.code-" in str(args[0]),
    "before the copy appears": lambda event, args: event == "os.rename" and str(args[1]) == code,
}
if step:
    kill_at(steps[step])
made = take(run.GitArchivePackager(), Path(repo), Path(home))
stage(made.path, Path(code))
"""
WHEN = ["while asking git", "while adding", "while writing", "before it appears"]
WHEN += ["while copying", "before the copy appears"]


@pytest.mark.parametrize("when", WHEN)
def test_kill_9_leaves_nothing_half_and_nothing_in_the_repository(
    repo: Path, home: Path, tmp_path: Path, when: str
) -> None:
    write(repo, {"new.py": "new\n", "changed.py": "after\n"})
    expected = {name: what for name, what in contents(repo).items() if not name.startswith(b".git/")}
    status, code = git(repo, "status", "--porcelain=v2"), tmp_path / "job/code"
    code.parent.mkdir()
    argv = [sys.executable, "-c", KILLED, str(repo), str(home), str(code)]
    env = {**os.environ, "PYTHONPATH": str(TEST)}
    assert subprocess.run([*argv, when], env=env, timeout=60).returncode == -signal.SIGKILL
    assert not code.exists()
    whole = [path for path in packages_dir(home).iterdir() if not path.name.startswith(".")]
    assert all(contents(path / "code") == expected for path in whole)
    assert len(whole) == ("copy" in when)
    assert git(repo, "status", "--porcelain=v2") == status

    assert subprocess.run([*argv, ""], env=env, timeout=60).returncode == 0
    assert contents(code) == expected
    assert os.listdir(code.parent) == ["code"]
    for path in packages_dir(home).iterdir():
        age(path)
    collect(packages_dir(home), {path.name for path in packages_dir(home).iterdir()})
    assert [path.name[:1] == "." for path in packages_dir(home).iterdir()] == [False]


# --- collecting -----------------------------------------------------------------------------------------


def test_what_somebody_needs_or_has_just_taken_stays(repo: Path, home: Path) -> None:
    needed, fresh, old = (
        package(run.GitArchivePackager(subpath=path), repo) for path in ("", "src", "src/lib")
    )
    half = packages_dir(home) / ".new-1.aa"
    half.mkdir()
    age(needed.path)
    age(old.path)
    assert collect(packages_dir(home), {needed.key}) == ([old.path], [])
    age(half)
    package(run.GitArchivePackager(subpath="src"), repo)
    assert collect(packages_dir(home), {needed.key}) == ([], [half])
    assert {path.name for path in packages_dir(home).iterdir()} == {needed.key, fresh.key}


def test_taking_a_package_again_keeps_it(repo: Path, home: Path) -> None:
    made = package(run.GitArchivePackager(), repo)
    age(made.path)
    package(run.GitArchivePackager(), repo)
    assert collect(packages_dir(home), set()) == ([], [])


def test_without_packages_there_is_nothing_to_collect(home: Path) -> None:
    assert collect(packages_dir(home), set()) == ([], [])
    assert not home.exists()


def test_launches_and_collectors_at_once_never_miss_a_package(repo: Path, home: Path) -> None:
    """What a launch has just taken is whole and there, however eagerly old packages are removed."""
    stop, collected = threading.Event(), list[Path]()

    def keep_collecting() -> None:
        while not stop.is_set():
            collected.extend(collect(packages_dir(home), set())[0])

    thread = threading.Thread(target=keep_collecting)
    thread.start()
    try:
        for _ in range(40):
            made = take(run.GitArchivePackager(), repo, home)
            assert contents(made.code)[b"kept.py"] == ("file", b"kept\n")
            age(made.path)  # from now on it may go, also while the next launch takes it
        until(lambda: collected, "one was removed")
    finally:
        stop.set()
        thread.join()
