"""PatternPackager packages the files that match, HybridPackager what several packagers do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from repositories import contents, package, packaged, repository, texts, write

import nemo_run as run

pytestmark = pytest.mark.usefixtures("home")

TREE = {
    "README": "r",
    "top.py": "t",
    ".hidden": "h",
    "src/a.py": "a",
    "src/.env": "e",
    "src/lib/b.py": "b",
    "src/lib/data.csv": "d",
    "src/lib/.cache/c.py": "c",
    "docs/d.md": "m",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(tmp_path / "tree", TREE)
    return tmp_path / "tree"


def names(pattern: str | list[str], folder: Path, top: str | list[str] = ".") -> set[str]:
    return set(packaged(run.PatternPackager(include_pattern=pattern, relative_path=top), folder))


SRC = {name for name in TREE if name.startswith("src/")}
MATCHES = {
    "src/**": SRC,
    "src": SRC,
    "src/": SRC,
    "*.py": {"top.py"},
    "**/*.py": {"top.py", "src/a.py", "src/lib/b.py"},
    "src/*": {name for name in SRC if name != "src/.env"},
    "src/.*": {"src/.env"},
    "*/lib/[bc].py": {"src/lib/b.py"},
    "s?c/lib/*.csv": {"src/lib/data.csv"},
    "*": set(TREE) - {".hidden"},
    "**": set(TREE) - {".hidden"},
    ".": set(TREE),
}


@pytest.mark.parametrize("pattern", MATCHES)
def test_a_pattern_matches_as_documented(tree: Path, pattern: str) -> None:
    assert names(pattern, tree) == MATCHES[pattern]
    assert names(f"{tree}/{pattern}", tree.parent, str(tree)) == MATCHES[pattern]


def test_several_patterns_bring_what_any_of_them_matches(tree: Path) -> None:
    assert names(["*.py", "docs/**", "top.py"], tree) == {"top.py", "docs/d.md"}


def test_each_pattern_may_have_a_folder_of_its_own(tree: Path) -> None:
    assert names(["src/lib/*.py", "docs/*"], tree, ["src", "docs"]) == {"lib/b.py", "d.md"}


def test_a_pattern_is_relative_to_the_launching_folder_else_to_its_own(tree: Path) -> None:
    assert names("src/lib/*.py", tree, "src") == {"lib/b.py"}
    assert names("lib/*.py", tree, "src") == {"lib/b.py"}


def test_a_name_that_looks_like_a_pattern_is_taken_as_it_is(tree: Path) -> None:
    write(tree, {"[x]/*.py": "odd"})
    assert names("[x]/*.py", tree) == {"[x]/*.py"}
    assert names("[x]", tree) == {"[x]/*.py"}


def test_modes_and_symbolic_links_survive_and_special_files_stay_out(tree: Path) -> None:
    (tree / "top.py").chmod(0o755)
    (tree / "link").symlink_to("src/a.py")
    (tree / "folder").symlink_to("src/lib")
    os.mkfifo(tree / "pipe")
    made = contents(package(run.PatternPackager(include_pattern="*", relative_path="."), tree).code)
    assert (made[b"top.py"][0], made[b"README"][0]) == ("exec", "file")
    assert (made[b"link"], made[b"folder"]) == (("link", b"src/a.py"), ("link", b"src/lib"))
    assert b"pipe" not in made


def test_a_symbolic_link_that_leads_out_is_refused_by_name(tree: Path) -> None:
    (tree / "out").symlink_to("/etc/hostname")
    with pytest.raises(run.PackagingError, match="PatternPackager: the symbolic link 'out' leads out"):
        names("*", tree)


def test_equal_files_are_one_package_and_others_another(tree: Path, tmp_path: Path) -> None:
    packager = run.PatternPackager(include_pattern="src", relative_path=".")
    first = package(packager, tree)
    write(tmp_path / "copy", TREE)
    assert package(packager, tmp_path / "copy").key == first.key
    (tree / "src/a.py").chmod(0o755)
    second = package(packager, tree)
    (tree / "src/a.py").write_text("A")
    third = package(packager, tree)
    assert len({first.key, second.key, third.key}) == 3
    assert texts(first.code)["src/a.py"] == "a"


@pytest.mark.parametrize(
    ("pattern", "top", "words"),
    [
        ("*.nope", ".", r"no file below .* matches the pattern '\*\.nope'"),
        (["*.py", "nope/**"], ".", r"matches the pattern 'nope/\*\*'"),
        ("../*", ".", r"matches the pattern '\.\./\*'"),
        ("*.py", "nope", "there is no folder"),
        (["src/a.py", "docs/a.py"], ["src", "docs"], "differ and would both become 'a.py'; use run.Hybrid"),
    ],
)
def test_what_is_not_there_is_refused(
    tree: Path, pattern: str | list[str], top: str | list[str], words: str
) -> None:
    write(tree, {"docs/a.py": "another"})
    with pytest.raises(run.PackagingError, match=words):
        names(pattern, tree, top)


@pytest.mark.parametrize(
    ("pattern", "top", "words"),
    [
        ("", ".", "include_pattern is empty"),
        ([], ".", "include_pattern is empty"),
        (5, ".", "include_pattern is 5; give a text or a list"),
        (["a", 5], ".", "give a text or a list of texts"),
        (["a", "b"], ["x", "y", "z"], "2 patterns in include_pattern and 3 folders in relative_path"),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_they_are_written(
    pattern: object, top: object, words: str
) -> None:
    with pytest.raises(run.ConfigError, match=words):
        run.PatternPackager(include_pattern=pattern, relative_path=top)  # type: ignore[arg-type]


# --- several in one -------------------------------------------------------------------------------------


def pattern(what: str, top: Path) -> run.PatternPackager:
    return run.PatternPackager(include_pattern=f"{top}/{what}", relative_path=str(top))


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo", {"main.py": "m", "lib/x.py": "x"})


def test_each_packager_s_code_goes_to_its_folder(repo: Path, tree: Path) -> None:
    packager = run.HybridPackager(
        sub_packagers={"code": run.GitArchivePackager(), "data/docs": pattern("docs/*", tree)}
    )
    made = package(packager, repo)
    assert texts(made.code) == {"code/main.py": "m", "code/lib/x.py": "x", "data/docs/docs/d.md": "m"}
    assert made.facts["packager"] == "HybridPackager"
    assert len(made.facts["commit"]) == 40


def test_at_the_root_folders_are_merged_and_equal_files_are_one(repo: Path, tree: Path) -> None:
    write(tree, {"lib/y.py": "y", "main.py": "m"})
    packager = run.HybridPackager(
        sub_packagers={
            "a": run.GitArchivePackager(),
            "b": pattern("lib", tree),
            "c": pattern("main.py", tree),
        },
        extract_at_root=True,
    )
    assert packaged(packager, repo) == {"main.py": "m", "lib/x.py": "x", "lib/y.py": "y"}


@pytest.mark.parametrize(
    ("files", "shown"),
    [({"main.py": "other"}, "main.py"), ({"lib": "file"}, "lib"), ({"main.py/inner": ""}, "main.py")],
)
def test_a_path_that_two_have_and_that_differs_is_refused_naming_both(
    repo: Path, tmp_path: Path, files: dict[str, str], shown: str
) -> None:
    write(tmp_path / "more", files)
    packager = run.HybridPackager(
        sub_packagers={"mine": run.GitArchivePackager(), "yours": pattern("*", tmp_path / "more")},
        extract_at_root=True,
    )
    with pytest.raises(run.PackagingError, match=f"'mine' and 'yours' both have '{shown}', and they differ"):
        package(packager, repo)


def test_a_folder_within_another_s_link_is_refused(repo: Path, tmp_path: Path) -> None:
    write(tmp_path / "more", {"real/a.py": "", "b.py": ""})
    (tmp_path / "more/link").symlink_to("real")
    packager = run.HybridPackager(
        sub_packagers={"x": pattern("*", tmp_path / "more"), "x/link": pattern("b.py", tmp_path / "more")}
    )
    with pytest.raises(run.PackagingError, match="'x' and 'x/link' both have 'x/link'"):
        package(packager, repo)


@pytest.mark.parametrize(
    ("sub_packagers", "words"),
    [
        ({}, "has no sub_packagers"),
        ({"a": "git"}, r"sub_packagers\['a'\] is 'git'; give one that packages code"),
        ({"a": run.Packager()}, "give one that packages code"),
        ({"../a": run.GitArchivePackager()}, "give a path below the code"),
        ({"/a": run.GitArchivePackager()}, "give a path below the code"),
        ({"": run.GitArchivePackager()}, "give a path below the code"),
    ],
)
def test_what_cannot_be_put_together_is_refused_when_it_is_written(
    sub_packagers: dict[str, run.Packager], words: str
) -> None:
    with pytest.raises(run.ConfigError, match=words):
        run.HybridPackager(sub_packagers=sub_packagers)
