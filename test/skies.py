"""A real SkyPilot: its API server, and where it makes clusters: a Slurm behind an sshd, and a Kubernetes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from daemons import Daemon, need
from kubes import VARIABLE as KUBERNETES
from kubes import Cluster as Kubernetes
from ports import take_ports
from programs import until
from slurms import running_cluster
from sshds import Sshd, running_sshd

from nemo_run.core.execution.skypilot_task import rundir

#: Names the file that says where the SkyPilot is that `make test-skypilot` has started.
VARIABLE = "NEMORUN_TEST_SKYPILOT"
SERVICES = Path(__file__).parent / "services" / "skypilot"
#: The Kubernetes as SkyPilot knows it: names of contexts may have slashes, as those of some clouds do.
CONTEXT = "local/nemo"
INFRA = f"k8s/{CONTEXT}"
#: What its pods are made of, and where they find what is installed beside the tests.
IMAGE, PACKAGES = "skypilot-pod:1", "/packages"
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
#: No registry is asked for the image, which is there.
_PODS = """\
kubernetes:
  allowed_contexts: [{context}]
  pod_config:
    spec:
      containers:
      - imagePullPolicy: IfNotPresent
        volumeMounts: [{{name: packages, mountPath: {packages}, readOnly: true}}]
      volumes: [{{name: packages, hostPath: {{path: {found}}}}}]
"""
_SLURM = """\
Host nemo
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {identity}
"""


class Sky:
    """An API server, its Slurm `nemo`, its Kubernetes if there is one, a home for all who talk to it."""

    def __init__(
        self, folder: Path, env: Mapping[str, str], conf: str, kubernetes: Kubernetes | None
    ) -> None:
        self.folder = folder
        #: What whoever talks to it has in the environment.
        self.env = dict(env)
        #: Of the Slurm cluster.
        self.conf = conf
        self.kubernetes = kubernetes
        #: Why there is none.
        self.without = ""
        self.home, self.python = Path(env["HOME"]), Path(env["NEMORUN_SKYPILOT_PYTHON"])
        self.url = env["SKYPILOT_API_SERVER_ENDPOINT"]
        argv = [str(self.python.with_name("sky")), "api", "start", "--foreground"]
        self.server = Daemon(argv, folder / "server.log", self.env)

    @classmethod
    def new(cls, folder: Path, python: Path, conf: str, kubernetes: Kubernetes | None) -> Sky:
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
        if kubernetes:  # with `kubectl` in its folder
            env["PATH"] = f"{kubernetes.folder}:{env['PATH']}"
        return cls(folder, env, conf, kubernetes)

    @classmethod
    def there(cls) -> Sky:
        """The one that `make test-skypilot` has started."""
        where = json.loads(Path(os.environ[VARIABLE]).read_text())
        kubernetes = Kubernetes(Path(where["kubernetes"])) if where["kubernetes"] else None
        found = cls(Path(where["folder"]), where["env"], where["conf"], kubernetes)
        found.without = where["without"]
        return found

    def tell(self, path: Path) -> None:
        """Write down where it is."""
        where = {"folder": str(self.folder), "env": self.env, "conf": self.conf, "without": self.without}
        path.write_text(
            json.dumps({**where, "kubernetes": str(self.kubernetes.folder) if self.kubernetes else ""})
        )

    def make(self, sshd: Sshd) -> None:
        """Write what it is told of the clusters, and what they lack without an internet."""
        for name in (".slurm", ".sky", ".kube"):
            (self.home / name).mkdir(parents=True)
        (self.folder / "tmp").mkdir()
        config = _CONFIG.format(tmpdir=self.folder / "tmp")
        if self.kubernetes:
            config += _PODS.format(context=CONTEXT, packages=PACKAGES, found=sysconfig.get_path("purelib"))
            text = self.kubernetes.config.read_text().replace(
                "- {name: admin, context", f"- {{name: {CONTEXT}, context"
            )
            (self.home / ".kube" / "config").write_text(
                text.replace("context: admin\n", f"context: {CONTEXT}\n")
            )
        (self.home / ".sky" / "config.yaml").write_text(config)
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
    python = Path(_last_line([SERVICES / "install"]))
    folder = Path(tempfile.mkdtemp(prefix="nemo-sky-"))
    with (
        _kubernetes_if_any() as (kubernetes, without),
        running_cluster(accounting=True) as cluster,
        _environment(cluster.env),
        running_sshd() as sshd,
    ):
        sky = Sky.new(folder, python, str(cluster.conf), kubernetes)
        sky.without = without
        try:
            sky.make(sshd)
            sky.start()
            yield sky
        finally:
            sky.stop()
            sky.remove()


@contextlib.contextmanager
def _kubernetes_if_any() -> Iterator[tuple[Kubernetes | None, str]]:
    """A Kubernetes that has the image of SkyPilot's pods, or why there is none."""
    with contextlib.ExitStack() as stack:
        kubernetes, without = None, ""
        try:
            kubernetes = stack.enter_context(_running_kubernetes())
            kubernetes.load_image(_last_line([SERVICES / "image", IMAGE]))
        except (RuntimeError, OSError, subprocess.SubprocessError) as exc:
            kubernetes, without = None, str(exc)
            stack.close()
        yield kubernetes, without


