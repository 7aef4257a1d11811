"""What the double knows, as files below $SKY_DOUBLE."""

from __future__ import annotations

import enum
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from sky import exceptions


class Record(dict):  # type: ignore[type-arg]
    """As SkyPilot's: a mapping whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def folder() -> Path:
    return Path(os.environ["SKY_DOUBLE"])


def called(name: str) -> None:
    """Note a question, and raise what is to go wrong with it."""
    with open(folder() / "calls", "a") as file:
        file.write(f"{name}\n")
    raise_fate(f"call {name}")


def raise_fate(name: str) -> None:
    path = folder() / "fates.json"
    if path.exists() and (fate := json.loads(path.read_text()).get(name)):
        raise getattr(exceptions, fate["kind"])(fate["text"])


def request(name: str, cluster: str | None, value: Any = None, **more: Any) -> str:
    """A request that is answered at once."""
    number = str(uuid.uuid4())
    write(folder() / "requests" / number, {
        "request_id": number, "name": f"sky.{name}", "cluster_name": cluster, "status": "SUCCEEDED",
        "value": value, "fate": f"request {name}", "request_body": "", "status_msg": None, **more,
    })  # fmt: skip
    return number


def write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4()}")
    temporary.write_text(json.dumps(record))
    temporary.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def get(number: str) -> Any:
    """The answer to a request, once there is one."""
    path = folder() / "requests" / number
    while True:
        found = read(path)
        assert found is not None, number
        if found["status"] in ("SUCCEEDED", "FAILED", "CANCELLED"):
            break
        time.sleep(0.02)
    if found["status"] == "CANCELLED":
        raise exceptions.RequestCancelled(f"Request {number} has been cancelled")
    raise_fate(found["fate"])
    return found["value"]


def jobs(cluster: str) -> list[dict[str, Any]]:
    found = [read(path) for path in (folder() / "jobs" / cluster).glob("*.json")]
    return sorted((job for job in found if job), key=lambda job: int(job["job_id"]))


def begin(name: str, task: dict[str, Any], cluster: str | None, words: str) -> str:
    """A launch, by a process of its own, which goes on whatever becomes of who asked."""
    number = request(name, cluster, status="PENDING", request_body=json.dumps({"task": task}))
    argv = [sys.executable, "-m", "sky.node", number, cluster or "", json.dumps(task), words]
    subprocess.Popen(argv, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return number


class Status(enum.Enum):
    INIT = "INIT"
    UP = "UP"
    PENDING = "PENDING"
    SETTING_UP = "SETTING_UP"
    STARTING = "STARTING"
    RECOVERING = "RECOVERING"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    FAILED_SETUP = "FAILED_SETUP"
    FAILED_NO_RESOURCE = "FAILED_NO_RESOURCE"
    CANCELLED = "CANCELLED"
