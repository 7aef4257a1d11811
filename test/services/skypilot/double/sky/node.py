"""One launch of the double: makes the cluster, runs the task on its nodes, writes its log as SkyPilot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sky.state import folder, jobs, raise_fate, read, write


def main(number: str, cluster: str, task: dict[str, Any], words: str) -> None:
    path = folder() / "requests" / number
    asked = read(path) or {}
    log = folder() / "launches" / number
    log.parent.mkdir(exist_ok=True)
    options = json.loads(words)
    cluster_path = folder() / "clusters" / cluster
    write(path, {**asked, "status": "RUNNING"})
    if cluster and not cluster_path.exists():
        write(cluster_path, {"status": "INIT", "words": "Launching (1 pod(s) pending)", **options})
        log.write_text("\x1b[0m⚙︎ Launching on Slurm nemo\x1b[0m (debug).\n")
        while (folder() / "hold").exists():
            time.sleep(0.02)
        if (read(path) or {})["status"] == "CANCELLED":
            return
    try:
        raise_fate("request launch")
    except Exception:
        write(path, {**asked, "status": "FAILED"})
        return
    if cluster:
        write(
            cluster_path, {"status": "UP", "words": "", **(read(cluster_path) or options)} | {"status": "UP"}
        )
    place = folder() / "jobs" / (cluster or "managed")
    place.mkdir(parents=True, exist_ok=True)
    job_id = len(jobs(place.name)) + 1
    while True:
        try:
            os.close(os.open(place / f"{job_id}.log", os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            job_id += 1
    record = {
        "job_id": job_id, "job_name": task["name"], "status": "PENDING", "submitted_at": time.time(),
        "start_at": None, "end_at": None,
    }  # fmt: skip
    write(place / f"{job_id}.json", record)
    for there, here in task.get("file_mounts", {}).items():
        if isinstance(here, str) and os.path.exists(here):
            shutil.copy(here, there)
    with open(log, "a") as file:
        file.write(f"\x1b[0m⚙︎ Syncing files.\n\x1b[0m⚙︎ Job submitted, ID: {job_id}\n")
    write(path, {**asked, "status": "SUCCEEDED", "value": [[job_id] if not cluster else job_id, None]})
    run(place, record, task)


def run(place: Path, record: dict[str, Any], task: dict[str, Any]) -> None:
    """Run the task on all nodes, with a line of the log for each line that one prints."""
    count, started = task["num_nodes"], time.time()
    lock, children = threading.Lock(), []
    with open(place / f"{record['job_id']}.log", "wb", buffering=0) as log:
        log.write("\x1b[2m├── \x1b[0m\x1b[2mWaiting for task resources on 1 node.\x1b[0m\n".encode())
        for rank in range(count):
            env = {
                **os.environ, **task.get("secrets", {}), "SKYPILOT_NODE_RANK": str(rank),
                "SKYPILOT_NUM_NODES": str(count), "SKYPILOT_NODE_IPS": "\n".join(["127.0.0.1"] * count),
            }  # fmt: skip
            script = task.get("setup", "true") + "\n" + task["run"]
            child = subprocess.Popen(
                ["bash", "-c", script], env=env, start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            children.append(child)

        def pass_on(rank: int, child: subprocess.Popen[bytes]) -> None:
            who = f"head, rank={rank}" if rank == 0 else f"worker{rank}, rank={rank}"
            words = f"{task['name'] if count == 1 else who}, pid={child.pid}"
            words += ", ip=127.0.0.1" if rank else ""
            assert child.stdout is not None
            for line in child.stdout:
                with lock:
                    log.write(f"\x1b[36m({words})\x1b[0m ".encode() + line)
            if child.wait():
                for other in children:
                    if other.poll() is None:
                        other.terminate()

        write(place / f"{record['job_id']}.json", {**record, "status": "RUNNING", "start_at": started})
        readers = [threading.Thread(target=pass_on, args=each) for each in enumerate(children)]
        for reader in readers:
            reader.start()
        cancelled = False
        while any(reader.is_alive() for reader in readers):
            if (place / f"{record['job_id']}.cancel").exists() and not cancelled:
                cancelled = True
                for child in children:
                    os.killpg(child.pid, signal.SIGTERM)
            time.sleep(0.01)
        codes = [child.wait() for child in children]
        if any(codes):
            text = f"ERROR: \x1b[31mJob {record['job_id']} failed with return code list:\x1b[0m {codes} \n"
            log.write(text.encode())
    status = "CANCELLED" if cancelled else "FAILED" if any(codes) else "SUCCEEDED"
    ended = {"status": status, "start_at": started, "end_at": time.time()}
    write(place / f"{record['job_id']}.json", {**record, **ended})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4])
