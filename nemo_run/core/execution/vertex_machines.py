"""The machines of Vertex AI's custom training: from what a job asks for to the one that has it.

As its page "Configure compute resources" has them in November 2026: which machine types there are, how many
accelerators each may have, and which topologies of TPUs. What is newer goes by `machine_type`, as given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nemo_run.errors import ConfigError, suggestion


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a worker pool's machines are."""

    machine_type: str
    #: Vertex's name of it, such as "NVIDIA_TESLA_T4"; empty for none.
    accelerator_type: str = ""
    accelerator_count: int = 0
    tpu_topology: str = ""

    def spec(self) -> dict[str, Any]:
        """As a `MachineSpec`."""
        named = {
            "machineType": self.machine_type,
            "acceleratorType": self.accelerator_type,
            "acceleratorCount": self.accelerator_count,
            "tpuTopology": self.tpu_topology,
        }
        return {name: value for name, value in named.items() if value}

    def __str__(self) -> str:
        beside = f" with {self.accelerator_count} {self.accelerator_type}" if self.accelerator_type else ""
        beside += f" in a topology of {self.tpu_topology}" if self.tpu_topology else ""
        return self.machine_type + beside


class _Shape(NamedTuple):
    """A machine type: processors, memory in GiB, and the GPUs it always has."""

    name: str
    cpus: int
    memory: float
    gpus: int = 0


def _family(prefix: str, per_cpu: float, *sizes: int) -> list[_Shape]:
    return [_Shape(f"{prefix}-{size}", size, size * per_cpu) for size in sizes]


#: Machines that GPUs of the older kinds may be added to, and the usual ones without any.
_N1 = [
    *_family("n1-standard", 3.75, 4, 8, 16, 32, 64, 96),
    *_family("n1-highmem", 6.5, 2, 4, 8, 16, 32, 64, 96),
    *_family("n1-highcpu", 0.9, 16, 32, 64, 96),
]
#: Those with more memory than any of these.
_M1 = [
    _Shape("m1-ultramem-40", 40, 961),
    _Shape("m1-megamem-96", 96, 1433.6),
    _Shape("m1-ultramem-80", 80, 1922),
    _Shape("m1-ultramem-160", 160, 3844),
]
#: What so many GPUs of a kind support at most: by their count, processors and memory in GiB.
_ADDED = {
    "NVIDIA_TESLA_P4": {1: (16, 156), 2: (32, 312), 4: (96, 624)},
    "NVIDIA_TESLA_T4": {1: (16, 156), 2: (32, 312), 4: (96, 624)},
    "NVIDIA_TESLA_P100": {1: (16, 104), 2: (32, 208), 4: (64, 208)},
    "NVIDIA_TESLA_V100": {1: (8, 78), 2: (16, 156), 4: (32, 312), 8: (96, 624)},
}
#: Machines that come with their GPUs.
_BUILT_IN = {
    "NVIDIA_L4": [
        *(_Shape(f"g2-standard-{size}", size, size * 4, 1) for size in (4, 8, 12, 16, 32)),
        _Shape("g2-standard-24", 24, 96, 2),
        _Shape("g2-standard-48", 48, 192, 4),
        _Shape("g2-standard-96", 96, 384, 8),
    ],
    "NVIDIA_RTX_PRO_6000": [
        _Shape(f"g4-standard-{48 * gpus}", 48 * gpus, 180 * gpus, gpus) for gpus in (1, 2, 4, 8)
    ],
    "NVIDIA_TESLA_A100": [
        *(_Shape(f"a2-highgpu-{gpus}g", 12 * gpus, 85 * gpus, gpus) for gpus in (1, 2, 4, 8)),
        _Shape("a2-megagpu-16g", 96, 1360, 16),
    ],
    "NVIDIA_A100_80GB": [
        _Shape(f"a2-ultragpu-{gpus}g", 12 * gpus, 170 * gpus, gpus) for gpus in (1, 2, 4, 8)
    ],
    "NVIDIA_H100_80GB": [_Shape(f"a3-highgpu-{gpus}g", 26 * gpus, 234 * gpus, gpus) for gpus in (1, 2, 4, 8)],
    "NVIDIA_H100_MEGA_80GB": [_Shape("a3-megagpu-8g", 208, 1872, 8)],
    "NVIDIA_H200_141GB": [_Shape("a3-ultragpu-8g", 224, 2952, 8)],
    "NVIDIA_B200": [_Shape("a4-highgpu-8g", 224, 3968, 8)],
    "NVIDIA_GB200": [_Shape("a4x-highgpu-4g", 140, 884, 4)],
}
#: The names by which GPUs are asked for, less "nvidia" and "tesla".
_GPU_NAMES = {
    "p4": "NVIDIA_TESLA_P4", "t4": "NVIDIA_TESLA_T4", "p100": "NVIDIA_TESLA_P100",
    "v100": "NVIDIA_TESLA_V100", "l4": "NVIDIA_L4", "rtx-pro-6000": "NVIDIA_RTX_PRO_6000",
    "a100": "NVIDIA_TESLA_A100", "a100-40gb": "NVIDIA_TESLA_A100", "a100-80gb": "NVIDIA_A100_80GB",
    "a100-80gib": "NVIDIA_A100_80GB", "h100": "NVIDIA_H100_80GB", "h100-80gb": "NVIDIA_H100_80GB",
    "h100-mega": "NVIDIA_H100_MEGA_80GB", "h100-mega-80gb": "NVIDIA_H100_MEGA_80GB",
    "h200": "NVIDIA_H200_141GB", "h200-141gb": "NVIDIA_H200_141GB", "b200": "NVIDIA_B200",
    "gb200": "NVIDIA_GB200",
}  # fmt: skip
#: TPUs that are counted in cores, of which a chip has two.
_CORES = {"v2": ("TPU_V2", 512), "v3": ("TPU_V3", 2048)}
_PLANES = ("4x4", "4x8", "8x8", "8x16", "16x16")
#: Topologies, each with the machine types that it may be made of.
_TOPOLOGIES = {
    "v5e": {
        "1x1": ["ct5lp-hightpu-1t"],
        "2x2": ["ct5lp-hightpu-4t"],
        "2x4": ["ct5lp-hightpu-8t", "ct5lp-hightpu-4t"],
        **{plane: ["ct5lp-hightpu-4t"] for plane in _PLANES},
    },
    "v6e": {
        "1x1": ["ct6e-standard-1t"],
        "2x2": ["ct6e-standard-4t"],
        "2x4": ["ct6e-standard-8t", "ct6e-standard-4t"],
        **{plane: ["ct6e-standard-4t"] for plane in _PLANES},
    },
    "v7x": {
        name: ["tpu7x-standard-4t"]
        for name in (
            "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16",
        )
    },
}  # fmt: skip
_TPU_NAMES = {"v5-litepod": "v5e", "v5litepod": "v5e", "tpu7x": "v7x", "7x": "v7x", "v7": "v7x"}
_ALL_TPUS = (*_CORES, *_TOPOLOGIES)
#: A machine with GPUs needs some processors for its own agents, or logs may get lost.
_FEWEST_CPUS_BESIDE_GPUS = 4


