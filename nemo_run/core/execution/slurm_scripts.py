"""Shell scripts by which jobs are sent to Slurm and found again, and what they print."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_run.core.execution.slurm_array import Array
from nemo_run.core.execution.slurm_queue import NO_ACCOUNTING
from nemo_run.shell import join, quote

#: Whoever submits jobs of an experiment holds this, so that nobody takes one for lost who looks meanwhile.
_LOCK = """\
exec 9>>submit.lock
flock -w 60 9 || [ $? != 1 ] || { echo "$PWD: somebody has been submitting for a minute" >&2; exit 75; }
"""
#: Once begun it goes on whatever happens to whoever asked; and what it did is known from files: of each job
#: first its token, then its number. What it says of a job is told with its length, so that whatever is in it
#: can be read. Programs are started only where the shell cannot do it: they cost more than the submission.
_SUBMIT = f"""\
trap '' INT HUP PIPE TERM
umask 077
cd -- "$above" || exit
{_LOCK}submit() {{
    at=$1 token=$3 how=$4 after=$5
    cd -- "$2" || return
    shift 5
    look
    if [ "$before" = "$token" ]; then
        if [ "$number" ]; then say submitted "$number"; return; fi
        if [ "$how" != again ]; then say tried; return; fi
    fi
    for folder do
        number=
        [ ! -e "$folder/submission" ] || {{ read -r number; read -r number; }} <"$folder/submission"
        if [ ! "$number" ]; then say blocked "$folder"; return; fi
        after=$after:${{number%%;*}}
    done
    if [ $# = 0 ]; then set --; else set -- "--dependency=$after" --kill-on-invalid-dep=yes; fi
    [ ! -e array ] || rm -f array
    begin || return
    # The number is kept here, too: it must be told even if there is no room left for it.
    if number=$(sbatch --parsable "$@" sbatch.sh 2>"$said" </dev/null) && [ "$number" ]; then
        printf '%s\\n' "$number" >>submission
        say submitted "$number"
    else
        say refused "$number$(cat "$said")"
    fi
}}
# What is known of the job in this folder.
look() {{
    before= number=
    [ ! -e submission ] || {{ IFS= read -r before; read -r number; }} <submission
}}
# From now on it counts as tried, and what an earlier one has left here does not count.
begin() {{
    [ ! "$before" ] || [ "$before" = "$token" ] || rm -rf begin*.json end*.json failures* cancelled
    printf '%s\\n' "$token" >submission
}}
# Jobs of which one has been tried are submitted one by one, and so are those of an array that Slurm takes for
# too many at once.
array() {{
    parts=$1 first=$2 whole=$3 fresh=yes failed=
    $parts look
    if [ ! "$fresh" ]; then how=once; $parts alone; return; fi
    $parts note
    [ ! "$failed" ] && cd -- "$first" && printf '%s' "$4" >array.sh || return
    if main=$(sbatch --parsable array.sh 2>"$said" </dev/null) && [ "$main" ]; then
        $parts number
        return
    fi
    words=$main$(cat "$said")
    case $words in
        *'nvalid job array'* | *'violates accounting/QOS'*) how=again; $parts alone ;;
        *) $parts refuse ;;
    esac
}}
# One job of an array.
part() {{
    at=$3 token=$5
    cd -- "$4" || {{ fresh= failed=yes; return; }}
    case $1 in
        look) look; [ "$before" != "$token" ] || fresh= ;;
        note) look; printf '%s\\n' "$token" "$2" "$whole" "$first/logs" >array && begin || failed=yes ;;
        number)
            number=${{main%%;*}}_$2
            printf '%s\\n' "$number" >>submission
            say submitted "$number"
            ;;
        refuse) say refused "$words" ;;
        alone) submit "$at" "$4" "$token" "$how" "" ;;
    esac
}}
say() {{
    case $2 in
        *[!0-9_]*) size=$(printf %s "$2" | wc -c) ;;
        *) size=${{#2}} ;;
    esac
    printf '%s %s %s\\n%s\\n' "$at" "$1" "$((size))" "$2"
}}
"""
#: Several at a time, for most of a submission is waiting; those that wait for one another are in one lane.
_LANES = """\
lanes=$(mktemp -d ./.submitting.XXXXXX) && lanes=$PWD/${lanes#./} || exit
trap 'rm -rf "$lanes"' EXIT
for lane in %s; do
    (said=$lanes/$lane.said; lane_$lane >"$lanes/$lane") &
done
wait
cat "$lanes"/*[0-9]
"""
_FIND = f"""\
cd -- "$1/.." 2>/dev/null || exit 0
{_LOCK}cd -- "$1" 2>/dev/null || exit 0
[ -e submission ] || exit 0
{{ IFS= read -r before; read -r number; }} <submission
[ "$before" = "$2" ] || exit 0
if [ "$number" ]; then printf 'submitted|%s\\n' "$number"; exit; fi
umask 077
# What is found is noted, for the jobs that wait for it.
found() {{ printf '%s\\n' "$2" >>submission; printf '%s|%s|%s\\n' "$@"; exit; }}
number=$(cat begin.json 2>&1 | sed -n 's/.*"job": "\\([0-9_]*\\)".*/\\1/p')
[ -z "$number" ] || found begun "$number" "$1"
# As the task of an array it is known by the array's token, and by a folder that no job alone has.
token=$2 where=$1 task= of=
[ ! -e array ] || {{ IFS= read -r of; read -r index; IFS= read -r whole; IFS= read -r below; }} <array
if [ "$of" = "$2" ]; then token=$whole where=$below task=_$index; fi
queue=$(squeue --noheader --all --states=all --user="$(id -u)" --format='%F|%k') || exit 1
while IFS='|' read -r number comment; do
    case $comment in "$token" | *" $token") found queue "$number$task" "$2" ;; esac
