"""`nemo experiment …` as users type it: each command and option, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import user_tasks
from programs import NEMO, call, failed, nemo, nemo_json, python, strict_json, succeeded, until, write

import nemo_run as run

pytestmark = pytest.mark.usefixtures("home")


def ran(title: str = "train", **tasks: Any) -> run.Experiment:
    """An experiment whose jobs have been run, failures included."""
    with run.Experiment(title, clean_mode=True, raise_on_failure=False) as experiment:
        for name, task in tasks.items():
            experiment.add(task, name=name)
        experiment.run()
    return experiment


def going_on(gate: Path, title: str = "train", jobs: int = 1) -> run.Experiment:
    """An experiment whose jobs run until the gate is there; `after` waits for the first."""
    with run.Experiment(title, clean_mode=True) as experiment:
        for number in range(jobs):
            experiment.add(run.Partial(user_tasks.wait_for, path=str(gate)), name=f"job{number}")
        experiment.add(user_tasks.add, name="after", dependencies=["job0"])
        experiment.run(detach=True)
    until(lambda: all(states(experiment)[f"job{number}"] == "RUNNING" for number in range(jobs)))
    return experiment


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that jobs wait for; it is there in the end, so that none outlives its test for long."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def states(experiment: run.Experiment) -> dict[str, str]:
    return {record["id"]: record["state"] for record in nemo_json("status", experiment.id)}


def without_times(text: str) -> str:
    """A printed text with what changes from run to run replaced by as many other letters."""
    text = re.sub(r"_\d{13}", "_" + 13 * "0", text)
    return re.sub(r"\b\d+(\.\d)? s\b", "0.1 s", text)


# --- list -----------------------------------------------------------------------------------------------


def test_list_of_nothing_says_so() -> None:
    assert succeeded(nemo("list")).stdout == "No experiments.\n"
    assert succeeded(nemo("list", "train")).stdout == "No experiments of title 'train'.\n"
    assert nemo_json("list") == []


def test_list_shows_the_newest_first() -> None:
    ran("train", job=user_tasks.add)
    ran("evaluate the model", one=user_tasks.fail, two=user_tasks.add)
    assert without_times(succeeded(nemo("list")).stdout) == (
        "id                                state      jobs  age\n"
        "evaluate the model_0000000000000  FAILED     2     0.1 s\n"
        "train_0000000000000               SUCCEEDED  1     0.1 s\n"
    )


def test_list_takes_a_title_a_state_and_a_limit() -> None:
    good = [ran("good", job=user_tasks.add).id for _ in range(3)]
    bad = ran("bad", job=user_tasks.fail).id

    def ids(*args: Any) -> list[str]:
        return [row["id"] for row in nemo_json("list", *args)]

    assert ids() == [bad, *reversed(good)]
    assert ids("good") == good[::-1]
    assert ids("--state", "failed") == [bad]
    assert ids("--state", "SUCCEEDED", "--limit", "2") == [good[2], good[1]]
    assert ids("good", "--state", "FAILED") == []
    assert ids("--limit", "0") == ids()
    limited = succeeded(nemo("list", "--limit", "1"))
    assert len(limited.stdout.splitlines()) == 2
    assert limited.stderr == "The newest 1; --limit 0 shows all.\n"
    assert succeeded(nemo("list", "good", "--state", "FAILED")).stdout == (
        "No experiments of title 'good' in state FAILED.\n"
    )
    assert "no state 'FAILD'; did you mean 'FAILED'?" in failed(nemo("list", "--state", "faild"))


def test_list_in_json_has_what_a_script_needs() -> None:
    experiment = ran("it's a title", job=user_tasks.add)
    (row,) = nemo_json("list")
    assert row["id"] == experiment.id
    assert (row["title"], row["state"], row["jobs"]) == ("it's a title", "SUCCEEDED", 1)
    assert row["created"] == int(experiment.id.rpartition("_")[2]) / 1000


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}', None])
def test_an_experiment_that_cannot_be_read_is_shown_and_hides_no_other(damage: str | None) -> None:
    bad, good = ran("bad", job=user_tasks.add), ran("good", job=user_tasks.add)
    record = bad.path / "experiment.json"
    record.unlink() if damage is None else record.write_text(damage)
    rows = {row["id"]: row for row in nemo_json("list")}
    assert rows[good.id]["state"] == "SUCCEEDED"
    if damage is not None:
        assert rows[bad.id]["state"] == "UNKNOWN"
        listed = succeeded(nemo("list"))
        assert re.search(rf"^{bad.id} +UNKNOWN +unreadable", listed.stdout, re.M)
        assert len(listed.stderr.splitlines()) == 1
        for command in (["status"], ["results"], ["logs"], ["show"], ["wait"], ["cancel", "--all"]):
            message = failed(nemo(command[0], bad.id, *command[1:]))
            assert "newer nemo_run" in message if damage.endswith("99}") else "cannot read" in message
            assert len(message.splitlines()) == 1
        succeeded(nemo("delete", "--yes", bad.id))
        assert not bad.path.exists()
    assert nemo_json("results", "good") == {"job": 3}


# --- status ---------------------------------------------------------------------------------------------


def test_status_shows_each_job_with_its_exit_code_and_message() -> None:
    with run.Experiment("train", clean_mode=True, raise_on_failure=False) as experiment:
        experiment.add(user_tasks.add, name="prepare")
        experiment.add(user_tasks.fail, name="fit", dependencies=["prepare"])
        experiment.add(user_tasks.add, name="report", dependencies=["fit"])
        experiment.run()
    printed = succeeded(nemo("status", "train")).stdout
    assert without_times(printed) == (
        "Experiment train_0000000000000\n"
        "job      state      time   exit  message\n"
        "prepare  SUCCEEDED  0.1 s  0\n"
        "fit      FAILED     0.1 s  1     exit code 1\n"
        "report   CANCELLED               never started, because job 'fit' is FAILED\n"
    )
    prepare, fit, report = nemo_json("status", experiment.id)
    assert (prepare["id"], prepare["state"], prepare["exit_code"]) == ("prepare", "SUCCEEDED", 0)
    assert (fit["state"], fit["exit_code"]) == ("FAILED", 1)
    assert (report["state"], report["started"], report["handle"]) == ("CANCELLED", None, None)


def test_status_of_what_is_going_on(gate: Path) -> None:
    experiment = going_on(gate)
    assert states(experiment) == {"job0": "RUNNING", "after": "PENDING"}
    printed = succeeded(nemo("status", "train")).stdout
    assert re.search(r"^after  PENDING$", printed, re.M)
    gate.touch()
    succeeded(nemo("wait", "train"))
    assert set(states(experiment).values()) == {"SUCCEEDED"}


# --- naming an experiment -------------------------------------------------------------------------------


def test_an_experiment_is_named_by_id_by_title_or_by_how_its_id_begins() -> None:
    ran("train", job=run.Partial(user_tasks.give, value=1))
    newest = ran("train", job=run.Partial(user_tasks.give, value=2))
    other = ran("evaluate", job=run.Partial(user_tasks.give, value=3))
    for name, value in ((newest.id, 2), ("train", 2), ("eval", 3), (other.id[:-1], 3)):
        assert nemo_json("results", name) == {"job": value}
    message = failed(nemo("status", "trai"))
    assert message.startswith("nemo: no single experiment begins with 'trai'")
    assert newest.id in message


@pytest.mark.parametrize(
    "title",
    [
        "with spaces",
        "a/b",
        "../up",
        "it's",
        'say "x"',
        "ünïcödé 💥",
        "$HOME;ls",
        "-dash",
        ".hidden",
        "x" * 300,
    ],
)
def test_an_experiment_of_any_title_can_be_named(title: str) -> None:
    experiment = ran(title, job=user_tasks.add)
    for name in (title, experiment.id):
        assert strict_json(succeeded(nemo("results", "--json", "--", name)).stdout) == {"job": 3}
    assert [row["title"] for row in nemo_json("list")] == [title]


@pytest.mark.parametrize("name", ["tain", "", "..", "../experiments", "train/x", "\n"])
@pytest.mark.parametrize(
    "command", ["status", "logs", "cancel", "results", "wait", "show", "delete"]
)  # each opens an experiment
def test_a_name_that_nothing_has_is_one_message(command: str, name: str) -> None:
    ran("train", job=user_tasks.add)
    message = failed(nemo(command, name))
    assert message.startswith("nemo: no experiment ")
    assert "'train'" in message
    assert len(message.splitlines()) == 1


def test_an_unknown_job_is_one_message() -> None:
    ran("train", fit=user_tasks.add, report=user_tasks.add)
    for command in ("logs", "cancel", "results", "show"):
        message = failed(nemo(command, "train", "rport"))
        assert message == "nemo: no job 'rport'; did you mean 'report'?\n"
        assert "no job '2'; there are 'fit', 'report'" in failed(nemo(command, "train", "2"))


# --- logs -----------------------------------------------------------------------------------------------


def test_logs_prints_the_first_job_or_the_one_named_by_id_or_number() -> None:
    ran(
        "train",
        a=run.Partial(user_tasks.say, lines=2),
        b=run.Partial(user_tasks.say, lines=1, word="other"),
    )
    assert succeeded(nemo("logs", "train")).stdout == "line 0\nline 1\n"
    for job in ("b", "1"):
        assert succeeded(nemo("logs", "train", job)).stdout == "other 0\n"
    assert succeeded(nemo("logs", "train", "--regex", "1$")).stdout == "line 1\n"
    assert succeeded(nemo("logs", "train", "-f")).stdout == "line 0\nline 1\n"
    lines = succeeded(nemo("logs", "train", "b", "--json")).stdout.splitlines()
    assert list(map(strict_json, lines)) == [{"job": "b", "role": "b", "rank": 0, "line": "other 0"}]
    assert "is not a regular expression" in failed(nemo("logs", "train", "--regex", "("))


def test_logs_of_a_group_can_be_narrowed_to_a_member() -> None:
    tasks = [run.Partial(user_tasks.say, lines=1, word=word) for word in ("a", "b")]
    ran("train", pair=tasks)
    assert succeeded(nemo("logs", "train")).stdout == "say │ a 0\nsay_1 │ b 0\n"
    assert succeeded(nemo("logs", "train", "--role", "say_1")).stdout == "say_1 │ b 0\n"
    assert "no role 'x'; there are 'say', 'say_1'" in failed(nemo("logs", "train", "--role", "x"))
    assert succeeded(nemo("logs", "train", "--rank", "0")).stdout == "say │ a 0\nsay_1 │ b 0\n"
    assert failed(nemo("logs", "train", "--rank", "1")) == "nemo: no log of rank '1'; there are '0'\n"


def test_logs_follow_a_job_to_its_end(gate: Path) -> None:
    going_on(gate)
    command = [NEMO, "experiment", "logs", "-f", "train"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "waiting\n"
        gate.touch()
        assert follower.stdout.read() == "seen\n"
    assert follower.returncode == 0


def test_logs_of_a_job_that_has_not_started_say_so(gate: Path) -> None:
    going_on(gate)
    assert failed(nemo("logs", "train", "after")) == "nemo: no log yet of job 'after'\n"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_seen_enough_is_no_error(lines: int) -> None:
    ran("train", job=run.Partial(user_tasks.say, lines=lines))
    for command in ("logs", "list", "show", "status"):
        name = "" if command == "list" else "train"
        done = call(["sh", "-c", f"{NEMO} experiment {command} {name} | head -n 1"])
        assert len(done.stdout.splitlines()) == 1
        assert done.stderr == ""


# --- results --------------------------------------------------------------------------------------------


def test_results_are_shown_and_are_json_whatever_they_are() -> None:
    experiment = ran(
        "train",
        plain=run.Partial(user_tasks.give, value={"loss": 0.5, "steps": [1, 2]}),
        odd=user_tasks.give_odd,
        model=user_tasks.give_model,
        lost=user_tasks.give_unpicklable,
        script=run.Script(inline="true"),
        bad=user_tasks.fail,
    )
    values = nemo_json("results", "train")
    pickled = experiment.path / "model" / "results" / "model_0.pkl"
    assert values == {
        "plain": {"loss": 0.5, "steps": [1, 2]},
        "odd": {"nan": "nan", "inf": "-inf", "pair": [1, [2, [3]]], "keys": {"(1, 2)": "a", "3": None}},
        "model": {"type": "user_tasks.Model", "path": str(pickled)},
        "lost": {
            "type": "user_tasks.Unpicklable",
            "reason": "TypeError: it holds an open connection",
            "repr": "<Unpicklable>",
        },
        "script": None,
    }
    assert succeeded(nemo("results", "train")).stdout == (
        "job     value\n"
        "plain   {'loss': 0.5, 'steps': [1, 2]}\n"
        "odd     {'nan': nan, 'inf': -inf, 'pair': (1, [2, (3,)]), 'keys': {(1, 2): 'a', 3: None}}\n"
        f"model   <user_tasks.Model, pickled in {pickled}>\n"
        "lost    <user_tasks.Unpicklable, not kept: TypeError: it holds an open connection>\n"
        "script  None\n"
    )
    assert nemo_json("results", "train", "plain") == {"plain": {"loss": 0.5, "steps": [1, 2]}}


def test_results_of_a_job_without_one_say_why(gate: Path) -> None:
    ran("bad", job=user_tasks.fail)
    assert "ValueError: no such data set" in failed(nemo("results", "bad", "job"))
    assert succeeded(nemo("results", "bad")).stdout.startswith("No job has succeeded; see `nemo experiment")
    assert nemo_json("results", "bad") == {}
    going_on(gate, "later")
    assert failed(nemo("results", "later", "job0")) == "nemo: no value yet of job 'job0'\n"


# --- wait and cancel ------------------------------------------------------------------------------------


def test_wait_ends_with_the_jobs_and_tells_failure_by_its_exit_code(gate: Path) -> None:
    going_on(gate)
    with subprocess.Popen([NEMO, "experiment", "wait", "train"], stdout=subprocess.PIPE) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        gate.touch()
        assert waiting.communicate(timeout=60)[0] == b"2 jobs succeeded.\n"
    assert waiting.returncode == 0
    assert [record["state"] for record in nemo_json("wait", "train")] == ["SUCCEEDED"] * 2

    bad = ran("bad", job=user_tasks.fail)
    message = failed(nemo("wait", "bad"))
    assert message.startswith(f"nemo: job 'job' of experiment {bad.id} failed: exit code 1\n")
    assert "ValueError: no such data set" in message
    done = nemo("wait", "bad", "--json")
    assert done.returncode == 1
    assert strict_json(done.stdout)[0]["state"] == "FAILED"


def test_wait_takes_over_from_a_launcher_that_was_killed(tmp_path: Path, gate: Path) -> None:
    script = write(
        tmp_path / "script.py",
        f"""
        import nemo_run as run

        def first():
            import os, time
            while not os.path.exists({str(gate)!r}):
                time.sleep(0.01)

        def second():
            return "second"

        if __name__ == "__main__":
            with run.Experiment("orphaned") as experiment:
                experiment.add(first, name="first")
                experiment.add(second, name="second", dependencies=["first"])
                experiment.run()
        """,
    )
    with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL) as launcher:
        until(lambda: [row["state"] for row in nemo_json("list")] == ["RUNNING"])
        launcher.kill()
    gate.touch()
    assert succeeded(nemo("wait", "orphaned")).stdout == "2 jobs succeeded.\n"
    assert nemo_json("results", "orphaned") == {"first": None, "second": "second"}


def test_cancel_ends_a_job_and_what_waits_for_it(gate: Path) -> None:
    experiment = going_on(gate, jobs=2)
    message = failed(nemo("cancel", "train"))
    assert message == f"nemo: experiment {experiment.id!r} has 3 jobs; name one, or give --all\n"
    assert succeeded(nemo("cancel", "train", "job0")).stdout == "job0: CANCELLED (cancelled)\n"
    until(lambda: states(experiment)["after"] == "CANCELLED")
    assert states(experiment)["job1"] == "RUNNING"
    (record,) = nemo_json("cancel", "train", "1")
    assert (record["id"], record["state"]) == ("job1", "CANCELLED")
    for again in (["job0"], ["--all"]):
        assert succeeded(nemo("cancel", "train", *again)).stdout == "Nothing to cancel: it has ended.\n"
    assert nemo_json("cancel", "train", "--all") == []
    assert "JobCancelled" not in failed(nemo("wait", "train"))


def test_cancel_all_ends_everything(gate: Path) -> None:
    going_on(gate, jobs=2)
    printed = succeeded(nemo("cancel", "--all", "train")).stdout
    assert sorted(printed.splitlines()) == [
        "after: CANCELLED (cancelled before it started)",
        "job0: CANCELLED (cancelled)",
        "job1: CANCELLED (cancelled)",
    ]
    assert nemo_json("list")[0]["state"] == "CANCELLED"


def test_jobs_on_an_executor_of_a_users_class_can_be_looked_at_and_cancelled(tmp_path: Path) -> None:
    """The class is defined in the launching script, which these commands have never seen."""
    script = write(
        tmp_path / "script.py",
        f"""
        import nemo_run as run

        class Mine(run.Executor):
            def __init__(self, note, **kwargs):
                super().__init__(**kwargs)
                self.note = note

            def cancel(self, handle):
                with open({str(tmp_path / "cancelled")!r}, "w") as file:
                    file.write(self.note)
                super().cancel(handle)

        def train():
            import time
            print("training", flush=True)
            time.sleep(100)

        run.run(train, Mine("as I like it"), name="mine", detach=True)
        """,
    )
    succeeded(python(script))
    until(lambda: nemo_json("status", "mine")[0]["state"] == "RUNNING")
    until(lambda: succeeded(nemo("logs", "mine")).stdout == "training\n")
    assert succeeded(nemo("cancel", "mine")).stdout == "mine: CANCELLED (cancelled)\n"
    assert (tmp_path / "cancelled").read_text() == "as I like it"


# --- show -----------------------------------------------------------------------------------------------


def test_show_tells_what_an_experiment_is(tmp_path: Path) -> None:
    with run.Experiment("train", clean_mode=True) as experiment:
        experiment.add(run.Partial(user_tasks.add, a=4), run.LocalExecutor(timeout=60), name="one")
        experiment.add(user_tasks.add, name="two", dependencies=["one"])
        experiment.run()
    printed = succeeded(nemo("show", "train")).stdout
    assert printed.startswith(f"Experiment {experiment.id}\n  title     train\n  created   ")
    for line in (
        f"  launched  from {Path.cwd()}",
        f"  folder    {experiment.path}",
        "Job one: SUCCEEDED",
        '        "_target_": "user_tasks.add",',
        '        "a": 4',
        "    # timeout: 60",
        "Job two: SUCCEEDED\n  after     one",
    ):
        assert f"{line}\n" in printed
    whole = nemo_json("show", "train")
    assert [job["id"] for job in whole["jobs"]] == ["one", "two"]
    assert whole["jobs"][0]["task"]["one"]["a"] == 4
    assert whole["jobs"][0]["executor"][0]["timeout"] == 60
    assert whole["jobs"][0]["plan"] == (experiment.path / "one" / "plan.txt").read_text()
    assert whole["jobs"][1]["record"]["state"] == "SUCCEEDED"
    assert [job["id"] for job in nemo_json("show", "train", "two")["jobs"]] == ["two"]


def test_show_tells_the_commit_and_the_changes_it_was_launched_with(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.com", "-C", str(tmp_path)]
    script = write(tmp_path / "script.py", "import nemo_run as run\nrun.run(print, run.LocalExecutor())\n")
    for command in (["init", "-q"], ["add", "script.py"], ["commit", "-qm", "first"]):
        succeeded(call([*git, *command]))
    succeeded(python(script, cwd=tmp_path))
    commit = succeeded(call([*git, "rev-parse", "HEAD"])).stdout.strip()
    assert f"  commit    {commit}\n" in succeeded(nemo("show", "builtins.print")).stdout
    assert "no uncommitted change" in failed(nemo("show", "--diff", "builtins.print"))
    script.write_text(script.read_text() + "# changed\n")
    succeeded(python(script, cwd=tmp_path))
    assert (
        f"{commit}, with uncommitted changes (--diff)\n" in succeeded(nemo("show", "builtins.print")).stdout
    )
    assert "\n+# changed\n" in succeeded(nemo("show", "--diff", "builtins.print")).stdout
    assert "+# changed" in nemo_json("show", "--diff", "builtins.print")["diff"]


# --- delete and gc --------------------------------------------------------------------------------------


def test_delete_asks_and_removes_everything() -> None:
    experiment = ran("train", job=user_tasks.add)
    refused = nemo("delete", "train")
    assert refused.returncode == 1
    assert experiment.path.exists()
    confirmed = subprocess.run(
        [NEMO, "experiment", "delete", "train"], input="y\n", capture_output=True, text=True
    )
    assert confirmed.returncode == 0
    assert confirmed.stdout.strip() == f"Deleted {experiment.id}."
    assert not experiment.path.exists()
    again = ran("train", job=user_tasks.add)
    assert nemo_json("delete", "--yes", "train") == {"deleted": again.id}
    assert nemo_json("list") == []


def test_delete_is_refused_while_a_job_runs(gate: Path) -> None:
    experiment = going_on(gate)
    message = failed(nemo("delete", "-y", "train"))
    assert message == (
        f"nemo: experiment {experiment.id!r} still runs job0; end it first:"
        f" nemo experiment cancel --all {experiment.id}\n"
    )
    succeeded(nemo("cancel", "--all", "train"))
    until(lambda: nemo("delete", "-y", "train").returncode == 0)


def test_gc_removes_what_was_left_half_made(home: Path) -> None:
    experiment = ran("train", job=user_tasks.add)
    left = experiment.path.with_name(f".trash-{experiment.id}.1")
    shutil.copytree(experiment.path, left)
    assert nemo_json("gc") == [str(left)]
    assert not left.exists()
    assert succeeded(nemo("gc")).stdout == "Removed 0 unfinished folders.\n"
    assert nemo_json("results", "train") == {"job": 3}


# --- the command itself ---------------------------------------------------------------------------------


def test_help_fits_80_columns_and_names_every_command() -> None:
    printed = succeeded(nemo("--help")).stdout
    assert printed == (
        "Usage: nemo experiment [OPTIONS] COMMAND [ARGS]...\n"
        "\n"
        "  Look at experiments; end, finish or delete them.\n"
        "\n"
        "Options:\n"
        "  -h, --help  Show this message and exit.\n"
        "\n"
        "Commands:\n"
        "  list     List experiments, newest first.\n"
        "  status   Show how the jobs of an experiment are doing.\n"
        "  logs     Print what a job has printed; the first job, if none is named.\n"
        "  cancel   Ask a job, or --all, to end, and wait until it has.\n"
        "  results  Print the values that jobs returned; pickles are only named.\n"
        "  wait     Wait until all jobs have ended; exit code 1 if one failed.\n"
        "  show     Show what an experiment is: its tasks, executors, plans, code.\n"
        "  delete   Delete an experiment and all it holds, unless a job of it runs.\n"
        "  gc       Remove code no experiment needs, and what killed processes left.\n"
    )
    for command in re.findall(r"^  (\w+)  ", printed, re.M):
        text = succeeded(nemo(command, "-h")).stdout
        assert "--json" in text
        assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["experiment", "frobnicate"], "No such command 'frobnicate'"),
        (["experiment", "status"], "Missing argument 'ID|TITLE'"),
        (["experiment", "list", "--limit", "many"], "Invalid value for '--limit'"),
        (["experiment", "list", "--limit", "-1"], "Invalid value for '--limit'"),
        (["experiment", "list", "--frobnicate"], "No such option: --frobnicate"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)
def test_a_wrong_command_line_is_explained_and_exits_with_2(args: list[str], words: str) -> None:
    assert words in failed(call([NEMO, *args]), code=2)


def test_the_command_has_two_names_and_is_a_module() -> None:
    version = f"nemo_run {run.__version__}\n"
    for command in ([NEMO], [str(Path(NEMO).with_name("nemorun"))], [sys.executable, "-m", "nemo_run"]):
        assert succeeded(call([*command, "--version"])).stdout == version


def test_a_terminal_that_cannot_show_a_letter_is_no_error() -> None:
    ran("ünïcödé 💥", job=run.Partial(user_tasks.say, lines=1, word="💥 │"))
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for args in (["list"], ["status", "ün"], ["logs", "ün"], ["show", "ün"], ["list", "--json"]):
        succeeded(nemo(*args, env=ascii_only))


def test_ctrl_c_ends_a_command_without_a_traceback(gate: Path) -> None:
    going_on(gate)
    command = [NEMO, "experiment", "logs", "-f", "train"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "waiting\n"
        follower.send_signal(signal.SIGINT)
        _, error = follower.communicate(timeout=60)
    assert follower.returncode != 0
    assert "Traceback" not in error


READERS = ["--help", "-h", "list", "status", "logs", "results", "show", "gc"]


@pytest.mark.parametrize("command", READERS)
def test_commands_that_only_read_import_neither_fiddle_nor_torchx(command: str) -> None:
    """Held for a job of a plain task and one of a script, as their records name Config and Script."""
    ran("train", job=run.Partial(user_tasks.add, a=2), script=run.Script(inline="true"))
    name = ["train"] if command in ("status", "logs", "results", "show") else []
    done = succeeded(
        call([sys.executable, "-X", "importtime", "-m", "nemo_run", "experiment", command, *name])
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "nemo_run" in imported
    assert not imported & {"fiddle", "torchx", "rich", "psutil", "yaml", "libcst"}


def test_cancel_imports_neither_fiddle_nor_torchx(gate: Path) -> None:
    going_on(gate)
    command = [sys.executable, "-X", "importtime", "-m", "nemo_run", "experiment", "cancel", "--all", "train"]
    done = succeeded(call(command))
    assert not re.search(r"\| +(fiddle|torchx)$", done.stderr, re.M)


def test_records_are_plain_json_that_a_person_can_read(home: Path) -> None:
    experiment = ran("train", job=user_tasks.add)
    for path in experiment.path.rglob("*.json"):
        strict_json(path.read_text())
    assert json.loads((experiment.path / "experiment.json").read_text())["title"] == "train"
    assert os.stat(home).st_mode & 0o777 == 0o700
