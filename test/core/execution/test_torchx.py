"""Jobs run on TorchX's schedulers, and TorchX's apps on our executors."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import psutil
import pytest
import tasks
from contracts.executor import ExecutorContract, ended, prepare, wait_until
from torchx.components import utils
from torchx.runner import Runner
from torchx.schedulers import DEFAULT_SCHEDULER_MODULES, get_scheduler_factories
from torchx.schedulers.api import Stream
from torchx.specs import AppDef, AppState, BindMount, Role, macros

import nemo_run as run
from nemo_run.core.execution.base import Capability, Executor, Plan
from nemo_run.core.execution.torchx_session import _whole_lines, session
from nemo_run.testing import FakeExecutor, Fate

TEST = Path(__file__).parents[2]


def python(code: str, *args: str) -> str:
    """What a process of its own prints, which knows what tests know and has warnings for errors."""
    argv = [sys.executable, "-W", "error", "-c", code, *args]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TEST), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- TorchX's schedulers as executors -------------------------------------------------------------------


class TestLocalCwd(ExecutorContract):
    def executor(self, **fields: Any) -> Executor:
        return run.TorchXExecutor(scheduler="local_cwd", **fields)

    def refuse(self, plan: Plan) -> tuple[Plan, str]:
        folder = Path(plan.request["log_dir"]) / "nemo_run"
        folder.parent.mkdir(parents=True)
        folder.touch()
        return plan, "Not a directory"


def experiment(**options: Any) -> run.Experiment:
    return run.Experiment("torchx", run.TorchXExecutor(), clean_mode=True, **options)


def test_an_experiment_keeps_the_order_of_its_jobs_and_their_values(home: Path, tmp_path: Path) -> None:
    exp = experiment()
    for name, after in (("a", []), ("b", ["a"]), ("c", ["a"]), ("d", ["b", "c"])):
        note = run.Script(inline=f"echo {name} >> {tmp_path}/order; echo {name} runs")
        exp.add(note, name=f"note-{name}", dependencies=[f"note-{other}" for other in after])
        exp.add(run.Partial(tasks.double, ord(name)), name=name, dependencies=[f"note-{name}"])
    values = exp.run()
    assert {name: value for name, value in values.items() if len(name) == 1} == {
        name: 2 * ord(name) for name in "abcd"
    }
    order = (tmp_path / "order").read_text().split()
    assert (order[0], sorted(order[1:3]), order[3]) == ("a", ["b", "c"], "d")


def test_a_failure_is_told_with_its_exit_code_and_log_and_stops_what_depends_on_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exp = experiment()
    exp.add(run.Script(inline="echo so far; echo so good >&2; exit 7"), name="breaks")
    exp.add(run.Script(inline="true"), name="never", dependencies=["breaks"])
    with pytest.raises(run.JobFailedError) as caught:
        exp.run()
    assert (caught.value.exit_code, caught.value.log_tail) == (7, "so far\nso good")
    states = {name: entry["status"] for name, entry in exp.status(return_dict=True).items()}
    assert states == {"breaks": AppState.FAILED, "never": AppState.CANCELLED}
    capsys.readouterr()
    run.Experiment.from_id(exp.id).logs("breaks")
    assert capsys.readouterr().out == "so far\nso good\n"


def test_jobs_that_end_with_their_launcher_cannot_be_detached(home: Path) -> None:
    exp = experiment()
    exp.add(run.Script(inline="true"))
    with pytest.raises(run.UnsupportedError, match="end with the process that launched them"):
        exp.run(detach=True)
    assert not exp.path.exists()


def test_jobs_end_with_their_launcher_and_are_cancelled_for_whoever_looks_later(
    home: Path, tmp_path: Path
) -> None:
    code = """
