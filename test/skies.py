"""A real SkyPilot: its API server, and a Slurm of four nodes behind an sshd, where it makes clusters."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from daemons import Daemon, need
from ports import take_ports
from programs import until
from slurms import running_cluster
from sshds import Sshd, running_sshd

from nemo_run.core.execution.skypilot_task import rundir

#: Names the file that says where the SkyPilot is that `make test-skypilot` has started.
VARIABLE = "NEMORUN_TEST_SKYPILOT"
SERVICES = Path(__file__).parent / "services" / "skypilot"
#: uv with no way to the internet but the package index, and with a Python that is there.
_UV = """\
#!/bin/bash
export UV_PYTHON_DOWNLOADS=never UV_NATIVE_TLS=1 UV_SYSTEM_CERTS=1
words=()
for word; do [ "$word" != 3.10 ] || word={python}; words+=("$word"); done
exec {uv} "${{words[@]}}"
"""
#: curl, which is asked for uv alone.
_CURL = """\
#!/bin/sh
case "$*" in
*astral.sh/uv/install.sh*) echo 'mkdir -p "$UV_INSTALL_DIR" && cp {folder}/uv "$UV_INSTALL_DIR/uv"' ;;
*) exec {curl} "$@" ;;
esac
"""
_CONFIG = """\
jobs: {{controller: {{consolidation_mode: true}}}}
slurm: {{cluster_configs: {{nemo: {{tmpdir: {tmpdir}}}}}}}
"""
_SLURM = """\
Host nemo
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {identity}
"""


class Sky:
    """An API server with one cloud, the Slurm cluster `nemo`, and a home for all who talk to it."""

    def __init__(self, folder: Path, env: Mapping[str, str], conf: str) -> None:
        self.folder = folder
        #: What whoever talks to it has in the environment.
        self.env = dict(env)
        #: Of the Slurm cluster.
        self.conf = conf
        self.home, self.python = Path(env["HOME"]), Path(env["NEMORUN_SKYPILOT_PYTHON"])
        self.url = env["SKYPILOT_API_SERVER_ENDPOINT"]
        argv = [str(self.python.with_name("sky")), "api", "start", "--foreground"]
        self.server = Daemon(argv, folder / "server.log", self.env)

    @classmethod
    def new(cls, folder: Path, python: Path, conf: str) -> Sky:
        """One that is still to be made."""
        port = take_ports()[0]
        env = {
            "HOME": str(folder / "home"),
            "NEMORUN_SKYPILOT_PYTHON": str(python),
            "SKYPILOT_API_SERVER_ENDPOINT": f"http://127.0.0.1:{port}",
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(port),
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "SKYPILOT_USER_ID": secrets.token_hex(4),
            "TMPDIR": str(folder / "tmp"),
            "PATH": f"{python.parent}:{os.environ['PATH']}",
        }
        return cls(folder, env, conf)

    @classmethod
    def there(cls) -> Sky:
        """The one that `make test-skypilot` has started."""
        where = json.loads(Path(os.environ[VARIABLE]).read_text())
        return cls(Path(where["folder"]), where["env"], where["conf"])

    def make(self, sshd: Sshd) -> None:
        """Write what it is told of the cluster, and what the cluster lacks without an internet."""
        for name in (".slurm", ".sky"):
            (self.home / name).mkdir(parents=True)
        (self.folder / "tmp").mkdir()
        (self.home / ".sky" / "config.yaml").write_text(_CONFIG.format(tmpdir=self.folder / "tmp"))
        said = _SLURM.format(port=sshd.port, user=sshd.user, identity=sshd.identity)
        (self.home / ".slurm" / "config").write_text(said)
        programs = sshd.folder / "bin"
        programs.mkdir()
        uv, curl = shutil.which("uv", path=str(self.python.parent)), shutil.which("curl")
        _write_program(programs / "uv", _UV.format(uv=uv, python=self.python.resolve()))
        _write_program(programs / "curl", _CURL.format(folder=programs, curl=curl))
        preloaded = sshd.folder / "one_host.so"
        source = SERVICES / "one_host.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", preloaded, source, "-ldl"], check=True)
        # Login shells are given another path by the system.
        (sshd.home / ".bash_profile").write_text(f"export PATH={programs}:$PATH\n")
        sshd.restart({"LD_PRELOAD": str(preloaded), "TMPDIR": self.env["TMPDIR"]})

    def start(self) -> None:
        """Start the API server, and wait until it answers."""
        self.server.start()
        until(self._answers, 90)

    def stop(self) -> None:
        """End it, with all that it has started here, whoever has started it."""
        self.server.stop()
        for process in filter(self._serves, psutil.process_iter()):
            with contextlib.suppress(psutil.Error):
                process.kill()

    def remove(self) -> None:
        """Leave nothing of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(f"/tmp/sky_ssh_{self.env['SKYPILOT_USER_ID']}", ignore_errors=True)

    def _serves(self, process: psutil.Process) -> bool:
        """Whether it is part of the API server, and no question to it."""
        with contextlib.suppress(psutil.Error):
            words = " ".join(process.cmdline())
            if words.startswith("SkyPilot:"):  # they have written their names over their environments
                return any(each.path.startswith(f"{self.folder}/") for each in process.open_files())
            ours = str(self.python.parent) in words and "skypilot_worker" not in words
            return ours and process.environ().get("SKYPILOT_API_SERVER_ENDPOINT") == self.url
        return False

    def call(self, *words: str, check: bool = True, seconds: float = 300) -> str:
        """What `sky` says to a command."""
        done = subprocess.run(
            [self.python.with_name("sky"), *words],
            env={**os.environ, **self.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert not check or done.returncode == 0, f"sky {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def _answers(self) -> bool:
        import urllib.request

        self.server.check()
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{self.url}/api/health", timeout=5) as answer,
        ):
            return bool(json.load(answer)["status"] == "healthy")
        return False


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@contextlib.contextmanager
def running_sky() -> Iterator[Sky]:
    """A SkyPilot that is started with all that it needs, and stopped in the end."""
    need("SkyPilot", "curl", "rsync", "gcc", "flock")
    done = subprocess.run([SERVICES / "install"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    folder = Path(tempfile.mkdtemp(prefix="nemo-sky-"))
    with running_cluster(accounting=True) as cluster, _environment(cluster.env), running_sshd() as sshd:
        sky = Sky.new(folder, Path(done.stdout.strip().split("\n")[-1]), str(cluster.conf))
        try:
            sky.make(sshd)
            sky.start()
            yield sky
        finally:
            sky.stop()
            sky.remove()


@contextlib.contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main(argv: list[str]) -> int:
    """Run a command beside a SkyPilot with a cluster `tests`; where there is none say so (LEFT_OUT too)."""
    os.environ["CI"] = "true"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with running_sky() as sky:
            folder = sky.folder
            said = folder / "where.json"
            words = ["-c", "tests", "--infra", "slurm/nemo", "--num-nodes", "2", "--cpus", "4", "true"]
            sky.call("launch", "-y", "-d", *words)
            said.write_text(json.dumps({"folder": str(folder), "env": sky.env, "conf": sky.conf}))
            return subprocess.run(argv, env={**os.environ, VARIABLE: str(said)}).returncode
    except (pytest.fail.Exception, RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as exc:
        print(f"no SkyPilot: {exc}", file=sys.stderr)
        if not (left_out := os.environ.get("LEFT_OUT")):
            return 1
        with open(left_out, "a") as file:
            file.write(f"no SkyPilot, so this was not run: {' '.join(argv)}: {exc}\n")
        return 0


def clear_nodes(home: Path) -> None:
    """Remove what jobs that failed have left on nodes that are this machine."""
    for path in home.rglob("skypilot.json"):
        folder = rundir(path.parent)
        shutil.rmtree(folder, ignore_errors=True)
        Path(f"{folder}.tar.gz").unlink(missing_ok=True)


def lacking() -> str:
    """Why tests that need a SkyPilot cannot run; nothing if there is one."""
    return "" if VARIABLE in os.environ else "needs SkyPilot (`make test-skypilot` starts one)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
