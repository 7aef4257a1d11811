"""What a PythonContainer becomes: a Dockerfile, and the script that its image starts with; pure functions."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys

from nemo_run.xm.executables import CommandList, ModuleName, PythonContainer

#: Where an image has the script that it starts with, and what that is called among the files of a build.
ENTRYPOINT, ENTRYPOINT_FILE = "/.nemo_run/entrypoint.sh", ".nemo_run.entrypoint.sh"
_PYTHON = '"$(command -v python3 || echo python)"'
#: Commands are written for bash; an image without it has them run by its sh.
_BASH = """case "${BASH-}" in
*/bash) ;;
*) if command -v bash >/dev/null; then exec bash "$0" "$@"; fi ;;
esac
"""
#: A COPY that says what and not where to.
_COPY_HALF = re.compile(r"\s*(?:COPY|ADD)\s+(?:--\S+\s+)*([^\s\[]\S*)\s*\Z", re.IGNORECASE)
#: What ends a command so that no words can follow it.
_CLOSED = re.compile(r"(?:[;&|\\]|(?:^|[\s;])(?:fi|done|esac|\})|^\s*\(.*\))\Z", re.MULTILINE)
#: The arguments as one word or as many, at the end of a command.
_HAS_ARGUMENTS = re.compile(r"""\$[@*]"?\Z|\$\{[@*]\}"?\Z""")


def default_base_image() -> str:
    """Python's official image of the version that launches."""
    return "python:{}.{}-slim".format(*sys.version_info)


def folder_of(spec: PythonContainer) -> str:
    """What the project's folder is called in the image, and among the files that instructions copy from."""
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", os.path.basename(spec.path.rstrip("/"))) or "project"


def dockerfile(spec: PythonContainer, *, has_requirements: bool) -> str:
    """The Dockerfile of a project.

    Args:
        spec: The project.
        has_requirements: Whether a `requirements.txt` is in its folder.
    """
    lines = [f"FROM {spec.base_image or default_base_image()}"]
    if spec.docker_instructions:
        lines += map(completed, spec.docker_instructions)
    else:
        lines += _default_instructions(folder_of(spec), has_requirements, deep=spec.use_deep_module)
    lines.append(f"COPY {ENTRYPOINT_FILE} {ENTRYPOINT}")
    lines.append(f"ENTRYPOINT {json.dumps(['/bin/sh', ENTRYPOINT])}")
    return "\n".join(lines) + "\n"


def _default_instructions(folder: str, has_requirements: bool, *, deep: bool) -> list[str]:
    """The project lies in a folder of its name; a deep module is imported from the folder above that."""
    above = "/workdir" if deep else ""
    lines = ["ENV LANG=C.UTF-8"]
    if has_requirements:  # before the rest, so that they are installed anew only when they change
        target = f"{above}/{folder}/requirements.txt"
        install = f"RUN {_PYTHON} -m pip install --no-cache-dir -r {target}"
        lines += [f"COPY {folder}/requirements.txt {target}", install]
    return [*lines, f"COPY {folder}/ {above}/{folder}/", f"WORKDIR {above or '/' + folder}"]


def completed(instruction: str) -> str:
    """An instruction as it is, but that a COPY of one word copies to a file of the same name."""
    match = _COPY_HALF.match(instruction)
    return f"{instruction.rstrip()} {match[1]}" if match and "://" not in match[1] else instruction


def entrypoint(spec: PythonContainer) -> str:
    """The script that an image starts with; its arguments are the job's."""
    if isinstance(spec.entrypoint, ModuleName):
        return f'exec {_PYTHON} -m {shlex.quote(spec.entrypoint.module_name)} "$@"\n'
    return f"{_BASH}set -e\n{_commands(spec.entrypoint)}\n"


def _commands(entrypoint: CommandList) -> str:
    """Commands, of which the last is given the arguments wherever it says nothing of them."""
    text = "\n".join(map(quoted_arguments, entrypoint.commands)).rstrip()
    if _HAS_ARGUMENTS.search(text) or _CLOSED.search(text):
        return text
    return f'{text} "$@"'


def quoted_arguments(command: str) -> str:
    """A command with `"$@"` for each `$@` that stands outside of quotes: else a shell takes words apart."""
    parts, quote, at = [], "", 0
    while at < len(command):
        char = command[at]
        if char == "\\" and quote != "'":
            parts.append(command[at : at + 2])
            at += 2
            continue
        alone = command[at : at + 2] == "$@" and not quote
        if alone and command[at - 1 : at].strip() == "" and command[at + 2 : at + 3].strip(" \t\n;&|)") == "":
            parts.append('"$@"')
            at += 2
            continue
        if char in "'\"":
            quote = "" if quote == char else quote or char
        parts.append(char)
        at += 1
    return "".join(parts)
