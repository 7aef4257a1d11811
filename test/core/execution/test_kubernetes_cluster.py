"""Jobs on a real Kubernetes, with real containers: `make test-kubernetes` starts one for these."""

from __future__ import annotations

import copy
import json
import os
import re
import secrets
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import tasks
import torch_tasks
from contracts.executor import ExecutorContract, ended, prepare, wait_until
from dockers import TESTS
from kubes import IMAGE, Namespace
from repositories import repository

import nemo_run as run
from nemo_run.core.execution.base import AppState, Executor, JobHandle, JobStatus, Plan
from nemo_run.errors import JobTimeoutError, SubmitError

pytestmark = [pytest.mark.usefixtures("home", "kubernetes"), pytest.mark.timeout(180)]

Job: TypeAlias = tuple[Executor, JobHandle]


def mounted(*folders: Path | str) -> dict[str, Any]:
    """The node is this machine: pods see these folders where they are."""
    named = {f"folder-{at}": str(folder) for at, folder in enumerate(folders)}
    return {
        "volumes": [{"name": name, "hostPath": {"path": path}} for name, path in named.items()],
        "volume_mounts": [{"name": name, "mountPath": path} for name, path in named.items()],
    }


def executor(*folders: Path | str, **fields: Any) -> run.KubernetesExecutor:
    """One whose tasks can import this folder's modules, and see these folders."""
    env_vars = {"PYTHONPATH": str(TESTS), **fields.pop("env_vars", {})}
    given = {"container_image": IMAGE, "packager": run.Packager(), "env_vars": env_vars}
    return run.KubernetesExecutor(**given | mounted(TESTS, *folders) | fields)


class TestKubernetesExecutor(ExecutorContract):
    patience = 90.0

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path, kubernetes: Namespace) -> None:
        self.seen = tmp_path
        self.kubernetes = kubernetes

    def executor(self, **fields: Any) -> Executor:
        return executor(self.seen, **fields)

    def refuse(self, plan: Plan) -> tuple[Plan, str]:
        [*others, job] = copy.deepcopy(plan.request["objects"])
        job["spec"]["template"]["spec"]["restartPolicy"] = "Always"
        return replace(plan, request={**plan.request, "objects": [*others, job]}), "valid values"

    def lose(self, handle: JobHandle, job_dir: Path) -> None:
        super().lose(handle, job_dir)
        for job in self.kubernetes.jobs():
            self.kubernetes.delete(job)


# --- how a test runs a job ------------------------------------------------------------------------------


def value(task: Any, *folders: Path, **fields: Any) -> Any:
    """What a task returns from a pod."""
    return run.run(task, executor(*folders, **fields), name="job", tail_logs=False)


def submit(task: Any, *folders: Path, **fields: Any) -> Job:
    """A job on its way."""
    plan = prepare(task, executor(*folders, **fields))
    member = plan.spec.members[0]
    return member, member.submit(plan)


def end(job: Job) -> JobStatus:
    return ended(*job, seconds=90)


def log(job: Job, replica: int = 0) -> list[str]:
    """What a job has printed so far."""
    return list(job[0].logs(job[1], "job", replica))


def says(job: Job, words: str) -> JobStatus:
    """The status of a job, once its message has these words."""

    def look() -> JobStatus | None:
        [status] = job[0].status([job[1]])
        return status if re.search(words, status.message) else None

    status = wait_until(look, f"the message has {words!r}", 60)
    assert status is not None
    return status


# --- ends -----------------------------------------------------------------------------------------------


