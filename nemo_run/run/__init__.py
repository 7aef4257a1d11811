"""Running things. The module itself can be called: `nemo_run.run(task, executor)` runs one task.

Importing any `nemo_run.run.x` makes `nemo_run.run` this module, whatever it was before; so that scripts can
write `run.run(...)` all the same, the module is callable.
"""

import sys
from types import ModuleType


class _CallableModule(ModuleType):
    def __call__(self, *args: object, **kwargs: object) -> object:
        from nemo_run.run.api import run

        return run(*args, **kwargs)  # type: ignore[arg-type]  # `run` itself says what it takes


sys.modules[__name__].__class__ = _CallableModule