import sys
from contracts.executor import prepare, wait_until
import nemo_run as run, os
plan = prepare(run.Script(inline=f"touch {sys.argv[1]}; exec sleep 600"), run.TorchXExecutor())
executor = plan.spec.members[0]
handle = executor.submit(plan)
wait_until(lambda: os.path.exists(sys.argv[1]), "it has started")
import json; print(json.dumps([executor.experiment_id, handle.to_json()]))
"""
    experiment_id, record = json.loads(python(code, str(tmp_path / "started")))
    [status] = run.TorchXExecutor().status([run.JobHandle.from_json(record)])
    assert (status.state, status.exit_code) == (AppState.CANCELLED, 143)
    assert not [p for p in psutil.process_iter() if told_of(p, experiment_id)]


def told_of(process: psutil.Process, word: str) -> bool:
    try:
        return any(word in value for value in process.environ().values())
    except psutil.Error:
        return False


def test_a_running_job_cannot_be_cancelled_by_another_process_and_it_says_so(home: Path) -> None:
    plan = prepare(run.Script(inline="sleep 600"), run.TorchXExecutor())
    executor = plan.spec.members[0]
    handle = executor.submit(plan)
    code = """
import json, sys
import nemo_run as run
handle = run.JobHandle.from_json(json.loads(sys.argv[1]))
[status] = run.TorchXExecutor().status([handle])
print(status.state)
try:
    run.TorchXExecutor().cancel(handle)
except run.SubmitError as exc:
    print(exc)
"""
    state, said = python(code, json.dumps(handle.to_json())).splitlines()
    assert state == "UNKNOWN"
    assert "known to the process that launched it alone" in said
    executor.cancel(handle)
    assert ended(executor, handle).state == AppState.CANCELLED


def test_cancel_does_not_wait_for_a_job_that_takes_its_time(home: Path, tmp_path: Path) -> None:
    goes_on = f"trap : TERM; touch {tmp_path}/on; until [ -e {tmp_path}/go ]; do sleep 0.05; done; exit 5"
    plan = prepare(run.Script(inline=goes_on), run.TorchXExecutor())
    executor = plan.spec.members[0]
    handle = executor.submit(plan)
    wait_until((tmp_path / "on").exists, "it has started")
    executor.cancel(handle)
    [status] = executor.status([handle])
    assert (status.state, status.message) == (AppState.RUNNING, "being cancelled")
    (tmp_path / "go").touch()
    assert ended(executor, handle).state == AppState.CANCELLED


def test_torchx_forgets_a_job_that_has_ended_so_that_it_never_signals_its_number_again(home: Path) -> None:
    plan = prepare(run.Script(inline="exit 3"), run.TorchXExecutor())
    executor = plan.spec.members[0]
    handle = executor.submit(plan)
    assert session("local_cwd").runner.status(handle.id) is not None
    end = ended(executor, handle)
    assert session("local_cwd").runner.status(handle.id) is None
    assert executor.status([handle]) == [end]


def test_signals_stay_with_the_program(home: Path) -> None:
    code = """
