"""What packaging is told of where an executable will run, one class per executor."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_run.xm.jobs import ExecutorSpec


@dataclass(frozen=True)
class LocalSpec(ExecutorSpec):
    """On this machine: a program as a process, an image on the Docker Engine."""


@dataclass(frozen=True)
class SlurmSpec(ExecutorSpec):
    """On a Slurm cluster: a program there, an image from a registry."""

    #: The name under which an image that is made here is pushed; None for one in the configured repository.
    push_image_tag: str | None = None


@dataclass(frozen=True)
class VertexSpec(ExecutorSpec):
    """On Vertex AI: an image from a registry."""

    #: The name under which an image that is made here is pushed; None for one in the configured repository.
    push_image_tag: str | None = None


@dataclass(frozen=True)
class KubernetesSpec(ExecutorSpec):
    """On a Kubernetes cluster: an image from a registry."""

    #: The name under which an image that is made here is pushed; None for one in the configured repository.
    push_image_tag: str | None = None


@dataclass(frozen=True)
class SkypilotSpec(ExecutorSpec):
    """On SkyPilot's clouds: an image from a registry."""

    #: The name under which an image that is made here is pushed; None for one in the configured repository.
    push_image_tag: str | None = None
