"""The life of one job on Kubernetes, as any process that looks at it sees and tends it.

The cluster itself starts pods, starts failed ones again, and ends them when their time is up. What is left to
us is recorded in the job's folder: `kubernetes.json` says what the cluster was given and which pods have been
seen, `end.json` how the job ended. Whoever looks takes the steps that are due, under a lock in the same
folder: ends the other Jobs of a group of which one has failed, and takes logs and results home.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_run.core import runner
from nemo_run.core.execution import kubernetes_claim, kubernetes_send
from nemo_run.core.execution.base import TERMINAL, AppState, JobStatus
from nemo_run.core.execution.kubernetes_client import ApiError, Cluster, Place, connect, locate, path_of
from nemo_run.core.execution.kubernetes_logs import Cutter, KeptLog, PodLog, followers, pod_lines, save
from nemo_run.core.execution.kubernetes_manifest import as_text, for_version
from nemo_run.core.execution.kubernetes_seen import Seen, ask, list_all, list_pods
from nemo_run.core.execution.kubernetes_state import Pod, Verdict, is_leaving, is_over, judge
from nemo_run.core.logfile import read_lines
from nemo_run.core.masking import MASK, worth_masking
from nemo_run.core.records import read_record
from nemo_run.errors import ConfigError, SubmitError, TunnelError
from nemo_run.secret import Secret

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether there is another pod to be read.
_PAUSE = 0.5
#: Seconds for which a pod is waited for beyond its time to end.
_PATIENCE = 10.0
#: What of a request is kept.
_KEPT = ("token", "digest", "kind", "timeout", "grace", "ttl", "start_patience", "secrets", "claim")

Record = dict[str, Any]


class KubernetesJob:
    """One job, by its folder."""

    def __init__(self, job_dir: Path) -> None:
        self.job_dir = job_dir

    # --- records ----------------------------------------------------------------------------------------

    def record(self) -> Record | None:
        """What the cluster was given, and what has been seen of it; None before the submission."""
        return read_record(self.job_dir / "kubernetes.json")

    def end(self) -> Record | None:
        """How it ended."""
        return read_record(self.job_dir / "end.json")

    def _write(self, record: Record) -> None:
        runner.write(str(self.job_dir / "kubernetes.json"), json.dumps(record, indent=1) + "\n")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep all other processes, and this one's other threads, from tending the job meanwhile."""
        with open(self.job_dir / "kubernetes.lock", "ab", opener=runner.private) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # --- beginning --------------------------------------------------------------------------------------

    def submit(self, request: Record) -> Place:
        """Make the objects, unless an earlier try has; gives the place where they are.

        Raises:
            SubmitError: the cluster refuses, and nothing is left there.
            TunnelError: it is unknown what became of them.
        """
        place = self._earlier(request["token"]) or locate(request["context"], request["namespace"])
        cluster = connect(place)
        if request["build"]:
            kubernetes_send.build_image(request["build"], self.job_dir)
        try:
            with self._alone():
                return self._submit(cluster, place, request)
        except ApiError as exc:
            if exc.status == 0 or exc.status >= 500:
                raise TunnelError(str(exc), ran=None) from exc
            raise

    def _earlier(self, token: str) -> Place | None:
        """Where an earlier try at this submission went, whatever the current context is by now."""
        record = self.record()
        return Place(**record["place"]) if record and record["token"] == token else None

    def _submit(self, cluster: Cluster, place: Place, request: Record) -> Place:
        if (end := self.end()) and end["token"] == request["token"]:
            return place
        objects = for_version(request["objects"], cluster.version)
        data = kubernetes_send.secret_data(objects, request["secrets"], self.job_dir)
        record = self.record()
        if record is None or record["token"] != request["token"]:
            if objects != request["objects"]:
                runner.write(str(self.job_dir / "plan.txt"), as_text(objects, request["heading"]))
            for folder in ("logs", "results", "artifacts"):
                (self.job_dir / folder).mkdir(mode=0o700, exist_ok=True)
            record = {name: request[name] for name in _KEPT}
            record |= {
                "place": place._asdict(),
                "made": time.time(),
                "pods": {},
                "kept": [],
                "stopping": None,
            }
            record["names"] = [(each["kind"], each["metadata"]["name"]) for each in objects]
            self._write(record)
        try:
            if record["claim"]:
                kubernetes_claim.stage(cluster, place, record["claim"], self.job_dir)
            made = kubernetes_send.make(cluster, place.namespace, objects, data)
            kubernetes_send.own(cluster, place, record["names"], _jobs_among(made))
        except SubmitError as exc:
            if not isinstance(exc, ApiError) or 400 <= exc.status < 500:
                kubernetes_send.undo(cluster, place, record["names"], record["token"])
                (self.job_dir / "kubernetes.json").unlink()
            raise
        return place

    def find(self, token: str) -> Place | None:
        """Where an earlier submission has arrived, all of it."""
        record = self.record()
        if record is None or record["token"] != token:
            return None
        place = Place(**record["place"])
        if self.end():
            return place
        cluster = connect(place)
        jobs = list_all(cluster, place.namespace, record["kind"], [record["digest"]])
        if len(jobs) < _count(record):
            return None
        kubernetes_send.own(cluster, place, record["names"], jobs)
        return place

    # --- going on ---------------------------------------------------------------------------------------

    def tend(self, cluster: Cluster | None = None, seen: Seen | None = None) -> JobStatus:
        """Take the steps that are due, and say how the job is.

        Args:
            cluster: Where it is.
            seen: What the cluster says of it, where it has been asked already.

        Raises:
            ApiError: the cluster does not answer.
        """
        with self._alone():
            if end := self.end():
                return from_end(end)
            if (record := self.record()) is None:
                return JobStatus(state=AppState.UNKNOWN, message=f"no record of it is in {self.job_dir}")
            place = Place(**record["place"])
            cluster = cluster or connect(place)
            seen = seen or ask(cluster, place.namespace, [record])[record["digest"]]
            before = json.dumps(record)
            status = self._step(cluster, place, record, seen)
            if json.dumps(record) != before:
                self._write(record)
            return status

    def _step(self, cluster: Cluster, place: Place, record: Record, seen: Seen) -> JobStatus:
        """What is due now; the record is changed."""
        _note_pods(record, seen.pods)
        active = [job for job in seen.jobs if not is_over(job)]
        verdict = judge(seen.jobs, seen.pods, seen.events, record["timeout"]) if seen.jobs else None
        record["stopping"] = record["stopping"] or _stopping(record, seen, verdict)
        if record["stopping"] and not active and not _lingers(record, seen.pods):
            return self._finish(cluster, place, record, seen, verdict)
        self._keep(cluster, place, record, seen.pods, every=bool(record["stopping"]))
        if record["stopping"]:
            for job in active:
                if not is_leaving(job):
                    cluster.delete(path_of(record["kind"], place.namespace, job["metadata"]["name"]))
            message = f"is being ended: {record['stopping']['message']}"
            return JobStatus(state=AppState.RUNNING, message=message, attempt=_attempt(record))
        if verdict is None:
            gone = f"namespace {place.namespace!r} has no Job of it any more"
            return JobStatus(state=AppState.UNKNOWN, message=gone)
        message = "its Job is being deleted" if any(map(is_leaving, active)) else verdict.message
        return JobStatus(
            state=verdict.state, message=message, attempt=_attempt(record), started=verdict.started
        )

    def _finish(
        self, cluster: Cluster, place: Place, record: Record, seen: Seen, verdict: Verdict | None
    ) -> JobStatus:
        """Take home what came of it, then write down that it has ended."""
        self._bring_home(cluster, place, record, seen.pods)
        end = {"token": record["token"], "attempt": _attempt(record), **record["stopping"]}
        end.pop("since", None)
        end |= {"started": verdict.started if verdict else None}
        end |= {"ended": (verdict and verdict.ended) or time.time()}
        runner.write(str(self.job_dir / "end.json"), json.dumps(end, indent=1) + "\n")
        for kind, name in record["names"]:
            if kind == "Secret":  # nobody needs what is secret any more
                with contextlib.suppress(ApiError):
                    cluster.delete(path_of(kind, place.namespace, name))
        return from_end(end)

    # --- what came of it --------------------------------------------------------------------------------

    def _keep(
        self, cluster: Cluster, place: Place, record: Record, pods: Sequence[Pod], *, every: bool
    ) -> None:
        """Fetch what pods have printed that will soon be gone, or all that have begun."""
        for pod in pods:
            if pod.begun and pod.uid not in record["kept"] and (every or pod.over or pod.leaving):
                log = PodLog(cluster, place.namespace, pod.name)
                with contextlib.suppress(ApiError):
                    if KeptLog(self.job_dir, pod.uid).fetch(log, whole=pod.over) and pod.over:
                        record["kept"].append(pod.uid)

    def _bring_home(self, cluster: Cluster, place: Place, record: Record, pods: Sequence[Pod]) -> None:
        """Make of the kept logs of all pods the logs of their ranks, and of what they sent their results."""
        there = {pod.uid: pod for pod in pods}
        secrets = _secrets(record)
        for uid, (role, rank, attempt) in _places(record).items():
            kept = KeptLog(self.job_dir, uid)
            if (pod := there.get(uid)) and pod.begun and uid not in record["kept"]:
                _fetch_last(kept, PodLog(cluster, place.namespace, pod.name), pod)
            stem = runner.record_stem(role, rank, attempt)
            cutter = save(kept, self.job_dir / "logs" / f"{stem}.log", secrets)
            self._take_results(cutter, attempt)
        shutil.rmtree(self.job_dir / "pods", ignore_errors=True)
        if record["claim"]:
            try:
                kubernetes_claim.fetch(cluster, place, record["claim"], self.job_dir)
            except SubmitError as exc:
                left = f"{record['claim']['folder']} of claim {record['claim']['name']!r}"
                logger.warning("what the job left in %s stays there: %s", left, exc)

    def _take_results(self, cutter: Cutter, attempt: int) -> None:
        """A pod does not always know which attempt it is, so its records get their names here."""
        part = self.job_dir / ".sent"
        if cutter.unpack(part):
            for path in sorted((part / "results").glob("*")):
                named = _named_after(path, attempt)
                os.replace(named, self.job_dir / "results" / named.name)
            _merge(part / "artifacts", self.job_dir / "artifacts")
        shutil.rmtree(part, ignore_errors=True)

    def lines(self, role: str, rank: int, *, follow: bool = False) -> Iterator[str]:
        """What a pod of a role printed, and those that came after it; `follow` waits for the job's end."""
        done, last = set[str](), False
        masked = _masker(_secrets(self.record() or {"secrets": {}}))
        while not self.end():
            if (record := self.record()) is None:
                return
            place = Place(**record["place"])
            cluster = connect(place)
            pods = sorted(
                list_pods(cluster, place.namespace, [record["digest"]]), key=lambda pod: pod.created
            )
            mine = (pod for pod in pods if (pod.role, pod.rank) == (role, rank) and pod.uid not in done)
            if pod := next(mine, None):
                done.add(pod.uid)
                kept = KeptLog(self.job_dir, pod.uid)
                if follow:
                    followers().follow(kept, PodLog(cluster, place.namespace, pod.name))
                yield from map(masked, pod_lines(cluster, place.namespace, pod.name, kept, follow=follow))
            elif not follow or last:
                return
            else:
                last = self.tend().state in (*TERMINAL, AppState.UNKNOWN)
                time.sleep(0 if last else _PAUSE)
        if record := self.record():
            for uid, (whose, number, attempt) in _places(record).items():
                if (whose, number) == (role, rank) and uid not in done:
                    path = self.job_dir / "logs" / f"{runner.record_stem(role, rank, attempt)}.log"
                    yield from read_lines(path, lambda: False)

    # --- ending -----------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Delete its Jobs; harmless when it has ended.

        Raises:
            ApiError: the cluster does not answer.
        """
        if self.end() or self.record() is None or self.tend().state in TERMINAL:
            return
        with self._alone():
            record = self.record()
            if record and not self.end() and not record["stopping"]:
                record["stopping"] = Verdict(AppState.CANCELLED, 143, "cancelled").to_json()
                self._write(record)
        self.tend()


# --- deciding -------------------------------------------------------------------------------------------


def _stopping(record: Record, seen: Seen, verdict: Verdict | None) -> Record | None:
    """How the job ends, if it does now."""
    deleted = Verdict(AppState.FAILED, None, "its Job was deleted in the cluster").to_json()
    if verdict is None:
        # Left alone, a Job stays until its time to live is over, which begins when it has ended.
        young = record["ttl"] is None or time.time() < record["made"] + record["ttl"]
        return deleted if young else None
    if verdict.state in TERMINAL:
        return verdict.to_json()
    if len(seen.jobs) < _count(record):
        return deleted
    if verdict.stuck_since and time.time() - verdict.stuck_since > record["start_patience"]:
        return Verdict(AppState.FAILED, None, verdict.message).to_json()
    return None


def _lingers(record: Record, pods: Sequence[Pod]) -> bool:
    """Whether a pod has been told to end and may still print something; nobody waits for a lost node."""
    late = record["stopping"].setdefault("since", time.time()) + record["grace"] + _PATIENCE < time.time()
    return not late and any(pod.running and pod.leaving for pod in pods)


def from_end(end: Mapping[str, Any]) -> JobStatus:
    """The status that an end stands for."""
    fields = {name: end[name] for name in ("exit_code", "message", "attempt", "started", "ended")}
    return JobStatus(state=AppState[end["state"]], **fields)


def _count(record: Record) -> int:
    return sum(kind == record["kind"] for kind, _ in record["names"])


def _jobs_among(objects: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in objects if each["kind"] in ("Job", "JobSet")]


# --- pods and attempts ----------------------------------------------------------------------------------


def _note_pods(record: Record, pods: Sequence[Pod]) -> None:
    """Remember pods that are new, in the order in which they were made."""
    for pod in sorted(pods, key=lambda pod: (pod.created, pod.name)):
        record["pods"].setdefault(pod.uid, [pod.role, pod.rank, pod.name])


def _attempt(record: Record) -> int:
    counts: dict[tuple[str, int], int] = defaultdict(int)
    for role, rank, _ in record["pods"].values():
        counts[role, rank] += 1
    return max(counts.values(), default=1)


def _places(record: Record) -> dict[str, tuple[str, int, int]]:
    """Role, rank and attempt of each pod that has been seen; the last pods are those of the last attempt."""
    places, of_rank = {}, defaultdict[tuple[str, int], list[str]](list)
    for uid, (role, rank, _) in record["pods"].items():
        of_rank[role, rank].append(uid)
    for (role, rank), uids in of_rank.items():
        for at, uid in enumerate(uids, start=1):
            places[uid] = (role, rank, _attempt(record) if uid == uids[-1] else at)
    return places


def _fetch_last(kept: KeptLog, log: PodLog, pod: Pod) -> None:
    """What has been printed since it was last looked at; raises only where one may try again."""
    try:
        kept.fetch(log, patience=10.0, whole=True)
    except ApiError as exc:
        if exc.status == 0:
            raise
        logger.warning("the log of pod %s cannot be read any more: %s", pod.name, exc)


def _named_after(path: Path, attempt: int) -> Path:
    """The file of a record under the name that it has for its attempt; so has the one that it names."""
    stem, _, ending = path.name.partition(".")
    if attempt == 1 or ending.startswith("attempt"):
        return path
    new = path.with_name(f"{stem}.attempt{attempt}.{ending}")
    if path.suffix == ".json":
        record = json.loads(path.read_bytes())
        if "pickle" in record:
            record["pickle"] = f"{stem}.attempt{attempt}.pkl"
        runner.write(str(path), json.dumps(record) + "\n")
    os.replace(path, new)
    return new


def _merge(source: Path, target: Path) -> None:
    """Move files into a folder, over those that are there."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            goal = target / path.relative_to(source)
            goal.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.replace(path, goal)


# --- secrets --------------------------------------------------------------------------------------------


def _secrets(record: Record) -> list[bytes]:
    """The values of a job's secrets, as far as they can be read here."""
    values = []
    for source in record["secrets"].values():
        with contextlib.suppress(ConfigError):
            values.append(Secret.from_source(source).resolve())
    return [os.fsencode(value) for value in worth_masking(values)]


def _masker(secrets: Sequence[bytes]) -> Callable[[bytes], str]:
    def masked(line: bytes) -> str:
        for secret in secrets:
            line = line.replace(secret, MASK.encode())
        return line.decode(errors="replace")

    return masked
