"""However a launch script ends, no job is left behind; unless it is killed: then all are found again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deeds import NEMO, kill_all, lines, nemo, processes_of, until
from dockers import IMAGE, Containers
from xms import HEAD, Launchers, alive, ends_in, leaves_word, pids, script, sh, wait_or_end

import nemo_run as run
from nemo_run import xm, xm_local
from nemo_run.run.look import refresh
from nemo_run.run.store import Store, scan

pytestmark = pytest.mark.usefixtures("home")

#: A job with a process below it; both leave their numbers.
TREE = "sleep 600 & echo $! >{folder}/$!.new; mv {folder}/$!.new {folder}/$!.pid; {here} wait"
#: One that does not end when it is asked to, but says that it was.
STUBBORN = "trap 'echo asked >>{folder}/asked' TERM; {here} while :; do sleep 0.05; done"
BODIES = {
    "with": """
        with xm_local.create_experiment("ended") as experiment:
            for number in range(3):
                experiment.add(sh({words!r}))
            {inside}
        """,
    "async with": """
        async def main():
            async with xm_local.create_experiment("ended") as experiment:
                for number in range(3):
                    await experiment.add(sh({words!r}))
                {inside}
        asyncio.run(main())
        """,
    "run_in_asyncio_loop": """
        @xm.run_in_asyncio_loop
        async def main():
            async with xm_local.create_experiment("ended") as experiment:
                async def generate(unit):
                    await unit.add(sh({words!r}))
                    await asyncio.sleep(600)
                for number in range(3):
                    experiment.add(generate)
                {inside}
        main()
        """,
}


def words(folder: Path, text: str = TREE) -> str:
    return text.format(here=leaves_word(folder), folder=folder)


@pytest.fixture
def launchers(home: Path) -> Iterator[Launchers]:
    """Launch scripts, and nothing of them or their jobs afterwards."""
    found = Launchers()
    yield found
    found.end()
    kill_all(processes_of(home))


def check_nothing_is_left(folder: Path, processes: int) -> None:
    left = pids(folder)
    assert len(left) == processes
    until(lambda: not any(map(alive, left)), "no process is left", 5)


def states() -> set[str]:
    (path,) = scan("ended")
    return {record.state.name for record in refresh(Store(path))}


# --- signals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_process_of_every_job(
    kind: str, number: int, tmp_path: Path, launchers: Launchers
) -> None:
    body = BODIES[kind].format(words=words(tmp_path), inside="pass")
    process = launchers.script(script(tmp_path / "launcher.py", body))
    wait_or_end(process, lambda: len(pids(tmp_path)) == 6, "all jobs run")
    process.send_signal(number)
    _, errors = process.communicate(timeout=40)
    assert process.returncode in ((130, -signal.SIGINT) if number == signal.SIGINT else (143,)), errors
    check_nothing_is_left(tmp_path, 6)
    assert states() == {"CANCELLED"}


@pytest.mark.parametrize("kind", BODIES)
def test_an_error_below_the_with_ends_all_jobs_at_once(
    kind: str, tmp_path: Path, launchers: Launchers
) -> None:
    """XManager waited for the jobs first, however long they took."""
    pause = "time.sleep(0.01)" if kind == "with" else "await asyncio.sleep(0.01)"
    inside = f"""while sum(name.endswith(".pid") for name in os.listdir({str(tmp_path)!r})) < 6: {pause}
        {"    " if kind == "with" else "        "}raise ZeroDivisionError("in the body")"""
    begun = time.monotonic()
    process = launchers.script(
        script(tmp_path / "launcher.py", BODIES[kind].format(words=words(tmp_path), inside=inside))
    )
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "ZeroDivisionError: in the body" in errors) == (1, True), errors
    assert time.monotonic() - begun < 40
    check_nothing_is_left(tmp_path, 6)
    assert states() == {"CANCELLED"}


def test_jobs_that_do_not_listen_are_killed_all_at_the_same_time(
    tmp_path: Path, launchers: Launchers
) -> None:
    body = BODIES["with"].format(words=words(tmp_path, STUBBORN), inside="pass")
    process = launchers.script(script(tmp_path / "launcher.py", body))
    wait_or_end(process, lambda: len(pids(tmp_path)) == 3, "all jobs run")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert 8 < time.monotonic() - begun < 25
    assert lines(tmp_path / "asked") == ["asked"] * 3
    check_nothing_is_left(tmp_path, 3)


def test_a_second_signal_does_not_wait_and_still_nothing_is_left(
    tmp_path: Path, launchers: Launchers
) -> None:
    body = BODIES["with"].format(words=words(tmp_path, STUBBORN), inside="pass")
    process = launchers.script(script(tmp_path / "launcher.py", body))
    wait_or_end(process, lambda: len(pids(tmp_path)) == 3, "all jobs run")
    process.send_signal(signal.SIGINT)
    until(lambda: lines(tmp_path / "asked"), "the jobs were asked to end")
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert time.monotonic() - begun < 7
    left = pids(tmp_path)
    until(lambda: not any(map(alive, left)), "their supervisors have ended them", 30)


def test_a_script_that_heeds_sigterm_itself_goes_on_to_do_so(tmp_path: Path, launchers: Launchers) -> None:
    body = f"""
        import signal
        signal.signal(signal.SIGTERM, lambda *_: open("{tmp_path}/heard", "w").close())
        with xm_local.create_experiment("ended") as experiment:
            experiment.add(sh({words(tmp_path, "{here} sleep 3")!r}))
        """
    process = launchers.script(script(tmp_path / "launcher.py", body))
    wait_or_end(process, lambda: pids(tmp_path), "the job runs")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=40)
    assert (process.returncode, (tmp_path / "heard").exists()) == (0, True), errors
    assert states() == {"SUCCEEDED"}


def test_a_killed_launcher_s_jobs_live_on_and_are_found_again(tmp_path: Path, launchers: Launchers) -> None:
    body = BODIES["with"].format(
        words=words(tmp_path, f"{{here}} while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"), inside="pass"
    )
    process = launchers.script(script(tmp_path / "launcher.py", body))
    wait_or_end(process, lambda: len(pids(tmp_path)) == 3, "all jobs run")
    process.kill()
    process.communicate(timeout=30)
    assert all(map(alive, pids(tmp_path)))
    assert "RUNNING" in nemo("experiment", "status", "ended").stdout
    assert nemo("experiment", "cancel", "ended", "3").returncode == 0
    (tmp_path / "go").touch()
    waited = nemo("experiment", "wait", "ended")
    assert (waited.returncode, "3" in waited.stderr) == (1, True)
    check_nothing_is_left(tmp_path, 3)
    (path,) = scan("ended")
    found = {record.id: record.state.name for record in refresh(Store(path))}
    assert found == {"1": "SUCCEEDED", "2": "SUCCEEDED", "3": "CANCELLED"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nemo_launch_ends_its_jobs_too(number: int, tmp_path: Path, launchers: Launchers) -> None:
    text = HEAD + (
        "def main(argv):\n    with xm_local.create_experiment('ended') as experiment:\n"
        f"        experiment.add(sh({words(tmp_path)!r}))\n"
    )
    (tmp_path / "launcher.py").write_text(text)
    process = launchers.begin(NEMO, "launch", "launcher.py", cwd=tmp_path)
    wait_or_end(process, lambda: len(pids(tmp_path)) == 2, "the job runs")
    process.send_signal(number)
    _, errors = process.communicate(timeout=40)
    assert process.returncode in ((130, -signal.SIGINT) if number == signal.SIGINT else (143,)), errors
    check_nothing_is_left(tmp_path, 2)
    assert states() == {"CANCELLED"}


# --- bytes that jobs print ------------------------------------------------------------------------------


def test_lines_are_printed_as_they_are_after_the_job_s_name(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """Long ones, indented ones and such that are no UTF-8 ended XManager's launcher."""
    program = r"""
    printf '  indented\n'; printf 'caf\351\n'; head -c 3000000 /dev/zero | tr '\0' x; echo; printf 'no end'
    """
    local = xm_local.Local()
    with xm_local.create_experiment("lines") as experiment:
        experiment.add(sh(program, executor=local, name="talker"))
        experiment.add(sh("echo quiet", name="silent"))
    printed = capfdbinary.readouterr().out.split(b"\n")
    assert printed[0] == b"[talker]   indented"
    assert printed[1].startswith(b"[talker] caf")
    assert printed[2] == b"[talker] " + b"x" * 3000000
    assert printed[3:] == [b"[talker] no end", b""]


