"""Event loops and threads: what is to come, for those who `await` it and for those who ask for its result."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds to wait without a look around: a signal that comes just before a wait begins does not end it.
SHORT = 0.5
#: Seconds that what is left in a loop has to end.
_PATIENCE = 30.0


class Pending(Future[T]):
    """What is to come, for `await` in any event loop and for `result()` in none."""

    def result(self, timeout: float | None = None) -> T:
        """It, once it is there.

        Raises:
            TimeoutError: it is not there after so many seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.done() and (deadline is None or time.monotonic() < deadline):
            wait([self], SHORT if deadline is None else min(SHORT, deadline - time.monotonic()))
        return super().result(0)

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()

    #: The unit whose end it is, where it is one.
    work_unit: Any = None


def started(
    coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop
) -> asyncio.Future[T] | Pending[T]:
    """Have a coroutine run in a loop; from that loop itself it is a task of it."""
    if asyncio._get_running_loop() is loop:
        return loop.create_task(coroutine)
    pending = Pending[T]()
    inner = asyncio.run_coroutine_threadsafe(coroutine, loop)
    inner.add_done_callback(lambda done: _hand_on(done, pending))
    return pending


def _hand_on(done: Future[T], pending: Pending[T]) -> None:
    if done.cancelled():
        pending.cancel()
        pending.set_running_or_notify_cancel()
    elif error := done.exception():
        pending.set_exception(error)
    else:
        pending.set_result(done.result())


async def settled(future: asyncio.Future[Any] | Pending[Any]) -> None:
    """Wait for its end, whatever that is."""
    waiting = asyncio.wrap_future(future) if isinstance(future, Future) else future
    await asyncio.wait([waiting])
    if not waiting.cancelled():
        waiting.exception()  # so that nobody is told that nobody asked


_loops: list[asyncio.AbstractEventLoop] = []
_making = threading.Lock()


def background_loop() -> asyncio.AbstractEventLoop:
    """A loop of this process's own, for whoever waits without one."""
    with _making:
        if not _loops:
            _loops.append(asyncio.new_event_loop())
            threading.Thread(target=run_loop, args=(_loops[0],), name="waiting", daemon=True).start()
        return _loops[0]


def run_loop(loop: asyncio.AbstractEventLoop) -> None:
    """What a loop's thread does, until `stop_loop`."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def stop_loop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """End a loop, and what is left in it."""
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_PATIENCE)


def stay_awake(loop: asyncio.AbstractEventLoop, while_: Callable[[], bool]) -> None:
    """Have a loop look around now and then, as signals need it."""
    if while_():
        loop.call_later(SHORT, stay_awake, loop, while_)
