"""Whatever fails on the way to a cluster: each job runs once, its true end is known, and no line is lost."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from deeds import environment, lines, nemo, script, until
from slurms import Cluster
from sshds import Sshd

import nemo_run as run
from nemo_run.core.execution.slurm import SlurmExecutor

LONG = 60.0
#: Jobs by name, each with those that it waits for.
GRAPH: Mapping[str, list[str]] = {"a": [], "b": ["a"], "c": ["a", "b"], "d": []}
#: Notes that it runs in a file of its own, and prints some lines.
NOTE = 'echo {name} >>{trace}/{name}; for i in 1 2 3 4 5 6 7 8 9; do echo "{name} $i"; done'
#: A program over there stops here until it is let go, at its `count`-th call with such words.
_STOP = """\
case $* in {words})
    n=$(flock "$0" sh -c 'echo x >>"$0"; wc -l <"$0"' "$0.calls")
    [ "$((n))" != {count} ] || { touch "$0.stopped"; until [ -e "$0.go" ]; do sleep 0.02; done; }
esac
"""
#: Passes on what comes; after so many bytes it stops until it is let go.
_HALFWAY = """\
import os, sys, time
left, name = int(sys.argv[1]), sys.argv[2]
while chunk := os.read(0, 1 << 16):
    os.write(1, chunk)
    left -= len(chunk)
    while left < 0 and not os.path.exists(name + ".go"):
        open(name + ".stopped", "w").close()
        time.sleep(0.02)
"""
_PASS = f'{sys.executable} -ISc {shlex.quote(_HALFWAY)} {{count}} "$0" 2>/dev/null'
STOPS = {
    "before": _STOP + 'exec $real "$@"',
    "after": 'said=$($real "$@")\ncode=$?\n' + _STOP + '[ -z "$said" ] || echo "$said"\nexit $code',
    # What waits for more input is not to be waited for.
    "halfway in": f'mkfifo "$0.$$"; exec 3<&0; {_PASS} <&3 >"$0.$$" & exec 3<&-\nexec $real "$@" <"$0.$$"',
    "halfway out": f'$real "$@" | {_PASS}',
}


class Place:
    """A cluster behind an sshd, and a folder where its jobs leave traces."""

    def __init__(self, cluster: Cluster, sshd: Sshd, folder: Path) -> None:
        self.cluster, self.sshd = cluster, sshd
        self.there, self.trace = folder / "over there", folder / "trace"
        self.trace.mkdir()
        self._wrapper = folder

    def executor(self, **fields: Any) -> SlurmExecutor:
        tunnel = run.SSHTunnel(job_dir=str(self.there), **self.sshd.where)  # type: ignore[arg-type]
        return SlurmExecutor(**{"time": "5", "packager": run.Packager(), "tunnel": tunnel, **fields})

    def experiment(self, title: str = "faults", **fields: Any) -> run.Experiment:
        """The jobs of `GRAPH`."""
        made = run.Experiment(title, self.executor(**fields), clean_mode=True)
        for name, before in GRAPH.items():
            made.add(run.Script(inline=self.note(name)), name=name, dependencies=before)
        return made

    def note(self, name: str) -> str:
        return NOTE.format(name=name, trace=self.trace)

    # --- faults -----------------------------------------------------------------------------------------

    def stop_in(self, program: str, where: str, count: int, words: str = "*") -> None:
        """Have a program over there wait at some point of its work, if it is called with such words."""
        text = STOPS[where].replace("{count}", str(count)).replace("{words}", words)
        self._wrapper = self.sshd.wrap(program, text)

    def await_stop(self) -> None:
        until(Path(f"{self._wrapper}.stopped").exists, "the program has come there", LONG)

    def let_go(self) -> None:
        Path(f"{self._wrapper}.go").touch()

    def calls(self) -> int:
        return len(lines(Path(f"{self._wrapper}.calls")))

    def kill_sshd(self) -> None:
        """End it with all its connections; the commands go on."""
        self.sshd.stop()
        assert self.sshd.cut() >= 1

    # --- what became of it ------------------------------------------------------------------------------

    def check(self, experiment: run.Experiment) -> None:
        """See that each job ran exactly once, and that its true end and every line are here."""
        found = run.Experiment.from_id(experiment.id)
        states = found.status(return_dict=True)
        assert {name: states[name]["status"].name for name in GRAPH} == dict.fromkeys(GRAPH, "SUCCEEDED")
        assert {path.name: lines(path) for path in self.trace.iterdir()} == {name: [name] for name in GRAPH}
        for name in GRAPH:
            [log] = Path(found.path, name, "logs").glob("[!s]*_0.log")
            assert lines(log) == [f"{name} {number}" for number in range(1, 10)]
        sent = set(self.cluster.call("squeue", "-h", "-a", "-t", "all", "-o", "%F %k").splitlines())
        tokens = Counter(line.partition(" ")[2] for line in sent)  # an array's tasks have one together
        assert not [token for token, times in tokens.items() if times > 1]


@pytest.fixture
def place(home: Path, slurm: Cluster, sshd: Sshd, tmp_path: Path) -> Iterator[Place]:
    """A place with nothing in it."""
    found = Place(slurm, sshd, tmp_path)
    yield found
    found.executor().tunnel.close()


def started(act: Callable[[], Any]) -> Callable[[], Any]:
    """Do something in a thread; the result waits for it, and raises what it raised."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(act)
    pool.shutdown(wait=False)
    return lambda: future.result(LONG)


