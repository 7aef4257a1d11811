"""What KubernetesExecutor says of what cannot work: before anything starts, at once, with the next step."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kube_api import Answer, Api, Request, kubeconfig, refusal
from programs import NEMO, call

import nemo_run as run
from nemo_run.core.execution.kubernetes_client import ApiError, connect, locate
from nemo_run.errors import ConfigError, NemoRunError, SubmitError, UnsupportedError
from nemo_run.run.experiment import Experiment


def executor(**fields: Any) -> run.KubernetesExecutor:
    return run.KubernetesExecutor(**{"container_image": "python:3.12", **fields})


#: Fields that cannot work, and words that say what to give.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"container_image": ""}, "container_image is ''; give an image"),
    "two images": ({"image": "other:1"}, "image and KubernetesExecutor.container_image are one setting and"),
    "nodes": ({"nodes": 0}, "nodes is 0; give a whole number, 1 or more"),
    "gpus": ({"gpus_per_node": "8"}, "gpus_per_node is '8'; give a whole number"),
    "gpu without number": ({"gpu_type": "h100"}, "say how many in gpus_per_node"),
    "gpu": ({"gpu_type": "h1000", "gpus_per_node": 1}, "no known GPU; did you mean 'h100'"),
    "tpu": ({"tpu_type": "v9", "tpu_topology": "2x2"}, "no known TPU"),
    "tpu and gpu": ({"tpu_type": "v5e", "tpu_topology": "2x2", "gpus_per_node": 1}, "give one of them"),
    "topology alone": ({"tpu_topology": "2x2"}, "without a tpu_type"),
    "no topology": ({"tpu_type": "v5e"}, "tpu_topology is None; .* takes one such as '2x2'"),
    "flat topology": ({"tpu_type": "v4", "tpu_topology": "2x2"}, "takes one such as '2x2x2'"),
    "no such topology": ({"tpu_type": "v5e", "tpu_topology": "2xx"}, "tpu_topology is '2xx'"),
    "nodes of a topology": (
        {"tpu_type": "v5e", "tpu_topology": "4x4"}, "has 16 chips, 4 on each node .* nodes=4, not 1",
    ),
    "cpus": ({"cpus": "many"}, "cpus is 'many'; give a number, or a quantity such as"),
    "no cpus": ({"cpus": 0}, "cpus is 0"),
    "memory": ({"memory": "32 gigs"}, "memory is '32 gigs'; give a number, or a quantity such as"),
    "two memories": ({"memory": "1Gi", "memory_limit": "2G"}, "are one setting; give memory alone"),
    "two cpus": ({"cpus": 2, "cpu_limit": 3}, "are one setting; give cpus alone"),
    "shm": ({"shm_size": "x"}, "shm_size is 'x'"),
    "namespace": ({"namespace": "My Team"}, "namespace is 'My Team'; give a name of small letters"),
    "account": ({"service_account": "a_b"}, "service_account is 'a_b'"),
    "pull secret": ({"image_pull_secrets": ["A"]}, "image_pull_secrets is 'A'"),
    "pull secrets": ({"image_pull_secrets": "registry"}, "image_pull_secrets is 'registry'; give list"),
    "policy": ({"image_pull_policy": "always"}, "one of Always, IfNotPresent, Never"),
    "label": ({"labels": {"team": "a b"}}, "labels: 'team': 'a b' is none"),
    "label's key": ({"labels": {"a b": "c"}}, "labels: 'a b'"),
    "our label": ({"labels": {"nemo-run/job": "x"}}, "which nemo_run sets"),
    "selector": ({"node_selector": {"gpu": True}}, "node_selector: 'gpu': True is none"),
    "tolerations": ({"tolerations": {"key": "x"}}, "tolerations is .*; give a list of dicts"),
    "volumes": ({"volumes": ["/data:/data"]}, "volumes is .*; give a list of dicts, as in the manifest"),
    "mount": ({"volume_mounts": [{"name": "x", "mountPath": "/x"}]}, "names none of volumes"),
    "our volume": ({"volumes": [{"name": "nemo-run", "emptyDir": {}}]}, "is a name of nemo_run's"),
    "affinity": ({"affinity": []}, r"affinity is \[\]; give dict"),
    "pod": ({"pod_spec": {"nodeSelector": {}}}, "pod_spec holds 'nodeSelector'; use node_selector"),
    "container": ({"container_spec": {"env": []}}, "container_spec holds 'env'; use env_vars"),
    "ttl": ({"ttl": -1}, "ttl is -1"),
    "grace": ({"grace": 1.5}, "grace is 1.5"),
    "patience": ({"start_patience": "5"}, "start_patience is '5'; give a number of seconds"),
    "timeout": ({"timeout": 0}, "timeout is 0; give a number of seconds"),
    "variable": ({"env_vars": {"A-B": "c"}}, "'A-B' is not a name of an environment variable"),
    "value": ({"env_vars": {"A": 1}}, "of type int; give it as a str"),
    "unknown": ({"queue": "Big Queue"}, "queue is 'Big Queue'"),
    "unpushed image": ({"packager": run.ImagePackager()}, "ImagePackager without push_image_tag"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_field_that_cannot_work_is_refused_where_it_is_written(name: str) -> None:
    fields, words = WRONG[name]
    with pytest.raises(ConfigError, match=words):
        executor(**fields)


def test_what_a_cluster_has_no_means_for_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="monitor_resources; leave it out, and ask `kubectl top pod`"):
        executor(monitor_resources=True)


def test_a_field_that_is_none_is_refused() -> None:
    made = executor()
    made.gpu_count = 3  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no field 'gpu_count'"):
        made.check()


def test_one_amount_may_be_said_in_both_ways_if_it_is_the_same() -> None:
    made = executor(cpus="2000m", cpu_limit=2, memory="1Gi", memory_limit="1G")
    assert made.resources() == {"cpu": "2000m", "memory": "1Gi"}
    assert executor(memory_limit="1.5G", cpu_limit=3).resources() == {"cpu": "3", "memory": "1610612736"}


def test_members_of_a_group_agree_on_where_they_are(home: Path, tmp_path: Path, api: Api) -> None:
    experiment = Experiment("group", clean_mode=True)
    script = run.Script(inline="true")
    experiment.add([script, script], [executor(namespace="a"), executor(namespace="b")], name="group")
    with pytest.raises(UnsupportedError, match="differ in 'namespace'"):
        experiment.dryrun()


# --- which cluster --------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubeconfig to be written."""
    path = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return path


