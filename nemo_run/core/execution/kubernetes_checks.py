"""Whether what a KubernetesExecutor is given can work, as far as that is known without a cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nemo_run.core.execution.checks import check_count, check_kind, parse_bytes
from nemo_run.core.execution.kubernetes_manifest import VOLUMES
from nemo_run.core.execution.kubernetes_nodes import amount
from nemo_run.core.packaging.image import ImagePackager
from nemo_run.errors import ConfigError

if TYPE_CHECKING:
    from nemo_run.core.execution.kubernetes import KubernetesExecutor

#: What fields, or we, say of a pod and of its container.
_POD = {
    "restartPolicy": "nothing", "containers": "container_spec", "volumes": "volumes", "hostname": "nothing",
    "subdomain": "nothing", "serviceAccountName": "service_account", "priorityClassName": "priority_class",
    "nodeSelector": "node_selector", "tolerations": "tolerations", "affinity": "affinity",
    "imagePullSecrets": "image_pull_secrets", "terminationGracePeriodSeconds": "grace",
    "activeDeadlineSeconds": "timeout",
}  # fmt: skip
_CONTAINER = {
    "name": "nothing", "image": "container_image", "command": "the task", "args": "the task",
    "env": "env_vars", "resources": "cpus, memory and gpus_per_node", "volumeMounts": "volume_mounts",
    "workingDir": "working_dir", "imagePullPolicy": "image_pull_policy",
}  # fmt: skip
_LABEL = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?\Z")
_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?\Z")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?\Z")
_POLICIES = ("Always", "IfNotPresent", "Never")


def check_fields(executor: KubernetesExecutor) -> None:
    """Refuse what an API server would refuse much later, and what it would silently not do.

    Raises:
        ConfigError: there is something.
    """
    _check_image(executor)
    check_count(executor, "nodes", 1)
    check_count(executor, "grace", 0)
    for name, least in (("gpus_per_node", 0), ("ntasks_per_node", 1), ("ttl", 0)):
        check_count(executor, name, least, optional=True)
    _check_limits(executor)
    executor.node_labels()
    for name in ("node_selector", "labels", "annotations"):
        _check_labels(executor, name)
    for name in ("namespace", "service_account", "workdir_pvc", "priority_class", "queue"):
        _check_name(executor, name, getattr(executor, name))
    check_kind(executor, "image_pull_secrets", list, tuple)
    for secret in executor.image_pull_secrets:
        _check_name(executor, "image_pull_secrets", secret)
    _check_objects(executor)
    check_kind(executor, "use_jobset", bool)
    check_kind(executor, "context", str, type(None))
    if executor.image_pull_policy not in (None, *_POLICIES):
        raise _refusal(executor, "image_pull_policy", f"one of {', '.join(_POLICIES)}")
    patience = executor.start_patience
    if isinstance(patience, bool) or not isinstance(patience, (int, float)) or patience < 0:
        raise _refusal(executor, "start_patience", "a number of seconds")


def _check_image(executor: KubernetesExecutor) -> None:
    check_kind(executor, "container_image", str)
    if not isinstance(executor.packager, ImagePackager):
        if not executor.container_image or executor.container_image != executor.container_image.strip():
            raise _refusal(executor, "container_image", 'an image such as "python:3.12"')
        return
    executor.packager.image(executor.container_image, None, None)
    if not executor.packager.push_image_tag and executor.image_pull_policy != "Never":
        raise ConfigError(
            "KubernetesExecutor has an ImagePackager without push_image_tag, so that no node can pull the"
            ' image; give it one such as "registry.example/team/name", or image_pull_policy="Never" where'
            " the nodes use this machine's Engine"
        )


def _check_limits(executor: KubernetesExecutor) -> None:
    for one, other, size in (
        ("cpus", executor.cpu_limit, executor.cpu_limit),
        (
            "memory",
            executor.memory_limit,
            None if executor.memory_limit is None else parse_bytes(executor.memory_limit),
        ),
    ):
        value = getattr(executor, one)
        if value is not None and amount(value, f"KubernetesExecutor.{one}") != (size or amount(value, one)):
            limit = "cpu_limit" if one == "cpus" else "memory_limit"
            raise ConfigError(
                f"KubernetesExecutor.{one} is {value!r} and {limit} is {other!r}, which are one"
                f" setting; give {one} alone"
            )
    for name in ("ephemeral_storage", "shm_size"):
        if (value := getattr(executor, name)) is not None:
            amount(value, f"KubernetesExecutor.{name}")
    check_kind(executor, "gpu_type", str, type(None))
    if executor.gpu_type and not executor.gpus_per_node:
        raise ConfigError(
            f"KubernetesExecutor.gpu_type is {executor.gpu_type!r}; say how many in gpus_per_node too"
        )
    if executor.tpu_type and executor.gpus_per_node:
        raise ConfigError("KubernetesExecutor has a tpu_type and gpus_per_node; give one of them")
    if executor.tpu_topology and not executor.tpu_type:
        raise ConfigError("KubernetesExecutor.tpu_topology is given without a tpu_type; give both")
    for name in ("gpu_label", "gpu_resource"):
        if not isinstance(getattr(executor, name), str) or not _KEY.match(getattr(executor, name)):
            raise _refusal(executor, name, 'a name such as "nvidia.com/gpu"')


def _check_labels(executor: KubernetesExecutor, name: str) -> None:
    given = getattr(executor, name)
    check_kind(executor, name, dict)
    for key, value in given.items():
        fits = isinstance(key, str) and _KEY.match(key) and isinstance(value, str)
        if not fits or (name != "annotations" and not _LABEL.match(value)):
            rule = "63 letters, digits, - _ . at most" if name != "annotations" else "text"
            raise ConfigError(f"KubernetesExecutor.{name}: {key!r}: {value!r} is none; a value is {rule}")
        if key.startswith("nemo-run/"):
            raise ConfigError(f"KubernetesExecutor.{name} holds {key!r}, which nemo_run sets; rename it")


def _check_name(executor: KubernetesExecutor, name: str, value: Any) -> None:
    if value is not None and not (isinstance(value, str) and _NAME.match(value)):
        raise ConfigError(
            f"KubernetesExecutor.{name} is {value!r}; give a name of small letters, digits, - and ."
        )


def _check_objects(executor: KubernetesExecutor) -> None:
    for name in ("affinity", "pod_spec", "container_spec"):
        check_kind(executor, name, dict)
    for name in ("tolerations", "volumes", "volume_mounts"):
        given = getattr(executor, name)
        if not isinstance(given, (list, tuple)) or not all(isinstance(each, Mapping) for each in given):
            raise _refusal(executor, name, "a list of dicts, as in the manifest of a pod")
    known = [each.get("name") for each in executor.volumes]
    if taken := {*known} & {*VOLUMES}:
        raise ConfigError(f"KubernetesExecutor.volumes: {taken.pop()!r} is a name of nemo_run's; rename it")
    for mount in executor.volume_mounts:
        if not {"name", "mountPath"} <= mount.keys() or mount["name"] not in known:
            raise ConfigError(
                f"KubernetesExecutor.volume_mounts: {dict(mount)!r} names none of volumes; give it as"
                ' {"name": …, "mountPath": "/…"}'
            )
    for name, ours in (("pod_spec", _POD), ("container_spec", _CONTAINER)):
        for key in getattr(executor, name):
            if key in ours:
                raise ConfigError(f"KubernetesExecutor.{name} holds {key!r}; use {ours[key]} for it")


def _refusal(executor: KubernetesExecutor, name: str, wanted: str) -> ConfigError:
    return ConfigError(f"{type(executor).__name__}.{name} is {getattr(executor, name)!r}; give {wanted}")
