"""The tunnel to another machine: commands and files over one SSH connection."""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_run.core.tunnel.base import CommandResult, Tunnel, line_of, shown
from nemo_run.core.tunnel.settings import Login, check_login
from nemo_run.errors import TunnelError

if TYPE_CHECKING:
    from nemo_run.core.tunnel.connection import Connection

#: Makes the folder `$1`; says whether there is an rsync, and whether `$2` is a folder.
_PREPARE = """\
umask 077
[ -z "$1" ] || mkdir -p -- "$1" || exit
command -v rsync >/dev/null && echo rsync
[ -z "$2" ] || [ ! -d "$2" ] || echo folder
"""


@dataclass(kw_only=True)
class SSHTunnel(Tunnel):
    """Submits over SSH; all tunnels to one machine and user share one connection, kept open and made anew.

    `~/.ssh/config` holds here as it does for `ssh`, except that a machine whose key is not known is never
    trusted without a person's word.

    Raises:
        ConfigError: a field has a value that cannot work.
    """

    #: Who we are there; empty for what `~/.ssh/config` says, else the name of this account.
    user: str = ""
    #: A key file; it is tried before those of the agent and of `~/.ssh/config`.
    identity: str | None = None
    #: Where sshd listens; None for what `~/.ssh/config` says, else 22.
    port: int | None = None
    #: The shell that takes the commands; None for that of the account, which must be a POSIX shell.
    shell: str | None = None
    #: Shell text to do before each command, such as `module load slurm`; what it prints is not its output.
    pre_command: str | None = None

    def __post_init__(self) -> None:
        check_login(self._login)

    def connect(self) -> None:
        """Be connected, and logged in."""
        self._connection().transport()

    def close(self) -> None:
        """Close the connection."""
        self._connection().close()

    def execute(self, argv: Sequence[str], stdin: bytes, timeout: float | None, retry: bool) -> CommandResult:
        """A channel of its own on the connection that is open, or is opened now."""
        from nemo_run.core.tunnel.commands import run

        line, via = self._line(argv), self._connection()
        code, out, err = run(via, line, stdin, timeout, retry=retry, shown=shown(argv))
        return CommandResult(argv=tuple(argv), exit_code=code, stdout=out, stderr=err)

    def put(self, source: Path, target: str) -> None:
        """By rsync where both sides have it, else by SFTP."""
        from nemo_run.core.tunnel import rsync, sftp

        if not os.path.lexists(source):
            raise TunnelError(f"{source} is not there, so it cannot be copied to {self.key}")
        has_rsync, _ = self._prepare(posixpath.dirname(target), "")
        if has_rsync:
            rsync.put(self._connection(), self._line, source, target)
        else:
            sftp.put(self._connection(), source, target)

    def get(self, source: str, target: Path) -> None:
        """By rsync where both sides have it, else by SFTP."""
        from nemo_run.core.tunnel import rsync, sftp

        has_rsync, is_folder = self._prepare("", source)
        if has_rsync:
            rsync.get(self._connection(), self._line, source, target, is_folder)
        else:
            sftp.get(self._connection(), source, target)

    def _prepare(self, folder: str, source: str) -> tuple[bool, bool]:
        """Make a folder; whether rsync can be used, and whether the source is a folder."""
        said = self.run(["sh", "-c", _PREPARE, "sh", folder, source], retry=True).text.split()
        return "rsync" in said and shutil.which("rsync") is not None, "folder" in said

    def _line(self, argv: Sequence[str]) -> bytes:
        return line_of(argv, self.pre_command, self.shell)

    @property
    def _login(self) -> Login:
        return Login(host=self.host, user=self.user, port=self.port, identity=self.identity)

    def _connection(self) -> Connection:
        from nemo_run.core.tunnel.connection import connection

        return connection(self._login)
