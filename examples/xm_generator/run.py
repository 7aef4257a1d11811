"""Let results decide what runs next: an async experiment in XManager's words; see README.md beside this file.

python examples/xm_generator/run.py
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from nemo_run import xm, xm_local

RATES = [0.0005, 0.002, 0.008, 0.03, 0.1, 0.2, 0.3, 0.45]


@xm.run_in_asyncio_loop
async def main(argv: object = None) -> None:
    """Successive halving: each round the better half goes on, with four times the steps."""
    with tempfile.TemporaryDirectory() as folder:
        async with xm_local.create_experiment(experiment_title="xm-generator") as experiment:
            [learner] = experiment.package([xm.binary(xm_local.Local.Spec(), "learner")])

            async def trial(work_unit: xm.WorkUnit, rate: float, steps: int) -> None:
                """One work unit; only here is its number known."""
                args = {"rate": rate, "steps": steps, "out": out(work_unit)}
                work_unit.add(xm.Job(learner, xm_local.Local(), args=args))

            def out(work_unit: xm.WorkUnit) -> Path:
                return Path(folder) / f"{work_unit.work_unit_id}.json"

            rates, steps = RATES, 10
            while True:
                units = {rate: await experiment.add(trial, {"rate": rate, "steps": steps}) for rate in rates}
                await asyncio.gather(*(unit.wait_until_complete() for unit in units.values()))
                results = {rate: json.loads(out(unit).read_text()) for rate, unit in units.items()}
                rates = sorted(rates, key=lambda rate: results[rate]["loss"])
                tell(steps, rates, results)
                if len(rates) == 1:
                    break
                rates, steps = rates[: len(rates) // 2], steps * 4
    best = results[rates[0]]
    print(f"\nThe rate {rates[0]} is best: y = {best['slope']:.2f} x {best['offset']:+.2f}")


def tell(steps: int, rates: list[float], results: dict[float, Any]) -> None:
    """One line for a round."""
    losses = (f"{rate}: {results[rate]['loss']:.2g}" for rate in rates)
    print(f"after {steps} steps  {', '.join(losses)}")


if __name__ == "__main__":
    main()
