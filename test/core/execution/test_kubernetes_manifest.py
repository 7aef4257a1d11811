"""What KubernetesExecutor gives a cluster, word for word; and that Kubernetes' own schemas know all of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from contracts.executor import HOSTILE
from tasks import double

import nemo_run as run
from nemo_run.config import Partial, Script
from nemo_run.core.execution.base import JobSpec, Plan
from nemo_run.core.execution.kubernetes_manifest import as_text, for_version, role_hosts, slug
from nemo_run.core.packaging.base import Packager
from nemo_run.errors import UnsupportedError
from nemo_run.run.app import make_spec
from nemo_run.run.job import make_job
from nemo_run.run.records import ExperimentRecord
from nemo_run.shell import Expand

GOLDEN = Path(__file__).with_name("kubernetes")
FOLDER = Path("/home/me/.run/experiments/exp/exp_1")
#: The first that knows all that is asked for, and the newest that the validator knows.
VERSIONS = ("1.29", ".".join(map(str, kubernetes_validate.latest_version().split(".")[:2])))


def executor(**fields: Any) -> run.KubernetesExecutor:
    given = {"container_image": "python:3.12", "namespace": "research", "packager": Packager()}
    return run.KubernetesExecutor(**given | fields)


def spec(task: Any, *executors: run.KubernetesExecutor, name: str = "train") -> JobSpec:
    """The specification of a job."""
    job = make_job(task, list(executors), name=name, taken=[], plugins=[], tail_logs=False, dependencies=[])
    experiment = ExperimentRecord(
        id="exp_1", title="exp", created=0.0, jobs=[], cwd="/home/me/code", python_path=[], versions={}
    )
    for each in job.executors:
        each.assign("exp_1", str(FOLDER), job.id, job.id)
    return make_spec(job, job.trees(), experiment, FOLDER)


def plan(task: Any, *executors: run.KubernetesExecutor, name: str = "train") -> Plan:
    made = spec(task, *executors, name=name)
    return made.members[0].plan(made)


def hello(*words: Any, **fields: Any) -> Script:
    return Script(path="hello.sh", args=list(words), **fields)


RESOURCES: dict[str, Any] = {
    "gpus_per_node": 8, "gpu_type": "h100", "cpus": 96, "memory": "1400Gi", "ephemeral_storage": "500Gi",
    "shm_size": "64Gi", "service_account": "trainer", "priority_class": "high", "labels": {"team": "llm"},
    "node_selector": {"zone": "a"}, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"team": "llm"}}}]}},
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    "volume_mounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
    "image_pull_secrets": ["registry"], "annotations": {"example.com/note": "by night"},
    "working_dir": "/scratch", "pod_spec": {"securityContext": {"fsGroup": 1000}},
}  # fmt: skip

SHAPES: dict[str, Callable[[], Plan]] = {
    "script": lambda: plan(hello("a b", "$HOME", "$(HOME)", "$$"), executor()),
    "python": lambda: plan(Partial(double, 21), executor(cpus="500m", memory="1Gi", log_level="INFO")),
    "resources": lambda: plan(hello(), executor(**RESOURCES)),
    "torchrun": lambda: plan(
        Partial(double, 21), executor(nodes=2, gpus_per_node=8, launcher="torchrun", timeout=3600, retries=2)
    ),
    "group": lambda: plan(
        [hello("server"), hello("client")], executor(), executor(nodes=2, env_vars={"PORT": "80"})
    ),
    "secret": lambda: plan(
        hello(Expand("$HOSTNAME")),
        executor(env_vars={"TOKEN": run.Secret("HF_TOKEN"), "WHERE": Expand("$HOME/x"), "ODD": "\udcff"}),
    ),
    "tpu": lambda: plan(Partial(double, 21), executor(nodes=4, tpu_type="v5e", tpu_topology="4x4")),
    "queue": lambda: plan(hello(), executor(queue="nightly", retries=3, timeout=90.5, ttl=None)),
    "jobset": lambda: plan(
        [hello("learner"), hello("actor")],
        *(
            executor(nodes=nodes, use_jobset=True, queue="nightly", retries=1, timeout=3600)
            for nodes in (1, 2)
        ),
    ),
    "image": lambda: plan(
        Partial(double, 21),
        executor(packager=run.ImagePackager(push_image_tag="registry.example/team/it:1")),
    ),
    "claim": lambda: plan(
        Partial(double, 21), executor(workdir_pvc="runs", packager=run.GitArchivePackager())
    ),
    "own": lambda: plan(
        Script(entrypoint="", args=["--epochs", "$(EPOCHS)"], env={"A": "b", "TOKEN": run.Secret("X")}),
        executor(container_image="team/trainer:1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_manifest_is_what_a_person_would_have_written(name: str) -> None:
    compare(f"{name}.yaml", SHAPES[name]().text)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_kubernetes_knows_every_field_of_it(name: str, version: str) -> None:
    objects = [each for each in yaml.safe_load_all(SHAPES[name]().text) if each]
    assert objects
    for each in objects:
        validate(each, version)


def test_an_old_server_is_given_a_job_for_each_rank() -> None:
    old = for_version(SHAPES["torchrun"]().request["objects"], (1, 20))
    compare("torchrun-1.20.yaml", as_text(old))
    for each in old:
        validate(each, "1.25")  # the oldest that the validator knows
    assert for_version(old, (1, 37)) == old


def compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if "NEMO_RUN_REWRITE" in os.environ:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def validate(manifest: dict[str, Any], version: str) -> None:
    """Hold an object to the letter of a version's schema; of JobSets that are the Jobs in them."""
    if manifest["kind"] != "JobSet":
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    assert set(manifest["spec"]) <= {
        "network", "failurePolicy", "suspend", "ttlSecondsAfterFinished", "replicatedJobs",
    }  # fmt: skip
    for each in manifest["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", **each["template"]}
        job["metadata"] = {"name": each["name"], **job["metadata"]}
        kubernetes_validate.validate(job, version, strict=True)