def choose(
    *,
    machine_type: str | None = None,
    cpus: int | None = None,
    memory: int | None = None,
    gpu_type: str | None = None,
    gpus: int | None = None,
    tpu_type: str | None = None,
    tpu_topology: str | None = None,
    tpus: int | None = None,
) -> Machine:
    """The cheapest machine that has what is asked for; one that is named is checked as far as it is known.

    Args:
        machine_type: Take this one.
        cpus: At least so many processors.
        memory: At least so many bytes of memory.
        gpu_type: Their kind, such as "t4", "nvidia-tesla-t4" or "NVIDIA_TESLA_T4".
        gpus: How many; 1 where only their kind is given.
        tpu_type: "v2", "v3", "v5e", "v6e" or "v7x".
        tpu_topology: Such as "2x4"; the smallest where only their kind is given.
        tpus: How many instead: cores of v2 and v3, chips of the others.

    Raises:
        ConfigError: there is no such machine; the message says which come near.
    """
    any_tpu = tpu_type or tpu_topology or tpus
    if (gpu_type or gpus) and any_tpu:
        raise ConfigError(f"a machine has GPUs or TPUs, not both: {gpu_type or gpus} and TPU {tpu_type}")
    if any_tpu:
        if cpus or memory:
            raise ConfigError("a machine with TPUs has the CPUs and memory that it has; leave these out")
        return _choose_tpu(machine_type, tpu_type, tpu_topology, tpus)
    if gpus and not gpu_type and (gpu_type := _kind_of(machine_type)) is None:
        raise ConfigError(f'{gpus} GPUs of which kind? Give gpu_type, such as "t4" or "h100"')
    if machine_type is not None:
        return _given(machine_type, cpus, memory, gpu_type, gpus)
    if gpu_type:
        return _choose_gpu(gpu_name(gpu_type), gpus or 1, cpus, memory)
    fits = [shape for shape in _N1 if _is_enough(shape, cpus, memory)]
    fits = fits or [shape for shape in _M1 if _is_enough(shape, cpus, memory)]
    if not (cpus or memory):
        return Machine(machine_type="n1-standard-4")
    if not fits:
        raise ConfigError(f"{_none_has(cpus, memory)}; {_largest(_N1 + _M1)}")
    return Machine(machine_type=min(fits, key=_cost).name)


