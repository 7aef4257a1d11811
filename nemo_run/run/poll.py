"""Asking backends how the jobs do that they have, and waiting until there may be something new to hear."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from nemo_run.core.execution.base import TERMINAL, AppState, Executor, JobHandle, JobStatus
from nemo_run.run.ledger import Backend, Ledger
from nemo_run.run.look import as_changes, ask


class Poller:
    """Asks about jobs of one experiment, no backend more often than it likes, and takes down the answers."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._polled = 0.0
        self._unseen_since: dict[str, float] = {}
        self._bell = threading.Event()
        self._listening: dict[Backend, threading.Thread] = {}

    def may_poll(self, running: Iterable[str], submitting: bool) -> bool:
        """Each answer to a submission wakes us; meanwhile no backend is asked more often than it likes."""
        shortest = min(self._ledger.executor(job_id).poll_interval[0] for job_id in running)
        return not submitting or time.monotonic() >= self._polled + shortest

    def poll(self, running: Iterable[str]) -> tuple[bool, list[str]]:
        """Ask each backend once about all these jobs: whether any has news, and the ids of those settled."""
        self._polled = time.monotonic()
        records, asked = self._ledger.records, self._by_backend(running)
        before = {job_id: records[job_id] for job_ids in asked.values() for job_id in job_ids}
        settled = [
            job_id
            for job_ids in asked.values()
            for job_id, status in zip(job_ids, self._ask(job_ids), strict=True)
            if self._take_note(job_id, status)
        ]
        return bool(settled) or any(records[name] is not was for name, was in before.items()), settled

    def _by_backend(self, job_ids: Iterable[str]) -> dict[Backend, list[str]]:
        found = defaultdict[Backend, list[str]](list)
        for job_id in job_ids:
            found[self._ledger.backend(job_id)].append(job_id)
        return found

    def _ask(self, job_ids: list[str]) -> list[JobStatus]:
        return ask(self._ledger.executor(job_ids[0]), self._handles(job_ids))

    def _handles(self, job_ids: Iterable[str]) -> list[JobHandle]:
        return [handle for job_id in job_ids if (handle := self._ledger.records[job_id].handle)]

    def _take_note(self, job_id: str, status: JobStatus) -> bool:
        """Whether nothing more is to be expected of a job."""
        if status.state == AppState.UNKNOWN:
            return self._is_lost(job_id, status)
        self._unseen_since.pop(job_id, None)
        if status.state in TERMINAL:
            self._ledger.update(job_id, **as_changes(status))
            return True
        before = self._ledger.records[job_id]
        if (seen := replace(before, **as_changes(status))) != before:
            self._ledger.note(seen)
        return False

    def _is_lost(self, job_id: str, status: JobStatus) -> bool:
        """A job that cannot be seen keeps its last state, until waiting for it makes no sense."""
        age = time.monotonic() - self._unseen_since.setdefault(job_id, time.monotonic())
        if age < self._ledger.executor(job_id).lost_after:
            return False
        message = f"not seen for {age:.0f} s: {status.message}"
        self._ledger.update(job_id, state=AppState.UNKNOWN, message=message)
        return True

    # --- waiting ----------------------------------------------------------------------------------------

    def ring(self) -> None:
        """End the wait of another thread, now or the next one."""
        self._bell.set()

    def pause(self, last: float, running: Iterable[str], *, submitting: bool, may_ring: bool) -> float:
        """Wait longer each time nothing has changed, within what the backends ask for; returns how long.

        Args:
            last: What it returned the last time; 0 after a change.
            running: The jobs to hear of.
            submitting: The end of a submission wakes nobody, so one that is on its way is looked at soon.
            may_ring: Somebody may `ring` meanwhile.
        """
        jobs = self._by_backend(running)
        heard = {backend: self._ledger.executor(job_ids[0]) for backend, job_ids in jobs.items()}
        idle = (0.05, 1.0) if may_ring else (0.01, 0.01)
        intervals = [executor.poll_interval for executor in heard.values()] or [idle]
        shortest, longest = min(low for low, _ in intervals), min(high for _, high in intervals)
        seconds = max(shortest, min(last * 1.5, 0.05 if submitting else longest))
        if len(heard) == 1 and not may_ring:
            ((backend, executor),) = heard.items()
            executor.await_news(self._handles(jobs[backend]), seconds)
            return seconds
        for backend, executor in heard.items():
            self._listen(backend, executor, self._handles(jobs[backend]), seconds)
        self._bell.wait(seconds)
        self._bell.clear()
        return seconds

    def _listen(self, backend: Backend, executor: Executor, handles: list[JobHandle], seconds: float) -> None:
        """Have the bell rung when a backend may have news, as several can only be waited for in threads."""
        if (thread := self._listening.get(backend)) and thread.is_alive():
            return

        def listen() -> None:
            begun = time.monotonic()
            executor.await_news(handles, seconds)
            if time.monotonic() < begun + 0.9 * seconds:  # else the time is up for whoever waits, too
                self._bell.set()

        self._listening[backend] = threading.Thread(target=listen, daemon=True)
        self._listening[backend].start()
