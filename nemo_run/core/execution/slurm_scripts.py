"""Shell scripts by which jobs are sent to Slurm and found again, and what they print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_run.core.execution.slurm_queue import NO_ACCOUNTING
from nemo_run.shell import join

#: Whoever submits a job holds this, so that nobody takes it for lost who looks meanwhile.
_LOCK = """\
exec 9>>submit.lock
flock -w 60 9 || [ $? != 1 ] || { echo "$PWD: somebody has been submitting it for a minute" >&2; exit 75; }
"""
#: Once begun it goes on whatever happens to whoever asked; and what it did is known from files. What it says
#: of a job is told with its length, so that whatever is in it can be read.
_SUBMIT = f"""\
trap '' INT HUP PIPE TERM
umask 077
say() {{
    printf '%s %s %s\\n%s\\n' "$at" "$1" "$(($(printf %s "$2" | wc -c)))" "$2"
}}
submit() (
    cd -- "$2" || exit
    {_LOCK}    at=$1 token=$3 how=$4 after=$5 before= answer=
    shift 5
    [ ! -e tried ] || IFS= read -r before <tried
    if [ "$before" = "$token" ]; then
        if [ -s submitted ] && read -r answer <submitted; then say submitted "$answer"; exit; fi
        if [ "$how" != again ]; then say tried; exit; fi
    elif [ "$before" ]; then
        rm -rf submitted begin*.json end*.json failures* cancelled
    fi
    for folder do
        if ! read -r number 2>/dev/null <"$folder/submitted"; then say blocked "$folder"; exit; fi
        after=$after:${{number%%;*}}
    done
    if [ $# = 0 ]; then set --; else set -- "--dependency=$after" --kill-on-invalid-dep=yes; fi
    [ -d artifacts ] || mkdir -p logs results artifacts || exit
    printf '%s\\n' "$token" >tried || exit
    # The number is kept here, too: it must be told even if there is no room left for it.
    if answer=$(sbatch --parsable "$@" sbatch.sh 2>refusal </dev/null) && [ "$answer" ]; then
        printf '%s\\n' "$answer" >.answer && mv -f .answer submitted
        say submitted "$answer"
    else
        say refused "$answer$(cat refusal)"
    fi
)
"""
_FIND = f"""\
cd -- "$1" 2>/dev/null || exit 0
{_LOCK}[ "$(cat tried 2>&1)" = "$2" ] || exit 0
if [ -s submitted ]; then printf 'submitted|'; head -n 1 submitted; exit; fi
for begun in begin*.json; do
    [ -e "$begun" ] || continue
    sed -n 's/.*"job": "\\([0-9]*\\)".*/begun|\\1/p' "$begun"
    exit
done
umask 077
queue=$(squeue --noheader --all --states=all --user="$(id -u)" --format='%A|%k') || exit 1
printf '%s\\n' "$queue" | grep -F -- "$2" | sed 's/^/queue|/'
since=$(date -r tried +%Y-%m-%dT%H:%M:%S)
if past=$(
    sacct --allocations --noheader --parsable2 --starttime="$since" --format=JobIDRaw,WorkDir 2>&1
); then
    printf '%s\\n' "$past" | grep -F -- "|$1" | sed 's/^/past|/'
else
    case $past in *'{NO_ACCOUNTING.decode()}'*) ;; *) printf '%s\\n' "$past" >&2; exit 1 ;; esac
fi
exit 0
"""


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

    It is `submitted` with its number, `refused` with words, `tried` with nothing known of it, or `blocked`
    because one that it waits for has not been submitted.
    """

    kind: str
    text: str


def submitting(orders: Sequence[Order], *, again: bool = False) -> str:
    """A script that submits jobs one after the other, each unless it has been already.

    It may be run a second time, also while the first still runs: what one has tried the other does not.

    Args:
        orders: The jobs.
        again: Whether to submit what has been tried before, with nothing known of it.
    """
    how = "again" if again else "once"
    calls = [
        join(["submit", str(at), order.folder, order.token, how, order.dependency, *order.after]) + "\n"
        for at, order in enumerate(orders)
    ]
    return _SUBMIT + "".join(calls) + "exit 0\n"


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
        if known.get(kind, True) and (number := number.partition(";")[0]).isdigit():
            return number
    return None
