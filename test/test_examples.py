"""What a newcomer runs first does what it says."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import struct
import sys
import zlib
from pathlib import Path

import pytest
from programs import NEMO, call, nemo_json, python, succeeded

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MODELS = {"logistic-c0.01", "logistic-c1", "svm-linear", "svm-rbf", "forest-20", "forest-300"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the example's experiment; what it printed lies beside its home.

    It is run once, also where several processes share out these tests.
    """
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "example"
    place.mkdir(exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "stdout").exists():
            program, env = ROOT / "examples/digits/run.py", {"NEMORUN_HOME": str(place / "home")}
            done = succeeded(python(program, env=env, cwd=place))
            (place / "stderr").write_text(done.stderr)
            (place / "stdout").write_text(done.stdout)
    [folder] = (place / "home" / "experiments" / "digits").iterdir()
    return folder


@pytest.fixture
def artifacts(digits: Path) -> Path:
    return digits / "compare" / "artifacts"


@pytest.fixture
def at_home(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands find the example's experiment."""
    monkeypatch.setenv("NEMORUN_HOME", str(digits.parents[2]))


def table(report: str, heading: str) -> list[dict[str, str]]:
    """The rows of the Markdown table that begins with this line."""
    lines = report.split(heading + "\n")[1].split("\n\n")[0].splitlines()[1:]
    columns = [cell.strip() for cell in heading.strip("|").split("|")]
    return [dict(zip(columns, map(str.strip, line.strip("|").split("|")), strict=True)) for line in lines]


RANKING = "| # | model | settings | accuracy | wrong | seconds |"


def test_it_ends_by_saying_where_the_report_is_and_how_to_come_back(digits: Path, artifacts: Path) -> None:
    said = (digits.parents[3] / "stdout").read_text()
    assert said.splitlines()[-2:] == [
        f"The report: {artifacts / 'report.md'}",
        f"  its plot: {artifacts / 'comparison.png'}",
    ]
    progress = (digits.parents[3] / "stderr").read_text()
    assert re.search(r"compare +SUCCEEDED after", progress)
    assert re.search(rf"nemo experiment status {digits.name}$", progress, re.MULTILINE)


def test_the_report_ranks_all_models_by_their_accuracy(artifacts: Path) -> None:
    rows = table((artifacts / "report.md").read_text(), RANKING)
    shares = [float(row["accuracy"].rstrip("%")) for row in rows]
    assert {row["model"] for row in rows} == MODELS
    assert [row["#"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert shares == sorted(shares, reverse=True)
    assert 90 < shares[-1] <= shares[0] <= 100


def test_the_report_says_of_each_model_what_its_job_has_measured(digits: Path, artifacts: Path) -> None:
    for row in table((artifacts / "report.md").read_text(), RANKING):
        left = digits / row["model"] / "artifacts"
        score = json.loads((left / "score.json").read_text())
        matrix = [list(map(int, line.split(","))) for line in (left / "confusion.csv").read_text().split()]
        tested, right = sum(map(sum, matrix)), sum(matrix[at][at] for at in range(10))
        assert tested == 719
        assert int(row["wrong"]) == tested - right == len(score["mistakes"])
        assert row["accuracy"] == f"{right / tested:.2%}"


def test_the_report_lists_the_worst_confusions_of_all_models(digits: Path, artifacts: Path) -> None:
    counts: dict[tuple[int, int], int] = {}
    for model in MODELS:
        score = json.loads((digits / model / "artifacts" / "score.json").read_text())
        for _, true, read in score["mistakes"]:
            counts[true, read] = counts.get((true, read), 0) + 1
    rows = table((artifacts / "report.md").read_text(), "| a | read as | by all | by the best |")
    listed = [int(row["by all"]) for row in rows]
    assert listed == sorted(counts.values(), reverse=True)[: len(rows)]
    assert all(counts[int(row["a"]), int(row["read as"])] == int(row["by all"]) for row in rows)


def test_the_report_shows_a_picture_that_is_there_and_not_blank(artifacts: Path) -> None:
    [name] = re.findall(r"!\[.+\]\((.+)\)", (artifacts / "report.md").read_text())
    data = (artifacts / name).read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (1800, 1110)
    assert len(set(pixels(data))) > 20


def pixels(png: bytes) -> bytes:
    """The picture data of a PNG, without its compression."""
    chunks, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            chunks += png[at + 8 : at + 8 + length]
        at += length + 12
    return zlib.decompress(chunks)


@pytest.mark.usefixtures("at_home")
def test_the_commands_show_the_experiment_afterwards(digits: Path) -> None:
    records = nemo_json("status", "digits")
    assert {record["id"] for record in records} == {"prepare", "compare", *MODELS}
    assert {(record["state"], record["exit_code"]) for record in records} == {("SUCCEEDED", 0)}
    [listed] = nemo_json("list", "digits")
    assert (listed["id"], listed["state"], listed["jobs"]) == (digits.name, "SUCCEEDED", 8)


@pytest.mark.usefixtures("at_home")
def test_the_values_of_the_steps_are_there_afterwards(artifacts: Path) -> None:
    values = nemo_json("results", "digits")
    best = table((artifacts / "report.md").read_text(), RANKING)[0]
    assert values["prepare"] == {"train": 1078, "test": 719}
    assert values["compare"]["best"] == best["model"]
    assert values["compare"]["accuracy"] == max(values[model]["accuracy"] for model in MODELS) > 0.9


def test_the_steps_ran_in_the_order_of_what_they_need(digits: Path) -> None:
    jobs = {
        name: json.loads((digits / name / "job.json").read_text()) for name in ("prepare", "compare", *MODELS)
    }
    assert all(jobs["prepare"]["ended"] <= jobs[model]["started"] for model in MODELS)
    assert all(jobs[model]["ended"] <= jobs["compare"]["started"] for model in MODELS)


def test_a_copy_of_the_experiments_folder_is_a_complete_archive(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "home" / "experiments" / "digits" / digits.name
    shutil.copytree(digits, copy)
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "home"))
    assert nemo_json("results", digits.name)["prepare"] == {"train": 1078, "test": 719}


def test_the_make_target_runs_the_example(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = succeeded(call(["make", "-n", "demo", f"VENV={Path(sys.executable).parents[1]}"], cwd=ROOT))
    assert "python examples/digits/run.py" in done.stdout


#: How each example in XManager's words ends that needs nothing but this machine.
LAUNCHED = {
    "sweep": r"\n0\.001 +0\.98 +\d\.\de-\d\d\n(.+\n){9}0\.005 .+ flew off\n0\.005 .+ flew off\n$",
    "group": r"\nAfter 5\d0000 throws, {.*'ann': \d+.*}, pi is about 3\.1\d{3}\.\n$",
    "generator": r"after 640 steps +0\.3: .*\nThe rate 0\.3 is best: y = 3\.00 x -2\.01\n$",
}


@pytest.mark.parametrize("name", LAUNCHED)
def test_an_example_in_the_words_of_xmanager_ends_with_what_it_found(
    name: str, home: Path, tmp_path: Path
) -> None:
    done = succeeded(python(ROOT / f"examples/xm_{name}/run.py", cwd=tmp_path))
    assert re.search(LAUNCHED[name], done.stdout, re.DOTALL), done.stdout
    [listed] = nemo_json("list")
    assert (listed["title"], listed["state"]) == (f"xm-{name}", "SUCCEEDED")


def test_nemo_launch_starts_an_example_too(home: Path, tmp_path: Path) -> None:
    done = succeeded(call([NEMO, "launch", str(ROOT / "examples/xm_sweep/run.py")], cwd=tmp_path))
    assert re.search(LAUNCHED["sweep"], done.stdout, re.DOTALL), done.stdout
