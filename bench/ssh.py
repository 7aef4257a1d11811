"""A tunnel over SSH beside OpenSSH on an open connection (ControlMaster), with a real sshd on this host."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import FOLDER, Group, Row, check, median_of, pairs, seconds

if TYPE_CHECKING:
    from groups import Sizes

#: What the jobs of one sweep upload: small files.
JOBS, FILES, SIZE = 280, 1400, 1000


def ssh(sizes: Sizes) -> Group:
    """Commands, small files and logs."""
    group = Group(
        title="SSH",
        how="To an sshd on this machine, on a connection that is open unless said otherwise; the floor is"
        " OpenSSH's `ssh` through its ControlMaster. The account's shell starts for each command.",
    )
    if not shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin"):
        print("SSH: left out, as there is no sshd (`make services`)")
        return group
    sys.path.insert(0, str(FOLDER.parent / "test"))
    with tempfile.TemporaryDirectory(prefix="nemo-bench-") as folder, _server(Path(folder)) as (sshd, master):
        group.rows = _rows(sshd, master, Path(folder), sizes)
    return group


def _rows(sshd: Any, master: list[str], folder: Path, sizes: Sizes) -> list[Row]:
    import nemo_run as run

    tunnel = run.SSHTunnel(**sshd.where)
    files = {f"{at % JOBS}/{at}": os.urandom(SIZE // 2).hex().encode() for at in range(FILES)}
    logs = {str(folder / "there" / str(at % JOBS) / str(at)): SIZE for at in range(JOBS)}
    archive = _archive(folder / "files.tar.gz", files)

    def connect() -> float:
        tunnel.close()
        return seconds(tunnel.connect)

    def timed(act: Callable[[], object]) -> Callable[[], float]:
        return lambda: seconds(act)

    through = timed(lambda: check([*master, "true"]))
    unpack = f"mkdir -p {folder}/floor && tar -xzf {archive} -C {folder}/floor"
    through(), tunnel.connect()
    command, upload = (
        timed(lambda: tunnel.run(["true"])),
        timed(lambda: tunnel.write(f"{folder}/there", files)),
    )
    cold, unpacked = timed(lambda: check([*_fresh(master), "true"])), timed(lambda: check([*master, unpack]))
    upload()
    look = median_of(timed(lambda: tunnel.read(logs)), sizes.runs)
    rows = [
        pairs("run `true`", command, through, count=sizes.pairs, goal="≤ 0.012 s"),
        _fabric(sshd, through, sizes),
        pairs("connect, and log in", connect, cold, count=sizes.runs),
        pairs(f"upload {FILES:,} files of 1 kB", upload, unpacked, count=sizes.runs),
        Row(what=f"look at {JOBS} logs, none with news", ours=look),
    ]
    tunnel.close()
    return rows


def _fabric(sshd: Any, floor: Callable[[], float], sizes: Sizes) -> Row:
    from fabric import Config, Connection

    options = {"key_filename": str(sshd.identity), "look_for_keys": False, "allow_agent": False}
    with Connection(
        sshd.host, sshd.user, sshd.port, config=Config(lazy=True), connect_kwargs=options
    ) as plain:
        plain.client.load_host_keys(str(sshd.known_hosts))
        act = lambda: seconds(lambda: plain.run("true", hide=True, in_stream=False))  # noqa: E731
        act()
        return pairs("for scale: fabric's `run`", act, floor, count=sizes.pairs)


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[tuple[Any, list[str]]]:
    """An sshd that the tests use too, and how OpenSSH reaches it over a connection that stays."""
    from sshds import running_sshd

    home = os.environ.get("HOME", "")
    with running_sshd() as sshd:
        os.environ["HOME"] = str(sshd.home)
        keep = [f"-oControlPath={folder}/master", "-oControlMaster=auto", "-oControlPersist=60"]
        argv = ["ssh", "-F", str(sshd.ssh_config), "-p", str(sshd.port), "-i", str(sshd.identity), *keep]
        master = [*argv, f"{sshd.user}@{sshd.host}"]
        try:
            yield sshd, master
        finally:
            os.environ["HOME"] = home
            with contextlib.suppress(SystemExit):
                check([*argv, "-O", "exit", sshd.host])


def _fresh(master: list[str]) -> list[str]:
    """The same on a connection of its own."""
    return [word for word in master if not word.startswith("-oControl")]


def _archive(path: Path, files: dict[str, bytes]) -> Path:
    root = path.with_name("files")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(root, ".")
    return path
