"""Stands between a Python task and its container: runs it, and prints what came of it for those at home.

Nobody outside sees a pod's files once it has ended, but its log stays. So the task's record, and what it left
in its folder for artifacts, is printed at the log's end, as lines that whoever reads the log takes out of it.
This file needs nothing but Python's standard library (3.8 or newer).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

TYPE_CHECKING = False  # `typing` itself takes as long to import as Python takes to start
if TYPE_CHECKING:
    from collections.abc import Sequence

#: What a line begins with that is not the task's; after it come its number, how many there are, and its part.
MARK = "\x02nemo_run\x02"
#: The folders that are sent; the first is what matters most.
_FOLDERS = ("results", "artifacts")
#: Bytes of a line, so that no other process's words come in between; and of all together. A node keeps some
#: 10 MB of a log, and starts a new one then.
_LINE, _MOST = 3000, 4 << 20
#: What is handed on to the task.
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")


def main(argv: Sequence[str]) -> int:
    """Run a command to its end and send what it left in the job's folder; gives its exit code."""
    code = run(argv)
    try:
        send(os.environ["NEMORUN_JOB_DIR"])
    except OSError as exc:
        print(f"nemo_run: what came of the task cannot be sent: {exc}", flush=True)
    return code


def run(command: Sequence[str]) -> int:
    """A child's exit code; signals go to the child."""
    child: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        if child:
            child[0].send_signal(number)
        else:
            early.append(number)

    for name in _SIGNALS:
        signal.signal(getattr(signal, name), hand_on)
    try:
        child.append(subprocess.Popen(command))
    except OSError as exc:
        print(f"nemo_run: cannot start {command[0]!r}: {exc.strerror}", flush=True)
        return 127 if isinstance(exc, FileNotFoundError) else 126
    for number in early:
        child[0].send_signal(number)
    code = child[0].wait()
    return 128 - code if code < 0 else code


def send(job_dir: str) -> None:
    """Print what was left in the job's folder, as far as that is not too much."""
    packed = _packed(job_dir, _FOLDERS)
    if len(packed) > _MOST:
        too_much = f"nemo_run: {len(packed) >> 20} MiB of artifacts are too much to send"
        print(f"{too_much}; use a workdir_pvc, or put them where they stay", flush=True)
        packed = _packed(job_dir, _FOLDERS[:1])
    if len(packed) > _MOST:
        _shorten(os.path.join(job_dir, "results"))
        packed = _packed(job_dir, _FOLDERS[:1])
    import binascii

    text = binascii.b2a_base64(packed, newline=False).decode()
    lines = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    sys.stdout.flush()
    for at, line in enumerate(lines):
        _write(f"{MARK}{at + 1}/{len(lines)} {line}\n".encode())


def _packed(job_dir: str, folders: Sequence[str]) -> bytes:
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in folders:
            if os.path.isdir(os.path.join(job_dir, name)):
                archive.add(os.path.join(job_dir, name), name)
    return stream.getvalue()


def _shorten(folder: str) -> None:
    """Say in place of values that are too large to be sent that they are."""
    import json

    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        size = os.path.getsize(path)
        if size > _MOST // 16:
            os.unlink(path)
            reason = f"its {size} bytes are too much to be sent by the log; have it written to a volume"
            with open(os.path.join(folder, os.path.splitext(name)[0] + ".json"), "w") as file:
                json.dump({"type": "object", "unpicklable": reason, "repr": f"<{size} bytes>"}, file)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    # As a script this file's folder comes first on the path, where it would hide modules of the task's.
    del sys.path[0]
    sys.exit(main(sys.argv[1:]))
