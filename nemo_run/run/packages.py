"""Packages of experiments: taken at their launch, copied for their jobs, collected when nobody names them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.base import Capability, Executor
from nemo_run.core.packaging.base import Packager
from nemo_run.core.packaging.snapshot import Package, collect, packages_dir, stage, take
from nemo_run.errors import StoreError, UnsupportedError
from nemo_run.home import get_nemorun_home, open_home
from nemo_run.run.store import Store

if TYPE_CHECKING:
    from nemo_run.run.job import Job

#: Says which package a job has, below the job's folder.
PACKAGE = "package.json"
#: Of the files that git does not know so many are named.
_MOST_NAMED = 1000


def check_packagers(jobs: Iterable[Job]) -> None:
    """Refuse groups whose members bring different code.

    Raises:
        UnsupportedError: there is one.
    """
    for job in jobs:
        first = job.executors[0]
        if any(executor.packager != first.packager for executor in job.executors):
            raise UnsupportedError(
                f"members of group {job.id!r} have different packagers, and a job has one folder of code;"
                " give all of them the same, such as a run.HybridPackager of both",
                executor=type(first).__name__,
                capability="packager",
            )
        if first.packager.moves_code and not first.packager.copies_code:
            _check_runs_images(first)


def _check_runs_images(executor: Executor) -> None:
    if Capability.IMAGES not in executor.capabilities:
        name, packager = type(executor).__name__, type(executor.packager).__name__
        raise UnsupportedError(
            f"{packager} makes an image, and jobs of {name} do not run in one; give it the packager of the"
            " code itself, such as run.GitArchivePackager()",
            executor=name,
            capability="IMAGES",
        )


def find_origins(jobs: Iterable[Job], folder: Path) -> None:
    """Have each job know which folders become its code.

    Raises:
        PackagingError: a folder that was asked for is not there.
    """
    known: list[tuple[Packager, dict[str, str | None]]] = []
    for job in jobs:
        packager = job.executors[0].packager
        origins = next((found for other, found in known if other == packager), None)
        if origins is None:
            origins = packager.origins(folder)
            known.append((packager, origins))
        job.origins = origins


def take_packages(jobs: Iterable[Job], folder: Path, base: Path | None) -> dict[str, Package]:
    """The packages of a launch by job id; equal packagers share one.

    Args:
        jobs: The jobs; those whose code stays where it is have none.
        folder: The folder that is launched from.
        base: Used instead of NEMORUN_HOME.

    Raises:
        PackagingError: the code cannot be packaged.
    """
    taken: list[tuple[Packager, Package]] = []
    packages = {}
    for job in jobs:
        packager = job.executors[0].packager
        if not packager.moves_code:
            continue
        package = next((package for other, package in taken if other == packager), None)
        if package is None:
            package = take(packager, folder, base or open_home())
            taken.append((packager, package))
        packages[job.id] = package
    return packages


def package_files(jobs: Iterable[Job], packages: Mapping[str, Package]) -> dict[str, Any]:
    """What is written down of packages, by path below the experiment's folder: a text, or a record.

    Args:
        jobs: The jobs.
        packages: Their packages by job id, where they have one.
    """
    files: dict[str, Any] = {}
    for job in jobs:
        if package := packages.get(job.id):
            files[f"{job.id}/{PACKAGE}"] = {**package.record(), "origins": job.origins}
    if known := next((package for package in packages.values() if "tree" in package.facts), None):
        files["git.json"] = git_facts(
            known.facts.get("commit"), Path(known.facts["root"]), known.diff, known.untracked
        )
        files["git.json"]["tree"] = known.facts["tree"]
        files |= {"git.diff": known.diff} if known.diff else {}
    return files


def git_facts(commit: str | None, folder: Path, diff: str, untracked: Iterable[str]) -> dict[str, Any]:
    """What `git.json` holds."""
    named = list(untracked)
    return {
        "commit": commit,
        "folder": str(folder),
        "uncommitted_changes": bool(diff or named),
        "untracked": named[:_MOST_NAMED],
    }


def stage_code(store: Store, job: Job) -> dict[str, Any] | None:
    """Give a job its copy of the code, if it has a package, needs a copy, and does not have it yet.

    Returns what is recorded of the package, with its files' folder as `code`; None where there is none.

    Raises:
        PackagingError: the package is gone, or there is no room.
    """
    job_dir = store.job_dir(job.id)
    if not (job_dir / PACKAGE).exists():
        return None
    record: dict[str, Any] = store.read_json(f"{job.id}/{PACKAGE}")
    package = packages_dir(_home(store)) / record["key"]
    if job.executors[0].packager.copies_code:
        stage(package, job_dir / "code")
    return {**record, "code": str(package / "code")}


def collect_packages() -> tuple[list[Path], list[Path]]:
    """Remove packages that no experiment names, and what killed makers left; returns both.

    Raises:
        StoreError: a record cannot be read, so that nobody knows what it names.
    """
    home = get_nemorun_home()
    return collect(packages_dir(home), {_key(path / PACKAGE) for path in job_dirs(home)})


def job_dirs(home: Path) -> Iterator[Path]:
    """The folders of all jobs, less those that go meanwhile.

    Raises:
        StoreError: one cannot be looked into, so that nobody knows what its jobs name.
    """
    return _folders(home / "experiments", depth=3)


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """The folders so far below one, less those that go meanwhile; one that cannot be read is an error."""
    if depth == 0:
        yield folder
        return
    try:
        with os.scandir(folder) as entries:
            inner = [Path(entry.path) for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StoreError(
            f"cannot read {folder}, so that it is unknown what it needs: {exc.strerror}"
        ) from exc
    for path in inner:
        yield from _folders(path, depth - 1)


def _key(path: Path) -> str:
    try:
        key: str = json.loads(path.read_bytes())["key"]
    except FileNotFoundError:
        return ""  # the experiment has just been deleted
    except (OSError, ValueError, KeyError, TypeError) as exc:
        mend = "delete that experiment, if nobody needs it any more"
        raise StoreError(
            f"cannot read {path}, so that it is unknown what it needs ({exc!r}); {mend}"
        ) from exc
    return key


def _home(store: Store) -> Path:
    """The folder that holds `experiments/<title>/<id>`."""
    return store.path.parents[2]
