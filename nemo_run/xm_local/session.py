"""What there is of an experiment from the beginning of its `with` to the end: a loop, an engine, an end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from nemo_run.core.execution.base import AppState
from nemo_run.run.growing import Growing
from nemo_run.run.records import JobRecord
from nemo_run.run.store import Store
from nemo_run.xm import core
from nemo_run.xm.jobs import Job, JobGroup
from nemo_run.xm_local.ending import Endings
from nemo_run.xm_local.registry import Registry
from nemo_run.xm_local.starting import Starter
from nemo_run.xm_local.streaming import Streams
from nemo_run.xm_local.units import AuxiliaryUnit, Unit, WorkUnit

logger = logging.getLogger("nemo_run")

#: Seconds that jobs have to end once they have been asked to, before nobody waits for that any longer.
PATIENCE = 30.0


class Session:
    """Runs an experiment while its `with` lasts.

    Args:
        store: The experiment's records.
        registry: Its units.
        loop: The event loop that they are filled in.

    Raises:
        ConfigError: another process runs it.
    """

    def __init__(self, store: Store, registry: Registry, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._store = store
        self._registry = registry
        self._streams = Streams()
        self._endings = Endings()
        self._begun = time.time()
        self._engine = Growing(store, on_change=self.took_note, on_end=self._ended)
        self._starter = Starter(self._engine, registry, self._streams, loop)
        self._engine.start()
        self._endings.begin()

    async def start(self, unit: Unit, job: Job | JobGroup) -> None:
        """Start the jobs of a unit; raises as `Starter.start`."""
        await self._starter.start(unit, job)

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Ask jobs to end; it does not wait."""
        self._engine.cancel(job_ids)

    def record(self, job_id: str) -> JobRecord | None:
        """What is known of a job at this moment."""
        return self._engine.record(job_id)

    def in_loop(self, deed: Callable[[], Any]) -> None:
        """Do something in the loop soon, if that is still there."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(deed)

    def took_note(self, record: JobRecord) -> None:
        """Hear of a record that changed, in whichever thread changed it."""
        self._streams.begin(record)
        if has_ended(record):
            self._starter.ended(record)
            if unit := self._registry.owner(record.id):
                unit.took_end(record)

    def _ended(self, error: BaseException | None) -> None:
        """Nobody hears of jobs any more: what is waited for will not be heard of either."""
        for job_id in self._registry.unended():
            if unit := self._registry.owner(job_id):
                unit.lost(job_id, error)

    # --- to the end -------------------------------------------------------------------------------------

    async def see_through(self) -> None:
        """Wait until all units have ended; those that serve others go after them."""
        done: set[str] = set()
        while left := [u for u in self._registry.units() if isinstance(u, WorkUnit) and u.job_id not in done]:
            await asyncio.gather(*(unit.ended() for unit in left))
            done |= {unit.job_id for unit in left}
        auxiliary = [unit for unit in self._registry.units() if isinstance(unit, AuxiliaryUnit)]
        await asyncio.gather(*(self._retire(unit, after_others=bool(done)) for unit in auxiliary))

    async def _retire(self, unit: Unit, *, after_others: bool) -> None:
        """End a unit some time after those it served; one that served none ends by itself."""
        ended = asyncio.ensure_future(unit.ended())
        if after_others:
            assert isinstance(unit.role, core.AuxiliaryUnitRole)
            await asyncio.wait([ended], timeout=unit.role.termination_delay_secs)
            if not ended.done():
                unit.stop()
        await ended

    def close(self) -> None:
        """No more jobs are to come, and all have ended."""
        self._engine.close()
        self._streams.finish(PATIENCE)

    def leave(self) -> None:
        """Ask everything to end, and wait for that: an error, Ctrl-C or SIGTERM ends the experiment."""
        self._starter.leave()
        for unit in self._registry.units():
            if unit.filling is not None:
                self.in_loop(unit.filling.cancel)
        if left := self._registry.unended():
            logger.warning("experiment %s: ending %s", self._store.id, ", ".join(left))
        try:
            self._engine.cancel()
        except Exception as exc:  # the others have been asked
            logger.error("ending the jobs of %s: %s", self._store.id, exc)
        if not self._engine.close(timeout=PATIENCE):
            logger.error("jobs of %s have not ended yet: nemo experiment status %s", *[self._store.id] * 2)
        self._streams.finish(1.0)

    def end(self) -> None:
        """Let go of all of it."""
        self._starter.close()
        self._endings.end()

    def raise_failure(self) -> None:
        """Raise the first failure of a unit since the session began, and tell of the others."""
        failed = [
            (unit.failed_at, unit.job_id, failure)
            for unit in self._registry.units()
            if unit.failed_at >= self._begun and (failure := unit.failure_to_raise())
        ]
        failed.sort(key=lambda each: each[0])
        for _, job_id, failure in failed[1:]:
            logger.error("unit %s failed too: %s", job_id, failure)
        if failed:
            raise failed[0][2]
        if not self._registry.units():
            logger.warning("nothing was added to experiment %s", self._store.id)


def has_ended(record: JobRecord) -> bool:
    """Whether nothing more is heard of a job: it has ended, or it is lost."""
    return record.terminal or (record.state == AppState.UNKNOWN and record.message.startswith("not seen"))
