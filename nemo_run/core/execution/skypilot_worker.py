"""Asks SkyPilot, in a process that can be ended: JSON lines come in, and JSON lines go out.

SkyPilot takes seconds to import and blocks where it asks, so it is kept out of whoever launches. It may be
installed in an environment of its own: this file needs nothing else but Python's standard library.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
#: What of managed jobs is asked for.
_FIELDS = ("job_id", "job_name", "status", "submitted_at", "start_at", "end_at", "failure_reason", "details")


def main() -> None:
    """Answer until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # SkyPilot prints
    turn = threading.Lock()

    def tell(**answer: Any) -> None:
        with turn:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

    verbs = _Verbs()
    for line in sys.stdin:
        asked = json.loads(line)
        threading.Thread(target=_answer, args=(verbs, asked, tell), daemon=True).start()
    os._exit(0)


def _answer(verbs: _Verbs, asked: dict[str, Any], tell: Callable[..., None]) -> None:
    number = asked.pop("id")
    try:
        found = getattr(verbs, asked.pop("verb"))(**asked)
        if hasattr(found, "__next__"):
            for line in found:
                tell(id=number, line=line)
            found = None
        tell(id=number, ok=found)
    except BaseException as exc:
        names = [kind.__name__ for kind in type(exc).__mro__[:-2]]
        tell(id=number, error={"kinds": names, "text": _plain(str(exc)).strip() or names[0]})


def _plain(text: str) -> str:
    return _COLOURS.sub("", text)


