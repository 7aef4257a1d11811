"""What nodes of a Kubernetes cluster have: how their GPUs and TPUs are called, asked for and counted."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from nemo_run.errors import ConfigError, suggestion

#: Where GKE says which GPU, which TPU and which arrangement of TPUs a node has.
GPU_LABEL = "cloud.google.com/gke-accelerator"
TPU_LABEL, TOPOLOGY_LABEL = "cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology"
TPU_RESOURCE = "google.com/tpu"

#: GPUs by their short names, as GKE labels them.
GPUS = {
    "k80": "nvidia-tesla-k80", "p4": "nvidia-tesla-p4", "p100": "nvidia-tesla-p100",
    "v100": "nvidia-tesla-v100", "t4": "nvidia-tesla-t4", "l4": "nvidia-l4", "a100": "nvidia-tesla-a100",
    "a100-80gb": "nvidia-a100-80gb", "h100": "nvidia-h100-80gb", "h100-mega": "nvidia-h100-mega-80gb",
    "h200": "nvidia-h200-141gb", "b200": "nvidia-b200", "gb200": "nvidia-gb200",
    "rtx-pro-6000": "nvidia-rtx-pro-6000",
}  # fmt: skip


class Tpu(NamedTuple):
    """A kind of TPU."""

    label: str
    #: In how many directions its chips are connected.
    directions: int
    #: How many of them a node has: the first where a slice spans several nodes.
    per_node: tuple[int, ...]


TPUS = {
    "v3": Tpu("tpu-v3-slice", 2, (4,)),
    "v4": Tpu("tpu-v4-podslice", 3, (4,)),
    "v5e": Tpu("tpu-v5-lite-podslice", 2, (4, 1, 8)),
    "v5p": Tpu("tpu-v5p-slice", 3, (4,)),
    "v6e": Tpu("tpu-v6e-slice", 2, (4, 1, 8)),
    "tpu7x": Tpu("tpu7x", 3, (4, 1)),
}
_QUANTITY = re.compile(r"(\d+\.?\d*|\.\d+)(e\d+|[numkMGTPE]|[KMGTPE]i)?\Z")
_POWERS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "Ki": 1024.0}
for _power, _unit in enumerate("MGTPE", 2):
    _POWERS |= {_unit: 1000.0**_power, f"{_unit}i": 1024.0**_power}


def gpu_selector(gpu_type: str, label: str = GPU_LABEL) -> dict[str, str]:
    """The label of nodes with such a GPU.

    Raises:
        ConfigError: it is none that is known, and does not look like a label's value either.
    """
    if label != GPU_LABEL:
        return {label: gpu_type}
    word = gpu_type.lower().replace("_", "-")
    value = GPUS.get(word, word)
    if not value.startswith(("nvidia-", "amd-")):
        raise ConfigError(
            f"KubernetesExecutor.gpu_type is {gpu_type!r}, no known GPU{suggestion(word, list(GPUS))}"
        )
    return {label: value}


def tpu_selector(tpu_type: str, topology: str | None, nodes: int) -> tuple[dict[str, str], int]:
    """The labels of nodes with such TPUs, and the number of chips that each of them has.

    Raises:
        ConfigError: there is no such TPU, no such topology of it, or it takes another number of nodes.
    """
    by_label = {tpu.label: tpu for tpu in TPUS.values()}
    word = tpu_type.lower().replace("_", "-").removeprefix("tpu-")
    tpu = TPUS.get(word) or by_label.get(tpu_type) or TPUS.get(tpu_type.lower())
    if tpu is None:
        raise ConfigError(
            f"KubernetesExecutor.tpu_type is {tpu_type!r}, no known TPU{suggestion(word, list(TPUS))}"
        )
    sides = [int(side) for side in re.findall(r"\d+", topology or "")]
    if (
        not topology
        or not re.fullmatch(r"\d+(x\d+)*", topology)
        or len(sides) != tpu.directions
        or 0 in sides
    ):
        example = "x".join("2" * tpu.directions)
        raise ConfigError(
            f"KubernetesExecutor.tpu_topology is {topology!r}; {tpu.label} takes one such as {example!r}"
        )
    chips = math.prod(sides)
    if chips % nodes or chips // nodes not in (tpu.per_node if nodes == 1 else tpu.per_node[:1]):
        fits = chips in tpu.per_node
        wanted = 1 if fits else -(-chips // tpu.per_node[0])
        raise ConfigError(
            f"KubernetesExecutor.tpu_topology {topology!r} has {chips} chips, {tpu.per_node[0]} on each node"
            f" of {tpu.label}; give nodes={wanted}, not {nodes}"
        )
    return {TPU_LABEL: tpu.label, TOPOLOGY_LABEL: topology}, chips // nodes


def amount(value: str | int | float, what: str) -> float:
    """How much a quantity is, as Kubernetes counts: "500m", "1.5", "32Gi", "32G" (a billion each).

    Raises:
        ConfigError: it is none, or nothing.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match = _QUANTITY.match(value) if isinstance(value, str) else None
    found = 0.0
    if number:
        found = float(value)
    elif match:
        unit = match[2] or ""
        found = float(match[1]) * (10.0 ** int(unit[1:]) if unit[:1] == "e" else _POWERS[unit])
    if not 0 < found < math.inf:
        raise ConfigError(f'{what} is {value!r}; give a number, or a quantity such as "500m" or "32Gi"')
    return found


def quantity(value: str | int | float) -> str:
    """A quantity in Kubernetes' words."""
    return value if isinstance(value, str) else f"{value:.15g}"
