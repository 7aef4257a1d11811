"""Secrets of jobs in containers are in nothing that is written, printed, or told by the Engine."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from contracts.executor import wait_until
from dockers import IMAGE, Containers
from programs import nemo, write

#: Its tasks print all that they were told, and wait or fail.
SCRIPT = """
import os
import sys
import time

import nemo_run as run


def tell(argument, gate, fail=False):
    print("environment", os.environ["FROM_VARIABLE"], os.environ["FROM_FILE"])
    print("in two pieces", argument["token"][0][:9], end="", flush=True)
    print(argument["token"][0][9:], flush=True)
    while not os.path.exists(gate):
        time.sleep(0.01)
    if fail:
        raise ValueError("cannot log in with " + argument["token"][0] + os.environ["FROM_FILE"])


if __name__ == "__main__":
    IMAGE, FOLDER, HOW = sys.argv[1:]
    executor = run.DockerExecutor(
        container_image=IMAGE,
        packager=run.Packager(),
        volumes=[f"{FOLDER}/work:{FOLDER}/work"],
        env_vars={
            "FROM_VARIABLE": run.Secret("CANARY_VARIABLE"),
            "FROM_FILE": run.Secret(file=f"{FOLDER}/kept"),
        },
        retries=1 if HOW == "retried" else 0,
    )
    argument, gate = {"token": [run.Secret("CANARY_ARGUMENT")]}, f"{FOLDER}/work/gate"
    task = run.Partial(tell, argument=argument, gate=gate, fail=HOW == "retried")
    script = run.Script(
        inline='echo "script $IN_SCRIPT $FROM_FILE"; while ! test -e "$GATE"; do sleep 0.05; done',
        env={"IN_SCRIPT": run.Secret("CANARY_SCRIPT"), "GATE": gate},
    )
    with run.Experiment("canary", executor=executor) as experiment:
        experiment.add(task, name="task", tail_logs=True)
        experiment.add([task, script], name="group", tail_logs=True)
        experiment.dryrun()
        experiment.run(detach=HOW == "detach")
