"""GitArchivePackager packages a repository as it is, or as it was committed, and leaves it untouched."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repositories import CLEAN, commit, contents, git, package, packaged, repository, state, texts, write

import nemo_run as run
from nemo_run.core.packaging.snapshot import take

COMMITTED = {"kept.py": "kept\n", "changed.py": "before\n", "src/lib/inner.py": "inner\n"}


@pytest.fixture(autouse=True)
def _as_git_comes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CLEAN.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repository(tmp_path / "repo")


# --- the files as they are ------------------------------------------------------------------------------


def test_modified_new_and_deleted_files_travel_as_they_are_and_ignored_ones_do_not(repo: Path) -> None:
    commit(repo, {".gitignore": "*.log\n", "gone.py": "", "staged.py": "1"})
    write(repo, {"changed.py": "after\n", "new/file.py": "new\n", "out.log": "", "staged.py": "2"})
    git(repo, "add", "staged.py")
    (repo / "gone.py").unlink()
    assert packaged(run.GitArchivePackager(), repo) == {
        ".gitignore": "*.log\n",
        "changed.py": "after\n",
        "kept.py": "kept\n",
        "new/file.py": "new\n",
        "src/lib/inner.py": "inner\n",
        "staged.py": "2",
    }


def test_a_file_taken_out_of_the_index_travels_only_if_git_does_not_ignore_it(repo: Path) -> None:
    commit(repo, {"secret.env": "x", "plain.txt": "y"})
    write(repo, {".gitignore": "*.env\n"})
    git(repo, "rm", "-q", "--cached", "secret.env", "plain.txt")
    found = packaged(run.GitArchivePackager(), repo)
    assert "secret.env" not in found
    assert found["plain.txt"] == "y"


def test_a_file_that_is_only_meant_to_be_added_travels(repo: Path) -> None:
    write(repo, {"later.py": "later"})
    git(repo, "add", "-N", "later.py")
    assert packaged(run.GitArchivePackager(), repo)["later.py"] == "later"


def test_a_folder_in_the_place_of_a_file_and_a_file_in_that_of_a_folder_travel(repo: Path) -> None:
    (repo / "kept.py").unlink()
    write(repo, {"kept.py/inner": "1"})
    (repo / "src/lib/inner.py").unlink()
    (repo / "src/lib").rmdir()
    (repo / "src").rmdir()
    write(repo, {"src": "2"})
    assert packaged(run.GitArchivePackager(), repo) == {
        "changed.py": "before\n", "kept.py/inner": "1", "src": "2",
    }  # fmt: skip


def test_a_change_that_leaves_size_and_time_alone_is_seen(repo: Path) -> None:
    """Git tells such a change by the time of its index, which the copy must therefore keep."""
    git(repo, "config", "core.trustctime", "false")
    path, long_ago = repo / "changed.py", (10**9, 10**9)
    os.utime(path, long_ago)
    git(repo, "update-index", "--refresh")
    path.write_text("BEFORE\n")
    for written in (path, repo / ".git/index"):
        os.utime(written, long_ago)
    assert packaged(run.GitArchivePackager(), repo)["changed.py"] == "BEFORE\n"


def test_a_repository_without_a_commit_has_files_all_the_same(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "repo")
    write(tmp_path / "repo", {"a.py": "a", "b.py": "b"})
    git(tmp_path / "repo", "add", "a.py")
    made = package(run.GitArchivePackager(), tmp_path / "repo")
    assert texts(made.code) == {"a.py": "a", "b.py": "b"}
    assert "commit" not in made.facts
    assert "+a" in made.diff
    assert made.untracked == ("b.py",)


def test_the_user_s_own_ignore_file_is_honoured(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"ignore": "*.mine\n", "config": f"[core]\nexcludesFile = {tmp_path}/ignore\n"})
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    write(repo, {"a.mine": "", ".git/info/exclude": "*.excluded\n", "b.excluded": "", "c": ""})
    assert packaged(run.GitArchivePackager(), repo).keys() == {*COMMITTED, "c"}


def test_line_ends_are_those_that_git_gives(repo: Path) -> None:
    commit(repo, {".gitattributes": "*.bat eol=crlf\n*.bin -text\n", "a.bat": "x\ny\n", "a.bin": "x\r\n"})
    write(repo, {"b.bat": "z\n"})
    found = contents(package(run.GitArchivePackager(), repo).code)
    assert (found[b"a.bat"][1], found[b"b.bat"][1]) == (b"x\r\ny\r\n", b"z\r\n")
    assert found[b"a.bin"][1] == b"x\r\n"


def test_another_setting_of_line_ends_makes_another_package(repo: Path) -> None:
    before = package(run.GitArchivePackager(), repo)
    git(repo, "config", "core.autocrlf", "true")
    after = package(run.GitArchivePackager(uncommitted=False), repo)
    assert before.key != after.key
    assert contents(after.code)[b"kept.py"][1] == b"kept\r\n"


def test_pointers_of_large_files_stay_pointers_where_git_lfs_is_not_installed(repo: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5\n"
    commit(repo, {".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n", "model.bin": pointer})
    assert packaged(run.GitArchivePackager(), repo)["model.bin"] == pointer


def test_what_is_kept_out_of_archives_stays_out(repo: Path) -> None:
    attributes = "data export-ignore\n*.md export-ignore\nkept.md -export-ignore\n"
    commit(repo, {".gitattributes": attributes, "data/deep/large.bin": "x", "other.py": "", "kept.md": ""})
    write(repo, {"note.md": "", "datas/small.bin": ""})
    found = packaged(run.GitArchivePackager(), repo)
    assert found.keys() == {*COMMITTED, ".gitattributes", "other.py", "kept.md", "datas/small.bin"}


def test_it_packages_the_whole_repository_from_a_folder_within(repo: Path) -> None:
    assert packaged(run.GitArchivePackager(), repo / "src") == COMMITTED


def test_a_linked_worktree_has_files_of_its_own(repo: Path, tmp_path: Path) -> None:
    git(repo, "worktree", "add", "-q", str(tmp_path / "tree"))
    write(tmp_path / "tree", {"changed.py": "there\n", "new": "there"})
    before = state(repo)
    assert packaged(run.GitArchivePackager(), tmp_path / "tree") == {
        **COMMITTED, "changed.py": "there\n", "new": "there",
    }  # fmt: skip
    assert state(repo) == before
    assert packaged(run.GitArchivePackager(), repo) == COMMITTED


@pytest.mark.parametrize("cone", ["--cone", "--no-cone"])
def test_of_a_sparse_checkout_what_is_not_checked_out_travels_as_committed(repo: Path, cone: str) -> None:
    commit(repo, {"other/far.py": "far\n"})
    git(repo, "sparse-checkout", "set", cone, "src")
    assert not (repo / "other").exists()
    write(repo, {"src/lib/inner.py": "edited\n", "elsewhere/new.py": "new\n"})
    found = packaged(run.GitArchivePackager(), repo)
    assert found == {
        **COMMITTED, "other/far.py": "far\n", "src/lib/inner.py": "edited\n", "elsewhere/new.py": "new\n",
    }  # fmt: skip


def test_the_folder_where_experiments_are_kept_never_travels(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMORUN_HOME", str(repo / "runs"))
    first = package(run.GitArchivePackager(), repo)
    assert texts(first.code) == COMMITTED
    assert package(run.GitArchivePackager(), repo).key == first.key
    assert packaged(run.PatternPackager(include_pattern="*", relative_path="."), repo) == COMMITTED


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_WORK_TREE"])
def test_variables_that_a_hook_is_given_do_not_mislead_it(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    write(repo, {"new": ""})
    assert packaged(run.GitArchivePackager(), repo).keys() == {*COMMITTED, "new"}


# --- the files as committed -----------------------------------------------------------------------------


def test_without_what_is_not_committed_the_last_commit_travels(repo: Path) -> None:
    write(repo, {"changed.py": "after\n", "new.py": ""})
    assert packaged(run.GitArchivePackager(uncommitted=False), repo) == COMMITTED


@pytest.mark.parametrize("ref", ["v1", "older", "HEAD~1", "main~1"])
def test_a_ref_gives_the_files_of_its_commit(repo: Path, ref: str) -> None:
    git(repo, "tag", "-a", "v1", "-m", "a tag")
    git(repo, "branch", "older")
    old = git(repo, "rev-parse", "HEAD").decode().strip()
    commit(repo, {"changed.py": "after\n"})
    write(repo, {"new.py": ""})
    made = package(run.GitArchivePackager(ref=ref), repo)
    assert texts(made.code) == COMMITTED
    assert (made.facts["commit"], made.diff, made.untracked) == (old, "", ())


def test_a_subpath_becomes_the_top(repo: Path) -> None:
    write(repo, {"src/lib/new.py": "new"})
    assert packaged(run.GitArchivePackager(subpath="src"), repo) == {
        "lib/inner.py": "inner\n", "lib/new.py": "new",
    }  # fmt: skip
    assert packaged(run.GitArchivePackager(subpath="src/lib/", uncommitted=False), repo) == {
        "inner.py": "inner\n"
    }


def test_a_basepath_names_the_repository(repo: Path, tmp_path: Path) -> None:
    assert packaged(run.GitArchivePackager(basepath=str(repo)), tmp_path) == COMMITTED
    assert packaged(run.GitArchivePackager(basepath="repo"), tmp_path) == COMMITTED


# --- files beside ---------------------------------------------------------------------------------------


def test_patterns_bring_files_that_git_ignores(repo: Path) -> None:
    commit(repo, {".gitignore": "*.bin\nbuilt/\n"})
    write(repo, {"a.bin": "a", "src/b.bin": "b", "built/deep/c.txt": "c"})
    found = packaged(run.GitArchivePackager(include_pattern=["*.bin", "built"]), repo)
    assert found == {**COMMITTED, ".gitignore": "*.bin\nbuilt/\n", "a.bin": "a", "built/deep/c.txt": "c"}


def test_each_pattern_has_its_own_folder(repo: Path, tmp_path: Path) -> None:
    write(tmp_path / "data", {"a/1.bin": "1", "b/2.bin": "2", "b/2.txt": ""})
    packager = run.GitArchivePackager(
        include_pattern=[f"{tmp_path}/data/a/*", f"{tmp_path}/data/b/*.bin"],
        include_pattern_relative_path=[f"{tmp_path}/data/a", f"{tmp_path}/data"],
    )
    assert packaged(packager, repo) == {**COMMITTED, "1.bin": "1", "b/2.bin": "2"}


def test_a_file_that_a_pattern_names_takes_the_place_of_the_committed_one(repo: Path) -> None:
    write(repo, {"changed.py": "after\n"})
    packager = run.GitArchivePackager(uncommitted=False, include_pattern="changed.py")
    assert packaged(packager, repo) == {**COMMITTED, "changed.py": "after\n"}


# --- repositories within --------------------------------------------------------------------------------


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """A repository with a submodule in a submodule."""
    inner = repository(tmp_path / "inner", {"deep.py": "deep\n"})
    middle = repository(tmp_path / "middle", {"mid.py": "mid\n"})
    git(middle, "submodule", "--quiet", "add", str(inner), "in")
    commit(middle, {})
    outer = repository(tmp_path / "outer", {"top.py": "top\n"})
    git(outer, "submodule", "--quiet", "add", str(middle), "libs/mid dle")
    git(outer, "submodule", "--quiet", "update", "--init", "--recursive")
    commit(outer, {})
    return outer


MIDDLE = "libs/mid dle"


@pytest.mark.parametrize("uncommitted", [True, False])
def test_submodules_travel_with_theirs(nested: Path, uncommitted: bool) -> None:
    before = state(nested)
    found = packaged(run.GitArchivePackager(uncommitted=uncommitted), nested)
    del found[".gitmodules"], found[f"{MIDDLE}/.gitmodules"]
    assert found == {"top.py": "top\n", f"{MIDDLE}/mid.py": "mid\n", f"{MIDDLE}/in/deep.py": "deep\n"}
    assert state(nested) == before


def test_edits_in_submodules_travel_unless_only_commits_are_asked_for(nested: Path) -> None:
    write(nested, {f"{MIDDLE}/mid.py": "edited\n", f"{MIDDLE}/in/new.py": "new\n"})
    before = state(nested)
    made = package(run.GitArchivePackager(), nested)
    found = texts(made.code)
    assert (found[f"{MIDDLE}/mid.py"], found[f"{MIDDLE}/in/new.py"]) == ("edited\n", "new\n")
    assert f"+++ b/{MIDDLE}/mid.py" in made.diff
    assert made.untracked == (f"{MIDDLE}/in/new.py",)
    committed = packaged(run.GitArchivePackager(uncommitted=False), nested)
    assert committed[f"{MIDDLE}/mid.py"] == "mid\n"
    assert f"{MIDDLE}/in/new.py" not in committed
    assert state(nested) == before


def test_a_commit_made_in_a_submodule_travels_before_it_is_recorded(nested: Path) -> None:
    commit(nested / MIDDLE, {"mid.py": "committed there\n"})
    assert packaged(run.GitArchivePackager(), nested)[f"{MIDDLE}/mid.py"] == "committed there\n"
    assert packaged(run.GitArchivePackager(uncommitted=False), nested)[f"{MIDDLE}/mid.py"] == "mid\n"


def test_submodules_stay_at_home_when_told_so(nested: Path) -> None:
    packager = run.GitArchivePackager(include_submodules=False)
    assert packaged(packager, nested).keys() == {".gitmodules", "top.py"}


def test_a_submodule_that_is_not_checked_out_is_an_empty_folder_there_too(nested: Path) -> None:
    git(nested, "submodule", "--quiet", "deinit", "-f", MIDDLE)
    assert packaged(run.GitArchivePackager(), nested).keys() == {".gitmodules", "top.py"}


def test_a_submodule_s_folder_can_be_packaged_alone(nested: Path) -> None:
    assert packaged(run.GitArchivePackager(subpath=f"{MIDDLE}/in"), nested) == {"deep.py": "deep\n"}


def test_a_repository_that_just_lies_within_travels_like_a_submodule(repo: Path) -> None:
    repository(repo / "vendored", {"v.py": "v\n"})
    write(repo, {"vendored/new.py": "new\n"})
    before = state(repo)
    found = packaged(run.GitArchivePackager(), repo)
    assert found == {**COMMITTED, "vendored/v.py": "v\n", "vendored/new.py": "new\n"}
    assert packaged(run.GitArchivePackager(include_submodules=False), repo) == COMMITTED
    assert state(repo) == before


# --- what is known of it --------------------------------------------------------------------------------


def test_the_diff_leads_from_the_commit_to_what_travels(repo: Path, tmp_path: Path) -> None:
    write(repo, {"changed.py": "after\n", "new.py": "new\n", "src/lib/inner.py": ""})
    (repo / "kept.py").unlink()
    made = package(run.GitArchivePackager(), repo)
    head = git(repo, "rev-parse", "HEAD").decode().strip()
    assert (made.facts["commit"], made.untracked) == (head, ("new.py",))
    git(tmp_path, "clone", "-q", str(repo), "clone")
    git(tmp_path / "clone", "apply", input=made.diff.encode())
    assert packaged(run.GitArchivePackager(), tmp_path / "clone") == texts(made.code)
    git(tmp_path / "clone", "add", "-A")
    assert git(tmp_path / "clone", "write-tree").decode().strip() == made.facts["tree"]


def test_large_files_that_git_does_not_know_are_named_and_not_in_the_diff(repo: Path) -> None:
    write(repo, {"large.txt": "x" * (1 << 20) + "\n", "small.txt": "y\n", "changed.py": "after\n"})
    made = package(run.GitArchivePackager(), repo)
    assert made.untracked == ("large.txt", "small.txt")
    assert "changed.py" in made.diff
    assert "small.txt" not in made.diff
    assert texts(made.code)["small.txt"] == "y\n"


def test_the_same_files_are_the_same_package_wherever_and_however_they_came(
    repo: Path, tmp_path: Path
) -> None:
    write(repo, {"new.py": "new\n"})
    before = package(run.GitArchivePackager(), repo)
    commit(repo, {})
    git(tmp_path, "clone", "-q", str(repo), "clone")
    after = package(run.GitArchivePackager(uncommitted=False), tmp_path / "clone")
    assert after.key == before.key
    assert after.facts["commit"] != before.facts["commit"]


# --- what it leaves alone -------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["core.splitIndex", "core.untrackedCache", "feature.manyFiles"])
def test_nothing_in_the_repository_changes(repo: Path, setting: str) -> None:
    git(repo, "config", setting, "true")
    commit(repo, {"a.py": "a"})
    write(repo, {".git/hooks/post-index-change": "#!/bin/sh\ntouch hook-ran\n", ".gitignore": "*.log\n"})
    (repo / ".git/hooks/post-index-change").chmod(0o755)
    write(repo, {"changed.py": "after\n", "new.py": "new\n", "out.log": "", "staged.py": ""})
    (repo / "kept.py").unlink()
    git(repo, "-c", "core.hooksPath=/dev/null", "add", "staged.py")
    before = state(repo)
    for packager in (run.GitArchivePackager(), run.GitArchivePackager(ref="HEAD~1", include_pattern="*.log")):
        package(packager, repo)
    assert state(repo) == before


def test_two_launches_at_once_get_the_same_and_change_nothing(repo: Path, home: Path) -> None:
    write(repo, {f"files/{number}.py": "x" * number for number in range(300)})
    before = state(repo)
    code = (
        "import sys; from repositories import *\nmade = package(run.GitArchivePackager(), Path(sys.argv[1]))"
    )
    code += "\nprint(made.key)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    argv = [sys.executable, "-c", code, str(repo)]
    running = [subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    keys = {process.communicate(timeout=60)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert len(keys) == 1
    assert [path.name for path in (home / "packages").iterdir()] == list(keys)
    assert len(contents(home / "packages" / keys.pop() / "code")) == 303
    assert state(repo) == before


# --- hostile names and contents -------------------------------------------------------------------------

NAMES = (
    st.binary(min_size=1, max_size=40)
    .map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"\n"))
    .filter(lambda name: name not in (b".", b"..") and name.lower() != b".git" and b"git" not in name.lower())
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
FILES = st.one_of(
    st.tuples(st.sampled_from(["file", "exec"]), st.binary(max_size=200)),
    st.tuples(st.just("link"), NAMES),
)


@given(
    committed=st.dictionaries(PATHS, FILES, max_size=5),
    added=st.dictionaries(PATHS, FILES, min_size=1, max_size=5),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_mode_and_content_survives_byte_for_byte(
    committed: dict[bytes, tuple[str, bytes]], added: dict[bytes, tuple[str, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "repo"
        git(Path(folder), "init", "-q", "repo")
        put(root, committed)
        git(root, "add", "-A", "--force")
        git(root, "commit", "-qm", "first", "--allow-empty")
        put(root, added)
        write(root, {"at least one": ""})
        before = state(root)
        expected = {name: what for name, what in contents(root).items() if not name.startswith(b".git/")}
        made = take(run.GitArchivePackager(), root, Path(folder) / "home")
        assert contents(made.code) == expected
        pattern = run.PatternPackager(include_pattern="repo", relative_path="repo")
        as_listed = contents(take(pattern, Path(folder), Path(folder) / "home").code)
        assert {name: what for name, what in as_listed.items() if not name.startswith(b".git/")} == expected
        assert state(root) == before


def put(root: Path, files: dict[bytes, tuple[str, bytes]]) -> None:
    """Write files as far as their paths do not stand in each other's way."""
    for name, (kind, content) in files.items():
        path = os.path.join(os.fsencode(root), name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if kind == "link":
                os.symlink(content, path)
                if os.path.exists(path) or os.path.islink(os.path.join(os.path.dirname(path), content)):
                    os.unlink(path)  # links to each other are another test's
            elif not os.path.lexists(path):
                with open(path, "wb") as file:
                    file.write(content)
                os.chmod(path, 0o755 if kind == "exec" else 0o644)
        except OSError:
            continue  # a file where a folder should be, a name that is too long


def test_symbolic_links_within_survive_and_those_that_lead_out_are_refused_by_name(repo: Path) -> None:
    (repo / "in").symlink_to("src/lib")
    (repo / "src/up").symlink_to("../kept.py")
    (repo / "dangling").symlink_to("nowhere")
    found = contents(package(run.GitArchivePackager(), repo).code)
    assert (found[b"in"], found[b"src/up"]) == (("link", b"src/lib"), ("link", b"../kept.py"))
    assert found[b"dangling"] == ("link", b"nowhere")
    with pytest.raises(run.PackagingError, match=r"symbolic link 'up' leads out .*, to '\.\./kept\.py'"):
        package(run.GitArchivePackager(subpath="src"), repo)


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "src/../../outside", "in/../../../outside"])
def test_a_symbolic_link_that_leaves_the_tree_is_refused(repo: Path, target: str) -> None:
    (repo / "in").symlink_to("src/lib")
    (repo / "bad link").symlink_to(target)
    with pytest.raises(run.PackagingError, match="symbolic link 'bad link' leads out"):
        package(run.GitArchivePackager(), repo)


