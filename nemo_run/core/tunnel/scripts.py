"""Shell scripts for many small files at once, and what they print: one round trip for any number."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from nemo_run.errors import ConfigError
from nemo_run.shell import quote

#: Unpacks archives on standard input into the folder `$1`; `$2` is the bytes of them all, the words after it
#: those of each. Nothing is unpacked if some is missing.
UNPACK = """\
set -e
umask 077
mkdir -p -- "$1"
CDPATH= cd -- "$1"
archive=$(mktemp ./.upload.XXXXXX)
trap 'rm -f "$archive"' EXIT
cat >"$archive"
if [ "$(wc -c <"$archive")" -ne "$2" ]; then
    rm -f "$archive" # first, for who speaks to nobody is killed
    echo 'the connection was cut before all of it had arrived' >&2
    exit 75
fi
shift 2
from=1 parts=
for size do
    tail -c "+$from" "$archive" | head -c "$size" | tar -xzpmof - &
    parts="$parts $!" from=$((from + size))
done
for part in $parts; do
    wait "$part"
done
"""
#: So many are unpacked at the same time, for file systems take their time for each new file; and what lies in
#: so many folders is worth it.
_PARTS, _MANY_FOLDERS = 4, 16

#: Exit code of the script for reading if files have come or gone while it looked.
CHANGED = 75
_TAKE = """\
take() {
    echo "$1 $4"
    dd if="$2" skip="$3" count="$4" bs=65536 iflag=skip_bytes,count_bytes 2>/dev/null
    echo
}
"""


def pack(files: Mapping[str, bytes], mode: int) -> list[bytes]:
    """Archives for `UNPACK`: relative names → contents, all with the same mode; a folder is in one of them.

    Raises:
        ConfigError: a name would lead out of the folder.
    """
    folders = dict.fromkeys(name.partition("/")[0] for name in files)
    count = _PARTS if len(folders) >= _MANY_FOLDERS else 1
    part_of = {folder: at % count for at, folder in enumerate(folders)}
    parts: list[dict[str, bytes]] = [{} for _ in range(count)]
    for name, content in files.items():
        parts[part_of[name.partition("/")[0]]][name] = content
    return [_pack(part, mode) for part in parts]


def _pack(files: Mapping[str, bytes], mode: int) -> bytes:
    buffer = io.BytesIO()
    # GNU's form holds names as bytes; the one of POSIX is warned about where they are not UTF-8.
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for name, content in files.items():
            check_name(name)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            if name.endswith("/"):
                entry.type, entry.mode = tarfile.DIRTYPE, 0o700
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), 1, mtime=0)


def check_name(name: str) -> None:
    """Refuse the name of a file that would not lie below its folder.

    Raises:
        ConfigError: it would not.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ConfigError(f"{name!r} is no name of a file below a folder; give one without a leading / or ..")


def reading(offsets: Sequence[tuple[str, int]], limit: int) -> str:
    """A script that prints, for each file that is longer than its offset, at most `limit` bytes from there.

    Files that have not grown cost nothing but their share of one `stat`; one that is not there is empty.
    """
    lines = [_TAKE]
    for at, (path, _) in enumerate(offsets):
        lines.append(f'f{at}={quote(_not_an_option(path))}; [ -f "$f{at}" ] || f{at}=/dev/null\n')
    names = " ".join(f'"$f{at}"' for at in range(len(offsets)))
    lines.append(f"set -- $(stat -L -c %s {names})\n[ $# = {len(offsets)} ] || exit {CHANGED}\n")
    for at, (_, offset) in enumerate(offsets):
        lines.append(
            f"n=$((${{{at + 1}}} - {offset})); [ $n -gt {limit} ] && n={limit}\n"
            f'[ $n -gt 0 ] && take {at} "$f{at}" {offset} $n\n'
        )
    return "".join(lines) + "exit 0\n"


def parse_reading(printed: bytes) -> dict[int, bytes] | None:
    """What the script for reading printed, by the number of the file; None if a file shrank meanwhile."""
    found, rest = dict[int, bytes](), printed
    while rest:
        head, _, rest = rest.partition(b"\n")
        at, _, size = head.partition(b" ")
        if not (at.isdigit() and size.isdigit()) or rest[int(size) : int(size) + 1] != b"\n":
            return None
        found[int(at)], rest = rest[: int(size)], rest[int(size) + 1 :]
    return found


def _not_an_option(path: str) -> str:
    return f"./{path}" if path.startswith("-") else path