class TestEnds:
    def test_too_much_memory_is_told_from_other_ends(self) -> None:
        status = end(submit(run.Partial(tasks.use_memory, 200), memory="64Mi"))
        assert (status.state, status.exit_code) == (AppState.FAILED, 137)
        assert "OOMKilled" in status.message

    def test_a_pod_that_its_node_evicts_is_told_from_other_ends(self) -> None:
        program = "head -c 50000000 /dev/zero > /tmp/file; sleep 1000"
        status = end(submit(run.Script(inline=program), ephemeral_storage="10Mi"))
        assert (status.state, status.message.split(":")[0]) == (AppState.FAILED, "Evicted")
        assert "storage" in status.message

    def test_a_job_deleted_by_hand_is_told_from_other_ends(self, kubernetes: Namespace) -> None:
        job = submit(run.Script(inline="echo here; sleep 1000"))
        wait_until(lambda: log(job) == ["here"], "it runs", 60)
        for each in kubernetes.jobs():
            kubernetes.delete(each)
        status = end(job)
        assert (status.state, status.exit_code) == (AppState.FAILED, None)
        assert "deleted" in status.message
        assert job[0].status([job[1]]) == [status]

    def test_a_pod_that_is_deleted_runs_again_and_the_log_of_both_is_kept(
        self, tmp_path: Path, kubernetes: Namespace
    ) -> None:
        """As when its node is drained: that is no failure of its own."""
        program = f"if [ -e {tmp_path}/once ]; then echo again; exit 0; fi; echo first; touch {tmp_path}/once"
        experiment = run.Experiment("deleted", executor(tmp_path), clean_mode=True)
        experiment.add(run.Script(inline=f"{program}; sleep 1000"), name="job")
        attended = threading.Thread(target=experiment.run)
        attended.start()
        wait_until((tmp_path / "once").exists, "it runs", 60)
        folder = experiment.path / "job"
        kept = folder / "pods"
        wait_until(lambda: any(b"first" in path.read_bytes() for path in kept.glob("*")), "its log is kept")
        [pod] = kubernetes.pods()
        kubernetes.delete(pod, "--now")
        attended.join(90)
        assert experiment.status(return_dict=True)["job"]["status"] == AppState.SUCCEEDED
        logs = [folder / "logs" / f"job_0{stem}.log" for stem in ("", ".attempt2")]
        assert [path.read_text() for path in logs] == ["first\n", "again\n"]

    def test_a_node_that_nobody_has_is_named_while_a_job_waits_for_it(self, kubernetes: Namespace) -> None:
        job = submit(run.Script(inline="true"), node_selector={"disk": "of-gold"})
        status = says(job, "Unschedulable")
        assert (status.state, status.exit_code) == (AppState.PENDING, None)
        assert re.search("node.*(selector|affinity)", status.message)
        job[0].cancel(job[1])
        assert end(job).state == AppState.CANCELLED
        wait_until(lambda: kubernetes.names() == set(), "nothing is left")

    def test_processors_that_no_node_has_are_named(self) -> None:
        job = submit(run.Script(inline="true"), cpus=1000)
        assert says(job, "Insufficient cpu").state == AppState.PENDING
        job[0].cancel(job[1])
        assert end(job).state == AppState.CANCELLED

    def test_an_image_that_cannot_be_pulled_is_named_and_in_the_end_a_failure(
        self, kubernetes: Namespace
    ) -> None:
        image = "registry.example.invalid/no/such:1"
        job = submit(run.Script(inline="true"), container_image=image, start_patience=6)
        status = says(job, "ErrImagePull|ImagePullBackOff")
        assert status.state == AppState.PENDING
        assert image in status.message
        status = end(job)
        assert (status.state, status.exit_code) == (AppState.FAILED, None)
        assert re.search("ErrImagePull|ImagePullBackOff", status.message)
        assert image in status.message
        wait_until(lambda: kubernetes.pods() == [], "its pod is gone")

    def test_a_volume_that_is_not_there_is_named(self) -> None:
        volumes = [{"name": "data", "configMap": {"name": "no-such"}}]
        mounts = [{"name": "data", "mountPath": "/data"}]
        job = submit(run.Script(inline="true"), volumes=volumes, volume_mounts=mounts)
        assert says(job, 'configmap "no-such" not found').state == AppState.PENDING
        job[0].cancel(job[1])
        assert end(job).state == AppState.CANCELLED

    def test_a_job_that_takes_too_long_is_ended(self, kubernetes: Namespace) -> None:
        with pytest.raises(JobTimeoutError, match="longer than 2 s"):
            value(run.Script(inline="sleep 1000"), timeout=2)
        wait_until(lambda: kubernetes.pods() == [], "its pod is gone", 60)

    def test_a_cancelled_one_may_clean_up_and_leaves_nothing(
        self, tmp_path: Path, kubernetes: Namespace
    ) -> None:
        started = tmp_path / "started"
        env = {"TOKEN": run.Secret("CANARY")}
        os.environ["CANARY"] = "sesame"
        job = submit(run.Partial(tasks.clean_up_on_sigterm, str(started)), tmp_path, env_vars=env)
        wait_until(started.exists, "it has started", 60)
        assert {name.split("/")[0] for name in kubernetes.names()} == {"job", "pod", "secret"}
        job[0].cancel(job[1])
        status = end(job)
        assert (status.state, status.message) == (AppState.CANCELLED, "cancelled")
        assert (tmp_path / "started.end").read_text() == "cleaned up"
        wait_until(lambda: kubernetes.names() == set(), "nothing is left")

    def test_one_that_ignores_this_is_killed(self, tmp_path: Path, kubernetes: Namespace) -> None:
        started = tmp_path / "started"
        job = submit(run.Partial(tasks.ignore_sigterm, str(started)), tmp_path, grace=1)
        wait_until(started.exists, "it has started", 60)
        job[0].cancel(job[1])
        assert end(job).state == AppState.CANCELLED
        wait_until(lambda: kubernetes.names() == set(), "nothing is left")

    def test_retries_are_kept_apart(self, tmp_path: Path) -> None:
        experiment = run.Experiment("again", executor(tmp_path, retries=1), clean_mode=True)
        experiment.add(run.Partial(tasks.fail_first, str(tmp_path / "once")), name="job")
        assert experiment.run() == {"job": "second"}
        record = experiment.status(return_dict=True)["job"]
        assert (record["status"], record["exit_code"]) == (AppState.SUCCEEDED, 0)
        folder = experiment.path / "job"
        logs = [folder / "logs" / f"job_0{stem}.log" for stem in ("", ".attempt2")]
        assert [path.read_text().splitlines()[0] for path in logs] == ["first", "second"]
        assert sorted(path.name for path in (folder / "results").iterdir()) == [
            "job_0.attempt2.json", "job_0.json",
        ]  # fmt: skip

    def test_the_last_attempts_failure_is_the_jobs(self) -> None:
        job = submit(run.Script(inline="echo failing; exit 12"), retries=1)
        status = end(job)
        assert (status.state, status.exit_code, status.attempt) == (AppState.FAILED, 12, 2)
        assert log(job) == ["failing", "failing"]

    def test_what_is_at_home_stays_when_the_cluster_forgets_the_job(self, kubernetes: Namespace) -> None:
        job = submit(run.Script(inline="echo kept; exit 4"), ttl=1)
        status = end(job)
        wait_until(lambda: kubernetes.names() == set(), "the cluster has removed it")
        assert (status.state, status.exit_code) == (AppState.FAILED, 4)
        assert job[0].status([job[1]]) == [status]
        assert log(job) == ["kept"]


