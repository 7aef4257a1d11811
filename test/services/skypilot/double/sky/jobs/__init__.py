from sky.jobs import client  # noqa: F401  # as an attribute
