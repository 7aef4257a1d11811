"""Make an image of a folder of Python and train in it, in XManager's words; see README.md beside this file.

python examples/xm_train/run.py
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from nemo_run import xm, xm_local

#: Any image with Python will do; this one is made by `make services`.
IMAGE = os.environ.get("IMAGE", "debian-py:12")
RATES = (0.001, 0.01, 0.1)


def main(argv: object = None) -> None:
    with tempfile.TemporaryDirectory() as results:
        with xm_local.create_experiment(experiment_title="xm-train") as experiment:
            spec = xm.PythonContainer(
                path="model",  # beside this script
                entrypoint=xm.ModuleName("train"),
                base_image=IMAGE,
            )
            [executable] = experiment.package(
                [
                    xm.Packageable(
                        executable_spec=spec,
                        executor_spec=xm_local.Local.Spec(),
                        args={"epochs": 20},
                        env_vars={"RESULTS": "/results"},
                    )
                ]
            )
            executor = xm_local.Local(docker_options=xm_local.DockerOptions(volumes={results: "/results"}))
            for rate in RATES:
                experiment.add(
                    xm.Job(executable=executable, executor=executor, env_vars={"SEED": "1"}),
                    args={"args": {"learning_rate": rate}},
                )
        measured = {rate: json.loads((Path(results) / f"{rate}.json").read_text()) for rate in RATES}
    print()
    for rate, result in measured.items():
        print(f"learning rate {rate}: {result['accuracy']:.1%} right, in container {result['host']}")


if __name__ == "__main__":
    main()