import signal
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
import nemo_run as run
assert run.run(run.Partial(abs, -3), run.TorchXExecutor()) == 3
assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
"""
    python(code)


@pytest.mark.parametrize(
    ("fields", "capability"),
    [
        ({"timeout": 5.0}, "timeout"),
        ({"monitor_resources": True}, "monitor_resources"),
        ({"memory_limit": "1G"}, "memory_limit"),
        ({"cpu_limit": 1}, "cpu_limit"),
        ({"retries": 1}, "retries"),
        ({"gpus": 1}, "gpus"),
        ({"image": "debian"}, "image"),
        ({"scheduler": "slurm", "timeout": 5.0}, "timeout"),
        ({"scheduler": "slurm", "shared_files": True, "env_vars": {"A": run.Secret("HOME")}}, "env_vars"),
        ({"scheduler": "slurm"}, "shared_files"),
    ],
)
def test_what_a_scheduler_cannot_do_is_refused_before_anything_starts(
    home: Path, fields: dict[str, Any], capability: str
) -> None:
    exp = run.Experiment("refused", run.TorchXExecutor(**fields), clean_mode=True)
    exp.add(run.Partial(tasks.double, 1))
    with pytest.raises(run.UnsupportedError) as caught:
        exp.run()
    assert caught.value.capability == capability
    assert not exp.path.exists()


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"scheduler": "local_cw"}, run.ConfigError, "did you mean 'local_cwd'"),
        ({"cfg": {"logdir": "x"}}, run.ConfigError, "no option 'logdir'; did you mean 'log_dir'"),
        ({"cfg": {"prepend_cwd": "yes"}}, run.ConfigError, "prepend_cwd, must be of type: bool"),
        ({"scheduler": "gcp_batch"}, run.MissingDependencyError, r"torchx\[gcp_batch\]"),
        ({"scheduler": "aws_batch"}, run.ConfigError, "queue, must be provided"),
    ],
)
def test_a_scheduler_that_is_not_there_or_takes_no_such_option_is_told_before_anything_starts(
    home: Path, fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    exp = run.Experiment("refused", run.TorchXExecutor(**fields), clean_mode=True)
    exp.add(run.Script(path="/bin/true", entrypoint="sh"))
    with pytest.raises(error, match=words):
        exp.dryrun(log=False)
    assert not exp.path.exists()


def test_a_plan_says_what_a_cluster_would_be_sent(home: Path) -> None:
    cluster = run.TorchXExecutor(
        scheduler="slurm",
        cfg={"partition": "long"},
        shared_files=True,
        memory_limit="1.5G",
        cpu_limit=3,
        gpus=2,
        retries=4,
    )
    text = prepare(run.Script(inline="echo $HOME"), cluster).text
    for line in ("--partition=long", "--cpus-per-task=3", "--mem=1536", "--gpus-per-task=2", "MAX_RETRIES=4"):
        assert line in text
    assert Capability.DETACH in cluster.capabilities


def test_secrets_reach_the_job_and_nothing_else(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary-7f3e9a"
    monkeypatch.setenv("TOKEN", canary)
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logging.root, "level", logging.DEBUG)
    exp = run.Experiment(
        "secret", run.TorchXExecutor(env_vars={"PASSWORD": run.Secret("TOKEN")}), clean_mode=True
    )
    exp.add(run.Partial(tasks.environment, ["PASSWORD"]), name="job")
    assert exp.run() == {"job": [canary.encode().hex()]}
    written = [
        path for path in home.rglob("*") if path.is_file() and canary in path.read_text(errors="replace")
    ]
    assert written == []
    assert canary not in caplog.text
    assert "<Secret('TOKEN')>" in (exp.path / "job" / "plan.txt").read_text()


def test_expressions_for_the_node_are_expanded_there_and_path_is_what_was_asked_for(
    home: Path, tmp_path: Path
) -> None:
    show = run.Script(
        path=str(tmp_path / "show.sh"),
        entrypoint="/bin/sh",
        args=[run.Expand("$(echo a; echo b)"), "$HOME"],
        env={"SUM": run.Expand("$((1 + 2))"), "PATH": "/usr/bin:/bin"},
    )
    (tmp_path / "show.sh").write_text('printf "%s|" "$1" "$2" "$SUM" "$PATH"; pwd')
    folder = tmp_path / "it's new $HOME"
    exp = run.Experiment("expand", run.TorchXExecutor(working_dir=str(folder)), clean_mode=True)
    exp.add(show, name="job")
    exp.run()
    log = (exp.path / "job" / "logs" / "job_0.log").read_text()
    assert log == f"a\nb|$HOME|3|/usr/bin:/bin|{folder}\n"


def test_what_torchx_would_take_for_its_macros_arrives_as_it_was_given(home: Path, tmp_path: Path) -> None:
    words = ["$$", "$$$", "${app_id}", "$replica_id", "${img_root}", "$"]
    (tmp_path / "show.sh").write_text('printf "%s|" "$M" "$@"')
    show = run.Script(path=str(tmp_path / "show.sh"), entrypoint="sh", args=words)
    exp = run.Experiment("macros", run.TorchXExecutor(env_vars={"M": "$$ ${app_id}"}), clean_mode=True)
    exp.add(show, name="show")
    exp.run()
    assert (exp.path / "show" / "logs" / "show_0.log").read_text() == "|".join(["$$ ${app_id}", *words, ""])


def test_an_option_of_the_users_says_where_logs_lie(home: Path, tmp_path: Path) -> None:
    executor = run.TorchXExecutor(cfg={"log_dir": str(tmp_path / "mine")})
    exp = run.Experiment("logs", executor, clean_mode=True)
    exp.add(run.Script(inline="echo here"), name="job")
    exp.run()
    assert (exp.path / "job" / "logs" / "job_0.log").resolve().is_relative_to(tmp_path / "mine")
    assert (exp.path / "job" / "logs" / "job_0.log").read_text() == "here\n"


# --- a scheduler whose jobs live elsewhere --------------------------------------------------------------


@pytest.fixture
def queue(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., run.TorchXExecutor]:
    """Makes executors for a scheduler that another distribution brings, as TorchX finds them."""
    info = tmp_path / "site" / "torchx_queue-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchx-queue\nVersion: 1\n")
    points = "[torchx.schedulers]\nqueue = torchx_queue:make\nbroken = torchx_queue:make_broken\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(info.parent), str(TEST)]))
    fields = {"scheduler": "queue", "shared_files": True}
    return lambda **more: run.TorchXExecutor(**{**fields, **more})


def test_a_detached_job_is_seen_through_by_another_process(
    queue: Callable[..., run.TorchXExecutor], tmp_path: Path
) -> None:
    exp = run.Experiment("queue", queue(), clean_mode=True)
    exp.add(run.Partial(tasks.double, 4), name="first")
    exp.add(run.Partial(tasks.double, 5), name="second", dependencies=["first"])
    exp.run(detach=True)
    code = "import sys, nemo_run as run; print(run.Experiment.from_id(sys.argv[1]).wait())"
    assert python(code, exp.id).splitlines()[-1] == "{'first': 8, 'second': 10}"


def test_what_becomes_of_a_job_elsewhere_is_told_in_the_schedulers_words(
    queue: Callable[..., run.TorchXExecutor], tmp_path: Path
) -> None:
    program = f"echo out; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo more; exit 9"
    plan = prepare(run.Script(inline=program), queue())
    executor = plan.spec.members[0]
    handle = executor.submit(plan)
    lines = executor.logs(handle, "job", follow=True)
    assert next(lines) == "out"
    [status] = executor.status([handle])
    assert status.state == AppState.RUNNING
    (tmp_path / "go").touch()
    assert list(lines) == ["more"]
    status = ended(executor, handle)
    assert (status.state, status.exit_code, status.message) == (AppState.FAILED, None, "exit code 9")
    assert list(executor.logs(handle, "job")) == ["out", "more"]


def test_a_job_elsewhere_is_found_by_its_token_among_jobs_that_have_numbers(
    queue: Callable[..., run.TorchXExecutor],
) -> None:
    plans = [prepare(run.Script(inline="exit 0"), queue()) for _ in range(3)]
    handles = [plan.spec.members[0].submit(plan) for plan in plans]
    for plan, handle in zip(plans, handles, strict=True):
        assert plan.spec.members[0].find(plan.spec.token) == handle
    assert queue().find("another/job/1") is None


def test_a_job_elsewhere_is_cancelled_and_twice_is_harmless(queue: Callable[..., run.TorchXExecutor]) -> None:
    plan = prepare(run.Script(inline="sleep 600"), queue())
    executor = plan.spec.members[0]
    handle = executor.submit(plan)
    executor.cancel(handle)
    executor.cancel(handle)
    assert ended(executor, handle).state == AppState.CANCELLED
    executor.cancel(handle)


def test_a_job_that_the_scheduler_does_not_know_is_unknown(queue: Callable[..., run.TorchXExecutor]) -> None:
    handle = run.JobHandle(executor="", id="queue://nemo_run/99", data={"name": "x"})
    [status] = queue().status([handle])
    assert (status.state, status.message) == (AppState.UNKNOWN, "TorchX's 'queue' knows no such job")
    queue().cancel(handle)


def test_retries_are_the_schedulers(queue: Callable[..., run.TorchXExecutor], tmp_path: Path) -> None:
    program = f"echo try >> {tmp_path}/tries; [ $(wc -l < {tmp_path}/tries) = 3 ]"
    plan = prepare(run.Script(inline=program), queue(retries=2))
    handle = plan.spec.members[0].submit(plan)
    assert ended(plan.spec.members[0], handle).state == AppState.SUCCEEDED
    assert (tmp_path / "tries").read_text() == "try\n" * 3


def test_a_scheduler_that_cannot_be_reached_is_told_before_anything_starts(
    queue: Callable[..., run.TorchXExecutor],
) -> None:
    with pytest.raises(run.ConfigError, match="the queue does not answer"):
        prepare(run.Script(inline="true"), queue(scheduler="broken"))


def test_lines_that_torchx_broke_in_two_are_whole_again() -> None:
    assert list(_whole_lines(["a", "b\n", "\n", "c\r\n", "d", "e"])) == ["ab", "", "c\r", "de"]


def test_a_fork_of_the_launcher_neither_ends_its_jobs_nor_takes_them_for_ended(home: Path) -> None:
    code = """