# --- the connection -------------------------------------------------------------------------------------


def test_an_upload_that_is_cut_halfway_is_made_whole(place: Place, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    content = os.urandom(9 << 20)
    (code / "big.bin").write_bytes(content)
    place.stop_in("rsync", "halfway in", 4 << 20)
    packager = run.PatternPackager(include_pattern=str(code / "*"), relative_path=str(code))
    experiment = place.experiment(packager=packager)
    experiment.add(run.Script(inline="cat big.bin"), name="cat")
    result = started(experiment.run)
    place.await_stop()
    place.kill_sshd()
    place.let_go()
    place.sshd.start()
    result()
    place.check(experiment)
    assert Path(experiment.path, "cat", "logs", "cat_0.log").read_bytes() == content
    [package] = (place.there / ".nemo_run" / "packages").iterdir()
    assert [path.name for path in (package / "code").iterdir()] == ["big.bin"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_connection_cut_between_sbatch_and_its_reply_costs_and_doubles_no_job(
    place: Place, moment: str
) -> None:
    place.stop_in("sbatch", moment, 2)
    experiment = place.experiment()
    result = started(experiment.run)
    place.await_stop()
    place.kill_sshd()
    if moment == "after":
        place.let_go()
    place.sshd.start()
    until(lambda: place.sshd.logins() > 1, "it is connected again")
    place.let_go()
    result()
    place.check(experiment)
    assert place.calls() == len(GRAPH)


@pytest.mark.parametrize("accounting", ["there", pytest.param("away", marks=pytest.mark.slow)])
def test_a_submission_killed_over_there_after_sbatch_is_found_in_the_queue(
    place: Place, accounting: str
) -> None:
    if accounting == "away":
        place.cluster.slurmdbd.stop()
    # Two are on their way at the same time; both have been submitted when all of it is killed.
    text = """\
said=$($real "$@")
code=$?
echo x >>"$0.calls"
until [ "$(wc -l <"$0.calls")" -ge 2 ]; do sleep 0.02; done
mkdir "$0.killed" 2>/dev/null && kill -9 0
[ "$(wc -l <"$0.calls")" -gt 2 ] || sleep 10
echo "$said"
exit $code
"""
    wrapper = place.sshd.wrap("sbatch", text)
    experiment = place.experiment()
    experiment.run()
    place.check(experiment)
    assert len(lines(Path(f"{wrapper}.calls"))) == len(GRAPH)


def test_no_line_of_a_chatty_job_is_lost_or_repeated_when_connections_are_cut(
    place: Place, tmp_path: Path
) -> None:
    """The job prints a hundred lines, and more each time that the connection is there again."""
    job = (
        'i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); echo "$i é $i"; printf "$i "; echo "$i"'
        "; [ $((i % 20)) != 0 ] || sleep 0.02; done; printf last"
    )
    with run.Experiment("chatty", place.executor(), clean_mode=True) as experiment:
        experiment.add(run.Script(inline=job), name="job")
        experiment.run(detach=True)
    followed = list(follow(experiment, place, [200, 900, 1700, 2600]))
    expected = [line for i in range(1, 2001) for line in (f"{i} é {i}", f"{i} {i}")]
    assert followed == [*expected, "last"]
    run.Experiment.from_id(experiment.id).wait()
    [log] = Path(experiment.path, "job", "logs").glob("[!s]*_0.log")
    assert log.read_text().split("\n") == [*expected, "last"]


def follow(experiment: run.Experiment, place: Place, cuts: list[int]) -> Iterator[str]:
    """The lines of its only job; sshd is killed each time that so many have been seen."""
    for number, line in enumerate(logs_of(experiment)):
        if number in cuts:
            place.kill_sshd()
            place.sshd.start()
        yield line


def logs_of(experiment: run.Experiment) -> Iterator[str]:
    from nemo_run.run.look import read_job_logs
    from nemo_run.run.store import Store

    store = Store(experiment.path)
    found = read_job_logs(store, store.experiment().jobs[0], follow=True)
    return (line for _, line in found)


@pytest.mark.parametrize(
    ("size", "program", "where", "count", "words"),
    [(100_000, "tar", "after", 1, "*-cf*"), (12_000_000, "rsync", "halfway out", 4 << 20, "*")],
)
def test_results_that_are_cut_off_on_their_way_home_come_whole(
    place: Place, size: int, program: str, where: str, count: int, words: str
) -> None:
    inline = f'head -c {size} /dev/urandom >"$NEMORUN_JOB_DIR/artifacts/big"; echo done'
    experiment = run.Experiment("home", place.executor(), clean_mode=True)
    experiment.add(run.Script(inline=inline), name="job")
    place.stop_in(program, where, count, words)
    result = started(experiment.run)
    place.await_stop()
    place.kill_sshd()
    place.let_go()
    place.sshd.start()
    result()
    [there] = place.there.glob("home/*/job/artifacts/big")
    here = Path(experiment.path, "job")
    assert (here / "artifacts" / "big").read_bytes() == there.read_bytes()
    assert [path.name for path in (here / "artifacts").iterdir()] == ["big"]
    assert [lines(path) for path in (here / "logs").glob("[!s]*_0.log")] == [["done"]]


# --- Slurm's daemons ------------------------------------------------------------------------------------


@pytest.fixture
def impatient(place: Place) -> None:
    """Commands over there that wait two seconds for Slurm's daemons, not twenty."""
    conf = place.cluster.folder / "impatient.conf"
    conf.write_text(place.cluster.conf.read_text() + "MessageTimeout=2\n")
    place.sshd.restart({"SLURM_CONF": str(conf)})


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_submission_while_the_controller_is_away_waits_for_it(place: Place) -> None:
    place.cluster.slurmctld.stop()
    wrapper = place.sshd.wrap("sbatch", '$real "$@"\ncode=$?\necho $code >>"$0.codes"\nexit $code')
    experiment = place.experiment()
    result = started(experiment.run)
    until(lambda: "1" in lines(Path(f"{wrapper}.codes")), "one is refused", LONG)
    place.cluster.revive()
    result()
    place.check(experiment)


@pytest.mark.usefixtures("impatient")
@pytest.mark.slow
@pytest.mark.parametrize("daemon", ["slurmctld", "slurmdbd"])
def test_a_daemon_that_is_away_while_jobs_run_is_no_verdict_on_them(
    place: Place, daemon: str, tmp_path: Path
) -> None:
    experiment = run.Experiment("long", place.executor(), clean_mode=True, raise_on_failure=False)
    for name, code in (("good", 0), ("bad", 3)):
        wait = f"{place.note(name)}; until [ -e {tmp_path}/go ]; do sleep 0.1; done; echo end; exit {code}"
        experiment.add(run.Script(inline=wait), name=name)
    result = started(experiment.run)
    until(lambda: len(list(place.trace.iterdir())) == 2, "both run", LONG)
    getattr(place.cluster, daemon).stop()
    time.sleep(2)  # as long as several looks take
    (tmp_path / "go").touch()
    result()  # from their own words
    states = run.Experiment.from_id(experiment.id).status(return_dict=True)
    assert {name: states[name]["status"].name for name in states} == {"good": "SUCCEEDED", "bad": "FAILED"}
    assert [lines(place.trace / name) for name in ("good", "bad")] == [["good"], ["bad"]]
    place.cluster.revive()
    # A node says only after a minute what it could not say while nobody heard; this is faster.
    place.cluster.call("scontrol", "update", "nodename=node[0-3]", "state=down", "reason=test")


# --- the launcher ---------------------------------------------------------------------------------------

LAUNCH = """
import json
where, there, trace, title, step, count = sys.argv[1:]
if step:
    kill_at(deeds.STEPS[step], int(count))
tunnel = run.SSHTunnel(job_dir=there, **json.loads(where))
executor = run.SlurmExecutor(time="5", packager=run.Packager(), tunnel=tunnel)
exp = run.Experiment(title, executor, clean_mode=True)
for name, (inline, before) in json.loads(trace).items():
    exp.add(run.Script(inline=inline), name=name, dependencies=before)
exp.run()
"""
KILLS = [
    *((step, count) for step in ("before the intent", "before the handle is recorded") for count in (1, 3)),
    ("while recording the end", 1),
    ("while recording the end", 4),
]


def launcher(
    place: Place, folder: Path, title: str, step: str = "", count: int = 0
) -> subprocess.Popen[bytes]:
    """A process that runs the jobs of `GRAPH`."""
    jobs = json.dumps({name: (place.note(name), before) for name, before in GRAPH.items()})
    words = [json.dumps(place.sshd.where), str(place.there), jobs, title, step, str(count)]
    path = script(folder / f"{title}.py", LAUNCH)
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, str(path), *words], env=environment(), cwd=folder, stdout=quiet, stderr=quiet
    )


