"""What can be packaged: specs, their names, their paths, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from programs import python, succeeded, write

import nemo_run as run
from nemo_run import xm

MODULE = xm.ModuleName("train")

NAMES: list[tuple[xm.ExecutableSpec, str]] = [
    (xm.Container("gcr.io/a/b-c:1.0"), "b_c_1_0"),
    (xm.Container("gcr.io/a/b@sha256:0f"), "b_sha256_0f"),
    (xm.Container("image.tar"), "image_tar"),
    (xm.Binary("/home/user/a.out"), "a_out"),
    (xm.Binary("programs/"), "programs"),
    (xm.BazelBinary("//a/b:c.d"), "b_c_d"),
    (xm.BazelContainer("//a:image.tar"), "a_image_tar"),
    (xm.PythonContainer(MODULE, "/my/project-1/"), "project_1"),
    (xm.Dockerfile("/my/context.d"), "context_d"),
]


@pytest.mark.parametrize(("spec", "name"), NAMES, ids=lambda value: str(value)[:40])
def test_a_spec_is_named_after_the_last_part_of_its_path(spec: xm.ExecutableSpec, name: str) -> None:
    assert spec.name == name


def test_an_image_is_named_by_either_word() -> None:
    assert xm.Container(path="a/b:c") == xm.Container(image_path="a/b:c") == xm.Container("a/b:c")
    assert xm.Container(path="a/b:c").image_path == xm.Container("a/b:c").path == "a/b:c"
    assert xm.Container(Path("images/a.tar")).image_path == "images/a.tar"
    with pytest.raises(TypeError, match="Container has image_path='a' and path='b'; they mean the same"):
        xm.Container("a", path="b")


def test_specs_are_equal_if_they_say_the_same() -> None:
    assert xm.BazelBinary("//a:b", bazel_args=("-c", "opt")) == xm.BazelBinary("//a:b", [], ["-c", "opt"])
    assert xm.BazelBinary("//a:b") != xm.BazelContainer("//a:b")
    assert xm.PythonContainer(MODULE, "/a") != xm.PythonContainer(MODULE, "/a", base_image="b")


def test_each_spec_has_lists_of_its_own() -> None:
    instructions = ["RUN true"]
    spec = xm.PythonContainer(MODULE, "/a", docker_instructions=instructions)
    instructions.append("RUN false")
    assert spec.docker_instructions == ["RUN true"]
    xm.Binary("/a").dependencies.append(object())  # type: ignore[arg-type]
    assert xm.Binary("/a").dependencies == []


# --- Paths ----------------------------------------------------------------------------------------------

SCRIPT = """
    from nemo_run import xm

    entrypoint = xm.ModuleName("train")
    for path in (xm.PythonContainer(entrypoint).path, xm.PythonContainer(entrypoint, "../lib").path,
                 xm.PythonContainer(entrypoint, "/abs").path, xm.Dockerfile().dockerfile,
                 xm.Dockerfile("docker").dockerfile, xm.Dockerfile("docker", "docker/Other").dockerfile,
                 xm.Dockerfile("docker", "Mine").dockerfile, xm.Dockerfile(dockerfile="/abs/D").dockerfile):
        print(path)
