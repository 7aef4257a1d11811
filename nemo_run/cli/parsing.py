"""Texts read where names may stand for factories, and whole command lines as configs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nemo_run.cli.factories import REGISTRY, Factory, Registry
from nemo_run.cli.kinds import takes_text
from nemo_run.cli.syntax import call_arguments, parse_call, shortened
from nemo_run.cli.values import Reader
from nemo_run.errors import OverrideError


@dataclass(frozen=True)
class FactoryReader(Reader):
    """Reads values where names may stand for factories."""

    registry: Registry
    #: The function or class, and the argument of it, that is being read.
    owner: Any = None
    argument: str = ""

    def at(self, owner: Any, argument: str) -> FactoryReader:
        return FactoryReader(self.registry, owner, argument)

    def choices(self, kind: Any) -> list[str]:
        return sorted(self._fitting(kind))

    def default(self, kind: Any) -> list[Any]:
        defaults = [found for found in self._fitting(kind).values() if found.is_default]
        return [self._call(defaults[-1], None)] if defaults else []

    def made(self, text: str, kind: Any) -> list[Any]:
        call = parse_call(text)
        found = self._fitting(kind).get(call.name) if call else None
        return [self._call(found, call.arguments)] if call and found else []

    def _fitting(self, kind: Any) -> dict[str, Factory]:
        # A text is never a name to call.
        return {} if takes_text(kind) else self.registry.fitting(kind, self.owner, self.argument)

    def _call(self, found: Factory, arguments: str | None) -> Any:
        """What a factory makes.

        Raises:
            OverrideError: an argument does not fit, one is missing, or the factory failed.
        """
        from nemo_run.config import configured

        bound = self.bound(found.fn, *call_arguments(arguments or ""))
        try:
            bound.signature.bind(*bound.args, **bound.kwargs)
            return configured(found.fn(*bound.args, **bound.kwargs))
        except OverrideError:
            raise
        except Exception as exc:
            place = f"{found.name} ({found.where})" if found.where else found.name
            problem = f"factory {place} failed: {type(exc).__name__}: {shortened(str(exc), 300)[1:-1]}"
            raise OverrideError(problem) from exc


def parse_partial(fn: Callable[..., Any], *args: str) -> Any:
    """A Partial of a function with overrides such as `"model.size=3"` applied.

    Raises:
        OverrideError: one of them does not fit.
    """
    from nemo_run.config import Partial

    return parse_cli_args(fn, args, Partial)


def parse_config(fn: Callable[..., Any], *args: str) -> Any:
    """A Config of a function or class with overrides applied; raises like `parse_partial`."""
    from nemo_run.config import Config

    return parse_cli_args(fn, args, Config)


def parse_cli_args(fn: Any, args: Iterable[str], output_type: Any = None) -> Any:
    """What `args` make of a function, as a Config or Partial.

    `output_type` is the kind to make, or a config to change in place (default: Partial).

    Raises:
        OverrideError: one of them does not fit.
    """
    from nemo_run.cli.overrides import apply_overrides
    from nemo_run.config import Partial

    kind = Partial if output_type is None else output_type
    return apply_overrides(kind(fn) if isinstance(kind, type) else kind, args, FactoryReader(REGISTRY))
