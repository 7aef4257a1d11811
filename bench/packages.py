"""Packaging code beside `git archive | gzip -1`; as a child process it prints how long one step took.

bench/packages.py HOME REPOSITORY GIT|PATTERN|COPY
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from measure import PYTHON, Group, Row, check, command, pairs, seconds

if TYPE_CHECKING:
    from groups import Sizes

#: Of 10 kB each; a small repository for `--quick`.
FILES, QUICK_FILES = 20_000, 500


def packages(sizes: Sizes) -> Group:
    """A repository as committed, with edits, and again; a copy of it for a job; the same by a pattern."""
    with tempfile.TemporaryDirectory(prefix="nemo-bench-") as folder:
        repository, new = Path(folder, "repository"), _new_folders(folder)
        count = FILES if sizes.runs > 2 else QUICK_FILES
        size = make_repository(repository, count)
        line = 'git -C "$0" archive HEAD | gzip -1 > "$1"'
        floor = command("sh", "-c", line, str(repository), f"{folder}/code.tar.gz")
        home = next(new)

        def step(kind: str, again: bool = False) -> Callable[[], float]:
            return lambda: _child(home if again else next(new), repository, kind)

        def row(what: str, ours: Callable[[], float], goal: str = "") -> None:
            # Of a small repository it is git's own start that takes the time.
            rows.append(pairs(what, ours, floor, count=sizes.runs, goal=goal if count == FILES else ""))

        rows: list[Row] = []
        row(f"package {count:,} committed files, {size / 1e6:.0f} MB", step("GIT"), "≤ 1.3×")
        for at in range(10):
            (repository / f"new{at}.py").write_text("new\n")
            (repository / f"d{at}" / f"e{at}" / f"f{at}.py").write_text("edited\n")
        row("… with 10 edits and 10 new files", step("GIT"), "≤ 1.3×")
        step("GIT", again=True)()
        row("… again, unchanged", step("GIT", again=True), "≤ 0.3×")
        row("… copied for a job", step("COPY", again=True))
        row("… by a pattern, without git", step("PATTERN"))
    return Group(
        title="Packaging",
        how="A launch's code is taken into a home of its own, in a process of its own, imports aside; the"
        " floor is `git archive HEAD | gzip -1` of the same repository. Nothing is removed meanwhile, as"
        " ext4 is slow to make files for a while after some were.",
        rows=rows,
    )


def make_repository(root: Path, count: int) -> int:
    """Commit so many files that look like code; returns their size."""
    chosen = random.Random(1)
    ends = [" ", "_", "\n    ", "(", ") = ", ", "]
    words = [f"{chosen.getrandbits(40):x}{chosen.choice(ends)}" for _ in range(5000)]
    size = 0
    for at in range(count):
        path = root / f"d{at % 40}" / f"e{at % 400}" / f"f{at}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        size += path.write_text("".join(chosen.choices(words, k=850)))
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "gc.auto=0"]
    for action in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        check([*git, *action])
    return size


def _new_folders(parent: str) -> Iterator[Path]:
    at = 0
    while True:
        at += 1
        yield Path(parent, f"home{at}")


def _child(home: Path, repository: Path, kind: str) -> float:
    return float(check([PYTHON, __file__, str(home), str(repository), kind]))


def main(home: str, repository: str, kind: str) -> None:
    """Take a package, or copy the one that is there."""
    import nemo_run as run
    from nemo_run.core.packaging.snapshot import stage, take

    packager: run.Packager = run.GitArchivePackager()
    if kind == "PATTERN":
        packager = run.PatternPackager(include_pattern="*", relative_path=".")
    if kind == "COPY":
        package = take(packager, Path(repository), Path(home))
        code = Path(tempfile.mkdtemp(dir=home), "code")
        print(seconds(lambda: stage(package.path, code)))
    else:
        print(seconds(lambda: take(packager, Path(repository), Path(home))))


if __name__ == "__main__":
    main(*sys.argv[1:])