# --- what is refused ------------------------------------------------------------------------------------


def refused(packager: run.Packager, folder: Path) -> str:
    with pytest.raises(run.PackagingError) as refusal:
        package(packager, folder)
    left = Path(os.environ["NEMORUN_HOME"]) / "packages"
    assert list(left.iterdir()) == []
    return str(refusal.value)


def test_a_folder_outside_of_any_repository_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    said = refused(run.GitArchivePackager(), tmp_path / "plain")
    assert said.startswith(f"{str(tmp_path / 'plain')!r} is not in a git repository; launch from inside one")


def test_a_bare_repository_is_refused_in_git_s_words(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--bare", "bare")
    assert "must be run in a work tree" in refused(run.GitArchivePackager(), tmp_path / "bare")


def test_a_ref_that_is_not_there_is_refused(repo: Path) -> None:
    said = refused(run.GitArchivePackager(ref="nope"), repo)
    assert said.startswith(f"'nope' names nothing in the repository {str(repo)!r}")
    with pytest.raises(run.ConfigError, match="ref is '--output=x'"):
        run.GitArchivePackager(ref="--output=x")


def test_a_repository_without_a_commit_has_no_committed_files(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert "commit first" in refused(run.GitArchivePackager(uncommitted=False), tmp_path)


def test_an_empty_repository_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert "there is no file to package" in refused(run.GitArchivePackager(), tmp_path)


@pytest.mark.parametrize("subpath", ["nope", "kept.py", "src/nope"])
def test_a_subpath_that_is_no_folder_is_refused(repo: Path, subpath: str) -> None:
    assert f"there is no folder {subpath!r}" in refused(run.GitArchivePackager(subpath=subpath), repo)


@pytest.mark.parametrize("subpath", ["/etc", "../up", "a/../../b"])
def test_a_subpath_that_leaves_the_repository_is_refused_when_it_is_written(subpath: str) -> None:
    with pytest.raises(run.ConfigError, match="give a path below the top of the repository"):
        run.GitArchivePackager(subpath=subpath)


def test_a_basepath_that_is_not_there_is_refused(repo: Path) -> None:
    assert "there is no folder" in refused(run.GitArchivePackager(basepath="nope"), repo)


def test_a_pattern_that_matches_nothing_is_refused(repo: Path) -> None:
    said = refused(run.GitArchivePackager(include_pattern=["kept.py", "*.nope"]), repo)
    assert "matches the pattern '*.nope'" in said


def test_a_merge_that_is_not_finished_is_refused_with_its_files(repo: Path) -> None:
    git(repo, "checkout", "-qb", "other")
    commit(repo, {"changed.py": "theirs\n"})
    git(repo, "checkout", "-q", "main")
    commit(repo, {"changed.py": "ours\n"})
    with pytest.raises(subprocess.CalledProcessError):
        git(repo, "merge", "-q", "other")
    assert "a merge is not finished" in (said := refused(run.GitArchivePackager(), repo))
    assert "'changed.py'" in said
    assert packaged(run.GitArchivePackager(uncommitted=False), repo)["changed.py"] == "ours\n"


def test_changes_and_unknown_files_are_refused_where_that_is_asked_for(repo: Path) -> None:
    both = run.GitArchivePackager(check_uncommitted_changes=True, check_untracked_files=True)
    assert packaged(both, repo) == COMMITTED
    write(repo, {"new.py": ""})
    with pytest.raises(run.PackagingError, match=r"files .* that git does not know: 'new\.py'; add"):
        package(both, repo)
    assert "new.py" in packaged(run.GitArchivePackager(check_uncommitted_changes=True), repo)
    write(repo, {"changed.py": "after\n"})
    with pytest.raises(run.PackagingError, match=r"not committed: 'changed\.py'; commit them"):
        package(both, repo)


def test_a_repository_of_somebody_else_is_refused_in_git_s_words(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for its tests
    assert "dubious ownership" in (said := refused(run.GitArchivePackager(), repo))
    assert "safe.directory" in said


def test_git_that_is_not_installed_is_named(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused(run.GitArchivePackager(), repo).startswith("git is needed and cannot be started")


def test_a_filter_that_fails_is_told_in_its_words(repo: Path) -> None:
    git(repo, "config", "filter.odd.clean", "echo no such thing >&2; false")
    git(repo, "config", "filter.odd.required", "true")
    write(repo, {".gitattributes": "*.odd filter=odd\n", "a.odd": "x"})
    assert "clean filter 'odd' failed" in refused(run.GitArchivePackager(), repo)


def test_a_filter_that_fails_on_the_way_out_is_told_in_its_words(repo: Path) -> None:
    commit(repo, {".gitattributes": "*.odd filter=odd\n", "a.odd": "x"})
    git(repo, "config", "filter.odd.smudge", "echo no such thing >&2; false")
    git(repo, "config", "filter.odd.required", "true")
    assert "no such thing" in refused(run.GitArchivePackager(uncommitted=False), repo)