def test_without_a_cluster_it_is_said_where_one_would_be_looked_up(config: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"no Kubernetes cluster is configured: there is no {config}. Get a"
    ):
        locate(None, None)


def test_a_context_that_is_not_there_is_named_with_those_that_are(config: Path) -> None:
    config.write_text(kubeconfig("http://127.0.0.1:1"))
    with pytest.raises(ConfigError, match="no context 'ther'; did you mean 'there'"):
        locate("ther", None)
    config.write_text(kubeconfig("http://127.0.0.1:1", **{"current-context": ""}))
    with pytest.raises(ConfigError, match=r"no current context.*choose one by `kubectl config use-context`"):
        locate(None, None)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "contexts: [1]", "contexts: [{}]", "\x00"])
def test_a_broken_kubeconfig_is_named(config: Path, text: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError, match=f"the kubeconfig {config} cannot be read"):
        locate(None, None)


def test_the_namespace_is_that_which_is_given_else_the_contexts_own(config: Path) -> None:
    config.write_text(kubeconfig("http://127.0.0.1:1"))
    assert locate(None, None) == (str(config), "here", "mine")
    assert locate("there", None) == (str(config), "there", "default")
    assert locate("there", "other").namespace == "other"


def test_several_kubeconfigs_are_read_as_one(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = config.with_name("other")
    monkeypatch.setenv("KUBECONFIG", f"{other}:/no/such/file:{config}")
    config.write_text(kubeconfig("http://127.0.0.1:1"))
    other.write_text("contexts:\n- {name: far, context: {namespace: away}}\n")
    assert locate(None, None) == (f"{other}:{config}", "here", "mine")
    assert locate("far", None).namespace == "away"


def test_in_a_pod_without_a_kubeconfig_the_clusters_own_is_meant(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert locate(None, None) == ("", "", "default")
    with pytest.raises(ConfigError, match="context is 'x', and there is no kubeconfig to look it up in"):
        locate("x", None)
    with pytest.raises(SubmitError, match="this pod's service account cannot be used"):
        connect(locate(None, None))


def test_a_plan_needs_no_cluster(config: Path, home: Path) -> None:
    experiment = Experiment("dry", clean_mode=True)
    experiment.add(run.Script(inline="true"), executor(), name="job")
    experiment.dryrun()


# --- servers that refuse, or say nothing ----------------------------------------------------------------


def healthy(request: Request) -> Answer:
    """Any cluster that lets us make Jobs."""
    if request.path == "/version":
        return 200, {"major": "1", "minor": "30+"}
    return 201, request.body or {}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An API server, which is the current context's."""
    with Api(tmp_path, healthy).running() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.config))
        yield server


