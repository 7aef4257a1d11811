"""What a job asks for: names, amounts, topologies, merging, and every misuse."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nemo_run as run
from nemo_run import xm
from nemo_run.xm import JobRequirements

NAMES = [
    "CPU", "MEMORY", "RAM", "EPHEMERAL_STORAGE", "DISK", "LOCAL_GPU", "P4", "T4", "L4_24TH", "P100", "V100",
    "A100", "A100_80GIB", "H100", "H100_MEGA", "H200", "B200", "B300", "GB200", "GB300", "VR200", "B40_48TH",
    "TPU_V2", "TPU_V3", "TPU_V4", "TPU_V5E", "TPU_V5P", "TPU_V6E", "TPU_V7X",
]  # fmt: skip
ACCELERATORS = NAMES[5:]
TPUS = [name for name in NAMES if name.startswith("TPU")]

# --- Names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_resource_is_known_by_its_name_in_any_case(name: str) -> None:
    kind = xm.ResourceType[name]
    assert xm.ResourceType[name.lower()] is kind
    for requirements in (
        JobRequirements(**{name: 8}),
        JobRequirements(**{name.lower(): 8}),
        JobRequirements({name: 8}),
        JobRequirements({kind: 8}),
        JobRequirements(**{name: "8"}),
    ):
        assert dict(requirements.task_requirements) == {kind: 8.0}
        assert requirements.accelerator is (kind if name in ACCELERATORS else None)


def test_some_names_mean_the_same() -> None:
    assert xm.ResourceType["ram"] is xm.ResourceType.MEMORY
    assert xm.ResourceType["disk"] is xm.ResourceType.EPHEMERAL_STORAGE
    assert len(set(xm.ResourceType)) == len(NAMES) - 2


def test_accelerators_are_gpus_tpus_and_what_this_machine_has() -> None:
    assert {kind.name for kind in xm.AcceleratorType} == set(ACCELERATORS)
    assert {kind.name for kind in xm.TpuType} == set(TPUS)
    assert {kind.name for kind in xm.GpuType} == set(ACCELERATORS) - set(TPUS) - {"LOCAL_GPU"}
    assert xm.ResourceType.A100 in xm.GpuType
    assert xm.ResourceType.A100 not in xm.TpuType
    assert "A100" not in xm.GpuType
    assert xm.GpuType["a100"] is xm.GpuType.A100 is xm.ResourceType.A100
    assert len(xm.TpuType) == 7
    assert copy.deepcopy(xm.TpuType).TPU_V4 is xm.ResourceType.TPU_V4
    with pytest.raises(KeyError, match="no GpuType 'TPU_V2'"):
        xm.GpuType["TPU_V2"]
    with pytest.raises(AttributeError, match="'CPU' is no member of GpuType"):
        _ = xm.GpuType.CPU


def test_units_are_powers_of_two_and_of_ten() -> None:
    assert (xm.KiB, xm.MiB, xm.GiB, xm.TiB, xm.PiB) == (2**10, 2**20, 2**30, 2**40, 2**50)
    assert (xm.KB, xm.MB, xm.GB, xm.TB, xm.PB) == (10**3, 10**6, 10**9, 10**12, 10**15)
    assert xm.vCPU == 1.0


# --- What is asked of one machine -----------------------------------------------------------------------


class Asked(dict[str, Any]):
    """What the properties say, by name; those not named are as for nothing asked."""

    def __init__(self, **said: Any) -> None:
        nothing = {"accelerator_count": 0, "replicas": 1, "hosts": 1, "slices": 1}
        nothing |= dict.fromkeys(
            ["cpu", "memory_bytes", "ephemeral_storage_bytes", "accelerator", "topology"]
        )
        super().__init__(nothing | said)


def tpu(name: str, count: int, topology: str | None = None, **said: Any) -> Asked:
    shape = topology and xm.Topology(topology)
    return Asked(accelerator=xm.ResourceType[name], accelerator_count=count, topology=shape, **said)


gpu = tpu

ASKED: list[tuple[dict[str, Any], Asked]] = [
    ({}, Asked()),
    ({"cpu": 0.5, "ram": 4 * xm.GiB}, Asked(cpu=0.5, memory_bytes=4 * 2**30)),
    ({"memory": 1.5, "disk": "10"}, Asked(memory_bytes=2, ephemeral_storage_bytes=10)),
    ({"cpu": 2 * xm.vCPU, "replicas": 3}, Asked(cpu=2.0, replicas=3, hosts=3)),
    ({"local_gpu": 2}, gpu("local_gpu", 2)),
    ({"t4": 0}, Asked()),
    ({"t4": 0, "v100": 1}, gpu("v100", 1)),
    ({"a100": 8, "replicas": 2}, gpu("a100", 8, replicas=2, hosts=2)),
    ({"h100": "8x2"}, gpu("h100", 8, "8x2", replicas=2, hosts=2)),
    ({"h100": "8x2", "replicas": 2}, gpu("h100", 8, "8x2", replicas=2, hosts=2)),
    ({"h100": xm.Topology("4x2x3")}, gpu("h100", 4, "4x2x3", replicas=6, hosts=6)),
    ({"gb200": "4x18*3"}, gpu("gb200", 4, "4x18", replicas=54, hosts=54, slices=3)),
    ({"gb200": "4x18", "num_slices": 3}, gpu("gb200", 4, "4x18", replicas=54, hosts=54, slices=3)),
    ({"h100": "8*2"}, gpu("h100", 8, "8", replicas=2, hosts=2, slices=2)),
    ({"tpu_v2": 8}, tpu("tpu_v2", 8)),
    ({"tpu_v3": 32}, tpu("tpu_v3", 8, hosts=4)),
    ({"tpu_v3": "4x4"}, tpu("tpu_v3", 4, "4x4", hosts=4)),
    ({"tpu_v4": "2x2x1"}, tpu("tpu_v4", 4, "2x2x1")),
    ({"tpu_v4": "2x2x4"}, tpu("tpu_v4", 4, "2x2x4", hosts=4)),
    ({"tpu_v4": "4x4x8_twisted"}, tpu("tpu_v4", 4, "4x4x8_twisted", hosts=32)),
    ({"tpu_v5e": "2x4"}, tpu("tpu_v5e", 8, "2x4")),
    ({"tpu_v5e": "4x4"}, tpu("tpu_v5e", 4, "4x4", hosts=4)),
    ({"tpu_v5e": "4x4*3"}, tpu("tpu_v5e", 4, "4x4", hosts=12, slices=3)),
    ({"tpu_v6e": 1}, tpu("tpu_v6e", 1)),
]


@pytest.mark.parametrize(("given_", "asked"), ASKED, ids=lambda value: repr(value)[:50])
def test_what_is_asked_of_one_machine_is_told_apart_from_totals(given_: dict[str, Any], asked: Asked) -> None:
    requirements = JobRequirements(**given_)
    assert Asked(**{name: getattr(requirements, name) for name in asked}) == asked


@pytest.mark.parametrize(
    ("given_", "topology"),
    [
        ({"tpu_v2": 8}, "2x2"),
        ({"tpu_v3": 32}, "4x4"),
        ({"tpu_v4": 4}, "2x2x1"),
        ({"tpu_v5p": 16}, "2x2x4"),
        ({"tpu_v5e": 8}, "2x4"),
        ({"tpu_v6e": "16x16"}, "16x16"),
        ({"tpu_v5e": 5}, None),
        ({"h100": "8x2"}, None),
        ({"cpu": 1}, None),
    ],
)
def test_tpus_are_connected_as_so_many_are_unless_said(given_: dict[str, Any], topology: str | None) -> None:
    assert JobRequirements(**given_).tpu_topology == topology


@pytest.mark.parametrize(
    ("given_", "total"), [({"h100": "8x2"}, 16), ({"tpu_v4": "2x2x4"}, 16), ({"tpu_v5e": "4x4*3"}, 16)]
)
def test_the_table_of_resources_holds_the_total_of_a_slice(given_: dict[str, Any], total: int) -> None:
    [amount] = JobRequirements(**given_).task_requirements.values()
    assert amount == total


def test_replicas_may_stand_among_the_resources() -> None:
    assert JobRequirements({"cpu": 1, "replicas": 2}) == JobRequirements(cpu=1, replicas=2)
    assert JobRequirements({"replicas": 2}, replicas=2).replicas == 2


def test_the_processor_is_that_of_the_accelerator_unless_said() -> None:
    assert JobRequirements(gb200=4).architecture is xm.Architecture.ARM
    assert JobRequirements(h100=8).architecture is xm.Architecture.HASWELL
    assert JobRequirements(cpu=1).architecture is None
    assert JobRequirements(cpu=1, architecture=xm.Architecture.ARM).architecture is xm.Architecture.ARM


def test_the_tier_is_prod_unless_said_and_can_be_changed() -> None:
    requirements = JobRequirements(cpu=1)
    assert requirements.service_tier is xm.ServiceTier.PROD
    requirements.service_tier = xm.ServiceTier.BATCH
    assert requirements == JobRequirements(cpu=1, service_tier=xm.ServiceTier.BATCH)
    assert [tier.value for tier in xm.ServiceTier] == [200, 100, 25]
    with pytest.raises(ValueError, match=r"service_tier must be one of .*did you mean 'BATCH'"):
        requirements.service_tier = "batch"  # type: ignore[assignment]


# --- Topologies -----------------------------------------------------------------------------------------


def test_a_topology_knows_its_dimensions() -> None:
    topology = xm.Topology("2x2x4_twisted")
    assert (topology.dimensions, topology.chip_count, str(topology)) == ([2, 2, 4], 16, "2x2x4_twisted")
    assert topology == xm.Topology("2x2x4_twisted") != xm.Topology("2x2x4")
    assert len({topology, xm.Topology("2x2x4_twisted")}) == 1
    assert xm.Topology("8_untwisted").chip_count == 8


@pytest.mark.parametrize("name", ["", "x", "4x", "x4", "0x4", "4*2", "4x4_bent", "4 x 4", "-4", "4.5", None])
def test_what_is_no_topology_is_refused(name: Any) -> None:
    with pytest.raises(xm.InvalidTpuTopologyError, match="is no topology; write one like '4x4'") as caught:
        xm.Topology(name)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, run.ConfigError)


# --- Misuse ---------------------------------------------------------------------------------------------

MISUSE: list[tuple[dict[str, Any], str]] = [
    ({"a100": 1, "v100": 1}, r"Accelerator already set: A100, and now V100; .*JobGroup"),
    ({"local_gpu": 1, "t4": 1}, "Accelerator already set: LOCAL_GPU, and now T4"),
    ({"cpu": "2x2"}, "cpu='2x2': only accelerators have topologies"),
    ({"ram": xm.Topology("2x2")}, "memory='2x2': only accelerators have topologies"),
    ({"ram": 1, "memory": 2}, "memory is given twice: 1 and 2; leave one out"),
    ({"resources": {"cpu": 1}, "CPU": 1}, "cpu is given twice"),
    ({"resources": {"replicas": 1}, "replicas": 2}, "replicas is given twice: 2 and 1"),
    ({"ram": "4GiB"}, r"memory='4GiB' is no amount; write a number, with a unit like 4 \* xm.GiB"),
    ({"cpu": -1}, "cpu=-1 is no amount; it must be finite and not below 0"),
    ({"cpu": float("nan")}, "cpu=nan is no amount"),
    ({"cpu": float("inf")}, "cpu=inf is no amount"),
    ({"cpu": "inf"}, "cpu='inf' is no amount"),
    ({"cpu": True}, "cpu=True is no amount"),
    ({"cpu": None}, "cpu=None is no amount; write a number$"),
    ({"t4": None}, "t4=None is no amount; write a number or a topology such as '2x2'"),
    ({"t4": 1.5}, "t4=1.5: accelerators are counted in whole ones"),
    ({"tpu_v4": "2x"}, "'2x' is no topology"),
    ({"tpu_v4": "2x2*0"}, "slices of tpu_v4 must be a whole number from 1 on, not 0"),
    ({"tpu_v4": "2x2*2", "num_slices": 3}, "num_slices is given twice: 3 and 2"),
    ({"h100": "8x2", "replicas": 3}, "replicas=3, but 8x2 is 8 on each of 2 machines; leave replicas out"),
    ({"replicas": 0}, "replicas must be a whole number from 1 on, not 0"),
    ({"replicas": 1.5}, "replicas must be a whole number"),
    ({"replicas": "many"}, "replicas must be a whole number"),
    ({"replicas": float("inf")}, "replicas must be a whole number"),
    ({"num_slices": True}, "num_slices must be a whole number"),
    ({"architecture": "arm"}, r"architecture must be one of xm.Architecture.HASWELL.*did you mean 'ARM'"),
    ({"service_tier": 100}, "service_tier must be one of xm.ServiceTier.PROD"),
]


@pytest.mark.parametrize(("given_", "message"), MISUSE, ids=lambda value: str(value)[:40])
def test_misuse_is_a_value_error_that_says_what_and_how(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        JobRequirements(**given_)
    assert isinstance(caught.value, run.ConfigError)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"a10": 1}, "no resource 'a10'; did you mean 'a100'"),
        ({"GPU": 1}, "no resource 'GPU'; did you mean 'CPU' or 'LOCAL_GPU'"),
        ({"memroy": 1}, "no resource 'memroy'; did you mean 'memory'"),
        ({"resources": {5: 1}}, "no resource '5'"),
    ],
)
def test_an_unknown_resource_is_a_key_error_with_the_nearest_name(
    given_: dict[str, Any], message: str
) -> None:
    with pytest.raises(KeyError) as caught:
        JobRequirements(**given_)
    assert message in str(caught.value)
    assert isinstance(caught.value, run.NotFoundError)


def test_requirements_take_a_dict_of_resources() -> None:
    with pytest.raises(TypeError, match=r"JobRequirements takes a dict of resources, not 4; write"):
        JobRequirements(4)  # type: ignore[arg-type]


# --- Merging --------------------------------------------------------------------------------------------

MERGES: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({}, {}, {}),
    ({"cpu": 1, "ram": 2}, {"cpu": 3}, {"cpu": 3, "ram": 2}),
    ({"tpu_v4": "2x2x4"}, {"cpu": 1}, {"cpu": 1, "tpu_v4": "2x2x4"}),
    ({"cpu": 1}, {"tpu_v4": "2x2x4*2"}, {"cpu": 1, "tpu_v4": "2x2x4*2"}),
    ({"tpu_v4": "2x2x4*2"}, {"tpu_v4": "2x2x2"}, {"tpu_v4": "2x2x2"}),
    ({"v100": 2, "replicas": 2}, {"a100": 8}, {"a100": 8, "replicas": 2}),
    ({"a100": 8, "replicas": 3}, {"h100": "8x2"}, {"h100": "8x2"}),
    ({"h100": "8x2"}, {"h100": 8}, {"h100": 8}),
    ({"h100": "8x2"}, {"h100": 0}, {"h100": 0}),
    ({"gb200": 4}, {"h100": 8}, {"h100": 8}),
    (
        {"service_tier": xm.ServiceTier.BATCH, "location": "a", "replicas": 2},
        {"cpu": 1},
        {"cpu": 1, "service_tier": xm.ServiceTier.BATCH, "location": "a", "replicas": 2},
    ),
    (
        {"service_tier": xm.ServiceTier.BATCH, "location": "a", "replicas": 2},
        {"service_tier": xm.ServiceTier.PROD, "location": "b", "replicas": 1},
        {"service_tier": xm.ServiceTier.PROD, "location": "b", "replicas": 1},
    ),
]


@pytest.mark.parametrize(("first", "second", "both"), MERGES, ids=lambda value: str(value)[:40])
def test_merged_requirements_are_the_second_ones_and_what_only_the_first_say(
    first: dict[str, Any], second: dict[str, Any], both: dict[str, Any]
) -> None:
    assert JobRequirements(**first).merge(JobRequirements(**second)) == JobRequirements(**both)


tables = st.fixed_dictionaries(
    {},
    optional={
        "cpu": st.integers(1, 8),
        "ram": st.integers(1, 2**40),
        "disk": st.integers(1, 2**40),
        "location": st.sampled_from(["a", "b"]),
        "replicas": st.integers(1, 4),
        "service_tier": st.sampled_from(list(xm.ServiceTier)),
        "architecture": st.sampled_from(list(xm.Architecture)),
        "num_slices": st.integers(1, 3),
    },
)
accelerators = st.sampled_from([{}, {"a100": 8}, {"t4": 1}, {"tpu_v4": "2x2x4"}, {"tpu_v5e": 4}])
requirements_ = st.builds(
    lambda table, accelerator: JobRequirements(**table, **accelerator), tables, accelerators
)


@given(requirements_, requirements_, requirements_)
def test_merging_requirements_may_be_grouped_in_any_way(
    a: JobRequirements, b: JobRequirements, c: JobRequirements
) -> None:
    assert a.merge(b).merge(c) == a.merge(b.merge(c))


@given(requirements_)
def test_merging_with_nothing_or_oneself_changes_nothing(requirements: JobRequirements) -> None:
    nothing = JobRequirements()
    assert requirements.merge(nothing) == nothing.merge(requirements) == requirements
    assert requirements.merge(requirements) == requirements


@given(requirements_)
def test_copies_of_requirements_are_equal_and_their_text_makes_them_anew(
    requirements: JobRequirements,
) -> None:
    assert copy.deepcopy(requirements) == pickle.loads(pickle.dumps(requirements)) == requirements
    assert eval(repr(requirements), {"xm": xm}) == requirements


def test_requirements_are_compared_by_what_they_say() -> None:
    assert JobRequirements(cpu=1) != JobRequirements(cpu=2)
    assert JobRequirements(h100="8x2") != JobRequirements(h100=16)
    assert JobRequirements(cpu=1) != "cpu"
    with pytest.raises(TypeError, match="unhashable"):
        hash(JobRequirements())


# --- Tables of amounts ----------------------------------------------------------------------------------


def test_tables_of_amounts_add_up_and_multiply() -> None:
    first = xm.ResourceDict({"cpu": 1, xm.ResourceType.MEMORY: 2})
    second = xm.ResourceDict({"CPU": 2, "t4": 1})
    assert dict(first + second) == {xm.ResourceType.CPU: 3, xm.ResourceType.MEMORY: 2, xm.ResourceType.T4: 1}
    assert first * 2 == 2 * first == xm.ResourceDict({"cpu": 2, "ram": 4})
    assert str(first) == "CPU: 1, MEMORY: 2"
    first["cpu"] = 5
    del first["ram"]
    assert dict(first) == {xm.ResourceType.CPU: 5.0}
    with pytest.raises(KeyError, match="no resource 'cup'; did you mean 'cpu'"):
        first["cup"] = 1
