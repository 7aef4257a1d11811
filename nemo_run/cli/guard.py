"""How a command ends: what went wrong is one message and an exit code, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nemo_run.errors import NemoRunError, OverrideError


@contextmanager
def guarded(program: str) -> Iterator[None]:
    """Tell of a NemoRunError in one message and leave: with 2 for wrong arguments, else with 1."""
    for stream in (sys.stdout, sys.stderr):
        # What a terminal cannot show is no reason to fail.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        yield
    except NemoRunError as exc:
        print(f"{program}: {exc}", file=sys.stderr)
        sys.exit(2 if isinstance(exc, OverrideError) else 1)
    except BrokenPipeError:
        # The reader of our output (`| head`) has seen enough.
        sys.stderr.close()
        sys.exit(141)
