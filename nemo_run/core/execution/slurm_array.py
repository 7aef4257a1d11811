"""Equal jobs as the tasks of one job array: which those are, and the script that starts each as itself."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_run.core.execution.slurm_script import directive, filename
from nemo_run.shell import quote

#: Fewer are not worth it: they are submitted at the same time anyway.
FEWEST = 5
#: What an array says for all its jobs, where each of them alone says it for itself.
_OWN = ("chdir", "comment", "job-name", "output")
#: What no task of an array can have for itself.
_ALONE = ("array", "dependency", "error")
#: Each task goes into its job's folder with its log, and is that job from there on. The log is moved, for
#: Slurm has it open, and may have more to say.
_TASK = """\
nemorun_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
log=slurm_$nemorun_job
suffix=
((${SLURM_RESTART_COUNT:-0})) && suffix=.attempt$((SLURM_RESTART_COUNT + 1))
mv -f "../$log.log" "$SLURM_SUBMIT_DIR/logs/$log$suffix.log"
cd "$SLURM_SUBMIT_DIR" || exit 126
unset "${!SLURM_ARRAY_@}"
source ./sbatch.sh
"""


@dataclass(frozen=True, kw_only=True)
class Array:
    """Jobs that are submitted as one; the task of each has its index."""

    token: str
    script: str
    members: tuple[int, ...]


def arrays(requests: Sequence[Mapping[str, Any]]) -> list[Array]:
    """The arrays that can be made of some of these jobs: those that differ in nothing that Slurm is told.

    Nor do they differ in who waits for them: the first jobs of chains are each at the head of their own.
    """
    waiting = defaultdict[str, list[int]](list)
    for at, request in enumerate(requests):
        for folder in request["after"]:
            waiting[folder].append(at)
    equal = defaultdict[tuple[tuple[str, ...], tuple[int, ...]], list[int]](list)
    for at, request in enumerate(requests):
        if common := _in_common(request):
            equal[common, tuple(waiting[request["folder"]])].append(at)
    return [_array(key[0], requests, those) for key, those in equal.items() if len(those) >= FEWEST]


def _in_common(request: Mapping[str, Any]) -> tuple[str, ...]:
    """The array's name, the words before its token, and directives; nothing for a job that stays alone."""
    lines = request["script"].split("\n")[1:]
    found = tuple(itertools.takewhile(lambda line: line.startswith("#SBATCH "), lines))
    names = {line.removeprefix("#SBATCH --").partition("=")[0] for line in found}
    if not request["array_name"] or request["dependency"] or "#SBATCH hetjob" in lines:
        return ()
    if names.intersection(_ALONE):
        return ()
    return request["array_name"], request["comment"], *(line for line in found if not _is_own(line))


def _is_own(line: str) -> bool:
    return line.removeprefix("#SBATCH --").startswith(tuple(f"{name}=" for name in _OWN))


def _array(common: Sequence[str], requests: Sequence[Mapping[str, Any]], members: Sequence[int]) -> Array:
    """It lies with the first of its jobs, and starts below its folder: the accounting knows it by that."""
    name, comment, *directives = common
    jobs = [requests[at] for at in members]
    folder = jobs[0]["folder"]
    token = f"{jobs[0]['token']} and {len(jobs) - 1} more"
    own = {
        "array": f"0-{len(jobs) - 1}",
        "chdir": f"{folder}/logs",
        "comment": f"{comment} {token}" if comment else token,
        "job-name": name,
        "output": f"{filename(folder)}/slurm_%A_%a.log",
    }
    lines = [f"{line}\n" for line in directives] + [directive(*each) for each in own.items()]
    which = "".join(
        f"    {index}) SLURM_JOB_NAME={quote(job['name'])} SLURM_SUBMIT_DIR={quote(job['folder'])} ;;\n"
        for index, job in enumerate(jobs)
    )
    text = f"#!/bin/bash\n{''.join(sorted(lines))}\ncase $SLURM_ARRAY_TASK_ID in\n{which}esac\n{_TASK}"
    return Array(token=token, script=text, members=tuple(members))
