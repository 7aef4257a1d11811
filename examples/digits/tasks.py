"""The three steps of the example, as plain functions; nothing in them says where they run.

What one step leaves in `run.artifacts_dir()` another finds by that step's name. Libraries are imported where
they are used, so that each job starts with no more than it needs.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import nemo_run as run

DATA, SCORE, CONFUSION = "digits.npz", "score.json", "confusion.csv"
REPORT, PLOT = "report.md", "comparison.png"


@dataclass
class Score:
    """How well a model reads digits that it has never seen."""

    name: str
    model: str
    accuracy: float
    #: What fitting it took.
    seconds: float
    #: Each: its place in the test set, the digit it is, the digit it was read as.
    mistakes: list[list[int]]

    def confusions(self) -> Counter[tuple[int, int]]:
        """How often one digit was read as another."""
        return Counter((true, read) for _, true, read in self.mistakes)


def prepare(test_size: float = 0.4, seed: int = 0) -> dict[str, int]:
    """Split scikit-learn's 1,797 handwritten digits into a training set and a test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(images / 16.0, digits, test_size=test_size, random_state=seed, stratify=digits)
    split = dict(zip(("x_train", "x_test", "y_train", "y_test"), parts, strict=True))
    np.savez_compressed(run.artifacts_dir() / DATA, **split)
    sizes = {"train": len(split["y_train"]), "test": len(split["y_test"])}
    print(f"{sizes['train']} digits to train on, {sizes['test']} to test with")
    return sizes


def train(model: Any, name: str, data: str = "prepare") -> dict[str, float]:
    """Fit a model to the training set that the job `data` has left, and score it on the test set."""
    from sklearn.metrics import confusion_matrix

    split = np.load(run.artifacts_dir(data) / DATA)
    print(f"fitting {model}")
    start = time.perf_counter()
    model.fit(split["x_train"], split["y_train"])
    seconds = time.perf_counter() - start
    truth, read = split["y_test"], model.predict(split["x_test"])
    wrong = np.flatnonzero(truth != read)
    score = Score(
        name=name,
        model=" ".join(str(model).split()),
        accuracy=float(np.mean(truth == read)),
        seconds=seconds,
        mistakes=[[int(at), int(truth[at]), int(read[at])] for at in wrong],
    )
    matrix = confusion_matrix(truth, read)  # row: the digit it is; column: the digit it was read as
    np.savetxt(run.artifacts_dir() / CONFUSION, matrix, fmt="%d", delimiter=",")
    (run.artifacts_dir() / SCORE).write_text(json.dumps(asdict(score)))
    print(f"{score.accuracy:.1%} of {len(truth)} test digits read right, {len(wrong)} wrong")
    return {"accuracy": round(score.accuracy, 4), "seconds": round(seconds, 3)}


def compare(trained: list[str], data: str = "prepare") -> dict[str, Any]:
    """Rank what the jobs `trained` have left: a Markdown report with a plot in it."""
    from plot import draw

    scores = [Score(**json.loads((run.artifacts_dir(job) / SCORE).read_text())) for job in trained]
    scores.sort(key=lambda score: (-score.accuracy, score.seconds))
    best = scores[0]
    images = np.load(run.artifacts_dir(data) / DATA)["x_test"].reshape(-1, 8, 8)
    confusion = np.loadtxt(run.artifacts_dir(best.name) / CONFUSION, dtype=int, delimiter=",")
    draw(scores, confusion, images, run.artifacts_dir() / PLOT)
    (run.artifacts_dir() / REPORT).write_text("\n".join(_report(scores, len(images))) + "\n")
    print(f"{best.name} is best of {len(scores)}: {best.accuracy:.1%}")
    return {"best": best.name, "accuracy": round(best.accuracy, 4), "report": REPORT, "plot": PLOT}


def _report(scores: list[Score], tested: int) -> Iterator[str]:
    best = scores[0]
    yield "# Reading handwritten digits\n"
    yield (
        f"{len(scores)} models were trained on the same digits and tested on {tested} others."
        f" **{best.name}** is the best: it reads {best.accuracy:.1%} of them right"
        f" and took {best.seconds:.2f} s to train.\n"
    )
    yield f"![Accuracy of each model, and what the best one misreads]({PLOT})\n"
    yield "| # | model | settings | accuracy | wrong | seconds |"
    yield "|--:|:------|:---------|---------:|------:|--------:|"
    for rank, score in enumerate(scores, 1):
        cells = (rank, score.name, f"`{score.model}`", f"{score.accuracy:.2%}", len(score.mistakes))
        yield f"| {' | '.join(map(str, cells))} | {score.seconds:.2f} |"
    yield "\n## The worst confusions\n"
    yield f"Over all {len(scores)} models, and by the best of them:\n"
    yield "| a | read as | by all | by the best |"
    yield "|--:|--------:|-------:|------------:|"
    together = sum((score.confusions() for score in scores), Counter())
    for (true, read), count in together.most_common(8):
        yield f"| {true} | {read} | {count} | {best.confusions()[true, read]} |"
    if experiment := os.environ.get("NEMORUN_EXPERIMENT_ID"):
        yield f"\nMade by experiment `{experiment}`."
