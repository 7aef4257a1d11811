"""`python -m nemo_run`, and the console scripts `nemo` and `nemorun`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a NemoRunError is one message and exit code 1, never a traceback."""
    from nemo_run.cli.app import app
    from nemo_run.errors import NemoRunError

    for stream in (sys.stdout, sys.stderr):
        # What a terminal cannot show is no reason to fail.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # as Python makes them
    try:
        app()
    except NemoRunError as exc:
        print(f"nemo: {exc}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output (`| head`) has seen enough.
        sys.stderr.close()
        sys.exit(141)


if __name__ == "__main__":
    main()
