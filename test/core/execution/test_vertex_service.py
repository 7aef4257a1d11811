"""How VertexExecutor talks to Google: what it asks, how often, and what it makes of the answers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts.executor import prepare
from vertexes import Fault, Vertex, running_vertex, skip_without_types

import nemo_run as run
from nemo_run.core.execution import vertex_client
from nemo_run.core.execution.base import AppState, JobHandle
from nemo_run.core.execution.vertex_job import read_status
from nemo_run.errors import AuthenticationError, SubmitError


@pytest.fixture
def vertex(home: Path, tmp_path: Path) -> Iterator[Vertex]:
    """A double whose jobs do what the test says."""
    skip_without_types()
    with running_vertex(tmp_path / "buckets") as double:
        yield double


def submit(vertex: Vertex, task: Any = None, **fields: Any) -> tuple[run.VertexExecutor, JobHandle]:
    """A job on its way."""
    executor = vertex.executor(**{"packager": run.Packager(), **fields})
    plan = prepare(task or run.Script(inline="true"), executor)
    member: Any = plan.spec.members[0]
    return member, member.submit(plan)


def status(job: tuple[run.VertexExecutor, JobHandle]) -> run.JobStatus:
    [answer] = job[0].status([job[1]])
    return answer


def asked(vertex: Vertex, words: str) -> list[str]:
    return [line for line in vertex.asked if words in line]


# --- Google's own client --------------------------------------------------------------------------------


def test_googles_own_client_reads_back_what_we_created(vertex: Vertex) -> None:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.aiplatform_v1 import JobServiceClient
    from google.cloud.aiplatform_v1.types import AcceleratorType, JobState, Scheduling

    script = run.Script(entrypoint="", args=["a b", "é"], env={"A": "x=y"})
    job = submit(
        vertex, script, gpu_type="a100", gpus_per_node=2, nodes=3, timeout=90, scheduling="spot",
        labels={"team": "vision"}, service_account="me@x.iam", staging_bucket=None,
    )  # fmt: skip
    client = JobServiceClient(
        client_options={"api_endpoint": vertex.url},
        transport="rest",
        credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
    )
    [listed] = client.list_custom_jobs(parent="projects/my-project/locations/us-central1")
    there = client.get_custom_job(name=job[1].data["name"])
    assert there == listed
    spec = there.job_spec
    assert there.labels["team"] == "vision"
    assert [pool.replica_count for pool in spec.worker_pool_specs] == [1, 2]
    pool = spec.worker_pool_specs[1]
    assert pool.machine_spec.machine_type == "a2-highgpu-2g"
    assert pool.machine_spec.accelerator_type == AcceleratorType.NVIDIA_TESLA_A100
    assert pool.machine_spec.accelerator_count == 2
    assert list(pool.container_spec.args) == ["a b", "é"]
    assert {each.name: each.value for each in pool.container_spec.env}["A"] == "x=y"
    assert spec.scheduling.timeout.total_seconds() == 90
    assert spec.scheduling.strategy == Scheduling.Strategy.SPOT
    assert spec.service_account == "me@x.iam"
    client.cancel_custom_job(name=there.name)
    assert client.get_custom_job(name=there.name).state == JobState.JOB_STATE_CANCELLED
    assert status(job).state == AppState.CANCELLED
    client.delete_custom_job(name=there.name)
    assert asked(vertex, "DELETE")


def test_the_double_refuses_a_field_that_the_types_do_not_have(vertex: Vertex) -> None:
    jobs = vertex_client.Jobs(vertex.url, "projects/my-project/locations/us-central1")
    with pytest.raises(SubmitError, match="jobSpecs"):
        jobs.create({"displayName": "x", "jobSpecs": {}, "labels": {"a": "b"}}, "a")


# --- states ---------------------------------------------------------------------------------------------

GROUP = {"server": ["workerpool0-0"], "client": ["workerpool1-0", "workerpool1-1"]}
EXITED = "The replica {} exited with a non-zero status of {}. Termination reason: Error."
MORE = " To find out more about why your job exited please check the logs: https://console.cloud.google.com/x"
TIMES = {"startTime": "2026-11-21T08:00:00Z", "endTime": "2026-11-21T09:00:00.123456789Z"}


@pytest.mark.parametrize(
    ("word", "state", "message"),
    [
        ("QUEUED", "PENDING", "queued"), ("PENDING", "PENDING", "pending"), ("RUNNING", "RUNNING", ""),
        ("SUCCEEDED", "SUCCEEDED", ""), ("FAILED", "FAILED", "failed"),
        ("CANCELLING", "RUNNING", "cancelling"), ("CANCELLED", "CANCELLED", "cancelled"),
        ("PAUSED", "PENDING", "paused"), ("EXPIRED", "FAILED", "expired"),
        ("UPDATING", "RUNNING", "updating"), ("PARTIALLY_SUCCEEDED", "FAILED", "partially succeeded"),
        ("UNSPECIFIED", "UNKNOWN", "unspecified"), ("BRAND_NEW", "UNKNOWN", "brand new"),
    ],
)  # fmt: skip
def test_each_state_of_vertex_is_one_of_ours(word: str, state: str, message: str) -> None:
    found = read_status({"state": f"JOB_STATE_{word}"}, {"job": ["workerpool0-0"]})
    assert (found.state.name, found.message) == (state, message)
    assert found.exit_code == (0 if state == "SUCCEEDED" else None)


def test_every_state_that_is_published_is_known() -> None:
    skip_without_types()
    from google.cloud.aiplatform_v1.types import JobState

    for word in JobState:
        known = read_status({"state": word.name}, {"job": ["workerpool0-0"]}).state != AppState.UNKNOWN
        assert known is (word.name != "JOB_STATE_UNSPECIFIED")


@pytest.mark.parametrize(
    ("job", "tasks", "code", "message"),
    [
        (
            EXITED.format("workerpool0-0", 37) + MORE, {"job": ["workerpool0-0"]}, 37,
            EXITED.format("workerpool0-0", 37),
        ),
        (
            EXITED.format("workerpool1-1", 3), GROUP, 3,
            "client: " + EXITED.format("workerpool1-1", 3),
        ),
        (
            "The replica workerpool0-0 ran out of memory and exited with a non-zero status of 137(SIGKILL).",
            {"job": ["workerpool0-0"]}, 137,
            "OUT_OF_MEMORY: The replica workerpool0-0 ran out of memory and exited with a non-zero status of"
            " 137(SIGKILL).",
        ),
        (
            "Resources are insufficient in region: us-central1.\n Try a different region.", GROUP, None,
            "Resources are insufficient in region: us-central1. Try a different region.",
        ),
    ],
)  # fmt: skip
def test_a_failure_is_told_in_vertexs_words_with_its_exit_code(
    job: str, tasks: dict[str, list[str]], code: int | None, message: str
) -> None:
    found = read_status({"state": "JOB_STATE_FAILED", "error": {"code": 3, "message": job}, **TIMES}, tasks)
    assert (found.state, found.exit_code, found.message) == (AppState.FAILED, code, message)
    assert (found.ended or 0) - (found.started or 0) == pytest.approx(3600.123456)


@pytest.mark.parametrize("word", ["CANCELLED", "FAILED", "EXPIRED"])
def test_a_job_whose_time_was_up_says_so_whatever_vertex_calls_it(word: str) -> None:
    job = {"state": f"JOB_STATE_{word}", "jobSpec": {"scheduling": {"timeout": "3600s"}}, **TIMES}
    found = read_status(job, {"job": ["workerpool0-0"]})
    assert (found.state, found.exit_code) == (AppState.FAILED, 124)
    assert found.message == "TIMEOUT: ran longer than 3600 s"
    job["error"] = {"message": EXITED.format("workerpool0-0", 1)}
    assert read_status(job, {"job": ["workerpool0-0"]}).exit_code == 1


def test_a_job_has_ended_only_when_the_reason_and_the_last_lines_may_have_come(vertex: Vertex) -> None:
    job = submit(vertex)
    vertex.become("FAILED")
    patient = run.VertexExecutor(container_image="it:1", project="my-project")  # not one in a hurry
    [waits] = patient.status([job[1]])
    vertex.become("FAILED", error=EXITED.format("workerpool0-0", 1))
    [waits_too] = patient.status([job[1]])
    assert [waits.state, waits_too.state] == [AppState.RUNNING] * 2
    assert (waits.message, waits_too.message) == (
        "FAILED; why, is not known yet",
        "FAILED; the last lines of its log are waited for",
    )
    assert (status(job).state, status(job).exit_code) == (AppState.FAILED, 1)


def test_a_job_that_somebody_deleted_is_unknown_unless_its_end_was_seen(vertex: Vertex) -> None:
    first, second = submit(vertex), submit(vertex)
    vertex.become("SUCCEEDED", job=vertex.jobs[first[1].data["name"]])
    assert status(first).state == AppState.SUCCEEDED
    vertex.jobs.clear()
    assert status(first).state == AppState.SUCCEEDED
    assert status(second).state == AppState.UNKNOWN
    assert "Vertex AI has no projects/my-project/" in status(second).message
    second[0].cancel(second[1])


# --- many jobs, and answers that do not come ------------------------------------------------------------


def test_many_jobs_of_an_experiment_are_asked_for_in_few_requests(vertex: Vertex) -> None:
    vertex.pages = 3
    exp = run.Experiment("many", vertex.executor(packager=run.Packager()), clean_mode=True)
    for at in range(7):
        exp.add(run.Script(inline="true"), name=f"job{at}")
    submit(vertex)  # of another experiment
    exp.run(detach=True)
    vertex.asked.clear()
    assert {entry["status"] for entry in exp.status(return_dict=True).values()} == {AppState.PENDING}
    assert vertex.asked == ["GET /v1/projects/my-project/locations/us-central1/customJobs"] * 3
    for name in vertex.jobs:
        vertex.become("SUCCEEDED", job=vertex.jobs[name])
    assert {entry["status"] for entry in exp.status(return_dict=True).values()} == {AppState.SUCCEEDED}


@pytest.mark.parametrize("code", [429, 503])
def test_not_now_is_asked_again_and_a_job_that_was_taken_all_the_same_is_not_made_twice(
    vertex: Vertex, code: int
) -> None:
    vertex.faults += [
        Fault("POST .*/customJobs", code, after=True),
        Fault("GET .*/customJobs", code, times=2),
        Fault("POST /upload", code),
        Fault("POST .*:cancel", code),
    ]
    job = submit(vertex)
    assert len(vertex.jobs) == 1
    assert job[1].data["name"] in vertex.jobs
    job[0].cancel(job[1])
    assert status(job).state == AppState.CANCELLED


def test_a_server_that_always_says_not_now_is_given_up(vertex: Vertex) -> None:
    vertex.faults.append(Fault("GET", 503, times=100))
    with pytest.raises(SubmitError, match=r"come again \(UNAVAILABLE\)"):
        vertex.executor().connect()
    assert len(vertex.asked) == 6


def test_a_connection_that_is_cut_is_made_again(vertex: Vertex) -> None:
    vertex.faults.append(Fault("GET", code=0))
    vertex.executor().connect()
    assert len(vertex.asked) == 2


def test_a_submission_whose_answer_was_lost_is_found_by_its_label(vertex: Vertex) -> None:
    executor = vertex.executor(packager=run.Packager())
    plan = prepare(run.Script(inline="true"), executor)
    member: Any = plan.spec.members[0]
    assert member.find(plan.spec.token) is None
    vertex.faults.append(Fault("POST .*/customJobs", code=0, after=True))
    with pytest.raises(SubmitError, match=r"did not take job 'job'.*does not answer"):
        member.submit(plan)
    found = member.find(plan.spec.token)
    assert found.data["name"] in vertex.jobs
    assert member.submit(plan) == found
    assert len(vertex.jobs) == 1


def test_an_endpoint_that_cannot_be_reached_stops_an_experiment_before_anything_is_written(
    home: Path, vertex: Vertex
) -> None:
    began = time.monotonic()
    exp = run.Experiment(
        "nowhere", vertex.executor(api_endpoint="http://127.0.0.1:9", packager=run.Packager())
    )
    exp.add(run.Script(inline="true"))
    with pytest.raises(SubmitError, match=r"http://127\.0\.0\.1:9 does not answer.*check the network"):
        exp.run()
    assert not exp.path.exists()
    assert time.monotonic() - began < 20


def test_no_credentials_stop_an_experiment_before_anything_is_written(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    executor = run.VertexExecutor(container_image="it:1", project="my-project", packager=run.Packager())
    exp = run.Experiment("stranger", executor)
    exp.add(run.Script(entrypoint=""))
    with pytest.raises(AuthenticationError, match="run `gcloud auth application-default login`"):
        exp.run()
    assert not exp.path.exists()
    checks = {check.name: check for check in executor.probe()}
    assert not checks["credentials"].ok
    assert "vertex" not in checks


def test_a_refusal_is_told_in_googles_words_with_the_next_step(vertex: Vertex) -> None:
    vertex.faults.append(Fault("GET", 403))
    with pytest.raises(SubmitError, match=r"come again \(UNAVAILABLE\); have that role granted"):
        vertex.executor().connect()
    vertex.faults.append(Fault("GET", 401))
    with pytest.raises(AuthenticationError, match="gcloud auth application-default login"):
        vertex.executor().connect()


def test_a_bucket_that_is_not_there_is_found_by_a_look_and_named_in_a_refusal(vertex: Vertex) -> None:
    executor = vertex.executor(staging_bucket="gs://missing/folder", packager=run.Packager())
    checks = {check.name: check for check in executor.probe()}
    assert (checks["bucket"].ok, checks["bucket"].found) == (False, "no bucket 'missing'")
    assert checks["vertex"].ok
    with pytest.raises(SubmitError, match=r"gs://missing/.* cannot be written: .*bucket does not exist"):
        submit(vertex, staging_bucket="gs://missing/folder")
    assert vertex.jobs == {}


def test_the_command_that_looks_at_what_it_needs_finds_all_there(vertex: Vertex) -> None:
    fields = [f"{name}={vertex.url}" for name in ("api_endpoint", "storage_endpoint")]
    fields += ["project=my-project", "staging_bucket=gs://bucket", "gpu_type=t4", "gpus_per_node=2"]
    argv = [sys.executable, "-m", "nemo_run", "executors", "check", "VertexExecutor", "--json", *fields]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    checks = {check["name"]: check["found"] for check in json.loads(done.stdout) if check["ok"]}
    assert checks["machine"] == "1 × n1-standard-4 with 2 NVIDIA_TESLA_T4"
    assert checks["bucket"] == "gs://bucket/"
    assert {"home", "vertex"} <= set(checks)
    assert done.returncode == 0


# --- logs and files -------------------------------------------------------------------------------------


def lines(job: tuple[run.VertexExecutor, JobHandle]) -> list[str]:
    return list(job[0].logs(job[1], "job"))


def test_entries_of_a_log_are_its_lines_over_pages_and_looks(vertex: Vertex) -> None:
    vertex.pages = 2
    job = submit(vertex)
    number = job[1].data["name"].rpartition("/")[2]
    vertex.become("RUNNING")
    vertex.print(number, "workerpool0-0", "one", "", "two\n", "Traceback:\n  line")
    vertex.print("99", "workerpool0-0", "of another job")
    vertex.print(number, "service", "of Vertex AI itself")
    following = job[0].logs(job[1], "job", follow=True)
    assert [next(following) for _ in range(5)] == ["one", "", "two", "Traceback:", "  line"]
    assert lines(job) == ["one", "", "two", "Traceback:", "  line"]
    vertex.faults.append(Fault("entries:list", 500, times=2))
    vertex.print(number, "workerpool0-0", "last")
    vertex.entries[-1]["jsonPayload"] = {"loss": 0.5, "message": "last"}
    vertex.print(number, "workerpool0-0", "")
    vertex.entries[-1] |= {"jsonPayload": {}, "textPayload": "plain"}
    vertex.become("SUCCEEDED")
    assert list(following) == ['{"loss": 0.5, "message": "last"}', "plain"]
    assert status(job).state == AppState.SUCCEEDED
    vertex.entries.clear()
    assert lines(job)[-2:] == ['{"loss": 0.5, "message": "last"}', "plain"]


def test_a_log_that_nobody_lets_us_read_keeps_no_job_from_having_ended(vertex: Vertex) -> None:
    job = submit(vertex)
    vertex.faults.append(Fault("entries:list", 403, times=10))
    vertex.become("SUCCEEDED")
    assert status(job).state == AppState.SUCCEEDED
    assert "[this log cannot be read: " in lines(job)[0]


def test_what_cannot_be_copied_home_is_asked_for_again_later(vertex: Vertex) -> None:
    job = submit(vertex)
    vertex.faults.append(Fault("GET /storage/.*", 500))
    vertex.become("SUCCEEDED")
    away = status(job)
    assert away.state == AppState.UNKNOWN
    assert away.message.startswith("SUCCEEDED, but what it left cannot be copied yet: ")
    assert status(job).state == AppState.SUCCEEDED


#: Names that objects may have and files may not.
ODD = ("../out", "deep/../../../out", "/out", "deep//out", ".", "deep/./out")


def test_nothing_that_a_job_left_is_written_outside_of_its_folder(vertex: Vertex, tmp_path: Path) -> None:
    job = submit(vertex)
    artifacts = vertex.folder / "bucket" / job[1].data["stage"] / "artifacts"
    (artifacts / "deep" / "er").mkdir(parents=True)
    (artifacts / "deep" / "er" / "a file").write_bytes(b"\0" * 1_000_000)
    vertex.odd_names = [f"{job[1].data['stage']}/artifacts/{name}" for name in ODD]
    vertex.become("SUCCEEDED")
    assert status(job).state == AppState.SUCCEEDED
    home = Path(job[1].data["job_dir"]) / "artifacts"
    assert [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()] == ["deep/er/a file"]
    assert not (tmp_path / "out").exists()
    assert not asked(vertex, "out")


def test_each_file_of_a_job_is_sent_before_the_job_itself(vertex: Vertex) -> None:
    submit(vertex)
    kinds = [line.split()[0] + (" job" if "customJobs" in line else " file") for line in vertex.asked]
    assert kinds[-1] == "POST job"
    assert set(kinds[:-1]) == {"GET file", "POST file"}


def test_records_hold_nothing_but_plain_json(vertex: Vertex) -> None:
    job = submit(vertex)
    record = json.loads((Path(job[1].data["job_dir"]) / "vertex.json").read_text())
    assert record["data"] == dict(job[1].data)
