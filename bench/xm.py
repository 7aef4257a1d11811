"""Launch scripts of XManager's kind, beside what a shell does for the same programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from groups import PASS, paired
from measure import Group, pairs, python

if TYPE_CHECKING:
    from groups import Sizes

_BARE = "import nemo_run.xm_local"
_USED = "from nemo_run import xm, xm_local; xm_local.Local(xm.JobRequirements(cpu=1))"


def xm(sizes: Sizes) -> Group:
    """What a launch script costs beside its jobs."""
    few, many = sizes.jobs
    goal, whole = "≤ 1.5×", "from `create_experiment` to the end of its `with`"
    return Group(
        title="Launch scripts",
        how="The first row is an interpreter that imports `nemo_run.xm_local`, the second one that also names"
        " an executor and requirements; the floor is one that runs `pass`. Programs are started in a process"
        " that has run an experiment before; their floor is `sh` that starts as many by `&` and waits for"
        f" all. {many:,} units are set beside {many // few} times what {few} take: 1× is linear.",
        rows=[
            pairs("`import nemo_run.xm_local`", python(_BARE), PASS, count=sizes.pairs, goal="≤ 3×"),
            pairs("… and use an executor", python(_USED), PASS, count=sizes.pairs),
            paired(f"20 programs of one second, {whole}", goal, "units", 20, sizes.runs),
            paired(f"{many:,} units of `sleep 0`", goal, "many_units", many, few, sizes.runs),
        ],
    )