def test_launchers_killed_at_any_step_lose_and_double_nothing(place: Place, tmp_path: Path) -> None:
    """Several at once, each with jobs and traces of its own."""
    places, launchers = [], []
    for number, (step, count) in enumerate(KILLS):
        own = tmp_path / str(number)
        own.mkdir()
        places.append(Place(place.cluster, place.sshd, own))
        launchers.append(launcher(places[-1], own, f"killed{number}", step, count))
    assert [process.wait(LONG) for process in launchers] == [-signal.SIGKILL] * len(KILLS)

    def take_over(number: int) -> None:
        experiment = run.Experiment.from_title(f"killed{number}")
        experiment.wait()
        places[number].check(experiment)

    for ending in [started(functools.partial(take_over, number)) for number in range(len(KILLS))]:
        ending()


@pytest.mark.parametrize(("program", "where"), [("sbatch", "before"), ("sbatch", "after"), ("tar", "before")])
def test_a_launcher_killed_while_something_is_done_over_there_loses_and_doubles_nothing(
    place: Place, tmp_path: Path, program: str, where: str
) -> None:
    place.stop_in(program, where, 2 if program == "sbatch" else 1)
    process = launcher(place, tmp_path, "killed")
    place.await_stop()
    process.kill()
    process.wait()
    place.let_go()
    waited = nemo("experiment", "wait", "killed")
    assert waited.returncode == 0, waited.stderr
    place.check(run.Experiment.from_title("killed"))


