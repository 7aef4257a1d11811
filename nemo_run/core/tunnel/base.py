"""What every tunnel is: settings of a few words, by which commands and files get where jobs are submitted."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_run.core.tunnel import scripts
from nemo_run.errors import ConfigError, TunnelError
from nemo_run.shell import join

#: Letters of a command, and of what it said, that a message shows.
_SHOWN, _SAID = 200, 2000


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """A command that has ended."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """What it printed; bytes that are not UTF-8 come back as they were when encoded again."""
        return self.stdout.decode(errors="surrogateescape")

    @property
    def said(self) -> str:
        """What it said of its failure: its standard error, or its output where that is empty."""
        return (self.stderr.strip() or self.stdout.strip()).decode(errors="replace")


@dataclass(kw_only=True)
class Tunnel:
    """Where commands are run and files are kept for a backend; `LocalTunnel` and `SSHTunnel` are its kinds.

    It holds settings alone, so it can be written down with its executor. What is open while a process lives
    is found by these settings, and shared by all tunnels that have the same.
    """

    #: The folder for experiments over there; empty for the one of this machine's experiments.
    job_dir: str = ""
    #: The machine.
    host: str
    #: Who we are there.
    user: str

    @property
    def key(self) -> str:
        """Who and where, as text."""
        return f"{self.user}@{self.host}" if self.user else self.host

    # --- what a kind of tunnel does ---------------------------------------------------------------------

    def connect(self) -> None:
        """Be connected now, so that whatever must be asked is asked at this moment.

        Raises:
            TunnelError: the machine cannot be reached, or refuses us.
        """

    def close(self) -> None:
        """Let go of the connection, also for all others that share it; the next command makes a new one."""

    def execute(self, argv: Sequence[str], stdin: bytes, timeout: float | None, retry: bool) -> CommandResult:
        """Run a command to its end, however it ends; the hook beneath `run`."""
        raise NotImplementedError(f"{type(self).__name__} runs no commands")

    def put(self, source: Path, target: str) -> None:
        """Copy a file, or a folder with all it holds, to over there; modes are kept.

        A file arrives whole or not at all. What a folder over there holds beside stays, and what has arrived
        earlier and has not changed is not sent again.

        Args:
            source: The file or folder here.
            target: The path it gets, itself; folders above it are made.

        Raises:
            TunnelError: it cannot be read or written, or the connection was cut.
        """
        raise NotImplementedError(f"{type(self).__name__} moves no files")

    def get(self, source: str, target: Path) -> None:
        """The same as `put` from over there to here."""
        raise NotImplementedError(f"{type(self).__name__} moves no files")

    # --- what all do in the same way --------------------------------------------------------------------

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
        check: bool = True,
        retry: bool = False,
    ) -> CommandResult:
        """Run one command to its end; each argument arrives byte for byte.

        A command is never run twice on our own account: if the connection is cut before its end is known,
        the error's `ran` is None, and the caller must look before it tries again.

        Args:
            argv: The command. For much text give `["sh", "-s"]` and the text as `stdin`: a command takes
                128 kB at most.
            stdin: What it reads.
            timeout: Seconds; None for no limit.
            check: Whether an exit code other than 0 is an error.
            retry: Whether running it twice does no harm, so that it is done again on a new connection.

        Raises:
            TunnelError: there is no connection, it was cut, the time is up, or with `check` it failed.
        """
        words = _checked(argv)
        result = self.execute(words, stdin, timeout, retry)
        if check and result.exit_code:
            raise TunnelError(
                f"`{shown(words)}` on {self.key} failed with exit code {result.exit_code}"
                + (f": {result.said[-_SAID:]}" if result.said else "; it said nothing"),
                ran=True,
                result=result,
            )
        return result

    def write(self, folder: str, files: Mapping[str, bytes], *, mode: int = 0o600) -> None:
        """Write many small files in one round trip; new folders are readable by us alone.

        If the connection is cut on the way none of them is written; it is tried again on a new one.

        Args:
            folder: The folder over there; made if it is missing.
            files: Contents by names relative to that; a name that ends with a slash is that of a folder.
            mode: The mode of all of them.

        Raises:
            TunnelError: they cannot be written; the message holds the reason given over there.
        """
        parts = scripts.pack(files, mode)
        sizes = map(str, (sum(map(len, parts)), *map(len, parts)))
        self.run(["sh", "-c", scripts.UNPACK, "sh", folder, *sizes], stdin=b"".join(parts), retry=True)

    def read(self, offsets: Mapping[str, int], *, limit: int = 1 << 20) -> dict[str, bytes]:
        """What many files hold from an offset on, in one round trip; those with nothing new are left out.

        Args:
            offsets: For each file where to begin.
            limit: Bytes of each file at most; the rest is there the next time.

        Raises:
            TunnelError: they cannot be looked at.
        """
        asked = list(offsets.items())
        script = scripts.reading(asked, limit).encode(errors="surrogateescape")
        for _ in range(3 if asked else 0):  # files that come and go while we look are looked at again
            result = self.run(["sh", "-s"], stdin=script, check=False, retry=True)
            found = scripts.parse_reading(result.stdout) if result.exit_code == 0 else None
            if found is not None:
                return {asked[at][0]: content for at, content in found.items()}
            if result.exit_code not in (0, scripts.CHANGED):
                break
        if not asked:
            return {}
        raise TunnelError(
            f"{len(asked)} files on {self.key} cannot be read: {result.said or 'they keep changing'}",
            ran=True,
            result=result,
        )


def shown(argv: Iterable[str]) -> str:
    """A command for a message, not too long."""
    text = shlex.join(argv).encode(errors="replace").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def line_of(argv: Sequence[str], pre_command: str | None = None, shell: str | None = None) -> bytes:
    """A command as a shell takes it, after what must be done first; that neither reads nor prints for it."""
    line = join(argv)
    if pre_command:
        # A line of its own closes the braces whatever it ends with, be it a comment.
        line = f"{{ {pre_command}\n}} </dev/null >&2 && {line}"
    if shell:
        line = join([shell, "-c", line])
    return line.encode(errors="surrogateescape")


def _checked(argv: Sequence[str]) -> tuple[str, ...]:
    words = tuple(argv)
    if isinstance(argv, str) or not words:
        raise ConfigError(f"a command is a list of words, such as ['ls', '-l']; this is {argv!r}")
    for word in words:
        if "\0" in word:
            raise ConfigError(f"{word!r} holds a NUL byte, which no command can be given; take it out")
    return words
