"""Reading what pods print: resumed without loss or repetition, kept at home, less what is not the task's."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kube_api import Answer, Api, Request, refusal

from nemo_run.core.execution import kubernetes_pod
from nemo_run.core.execution.kubernetes_client import ApiError, Cluster, Place, connect
from nemo_run.core.execution.kubernetes_logs import (
    Cutter,
    KeptLog,
    PodLog,
    pod_lines,
    save,
    text_of,
)

#: A pod's log: more lines in one moment than a connection brings, and moments written in several ways.
LOG = [
    *(b"2026-11-21T08:00:00.5Z a%d" % number for number in range(5)),
    *(b"2026-11-21T08:00:00.500000001Z b%d" % number for number in range(3)),
    b"2026-11-21T08:00:00.51Z ",
    b"2026-11-21T08:00:01Z c",
    b"2026-11-21T08:00:01.000000002Z d",
    *(b"2026-11-21T08:00:02Z e%d" % number for number in range(4)),
]
TEXTS = [text_of(line) for line in LOG]


class Pod:
    """A pod of an API server's, whose log's connections are cut after so many bytes each."""

    def __init__(self, log: list[bytes], cuts: list[int], last: bytes = b"") -> None:
        self.log, self.cuts, self.last = log, iter(cuts), last

    def answer(self, request: Request) -> Answer:
        if not request.path.endswith("/log"):
            return 200, {
                "metadata": {"name": "p", "uid": "u", "creationTimestamp": "2026-11-21T08:00:00Z"},
                "spec": {},
                "status": {"phase": "Succeeded"},
            }
        since = request.query.get("sinceTime", "")
        # As a kubelet does it: times are compared to the second.
        text = b"".join(line + b"\n" for line in self.log if line.decode() >= since.rstrip("Z"))
        return 200, self.pieces(text + self.last, next(self.cuts, None))

    @staticmethod
    def pieces(text: bytes, cut: int | None) -> Iterator[bytes | None]:
        if text[:cut]:  # an empty piece would be the end
            yield text[:cut]
        if cut is not None:
            yield None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def cluster_of(api: Api) -> Cluster:
    return connect(Place(str(api.config), "here", "mine"))


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 400), max_size=8))
def test_a_log_is_read_on_after_any_cut_without_loss_or_repetition(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("api")
    with Api(folder, Pod(LOG, cuts).answer).running() as api:
        log, read = PodLog(cluster_of(api), "mine", "p"), []
        for _ in range(len(cuts) + 1):
            with contextlib.suppress(ApiError):  # it is cut
                for line in log.read(follow=True):
                    read.append(line)
    assert [text_of(line) for line in read] == TEXTS


def test_whoever_follows_is_told_every_line_whatever_happens_to_the_connection(folder: Path) -> None:
    with Api(folder, Pod(LOG, [40, 0, 90, 210], b"2026-11-21T08:00:03Z last").answer).running() as api:
        lines = list(pod_lines(cluster_of(api), "mine", "p", KeptLog(folder, "u"), follow=True))
        asked = [request.query.get("sinceTime") for request in api.asked if request.path.endswith("/log")]
    assert lines == [*TEXTS, b"last"]
    # And once more when the container has ended.
    assert asked == [None, *["2026-11-21T08:00:00Z"] * 4, "2026-11-21T08:00:02Z"]


def test_whoever_follows_and_is_sent_away_too_early_is_told_the_rest(folder: Path) -> None:
    whole = b"".join(line + b"\n" for line in LOG)
    pod = Pod(LOG, [], b"2026-11-21T08:00:03Z last")

    def answer(request: Request) -> Answer:
        early = request.query.get("follow") == "true"
        return (200, iter([whole[:-7]])) if early else pod.answer(request)

    with Api(folder, answer).running() as api:
        lines = list(pod_lines(cluster_of(api), "mine", "p", KeptLog(folder, "u"), follow=True))
    assert lines == [*TEXTS, b"last"]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 300), max_size=4), st.integers(0, 500))
def test_a_kept_log_goes_on_where_a_killed_process_left_it(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], torn: int
) -> None:
    folder = tmp_path_factory.mktemp("api")
    kept = KeptLog(folder, "u")
    kept.path.parent.mkdir()
    kept.path.write_bytes(b"".join(line + b"\n" for line in LOG)[:torn])  # as far as it had written
    with Api(folder, Pod(LOG, cuts, b"2026-11-21T08:00:03Z last").answer).running() as api:
        for _ in range(len(cuts) + 1):
            with contextlib.suppress(ApiError):
                assert kept.fetch(PodLog(cluster_of(api), "mine", "p"), whole=True)
    save(kept, folder / "log", [])
    assert (folder / "log").read_bytes() == b"\n".join([*TEXTS, b"last"])


def test_a_log_is_kept_by_one_process_at_a_time(folder: Path) -> None:
    code = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); print(1); input()"
    kept = KeptLog(folder, "u")
    kept.path.parent.mkdir()
    with Api(folder, Pod(LOG, []).answer).running() as api:
        argv = [sys.executable, "-uc", code, str(kept.path)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            other.stdout.readline()
            assert not kept.fetch(PodLog(cluster_of(api), "mine", "p"), patience=0.1)
            assert list(kept.lines()) == []
            other.communicate("\n")
        assert kept.fetch(PodLog(cluster_of(api), "mine", "p"))
    assert list(kept.lines()) == [line + b"\n" for line in LOG]


def test_what_a_node_says_in_place_of_a_log_is_no_line_of_it(folder: Path) -> None:
    def answer(request: Request) -> Answer:
        return 200, iter([b"unable to retrieve container logs for docker://61a6b5c72cbf"])

    with Api(folder, answer).running() as api:
        kept = KeptLog(folder, "u")
        kept.path.parent.mkdir()
        kept.path.write_bytes(b"2026-11-21T08:00:00Z kept\n")
        assert list(pod_lines(cluster_of(api), "mine", "p", kept, follow=True)) == [b"kept"]
        with pytest.raises(ApiError, match="unable to retrieve"):
            kept.fetch(PodLog(cluster_of(api), "mine", "p"))


def test_a_container_that_has_not_started_has_no_log_yet(folder: Path) -> None:
    words = 'container "task" in pod "p" is waiting to start: ContainerCreating'

    def answer(request: Request) -> Answer:
        return refusal(400, "BadRequest", words)

    with Api(folder, answer).running() as api:
        assert list(pod_lines(cluster_of(api), "mine", "p", KeptLog(folder, "u"), follow=False)) == []


def test_times_in_the_midst_of_a_long_line_are_no_part_of_it() -> None:
    """As nodes before 1.22 write them, before each 16 KiB of a line."""
    text = bytes(itertools.islice(itertools.cycle(b"0123456789"), 40_000))
    stamp = b"2026-11-21T08:00:00.123456789Z "
    line = b"".join(stamp + text[at : at + 16384] for at in range(0, len(text), 16384))
    assert text_of(line) == text
    assert text_of(stamp + text) == text
    assert text_of(stamp + stamp) == stamp


# --- what a pod sends home ------------------------------------------------------------------------------


def sent(folder: Path, program: str, **env: str) -> tuple[int, list[bytes]]:
    """The exit code of a program in a pod, and what is printed there, as a log has it."""
    (folder / "results").mkdir(exist_ok=True)
    (folder / "artifacts").mkdir(exist_ok=True)
    argv = [sys.executable, kubernetes_pod.__file__, sys.executable, "-c", program]
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, timeout=60, env={**os.environ, "NEMORUN_JOB_DIR": str(folder), **env}
    )
    return done.returncode, done.stdout.split(b"\n")


def cut(lines: list[bytes]) -> tuple[list[bytes], Cutter]:
    cutter = Cutter()
    texts = [text for line in lines if (text := cutter.cut(line)) is not None]
    return texts, cutter


def test_a_record_and_artifacts_come_home_by_the_log_and_are_no_lines_of_it(tmp_path: Path) -> None:
    pod, home = tmp_path / "pod", tmp_path / "home"
    pod.mkdir()
    program = f"""