REFUSALS: dict[str, tuple[Answer, str]] = {
    "nobody": (
        refusal(401, "Unauthorized", "Unauthorized"),
        r"Unauthorized \(401\): the cluster at .* context 'here' for anybody it knows; log in again",
    ),
    "no right": (
        refusal(403, "Forbidden", 'User "me" cannot create resource "jobs" in the namespace "mine"'),
        'User "me" cannot create resource .*; ask whoever runs the cluster for that right, or give another',
    ),
    "no namespace": (
        refusal(404, "NotFound", 'namespaces "mine" not found'),
        'namespaces "mine" not found; make it, or give KubernetesExecutor another namespace',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_who_may_not_is_told_so_before_anything_is_written(name: str, api: Api, home: Path) -> None:
    answer, words = REFUSALS[name]
    api.answer = lambda request: healthy(request) if request.path == "/version" else answer
    with pytest.raises(SubmitError, match=words):
        run.run(run.Script(inline="true"), executor(), name="job")
    assert Experiment.catalog() == []
    assert {request.query.get("dryRun") for request in api.asked if request.method == "POST"} == {"All"}


def test_what_one_cluster_has_against_a_trial_it_may_not_have_against_a_job(api: Api) -> None:
    api.answer = lambda request: (
        healthy(request)
        if request.path == "/version"
        else refusal(403, "Forbidden", "admission webhook denied the request: containers need limits")
    )
    executor().connect()


def test_no_answer_and_none_that_can_be_understood_are_said_at_once(
    config: Path, home: Path, tmp_path: Path
) -> None:
    config.write_text(kubeconfig("http://127.0.0.1:1"))
    began = time.monotonic()
    with pytest.raises(
        SubmitError, match=r"no Kubernetes answers at http://127\.0\.0\.1:1: .*refused"
    ) as caught:
        run.run(run.Script(inline="true"), executor(), name="job")
    assert "kubectl --context here get nodes" in str(caught.value)
    assert not re.search("urllib3|HTTPConnection", str(caught.value))
    (other := config.with_name("other")).write_text(kubeconfig("http://no-such-host.invalid"))
    cluster = connect(locate(None, None)._replace(config=str(other)))
    with pytest.raises(NemoRunError, match=r"no Kubernetes answers at http://no-such-host\.invalid"):
        cluster.get("/version")
    assert time.monotonic() - began < 20
    assert Experiment.catalog() == []


def test_a_page_that_is_no_kubernetes_is_shown(api: Api) -> None:
    api.answer = lambda request: (502, iter([b"<html>Bad Gateway</html>"]))
    with pytest.raises(ApiError, match="<html>Bad Gateway</html>") as caught:
        connect(locate(None, None)).get("/version")
    assert caught.value.status == 502
    api.answer = lambda request: (200, iter([b"<html>Welcome</html>"]))
    with pytest.raises(ApiError, match="is no Kubernetes: <html>Welcome</html>"):
        connect(locate(None, None)).get("/version")


def test_a_token_that_has_run_out_is_read_again(api: Api) -> None:
    def answer(request: Request) -> Answer:
        known = request.headers["Authorization"] == "Bearer new-token"
        return healthy(request) if known else refusal(401, "Unauthorized", "Unauthorized")

    api.answer = answer
    cluster = connect(locate(None, None))
    api.config.write_text(api.config.read_text().replace("a-token", "new-token"))
    assert cluster.version == (1, 30)


def test_a_kubeconfig_whose_login_program_is_missing_says_so(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    kind = "client.authentication.k8s.io/v1"
    login = {"apiVersion": kind, "command": "no-such-login", "interactiveMode": "Never"}
    api.config.write_text(kubeconfig(api.url, users=[{"name": "me", "user": {"exec": login}}]))
    api.answer = lambda request: (
        healthy(request)
        if "Authorization" in request.headers
        else refusal(401, "Unauthorized", "Unauthorized")
    )
    with pytest.raises(SubmitError, match="log in again"):
        executor().connect()
    assert "no-such-login" in caplog.text  # which the library tells


def test_without_the_client_library_the_pip_line_is_told() -> None:
    code = (
        "import sys; sys.modules['kubernetes'] = None\n"
        "from nemo_run.core.execution.kubernetes_client import Place, connect\nconnect(Place('x', 'y', 'z'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip().splitlines()[-1] == (
        "nemo_run.errors.MissingDependencyError: KubernetesExecutor needs the Kubernetes client: "
        'pip install "nemo_run[kubernetes]"'
    )


def test_the_command_line_tries_what_is_needed_and_says_what_is_lacking(api: Api, home: Path) -> None:
    done = call([NEMO, "executors", "check", "KubernetesExecutor", "namespace=research"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a pod of any image on Kubernetes, namespace research" in done.stdout
    assert re.search(f"ok +cluster +{api.url}, version 1.30\n", done.stdout)
    answer, _ = REFUSALS["no right"]
    api.answer = lambda request: healthy(request) if request.path == "/version" else answer
    done = call([NEMO, "executors", "check", "KubernetesExecutor"])
    assert done.returncode == 1
    assert re.search("failed +access +.*; ask whoever runs the cluster for that right", done.stdout)
    done = call([NEMO, "executors", "check", "KubernetesExecutor"], env={"KUBECONFIG": "/no/such"})
    assert done.returncode == 1
    assert re.search("failed +cluster +no Kubernetes cluster is configured", done.stdout)


def test_what_a_job_cannot_be_given_leaves_nothing_behind(api: Api, home: Path) -> None:
    """The cluster takes the Secret and refuses the Job."""
    there = dict[str, dict[str, Any]]()

    def answer(request: Request) -> Answer:
        if request.path.endswith("/jobs") and "dryRun" not in request.query:
            return refusal(422, "Invalid", "Job.batch is invalid: spec.template: no")
        if request.method == "POST" and request.path.endswith("/secrets"):
            there[request.path + "/" + request.body["metadata"]["name"]] = request.body
        if request.method == "GET" and request.path != "/version":
            return (200, there[request.path]) if request.path in there else refusal(404, "NotFound", "gone")
        if request.method == "DELETE":
            there.pop(request.path)
        return healthy(request)

    api.answer = answer
    with pytest.raises(NemoRunError, match=r"not submitted: Job\.batch is invalid: spec\.template: no"):
        run.run(run.Script(inline="true"), executor(packager=run.Packager()), name="job")
    assert there == {}
    assert not list(home.rglob("kubernetes.json"))
    assert [request.path.rpartition("/")[2] for request in api.asked].count("secrets") == 1
