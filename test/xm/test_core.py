"""Experiments and units as every implementation has them; loops, labels, and waiting for several units."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from programs import python, succeeded, write
from xm_samples import PROGRAM, Spec, job

import nemo_run as run
from nemo_run import xm
from nemo_run.xm import core


class Unit(xm.WorkUnit):
    """A work unit that remembers what it was given."""

    def __init__(self, experiment: xm.Experiment, number: int) -> None:
        self.experiment, self.number, self.role = experiment, number, xm.WorkUnitRole()
        self.added: list[Any] = []

    work_unit_id = property(lambda self: self.number)  # type: ignore[assignment]
    experiment_unit_name = property(lambda self: f"{self.experiment_id}_{self.number}")  # type: ignore[assignment]
    launched_jobs = property(lambda self: [xm.LaunchedJob("a", address="here")])  # type: ignore[assignment]

    async def add(self, job: Any, args: Any = None, *, identity: str = "") -> None:
        self.added.append((job, args))

    def wait_until_complete(self) -> xm.WorkUnitCompletedAwaitable:
        async def end() -> None:
            await asyncio.sleep(self.number / 50)
            if self.number == 2:
                raise xm.ExperimentUnitFailedError("it failed", work_unit=self)

        return xm.WorkUnitCompletedAwaitable(self, end())

    def stop(self, **how: Any) -> None:
        raise NotImplementedError

    def get_status(self) -> xm.ExperimentUnitStatus:
        raise NotImplementedError


class Trial(xm.Experiment):
    """An experiment that packages and runs nothing."""

    experiment_id = 7  # type: ignore[assignment]
    context = xm.MetadataContext("me", xm.ContextAnnotations("a title"))  # type: ignore[assignment]

    def __init__(self) -> None:
        self.units: dict[int, xm.WorkUnit] = {}

    work_units = property(lambda self: self.units)  # type: ignore[assignment]

    @classmethod
    def package(cls, packageables: Sequence[xm.Packageable] = ()) -> Sequence[xm.Executable]:
        return [PROGRAM for _ in packageables]

    @classmethod
    def package_async(cls, packageable: xm.Packageable) -> Awaitable[xm.Executable]:
        raise NotImplementedError

    def add(
        self, job: Any, args: Mapping[str, Any] | None = None, *, role: Any = None, identity: str = ""
    ) -> Any:
        self.units[len(self.units) + 1] = Unit(self, len(self.units) + 1)

    def __exit__(self, *exc: object) -> None: ...

    async def __aexit__(self, *exc: object) -> None: ...


def test_units_know_their_experiment_and_its_jobs_full_names() -> None:
    experiment = Trial()
    experiment.add(job())
    unit = experiment.work_units[1]
    assert (unit.experiment_id, unit.identity, unit.context.annotations.title) == (7, "", "a title")
    assert unit.get_full_job_name("redis") == "7_1_redis"
    assert unit.launched_jobs[0].logs is None
    assert experiment.work_unit_count == 1


def test_a_title_can_be_changed() -> None:
    annotations = xm.ContextAnnotations("old")
    annotations.set_title("new")
    assert annotations.title == "new"
    assert xm.ContextAnnotations().title == ""


# --- Roles and auxiliary units --------------------------------------------------------------------------


def test_roles_have_an_importance() -> None:
    assert xm.WorkUnitRole() == xm.WorkUnitRole(importance=xm.Importance.NORMAL, tags=())
    assert xm.AuxiliaryUnitRole(30) == xm.AuxiliaryUnitRole(termination_delay_secs=30)
    assert isinstance(xm.AuxiliaryUnitRole(0), xm.ExperimentUnitRole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xm.WorkUnitRole(importance="high"), "importance must be one of xm.Importance.HIGH"),
        (lambda: xm.AuxiliaryUnitRole(-1), "termination_delay_secs is a number of seconds from 0 on, not -1"),
        (lambda: xm.AuxiliaryUnitRole("1"), "termination_delay_secs is a number of seconds"),
        (lambda: xm.AuxiliaryUnitRole(float("nan")), "termination_delay_secs is a number of seconds"),
        (lambda: xm.AuxiliaryUnitJob(job(), termination_delay_secs=None), "termination_delay_secs"),
        (lambda: xm.AuxiliaryUnitJob(print, termination_delay_secs=1), "job of AuxiliaryUnitJob is .*async"),
    ],
)
def test_a_role_that_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_auxiliary_job_is_a_generator_with_a_role_of_its_own() -> None:
    single = job()
    auxiliary = xm.AuxiliaryUnitJob(single, termination_delay_secs=5, importance=xm.Importance.LOW)
    assert xm.jobs.is_job_generator(auxiliary)
    assert auxiliary.role == xm.AuxiliaryUnitRole(5, importance=xm.Importance.LOW)
    unit = Unit(Trial(), 1)
    asyncio.run(auxiliary(unit, args={"a": 1}))
    [(added, args)] = unit.added
    assert added == single
    assert added is not single
    assert args == {"args": {"a": 1}}


def test_an_auxiliary_job_may_be_made_of_a_generator() -> None:
    async def generate(unit: Any, *, count: int) -> None:
        for number in range(count):
            await unit.add(number)

    unit = Unit(Trial(), 1)
    asyncio.run(xm.AuxiliaryUnitJob(generate, termination_delay_secs=5)(unit, count=2))
    assert [added for added, _ in unit.added] == [0, 1]


# --- Errors ---------------------------------------------------------------------------------------------


def test_errors_of_units_are_those_of_executions_too() -> None:
    error = xm.ExperimentUnitFailedError("it failed", work_unit="unit", record="record")
    assert (str(error), error.work_unit, error.record) == ("it failed", "unit", "record")
    assert isinstance(error, (run.ExecutionError, RuntimeError))
    assert issubclass(xm.ExperimentUnitNotCompletedError, xm.ExperimentUnitError)
    assert issubclass(xm.NotFoundError, KeyError)
    assert not issubclass(xm.DebugInterrupt, Exception)


# --- The experiment around ------------------------------------------------------------------------------


def test_package_is_that_of_the_experiment_around() -> None:
    one = xm.binary(Spec(), "/bin/true")

    def around() -> None:
        core._current_experiment.set(Trial())
        assert list(xm.Package([one])) == [PROGRAM]
        assert list(xm.Package(one, one)) == [PROGRAM, PROGRAM]

    contextvars.copy_context().run(around)
    with pytest.raises(RuntimeError, match=r"there is no experiment here; .*create_experiment") as caught:
        xm.Package([one])
    assert isinstance(caught.value, run.ConfigError)


def test_libraries_can_put_their_label_on_what_they_add() -> None:
    @xm.framework_label("inner-1")
    def labelled() -> tuple[str, ...]:
        return core.current_framework_labels()

    with xm.framework_label("outer"):
        assert labelled() == labelled() == ("outer", "inner-1")
        assert core.current_framework_labels() == ("outer",)
    assert core.current_framework_labels() == ()
    with pytest.raises(ValueError, match="a framework's label is made of letters"):
        xm.framework_label("a b")


# --- Loops ----------------------------------------------------------------------------------------------


def test_a_coroutine_function_can_be_made_a_function() -> None:
    @xm.run_in_asyncio_loop
    async def main(argv: list[str], *, times: int) -> list[str]:
        """What it does."""
        await asyncio.sleep(0)
        return argv * times

    assert main(["x"], times=2) == ["x", "x"]
    assert main.__doc__ == "What it does."


def test_where_a_loop_runs_already_it_gets_a_thread_and_the_context() -> None:
    where: contextvars.ContextVar[str] = contextvars.ContextVar("where")

    async def inner() -> tuple[str, str]:
        return where.get(), threading.current_thread().name

    async def notebook() -> tuple[str, str]:
        where.set("a cell")
        return xm.run_in_asyncio_loop(inner)()

    value, thread = asyncio.run(notebook())
    assert value == "a cell"
    assert thread != threading.current_thread().name


def test_an_error_of_the_coroutine_is_the_functions() -> None:
    async def fail() -> None:
        raise KeyError("x")

    async def notebook() -> None:
        xm.run_in_asyncio_loop(fail)()

    for call in (xm.run_in_asyncio_loop(fail), lambda: asyncio.run(notebook())):
        with pytest.raises(KeyError, match="x"):
            call()


def test_a_call_in_place_of_a_function_is_refused() -> None:
    async def main() -> None: ...

    called = main()
    with pytest.raises(TypeError, match=r"takes an async function, not <coroutine.*name it without \(\)"):
        xm.run_in_asyncio_loop(called)  # type: ignore[arg-type]
    called.close()


def test_units_can_be_waited_for_together() -> None:
    experiment = Trial()
    for _ in range(3):
        experiment.add(job())

    async def ends() -> list[tuple[int, str]]:
        found = []
        waiting: set[Any] = {unit.wait_until_complete() for unit in experiment.work_units.values()}
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for event in done:
                try:
                    await event
                    found.append((event.work_unit.work_unit_id, "completed"))
                except xm.ExperimentUnitError as exc:
                    found.append((event.work_unit.work_unit_id, str(exc)))
        return found

    assert asyncio.run(ends()) == [(1, "completed"), (2, "it failed"), (3, "completed")]


def test_who_stops_waiting_stops_what_waits_for_it() -> None:
    async def main() -> bool:
        never = asyncio.get_running_loop().create_future()
        event = xm.WorkUnitCompletedAwaitable(Unit(Trial(), 1), never)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(event, 0.01)
        await asyncio.sleep(0)
        return never.cancelled()

    assert asyncio.run(main())


# --- Names and speed ------------------------------------------------------------------------------------

#: What launch scripts find in XManager's `xm`.
EXPORTS = """
    job_operators vCPU KiB MiB GiB TiB PiB KB MB GB TB PB
    AuxiliaryUnit AuxiliaryUnitJob AuxiliaryUnitRole DebugInterrupt Experiment ExperimentUnit
    ExperimentUnitError ExperimentUnitFailedError ExperimentUnitNotCompletedError ExperimentUnitRole
    ExperimentUnitStatus Importance LaunchedJob NotFoundError ReloadError WorkUnit WorkUnitRole
    WorkUnitCompletedAwaitable
    BazelBinary BazelContainer Binary BinaryDependency CommandList Container Dockerfile ModuleName
    PythonContainer Constraint Executable ExecutableSpec Executor ExecutorSpec get_args_for_all_jobs Job
    JobConfig JobGeneratorType JobGroup JobType merge_args Packageable SequentialArgs UserArgs
    ContextAnnotations MetadataContext bazel_binary bazel_container binary container dockerfile_container
    python_container
    AcceleratorType Architecture GpuType InvalidTpuTopologyError JobRequirements ResourceDict ResourceQuantity
    ResourceType ServiceTier Topology TpuType
    run_in_asyncio_loop ShellSafeArg framework_label core utils resources
"""


@pytest.mark.parametrize("name", EXPORTS.split())
def test_each_word_of_xmanager_is_there(name: str) -> None:
    assert getattr(xm, name) is not None
    assert name in xm.__all__


def test_words_that_are_not_there_are_named() -> None:
    assert set(xm.__all__) == {*EXPORTS.split(), "Package"}
    with pytest.raises(AttributeError, match="Jop"):
        _ = xm.Jop  # type: ignore[attr-defined]


def test_importing_them_loads_nothing_slow(tmp_path: Path) -> None:
    script = write(
        tmp_path / "script.py",
        """
            import sys
            before = set(sys.modules)
            from nemo_run import xm
            print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
        """,
    )
    loaded = set(succeeded(python("-I", script)).stdout.split())
    assert not loaded & {"asyncio", "fiddle", "torchx", "typing_extensions", "yaml", "rich", "subprocess"}
    assert len(loaded) < 60
