"""An image's own ENTRYPOINT as a job, on a real Docker Engine: its words, its settings, its end."""

from __future__ import annotations

import io
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tasks
from contracts.executor import HOSTILE, SHOW, ended, prepare, wait_until
from dockers import IMAGE, Containers

import nemo_run as run
from nemo_run.core.execution.base import AppState, Executor, JobHandle
from nemo_run.errors import ConfigError, JobFailedError, SubmitError, UnsupportedError
from nemo_run.shell import Expand

Build = Callable[..., str]

#: What an Engine can be told, which takes no bytes that are no UTF-8.
TELLABLE = [word for word in HOSTILE if word.encode(errors="replace").decode() == word]
#: Shows its arguments, or the variables named in VARIABLES.
SHOWING = json.dumps(["python3", "-c", SHOW])

#: Shows as whom, where and with which variables of its image it runs.
WHERE = """
import getpass, os
print(getpass.getuser(), os.getcwd())
print(os.environ["A"], os.environ["odd.name"])
"""


@pytest.fixture
def build(containers: Containers) -> Iterator[Build]:
    """Makes an image of lines of a Dockerfile; all of them are gone after the test."""
    word, made = uuid.uuid4().hex, []

    def image(*lines: str) -> str:
        text = "\n".join([f"FROM {IMAGE}", *lines, f"LABEL test={word}"]) + "\n"
        tag = f"entrypoint-test:{word}-{len(made)}"
        containers.client.images.build(fileobj=io.BytesIO(text.encode()), tag=tag, rm=True)
        made.append(tag)
        return tag

    yield image
    for tag in made:
        containers.client.images.remove(tag, force=True)


def own(*args: Any, **env: Any) -> run.Script:
    """What the image says, with these arguments."""
    return run.Script(entrypoint="", args=list(args), env=env)


def submit(image: str, script: run.Script, **fields: Any) -> tuple[Executor, JobHandle]:
    plan = prepare(script, run.DockerExecutor(image=image, packager=run.Packager(), **fields))
    return plan.spec.members[0], plan.spec.members[0].submit(plan)


def lines(job: tuple[Executor, JobHandle]) -> list[str]:
    """What a job prints that succeeds."""
    status = ended(*job)
    printed = list(job[0].logs(job[1], "job"))
    assert status.state == AppState.SUCCEEDED, (status, printed)
    return printed


def shown(job: tuple[Executor, JobHandle]) -> list[str]:
    return list(json.loads(lines(job)[-1]))


