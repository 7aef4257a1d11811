"""XManager's flags: those that mean something here are heeded, the others are named where they are given.

They are read from the command line itself; that absl knows of them matters only where a script parses flags
with absl, which refuses those that it does not know.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

logger = logging.getLogger("nemo_run")

#: Those that are heeded, and what they do.
HEEDED = {
    "xm_launch_script": "the launching script, from whose folder relative paths start",
    "xm_bazel_command": "Bazel's program",
    "xm_gcp_service_account_name": "whom jobs on Vertex AI run as, in the project that they run in",
    "xm_k8s_service_account_name": "whom pods are to their cluster",
}
#: Those that mean nothing here, and why.
IDLE = {
    "xm_build_image_locally": "images are always built by the Docker Engine",
    "xm_use_docker_command": "images are always built by the Docker Engine's API",
    "xm_show_docker_command_progress": "what a build prints is shown when it fails",
    "xm_wrap_late_bindings": "nothing is bound late: torchrun and environment variables tell a job its peers",
    "xm_cloud_build_timeout_seconds": "images are not built in the cloud",
    "xm_use_cloud_build_cache": "images are not built in the cloud",
    "xm_use_kaniko": "images are not built in the cloud",
    "xm_kaniko_cache_ttl": "images are not built in the cloud",
    "xm_db_yaml_config_path": "there is no database: experiments lie under NEMORUN_HOME",
    "xm_upgrade_db": "there is no database: experiments lie under NEMORUN_HOME",
    "xm_use_multiplexer": "`nemo experiment logs -f` shows a job's lines in any window",
    "xm_open_multiplexer_window": "`nemo experiment logs -f` shows a job's lines in any window",
    "xm_subprocess_docker_impl": "containers are always started by the Docker Engine's API",
    "xm_gcs_path": "only a script itself may use it",
}
_BOOLEAN = (
    "xm_build_image_locally", "xm_use_docker_command", "xm_show_docker_command_progress",
    "xm_wrap_late_bindings", "xm_use_cloud_build_cache", "xm_use_kaniko", "xm_upgrade_db",
    "xm_subprocess_docker_impl",
)  # fmt: skip


def value(name: str) -> str | None:
    """What the command line gives a flag: `--name=value`, `--name value`; None where it does not."""
    words = sys.argv[1:]
    for at, word in enumerate(words):
        flag, equals, given = word.lstrip("-").partition("=")
        if word.startswith("-") and flag == name:
            return given if equals else next(iter(words[at + 1 : at + 2]), "")
    return None


def name_idle() -> None:
    """Tell of flags that were given and mean nothing here."""
    given = {word.lstrip("-").partition("=")[0] for word in sys.argv[1:] if word.startswith("-")}
    for name in sorted(given | {flag.removeprefix("no") for flag in given}):
        if name in IDLE:
            logger.warning("--%s means nothing here: %s", name, IDLE[name])


def define() -> None:
    """Have absl know of the flags, unless the script has defined some of them itself."""
    from absl import flags

    for name, meaning in (*HEEDED.items(), *IDLE.items()):
        if name not in flags.FLAGS:
            kind: Any = flags.DEFINE_boolean if name in _BOOLEAN else flags.DEFINE_string
            kind(name, None, meaning)
