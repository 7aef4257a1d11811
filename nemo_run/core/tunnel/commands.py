"""One command over SSH, from its first byte of input to its exit code."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from nemo_run.core.tunnel.connection import Connection, CutOff
from nemo_run.errors import TunnelError

if TYPE_CHECKING:
    from paramiko import Channel

T = TypeVar("T")
#: Of a command that may run twice: on how many connections.
TRIES = 4


def run(
    via: Connection, line: bytes, stdin: bytes, timeout: float | None, *, retry: bool, shown: str
) -> tuple[int, bytes, bytes]:
    """A command's exit code, output and errors; with `retry` it is run again where it was cut off.

    Raises:
        TunnelError: there is no connection, it was cut, or the time is up.
    """
    if not retry:
        return _run(via, line, stdin, timeout, shown)
    return again(lambda: _run(via, line, stdin, timeout, shown))


def again(act: Callable[[], T]) -> T:
    """Do what does no harm when done twice until the connection holds for long enough.

    Raises:
        TunnelError: it was cut each time, or something else went wrong.
    """
    for _ in range(TRIES - 1):
        with contextlib.suppress(CutOff):
            return act()
    return act()


def _run(
    via: Connection, line: bytes, stdin: bytes, timeout: float | None, shown: str
) -> tuple[int, bytes, bytes]:
    where = via.settings.shown
    with via.session() as channel, cut_off(f"`{shown}` on {where}"):
        # Without input it reads nothing, rather than wait for an end of input that takes a message.
        channel.exec_command(line if stdin else line + b" </dev/null")
        deadline = None if timeout is None else time.monotonic() + timeout
        if stdin:
            _feed(channel, stdin)
        try:
            out, err = _collect(channel, deadline)
        except TimeoutError:
            raise TunnelError(
                f"`{shown}` on {where} has not ended after {timeout:g} s. It may still run there;"
                " look before you try again.",
                ran=None,
            ) from None
        code = channel.recv_exit_status()
        if code < 0:
            raise EOFError("it ended without an exit code")
        return code, out, err


@contextlib.contextmanager
def cut_off(what: str) -> Iterator[None]:
    """Say of whatever breaks off that nobody knows how far it got."""
    import paramiko

    try:
        yield
    except (paramiko.SSHException, EOFError, OSError) as exc:
        raise CutOff(
            f"the connection was cut during {what} ({str(exc) or type(exc).__name__}): nobody can say"
            " whether it was carried out. Look before you try again.",
            ran=None,
        ) from exc


def _feed(channel: Channel, stdin: bytes) -> None:
    """Send what the command reads; much of it while its output is read already."""
    if len(stdin) > 1 << 15:
        threading.Thread(target=_send, args=(channel, stdin), daemon=True).start()
    else:
        _send(channel, stdin)


def _send(channel: Channel, stdin: bytes) -> None:
    with contextlib.suppress(OSError, EOFError):  # a command need not read all that it is given
        channel.sendall(stdin)
        channel.shutdown_write()


def _collect(channel: Channel, deadline: float | None) -> tuple[bytes, bytes]:
    """Both outputs, until both have ended."""
    out, err = bytearray(), bytearray()
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        ended = channel.eof_received or channel.closed  # asked first: what came before it is read below
        while channel.recv_ready():
            out += channel.recv(1 << 16)
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(1 << 16)
        if ended:
            if not channel.eof_received:
                raise EOFError("it has no end")
            return bytes(out), bytes(err)
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        # Paramiko may lose the word that one output has more while the other is emptied, so look again.
        poll.poll(100 if left is None else min(100, left * 1000 + 1))
