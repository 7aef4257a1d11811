"""What became of a task: the value it returned, or the error it raised."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_run.core.runner import record_stem, unplain
from nemo_run.errors import StoreError
from nemo_run.run.script import definitions


@dataclass(frozen=True)
class UnpicklableValue:
    """Stands for a value that a task returned and that could not leave its process."""

    type: str
    reason: str
    repr: str


@dataclass(frozen=True)
class PickledValue:
    """A value that is only loaded for whoever asks for it, as loading runs code of its own."""

    type: str
    path: Path

    def load(self) -> Any:
        """The value itself.

        Raises:
            StoreError: the file is not ours, or cannot be loaded here.
        """
        import pickle

        try:
            # The launching script's own classes are named `__main__.Model`.
            with open(self.path, "rb") as file, definitions(self.path.parents[1]):
                owner = os.fstat(file.fileno()).st_uid
                if owner != os.getuid():
                    raise StoreError(
                        f"{self.path} belongs to user id {owner}; pickles of others are not loaded"
                    )
                return pickle.load(file)
        except Exception as exc:
            if isinstance(exc, StoreError):
                raise
            raise StoreError(
                f"cannot load the value of type {self.type} from {self.path}: {type(exc).__name__}: {exc}."
                " Load it where what it needs is installed, or have the task return plain data."
            ) from exc


@dataclass(frozen=True)
class Outcome:
    """What a replica recorded: a value (plain, pickled or lost) or an error, or neither."""

    value: Any = None
    error: dict[str, str] | None = None
    recorded: bool = False


def read_outcome(job_dir: Path, role: str, attempt: int = 1, replica: int = 0) -> Outcome:
    """What one replica recorded in one attempt; nothing is unpickled.

    Raises:
        StoreError: its record cannot be read.
    """
    path = job_dir / "results" / f"{record_stem(role, replica, attempt)}.json"
    try:
        record = json.loads(path.read_bytes())
        if "error" in record:
            return Outcome(error=record["error"], recorded=True)
        return Outcome(value=_value(record, path), recorded=True)
    except FileNotFoundError:
        return Outcome()
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise StoreError(f"cannot read {path}: {exc!r}") from exc


def first_error(job_dir: Path, role: str, attempt: int = 1) -> dict[str, str] | None:
    """The error that one of a role's processes recorded first: those that come later come of it.

    Where a launcher has started several, its `rank` says whose it is.
    """
    ending = f".attempt{attempt}.json" if attempt > 1 else ".json"
    name = re.compile(re.escape(role) + r"_\d+" + re.escape(ending))
    found: list[tuple[float, dict[str, str]]] = []
    for path in filter(lambda path: name.fullmatch(path.name), sorted(job_dir.glob("results/*.json"))):
        with contextlib.suppress(OSError, ValueError, KeyError):  # broken, or that of a value
            record = json.loads(path.read_bytes())
            found.append((record.get("time", 0.0), record["error"]))
    return min(found, key=lambda item: item[0])[1] if found else None


def _value(record: dict[str, Any], path: Path) -> Any:
    if "value" in record:
        return unplain(record["value"])
    if "pickle" in record:
        return PickledValue(record["type"], path.with_name(record["pickle"]))
    return UnpicklableValue(record["type"], record["unpicklable"], record["repr"])


def job_value(job_dir: Path, roles: list[str], attempt: int = 1, *, load: bool = True) -> Any:
    """The value of a job: its task's, or for a group each role's by name.

    Args:
        job_dir: The job's folder.
        roles: Its roles.
        attempt: The one that succeeded.
        load: Whether pickled values are loaded, or left as `PickledValue`.
    """
    values = {role: read_outcome(job_dir, role, attempt).value for role in roles}
    if load:
        values = {r: v.load() if isinstance(v, PickledValue) else v for r, v in values.items()}
    return values if len(roles) > 1 else values[roles[0]]
