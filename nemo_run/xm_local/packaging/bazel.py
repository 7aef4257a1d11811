"""Bazel's targets: built by one command for each set of options, found by the events that Bazel writes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

from nemo_run.errors import PackagingError
from nemo_run.xm.utils import launch_dir
from nemo_run.xm_local import flags

#: Names the workspace where `bazel run` has started the launching script.
WORKSPACE = "BUILD_WORKSPACE_DIRECTORY"
#: A target with the program that it stands for, if it does.
_EXECUTABLE = (
    'str(target.label) + "\\t" + (target.files_to_run.executable.path'
    ' if target.files_to_run and target.files_to_run.executable else "")'
)


@dataclass(kw_only=True)
class Built:
    """What has been built, by label and options as they were written."""

    outputs: dict[tuple[str, tuple[str, ...]], list[Path]] = field(default_factory=dict)
    programs: dict[tuple[str, tuple[str, ...]], Path] = field(default_factory=dict)

    def file(self, label: str, args: Sequence[str]) -> Path:
        """The one file that a target gives.

        Raises:
            PackagingError: it gives another number of them.
        """
        files = self.outputs[label, tuple(args)]
        if len(files) != 1:
            named = "".join(f"\n  {path}" for path in files)
            raise PackagingError(
                f"{label} gives {len(files)} files, and an image is one; name the target of its tar"
                f' (often "{label.partition(".")[0]}.tar"){named}'
            )
        return files[0]

    def program(self, label: str, args: Sequence[str]) -> Path:
        """The program that a target stands for.

        Raises:
            PackagingError: it is none.
        """
        if (label, tuple(args)) not in self.programs:
            given = ", ".join(path.name for path in self.outputs[label, tuple(args)]) or "nothing"
            raise PackagingError(
                f"{label} is no program: it gives {given}; name a target that `bazel run` could run, such as"
                " an sh_binary or a genrule with executable = True"
            )
        return self.programs[label, tuple(args)]


def build(targets: Iterable[tuple[str, tuple[str, ...]]]) -> Built:
    """Build targets, given with their options: those with the same options by one command.

    Raises:
        PackagingError: there is no Bazel or no workspace, or Bazel refuses; with its own words.
    """
    built, labels = Built(), defaultdict[tuple[str, ...], list[str]](list)
    for label, args in dict.fromkeys(targets):
        labels[args].append(label)
    if not labels:
        return built
    bazel = _Bazel()
    for args, wanted in labels.items():
        events = bazel.build(wanted, args)
        programs = bazel.programs(wanted, args)
        for label in wanted:
            name = completed(events, label)
            files = list(map(bazel.path, files_of(events, name)))
            built.outputs[label, args] = files
            if program := _program(files, name, programs):
                built.programs[label, args] = program
    return built


def _program(files: Sequence[Path], name: str, programs: Mapping[str, str]) -> Path | None:
    """The one of a target's files that is started; of an alias the query knows only what it stands for."""
    wanted = [programs[name]] if name in programs else list(programs.values())
    return next((path for end in wanted for path in files if str(path).endswith(f"/{end}")), None)


