"""However a launcher or a connection ends: on a real Kubernetes a job runs once, and loses nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contracts.executor import ended, prepare, wait_until
from dockers import TESTS
from killed import GROUP, SINGLE, assert_each_ran_once, assert_ran_once, killed
from kubes import IMAGE, Namespace

import nemo_run as run
from nemo_run.core.execution.base import AppState, JobHandle

pytestmark = [pytest.mark.usefixtures("home", "kubernetes"), pytest.mark.timeout(180)]

#: What tells from an audit event that a launcher is at a step; or at the answer to a request, which arrives
#: and is heard by nobody.
HEAD = """
import http.client, os, signal
import tasks
from killed import sends, writes

IMAGE, TESTS, step, trace = sys.argv[1:]

class Deaf(http.client.HTTPResponse):
    def begin(self):
        super().begin()
        if at_answer and all(part in heads[-1] for part in at_answer):
            os.kill(os.getpid(), signal.SIGKILL)

heads, at_answer = [b""], ()
http.client.HTTPConnection.response_class = Deaf
sys.addaudithook(
    lambda event, args: event == "http.client.send" and b" HTTP/" in args[1] and heads.append(bytes(args[1]))
)

STEPS = {
    "before anything is made": sends(b"POST ", b"/secrets HTTP"),
    "before the job is made": sends(b"POST ", b"/jobs HTTP"),
    "before the handle is recorded": writes("/job.json", '"namespace"'),
    "while waiting": sends(b"GET ", b"/pods"),
    "before the result is recorded": writes("/job.json", '"SUCCEEDED"'),
}
ANSWERS = {"when files are made": b"/secrets HTTP", "when the job is made": b"/jobs HTTP"}
if step in STEPS:
    kill_at(STEPS[step])
else:
    at_answer = (b"POST ", ANSWERS[step])
volumes = {"tests": TESTS, "trace": trace}
executor = run.KubernetesExecutor(
    container_image=IMAGE, env_vars={"PYTHONPATH": TESTS}, packager=run.Packager(),
    volumes=[{"name": name, "hostPath": {"path": path}} for name, path in volumes.items()],
    volume_mounts=[{"name": name, "mountPath": path} for name, path in volumes.items()],
)
"""
STEPS = [
    "before anything is made", "when files are made", "before the job is made", "when the job is made",
    "before the handle is recorded", "while waiting", "before the result is recorded",
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_launcher_killed_at_a_step_loses_and_doubles_nothing(
    step: str, tmp_path: Path, kubernetes: Namespace
) -> None:
    assert_ran_once(killed(tmp_path, HEAD + SINGLE, IMAGE, str(TESTS), step))
    assert len(kubernetes.jobs()) == 1


@pytest.mark.parametrize("step", ["when files are made", "when the job is made"])
def test_a_group_is_not_started_in_part(step: str, tmp_path: Path, kubernetes: Namespace) -> None:
    """Killed between two members' Jobs, of which then neither or each runs once."""
    assert_each_ran_once(killed(tmp_path, HEAD + GROUP, IMAGE, str(TESTS), step))


# --- connections ----------------------------------------------------------------------------------------


class Relay:
    """Stands between a client and the API server; connections through it can be cut, and refused."""

    def __init__(self, host: str, port: int) -> None:
        self._there = (host, port)
        self._open = True
        self._ends: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._server.getsockname()[1]}"
        self._start(self._serve)

    def _start(self, target: Callable[..., None], *args: socket.socket) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._start(self._connect, self._server.accept()[0])

    def _connect(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            if self._open:
                with socket.create_connection(self._there) as far:
                    ends = {near, far}
                    self._ends |= ends
                    back = threading.Thread(target=self._pass, args=(far, near))
                    back.start()
                    self._pass(near, far)
                    back.join()
                    self._ends -= ends

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        shut(one, other)

    def cut(self) -> None:
        """End all connections there are."""
        shut(*self._ends)

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """No connection gets through for this long."""
        self._open = False
        self.cut()
        try:
            yield
        finally:
            self._open = True

    def close(self) -> None:
        """Be gone."""
        self._open = False
        shut(self._server)
        self.cut()
        self._server.close()
        for thread in self._threads:
            thread.join()


def shut(*ends: socket.socket) -> None:
    """Have nobody read or write there any more."""
    for each in ends:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay(kubernetes: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """KUBECONFIG names the way through it."""
    host, port = kubernetes.cluster.url.removeprefix("https://").split(":")
    between = Relay(host, int(port))
    config = kubernetes.write_config(tmp_path / "through-relay", between.url)
    monkeypatch.setenv("KUBECONFIG", str(config))
    yield between
    between.close()


def test_connections_that_are_cut_lose_and_repeat_no_line(relay: Relay) -> None:
    program = "for n in $(seq 400); do echo $n; echo again $n; sleep 0.01; done; seq 5000"
    job = submit(run.Script(inline=program))
    read: list[str] = []
    for line in job[0].logs(job[1], "job", follow=True):
        read.append(line)
        if len(read) in (100, 101, 300, 700):
            relay.cut()
    expected = [line for n in range(1, 401) for line in (str(n), f"again {n}")]
    expected += [str(n) for n in range(1, 5001)]
    assert read == expected
    assert ended(*job, seconds=60).state == AppState.SUCCEEDED
    assert list(job[0].logs(job[1], "job")) == expected


def test_while_no_server_answers_a_job_is_unknown_and_afterwards_as_it_was(relay: Relay) -> None:
    job = submit(run.Script(inline="echo begun; sleep 4; exit 6"))
    wait_until(lambda: list(job[0].logs(job[1], "job")) == ["begun"], "it runs", 60)
    with relay.refusing():
        [status] = job[0].status([job[1]])
        assert status.state == AppState.UNKNOWN
        assert relay.url in status.message
    status = ended(*job, seconds=60)
    assert (status.state, status.exit_code) == (AppState.FAILED, 6)


def test_an_experiment_goes_on_when_the_server_was_away(relay: Relay) -> None:
    experiment = run.Experiment("away", executor(), clean_mode=True)
    experiment.add(run.Script(inline="sleep 3; echo done"), name="job")
    experiment.run(detach=True)
    with relay.refusing():
        threading.Event().wait(1.0)  # nothing is waited for: so long the server stays away
    experiment = run.Experiment.from_title("away")
    wait_until(
        lambda: experiment.status(return_dict=True)["job"]["status"] == AppState.SUCCEEDED, "it ends", 60
    )


def test_where_no_server_is_one_is_told_so_at_once(relay: Relay) -> None:
    relay.close()
    begin = time.monotonic()
    with pytest.raises(run.NemoRunError, match=r"no Kubernetes answers at https://127\.0\.0\.1"):
        run.run(run.Script(inline="true"), executor(), tail_logs=False)
    assert time.monotonic() - begin < 10
    assert run.Experiment.catalog() == []


def executor() -> run.KubernetesExecutor:
    return run.KubernetesExecutor(container_image=IMAGE, packager=run.Packager())


def submit(task: run.Script) -> tuple[run.Executor, JobHandle]:
    """A job on its way."""
    plan = prepare(task, executor())
    member = plan.spec.members[0]
    return member, member.submit(plan)
