"""What Slurm prints of jobs, as real clusters printed it, and what each of its states means."""

from __future__ import annotations

import re
import subprocess

import pytest

from nemo_run.core.execution.base import TERMINAL, AppState
from nemo_run.core.execution.slurm_queue import (
    STATES,
    Seen,
    as_one,
    indices,
    parse_sacct,
    parse_squeue,
    parts_of,
    sacct,
    squeue,
)
from nemo_run.core.execution.slurm_scripts import Answer, parse_finding, parse_submitting

#: The states of `man squeue` and `man sacct`, 22.05 to 24.11.
DOCUMENTED = """
    BOOT_FAIL CANCELLED COMPLETED COMPLETING CONFIGURING DEADLINE EXPEDITING FAILED LAUNCH_FAILED NODE_FAIL
    OUT_OF_MEMORY PENDING POWER_UP_NODE PREEMPTED RECONFIG_FAIL REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING
    RESV_DEL_HOLD REVOKED RUNNING SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED SUSPENDED TIMEOUT UPDATE_DB
"""

SQUEUE = """\
12|RUNNING|None
13|PENDING|(Resources)
14_[3-9:2%2]|PENDING|JobArrayTaskLimit
14_2|COMPLETED|None
14_1|FAILED|NonZeroExitCode
15+0|RUNNING|None
15+1|RUNNING|None
16|PENDING|launch failed requeued held
slurm_load_jobs error: something else
"""
SACCT = """\
12|COMPLETED|0:0|2026-11-21T03:50:14|2026-11-21T03:50:15
13|CANCELLED by 1000|0:0|None|2026-11-21T03:50:15
14_1|FAILED|5:0|2026-11-21T03:50:14|2026-11-21T03:50:15
14_2|TIMEOUT|0:15|2026-11-21T03:50:14|2026-11-21T03:51:15
15+0|OUT_OF_MEMORY|0:125|2026-11-21T03:50:14|2026-11-21T03:51:15
sacct: error: whatever
"""


def test_every_documented_state_is_known() -> None:
    assert sorted(STATES) == sorted(DOCUMENTED.split())


def test_every_state_of_the_manuals_on_this_machine_is_known() -> None:
    done = subprocess.run(["man", "squeue"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("there is no manual of squeue here")
    codes = done.stdout.partition("JOB STATE CODES")[2].partition("\nENV")[0]
    assert set(re.findall(r"^ +[A-Z]{1,2}  +([A-Z_]+)", codes, re.MULTILINE)) <= set(STATES)


@pytest.mark.parametrize(
    "state", ["PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING", "COMPLETING", "SUSPENDED"]
)
def test_a_job_that_will_go_on_has_not_ended(state: str) -> None:
    assert STATES[state] not in TERMINAL


@pytest.mark.parametrize("state", ["PREEMPTED", "REQUEUED", "CANCELLED", "REVOKED"])
def test_what_the_job_cannot_help_is_no_failure(state: str) -> None:
    assert STATES[state] != AppState.FAILED


def test_a_state_that_nobody_has_documented_is_unknown() -> None:
    status = as_one([Seen(state="BRAND_NEW")])
    assert (status.state, status.message) == (AppState.UNKNOWN, "BRAND_NEW")


def test_what_squeue_printed_is_read() -> None:
    seen = parse_squeue(SQUEUE)
    assert seen["12"] == [Seen(state="RUNNING", reason="None")]
    assert seen["13"] == [Seen(state="PENDING", reason="Resources")]
    assert [part.part for part in seen["14"]] == ["3", "5", "7", "9", "2", "1"]
    assert [part.part for part in seen["15"]] == ["0", "1"]
    assert as_one(seen["16"]).message == "launch failed requeued held"
    assert list(seen) == ["12", "13", "14", "15", "16"]


def test_what_sacct_printed_is_read() -> None:
    statuses = {number: as_one(parts) for number, parts in parse_sacct(SACCT).items()}
    assert {number: (s.state.name, s.exit_code, s.message) for number, s in statuses.items()} == {
        "12": ("SUCCEEDED", 0, ""),
        "13": ("CANCELLED", 0, "CANCELLED"),
        "14": ("FAILED", 5, "1: exit code 5"),
        "15": ("FAILED", 253, "OUT_OF_MEMORY"),
    }


@pytest.mark.parametrize(
    ("states", "one"),
    [
        ("COMPLETED COMPLETED", AppState.SUCCEEDED),
        ("COMPLETED PENDING", AppState.RUNNING),
        ("PENDING PENDING", AppState.PENDING),
        ("FAILED RUNNING", AppState.RUNNING),
        ("COMPLETED FAILED CANCELLED", AppState.FAILED),
        ("COMPLETED CANCELLED", AppState.CANCELLED),
        ("COMPLETED LOST", AppState.UNKNOWN),
        ("COMPLETED COMPLETING", AppState.RUNNING),
    ],
)
def test_an_array_goes_on_while_one_of_its_tasks_does(states: str, one: AppState) -> None:
    parts = [Seen(state=state, part=str(at)) for at, state in enumerate(states.split())]
    assert as_one(parts).state == one


@pytest.mark.parametrize(
    ("array", "numbers"),
    [("0-3", "0 1 2 3"), ("1,5,7%2", "1 5 7"), ("0-9:4", "0 4 8"), ("7", "7"), ("1-2,4-5%1", "1 2 4 5")],
)
def test_the_tasks_of_an_array_are_counted(array: str, numbers: str) -> None:
    assert indices(array) == numbers.split()


def test_a_task_of_an_array_has_its_part_of_what_is_said_of_all() -> None:
    seen = parse_squeue(SQUEUE)
    assert parts_of(seen, "14_2") == [Seen(state="COMPLETED", reason="None")]
    assert parts_of(seen, "14_5") == [Seen(state="PENDING", reason="JobArrayTaskLimit")]
    assert parts_of(seen, "14") == seen["14"]
    assert parts_of(seen, "14_4") == parts_of(seen, "4_1") == parts_of(seen, "4") == []


def test_slurm_is_asked_once_for_all_tasks_of_an_array() -> None:
    numbers = ["7_0", "7_1", "8", "9_3"]
    assert "--jobs=7,8,9" in squeue(numbers)
    assert "--jobs=7,8,9" in sacct(numbers)


def test_answers_to_submissions_are_read_whatever_they_hold() -> None:
    printed = b"0 submitted 5\n123;c\n2 refused 13\nno\n1 tried 0\n\n1 tried 0\n\n"
    assert parse_submitting(printed) == {
        0: Answer("submitted", "123;c"),
        2: Answer("refused", "no\n1 tried 0"),
        1: Answer("tried", ""),
    }
    assert parse_submitting(b"0 submi") == {}


def test_a_job_is_found_by_all_of_its_token() -> None:
    queue = "queue|7|exp_1/train/10\nqueue|8|mine exp_1/train/1\nqueue|9|exp_1/train/1\n"
    assert parse_finding(queue, "/runs/train", "exp_1/train/1") == "8"
    assert parse_finding("submitted|12;cluster\n", "/runs/train", "t") == "12"
    assert parse_finding("past|5|/runs/train2\npast|6|/runs/train\n", "/runs/train", "t") == "6"
    assert parse_finding("submitted|12_3\n", "/runs/train", "t") == "12_3"
    assert parse_finding("submitted|12_\n", "/runs/train", "t") is None
    assert parse_finding("", "/runs/train", "t") is None
