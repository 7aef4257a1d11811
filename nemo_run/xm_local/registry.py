"""The units of an experiment: numbers, identities, whose each job is, and what is kept of them."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nemo_run.run.job import Job as EngineJob
from nemo_run.run.store import Store
from nemo_run.xm import core
from nemo_run.xm.errors import BadValueError
from nemo_run.xm.jobs import Job
from nemo_run.xm_local import backends
from nemo_run.xm_local.loops import Pending
from nemo_run.xm_local.units import AuxiliaryUnit, Unit, WorkUnit

if TYPE_CHECKING:
    from nemo_run.xm_local.experiment import LocalExperiment

#: What is kept of a job's unit, below the job's folder.
UNIT = "unit.json"


class Registry:
    """Units in the order of adding; those of an earlier process too, once they are restored."""

    def __init__(self, experiment: LocalExperiment) -> None:
        self._experiment = experiment
        self._changing = threading.RLock()
        self._units: dict[str, Unit] = {}
        self._identities: dict[tuple[type, str], Unit] = {}
        self._owners: dict[str, Unit] = {}
        self._numbers = itertools.count(1)
        self._auxiliary_numbers = itertools.count(1)
        self._restored = False

    def units(self) -> list[Unit]:
        """All that there are now."""
        with self._changing:
            return list(self._units.values())

    def owner(self, job_id: str) -> Unit | None:
        """Whose a job is."""
        return self._owners.get(job_id)

    def unended(self) -> list[str]:
        """The ids of the jobs whose ends are not known."""
        return [job_id for unit in self.units() for job_id in unit.unended()]

    def unit(self, role: core.ExperimentUnitRole, identity: str) -> tuple[Unit, bool]:
        """The unit of an identity, or a new one; and whether it is new."""
        kind = _kind(role)
        with self._changing:
            if identity and (known := self._identities.get((kind, identity))):
                return known, False
            numbers = self._numbers if kind is WorkUnit else self._auxiliary_numbers
            job_id = f"{'' if kind is WorkUnit else 'aux_'}{next(numbers)}"
            return self._know(kind(self._experiment, job_id, role, identity)), True

    def _know(self, unit: Unit) -> Unit:
        self._units[unit.job_id] = unit
        if unit.identity:
            self._identities[type(unit), unit.identity] = unit
        return unit

    # --- jobs -------------------------------------------------------------------------------------------

    def take(self, unit: Unit, jobs: Sequence[EngineJob]) -> None:
        """Have these be jobs of a unit.

        Raises:
            BadValueError: it has one of such a name already.
        """
        with self._changing:
            taken = {name for names in unit.names.values() for name in names}
            for name in (role for job in jobs for role in job.roles):
                if name in taken:
                    raise BadValueError(
                        f"unit {unit.job_id} has a job {name!r} already; give the other one another name"
                    )
            for job in jobs:
                self._own(unit, job.id, job.roles)

    def _own(self, unit: Unit, job_id: str, roles: list[str]) -> None:
        unit.names[job_id] = roles
        unit.parts[job_id] = Pending()
        self._owners[job_id] = unit

    def forget(self, jobs: Iterable[EngineJob]) -> None:
        """They could not be added."""
        with self._changing:
            for job in jobs:
                unit = self._owners.pop(job.id)
                del unit.parts[job.id], unit.names[job.id]

    # --- on disk ----------------------------------------------------------------------------------------

    def describe(self, unit: Unit, group: Iterable[Job]) -> dict[str, Any]:
        """What is kept of a unit with each of its jobs."""
        said: dict[str, Any] = {
            "unit": unit.job_id,
            "kind": "work" if isinstance(unit, WorkUnit) else "auxiliary",
            "identity": unit.identity,
            "importance": unit.role.importance.name,
        }
        for name in ("tags", "termination_delay_secs"):
            if value := getattr(unit.role, name, None):
                said[name] = value
        return said | {"jobs": backends.described(group)}

    def restore(self, store: Store) -> None:
        """Know the units that are written down already."""
        with self._changing:
            if self._restored:
                return
            self._restored = True
            for entry in store.experiment().jobs:
                said = _said(store, entry.id)
                self._own(self._units.get(said["unit"]) or self._restored_unit(said), entry.id, entry.roles)
            works = [unit.work_unit_id for unit in self._units.values() if isinstance(unit, WorkUnit)]
            self._numbers = itertools.count(max(works, default=0) + 1)
            self._auxiliary_numbers = itertools.count(len(self._units) - len(works) + 1)

    def _restored_unit(self, said: Mapping[str, Any]) -> Unit:
        importance = core.Importance[said.get("importance", "NORMAL")]
        role: core.ExperimentUnitRole
        if said["kind"] == "work":
            role = core.WorkUnitRole(importance=importance, tags=tuple(said.get("tags", ())))
        else:
            role = core.AuxiliaryUnitRole(said.get("termination_delay_secs", 0.0), importance=importance)
        return self._know(_kind(role)(self._experiment, said["unit"], role, said.get("identity", "")))


def _kind(role: core.ExperimentUnitRole) -> type[Unit]:
    return AuxiliaryUnit if isinstance(role, core.AuxiliaryUnitRole) else WorkUnit


def _said(store: Store, job_id: str) -> dict[str, Any]:
    """What is kept of a job's unit; a job of another front is a unit too, by its id."""
    with contextlib.suppress(Exception):
        said: dict[str, Any] = store.read_json(f"{job_id}/{UNIT}")
        return said
    return {"unit": job_id, "kind": "work" if job_id.isdecimal() else "auxiliary"}