import os, sys, multiprocessing, warnings
from contracts.executor import ended, prepare
import nemo_run as run
plan = prepare(run.Script(inline="exec sleep 600"), run.TorchXExecutor())
executor = plan.spec.members[0]
handle = executor.submit(plan)
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, as is tested
def look():
    assert executor.status([handle])[0].state == run.AppState.UNKNOWN
    import atexit; atexit._run_exitfuncs()
child = multiprocessing.get_context("fork").Process(target=look)
child.start(); child.join()
assert child.exitcode == 0
assert executor.status([handle])[0].state == run.AppState.RUNNING
executor.cancel(handle)
assert ended(executor, handle).state == run.AppState.CANCELLED
"""
    python(code)


# --- our executors as a scheduler of TorchX's -----------------------------------------------------------


def runner(executor: Executor | None = None) -> Runner:
    chosen = executor or run.LocalExecutor()
    return Runner("mine", {"nemo": lambda session_name, **_: run.ExecutorScheduler(session_name, chosen)})


def finish(torchx: Runner, handle: str) -> Any:
    status = torchx.wait(handle, wait_interval=0.02)
    assert status is not None
    return status


# TorchX reads the docstrings of components by a library that asks for `ast.Str`, gone in Python 3.14.
@pytest.mark.filterwarnings("ignore:ast.Str is deprecated:DeprecationWarning")
def test_a_component_of_torchx_runs(home: Path) -> None:
    torchx = runner()
    handle = torchx.run_component("utils.echo", ["--msg", "a  b ${x} 'c'"], "nemo")
    status = finish(torchx, handle)
    assert status.state == AppState.SUCCEEDED
    assert [role.replicas[0].state for role in status.roles] == [AppState.SUCCEEDED]
    assert list(torchx.log_lines(handle, "echo")) == ["a  b ${x} 'c'\n"]


def test_a_failure_has_the_executors_words(home: Path) -> None:
    torchx = runner()
    status = finish(torchx, torchx.run(utils.sh("sh", "-c", "exit 3"), "nemo"))
    assert (status.state, status.msg) == (AppState.FAILED, "exit code 3")
    assert "FAILED" in repr(status)
    with pytest.raises(Exception, match="job did not succeed"):
        status.raise_for_status()


def command(text: str, **fields: Any) -> AppDef:
    role = Role(name="main", image="", entrypoint="/bin/sh", args=["-c", text, "sh"], **fields)
    return AppDef(name="some app/of mine", roles=[role])


def test_replicas_start_together_and_know_who_they_are(home: Path, tmp_path: Path) -> None:
    meet = f"touch {tmp_path}/$1; until [ -e {tmp_path}/0 -a -e {tmp_path}/1 ]; do sleep 0.05; done"
    app = command(f"{meet}; echo $1 $ME", num_replicas=2, env={"ME": macros.app_id})
    app.roles[0].args.append(macros.replica_id)
    torchx = runner()
    handle = torchx.run(app, "nemo")
    assert finish(torchx, handle).state == AppState.SUCCEEDED
    app_id = handle.rpartition("/")[2]
    for replica in (0, 1):
        assert list(torchx.log_lines(handle, "main", replica)) == [f"{replica} {app_id}\n"]
    with pytest.raises(run.NotFoundError, match="main-2"):
        torchx.log_lines(handle, "main", 2)


def test_an_app_is_seen_and_ended_from_another_process(home: Path) -> None:
    torchx = runner()
    handle = torchx.run(command("echo begun; exec sleep 600"), "nemo")
    code = """