def gpu_name(text: str) -> str:
    """Vertex's name of a kind of GPU.

    Raises:
        ConfigError: it has none of that name.
    """
    short = text.strip().lower().replace("_", "-").removeprefix("nvidia-").removeprefix("tesla-")
    if short not in _GPU_NAMES:
        raise ConfigError(f"Vertex AI has no GPU {text!r}{suggestion(short, list(_GPU_NAMES))}")
    return _GPU_NAMES[short]


# --- GPUs -----------------------------------------------------------------------------------------------


def _choose_gpu(kind: str, count: int, cpus: int | None, memory: int | None) -> Machine:
    shapes = _shapes(kind, count)
    if not shapes:
        raise ConfigError(_no_such_count(kind, count))
    fits = [shape for shape in shapes if _is_enough(shape, cpus, memory)]
    if not fits:
        also = f" and {count} {kind}"
        enough = (
            more for more in _counts(kind) if any(_is_enough(s, cpus, memory) for s in _shapes(kind, more))
        )
        more = f", or {least} {kind}" if (least := next(enough, None)) else ""
        raise ConfigError(f"{_none_has(cpus, memory, also)}; {_largest(shapes)}: ask for less{more}")
    strong = [shape for shape in fits if shape.cpus >= _FEWEST_CPUS_BESIDE_GPUS]
    return Machine(
        machine_type=min(strong or fits, key=_cost).name, accelerator_type=kind, accelerator_count=count
    )


def _shapes(kind: str, count: int) -> Sequence[_Shape]:
    """The machines that may have so many of a kind."""
    if kind in _BUILT_IN:
        return [shape for shape in _BUILT_IN[kind] if shape.gpus == count]
    if count not in _ADDED[kind]:
        return []
    cpus, memory = _ADDED[kind][count]
    return [shape for shape in _N1 if shape.cpus <= cpus and shape.memory <= memory]


def _counts(kind: str) -> list[int]:
    return sorted({shape.gpus for shape in _BUILT_IN[kind]} if kind in _BUILT_IN else _ADDED[kind])


def _no_such_count(kind: str, count: int) -> str:
    counts = _counts(kind)
    below = [other for other in counts if other < count][-1:]
    above = [other for other in counts if other > count][:1]
    near = " or ".join(map(str, below + above))
    nodes = f"; with nodes={-(-count // counts[-1])} there are as many" if not above else ""
    return f"no machine of Vertex AI has {count} {kind}; ask for {near}{nodes}"


def _kind_of(machine_type: str | None) -> str | None:
    """The kind of GPU that a machine always has."""
    for kind, shapes in _BUILT_IN.items():
        if any(shape.name == machine_type for shape in shapes):
            return kind
    return None


def _given(
    name: str, cpus: int | None, memory: int | None, gpu_type: str | None, gpus: int | None
) -> Machine:
    """A machine that was named, with the GPUs it has."""
    if name == "cloud-tpu" or name.startswith(("ct5lp-", "ct6e-", "tpu7x-")):
        raise ConfigError(f"{name} is a machine with TPUs; give tpu_type and tpu_topology too")
    _refuse_small(name, cpus, memory)
    own = _kind_of(name)
    if own is None and gpu_type is None:
        return Machine(machine_type=name)
    kind = gpu_name(gpu_type) if gpu_type else str(own)
    counts = [count for count in _counts(kind) if name in [shape.name for shape in _shapes(kind, count)]]
    known = own or any(shape.name == name for shape in _known_shapes())
    count = gpus or (counts[0] if own and counts else 1)
    if known and count not in counts:
        has = " or ".join(map(str, counts)) or "none"
        raise ConfigError(f"a {name} has {has} of {kind}, not {count}; mend them, or leave machine_type out")
    return Machine(machine_type=name, accelerator_type=kind, accelerator_count=count)


def _known_shapes() -> Iterable[_Shape]:
    return [*_N1, *_M1, *(shape for shapes in _BUILT_IN.values() for shape in shapes)]


def _refuse_small(name: str, cpus: int | None, memory: int | None) -> None:
    shape = next((shape for shape in _known_shapes() if shape.name == name), None)
    if shape and not _is_enough(shape, cpus, memory):
        raise ConfigError(f"a {name} has {_what(shape)}, which is less than the cpus or memory asked for")


