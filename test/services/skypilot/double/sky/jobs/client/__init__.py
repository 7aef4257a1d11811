from sky.jobs.client import sdk  # noqa: F401  # as an attribute
