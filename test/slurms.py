"""A private Slurm cluster of four nodes on this machine, with and without accounting."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from daemons import Daemon, find_program, need
from ports import take_ports
from programs import until

NODES = ("node0", "node1", "node2", "node3")
PYXIS = Path(__file__).parent / "services" / "pyxis_double.c"
_PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "squeue",
    "scontrol",
    "sacct",
    "gcc",
    "setpriv",
)
_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb", "mariadb-admin")

_CONF = """\
ClusterName=nemo
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1,requeue_delay=0
SlurmdParameters=config_overrides
ReturnToService=1
MpiDefault=none
KillWait=2
MinJobAge=20
PlugStackConfig={folder}/plugstack.conf
GresTypes=gpu
NodeName=node[0-3] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{ports[2]}-{ports[5]}] \
CPUs=16 RealMemory=32000 Gres=gpu:h100:2 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=60 OverSubscribe=NO State=UP
PartitionName=spare Nodes=ALL MaxTime=INFINITE PreemptMode=REQUEUE GraceTime=10 State=UP
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=9 State=UP
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""
_WITHOUT = """\
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
"""
_WITH = """\
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={ports[1]}
AccountingStoragePass={folder}/munge/socket
"""
_DBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports[1]}
SlurmUser={user}
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""
_GRES = """\
NodeName=node[0-3] Name=gpu Type=h100 File=/dev/null
NodeName=node[0-3] Name=gpu Type=h100 File=/dev/zero
"""


