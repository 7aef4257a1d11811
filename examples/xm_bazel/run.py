"""Have Bazel make what runs, in XManager's words; see README.md beside this file.

python examples/xm_bazel/run.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from nemo_run import xm, xm_local

HERE = Path(__file__).resolve().parent


def main(argv: object = None) -> None:
    # `bazel run` says where the workspace is; without it, this does.
    os.environ.setdefault("BUILD_WORKSPACE_DIRECTORY", str(HERE / "workspace"))
    limits = (10, 100, 1000, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(limit) for limit in limits]
        with xm_local.create_experiment(experiment_title="xm-bazel") as experiment:
            [primes] = experiment.package([xm.bazel_binary(xm_local.Local.Spec(), label="//:primes")])
            for limit, out in zip(limits, outs, strict=True):
                args = {"below": limit, "out": out}
                experiment.add(xm.Job(primes, xm_local.Local(), name=f"below_{limit}", args=args))
        print("\n" + "".join(out.read_text() for out in outs), end="")


if __name__ == "__main__":
    main()
