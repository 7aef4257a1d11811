"""What git knows of a repository, asked without a change to it: index, objects and files stay as they are.

What is not committed is put into trees by an index and an object folder of our own, outside the repository.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nemo_run.errors import PackagingError

#: Variables by which a process around us, such as a hook, names another repository, index or store.
_ELSEWHERE = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS", "GIT_QUARANTINE_PATH",
)  # fmt: skip
#: Neither hooks nor helpers are started, nothing is written beside our index, nothing is compressed in vain.
_SETTINGS = (
    "core.fsmonitor=false", "core.splitIndex=false", "core.hooksPath=/dev/null", "core.safecrlf=false",
    "core.compression=0", "core.looseCompression=0", "index.sparse=false", "submodule.recurse=false",
    "gc.auto=0", "maintenance.auto=false", "checkout.workers=8",
)  # fmt: skip
#: Settings by which the same tree becomes different files.
_CONVERSIONS = r"^(core\.(autocrlf|eol|attributesfile|symlinks)|filter\..*\.(smudge|process))$"
#: So many bytes of files that git does not know go into a diff; above, they are only named.
_UNTRACKED_IN_DIFF = 1 << 20


@dataclass(kw_only=True)
class Status:
    """What differs between a commit, the index and the files, as paths from the top of the repository."""

    commit: str | None = None
    #: Known to git and different from the commit, in the index or as a file.
    changed: list[bytes] = field(default_factory=list)
    #: Of those the ones whose file differs from the index.
    unstaged: list[bytes] = field(default_factory=list)
    #: Neither known nor ignored; a repository within ends in "/".
    untracked: list[bytes] = field(default_factory=list)
    #: Left by a merge that is not finished.
    unmerged: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Files as git's hash of them, and how they came about."""

    id: str
    commit: str | None
    diff: str = ""
    untracked: tuple[str, ...] = ()


def git(
    folder: Path,
    *args: str,
    env: dict[str, str] | None = None,
    input: bytes | None = None,
    timeout: float | None = None,
) -> bytes:
    """What a git command prints.

    Raises:
        PackagingError: it fails, with its own words; or git is not installed.
    """
    try:
        done = subprocess.run(
            command(*args),
            cwd=folder,
            env=environment(env),
            input=b"" if input is None else input,
            capture_output=True,
            timeout=timeout,
        )
    except OSError as exc:
        if not folder.is_dir():
            raise PackagingError(f"there is no folder {str(folder)!r}; give one in a git repository") from exc
        raise PackagingError(f"git is needed and cannot be started: {exc.strerror}; install git") from exc
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise PackagingError(f"`git {args[0]}` in {str(folder)!r} says: {words}")
    return done.stdout