class _Bazel:
    """Bazel in the workspace that is meant."""

    def __init__(self) -> None:
        command = flags.value("xm_bazel_command") or "bazel"
        found = shutil.which(command)
        if found is None:
            raise PackagingError(
                f"{command} is not on PATH: install Bazel (https://bazel.build/install; Debian:"
                " apt-get install bazel-bootstrap), or name it by --xm_bazel_command=PATH"
            )
        self._command = found
        self._workspace = self._find_workspace()
        self._root: Path | None = None

    def _find_workspace(self) -> str:
        if given := os.environ.get(WORKSPACE):
            return given
        said = ""
        for folder in dict.fromkeys((os.getcwd(), str(launch_dir()))):
            asked = self._run(["info", "workspace"], folder)
            if asked.returncode == 0:
                return os.fsdecode(asked.stdout).strip()
            said = said or _errors(asked.stderr)
        raise PackagingError(f"no Bazel workspace is here: {said}; launch from below one, or set {WORKSPACE}")

    def _run(self, words: Sequence[str], folder: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([self._command, *words], cwd=folder, capture_output=True)

    def build(self, labels: Sequence[str], args: Sequence[str]) -> list[dict[str, Any]]:
        """Build; gives the events."""
        with tempfile.NamedTemporaryFile(prefix="nemo_run-bazel-") as events:
            words = ["build", f"--build_event_json_file={events.name}", "--color=no", "--curses=no"]
            code, said = self._shown([*words, *args, "--", *labels])
            if code:
                raise PackagingError(f"bazel cannot build {' '.join(labels)}: {_errors(said)}")
            lines = Path(events.name).read_bytes().splitlines()
            return [json.loads(line) for line in lines if line.strip()]

    def _shown(self, words: Sequence[str]) -> tuple[int, bytes]:
        """Run a command that prints to standard error, and show it; its exit code and its last lines."""
        last: deque[bytes] = deque(maxlen=200)
        with subprocess.Popen(
            [self._command, *words], cwd=self._workspace, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            try:
                for line in cast("IO[bytes]", process.stderr):
                    last.append(line)
                    sys.stderr.write(line.decode(errors="replace"))
                sys.stderr.flush()
            except BaseException:
                process.send_signal(signal.SIGINT)  # of which the server hears, too
                raise
        return process.returncode, b"".join(last)

    def programs(self, labels: Sequence[str], args: Sequence[str]) -> dict[str, str]:
        """The targets that are programs, by label, with the program's path below the execution root."""
        asked = " ".join(f'"{label}"' for label in labels)
        words = ["cquery", *args, "--output=starlark", f"--starlark:expr={_EXECUTABLE}"]
        done = self._run([*words, "--", f"set({asked})"], self._workspace)
        if done.returncode:
            raise PackagingError(f"bazel cannot tell of {' '.join(labels)}: {_errors(done.stderr)}")
        lines = (line.partition("\t") for line in os.fsdecode(done.stdout).splitlines())
        return {plain(label): path for label, _, path in lines if path}

    def path(self, file: Mapping[str, Any]) -> Path:
        """Where a file of an event lies.

        Raises:
            PackagingError: it is not on this machine.
        """
        uri = urlsplit(file.get("uri", ""))
        below = os.path.join(*file.get("pathPrefix", ()), file["name"])
        path = Path(unquote(uri.path)) if uri.scheme == "file" else self.below_root(below)
        if not path.exists():
            fetch = 'bazel_args=["--remote_download_outputs=toplevel"] has it fetched'
            raise PackagingError(f"bazel has built {path}, and it is not on this machine; {fetch}")
        return path

    def below_root(self, path: str) -> Path:
        """A path below the execution root."""
        if self._root is None:
            done = self._run(["info", "execution_root"], self._workspace)
            self._root = Path(os.fsdecode(done.stdout).strip())
        return self._root / path


def files_of(events: Sequence[Mapping[str, Any]], label: str) -> list[Mapping[str, Any]]:
    """The files that a target gives unless asked for others, as the events describe them."""
    sets = {event["id"]["namedSet"]["id"]: event["namedSetOfFiles"] for event in _with(events, "namedSet")}
    found: dict[str, Mapping[str, Any]] = {}
    for target in _completions(events).get(label, ()):
        groups = [group for group in target.get("outputGroup", ()) if group["name"] == "default"]
        todo = [each["id"] for group in groups for each in group.get("fileSets", ())]
        files = [] if todo else list(target.get("importantOutput", ()))
        for name in todo:  # which grows; sets of sets share their parts
            files += sets[name].get("files", ())
            todo += [each["id"] for each in sets[name].get("fileSets", ()) if each["id"] not in todo]
        found |= {file.get("uri", file["name"]): file for file in files}
    return list(found.values())


def _completions(events: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """What events say of targets' ends, by label; there is one for each configuration."""
    ends = defaultdict[str, list[Mapping[str, Any]]](list)
    for event in _with(events, "targetCompleted"):
        if "aspect" not in (about := event["id"]["targetCompleted"]):
            ends[plain(about["label"])].append(event.get("completed", {}))
    return ends


def completed(events: Sequence[Mapping[str, Any]], label: str) -> str:
    """The full label of the target that was asked for, by whatever label.

    Raises:
        PackagingError: it stands for several.
    """
    known, folder = _completions(events), label.partition(":")[0].rstrip("/")
    meant = [label, f"//{label.removeprefix(':')}", f"//:{label.removeprefix(':')}"]
    meant += [f"{each}:{os.path.basename(folder)}" for each in (folder, f"//{folder}")]
    for each in meant:
        if plain(each) in known:
            return plain(each)
    some = ", ".join(list(known)[:4]) or "none"
    raise PackagingError(f"{label} stands for no one target (built: {some}); name one, such as //folder:name")


def plain(label: str) -> str:
    """A label of the main repository without `@`, `@@`."""
    return re.sub(r"^@+(?=//)", "", label)


def _with(events: Sequence[Mapping[str, Any]], kind: str) -> Iterator[Mapping[str, Any]]:
    return (event for event in events if kind in event["id"])


def _errors(said: bytes) -> str:
    """Bazel's own words on what is wrong."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith(("ERROR:", "FATAL:"))]
    return "\n".join(wrong or lines[-10:])
