"""The parent of a local job's processes: starts them, keeps their limits, writes down how they ended.

One runs per job, in a session of its own, so that the job outlives whoever launched it. It is a Python that
imports next to nothing, because each job pays for it; a task for the same interpreter is then a fork of this
process and needs no second start of Python.

Files in the job's folder: `process.json` is the claim (who runs this job; made once, by link, so two
supervisors can never both run it), `end.json` is the end. A claim without an end, whose supervisor is gone,
is a job that was killed.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself adds 4 ms of enums to 11 ms
import marshal
import os
import select
import sys
import time

from nemo_run.core import runner
from nemo_run.core.forked import become, call_libc, run_forked
from nemo_run.core.process import end_orphans, start_time, this_host

TYPE_CHECKING = False  # `typing` itself takes as long to import as Python takes to start
if TYPE_CHECKING:
    from typing import Any

    Request = dict[str, Any]
    Role = dict[str, Any]

#: How the monitor says that the job is over its memory limit (sysexits' EX_TEMPFAIL).
OVER_MEMORY = 75
#: Seconds for which a job does without a guardian.
_UNGUARDED = 1.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class BecomeTask(BaseException):
    """Raised in a forked child to unwind everything of the supervisor before the task is run."""


def main() -> None:
    """Read one request from standard input and see its job through to the end."""
    with open(0, "rb", closefd=False) as stream:
        request = marshal.load(stream)
    try:
        supervisor = Supervisor(request)  # first, so that no signal finds a claimed job without a handler
        if claim(request):
            supervisor.run()
        os._exit(0)  # with nothing left to clean up, taking an interpreter down costs as much as a task
    except BecomeTask as turned:
        role = turned.args[0]
    run_forked(role["task"], request["job_dir"], role["name"])


def claim(request: Request) -> bool:
    """Write `process.json` unless it is there: True for the one supervisor that may run this job."""
    record = {
        "token": request["token"],
        "pid": os.getpid(),
        "start_time": start_time(os.getpid()),
        "host": this_host(),
        "started": time.time(),
    }
    final = os.path.join(request["job_dir"], "process.json")
    temporary = f"{final}.{os.getpid()}.claim"
    runner.write(temporary, to_json(record))
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


class Supervisor:
    """One job's processes, attempt after attempt."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.roles: list[Role] = request["roles"]
        self.job_dir: str = request["job_dir"]
        self.attempt = 1
        self.started = 0.0
        self.running: dict[int, Role] = {}
        self.groups: list[int] = []
        self.monitor = 0
        self.maskers: set[int] = set()
        self.guardian = 0
        self.guard_at = 0.0
        self.leash = -1
        self.cancelled = False
        self.wake, self._wakeup = _wakeup_pipe(self._on_terminate)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def run(self) -> None:
        """Attempt the job until it succeeds, is cancelled, runs out of time or of `retries`."""
        attempts = []
        while True:
            end = self._run_once()
            attempts.append(end)
            final = end["state"] != "FAILED" or end["message"].startswith("TIMEOUT")
            if final or self.attempt > self.request["retries"]:
                break
            self.attempt += 1
        if self.guardian:
            _signal(os.kill, self.guardian, signal.SIGKILL)
        _write_end(self.job_dir, to_json(end | _attempts(attempts)))

    def _run_once(self) -> dict[str, Any]:
        self.started = time.time()
        self.running, self.groups = {}, []
        state, exit_code, message = self._start_all() or self._wait()
        self._sweep()
        return {
            "token": self.request["token"],
            "attempt": self.attempt,
            "state": state,
            "exit_code": exit_code,
            "message": message,
            "started": self.started,
            "ended": time.time(),
        }

    # --- starting ---------------------------------------------------------------------------------------

    def _start_all(self) -> tuple[str, int, str] | None:
        """Start the roles and the monitor; how the attempt ended if that cannot be done."""
        try:
            for role in self.roles:
                pid = self._start(role)
                self.running[pid] = role
                self.groups.append(pid)
            self._start_monitor()
        except OSError as exc:
            self._stop()
            return "FAILED", 126, f"cannot be started: {exc}"
        return None

    def _start(self, role: Role) -> int:
        parent, output = os.getpid(), self._open_output(role)
        # A SIGTERM for the child waits until the child no longer takes it for one to the supervisor.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if pid := os.fork():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            os.close(output)
            _own_group(pid)
            return pid
        try:
            self._leave_supervisor()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            _own_group(0)
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(137)
            become(role, output, self.attempt)
            if role["task"] is None:
                for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, other programs do not
                    signal.signal(number, signal.SIG_DFL)
                os.execvpe(role["argv"][0], role["argv"], role["env"])
        except OSError as exc:
            # A program that is nowhere on the path is not reported missing from its last folder, in bytes.
            is_folder = isinstance(exc.filename, str) and exc.filename != role["argv"][0]
            where = f": {exc.filename!r}" if is_folder else ""
            message = f"nemo_run: cannot start {role['argv'][0]!r}: {exc.strerror}{where}\n"
            os.write(2, message.encode(errors="surrogateescape"))
            os._exit(127 if isinstance(exc, FileNotFoundError) else 126)
        raise BecomeTask(role)

    def _open_output(self, role: Role) -> int:
        """Where a role prints: its log, or where there are secrets to be kept out of it a pipe towards it."""
        stem = runner.record_stem(role["name"], 0, self.attempt)
        path = os.path.join(self.job_dir, "logs", stem + ".log")
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if not self.request["secrets"]:
            return log
        source, output = os.pipe()
        if pid := os.fork():
            self.maskers.add(pid)
            os.close(source)
            os.close(log)
            return output
        self._leave_supervisor()
        os.close(output)
        from nemo_run.core.masking import mask_stream

        try:
            mask_stream(source, log, self.request["secrets"])
        finally:
            os._exit(0)

    def _leave_supervisor(self) -> None:
        """Undo in a child what the supervisor set up for itself."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for number in (self.wake, self._wakeup, self.leash):
            if number >= 0:
                os.close(number)

    def _start_monitor(self) -> None:
        if not (self.request["memory_limit"] or self.request["monitor_resources"]):
            return
        parent = os.getpid()
        if pid := os.fork():
            self.monitor = pid
            return
        self._leave_supervisor()
        from nemo_run.core.monitor import watch

        code = 1
        try:
            over = watch(parent, self.job_dir, self.request)
            code = OVER_MEMORY if over else 0
        finally:
            os._exit(code)

    def _start_guardian(self) -> None:
        """A process that ends what is left of the job should this one be killed; brief jobs do without."""
        self.guard_at = float("inf")
        source, self.leash = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            return  # the next look at the job does what it would have done
        if pid:
            os.close(source)
            self.guardian = pid
            return
        self._leave_supervisor()
        os.setsid()
        try:
            if not os.read(source, 1):  # nobody is left to hold the other end
                end_orphans(self.job_dir)
        finally:
            os._exit(0)

    # --- waiting ----------------------------------------------------------------------------------------

    def _wait(self) -> tuple[str, int, str]:
        """Wait for all roles; the first to fail, a limit or a cancel takes the others down."""
        timeout = self.request["timeout"]
        deadline = time.monotonic() + timeout if timeout else float("inf")
        if not self.guardian:
            self.guard_at = time.monotonic() + _UNGUARDED
        while self.running:
            for pid, code in _reap():
                if failure := self._ended(pid, code):
                    self._stop()
                    return "FAILED", *failure
            if not self.running:
                break
            if self.cancelled:
                self._stop()
                return "CANCELLED", 143, "cancelled"
            if time.monotonic() >= deadline:
                self._stop()
                return "FAILED", 124, f"TIMEOUT: ran longer than {timeout:g} s"
            if time.monotonic() >= self.guard_at:
                self._start_guardian()
            until = min(deadline, self.guard_at)
            self._sleep(None if until == float("inf") else max(0.0, until - time.monotonic()))
        return "SUCCEEDED", 0, ""

    def _ended(self, pid: int, code: int) -> tuple[int, str] | None:
        """Take note of a child's end: the job's exit code and message if it decides the job."""
        if pid == self.monitor:
            self.monitor = 0
            if code == OVER_MEMORY:
                return 137, "OUT_OF_MEMORY: " + self._memory_report()
            self._start_monitor()  # a limit stays kept when its keeper is killed
        elif pid == self.guardian:
            self.guardian = 0
            os.close(self.leash)
            self._start_guardian()
        elif (role := self.running.pop(pid, None)) and code:
            return code, self._failure(role, code)
        return None

    def _sleep(self, seconds: float | None) -> None:
        select.select([self.wake], [], [], seconds)
        try:
            os.read(self.wake, 4096)
        except BlockingIOError:
            pass

    def _on_terminate(self, number: int, frame: Any) -> None:
        self.cancelled = True

    def _failure(self, role: Role, code: int) -> str:
        who = f"{role['name']}: " if len(self.roles) > 1 else ""
        if code <= 128:
            return f"{who}exit code {code}"
        import signal as names  # only a failure pays for it

        try:
            return f"{who}killed by {names.Signals(code - 128).name}"
        except ValueError:
            return f"{who}exit code {code}"

    def _memory_report(self) -> str:
        try:
            with open(os.path.join(self.job_dir, "memory.txt")) as file:
                return file.read()
        except FileNotFoundError:
            return f"over the limit of {self.request['memory_limit']} bytes"

    # --- ending -----------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """End every process: SIGTERM to each group, `grace` seconds, SIGKILL."""
        self._signal_groups(signal.SIGTERM)
        deadline = time.monotonic() + self.request["grace"]
        while (self.running or self._alive_groups()) and (left := deadline - time.monotonic()) > 0:
            self._sleep(min(left, 0.05))
            for pid, _ in _reap():
                self._forget(pid)
        self._signal_groups(signal.SIGKILL)

    def _forget(self, pid: int) -> None:
        """A process that has ended, whose number may soon be another's."""
        self.running.pop(pid, None)
        self.maskers.discard(pid)
        if pid == self.monitor:
            self.monitor = 0
        if pid == self.guardian:
            self.guardian = 0

    def _sweep(self) -> None:
        """Leave no process behind: neither in the groups nor adopted from a process that left its group."""
        if self._alive_groups():
            self._stop()
        if self.monitor:
            os.kill(self.monitor, signal.SIGKILL)
        while others := set(_children()) - self.maskers - {self.guardian}:
            for pid in others:
                _signal(os.kill, pid, signal.SIGKILL)
            _wait_for(others.pop())
        for pid in self.maskers:  # with nobody left to print, each writes out what it holds and ends
            _wait_for(pid)
        self.running, self.monitor, self.maskers = {}, 0, set()

    def _signal_groups(self, number: int) -> None:
        for group in self.groups:
            _signal(os.killpg, group, number)

    def _alive_groups(self) -> bool:
        return any(_signal(os.killpg, group, 0) for group in self.groups)


