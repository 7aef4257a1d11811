"""What packaging makes of specs before anything is built: Dockerfiles, files, paths, and refusals."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contracts.executor import HOSTILE, SHOW
from deeds import nemo
from hypothesis import given
from hypothesis import strategies as st
from tasks import hexed

from nemo_run import xm, xm_local
from nemo_run.errors import ConfigError, NemoRunError, PackagingError, UnsupportedError
from nemo_run.xm_local.executables import ContainerImage, LocalBinary
from nemo_run.xm_local.packaging import package
from nemo_run.xm_local.packaging.binaries import keep
from nemo_run.xm_local.packaging.context import Context, build_files, project_files
from nemo_run.xm_local.packaging.dockerfile import (
    completed,
    default_base_image,
    dockerfile,
    entrypoint,
    quoted_arguments,
)
from nemo_run.xm_local.packaging.images import REPOSITORY, bases, push_name, recipe, repository_part, untagged
from nemo_run.xm_local.specs import KubernetesSpec, LocalSpec, SkypilotSpec, SlurmSpec, VertexSpec

CLOUDS = (VertexSpec, KubernetesSpec)
PUSHED = "registry.example/team/it:1"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder of a project."""
    folder = tmp_path / "cifar10"
    folder.mkdir()
    (folder / "cifar10.py").write_text("print('it')\n")
    (folder / "requirements.txt").write_text("")
    return folder


def container(project: Path, **fields: Any) -> xm.PythonContainer:
    return xm.PythonContainer(**{"entrypoint": xm.ModuleName("cifar10"), "path": str(project), **fields})


def names(context: Context) -> list[str]:
    return [name for name, _ in context.files]


# --- Dockerfiles ----------------------------------------------------------------------------------------


class TestDockerfile:
    def test_the_project_lies_in_a_folder_of_its_name_and_starts_there(self, project: Path) -> None:
        spec = container(project, base_image="python:3.12")
        assert dockerfile(spec, has_requirements=True) == (
            "FROM python:3.12\n"
            "ENV LANG=C.UTF-8\n"
            "COPY cifar10/requirements.txt /cifar10/requirements.txt\n"
            'RUN "$(command -v python3 || echo python)" -m pip install --no-cache-dir'
            " -r /cifar10/requirements.txt\n"
            "COPY cifar10/ /cifar10/\n"
            "WORKDIR /cifar10\n"
            "COPY .nemo_run.entrypoint.sh /.nemo_run/entrypoint.sh\n"
            'ENTRYPOINT ["/bin/sh", "/.nemo_run/entrypoint.sh"]\n'
        )

    def test_without_requirements_nothing_is_installed_and_a_deep_module_starts_above(
        self, project: Path
    ) -> None:
        spec = container(project, base_image="b", use_deep_module=True)
        assert dockerfile(spec, has_requirements=False) == (
            "FROM b\n"
            "ENV LANG=C.UTF-8\n"
            "COPY cifar10/ /workdir/cifar10/\n"
            "WORKDIR /workdir\n"
            "COPY .nemo_run.entrypoint.sh /.nemo_run/entrypoint.sh\n"
            'ENTRYPOINT ["/bin/sh", "/.nemo_run/entrypoint.sh"]\n'
        )

    def test_instructions_stand_in_place_of_ours(self, project: Path) -> None:
        spec = container(project, base_image="b", docker_instructions=["COPY a b", "RUN true"])
        assert dockerfile(spec, has_requirements=True) == (
            "FROM b\n"
            "COPY a b\n"
            "RUN true\n"
            "COPY .nemo_run.entrypoint.sh /.nemo_run/entrypoint.sh\n"
            'ENTRYPOINT ["/bin/sh", "/.nemo_run/entrypoint.sh"]\n'
        )

    def test_the_default_base_is_the_python_that_launches(self, project: Path) -> None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        assert default_base_image() == f"python:{version}-slim"
        text = dockerfile(container(project), has_requirements=False)
        assert text.startswith(f"FROM python:{version}-slim\n")

    def test_a_folder_with_an_odd_name_is_copied_by_a_plain_one(self, tmp_path: Path) -> None:
        (folder := tmp_path / 'my $x "project"').mkdir()
        (folder / "it.py").write_text("")
        made = recipe(container(folder, entrypoint=xm.ModuleName("it")))
        assert "COPY my__x__project_/ /my__x__project_/\nWORKDIR /my__x__project_\n" in made.dockerfile
        assert names(made.context) == ["my__x__project_/it.py"]

    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            ("COPY cifar10.py", "COPY cifar10.py cifar10.py"),
            ("copy --chown=1:1 a.py ", "copy --chown=1:1 a.py a.py"),
            ("COPY a b", "COPY a b"),
            ('COPY ["a", "b"]', 'COPY ["a", "b"]'),
            ("ADD https://example.com/x", "ADD https://example.com/x"),
            ("RUN x", "RUN x"),
        ],
    )
    def test_a_copy_of_one_word_copies_to_the_same_name(self, written: str, meant: str) -> None:
        assert completed(written) == meant

    def test_images_that_it_builds_on_are_known(self) -> None:
        text = "ARG V=1\nFROM --platform=x a:1 AS one\nfrom b\nFROM one\nFROM $V\nFROM scratch\nRUN FROM\n"
        assert list(bases(text)) == ["a:1", "b"]


