"""PatternPackager: files that match patterns, whether or not there is version control."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nemo_run.core.packaging.base import Contents, Packager, Source
from nemo_run.core.packaging.snapshot import changed, copy_files, walk
from nemo_run.errors import ConfigError, PackagingError


@dataclass(kw_only=True)
class PatternPackager(Packager):
    """Packages the files that match one pattern or several.

    A pattern is a shell's: `*`, `?` and `[…]` match within a name, `**` any number of folders, and none of
    them a name that begins with a dot. A folder that matches stands for all files below it, those that
    begin with a dot included.

    Raises:
        ConfigError: a setting cannot work.
    """

    #: Absolute, or from the folder that is launched from; from `relative_path` where there nothing matches.
    include_pattern: str | list[str]
    #: The folder whose files these are, which becomes the top of the code; one, or one per pattern.
    relative_path: str | list[str]

    def __post_init__(self) -> None:
        if not self._patterns(Path()):
            raise ConfigError("PatternPackager.include_pattern is empty; give a pattern such as 'src/**'")

    def contents(self, source: Source) -> Contents:
        """Find the files and read them once."""
        listings = [
            Listing.find(pattern, top, source.folder, source.leave_out)
            for pattern, top in self._patterns(source.folder)
        ]
        files = dict[str, str]()
        for listing in listings:
            for name, path in listing.files.items():
                if name in files and fingerprint(files[name]) != fingerprint(path):
                    raise PackagingError(
                        f"PatternPackager: {files[name]!r} and {path!r} differ and would both become {name!r}"
                        "; use run.HybridPackager to put them into folders of their own"
                    )
                files[name] = path
        whole = Listing(files)
        return Contents(digest=whole.digest, write=whole.write)

    def origins(self, folder: Path) -> dict[str, str | None]:
        """Each `relative_path` becomes the code."""
        return {os.path.normpath(top): "." for _, top in self._patterns(folder)}

    def _patterns(self, folder: Path) -> list[tuple[str, Path]]:
        given = paired(self, "include_pattern", "relative_path", default=str(folder))
        return [(pattern, folder / os.path.expanduser(top)) for pattern, top in given]


class Listing:
    """Files by the path they have in the package."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        self.digest = _digest(files)

    @classmethod
    def find(cls, pattern: str, top: Path, folder: Path, leave_out: Path) -> Listing:
        """The files below `top` that match.

        Args:
            pattern: As a shell has it.
            top: The folder whose files they are.
            folder: Where a relative pattern starts.
            leave_out: A folder that is not looked into.

        Raises:
            PackagingError: there is no such folder, or no such file.
        """
        top = Path(os.path.normpath(folder / top))
        if not top.is_dir():
            raise PackagingError(f"cannot package {pattern!r}: there is no folder {str(top)!r}")
        for inner in _readings(os.path.expanduser(pattern), top, folder):
            if files := dict(_matches(inner, str(top), str(leave_out))):
                return cls(files)
        raise PackagingError(
            f"no file below {str(top)!r} matches the pattern {pattern!r}; a pattern is relative to the"
            f" folder that is launched from ({str(folder)!r}), and a folder stands for all files below it"
        )

    def write(self, code: Path) -> None:
        """Copy them, as they were when they were found."""
        written, copies = {}, []
        for name, path in self.files.items():
            target = written[name] = os.path.join(code, name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.islink(path):
                os.symlink(os.readlink(path), target)
            else:
                copies.append((path, target))
        copy_files(copies)
        if _digest(written) != self.digest:
            changed()


def paired(packager: Packager, patterns: str, tops: str, *, default: str) -> list[tuple[str, str]]:
    """Each pattern of a packager with its folder.

    Args:
        packager: The packager.
        patterns: The name of the field with one pattern or several.
        tops: The name of that with one folder for all, or one for each.
        default: Stands for a folder that is not given.

    Raises:
        ConfigError: they do not fit together.
    """
    given, folders = _listed(packager, patterns), _listed(packager, tops)
    if len(folders) == 1:
        folders *= len(given)
    if len(folders) != len(given):
        raise ConfigError(
            f"{type(packager).__name__} has {len(given)} patterns in {patterns} and {len(folders)} folders in"
            f" {tops}; give one folder for all, or one for each"
        )
    return [(each, top or default) for each, top in zip(given, folders, strict=True) if each]


def _listed(packager: Packager, name: str) -> list[str]:
    value = getattr(packager, name)
    listed = [os.fspath(value)] if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(listed, (list, tuple)) or not all(isinstance(item, str) for item in listed):
        raise ConfigError(f"{type(packager).__name__}.{name} is {value!r}; give a text or a list of texts")
    return list(listed)


def _readings(pattern: str, top: Path, folder: Path) -> Iterator[str]:
    """A pattern as one below `top`: relative to where it is launched from, else to `top` itself."""
    inner = [os.path.relpath(os.path.join(folder, pattern), top)]
    inner += [] if os.path.isabs(pattern) else [os.path.normpath(pattern)]
    yield from (each for each in inner if each.split("/")[0] != "..")


def _matches(pattern: str, top: str, leave_out: str) -> Iterator[tuple[str, str]]:
    """By path below `top` the whole path of each file and symbolic link that matches."""
    whole = pattern.removesuffix("/**") if pattern != "**" else "*"  # a folder stands for all below it
    is_name = os.path.lexists(os.path.join(top, whole))  # however it looks
    for match in [whole] if is_name else glob.iglob(whole, root_dir=top, recursive=True):
        path = os.path.normpath(os.path.join(top, match))
        found = [entry.path for entry in walk(path)] if is_folder(path) else [path]
        for file in found:
            if (os.path.isfile(file) or os.path.islink(file)) and not (file + "/").startswith(
                leave_out + "/"
            ):
                yield os.path.relpath(file, top), file


def is_folder(path: str) -> bool:
    """Whether it is a folder itself, and no link to one."""
    return os.path.isdir(path) and not os.path.islink(path)


def _digest(files: dict[str, str]) -> str:
    total = hashlib.sha256()
    ordered = sorted(files)
    with ThreadPoolExecutor(4) as pool:
        for name, content in zip(
            ordered, pool.map(fingerprint, map(files.__getitem__, ordered)), strict=True
        ):
            total.update(os.fsencode(name) + b"\0" + content)
    return "files:" + total.hexdigest()


def fingerprint(path: str) -> bytes:
    """Equal for files of equal content that can equally be executed, and for equal symbolic links."""
    if os.path.islink(path):
        return b"link" + hashlib.sha256(os.fsencode(os.readlink(path))).digest()
    content = hashlib.sha256()
    with open(path, "rb") as file:
        executable = os.fstat(file.fileno()).st_mode & 0o100
        while block := file.read(1 << 20):
            content.update(block)
    return (b"exec" if executable else b"file") + content.digest()