def _own_group(pid: int) -> None:
    """Give a child a process group; said by both sides, so that it holds whichever comes first."""
    try:
        os.setpgid(pid, pid)
    except (PermissionError, ProcessLookupError):
        pass  # the child has said so itself and gone on, or ended


def _write_end(job_dir: str, text: str) -> None:
    """Write `end.json`; on a full disk try again for ten minutes, as the end must not be lost."""
    for _ in range(600):
        try:
            return runner.write(os.path.join(job_dir, "end.json"), text)
        except OSError as exc:
            try:
                print(f"cannot write the end of the job: {exc}\n{text}", file=sys.stderr)
            except OSError:
                pass  # where this goes is full too
            if not os.path.isdir(job_dir):
                return
            time.sleep(1)


def _wakeup_pipe(on_terminate: Any) -> tuple[int, int]:
    """A pipe that becomes readable when a child ends or somebody asks us to stop."""
    wake, wakeup = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGTERM, on_terminate)
    signal.signal(signal.SIGINT, on_terminate)
    return wake, wakeup


def _reap() -> list[tuple[int, int]]:
    """The children that have ended: (process number, exit code; 128 + n after signal n)."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        code = os.waitstatus_to_exitcode(status)
        ended.append((pid, 128 - code if code < 0 else code))


def _wait_for(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # it has been reaped with others


def _children() -> list[int]:
    """Our remaining children, adopted ones included, where the system can tell (Linux)."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def _signal(send: Any, target: int, number: int) -> bool:
    try:
        send(target, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # it took another user's identity: it is there, and not ours to end
        return number == 0
    return True


def _prctl(option: int, value: int) -> None:
    """Linux only: elsewhere a killed supervisor's processes are ended by the next look at the job."""
    if sys.platform == "linux":
        call_libc("prctl", option, value, 0, 0, 0)


def _attempts(attempts: list[dict[str, Any]]) -> dict[str, Any]:
    if len(attempts) == 1:
        return {}
    kept = ("attempt", "state", "exit_code", "message", "started", "ended")
    return {"attempts": [{key: end[key] for key in kept} for end in attempts]}


def to_json(record: dict[str, Any]) -> str:
    """A record as JSON, without importing `json` (5 ms of an 11 ms start) for numbers and simple words."""
    fields = []
    for key, value in record.items():
        if type(value) in (int, float):
            fields.append(f'"{key}": {value!r}')
        elif (
            isinstance(value, str) and value.isascii() and value.isprintable() and not {*value} & {'"', "\\"}
        ):
            fields.append(f'"{key}": "{value}"')
        else:
            import json

            return json.dumps(record, indent=1) + "\n"
    return "{" + ", ".join(fields) + "}\n"
