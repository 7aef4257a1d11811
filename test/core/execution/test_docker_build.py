"""Images of packaged code on a real Docker Engine, and a real registry."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contracts.executor import wait_until
from deeds import environment, script
from dockers import IMAGE, Containers

import nemo_run as run
from nemo_run.core.execution.docker_engine import address, connect
from nemo_run.errors import JobFailedError

pytestmark = pytest.mark.usefixtures("containers")


@pytest.fixture
def word() -> str:
    """Makes the images of a test its own."""
    return uuid.uuid4().hex


@pytest.fixture
def code(tmp_path: Path, home: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that is launched from; images of its code are gone after the test."""
    path = tmp_path / "code"
    path.mkdir()
    (path / "mine.py").write_text(f"def word():\n    return {word!r}\n")
    (path / "greet.sh").write_text("echo hello from $PWD; echo it is writable > new; cat new\n")
    monkeypatch.chdir(path)
    yield path
    client = connect(address(None))._client
    for image in client.images.list(filters={"label": f"test={word}"}):
        client.images.remove(image.id, force=True)


def image_of(word: str, **fields: Any) -> run.ImagePackager:
    instructions = [f"LABEL test={word}", *fields.pop("docker_instructions", [])]
    return run.ImagePackager(
        **fields,
        docker_instructions=instructions,
        code=run.PatternPackager(include_pattern="*", relative_path="."),
    )


def executor(word: str, **fields: Any) -> run.DockerExecutor:
    return run.DockerExecutor(container_image=IMAGE, packager=image_of(word, **fields))


def test_a_task_runs_in_an_image_of_the_code_which_is_its_own_to_write_to(code: Path, word: str) -> None:
    with run.Experiment("it", executor(word), clean_mode=True) as exp:
        exp.add(run.Script(path="greet.sh", entrypoint="sh"), name="shell")
        exp.add(run.Script(path="mine", m=True, entrypoint="python"), name="module")
        exp.add(
            run.Script(inline="python3 -c 'import mine; print(mine.word())'", entrypoint="sh"), name="imports"
        )
        exp.run()
    assert (exp.path / "shell/logs/shell_0.log").read_text() == "hello from /code\nit is writable\n"
    assert (exp.path / "imports/logs/imports_0.log").read_text() == word + "\n"
    assert not (exp.path / "shell/code").exists()


def test_a_python_task_of_the_code_is_called_in_its_image(code: Path, word: str) -> None:
    (code / "launch.py").write_text(
        "import mine, sys\n"
        "import nemo_run as run\n"
        'if __name__ == "__main__":\n'
        "    files = run.PatternPackager(include_pattern='*.py', relative_path='.')\n"
        "    label = f'LABEL test={sys.argv[1]}'\n"
        "    packager = run.ImagePackager(docker_instructions=[label], code=files)\n"
        f"    executor = run.DockerExecutor(image={IMAGE!r}, packager=packager)\n"
        "    print(run.run(run.Partial(mine.word), executor))\n"
    )
    done = subprocess.run([sys.executable, "launch.py", word], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, word), done.stderr


