"""What a job asks of its machines."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, MutableMapping
from enum import Enum, EnumMeta
from typing import Any, TypeAlias

from nemo_run.errors import NotFoundError, suggestion
from nemo_run.xm.errors import BadTypeError, BadValueError, InvalidTpuTopologyError

_TOPOLOGY = re.compile(r"([1-9][0-9]*(?:x[1-9][0-9]*)*)(_twisted|_untwisted)?")


class _AnyCase(EnumMeta):
    """An enum whose members are found by name in capitals or not."""

    def __getitem__(cls, name: str) -> Any:
        return super().__getitem__(name.upper() if isinstance(name, str) else name)


class ResourceType(Enum, metaclass=_AnyCase):
    """Everything that can be asked for; `ResourceType["ram"]` finds one by name."""

    CPU = 1
    MEMORY = 2
    RAM = MEMORY
    EPHEMERAL_STORAGE = 3
    DISK = EPHEMERAL_STORAGE
    LOCAL_GPU = 10

    P4 = 20
    T4 = 21
    L4_24TH = 22
    P100 = 23
    V100 = 24
    A100 = 25
    A100_80GIB = 26
    H100 = 27
    H100_MEGA = 28
    H200 = 29
    B200 = 30
    B300 = 31
    GB200 = 32
    GB300 = 33
    VR200 = 34
    B40_48TH = 35

    TPU_V2 = 50
    TPU_V3 = 51
    TPU_V4 = 52
    TPU_V5E = 53
    TPU_V5P = 54
    TPU_V6E = 55
    TPU_V7X = 56


class _Some:
    """Some of the resources, used like an enum of their own."""

    def __init__(self, name: str, members: Mapping[str, ResourceType]) -> None:
        self._name, self._members = name, dict(members)

    def __contains__(self, item: object) -> bool:
        return item in self._members.values()

    def __iter__(self) -> Iterator[ResourceType]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> ResourceType:
        if name.upper() not in self._members:
            raise NotFoundError(self._name, name, self._members)
        return self._members[name.upper()]

    def __getattr__(self, name: str) -> ResourceType:
        # A copy is asked for names of Python's own before it has members, or a name.
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._members:
            return self._members[name]
        raise AttributeError(f"{name!r} is no member of {self!r}")

    def __repr__(self) -> str:
        return self._name


_MEMBERS = ResourceType.__members__
#: Cloud GPUs, TPUs, and both together with the GPUs of this machine.
GpuType = _Some("GpuType", {name: kind for name, kind in _MEMBERS.items() if 20 <= kind.value < 50})
TpuType = _Some("TpuType", {name: kind for name, kind in _MEMBERS.items() if kind.value >= 50})
AcceleratorType = _Some(
    "AcceleratorType", {name: kind for name, kind in _MEMBERS.items() if kind.value >= 10}
)

#: TPU chips of one machine among several that work together, and of one alone.
_CHIPS_OF_A_HOST = {ResourceType.TPU_V5E: (4, 8), ResourceType.TPU_V6E: (4, 8)}
_CHIPS_OF_OTHER_HOSTS = (4, 4)
#: Those of which a number counts cores; a chip has two.
_IN_CORES = {ResourceType.TPU_V2, ResourceType.TPU_V3}
#: How so many chips are connected where nobody says, in two directions and in three.
_PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
)  # fmt: skip
_CONNECTED_IN_THREE = {ResourceType.TPU_V4, ResourceType.TPU_V5P, ResourceType.TPU_V7X}


class ServiceTier(Enum):
    """How much a job matters to whoever shares the machines."""

    PROD = 200
    BATCH = 100
    FREEBIE = 25


class Architecture(Enum):
    """The kind of processor: HASWELL stands for x86-64, ARM for 64-bit ARM."""

    HASWELL = 1
    ARM = 2


#: Accelerators that sit on boards with ARM processors.
_ON_ARM = {ResourceType.GB200, ResourceType.GB300, ResourceType.VR200}


class Topology:
    """How accelerators are connected: `2x2x4`, `4x4_twisted`."""

    def __init__(self, name: str) -> None:
        found = _TOPOLOGY.fullmatch(name) if isinstance(name, str) else None
        if not found:
            raise InvalidTpuTopologyError(
                f"{name!r} is no topology; write one like '4x4', '2x2x4' or '4x4x8_twisted'"
            )
        self.name = name
        self.dimensions = [int(size) for size in found[1].split("x")]

    @property
    def chip_count(self) -> int:
        """How many accelerators there are in all."""
        return math.prod(self.dimensions)

    def __eq__(self, other: object) -> bool:
        return self.name == other.name if isinstance(other, Topology) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"xm.Topology({self.name!r})"

    def __str__(self) -> str:
        return self.name


#: What scripts write for an amount.
ResourceQuantity: TypeAlias = int | float | str | Topology


def resource_type(name: ResourceType | str) -> ResourceType:
    """A resource by its name, in capitals or not.

    Raises:
        NotFoundError: there is none of that name.
    """
    if isinstance(name, ResourceType):
        return name
    if not isinstance(name, str) or name.upper() not in _MEMBERS:
        known = _MEMBERS if str(name).isupper() else map(str.lower, _MEMBERS)
        raise NotFoundError("resource", str(name), known)
    return _MEMBERS[name.upper()]


class ResourceDict(MutableMapping[ResourceType, float]):
    """Amounts by resource; `+` adds two up and `*` multiplies all of one."""

    def __init__(self, amounts: Mapping[Any, float] | None = None) -> None:
        self._amounts = {resource_type(key): float(amount) for key, amount in (amounts or {}).items()}

    def __getitem__(self, key: ResourceType | str) -> float:
        return self._amounts[resource_type(key)]

    def __setitem__(self, key: ResourceType | str, amount: float) -> None:
        self._amounts[resource_type(key)] = float(amount)

    def __delitem__(self, key: ResourceType | str) -> None:
        del self._amounts[resource_type(key)]

    def __iter__(self) -> Iterator[ResourceType]:
        return iter(self._amounts)

    def __len__(self) -> int:
        return len(self._amounts)

    def __add__(self, other: Mapping[ResourceType, float]) -> ResourceDict:
        return ResourceDict({key: self.get(key, 0) + other.get(key, 0) for key in {**self, **other}})

    def __mul__(self, times: float) -> ResourceDict:
        return ResourceDict({key: amount * times for key, amount in self.items()})

    __rmul__ = __mul__

    def __str__(self) -> str:
        return ", ".join(f"{key.name}: {amount:.15g}" for key, amount in self.items())

    def __repr__(self) -> str:
        return f"ResourceDict({{{self!s}}})"


class JobRequirements:
    """What one job asks for: `JobRequirements(cpu=4, ram=16 * xm.GiB, a100=8, location="us-east1")`.

    An amount is a number, a text that is one, or, for an accelerator, a topology. `h100="8x2"` is two
    machines with 8 each; `tpu_v5e="4x4*3"` is three slices of 16. Amounts of `task_requirements` are of all
    machines of a slice together for an accelerator, and of one machine for everything else; what one machine
    has is told by the properties.

    Args:
        resources: Amounts by name or `ResourceType`, in addition to those by keyword.
        architecture: The kind of processor; default: what the accelerator comes with.
        location: Where, in the backend's words (a zone, a cell).
        replicas: How many machines do the same.
        service_tier: How much it matters; PROD by default.
        num_slices: How many TPU (or NVLink) slices of the topology.
        kw_resources: Amounts by name, in capitals or not.

    Raises:
        NotFoundError: there is no resource of that name (it is a KeyError too).
        BadValueError: an amount is no amount, a resource is given twice, two accelerators, a topology of
            something else than an accelerator, or replicas that contradict the topology (a ValueError too).
    """

    task_requirements: ResourceDict
    accelerator: ResourceType | None
    topology: Topology | None
    location: str | None
    replicas: int

    __hash__ = None  # type: ignore[assignment]  # it can be changed

    def __init__(
        self,
        resources: Mapping[Any, ResourceQuantity] | None = None,
        *,
        architecture: Architecture | None = None,
        location: str | None = None,
        replicas: int | None = None,
        service_tier: ServiceTier | None = None,
        num_slices: int | None = None,
        **kw_resources: ResourceQuantity,
    ) -> None:
        if resources is not None and not isinstance(resources, Mapping):
            raise BadTypeError(
                f"JobRequirements takes a dict of resources, not {resources!r}; "
                "write JobRequirements(cpu=4) or JobRequirements({'cpu': 4})"
            )
        amounts = _by_type(resources or {}, kw_resources)
        replicas = _once("replicas", replicas, amounts.pop("replicas", None))
        self.location = location
        self._architecture: Architecture | None = _member(Architecture, architecture, "architecture")
        self._service_tier: ServiceTier | None = _member(ServiceTier, service_tier, "service_tier")
        self.task_requirements = ResourceDict()
        self.accelerator = self.topology = None
        self._slices = _count("num_slices", num_slices)
        for kind, amount in amounts.items():
            self._take(kind, amount)
        self._given_replicas = _count("replicas", replicas)
        self.replicas = self._check_replicas() or 1

    def _take(self, kind: ResourceType, amount: ResourceQuantity) -> None:
        """One more resource."""
        topology, slices = _topology(kind, amount)
        count = float(topology.chip_count) if topology else _number(kind, amount)
        self.task_requirements[kind] = count
        if slices:
            self._slices = _once("num_slices", self._slices, slices)
        if kind in AcceleratorType and count:
            if self.accelerator:
                raise BadValueError(
                    f"Accelerator already set: {self.accelerator.name}, and now {kind.name}; "
                    "a job has one kind of accelerator, two jobs of a JobGroup may have two"
                )
            if count != int(count):
                raise BadValueError(f"{_shown(kind)}={amount!r}: accelerators are counted in whole ones")
            self.accelerator, self.topology = kind, topology

    def _check_replicas(self) -> int | None:
        """How many machines there are, if that was said: by `replicas` or by a topology of GPUs."""
        if not self._several_gpu_hosts():
            return self._given_replicas
        assert self.topology is not None
        hosts = math.prod(self.topology.dimensions[1:]) * self.slices
        if self._given_replicas not in (None, hosts):
            raise BadValueError(
                f"replicas={self._given_replicas}, but {self.topology} is {self.topology.dimensions[0]} on "
                f"each of {hosts} machines; leave replicas out, or write the number of one machine alone"
            )
        return hosts

    def _several_gpu_hosts(self) -> bool:
        """Whether the topology says how many machines with GPUs there are."""
        if not self.topology or self.accelerator in TpuType:
            return False
        return len(self.topology.dimensions) > 1 or self.slices > 1

    @property
    def service_tier(self) -> ServiceTier:
        """How much it matters."""
        return self._service_tier or ServiceTier.PROD

    @service_tier.setter
    def service_tier(self, tier: ServiceTier) -> None:
        self._service_tier = _member(ServiceTier, tier, "service_tier")

    @property
    def architecture(self) -> Architecture | None:
        """The kind of processor: as given, else the one that the accelerator comes with, if there is one."""
        if self._architecture or not self.accelerator or self.accelerator is ResourceType.LOCAL_GPU:
            return self._architecture
        return Architecture.ARM if self.accelerator in _ON_ARM else Architecture.HASWELL

    @property
    def slices(self) -> int:
        """How many slices of the topology."""
        return self._slices or 1

    num_slices = slices

    @property
    def accelerator_count(self) -> int:
        """How many accelerators one machine has; 0 without any.

        A number of TPU v2 or v3 counts cores, of which a chip has two; all else counts chips.
        """
        if not self.accelerator:
            return 0
        total = int(self.task_requirements[self.accelerator])
        if self.accelerator in TpuType:
            among_others, alone = _CHIPS_OF_A_HOST.get(self.accelerator, _CHIPS_OF_OTHER_HOSTS)
            unit = 2 if self._in_cores else 1
            return total if total <= alone * unit else among_others * unit
        if self._several_gpu_hosts():
            assert self.topology is not None
            return self.topology.dimensions[0]
        return total

    @property
    def _in_cores(self) -> bool:
        """Whether cores of TPUs are counted: by a number of the first ones, not by a topology."""
        return self.accelerator in _IN_CORES and self.topology is None

    @property
    def tpu_topology(self) -> str | None:
        """How the chips of its TPUs are connected: as given, else as so many are; None if nobody knows."""
        if self.accelerator not in TpuType or self.topology:
            return str(self.topology) if self.accelerator in TpuType else None
        assert self.accelerator is not None
        chips = self.task_requirements[self.accelerator] / (2 if self._in_cores else 1)
        usual = _CUBES if self.accelerator in _CONNECTED_IN_THREE else _PLANES
        return next((name for name in usual if Topology(name).chip_count == chips), None)

    @property
    def hosts(self) -> int:
        """How many machines there are in all: replicas, and those that TPUs of a topology are spread over."""
        if self.accelerator not in TpuType:
            return self.replicas
        assert self.accelerator is not None
        of_a_slice = math.ceil(self.task_requirements[self.accelerator] / self.accelerator_count)
        return max(self.replicas, of_a_slice * self.slices)

    @property
    def cpu(self) -> float | None:
        """Processors of one machine; None where nothing is said."""
        return self.task_requirements.get(ResourceType.CPU)

    @property
    def memory_bytes(self) -> int | None:
        """Memory of one machine in bytes; None where nothing is said."""
        return self._bytes(ResourceType.MEMORY)

    @property
    def ephemeral_storage_bytes(self) -> int | None:
        """Disk of one machine in bytes; None where nothing is said."""
        return self._bytes(ResourceType.EPHEMERAL_STORAGE)

    def _bytes(self, kind: ResourceType) -> int | None:
        amount = self.task_requirements.get(kind)
        return None if amount is None else math.ceil(amount)

    def _amounts(self) -> dict[ResourceType, ResourceQuantity]:
        """The resources as they would be given."""
        amounts: dict[ResourceType, ResourceQuantity] = dict(self.task_requirements)
        if self.accelerator and self.topology:
            amounts[self.accelerator] = self.topology
        return amounts

    def merge(self, other: JobRequirements) -> JobRequirements:
        """Both together; what `other` says wins."""
        amounts = self._amounts()
        replaced = bool(other.accelerator)
        if replaced and self.accelerator:
            del amounts[self.accelerator]
        amounts.update(other._amounts())
        return JobRequirements(
            amounts,
            architecture=other._architecture or (None if replaced else self._architecture),
            location=other.location or self.location,
            replicas=other._given_replicas or (None if other._several_gpu_hosts() else self._given_replicas),
            service_tier=other._service_tier or self._service_tier,
            num_slices=other._slices or (None if replaced else self._slices),
        )

    def _said(self) -> tuple[Any, ...]:
        kept = (self.task_requirements, self.topology, self.location, self.replicas)
        return (*kept, self.service_tier, self.architecture, self.slices)

    def __eq__(self, other: object) -> bool:
        return self._said() == other._said() if isinstance(other, JobRequirements) else NotImplemented

    def __repr__(self) -> str:
        said = [f"{_shown(kind)}={_plain(amount)}" for kind, amount in self._amounts().items()]
        said += [f"location={self.location!r}"] if self.location else []
        said += [f"replicas={self._given_replicas}"] if self._given_replicas else []
        said += [f"service_tier=xm.{self._service_tier}"] if self._service_tier else []
        said += [f"architecture=xm.{self._architecture}"] if self._architecture else []
        said += [f"num_slices={self._slices}"] if self._slices else []
        return f"xm.JobRequirements({', '.join(said)})"


def _by_type(first: Mapping[Any, Any], second: Mapping[str, Any]) -> dict[Any, Any]:
    """Amounts by resource, and `replicas` where that stands among them."""
    amounts: dict[Any, Any] = {}
    for name, amount in (*first.items(), *second.items()):
        key = "replicas" if name == "replicas" else resource_type(name)
        if key in amounts:
            raise BadValueError(
                f"{_shown(key)} is given twice: {amounts[key]!r} and {amount!r}; leave one out"
            )
        amounts[key] = amount
    return amounts


def _topology(kind: ResourceType, amount: Any) -> tuple[Topology | None, int | None]:
    """The topology that an amount says, and how many slices of it."""
    slices = None
    if isinstance(amount, str) and not _is_number(amount):
        text, star, number = amount.partition("*")
        if kind not in AcceleratorType and not _TOPOLOGY.fullmatch(text):
            return None, None  # a text that is no amount either
        amount = Topology(text)
        slices = _count(f"slices of {_shown(kind)}", number) if star else None
    if not isinstance(amount, Topology):
        return None, None
    if kind not in AcceleratorType:
        raise BadValueError(
            f"{_shown(kind)}={str(amount)!r}: only accelerators have topologies; write a number"
        )
    return amount, slices


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(kind: ResourceType, amount: Any) -> float:
    """An amount as a number that is one."""
    said = f"{_shown(kind)}={amount!r}"
    if isinstance(amount, bool) or not isinstance(amount, (int, float, str)):
        raise BadValueError(f"{said} is no amount; write a number" + _or_topology(kind))
    if isinstance(amount, str) and not _is_number(amount):
        raise BadValueError(f"{said} is no amount; write a number, with a unit like 4 * xm.GiB")
    number = float(amount)
    if not 0 <= number < math.inf:
        raise BadValueError(f"{said} is no amount; it must be finite and not below 0")
    return number


def _or_topology(kind: ResourceType) -> str:
    return " or a topology such as '2x2'" if kind in AcceleratorType else ""


def _count(name: str, number: Any) -> int | None:
    """A whole number from 1 on, or None."""
    if number is None:
        return None
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    if not is_number or not 1 <= number < math.inf or number != int(number):
        raise BadValueError(f"{name} must be a whole number from 1 on, not {number!r}")
    return int(number)


def _once(name: str, first: Any, second: Any) -> Any:
    """The one of two that is given."""
    if first is not None and second is not None and first != second:
        raise BadValueError(f"{name} is given twice: {first} and {second}; leave one out")
    return second if first is None else first


def _member(kind: type[Enum], value: Any, name: str) -> Any:
    """A member of an enum, or None."""
    if value is None or isinstance(value, kind):
        return value
    names = list(kind.__members__)
    raise BadValueError(
        f"{name} must be one of {', '.join(f'xm.{kind.__name__}.{known}' for known in names)}, not {value!r}"
        + (suggestion(value.upper(), names) if isinstance(value, str) else "")
    )


def _shown(kind: ResourceType | str) -> str:
    return kind if isinstance(kind, str) else kind.name.lower()


def _plain(amount: ResourceQuantity) -> str:
    return repr(str(amount)) if isinstance(amount, Topology) else f"{amount:.15g}"
