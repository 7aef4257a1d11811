"""Whether a machine is the one we know: its key against the known_hosts files, as OpenSSH reads them."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nemo_run.core.tunnel.asking import ask, can_ask
from nemo_run.core.tunnel.settings import Settings
from nemo_run.errors import HostKeyError


class Known(NamedTuple):
    """A line of a known_hosts file that is about one machine."""

    kind: str
    blob: bytes
    revoked: bool
    file: Path
    line: int


def known_keys(settings: Settings) -> list[Known]:
    """What the files say of a machine."""
    files = (*settings.known_hosts, *settings.global_known_hosts)
    return [known for file in files for known in _read(file, settings.key_name)]


def check(settings: Settings, kind: str, blob: bytes, known: list[Known]) -> None:
    """Let a machine with this key pass, or not; one that is not known is asked about where somebody can be.

    Raises:
        HostKeyError: the key is not the one that is known, or there is none and nobody agreed to it.
    """
    same = [each for each in known if each.blob == blob]
    if any(each.revoked for each in same):
        where = f"{same[0].file}, line {same[0].line}"
        raise HostKeyError(f"the key of {settings.shown} is marked as revoked in {where}. Do not connect.")
    if same:
        return
    if others := [each for each in known if not each.revoked]:
        raise HostKeyError(_changed(settings, kind, blob, others[0]))
    if settings.strict or not can_ask() or not _agreed(settings, kind, blob):
        raise HostKeyError(_unknown(settings, kind, blob))
    _remember(settings, kind, blob)


def fingerprint(blob: bytes) -> str:
    """As OpenSSH shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _changed(settings: Settings, kind: str, blob: bytes, known: Known) -> str:
    return (
        f"{settings.shown} shows a key other than the one that is known for it: this may be another machine"
        f" that listens in, or it was installed anew. Shown: {kind} {fingerprint(blob)}; known: {known.kind}"
        f" {fingerprint(known.blob)} ({known.file}, line {known.line}). Ask its administrator; if the new key"
        f" is right, run `ssh-keygen -R '{settings.key_name}' -f '{known.file}'` and connect again."
    )


def _unknown(settings: Settings, kind: str, blob: bytes) -> str:
    file = settings.known_hosts[0] if settings.known_hosts else Path.home() / ".ssh" / "known_hosts"
    port = f"-p {settings.port} " if settings.port != 22 else ""
    return (
        f"the key of {settings.shown} is not known: {kind} {fingerprint(blob)}. If that is the fingerprint"
        f" its administrator tells you, add it with `ssh-keyscan {port}{settings.address} >> '{file}'`, or"
        f" this line to that file: {settings.key_name} {kind} {base64.b64encode(blob).decode()}"
    )


def _agreed(settings: Settings, kind: str, blob: bytes) -> bool:
    question = (
        f"{settings.shown} is not known here. Its {kind} key has the fingerprint\n  {fingerprint(blob)}\n"
        "Is that the right one? It is remembered then. [yes/no] "
    )
    return (ask(question, secret=False) or "").strip().lower() == "yes"


def _remember(settings: Settings, kind: str, blob: bytes) -> None:
    if not settings.known_hosts:
        return
    name, file = settings.key_name, settings.known_hosts[0]
    if settings.hash_known_hosts:
        salt = secrets.token_bytes(20)
        name = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(_hashed(name, salt)).decode()}"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(fd, "w") as out:
            out.write(f"{name} {kind} {base64.b64encode(blob).decode()}\n")
    except OSError as exc:
        raise HostKeyError(f"the key of {settings.shown} cannot be added to {file}: {exc.strerror}") from exc


# --- reading --------------------------------------------------------------------------------------------


def _read(file: Path, name: str) -> Iterator[Known]:
    try:
        text = file.read_text(errors="replace")
    except FileNotFoundError:
        return
    except OSError as exc:
        raise HostKeyError(f"{file} cannot be read: {exc.strerror}. Mend that first.") from exc
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        # Certificates of hosts are not asked for, so what signs them says nothing here.
        if len(words) < 3 or words[0].startswith("#") or marker not in ("", "@revoked"):
            continue
        if _names(words[0], name):
            try:
                blob = base64.b64decode(words[2], validate=True)
            except ValueError:
                continue
            yield Known(words[1], blob, bool(marker), file, number)


def _names(patterns: str, name: str) -> bool:
    """Whether the first field of a line is about this name."""
    if patterns.startswith("|1|"):
        try:
            salt, hashed = map(base64.b64decode, patterns[3:].split("|"))
        except ValueError:
            return False
        return hmac.compare_digest(hashed, _hashed(name, salt))
    listed = patterns.split(",")
    if any(each.startswith("!") and _matches(each[1:], name) for each in listed):
        return False
    return any(_matches(each, name) for each in listed)


def _matches(pattern: str, name: str) -> bool:
    # In OpenSSH's patterns only * and ? are special, and brackets enclose a name before its port.
    return fnmatch.fnmatchcase(name.lower(), pattern.lower().replace("[", "[[]"))


def _hashed(name: str, salt: bytes) -> bytes:
    return hmac.new(salt, name.encode(), hashlib.sha1).digest()
