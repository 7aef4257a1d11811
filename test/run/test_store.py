"""An experiment's folder: any title or a clear refusal, whole or not there, never in another's way."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deeds import environment, launch, lines, nemo, note, script

import nemo_run as run
from nemo_run.run.store import Store, collect_garbage, folder_name, scan
from nemo_run.testing import FakeExecutor


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, home: Path) -> str:
    return str(tmp_path / "cluster")


def made(title: str, folder: str, **given: Any) -> run.Experiment:
    """An experiment of one job that has ended."""
    exp = run.Experiment(title, FakeExecutor(folder=folder), clean_mode=True, **given)
    exp.add(run.Partial(note, "unused", "a"), name="a")
    exp.run()
    return exp


def listed(*args: str) -> dict[str, dict[str, Any]]:
    """What the real command lists, by id."""
    done = nemo("experiment", "list", "--json", "--limit", "0", *args)
    assert done.returncode == 0, done.stderr
    return {row["id"]: row for row in json.loads(done.stdout)}


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The message of a command that failed as it should."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("nemo: ")
    return done.stderr


# --- titles ---------------------------------------------------------------------------------------------

TITLES = [
    "plain", "two words", " blanks around ", "a/b", "/etc/passwd", "../../up", "..", ".", ".hidden", "...",
    ".new-x", ".trash-x", "-rf", "--help", "it's", 'say "x"', "$(touch x)", "`x`", "a;b&c|d", "back\\slash",
    "line\nbreak", "tab\there", "bell\a", "naïve – ümläut", "日本語", "🙂", "e\u0301", "x" * 300, "日" * 300,
    "a_1", "plain_1795218890277", "%s {0} *?[", "~", "~root", "CON", "a:b", "\u202edlrow", "\u2028",
    "nul\0x",
]  # fmt: skip


@pytest.mark.parametrize("title", TITLES, ids=lambda title: ascii(title)[:30])
def test_an_experiment_of_any_title_is_found_again_by_title_and_id(
    title: str, folder: str, home: Path
) -> None:
    exp = made(title, folder)
    assert exp.path.resolve().parent.parent == (home / "experiments").resolve()
    for name in (title, exp.id):
        again = run.Experiment.from_title(name)
        assert (again.title, again.id, again.path) == (title, exp.id, exp.path)
        assert again.status(return_dict=True)["a"]["status"].name == "SUCCEEDED"
    assert run.Experiment.catalog(title) == [exp.id]
    assert run.Experiment.catalog() == [exp.id]


def test_the_commands_take_any_title_and_list_each_under_its_own(folder: str) -> None:
    experiments = [made(title, folder) for title in TITLES]
    rows = listed()
    assert {exp.id: exp.title for exp in experiments} == {key: row["title"] for key, row in rows.items()}
    assert {row["state"] for row in rows.values()} == {"SUCCEEDED"}
    for title in ("../../up", "--help", "line\nbreak", "$(touch x)", "日" * 300, "\u202edlrow"):
        (exp,) = [exp for exp in experiments if exp.title == title]
        for name in (title, exp.id):
            done = nemo("experiment", "status", "--json", "--", name)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)[0]["state"] == "SUCCEEDED"


@pytest.mark.parametrize("title", ["", "\ud800", "\udcff/x"], ids=ascii)
def test_a_title_that_is_no_text_is_refused_before_anything_is_made(
    title: str, folder: str, home: Path
) -> None:
    with pytest.raises(run.ConfigError, match=r"needs a title|is no text"):
        made(title, folder)
    assert not home.exists()
    assert not os.path.exists(folder)


@pytest.mark.parametrize("name", [".", "..", "a/b", "../x", ".hidden", "a\nb", "日" * 300, "-x"], ids=ascii)
def test_a_job_of_any_name_has_a_folder_of_its_own_inside_its_experiment(name: str, folder: str) -> None:
    exp = run.Experiment("jobs", FakeExecutor(folder=folder), clean_mode=True)
    first = exp.add(run.Partial(note, "unused", "a"), name=name)
    second = exp.add(run.Partial(note, "unused", "b"), name=name)
    exp.run()
    found = {path.name for path in exp.path.iterdir() if path.is_dir()}
    assert {first, second} <= found
    assert set(exp.status(return_dict=True)) == {first, second}


def test_titles_that_share_a_folder_are_told_apart(folder: str) -> None:
    assert folder_name("a/b") == folder_name("a-b")
    slash, dash = made("a/b", folder), made("a-b", folder)
    assert run.Experiment.from_title("a/b").id == slash.id
    assert run.Experiment.from_title("a-b").id == dash.id


def test_long_titles_that_begin_alike_have_folders_of_their_own() -> None:
    assert folder_name("x" * 299 + "1") != folder_name("x" * 299 + "2")


# --- looking up -----------------------------------------------------------------------------------------


def test_a_title_means_its_newest_experiment(folder: str) -> None:
    first, second = made("train", folder), made("train", folder)
    assert run.Experiment.from_title("train").id == second.id
    assert run.Experiment.from_id(first.id).id == first.id
    assert run.Experiment.catalog("train") == [first.id, second.id]


def test_the_unique_beginning_of_an_id_is_enough(folder: str) -> None:
    train = made("train", folder)
    evaluate = made("evaluate", folder)
    assert run.Experiment.from_id("tr").id == train.id
    done = nemo("experiment", "status", "eval")
    assert done.returncode == 0
    assert evaluate.id in done.stdout


def test_a_beginning_of_several_ids_is_refused_with_those_it_may_mean(folder: str) -> None:
    ids = {made("train", folder, id=f"train_{n}").id for n in (11, 12)}
    with pytest.raises(run.NotFoundError, match="train_1") as caught:
        run.Experiment.from_id("train_1")
    assert set(caught.value.known) == ids
    assert "train_11" in said(nemo("experiment", "status", "train_1"))


def test_an_unknown_name_is_answered_with_what_it_may_mean(folder: str) -> None:
    made("train", folder)
    with pytest.raises(run.NotFoundError, match="no experiment 'trian'; did you mean 'train'"):
        run.Experiment.from_title("trian")
    assert "did you mean 'train'" in said(nemo("experiment", "logs", "trian"))


@pytest.mark.parametrize("name", ["", ".", "..", "/", "../experiments", "train/..", "\0"], ids=ascii)
def test_a_name_that_is_a_path_finds_nothing(name: str, folder: str) -> None:
    made("train", folder)
    made("other", folder)
    with pytest.raises(run.NotFoundError):
        run.Experiment.from_id(name)


def test_experiments_under_a_folder_of_their_own_are_found_there_only(folder: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    exp = made("train", folder, base_dir=base)
    assert exp.path.is_relative_to(base)
    assert run.Experiment.from_title("train", base_dir=base).id == exp.id
    assert run.Experiment.catalog(base_dir=base) == [exp.id]
    assert run.Experiment.catalog() == []


# --- damage ---------------------------------------------------------------------------------------------

DAMAGE: dict[str, bytes | None] = {
    "empty": b"",
    "half": b'{"id": "x", "ti',
    "binary": b"\x80\xff\x00",
    "a list": b"[]",
    "null": b"null",
    "a text": b'"x"',
    "an empty object": b"{}",
    "of strange fields": b'{"schema": "x", "jobs": 7, "handle": [], "state": "ODD", "id": {}}',
    "missing": None,
}


def damage(path: Path, content: bytes | None) -> None:
    path.unlink() if content is None else path.write_bytes(content)


def three(folder: str) -> tuple[run.Experiment, run.Experiment, run.Experiment]:
    """An experiment that still runs between two others."""
    first = made("first", folder)
    broken = run.Experiment("broken", FakeExecutor(folder=folder, default="RUNNING"), clean_mode=True)
    broken.add(run.Partial(note, "unused", "a"), name="a")
    broken.add(run.Partial(note, "unused", "b"), name="b")
    broken.run(detach=True)
    return first, broken, made("last", folder)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("record", ["experiment.json", "a/job.json", "a/executor.json"])
def test_a_damaged_record_is_named_and_hides_nothing_else(record: str, kind: str, folder: str) -> None:
    first, broken, last = three(folder)
    damage(broken.path / record, DAMAGE[kind])
    rows = listed()
    assert list(rows) == [last.id, broken.id, first.id]
    assert [rows[exp.id]["state"] for exp in (first, last)] == ["SUCCEEDED"] * 2
    assert run.Experiment.catalog() == [first.id, broken.id, last.id]

    status = nemo("experiment", "status", broken.id)
    if record == "experiment.json":
        assert "experiment.json" in rows[broken.id]["error"]
        assert "experiment.json" in said(status)
        with pytest.raises(run.StoreError, match=r"experiment\.json"):
            run.Experiment.from_id(broken.id)
        with pytest.raises(run.StoreError, match=r"experiment\.json"):
            run.Experiment.from_title("broken")
    else:
        assert status.returncode == 0, status.stderr
        told = {line.split()[0]: line for line in status.stdout.splitlines()}
        assert "UNKNOWN" in told["a"]
        assert record.replace("a/", "").partition(".")[0] in told["a"]
        assert "RUNNING" in told["b"]
    for verb in ("show", "results", "logs"):
        done = nemo("experiment", verb, broken.id)
        assert done.returncode == 0 or said(done)
    assert record.rpartition("/")[2].partition(".")[0] in said(nemo("experiment", "wait", broken.id))
    with pytest.raises(run.StoreError):
        run.Experiment.from_id(broken.id).wait()


def test_a_damaged_record_keeps_no_other_job_from_being_cancelled(folder: str) -> None:
    _, broken, _ = three(folder)
    damage(broken.path / "b" / "job.json", b"{")
    assert "job.json" in said(nemo("experiment", "cancel", "--all", broken.id))
    told = nemo("experiment", "status", broken.id).stdout.splitlines()
    assert [line.split()[:2] for line in told[2:]] == [["a", "CANCELLED"], ["b", "UNKNOWN"]]


def test_a_damaged_task_stops_no_one_from_looking_at_the_jobs(folder: str) -> None:
    _, broken, _ = three(folder)
    damage(broken.path / "a" / "task.json", b"{")
    assert nemo("experiment", "status", broken.id).returncode == 0
    assert "task.json" in said(nemo("experiment", "wait", broken.id))


def test_an_experiment_of_a_newer_schema_is_named_and_hides_nothing_else(folder: str) -> None:
    first, newer, last = three(folder)
    path = newer.path / "experiment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2, "novelty": 1}))
    rows = listed()
    assert [row["state"] for row in rows.values()] == ["SUCCEEDED", "UNKNOWN", "SUCCEEDED"]
    assert set(rows) == {first.id, newer.id, last.id}
    assert "newer nemo_run (schema 2" in rows[newer.id]["error"]
    assert f"{newer.id!r} was written by a newer nemo_run" in said(nemo("experiment", "status", newer.id))
    with pytest.raises(run.StoreError, match="upgrade nemo_run"):
        run.Experiment.from_id(newer.id)


# --- what is not ours -----------------------------------------------------------------------------------


def test_folders_of_another_tool_are_neither_shown_nor_removed(folder: str, home: Path) -> None:
    ours = made("train", folder)
    theirs = home / "experiments" / "train" / "train_1700000000"
    theirs.mkdir()
    (theirs / "_TASKS").write_text("{}")
    (theirs / "_DONE").touch()
    (theirs / "train").mkdir()
    (home / "experiments" / "empty").mkdir()
    (home / "experiments" / ".cache").mkdir()
    (home / "experiments" / "file").touch()
    before = sorted(home.rglob("*"))
    assert set(listed()) == {ours.id}
    assert run.Experiment.catalog() == [ours.id]
    assert run.Experiment.from_title("train").id == ours.id
    assert nemo("experiment", "gc").stdout == "Removed 0 unfinished folders.\n"
    assert sorted(home.rglob("*")) == before


def test_garbage_is_only_what_makers_and_deleters_left_behind(folder: str, home: Path) -> None:
    ours = made("train", folder)
    kind = home / "experiments" / "train"
    left = [kind / ".trash-train_1.77", kind / ".new-train_2.77"]
    young, other = kind / ".new-train_3.78", kind / ".other"
    for path in (*left, young, other):
        (path / "job").mkdir(parents=True)
    os.utime(left[1], (0, 0))
    assert sorted(collect_garbage()) == sorted(left)
    assert sorted(path.name for path in kind.iterdir()) == sorted([young.name, other.name, ours.id])
    assert collect_garbage() == []


# --- the home -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_where_the_home_should_be_is_refused(below: str, home: Path, folder: str) -> None:
    home.write_text("mine")
    os.environ["NEMORUN_HOME"] = str(home / below)
    with pytest.raises(run.StoreError, match="NEMORUN_HOME"):
        made("train", folder)
    assert home.read_text() == "mine"
    assert not os.path.exists(folder)
    assert "NEMORUN_HOME" in said(nemo("experiment", "list"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to somebody else")
def test_the_home_of_somebody_else_is_refused(home: Path, folder: str) -> None:
    home.mkdir()
    os.chown(home, 12345, 12345)
    with pytest.raises(run.StoreError, match="belongs to user id 12345"):
        made("train", folder)
    assert list(home.iterdir()) == []
    assert not os.path.exists(folder)


AS_NOBODY = """
import os
folder, home = sys.argv[1:]
def go():
    exp = run.Experiment("train", FakeExecutor(folder=folder), clean_mode=True)
    exp.add(run.Partial(deeds.note, "unused", "a"), name="a")
    exp.run()
