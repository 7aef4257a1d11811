"""From a job of a unit to one that the engine has: GPUs of this machine, checks, records."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from nemo_run.run.growing import Growing
from nemo_run.run.records import JobRecord
from nemo_run.xm import job_operators
from nemo_run.xm.errors import BadValueError
from nemo_run.xm.jobs import Job, JobGroup
from nemo_run.xm_local import backends
from nemo_run.xm_local.executors import Local
from nemo_run.xm_local.gpus import Gpus
from nemo_run.xm_local.interactive import is_interactive, open_shell
from nemo_run.xm_local.registry import UNIT, Registry
from nemo_run.xm_local.streaming import Streams
from nemo_run.xm_local.units import Unit

#: Seconds between two looks at GPUs that jobs of other launchers have, whose ends nobody hears.
_PAUSE = 2.0


class Starter:
    """Starts the jobs of an experiment's units.

    Args:
        engine: What dispatches them.
        registry: The units.
        streams: What prints their lines.
        loop: The event loop that units are filled in.
    """

    def __init__(
        self, engine: Growing, registry: Registry, streams: Streams, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._streams = streams
        self._loop = loop
        self._gpus: Gpus | None = None
        self._freed = asyncio.Event()
        self._leaving = False
        #: Adds jobs of this machine in their order; others may first have to log in somewhere.
        self._in_order = ThreadPoolExecutor(1)

    async def start(self, unit: Unit, job: Job | JobGroup) -> None:
        """Have the jobs of a unit written down and started.

        Raises:
            ConfigError: something in them cannot work.
        """
        group = job_operators.get_jobs(job)
        if not group:
            raise BadValueError(f"the JobGroup that was added to unit {unit.job_id} has no jobs")
        shells = [each for each in group if is_interactive(each)]
        if group := [each for each in group if each not in shells]:
            await self._start(unit, group)
        for shell in shells:
            unit.attended = True
            await asyncio.to_thread(open_shell, shell, unit.get_full_job_name(str(shell.name)))

    async def _start(self, unit: Unit, group: Sequence[Job]) -> None:
        job_id = unit.new_part()
        gpus = await self._claim(group, job_id)
        here = all(isinstance(each.executor, Local) for each in group)
        thread = self._in_order if here else None
        try:
            await self._loop.run_in_executor(thread, self._add, unit, job_id, group, gpus)
        except BaseException:
            if gpus:
                self._release(job_id)
            raise

    def _add(self, unit: Unit, job_id: str, group: Sequence[Job], gpus: Mapping[str, Sequence[str]]) -> None:
        """Check jobs, write them down and have them started; in a thread, as all of that takes its time."""
        experiment = unit.experiment_id
        place = backends.Place(full_name=unit.get_full_job_name, network=f"nemo_run_{experiment}", gpus=gpus)
        jobs = backends.engine_jobs(job_id, group, place)
        kept = json.dumps(self._registry.describe(unit, group), indent=1) + "\n"
        self._registry.take(unit, jobs)
        for job in jobs:
            if names := backends.streamed(job, group):
                self._streams.expect(job, names)
        try:
            self._engine.add(jobs, {f"{job.id}/{UNIT}": kept for job in jobs})
        except BaseException:
            self._registry.forget(jobs)
            raise
        if unit.stopped or self._leaving:
            self._engine.cancel([job.id for job in jobs])

    def leave(self) -> None:
        """End what is being added meanwhile, too."""
        self._leaving = True

    def close(self) -> None:
        """Nothing more is started."""
        self._in_order.shutdown(wait=False)

    # --- GPUs -------------------------------------------------------------------------------------------

    async def _claim(self, group: Sequence[Job], job_id: str) -> dict[str, list[str]]:
        """By name of a job the GPUs of this machine that are its own, once there are enough."""
        counts = {str(job.name): count for job in group if (count := backends.local_gpus(job))}
        if not counts:
            return {}
        if self._gpus is None:
            self._gpus = await asyncio.to_thread(Gpus)
        job_dir = self._engine.store.job_dir(job_id)
        while True:
            self._freed.clear()
            mine = await asyncio.to_thread(self._gpus.claim, sum(counts.values()), job_dir)
            if mine is not None:
                left = iter(mine)
                return {name: list(itertools.islice(left, count)) for name, count in counts.items()}
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._freed.wait(), _PAUSE)

    def ended(self, record: JobRecord) -> None:
        """Hear of a job's end, in any thread: what it had of this machine is free."""
        if self._gpus is not None:
            self._release(record.id)

    def _release(self, job_id: str) -> None:
        assert self._gpus
        self._gpus.release(self._engine.store.job_dir(job_id))
        with contextlib.suppress(RuntimeError):  # the loop has gone
            self._loop.call_soon_threadsafe(self._freed.set)
