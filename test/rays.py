"""A stand-in for Ray, the program and the module, which does no more than make a cluster of its processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from programs import write

#: `ray start --block`: the head listens and counts who has come in, the others come in. Each writes down what
#: it was told, and whether a signal for the task would end it.
PROGRAM = """#!{python}
import json, os, signal, socket, sys, threading, time

node = os.environ["SLURM_NODEID"]
told = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[2:])
told["deaf"] = signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
with open(os.environ["RAY_TOLD"] + node, "w") as file:
    json.dump(told, file)
if os.environ.get("RAY_BREAKS") == node:
    sys.exit("this Ray does not work")

def serve(server, inside=1):
    while True:
        one = server.accept()[0]
        word = one.recv(5)
        inside += word == b"enter"
        one.sendall(str(inside).encode() if word == b"count" else b"")

host, _, port = os.environ["RAY_ADDRESS"].partition(":")
if "head" in told:
    server = socket.create_server((told["node-ip-address"], int(told["port"])))
    threading.Thread(target=serve, args=[server], daemon=True).start()
else:
    socket.create_connection((host, int(port))).sendall(b"enter")
print("this is", *sys.argv[1:], flush=True)
time.sleep(300)
"""
MODULE = """
import os, socket
def init(address, **options):
    host, _, port = address.partition(":")
    globals()["where"] = host, int(port)
def nodes():
    with socket.create_connection(where) as connection:
        connection.sendall(b"count")
        return [{"Alive": True}] * int(connection.recv(9))
"""


def make_stand_in(folder: Path) -> dict[str, str]:
    """What the environment holds with which it is found."""
    program = write(folder / "bin" / "ray", PROGRAM.replace("{python}", sys.executable))
    program.chmod(0o755)
    write(folder / "modules" / "ray.py", MODULE)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(folder / "modules"), "RAY_TOLD": str(folder / "told")}


def told(env: dict[str, str], node: int) -> dict[str, Any]:
    """The options of `ray start` on a node."""
    found: dict[str, Any] = json.loads(Path(f"{env['RAY_TOLD']}{node}").read_text())
    return found