class Cluster:
    """Four nodes, the partitions `debug` (default), `spare` and `urgent`, two GPUs of kind h100 on each node.

    Jobs in `urgent` preempt others: they are told, have ten seconds in `spare`, and are queued again.

    Each node has 16 processors and 32 GB to give, whatever there is. Pyxis' options are accepted by srun,
    and shown to tasks in `PYXIS_DOUBLE_*`.
    """

    def __init__(self, folder: Path, *, accounting: bool) -> None:
        import getpass

        self.folder = folder
        self.accounting = accounting
        self.conf = folder / "slurm.conf"
        #: What whoever talks to the cluster has in the environment.
        self.env = {"SLURM_CONF": str(self.conf)}
        self._fill = {"folder": folder, "ports": take_ports(), "user": getpass.getuser()}
        self.munged = self._daemon(
            "munged", "--foreground", f"--key-file={folder}/munge/key", f"--socket={folder}/munge/socket",
            f"--pid-file={folder}/munge/pid", f"--log-file={folder}/munge/log",
            f"--seed-file={folder}/munge/seed",
        )  # fmt: skip
        self.database = self._daemon(
            "mariadbd", "--no-defaults", f"--datadir={folder}/db", f"--socket={folder}/db.sock",
            f"--pid-file={folder}/db.pid", "--skip-networking", "--innodb-buffer-pool-size=32M",
            "--innodb-flush-log-at-trx-commit=0", *(["--user=root"] if os.geteuid() == 0 else []),
        )  # fmt: skip
        self.slurmdbd = self._daemon("slurmdbd", "-D", env={"MYSQL_UNIX_PORT": f"{folder}/db.sock"})
        self.slurmctld = self._daemon("slurmctld", "-D")
        self.slurmd = {node: self._daemon("slurmd", "-D", "-N", node, name=node) for node in NODES}

    def start(self) -> None:
        """Start all of it, and wait until four nodes are idle."""
        for name in ("munge", "state", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge").chmod(0o711)  # munged wants its socket to be reachable by all
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        self.conf.write_text((_CONF + (_WITH if self.accounting else _WITHOUT)).format(**self._fill))
        (self.folder / "gres.conf").write_text(_GRES)
        self._add_pyxis()
        self.munged.start()
        until((self.folder / "munge" / "socket").exists, 20)
        if self.accounting:
            self._start_accounting()
        self.slurmctld.start()
        for daemon in self.slurmd.values():
            daemon.start()
        self.await_idle()

    def stop(self) -> None:
        """End all of it, with whatever jobs are left."""
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.call("scancel", "--full", "--signal=KILL", "--state=RUNNING", check=False)
        for daemon in (*self.slurmd.values(), self.slurmctld, self.slurmdbd, self.database, self.munged):
            daemon.stop()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self._is_ours(process):
                    process.kill()

    def call(self, *argv: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            argv, env={**os.environ, **self.env}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
        return done.stdout

    def await_idle(self) -> None:
        """Wait until all four nodes have nothing to do."""
        until(
            lambda: self.call("sinfo", "-hr", "-p", "debug", "-t", "idle", "-o", "%D", check=False) == "4\n",
            60,
        )

    def clear(self) -> None:
        """Cancel whatever there is, and wait until all nodes are idle and up, for the next test."""
        self.revive()
        if self.call("squeue", "-h", "-a", "-o", "%i").strip():
            self.call("scancel", f"--user={self._fill['user']}", check=False)
        until(lambda: not self.call("squeue", "-h", "-a", "-o", "%i", check=False).strip(), 60)
        self.await_idle()

    def crash(self, node: str) -> None:
        """End a node with all that runs on it, without a word, and have the controller know.

        It stays down until it is revived: answers of its that are under way do not take it back.
        """
        daemon = self.slurmd[node]
        jobs = [process for process in psutil.process_iter() if self._runs_on(process, node)]
        steps = {step for job in jobs for step in _steps_above(job)}
        # All at once: those that go on for a moment would tell the controller of the ends of the others.
        for signal_name in ("SIGSTOP", "SIGKILL"):
            for process in (psutil.Process(daemon.pid), *steps, *jobs):
                with contextlib.suppress(psutil.Error):
                    process.send_signal(getattr(signal, signal_name))
        daemon.kill()
        daemon.process = None
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def revive(self) -> None:
        """Start again what a test has stopped, and take nodes back that it has drained."""
        accounting = (self.database, self.slurmdbd) if self.accounting else ()
        for daemon in (self.munged, *accounting, self.slurmctld, *self.slurmd.values()):
            if daemon.process is None or daemon.process.poll() is not None:
                daemon.start()
        until(lambda: self.call("sinfo", "-h", check=False), 30)
        until(lambda: all(map(_listens, self.slurmd.values())), 30)
        for node in self.call("sinfo", "-h", "-N", "-p", "debug", "-t", "drain,down", "-o", "%N").split():
            self.call("scontrol", "update", f"nodename={node}", "state=resume", check=False)

    def _runs_on(self, process: psutil.Process, node: str) -> bool:
        with contextlib.suppress(psutil.Error):
            return self._is_ours(process) and process.environ().get("SLURMD_NODENAME") == node
        return False

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether it is a job here, serves one, or waits for one: all have been told of this cluster."""
        told = process.environ().get("SLURM_CONF") == str(self.conf)
        return told and process.pid != os.getpid()

    # --- parts ------------------------------------------------------------------------------------------

    def _daemon(self, *argv: str, name: str = "", env: dict[str, str] | None = None) -> Daemon:
        program = find_program(argv[0]) or argv[0]
        log = self.folder / f"{name or argv[0]}.out"
        return Daemon([program, *argv[1:]], log, {**self.env, **(env or {})})

    def _add_pyxis(self) -> None:
        plugin = self.folder / "pyxis_double.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", plugin, PYXIS], check=True, capture_output=True)
        (self.folder / "plugstack.conf").write_text(f"required {plugin}\n")

    def _start_accounting(self) -> None:
        data, socket = f"--datadir={self.folder}/db", f"--socket={self.folder}/db.sock"
        install = [
            "mariadb-install-db", "--no-defaults", data, "--auth-root-authentication-method=normal",
            "--skip-test-db", *(["--user=root"] if os.geteuid() == 0 else []),
        ]  # fmt: skip

        def installed() -> bool:
            """Of several at once one is killed by SIGSEGV now and then, and leaves half a database."""
            shutil.rmtree(self.folder / "db", ignore_errors=True)
            return subprocess.run(install, capture_output=True).returncode == 0

        until(installed)
        self.database.start()
        client = ["--no-defaults", "--user=root", socket]
        until(lambda: subprocess.run(["mariadb-admin", *client, "ping"], capture_output=True).returncode == 0)
        rights = "create user slurm@localhost identified by 'slurm'; grant all on slurm.* to slurm@localhost"
        statement = f"create database slurm; {rights}"
        done = subprocess.run(["mariadb", *client, "-e", statement], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        conf = self.folder / "slurmdbd.conf"
        conf.touch(mode=0o600)
        conf.write_text(_DBD.format(**self._fill))
        self.slurmdbd.start()
        # Where several start at once its first answers are errors.
        until(lambda: self._answers("sacctmgr", "-i", "add", "cluster", "nemo"), 60)

    def _answers(self, *argv: str) -> bool:
        done = subprocess.run(argv, env={**os.environ, **self.env}, capture_output=True, timeout=60)
        return done.returncode == 0


def _steps_above(job: psutil.Process) -> list[psutil.Process]:
    """Slurm's processes that would tell of its end; of one that has ended meanwhile none."""
    with contextlib.suppress(psutil.Error):
        return [process for process in job.parents() if process.name() == "slurmstepd"]
    return []


def _listens(daemon: Daemon) -> bool:
    """Whether it can be told of jobs by now."""
    sockets = psutil.Process(daemon.pid).net_connections("tcp")
    return any(socket.status == psutil.CONN_LISTEN for socket in sockets)


@contextlib.contextmanager
def hurrying(cluster: Cluster) -> Iterator[None]:
    """Have jobs that are queued again start soon; Slurm lets two minutes pass otherwise.

    Not within the same second: a node refuses them then ("Job already killed, do not launch batch job"), for
    it compares in seconds when a job was ended and when it was allowed again, and Slurm ends them as FAILED.
    """
    over, first_seen = threading.Event(), dict[str, float]()

    def hurry() -> None:
        while not over.wait(0.1):
            waiting = cluster.call("squeue", "-h", "-t", "pending", "-o", "%A %r", check=False)
            for line in waiting.splitlines():
                number, _, reason = line.partition(" ")
                now = time.monotonic()
                if reason == "BeginTime" and now - first_seen.setdefault(number, now) > 1.2:
                    del first_seen[number]
                    cluster.call("scontrol", "update", f"jobid={number}", "starttime=now", check=False)

    thread = threading.Thread(target=hurry)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def running_cluster(*, accounting: bool) -> Iterator[Cluster]:
    """A cluster that is started, and stopped in the end."""
    need("Slurm", *_PROGRAMS, *(_ACCOUNTING if accounting else ()))
    folder = Path(
        tempfile.mkdtemp(prefix="nemo-slurm-")
    )  # short, for a socket's name has 107 letters at most
    folder.chmod(0o755)
    cluster = Cluster(folder, accounting=accounting)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
