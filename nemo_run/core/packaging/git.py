"""GitArchivePackager: the code of a git repository as it is now, or as it was committed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from nemo_run.core.packaging.base import Contents, Packager, Source
from nemo_run.core.packaging.hybrid import merge
from nemo_run.core.packaging.pattern import Listing, paired
from nemo_run.core.packaging.repository import (
    Tree,
    Trees,
    line,
    names,
    outside,
    status,
    top_level,
)
from nemo_run.errors import ConfigError, PackagingError


@dataclass(kw_only=True)
class GitArchivePackager(Packager):
    """Packages a git repository: by default its files as they are, whether committed or not.

    That is the last commit with what was modified, added or deleted since, and the files that git neither
    knows nor ignores. Nothing in the repository is changed, its index included.

    Raises:
        ConfigError: a setting cannot work.
    """

    #: A folder of the repository; by default the one that is launched from.
    basepath: str = ""
    #: Only this folder of the repository, which then is the top of the packaged code.
    subpath: str = ""
    #: A branch, tag or commit; other than by default, its committed files travel, whatever the files are now.
    ref: str = "HEAD"
    #: Also the files of submodules that are checked out.
    include_submodules: bool = True
    #: Also files that match this pattern (or these), though git ignores them; see `PatternPackager`.
    include_pattern: str | list[str] = ""
    #: The folder whose files these are, which becomes the top of the code; by default the repository's.
    include_pattern_relative_path: str | list[str] = ""
    #: Refuse to launch while files that git knows are modified.
    check_uncommitted_changes: bool = False
    #: Refuse to launch while there are files that git neither knows nor ignores.
    check_untracked_files: bool = False
    #: Whether files travel as they are; False for the committed ones only.
    uncommitted: bool = True

    def __post_init__(self) -> None:
        if not self.ref or self.ref.startswith("-"):
            raise ConfigError(f"GitArchivePackager.ref is {self.ref!r}; give a branch, tag or commit")
        if os.path.isabs(self.subpath) or ".." in Path(self.subpath).parts:
            raise ConfigError(
                f"GitArchivePackager.subpath is {self.subpath!r}; give a path below the top of the repository"
            )
        self._patterns(Path())

    def contents(self, source: Source) -> Contents:
        """Find the tree of the files, without a change to the repository."""
        root = self._root(source.folder)
        trees = Trees(source.work, source.leave_out)
        tree = self._tree(trees, root)
        packaged = self._below(trees, root, tree)
        more = [
            Listing.find(pattern, top, source.folder, source.leave_out)
            for pattern, top in self._patterns(root)
        ]
        parts = [packaged, trees.conversions(root).hex(), *(listing.digest for listing in more)]

        def write(code: Path) -> None:
            trees.write(root, packaged, code)
            for at, listing in enumerate(more):
                taken = source.work / f"more{at}"
                taken.mkdir()
                listing.write(taken)
                merge(taken, code)

        facts = {"root": str(root), "tree": packaged} | ({"commit": tree.commit} if tree.commit else {})
        digest = "git:" + hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return Contents(digest=digest, write=write, facts=facts, diff=tree.diff, untracked=tree.untracked)

    def origins(self, folder: Path) -> dict[str, str | None]:
        """`subpath` of the repository becomes the code; the rest of the repository stays out of use."""
        root = self._root(folder)
        return {str(root): None, os.path.normpath(root / self.subpath): "."}

    def _root(self, folder: Path) -> Path:
        base = folder / os.path.expanduser(self.basepath)
        if not base.is_dir():
            raise PackagingError(f"GitArchivePackager.basepath: there is no folder {str(base)!r}")
        return top_level(base)

    def _patterns(self, root: Path) -> list[tuple[str, Path]]:
        given = paired(self, "include_pattern", "include_pattern_relative_path", default=str(root))
        return [(pattern, Path(os.path.expanduser(top))) for pattern, top in given]

    def _tree(self, trees: Trees, root: Path) -> Tree:
        as_it_is = self.uncommitted and self.ref == "HEAD"
        if not (as_it_is or self.check_uncommitted_changes or self.check_untracked_files):
            return trees.committed(root, self.ref, submodules=self.include_submodules)
        found = status(root, submodules=self.include_submodules)
        if self.check_uncommitted_changes and (changed := [*found.changed, *found.unmerged]):
            raise PackagingError(
                f"there are changes in {str(root)!r} that are not committed: {names(changed)}; commit them,"
                " or leave check_uncommitted_changes out"
            )
        if self.check_untracked_files and (unknown := outside(trees.leave_out, root, found.untracked)):
            raise PackagingError(
                f"there are files in {str(root)!r} that git does not know: {names(unknown)}; add,"
                " ignore or remove them, or leave check_untracked_files out"
            )
        if as_it_is:
            return trees.current(root, found, submodules=self.include_submodules)
        return trees.committed(root, self.ref, submodules=self.include_submodules)

    def _below(self, trees: Trees, root: Path, tree: Tree) -> str:
        """The tree of `subpath`."""
        path = os.path.normpath(self.subpath or ".")
        if path == ".":
            return tree.id
        try:
            found = line(trees.git(root, "rev-parse", "--verify", "--quiet", f"{tree.id}:{path}"))
            return line(trees.git(root, "rev-parse", "--verify", "--quiet", found + "^{tree}"))
        except PackagingError as exc:
            what = f"at {self.ref!r}" if self.ref != "HEAD" else "of files that git does not ignore"
            raise PackagingError(
                f"GitArchivePackager.subpath: there is no folder {self.subpath!r} {what} in the repository"
                f" {str(root)!r}; give a path from its top"
            ) from exc
