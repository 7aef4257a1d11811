"""What is built of packaged code, as text: no Engine is needed to say it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

import nemo_run as run
from nemo_run.core.execution.docker_build import write_context
from nemo_run.errors import ConfigError, UnsupportedError

PACKAGE = {"key": "k" * 64, "tree": "0123456789abcdef"}


def test_the_code_comes_last_so_that_what_is_installed_stays_when_it_changes() -> None:
    packager = run.ImagePackager(
        base_image="python:3.12",
        docker_instructions=["COPY requirements.txt .", "RUN pip install -r requirements.txt"],
        entrypoint=["/bin/nice", "-n", "5", 'a "quoted" word'],
    )
    assert packager.dockerfile("") == (
        "FROM python:3.12\n"
        "WORKDIR /code\n"
        "COPY requirements.txt .\n"
        "RUN pip install -r requirements.txt\n"
        "COPY . /code\n"
        "WORKDIR /code\n"
        'ENTRYPOINT ["/bin/nice", "-n", "5", "a \\"quoted\\" word"]\n'
    )


def test_an_image_is_named_by_the_tree_of_its_code_and_all_that_it_is_made_of() -> None:
    tag = run.ImagePackager(base_image="a").image("", PACKAGE, None).tag
    assert tag.startswith("nemo_run:0123456789ab-")
    assert tag == run.ImagePackager(base_image="a").image("", PACKAGE, None).tag
    others = [
        run.ImagePackager(base_image="b").image("", PACKAGE, None).tag,
        run.ImagePackager(base_image="a", docker_instructions=["RUN x"]).image("", PACKAGE, None).tag,
        run.ImagePackager(base_image="a").image("", {**PACKAGE, "key": "other"}, None).tag,
    ]
    assert len({tag, *others}) == 4


def test_the_executors_image_is_the_one_to_build_on() -> None:
    assert "FROM mine:1\n" in run.ImagePackager().image("mine:1", PACKAGE, None).dockerfile
    with pytest.raises(ConfigError, match="give the image to build on once"):
        run.DockerExecutor(container_image="a:1", packager=run.ImagePackager(base_image="b:1"))
    with pytest.raises(ConfigError, match="there is no image to build on"):
        run.DockerExecutor(packager=run.ImagePackager())
    assert run.DockerExecutor(packager=run.ImagePackager(base_image="b:1")).info().startswith("b:1 on")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"docker_instructions": "RUN x"}, "docker_instructions is 'RUN x'; give a list"),
        ({"docker_instructions": [""]}, "docker_instructions"),
        ({"entrypoint": "bash"}, "entrypoint is 'bash'; give a list"),
        ({"push_image_tag": "Not A Name"}, "push_image_tag is 'Not A Name'"),
        ({"push_image_tag": ""}, "push_image_tag is ''"),
        ({"base_image": None}, "base_image is None"),
        ({"code": run.Packager()}, "give a packager that packages"),
    ],
)
def test_bad_settings_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run.ImagePackager(**fields)


@pytest.mark.parametrize(
    "name", ["it", "team/it:1", "localhost:5000/it", "registry.example:443/a/b_c:v1.0-x"]
)
def test_names_that_registries_take_are_taken(name: str) -> None:
    assert run.ImagePackager(push_image_tag=name).push_image_tag == name


def test_a_backend_that_runs_no_images_refuses_it_before_anything_is_written(home: Path) -> None:
    exp = run.Experiment("it", run.LocalExecutor(packager=run.ImagePackager(base_image="a")))
    exp.add(run.Script(inline="true"))
    with pytest.raises(UnsupportedError, match="jobs of LocalExecutor do not run in one"):
        exp.run()
    assert not (home / "experiments").exists()


def test_equal_files_make_equal_contexts_and_everybody_may_write_there(tmp_path: Path) -> None:
    contexts = []
    for name in ("one", "two"):
        code = tmp_path / name
        (code / "a folder").mkdir(parents=True, mode=0o700)
        (code / "a folder" / "é\n.txt").write_text("x")
        (code / "run.sh").write_text("#!/bin/sh\n")
        (code / "run.sh").chmod(0o700)
        (code / "link").symlink_to("run.sh")
        file = io.BytesIO()
        write_context(code, "FROM a\n", file)
        contexts.append(file.getvalue())
    assert contexts[0] == contexts[1]
    with tarfile.open(fileobj=io.BytesIO(contexts[0])) as archive:
        found = {member.name: (member.mode, member.linkname) for member in archive}
    assert found.pop("link")[1] == "run.sh"
    modes = {name: mode for name, (mode, _) in found.items()}
    assert modes["a folder"] == modes["run.sh"] == 0o777
    assert modes["a folder/é\n.txt"] == 0o666
    assert {".dockerignore", ".nemo_run.Dockerfile"} <= modes.keys()
