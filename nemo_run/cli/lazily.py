"""Commands whose function is not imported yet: what is said of it is recorded, and applied when it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_run.cli.entrypoints import Entrypoint, RunContext, entrypoint_of
from nemo_run.errors import ConfigError

_OPERATORS = {
    "__iadd__": "+=", "__isub__": "-=", "__imul__": "*=", "__itruediv__": "/=",
    "__ior__": "|=", "__iand__": "&=",
}  # fmt: skip


class LazyEntrypoint:
    """A task of a function that is imported when the task is needed; changes are recorded until then.

    `task.model.size = 3` and `task.lr *= 2` are such changes; `resolve()` is the task, a Partial.

    Args:
        target: the function, its dotted name (`package.module.train`), or a command (`llm pretrain`).
        factory: what makes the task, as for `--factory` (default: the function itself).
        yaml: a file, or what it holds, as for `--yaml` (default: none).
        overwrites: what a command line would say: `["model.size=3"]` (default: nothing).
    """

    def __init__(
        self,
        target: Callable[..., Any] | str,
        factory: str | None = None,
        yaml: str | Path | Mapping[str, Any] | None = None,
        overwrites: Sequence[str] | None = None,
    ) -> None:
        vars(self).update(_target=target, _factory=factory, _yaml=yaml, _changes=list(overwrites or ()))

    @property
    def is_lazy(self) -> bool:
        """Whether the function is known by its name alone."""
        return isinstance(self._target, str)

    def resolve(self, ctx: RunContext | None = None) -> Any:
        """The task with all changes applied, a Partial.

        `ctx` (default: none) gets what was said by `run.NAME=VALUE`.

        Raises:
            ConfigError: the function cannot be found.
            OverrideError: a change does not fit.
        """
        from nemo_run.cli.request import make_request

        request = make_request(
            find_entrypoint(self._target),
            factory=self._factory,
            files=[] if self._yaml is None else [_data(self._yaml)],
            overrides=[c if isinstance(c, str) else _recorded(*c) for c in self._changes],
        )
        if ctx is not None:
            said = request.settings.__arguments__
            vars(ctx).update({name: value for name, value in vars(request.context()).items() if name in said})
        return request.task

    def __as_task__(self) -> Any:
        return self.resolve()

    def __getattr__(self, name: str) -> Any:
        name = _name(name)
        return _Place(self._changes, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _record(self._changes, _name(name), value)

    def __repr__(self) -> str:
        target = self._target if isinstance(self._target, str) else self._target.__qualname__
        return f"<LazyEntrypoint {target}: {len(self._changes)} changes>"


class _Place:
    """Something within a task that is not there yet; what is done to it is recorded."""

    _changes: list[Any]
    _key: str

    def __init__(self, changes: list[Any], key: str) -> None:
        vars(self).update(_changes=changes, _key=key)

    def __getattr__(self, name: str) -> _Place:
        name = _name(name)
        return _Place(self._changes, f"{self._key}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        _record(self._changes, f"{self._key}.{_name(name)}", value)

    def __getitem__(self, at: int | str) -> _Place:
        return _Place(self._changes, f"{self._key}[{at!r}]")

    def __setitem__(self, at: int | str, value: Any) -> None:
        _record(self._changes, f"{self._key}[{at!r}]", value)


class _Operation:
    """What `place += operand` makes, until it is stored where the place was."""

    def __init__(self, sign: str, operand: Any) -> None:
        self.sign, self.operand = sign, operand


for _method, _sign in _OPERATORS.items():
    setattr(_Place, _method, lambda self, operand, sign=_sign: _Operation(sign, operand))


def _name(name: str) -> str:
    # Protocols (copy, pickle, inspect, notebooks) ask for dunders and must see that there are none.
    if name.startswith("__"):
        raise AttributeError(name)
    return name


def _record(changes: list[Any], key: str, value: Any) -> None:
    is_operation = isinstance(value, _Operation)
    changes.append((key, value.sign, value.operand) if is_operation else (key, "=", value))


def _recorded(key: str, sign: str, operand: Any) -> Any:
    from nemo_run.cli.operators import operated
    from nemo_run.cli.request import Recorded

    def change(value: Any, kind: Any, reader: Any) -> Any:
        is_one = not isinstance(operand, (list, tuple, set, frozenset, dict))
        return operand if sign == "=" else operated(sign, value, kind, lambda _: operand, is_one)

    return Recorded(key, change)


def _data(yaml: str | Path | Mapping[str, Any]) -> str | Mapping[str, Any]:
    """A file's name, or what such a file holds."""
    if isinstance(yaml, str) and "\n" in yaml:
        from nemo_run.cli.formats import parse_data

        found: Mapping[str, Any] = parse_data(yaml, "yaml")
        return found
    return yaml if isinstance(yaml, Mapping) else str(yaml)


def find_entrypoint(target: Callable[..., Any] | str) -> Entrypoint:
    """The command that a function, a dotted name, or `NAMESPACE NAME` stands for.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(target, str):
        return entrypoint_of(target)
    words = target.split()
    if len(words) > 1:
        from nemo_run.cli.namespaces import command_of

        return command_of(*words[-2:])
    from nemo_run.core.runner import resolve

    try:
        return entrypoint_of(resolve(target))
    except (ImportError, AttributeError) as exc:
        raise ConfigError(f"cannot find {target!r}: {exc}") from exc


# --- in a job -------------------------------------------------------------------------------------------


def call_recorded(
    target: str,
    factory: str | None = None,
    files: Iterable[Mapping[str, Any]] = (),
    overrides: Iterable[str] = (),
) -> Any:
    """Import a command where its job runs, and call it with what the command line said; returns its value.

    Raises:
        ConfigError: the command cannot be found, or is one that launches experiments.
        OverrideError: something on the command line does not fit.
    """
    import fiddle

    from nemo_run.cli.request import make_request

    entry = find_entrypoint(target)
    if entry.context:
        raise ConfigError(f"{target!r} launches experiments, which a job cannot; run it without --lazy")
    return fiddle.build(make_request(entry, factory=factory, files=files, overrides=overrides).task)()


def recording(namespace: str, name: str, given: Mapping[str, Any]) -> tuple[Entrypoint, list[str]]:
    """A command that has a job do what the command line says, and what is left of its overrides.

    Raises:
        OverrideError: an override is none, or a file cannot be read.
    """
    from nemo_run.cli.export import read_data
    from nemo_run.cli.syntax import parse_override
    from nemo_run.config import Partial

    keys = {text: parse_override(text).key for text in given.get("overrides", ())}
    ours = [text for text in given.get("overrides", ()) if keys[text].startswith("run.")]
    task = Partial(
        call_recorded,
        target=f"{namespace} {name}",
        factory=given.get("factory"),
        files=[read_data(file) for file in given.get("files", ())],
        overrides=[text for text in given.get("overrides", ()) if text not in ours],
    )
    return Entrypoint(fn=call_recorded, name=name, namespace=namespace, default_factory=lambda: task), ours