def test_lines_come_while_a_job_runs(tmp_path: Path, launchers: Launchers) -> None:
    body = f"""
        with xm_local.create_experiment("ended") as experiment:
            experiment.add(sh("echo begun; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo ended"))
        """
    process = launchers.script(script(tmp_path / "launcher.py", body))
    assert process.stdout
    assert process.stdout.readline() == "[sh] begun\n"
    (tmp_path / "go").touch()
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "[sh] ended\n")


# --- containers -----------------------------------------------------------------------------------------


CONTAINER = f"""
        from nemo_run.xm_local.executables import ContainerImage
        image = ContainerImage(name="sh", image="{IMAGE}")
        with xm_local.create_experiment("ended") as experiment:
            for number in range(3):
                experiment.add(xm.Job(image, xm_local.Local(), args=["sh", "-c", {{words!r}}]))
"""


def test_containers_are_ended_side_by_side(
    tmp_path: Path, containers: Containers, launchers: Launchers
) -> None:
    body = CONTAINER.format(words="trap : TERM; while :; do sleep 0.1; done")
    process = launchers.script(script(tmp_path / "launcher.py", body))

    def running() -> bool:
        return sum(each.status == "running" for each in containers.all()) == 3

    wait_or_end(process, lambda: running(), "all containers run")
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), errors
    assert time.monotonic() - begun < 25
    containers.assert_gone(within=10)
    assert states() == {"CANCELLED"}


def test_a_killed_launcher_s_containers_are_found_again(
    tmp_path: Path, containers: Containers, launchers: Launchers
) -> None:
    process = launchers.script(script(tmp_path / "launcher.py", CONTAINER.format(words="sleep 3; exit 0")))
    wait_or_end(process, lambda: len(containers.all()) == 3, "all containers are there")
    process.kill()
    process.communicate(timeout=30)
    waited = nemo("experiment", "wait", "ended")
    assert (waited.returncode, waited.stdout) == (0, "3 jobs succeeded.\n"), waited.stderr
    containers.assert_gone(within=10)


# --- programs -------------------------------------------------------------------------------------------


def test_a_program_that_is_gone_fails_its_unit_alone(tmp_path: Path) -> None:
    from nemo_run.xm_local.executables import LocalBinary

    gone = xm.Job(LocalBinary(name="gone", path=str(tmp_path / "gone")), xm_local.Local())
    with (
        ends_in(run.ConfigError, "gone"),
        xm_local.create_experiment("x") as experiment,
    ):
        experiment.add(gone)
        experiment.add(sh(f"echo done >{tmp_path}/trace"))
    assert lines(tmp_path / "trace") == ["done"]
    assert os.path.exists(experiment.path)
