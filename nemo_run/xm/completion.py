"""Waiting for several work units; apart, because it needs asyncio, which takes long to import."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_run.xm.core import WorkUnit


class WorkUnitCompletedAwaitable(asyncio.Future[Any]):
    """What `work_unit.wait_until_complete()` gives: `asyncio.wait` takes it, and it knows its `work_unit`."""

    def __init__(self, work_unit: WorkUnit, completion: Awaitable[Any]) -> None:
        """Made inside a running event loop, of what ends when the unit does."""
        super().__init__()
        self.work_unit = work_unit
        self._completion = asyncio.ensure_future(completion)
        self._completion.add_done_callback(self._settle)
        self.add_done_callback(self._abandon)

    def _settle(self, completion: asyncio.Future[Any]) -> None:
        """Take over how it ended."""
        if self.done():
            return
        if completion.cancelled():
            self.cancel()
        elif exc := completion.exception():
            self.set_exception(exc)
        else:
            self.set_result(completion.result())

    def _abandon(self, _: asyncio.Future[Any]) -> None:
        """Stop waiting where nobody does any more."""
        if self.cancelled():
            self._completion.cancel()