# --- TPUs -----------------------------------------------------------------------------------------------


def _choose_tpu(
    machine_type: str | None, kind: str | None, topology: str | None, count: int | None
) -> Machine:
    if kind is None:
        raise ConfigError(f'{topology or count} of which TPU? Give tpu_type, such as "v5e"')
    name = tpu_name(kind)
    if topology and count:
        raise ConfigError(f"the topology {topology} says how many TPUs that is; leave their number out")
    if name in _CORES:
        machine = _cloud_tpu(name, 2 * _chips(topology) if topology else count or 8)
    else:
        machine = _tpu_slice(name, topology or _topology_of(name, count), machine_type)
    if machine_type not in (None, machine.machine_type):
        raise ConfigError(f"TPU {name} comes with {machine.machine_type}, not {machine_type}; leave that out")
    return machine


def tpu_name(text: str) -> str:
    """A generation of TPUs by its short name.

    Raises:
        ConfigError: custom training has none of that name.
    """
    short = text.strip().lower().replace("_", "-").removeprefix("tpu-")
    short = _TPU_NAMES.get(short, short)
    if short not in _ALL_TPUS:
        raise ConfigError(
            f"Vertex AI's custom training has no TPU {text!r}; there are {', '.join(_ALL_TPUS)}"
        )
    return short


def _cloud_tpu(name: str, cores: int) -> Machine:
    """One TPU of eight cores, or a slice of a pod: a multiple of 32 cores."""
    accelerator, most = _CORES[name]
    if cores != 8 and (cores % 32 or not 0 < cores <= most):
        near = 8 if cores < 20 else min(max(32, round(cores / 32) * 32), most)
        raise ConfigError(
            f"there is no TPU {name} of {cores} cores; the nearest has {near}, of"
            f" {near // 2} chips: 2x2 is 8 cores, 4x4 is 32, 4x8 is 64"
        )
    return Machine(machine_type="cloud-tpu", accelerator_type=accelerator, accelerator_count=cores)


def _topology_of(name: str, count: int | None) -> str:
    """The topology of so many chips; the smallest for no number."""
    known = _TOPOLOGIES[name]
    by_count = {_chips(topology): topology for topology in known}
    if count is None:
        return next(iter(known))
    if count not in by_count:
        near = min(by_count, key=lambda chips: abs(chips - count))
        raise ConfigError(
            f"there is no TPU {name} of {count} chips; the nearest has {near} ({by_count[near]})"
        )
    return by_count[count]


def _tpu_slice(name: str, topology: str, machine_type: str | None) -> Machine:
    known = _TOPOLOGIES[name]
    if topology not in known:
        chips = _chips(topology)
        near = min(known, key=lambda other: abs(_chips(other) - chips))
        raise ConfigError(
            f"TPU {name} has no topology {topology!r}; the nearest is {near!r}. There are {', '.join(known)}"
        )
    machines = known[topology]
    return Machine(
        machine_type=machine_type if machine_type in machines else machines[0], tpu_topology=topology
    )


def _chips(topology: str) -> int:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", topology):
        raise ConfigError(f'tpu_topology is {topology!r}; write one such as "2x4" or "2x2x4"')
    chips = 1
    for size in topology.split("x"):
        chips *= int(size)
    return chips


# --- words and numbers ----------------------------------------------------------------------------------


def _is_enough(shape: _Shape, cpus: int | None, memory: int | None) -> bool:
    return shape.cpus >= (cpus or 0) and shape.memory * 2**30 >= (memory or 0)


def _cost(shape: _Shape) -> float:
    """About what an hour costs: so much for each processor and for each GiB of memory."""
    return 0.0316 * shape.cpus + 0.00424 * shape.memory


def _what(shape: _Shape) -> str:
    return f"{shape.cpus} CPUs and {shape.memory:g} GiB"


def _none_has(cpus: int | None, memory: int | None, also: str = "") -> str:
    asked = [f"{cpus} CPUs"] if cpus else []
    asked += [f"{memory / 2**30:.4g} GiB"] if memory else []
    return f"no machine of Vertex AI has {' and '.join(asked)}{also}"


def _largest(shapes: Sequence[_Shape]) -> str:
    most_cpus, most_memory = max(shapes, key=lambda s: s.cpus), max(shapes, key=lambda s: s.memory)
    named = dict.fromkeys(f"{shape.name} ({_what(shape)})" for shape in (most_cpus, most_memory))
    return f"the nearest: {', '.join(named)}"
