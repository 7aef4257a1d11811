"""The snippets of XManager's documents are run as they are written, but for the import.

It reads them where the project's specification lies beside the repository (`../shared/spec/seeds`). What a
snippet leaves out (`...`, `<image>`) is filled in as each says.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import shutil
import subprocess
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from dockers import IMAGE, Containers
from programs import NEMO, call, python, succeeded, write
from vertexes import Vertex, running_vertex, skip_without_types

from nemo_run import xm, xm_local
from nemo_run.xm_local.packaging.dockerfile import default_base_image

SEEDS = Path(__file__).parents[3] / "shared" / "spec" / "seeds"
SPECS, EXECUTORS, README = (f"xmanager_{name}.md" for name in ("executable_specs", "executors", "readme"))

pytestmark = pytest.mark.skipif(not SEEDS.is_dir(), reason=f"the documents are not there ({SEEDS})")


# --- What the documents hold ----------------------------------------------------------------------------


def blocks(document: str, language: str) -> list[tuple[str, str]]:
    """The fenced blocks of a language, each with the heading it stands under."""
    text = (SEEDS / document).read_text(encoding="utf-8")
    found, heading = [], ""
    for match in re.finditer(r"^ *```(\w*)\n(.*?)^ *```$|^#+ ([^\n]*)$", text, re.M | re.S):
        heading = match[3] or heading
        if match[2] is not None and match[1] == language:
            found.append((heading, textwrap.dedent(match[2])))
    return found


def expressions(document: str) -> list[tuple[str, str]]:
    """The expressions of a document that fences none of them, each with the name it begins with."""
    text = (SEEDS / document).read_text(encoding="utf-8")
    return [(match[1], text[match.start() : end(text, match)]) for match in starts(text)]


def starts(text: str) -> Iterator[re.Match[str]]:
    return re.finditer(r"^(?:assert )?xm\.(\w+)\(", text, re.M)


def end(text: str, match: re.Match[str]) -> int:
    """Where the expression ends that begins with this call."""
    at, depth = match.end(), 1
    while depth:
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        at += 1
    other = re.compile(r" == xm\.(\w+)\(").match(text, at)
    return end(text, other) if other else at


#: All there is in Python, by document and heading (or first name), numbered where one has several.
SNIPPETS: dict[tuple[str, str], str] = {}
if SEEDS.is_dir():
    for document, found in [
        (SPECS, expressions(SPECS)),
        (EXECUTORS, blocks(EXECUTORS, "python")),
        (README, blocks(README, "python")),
    ]:
        for title, code in found:
            number = sum(key[0] == document and key[1].partition(" #")[0] == title for key in SNIPPETS)
            SNIPPETS[document, f"{title} #{number + 1}"] = code


class Snippet(NamedTuple):
    """What stands for what a snippet leaves out, and what must hold of its value."""

    fill: dict[str, str]
    holds: Callable[[Any], bool]


def filled(where: tuple[str, str], fill: dict[str, str]) -> str:
    code = SNIPPETS[where].replace("from xmanager import", "from nemo_run import")
    for left_out, value in fill.items():
        assert left_out in code, f"{left_out!r} is not in {where}:\n{code}"
        code = code.replace(left_out, value)
    return code


# --- Those that are one expression ----------------------------------------------------------------------


def asks(name: str, count: int) -> Callable[[Any], bool]:
    """Whether an executor asks for one processor, 4 GiB and so many of an accelerator."""
    wanted = xm.JobRequirements(cpu=1, ram=4 * 2**30, **{name: count})
    return lambda executor: executor.requirements == wanted


def pushes(executor: Any) -> Callable[[Any], bool]:
    return lambda spec: spec == executor.Spec(push_image_tag="gcr.io/<project>/<image>:<tag>")


COMMANDS = xm.CommandList(["./pre_process.sh", "python3 -m cifar10 $@", "./post_process.sh"])
#: The long form of a PythonContainer, which is written as no Python is.
FORM = {
    "entrypoint:": "entrypoint=", "path:": "path=", "base_image:": "base_image=",
    "docker_instructions:": "docker_instructions=", "<module name>": "cifar10", ", ...": "",
}  # fmt: skip
T4, TPU = asks("T4", 1), asks("TPU_V2", 8)


def is_form(spec: Any) -> bool:
    given = (spec.path, spec.base_image, spec.docker_instructions)
    return given == ("/path/to/python/project", "<image>[:<tag>]", ["RUN ...", "COPY ..."])


def is_simple(spec: Any) -> bool:
    return spec == xm.PythonContainer(xm.ModuleName("cifar10"))


def is_advanced(spec: Any) -> bool:
    return spec.entrypoint == COMMANDS and spec.docker_instructions[2] == "COPY cifar10.py"


PORTS = {80: 8080}
CONTAINER = "gcr.io/project-name/image-name:latest"
EXPRESSIONS: dict[tuple[str, str], Snippet] = {
    (SPECS, "Container #1"): Snippet({}, lambda spec: spec.image_path == CONTAINER),
    (SPECS, "BazelContainer #1"): Snippet({}, lambda spec: spec.label == "//path/to/target:label.tar"),
    (SPECS, "Binary #1"): Snippet({}, lambda spec: spec.path == "/home/user/project/a.out"),
    (SPECS, "BazelBinary #1"): Snippet({}, lambda spec: spec.label == "//path/to/target:label"),
    (SPECS, "PythonContainer #1"): Snippet(FORM, is_form),
    (SPECS, "PythonContainer #2"): Snippet({}, is_simple),
    (SPECS, "PythonContainer #3"): Snippet({}, is_advanced),
    (EXECUTORS, "Local #1"): Snippet(
        {"...": "ports={80: 8080}"}, lambda it: it.docker_options.ports == {80: 8080}
    ),
    (EXECUTORS, "Local #2"): Snippet({}, lambda it: it.requirements == xm.JobRequirements(local_gpu=1)),
    (EXECUTORS, "Vertex AI (Cloud AI Platform) #1"): Snippet({}, T4),
    (EXECUTORS, "Vertex AI (Cloud AI Platform) #2"): Snippet({}, TPU),
    (EXECUTORS, "Vertex AI Specification #1"): Snippet({}, pushes(xm_local.Vertex)),
    (EXECUTORS, "Kubernetes Specification #1"): Snippet({}, pushes(xm_local.Kubernetes)),
    (README, "Container #1"): Snippet({}, lambda spec: spec.image_path == CONTAINER),
    (README, "BazelBinary #1"): Snippet({}, lambda spec: spec.path == "//path/to/target:label"),
    (README, "PythonContainer #1"): Snippet(FORM, is_form),
    (README, "PythonContainer #2"): Snippet({}, is_simple),
    (README, "PythonContainer #3"): Snippet({}, is_advanced),
    (README, "Cloud AI Platform (CAIP) #1"): Snippet({}, T4),
    (README, "Cloud AI Platform (CAIP) #2"): Snippet({}, TPU),
    (README, "Caip Specification #1"): Snippet({}, pushes(xm_local.Caip)),
    (README, "Kubernetes Specification #1"): Snippet({}, pushes(xm_local.Kubernetes)),
}


@pytest.mark.parametrize("where", EXPRESSIONS, ids=" ".join)
def test_what_a_document_writes_down_says_what_it_says_there(where: tuple[str, str]) -> None:
    fill, holds = EXPRESSIONS[where]
    value = eval(filled(where, fill).strip(), {"xm": xm, "xm_local": xm_local, "PORTS": PORTS})
    assert holds(value), value


#: The rest of a shortener's call, and the spec it stands for.
SHORTENERS = {
    (SPECS, "container #1"): f"path={CONTAINER!r}",
    (SPECS, "bazel_container #1"): "label='//path/to/target:label.tar'",
    (SPECS, "binary #1"): "path='/home/user/project/a.out'",
    (SPECS, "bazel_binary #1"): "label='//path/to/target:label'",
    (SPECS, "python_container #1"): "entrypoint=xm.ModuleName('cifar10')",
    (README, "Container #2"): f"path={CONTAINER!r}",
    (README, "BazelBinary #2"): "label='//path/to/target:label'",
    (README, "PythonContainer #4"): "entrypoint=xm.ModuleName('cifar10')",
}


@pytest.mark.parametrize("where", SHORTENERS, ids=" ".join)
def test_a_shortener_is_the_packageable_that_a_document_says(where: tuple[str, str]) -> None:
    names = {"xm": xm, "xm_local": xm_local, "args": {"a": 1}, "env_vars": {"B": "c"}}
    code = filled(where, {"...": SHORTENERS[where]})
    assert code.startswith("assert ")
    exec(code, names)
    with pytest.raises(AssertionError):  # it is no assertion that always holds
        exec(code.replace("env_vars=env_vars", "env_vars={}", 1), names)


# --- Those that run -------------------------------------------------------------------------------------

#: A project as it would be, that tells how it was started.
CIFAR10 = """
import os, sys
print("python3 -m", __spec__.name, *sys.argv[1:])
print("NCCL_DEBUG is", os.environ.get("NCCL_DEBUG"))
"""


@pytest.fixture
def project(tmp_path: Path, home: Path) -> Path:
    """The folder of a launch script, with a module and scripts beside it; no other goes by its name."""
    folder = tmp_path / f"project-{uuid.uuid4().hex[:8]}"
    write(folder / "cifar10.py", CIFAR10)
    for name in ("pre_process.sh", "post_process.sh"):
        write(folder / name, f'#!/bin/sh\necho ./{name} "$@"\n')
    return folder


@pytest.fixture
def python_image(
    containers: Containers, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The image that projects start from where they name none: without a network it is nowhere to be had.

    What is made of the project is gone at the end.
    """
    name, images = default_base_image(), containers.client.images
    with open(tmp_path_factory.getbasetemp().parent / "python_image.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        there = bool(images.list(name))
        if not there:
            images.get(IMAGE).tag(name)
        yield
        for tag in [tag for image in images.list() for tag in image.tags if project.name in tag]:
            images.remove(tag, force=True)
        if not there:
            images.remove(name)


def launched(folder: Path, *parts: str) -> str:
    """What a launch script of these parts prints."""
    source = "\n".join(["from nemo_run import xm, xm_local", *map(textwrap.dedent, parts)])
    return succeeded(python(write(folder / "launch.py", source), cwd=folder)).stdout


@pytest.mark.parametrize(
    ("number", "printed"),
    [
        (2, ["python3 -m cifar10 fixed_arg1 fixed_arg2", "NCCL_DEBUG is INFO"]),
        (
            3,
            [
                "./pre_process.sh",
                "python3 -m cifar10 fixed_arg1 fixed_arg2",
                "NCCL_DEBUG is INFO",
                "./post_process.sh fixed_arg1 fixed_arg2",
            ],
        ),
    ],
)
def test_a_python_container_runs_the_commands_that_the_documents_say(
    number: int, printed: list[str], project: Path, python_image: None
) -> None:
    code = SNIPPETS[README, f"PythonContainer #{number}"]
    assert code.split() == SNIPPETS[SPECS, f"PythonContainer #{number}"].split()
    out = launched(
        project,
        "spec = \\\n" + code,
        """
        with xm_local.create_experiment(experiment_title="cifar10") as experiment:
            [executable] = experiment.package([
                xm.Packageable(spec, xm_local.Local.Spec(), args=["fixed_arg1", "fixed_arg2"])
            ])
            experiment.add(xm.Job(executable, xm_local.Local(), name="it", env_vars={"NCCL_DEBUG": "INFO"}))
        """,
    )
    assert [line.removeprefix("[it] ") for line in out.splitlines()] == printed


def test_a_container_is_run_by_the_name_that_the_documents_write(
    project: Path, containers: Containers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An image of that name need only be on the Engine."""
    containers.client.images.get(IMAGE).tag(CONTAINER)
    try:
        out = launched(
            project,
            "spec = " + SNIPPETS[README, "Container #1"],
            """
            with xm_local.create_experiment(experiment_title="container") as experiment:
                [executable] = experiment.package([xm.Packageable(spec, xm_local.Local.Spec())])
                experiment.add(xm.Job(executable, xm_local.Local(), args=["echo", "from the image"]))
            """,
        )
    finally:
        containers.client.images.remove(CONTAINER)
    assert "from the image" in out


#: The three shell blocks of the README's section on jobs.
WORDS = """
    with xm_local.create_experiment(experiment_title="words") as experiment:
        [executable] = experiment.package([xm.binary(xm_local.Local.Spec(), path="binary")])
        for args in (["arg1", "arg2", "arg3"], {"key1": "value1", "key2": "value2"}):
            job = xm.Job(executable, xm_local.Local(), args=args, env_vars={"KEY": "VALUE"})
            experiment.add(job)
"""


def test_arguments_and_environment_become_what_the_readme_says(project: Path) -> None:
    program = '#!/bin/sh\necho binary "$@"\nenv | grep ^KEY= | sed "s/^/export /"\n'
    write(project / "binary", program).chmod(0o755)
    out = launched(project, WORDS)
    words = [block.strip() for heading, block in blocks(README, "bash") if heading == "Job"]
    assert words == ["binary arg1 arg2 arg3", "binary --key1=value1 --key2=value2", "export KEY=VALUE"]
    lines = [line.removeprefix("[binary] ") for line in out.splitlines()]
    assert sorted(lines) == sorted([*words, words[-1]])


def test_a_launch_script_is_started_as_the_readme_says_by_the_command_of_here(project: Path) -> None:
    [command] = [block.strip() for heading, block in blocks(README, "bash") if heading == "Run XManager"]
    program, *words = command.split()
    assert (program, words[0]) == ("xmanager", "launch")
    write(project / words[1], "from nemo_run import xm, xm_local\n" + textwrap.dedent(WORDS))
    write((project / words[1]).with_name("binary"), "#!/bin/sh\necho launched\n").chmod(0o755)
    done = succeeded(call([NEMO, *words], cwd=project))
    assert done.stdout == "[binary] launched\n" * 2


def test_a_group_is_run_as_the_readme_writes_it(project: Path) -> None:
    write(project / "role", '#!/bin/sh\necho "I am $1"\n').chmod(0o755)
    code = filled(
        (README, "JobGroup #1"),
        {
            "agent_job = xm.Job(...)": "agent_job = xm.Job(*job, args=['agent'])",
            "observer_job = xm.Job(...)": "observer_job = xm.Job(*job, args=['observer'])",
            "\nxm.JobGroup": "\ngroup = xm.JobGroup",
        },
    )
    out = launched(
        project,
        """
        experiment = xm_local.create_experiment(experiment_title="group")
        job = (*experiment.package([xm.binary(xm_local.Local.Spec(), path="role")]), xm_local.Local())
        """,
        code,
        "with experiment:\n    experiment.add(group)",
    )
    assert sorted(out.splitlines()) == ["[agent] I am agent", "[observer] I am observer"]


#: What the documents' labels name: a program, and a file that is an image.
BUILD = """
genrule(name = "label", outs = ["program"], executable = True,
        cmd = "printf '#!/bin/sh\\necho built by Bazel\\n' > $@")
genrule(name = "tar", outs = ["label.tar"], srcs = ["saved"], cmd = "cp $< $@")
"""


@pytest.fixture
def target(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the documents' Bazel targets; Bazel's server and its files are gone at the end."""
    if not shutil.which("bazel"):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("needs bazel (make services)")
    write(project / "WORKSPACE", "")
    root = f"startup --output_user_root={project}/root\nbuild --spawn_strategy=local --symlink_prefix=/\n"
    write(project / ".bazelrc", root)
    write(project / "path/to/target/BUILD", BUILD)
    monkeypatch.setenv("BUILD_WORKSPACE_DIRECTORY", str(project))
    yield project / "path/to/target"
    subprocess.run(["bazel", "shutdown"], cwd=project, check=True, capture_output=True)
    shutil.rmtree(project / "root")


def test_bazel_builds_what_the_documents_name(target: Path, containers: Containers) -> None:
    """The README's way of writing a BazelBinary, `xm.Binary(path="//…")`, works too."""
    tag, images = f"{target.parents[2].name}:latest", containers.client.images
    write(target / "Dockerfile", f"FROM scratch\nCOPY BUILD /{tag}\n")
    built, _ = images.build(path=str(target), tag=tag, rm=True)
    (target / "saved").write_bytes(b"".join(images.get(tag).save(named=tag)))
    images.remove(tag)
    where = {
        "binary": (SPECS, "BazelBinary #1"),
        "same": (README, "BazelBinary #1"),
        "image": (SPECS, "BazelContainer #1"),
    }
    out = launched(
        target.parents[2],
        *(f"{name} = {SNIPPETS[snippet]}" for name, snippet in where.items()),
        """
        with xm_local.create_experiment(experiment_title="bazel") as experiment:
            specs = [xm.Packageable(spec, xm_local.Local.Spec()) for spec in (binary, same, image)]
            *programs, image = experiment.package(specs)
            for name, executable in zip("ab", programs):
                experiment.add(xm.Job(executable, xm_local.Local(), name=name))
        print(image.image)
        """,
    )
    *printed, loaded = out.splitlines()
    assert sorted(printed) == ["[a] built by Bazel", "[b] built by Bazel"]
    assert images.get(loaded).id == built.id
    images.remove(loaded, force=True)


# --- Those that run in a cloud --------------------------------------------------------------------------


@pytest.fixture
def vertex(
    tmp_path: Path, registry: str, containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Vertex]:
    """A double of Vertex AI that runs jobs in containers, and a registry for their images."""
    skip_without_types()
    monkeypatch.setenv("NEMORUN_IMAGE_REPOSITORY", f"{registry}/team")
    with running_vertex(tmp_path / "vertex", run=True) as double:
        yield double


def container_specs(vertex: Vertex) -> list[dict[str, Any]]:
    """What each job's container was asked for, of jobs that all have succeeded on a T4."""
    found = []
    for job in vertex.jobs.values():
        [pool] = job["jobSpec"]["workerPoolSpecs"]
        assert job["state"] == "JOB_STATE_SUCCEEDED"
        found.append({**pool["containerSpec"], **pool["machineSpec"]})
    return found


def test_the_launch_script_of_the_readme_sweeps_on_vertex(
    project: Path, python_image: None, vertex: Vertex
) -> None:
    """Its six steps, one below the other; but for the folder and the double's address they are as written."""
    fill: dict[int, dict[str, str]] = {
        2: {"/path/to/python/folder": str(project)},
        6: {"resources=resources": "resources=resources, executor=vertex"},
    }
    first, *rest = (
        filled((README, f"Writing XM launch scripts #{step}"), fill.get(step, {})) for step in range(1, 7)
    )
    exec(first + "".join(textwrap.indent(step, "    ") for step in rest), {"vertex": vertex.executor()})
    specs = container_specs(vertex)
    trials = [f"--batch_size={size} --learning_rate={rate}" for size in (64, 1024) for rate in (0.1, 0.001)]
    assert sorted(" ".join(spec["args"]) for spec in specs) == sorted(trials)
    assert {(spec["acceleratorType"], spec["acceleratorCount"]) for spec in specs} == {("NVIDIA_TESLA_T4", 1)}
    [image] = {spec["imageUri"] for spec in specs}
    assert re.fullmatch(rf"127.0.0.1:\d+/team/{project.name}@sha256:[0-9a-f]{{64}}", image)
    [experiment] = xm_local.list_experiments()
    assert experiment.context.annotations.title == "cifar10"
    printed = [path.read_text() for path in experiment.path.glob("*/logs/*.log")]
    assert sorted(printed) == sorted(f"python3 -m cifar10 {trial}\nNCCL_DEBUG is None\n" for trial in trials)


def test_a_job_of_the_readme_runs_on_vertex(home: Path, containers: Containers, vertex: Vertex) -> None:
    tag = f"echo:{uuid.uuid4().hex[:8]}"
    dockerfile = io.BytesIO(f'FROM {IMAGE}\nENTRYPOINT ["echo"]\n'.encode())
    containers.client.images.build(fileobj=dockerfile, tag=tag, rm=True)
    fill = {
        "Package(...)": f"Package([xm.container(xm_local.Caip.Spec(), {tag!r})])",
        "Caip(...)": "Caip(executor=vertex)",
        "\nxm.Job(": "\njob = xm.Job(",
    }
    names: dict[str, Any] = {"vertex": vertex.executor(), "xm": xm, "xm_local": xm_local}
    try:
        with xm_local.create_experiment(experiment_title="job") as experiment:
            exec(filled((README, "Job #1"), fill), names)
            experiment.add(names["job"])
    finally:
        containers.client.images.remove(tag, force=True)  # the double may be about to remove its container
    [spec] = container_specs(vertex)
    assert (spec["imageUri"], spec["args"]) == (tag, ["--batch_size=64"])
    assert {"name": "NCCL_DEBUG", "value": "INFO"} in spec["env"]
    assert "command" not in spec
