"""Any bytes reach a job of Slurm as they are, in arguments and in the environment, also over SSH."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tasks
from contracts.executor import SHOW, write
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import nemo_run as run
from nemo_run.core.execution.slurm import SlurmExecutor

TESTS = Path(__file__).parents[2]
#: What means something to a shell, to sbatch, to srun or to Python, or is no text at all.
_PARTS = [*"'\"$`\\;&|<>(){}[]*?!#~=%: \t\n\r\x7f", "$(", "${", "-", "--", "%j", "\\n", "é", "🎉", "\udcff"]
WORDS = (
    st.lists(st.sampled_from(_PARTS), max_size=6).map("".join)
    | st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
)
#: What the batch script's own variables and functions are called.
_OURS = """address array attempt code exit_code failed finish first grace latest left line log logs mask
member members name notice number pid record said script scripts signalled srun started suffix tell told"""
NAMES = st.from_regex(r"V_[A-Za-z0-9_]{0,8}", fullmatch=True) | st.sampled_from(_OURS.split())
#: A few jobs each, so few examples with many words. Nothing is made smaller: a failure shows the words that
#: did not arrive, and in CI the examples are the same each time.
few = settings(
    max_examples=3,
    deadline=None,
    database=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_a_variable_that_bash_sets_by_itself_is_refused(home: Path) -> None:
    experiment = run.Experiment(
        "bytes", SlurmExecutor(packager=run.Packager(), env_vars={"UID": "1", "SECONDS": "1"})
    )
    experiment.add(run.Script(inline="true"), name="job")
    with pytest.raises(run.ConfigError, match="bash sets SECONDS, UID by itself"):
        experiment.dryrun()


@pytest.fixture(params=["on the login node", "over SSH"])
def executor(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Iterator[SlurmExecutor]:
    """An executor of a real cluster."""
    request.getfixturevalue("slurm")
    if request.param == "on the login node":
        yield SlurmExecutor(time="5", packager=run.Packager())
        return
    tunnel = run.SSHTunnel(job_dir=f"{tmp_path}/over there", **request.getfixturevalue("sshd").where)
    code = run.PatternPackager(include_pattern=str(TESTS / "tasks.py"), relative_path=str(TESTS))
    # The python3 on PATH may be a bash script, which has variables of its own.
    yield SlurmExecutor(time="5", packager=code, tunnel=tunnel, python_path=sys.executable)
    tunnel.close()


def changed(given: list[str], arrived: list[str]) -> list[tuple[str, bytes]]:
    """The words that are not what they were."""
    assert len(given) == len(arrived)
    pairs = zip(given, arrived, strict=True)
    return [(word, bytes.fromhex(other)) for word, other in pairs if os.fsencode(word).hex() != other]


def printed(experiment: run.Experiment, job: str) -> bytes:
    """What a job's only process printed."""
    [path] = Path(experiment.path, job, "logs").glob("[!s]*_0.log")
    return path.read_bytes()


@few
@given(
    words=st.lists(WORDS, min_size=60, max_size=120),
    variables=st.dictionaries(NAMES, WORDS, min_size=25, max_size=50),
)
def test_any_words_and_variables_arrive_in_every_kind_of_job(
    executor: SlurmExecutor, tmp_path: Path, words: list[str], variables: dict[str, str]
) -> None:
    show = str(write(tmp_path / "show.py", SHOW))
    own = {"VARIABLES": " ".join(variables)}
    jobs: dict[str, Any] = {
        "arguments": run.Script(path=show, entrypoint="python", args=words),
        "variables": run.Script(path=show, entrypoint="python", env=own),
        # The task's own shell expands what is marked, and passes on the rest.
        "expanded": run.Script(path=show, entrypoint="python", args=[*words, run.Expand("$((1 + 1))")]),
        "beside": run.Script(path=show, entrypoint="python", env={**own, "E": run.Expand("$SLURM_PROCID")}),
        "inline": run.Script(inline="\n".join(words) or ":", entrypoint="cat"),
        "function": run.Partial(tasks.hexed, words),
        "asked": run.Partial(tasks.environment, list(variables)),
    }
    with run.Experiment("bytes", replace(executor, env_vars=variables), clean_mode=True) as experiment:
        for name, task in jobs.items():
            experiment.add(task, name=name)
        experiment.run()
    values = list(variables.values())
    assert changed(words, json.loads(printed(experiment, "arguments"))) == []
    assert changed([*words, "2"], json.loads(printed(experiment, "expanded"))) == []
    assert changed(values, json.loads(printed(experiment, "variables"))) == []
    assert changed(values, json.loads(printed(experiment, "beside"))) == []
    assert printed(experiment, "inline") == os.fsencode("\n".join(words) or ":")
    assert changed(words, experiment.result("function")) == []
    assert changed(values, experiment.result("asked")) == []