@contextlib.contextmanager
def _running_kubernetes() -> Iterator[Kubernetes]:
    """One that ends with this process, however that ends."""
    argv = [SERVICES.parent / "kubernetes" / "with", "sh", "-c", f'echo "${KUBERNETES}"; cat']
    env = {name: value for name, value in os.environ.items() if name != "LEFT_OUT"}
    process = subprocess.Popen(
        argv,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = ""
        for line in process.stdout:
            if line.startswith("/") and Path(line.strip()).is_dir():
                break
        else:
            raise RuntimeError(line.strip().removeprefix("no Kubernetes: "))
        yield Kubernetes(Path(line.strip()))
    finally:
        process.stdin.close()  # it ends where its input does
        process.wait()


def _last_line(argv: list[str | Path]) -> str:
    """The last line that a program prints; what it prints is why it fails, if it fails."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout.strip())
    return done.stdout.strip().split("\n")[-1]


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
    """Run a command beside a SkyPilot with its clusters; say what cannot be had (in LEFT_OUT too)."""
    os.environ["CI"] = "true"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with running_sky() as sky:
            if sky.without:
                _leave_out(f"no Kubernetes for SkyPilot, so its tests were skipped: {sky.without}")
            _launch_clusters(sky)
            said = sky.folder / "where.json"
            sky.tell(said)
            return subprocess.run(argv, env={**os.environ, VARIABLE: str(said)}).returncode
    except (pytest.fail.Exception, RuntimeError, AssertionError, OSError, subprocess.SubprocessError) as exc:
        return 0 if _leave_out(f"no SkyPilot, so this was not run: {' '.join(argv)}: {exc}") else 1


def _launch_clusters(sky: Sky) -> None:
    """Those that tests share: of two nodes on Slurm, and of two pods."""
    launch = ["launch", "-y", "-d", "--num-nodes", "2"]
    argvs = [[*launch, "-c", "tests", "--infra", "slurm/nemo", "--cpus", "4", "true"]]
    if sky.kubernetes:
        of_pod = ["--image-id", f"docker:{IMAGE}", "--cpus", "1", "--memory", "1"]
        argvs += [[*launch, "-c", "pods", "--infra", INFRA, *of_pod, "true"]]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda argv: sky.call(*argv), argvs))


def _leave_out(why: str) -> bool:
    """Say what is not there; whether somebody else goes on with other things, who is told too."""
    print(why, file=sys.stderr)
    if left_out := os.environ.get("LEFT_OUT"):
        with open(left_out, "a") as file:
            file.write(f"{why}\n")
    return bool(left_out)


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