class Following:
    """Reads a log as it grows."""

    def __init__(self, job: Job, replica: int = 0) -> None:
        self.lines: list[str] = []
        self._lines = job[0].logs(job[1], "job", replica, follow=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._lines:
            self.lines.append(line)

    def rest(self) -> list[str]:
        """All lines, once there are no more to come."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.lines


# --- logs, results, code --------------------------------------------------------------------------------


class TestHome:
    def test_long_logs_are_whole_whether_followed_or_not(self) -> None:
        job = submit(run.Script(inline="seq 30000; sleep 1; seq 30001 40000"))
        following = Following(job)
        expected = [str(number) for number in range(1, 40001)]
        assert end(job).state == AppState.SUCCEEDED
        assert following.rest() == expected
        assert log(job) == expected

    def test_logs_of_twenty_short_pods_are_whole(self) -> None:
        experiment = run.Experiment("short", executor(), clean_mode=True)
        for number in range(20):
            experiment.add(run.Script(inline=f"echo {number}; echo é; printf {number}"), name=f"job{number}")
        experiment.run()
        for number in range(20):
            [path] = (experiment.path / f"job{number}" / "logs").iterdir()
            assert path.read_text().splitlines() == [str(number), "é", str(number)]

    def test_what_a_task_leaves_among_its_artifacts_comes_home(self) -> None:
        job = submit(run.Partial(tasks.note_in_job, "by the task"))
        assert end(job).state == AppState.SUCCEEDED, log(job)
        assert (Path(job[1].data["job_dir"]) / "artifacts" / "note").read_text() == "by the task"
        assert log(job) == []

    def test_the_code_of_the_working_tree_travels_as_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        work = repository(tmp_path / "work", {"kept.txt": "as committed", "edited.txt": "as committed"})
        (work / "edited.txt").write_text("as edited")
        monkeypatch.chdir(work)
        job = submit(run.Script(inline="pwd; cat kept.txt edited.txt"), packager=run.GitArchivePackager())
        assert end(job).state == AppState.SUCCEEDED, log(job)
        assert log(job) == ["/nemo_run/code", "as committedas edited"]

    def test_code_that_is_too_large_to_travel_is_refused_with_what_to_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kubernetes: Namespace
    ) -> None:
        work = repository(tmp_path / "work", {"code.py": "pass"})
        (work / "weights").write_bytes(os.urandom(2 << 20))
        monkeypatch.chdir(work)
        with pytest.raises(run.NemoRunError, match=r"ImagePackager.*workdir_pvc|workdir_pvc.*ImagePackager"):
            submit(run.Script(inline="true"), packager=run.GitArchivePackager())
        assert kubernetes.names() == set()

    def test_on_a_volume_code_and_artifacts_have_any_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: str
    ) -> None:
        work = repository(tmp_path / "work", {"code.py": "pass"})
        (work / "weights").write_bytes(os.urandom(2 << 20))
        monkeypatch.chdir(work)
        experiment = run.Experiment(
            "volume", executor(packager=run.GitArchivePackager(), workdir_pvc=claim), clean_mode=True
        )
        experiment.add(run.Script(inline="cmp weights weights && cp weights ../artifacts/copy"), name="copy")
        experiment.add(run.Partial(tasks.text_of, 6 << 20), name="large")
        assert len(experiment.run()["large"]) == 6 << 20
        copy = (experiment.path / "copy" / "artifacts" / "copy").read_bytes()
        assert copy == (work / "weights").read_bytes()

    def test_an_images_own_program_is_given_its_words(self, kubernetes: Namespace) -> None:
        kubernetes.cluster.make_image("own:1", "printf", "<%s>\n")
        words = ["a b", "$(HOME)", "$$", "é", ""]
        job = submit(run.Script(entrypoint="", args=words), container_image="own:1")
        assert end(job).state == AppState.SUCCEEDED, log(job)
        assert log(job) == [f"<{word}>" for word in words]


@pytest.fixture
def claim(tmp_path: Path, kubernetes: Namespace) -> Iterator[str]:
    """A claim on a volume, which is a folder of the test's."""
    name, folder = f"claim-{secrets.token_hex(4)}", tmp_path / "volume"
    folder.mkdir()
    same = {"accessModes": ["ReadWriteMany"], "storageClassName": name}
    for kind, spec in {
        "PersistentVolume": {"capacity": {"storage": "1Gi"}, "hostPath": {"path": str(folder)}},
        "PersistentVolumeClaim": {"resources": {"requests": {"storage": "1Gi"}}},
    }.items():
        made = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "spec": {**same, **spec}}
        kubernetes.kubectl("create", "-f", "-", make=made)
    yield name
    kubernetes.cluster.kubectl("delete", "persistentvolume", name, "--wait=false")