class _Verbs:
    """What can be asked; every answer is plain JSON."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sky: Any = None
        #: Requests that are known to have succeeded.
        self._launched: set[str] = set()

    @property
    def sky(self) -> Any:
        """SkyPilot, which is imported when somebody asks first."""
        with self._lock:
            if self._sky is None:
                import sky
                import sky.jobs

                self._sky = sky
            return self._sky

    # --- what there is ------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """Versions of SkyPilot here and of its API server."""
        info = self.sky.client.sdk.api_info()
        return {
            "version": self.sky.__version__,
            "server": info["version"],
            "status": getattr(info["status"], "value", str(info["status"])),
            "url": self.sky.server.common.get_server_url(),
        }

    def clouds(self) -> list[str]:
        """Those that are enabled, as they were when somebody last checked."""
        return [str(name) for name in self._get(self.sky.client.sdk.enabled_clouds())]

    def check(self, infra: list[str]) -> dict[str, Any]:
        """What SkyPilot finds when it tries the clouds: those enabled, and what it prints."""
        stream = io.StringIO()
        sdk = self.sky.client.sdk
        request = sdk.check(tuple(infra) or None, verbose=False)
        found = sdk.stream_and_get(request, output_stream=stream)
        return {"found": {str(k): v for k, v in (found or {}).items()}, "said": _plain(stream.getvalue())}

    def accelerators(self) -> list[str]:
        """The names of all accelerators that SkyPilot knows."""
        return sorted(self._get(self.sky.client.sdk.list_accelerators(gpus_only=False)))

    # --- launching ----------------------------------------------------------------------------------------

    def launch(
        self, task: dict[str, Any], secrets: dict[str, str], cluster: str, options: dict[str, Any], note: str
    ) -> dict[str, str]:
        """Have the API server begin; the request's number is noted before anybody is told."""
        sdk = self.sky.client.sdk
        name = task["name"]  # SkyPilot takes what it reads out of the mapping
        made = self.sky.Task.from_yaml_config(task, secrets_overrides=list(secrets.items()))
        data = {"made": "", "request": ""}
        if options["managed"]:
            request = self.sky.jobs.client.sdk.launch(made, name=name)
        else:
            there = self._get(sdk.status([cluster], all_users=True))
            if not there:
                with self.sky.Dag() as dag:
                    dag.add(made)
                self._get(sdk.optimize(dag))  # what nobody has is known before anything is begun
                data["made"] = "yes"
            request = sdk.launch(
                made,
                cluster_name=cluster,
                retry_until_up=options["retry"],
                fast=options["fast"],
                **self._end_of_cluster(made, options, ours=not there),
            )
        data["request"] = str(request)
        try:
            _write(note, json.dumps({**json.loads(_read(note)), **data}))
        except OSError:  # then it is found by its name
            pass
        return data

    def _end_of_cluster(self, task: Any, options: dict[str, Any], *, ours: bool) -> dict[str, Any]:
        """When SkyPilot is to stop a cluster or take it down; one that was there before is left alone."""
        clouds = {str(each.cloud).lower() for each in task.resources if each.cloud is not None}
        if not ours or "slurm" in clouds:
            return {}
        idle, down = options["idle"], options["autodown"]
        if idle is None:
            # It takes longer than a look at a job's end takes; after that we take it down ourselves.
            return {"idle_minutes_to_autostop": 10, "down": True} if down else {}
        return {"idle_minutes_to_autostop": idle, "down": down}

    # --- looking ------------------------------------------------------------------------------------------

    def look(self, clusters: dict[str, dict[str, str]]) -> dict[str, Any]:
        """The jobs of some clusters by name, and what became of the launch of those not launched yet.

        Args:
            clusters: By name, the request of each job that is looked for, by the job's name.
        """
        sdk = self.sky.client.sdk
        launches = self._open_launches(
            {job: (request, name) for name, jobs in clusters.items() for job, request in jobs.items()}
        )
        # Nothing is asked of a cluster on which no job can be yet.
        due = [name for name, jobs in clusters.items() if not jobs or jobs.keys() - launches.keys()]
        asked = [sdk.queue(name, all_users=True) for name in due]
        found: dict[str, Any] = {}
        for request in asked:
            try:
                for job in self._get(request):
                    found[job["job_name"]] = _job(job)
            except Exception as exc:
                if _is_away(exc):
                    raise
        gone = {
            job: (request, name)
            for name, jobs in clusters.items()
            for job, request in jobs.items()
            if job not in found and job not in launches
        }
        return {"jobs": found, "launches": launches | (self._launches(gone) if gone else {})}

    def _open_launches(self, jobs: dict[str, tuple[str, str]]) -> dict[str, Any]:
        """What becomes of those launches that have not succeeded; one that has is not asked about again."""
        unknown = {job: each for job, each in jobs.items() if each[0] and each[0] not in self._launched}
        found = self._launches(unknown) if unknown else {}
        self._launched |= {unknown[job][0] for job, each in found.items() if each["status"] == "SUCCEEDED"}
        return {job: each for job, each in found.items() if each["status"] not in ("SUCCEEDED", "")}

    def _launches(self, missing: dict[str, tuple[str, str]]) -> dict[str, Any]:
        sdk = self.sky.client.sdk
        requests = [request for request, _ in missing.values()]
        by_id = {each.request_id: each for each in sdk.api_status(requests, all_status=True)}
        names = list({cluster for _, cluster in missing.values() if cluster})
        clusters = (
            {each["name"]: each for each in self._get(sdk.status(names, all_users=True))} if names else {}
        )
        found = {}
        for job, (request, cluster) in missing.items():
            seen, there = by_id.get(request), clusters.get(cluster)
            status = getattr(seen, "status", "") if seen else ""
            found[job] = {
                "status": getattr(status, "value", str(status)),
                "said": self._failure(request) if "FAILED" in str(status) else "",
                "cluster": there["status"].value if there else "",
                "words": _plain(
                    (there.get("init_status_reason") or there.get("last_event") or "") if there else ""
                ),
                "made": bool(there),
            }
        return found

    def _failure(self, request: str) -> str:
        try:
            self._get(request)
        except Exception as exc:
            return _plain(str(exc)).strip() or type(exc).__name__
        return ""

    def managed(self, jobs: dict[str, str]) -> dict[str, Any]:
        """Managed jobs by name, and what became of the launch of those not launched yet."""
        launches = self._open_launches({name: (request, "") for name, request in jobs.items()})
        found: dict[str, Any] = {}
        if jobs.keys() - launches.keys():
            sdk = self.sky.jobs.client.sdk
            records = self._get(sdk.queue_v2(refresh=False, all_users=True, fields=list(_FIELDS)))
            for record in records[0] if isinstance(records, tuple) else records:
                if (name := record.get("job_name")) in jobs:
                    found[name] = _job(record)
        gone = {name: (each, "") for name, each in jobs.items() if name not in found and name not in launches}
        return {"jobs": found, "launches": launches | (self._launches(gone) if gone else {})}

    def number(self, request: str) -> int | None:
        """The number of a job on its cluster, once it is launched."""
        found = self._get(request)[0]
        number: int | None = found[0] if isinstance(found, (list, tuple)) else found
        return number

    def find(self, name: str, cluster: str) -> dict[str, str] | None:
        """The request by which a task of this name was launched, if there is one."""
        for seen in self.sky.client.sdk.api_status(all_status=True, cluster_name=cluster or None):
            if seen.name.endswith("launch") and name in (seen.request_body or ""):
                return {"request": seen.request_id, "made": ""}
        jobs = (self.look({cluster: {}}) if cluster else self.managed({name: ""}))["jobs"]
        return {"request": "", "made": ""} if name in jobs else None

    def clusters(self, names: list[str]) -> dict[str, Any]:
        """What some clusters are and cost, as far as they are there."""
        found = {}
        for each in self._get(self.sky.client.sdk.status(names, all_users=True)):
            cost = 0.0
            try:
                cost = each["handle"].launched_resources.get_cost(3600) * each["handle"].launched_nodes
            except Exception:  # it is told for people, and no cloud must be asked for it
                pass
            found[each["name"]] = {
                "status": each["status"].value, "resources": each.get("resources_str") or "", "cost": cost
            }  # fmt: skip
        return found

    # --- reading ------------------------------------------------------------------------------------------

    def launch_lines(self, request: str, follow: bool) -> Iterator[str]:
        """What SkyPilot prints while it launches."""
        stream = _Lines()
        done = threading.Thread(target=self._stream, args=(request, follow, stream), daemon=True)
        done.start()
        yield from stream

    def _stream(self, request: str, follow: bool, stream: _Lines) -> None:
        try:
            self.sky.client.sdk.stream_and_get(request, follow=follow, output_stream=stream)
        except Exception:  # why a launch failed is what its status says
            pass
        finally:
            stream.close()

    def lines(self, cluster: str, job: int, follow: bool) -> Iterator[str]:
        """What a job prints, as SkyPilot shows it."""
        sdk = self.sky.client.sdk if cluster else self.sky.jobs.client.sdk
        where = {"cluster_name": cluster} if cluster else {}
        for line in sdk.tail_logs(**where, job_id=job, follow=follow, preload_content=False):
            if line is not None:
                yield line

    # --- ending -------------------------------------------------------------------------------------------

    def cancel(self, cluster: str, job: int) -> None:
        """End a job; it is not waited for."""
        if cluster:
            self._get(self.sky.client.sdk.cancel(cluster, job_ids=[job]))
        else:
            self._get(self.sky.jobs.client.sdk.cancel(job_ids=[job]))

    def cancel_launch(self, request: str) -> None:
        """End a launch."""
        self._get(self.sky.client.sdk.api_cancel(request, silent=True))

    def down(self, cluster: str) -> None:
        """Take a cluster down; it is not waited for."""
        self.sky.client.sdk.down(cluster)

    def _get(self, request: Any) -> Any:
        return self.sky.client.sdk.get(request)


class _Lines(io.TextIOBase):
    """Whole lines that somebody writes, for somebody else to read."""

    def __init__(self) -> None:
        import queue

        self._queue: Any = queue.Queue()
        self._rest = ""

    def write(self, text: str) -> int:
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self._queue.put(_plain(line).rstrip("\r"))
        return len(text)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if self._rest:
            self._queue.put(_plain(self._rest))
        self._queue.put(None)

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # texts, not bytes
        return iter(self._queue.get, None)


def _job(record: Any) -> dict[str, Any]:
    return {
        "job": record["job_id"],
        "status": record["status"].value,
        "started": record.get("start_at"),
        "ended": record.get("end_at"),
        "said": record.get("failure_reason") or record.get("details") or "",
    }


def _is_away(exc: Exception) -> bool:
    """Whether it is the API server that does not answer, or not as it should."""
    away = {"ApiServerConnectionError", "ApiServerAuthenticationError", "APIVersionMismatchError"}
    return bool(away & {kind.__name__ for kind in type(exc).__mro__})


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


if __name__ == "__main__":
    del sys.path[0]  # this file's folder, where modules have the names of others
    main()