# --- secrets --------------------------------------------------------------------------------------------


def test_no_value_of_a_variable_is_in_a_script_argument_log_or_file_of_others_on_either_side(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, plain = b"canary-5e1a-secret", b"canary-77c2-plain"
    monkeypatch.setenv("CANARY", secret.decode())
    variables = {"KEY": run.Secret("CANARY"), "API_TOKEN": plain.decode()}
    wait = f'[ "${{#KEY}} ${{#API_TOKEN}}" = "{len(secret)} {len(plain)}" ] || exit 9; touch {tmp_path}/runs'
    wait += f"; until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    seen, over = set[bytes](), threading.Event()

    def scan() -> None:
        while not over.wait(0.01):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.update(word for word in (secret, plain) if word in path.read_bytes())

    thread = threading.Thread(target=scan)
    thread.start()
    experiment = run.Experiment("canary", place.executor(env_vars=variables), clean_mode=True)
    experiment.add(run.Script(inline=wait), name="job")
    result = started(experiment.run)
    until((tmp_path / "runs").exists, "it runs", LONG)
    held = [holders(folder, secret, plain) for folder in (tmp_path, place.cluster.folder, place.sshd.folder)]
    (tmp_path / "go").touch()
    result()
    over.set()
    thread.join()
    held += [holders(folder, secret, plain) for folder in (tmp_path, place.cluster.folder, place.sshd.folder)]
    assert not seen
    secrets, plains = ({path for found in held for path in found[at]} for at in (0, 1))
    [its_file] = place.there.glob("canary/*/job/env/*.sh")
    assert secrets == {its_file}
    assert {path for path in plains if place.there in path.parents} == {its_file}
    # Here also the record of what was asked for, and the plan, which shows it.
    assert {path.name for path in plains - {its_file}} <= {"executor.json", "plan.txt"}


def holders(folder: Path, *words: bytes) -> list[set[Path]]:
    """For each word the files below a folder that hold it; others may read none of them."""
    found: list[set[Path]] = [set() for _ in words]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            content = path.read_bytes() if path.is_file() else b""
            for at, word in enumerate(words):
                if word in content:
                    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
                    found[at].add(path)
    return found