# --- several pods ---------------------------------------------------------------------------------------


class TestSeveralPods:
    def test_each_knows_its_rank_and_where_the_first_is(self) -> None:
        program = (
            "echo $NODE_RANK; until getent hosts $MASTER_ADDR >/dev/null; do sleep 0.1; done; echo found"
        )
        job = submit(run.Script(inline=program), nodes=2)
        following = Following(job, 1)
        assert end(job).state == AppState.SUCCEEDED
        assert following.rest() == ["1", "found"]
        assert [log(job, replica) for replica in (0, 1)] == [["0", "found"], ["1", "found"]]
        logs = Path(job[1].data["job_dir"]) / "logs"
        assert sorted(path.name for path in logs.iterdir()) == ["job_0.log", "job_1.log"]

    def test_one_that_fails_takes_the_other_down(self, kubernetes: Namespace) -> None:
        program = "if [ $NODE_RANK = 1 ]; then exit 5; else sleep 1000; fi"
        status = end(submit(run.Script(inline=program), nodes=2))
        assert (status.state, status.exit_code) == (AppState.FAILED, 5)
        wait_until(lambda: not any(running(pod) for pod in kubernetes.pods()), "both have ended", 60)

    def test_roles_of_a_group_find_each_other_by_name(self) -> None:
        experiment = run.Experiment("talk", executor(), clean_mode=True)
        asks = run.Partial(tasks.ask_server, "serve-once")
        experiment.add([run.Partial(tasks.serve_once, "hello"), asks], name="group")
        assert experiment.run() == {"group": {"serve_once": None, "ask_server": "hello"}}

    @pytest.mark.slow
    @pytest.mark.skipif(
        find_spec("torch") is None and "CI" not in os.environ,
        reason="torch is not installed: pip install torch",
    )
    def test_torchrun_spans_them(self) -> None:
        words = ["a b", "é", "$a"]
        here = executor(
            *dict.fromkeys((sys.prefix, sys.base_prefix)),
            python_path=sys.executable,
            launcher="torchrun",
            nodes=2,
            ntasks_per_node=2,
            env_vars={"PYTHONWARNINGS": "ignore"},
            timeout=150,
        )
        experiment = run.Experiment("ranks", here, clean_mode=True)
        experiment.add(run.Partial(torch_tasks.reduce, words), name="job")
        first = {"rank": 0, "total": 10.0, "words": torch_tasks.hexed(words)}
        assert experiment.run() == {"job": first}
        results = (experiment.path / "job" / "results").glob("*.json")
        ranks = sorted(json.loads(path.read_text())["value"]["rank"] for path in results)
        assert ranks == [0, 1, 2, 3]


