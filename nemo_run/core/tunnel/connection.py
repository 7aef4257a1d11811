"""One open SSH connection per machine and user in this process, made anew when it is cut."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nemo_run.core.tunnel import hostkeys
from nemo_run.core.tunnel.auth import Authenticator
from nemo_run.core.tunnel.settings import Login, Settings, resolve
from nemo_run.core.tunnel.sockets import dial, through_command
from nemo_run.errors import AuthenticationError, HostKeyError, TunnelError

if TYPE_CHECKING:
    from paramiko import Channel, Transport

#: Seconds for which a first connection is tried, and for which one that was cut is made anew.
FIRST, AGAIN = 2.0, 30.0
#: Seconds between signs of life, and without an answer to anything until the connection counts as dead.
ALIVE, DEAD = 15, 60
#: Seconds for which a refusal is remembered: a machine locks out who tries again and again.
REFUSED = 10.0
#: Commands at once; OpenSSH allows ten by default.
SESSIONS = 8
_FINDING = threading.Lock()


class CutOff(TunnelError):
    """The connection was lost while something was going on."""


def connection(login: Login) -> Connection:
    """The connection that all with the same login share; it is opened when it is first used."""
    with _FINDING:  # a cache alone would make one for each thread that is early
        return _connection(login, os.getpid())


@functools.cache
def _connection(login: Login, pid: int) -> Connection:
    return Connection(login)


class Connection:
    """A way to open channels to a machine, for all threads; a forked process makes its own."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self.settings = resolve(login)
        self._authenticator = Authenticator(self.settings)
        self._transport: Transport | None = None
        self._opening = threading.Lock()
        self._sessions = threading.BoundedSemaphore(SESSIONS)
        self._worked = False
        self._refused: tuple[float, TunnelError] | None = None

    def transport(self) -> Transport:
        """What is open, or is opened now.

        Raises:
            TunnelError: the machine cannot be reached, is not the one we know, or refuses us.
        """
        with self._opening:
            if self._transport is None or not self._transport.is_active():
                self._transport = self._open()
            return self._transport

    def close(self) -> None:
        """Close what is open."""
        with self._opening:
            if self._transport is not None:
                self._transport.close()
                self._transport.join(5)
            self._transport = None

    @contextlib.contextmanager
    def session(self) -> Iterator[Channel]:
        """A channel for one command; until it is opened nothing has been sent, so that is tried again.

        Raises:
            TunnelError: there is no connection.
        """
        with self._sessions:
            channel = self._open_channel()
            try:
                yield channel
            finally:
                with contextlib.suppress(Exception):  # it says goodbye, which what was cut cannot
                    channel.close()

    # --- opening ----------------------------------------------------------------------------------------

    def _open_channel(self) -> Channel:
        import paramiko

        deadline, pause = time.monotonic() + AGAIN, 0.05
        while True:
            transport = self.transport()
            try:
                return transport.open_session(timeout=DEAD)
            except (paramiko.SSHException, EOFError, OSError) as exc:
                # Most often there are too many at once for this server. Of which kind the error is says
                # nothing: paramiko keeps one for all threads.
                problem = exc
                if "Timeout" in str(exc):
                    transport.close()
            if time.monotonic() > deadline:
                raise TunnelError(f"{self.settings.shown} opens no channel: {problem}") from problem
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _open(self) -> Transport:
        """Connect, with longer and longer pauses between tries; who is refused is not tried again."""
        if self._refused and time.monotonic() < self._refused[0]:
            raise self._refused[1]
        if (settings := resolve(self._login)) != self.settings:  # somebody has changed the configuration
            self.settings, self._authenticator = settings, Authenticator(settings)
        deadline, pause = time.monotonic() + (AGAIN if self._worked else FIRST), 0.1
        while True:
            try:
                transport = connect(self.settings, self._authenticator)
            except AuthenticationError as exc:
                self._refused = (time.monotonic() + REFUSED, exc)
                raise
            except TunnelError as exc:
                if isinstance(exc, HostKeyError) or time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 5.0)
            else:
                self._worked, self._refused = True, None
                return transport


def connect(settings: Settings, authenticator: Authenticator) -> Transport:
    """A new connection on which we are logged in.

    Raises:
        TunnelError: the machine cannot be reached, is not the one we know, or refuses us.
    """
    import paramiko

    from nemo_run.core.tunnel.transport import Transport

    silence()
    try:
        transport = Transport(_socket(settings))
    except (OSError, paramiko.SSHException) as exc:
        raise TunnelError(_unreachable(settings, exc)) from exc
    try:
        _shake_hands(transport, settings)
        authenticator.log_in(transport)
        transport.set_keepalive(ALIVE)
    except BaseException:
        transport.close()
        transport.join(5)
        raise
    return transport


def silence() -> None:
    """What goes wrong is raised; paramiko would also print it where nobody has set up logging."""
    logger = logging.getLogger("paramiko")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def _shake_hands(transport: Transport, settings: Settings) -> None:
    import paramiko

    known = hostkeys.known_keys(settings)
    options = transport.get_security_options()
    kinds = {each.kind for each in known}
    # A machine has several keys; ask for one of the kind that we can compare.
    options.key_types = sorted(options.key_types, key=lambda name: _kind(name) not in kinds)
    try:
        transport.start_client(timeout=settings.connect_timeout)
    except (paramiko.SSHException, EOFError, OSError) as exc:
        raise TunnelError(_unreachable(settings, exc)) from exc
    key = transport.get_remote_server_key()
    hostkeys.check(settings, key.get_name(), key.asbytes(), known)


def _kind(algorithm: str) -> str:
    return "ssh-rsa" if algorithm.startswith("rsa-") else algorithm


def _socket(settings: Settings) -> Any:
    if settings.proxy_command:
        return through_command(settings.proxy_command)
    if settings.through:
        return _through(connection(settings.through), settings)
    return dial(settings.address, settings.port, settings.connect_timeout, DEAD)


def _through(via: Connection, settings: Settings) -> Channel:
    """A channel of the connection to the machine before this one."""
    import paramiko

    target, origin = (settings.address, settings.port), ("127.0.0.1", 0)
    try:
        return via.transport().open_channel("direct-tcpip", target, origin, timeout=settings.connect_timeout)
    except (paramiko.SSHException, EOFError) as exc:
        problem = f"{_unreachable(settings, exc)} It was tried through {via.settings.shown}."
        raise TunnelError(problem) from exc


def _unreachable(settings: Settings, exc: Exception) -> str:
    reason = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return f"{settings.shown} cannot be reached: {reason}. Try `ssh -p {settings.port} {settings.address}`."
