"""Engines that are restarted, and Engines elsewhere that do not see our files."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest
import tasks
from contracts.executor import ended, prepare, wait_until
from deeds import kill_all
from dockers import IMAGE, TESTS, Containers, stop_keepers

import nemo_run as run
from nemo_run.core.execution.base import AppState, Executor, JobHandle

# --- an Engine of our own, to be stopped and killed -----------------------------------------------------


@dataclass
class OwnEngine:
    """A dockerd beside the one that all tests use."""

    folder: Path
    bridge: str = field(default_factory=lambda: f"nr{secrets.token_hex(4)}")
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/sock"

    def start(self) -> None:
        """And wait until it answers."""
        (self.folder / "pid").unlink(missing_ok=True)
        places = [
            f"--{name}={self.folder / file}" for name, file in (("data-root", "data"), ("exec-root", "x"))
        ]
        apart = ["--iptables=false", "--ip-masq=false", f"--containerd-namespace={self.bridge}"]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                ["dockerd", *places, *apart, f"--bridge={self.bridge}", f"--pidfile={self.folder}/pid",
                 f"--containerd-plugins-namespace={self.bridge}p", f"--host={self.url}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_until(self.answers, "the Engine answers")

    def answers(self) -> bool:
        shown = ["docker", "-H", self.url, "version"]
        return subprocess.run(shown, capture_output=True).returncode == 0

    def end(self, number: int) -> None:
        """By a signal; what it had started for itself goes with it."""
        assert self.process
        own = psutil.Process(self.process.pid).children()
        self.process.send_signal(number)
        self.process.wait(30)
        psutil.wait_procs(own, 10)

    def clear_away(self) -> None:
        """What it leaves: processes of its containers, its bridge, mounts, files."""
        if self.process and self.process.poll() is None:
            self.end(signal.SIGTERM)
        processes = psutil.process_iter(["cmdline"])
        kill_all(process for process in processes if self.bridge in (process.info["cmdline"] or ()))
        subprocess.run(["ip", "link", "del", self.bridge], check=False)
        for line in Path("/proc/mounts").read_text().splitlines():
            if line.split()[1].startswith(f"{self.folder}/"):
                subprocess.run(["umount", line.split()[1]], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def own_engine(engine: None, tmp_path: Path) -> Iterator[OwnEngine]:
    # A socket's path is short.
    folder = Path("/tmp") / f"nemo_run-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    own = OwnEngine(folder)
    octet = secrets.randbelow(200) + 20
    subprocess.run(["ip", "link", "add", own.bridge, "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "addr", "add", f"10.213.{octet}.1/24", "dev", own.bridge], check=True)
        subprocess.run(["ip", "link", "set", own.bridge, "up"], check=True)
        own.start()
        with (
            contextlib.closing(docker.from_env()) as client,
            contextlib.closing(docker.DockerClient(base_url=own.url)) as other,
        ):
            image = client.images.get(IMAGE)
            other.images.load(image.save(named=True))
        yield own
        with contextlib.closing(docker.DockerClient(base_url=own.url)) as other:
            for container in other.containers.list(all=True):
                container.remove(force=True)
    finally:
        stop_keepers(tmp_path)
        own.clear_away()


#: Docker's library forgets a socket that it could not connect.
forgetful = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@forgetful
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_an_engine_ended_by_its_restart_is_told_from_other_ends(
    number: int, home: Path, tmp_path: Path, own_engine: OwnEngine
) -> None:
    ours = executor(base_url=own_engine.url)
    programs = {"ended": "sleep 1000", "own": "exit 143"}
    jobs = {name: submit(run.Script(inline=program), ours) for name, program in programs.items()}
    assert ended(*jobs["own"]).message == "killed by SIGTERM"
    unseen = submit(run.Script(inline="echo unseen; exit 3"), ours)
    gone = submit(run.Script(inline="sleep 1000"), ours)
    remove(own_engine, gone)
    wait_until(lambda: exited(own_engine) == 1, "the unseen one has ended")
    own_engine.end(number)
    [status] = jobs["ended"][0].status([jobs["ended"][1]])
    assert status.state == AppState.UNKNOWN
    own_engine.start()
    status = ended(*jobs["ended"])
    assert (status.state, status.exit_code) == (AppState.FAILED, 143)
    assert status.message == "killed by SIGTERM; the Engine has been restarted since it ran"
    assert (ended(*unseen).exit_code, ended(*unseen).message) == (3, "exit code 3")
    assert list(unseen[0].logs(unseen[1], "job")) == ["unseen"]
    assert ended(*gone).message == "its container was removed before its end was recorded"
    gc.collect()  # so that the library's forgotten sockets are this test's, not another's


def remove(own: OwnEngine, job: tuple[Executor, JobHandle]) -> None:
    with contextlib.closing(docker.DockerClient(base_url=own.url)) as client:
        [there] = client.containers.list(all=True, filters={"label": f"nemo_run.token={job[1].id}"})
        there.remove(force=True)


def exited(own: OwnEngine) -> int:
    with contextlib.closing(docker.DockerClient(base_url=own.url)) as client:
        return len(client.containers.list(all=True, filters={"status": "exited"}))


# --- an Engine elsewhere --------------------------------------------------------------------------------


class Forward(socketserver.BaseRequestHandler):
    """Passes bytes on to the Engine here, as if that were elsewhere."""

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect("/var/run/docker.sock")
            back = threading.Thread(target=self._pass_on, args=(engine, self.request))
            back.start()
            self._pass_on(self.request, engine)
            back.join()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class Forwarder(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False


@pytest.fixture
def elsewhere(containers: Containers) -> Iterator[str]:
    """The address of an Engine that is reached over TCP, and so not thought to see our files."""
    if not os.path.exists("/var/run/docker.sock"):
        pytest.skip("needs the Engine at /var/run/docker.sock")
    with Forwarder(("127.0.0.1", 0), Forward) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def executor(**fields: Any) -> run.DockerExecutor:
    defaults = {"container_image": IMAGE, "packager": run.Packager()}
    return run.DockerExecutor(**defaults | fields)


def submit(task: Any, ours: Executor) -> tuple[Executor, JobHandle]:
    plan = prepare(task, ours)
    return plan.spec.members[0], plan.spec.members[0].submit(plan)


def test_code_goes_there_and_values_logs_and_artifacts_come_back(
    home: Path, elsewhere: str, containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(TESTS)
    code = run.PatternPackager(include_pattern="tasks.py", relative_path=str(TESTS))
    with run.Experiment("there", executor(base_url=elsewhere, packager=code), clean_mode=True) as experiment:
        experiment.add(run.Partial(tasks.note_in_job, "from there"), name="note")
        experiment.add(run.Partial(tasks.double, 21), name="value")
        experiment.add(run.Script(inline="pwd; id -u; cat tasks.py | head -1"), name="script")
        assert experiment.run() == {"note": None, "value": 42, "script": None}
    assert (experiment.path / "note/artifacts/note").read_text() == "from there"
    log = (experiment.path / "script/logs/script_0.log").read_text().splitlines()
    assert log == ["/nemo_run/code", str(os.getuid()), (TESTS / "tasks.py").read_text().splitlines()[0]]
    assert "copied in" in (experiment.path / "note/plan.txt").read_text()
    assert containers.all() == []


def test_attempts_there_start_from_the_same_files(home: Path, elsewhere: str) -> None:
    program = 'echo $NEMORUN_ATTEMPT; test -e "$NEMORUN_JOB_DIR/scripts/job.sh" && exit 1'
    job = submit(run.Script(inline=program), executor(base_url=elsewhere, retries=1))
    assert ended(*job).attempt == 2
    assert list(job[0].logs(job[1], "job")) == ["1", "2"]


def test_links_that_a_task_leaves_there_stay_there(home: Path, elsewhere: str) -> None:
    program = "cd $NEMORUN_JOB_DIR/artifacts; ln -s /etc/passwd link; mkdir -p a/b; echo x > a/b/file"
    job = submit(run.Script(inline=program), executor(base_url=elsewhere))
    assert ended(*job).state == AppState.SUCCEEDED
    artifacts = Path(job[1].data["job_dir"]) / "artifacts"
    assert sorted(str(path.relative_to(artifacts)) for path in artifacts.rglob("*")) == [
        "a",
        "a/b",
        "a/b/file",
    ]
