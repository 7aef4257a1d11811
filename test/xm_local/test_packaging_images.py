"""Images that packaging makes, on a real Docker Engine and with a real registry."""

from __future__ import annotations

import ast
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts.executor import HOSTILE, SHOW, ended, prepare, wait_until
from deeds import environment
from dockers import IMAGE, Containers
from tasks import hexed

import nemo_run as run
from nemo_run import xm
from nemo_run.core.execution.base import AppState
from nemo_run.core.execution.docker_build import add_text
from nemo_run.errors import PackagingError, UnsupportedError
from nemo_run.xm_local.executables import ContainerImage
from nemo_run.xm_local.packaging import package
from nemo_run.xm_local.specs import KubernetesSpec, LocalSpec, SlurmSpec, VertexSpec

#: What can be an argument and a variable; bytes that are no UTF-8 are seen to by the executor's own tests.
WORDS = [word for word in HOSTILE if word.encode(errors="replace").decode() == word]


class Shop:
    """A test's own base image, and the images that its project becomes."""

    def __init__(self, client: Any, folder: Path) -> None:
        self.client = client
        self.word = uuid.uuid4().hex
        self.base = f"packaging-test:{self.word}"
        self.folder = folder / f"project_{self.word[:8]}"
        self.folder.mkdir()
        self.image(f"FROM {IMAGE}\nLABEL test={self.word}\n", self.base)

    def image(self, text: str, tag: str) -> str:
        self.client.images.build(fileobj=io.BytesIO(text.encode()), tag=tag, rm=True)
        return tag

    def tiny(self, name: str, said: str) -> str:
        """An image of one small file, to be moved about and not to be run."""
        text = f'FROM scratch\nLABEL test={self.word}\nCOPY it /\nENTRYPOINT ["{said}"]\n'
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for member, content in {"it": "it", "Dockerfile": text}.items():
                add_text(archive, member, content)
        packed.seek(0)
        tag = f"{name}-{self.word}:1"
        self.client.images.build(fileobj=packed, custom_context=True, tag=tag, rm=True)
        return tag

    def save(self, name: str) -> Path:
        """What `docker save` writes of an image."""
        path = self.folder / "image.tar"
        with open(path, "wb") as file:
            file.writelines(self.client.images.get(name).save(named=True))
        return path

    def said_by(self, made: ContainerImage) -> str:
        """Which image it is."""
        return str(self.client.images.get(made.image).attrs["Config"]["Entrypoint"][0])

    def file(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def container(self, entrypoint: Any = None, **fields: Any) -> xm.PythonContainer:
        return xm.PythonContainer(
            entrypoint=entrypoint or xm.ModuleName("main"),
            path=str(self.folder),
            base_image=self.base,
            **fields,
        )

    def remove(self) -> None:
        """Remove the images of this test: those that build on its base, which go before it."""
        wait_until(lambda: not self.images_left(), "the test's images are gone")

    def images_left(self, keep: str = "") -> bool:
        """Remove what can be removed of the test's images; whether there were any."""
        import docker.errors

        images = self.client.images.list(filters={"label": f"test={self.word}"})
        images = [image for image in images if keep not in image.tags]
        for image in images:
            try:
                self.client.images.remove(image.id, force=True)
            except docker.errors.APIError as exc:
                if exc.status_code not in (404, 409):  # it went with another, or one is built on it
                    raise
        return bool(images)


@pytest.fixture
def shop(containers: Containers, home: Path, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(containers.client, tmp_path)
    yield made
    made.remove()


def packaged(spec: xm.ExecutableSpec, target: xm.ExecutorSpec | None = None, **fields: Any) -> ContainerImage:
    [made] = package([xm.Packageable(spec, target or LocalSpec(), **fields)])
    assert isinstance(made, ContainerImage)
    return made


def script(made: ContainerImage, args: Any = None, env: dict[str, str] | None = None) -> run.Script:
    """How xm_local runs an image: by its own ENTRYPOINT, with the job's arguments merged into its own."""
    words = xm.merge_args(made.args, args or []).to_list(str)
    return run.Script(entrypoint="", args=words, env={**made.env_vars, **(env or {})})


def printed(made: ContainerImage, args: Any = None, env: dict[str, str] | None = None) -> list[str]:
    """What a container prints that succeeds."""
    executor = run.DockerExecutor(image=made.image, packager=run.Packager())
    plan = prepare(script(made, args, env), executor)
    job = plan.spec.members[0], plan.spec.members[0].submit(plan)
    status = ended(*job)
    lines = list(job[0].logs(job[1], "job"))
    assert status.state == AppState.SUCCEEDED, (status, lines)
    return lines


class TestProjects:
    def test_arguments_and_environment_arrive_byte_for_byte(self, shop: Shop) -> None:
        shop.file("main.py", SHOW)
        variables = {f"V{at}": word for at, word in enumerate(WORDS)}
        before = sorted(shop.folder.rglob("*"))
        made = packaged(shop.container(), args=WORDS, env_vars=variables)
        assert sorted(shop.folder.rglob("*")) == before
        assert json.loads(printed(made)[-1]) == hexed(WORDS)
        assert json.loads(printed(made, env={"VARIABLES": " ".join(variables)})[-1]) == hexed(WORDS)

    def test_two_of_one_folder_share_what_is_equal_and_nothing_else(
        self, shop: Shop, capfd: pytest.CaptureFixture[str]
    ) -> None:
        shop.file("main.py", "import os, sys; print('main', os.environ['A'], *sys.argv[1:])")
        shop.file("other.py", "import sys; print('other', *sys.argv[1:])")
        one, two = shop.container(), shop.container(xm.ModuleName("other"))
        made = package(
            [
                xm.Packageable(one, LocalSpec(), args={"lr": 0.1}, env_vars={"A": "a"}),
                xm.Packageable(one, LocalSpec(), args={"lr": 0.2}, env_vars={"A": "b"}),
                xm.Packageable(two, LocalSpec(), args={"lr": 0.3}),
            ]
        )
        assert capfd.readouterr().err.count("building image nemo_run/") == 2
        first, second, third = (each for each in made if isinstance(each, ContainerImage))
        assert first.image == second.image != third.image
        assert printed(first, {"lr": 0.5, "x": True}) == ["main a --lr=0.5 --x"]
        assert printed(second) == ["main b --lr=0.2"]
        assert printed(third) == ["other --lr=0.3"]
        packaged(one)
        assert "building" not in capfd.readouterr().err
        shop.file("main.py", "print('changed')")
        assert printed(packaged(one)) == ["changed"]
        assert printed(first) == ["main a --lr=0.1"]

    @pytest.mark.parametrize("by_folder", [False, True])
    def test_commands_and_instructions_as_the_documents_and_as_scripts_have_them(
        self, shop: Shop, by_folder: bool
    ) -> None:
        shop.file("pre_process.sh", "#!/bin/sh\necho pre $#\n")
        shop.file("cifar10.py", "import sys; print(sys.argv[1:])")
        shop.file("post_process.sh", "#!/bin/sh\necho post\n")
        place = f"{shop.folder.name}/" if by_folder else ""
        spec = shop.container(
            xm.CommandList(["./pre_process.sh", "python3 -m cifar10 $@", "./post_process.sh"]),
            docker_instructions=[
                f"COPY {place}pre_process.sh pre_process.sh",
                "RUN chmod +x ./pre_process.sh",
                f"COPY {place}cifar10.py cifar10.py" if by_folder else "COPY cifar10.py",
                f"COPY {place}post_process.sh post_process.sh",
                "RUN chmod +x ./post_process.sh",
            ],
        )
        assert printed(packaged(spec, args=["a b"])) == ["pre 0", "['a b']", "post"]

    def test_requirements_are_installed_once_for_all_changes_of_the_code(self, shop: Shop) -> None:
        """By a pip that needs no network: it notes what it is told."""
        pip = "import sys, time; open('/wheel.py', 'w').write(f'told = {sys.argv[1:]}, {time.time()}')"
        place = "/usr/lib/python3/dist-packages/pip"
        text = f'FROM {shop.base}\nRUN mkdir {place} && echo "{pip}" > {place}/__main__.py\n'
        shop.image(text, shop.base)
        shop.file("requirements.txt", "wheel\n")
        shop.file("main.py", "import os; print(os.getcwd()); print(open('/wheel.py').read())")
        folder, first = printed(packaged(shop.container()))
        assert folder == f"/{shop.folder.name}"
        assert f"['install', '--no-cache-dir', '-r', '/{shop.folder.name}/requirements.txt']" in first
        shop.file("new.py", "")
        assert printed(packaged(shop.container()))[1] == first
        shop.file("requirements.txt", "wheel>1\n")
        assert printed(packaged(shop.container()))[1] != first

    def test_files_of_any_name_are_copied(self, shop: Shop) -> None:
        odd = ["a b", "é🎉", "$x", "new\nline", "[a]*", os.fsdecode(b"\xff"), "-n", "#"]
        for name in odd:
            shop.file(name, "")
        shop.file("main.py", "import os; print([os.fsencode(n).hex() for n in os.listdir()])")
        [line] = printed(packaged(shop.container()))
        assert set(ast.literal_eval(line)) >= {os.fsencode(name).hex() for name in (*odd, "main.py")}

    def test_a_deep_module_is_imported_from_the_folder_above(self, shop: Shop) -> None:
        shop.file("inner/main.py", "import os; print(__name__, __package__, os.getcwd())")
        module = f"{shop.folder.name}.inner.main"
        made = packaged(shop.container(xm.ModuleName(module), use_deep_module=True))
        assert printed(made) == [f"__main__ {module.rpartition('.')[0]} /workdir"]

    def test_a_base_image_that_has_changed_is_built_on_anew(self, shop: Shop) -> None:
        shop.file("main.py", "import os; print(os.environ.get('BASE'))")
        assert printed(packaged(shop.container())) == ["None"]
        shop.image(f"FROM {shop.base}\nENV BASE=new\n", shop.base)
        assert printed(packaged(shop.container())) == ["new"]

    def test_an_instruction_that_fails_is_told_with_its_line_and_what_it_said(self, shop: Shop) -> None:
        spec = shop.container(docker_instructions=["RUN true", "RUN echo no such wheel >&2; exit 3"])
        with pytest.raises(PackagingError) as caught:
            packaged(spec)
        message = str(caught.value)
        assert message.startswith(f"{spec.name!r}: image nemo_run/project-")
        assert "line 3 of its Dockerfile, 'RUN echo no such wheel >&2; exit 3'" in message
        assert "mend docker_instructions, or what they copy" in message
        assert "no such wheel\n" in message

    def test_images_are_built_at_the_same_time(self, shop: Shop) -> None:
        """Each build waits for the other one to have come as far."""
        gateway = shop.client.networks.get("bridge").attrs["IPAM"]["Config"][0]["Gateway"]
        with socket.create_server((gateway, 0)) as server:
            server.settimeout(60)

            def meet() -> None:
                both = [server.accept()[0] for _ in range(2)]
                for connection in both:
                    connection.sendall(b"x")
                    connection.close()

            thread = threading.Thread(target=meet, daemon=True)
            thread.start()
            wait = f"import socket; s = socket.create_connection({server.getsockname()}, 60); s.recv(1)"
            specs = [
                shop.container(docker_instructions=[f"ENV N={n}", f'RUN python3 -c "{wait}"']) for n in "ab"
            ]
            assert len(package([xm.Packageable(spec, LocalSpec()) for spec in specs])) == 2
            thread.join(10)

    def test_an_interrupt_ends_the_launcher_and_the_build(self, shop: Shop, tmp_path: Path) -> None:
        launch = tmp_path / "launch.py"
        launch.write_text(
            "from nemo_run import xm\n"
            "from nemo_run.xm_local.packaging import package\n"
            "from nemo_run.xm_local.specs import LocalSpec\n"
            f"spec = xm.PythonContainer(xm.ModuleName('main'), path={str(shop.folder)!r},\n"
            f"    base_image={shop.base!r}, docker_instructions=['RUN sleep 90; echo {shop.word}'])\n"
            "package([xm.Packageable(spec, LocalSpec())])\n"
        )

        def builds() -> bool:
            running = shop.client.containers.list(ignore_removed=True)
            return any(shop.word in str(each.attrs["Args"]) for each in running)

        with subprocess.Popen([sys.executable, launch], env=environment()) as launcher:
            wait_until(builds, "it builds")
            launcher.send_signal(signal.SIGINT)
            assert launcher.wait(15) != 0
        wait_until(lambda: not builds(), "the Engine has stopped building")


class TestDockerfiles:
    def test_it_is_built_as_docker_would_and_run_by_its_own_entrypoint(self, shop: Shop) -> None:
        shop.file("run.sh", '#!/bin/sh\necho "$0" "$@" $A; ls /it\n', 0o755)
        shop.file("ignored.txt", "")
        shop.file(".dockerignore", "*.txt\n")
        shop.file(
            "Dockerfile",
            f"FROM {shop.base} AS one\nWORKDIR /it\nCOPY . .\n"
            'FROM one\nENTRYPOINT ["./run.sh", "baked"]\nCMD ["cmd"]\n',
        )
        made = packaged(xm.Dockerfile(str(shop.folder)), args={"a": 1}, env_vars={"A": "env"})
        assert printed(made, {"a": 2}) == ["./run.sh baked --a=2 env", "Dockerfile", "run.sh"]
        other = shop.folder.parent / "Other"
        other.write_text(f'FROM {shop.base}\nCOPY run.sh /\nENTRYPOINT ["/run.sh"]\nRUN mkdir /it\n')
        assert printed(packaged(xm.Dockerfile(str(shop.folder), str(other)))) == ["/run.sh"]

    def test_a_file_that_is_left_out_changes_nothing(
        self, shop: Shop, capfd: pytest.CaptureFixture[str]
    ) -> None:
        shop.file(".dockerignore", "*.txt\n")
        shop.file("Dockerfile", f"FROM {shop.base}\nCOPY . /it\n")
        first = packaged(xm.Dockerfile(str(shop.folder)))
        shop.file("new.txt", "")
        assert packaged(xm.Dockerfile(str(shop.folder))).image == first.image
        assert capfd.readouterr().err.count("building image") == 1

    def test_what_is_no_instruction_is_told_in_the_engines_words(self, shop: Shop) -> None:
        path = shop.file("Dockerfile", f"FROM {shop.base}\nRUNN x\n")
        with pytest.raises(PackagingError, match=f"(?i)unknown instruction: RUNN.*; mend {path}"):
            packaged(xm.Dockerfile(str(shop.folder)))


class TestImages:
    def test_one_on_the_engine_is_taken_and_stays_the_one_it_was(self, shop: Shop) -> None:
        name = shop.image(f'FROM {shop.base}\nENTRYPOINT ["echo", "one"]\n', f"mine-{shop.word}:1")
        first = packaged(xm.Container(name), args=["x"])
        assert (first.image, first.digest) == (first.digest, shop.client.images.get(name).id)
        shop.image(f'FROM {shop.base}\nENTRYPOINT ["echo", "two"]\n', name)
        assert printed(first) == ["one x"]
        assert printed(packaged(xm.Container(name))) == ["two"]

    def test_a_tar_is_loaded(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        tar = shop.save(name := shop.tiny("saved", "saved"))
        shop.client.images.remove(name, force=True)
        made = packaged(xm.Container(str(tar)), args={"a": 1}, env_vars={"B": "1"})
        assert (shop.said_by(made), made.image) == ("saved", made.digest)
        assert (made.args.to_list(), made.env_vars) == (["--a=1"], {"B": "1"})
        monkeypatch.chdir(shop.folder)
        assert packaged(xm.Container(path="image.tar")).image == made.image

    def test_a_tar_of_two_images_and_one_of_none_are_refused(self, shop: Shop) -> None:
        names = [shop.tiny(f"pair{number}", f"{number}") for number in (1, 2)]
        tar = shop.folder / "two.tar"
        subprocess.run(["docker", "save", "-o", tar, *names], check=True)
        with pytest.raises(PackagingError, match=r"two\.tar holds 2 images: .*; give a tar of one"):
            packaged(xm.Container(str(tar)))
        other = shop.file("other.tar", "no tar")
        with pytest.raises(PackagingError, match=r"other\.tar is no image as `docker save` writes it: "):
            packaged(xm.Container(str(other)))

    def test_what_it_starts_is_known_for_backends_that_are_told_a_command(self, shop: Shop) -> None:
        name = shop.image(
            f'FROM {shop.base}\nENTRYPOINT ["echo"]\nCMD ["c"]\nWORKDIR /tmp\n', f"told-{shop.word}:1"
        )
        made = packaged(xm.Container(name), SlurmSpec())
        assert (made.image, made.workdir) == (name, "/tmp")
        assert [made.argv(args, "Slurm") for args in (["a"], [])] == [["echo", "a"], ["echo", "c"]]
        bare = packaged(xm.Container(IMAGE), SlurmSpec())
        assert (bare.argv(["ls"], "Slurm"), bare.workdir) == (["ls"], "/")
        with pytest.raises(UnsupportedError, match="neither an ENTRYPOINT nor a CMD: say by args"):
            bare.argv([], "Slurm")

    def test_one_that_is_nowhere_is_told(self, shop: Shop) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            name = f"127.0.0.1:{unused.getsockname()[1]}/no/such:1"
            with pytest.raises(PackagingError, match=rf"^'such_1': image '{name}' is not on the Engine"):
                packaged(xm.Container(name))


class TestRegistries:
    def test_an_image_is_pushed_by_its_name_and_run_by_its_digest(self, shop: Shop, registry: str) -> None:
        shop.file("Dockerfile", f'FROM scratch\nLABEL test={shop.word}\nCOPY . .\nENTRYPOINT ["one"]\n')
        name = f"{registry}/team/it:1"
        one = packaged(xm.Dockerfile(str(shop.folder)), VertexSpec(push_image_tag=name), args={"a": 1})
        assert one.image == f"{registry}/team/it@{one.digest}"
        assert one.args.to_list() == ["--a=1"]
        shop.file("Dockerfile", f'FROM scratch\nLABEL test={shop.word}\nCOPY . .\nENTRYPOINT ["two"]\n')
        two = packaged(xm.Dockerfile(str(shop.folder)), KubernetesSpec(push_image_tag=name))
        wait_until(lambda: not shop.images_left(keep=shop.base), "what was built is gone")
        shop.client.images.pull(one.image)
        assert shop.said_by(one) == "one"
        here = packaged(xm.Container(name))
        assert (here.image, shop.said_by(here)) == (two.image, "two")

    def test_the_configured_repository_is_the_place_of_those_without_a_name(
        self, shop: Shop, registry: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NEMORUN_IMAGE_REPOSITORY", f"{registry}/all")
        text = f'FROM scratch\nLABEL test={shop.word}\nWORKDIR /it\nCOPY . .\nENTRYPOINT ["one", "two"]\n'
        shop.file("Dockerfile", text)
        made = packaged(xm.Dockerfile(str(shop.folder)), KubernetesSpec())
        part = shop.folder.name.replace("_", "-")
        assert made.image == f"{registry}/all/{part}@{made.digest}"
        by_name = packaged(xm.Dockerfile(str(shop.folder)), SlurmSpec())
        assert by_name.image.startswith(f"{registry}/all/{part}:")
        assert by_name.digest == made.digest
        assert (by_name.argv(["a"], "Slurm"), by_name.workdir) == (["one", "two", "a"], "/it")
        loaded = packaged(xm.Container(str(shop.save(shop.tiny("saved", "saved")))), VertexSpec())
        assert loaded.image == f"{registry}/all/image-tar@{loaded.digest}"

    def test_an_image_here_is_pushed_where_that_is_asked_for(self, shop: Shop, registry: str) -> None:
        name = f"{registry}/given:1"
        made = packaged(xm.Container(shop.tiny("given", "given")), KubernetesSpec(push_image_tag=name))
        assert made.image == f"{registry}/given@{made.digest}"
        assert shop.client.images.get_registry_data(name).id == made.digest

    def test_a_registry_that_refuses_is_told(self, shop: Shop) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            target = VertexSpec(push_image_tag=f"127.0.0.1:{unused.getsockname()[1]}/it:1")
            with pytest.raises(PackagingError, match=r"cannot be pushed: .*connection refused.*docker login"):
                packaged(xm.Container(shop.base), target)


def test_logs_of_twenty_short_containers_are_complete_and_exit_codes_are_told(shop: Shop) -> None:
    shop.file(
        "main.py", "import sys\nfor n in range(50): print(*sys.argv[1:], n)\nsys.exit(int(sys.argv[1]) == 7)"
    )
    made = packaged(shop.container())
    executor = run.DockerExecutor(image=made.image, packager=run.Packager(), max_parallel=8)
    with run.Experiment("many", executor, raise_on_failure=False, clean_mode=True) as exp:
        for number in range(20):
            exp.add(script(made, [number]), name=f"n{number}")
        exp.run()
    for number in range(20):
        log = (exp.path / f"n{number}/logs/n{number}_0.log").read_text()
        assert log.splitlines() == [f"{number} {line}" for line in range(50)]
    codes = {
        job.id: json.loads((exp.path / job.id / "job.json").read_text())["exit_code"] for job in exp.jobs
    }
    assert codes == {f"n{number}": int(number == 7) for number in range(20)}
