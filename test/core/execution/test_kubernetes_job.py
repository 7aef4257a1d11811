"""The life of a job on Kubernetes as far as no real one is needed: newer servers, JobSets, cuts, many."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts.executor import prepare
from kube_api import Answer, Api, Objects, Request, kubeconfig

import nemo_run as run
from nemo_run.core.execution.base import AppState, JobHandle, JobStatus, Plan
from nemo_run.core.execution.kubernetes_pod import MARK
from nemo_run.errors import SubmitError, TunnelError

pytestmark = pytest.mark.usefixtures("home")

TASK = run.Script(inline="true")
DONE = [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-11-21T08:01:00Z"}]
BAD = [
    {
        "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "Job has reached it",
        "lastTransitionTime": "2026-11-21T08:01:00Z",
    }
]  # fmt: skip


@pytest.fixture
def cluster() -> Objects:
    return Objects()


@pytest.fixture
def api(tmp_path: Path, cluster: Objects, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with Api(tmp_path, cluster.answer).running() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.config))
        yield server


def plan(task: Any = TASK, *, members: int = 1, **fields: Any) -> Plan:
    given = {"container_image": "python:3.12", "packager": run.Packager()} | fields
    executors = [run.KubernetesExecutor(**given) for _ in range(members)]
    return prepare([task] * members if members > 1 else task, executors if members > 1 else executors[0])


def submit(made: Plan) -> JobHandle:
    return made.spec.members[0].submit(made)


def look(made: Plan, handle: JobHandle) -> JobStatus:
    [status] = made.spec.members[0].status([handle])
    return status


def ended(code: int) -> dict[str, Any]:
    """The status of a pod whose container ended with this code."""
    end = {
        "exitCode": code, "reason": "Error" if code else "Completed", "startedAt": "2026-11-21T08:00:30Z",
        "finishedAt": "2026-11-21T08:00:40Z",
    }  # fmt: skip
    container = {"name": "task", "state": {"terminated": end}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container]}


# --- what is sent ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["24", "30+", "37"])
def test_a_server_that_knows_indexed_jobs_is_given_the_plan_as_it_is(
    api: Api, cluster: Objects, version: str
) -> None:
    cluster.version = version
    made = plan(nodes=2)
    submit(made)
    [job], [secret], [service] = (cluster.kind(kind) for kind in ("jobs", "secrets", "services"))
    assert job["spec"] == made.request["objects"][-1]["spec"]
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": job["metadata"]["name"],
        "uid": job["metadata"]["uid"],
    }
    assert secret["metadata"]["ownerReferences"] == service["metadata"]["ownerReferences"] == [owner]
    assert "stringData" not in secret


def test_an_old_server_is_given_a_job_for_each_rank_and_the_plan_says_so(api: Api, cluster: Objects) -> None:
    cluster.version = "20+"
    made = plan(nodes=3)
    (made.spec.job_dir / "plan.txt").write_text(made.text)
    submit(made)
    names = [job["metadata"]["name"] for job in cluster.kind("jobs")]
    assert [name.rpartition("-")[2] for name in names] == ["0", "1", "2"]
    sent = (made.spec.job_dir / "plan.txt").read_text()
    assert [f"hostname: {name}\n" in sent for name in names] == [True] * 3
    assert "Indexed" not in sent
    [secret] = cluster.kind("secrets")
    assert len(secret["metadata"]["ownerReferences"]) == 3


def test_the_secret_holds_the_jobs_files_and_the_values(
    api: Api, cluster: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "sesame")
    made = plan(run.Script(inline="echo é"), env_vars={"TOKEN": run.Secret("CANARY")})
    submit(made)
    [secret], [job] = cluster.kind("secrets"), cluster.kind("jobs")
    data = {key: base64.b64decode(value) for key, value in secret["data"].items()}
    assert data.pop("CANARY") == b"sesame"
    with tarfile.open(fileobj=io.BytesIO(data.pop("job.tar.gz"))) as archive:
        script = archive.extractfile("scripts/job.sh")
        assert script is not None
        assert "echo é" in script.read().decode()
        assert {member.uid for member in archive} == {0}
    assert data == {}
    [token] = [
        each for each in job["spec"]["template"]["spec"]["containers"][0]["env"] if each["name"] == "TOKEN"
    ]
    assert token["valueFrom"]["secretKeyRef"] == {"name": secret["metadata"]["name"], "key": "CANARY"}
    assert "sesame" not in json.dumps(job)
    assert not [
        path for path in made.spec.job_dir.rglob("*") if path.is_file() and b"sesame" in path.read_bytes()
    ]


def test_a_jobset_is_one_object_that_is_found_judged_and_deleted(api: Api, cluster: Objects) -> None:
    made = plan(members=2, use_jobset=True)
    handle = submit(made)
    [jobset] = cluster.kind("jobsets")
    assert cluster.kind("jobs") == cluster.kind("services") == []
    assert cluster.kind("secrets")[0]["metadata"]["ownerReferences"][0]["kind"] == "JobSet"
    assert made.spec.members[0].find(made.spec.token) == handle
    assert look(made, handle).state == AppState.PENDING
    made.spec.members[0].cancel(handle)
    assert look(made, handle).state == AppState.CANCELLED
    assert cluster.there == {}
    assert jobset["kind"] == "JobSet"


# --- cuts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("at", range(6))
def test_a_submission_that_is_cut_anywhere_is_completed_by_the_next(
    api: Api, cluster: Objects, at: int, arrives: bool
) -> None:
    made = plan(nodes=2, members=2)
    changes = iter(range(100))

    def cut(request: Request) -> Answer:
        if request.method == "GET" or next(changes) != at:
            return cluster.answer(request)
        if arrives:
            cluster.answer(request)
        return 200, iter([None])

    api.answer = cut
    executor = made.spec.members[0]
    with contextlib.suppress(TunnelError):
        submit(made)
    api.answer = cluster.answer
    found = executor.find(made.spec.token)
    assert found is None or len(cluster.kind("jobs")) == 2
    handle = submit(made)
    assert found in (None, handle)
    assert [len(cluster.kind(kind)) for kind in ("jobs", "secrets", "services")] == [2, 1, 1]
    assert len(cluster.kind("secrets")[0]["metadata"]["ownerReferences"]) == 2
    assert executor.find(made.spec.token) == handle


def test_a_name_that_somebody_else_has_is_refused_and_left_alone(api: Api, cluster: Objects) -> None:
    made = plan()
    name = made.request["objects"][0]["metadata"]["name"]
    path = f"/api/v1/namespaces/mine/secrets/{name}"
    cluster.there[path] = {"metadata": {"name": name, "annotations": {}}}
    with pytest.raises(SubmitError, match="already exists"):
        submit(made)
    assert list(cluster.there) == [path]
    assert made.spec.members[0].find(made.spec.token) is None


def test_a_job_is_found_where_it_was_made_whatever_the_current_context_is_now(
    api: Api, cluster: Objects
) -> None:
    made = plan()
    handle = submit(made)
    api.config.write_text(kubeconfig(api.url, **{"current-context": "there"}))
    assert made.spec.members[0].find(made.spec.token) == handle
    assert look(made, handle).state == AppState.PENDING
    assert submit(made) == handle
    assert len(cluster.kind("jobs")) == 1


def test_a_job_is_unknown_while_the_cluster_does_not_answer(api: Api, cluster: Objects) -> None:
    made = plan()
    handle = submit(made)
    cluster.instead = lambda request: (
        503,
        {"message": "the server is currently unable to handle the request"},
    )
    status = look(made, handle)
    assert (status.state, status.exit_code) == (AppState.UNKNOWN, None)
    assert "currently unable" in status.message
    with pytest.raises(SubmitError):
        made.spec.members[0].cancel(handle)
    cluster.instead = lambda request: None
    assert look(made, handle).state == AppState.PENDING


# --- ends -----------------------------------------------------------------------------------------------


def test_a_job_that_ended_is_at_home_and_nobody_asks_about_it_again(api: Api, cluster: Objects) -> None:
    made = plan(env_vars={"TOKEN": run.Secret(command=["echo", "sesame"])})
    handle = submit(made)
    [job] = cluster.kind("jobs")
    cluster.add_pod("p", job, **ended(0))
    cluster.logs["p"] = b"2026-11-21T08:00:35Z open sesame\n2026-11-21T08:00:36Z last"
    job["status"] = {"conditions": DONE, "startTime": "2026-11-21T08:00:20Z"}
    status = look(made, handle)
    assert (status.state, status.exit_code, status.attempt) == (AppState.SUCCEEDED, 0, 1)
    assert (made.spec.job_dir / "logs" / "job_0.log").read_text() == "open ••••••\nlast"
    assert cluster.kind("secrets") == []  # nobody needs it any more
    asked = len(api.asked)
    assert look(made, handle) == status
    assert list(made.spec.members[0].logs(handle, "job")) == ["open ••••••", "last"]
    made.spec.members[0].cancel(handle)
    assert len(api.asked) == asked


def test_each_attempt_has_a_log_and_a_record_of_its_own(api: Api, cluster: Objects) -> None:
    made = plan(retries=1)
    handle = submit(made)
    [job] = cluster.kind("jobs")
    for name, code, value in (("p1", 1, {"pickle": "job_0.pkl"}), ("p2", 0, {"value": 2})):
        cluster.add_pod(name, job, **ended(code))
        cluster.logs[name] = b"2026-11-21T08:00:35Z %s\n" % name.encode() + sent(value)
        look(made, handle)
    job["status"] = {"conditions": DONE}
    assert look(made, handle).attempt == 2
    job_dir = made.spec.job_dir
    texts = {path.name: path.read_text() for path in sorted((job_dir / "logs").iterdir())}
    assert texts == {"job_0.attempt2.log": "p2\n", "job_0.log": "p1\n"}
    assert json.loads((job_dir / "results" / "job_0.json").read_text()) == {"pickle": "job_0.pkl"}
    assert json.loads((job_dir / "results" / "job_0.attempt2.json").read_text()) == {"value": 2}
    assert (job_dir / "results" / "job_0.attempt2.pkl").read_text() == "pickled"
    assert not (job_dir / "pods").exists()


def sent(record: dict[str, Any]) -> bytes:
    """What a pod sends home of a record."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in (("job_0.json", json.dumps(record).encode()), ("job_0.pkl", b"pickled")):
            member = tarfile.TarInfo(f"results/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return f"2026-11-21T08:00:36Z {MARK}1/1 ".encode() + base64.b64encode(stream.getvalue()) + b"\n"


def test_the_failure_of_one_ends_the_others_of_a_group(api: Api, cluster: Objects) -> None:
    made = plan(members=2)
    handle = submit(made)
    first, second = cluster.kind("jobs")
    cluster.add_pod(
        "a", first, phase="Running", containerStatuses=[{"name": "task", "state": {"running": {}}}]
    )
    cluster.add_pod("b", second, **ended(7))
    cluster.logs |= {"a": b"2026-11-21T08:00:35Z still here\n", "b": b"2026-11-21T08:00:35Z bad luck\n"}
    assert look(made, handle).state == AppState.RUNNING
    second["status"] = {"conditions": BAD}
    assert look(made, handle).message == "is being ended: true_1: exit code 7"
    assert cluster.kind("jobs") == [second]
    status = look(made, handle)
    assert (status.state, status.exit_code, status.message) == (AppState.FAILED, 7, "true_1: exit code 7")
    logs = made.spec.job_dir / "logs"
    assert {path.name: path.read_text() for path in logs.iterdir()} == {
        "true_0.log": "still here\n", "true_1_0.log": "bad luck\n",
    }  # fmt: skip


def test_an_image_that_cannot_be_pulled_is_waited_for_so_long_and_no_longer(
    api: Api, cluster: Objects
) -> None:
    why = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "no/such:1"'}
    waits = {
        "phase": "Pending",
        "containerStatuses": [{"name": "task", "image": "no/such:1", "state": {"waiting": why}}],
    }
    for patience, state in ((10**9, AppState.PENDING), (0.0, AppState.RUNNING)):
        made = plan(start_patience=patience)
        handle = submit(made)
        cluster.add_pod(f"p{patience}", cluster.kind("jobs")[-1], **waits)
        status = look(made, handle)
        assert status.state == state
        assert status.message.endswith('ImagePullBackOff: Back-off pulling image "no/such:1"')
    status = look(made, handle)
    assert (status.state, status.exit_code) == (AppState.FAILED, None)
    assert len(cluster.kind("jobs")) == 1


def test_a_pod_that_was_told_to_end_is_read_to_its_end(api: Api, cluster: Objects) -> None:
    """As those of a job whose time is up: its Job has failed before they have ended."""
    made = plan(timeout=5)
    handle = submit(made)
    [job] = cluster.kind("jobs")
    runs = {"phase": "Running", "containerStatuses": [{"name": "task", "state": {"running": {}}}]}
    pod = cluster.add_pod("p", job, **runs)
    pod["metadata"]["deletionTimestamp"] = "2026-11-21T08:01:30Z"
    job["status"] = {"conditions": [BAD[0] | {"reason": "DeadlineExceeded"}]}
    cluster.logs["p"] = b"2026-11-21T08:00:35Z on it\n"
    assert look(made, handle).state == AppState.RUNNING
    cluster.logs["p"] += b"2026-11-21T08:00:39Z cleaned up\n"
    assert look(made, handle).state == AppState.RUNNING
    del cluster.there["/api/v1/namespaces/mine/pods/p"]
    del cluster.logs["p"]
    status = look(made, handle)
    assert (status.state, status.exit_code) == (AppState.FAILED, 124)
    assert status.message == "TIMEOUT: ran longer than 5 s (DeadlineExceeded)"
    assert list(made.spec.members[0].logs(handle, "job")) == ["on it", "cleaned up"]


# --- many, and news -------------------------------------------------------------------------------------


def test_many_jobs_are_asked_about_in_few_questions(api: Api, cluster: Objects) -> None:
    first = plan()
    jobs = [(first, submit(first))]
    for number in range(1, 120):
        job_dir = first.spec.job_dir.parent / f"job{number}"
        job_dir.mkdir()
        record = json.loads((first.spec.job_dir / "kubernetes.json").read_text())
        record |= {"digest": f"{number:024}", "ttl": 1, "made": 0}
        (job_dir / "kubernetes.json").write_text(json.dumps(record))
        data = {**jobs[0][1].data, "job_dir": str(job_dir)}
        jobs.append((first, JobHandle(executor=jobs[0][1].executor, id=f"token{number}", data=data)))
    asked = len(api.asked)
    statuses = first.spec.members[0].status([handle for _, handle in jobs])
    assert len(statuses) == 120
    assert [status.state for status in statuses] == [AppState.PENDING, *[AppState.UNKNOWN] * 119]
    assert len([request for request in api.asked[asked:] if request.method == "GET"]) <= 6


def test_news_is_waited_for_by_a_watch_from_where_the_list_ended(api: Api, cluster: Objects) -> None:
    made = plan()
    handle = submit(made)
    look(made, handle)
    began = time.monotonic()
    made.spec.members[0].await_news([handle], 30)
    assert time.monotonic() - began < 10
    [watch] = [request for request in api.asked if request.query.get("watch")]
    assert (watch.query["resourceVersion"], watch.query["timeoutSeconds"]) == ("7", "30")
    assert watch.path.endswith("/jobs")


def test_without_news_or_without_a_cluster_the_wait_is_as_long_as_it_was_to_be(
    api: Api, cluster: Objects
) -> None:
    made = plan()
    handle = submit(made)

    def silent(request: Request) -> Answer | None:
        if not request.query.get("watch"):
            return None
        api.silent.wait(20)
        return 200, {}

    def refused(request: Request) -> Answer | None:
        return 500, {"message": "etcd is away"}

    for says in (silent, refused):
        cluster.instead = says
        began = time.monotonic()
        made.spec.members[0].await_news([handle], 0.5)
        assert 0.45 < time.monotonic() - began < 5


# --- would it work? -------------------------------------------------------------------------------------


def test_what_is_asked_for_by_name_is_looked_up(api: Api, cluster: Objects) -> None:
    cluster.there["/api/v1/namespaces/mine/persistentvolumeclaims/runs"] = {"metadata": {"name": "runs"}}
    executor = run.KubernetesExecutor(
        container_image="x", workdir_pvc="runs", queue="nightly", use_jobset=True, image_pull_secrets=["reg"]
    )
    checks = {check.name: check for check in executor.probe()}
    assert {name for name, check in checks.items() if not check.ok} == {"queue", "jobset", "pull"}
    assert checks["cluster"].found.endswith("version 1.30")
    assert checks["claim"].found == "runs is there"
    assert all(check.ok or check.step for check in checks.values())
    cluster.version = "20"
    old = {check.name: check for check in executor.probe()}
    assert "each rank is a Job" in old["cluster"].found or old["cluster"].found == checks["cluster"].found
