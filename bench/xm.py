"""Launch scripts of XManager's kind, beside what a shell does for the same programs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from groups import PASS, child
from measure import Group, Row, pairs, python

if TYPE_CHECKING:
    from groups import Sizes

_BARE = "import nemo_run.xm_local"
_USED = "from nemo_run import xm, xm_local; xm_local.Local(xm.JobRequirements(cpu=1))"


def xm(sizes: Sizes) -> Group:
    """What a launch script costs beside its jobs."""
    few, many = 20, 100
    together = child("units", few, sizes.runs)
    row = Row(
        what=f"{few} programs of one second, from `create_experiment` to the end of its `with`",
        ours=together["ours"],
        floor=together["floor"],
        ratio=together["ratio"],
        goal="≤ 1.5×",
    )
    units = {count: child("units_alone", count, sizes.runs)["seconds"] for count in (many // 5, many)}
    floor = units[many // 5] * 5
    linear = Row(what=f"{many} units of `true`", ours=units[many], floor=floor)
    return Group(
        title="Launch scripts",
        how="The first row is an interpreter that imports `nemo_run.xm_local`, the second one that also names"
        " an executor and requirements; the floor is one that runs `pass`. Programs are started in a process"
        " that has run an experiment before; their floor is `sh` that starts as many by `&` and waits for"
        f" all. {many} units are set beside five times what {many // 5} take: 1× is linear.",
        rows=[
            pairs("`import nemo_run.xm_local`", python(_BARE), PASS, count=sizes.pairs, goal="≤ 3×"),
            pairs("… and use an executor", python(_USED), PASS, count=sizes.pairs),
            row,
            replace(linear, ratio=linear.ours / floor, goal="≤ 1.5×"),
        ],
    )
