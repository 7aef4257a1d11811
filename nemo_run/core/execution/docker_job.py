"""The life of one job in containers, kept going by any process that looks at it.

All that is to be known of it lies in its folder: `docker.json` says what was asked for and how far that has
come, `end.json` how it ended. `tend` takes the next steps that are due, under a lock in the same folder, and
each step may be the last of a process that is killed: whoever comes next goes on from there. The last step
removes the containers, and then `docker.json`; with it gone nobody asks the Engine about this job again.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from nemo_run.core import runner
from nemo_run.core.execution import docker_entrypoint
from nemo_run.core.execution.base import TERMINAL, AppState, JobStatus
from nemo_run.core.execution.docker_build import ensure_built
from nemo_run.core.execution.docker_engine import (
    ATTEMPT,
    JOB_DIR,
    TOKEN,
    Engine,
    EngineRefusal,
    connect,
)
from nemo_run.core.execution.docker_files import (
    FETCHED,
    RUNDIR,
    folder_archive,
    secrets_of,
    start_archive,
    to_mask,
    values_of,
)
from nemo_run.core.execution.docker_state import (
    container_name,
    decide,
    ended_as,
    member_of,
    outcome_in,
    until_due,
)
from nemo_run.core.logfile import read_lines
from nemo_run.core.masking import mask_chunks
from nemo_run.core.packaging.image import Image
from nemo_run.core.process import start_time, this_host
from nemo_run.core.records import read_record
from nemo_run.errors import ConfigError, SubmitError

Record = dict[str, Any]


class DockerJob:
    """One job, by its folder.

    Args:
        job_dir: The folder.
        secrets: The values of its secrets by name, where somebody has read them already.
    """

    def __init__(self, job_dir: Path, secrets: Mapping[str, str] | None = None) -> None:
        self.job_dir = job_dir
        self._values = dict(secrets or {})

    # --- records ----------------------------------------------------------------------------------------

    def record(self) -> Record | None:
        """What was asked for and how far it has come; None before the submission and after the last step."""
        return read_record(self.job_dir / "docker.json")

    def end(self) -> Record | None:
        """How it ended."""
        return read_record(self.job_dir / "end.json")

    def _write(self, record: Record) -> None:
        runner.write(str(self.job_dir / "docker.json"), json.dumps(record, indent=1) + "\n")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep all other processes, and this one's other threads, from tending the job meanwhile."""
        with open(self.job_dir / "docker.lock", "ab", opener=runner.private) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # --- beginning --------------------------------------------------------------------------------------

    def submit(self, request: Record) -> None:
        """Make and start the containers, unless an earlier try has.

        Raises:
            SubmitError: the Engine refuses, and nothing has been started.
        """
        engine = connect(request["url"])
        for role in request["roles"]:
            if build := role["build"]:
                image = Image(**{**build, "context": Path(build["context"])})
                ensure_built(engine, image, self.job_dir / "build.log")
            else:
                engine.require_image(role["kwargs"]["image"])
        self._values |= values_of(request, self._values)
        with self._alone():
            if (end := self.end()) and end["token"] == request["token"]:
                return
            record = self.record()
            if record is None or record["request"]["token"] != request["token"]:
                self._stage(request)
                record = {"engine": engine.id, "request": request, "attempt": 1, "attempts": []}
                record |= {"phase": "creating", "started": None, "stopping": None}
                self._write(record)
            try:
                self._launch(engine, record)
            except EngineRefusal:
                self._remove_all(engine, record)
                (self.job_dir / "docker.json").unlink()
                raise
        if needs_keeper(request):
            self.ensure_keeper()

    def _stage(self, request: Record) -> None:
        """Make in the job's folder what every job has, before a container could, and as its owner."""
        for folder in ("logs", "results", "artifacts", *request["folders"]):
            (self.job_dir / folder).mkdir(mode=0o700, parents=True, exist_ok=True)

    def _launch(self, engine: Engine, record: Record) -> None:
        """Make all containers of the current attempt, then start them.

        Up to the first start a missing container is one not yet made; from then on it is one removed.
        """
        roles = record["request"]["roles"]
        if record["phase"] == "creating":
            if network := record["request"]["network"]:
                engine.create_network(network, _labels(record["request"]))
            for role in roles:
                self._create(engine, record, role)
            record |= {"phase": "starting", "started": time.time()}
            self._write(record)
        # A GPU that is not there is only noticed at the start, and then nothing else shall have begun.
        for role in sorted(roles, key=lambda role: not role["kwargs"].get("device_requests")):
            name = container_name(record, role)
            if (there := engine.inspect(name)) and there["State"]["Status"] == "created":
                self._start(engine, record, name)
        record |= {"phase": "started"}
        self._write(record)

    def _start(self, engine: Engine, record: Record, name: str) -> None:
        """Start a container; whoever was last in a shared network may just have removed that."""
        network, tries = record["request"]["network"], 10
        while True:
            try:
                return engine.start(name)
            except EngineRefusal as exc:
                tries -= 1
                if not tries or not network or exc.status != 404 or network not in exc.output:
                    raise
                engine.create_network(network, _labels(record["request"]))

    def _create(self, engine: Engine, record: Record, role: Record) -> None:
        name, attempt = container_name(record, role), str(record["attempt"])
        environment = role["kwargs"]["environment"] | {runner.ATTEMPT: attempt}
        labels = role["kwargs"]["labels"] | {ATTEMPT: attempt}
        kwargs = role["kwargs"] | {"name": name, "environment": environment, "labels": labels}
        if own := role.get("own"):
            docker_entrypoint.create(engine, kwargs, own)
        else:
            engine.create(kwargs)
        if not record["request"]["same_files"]:
            engine.put(name, folder_archive(self.job_dir, role["kwargs"]["user"]))
        if role["start"]:
            engine.put(name, start_archive(role["start"], values_of(record["request"], self._values)))

    # --- going on ---------------------------------------------------------------------------------------

    def tend(self) -> JobStatus:
        """Take the steps that are due, and say how the job is.

        Raises:
            SubmitError: the Engine does not answer.
        """
        with self._alone():
            while True:
                if end := self.end():
                    self._clear_away()
                    return from_end(end)
                record = self.record()
                if record is None:
                    return JobStatus(state=AppState.UNKNOWN, message=f"no record of it is in {self.job_dir}")
                engine = connect(record["request"]["url"])
                if record["engine"] != engine.id:
                    other = f"it runs on another Engine than the one now at {engine.url}"
                    return JobStatus(state=AppState.UNKNOWN, message=other)
                if (status := self._step(engine, record)) is not None:
                    return status

    def _step(self, engine: Engine, record: Record) -> JobStatus | None:
        """One step; a status where there is nothing more to do now."""
        if record["phase"] == "creating" and record["stopping"]:
            return self._finish(engine, record, {}, outcome_in(record["stopping"]))
        if record["phase"] != "started":
            try:
                self._launch(engine, record)
            except EngineRefusal as exc:
                return self._finish(engine, record, {}, ended_as("FAILED", 126, f"cannot be started: {exc}"))
        roles = record["request"]["roles"]
        members = {
            role["name"]: member_of(engine.inspect(container_name(record, role)), engine) for role in roles
        }
        decision = decide(record, members, time.time())
        if "signal" in decision:
            if record["stopping"] != decision["stopping"]:
                record["stopping"] = decision["stopping"]
                self._write(record)
            for role in roles:
                if members[role["name"]]["running"]:
                    engine.signal(container_name(record, role), decision["signal"])
        if "outcome" in decision:
            return self._finish(engine, record, members, decision["outcome"])
        return JobStatus(state=AppState.RUNNING, attempt=record["attempt"], started=record["started"])

    def _finish(
        self, engine: Engine, record: Record, members: Mapping[str, Any], outcome: Record
    ) -> JobStatus | None:
        """Record how an attempt ended: the next one begins, or the job has ended."""
        times = [member["finished"] for member in members.values() if member["finished"]]
        end = {"token": record["request"]["token"], "attempt": record["attempt"], **outcome}
        end |= {"started": record["started"], "ended": max(times, default=time.time())}
        timed_out = outcome["message"].startswith("TIMEOUT")
        again = (
            outcome["state"] == "FAILED"
            and not timed_out
            and record["attempt"] <= record["request"]["retries"]
        )
        try:
            secrets = values_of(record["request"], self._values)
        except ConfigError as exc:  # the containers stay for whoever can read them
            waiting = JobStatus(state=AppState.PENDING, message=f"its next attempt waits: {exc}")
            return waiting if again else from_end(end)
        self._keep_what_came_of_it(engine, record, to_mask(secrets))
        attempts = [*record["attempts"], {key: value for key, value in end.items() if key != "token"}]
        if again:
            record |= {"attempt": record["attempt"] + 1, "attempts": attempts}
            record |= {"phase": "creating", "started": None, "stopping": None}
            self._write(record)
            self._remove_all(engine, record, before=record["attempt"])
        else:
            extra = {"attempts": attempts} if len(attempts) > 1 else {}
            runner.write(str(self.job_dir / "end.json"), json.dumps(end | extra, indent=1) + "\n")
        return None

    def _keep_what_came_of_it(self, engine: Engine, record: Record, secrets: list[bytes]) -> None:
        """Save logs, and files that only the Engine sees."""
        for role in record["request"]["roles"]:
            if not engine.inspect(name := container_name(record, role)):
                continue
            _save(engine.log(name), self.log_path(role["name"], record["attempt"]), secrets)
            if not record["request"]["same_files"]:
                for folder in FETCHED:
                    engine.fetch(name, f"{RUNDIR}/{folder}", self.job_dir)

    def _clear_away(self) -> None:
        """The last step: what is left on the Engine, then the record that there is something."""
        if record := self.record():
            with contextlib.suppress(SubmitError):  # the next look tries again
                self._remove_all(connect(record["request"]["url"]), record)
                (self.job_dir / "docker.json").unlink()

    def _remove_all(self, engine: Engine, record: Record, before: int | None = None) -> None:
        request = record["request"]
        for there in engine.containers(request["token"], str(self.job_dir)):
            if before is None or int(there["Labels"][ATTEMPT]) < before:
                engine.remove(there["Id"])
        if request["network"] and before is None:
            engine.remove_network(request["network"])

    # --- ending -----------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Ask the job to end, and leave a keeper to see to it; harmless when it has ended.

        Raises:
            SubmitError: the Engine does not answer, or it is another.
        """
        if (status := self.tend()).state in TERMINAL:
            return
        if status.state == AppState.UNKNOWN:
            raise SubmitError(f"cannot cancel it: {status.message}")
        with self._alone():
            if (record := self.record()) and (record["stopping"] or {}).get("state") != "CANCELLED":
                record["stopping"] = ended_as("CANCELLED", 143, "cancelled") | {"since": None}
                self._write(record)
        if self.tend().state not in TERMINAL:
            self.ensure_keeper()

    # --- the keeper -------------------------------------------------------------------------------------

    def ensure_keeper(self) -> None:
        """See to it that a process tends the job until it has ended, whoever else goes."""
        keeper = read_record(self.job_dir / "keeper.json")
        if keeper and (keeper["host"] != this_host() or start_time(keeper["pid"]) == keeper["start_time"]):
            return
        root = str(Path(runner.__file__).parents[2])
        code = "from nemo_run.core.execution.docker_job import keep; keep()"
        with open(self.job_dir / "keeper.log", "ab", opener=runner.private) as log:
            process = subprocess.Popen(
                [sys.executable, "-c", f"import sys; sys.path.insert(1, {root!r}); {code}"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.job_dir,
                start_new_session=True,
            )
        keeper = {"pid": process.pid, "start_time": start_time(process.pid), "host": this_host()}
        runner.write(str(self.job_dir / "keeper.json"), json.dumps(keeper))
        threading.Thread(target=process.wait, daemon=True).start()  # so that no zombie of it stays
        with contextlib.suppress(BrokenPipeError), cast("IO[bytes]", process.stdin) as stdin:
            stdin.write(json.dumps([str(self.job_dir), self._values]).encode())

    def keep(self) -> None:
        """Tend the job until it has ended; an Engine that does not answer is asked again."""
        with open(self.job_dir / "keeper.lock", "ab", opener=runner.private) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # there is one
            usage = _Usage()
            while self.job_dir.is_dir():
                try:
                    self.tend()
                    if (record := self.record()) is None:
                        return
                    engine = connect(record["request"]["url"])
                    if record["request"]["monitor_resources"] and record["phase"] == "started":
                        usage.sample(engine, record, self.job_dir)
                    engine.await_news(until_due(record, time.time()))
                except SubmitError as exc:
                    print(f"{time.ctime()}: {exc}", file=sys.stderr, flush=True)
                    time.sleep(1.0)

    # --- reading ----------------------------------------------------------------------------------------

    def log_path(self, role: str, attempt: int) -> Path:
        """Where a finished attempt's log lies."""
        return self.job_dir / "logs" / f"{runner.record_stem(role, 0, attempt)}.log"

    def lines(self, role: str, *, follow: bool = False) -> Iterator[str]:
        """What a role printed, line by line, attempt after attempt; `follow` waits for the job's end."""
        attempt = 1
        while True:
            yield from self._attempt_lines(role, attempt, follow)
            while not (latest := self._attempt()) or latest <= attempt:
                if not follow or self.tend().state in (*TERMINAL, AppState.UNKNOWN):
                    return
                time.sleep(0.05)
            attempt += 1

    def _attempt(self) -> int:
        """The number of the latest attempt; 0 before the first."""
        there = self.end() or self.record()
        return int(there["attempt"]) if there else 0

    def _attempt_lines(self, role: str, attempt: int, follow: bool) -> Iterator[str]:
        """One attempt's: from the Engine while that has them, what is missing then from the file."""
        path, seen, rest = self.log_path(role, attempt), 0, b""
        while not path.exists():
            record = self.record()
            if record is None or record["attempt"] != attempt:
                break
            if record["phase"] == "started":
                for chunk in self._printed(record, role, follow):
                    *whole, rest = (rest + chunk).split(b"\n")
                    seen += len(whole)
                    yield from (line.decode(errors="replace") for line in whole)
                if follow:
                    self.tend()
                break
            if not follow:
                return
            time.sleep(0.05)
        if path.exists():
            yield from itertools.islice(read_lines(path, lambda: False), seen, None)
        elif rest:
            yield rest.decode(errors="replace")

    def _printed(self, record: Record, role: str, follow: bool) -> Iterator[bytes]:
        name = next(
            container_name(record, each) for each in record["request"]["roles"] if each["name"] == role
        )
        secrets = to_mask(values_of(record["request"], self._values))
        chunks = connect(record["request"]["url"]).log(name, follow=follow)
        return mask_chunks(chunks, secrets) if secrets else chunks


