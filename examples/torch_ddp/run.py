"""Train a small torch model on two processes, here or in a container; see README.md beside this file.

python examples/torch_ddp/run.py
python examples/torch_ddp/run.py docker --image IMAGE
"""

from __future__ import annotations

import argparse
from pathlib import Path

from train import train

import nemo_run as run

HERE = Path(__file__).resolve().parent


def main() -> None:
    options = parse()
    task = run.Partial(train, epochs=options.epochs)
    with run.Experiment("torch-ddp") as exp:
        job = exp.add(task, executor(options), name="train", tail_logs=True)
        value = exp.run()[job]
    print(f"\n{value['ranks']} ranks have learned to tell {value['accuracy']:.1%} of the points right.")
    print(f"The model: {exp.artifacts(job) / 'model.pt'}")


def executor(options: argparse.Namespace) -> run.Executor:
    """Where it runs is all that differs: the launcher and the task stay the same."""
    common = {"launcher": "torchrun", "ntasks_per_node": options.ranks, "timeout": 600}
    if options.where == "process":
        return run.LocalExecutor(**common)
    code = run.PatternPackager(include_pattern=str(HERE / "*.py"), relative_path=str(HERE))
    executor = run.DockerExecutor(container_image=options.image, packager=code, **common)
    if options.packages:  # what the image lacks may be lent to it from here
        executor.volumes = [f"{options.packages.resolve()}:/packages:ro"]
        executor.env_vars["PYTHONPATH"] = "/packages"
    return executor


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small torch model on several processes.")
    parser.add_argument("where", choices=["process", "docker"], nargs="?", default="process")
    parser.add_argument("--image", default="pytorch/pytorch", help="an image with Python and torch")
    parser.add_argument(
        "--packages", type=Path, help="a folder with torch, for an image that has none (same Python)"
    )
    parser.add_argument("--ranks", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--epochs", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