class TestWords:
    def test_arguments_arrive_byte_for_byte(self, home: Path, build: Build) -> None:
        image = build(f"ENTRYPOINT {SHOWING}")
        assert shown(submit(image, own(*TELLABLE))) == tasks.hexed(TELLABLE)
        assert shown(submit(image, own(*HOSTILE))) == tasks.hexed(HOSTILE)

    def test_the_environment_arrives_byte_for_byte(self, home: Path, build: Build) -> None:
        image = build(f"ENTRYPOINT {SHOWING}", "ENV V0=the-images")
        for words in (TELLABLE, HOSTILE):
            env = {f"V{at}": word for at, word in enumerate(words)}
            assert shown(submit(image, own(**env, VARIABLES=" ".join(env)))) == tasks.hexed(words)

    def test_what_is_to_be_expanded_is_expanded_in_the_container(self, home: Path, build: Build) -> None:
        image = build(f"ENTRYPOINT {SHOWING}", "ENV WHO=me")
        job = submit(image, own("$WHO", Expand("$WHO  $(echo it)"), "a  b"))
        assert shown(job) == tasks.hexed(["$WHO", "me  it", "a  b"])
        job = submit(image, own(VARIABLES="A", A=Expand("$WHO's")))
        assert shown(job) == tasks.hexed(["me's"])

    def test_arguments_stand_in_place_of_cmd_and_without_any_cmd_is_used(
        self, home: Path, build: Build
    ) -> None:
        both = build('ENTRYPOINT ["echo", "entry"]', 'CMD ["a", "b  c"]')
        assert lines(submit(both, own())) == ["entry a b  c"]
        assert lines(submit(both, own("x"))) == ["entry x"]
        alone = build('CMD ["echo", "cmd"]')
        assert lines(submit(alone, own())) == ["cmd"]
        assert lines(submit(alone, own("echo", "mine"))) == ["mine"]
        assert lines(submit(alone, own(A=Expand("x")))) == ["cmd"]

    def test_an_image_that_says_nothing_needs_arguments(self, home: Path, containers: Containers) -> None:
        assert lines(submit(IMAGE, own("echo", "mine"))) == ["mine"]
        with pytest.raises(SubmitError, match="neither an ENTRYPOINT nor a CMD; say by args"):
            submit(IMAGE, own())
        assert len(containers.all()) == 0

    def test_a_secret_is_in_the_programs_environment_and_not_in_what_the_engine_shows(
        self, home: Path, build: Build, containers: Containers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOKEN_HERE", "very-hidden-value")
        image = build(
            """ENTRYPOINT ["sh", "-c", "printf %s \\"$TOKEN\\" | wc -c; echo $0; sleep 60", "a b"]"""
        )
        job = submit(image, own(TOKEN=run.Secret("TOKEN_HERE")))
        wait_until(lambda: list(job[0].logs(job[1], "job")) == ["17", "a b"], "it has printed")
        [container] = containers.all()
        assert "very-hidden-value" not in json.dumps(container.attrs)
        job[0].cancel(job[1])
        assert ended(*job).state == AppState.CANCELLED


class TestSettings:
    def test_user_folder_and_environment_are_the_images_own(self, home: Path, build: Build) -> None:
        image = build(
            "RUN useradd -m somebody && mkdir /it",
            "USER somebody",
            "WORKDIR /it",
            "ENV A=b odd.name=kept",
            f"ENTRYPOINT {json.dumps(['python3', '-c', WHERE])}",
        )
        assert lines(submit(image, own())) == ["somebody /it", "b kept"]

    def test_what_the_executor_says_wins(self, home: Path, build: Build) -> None:
        image = build("WORKDIR /tmp", "USER 1234", 'ENTRYPOINT ["sh", "-c", "id -u; pwd; echo $A"]')
        job = submit(image, own(A="script"), user="77:88", working_dir="/var", env_vars={"A": "executor"})
        assert lines(job) == ["77", "/var", "script"]

    def test_an_entrypoint_in_shell_form_and_one_below_the_images_folder(
        self, home: Path, build: Build
    ) -> None:
        assert lines(submit(build("ENV A=1", "ENTRYPOINT echo shell $A"), own("unseen"))) == ["shell 1"]
        program = "printf '#!/bin/sh\\necho $0 $@\\n' > /app/run.sh"
        script = f"RUN mkdir /app && {program} && chmod +x /app/run.sh"
        image = build(script, "WORKDIR /app", 'ENTRYPOINT ["./run.sh"]')
        assert lines(submit(image, own("a b"))) == ["./run.sh a b"]

    def test_files_of_the_job_and_a_copied_folder_are_there_too(self, home: Path, build: Build) -> None:
        image = build('ENTRYPOINT ["sh", "-c", "echo made > $NEMORUN_JOB_DIR/artifacts/file"]')
        for same_files in (True, False):
            job = submit(image, own(), same_files=same_files)
            assert lines(job) == []
            made = Path(job[1].data["job_dir"]) / "artifacts" / "file"
            assert made.read_text() == "made\n"


class TestEnds:
    def test_the_exit_code_is_the_programs(self, home: Path, build: Build) -> None:
        image = build('ENTRYPOINT ["sh", "-c", "exit $0"]')
        for code in (0, 3, 255):
            status = ended(*submit(image, own(str(code))))
            assert (status.state == AppState.SUCCEEDED, status.exit_code) == (code == 0, code)

    def test_both_streams_are_one_in_order(self, home: Path, build: Build) -> None:
        program = "import os\\nfor n in range(400): os.write(1 + n % 2, b'%d\\\\n' % n)"
        job = submit(build(f'ENTRYPOINT ["python3", "-c", "{program}"]'), own())
        assert lines(job) == [str(number) for number in range(400)]

    def test_a_program_that_is_not_there_fails(self, home: Path, build: Build) -> None:
        status = ended(*submit(build('ENTRYPOINT ["/no/such"]'), own()))
        assert (status.state, status.exit_code) == (AppState.FAILED, 127)

    def test_sigterm_reaches_the_program_at_a_cancel_and_at_a_timeout(self, home: Path, build: Build) -> None:
        program = "trap 'echo ended; exit 5' TERM; echo up; while :; do sleep 0.05; done"
        image = build(f'ENTRYPOINT ["sh", "-c", "{program}"]')
        for fields, state, code in (
            ({"timeout": 1.0}, AppState.FAILED, 124),
            ({}, AppState.CANCELLED, 143),
        ):
            began, job = time.monotonic(), submit(image, own(), **fields)
            if not fields:
                wait_until(lambda: "up" in list(job[0].logs(job[1], "job")), "it runs")  # noqa: B023
                job[0].cancel(job[1])
            status = ended(*job)
            assert (status.state, status.exit_code) == (state, code)
            assert list(job[0].logs(job[1], "job")) == ["up", "ended"]
            assert time.monotonic() - began < 9.0

    def test_a_failed_attempt_is_followed_by_another(self, home: Path, build: Build) -> None:
        program = "echo $0 $1; cd $NEMORUN_JOB_DIR/artifacts; test -e x || { touch x; exit 4; }"
        image = build(f'ENTRYPOINT ["sh", "-c", "{program}"]')
        job = submit(image, own("a", Expand("$(echo b)")), retries=1)
        assert lines(job) == ["a b", "a b"]

    def test_an_image_without_a_shell_is_run_as_it_is(
        self, home: Path, build: Build, containers: Containers
    ) -> None:
        gone = "import os; os.remove('/bin/sh')"
        image = build(f'RUN ["python3", "-c", "{gone}"]', f"ENTRYPOINT {SHOWING}", 'CMD ["cmd"]')
        assert shown(submit(image, own("a b", "$x"))) == tasks.hexed(["a b", "$x"])
        assert shown(submit(image, own())) == tasks.hexed(["cmd"])
        with pytest.raises(SubmitError, match=r"has no /bin/sh, which a secret, a run\.Expand"):
            submit(image, own(Expand("$HOME")))
        assert len(containers.all()) == 0


class TestRefusals:
    def test_where_there_is_no_image_nothing_is_started(self, home: Path) -> None:
        for executor in (run.LocalExecutor(), run.SlurmExecutor(account="a", partition="p")):
            with pytest.raises(UnsupportedError, match="its jobs are not in images"):
                run.run(own(), executor, name="it")
        assert not (home / "experiments").exists()

    def test_no_launcher_stands_before_it(self, home: Path) -> None:
        mine = run.DockerExecutor(image=IMAGE, launcher="torchrun", packager=run.Packager())
        with pytest.raises(
            UnsupportedError, match="by Torchrun, which starts commands; leave the launcher out"
        ):
            run.run(own(), mine, name="it")

    def test_it_is_not_run_in_the_launching_process(self, home: Path) -> None:
        mine = run.DockerExecutor(image=IMAGE, packager=run.Packager())
        with pytest.raises(ConfigError, match="run it without direct=True"):
            run.run(own(), mine, name="it", direct=True)

    def test_another_entrypoint_at_the_same_time_is_refused(self, home: Path, engine: None) -> None:
        with pytest.raises(ConfigError, match="holds an entrypoint, and the Script asks for the image's own"):
            submit(IMAGE, own("true"), additional_kwargs={"entrypoint": "sh"})


def test_a_dry_run_shows_what_is_started(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = run.DockerExecutor(image="some/image:1", packager=run.Packager())
    run.run(own("--lr=0.1", "a b"), mine, name="it", dryrun=True)
    shown = capsys.readouterr().out
    assert "# the image's ENTRYPOINT, or where it has none its CMD, is started by /bin/sh -c" in shown
    assert "some/image:1 --lr=0.1 'a b'" in shown
    assert "--user" not in shown
    assert "--workdir" not in shown


def test_an_experiment_opened_by_another_process_knows_it(home: Path, build: Build) -> None:
    image = build('ENTRYPOINT ["echo", "entry"]')
    mine = run.DockerExecutor(image=image, packager=run.Packager())
    with run.Experiment("it", mine, clean_mode=True) as exp:
        exp.add(own("a b"), name="one")
        plain = run.DockerExecutor(image=IMAGE, packager=run.Packager())
        exp.add(run.Script(path="/bin/false", entrypoint=""), plain, name="two")
        with pytest.raises(JobFailedError):
            exp.run()
    again = run.Experiment.from_id(exp.id)
    task = again.jobs[0].tasks[0]
    assert isinstance(task, run.Script)
    assert (task.is_of_image, task.args, task.get_name()) == (True, ["a b"], "image")
    assert (exp.path / "one/logs/one_0.log").read_text() == "entry a b\n"
    assert os.path.exists(exp.path / "one" / "end.json")
