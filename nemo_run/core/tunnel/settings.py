"""How a machine is reached over SSH: what a tunnel says, and what ~/.ssh/config adds to that."""

from __future__ import annotations

import functools
import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nemo_run.errors import ConfigError, TunnelError

#: What cannot be the name of a machine or a user; a leading `-` would be an option of ssh's.
_ODD = re.compile(r"^-|[\s\0'\"`$\\;&<>|(){}]")


@dataclass(frozen=True, kw_only=True)
class Login:
    """What a tunnel says; tunnels that say the same share a connection."""

    host: str
    user: str = ""
    port: int | None = None
    identity: str | None = None
    #: The machine to go through; None for what the configuration says.
    through: Login | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that is needed to connect."""

    address: str
    port: int
    user: str
    #: The name under which known_hosts files have its key.
    key_name: str
    #: The key that the tunnel names; it is shown first.
    identity: Path | None = None
    identities: tuple[Path, ...] = ()
    identities_only: bool = False
    #: The socket of an agent; empty for none.
    agent: str = ""
    #: The machine to go through.
    through: Login | None = None
    proxy_command: str = ""
    known_hosts: tuple[Path, ...] = ()
    global_known_hosts: tuple[Path, ...] = ()
    hash_known_hosts: bool = False
    #: Never ask about a key that is not known.
    strict: bool = False
    connect_timeout: float = 15.0
    #: As people write it.
    shown: str = field(default="", compare=False)


def check_login(login: Login) -> None:
    """Refuse what cannot be a machine, a user, a port or a file.

    Raises:
        ConfigError: the message names the field.
    """
    for what, name in (("host", login.host), ("user", login.user)):
        if not isinstance(name, str) or _ODD.search(name) or (what == "host" and not name):
            raise ConfigError(f"SSHTunnel.{what} is {name!r}, which is no name of a {what}; give another")
    port, identity = login.port, login.identity
    if port is not None and (type(port) is not int or not 0 < port < 1 << 16):
        raise ConfigError(f"SSHTunnel.port is {port!r}; give a number from 1 to 65535, or None")
    if identity is not None and not (isinstance(identity, (str, os.PathLike)) and os.fspath(identity)):
        raise ConfigError(f"SSHTunnel.identity is {identity!r}; give the path of a private key, or None")


def resolve(login: Login) -> Settings:
    """What OpenSSH's configuration makes of a login.

    Raises:
        ConfigError: the login cannot be one.
        TunnelError: the configuration cannot be read.
    """
    check_login(login)
    found = _ask_openssh(login) if shutil.which("ssh") else _read_config(login)
    return _settings(login, found)


def _ask_openssh(login: Login) -> dict[str, list[str]]:
    """`ssh -G` prints what holds for a host, `Include` and `Match` and all; it does not connect."""
    argv = ["ssh", "-G", *_config_option()]
    if login.port is not None:
        argv += ["-p", str(login.port)]
    if login.user:
        argv += ["-l", login.user]
    done = subprocess.run([*argv, "--", login.host], stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise TunnelError(f"`ssh -G {login.host}` cannot read its configuration: {said}. Mend that.")
    found = dict[str, list[str]]()
    for line in done.stdout.decode(errors="surrogateescape").splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name.lower(), []).append(value)
    return found


def _config_option() -> list[str]:
    """OpenSSH looks into the account's home folder whatever HOME says; we look where HOME says."""
    home = Path.home()
    if os.path.realpath(home) == os.path.realpath(pwd.getpwuid(os.getuid()).pw_dir):
        return []
    config = home / ".ssh" / "config"
    return ["-F", str(config) if config.exists() else "none"]


