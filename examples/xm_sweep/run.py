"""Run one program with many settings, in XManager's words; see README.md beside this file.

python examples/xm_sweep/run.py
"""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

from nemo_run import xm, xm_local

RATES, MOMENTA = (0.0002, 0.001, 0.005), (0.0, 0.5, 0.9, 0.98)


def main(argv: object = None) -> None:
    trials = [
        {"learning_rate": rate, "momentum": momentum} for rate, momentum in itertools.product(RATES, MOMENTA)
    ]
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / f"{number}.json" for number in range(len(trials))]
        with xm_local.create_experiment(experiment_title="xm-sweep") as experiment:
            [valley] = experiment.package(
                [xm.binary(xm_local.Local.Spec(), path="valley", args={"steps": 3000})]
            )
            for trial, out in zip(trials, outs, strict=True):
                args = {**trial, "out": out}
                experiment.add(xm.Job(executable=valley, executor=xm_local.Local(), args=args))
        # Leaving the `with` has waited for all of them.
        results = [json.loads(out.read_text()) for out in outs]
    show(trials, results)


def show(trials: list[dict[str, float]], results: list[dict[str, float]]) -> None:
    """How far from the lowest point each trial came, best first."""
    print("\nlearning rate  momentum  height")
    for result, trial in sorted(zip(results, trials, strict=True), key=lambda pair: pair[0]["height"]):
        height = f"{result['height']:.1e}" if result["height"] < 100 else "flew off"
        print(f"{trial['learning_rate']:<13}  {trial['momentum']:<8}  {height}")


if __name__ == "__main__":
    main()