# --- entrypoints ----------------------------------------------------------------------------------------


def run_entrypoint(spec: xm.PythonContainer, args: list[str], folder: Path, shell: str = "sh") -> Any:
    (script := folder / "entrypoint.sh").write_text(entrypoint(spec))
    return subprocess.run([shell, str(script), *args], capture_output=True, cwd=folder, text=True, timeout=30)


class TestEntrypoint:
    def test_a_module_gets_every_argument_byte_for_byte(self, project: Path) -> None:
        (project / "cifar10.py").write_text(SHOW)
        done = run_entrypoint(container(project), HOSTILE, project)
        assert json.loads(done.stdout) == hexed(HOSTILE)

    @pytest.mark.parametrize("written", ['"$@"', "$@", ""])
    def test_the_last_command_gets_every_argument_byte_for_byte(self, project: Path, written: str) -> None:
        (project / "show.py").write_text(SHOW)
        command = f"{sys.executable} show.py {written}".strip()
        spec = container(project, entrypoint=xm.CommandList(["true", command]))
        done = run_entrypoint(spec, HOSTILE, project)
        assert json.loads(done.stdout) == hexed(HOSTILE), done.stderr

    def test_a_command_that_fails_ends_it_with_its_exit_code(self, project: Path) -> None:
        spec = container(project, entrypoint=xm.CommandList(["echo one", "(exit 7)", "echo two"]))
        done = run_entrypoint(spec, [], project)
        assert (done.stdout, done.returncode) == ("one\n", 7)

    def test_commands_share_one_shell_which_is_bash_where_there_is_one(self, project: Path) -> None:
        commands = ["words=(a 'b c')", "x=1", 'for w in "${words[@]}"; do', '  echo "$x $w"', "done"]
        spec = container(project, entrypoint=xm.CommandList(commands))
        assert run_entrypoint(spec, ["unseen"], project).stdout == "1 a\n1 b c\n"

    def test_without_bash_sh_runs_them(self, project: Path) -> None:
        spec = container(project, entrypoint=xm.CommandList(["echo ${BASH_VERSION:-none}"]))
        (project / "bin").mkdir()
        for name in ("sh", "env"):
            (project / "bin" / name).symlink_to(f"/bin/{name}")
        (script := project / "entrypoint.sh").write_text(entrypoint(spec))
        env = {"PATH": str(project / "bin")}
        done = subprocess.run(["/bin/dash", str(script), "a"], capture_output=True, env=env, text=True)
        assert done.stdout == "none a\n", done.stderr

    @pytest.mark.parametrize(
        ("commands", "text"),
        [
            (
                ["./pre.sh", "python3 -m cifar10 $@", "./post.sh"],
                './pre.sh\npython3 -m cifar10 "$@"\n./post.sh "$@"\n',
            ),
            (['python3 -m it "$@"'], 'python3 -m it "$@"\n'),
            (["python3 -m it $*"], "python3 -m it $*\n"),
            (["it &", "wait;"], "it &\nwait;\n"),
            (["if a; then", "b", "fi"], "if a; then\nb\nfi\n"),
            (["a", "{ b; }"], "a\n{ b; }\n"),
            (["a", "(cd b && c)"], "a\n(cd b && c)\n"),
            (["a ${B}"], 'a ${B} "$@"\n'),
            (["a $(b)"], 'a $(b) "$@"\n'),
            (["a", "b", "  "], 'a\nb "$@"\n'),
        ],
    )
    def test_the_last_command_is_given_the_arguments_unless_it_says_where(
        self, project: Path, commands: list[str], text: str
    ) -> None:
        made = entrypoint(container(project, entrypoint=xm.CommandList(commands)))
        assert made.endswith(f"set -e\n{text}")

    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            ("a $@", 'a "$@"'),
            ("a $@; b", 'a "$@"; b'),
            ("$@", '"$@"'),
            ('a "$@"', 'a "$@"'),
            ('sh -c "b $@ c"', 'sh -c "b $@ c"'),
            ("sh -c 'b $@ c' $@", "sh -c 'b $@ c' \"$@\""),
            (r"echo \" $@", r'echo \" "$@"'),
            (r"echo '\' $@", "echo '\\' \"$@\""),
            ("a x$@", "a x$@"),
            ("a $@x", "a $@x"),
            ("a \\$@", "a \\$@"),
        ],
    )
    def test_arguments_outside_of_quotes_are_quoted(self, written: str, meant: str) -> None:
        assert quoted_arguments(written) == meant

    @given(st.text(alphabet="a $@'\"\\;", max_size=12))
    def test_quoting_them_takes_nothing_away(self, command: str) -> None:
        assert quoted_arguments(command).replace('"$@"', "$@") == command.replace('"$@"', "$@")


