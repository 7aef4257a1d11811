"""Shell scripts by which jobs are sent to Slurm and found again, and what they print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_run.core.execution.slurm_queue import NO_ACCOUNTING
from nemo_run.shell import join

#: A file with what the script says of it, and its length, so that whatever is in it can be read.
_SAY = 'say() { printf "%s %s %s\\n" "$1" "$2" "$(($(wc -c <"$3")))"; cat "$3"; echo; }\n'
#: Whoever submits a job holds this, so that nobody takes it for lost who looks meanwhile.
_LOCK = """\
exec 9>>submit.lock
flock -w 60 9 || [ $? != 1 ] || { echo "$PWD: somebody has been submitting it for a minute" >&2; exit 75; }
"""
#: Once begun it goes on whatever happens to whoever asked; and what it did is known from files.
_SUBMIT = f"""\
trap '' INT HUP PIPE TERM
umask 077
{_SAY}submit() (
    cd -- "$2" || exit
    {_LOCK}    if [ "$(cat tried 2>&1)" = "$3" ]; then
        if [ -s submitted ]; then say "$1" submitted submitted; exit; fi
        if [ "$4" != again ]; then say "$1" tried tried; exit; fi
    else
        rm -rf submitted begin*.json end*.json failures* cancelled
    fi
    mkdir -p logs results artifacts || exit
    printf '%s\\n' "$3" >tried
    if sbatch --parsable sbatch.sh >.answer 2>refusal </dev/null; then
        mv -f .answer submitted
        say "$1" submitted submitted
    else
        cat .answer >>refusal
        say "$1" refused refusal
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


@dataclass(frozen=True)
class Answer:
    """What became of one job's submission: `submitted` with its number, `refused` with words, or `tried`."""

    kind: str
    text: str


def submitting(jobs: Sequence[tuple[str, str]], *, again: bool = False) -> str:
    """A script that submits the jobs whose files lie in these folders, each unless it has been already.

    Args:
        jobs: Folders, and the tokens of what is to be submitted.
        again: Whether to submit what has been tried before, with nothing known of it.
    """
    how = "again" if again else "once"
    calls = [join(["submit", str(at), *job, how]) + "\n" for at, job in enumerate(jobs)]
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
