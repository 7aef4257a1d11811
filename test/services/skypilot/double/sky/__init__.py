"""A double of SkyPilot for tests: its cloud is a folder, its nodes are processes on this machine.

What it answers has the shape of what SkyPilot 0.14.1 answered to the same questions. `$SKY_DOUBLE` is the
folder; in it `fates.json` says what goes wrong, and `calls` holds every question in its order.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.14.1"


class Cloud:
    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name


class Resources:
    def __init__(self, given: dict[str, Any]) -> None:
        infra = given.get("cloud") or given.get("infra", "").partition("/")[0]
        self.cloud = Cloud(infra) if infra else None


class Task:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        resources = config.get("resources", {})
        self.resources = [Resources({**resources, **one}) for one in resources.get("any_of", [{}])]

    @classmethod
    def from_yaml_config(cls, config: dict[str, Any], secrets_overrides: Any = None) -> Task:
        missing = [name for name, value in config.get("secrets", {}).items() if value is None]
        given = dict(secrets_overrides or [])
        if set(missing) - set(given):
            raise ValueError(f"Secret {missing[0]!r} is None")
        made = cls({**config, "secrets": given})
        config.clear()  # as SkyPilot, which takes things out as it reads them
        return made


class Dag:
    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def __enter__(self) -> Dag:
        return self

    def __exit__(self, *what: object) -> None:
        pass

    def add(self, task: Task) -> None:
        self.tasks.append(task)


from sky import client, jobs, server  # noqa: E402, F401  # as SkyPilot's own attributes
