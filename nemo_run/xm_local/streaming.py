"""Printing what local jobs print, each line after `[the job's name]`."""

from __future__ import annotations

import time
from collections.abc import Mapping

from nemo_run.run.job import Job
from nemo_run.run.logs import Printer, Source, Tail, sources
from nemo_run.run.look import secret_values
from nemo_run.run.records import JobRecord


class _Stream(Tail):
    """One job's lines."""

    def __init__(self, job: Job, names: Mapping[str, str], printer: Printer) -> None:
        super().__init__(job.id, printer)
        self.job = job
        self._names = names

    def _line(self, source: Source, text: str, several: bool) -> str:
        return f"[{self._names[source.role]}] {text}"


class Streams:
    """The lines of all jobs of an experiment that are to be printed."""

    def __init__(self) -> None:
        self._printer = Printer()
        self._streams: dict[str, _Stream] = {}

    def expect(self, job: Job, names: Mapping[str, str]) -> None:
        """Print this job's lines once it has begun, with the names of its roles as people know them."""
        self._streams[job.id] = _Stream(job, names, self._printer)

    def begin(self, record: JobRecord) -> None:
        """Begin with a job that has been submitted, if that is expected."""
        if record.handle and (stream := self._streams.get(record.id)):
            job = stream.job
            found, secrets = sources(job.roles, job.executors), secret_values(job.executors)
            stream.start(job.executors[0], record.handle, found, secrets)

    def finish(self, patience: float) -> None:
        """Wait until the last lines are printed, but not longer than so many seconds."""
        deadline = time.monotonic() + patience
        for stream in self._streams.values():
            stream.finish(deadline)
        self._printer.stop()
