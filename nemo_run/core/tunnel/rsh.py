"""What rsync starts to reach the other side: it hands rsync's streams to the process that has the connection.

It runs without nemo_run, as `python -IS rsh.py FD HOST COMMAND…`, where FD is a socket to that process.
"""

import json
import os
import socket
import sys
import threading


def main(fd: str, _host: str, *argv: str) -> None:
    """Say which command it is to be over there, then carry bytes both ways until the other side ends."""
    os.set_blocking(1, True)  # rsync leaves it so that a write fails when rsync is slow to read
    link = socket.socket(fileno=int(fd))
    request = json.dumps(argv).encode()
    link.sendall(len(request).to_bytes(4, "big") + request)
    threading.Thread(target=_send, args=(link,), daemon=True).start()
    while data := link.recv(1 << 16):
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]
    os._exit(0)  # whatever the other thread waits for


def _send(link: socket.socket) -> None:
    while data := os.read(0, 1 << 16):
        link.sendall(data)
    link.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main(*sys.argv[1:])
