"""Proving who we are: keys of an agent, keys in files, then what a person answers on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemo_run.core.tunnel.asking import ask, can_ask
from nemo_run.core.tunnel.keys import TRIES, Keys
from nemo_run.core.tunnel.settings import Settings
from nemo_run.errors import AuthenticationError, TunnelError

if TYPE_CHECKING:
    from paramiko import Transport


class Authenticator:
    """Logs in to one machine, again and again; what a person has once answered is not asked again."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._password: str | None = None
        self._tried: list[str] = []
        self._advice: list[str] = []
        self._keys = Keys(settings, self._tried, self._advice)

    def log_in(self, transport: Transport) -> None:
        """Try one way after the other until the machine lets us in.

        Raises:
            AuthenticationError: it does not; the message says what was tried.
        TunnelError: the connection was cut before there was an answer.
        """
        import paramiko

        self._tried.clear()
        self._advice.clear()
        transport.auth_timeout = 120.0  # people type slowly
        try:
            allowed = self._ask_what_is_allowed(transport)
            ways = (self._by_keys, self._by_questions, self._by_password)
            for way, name in zip(ways, ("publickey", "keyboard-interactive", "password"), strict=True):
                if not transport.is_authenticated() and name in allowed:
                    allowed = way(transport, allowed)
        except (paramiko.SSHException, EOFError, OSError) as exc:
            if not self._tried:  # that is no answer
                raise TunnelError(f"{self.settings.shown} hung up while we logged in: {exc}") from exc
            raise self._refusal(f"; the connection ended: {str(exc) or 'no reason given'}") from exc
        if not transport.is_authenticated():
            raise self._refusal(f". It takes {', '.join(allowed) or 'nothing else'}")

    def _ask_what_is_allowed(self, transport: Transport) -> list[str]:
        import paramiko

        try:
            return transport.auth_none(self.settings.user)
        except paramiko.BadAuthenticationType as exc:
            return list(exc.allowed_types)

    def _refusal(self, more: str) -> AuthenticationError:
        tried = ", ".join(self._tried) or "nothing, for there is no key to try"
        advice = "".join(f" {line}." for line in dict.fromkeys(self._advice))
        return AuthenticationError(
            f"{self.settings.shown} does not let us in. Tried: {tried}{more}.{advice} Name a key as"
            " SSHTunnel.identity or in ~/.ssh/config, or see `ssh -v` for what OpenSSH tries."
        )

    # --- how --------------------------------------------------------------------------------------------

    def _by_keys(self, transport: Transport, allowed: list[str]) -> list[str]:
        import paramiko

        with self._keys.offered() as keys:
            for name, key in keys:
                try:
                    # What is still wanted after a key that was accepted; nothing if we are in.
                    return transport.auth_publickey(self.settings.user, key)
                except paramiko.AuthenticationException:
                    if not transport.is_active():
                        raise
                    self._tried.append(f"{name} (refused)")
        return allowed

    def _by_questions(self, transport: Transport, allowed: list[str]) -> list[str]:
        import paramiko

        if not can_ask():
            return self._nobody_to_ask("keyboard-interactive", allowed)

        def answer(title: str, instructions: str, fields: list[tuple[str, bool]]) -> list[str]:
            head = "".join(f"{line}\n" for line in (title, instructions) if line)
            return [
                ask(f"{head if not at else ''}[{self.settings.shown}] {prompt}", secret=not echo) or ""
                for at, (prompt, echo) in enumerate(fields)
            ]

        for _ in range(TRIES):
            try:
                return transport.auth_interactive(self.settings.user, answer)
            except paramiko.AuthenticationException:
                if not transport.is_active():
                    raise
                self._tried.append("keyboard-interactive (refused)")
        return allowed

    def _by_password(self, transport: Transport, allowed: list[str]) -> list[str]:
        import paramiko

        if self._password is None and not can_ask():
            return self._nobody_to_ask("password", allowed)
        for _ in range(TRIES):
            password = self._password or ask(f"Password of {self.settings.shown}: ", secret=True)
            if not password:
                break
            try:
                left = transport.auth_password(self.settings.user, password, fallback=False)
            except paramiko.AuthenticationException:
                if not transport.is_active():
                    raise
                self._password = None
                self._tried.append("password (refused)")
            else:
                self._password = password
                return left
        return allowed

    def _nobody_to_ask(self, way: str, allowed: list[str]) -> list[str]:
        self._tried.append(f"{way} (there is no terminal to ask on)")
        return allowed