def command(*args: str) -> list[str]:
    """A git command with our settings."""
    return ["git", *(word for setting in _SETTINGS for word in ("-c", setting)), *args]


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """For git, so that it works on the repository of the folder it is started in, and asks nothing."""
    own = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    return {**own, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", **(more or {})}


def line(printed: bytes) -> str:
    """The one line that a command prints, which may be a path with line ends in it."""
    return os.fsdecode(printed.removesuffix(b"\n"))


def top_level(folder: Path) -> Path:
    """The repository's folder.

    Raises:
        PackagingError: the folder is in none.
    """
    try:
        found = line(git(folder, "rev-parse", "--show-toplevel"))
    except PackagingError as exc:
        if "not a git repository" not in str(exc):
            raise
        raise PackagingError(
            f"{str(folder)!r} is not in a git repository; launch from inside one, give its path as basepath,"
            " use run.PatternPackager, which needs none, or run.Packager() where no code has to travel"
        ) from exc
    return Path(found)


def status(
    root: Path, *, untracked: str = "all", submodules: bool = True, timeout: float | None = None
) -> Status:
    """How a repository's files stand to its index and its commit.

    Args:
        root: A folder of it.
        untracked: "all" files that git does not know, or "normal": a folder of them as one.
        submodules: Whether theirs count.
        timeout: Seconds after which it is given up.

    Raises:
        PackagingError: git cannot tell.
    """
    found = Status()
    options = ["--porcelain=v2", "--branch", "-z", "--no-renames", f"--untracked-files={untracked}"]
    options.append("--ignore-submodules=none" if submodules else "--ignore-submodules=all")
    for entry in git(root, "status", *options, timeout=timeout).split(b"\0"):
        kind, _, rest = entry.partition(b" ")
        if kind == b"#" and rest.startswith(b"branch.oid ") and not rest.endswith(b"(initial)"):
            found.commit = rest.split(b" ")[1].decode()
        elif kind == b"1":
            path = rest.split(b" ", 7)[7]
            found.changed.append(path)
            if rest[1:2] != b".":
                found.unstaged.append(path)
        elif kind == b"u":
            found.unmerged.append(rest.split(b" ", 9)[9])
        elif kind == b"?":
            found.untracked.append(rest)
    return found


def outside(folder: Path, root: Path, paths: Iterable[bytes]) -> list[bytes]:
    """Those of a repository's paths that do not lie in a folder."""
    top, inner = os.path.realpath(os.fsencode(root)), os.path.realpath(os.fsencode(folder)) + b"/"
    return [path for path in paths if not (os.path.join(top, path.rstrip(b"/")) + b"/").startswith(inner)]


def names(paths: Iterable[bytes], count: int = 5) -> str:
    """A few paths for a message."""
    listed = [repr(os.fsdecode(path)) for path in paths]
    return ", ".join(listed[:count]) + (f" and {len(listed) - count} more" if len(listed) > count else "")


class Trees:
    """Makes trees of what is in working trees; its index and objects lie in a folder of ours."""

    def __init__(self, work: Path, leave_out: Path) -> None:
        self.work = work
        self.leave_out = leave_out
        self.objects = work / "objects"
        self.objects.mkdir()
        self._stores: dict[str, None] = {}
        self._indexes = 0

    def committed(self, root: Path, ref: str, *, submodules: bool) -> Tree:
        """The files of a commit, or of whatever else names a tree.

        Raises:
            PackagingError: there is no such thing in the repository.
        """
        self._know(root)
        try:
            tree = line(self.git(root, "rev-parse", "--verify", "--quiet", ref + "^{tree}"))
        except PackagingError as exc:
            raise PackagingError(
                f"{ref!r} names nothing in the repository {str(root)!r}: commit first, fetch it, or give ref"
                " a branch, tag or commit that is there"
            ) from exc
        commit = None
        with contextlib.suppress(PackagingError):  # the name of a tree is none of a commit
            wanted = ("--verify", "--quiet", ref + "^{commit}")
            commit = line(self.git(root, "rev-parse", *wanted))
        if submodules:
            tree, _ = self._merged(root, tree, [], uncommitted=False)
        return Tree(id=tree, commit=commit)

    def current(self, root: Path, found: Status, *, submodules: bool, prefix: str = "") -> Tree:
        """The files as they are: those that git knows, and those that it does not know and not ignore.

        Args:
            root: The repository.
            found: Its status, of this moment.
            submodules: Whether those of its submodules belong to it.
            prefix: Where it lies in the repository that has it as a submodule, ending in "/".

        Raises:
            PackagingError: a merge is not finished, or a file cannot be read.
        """
        self._know(root)
        if found.unmerged:
            raise PackagingError(
                f"a merge is not finished in {str(root)!r}: {names(found.unmerged)}; resolve it, then"
                " `git add`, or package a commit: GitArchivePackager(uncommitted=False)"
            )
        untracked = outside(self.leave_out, root, found.untracked)
        files = [path for path in untracked if not path.endswith(b"/")]
        within = [path.rstrip(b"/") for path in untracked if path.endswith(b"/")] if submodules else []
        diff, inner = "", list[str]()
        if found.commit and not found.changed and not files:
            tree = line(self.git(root, "rev-parse", found.commit + "^{tree}"))
        else:
            tree, diff = self._added(root, found, files, prefix)
        if submodules:
            tree, trees = self._merged(root, tree, within, uncommitted=True, prefix=prefix)
            diff += "".join(each.diff for each in trees)
            inner = [name for each in trees for name in each.untracked]
        known = tuple([prefix + os.fsdecode(path) for path in files] + inner)
        return Tree(id=tree, commit=found.commit, diff=diff, untracked=known)

    def write(self, root: Path, tree: str, folder: Path) -> None:
        """Write a tree's files into a folder: those that `git archive` would give.

        Several at a time, which takes a fraction of the time where the system is slow to make files.
        """
        index = self._new_index()
        self.git(root, "read-tree", tree, index=index)
        if kept_out := self._kept_out(root, index):
            given = b"".join(path + b"\0" for path in kept_out)
            self.git(root, "update-index", "-z", "--force-remove", "--stdin", index=index, input=given)
        self.git(root, "checkout-index", "--all", "--quiet", f"--prefix={folder}/", index=index)

    def _kept_out(self, root: Path, index: Path) -> list[bytes]:
        """The files with the attribute `export-ignore`, or in a folder that has it."""
        files = self.git(root, "ls-files", "-z", index=index).split(b"\0")[:-1]
        folders = {folder for path in files for folder in _with_folders(path)} - {*files}
        given = b"".join(path + b"\0" for path in (*files, *folders))
        asked = ("check-attr", "--cached", "-z", "--stdin", "export-ignore")
        words = self.git(root, *asked, index=index, input=given).split(b"\0")
        ignored = {path for path, state in zip(words[::3], words[2::3], strict=False) if state == b"set"}
        return [path for path in files if not ignored.isdisjoint(_with_folders(path))] if ignored else []

    def git(self, root: Path, *args: str, index: Path | None = None, input: bytes | None = None) -> bytes:
        """A git command that writes objects to our folder."""
        return git(root, *args, env=self.environment(index), input=input)

    def environment(self, index: Path | None = None) -> dict[str, str]:
        """What makes git write to our folder."""
        env = {"GIT_OBJECT_DIRECTORY": str(self.objects)}
        env["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = ":".join(map(_quoted, self._stores))
        return env if index is None else {**env, "GIT_INDEX_FILE": str(index)}

    def conversions(self, root: Path) -> bytes:
        """What decides how a tree becomes files, beyond the tree."""
        try:
            settings = git(root, "config", "-z", "--get-regexp", _CONVERSIONS)
        except PackagingError:  # there are none
            settings = b""
        path = root / line(git(root, "rev-parse", "--git-path", "info/attributes"))
        return settings + (path.read_bytes() if path.is_file() else b"")

    def _know(self, root: Path) -> None:
        store = root / line(git(root, "rev-parse", "--git-path", "objects"))
        self._stores[str(store)] = None

    def _new_index(self) -> Path:
        self._indexes += 1
        return self.work / f"index{self._indexes}"

    def _added(self, root: Path, found: Status, untracked: list[bytes], prefix: str) -> tuple[str, str]:
        """The tree of all files, and the diff that leads to it from the commit."""
        index = self._new_index()
        theirs = root / line(git(root, "rev-parse", "--git-path", "index"))
        if theirs.exists():
            # With its time, by which git knows which files it has to look into.
            shutil.copy2(theirs, index)
        small = untracked if _total(root, untracked) <= _UNTRACKED_IN_DIFF else []
        self._update(root, index, found.unstaged + small)
        diff = self._diff(root, index, found.commit, prefix)
        self._update(root, index, [] if small else untracked)
        return line(self.git(root, "write-tree", index=index)), diff

    def _update(self, root: Path, index: Path, paths: list[bytes]) -> None:
        if paths:
            given = b"".join(path + b"\0" for path in paths)
            how = ("--add", "--remove", "--replace", "-z", "--stdin")
            self.git(root, "update-index", *how, index=index, input=given)

    def _diff(self, root: Path, index: Path, commit: str | None, prefix: str) -> str:
        base = commit or line(self.git(root, "hash-object", "-t", "tree", "-w", "--stdin"))
        how = ["--cached", "-p", "--no-ext-diff", "--no-textconv", "--no-color", "--ignore-submodules=none"]
        how += [f"--src-prefix=a/{prefix}", f"--dst-prefix=b/{prefix}"]
        return self.git(root, "diff-index", *how, base, "--", index=index).decode(errors="surrogateescape")

    def _merged(
        self, root: Path, tree: str, within: list[bytes], *, uncommitted: bool, prefix: str = ""
    ) -> tuple[str, list[Tree]]:
        """A tree with the files of the submodules that are checked out, and of repositories `within`."""
        links = {path: commit for path, commit in self._links(root, tree) if _is_repository(root, path)}
        if not (links or within):
            return tree, []
        index, trees = self._new_index(), []
        self.git(root, "read-tree", tree, index=index)
        for path in (*links, *within):
            inner = root / os.fsdecode(path)
            self.git(root, "update-index", "-z", "--force-remove", "--stdin", index=index, input=path + b"\0")
            if uncommitted:
                below = f"{prefix}{os.fsdecode(path)}/"
                trees.append(self.current(inner, status(inner), submodules=True, prefix=below))
            else:
                trees.append(self.committed(inner, links[path], submodules=True))
            self.git(root, "read-tree", f"--prefix={os.fsdecode(path)}/", trees[-1].id, index=index)
        return line(self.git(root, "write-tree", index=index)), trees

    def _links(self, root: Path, tree: str) -> Iterable[tuple[bytes, str]]:
        """Where a tree has a commit of another repository, and which."""
        for entry in self.git(root, "ls-tree", "-r", "-z", tree).split(b"\0"):
            if entry.startswith(b"160000 "):
                about, _, path = entry.partition(b"\t")
                yield path, about.split(b" ")[2].decode()


def _with_folders(path: bytes) -> Iterator[bytes]:
    """A path and those of the folders it lies in."""
    while path:
        yield path
        path = path.rpartition(b"/")[0]


def _is_repository(root: Path, path: bytes) -> bool:
    return (root / os.fsdecode(path) / ".git").exists()


def _total(root: Path, paths: list[bytes]) -> int:
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            total += os.lstat(os.path.join(os.fsencode(root), path)).st_size
    return total


def _quoted(path: str) -> str:
    """One of several paths between colons."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