done <<END
$queue
END
since=$(date -r submission +%Y-%m-%dT%H:%M:%S)
if past=$(
    sacct --allocations --noheader --parsable2 --starttime="$since" --format=JobID,WorkDir 2>&1
); then
    while IFS='|' read -r number folder; do
        [ "$folder" != "$where" ] || found past "${{number%%[_+]*}}$task" "$1"
    done <<END
$past
END
else
    case $past in *'{NO_ACCOUNTING.decode()}'*) ;; *) printf '%s\\n' "$past" >&2; exit 1 ;; esac
fi
exit 0
"""
#: A job's, or that of one task of an array.
_NUMBER = re.compile(r"\d+(_\d+)?")
#: How many are submitted at the same time.
LANES = 4


@dataclass(frozen=True, kw_only=True)
class Order:
    """One job to be submitted, whose files lie in a folder."""

    folder: str
    token: str
    #: How a dependency on others begins that are submitted before it: "afterok", "afterok:17".
    dependency: str = ""
    #: The folders of those others.
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What became of one job's submission.

    It is `submitted` with its number, `refused` with words, `tried` with nothing known of it, `blocked`
    because one that it waits for has not been submitted, or `unknown` where the script ended too early.
    """

    kind: str
    text: str


def submitting(
    above: str, orders: Sequence[Order], arrays: Sequence[Array] = (), *, again: bool = False
) -> str:
    """A script that submits jobs, each unless it has been already, and after those that it waits for.

    It may be run a second time, also while the first still runs: what one has tried the other does not.

    Args:
        above: The folder in which the folders of all of them lie.
        orders: The jobs.
        arrays: Those of them that are submitted as one, unless one of them has been tried before.
        again: Whether to submit what has been tried before, with nothing known of it.
    """
    how = "again" if again else "once"
    calls = [
        join(["submit", str(at), order.folder, order.token, how, order.dependency, *order.after])
        for at, order in enumerate(orders)
    ]
    script = f"above={quote(above)}\n{_SUBMIT}"
    for number, array in enumerate(arrays):
        first, *others = array.members
        folder = orders[first].folder
        calls[first] = join(["array", f"parts_{number}", folder, array.token, array.script])
        for at in others:
            calls[at] = ""
        script += f"parts_{number}() {{\n{_parts(array, orders)}}}\n"
    lanes = _lanes(orders, arrays)
    for number, lane in enumerate(lanes):
        script += f"lane_{number}() {{\n" + "".join(f"{calls[at]}\n" for at in lane if calls[at]) + "}\n"
    return script + _LANES % " ".join(map(str, range(len(lanes)))) + "exit 0\n"


def _parts(array: Array, orders: Sequence[Order]) -> str:
    words = ([str(i), str(at), orders[at].folder, orders[at].token] for i, at in enumerate(array.members))
    return "".join(f'part "$1" {join(each)}\n' for each in words)


def _lanes(orders: Sequence[Order], arrays: Sequence[Array]) -> list[list[int]]:
    """The numbers of jobs in lanes of about the same length; whoever waits for another is in its lane."""
    above = {order.folder: order.folder for order in orders}

    def first(folder: str) -> str:
        while above[folder] != folder:
            folder = above[folder]
        return folder

    for order in orders:
        for other in above.keys() & order.after:
            above[first(order.folder)] = first(other)
    for array in arrays:
        for at in array.members:
            above[first(orders[at].folder)] = first(orders[array.members[0]].folder)
    groups = defaultdict[str, list[int]](list)
    for at, order in enumerate(orders):
        groups[first(order.folder)].append(at)
    lanes: list[list[int]] = [[] for _ in range(min(LANES, len(groups)))]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(lanes, key=len).extend(group)
    return lanes


def parse_submitting(printed: bytes) -> dict[int, Answer]:
    """What that script printed, by the number of the job; those that are missing have not been tried."""
    found, rest = dict[int, Answer](), printed
    while rest:
        head, _, rest = rest.partition(b"\n")
        words = head.split(b" ")
        if len(words) != 3 or not (words[0].isdigit() and words[2].isdigit()):
            break
        size = int(words[2])
        text = rest[:size].decode(errors="replace").strip()
        found[int(words[0])] = Answer(words[1].decode(), text)
        rest = rest[size + 1 :]
    return found


def finding(folder: str, token: str) -> list[str]:
    """The command that looks for an earlier submission: in the job's folder, the queue and the accounting."""
    return ["sh", "-c", _FIND, "sh", folder, token]


def parse_finding(printed: str, folder: str, token: str) -> str | None:
    """The number of the job that was found."""
    for line in printed.splitlines():
        kind, _, rest = line.partition("|")
        number, _, what = rest.partition("|")
        known = {"queue": what == token or what.endswith(f" {token}"), "past": what == folder}
        if known.get(kind, True) and _NUMBER.fullmatch(number := number.partition(";")[0]):
            return number
    return None
