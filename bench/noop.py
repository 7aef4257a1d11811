"""The task that is measured: it imports nothing and does nothing."""


def noop(number=0):
    """Do nothing."""