import sys
from torchx.runner import Runner
import nemo_run as run
make = lambda session_name, **_: run.ExecutorScheduler(session_name, run.LocalExecutor())
torchx = Runner("mine", {"nemo": make})
handle = sys.argv[1]
print([app.app_handle for app in torchx.list("nemo")] == [handle], torchx.describe(handle).roles[0].args[1])
print(next(iter(torchx.log_lines(handle, "main", should_tail=True))), end="")
torchx.cancel(handle)
print(torchx.wait(handle, wait_interval=0.02).state)
"""
    assert python(code, handle).splitlines() == ["True echo begun; exec sleep 600", "begun", "CANCELLED"]
    assert finish(torchx, handle).state == AppState.CANCELLED
    torchx.cancel(handle)


def test_an_app_goes_on_when_its_runner_is_closed(home: Path, tmp_path: Path) -> None:
    torchx = runner()
    handle = torchx.run(command(f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo done"), "nemo")
    torchx.close()
    (tmp_path / "go").touch()
    again = runner()
    assert finish(again, handle).state == AppState.SUCCEEDED
    assert list(again.log_lines(handle, "main")) == ["done\n"]


def test_logs_are_followed_and_filtered(home: Path, tmp_path: Path) -> None:
    torchx = runner()
    handle = torchx.run(
        command(f"echo a1; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo b2; echo a3"), "nemo"
    )
    lines = iter(torchx.log_lines(handle, "main", should_tail=True, regex="^a"))
    assert next(lines) == "a1\n"
    (tmp_path / "go").touch()
    assert list(lines) == ["a3\n"]
    with pytest.raises(ValueError, match="one log"):
        torchx.log_lines(handle, "main", streams=Stream.STDERR)


def test_an_executors_own_fields_hold_for_apps_too(home: Path, tmp_path: Path) -> None:
    executor = run.LocalExecutor(
        working_dir=str(tmp_path / "new"), env_vars={"A": "executor", "B": run.Expand("$((2 * 3))")}
    )
    torchx = runner(executor)
    tries = "echo $A $B; pwd; echo >> tries; [ $(wc -l < tries) = 2 ]"
    handle = torchx.run(command(tries, env={"A": "app"}, max_retries=1), "nemo")
    status = finish(torchx, handle)
    assert (status.state, status.num_restarts) == (AppState.SUCCEEDED, 1)
    assert list(torchx.log_lines(handle, "main")) == ["app 6\n", f"{tmp_path}/new\n"] * 2


def test_a_dry_run_shows_the_executors_plan_and_leaves_nothing(home: Path) -> None:
    info = runner().dryrun(command("echo hello"), "nemo")
    assert "echo hello" in str(info)
    assert not home.exists()


def test_a_refused_app_leaves_nothing(home: Path, tmp_path: Path) -> None:
    torchx = runner(FakeExecutor(folder=str(tmp_path / "cluster"), default=Fate(refusal="no room")))
    with pytest.raises(run.SubmitError, match="no room"):
        torchx.run(command("true"), "nemo")
    assert torchx.list("nemo") == []
    assert list((home / "torchx").iterdir()) == []


def test_an_app_whose_submission_was_never_answered_is_found_by_its_id(home: Path) -> None:
    torchx = runner()
    handle = torchx.run(command("exit 4"), "nemo")
    finish(torchx, handle)
    [record] = (home / "torchx").glob("*/app.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "handle": None}))
    assert finish(runner(), handle).msg == "exit code 4"


def test_a_record_that_was_spoilt_hides_no_other_app(home: Path) -> None:
    torchx = runner()
    handles = [torchx.run(command("true"), "nemo") for _ in range(2)]
    (home / "torchx" / handles[0].rpartition("/")[2] / "app.json").write_text("{")
    assert [app.app_handle for app in torchx.list("nemo")] == handles[1:]
    assert torchx.status(handles[0]) is None
    assert torchx.status("nemo://mine/no-such-app") is None


@pytest.mark.parametrize(
    ("executor", "app", "capability"),
    [
        (run.LocalExecutor(launcher="default"), command("true"), "launcher"),
        (run.LocalExecutor(), command("true", mounts=[BindMount("/a", "/b")]), "mounts"),
        (run.TorchXExecutor(), command("true", num_replicas=2), "GROUPS"),
    ],
)
def test_what_an_executor_cannot_do_for_an_app_is_refused(
    home: Path, executor: Executor, app: AppDef, capability: str
) -> None:
    with pytest.raises(run.UnsupportedError) as caught:
        runner(executor).run(app, "nemo")
    assert caught.value.capability == capability
    assert not home.exists()


def test_torchx_schedulers_are_all_still_there() -> None:
    assert [point for point in entry_points(group="torchx.schedulers") if "nemo" in point.value] == []
    assert set(get_scheduler_factories()) >= set(DEFAULT_SCHEDULER_MODULES)