def _read_config(login: Login) -> dict[str, list[str]]:
    """Where there is no OpenSSH: most of its configuration (no `Include`)."""
    import paramiko

    config, path = paramiko.SSHConfig(), Path.home() / ".ssh" / "config"
    try:
        if path.exists():
            config = paramiko.SSHConfig.from_path(str(path))
        found = config.lookup(login.host)
    except (OSError, paramiko.ConfigParseError) as exc:
        raise TunnelError(f"{path} cannot be read: {exc}. Mend that first.") from exc
    said = {"user": login.user, "port": str(login.port or "")}
    both = {**found, **{name: value for name, value in said.items() if value}}
    return {name: value if isinstance(value, list) else [value] for name, value in both.items()}


def _settings(login: Login, found: Mapping[str, list[str]]) -> Settings:
    def first(name: str, default: str = "") -> str:
        value = found.get(name, [default])[0]
        return default if value == "none" else value

    address, port = first("hostname", login.host), int(first("port", "22"))
    user = first("user") or _account()
    alias = first("hostkeyalias") or address
    tokens = {
        "%": "%", "h": address, "n": login.host, "p": str(port), "r": user, "u": _account(),
        "d": str(Path.home()), "i": str(os.getuid()), "k": alias, "l": os.uname().nodename,
        "L": os.uname().nodename.partition(".")[0],
    }  # fmt: skip
    expand = functools.partial(_expand, tokens=tokens)

    def paths(name: str, default: str) -> tuple[Path, ...]:
        values = [word for value in found.get(name, [default]) for word in _words(value)]
        return tuple(Path(expand(value)) for value in values if value not in ("none", "/dev/null"))

    command = "" if login.through or first("proxyjump") else first("proxycommand")
    agent = first("identityagent", "SSH_AUTH_SOCK") if found.get("identityagent") != ["none"] else ""
    timeout = first("connecttimeout")
    return Settings(
        address=address,
        port=port,
        user=user,
        key_name=alias if port == 22 or first("hostkeyalias") else f"[{alias}]:{port}",
        identity=Path(expand(login.identity)) if login.identity else None,
        identities=tuple(Path(expand(path)) for path in found.get("identityfile", _DEFAULT_IDENTITIES)),
        identities_only=first("identitiesonly") == "yes",
        agent=os.environ.get("SSH_AUTH_SOCK", "") if agent == "SSH_AUTH_SOCK" else expand(agent),
        through=login.through or _jumps(login.host, first("proxyjump")),
        proxy_command=expand(command, paths=False),
        known_hosts=paths("userknownhostsfile", "~/.ssh/known_hosts"),
        global_known_hosts=paths("globalknownhostsfile", "/etc/ssh/ssh_known_hosts"),
        hash_known_hosts=first("hashknownhosts") == "yes",
        strict=first("stricthostkeychecking") in ("yes", "true"),
        connect_timeout=float(timeout) if timeout.isdigit() and int(timeout) else 15.0,
        shown=f"{user}@{address}" + (f":{port}" if port != 22 else ""),
    )


_DEFAULT_IDENTITIES = ["~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"]


def _account() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _words(value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError:
        return [value]


def _expand(text: str, *, tokens: Mapping[str, str], paths: bool = True) -> str:
    """OpenSSH's `%h` and `${NAME}`, and in paths `~`."""
    text = re.sub(r"%(.)", lambda match: tokens.get(match[1], match[0]), text)
    if not paths:
        return text
    text = re.sub(r"\$\{(\w+)\}", lambda match: os.environ.get(match[1], match[0]), text)
    return os.path.expanduser(text)


def _jumps(host: str, text: str) -> Login | None:
    """The last of `[user@]host[:port],…` to go through, itself reached through the one before."""
    through: Login | None = None
    for each in filter(None, text.split(",")):
        user, _, rest = each.strip().removeprefix("ssh://").rpartition("@")
        name, port = rest, ""
        if match := re.fullmatch(r"(\[[^]]+\]|[^:]+)(?::(\d+))?", rest):
            name, port = match[1].strip("[]"), match[2] or ""
        if name != host:  # a rule for all hosts is also one for the machine to go through
            through = Login(host=name, user=user, port=int(port) if port else None, through=through)
    return through
