"""What jobs by SkyPilot need, tried one thing after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nemo_run.core.execution.base import Check
from nemo_run.core.execution.probing import probe_home
from nemo_run.core.execution.skypilot_client import client
from nemo_run.errors import NemoRunError

if TYPE_CHECKING:
    from nemo_run.core.execution.skypilot import SkypilotExecutor


def probe(executor: SkypilotExecutor) -> Iterator[Check]:
    """Room here, SkyPilot, its API server, its clouds."""
    yield probe_home()
    try:
        about = client().ask("about")
    except NemoRunError as exc:
        yield Check(name="server", ok=False, found=str(exc))
        return
    yield Check(
        name="server",
        ok=True,
        found=f"{about['url']}, {about['status']}, version {about['server']} (here {about['version']})",
    )
    try:
        yield from _probe_clouds(executor)
    except NemoRunError as exc:
        yield Check(name="clouds", ok=False, found=str(exc))


def _probe_clouds(executor: SkypilotExecutor) -> Iterator[Check]:
    given = executor.cloud or executor.infra or []
    listed = [given] if isinstance(given, str) else given
    asked = sorted({each.partition("/")[0] for each in listed if each != "none"})
    answer = client().ask("check", infra=asked)
    if enabled := sorted({name for names in answer["found"].values() for name in names}):
        yield Check(name="clouds", ok=True, found=f"enabled: {', '.join(enabled)}")
        return
    # Of all clouds that there are it would be pages.
    found = f"none of {', '.join(asked)} is enabled{_reasons(answer['said'])}" if asked else "none is enabled"
    step = f"run `{' '.join(['sky check', *asked])}` and follow its hints"
    yield Check(name="clouds", ok=False, found=found, step=step)


def _reasons(said: str) -> str:
    """Why clouds are not enabled, from what `sky check` prints of each."""
    told = re.findall(r"^ +(?:Reason|Hint)\b[^:]*: (.*(?:\n {4}.*)*)", said, re.M)
    kept = [line for text in told for line in text.splitlines() if "For more info" not in line]
    words = " ".join(kept).replace("Run the following commands:", "").split()
    return ": " * bool(words) + " ".join(words)
