"""The custom jobs of VertexExecutor, word for word, and what is refused before there is any."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contracts.executor import HOSTILE
from tasks import double
from vertexes import lacking

import nemo_run as run
from nemo_run.config import Partial, Script
from nemo_run.core.execution.base import JobSpec
from nemo_run.core.packaging.base import Packager
from nemo_run.errors import ConfigError, UnsupportedError
from nemo_run.run.app import make_spec
from nemo_run.run.job import make_job
from nemo_run.run.records import ExperimentRecord
from nemo_run.shell import Expand

GOLDEN = Path(__file__).with_name("vertex")
FOLDER = Path("/home/me/.run/experiments/exp/exp_1")
PROJECT = "projects/my-project"


def executor(**fields: Any) -> run.VertexExecutor:
    defaults = {"container_image": "us-docker.pkg.dev/my-project/it/train:1", "project": "my-project"}
    return run.VertexExecutor(**{"packager": Packager(), **defaults, **fields})


def staged(**fields: Any) -> run.VertexExecutor:
    return executor(staging_bucket="gs://bucket/work", **fields)


def spec(task: Any, *executors: run.VertexExecutor) -> JobSpec:
    """The specification of a job called `train`."""
    job = make_job(
        task, list(executors), name="train", taken=[], plugins=[], tail_logs=False, dependencies=[]
    )
    experiment = ExperimentRecord(
        id="exp_1", title="exp", created=0.0, jobs=[], cwd="/home/me/code", python_path=[], versions={}
    )
    return make_spec(job, job.trees(), experiment, FOLDER)


def of_image(*words: str, **fields: Any) -> Script:
    """The image's own program."""
    return Script(entrypoint="", args=list(words), **fields)


def program(*words: Any, **fields: Any) -> Script:
    return Script(path="/opt/train", entrypoint="", args=list(words), **fields)


def _image_packager() -> run.ImagePackager:
    return run.ImagePackager(
        base_image="python:3.12",
        push_image_tag="us-docker.pkg.dev/my-project/it/train:2",
        code=run.PatternPackager(include_pattern="*.py", relative_path="."),
    )


