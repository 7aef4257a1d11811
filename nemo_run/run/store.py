"""The experiment's directory: every path, every record, and how they are written.

    $NEMORUN_HOME/experiments/<title>/<title>_<milliseconds>/
      experiment.json  main.py  git.json  git.diff
      <job>/  task.json task.yaml executor.json plan.txt job.json
              code/ scripts/ configs/ logs/ results/ artifacts/

A record is written to a new file that is flushed and renamed into place, so a reader sees the old one or the
new one. An experiment appears by one rename and disappears by one, so nobody sees half of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from nemo_run.core.runner import write
from nemo_run.errors import ConfigError, NotFoundError, StoreError
from nemo_run.home import get_nemorun_home, open_home
from nemo_run.run.records import SCHEMA, ExperimentRecord, JobEntry, JobRecord

#: Folders that are being made or deleted begin with these.
_NEW, _TRASH = ".new-", ".trash-"
#: So many threads write, where there are so many folders or records to be written.
_WRITERS, _MANY = 4, 16
#: Milliseconds by which the clocks of a file server and of its clients may differ.
_CLOCKS_DIFFER = 3_600_000
_UNSAFE = re.compile(r"[/\x00-\x1f\x7f]+")
T = TypeVar("T")


class Store:
    """One experiment's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._experiment: ExperimentRecord | None = None
        self._read_at: tuple[int, ...] = ()

    # --- making -----------------------------------------------------------------------------------------

    @classmethod
    def create(cls, record: ExperimentRecord, files: Mapping[str, str], *, base: Path | None = None) -> Store:
        """Write a whole experiment, then let it appear.

        Args:
            record: What `experiment.json` will hold.
            files: Text by path below the experiment's folder.
            base: Used instead of NEMORUN_HOME.

        Raises:
            FileExistsError: there is an experiment of this id.
            StoreError: the folder cannot be written to.
        """
        final = experiment_dir(record.title, record.id, base)
        new = final.with_name(f"{_NEW}{record.id}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            if base is None:
                open_home()
            _make_private(new)
            _write_all(new, files)
            _write_new(new / "experiment.json", _dump_experiment(record))
            _rename_whole(new, final)
        except FileExistsError:
            shutil.rmtree(new, ignore_errors=True)
            raise
        except OSError as exc:
            shutil.rmtree(new, ignore_errors=True)
            _remove_if_empty(final.parent)
            raise StoreError(
                f"cannot write experiment {record.id!r} under {str(final.parent)!r}: {exc.strerror or exc}."
                " Free some space, or set NEMORUN_HOME to another folder."
            ) from exc
        return cls(final)

    @classmethod
    def open(cls, name: str, *, base: Path | None = None) -> Store:
        """An experiment by id, by title (the newest of that title) or by a unique beginning of its id.

        Raises:
            NotFoundError: none, or more than one, is meant.
        """
        exact = _experiments(base) / name.rpartition("_")[0] / name
        if name and "/" not in name and os.path.exists(exact / "experiment.json"):
            return cls(exact)
        if same_title := next((path for path in scan(name, base=base) if _title_of(path) == name), None):
            return cls(same_title)
        known = scan(base=base)
        matches = [path for path in known if name and path.name.startswith(name) and is_experiment(path)]
        if len(matches) == 1:
            return cls(matches[0])
        if matches:
            raise NotFoundError("single experiment begins with", name, [path.name for path in matches])
        raise NotFoundError("experiment", name, list(dict.fromkeys(path.parent.name for path in known)))

    # --- reading ----------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The experiment's id."""
        return self.path.name

    def experiment(self) -> ExperimentRecord:
        """`experiment.json`, which is read again only once jobs have been added to it.

        Raises:
            StoreError: it cannot be read, or a newer nemo_run wrote it.
        """
        stamp = self._stamp()
        if self._experiment is None or stamp not in ((), self._read_at):
            self._experiment, self._read_at = self._read_experiment(), stamp
        return self._experiment

    def _stamp(self) -> tuple[int, ...]:
        """Another one once the experiment's record has been replaced; none if it is gone."""
        try:
            found = os.stat(self.path / "experiment.json")
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read_experiment(self) -> ExperimentRecord:
        record = self._read("experiment.json")
        try:
            if record.get("schema", 0) > SCHEMA:
                raise StoreError(
                    f"experiment {self.id!r} was written by a newer nemo_run (schema {record['schema']},"
                    f" this one reads up to {SCHEMA}); upgrade nemo_run to look at it"
                )
            jobs = [JobEntry(**job) for job in record["jobs"]]
            return ExperimentRecord(**{**record, "jobs": jobs})
        except (KeyError, TypeError, AttributeError) as exc:
            raise StoreError(f"cannot read {self.path / 'experiment.json'}: {exc!r}") from exc

    def job_dir(self, job_id: str) -> Path:
        """A job's folder."""
        return self.path / job_id

    def read_job(self, job_id: str) -> JobRecord:
        """`job.json`.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            return JobRecord.from_json(self._read(f"{job_id}/job.json"))
        except (KeyError, TypeError) as exc:
            raise StoreError(f"cannot read {self.path / job_id / 'job.json'}: {exc!r}") from exc

    def read_json(self, name: str) -> Any:
        """Any other record, by its path below the experiment's folder."""
        return self._read(name)

    def _read(self, name: str) -> Any:
        path = self.path / name
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else f"not valid JSON ({exc})"
            raise StoreError(f"cannot read {path}: {reason}") from exc

    # --- changing ---------------------------------------------------------------------------------------

    def add_jobs(self, jobs: Sequence[JobEntry], files: Mapping[str, str]) -> None:
        """Write jobs, then let them appear in an experiment that is there.

        Args:
            jobs: What `experiment.json` will hold of them, beside those that it holds.
            files: Text by path below the experiment's folder.

        Raises:
            FileExistsError: it has a job of such an id; nothing is written.
            StoreError: it cannot be read or written.
        """
        new = {job.id for job in jobs}
        with self.lock():
            record = self.experiment()
            if taken := sorted(new & {job.id for job in record.jobs}):
                raise FileExistsError(errno.EEXIST, f"experiment {self.id!r} has such a job", taken[0])
            for job_id in new:  # a maker that was killed may have left some of it
                shutil.rmtree(self.job_dir(job_id), ignore_errors=True)
            try:
                _write_all(self.path, {name: files[name] for name in files if name.partition("/")[0] in new})
            except OSError as exc:
                raise StoreError(f"cannot write to {self.path}: {exc.strerror or exc}") from exc
            for name in files:
                if name.partition("/")[0] not in new:
                    self.write(name, files[name])
            grown = replace(record, jobs=[*record.jobs, *jobs])
            self.write("experiment.json", _dump_experiment(grown))
            self._experiment, self._read_at = grown, self._stamp()

    def update_job(
        self,
        job_id: str,
        *,
        sync: bool = False,
        when: Callable[[JobRecord], bool] = lambda record: True,
        **changes: Any,
    ) -> JobRecord:
        """Change a job's record; one that is terminal stays as it is, unless a later attempt says otherwise.

        Args:
            job_id: Which job.
            sync: Wait for the disk, because the job is about to be where a crash of this machine is survived.
            when: Asked of the record as it is by then; it is changed only if the answer is yes.
            changes: Fields of its record.

        Returns:
            The record as it then stands.
        """
        return self.update_jobs({job_id: changes}, sync=sync, when=when)[job_id]

    def update_jobs(
        self,
        changes: Mapping[str, Mapping[str, Any]],
        *,
        sync: bool = False,
        when: Callable[[JobRecord], bool] = lambda record: True,
    ) -> dict[str, JobRecord]:
        """The same for several jobs at once, whose records are then waited for together.

        Args:
            changes: Fields of their records, by job.
            sync: As above.
            when: As above, of each.

        Returns:
            The records as they then stand, by job.
        """
        with self.lock():
            found, files = dict[str, JobRecord](), dict[str, str]()
            for job_id, fields in changes.items():
                current = found[job_id] = self.read_job(job_id)
                changed = replace(current, **fields)
                if (current.terminal and changed.attempt <= current.attempt) or not when(current):
                    continue
                if changed != current:
                    found[job_id] = changed
                    files[f"{job_id}/job.json"] = dump(changed.to_json())
            _for_each(lambda name: self.write(name, files[name], sync=sync), files)
            return found

    def write(self, name: str, text: str, *, sync: bool = False) -> None:
        """Write a file below the experiment's folder whole or not at all; see `runner.write`.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            write(str(self.path / name), text, sync=sync)
        except OSError as exc:
            raise StoreError(f"cannot write {self.path / name}: {exc.strerror}") from exc

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from changing this experiment's records meanwhile."""
        with _locked(self.path / ".lock", fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def dispatching(self) -> Iterator[int | None]:
        """Be the one process that submits this experiment's jobs: gives the lock as an open file, else None.

        The system lets go of it when that process ends, however it ends; a process that is started with the
        open file has the lock from its first moment on.
        """
        with _locked(self.path / ".dispatch", fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
            yield held

    def is_abandoned(self) -> bool:
        """Whether no process is there to submit this experiment's jobs."""
        with self.dispatching() as ours:
            return ours is not None

    def delete(self) -> None:
        """Remove the experiment: by a rename at once, then file by file."""
        trash = self.path.with_name(f"{_TRASH}{self.id}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            self.path.rename(trash)
        except FileNotFoundError:
            return
        _remove(trash)
        _remove_if_empty(trash.parent)


# --- names and places -----------------------------------------------------------------------------------


def folder_name(title: str) -> str:
    """A title as the name of a folder: what a file system cannot hold becomes `-`, the rest stays.

    Raises:
        ConfigError: it is no text: a half of a character, or bytes of another encoding.
    """
    name = _UNSAFE.sub("-", title).strip() or "-"
    if name.startswith("."):
        name = "-" + name.lstrip(".")
    try:
        raw = name.encode()
    except UnicodeEncodeError as exc:
        raise ConfigError(f"the name {title!r} is no text, as no file could hold it; give another") from exc
    if len(raw) > 120:
        name = raw[:100].decode(errors="ignore") + "-" + hashlib.sha256(raw).hexdigest()[:8]
    return name


def new_id(title: str, milliseconds: int) -> str:
    """An experiment's id."""
    return f"{folder_name(title)}_{milliseconds}"


def experiment_dir(title: str, experiment_id: str, base: Path | None = None) -> Path:
    """Where an experiment lies or would lie."""
    return _experiments(base) / folder_name(title) / experiment_id


def created_ms(path: Path) -> int:
    """When an experiment was made, from its id: 0 if the id does not say."""
    return _by_age(path.name)[0]


def scan(title: str | None = None, *, base: Path | None = None) -> Sequence[Path]:
    """The folders of all experiments (of one title), newest first; nothing in them is read."""
    root = _experiments(base)
    one = title is not None
    titles = [str(root / folder_name(title))] if title is not None else _folders(root, needed=True)
    found = [(*_by_age(path), path) for folder in titles for path in _folders(folder, needed=one)]
    return _Paths([path for _, _, path in sorted(found, reverse=True)])


def newest(count: int, *, base: Path | None = None) -> Sequence[Path]:
    """The newest experiments, newest first, without a look into the folder of every title.

    That folder changes when an experiment appears in it, so it holds none that is newer than the change.
    """
    titles = sorted((_changed_ms(path), path) for path in _folders(_experiments(base), needed=True))
    found: list[tuple[int, str, str]] = []
    while titles:
        changed, title = titles.pop()
        if len(found) == count and changed + _CLOCKS_DIFFER < found[-1][0]:
            break
        found += [(*_by_age(path), path) for path in _folders(title)]
        ours = (entry for entry in sorted(found, reverse=True) if is_experiment(Path(entry[2])))
        found = list(itertools.islice(ours, count))
    return [Path(path) for _, _, path in found]


def _changed_ms(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return 0


def _by_age(path: str) -> tuple[int, str]:
    name = path.rpartition("/")[2]
    stamp = name.rpartition("_")[2]
    return int(stamp) if stamp.isdecimal() else 0, name


class _Paths(Sequence[Path]):
    """Paths that are made when they are looked at, as of ten thousand hardly more than twenty are."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, at: Any) -> Any:
        return list(map(Path, self._names[at])) if isinstance(at, slice) else Path(self._names[at])


def is_experiment(path: Path) -> bool:
    """Whether a folder is an experiment, if one that has lost its record; other tools use this place too."""
    return any(os.path.exists(path / name) for name in ("experiment.json", ".lock", ".dispatch"))


def collect_garbage(base: Path | None = None) -> list[Path]:
    """Remove what makers and deleters that were killed left behind; returns the folders removed."""
    removed = []
    for folder in _folders(_experiments(base), needed=True):
        for path in map(Path, _folders(folder, hidden=True)):
            if path.name.startswith(_TRASH) or (path.name.startswith(_NEW) and _abandoned(path)):
                _remove(path)
                _remove_if_empty(path.parent)
                removed.append(path)
    return removed


def _experiments(base: Path | None) -> Path:
    return (base or get_nemorun_home()) / "experiments"


def _folders(path: str | Path, *, hidden: bool = False, needed: bool = False) -> list[str]:
    """The folders in a folder; none if it cannot be read, unless it is `needed`."""
    try:
        with os.scandir(path) as entries:
            return [e.path for e in entries if e.name.startswith(".") is hidden and e.is_dir()]
    except OSError as exc:
        is_file = isinstance(exc, NotADirectoryError) and os.path.lexists(path)
        if needed and not is_file and not isinstance(exc, FileNotFoundError):
            mend = "Set NEMORUN_HOME to a folder of your own."
            raise StoreError(f"cannot read {str(path)!r}: {exc.strerror}. {mend}") from exc
        return []


def _title_of(path: Path) -> str | None:
    try:
        return Store(path).experiment().title
    except StoreError:
        return None


def _abandoned(path: Path, after: float = 3600.0) -> bool:
    """Nobody takes this long to write an experiment."""
    try:
        return time.time() - path.stat().st_mtime > after
    except FileNotFoundError:
        return False


# --- files ----------------------------------------------------------------------------------------------


def dump(record: Any) -> str:
    """A record as readable JSON."""
    return json.dumps(record, indent=1) + "\n"


def _dump_experiment(record: ExperimentRecord) -> str:
    """The same for an experiment's record, with a line for each job."""
    rest = {name: value for name, value in vars(record).items() if name != "jobs"}
    jobs = ",\n  ".join([job.line for job in record.jobs])
    return f'{json.dumps(rest, indent=1)[:-2]},\n "jobs": [\n  {jobs}\n ]\n}}\n'


def _write_new(path: Path, text: str) -> None:
    """A file nobody looks at yet."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)


def _write_all(folder: Path, files: Mapping[str, str]) -> None:
    """Many new files, those of several folders at a time: a file system takes its time for each new file."""
    by_folder = defaultdict[str, list[str]](list)
    for name in files:
        by_folder[name.partition("/")[0]].append(name)

    def write(names: list[str]) -> None:
        for name in names:
            _write_new(folder / name, files[name])

    _for_each(write, by_folder.values())


def _for_each(deed: Callable[[T], None], things: Collection[T]) -> None:
    """Do it for each, for several at a time where there are many."""
    if len(things) < _MANY:
        for thing in things:
            deed(thing)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_WRITERS) as pool:
        for _ in pool.map(deed, things):
            pass


def _make_private(path: Path, tries: int = 10) -> None:
    """Make a folder, and those above it that are missing, for its owner alone."""
    try:
        path.mkdir(mode=0o700)
    except FileNotFoundError:
        if not tries:
            raise
        with contextlib.suppress(FileExistsError):
            _make_private(path.parent, tries - 1)
        # Whoever deletes the last experiment of a title removes its folder, so it may be gone again.
        _make_private(path, tries - 1)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _rename_whole(new: Path, final: Path) -> None:
    # The system's rename replaces an empty folder, which only a stranger could have made here.
    try:
        new.rename(final)
    except OSError as exc:
        # By the error, as whoever has that name may have been deleted since.
        if exc.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise FileExistsError(exc.errno, exc.strerror, str(final)) from exc
        raise


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[int | None]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise StoreError(f"cannot lock {path}: {exc.strerror}") from exc
    try:
        yield fd if _try_lock(fd, how) else None
    finally:
        os.close(fd)


def _try_lock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: records are still whole, and one process at a time is up to the user.
        return True
    return True


def _remove(path: Path) -> None:
    """Remove a folder that others may be removing or still writing to."""
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.05)
