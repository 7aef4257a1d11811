"""Every exception nemo_run raises; each message says what happened, to what, and the next step.

NemoRunError
├─ ConfigError                what you wrote; raised before anything is sent
│  ├─ SerializationError      .path
│  ├─ OverrideError           .argument .choices
│  └─ UnsupportedError        .executor .capability
├─ MissingDependencyError     (also ImportError) the pip line that mends it
├─ StoreError                 a record or folder under NEMORUN_HOME that cannot be read or written
├─ PackagingError
├─ TunnelError                .ran .result
│  ├─ AuthenticationError
│  └─ HostKeyError
├─ SubmitError                .output
├─ ExecutionError             .record
│  ├─ JobFailedError          .exit_code .log_tail
│  ├─ JobTimeoutError
│  ├─ JobCancelledError
│  └─ JobLostError
└─ NotFoundError              (also KeyError) .known
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class NemoRunError(Exception):
    """The root: `except NemoRunError` catches whatever nemo_run itself raises."""


class ConfigError(NemoRunError):
    """What was written cannot work; raised before anything is started or sent."""


class SerializationError(ConfigError):
    """A value in a task cannot be written down; `path` says where (`trainer.callbacks[0]`)."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class OverrideError(ConfigError):
    """A command-line override names nothing or has a value of the wrong type."""

    def __init__(self, message: str, *, argument: str = "", choices: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.argument = argument
        self.choices = tuple(choices)


class UnsupportedError(ConfigError):
    """An executor was asked for something its backend cannot do."""

    def __init__(self, message: str, *, executor: str = "", capability: str = "") -> None:
        super().__init__(message)
        self.executor = executor
        self.capability = capability


class MissingDependencyError(NemoRunError, ImportError):
    """A library that is not installed is needed; the message holds the pip line that mends it."""


class StoreError(NemoRunError):
    """A folder or record under NEMORUN_HOME cannot be read or written."""


class PackagingError(NemoRunError):
    """The code for a job could not be gathered."""


class TunnelError(NemoRunError):
    """A machine could not be reached, or a command there failed.

    `ran` says whether the command was carried out: False if it certainly was not, True if it was and failed
    (then `result` holds what it printed), None where nobody can say because the connection was cut.
    """

    def __init__(self, message: str, *, ran: bool | None = False, result: Any = None) -> None:
        super().__init__(message)
        self.ran = ran
        self.result = result


class AuthenticationError(TunnelError):
    """A remote machine refused who we are."""


class HostKeyError(TunnelError):
    """A remote machine's key is unknown or has changed."""


class SubmitError(NemoRunError):
    """A backend refused a job; `output` holds its own words."""

    def __init__(self, message: str, *, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class ExecutionError(NemoRunError):
    """A job that ran did not succeed; `record` is its job record."""

    def __init__(self, message: str, *, record: Any = None) -> None:
        super().__init__(message)
        self.record = record


class JobFailedError(ExecutionError):
    """A job ended with an error of its own; `log_tail` holds its last lines."""

    def __init__(
        self, message: str, *, record: Any = None, exit_code: int | None = None, log_tail: str = ""
    ) -> None:
        super().__init__(message, record=record)
        self.exit_code = exit_code
        self.log_tail = log_tail


class JobTimeoutError(ExecutionError):
    """A job was ended because it ran longer than its executor's `timeout`."""


class JobCancelledError(ExecutionError):
    """A job was cancelled, by somebody or because a job it depends on did not succeed."""


class JobLostError(ExecutionError):
    """Nobody can say any more what became of a job."""


class NotFoundError(NemoRunError, KeyError):
    """Nothing goes by that name; `known` holds the names that do."""

    def __init__(self, what: str, name: str, known: Iterable[str] = ()) -> None:
        self.known = tuple(known)
        super().__init__(f"no {what} {name!r}{suggestion(name, self.known)}")

    def __str__(self) -> str:
        # KeyError would show the repr of its argument.
        return str(self.args[0])


def suggestion(name: str, known: Sequence[str]) -> str:
    """The `; did you mean 'train'?` that ends a not-found message, or a list of what there is."""
    import difflib

    if near := difflib.get_close_matches(name, known, n=3, cutoff=0.5):
        return "; did you mean " + " or ".join(map(repr, near)) + "?"
    if known:
        listed = ", ".join(map(repr, known[:8]))
        return f"; there are {listed}" + (", …" if len(known) > 8 else "")
    return ""