def test_equal_code_is_built_once_and_what_it_needs_stays_when_it_changes(
    code: Path, word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    # A base of its own: tests beside this one, by the same base, change what the Engine has in its cache.
    dockerfile = io.BytesIO(f"FROM {IMAGE}\nLABEL test={word}\n".encode())
    connect(address(None))._client.images.build(fileobj=dockerfile, tag=f"base:{word}", rm=True)
    packager = image_of(word, docker_instructions=["COPY mine.py .", "RUN date +%s%N > /installed"])
    mine = run.DockerExecutor(container_image=f"base:{word}", packager=packager)

    def installed(title: str) -> tuple[str, str]:
        exp = run.Experiment(title, mine, clean_mode=True)
        for number in range(4):
            exp.add(run.Script(inline="cat /installed /code/greet.sh", entrypoint="sh"), name=f"job{number}")
        exp.run()
        logs = {(exp.path / f"job{n}/logs/job{n}_0.log").read_text() for n in range(4)}
        assert len(logs) == 1
        return logs.pop(), capfd.readouterr().err

    first, said = installed("first")
    assert said.count("building image nemo_run:") == 1
    assert "RUN date" in said
    again, said = installed("again")
    assert (again, "building" in said) == (first, False)
    (code / "greet.sh").write_text("echo changed\n")
    changed, said = installed("changed")
    assert said.count("building image nemo_run:") == 1
    assert changed.splitlines()[0] == first.splitlines()[0]  # what was installed is what it was
    assert changed.splitlines()[1:] == ["echo changed"]


def test_a_failing_instruction_is_told_with_its_line_and_what_it_said(code: Path, word: str) -> None:
    broken = ["RUN true \\\n  && true", "RUN echo no such wheel >&2; exit 3"]
    with pytest.raises(JobFailedError) as caught:
        run.run(run.Script(inline="true"), executor(word, docker_instructions=broken), name="it")
    message = str(caught.value)
    assert "line 6 of its Dockerfile, 'RUN echo no such wheel >&2; exit 3'" in message
    assert "returned a non-zero code: 3" in message
    assert "no such wheel\n" in message
    log = run.Experiment.from_title("it").path / "it" / "build.log"
    assert "no such wheel" in log.read_text()


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        ("RUNN x", "unknown instruction: RUNN"),
        ("COPY not-there .", "not-there"),
        ("FROM no.such/image", "line 4"),
    ],
)
def test_what_is_no_instruction_or_has_no_file_is_told_in_the_engines_words(
    code: Path, word: str, instruction: str, words: str
) -> None:
    with pytest.raises(JobFailedError, match="cannot be built") as caught:
        run.run(run.Script(inline="true"), executor(word, docker_instructions=[instruction]), name="it")
    assert words in str(caught.value)


def test_an_entrypoint_is_given_the_task(code: Path, word: str) -> None:
    entry = ["/bin/sh", "-c", 'export GREETING=hello; exec "$@"', "entry"]
    exp = run.Experiment("it", executor(word, entrypoint=entry), clean_mode=True)
    exp.add(run.Script(inline="echo $GREETING", entrypoint="sh"), name="job")
    exp.run()
    assert (exp.path / "job/logs/job_0.log").read_text() == "hello\n"


def test_a_dry_run_shows_the_dockerfile_and_builds_nothing(
    code: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run.run(run.Script(inline="true"), executor(word), name="it", dryrun=True)
    shown = capsys.readouterr().out
    assert f"#   LABEL test={word}\n#   COPY . /code\n" in shown
    assert not connect(address(None))._client.images.list(filters={"label": f"test={word}"})


def test_an_image_is_pushed_and_another_engine_could_pull_it(code: Path, word: str, registry: str) -> None:
    name = f"{registry}/team/it:{word}"
    run.run(run.Script(inline="true"), executor(word, push_image_tag=name), name="it")
    client = connect(address(None))._client
    client.images.remove(name)
    assert client.images.pull(name).labels["test"] == word
    client.images.remove(name)


def test_a_registry_that_refuses_is_told_in_its_words(code: Path, word: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{unused.getsockname()[1]}/it:1"
        with pytest.raises(JobFailedError, match=r"cannot be pushed: .*connection refused.*docker login"):
            run.run(run.Script(inline="true"), executor(word, push_image_tag=name), name="it")
    connect(address(None))._client.images.remove(name)


def test_a_launcher_killed_while_it_builds_loses_nothing(
    code: Path, word: str, tmp_path: Path, containers: Containers
) -> None:
    source = f"""
files = run.PatternPackager(include_pattern="*.sh", relative_path=".")
packager = run.ImagePackager(docker_instructions=["LABEL test={word}", "RUN sleep 3"], code=files)
run.run(
    run.Script(path="greet.sh", entrypoint="sh"),
    run.DockerExecutor(image={IMAGE!r}, packager=packager), name="it"
)
"""
    with subprocess.Popen(
        [sys.executable, script(tmp_path / "launch.py", source)], env=environment()
    ) as launcher:

        def builds() -> bool:
            logs = list((tmp_path / "home").glob("experiments/it/*/it/build.log"))
            return bool(logs) and "RUN sleep 3" in logs[0].read_text()

        wait_until(builds, "it builds")
        launcher.send_signal(signal.SIGKILL)
    exp = run.Experiment.from_title("it")
    exp.wait()
    assert (exp.path / "it/logs/it_0.log").read_text() == "hello from /code\nit is writable\n"
    assert containers.all() == []