SHAPES: dict[str, Callable[[], JobSpec]] = {
    "image": lambda: spec(of_image("--rate=0.1", "a b", "$HOME"), executor(env_vars={"A": "b c"})),
    "program": lambda: spec(program("é", "$(x)", env={"N": "1\n2"}), executor(cpus=20, memory="60G")),
    "expanded": lambda: spec(program(Expand("$HOME/x"), env={"H": Expand("$(hostname)")}), executor()),
    "python": lambda: spec(Partial(double, 21), staged(python_path="/opt/python", log_level="INFO")),
    "gpus": lambda: spec(
        of_image(), executor(gpu_type="a100", gpus_per_node=8, disk_size_gb=500, disk_type="pd-ssd")
    ),
    "tpu": lambda: spec(of_image(), executor(tpu_type="v5e", tpu_topology="4x4")),
    "settings": lambda: spec(
        of_image(),
        executor(
            region="europe-west4", machine_type="a3-ultragpu-8g", timeout=3600, scheduling="spot",
            restart_on_worker_restart=True, retry_internal_errors=False, enable_web_access=True,
            service_account="me@my-project.iam.gserviceaccount.com", tensorboard="123",
            network="projects/12345/global/networks/mine", base_output_dir="gs://bucket/out",
            reservation=f"{PROJECT}/zones/europe-west4-a/reservations/r1", persistent_resource="kept",
            labels={"team": "vision", "cost-center": "12"},
        ),
    ),
    "flex-start": lambda: spec(
        of_image(), executor(gpu_type="h100", gpus_per_node=8, scheduling="flex-start", max_wait=7200)
    ),
    "torchrun": lambda: spec(
        Partial(double, 21), staged(nodes=3, gpu_type="t4", gpus_per_node=2, launcher="torchrun")
    ),
    "group": lambda: spec(
        [Script(path="s.sh", args=["server"]), Script(path="s.sh", args=["client"])],
        staged(nodes=2, gpu_type="t4"),
        staged(nodes=4, cpus=8),
    ),
    "built": lambda: spec(
        Script(path="train.py", entrypoint="python"), executor(container_image="", packager=_image_packager())
    ),
    "any-bytes": lambda: spec(program("\udcff", env={"B": "a\udc80"}), staged(reservation="any")),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_custom_job_is_word_for_word_as_it_was_read_by_a_person(shape: str) -> None:
    planned = SHAPES[shape]()
    text = planned.members[0].plan(planned).text
    path = GOLDEN / f"{shape}.json"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.skipif(bool(lacking()) and "CI" not in os.environ, reason=f"needs {lacking()}")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_custom_job_is_one_by_the_published_types(shape: str) -> None:
    from google.cloud.aiplatform_v1.types import CustomJob

    planned = SHAPES[shape]()
    text = planned.members[0].plan(planned).text
    job = CustomJob.from_json(text, ignore_unknown_fields=False)
    again = CustomJob.to_json(job, use_integers_for_enums=False, always_print_fields_with_no_presence=False)
    assert json.loads(again) == json.loads(text)


def test_planning_says_the_same_twice_and_is_what_is_sent() -> None:
    planned = SHAPES["group"]()
    first, second = (planned.members[0].plan(planned) for _ in range(2))
    assert (first.text, first.request) == (second.text, second.request)
    assert json.loads(first.text) == first.request["job"]


def test_arguments_are_told_as_they_are_wherever_vertex_can_be_told_them() -> None:
    words = [word for word in HOSTILE if "\udc80" <= max(word or " ") <= "\udcff" or word.isprintable()]
    utf8 = [word for word in words if not any("\udc80" <= char <= "\udcff" for char in word)]
    planned = spec(of_image(*utf8), executor())
    [pool] = planned.members[0].plan(planned).request["job"]["jobSpec"]["workerPoolSpecs"]
    assert pool["containerSpec"]["args"] == utf8


def test_each_role_knows_its_replicas_in_the_order_of_their_ranks() -> None:
    planned = SHAPES["group"]()
    assert planned.members[0].plan(planned).request["tasks"] == {
        "s.sh": ["workerpool0-0", "workerpool1-0"],
        "s.sh_1": ["workerpool2-0", "workerpool2-1", "workerpool2-2", "workerpool2-3"],
    }


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"container_image": ""}, r"has no container_image; give one such as \"us-docker.pkg.dev/"),
        ({"container_image": "a b"}, "that is no image"),
        ({"image": "other:1"}, "image and VertexExecutor.container_image are one setting"),
        ({"project": ""}, r"has no project; give its id .*GOOGLE_CLOUD_PROJECT"),
        ({"project": "My Project"}, "give a project's id"),
        ({"region": "us-centrall1"}, r"is no region; did you mean 'us-central1'"),
        ({"region": "mars-west1"}, "is no region"),
        ({"region": "us-1"}, "is no region"),
        ({"region": "europewest4"}, "did you mean 'europe-west4'"),
        ({"staging_bucket": "bucket"}, "give gs://bucket or gs://bucket/folder"),
        ({"gpu_type": "t4", "gpus_per_node": 3}, r"has 3 NVIDIA_TESLA_T4; ask for 2 or 4"),
        ({"gpu_type": "t4", "tpu_type": "v5e"}, "GPUs or TPUs, not both"),
        ({"gpu_type": "rtx4090"}, "Vertex AI has no GPU 'rtx4090'"),
        ({"cpus": 500}, "no machine of Vertex AI has 500 CPUs; the nearest: m1-ultramem-160"),
        ({"cpus": 0}, "VertexExecutor.cpus is 0"),
        ({"memory": "lots"}, "memory is 'lots'"),
        ({"nodes": 0}, "VertexExecutor.nodes is 0"),
        ({"nodes": 2, "tpu_type": "v5e"}, "TPUs are one machine to Vertex AI"),
        ({"labels": {"Team": "x"}}, r"labels: 'Team': 'x' is none; up to 63 lower-case"),
        ({"labels": {"team": "a b"}}, "labels: 'team': 'a b' is none"),
        ({"labels": {"1st": "x"}}, "labels: '1st'"),
        ({"labels": {"nemo_run": "x"}}, "labels: 'nemo_run'"),
        ({"labels": {"team": 1}}, "labels: 'team': 1 is none"),
        ({"scheduling": "cheap"}, "give one of standard, spot, flex-start"),
        ({"reservation": "r1"}, r"reservation is 'r1'; give \"any\", \"none\" or full names"),
        ({"network": "default"}, "network is 'default'; give a full name"),
        ({"service_account": "me"}, "service_account is 'me'; give its e-mail address"),
        ({"tensorboard": "123"}, "tensorboard needs a service_account"),
        ({"disk_size_gb": 50}, "disk_size_gb is 50; give a whole number, 100 or more"),
        ({"api_endpoint": "localhost:1"}, "give an address such as"),
        ({"packager": run.ImagePackager(base_image="python:3.12")}, "give ImagePackager a push_image_tag"),
    ],
)
def test_a_field_that_cannot_work_is_refused_when_it_is_given(
    fields: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    given = {"container_image": "it:1", "project": "my-project", "packager": Packager(), **fields}
    if isinstance(fields.get("packager"), run.ImagePackager):
        given["container_image"] = ""
    with pytest.raises(ConfigError, match=words):
        run.VertexExecutor(**given)


@pytest.mark.parametrize(
    ("task", "fields", "words"),
    [
        (Partial(double, 1), {}, "staging_bucket is not set, and 'train' needs one to bring its task there"),
        (Script(inline="true"), {}, "staging_bucket is not set, and 'train' needs one"),
        (program("\udcff"), {}, "Vertex AI takes UTF-8 alone; give a staging_bucket"),
        (of_image("\udcff"), {"staging_bucket": "gs://b-1"}, "takes UTF-8 alone; hand it over in a file"),
    ],
)
def test_a_job_that_lacks_something_is_refused_when_it_is_planned(
    task: Any, fields: dict[str, Any], words: str
) -> None:
    planned = spec(task, executor(**fields))
    with pytest.raises(ConfigError, match=words):
        planned.members[0].plan(planned)


@pytest.mark.parametrize(
    ("task", "fields", "words"),
    [
        (of_image(env={"T": run.Secret("T")}), {}, r"secret T .*put it into Secret Manager"),
        (of_image(), {"env_vars": {"T": run.Secret("T")}}, "Secret Manager"),
        (of_image(), {"retries": 1}, "leave retries out"),
        (of_image(), {"memory_limit": "1G"}, "ask for its size by memory"),
        (of_image(), {"cpu_limit": 1}, "ask for its size by cpus"),
        (of_image(), {"monitor_resources": True}, "in Google's console"),
        (of_image(), {"working_dir": "/x"}, "in the image's own folder"),
        (of_image(Expand("$HOME")), {}, "expand the arguments of an image's own program"),
        (of_image(), {"env_vars": {f"V{at}": "" for at in range(101)}}, "takes 100 variables"),
    ],
)
def test_what_vertex_has_no_means_for_is_refused_and_never_dropped(
    task: Any, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnsupportedError, match=words):
        executor(**fields).plan(spec(task, executor(**fields)))


def test_a_group_that_needs_more_than_four_pools_is_refused() -> None:
    planned = spec([of_image() for _ in range(4)], executor(nodes=2))
    with pytest.raises(UnsupportedError, match="4 worker pools for a job, and 'train' needs 5"):
        planned.members[0].plan(planned)


def test_members_that_differ_in_what_holds_for_the_job_are_refused() -> None:
    planned = spec([of_image(), of_image()], executor(timeout=10), executor(timeout=20))
    with pytest.raises(UnsupportedError, match="differ in 'timeout'"):
        planned.members[0].plan(planned)


def test_the_project_is_that_of_the_environment_or_of_gcloud_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    (tmp_path / "active_config").write_text("work\n")
    (tmp_path / "configurations").mkdir()
    (tmp_path / "configurations" / "config_work").write_text("[core]\naccount = me@x\nproject = of-gcloud\n")
    assert executor(project="").project == "of-gcloud"
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "from-env")
    assert executor(project="").parent == "projects/from-env/locations/us-central1"
