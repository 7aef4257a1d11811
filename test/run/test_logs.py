"""Logs: what jobs print can be read while they run and afterwards, filtered, and without their secrets."""

from __future__ import annotations

import os
import select
import sys
import threading
from pathlib import Path

import pytest
import user_tasks
from programs import call, until

import nemo_run as run
from nemo_run.core.masking import MASK, mask_stream, worth_masking
from nemo_run.run.logs import Printer, masker

pytestmark = pytest.mark.usefixtures("home")


def ran(*tasks: object, executor: run.Executor | None = None) -> run.Experiment:
    with run.Experiment("logs", executor=executor, clean_mode=True, raise_on_failure=False) as experiment:
        for task in tasks:
            experiment.add(task, name="job")
        experiment.run()
    return experiment


def test_logs_prints_what_a_job_printed(capfd: pytest.CaptureFixture[str]) -> None:
    experiment = ran(run.Partial(user_tasks.say, lines=3), run.Partial(user_tasks.say, lines=1, word="other"))
    experiment.logs("job")
    assert capfd.readouterr().out == "line 0\nline 1\nline 2\n"
    run.Experiment.from_id(experiment.id).logs("job_1")
    assert capfd.readouterr().out == "other 0\n"


def test_both_outputs_are_in_the_log_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    ran(run.Script(inline="echo out; echo err >&2; printf unended")).logs("job")
    assert capfd.readouterr().out == "out\nerr\nunended\n"


