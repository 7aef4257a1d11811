"""The keys we can show a machine: those that an agent holds, and those in files."""

from __future__ import annotations

import base64
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core.tunnel.asking import ask, can_ask
from nemo_run.core.tunnel.settings import Settings

if TYPE_CHECKING:
    from paramiko import PKey

#: How often a person may mistype.
TRIES = 3


class Keys:
    """The keys for one machine; one that was unlocked stays so for as long as this process lives.

    Args:
        settings: Which files and which agent.
        tried: Gets what could not be used, for a message.
        advice: Gets what can be done about that.
    """

    def __init__(self, settings: Settings, tried: list[str], advice: list[str]) -> None:
        self._settings = settings
        self._tried = tried
        self._advice = advice
        self._unlocked = dict[Path, "PKey"]()

    @contextlib.contextmanager
    def offered(self) -> Iterator[Iterator[tuple[str, PKey]]]:
        """The keys by name, in the order in which they are to be shown, each once."""
        with contextlib.ExitStack() as open_agent:
            held: list[Any] = []
            if self._settings.agent:
                try:
                    held = open_agent.enter_context(_agent_keys(self._settings.agent))
                except Exception as exc:  # one that does not answer is none; paramiko raises what it likes
                    self._advice.append(f"The agent at {self._settings.agent} does not answer ({exc})")
            yield self._once(self._all({key.asbytes(): key for key in held}))

    def _once(self, keys: Iterator[tuple[str, PKey]]) -> Iterator[tuple[str, PKey]]:
        shown = set[bytes]()
        for name, key in keys:
            if (blob := key.asbytes()) not in shown:
                shown.add(blob)
                yield name, key

    def _all(self, held: dict[bytes, Any]) -> Iterator[tuple[str, PKey]]:
        """The one that the tunnel names, the agent's, the other files; what an agent holds is the agent's."""
        settings = self._settings
        if settings.identity:
            yield from self._from_file(settings.identity, held)
        for blob, key in held.items():
            if not settings.identities_only or blob in map(public_half, settings.identities):
                yield f"the agent's {getattr(key, 'comment', '') or key.get_name()}", key
        for file in settings.identities:
            if file.is_file():
                yield from self._from_file(file, held)

    def _from_file(self, file: Path, held: dict[bytes, Any]) -> Iterator[tuple[str, PKey]]:
        if (blob := public_half(file)) in held:
            yield f"the agent's {file}", held[blob]
        elif key := self._unlocked.get(file) or self._load(file):
            self._unlocked[file] = key
            yield str(file), key

    def _load(self, file: Path) -> PKey | None:
        """A key from a file; a person is asked for its passphrase."""
        import paramiko

        try:
            return _read(file, None)
        except paramiko.PasswordRequiredException:
            return self._unlock(file)
        except FileNotFoundError:
            self._tried.append(f"{file} (there is no such file)")
        except (paramiko.SSHException, OSError, ValueError) as exc:
            self._tried.append(f"{file} (cannot be read: {exc})")
        return None

    def _unlock(self, file: Path) -> PKey | None:
        import paramiko

        for _ in range(TRIES if can_ask() else 0):
            answer = ask(f"Passphrase of {file}: ", secret=True)
            if not answer:
                break
            with contextlib.suppress(paramiko.SSHException, ValueError):
                return _read(file, answer)
        self._tried.append(f"{file} (locked by a passphrase)")
        self._advice.append(f"Unlock the key with `ssh-add {file}`, for people are asked on a terminal only")
        return None


def public_half(file: Path) -> bytes:
    """The public half of a key, if it lies beside it; else nothing."""
    try:
        return base64.b64decode(file.with_name(f"{file.name}.pub").read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return b""


@contextlib.contextmanager
def _agent_keys(path: str) -> Iterator[list[Any]]:
    """The keys of the agent that listens there; they can be used until this ends."""
    from paramiko.agent import AgentSSH

    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(path)
        agent = AgentSSH()
        # Paramiko's own way finds an agent in the environment alone, never the one that a file names.
        agent._connect(link)  # type: ignore[attr-defined]
        yield list(agent.get_keys())


def _read(file: Path, passphrase: str | None) -> PKey:
    """A key of whatever kind, with its certificate if there is one beside it."""
    import paramiko

    problem: Exception | None = None
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            key: PKey = kind.from_private_key_file(str(file), passphrase)
        except paramiko.PasswordRequiredException:
            raise
        except (paramiko.SSHException, ValueError) as exc:
            problem = exc
            continue
        if (certificate := file.with_name(f"{file.name}-cert.pub")).exists():
            key.load_certificate(str(certificate))
        return key
    raise problem or paramiko.SSHException("it is no key")
