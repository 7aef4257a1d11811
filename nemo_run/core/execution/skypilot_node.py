"""Runs a job's members on a node of SkyPilot's, and prints after them how they ended and what they left.

Nobody outside sees a node's files once its cluster is gone, but SkyPilot keeps what was printed. So the end
and the results are printed last, as lines that whoever reads the log takes out of it. This file and what it
uses need nothing but Python's standard library.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

TYPE_CHECKING = False  # `typing` itself takes as long to import as Python takes to start
if TYPE_CHECKING:
    from typing import Any

#: What lines begin with that are no member's: how a node's part of a job ended, in JSON; and a part of what
#: was left there, after its number and how many there are.
END, PART = "\x02nemo_run_end\x02", "\x02nemo_run_part\x02"
#: What is sent, bytes of a line, and of all together.
_LEFT, _LINE, _MOST = ("results", "artifacts"), 3000, 8 << 20
#: Seconds between SIGTERM and SIGKILL; and those in which what was printed last is read from a pipe that
#: somebody else still holds.
_GRACE, _DRAIN = 10.0, 1.0


def main(folder: str) -> int:
    """Run what `start.json` says, again while it fails and has retries left; gives the exit code."""
    with open(os.path.join(folder, "start.json"), encoding="utf-8") as file:
        told = json.load(file)
    for name in _LEFT:
        os.makedirs(os.path.join(folder, name), mode=0o700, exist_ok=True)
    attempt = 1
    while True:
        run = Run(folder, told, attempt)
        end = run.to_the_end()
        if end["exit_code"] == 0 or end["why"] or attempt > told["retries"]:
            break
        attempt += 1
    sent = False
    try:
        sent = _send(folder)
    except OSError as exc:
        _print(f"nemo_run: what the job left cannot be sent: {exc}\n".encode())
    _print(f"{END}{json.dumps(end)}\n".encode())
    # Where several nodes share a disk another may still need it.
    if sent and end["exit_code"] == 0 and os.environ.get("SKYPILOT_NUM_NODES", "1") == "1":
        _remove(folder)
    return int(end["exit_code"])


class Run:
    """One attempt of a node's part of a job."""

    def __init__(self, folder: str, told: dict[str, Any], attempt: int) -> None:
        from nemo_run.core.masking import worth_masking

        self.folder, self.told, self.attempt = folder, told, attempt
        self.why = ""
        self.started = time.time()
        names = {name for member in told["members"] for name in _names(member["env"])}
        self.secrets = [os.fsencode(text) for text in worth_masking(os.environ.get(n, "") for n in names)]
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.readers: list[threading.Thread] = []
        #: The first member that failed, and its code.
        self.first: tuple[str, int] | None = None

    def to_the_end(self) -> dict[str, Any]:
        """Start all members, wait for them, and say how it went."""
        signal.signal(signal.SIGTERM, self._ended)
        signal.signal(signal.SIGINT, self._ended)
        try:
            for member in self.told["members"]:
                self._start(member)
            self._wait()
        except OSError as exc:
            _print(f"nemo_run: {exc}\n".encode(errors="replace"))
            self.first = self.first or ("", 127 if isinstance(exc, FileNotFoundError) else 126)
        if self.first or self.why:
            self._end_all()
        for reader in self.readers:
            reader.join(_DRAIN)
        name, code = self.first or ("", 0)
        if self.why:
            code = 124 if self.why == "timeout" else 143
        return {
            "exit_code": code, "member": name, "why": self.why, "attempt": self.attempt,
            "started": self.started, "ended": time.time(),
        }  # fmt: skip

    def _ended(self, number: int, frame: object) -> None:
        self.why = self.why or "signal"
        for child in self.children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)

    def _start(self, member: dict[str, Any]) -> None:
        os.makedirs(member["workdir"], exist_ok=True)
        child = subprocess.Popen(
            member["argv"],
            cwd=member["workdir"],
            env=_environment(member["env"], self.folder, self.attempt),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.children[member["name"]] = child
        label = b"" if len(self.told["members"]) == 1 else os.fsencode(f"[{member['name']}] ")
        reader = threading.Thread(target=self._pass_on, args=(child, label), daemon=True)
        reader.start()
        self.readers.append(reader)

    def _wait(self) -> None:
        limit = self.told["timeout"]
        deadline = float("inf") if limit is None else time.monotonic() + limit
        left = dict(self.children)
        while left and not self.why:
            for name, child in list(left.items()):
                if (code := child.poll()) is None:
                    continue
                del left[name]
                if code:
                    self.first = (name, 128 - code if code < 0 else code)
                    return
            if time.monotonic() > deadline:
                self.why = "timeout"
            time.sleep(0.02)

    def _end_all(self) -> None:
        """End whatever has the job's folder in its environment, gently first."""
        from nemo_run.core.process import end_orphans

        for child in self.children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE
        while any(child.poll() is None for child in self.children.values()) and time.monotonic() < deadline:
            time.sleep(0.02)
        end_orphans(self.folder)

    def _pass_on(self, child: subprocess.Popen[bytes], label: bytes) -> None:
        """Print what a member prints, whole lines at a time where there are several members."""
        from nemo_run.core.masking import mask_chunks

        assert child.stdout is not None
        source, rest, last = child.stdout.fileno(), b"", b"\n"
        for chunk in mask_chunks(iter(lambda: os.read(source, 1 << 16), b""), self.secrets):
            if not label:
                _print(chunk)
                last = chunk[-1:] or last
                continue
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                _print(b"".join(label + line + b"\n" for line in whole.split(b"\n")))
        if rest or last != b"\n":
            _print(label + rest + b"\n")


def _names(env: dict[str, str]) -> list[str]:
    from nemo_run.core.runner import SECRETS

    return env.get(SECRETS, "").split(",")


def _environment(env: dict[str, str], folder: str, attempt: int) -> dict[str, str]:
    """What a member sees: what SkyPilot says, what its job says, and who it is."""
    from nemo_run.core import runner

    first = os.environ.get("SKYPILOT_NODE_IPS", "").split("\n")[0]
    ours = {"head_node_ip": first or "localhost", runner.JOB_DIR: folder, runner.ATTEMPT: str(attempt)}
    if os.environ.get("SKYPILOT_NUM_NODES", "1") != "1":
        ours[runner.REPLICA] = os.environ["SKYPILOT_NODE_RANK"]
    return {**os.environ, **ours, **env}


def _remove(folder: str) -> None:
    """Leave room for others: of a job that succeeded everything is home."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    try:
        os.unlink(f"{folder}.tar.gz")
    except OSError:
        pass


def _send(folder: str) -> bool:
    """Print what was left, as far as that is not too much: results first. Says whether that was all."""
    names = [name for name in _LEFT if os.listdir(os.path.join(folder, name))]
    whole = True
    while names:
        if len(packed := _packed(folder, names)) <= _MOST:
            _send_parts(packed)
            break
        whole, left = False, names.pop()
        size = f"{len(packed) >> 20} MiB of {left}"
        _print(f"nemo_run: {size} are too much to be sent and stay in {folder}; mount a bucket\n".encode())
    return whole


def _packed(folder: str, names: list[str]) -> bytes:
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in names:
            archive.add(os.path.join(folder, name), name)
    return stream.getvalue()


def _send_parts(packed: bytes) -> None:
    import binascii

    text = binascii.b2a_base64(packed, newline=False).decode()
    lines = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    for at, line in enumerate(lines):
        _print(f"{PART}{at + 1}/{len(lines)} {line}\n".encode())


_turn = threading.Lock()


def _print(data: bytes) -> None:
    with _turn:
        while data:
            data = data[os.write(1, data) :]


if __name__ == "__main__":
    # As a script this file's folder comes first on the path, where it would hide modules of others.
    sys.path[0] = os.path.join(sys.argv[1], "library")
    sys.exit(main(sys.argv[1]))
