"""What the Engine tells of a job's containers, and what is to be done next for it; nothing is done here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from nemo_run.core.execution.docker_engine import Engine

Record = dict[str, Any]


def container_name(record: Record, role: Record) -> str:
    """The same name for every try at the same attempt: the Engine refuses a second container of it."""
    name = str(role["kwargs"]["name"])
    return name if record["attempt"] == 1 else f"{name}.attempt{record['attempt']}"


def decide(record: Record, members: Mapping[str, Record], now: float) -> Record:
    """What is to be done next: nothing, a `signal` (with what is then `stopping`), or the `outcome` is known.

    Args:
        record: What was asked for and how far it has come.
        members: By role, what `member_of` made of its container.
        now: The time.
    """
    request, stopping = record["request"], record["stopping"]
    running = any(member["running"] for member in members.values())
    if not running and stopping:
        return {"outcome": outcome_in(stopping)}
    failures = [(member["finished"] or now, name) for name, member in members.items() if member["failure"]]
    failure = None
    if failures:
        name = min(failures)[1]
        who = f"{name}: " if len(members) > 1 else ""
        failure = ended_as("FAILED", members[name]["exit_code"], who + members[name]["failure"])
    if not running:
        return {"outcome": failure or ended_as("SUCCEEDED", 0, "")}
    if not stopping:
        due = request["timeout"] and now >= record["started"] + request["timeout"]
        late = f"TIMEOUT: ran longer than {request['timeout'] or 0:g} s"
        stopping = failure or (ended_as("FAILED", 124, late) if due else None)
    if not stopping:
        return {}
    if not stopping.get("since"):
        return {"signal": "SIGTERM", "stopping": stopping | {"since": now}}
    if now >= stopping["since"] + request["grace"]:
        return {"signal": "SIGKILL", "stopping": stopping}
    return {}


def is_due(record: Record, running: set[str]) -> bool:
    """Whether a job needs a closer look than that these containers of it run."""
    if record["phase"] != "started" or record["stopping"]:
        return True
    if record["request"]["timeout"] and time.time() >= record["started"] + record["request"]["timeout"]:
        return True
    return any(container_name(record, role) not in running for role in record["request"]["roles"])


def until_due(record: Record, now: float) -> float:
    """Seconds until something is to be done, as far as the clock decides that."""
    due = [now + 5.0]
    if record["stopping"]:
        due.append((record["stopping"]["since"] or now) + record["request"]["grace"])
    elif record["request"]["timeout"] and record["started"]:
        due.append(record["started"] + record["request"]["timeout"])
    if record["request"]["monitor_resources"]:
        due.append(now + 1.0)
    return max(0.01, min(due) - now)


def ended_as(state: str, exit_code: int | None, message: str) -> Record:
    """An outcome, or a reason to be stopping."""
    return {"state": state, "exit_code": exit_code, "message": message}


def outcome_in(stopping: Record) -> Record:
    """The outcome of what has been stopped for a reason."""
    return {key: stopping[key] for key in ("state", "exit_code", "message")}


def member_of(there: Record | None, engine: Engine) -> Record:
    """What the Engine tells of a container, as far as it matters here."""
    if there is None:
        gone = {"failure": "its container was removed before its end was recorded"}
        return {"running": False, "exit_code": None, "finished": None, **gone}
    state = there["State"]
    if state["Status"] not in ("exited", "dead"):
        return {"running": True, "exit_code": None, "finished": None, "failure": ""}
    failure = _failure(there, engine) if state["ExitCode"] else ""
    finished = seconds(state["FinishedAt"])
    return {"running": False, "exit_code": state["ExitCode"], "finished": finished, "failure": failure}


def _failure(there: Record, engine: Engine) -> str:
    state, code = there["State"], there["State"]["ExitCode"]
    limit, started = there["HostConfig"]["Memory"], seconds(state["StartedAt"])
    if state["OOMKilled"] or (limit and code == 137 and engine.saw_too_much_memory(there["Id"], started)):
        over = f"used more than its limit of {limit / 2**20:.0f} MiB" if limit else "the machine had no more"
        return f"OUT_OF_MEMORY: {over}"
    if state["Error"]:
        return f"exit code {code}: {state['Error']}"
    said = f"killed by {_signal_name(code)}" if _signal_name(code) else f"exit code {code}"
    # An Engine ends its containers when it stops, and after a crash when it starts again.
    restarted = code in (137, 143, 255) and seconds(state["FinishedAt"]) <= seconds(engine.started())
    return f"{said}; the Engine has been restarted since it ran" if restarted else said


def _signal_name(code: int) -> str:
    import signal

    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return ""


def seconds(time_text: str) -> float:
    """Seconds since the epoch, of a time as Docker writes it; 0 for none."""
    whole, _, rest = time_text.removesuffix("Z").partition(".")
    try:
        return datetime.fromisoformat(f"{whole}.{rest[:6]:0<6}+00:00").timestamp()
    except ValueError:
        return 0.0
