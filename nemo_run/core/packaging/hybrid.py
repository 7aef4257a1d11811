"""HybridPackager: the code of several packagers in one."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from nemo_run.core.packaging.base import Contents, Packager, Source
from nemo_run.core.packaging.pattern import fingerprint, is_folder
from nemo_run.core.packaging.snapshot import walk
from nemo_run.errors import ConfigError, PackagingError


@dataclass(kw_only=True)
class HybridPackager(Packager):
    """Packages what several packagers do, each in a folder of its name, or all at the top.

    Raises:
        ConfigError: there is none, or one that packages nothing; or a name is no folder's.
    """

    #: Packagers by the folder that their code goes to.
    sub_packagers: dict[str, Packager] = field(default_factory=dict)
    #: Put everything at the top instead; then two may not differ in a file.
    extract_at_root: bool = False

    def __post_init__(self) -> None:
        if not self.sub_packagers:
            raise ConfigError(
                "HybridPackager has no sub_packagers; give some: {'code': run.GitArchivePackager()}"
            )
        for name, packager in self.sub_packagers.items():
            if not isinstance(packager, Packager) or not packager.moves_code:
                raise ConfigError(
                    f"HybridPackager.sub_packagers[{name!r}] is {packager!r}; give one that packages code"
                )
            parts = Path(name).parts
            if not self.extract_at_root and (not parts or os.path.isabs(name) or ".." in parts):
                raise ConfigError(
                    f"HybridPackager.sub_packagers has the name {name!r}; give a path below the code"
                )

    def contents(self, source: Source) -> Contents:
        """Find what each of them does."""
        found = {
            name: packager.contents(source.below(f"part{at}"))
            for at, (name, packager) in enumerate(self.sub_packagers.items())
        }

        def write(code: Path) -> None:
            owners: dict[str, str] = {}
            for at, (name, contents) in enumerate(found.items()):
                part = source.work / f"written{at}"
                part.mkdir()
                contents.write(part)
                self._merge(name, part, code, owners)

        parts = [text for name, each in found.items() for text in (self._folder(name), each.digest)]
        digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
        known = next((each for each in found.values() if each.facts), next(iter(found.values())))
        return replace(known, digest="hybrid:" + digest, write=write)

    def origins(self, folder: Path) -> dict[str, str | None]:
        """Those of the packagers, each below its folder."""
        found: dict[str, str | None] = {}
        for name, packager in self.sub_packagers.items():
            for origin, below in packager.origins(folder).items():
                place = None if below is None else os.path.normpath(os.path.join(self._folder(name), below))
                found[origin] = found.get(origin) or place
        return found

    def _folder(self, name: str) -> str:
        return "." if self.extract_at_root else name

    def _merge(self, name: str, part: Path, code: Path, owners: dict[str, str]) -> None:
        top = code / self._folder(name)
        files = [os.path.normpath(top / os.path.relpath(entry.path, part)) for entry in walk(str(part))]

        def refuse(path: str) -> None:
            other = next(owner for file, owner in owners.items() if (file + "/").startswith(path + "/"))
            raise PackagingError(
                f"HybridPackager: {other!r} and {name!r} both have {os.path.relpath(path, code)!r}, and they"
                " differ; leave it out of one of them"
                + (", or leave extract_at_root out" if self.extract_at_root else "")
            )

        for above in (*reversed(top.parents), top):
            if above.is_relative_to(code) and os.path.lexists(above) and not is_folder(str(above)):
                refuse(str(above))
        merge(part, top, refuse)
        for file in files:
            owners.setdefault(file, name)


def merge(part: Path, whole: Path, refuse: Callable[[str], None] | None = None) -> None:
    """Move what is in one folder into another.

    Args:
        part: The one.
        whole: The other; made if it is not there.
        refuse: Called with a path that both have and that differs; without it that of `part` is kept.
    """
    whole.mkdir(parents=True, exist_ok=True)
    with os.scandir(part) as entries:
        for entry in list(entries):
            target = str(whole / entry.name)
            if not os.path.lexists(target):
                os.rename(entry.path, target)
            elif is_folder(entry.path) and is_folder(target):
                merge(Path(entry.path), Path(target), refuse)
            elif not _same(entry.path, target):
                if refuse is not None:
                    refuse(target)
                shutil.rmtree(target) if is_folder(target) else os.unlink(target)
                os.rename(entry.path, target)


def _same(one: str, other: str) -> bool:
    return not (is_folder(one) or is_folder(other)) and fingerprint(one) == fingerprint(other)