go()  # everything is imported now, which this user may be unable to do
os.setgid(65534)
os.setuid(65534)
os.environ["NEMORUN_HOME"] = home
for verb in (go, run.Experiment.catalog, lambda: run.Experiment.from_title("train")):
    try:
        verb()
    except run.StoreError as exc:
        print(exc)
    else:
        print("nothing was said")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without permissions")
@pytest.mark.parametrize(
    ("mode", "owner"),
    [(0o700, 0), (0o500, 65534), (0o000, 65534)],
    ids=["not ours", "not writable", "not readable"],
)
def test_a_home_without_permission_is_refused(mode: int, owner: int, tmp_path: Path, folder: str) -> None:
    locked = tmp_path / "locked"
    (locked / "experiments").mkdir(parents=True)
    os.chown(locked, owner, owner)
    locked.chmod(mode)
    tmp_path.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    tmp_path.parent.parent.chmod(0o755)
    done = launch(script(tmp_path / "nobody.py", AS_NOBODY), folder, str(locked))
    assert done.returncode == 0, done.stderr
    run_said, catalog_said, from_title_said = done.stdout.splitlines()
    assert str(locked) in run_said
    assert "Set NEMORUN_HOME" in run_said
    if mode != 0o500:
        assert str(locked) in catalog_said
        assert str(locked) in from_title_said
    assert list((locked / "experiments").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_said_and_leaves_nothing_behind(
    small_disk: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMORUN_HOME", str(small_disk / "home"))
    first = made("first", folder)
    submitted = len(lines(Path(folder) / "calls.log"))
    exp = run.Experiment("large", FakeExecutor(folder=folder), clean_mode=True)
    exp.add(run.Script(inline=f"# {'x' * 100_000}"), name="a")
    with pytest.raises(run.StoreError, match=r"No space left on device.*Free some space"):
        exp.run()
    assert len(lines(Path(folder) / "calls.log")) == submitted
    assert os.listdir(small_disk / "home" / "experiments") == ["first"]
    assert list(listed()) == [first.id]


# --- permissions ----------------------------------------------------------------------------------------

LOCAL = """
import os
os.umask(0)
exp = run.Experiment("open", run.LocalExecutor(monitor_resources=True), clean_mode=True, **kwargs())
exp.add(run.Partial(deeds.note, sys.argv[1], "a"), name="a")
exp.add(run.Script(inline="echo b"), name="b", dependencies=["a"])
exp.add([run.Partial(deeds.note, sys.argv[1], name) for name in "cd"], name="group")
exp.run(detach=True)
exp.wait()
"""


@pytest.mark.parametrize("place", ["home", "base_dir"])
def test_everything_that_is_written_is_for_its_owner_alone(place: str, tmp_path: Path, home: Path) -> None:
    base = home if place == "home" else tmp_path / "base"
    kwargs = {} if place == "home" else {"base_dir": str(base)}
    base.mkdir(mode=0o755)  # made by hand, so its mode stays; what is inside is ours
    body = LOCAL.replace("kwargs()", repr(kwargs))
    done = launch(script(tmp_path / "open.py", body), str(tmp_path / "trace"))
    assert done.returncode == 0, done.stderr
    (path,) = scan(base=base)
    assert (path / "group" / "logs").is_dir()
    modes = {inner: stat.filemode(inner.lstat().st_mode) for inner in base.rglob("*")}
    wrong = {
        str(inner.relative_to(base)): mode
        for inner, mode in modes.items()
        if mode[4:] != "------" or (inner.is_file() and "x" in mode and inner.parent.name != "scripts")
    }
    assert not wrong
    assert len(modes) > 20


def test_a_new_home_is_for_its_owner_alone(folder: str, home: Path) -> None:
    made("train", folder)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


# --- all at once ----------------------------------------------------------------------------------------

CROWD = """
import os, time
folder, start, kept, deleted = sys.argv[1:]
time.time_ns = lambda: 1_700_000_000_000_000_000  # so that everybody wants the same ids
deeds.until(lambda: os.path.exists(start), "the start")
for number in range(6):
    exp = run.Experiment("crowd", FakeExecutor(folder=folder), clean_mode=True)
    exp.add(run.Partial(deeds.note, "unused", "a"), name="a")
    exp.run()
    mine = Store.open(exp.id)
    assert mine.read_job("a").token == f"{exp.id}/a/1", mine.read_job("a")
    for other in run.Experiment.catalog("crowd")[-3:]:
        try:
            run.Experiment.from_id(other).status(return_dict=True)
        except (run.NotFoundError, run.StoreError):
            # Its id may have been given out again by now: the clock stands still.
            assert other in open(deleted).read().split(), other
    run.Experiment.from_title("crowd")
    if number % 2:
        deeds.append(deleted, exp.id + "\\n")
        mine.delete()
    else:
        deeds.append(kept, exp.id + "\\n")
"""


def test_twenty_processes_add_read_and_delete_at_once_without_an_error_or_a_loss(
    tmp_path: Path, folder: str, home: Path
) -> None:
    start, kept, deleted = tmp_path / "start", tmp_path / "kept", tmp_path / "deleted"
    deleted.touch()
    first = made("crowd", folder)
    body = "from nemo_run.run.store import Store\n" + CROWD
    words = [folder, str(start), str(kept), str(deleted)]
    command = [sys.executable, str(script(tmp_path / "crowd.py", body)), *words]
    crowd = [
        subprocess.Popen(command, env=environment(), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for _ in range(20)
    ]
    start.touch()
    while any(process.poll() is None for process in crowd):
        assert [row for row in listed().values() if "error" in row] == []
        assert nemo("experiment", "gc").returncode == 0
    errors = [process.communicate()[1] for process in crowd]
    assert [process.returncode for process in crowd] == [0] * 20, "\n".join(errors)

    expected = sorted([*lines(kept), first.id])
    assert len(set(expected)) == 61
    assert sorted(run.Experiment.catalog()) == expected
    assert {row["state"] for row in listed().values()} == {"SUCCEEDED"}
    assert sorted(os.listdir(home / "experiments" / "crowd")) == expected


def test_threads_of_one_process_make_experiments_of_one_title_at_once(folder: str) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                made("crowd", folder)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(run.Experiment.catalog("crowd")) == 40


def test_an_experiment_is_gone_at_once_when_it_is_deleted(folder: str) -> None:
    exp = made("train", folder)
    other = made("other", folder)
    done = nemo("experiment", "delete", "--yes", exp.id)
    assert done.returncode == 0, done.stderr
    assert run.Experiment.catalog() == [other.id]
    assert not exp.path.exists()
    Store(exp.path).delete()  # once more does no harm


def test_an_experiment_that_runs_is_not_deleted(folder: str) -> None:
    exp = run.Experiment("train", FakeExecutor(folder=folder, default="RUNNING"), clean_mode=True)
    exp.add(run.Partial(note, "unused", "a"), name="a")
    exp.run(detach=True)
    assert "still runs a" in said(nemo("experiment", "delete", "--yes", exp.id))
    exp.cancel()
    assert nemo("experiment", "delete", "--yes", exp.id).returncode == 0
    assert not exp.path.exists()
