"""A private sshd on this machine, with keys of its own, whose connections can be cut."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
from daemons import Daemon, find_program, need
from ports import take_ports
from programs import until

_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
MaxStartups 100
Subsystem sftp internal-sftp
LogLevel VERBOSE
SetEnv {env}
"""
#: Of the launching environment what commands over ssh should see too.
_PASSED = ("PATH", "SLURM_CONF", "NEMORUN_HOME")


class Sshd:
    """One server, reached with `host`, `port`, `user` and `identity`; the client is told in `ssh_config`.

    As `HOME` the folder `home` has a `.ssh/config` and a `.ssh/known_hosts` with which both nemo_run and
    OpenSSH's `ssh -F` get through without a question.
    """

    host = "127.0.0.1"

    def __init__(self, folder: Path, *, settings: str = "") -> None:
        self.folder = folder
        self.home = folder / "home"
        self.user = getpass.getuser()
        self.port = take_ports()[0]
        self.identity = folder / "user_key"
        self.known_hosts = self.home / ".ssh" / "known_hosts"
        self.ssh_config = self.home / ".ssh" / "config"
        self.log = folder / "sshd.log"
        #: What commands have in their environment.
        self.env: dict[str, str] = {}
        self._settings = settings
        #: Ports of our own looks at it, which it may take a moment to forget.
        self._probes: set[int] = set()
        config = folder / "sshd_config"
        argv = [find_program("sshd") or "sshd", "-D", "-e", "-f", str(config)]
        self.daemon = Daemon(argv, self.log)

    @property
    def where(self) -> dict[str, object]:
        """The arguments of an SSHTunnel that leads here."""
        return {"host": self.host, "port": self.port, "user": self.user, "identity": str(self.identity)}

    def make(self) -> None:
        """Make its keys and files."""
        self.ssh_config.parent.mkdir(parents=True, mode=0o700)
        self.new_key(self.identity)
        self.new_key(self.folder / "host_key")
        shutil.copy(self.folder / "user_key.pub", self.folder / "authorized_keys")
        self.trust()
        self.ssh_config.write_text(f"UserKnownHostsFile {self.known_hosts}\nGlobalKnownHostsFile /dev/null\n")

    @staticmethod
    def new_key(path: Path, *, kind: str = "ed25519", passphrase: str = "") -> Path:
        """A new pair of keys."""
        for old in (path, path.with_name(f"{path.name}.pub")):
            old.unlink(missing_ok=True)
        argv = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        return path

    @property
    def known_line(self) -> str:
        """How a known_hosts file names it and its key."""
        key = (self.folder / "host_key.pub").read_text().rsplit(" ", 1)[0]
        return f"[{self.host}]:{self.port} {key}\n"

    def trust(self) -> None:
        """Have the client know its key."""
        self.known_hosts.write_text(self.known_line)

    def call(self, alias: str) -> None:
        """Have the client know it by another name, with all that it takes to get in."""
        lines = (
            f"Host {alias}\n HostName {self.host}\n Port {self.port}\n IdentityFile {self.identity}\nHost *\n"
        )
        self.ssh_config.write_text(lines + self.ssh_config.read_text())

    def start(self) -> None:
        """Start it, and wait until it answers."""
        passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
        # A home of its own, so that the account's ~/.bashrc is not run before each command.
        env = {"HOME": str(self.home), **passed, **self.env}
        shown = " ".join(f'"{name}={value}"' for name, value in env.items())
        text = self._settings + _CONFIG.format(port=self.port, folder=self.folder, env=shown)
        (self.folder / "sshd_config").write_text(text)
        self.daemon.start()
        until(self._answers, 20)

    def stop(self) -> None:
        """No new connections; those that are open stay."""
        if self.daemon.process is not None:
            self.daemon.kill()
            self.daemon.process = None

    def restart(self, env: Mapping[str, str] | None = None) -> None:
        """Start it again, for what comes then."""
        self.stop()
        self.env |= env or {}
        self.start()

    def wrap(self, program: str, text: str) -> Path:
        """Have a program over there do this from now on; `$real` is the real one. Returns where it lies."""
        wrapper = self.folder / "bin" / program
        wrapper.parent.mkdir(exist_ok=True)
        wrapper.write_text(f"#!/bin/sh\nreal={shutil.which(program)}\n{text}\n")
        wrapper.chmod(0o755)
        self.restart({"PATH": f"{wrapper.parent}:{os.environ['PATH']}"})
        return wrapper

    def connections(self) -> list[psutil.Process]:
        """The processes that each serve one connection."""
        return [process for process in psutil.process_iter(["name"]) if self._serves(process)]

    def cut(self) -> int:
        """End all open connections; how many there were."""
        cut = self.connections()
        for process in cut:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        return len(cut)

    def end_commands(self) -> None:
        """End what commands have left, for a command goes on when its connection is cut."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if "SSH_CONNECTION" in (env := process.environ()) and env.get("HOME") == str(self.home):
                    process.kill()

    def logins(self) -> int:
        """How often somebody has got in."""
        return len(re.findall(r"^Accepted (?!key )", self.log.read_text(errors="replace"), re.M))

    def sessions(self) -> int:
        """How many commands, uploads among them, somebody has run."""
        return self.log.read_text(errors="replace").count("Starting session: ")

    def _serves(self, process: psutil.Process) -> bool:
        """Whether it has a connection to our port on this side."""
        try:
            # The server itself has a connection for the moment until it has made a process for it.
            listening = self.daemon.process is not None and process.pid == self.daemon.pid
            if process.info["name"] != "sshd" or listening:
                return False
            return any(
                each.status == psutil.CONN_ESTABLISHED
                and each.laddr.port == self.port
                and each.raddr.port not in self._probes
                for each in process.net_connections("tcp")
            )
        except psutil.Error:
            return False

    def _answers(self) -> bool:
        self.daemon.check()
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 5) as probe:
            self._probes.add(probe.getsockname()[1])
            return probe.recv(4) == b"SSH-"
        return False


@contextlib.contextmanager
def running_sshd(*, settings: str = "") -> Iterator[Sshd]:
    """A server that is started, and stopped in the end; `settings` go first into its configuration."""
    need("OpenSSH", "sshd", "ssh", "ssh-keygen", "setpriv")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="nemo-sshd-"))
    server = Sshd(folder, settings=settings)
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.stop()
        server.cut()
        server.end_commands()
        shutil.rmtree(folder, ignore_errors=True)