# --- files ----------------------------------------------------------------------------------------------


class TestFiles:
    def test_a_dockerignore_is_honoured_and_what_changes_by_itself_is_left_out(
        self, project: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("data/big", "data/keep.txt", "__pycache__/x.pyc", "deep/__pycache__/x", ".git/HEAD",
                     "sub/a.log", "home/experiments/x"):  # fmt: skip
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).write_text("x")
        (project / ".dockerignore").write_text("# data\ndata/*\n!data/keep.txt\n\n**/*.log\n")
        monkeypatch.setenv("NEMORUN_HOME", str(project / "home"))
        files = {name for name, path in project_files(project) if path.is_file()}
        assert files == {".dockerignore", "cifar10.py", "requirements.txt", "data/keep.txt"}
        (project / ".dockerignore").write_text("!.git\n!.git/**\n")
        assert ".git/HEAD" in dict(project_files(project))

    def test_a_dockerfile_takes_what_docker_would_and_its_own_dockerignore_first(
        self, project: Path, home: Path
    ) -> None:
        (project / "Dockerfile").write_text("FROM a\n")
        (project / "__pycache__").mkdir()
        (project / ".dockerignore").write_text("*.txt\n")
        found = [name for name, _ in build_files(project, project / "Dockerfile")]
        assert found == ["Dockerfile", "__pycache__", "cifar10.py"]
        (project / "Dockerfile.dockerignore").write_text("*.py\nDockerfile*\n")
        found = [name for name, _ in build_files(project, project / "Dockerfile")]
        assert found == ["__pycache__", "requirements.txt"]

    def test_instructions_find_files_by_the_folder_and_as_they_lie_in_it(self, project: Path) -> None:
        (project / "cifar10").mkdir()
        (project / "cifar10" / "inner.py").write_text("")
        files = ["cifar10", "cifar10.py", "cifar10/inner.py", "requirements.txt"]
        by_folder = [f"cifar10/{name}" for name in files]
        assert names(recipe(container(project)).context) == by_folder
        told = recipe(container(project, docker_instructions=["COPY . ."])).context
        assert names(told) == [*by_folder, "cifar10.py", "requirements.txt"]

    def test_equal_contents_have_equal_digests_and_others_have_others(self, project: Path) -> None:
        def digest(**fields: Any) -> str:
            return recipe(container(project, **fields)).context.digest()

        first = digest()
        os.utime(project / "cifar10.py", (1, 1))
        (project / "cifar10.py").chmod(0o600)
        assert digest() == first
        seen = {first, digest(entrypoint=xm.ModuleName("other"))}
        (project / "cifar10.py").chmod(0o700)
        seen.add(digest())
        (project / "cifar10.py").write_text("print('other')\n")
        seen.add(digest())
        (project / "new").symlink_to("cifar10.py")
        seen.add(digest())
        (project / "new").unlink()
        (project / "new").symlink_to("requirements.txt")
        seen.add(digest())
        assert len(seen) == 6

    def test_the_tar_holds_files_links_and_modes_and_no_hard_links(self, project: Path) -> None:
        (project / "run.sh").write_text("true")
        (project / "run.sh").chmod(0o700)
        os.link(project / "run.sh", project / "same.sh")
        (project / "link").symlink_to("run.sh")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(project / "socket"))
            made = recipe(container(project, docker_instructions=["COPY . ."]))
            made.context.write("FROM a\n", packed := io.BytesIO())
        packed.seek(0)
        with tarfile.open(fileobj=packed) as archive:
            members = {member.name: member for member in archive}
            assert all(not member.islnk() for member in members.values())
            assert archive.extractfile("same.sh").read() == b"true"  # type: ignore[union-attr]
        assert (members["run.sh"].mode, members["cifar10/cifar10.py"].mode) == (0o777, 0o666)
        assert members["link"].linkname == "run.sh"
        assert "cifar10/socket" not in members
        assert {member.mtime for member in members.values()} == {0}

    def test_a_file_that_cannot_be_read_is_named(self, project: Path) -> None:
        made = recipe(container(project))
        (project / "cifar10.py").unlink()
        with pytest.raises(PackagingError, match=r"cannot read .*cifar10\.py: No such file"):
            made.context.digest()