# --- words ----------------------------------------------------------------------------------------------


def expanded(word: str) -> str:
    """What a kubelet makes of a word when no variable is set, by the rules of its documentation."""
    out, at = "", 0
    while at < len(word):
        if word[at : at + 2] == "$$":
            out, at = out + "$", at + 2
        else:
            out, at = out + word[at], at + 1
    return out


def test_words_survive_what_kubernetes_expands() -> None:
    words = [word for word in [*HOSTILE, "$$(A)", "$$$", "a$$b", "$(A", "$()"] if word.isprintable()]
    task = Script(path="x.sh", args=words, env={f"V{at}": word for at, word in enumerate(words)})
    [_, job] = plan(task, executor()).request["objects"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert [expanded(word) for word in container["args"][2:]] == words
    assert not [word for word in container["args"] if "$(" in word.replace("$$", "")]
    env = {each["name"]: expanded(each["value"]) for each in container["env"]}
    assert [env[f"V{at}"] for at in range(len(words))] == words


def test_nothing_that_is_no_utf8_is_told_to_the_api() -> None:
    made = plan(Script(path="x.sh", args=["a\udcff"], env={"B": "\udc80"}), executor())
    made.text.encode()
    job = made.request["objects"][-1]
    repr(job).encode()
    assert "\udcff" not in repr(job)


def test_no_secret_stands_in_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "sesame")
    made = plan(hello(), executor(env_vars={"TOKEN": run.Secret("CANARY")}))
    assert "sesame" not in made.text
    assert "sesame" not in repr(made.request)
    assert "<secret CANARY>" in made.text


def test_what_is_given_is_never_changed() -> None:
    fields = {name: value for name, value in RESOURCES.items() if isinstance(value, (list, dict))}
    before = repr(fields)
    made = executor(**RESOURCES)
    for _ in range(2):
        plan(hello(), made)
    assert repr(fields) == before
    assert plan(hello(), made).text == plan(hello(), made).text


def test_an_images_own_program_is_given_nothing_that_needs_a_shell() -> None:
    with pytest.raises(UnsupportedError, match="no shell to expand"):
        plan(Script(entrypoint="", args=[Expand("$HOME")]), executor())


# --- names ----------------------------------------------------------------------------------------------

ODD_NAMES = [
    "train",
    "Train 1",
    "日本語",
    "a" * 200,
    "-",
    "1",
    "a_b.c",
    "é-é",
    "UPPER_lower",
    "x" * 25 + "-y",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_dns_labels_whatever_the_job_is_called(name: str) -> None:
    group = [hello(), hello(), Script(path="日本.sh")]
    for objects in (
        plan(hello(), executor(nodes=12), name=name).request["objects"],
        plan(group, executor(), executor(nodes=3), executor(), name=name).request["objects"],
    ):
        names = [each["metadata"]["name"] for each in objects if each["kind"] == "Job"]
        assert len(set(names)) == len(names)
        for each in objects:
            assert is_label(each["metadata"]["name"] + "-99999")
            assert all(len(value) <= 63 for value in each["metadata"]["labels"].values())
        for job in objects:
            if job["kind"] == "Job" and (host := job["spec"]["template"]["spec"].get("hostname")):
                assert is_label(host)


def is_label(text: str) -> bool:
    fits = text.replace("-", "a").isalnum() and text.isascii() and text == text.lower()
    return fits and len(text) <= 63 and text[0].isalpha() and text[-1] != "-"


def test_roles_of_one_name_have_hosts_of_their_own() -> None:
    assert role_hosts(["a_b", "a-b", "日本", "日", "x" * 90]) == ["a-b", "a-b-2", "role", "role-2", "x" * 40]
    assert slug("-A__b-", 20) == "a-b"
    assert slug("abc-d", 4) == "abc"


def test_jobs_of_one_name_in_two_folders_do_not_meet() -> None:
    first = plan(hello(), executor())
    other = spec(hello(), executor())
    moved = JobSpec(**{**vars(other), "job_dir": Path("/elsewhere/train")})
    assert first.request["digest"] != moved.members[0].plan(moved).request["digest"]