import os
open({str(pod)!r} + "/results/job_0.json", "w").write('{{"value": 42}}')
os.mkdir({str(pod)!r} + "/artifacts/a")
open({str(pod)!r} + "/artifacts/a/é b", "wb").write(os.urandom(30000))
print("first")
print("last", end="", flush=True)
raise SystemExit(7)
"""
    code, lines = sent(pod, program)
    texts, cutter = cut(lines)
    assert (code, texts) == (7, [b"first", b"last", b""])
    assert cutter.unpack(home)
    assert json.loads((home / "results" / "job_0.json").read_bytes()) == {"value": 42}
    copied = (home / "artifacts" / "a" / "é b").read_bytes()
    assert copied == (pod / "artifacts" / "a" / "é b").read_bytes()
    assert max(map(len, lines)) < 4096  # so that no other process's words come in between


@pytest.mark.parametrize("gone", ["first", "last", "all"])
def test_of_what_did_not_arrive_as_a_whole_nothing_is_taken(tmp_path: Path, gone: str) -> None:
    pod, home = tmp_path / "pod", tmp_path / "home"
    pod.mkdir()
    program = f"import os; open({str(pod)!r} + '/results/x', 'wb').write(os.urandom(9000))"
    _, lines = sent(pod, program)
    parts = [line for line in lines if line]
    kept = {"first": parts[1:], "last": parts[:-1], "all": []}[gone]
    assert not cut(kept)[1].unpack(home)
    assert not home.exists()


def test_what_is_too_much_for_a_log_is_said_and_left(tmp_path: Path) -> None:
    pod, home = tmp_path / "pod", tmp_path / "home"
    pod.mkdir()
    program = f"""
