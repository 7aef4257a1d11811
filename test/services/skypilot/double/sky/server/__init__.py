from sky.server import common  # noqa: F401  # as an attribute
