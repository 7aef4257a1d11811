"""What a wrong value in a launch script raises: ours, and Python's own kind of error as well."""

from __future__ import annotations

from nemo_run.errors import ConfigError


class BadValueError(ConfigError, ValueError):
    """A value in a launch script cannot work."""


class BadTypeError(ConfigError, TypeError):
    """A value in a launch script is of the wrong kind."""


class InvalidTpuTopologyError(BadValueError):
    """A text is no topology such as `2x2x4`."""


class StateError(ConfigError, RuntimeError):
    """Something was asked for at a time when it cannot be had."""
