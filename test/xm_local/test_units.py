"""Units: what each is called, how it does, how it is stopped, and those that serve others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
from deeds import lines, nemo, until
from xms import ends_in, launch, script, sh

import nemo_run as run
from nemo_run import xm, xm_local
from nemo_run.run.store import Store, scan

pytestmark = pytest.mark.usefixtures("home")

FOREVER = "exec sleep 600"


def test_a_unit_knows_its_names() -> None:
    with xm_local.create_experiment("names") as experiment:
        unit = experiment.add(sh("true", name="redis")).result(20)
        number = experiment.experiment_id
        assert (unit.experiment, unit.experiment_id, unit.work_unit_id) == (experiment, number, 1)
        assert unit.experiment_unit_name == f"{number}_1"
        assert unit.get_full_job_name("redis") == f"{number}_1_redis"
        assert unit.context is experiment.context
        unit.wait_until_complete().result(20)
        (job,) = unit.launched_jobs
        assert (job.name, Path(job.logs).name) == ("redis", "redis_0.log")
        assert Path(job.logs).exists()


def test_auxiliary_units_have_names_of_their_own() -> None:
    """XManager called all of them alike, and the second one clashed with the first."""
    with xm_local.create_experiment("aux") as experiment:
        experiment.add(sh("true"))
        units = [
            experiment.add(sh("true", name="same"), role=xm.AuxiliaryUnitRole(termination_delay_secs=20))
            for _ in range(2)
        ]
        names = [unit.result(20).get_full_job_name("same") for unit in units]
    assert names == [f"{experiment.experiment_id}_aux_{number}_same" for number in (1, 2)]
    assert list(experiment.work_units) == [1]
    assert [entry.id for entry in Store(experiment.path).experiment().jobs] == ["1", "aux_1", "aux_2"]


def test_an_auxiliary_unit_is_ended_some_time_after_the_last_work_unit(tmp_path: Path) -> None:
    with xm_local.create_experiment("retire") as experiment:
        experiment.add(xm.AuxiliaryUnitJob(sh(FOREVER, name="server"), termination_delay_secs=0.5))
        experiment.add(sh("sleep 0.5"))
        begun = time.monotonic()
    assert 0.9 < time.monotonic() - begun < 20
    (unit,) = experiment.auxiliary_units
    assert unit.get_status().is_stopped
    assert experiment.work_units[1].get_status().is_completed


def test_an_auxiliary_unit_that_serves_nobody_ends_by_itself(tmp_path: Path) -> None:
    with xm_local.create_experiment("alone") as experiment:
        experiment.add(xm.AuxiliaryUnitJob(sh(f"sleep 0.5; echo x >{tmp_path}/x"), termination_delay_secs=0))
    assert lines(tmp_path / "x") == ["x"]


def test_an_auxiliary_unit_that_fails_is_a_failure() -> None:
    with (
        ends_in(xm.ExperimentUnitFailedError, "exit code 7"),
        xm_local.create_experiment("aux") as experiment,
    ):
        experiment.add(xm.AuxiliaryUnitJob(sh("exit 7"), termination_delay_secs=60))
        experiment.add(sh("sleep 0.5"))


def test_an_auxiliary_generator_runs_too(tmp_path: Path) -> None:
    async def generate(unit: xm.ExperimentUnit, word: str) -> None:
        await unit.add(sh(f"echo {word} >{tmp_path}/x"))

    with xm_local.create_experiment("generated") as experiment:
        experiment.add(xm.AuxiliaryUnitJob(generate, termination_delay_secs=60), args={"word": "hello"})
        experiment.add(sh("sleep 0.5"))
    assert lines(tmp_path / "x") == ["hello"]


# --- status and stop ------------------------------------------------------------------------------------


def test_the_status_tells_how_a_unit_does_at_each_time() -> None:
    with ends_in(xm.ExperimentUnitError, "exit code 5"), xm_local.create_experiment("status") as experiment:
        good = experiment.add(sh("sleep 1")).result(20)
        bad = experiment.add(sh("exit 5")).result(20)
        assert good.get_status().is_active
        until(lambda: str(good.get_status().state) == "RUNNING", "it runs")
        until(lambda: bad.get_status().is_failed, "it has failed")
        assert bad.get_status().message == "exit code 5"
        good.wait_until_complete().result(20)
        status = good.get_status()
        assert (status.is_completed, status.is_active, status.is_failed) == (True, False, False)


@pytest.mark.parametrize(
    ("given", "state", "kind"),
    [
        ({}, "CANCELLED", xm.ExperimentUnitNotCompletedError),
        ({"message": "enough"}, "CANCELLED", xm.ExperimentUnitNotCompletedError),
        ({"mark_as_completed": True}, "SUCCEEDED", None),
        ({"mark_as_failed": True, "message": "diverged"}, "FAILED", xm.ExperimentUnitFailedError),
    ],
)
def test_a_unit_is_stopped_and_counts_as_it_is_marked(given: Any, state: str, kind: Any) -> None:
    begun = time.monotonic()
    ends = ends_in(kind, "diverged") if given.get("mark_as_failed") else contextlib.nullcontext()
    with ends, xm_local.create_experiment("stop") as experiment:
        unit = experiment.add(sh(FOREVER)).result(20)
        other = experiment.add(sh("sleep 0.5")).result(20)
        unit.stop(**given)
        waiting = unit.wait_until_complete()
        if kind:
            with pytest.raises(kind, match=given.get("message", "cancelled")):
                waiting.result(20)
        else:
            assert waiting.result(20) is unit
    assert str(unit.get_status().state) == state
    assert unit.get_status().message == given.get("message", unit.get_status().message)
    assert other.get_status().is_completed
    assert time.monotonic() - begun < 30


def test_a_unit_is_not_marked_as_both() -> None:
    with xm_local.create_experiment("both") as experiment:
        unit = experiment.add(sh("true")).result(20)
        with pytest.raises(run.ConfigError, match="not both"):
            unit.stop(mark_as_failed=True, mark_as_completed=True)


def test_a_generator_is_stopped_where_it_waits() -> None:
    async def generate(unit: xm.ExperimentUnit) -> None:
        await unit.add(sh(FOREVER))
        await asyncio.sleep(600)

    async def main() -> None:
        async with xm_local.create_experiment("generator") as experiment:
            adding = experiment.add(generate)
            while not Store(experiment.path).experiment().jobs:
                await asyncio.sleep(0.01)
            experiment.work_units[1].stop()
            with pytest.raises(xm.ExperimentUnitNotCompletedError):
                await adding

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_generator_may_stop_its_own_unit() -> None:
    async def generate(unit: xm.ExperimentUnit) -> None:
        await unit.add(sh(FOREVER))
        unit.stop(mark_as_completed=True)

    with xm_local.create_experiment("itself") as experiment:
        unit = experiment.add(generate).result(20)
    assert unit.get_status().is_completed


def test_of_a_group_one_that_fails_takes_the_others_down_and_one_that_succeeds_does_not(
    tmp_path: Path,
) -> None:
    with ends_in(xm.ExperimentUnitFailedError, "bad"), xm_local.create_experiment("group") as experiment:
        experiment.add(xm.JobGroup(bad=sh("sleep 0.3; exit 2"), long=sh(FOREVER)))
        experiment.add(xm.JobGroup(short=sh("true"), long=sh(f"sleep 1; echo done >{tmp_path}/x")))
    assert lines(tmp_path / "x") == ["done"]
    assert experiment.work_units[2].get_status().is_completed


def test_somebody_else_may_cancel_a_unit() -> None:
    with (
        ends_in(xm.ExperimentUnitNotCompletedError, "cancelled"),
        xm_local.create_experiment("other") as experiment,
    ):
        experiment.add(sh(FOREVER)).result(20)
        assert nemo("experiment", "cancel", experiment.store_id, "1").returncode == 0
    assert experiment.work_units[1].get_status().is_stopped


# --- generators -----------------------------------------------------------------------------------------


def test_a_generator_adds_jobs_one_after_another_as_they_end(tmp_path: Path) -> None:
    async def chain(unit: xm.WorkUnit, steps: int) -> None:
        for step in range(steps):
            await unit.add(sh(f"echo {step} >>{tmp_path}/trace", name=f"step{step}"))
            await unit.wait_until_complete()

    with xm_local.create_experiment("chain") as experiment:
        unit = experiment.add(chain, args={"steps": 3})
        assert unit.result(30).get_status().is_completed
    assert lines(tmp_path / "trace") == ["0", "1", "2"]
    assert [e.id for e in Store(experiment.path).experiment().jobs] == ["1", "1.2", "1.3"]


def test_a_generator_adds_further_units_to_the_experiment(tmp_path: Path) -> None:
    async def main_unit(unit: xm.WorkUnit) -> None:
        await unit.add(sh("true"))
        other = await unit.experiment.add(sh(f"echo other >{tmp_path}/trace"))
        await other.wait_until_complete()

    with xm_local.create_experiment("further") as experiment:
        experiment.add(main_unit)
    assert lines(tmp_path / "trace") == ["other"]
    assert sorted(experiment.work_units) == [1, 2]


def test_generators_of_many_units_run_side_by_side(tmp_path: Path) -> None:
    """The one that goes on last lets the one before it go on, which would wait for ever in a row."""
    gates = [asyncio.Event() for _ in range(10)]

    async def generate(unit: xm.WorkUnit, number: int) -> None:
        if number + 1 < len(gates):
            await gates[number + 1].wait()
        await unit.add(sh(f"echo {number} >>{tmp_path}/trace"))
        await unit.wait_until_complete()
        gates[number].set()

    with xm_local.create_experiment("side by side") as experiment:
        for number in range(10):
            experiment.add(generate, args={"number": number})
    assert lines(tmp_path / "trace") == [str(number) for number in reversed(range(10))]


def test_two_jobs_of_one_name_in_a_unit_are_refused() -> None:
    async def twice(unit: xm.WorkUnit) -> None:
        await unit.add(sh("true"))
        await unit.add(sh("true"))

    with ends_in(ValueError, "has a job 'sh' already"), xm_local.create_experiment("same") as experiment:
        experiment.add(twice)


# --- from another process -------------------------------------------------------------------------------


def test_a_unit_of_another_process_is_looked_at_waited_for_and_stopped(tmp_path: Path) -> None:
    path = script(
        tmp_path / "launcher.py",
        f"""
        with xm_local.create_experiment("theirs") as experiment:
            experiment.add(sh("while ! test -e {tmp_path}/go; do sleep 0.05; done"))
            experiment.add(sh("exec sleep 600")).result()
            while experiment.work_units[2].get_status().message != "" or str(
                experiment.work_units[2].get_status().state
            ) != "RUNNING":
                time.sleep(0.01)
            os.kill(os.getpid(), 9)
        """,
    )
    assert launch(path).returncode == -9
    (folder,) = scan("theirs")
    experiment = xm_local.get_experiment(int(folder.name.rpartition("_")[2]))
    first, second = experiment.work_units.values()
    assert first.get_status().is_active
    second.stop()
    with pytest.raises(xm.ExperimentUnitNotCompletedError):
        second.wait_until_complete().result(30)
    (tmp_path / "go").touch()

    async def wait() -> None:
        await first.wait_until_complete()

    asyncio.run(wait())
    assert first.get_status().is_completed


def test_a_unit_that_was_not_submitted_before_its_launcher_was_killed_is_submitted_by_who_waits(
    tmp_path: Path,
) -> None:
    from nemo_run.run.growing import Growing, create
    from nemo_run.run.job import make_job

    store = create("queued")
    growing = Growing(store)
    growing._dispatcher = _Deaf()  # type: ignore[assignment]  # a launcher that was killed before it submits
    task = run.Script(inline=f"echo ran >{tmp_path}/trace")
    growing.add([
        make_job(task, None, name="1", taken=[], plugins=[], tail_logs=False, dependencies=[])
    ])  # fmt: skip
    unit = xm_local.get_experiment(store.id).work_units[1]
    assert unit.wait_until_complete().result(60).get_status().is_completed
    assert lines(tmp_path / "trace") == ["ran"]


class _Deaf:
    def add(self, jobs: Any) -> None:
        pass
