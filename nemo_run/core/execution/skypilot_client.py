"""The process that asks SkyPilot, as whoever launches has it: started when first needed, ended with us."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_run.errors import ConfigError, MissingDependencyError, NemoRunError, SubmitError, TunnelError

#: Names the Python that has SkyPilot, where that is not ours.
PYTHON = "NEMORUN_SKYPILOT_PYTHON"
_WORKER = Path(__file__).with_name("skypilot_worker.py")
#: What SkyPilot raises where its API server does not answer, or does not let us in.
_AWAY = {"ApiServerConnectionError", "ConnectionError", "Timeout", "ServerTemporarilyUnavailableError"}
#: And where it cannot be had or does not fit: the next step for each.
_STEPS = {
    "ApiServerAuthenticationError": "log in by `sky api login`",
    "APIVersionMismatchError": "install the version that the server has, or have the server upgraded",
    "APINotSupportedError": "have SkyPilot's API server upgraded",
    "NoCloudAccessError": "enable a cloud: `sky check` says what is missing",
    "InvalidClusterNameError": "give another cluster_name",
    "ClusterOwnerIdentityMismatchError": "give another cluster_name",
}


def python() -> str:
    """The interpreter that SkyPilot is installed for."""
    return os.environ.get(PYTHON) or sys.executable


def client() -> Client:
    """The one of this process; one that has ended is replaced."""
    clients, key = _clients(), (os.getpid(), python())
    with _TURN:
        if key not in clients or clients[key].ended:
            for (pid, _), other in clients.items():
                if pid == os.getpid():
                    other.close()
            clients.clear()
            clients[key] = Client(key[1])
        return clients[key]


_TURN = threading.Lock()


@functools.cache
def _clients() -> dict[tuple[int, str], Client]:
    """At most one, by whose it is."""
    return {}


class Client:
    """Asks questions and hears the answers, for several threads at once."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self.ended = False
        try:
            self._process = subprocess.Popen(
                [python, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # Ctrl-C is for whoever launches, who decides what to do about what is under way.
                start_new_session=True,
            )
        except OSError as exc:
            raise ConfigError(f"{PYTHON} is {python!r}, which cannot be run: {exc.strerror}") from exc
        threading.Thread(target=self._listen, daemon=True).start()

    def ask(self, verb: str, **arguments: Any) -> Any:
        """The answer to a question.

        Raises:
            TunnelError: the API server cannot be reached.
            SubmitError: SkyPilot refuses.
            MissingDependencyError: it is not installed.
        """
        with self._asked(verb, arguments) as answers:
            return self._answer(answers.get())

    def stream(self, verb: str, **arguments: Any) -> Iterator[str]:
        """The lines of an answer as they come; raises as `ask`."""
        with self._asked(verb, arguments) as answers:
            while "line" in (answer := answers.get()):
                yield answer["line"]
            self._answer(answer)

    def close(self) -> None:
        """Ask nothing more."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    @contextlib.contextmanager
    def _asked(self, verb: str, arguments: dict[str, Any]) -> Iterator[queue.SimpleQueue[dict[str, Any]]]:
        number, answers = next(self._numbers), queue.SimpleQueue[dict[str, Any]]()
        self._waiting[number] = answers
        line = json.dumps({"id": number, "verb": verb, **arguments}) + "\n"
        try:
            with self._lock:
                assert self._process.stdin is not None
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
        except OSError:
            answers.put({"gone": True})
        if self.ended:
            answers.put({"gone": True})
        try:
            yield answers
        finally:
            self._waiting.pop(number, None)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                answer = json.loads(line)
                if answers := self._waiting.get(answer["id"]):
                    answers.put(answer)
        self.ended = True
        self._process.wait()
        for answers in list(self._waiting.values()):
            answers.put({"gone": True})

    def _answer(self, answer: dict[str, Any]) -> Any:
        if "gone" in answer:
            raise TunnelError(f"{self._python} ended while it asked SkyPilot", ran=None)
        if "error" in answer:
            raise as_error(answer["error"]["kinds"], answer["error"]["text"], self._python)
        return answer["ok"]


def as_error(kinds: list[str], text: str, python: str) -> NemoRunError:
    """What SkyPilot raised, as one of ours, with its own words and the next step."""
    if "ImportError" in kinds and "'sky" in text:
        return MissingDependencyError(
            f"{python} has no SkyPilot; run: {python} -m pip install 'nemo_run[skypilot]', with what"
            f" your clouds need ('skypilot[aws,kubernetes]'); or name a Python that has it by {PYTHON}"
        )
    first = text.strip().split("\n")[0]
    if _AWAY.intersection(kinds):
        return TunnelError(
            f"SkyPilot's API server cannot be reached: {first}; start it by `sky api start`, or name it by"
            " `sky api login`",
            ran=None if "Timeout" in kinds else False,
        )
    step = next((f"; {_STEPS[kind]}" for kind in kinds if kind in _STEPS), "")
    return SubmitError(f"SkyPilot refuses: {text.strip()}{step}", output=text)
