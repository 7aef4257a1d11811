"""What a task is: Config, Partial, Script, autoconvert, and the small tools to handle them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import operator
import os
import re
import shlex
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, Union

import fiddle as fdl
from fiddle import daglish

from nemo_run.drawing import ConfigDiff, draw, graphviz, name_of, svg
from nemo_run.errors import ConfigError, suggestion
from nemo_run.home import get_nemorun_home, set_nemorun_home
from nemo_run.lazy import LazyTarget
from nemo_run.lookup import SetValueError, from_dict, get_type_namespace, import_executor, set_value
from nemo_run.secret import Secret

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "RUNDIR_NAME", "ArgumentError", "BindError", "Config", "ConfigDiff", "ConfigurableMixin",
    "OptionalDefaultConfig", "OptionalDefaultPartial", "Partial", "Script", "SetValueError", "autoconvert",
    "check_arguments", "configured", "from_dict", "get_nemorun_home", "get_type_namespace",
    "import_executor", "init_arguments", "set_nemorun_home", "set_value",
]  # fmt: skip

#: The folder that holds a job's files, as the task sees it.
RUNDIR_NAME = "nemo_run"

T = TypeVar("T")


class BindError(ConfigError, TypeError):
    """Arguments do not fit the function or class they are for."""


class ArgumentError(ConfigError, AttributeError):
    """A config was given an argument that its function or class does not take."""


# --- Config and Partial ---------------------------------------------------------------------------------


class _Node(fdl.Buildable[T], Generic[T]):  # type: ignore[misc]  # fiddle has no types
    """What Config and Partial have beyond fiddle's."""

    def __init__(
        self,
        fn_or_cls: Callable[..., T] | Mapping[str, Any],
        /,
        *args: Any,
        bind_args: bool = True,
        **kwargs: Any,
    ) -> None:
        """Describe a call of `fn_or_cls`.

        With `bind_args=False` (default: True) keyword arguments are kept as they are: not held against the
        signature, and no `Annotated[Optional[T], Config[T]]` parameter is filled in.

        Raises:
            BindError: an argument does not fit the signature, or there is none, or this is a config already.
        """
        # dict[str, int](a=1) is dict(a=1): type arguments are for readers.
        target: Any = typing.get_origin(fn_or_cls) or fn_or_cls
        if isinstance(target, Mapping):
            target, kwargs = dict, {**target, **kwargs}
        if isinstance(target, fdl.Buildable):
            raise BindError(f"{name_of(target)} is configured already; clone() it and set its attributes")
        args, kwargs = configured((args, kwargs))
        try:
            super().__init__(target, *args, **(kwargs if bind_args else {}))
        except (TypeError, ValueError) as exc:
            raise BindError(_bind_message(target, kwargs, exc)) from exc
        for name, value in (_optional_defaults(target, self) if bind_args else kwargs).items():
            self._arguments_set_value(name, value)

    def _arguments_set_value(self, key: int | str, value: Any) -> None:
        # fiddle's one door for new values: from the constructor, attributes and indices.
        super()._arguments_set_value(key, configured(value))

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except AttributeError as exc:
            accepted = self.__signature_info__.valid_param_names
            if name in self.__signature_info__.parameters:
                raise
            message = f"{name_of(self)} takes no argument {name!r}{suggestion(name, accepted)}"
            raise ArgumentError(message) from exc

    def clone(self) -> Self:
        """A deep copy; what was shared inside stays shared inside."""
        return copy.deepcopy(self)

    def walk(self, /, **fns: Callable[[Any], Any]) -> Self:
        """Set arguments wherever they occur: `walk(lr=lambda cfg: cfg.lr * 2)`, in place; returns self.

        Each function gets the config that has the argument, set or by default.
        """
        for node in _nodes(self):
            for name, fn in fns.items():
                if _has(node, name):
                    setattr(node, name, fn(node))
        return self

    def broadcast(self, /, **values: Any) -> Self:
        """Set an argument on every config, however deep, that has it, in place; returns self."""
        return self.walk(**{name: functools.partial(_always, value) for name, value in values.items()})

    def diff(self, old: Any, trim: bool = True) -> ConfigDiff:
        """What differs from `old`: printable as text, drawn in a notebook.

        With `trim=False` (default: True) what is the same in both is shown too.
        """
        return ConfigDiff(old=configured(old), new=self, trim=trim)

    def visualize(self) -> Any:
        """The config as a `graphviz.Graph`.

        Raises:
            MissingDependencyError: the graphviz package is not installed.
        """
        return graphviz().render(self)

    def save_config_img(self, path: str | Path) -> Path:
        """Draw the config into a file whose ending says the format (default: `.png`); returns its path.

        Raises:
            MissingDependencyError: Graphviz is not installed.
        """
        path = Path(path)
        path = path if path.suffix else path.with_suffix(".png")
        path.write_bytes(draw(self.visualize(), path.suffix[1:]))
        return path

    def _repr_svg_(self) -> str | None:
        return svg(self.visualize)


