"""What jobs by SkyPilot need, tried one thing after the other."""

from __future__ import annotations

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
    enabled = sorted({name for names in answer["found"].values() for name in names})
    ok = bool(enabled)
    what = ", ".join(enabled) if ok else f"none of {', '.join(asked)}" if asked else "none"
    said = " ".join(
        line.strip() for line in answer["said"].splitlines() if "Reason" in line or "Hint" in line
    )
    yield Check(
        name="clouds",
        ok=ok,
        found=f"enabled: {what}" if ok else f"{what} is enabled{': ' * bool(said)}{said}",
        step="" if ok else "run `sky check` and follow its hints",
    )
