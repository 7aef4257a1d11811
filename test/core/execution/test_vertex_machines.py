"""VertexExecutor's table of machines, held against Google's as it is printed.

The rows are those of "Valid numbers of GPUs for each machine type" and of the tables of TPU topologies on the
page "Configure compute resources" of custom training (November 2026), typed in here once more.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from nemo_run.core.execution.vertex_machines import Machine, choose, gpu_name, tpu_name
from nemo_run.errors import ConfigError

GIB = 2**30
# fmt: off
#: Machine type: processors, GiB, then by kind the numbers of GPUs it may have.
N1 = {
    "n1-standard-4": (4, 15, "1 2 4", "1 2 4", "1 2 4", "1 2 4 8"),
    "n1-standard-8": (8, 30, "1 2 4", "1 2 4", "1 2 4", "1 2 4 8"),
    "n1-standard-16": (16, 60, "1 2 4", "1 2 4", "1 2 4", "2 4 8"),
    "n1-standard-32": (32, 120, "2 4", "2 4", "2 4", "4 8"),
    "n1-standard-64": (64, 240, "4", "", "4", "8"),
    "n1-standard-96": (96, 360, "4", "", "4", "8"),
    "n1-highmem-2": (2, 13, "1 2 4", "1 2 4", "1 2 4", "1 2 4 8"),
    "n1-highmem-4": (4, 26, "1 2 4", "1 2 4", "1 2 4", "1 2 4 8"),
    "n1-highmem-8": (8, 52, "1 2 4", "1 2 4", "1 2 4", "1 2 4 8"),
    "n1-highmem-16": (16, 104, "1 2 4", "1 2 4", "1 2 4", "2 4 8"),
    "n1-highmem-32": (32, 208, "2 4", "2 4", "2 4", "4 8"),
    "n1-highmem-64": (64, 416, "4", "", "4", "8"),
    "n1-highmem-96": (96, 624, "4", "", "4", "8"),
    "n1-highcpu-16": (16, 14.4, "1 2 4", "1 2 4", "1 2 4", "2 4 8"),
    "n1-highcpu-32": (32, 28.8, "2 4", "2 4", "2 4", "4 8"),
    "n1-highcpu-64": (64, 57.6, "4", "4", "4", "8"),
    "n1-highcpu-96": (96, 86.4, "4", "", "4", "8"),
}
KINDS = ("NVIDIA_TESLA_P4", "NVIDIA_TESLA_P100", "NVIDIA_TESLA_T4", "NVIDIA_TESLA_V100")
BUILT_IN = {
    "a3-megagpu-8g": ("NVIDIA_H100_MEGA_80GB", 8), "a3-highgpu-1g": ("NVIDIA_H100_80GB", 1),
    "a3-highgpu-2g": ("NVIDIA_H100_80GB", 2), "a3-highgpu-4g": ("NVIDIA_H100_80GB", 4),
    "a3-highgpu-8g": ("NVIDIA_H100_80GB", 8), "a3-ultragpu-8g": ("NVIDIA_H200_141GB", 8),
    "a4-highgpu-8g": ("NVIDIA_B200", 8), "a4x-highgpu-4g": ("NVIDIA_GB200", 4),
    "a2-ultragpu-1g": ("NVIDIA_A100_80GB", 1), "a2-ultragpu-2g": ("NVIDIA_A100_80GB", 2),
    "a2-ultragpu-4g": ("NVIDIA_A100_80GB", 4), "a2-ultragpu-8g": ("NVIDIA_A100_80GB", 8),
    "a2-highgpu-1g": ("NVIDIA_TESLA_A100", 1), "a2-highgpu-2g": ("NVIDIA_TESLA_A100", 2),
    "a2-highgpu-4g": ("NVIDIA_TESLA_A100", 4), "a2-highgpu-8g": ("NVIDIA_TESLA_A100", 8),
    "a2-megagpu-16g": ("NVIDIA_TESLA_A100", 16), "g2-standard-4": ("NVIDIA_L4", 1),
    "g2-standard-8": ("NVIDIA_L4", 1), "g2-standard-12": ("NVIDIA_L4", 1),
    "g2-standard-16": ("NVIDIA_L4", 1), "g2-standard-24": ("NVIDIA_L4", 2),
    "g2-standard-32": ("NVIDIA_L4", 1), "g2-standard-48": ("NVIDIA_L4", 4),
    "g2-standard-96": ("NVIDIA_L4", 8), "g4-standard-48": ("NVIDIA_RTX_PRO_6000", 1),
    "g4-standard-96": ("NVIDIA_RTX_PRO_6000", 2), "g4-standard-192": ("NVIDIA_RTX_PRO_6000", 4),
    "g4-standard-384": ("NVIDIA_RTX_PRO_6000", 8),
}
#: By TPU: machine type, topology; where two have one topology the first is that of one host.
TPUS = {
    "v5e": [
        ("ct5lp-hightpu-1t", "1x1"), ("ct5lp-hightpu-4t", "2x2"), ("ct5lp-hightpu-8t", "2x4"),
        ("ct5lp-hightpu-4t", "2x4"), ("ct5lp-hightpu-4t", "4x4"), ("ct5lp-hightpu-4t", "4x8"),
        ("ct5lp-hightpu-4t", "8x8"), ("ct5lp-hightpu-4t", "8x16"), ("ct5lp-hightpu-4t", "16x16"),
    ],
    "v6e": [
        ("ct6e-standard-1t", "1x1"), ("ct6e-standard-4t", "2x2"), ("ct6e-standard-8t", "2x4"),
        ("ct6e-standard-4t", "2x4"), ("ct6e-standard-4t", "4x4"), ("ct6e-standard-4t", "4x8"),
        ("ct6e-standard-4t", "8x8"), ("ct6e-standard-4t", "8x16"), ("ct6e-standard-4t", "16x16"),
    ],
    "v7x": [
        ("tpu7x-standard-4t", name) for name in (
            "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16",
        )
    ],
}
# fmt: on
#: Every machine with GPUs: machine type, kind, number.
WITH_GPUS = {
    (name, kind, int(count))
    for name, (_, _, *columns) in N1.items()
    for kind, column in zip(KINDS, columns, strict=True)
    for count in column.split()
} | {(name, kind, count) for name, (kind, count) in BUILT_IN.items()}
ALL_KINDS = sorted({kind for _, kind, _ in WITH_GPUS})
CPUS = {name: row[0] for name, row in N1.items()}
MEMORY = {name: row[1] for name, row in N1.items()}


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_number_of_a_gpu_is_a_machine_of_the_table_or_refused_with_the_nearest(kind: str) -> None:
    counts = sorted({number for _, other, number in WITH_GPUS if other == kind})
    for count in range(1, 18):
        if count in counts:
            machine = choose(gpu_type=kind, gpus=count)
            assert (machine.machine_type, machine.accelerator_type, machine.accelerator_count) in WITH_GPUS
            assert (machine.accelerator_type, machine.accelerator_count) == (kind, count)
            continue
        below, above = [n for n in counts if n < count][-1:], [n for n in counts if n > count][:1]
        near = " or ".join(map(str, below + above))
        with pytest.raises(ConfigError, match=f"no machine of Vertex AI has {count} {kind}; ask for {near}"):
            choose(gpu_type=kind, gpus=count)


@pytest.mark.parametrize("name", sorted({*N1, *BUILT_IN}))
def test_a_machine_that_is_named_has_the_gpus_of_the_table_and_no_others(name: str) -> None:
    for kind, count in itertools.product(ALL_KINDS, (1, 2, 3, 4, 8, 16)):
        if (name, kind, count) in WITH_GPUS:
            machine = choose(machine_type=name, gpu_type=kind, gpus=count)
            assert machine == Machine(machine_type=name, accelerator_type=kind, accelerator_count=count)
        else:
            with pytest.raises(ConfigError, match=f"a {name} has"):
                choose(machine_type=name, gpu_type=kind, gpus=count)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_machine_that_comes_with_gpus_needs_no_word_of_them(name: str) -> None:
    kind, count = BUILT_IN[name]
    assert choose(machine_type=name).spec() == {
        "machineType": name, "acceleratorType": kind, "acceleratorCount": count,
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_processors_and_memory_beside_gpus_are_those_that_so_many_support(kind: str) -> None:
    for count, cpus, memory in itertools.product(
        (1, 2, 4, 8), (None, 1, 5, 16, 33, 96), (None, 20, 100, 300)
    ):
        fits = {
            name
            for name, other, number in WITH_GPUS
            if (other, number) == (kind, count)
            and CPUS[name] >= (cpus or 0)
            and MEMORY[name] >= (memory or 0)
        }
        asked: dict[str, Any] = {"gpu_type": kind, "gpus": count, "cpus": cpus}
        asked["memory"] = memory and memory * GIB
        if fits:
            assert choose(**asked).machine_type in fits
        else:
            with pytest.raises(ConfigError, match="no machine of Vertex AI has"):
                choose(**asked)


@pytest.mark.parametrize(
    ("cpus", "memory", "name"),
    [
        (None, None, "n1-standard-4"), (1, None, "n1-highmem-2"), (4, None, "n1-standard-4"),
        (5, None, "n1-standard-8"), (2, 20, "n1-highmem-4"), (16, None, "n1-highcpu-16"),
        (20, 60, "n1-standard-32"), (96, None, "n1-highcpu-96"), (96, 624, "n1-highmem-96"),
        (None, 625, "m1-ultramem-40"), (41, 1000, "m1-megamem-96"), (97, None, "m1-ultramem-160"),
    ],
)  # fmt: skip
def test_the_cheapest_machine_with_so_many_processors_and_so_much_memory_is_taken(
    cpus: int | None, memory: int | None, name: str
) -> None:
    assert choose(cpus=cpus, memory=memory and memory * GIB) == Machine(machine_type=name)


@pytest.mark.parametrize("kind", TPUS)
def test_every_topology_of_a_tpu_has_its_machine(kind: str) -> None:
    first: dict[str, str] = {}
    for machine, topology in TPUS[kind]:
        first.setdefault(topology, machine)
        given = choose(machine_type=machine, tpu_type=kind, tpu_topology=topology)
        assert given.spec() == {"machineType": machine, "tpuTopology": topology}
    for topology, machine in first.items():
        chosen = choose(tpu_type=f"TPU_{kind.upper()}", tpu_topology=topology)
        assert chosen.spec() == {"machineType": machine, "tpuTopology": topology}
    with pytest.raises(ConfigError, match="has no topology '3x3'; the nearest is"):
        choose(tpu_type=kind, tpu_topology="3x3")
    with pytest.raises(ConfigError, match="comes with"):
        choose(tpu_type=kind, tpu_topology=topology, machine_type="n1-standard-4")


def test_tpus_that_are_counted_are_those_of_a_topology() -> None:
    assert choose(tpu_type="v3", tpus=32) == choose(tpu_type="v3", tpu_topology="4x4")
    for kind, machines in TPUS.items():
        for _, topology in machines:
            chips = math.prod(map(int, topology.split("x")))
            assert choose(tpu_type=kind, tpus=chips) == choose(tpu_type=kind, tpu_topology=topology)


@pytest.mark.parametrize(("kind", "most"), [("v2", 512), ("v3", 2048)])
def test_tpus_counted_in_cores_are_one_of_eight_or_slices_of_pods(kind: str, most: int) -> None:
    for topology, cores in {"2x2": 8, "4x4": 32, "4x8": 64, "8x8": 128, "16x16": 512, "32x32": 2048}.items():
        if cores <= most:
            assert choose(tpu_type=kind, tpu_topology=topology).spec() == {
                "machineType": "cloud-tpu",
                "acceleratorType": f"TPU_{kind.upper()}",
                "acceleratorCount": cores,
            }
    for topology, near in {"1x1": 8, "2x4": 8, "3x4": 32, "5x4": 32, "64x64": most}.items():
        with pytest.raises(ConfigError, match=f"the nearest has {near}"):
            choose(tpu_type=kind, tpu_topology=topology)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("t4", "NVIDIA_TESLA_T4"), ("nvidia-tesla-t4", "NVIDIA_TESLA_T4"), ("NVIDIA_L4", "NVIDIA_L4"),
        ("a100", "NVIDIA_TESLA_A100"), ("A100_80GIB", "NVIDIA_A100_80GB"), ("h100", "NVIDIA_H100_80GB"),
        ("nvidia-h100-mega-80gb", "NVIDIA_H100_MEGA_80GB"), ("nvidia-h200-141gb", "NVIDIA_H200_141GB"),
        ("B200", "NVIDIA_B200"), ("nvidia-rtx-pro-6000", "NVIDIA_RTX_PRO_6000"),
    ],
)  # fmt: skip
def test_a_gpu_goes_by_the_names_it_has_in_other_places(text: str, name: str) -> None:
    assert gpu_name(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [("v5e", "v5e"), ("TPU_V5E", "v5e"), ("v5litepod", "v5e"), ("tpu7x", "v7x"), ("TPU_V7X", "v7x")],
)
def test_a_tpu_goes_by_the_names_it_has_in_other_places(text: str, name: str) -> None:
    assert tpu_name(text) == name


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"gpu_type": "h100", "tpu_type": "v5e"}, "GPUs or TPUs, not both"),
        ({"gpus": 2}, "2 GPUs of which kind"),
        ({"gpu_type": "h1000"}, r"no GPU 'h1000'; did you mean 'h100'"),
        ({"gpu_type": "b300"}, "no GPU 'b300'; did you mean 'b200'"),
        ({"tpu_type": "v4"}, "no TPU 'v4'; there are v2, v3, v5e, v6e, v7x"),
        ({"tpu_topology": "2x2"}, "of which TPU"),
        ({"tpus": 8}, "8 of which TPU"),
        ({"tpu_type": "v5e", "tpus": 3}, r"no TPU v5e of 3 chips; the nearest has 4 \(2x2\)"),
        ({"tpu_type": "v2", "tpus": 9}, "no TPU v2 of 9 cores; the nearest has 8"),
        ({"tpu_type": "v5e", "tpus": 4, "tpu_topology": "2x2"}, "leave their number out"),
        ({"tpu_type": "v5e", "tpu_topology": "4"}, "write one such as"),
        ({"tpu_type": "v5e", "cpus": 4}, "leave these out"),
        ({"machine_type": "cloud-tpu"}, "give tpu_type"),
        ({"machine_type": "n1-standard-4", "cpus": 8}, "a n1-standard-4 has 4 CPUs and 15 GiB, which"),
        ({"gpu_type": "a100", "gpus": 32}, "ask for 16; with nodes=2 there are as many"),
        ({"gpu_type": "t4", "cpus": 64}, r"n1-highmem-16 \(16 CPUs.*: ask for less, or 4 NVIDIA"),
        ({"cpus": 161}, r"the nearest: m1-ultramem-160 \(160 CPUs and 3844 GiB\)"),
    ],
)  # fmt: skip
def test_what_no_machine_has_is_refused_with_what_comes_near(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose(**asked)


def test_a_machine_newer_than_the_table_is_taken_as_it_is_given() -> None:
    assert choose(machine_type="c9-standard-4", cpus=4) == Machine(machine_type="c9-standard-4")
    new = choose(machine_type="a9-gpu", gpu_type="h100", gpus=3)
    assert str(new) == "a9-gpu with 3 NVIDIA_H100_80GB"