class Config(_Node[T], fdl.Config[T]):  # type: ignore[misc]
    """A call to be made later: `Config(Model, lr=0.1)` builds `Model(lr=0.1)`; arguments are attributes."""


class Partial(_Node[T], fdl.Partial[T]):  # type: ignore[misc]
    """A function with some of its arguments, to be called later: it builds a `functools.partial`."""


#: A parameter so annotated gets a default Config (Partial) of T where it is not given.
OptionalDefaultConfig = Annotated[T | None, Config[T]]
OptionalDefaultPartial = Annotated[T | None, Partial[T]]


def configured(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """The value with each dataclass instance in it as a Config; the very same object where there is none."""
    memo = {} if memo is None else memo
    if id(value) not in memo:
        memo[id(value)] = value  # for a list that holds itself
        memo[id(value)] = _configured(value, memo)
    return memo[id(value)]


def _configured(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, (list, tuple, dict)):
        items = list(value.values()) if isinstance(value, dict) else value
        new = [configured(item, memo) for item in items]
        return value if all(map(operator.is_, items, new)) else _refilled(value, new)
    arguments = init_arguments(value)
    if arguments is None or isinstance(value, (Secret, LazyTarget)):
        return value
    arguments = {name: configured(item, memo) for name, item in arguments.items()}
    return Config(type(value), bind_args=False, **arguments)


def _refilled(container: Any, items: list[Any]) -> Any:
    if isinstance(container, dict):
        filled = copy.copy(container)
        filled.update(zip(container, items, strict=True))
        return filled
    return type(container)(*items) if hasattr(container, "_fields") else type(container)(items)


def init_arguments(value: Any) -> dict[str, Any] | None:
    """The arguments that make a dataclass instance again, less those that are the class's own defaults.

    None for anything else, and where the class has a constructor of its own.
    """
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        return None
    fields = [f for f in dataclasses.fields(value) if f.init]
    if _parameters(type(value).__init__) != _init_order(fields):
        return None
    arguments = {f.name: getattr(value, f.name) for f in fields}
    return {f.name: arguments[f.name] for f in fields if arguments[f.name] is not f.default}


@functools.lru_cache(1000)
def _parameters(method: Any) -> list[str]:
    return list(inspect.signature(method).parameters)[1:]


def check_arguments(task: Any) -> None:
    """Refuse a task that could not be called: an argument without a default is not given.

    Raises:
        ConfigError: that of the task itself, or of a Config in it.
    """
    for node, path in daglish.iterate(task):
        if not isinstance(node, fdl.Config) and node is not task:
            continue  # a Partial inside is given the rest where it is called
        if isinstance(node, fdl.Buildable) and (problem := _unbound(node)):
            where = f" (at {daglish.path_str(path).lstrip('.')})" if path else ""
            raise ConfigError(f"{name_of(node)} cannot be called{where}: {problem}")


def _unbound(node: Any) -> str | None:
    try:
        signature = inspect.signature(node.__fn_or_cls__)
    except (TypeError, ValueError):
        return None
    args, kwargs = node.__signature_info__.transform_to_args_kwargs(fdl.ordered_arguments(node))
    try:
        signature.bind(*args, **kwargs)
    except TypeError as exc:
        return str(exc)
    return None


def _init_order(fields: Sequence[dataclasses.Field[Any]]) -> list[str]:
    return [f.name for f in sorted(fields, key=operator.attrgetter("kw_only"))]


def _optional_defaults(target: Any, cfg: Any) -> dict[str, Any]:
    """A fresh Config or Partial for each parameter that asks for one and is not given."""
    from fiddle.signatures import get_type_hints

    hints = get_type_hints(target, include_extras=True)
    not_given = [name for name in cfg.__signature_info__.valid_param_names if name not in cfg.__arguments__]
    wanted = {name: _wanted_default(hints.get(name)) for name in not_given}
    return {name: make() for name, make in wanted.items() if make}


def _wanted_default(hint: Any) -> Callable[[], Any] | None:
    # Before Python 3.11 a default of None wraps the whole annotation in another Optional.
    for part in typing.get_args(hint) if typing.get_origin(hint) in (Union, UnionType) else (hint,):
        if typing.get_origin(part) is not Annotated:
            continue
        declared, *notes = typing.get_args(part)
        for note in notes:
            kind = typing.get_origin(note)
            if isinstance(kind, type) and issubclass(kind, _Node):
                return functools.partial(kind, _pointed_at(declared, *typing.get_args(note)))
    return None


def _pointed_at(declared: Any, noted: Any) -> Any:
    """The T of `Annotated[Optional[T], Config[T]]`; an alias leaves only a TypeVar in `Config[T]`."""
    if not isinstance(noted, TypeVar):
        return noted
    return next((arg for arg in typing.get_args(declared) if arg is not type(None)), declared)


def _nodes(cfg: Any) -> list[Any]:
    return [value for value, _ in daglish.iterate(cfg) if isinstance(value, fdl.Buildable)]


def _has(node: Any, name: str) -> bool:
    """Whether an argument is set, or has a default and can be set."""
    parameter = node.__signature_info__.parameters.get(name)
    by_name = parameter is not None and parameter.kind in (
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )
    return name in node.__arguments__ or (by_name and parameter.default is not parameter.empty)


def _always(value: Any, _: Any) -> Any:
    return value


def _bind_message(target: Any, kwargs: Mapping[str, Any], exc: Exception) -> str:
    start = f"Cannot bind arguments to {name_of(target)}: "
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return f"{start}{exc}"
    variadic = {p.kind: p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    accepted = [p.name for p in parameters if p.kind not in variadic]
    accepts = f"It accepts {', '.join(accepted) or 'no arguments'}."
    unexpected = [name for name in kwargs if name not in accepted]
    if not unexpected or inspect.Parameter.VAR_KEYWORD in variadic:
        return f"{start}{exc.__cause__ or exc}. {accepts}"
    hint = suggestion(unexpected[0], accepted)
    return f"{start}unexpected {unexpected[0]!r}{hint if hint.endswith('?') else '.'} {accepts}"


# --- scripts and other dataclasses ----------------------------------------------------------------------


class ConfigurableMixin:
    """For dataclasses: a config of their constructor's arguments."""

    def to_config(self) -> Config[Self]:
        """A Config that builds an equal object.

        Raises:
            ConfigError: this is no dataclass, or has a constructor of its own.
        """
        cfg = configured(self)
        if cfg is self:
            name = type(self).__name__
            raise ConfigError(f"{name} has a constructor of its own; write run.Config({name}, …)")
        return typing.cast("Config[Self]", cfg)

    def diff(self, old: ConfigurableMixin, trim: bool = True) -> ConfigDiff:
        """What differs from another; with `trim=False` (default: True) what is the same is shown too."""
        return self.to_config().diff(old.to_config(), trim=trim)

    def _repr_svg_(self) -> str | None:
        return self.to_config()._repr_svg_() if configured(self) is not self else None


@dataclass
class Script(ConfigurableMixin):
    """A program to run as a task: a file in the packaged code, or text given here.

    With `entrypoint=""` and nothing to run it is the ENTRYPOINT of the image that the executor names, with
    `args` in place of its CMD, and in the image's own folder and as its own user where the executor says
    nothing else.

    Raises:
        ConfigError: there is neither path nor inline and still an entrypoint, `args` is no list or holds a
            Secret, the entrypoint is no command, or `m` is set and it is not Python.
    """

    #: The file to run, relative to the packaged code; with `m`, the module.
    path: str = ""
    #: The program's text; it wins over `path`, and `args` are not for it.
    inline: str = ""
    #: Each arrives as one word, byte for byte; a `run.Expand` is expanded on the node.
    args: list[Any] = field(default_factory=list)
    #: Added to the executor's `env_vars`; values may be `run.Secret` or `run.Expand` too.
    env: dict[str, Any] = field(default_factory=dict)
    #: What runs it; `python` is the executor's interpreter, "" starts `path` itself.
    entrypoint: str = "bash"
    #: Run `path` as a module (`python -m`).
    m: bool = False
    #: Notes for executors: `use_with_ray_cluster` (True, or fields of `run.SlurmRay`) runs it on Ray.
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.path or self.inline or self.is_of_image):
            raise ConfigError(
                'a Script needs a path or an inline program, or entrypoint="" to run an image\'s own'
            )
        self.path = os.fspath(self.path)
        if "\0" in self.inline:
            raise ConfigError("a Script's inline program holds a NUL, which no shell takes")
        if not isinstance(self.args, (list, tuple)):
            raise ConfigError(f"a Script's args are a list of words, not {self.args!r}")
        if any(isinstance(arg, Secret) for arg in self.args):
            raise ConfigError(
                "a Script's args are seen by everybody who lists processes; hand a Secret over in its env"
            )
        words = self._entrypoint()
        if self.m and not any(Path(word).name.startswith("python") for word in words):
            raise ConfigError(f"m=True needs entrypoint='python', not {self.entrypoint!r}")

    @property
    def is_of_image(self) -> bool:
        """Whether what runs is the ENTRYPOINT of the executor's image."""
        return not (self.path or self.inline or self.entrypoint)

    def get_name(self) -> str:
        """A name for people: the file's, or the first letters of an inline program."""
        if self.is_of_image:
            return "image"
        if not self.inline:
            return Path(self.path).name
        return re.sub(r"[^A-Za-z0-9_-]+", "_", self.inline.strip())[:10].strip("_") or "script"

    def to_command(self, python: str, inline_path: str | None = None) -> list[str]:
        """The words that run it, `Expand`s among them; `python` is the interpreter to use.

        An inline program is the file `inline_path`, or follows `-c` where that is None (the default). An
        image's ENTRYPOINT is the empty word.
        """
        words = self._entrypoint()
        if words and words[0] in ("python", "python3"):
            words[0] = python
        if self.inline:
            return words + ([inline_path] if inline_path else ["-c", self.inline])
        args = [arg if isinstance(arg, str) else str(arg) for arg in self.args]
        return [*words, *(["-m"] if self.m else []), self.path, *args]

    def _entrypoint(self) -> list[str]:
        try:
            return shlex.split(self.entrypoint or "")
        except ValueError as exc:
            raise ConfigError(f"a Script's entrypoint {self.entrypoint!r} is no command: {exc}") from exc


# --- autoconvert ----------------------------------------------------------------------------------------


def autoconvert(fn: Callable[..., Any] | None = None, *, partial: bool = False) -> Any:
    """Make a function that builds objects return Configs of them instead.

    With `partial=True` (default: False) it returns Partials. Attribute `wrapped` is the function itself.

    Raises:
        ConfigError: the function's source is not to be found.
        SyntaxError: the function branches or loops.
    """
    if fn is None:
        return functools.partial(autoconvert, partial=partial)
    from fiddle.experimental import auto_config

    types = auto_config.ConfigTypes(config_cls=Config, partial_cls=Partial)
    try:
        auto = auto_config.auto_config(
            fn, experimental_config_types=types, experimental_exemption_policy=_is_called_for_real
        )
    except OSError as exc:
        raise ConfigError(f"autoconvert finds no source for {name_of(fn)}; define it in a file") from exc

    @functools.wraps(fn)
    def convert(*args: Any, **kwargs: Any) -> Any:
        made = auto.as_buildable(*args, **kwargs)
        return _as_partial(made) if partial else made

    convert.__dict__.update(wrapped=fn, __auto_config__=True)
    return convert


def _is_called_for_real(fn: Any) -> bool:
    from fiddle.experimental import auto_config_policy

    makes_config = isinstance(fn, type) and issubclass(fn, fdl.Buildable)
    return makes_config or getattr(fn, "__auto_config__", False) is True or auto_config_policy.latest(fn)


def _as_partial(made: Any) -> Any:
    if isinstance(made, (list, tuple)):
        return type(made)(map(_as_partial, made))
    # Not fdl.cast, which warns about classes that are not its own.
    return Partial.__unflatten__(*made.__flatten__()) if isinstance(made, fdl.Config) else made