"""
WAYS = ("VARIABLE", "FILE", "SCRIPT", "ARGUMENT")


class Aviary:
    """Where the canaries are, and where they must not be."""

    def __init__(self, folder: Path, containers: Containers) -> None:
        self.folder = folder
        self.containers = containers
        self.values = {way: f"canary-{secrets.token_hex(12)}" for way in WAYS}
        (folder / "work").mkdir()
        (folder / "tmp").mkdir()
        (folder / "kept").write_text(self.values["FILE"] + "\n")
        write(folder / "work" / "script.py", SCRIPT)

    def launch(self, how: str) -> subprocess.Popen[str]:
        told = {f"CANARY_{way}": self.values[way] for way in ("VARIABLE", "SCRIPT", "ARGUMENT")}
        with open(self.folder / "work" / "printed", "w") as printed:
            return subprocess.Popen(
                [sys.executable, "script.py", IMAGE, str(self.folder), how],
                cwd=self.folder / "work",
                env={**os.environ, **told, "TMPDIR": str(self.folder / "tmp")},
                stdout=printed,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def told(self) -> bool:
        """Whether all three have printed what they were told."""
        logs = [container.logs() for container in self.containers.all()]
        return len(logs) == 3 and all(b"pieces canary-" in log or b"script canary-" in log for log in logs)

    def everything(self) -> Iterator[tuple[str, bytes]]:
        """Files with their names, `ps`, `docker inspect`, `docker top`."""
        for name in ("home", "work", "tmp"):
            for path in (self.folder / name).rglob("*"):
                if path.is_file():
                    yield str(path), bytes(path) + path.read_bytes()
        for process in psutil.process_iter():
            try:
                yield f"ps {process.pid}", "\0".join(process.cmdline()).encode(errors="surrogateescape")
            except psutil.Error:
                continue
        for container in self.containers.all():
            yield f"inspect {container.name}", json.dumps(container.attrs).encode()
            yield f"top {container.name}", json.dumps(container.top()).encode()
            yield f"diff {container.name}", json.dumps(container.diff()).encode()
            yield f"files {container.name}", b"".join(container.get_archive("/.nemo_run")[0])

    def seen(self) -> list[tuple[str, str]]:
        """The way of each secret that was found, and where."""
        return [
            (way, where)
            for where, data in self.everything()
            for way in WAYS
            if self.values[way].encode() in data
        ]


@pytest.fixture
def aviary(tmp_path: Path, home: Path, containers: Containers) -> Iterator[Aviary]:
    aviary = Aviary(tmp_path, containers)
    yield aviary
    (tmp_path / "work" / "gate").touch()


def commands() -> str:
    """What the commands print that show the experiment, to somebody who does not know the secrets."""
    shown = ""
    for words in (
        ("logs", "canary", "task"),
        ("logs", "canary", "group"),
        ("show", "canary"),
        ("status", "canary"),
    ):
        done = nemo(*words)
        shown += done.stdout + done.stderr
    return shown


def test_no_secret_is_seen_while_containers_run_nor_after(aviary: Aviary) -> None:
    with aviary.launch("attached") as launcher:
        wait_until(aviary.told, "all have told", 60)
        assert aviary.seen() == []
        assert not any(value in commands() for value in aviary.values.values())
        (aviary.folder / "work" / "gate").touch()
    assert launcher.returncode == 0
    assert aviary.seen() == []
    printed = (aviary.folder / "work" / "printed").read_text()
    assert "in two pieces ••••••\n" in printed
    assert "script •••••• ••••••\n" in printed
    shown = commands()
    assert "environment •••••• ••••••\n" in shown
    assert not any(value in shown for value in aviary.values.values())


def test_no_secret_is_seen_of_a_failure_that_is_tried_again(aviary: Aviary) -> None:
    (aviary.folder / "work" / "gate").touch()
    with aviary.launch("retried") as launcher:
        launcher.wait(100)
    assert launcher.returncode == 1
    printed = (aviary.folder / "work" / "printed").read_text()
    assert "ValueError: cannot log in with ••••••••••••\n" in printed
    assert not any(value in commands() for value in aviary.values.values())
    assert aviary.seen() == []
    logs = list(aviary.folder.glob("home/experiments/canary/*/task/logs/*.log"))
    assert sorted(path.name for path in logs) == ["task_0.attempt2.log", "task_0.log"]


def test_no_secret_is_seen_when_the_launcher_is_gone(aviary: Aviary) -> None:
    with aviary.launch("detach") as launcher:
        launcher.wait(100)
    wait_until(aviary.told, "all have told", 60)
    assert aviary.seen() == []
    (aviary.folder / "work" / "gate").touch()
    wait_until(lambda: aviary.containers.all() == [], "their keepers have seen their ends")
    logs = list(aviary.folder.glob("home/experiments/canary/*/*/logs/*.log"))
    assert len(logs) == 3
    assert all("••••••" in path.read_text() for path in logs)
    assert aviary.seen() == []


def test_the_canaries_do_sing(aviary: Aviary) -> None:
    """The search finds what is there: in a file, in a container's description, in what it runs."""
    (aviary.folder / "work" / aviary.values["FILE"]).touch()
    told = {"IN": aviary.values["VARIABLE"]}
    labels = {"nemo_run.token": "x", "nemo_run.job_dir": f"{aviary.folder}/x"}
    program = ["sh", "-c", "mkdir .nemo_run; echo $1 > .nemo_run/x; sleep 100", "sh", aviary.values["SCRIPT"]]
    there = aviary.containers.client.containers.run(
        IMAGE, program, detach=True, environment=told, labels=labels
    )
    wait_until(lambda: there.exec_run(["test", "-s", "/.nemo_run/x"]).exit_code == 0, "it has begun")
    found = aviary.seen()
    assert {way for way, _ in found} == {"FILE", "VARIABLE", "SCRIPT"}
    assert {where.split()[0] for way, where in found if way == "SCRIPT"} >= {"ps", "inspect", "top", "files"}
