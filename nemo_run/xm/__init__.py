"""XManager's vocabulary: what launch scripts say. It does nothing by itself; `xm_local` carries it out."""

from typing import TYPE_CHECKING

from nemo_run.xm import core, job_operators, resources, utils
from nemo_run.xm.arguments import SequentialArgs, UserArgs, merge_args
from nemo_run.xm.core import (
    AuxiliaryUnit,
    AuxiliaryUnitJob,
    AuxiliaryUnitRole,
    ContextAnnotations,
    DebugInterrupt,
    Experiment,
    ExperimentUnit,
    ExperimentUnitError,
    ExperimentUnitFailedError,
    ExperimentUnitNotCompletedError,
    ExperimentUnitRole,
    ExperimentUnitStatus,
    Importance,
    LaunchedJob,
    MetadataContext,
    NotFoundError,
    Package,
    ReloadError,
    WorkUnit,
    WorkUnitRole,
    framework_label,
)
from nemo_run.xm.errors import InvalidTpuTopologyError
from nemo_run.xm.executables import (
    BazelBinary,
    BazelContainer,
    Binary,
    BinaryDependency,
    CommandList,
    Container,
    Dockerfile,
    ExecutableSpec,
    ModuleName,
    PythonContainer,
)
from nemo_run.xm.jobs import (
    Constraint,
    Executable,
    Executor,
    ExecutorSpec,
    Job,
    JobConfig,
    JobGeneratorType,
    JobGroup,
    JobType,
    Packageable,
    get_args_for_all_jobs,
)
from nemo_run.xm.packageables import (
    bazel_binary,
    bazel_container,
    binary,
    container,
    dockerfile_container,
    python_container,
)
from nemo_run.xm.resources import (
    AcceleratorType,
    Architecture,
    GpuType,
    JobRequirements,
    ResourceDict,
    ResourceQuantity,
    ResourceType,
    ServiceTier,
    Topology,
    TpuType,
)
from nemo_run.xm.units import GB, KB, MB, PB, TB, GiB, KiB, MiB, PiB, TiB, vCPU
from nemo_run.xm.utils import ShellSafeArg, run_in_asyncio_loop

if TYPE_CHECKING:
    from nemo_run.xm.completion import WorkUnitCompletedAwaitable

__all__ = [
    "GB", "KB", "MB", "PB", "TB", "AcceleratorType", "Architecture", "AuxiliaryUnit", "AuxiliaryUnitJob",
    "AuxiliaryUnitRole", "BazelBinary", "BazelContainer", "Binary", "BinaryDependency", "CommandList",
    "Constraint", "Container", "ContextAnnotations", "DebugInterrupt", "Dockerfile", "Executable",
    "ExecutableSpec", "Executor", "ExecutorSpec", "Experiment", "ExperimentUnit", "ExperimentUnitError",
    "ExperimentUnitFailedError", "ExperimentUnitNotCompletedError", "ExperimentUnitRole",
    "ExperimentUnitStatus", "GiB", "GpuType", "Importance", "InvalidTpuTopologyError", "Job", "JobConfig",
    "JobGeneratorType", "JobGroup", "JobRequirements", "JobType", "KiB", "LaunchedJob", "MetadataContext",
    "MiB", "ModuleName", "NotFoundError", "Package", "Packageable", "PiB", "PythonContainer", "ReloadError",
    "ResourceDict", "ResourceQuantity", "ResourceType", "SequentialArgs", "ServiceTier", "ShellSafeArg",
    "TiB", "Topology", "TpuType", "UserArgs", "WorkUnit", "WorkUnitCompletedAwaitable", "WorkUnitRole",
    "bazel_binary", "bazel_container", "binary", "container", "core", "dockerfile_container",
    "framework_label", "get_args_for_all_jobs", "job_operators", "merge_args", "python_container",
    "resources", "run_in_asyncio_loop", "utils", "vCPU",
]  # fmt: skip


def __getattr__(name: str) -> object:
    # The one name that needs asyncio.
    if name == "WorkUnitCompletedAwaitable":
        from nemo_run.xm.completion import WorkUnitCompletedAwaitable

        return WorkUnitCompletedAwaitable
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