import os
open({str(pod)!r} + "/results/job_0.json", "w").write('{{"value": 1}}')
open({str(pod)!r} + "/artifacts/weights", "wb").write(os.urandom(5 << 20))
"""
    _, lines = sent(pod, program)
    texts, cutter = cut(lines)
    assert texts[0].startswith(b"nemo_run: 5 MiB of artifacts are too much to send; use a workdir_pvc")
    assert cutter.unpack(home)
    assert json.loads((home / "results" / "job_0.json").read_bytes()) == {"value": 1}
    assert not (home / "artifacts").exists()


def test_a_value_that_is_too_large_for_a_log_is_named_as_such(tmp_path: Path) -> None:
    pod, home = tmp_path / "pod", tmp_path / "home"
    pod.mkdir()
    program = f"""
import os
open({str(pod)!r} + "/results/job_0.pkl", "wb").write(os.urandom(5 << 20))
open({str(pod)!r} + "/results/job_0.json", "w").write('{{"type": "x", "pickle": "job_0.pkl"}}')
"""
    _, lines = sent(pod, program)
    assert cut(lines)[1].unpack(home)
    record = json.loads((home / "results" / "job_0.json").read_bytes())
    assert record["unpicklable"].startswith("its 5242880 bytes are too much to be sent by the log")


def test_signals_reach_the_task_and_its_end_is_the_pods(tmp_path: Path) -> None:
    program = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print("ready", flush=True)
time.sleep(60)
"""
    argv = [sys.executable, kubernetes_pod.__file__, sys.executable, "-c", program]
    env = {**os.environ, "NEMORUN_JOB_DIR": str(tmp_path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        process.stdout.read()
    assert process.returncode == 5
    assert sent(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")[0] == 137
    missing = subprocess.run([*argv[:2], "/no/such"], stdout=subprocess.PIPE, env=env, timeout=60)
    assert (missing.returncode, missing.stdout.split(b"\n")[0]) == (
        127,
        b"nemo_run: cannot start '/no/such': No such file or directory",
    )


def test_a_secret_is_masked_in_what_is_kept(tmp_path: Path) -> None:
    kept = KeptLog(tmp_path, "u")
    kept.path.parent.mkdir()
    kept.path.write_bytes(b"2026-11-21T08:00:00Z it is sesame, open\n2026-11-21T08:00:01Z sesame")
    save(kept, tmp_path / "log", [b"sesame"])
    assert (tmp_path / "log").read_text() == "it is ••••••, open\n••••••"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_nothing_is_written_outside_of_the_jobs_folder(tmp_path: Path) -> None:
    import base64
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("results/../../evil"), io.BytesIO())
    line = f"{kubernetes_pod.MARK}1/1 ".encode() + base64.b64encode(stream.getvalue())
    home = tmp_path / "home"
    home.mkdir()
    assert not cut([line])[1].unpack(home)
    assert list(tmp_path.rglob("evil")) == []