@pytest.mark.parametrize(
    ("regex", "expected"), [("1", "line 1\n"), ("^line [02]$", "line 0\nline 2\n"), ("x", "")]
)
def test_a_regex_keeps_the_lines_with_a_match(
    regex: str, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ran(user_tasks.say).logs("job", regex=regex)
    assert capfd.readouterr().out == expected


def test_what_is_no_regex_is_refused() -> None:
    with pytest.raises(run.ConfigError, match=r"'\(' is not a regular expression"):
        ran(user_tasks.say).logs("job", regex="(")


def test_lines_of_a_group_say_whose_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    tasks = [run.Partial(user_tasks.say, lines=1, word="a"), run.Partial(user_tasks.say, lines=1, word="b")]
    experiment = ran(tasks)
    experiment.logs("job")
    assert capfd.readouterr().out == "say │ a 0\nsay_1 │ b 0\n"
    experiment.logs("job", follow=True)
    assert sorted(capfd.readouterr().out.splitlines()) == ["say │ a 0", "say_1 │ b 0"]


def test_following_ends_with_the_job_and_misses_no_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gate = tmp_path / "gate"
    with run.Experiment("logs") as experiment:
        experiment.add(run.Partial(user_tasks.wait_for, path=str(gate)), name="job")
        experiment.run(detach=True)
    follower = threading.Thread(target=experiment.logs, args=("job",), kwargs={"follow": True})
    follower.start()
    printed = ""

    def first_line() -> bool:
        nonlocal printed
        printed += capfd.readouterr().out
        return "waiting\n" in printed

    until(first_line)
    assert follower.is_alive()
    gate.touch()
    follower.join(60)
    assert not follower.is_alive()
    assert printed + capfd.readouterr().out == "waiting\nseen\n"


def test_following_a_job_that_waits_for_another_begins_when_it_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with run.Experiment("logs") as experiment:
        experiment.add(run.Partial(user_tasks.wait_for, path=str(tmp_path / "gate")), name="first")
        experiment.add(run.Partial(user_tasks.say, lines=2), name="second", dependencies=["first"])
        experiment.run(detach=True)
    with pytest.raises(run.NotFoundError, match="no log yet of job 'second'"):
        experiment.logs("second")
    follower = threading.Thread(target=experiment.logs, args=("second",), kwargs={"follow": True})
    follower.start()
    (tmp_path / "gate").touch()
    follower.join(60)
    assert not follower.is_alive()
    assert capfd.readouterr().out == "line 0\nline 1\n"


def test_a_job_that_never_started_has_an_empty_log(capfd: pytest.CaptureFixture[str]) -> None:
    with run.Experiment("logs", clean_mode=True, raise_on_failure=False) as experiment:
        experiment.add(user_tasks.fail, name="a")
        experiment.add(user_tasks.add, name="b", dependencies=["a"])
        experiment.run()
    for follow in (False, True):
        experiment.logs("b", follow=follow)
    assert capfd.readouterr().out == ""


def test_a_job_that_nobody_has_is_an_error() -> None:
    with pytest.raises(run.NotFoundError, match="no job 'jop'; did you mean 'job'"):
        ran(user_tasks.say).logs("jop")


def test_all_attempts_are_in_the_log_one_after_the_other(capfd: pytest.CaptureFixture[str]) -> None:
    script = run.Script(inline='echo "attempt $NEMORUN_ATTEMPT"; exit 1')
    ran(script, executor=run.LocalExecutor(retries=2)).logs("job")
    assert capfd.readouterr().out == "attempt 1\nattempt 2\nattempt 3\n"


def test_the_error_of_a_job_that_was_retried_shows_its_last_attempt() -> None:
    with run.Experiment("logs", clean_mode=True) as experiment:
        script = run.Script(inline='echo "attempt $NEMORUN_ATTEMPT"; exit 1')
        experiment.add(script, run.LocalExecutor(retries=1), name="job")
        with pytest.raises(run.JobFailedError) as caught:
            experiment.run()
    assert caught.value.log_tail == "attempt 2"
    assert "logs/job_0.attempt2.log" in str(caught.value)


@pytest.mark.parametrize("follow", [False, True])
def test_a_rank_that_a_job_does_not_have_is_an_error(follow: bool, capfd: pytest.CaptureFixture[str]) -> None:
    experiment = ran(user_tasks.say)
    experiment.logs("job", rank=0, follow=follow)
    assert capfd.readouterr().out == "line 0\nline 1\nline 2\n"
    with pytest.raises(run.NotFoundError, match="no log of rank '1'; there are '0'"):
        experiment.logs("job", rank=1, follow=follow)


def test_a_printer_waits_while_it_is_paused_and_prints_nothing_once_stopped(
    capfd: pytest.CaptureFixture[str],
) -> None:
    printer = Printer()
    assert printer("a")
    with printer.paused():
        late = threading.Thread(target=printer, args=("b",))
        late.start()
        late.join(0.2)
        assert late.is_alive()
        assert capfd.readouterr().out == "a\n"
    late.join(10)
    assert capfd.readouterr().out == "b\n"
    printer.stop()
    assert not printer("c")
    assert capfd.readouterr().out == ""


def test_a_job_whose_lines_nobody_reads_is_seen_through(home: Path, tmp_path: Path) -> None:
    program = (
        "import nemo_run as run\nrun.run(run.Script(inline='seq 1 200000'), run.LocalExecutor(), name='x')"
    )
    path = tmp_path / "script.py"
    path.write_text(program)
    done = call(["sh", "-c", f"{sys.executable} {path} | head -n 1"])
    assert done.stdout == "x │ 1\n"
    assert "Exception in thread" not in done.stderr
    assert run.Experiment.from_title("x").status(return_dict=True)["x"]["status"].name == "SUCCEEDED"


def test_bytes_that_are_no_text_are_shown_as_such(capfd: pytest.CaptureFixture[str]) -> None:
    ran(run.Script(inline=r"printf 'a\377b\n\0c\n'")).logs("job")
    assert capfd.readouterr().out == "a�b\n\0c\n"


@pytest.mark.parametrize(
    ("secrets", "line", "expected"),
    [
        (["abc"], "x abc y", f"x {MASK} y"),
        (["abc", "abcdef"], "abcdef abc", f"{MASK} {MASK}"),
        (["a.c"], "abc a.c", f"abc {MASK}"),
        (["", "  ", "ab"], "  ab ", "  ab "),
        ([], "abc", "abc"),
    ],
)
def test_secrets_are_masked_the_longest_first(secrets: list[str], line: str, expected: str) -> None:
    assert masker(secrets)(line) == expected


@pytest.mark.parametrize("known", [["abc", "abcdef"], ["bcd", "xabcd"], ["abab", "bab"], ["aaa"]])
@pytest.mark.parametrize("text", ["x abcdef abc y", "xabcd xabc", "ababab", "aaaaaaa aa", "ab", ""])
def test_a_secret_is_masked_however_its_output_comes_in_pieces(known: list[str], text: str) -> None:
    longest_first = [secret.encode() for secret in worth_masking(known)]
    whole = masker(known)(text)
    for cut in range(len(text) + 1):
        pieces = [text[:cut].encode(), text[cut:].encode()]
        assert masked_in_pieces(pieces, longest_first) == whole


def masked_in_pieces(pieces: list[bytes], known: list[bytes]) -> str:
    """What `mask_stream` makes of pieces that it is given one by one."""
    (source, feed), (result, sink) = os.pipe(), os.pipe()
    masking = threading.Thread(target=mask_stream, args=(source, sink, known))
    masking.start()
    for piece in filter(None, pieces):
        until(lambda: not select.select([source], [], [], 0)[0], 10)  # it has taken the one before
        os.write(feed, piece)
    os.close(feed)
    masking.join()
    os.close(sink)
    with open(result, "rb") as file:
        os.close(source)
        return file.read().decode()