def keep() -> None:
    """What a keeper's process runs; which job it is for comes by its standard input."""
    job_dir, secrets = json.load(sys.stdin)
    DockerJob(Path(job_dir), secrets).keep()


def needs_keeper(request: Record) -> bool:
    """Whether there is something to be done for a job while it runs."""
    return bool(
        request["timeout"]
        or request["retries"]
        or request["monitor_resources"]
        or len(request["roles"]) > 1
        or any(secrets_of(request))
    )


def from_end(end: Mapping[str, Any]) -> JobStatus:
    """The status that an end stands for."""
    fields = {name: end[name] for name in ("exit_code", "message", "attempt", "started", "ended")}
    return JobStatus(state=AppState[end["state"]], **fields)


def _labels(request: Record) -> dict[str, str]:
    return {TOKEN: request["token"], JOB_DIR: request["job_dir"]}


# --- logs and use ---------------------------------------------------------------------------------------


def _save(chunks: Iterator[bytes], path: Path, secrets: list[bytes]) -> None:
    """Write a log, whole or not at all, less its secrets."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb", opener=runner.private) as file:
        file.writelines(mask_chunks(chunks, secrets) if secrets else chunks)
    os.replace(temporary, path)


class _Usage:
    """Samples what a job's containers use together; CPU is what was used between two samples."""

    def __init__(self) -> None:
        self._before: tuple[float, int] | None = None

    def sample(self, engine: Engine, record: Record, job_dir: Path) -> None:
        """Append a line to `resources.jsonl`, in the words of `core/monitor.py`."""
        from nemo_run.core.monitor import append_sample

        names = [container_name(record, role) for role in record["request"]["roles"]]
        used = [stats for name in names if (stats := engine.stats(name)).get("pids_stats", {}).get("current")]
        if not used:
            return
        now, cpu = time.time(), sum(stats["cpu_stats"]["cpu_usage"]["total_usage"] for stats in used)
        then, cpu_then = self._before or (record["started"], 0)
        self._before = (now, cpu)
        percent = max(0.0, (cpu - cpu_then) / 1e9 / max(now - then, 1e-3) * 100)
        sample = {"time": now, "processes": sum(stats["pids_stats"]["current"] for stats in used)}
        sample |= {"cpu_percent": round(percent, 1), "rss_bytes": sum(map(_resident, used))}
        append_sample(str(job_dir / "resources.jsonl"), sample)


def _resident(stats: Record) -> int:
    """Memory in use, less the files that the kernel caches and would give back."""
    memory = stats["memory_stats"]
    cached = memory.get("stats", {})
    return int(memory.get("usage", 0)) - int(
        cached.get("total_inactive_file", cached.get("inactive_file", 0))
    )
