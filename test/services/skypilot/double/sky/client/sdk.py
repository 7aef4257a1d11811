"""SkyPilot's questions, as far as they are asked."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sky import exceptions, state
from sky.state import Record, Status, begin, called, folder, get, read, request, write


def api_info() -> Record:
    called("api_info")
    return Record(status=Status.UP, api_version="62", version="0.14.1")


def enabled_clouds() -> str:
    called("enabled_clouds")
    return request("enabled_clouds", None, [] if (folder() / "no_clouds").exists() else ["slurm"])


#: What it prints of a cloud that is not enabled.
_NOT_ENABLED = """\
Checking credentials to enable infra for SkyPilot.
\x1b[2m  AWS: disabled \x1b[0m\x1b[0m
    Reason [compute, storage]: AWS dependencies are not installed. Run the following commands:
      $ pip install skypilot[aws]
    Credentials may also need to be set. Run the following commands:
      $ aws configure
      $ aws configure list  # Ensure that this shows identity is set.
    For more info: https://docs.aws.amazon.com/cli/latest/userguide/cli-configure-quickstart.html
\x1b[32m🎉 Enabled infra 🎉\x1b[0m
  No infra to check/enabled.
\x1b[2m
To enable a cloud, follow the hints above and rerun: \x1b[0m\x1b[1msky check\x1b[0m
"""


def check(infra_list: Any, verbose: bool) -> str:
    called("check")
    none = (folder() / "no_clouds").exists()
    made = request("check", None, {"default": {} if none else {"Slurm": ["compute"]}})
    (folder() / "launches").mkdir(exist_ok=True)
    (folder() / "launches" / made).write_text(_NOT_ENABLED if none else "")
    return made


def list_accelerators(gpus_only: bool = True) -> str:
    called("list_accelerators")
    return request("list_accelerators", None, {"H100": [], "H200": [], "A100-80GB": []})


def optimize(dag: Any) -> str:
    called("optimize")
    return request("optimize", None)


def status(cluster_names: list[str], all_users: bool = False) -> str:
    called("status")
    found = {name: read(folder() / "clusters" / name) for name in cluster_names}
    return request("status", None, [{"name": name, **there} for name, there in found.items() if there])


def launch(
    task: Any, cluster_name: str, retry_until_up: bool = False, fast: bool = False, **options: Any
) -> str:
    called("launch")
    return begin("launch", task.config, cluster_name, json.dumps(options))


def queue(cluster_name: str, all_users: bool = False) -> str:
    called("queue")
    return request("queue", cluster_name, "jobs")


def api_status(
    request_ids: list[str] | None = None, all_status: bool = False, cluster_name: str | None = None
) -> list[Record]:
    called("api_status")
    found = [read(path) for path in (folder() / "requests").iterdir() if not path.name.startswith(".")]
    seen = [Record(each) for each in found if each]
    wanted = [each for each in seen if cluster_name in (None, each.cluster_name)]
    return [each for each in wanted if request_ids is None or each.request_id in request_ids]


_get = get


def get(request: str) -> Any:  # type: ignore[no-redef]  # with what only SkyPilot's own classes hold
    value = _get(request)
    asked = read(folder() / "requests" / request) or {}
    if asked["name"] == "sky.status":
        return [_cluster(each) for each in value]
    if asked["name"] == "sky.queue":
        if not (folder() / "clusters" / asked["cluster_name"]).exists():
            raise exceptions.ClusterDoesNotExist(
                f"\x1b[33mCluster {asked['cluster_name']!r} does not exist.\x1b[0m"
            )
        return [_job(job) for job in state.jobs(asked["cluster_name"])]
    if asked["name"] == "sky.jobs.queue":
        return [_job(job) for job in state.jobs("managed")], 0, {}, 0
    return value


def _cluster(there: dict[str, Any]) -> Record:
    return Record(
        name=there["name"], status=Status(there["status"]), init_status_reason=there["words"],
        last_event=None, resources_str="1x(cpus=1, mem=1, ...)",
        handle=_Handle(there.get("price", 1.25)),
    )  # fmt: skip


class _Handle:
    launched_nodes = 2

    def __init__(self, price: float) -> None:
        self.price = price

    @property
    def launched_resources(self) -> _Handle:
        return self

    def get_cost(self, seconds: float) -> float:
        return self.price * seconds / 3600


def _job(job: dict[str, Any]) -> Record:
    return Record({**job, "status": Status(job["status"])})


def stream_and_get(request: str, follow: bool = True, output_stream: Any = None) -> Any:
    path, at = folder() / "launches" / request, 0
    while True:
        done = (read(folder() / "requests" / request) or {})["status"] not in ("PENDING", "RUNNING")
        if path.exists():
            text = path.read_text()
            output_stream.write(text[at:])
            at = len(text)
        if done or not follow:
            return get(request)
        time.sleep(0.02)


def tail_logs(
    cluster_name: str, job_id: int, follow: bool, preload_content: bool = True
) -> Iterator[str | None]:
    called("tail_logs")
    try:
        (folder() / "impatient").unlink()
    except FileNotFoundError:
        return _tail(folder() / "jobs" / cluster_name, job_id, follow)
    return iter(_GIVES_UP)


#: What it says, and ends with, where a job takes some seconds to begin.
_GIVES_UP = [
    *["INFO: Waiting 1s for the logs to be written...\n"] * 5,
    "\x1b[31mERROR: Logs for job 1 (status: INIT) does not exist after retrying 5 times.\x1b[0m\n",
]


def _tail(place: Path, job_id: int, follow: bool) -> Iterator[str | None]:
    at, rest = 0, b""
    while True:
        job = read(place / f"{job_id}.json")
        done = not follow or not job or job["status"] not in ("PENDING", "RUNNING")
        with open(place / f"{job_id}.log", "rb") as file:
            file.seek(at)
            chunk = file.read()
        at += len(chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") + "\n" for line in whole)
        if done:
            return
        if not chunk:
            yield None
            time.sleep(0.02)


def cancel(cluster_name: str, job_ids: list[int]) -> str:
    called("cancel")
    for job in job_ids:
        (folder() / "jobs" / cluster_name / f"{job}.cancel").touch()
    return request("cancel", cluster_name)


def api_cancel(request_id: str, silent: bool = False) -> str:
    called("api_cancel")
    path = folder() / "requests" / request_id
    if (found := read(path)) and found["status"] in ("PENDING", "RUNNING"):
        write(path, {**found, "status": "CANCELLED"})
    return request("api_cancel", None)


def down(cluster_name: str) -> str:
    called("down")
    (folder() / "clusters" / cluster_name).unlink(missing_ok=True)
    return request("down", cluster_name)
