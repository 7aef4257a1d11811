"""Paramiko's transport without a race in it that costs the whole connection."""

from __future__ import annotations

import threading
from typing import Any

import paramiko

#: Numbers of the messages on a channel (RFC 4254): from WINDOW_ADJUST to REQUEST, with CLOSE among them.
_ON_A_CHANNEL, _CLOSE = range(93, 99), 97


class Transport(paramiko.Transport):
    """Says nothing more on a channel that it has closed.

    Paramiko answers the other side's CLOSE at once, in a thread of its own, while another may be about to
    send that channel's end of input. A server that gets this after the CLOSE ends the connection for all:
    of a hundred short commands at once on a busy machine that befell one.
    """

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self._sending = threading.Lock()
        self._closed = set[int]()

    def open_channel(self, *args: Any, **kwargs: Any) -> paramiko.Channel:
        """A server gives the number of a channel that is closed to a new one."""
        channel = super().open_channel(*args, **kwargs)
        with self._sending:
            self._closed.discard(channel.remote_chanid)
        return channel

    # The stubs leave out what is private.
    def _send_message(self, data: paramiko.Message) -> None:
        raw = data.asbytes()
        if raw[0] not in _ON_A_CHANNEL:
            super()._send_message(data)  # type: ignore[misc]
            return
        number = int.from_bytes(raw[1:5], "big")
        with self._sending:
            if number in self._closed:
                return
            if raw[0] == _CLOSE:
                self._closed.add(number)
            super()._send_message(data)  # type: ignore[misc]