"""


def test_relative_paths_start_at_the_folder_of_the_launching_script(tmp_path: Path) -> None:
    script = write(tmp_path / "project" / "launch.py", SCRIPT)
    write(tmp_path / "project" / "docker" / "Mine", "FROM scratch")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.py").symlink_to(script)
    for path in (script, tmp_path / "link.py", "../project/launch.py"):
        printed = succeeded(python(path, cwd=tmp_path / "elsewhere")).stdout.splitlines()
        assert [line.removeprefix(f"{tmp_path}/") for line in printed] == [
            "project", "lib", "/abs", "project/Dockerfile", "project/docker/Dockerfile",
            "project/docker/Other", "project/docker/Mine", "/abs/D",
        ]  # fmt: skip


TELL = "from nemo_run import xm; print(xm.utils.launch_dir())"


@pytest.mark.parametrize(
    ("argv", "folder"),
    [
        (["-c", "from nemo_run import xm; print(xm.utils.launch_dir())"], "here"),
        (
            ["-c", "from nemo_run import xm; print(xm.utils.launch_dir())", "--xm_launch_script=../a/l.py"],
            "a",
        ),
        (["-c", TELL, "--xm_launch_script", "../a/l.py", "more"], "a"),
        (["-m", "runner"], "here"),
        (["-m", "runner", "--", "--xm_launch_script=../a/l.py"], "a"),
    ],
)
def test_the_launching_script_is_the_one_that_is_named_else_the_one_that_runs(
    argv: list[str], folder: str, tmp_path: Path
) -> None:
    write(tmp_path / "here" / "runner.py", TELL)
    done = succeeded(python(*argv, cwd=tmp_path / "here"))
    assert done.stdout.strip() == str(tmp_path / folder)


def test_a_script_that_changes_its_folder_is_found_all_the_same(tmp_path: Path) -> None:
    script = write(tmp_path / "project" / "launch.py", f"import os; os.chdir('/'); {TELL}")
    assert succeeded(python(script.name, cwd=script.parent)).stdout.strip() == str(script.parent)


# --- Misuse ---------------------------------------------------------------------------------------------

MISUSE: list[tuple[Any, type[Exception], str]] = [
    (lambda: xm.Container(), ValueError, "image_path of Container is empty"),
    (lambda: xm.Container(5), TypeError, "image_path of Container is a text, not 5"),
    (lambda: xm.Binary(""), ValueError, "path of Binary is empty"),
    (lambda: xm.Binary("a\0b"), ValueError, "path of Binary is a text with a NUL in it"),
    (lambda: xm.Binary(["/bin/ls"]), TypeError, r"path of Binary is a text, not \['/bin/ls'\]"),
    (
        lambda: xm.Binary("/a", "lib.so"),
        ValueError,
        r"dependencies of Binary is a list, .*\['lib.so'\]",
    ),
    (
        lambda: xm.BazelBinary("//a", bazel_args="-c"),
        ValueError,
        "bazel_args of BazelBinary is a list, not",
    ),
    (
        lambda: xm.BazelBinary("//a", bazel_args=[1]),
        TypeError,
        "bazel_args .*: item 0 is no text: 1",
    ),
    (
        lambda: xm.BazelBinary("--help"),
        ValueError,
        "'--help' would be an option of bazel;",
    ),
    (lambda: xm.BazelContainer(""), ValueError, "label of BazelContainer is empty"),
    (lambda: xm.BazelContainer("//a", 5), TypeError, "bazel_args of BazelContainer is a list, not 5"),
    (
        lambda: xm.PythonContainer("train"),
        TypeError,
        r"is xm.ModuleName\('module'\) or xm.CommandL",
    ),
    (
        lambda: xm.PythonContainer(xm.ModuleName("a/b.py")),
        ValueError,
        r"a file; .*: xm.ModuleName\('a.b'\)",
    ),
    (
        lambda: xm.PythonContainer(xm.ModuleName("a b")),
        ValueError,
        "'a b' is no name of a module; write one like",
    ),
    (lambda: xm.PythonContainer(xm.ModuleName("-c")), ValueError, "'-c' is no name of a module"),
    (lambda: xm.PythonContainer(xm.ModuleName("")), ValueError, "entrypoint of PythonContainer is empty"),
    (
        lambda: xm.PythonContainer(xm.CommandList("ls")),
        ValueError,
        r"not the text 'ls': write \['ls'\]",
    ),
    (lambda: xm.PythonContainer(xm.CommandList([])), ValueError, "has no commands; name at least one"),
    (
        lambda: xm.PythonContainer(MODULE, docker_instructions="RUN x"),
        ValueError,
        r"list, .*\['RUN x'\]",
    ),
    (lambda: xm.PythonContainer(MODULE, base_image=""), ValueError, "base_image of PythonContainer is empty"),
    (lambda: xm.PythonContainer(MODULE, path=None), TypeError, "path of PythonContainer is a text, not None"),
    (lambda: xm.Dockerfile(dockerfile=""), ValueError, "dockerfile of Dockerfile is empty"),
]


@pytest.mark.parametrize(("make", "kind", "message"), MISUSE, ids=[message for _, _, message in MISUSE])
def test_misuse_is_refused_where_it_is_written(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        make()
    assert isinstance(caught.value, run.ConfigError)
