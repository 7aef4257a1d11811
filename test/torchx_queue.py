"""A TorchX scheduler whose jobs outlive whoever submitted them and are known by numbers, as Slurm's are."""

from __future__ import annotations

from typing import Any

from torchx.schedulers.api import DescribeAppResponse, ListAppResponse
from torchx.specs import AppDryRunInfo

import nemo_run as run
from nemo_run.home import get_nemorun_home


class Numbered(run.ExecutorScheduler):
    """Hands out numbers for the ids that it would have given."""

    def schedule(self, dryrun_info: AppDryRunInfo[Any]) -> str:
        app_id = super().schedule(dryrun_info)
        with open(get_nemorun_home() / "numbers", "a+") as file:
            file.write(app_id + "\n")
            file.seek(0)
            return str(len(file.readlines()))

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        ids = self._ids()
        return super().describe(ids[int(app_id) - 1]) if int(app_id) <= len(ids) else None

    def list(self) -> list[ListAppResponse]:
        states = {app.app_id: app.state for app in super().list()}
        return [ListAppResponse(str(at), states[app_id]) for at, app_id in enumerate(self._ids(), 1)]

    def _cancel_existing(self, app_id: str) -> None:
        super()._cancel_existing(self._ids()[int(app_id) - 1])

    def log_iter(self, app_id: str, *args: Any, **kwargs: Any) -> Any:
        return super().log_iter(self._ids()[int(app_id) - 1], *args, **kwargs)

    def _ids(self) -> list[str]:
        file = get_nemorun_home() / "numbers"
        return file.read_text().split() if file.exists() else []


def make(session_name: str, **options: Any) -> Numbered:
    return Numbered(session_name, run.LocalExecutor())


def make_broken(session_name: str, **options: Any) -> Numbered:
    raise ConnectionError("the queue does not answer")
