"""Start programs that talk to each other as one group, in XManager's words; see README.md beside this file.

python examples/xm_group/run.py
"""

from __future__ import annotations

import json
import socket
import tempfile
from pathlib import Path

from nemo_run import xm, xm_local

THROWERS = ("ann", "bob")


def main(argv: object = None) -> None:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        with xm_local.create_experiment(experiment_title="xm-group") as experiment:
            counter, thrower = experiment.package(
                [xm.binary(xm_local.Local.Spec(), path) for path in ("counter", "thrower")]
            )
            group = xm.JobGroup(
                counter=xm.Job(
                    executable=counter,
                    executor=xm_local.Local(),
                    args={"port": port, "throwers": len(THROWERS), "enough": 500_000, "out": out},
                )
            )
            for seed, name in enumerate(THROWERS):
                group.jobs[name] = xm.Job(
                    executable=thrower,
                    executor=xm_local.Local(),
                    args={"address": f"127.0.0.1:{port}", "name": name, "seed": seed},
                )
            experiment.add(group)
        result = json.loads(out.read_text())
    print(f"\nAfter {result['thrown']} throws, {result['from_each']}, pi is about {result['pi']:.4f}.")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