def running(pod: dict[str, Any]) -> bool:
    return pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]


# --- who and where --------------------------------------------------------------------------------------


class TestPlaces:
    def test_a_secret_is_in_a_secret_that_goes_with_the_job(
        self, kubernetes: Namespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CANARY", "open sesame")
        program = 'echo "it is $TOKEN"; sleep 1000'
        job = submit(run.Script(inline=program), env_vars={"TOKEN": run.Secret("CANARY")})
        wait_until(lambda: log(job) == ["it is ••••••"], "it is masked", 60)
        [batch], [own], [pod] = kubernetes.jobs(), kubernetes.list("secrets"), kubernetes.pods()
        [owner] = own["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("Job", batch["metadata"]["uid"])
        assert "sesame" not in json.dumps([batch, pod])
        kubernetes.delete(batch)
        wait_until(lambda: kubernetes.names() == set(), "it is gone with the job")
        end(job)
        kept = [path for path in Path(job[1].data["job_dir"]).rglob("*") if path.is_file()]
        assert not [path for path in kept if b"sesame" in path.read_bytes()]

    def test_jobs_run_in_the_namespace_that_is_named(self, kubernetes: Namespace) -> None:
        with kubernetes.cluster.lend_namespace() as other:
            job = submit(run.Script(inline="true"), namespace=other.name)
            assert len(other.jobs()) == 1
            assert kubernetes.jobs() == []
            assert end(job).state == AppState.SUCCEEDED

    def test_who_may_do_nothing_is_told_so_before_anything_is_written(self, home: Path) -> None:
        with pytest.raises(SubmitError, match=r'User "nobody" cannot create .* in the namespace'):
            value(run.Script(inline="true"), context="nobody")
        assert run.Experiment.catalog() == []

    def test_a_namespace_that_is_not_there_is_named(self) -> None:
        with pytest.raises(SubmitError, match="no-such-namespace"):
            value(run.Script(inline="true"), namespace="no-such-namespace")
