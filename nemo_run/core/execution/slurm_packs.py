"""The shell script that packs what many jobs have left behind, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nemo_run.shell import join

_PACK = """\
umask 077
pack=$(mktemp) || exit
trap 'rm -f "$pack" "$pack".*' EXIT
# tell NUMBER KIND FILE…
tell() {
    at=$1 kind=$2
    shift 2
    echo "$at $kind $(cat -- "$@" | wc -c)"
    cat -- "$@"
    echo
}
# pack NUMBER FOLDER NAME…
pack() {
    at=$1 folder=$2
    shift 2
    if ! cd -- "$folder" 2>"$pack.said"; then tell "$at" failed "$pack.said"; return; fi
    for name do
        shift
        [ ! -d "$name" ] || [ -L "$name" ] || set -- "$@" "./$name"
    done
    : >"$pack"
    if [ $# = 0 ]; then tell "$at" packed "$pack"; return; fi
    find "$@" -type f -printf '%s\\n' >"$pack.sizes" 2>"$pack.said"
    if [ -s "$pack.said" ]; then tell "$at" failed "$pack.said"; return; fi
    size=$(awk '{ sum += $1 } END { printf "%.0f", sum }' "$pack.sizes")
    find "$@" ! -type f ! -type d ! -type l -print >"$pack.special" 2>/dev/null
    tell "$at" said "$pack.special"
    if [ "$size" -gt "$small" ]; then
        echo "$@" >"$pack"
        tell "$at" large "$pack"
    elif [ "$size" -gt "$left" ]; then
        tell "$at" later "$pack"
    else
        left=$((left - size))
        # 1 is for files that change meanwhile, as those do that a task's last process still has open.
        LC_ALL=C tar --hard-dereference -cf "$pack.tar" -- "$@" 2>"$pack.said"
        if [ $? -gt 1 ] || ! gzip -1 <"$pack.tar" >"$pack" 2>"$pack.said"; then
            tell "$at" failed "$pack.said"
        else
            tell "$at" packed "$pack"
        fi
    fi
}
"""


@dataclass(frozen=True)
class Packed:
    """What became of one job's things.

    They are `packed` (an archive, or nothing where there is none), too `large` (then these are the folders
    that there are), left for `later`, or it `failed` with words.
    """

    kind: str
    content: bytes
    #: What a copy cannot hold: sockets, pipes, devices.
    special: list[str] = field(default_factory=list)


def packing(folders: Sequence[str], names: Sequence[str], small: int, together: int) -> str:
    """A script that packs what lies in some folders under some names.

    Args:
        folders: The folders of jobs.
        names: What to take of each.
        small: Bytes above which a job's things are too large.
        together: Bytes of all of them; the others are left for later.
    """
    calls = [join(["pack", str(at), folder, *names]) + "\n" for at, folder in enumerate(folders)]
    return f"small={small} left={together}\n" + _PACK + "".join(calls) + "exit 0\n"


def parse_packing(printed: bytes) -> dict[int, Packed]:
    """What that script printed, by the number of the folder; one that is missing was not come to."""
    found, special, rest = dict[int, Packed](), dict[int, list[str]](), printed
    while rest:
        head, _, rest = rest.partition(b"\n")
        words = head.split(b" ")
        if len(words) != 3 or not (words[0].isdigit() and words[2].isdigit()):
            break
        at, kind, size = int(words[0]), words[1].decode(), int(words[2])
        content, rest = rest[:size], rest[size + 1 :]
        if len(content) < size:
            break
        if kind == "said":
            special[at] = [name.removeprefix("./") for name in content.decode(errors="replace").splitlines()]
        else:
            found[at] = Packed(kind, content, special.get(at, []))
    return found
