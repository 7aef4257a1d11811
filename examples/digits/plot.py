"""The picture in the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")  # a file, never a window

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

if TYPE_CHECKING:
    from tasks import Score

MARGIN = 0.012
TITLE: dict[str, Any] = {"ha": "left", "fontsize": 12, "fontweight": "bold"}
INK, MUTED, GRID, PAPER = "#1b2733", "#6b7885", "#e3e8ed", "#ffffff"
#: One colour per kind of model (the first word of its name); nobody needs to see red or green.
COLORS = {"logistic": "#0072b2", "svm": "#d55e00", "forest": "#009e73"}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": PAPER,
}


def draw(scores: list[Score], confusion: Any, images: Any, path: Path) -> None:
    """Draw the models, best first, and what the best one misreads: its confusion matrix and the images."""
    best, tested = scores[0], len(images)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12, 7.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.14, h_pad=0.1)
        heading = f"{best.name} reads {best.accuracy:.1%} of {tested} unseen handwritten digits"
        figure.suptitle(heading, x=MARGIN, ha="left", fontsize=18, fontweight="bold")
        top, bottom = figure.subfigures(2, 1, height_ratios=(3.4, 1))
        left, right = top.subfigures(1, 2, width_ratios=(1.5, 1))
        _ranking(left, scores, tested)
        _confusion(right, best, confusion)
        _mistakes(bottom, best, images)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _ranking(figure: Any, scores: list[Score], tested: int) -> None:
    figure.suptitle("Accuracy on the test set, with its 95 % interval", x=0.02, **TITLE)
    axes = figure.subplots()
    beside = axes.get_yaxis_transform()
    for row, score in enumerate(scores):
        color = COLORS.get(score.name.split("-")[0], INK)
        low, high = _interval(score.accuracy, tested)
        axes.plot([low, high], [row, row], color=color, alpha=0.3, linewidth=7, solid_capstyle="round")
        axes.plot(score.accuracy, row, "o", color=color, markersize=10, markeredgecolor=PAPER)
        axes.text(
            1.12, row, f"{score.accuracy:.1%}", transform=beside, va="center", ha="right", weight="bold"
        )
        axes.text(1.26, row, f"{score.seconds:.2f} s", transform=beside, va="center", ha="right", color=MUTED)
    axes.text(1.12, -0.62, "read right", transform=beside, ha="right", color=MUTED, fontsize=9)
    axes.text(1.26, -0.62, "training", transform=beside, ha="right", color=MUTED, fontsize=9)
    axes.set_yticks(range(len(scores)), [score.name for score in scores], color=INK, fontsize=11.5)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="x", color=GRID)
    _plain(axes)


def _interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of `count`."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def _confusion(figure: Any, best: Score, counts: Any) -> None:
    figure.suptitle(f"What {best.name} takes for what", x=0.06, **TITLE)
    axes = figure.subplots()
    wrong = counts * (1 - np.eye(10, dtype=int))
    shades = ListedColormap(["#f3f5f8", *plt.get_cmap("Oranges")(np.linspace(0.3, 0.8, 5))])
    axes.imshow(wrong, cmap=shades, vmin=0, vmax=max(wrong.max(), 5))
    for true, read in np.argwhere(counts):
        style = {"color": MUTED, "fontsize": 9} if true == read else {"color": INK, "weight": "bold"}
        axes.text(read, true, counts[true, read], ha="center", va="center", **style)
    axes.set_xlabel("read as")
    axes.set_ylabel("is a")
    axes.set_xticks(range(10))
    axes.set_yticks(range(10))
    axes.set_xticks(np.arange(11) - 0.5, minor=True)
    axes.set_yticks(np.arange(11) - 0.5, minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=2)
    _plain(axes)


def _mistakes(figure: Any, best: Score, images: Any, room: int = 10) -> None:
    shown, found = best.mistakes[:room], len(best.mistakes)
    what = f"The first {room} of the {found} digits" if found > room else f"All {found} digits"
    figure.suptitle(f"{what} that it misreads (is a → read as)", x=MARGIN, **TITLE)
    row = figure.subplots(1, room)
    for axes in row:
        axes.set_axis_off()
    for axes, (at, true, read) in zip(row, shown, strict=False):
        axes.imshow(images[at], cmap="Greys", interpolation="bilinear")
        axes.set_title(f"{true} → {read}", fontsize=11)


def _plain(axes: Any) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
