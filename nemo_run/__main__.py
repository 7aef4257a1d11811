"""`python -m nemo_run`, and the console scripts `nemo` and `nemorun`."""

from __future__ import annotations


def main() -> None:
    """Run the command line; a NemoRunError is one message and exit code 1, never a traceback."""
    from nemo_run.cli.app import app
    from nemo_run.cli.guard import guarded

    with guarded("nemo"):
        app()


if __name__ == "__main__":
    main()
