"""The streams that SSH runs over: a socket of our own, or a command that makes one."""

from __future__ import annotations

import socket
import subprocess
import threading


def dial(address: str, port: int, timeout: float, dead: int) -> socket.socket:
    """A connection to a machine; it counts as lost after `dead` seconds without an answer that is due."""
    opened = socket.create_connection((address, port), timeout)
    # Without it a short command waits for the acknowledgement of the one before.
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, dead * 1000)
    return opened


def through_command(command: str) -> socket.socket:
    """A socket whose other end is the command's standard input and output; it closes when that ends."""
    ours, theirs = socket.socketpair()
    with theirs:
        end = theirs.fileno()
        process = subprocess.Popen(["sh", "-c", f"exec {command}"], stdin=end, stdout=end)
    threading.Thread(target=process.wait, daemon=True).start()
    return ours