# --- refusals -------------------------------------------------------------------------------------------


def refusal(spec: xm.ExecutableSpec, target: xm.ExecutorSpec) -> NemoRunError:
    with pytest.raises(ConfigError) as caught:
        package([xm.Packageable(spec, target)])
    return caught.value


class TestRefusals:
    """Of all these nothing is asked of an Engine, a registry or Bazel."""

    @pytest.fixture(autouse=True)
    def _no_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
        monkeypatch.delenv(REPOSITORY, raising=False)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: xm.Binary(f"{path}/none"), "none' is not there (looked for"),
            (lambda path: xm.Binary(str(path)), "is a folder; name the program in it"),
            (lambda path: xm.Binary(f"{path}/cifar10.py"), "may not be executed; `chmod +x"),
            (lambda path: container(path / "none"), "there is no folder"),
            (lambda path: xm.Dockerfile(path=f"{path}/none"), "there is no folder"),
            (lambda path: xm.Dockerfile(path=str(path)), "there is no file"),
            (lambda path: xm.Container(f"{path}/image.tar"), "it is no image's name such as"),
            (lambda path: xm.Container("image.tar"), "there is no file 'image.tar'"),
            (lambda path: xm.Container("No Image"), "it is no image's name such as"),
        ],
    )
    def test_what_is_not_there_is_refused_by_name(
        self, project: Path, make: Callable[[Path], xm.ExecutableSpec], message: str
    ) -> None:
        error = refusal(make(project), LocalSpec())
        assert message in str(error)
        assert isinstance(error, ValueError)

    @pytest.mark.parametrize("target", CLOUDS)
    def test_a_program_is_refused_where_images_run(self, target: Callable[[], xm.ExecutorSpec]) -> None:
        for spec in (xm.Binary("/bin/true"), xm.BazelBinary("//:x")):
            error = refusal(spec, target())
            assert "runs images, and" in str(error)
            assert isinstance(error, TypeError)

    @pytest.mark.parametrize("target", [*CLOUDS, SlurmSpec, SkypilotSpec])
    def test_an_image_without_a_name_to_push_by_is_refused(
        self, project: Path, target: Callable[..., xm.ExecutorSpec]
    ) -> None:
        (project / "image.tar").write_text("")
        (project / "Dockerfile").write_text("")
        for spec in (
            container(project),
            xm.Dockerfile(str(project)),
            xm.Container(f"{project}/image.tar"),
            xm.BazelContainer("//:x.tar"),
        ):
            assert f"or, for all images, by {REPOSITORY}=" in str(refusal(spec, target()))
        error = refusal(container(project), target(push_image_tag="No Name"))
        assert "push_image_tag of" in str(error)
        assert "'No Name' is no name such as" in str(error)

    def test_a_repository_that_is_none_is_refused(
        self, project: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(REPOSITORY, "https://registry.example/")
        assert f"{REPOSITORY}: 'https://" in str(refusal(container(project), VertexSpec()))

    def test_another_executors_spec_is_refused(self) -> None:
        class Other(xm.ExecutorSpec):
            pass

        error = refusal(xm.Binary("/bin/true"), Other())
        assert "xm_local has Local.Spec(), Slurm.Spec()" in str(error)
        assert isinstance(error, TypeError)

    def test_one_that_is_refused_keeps_the_others_from_being_built(self, project: Path) -> None:
        """Without an Engine, the first could not be built."""
        packageables = [
            xm.Packageable(container(project), LocalSpec()),
            xm.Packageable(xm.Binary("/no/such"), LocalSpec()),
        ]
        with pytest.raises(ConfigError, match="'/no/such' is not there"):
            package(packageables)

    def test_without_an_engine_an_image_is_not_to_be_had(self, project: Path, home: Path) -> None:
        with pytest.raises(PackagingError, match=r"^'cifar10': no Docker Engine is at .*: start it"):
            package([xm.Packageable(container(project), LocalSpec())])

    def test_all_that_goes_wrong_is_told(self, project: Path, home: Path) -> None:
        specs = [container(project), xm.Container("other/image")]
        with pytest.raises(PackagingError) as caught:
            package([xm.Packageable(spec, LocalSpec()) for spec in specs])
        assert str(caught.value).startswith(
            "2 executables cannot be packaged:\n- 'cifar10': no Docker Engine"
        )
        assert "\n- 'image': no Docker Engine" in str(caught.value)


# --- what needs no Engine -------------------------------------------------------------------------------


def test_nothing_is_made_of_nothing() -> None:
    assert package([]) == []


def test_a_program_is_found_at_the_launching_script_first_and_then_where_that_was_started(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script" / "launch.py"
    script.parent.mkdir()
    (tmp_path / "here").mkdir()
    script.write_text(
        "import sys\n"
        "from nemo_run import xm\n"
        "from nemo_run.xm_local.packaging import package\n"
        "from nemo_run.xm_local.specs import LocalSpec\n"
        "for path in sys.argv[1:]:\n"
        "    print(package([xm.Packageable(xm.Binary(path), LocalSpec())])[0].path)\n"
    )
    for name in ("script/one", "here/one", "here/two"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    words = [sys.executable, str(script), "one", "./two", str(tmp_path / "here" / "one"), "../here/two"]
    done = subprocess.run(words, cwd=tmp_path / "here", capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        f"{tmp_path}/{name}" for name in ("script/one", "here/two", "here/one", "here/two")
    ], done.stderr


def test_arguments_and_environment_of_a_program_are_kept_and_its_own(tmp_path: Path) -> None:
    packageable = xm.Packageable(
        xm.Binary("/bin/true"), LocalSpec(), args={"a": 1, "b": "x y"}, env_vars={"A": "1"}
    )
    [made] = package([packageable])
    assert made == LocalBinary(
        name="true", path="/bin/true", args=xm.SequentialArgs.from_collection({"a": 1, "b": "x y"}),
        env_vars={"A": "1"},
    )  # fmt: skip
    assert isinstance(made, LocalBinary)
    made.env_vars["A"] = "2"
    assert packageable.env_vars == {"A": "1"}


def test_a_cluster_may_have_a_program_that_this_machine_has_not() -> None:
    [made] = package([xm.Packageable(xm.Binary("/cluster/only/it"), SlurmSpec())])
    assert made == LocalBinary(name="it", path="/cluster/only/it")
    assert "is not there" in str(refusal(xm.Binary("only/it"), SlurmSpec()))


@pytest.mark.parametrize("target", [*CLOUDS, SlurmSpec, SkypilotSpec])
def test_an_image_in_a_registry_is_used_as_it_is_without_an_engine(
    target: Callable[[], xm.ExecutorSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    digest = "sha256:" + "0" * 64
    for image in ("gcr.io/project-name/image-name:latest", "debian-py:12", f"r.example:5000/a@{digest}"):
        [made] = package([xm.Packageable(xm.Container(image), target(), args=["x"], env_vars={"A": "1"})])
        assert isinstance(made, ContainerImage)
        assert (made.image, made.digest) == (image, digest if "@" in image else "")
        assert (made.args.to_list(), made.env_vars) == (["x"], {"A": "1"})
        with pytest.raises(UnsupportedError, match="nobody here knows its ENTRYPOINT: `docker pull` it"):
            made.argv(["x"], "Slurm")


def test_names_to_push_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REPOSITORY, "registry.example:5000/team/")
    assert push_name(LocalSpec(), "it", "k") is None
    assert push_name(VertexSpec(), "My_Project.x", "k") == "registry.example:5000/team/my-project-x:k"
    assert push_name(KubernetesSpec(push_image_tag=PUSHED), "it", "k") == PUSHED
    assert repository_part("__") == "image"
    assert re.fullmatch(r"[a-z0-9-]+", repository_part("Ünïcode 1"))
    assert [untagged(each) for each in ("a:5000/b:1", "a:5000/b", "a", "a@sha256:00")] == [
        "a:5000/b", "a:5000/b", "a", "a",
    ]  # fmt: skip


# --- kept programs --------------------------------------------------------------------------------------


def program(folder: Path, text: str) -> Path:
    """A copy, a week and a day old, of a program that says something."""
    source = folder / "program"
    source.write_text(f"#!/bin/sh\necho {text}\n")
    source.chmod(0o755)
    kept = keep(source)
    os.utime(kept.parent, (time.time() - 8 * 24 * 3600,) * 2)
    return kept


def test_a_kept_program_goes_once_no_experiment_names_it(tmp_path: Path, home: Path) -> None:
    needed, unneeded, again = (program(tmp_path, text) for text in ("needed", "unneeded", "again"))
    with xm_local.create_experiment("runs") as experiment:
        [executable] = experiment.package([xm.binary(xm_local.Local.Spec(), path=str(needed))])
        experiment.add(xm.Job(executable=executable, executor=xm_local.Local()))
    assert keep(tmp_path / "program") == again  # packaged a moment ago: its job may be recorded soon
    (dead := home / "binaries" / ".new-killed").mkdir()
    os.utime(dead, (0, 0))
    assert json.loads(nemo("gc", "--json").stdout) == [str(dead), str(unneeded.parent)]
    assert {path.parent for path in (home / "binaries").rglob("program")} == {needed.parent, again.parent}
    assert nemo("experiment", "delete", "-y", "runs").returncode == 0
    assert nemo("gc").stdout == "Removed 0 unfinished folders.\nRemoved 1 unneeded program.\n"
    assert [path.parent for path in (home / "binaries").rglob("program")] == [again.parent]


def test_no_program_goes_while_it_is_unknown_which_are_needed(tmp_path: Path, home: Path) -> None:
    kept = program(tmp_path, "needed")
    (folder := home / "experiments" / "runs" / "runs_1" / "1").mkdir(parents=True)
    (folder / "task.json").mkdir()
    done = nemo("gc")
    assert (done.returncode, kept.exists()) == (1, True)
    assert f"cannot read {folder}/task.json" in done.stderr
