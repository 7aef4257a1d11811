"""Teach a network of one hidden layer, in plain Python, to tell the points of two rings apart."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
from pathlib import Path

Point = tuple[float, float]


def rings(count: int, noise: random.Random) -> list[tuple[Point, float]]:
    """Points around the origin at a distance of 1 (labelled 0) or 2 (labelled 1), more or less."""
    points = []
    for number in range(count):
        label, angle = number % 2, noise.uniform(0, 2 * math.pi)
        radius = 1 + label + noise.gauss(0, 0.2)
        points.append(((radius * math.cos(angle), radius * math.sin(angle)), float(label)))
    return points


class Network:
    """Two inputs, a hidden layer, one probability."""

    def __init__(self, hidden: int, noise: random.Random) -> None:
        self.inner = [[noise.gauss(0, 1) for _ in range(3)] for _ in range(hidden)]
        self.outer = [noise.gauss(0, 1) for _ in range(hidden + 1)]

    def forward(self, point: Point) -> tuple[list[float], float]:
        hidden = [math.tanh(a * point[0] + b * point[1] + c) for a, b, c in self.inner]
        total = sum(w * h for w, h in zip(self.outer, hidden)) + self.outer[-1]  # noqa: B905
        return hidden, 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))

    def learn(self, point: Point, label: float, rate: float) -> None:
        """One step of gradient descent on the cross entropy of one point."""
        hidden, probability = self.forward(point)
        error = probability - label
        for at, value in enumerate(hidden):
            slope = error * self.outer[at] * (1 - value * value)
            self.outer[at] -= rate * error * value
            for input_at, given in enumerate((*point, 1.0)):
                self.inner[at][input_at] -= rate * slope * given
        self.outer[-1] -= rate * error

    def accuracy(self, points: list[tuple[Point, float]]) -> float:
        right = sum((self.forward(point)[1] > 0.5) == (label > 0.5) for point, label in points)
        return right / len(points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learning_rate", type=float, required=True)
    parser.add_argument("--hidden", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()

    noise = random.Random(int(os.environ.get("SEED", "0")))
    train, test, network = rings(400, noise), rings(400, noise), Network(options.hidden, noise)
    for epoch in range(options.epochs):
        for point, label in train:
            network.learn(point, label, options.learning_rate)
        if epoch % 10 == 9:
            print(f"after {epoch + 1} epochs {network.accuracy(test):.1%} of the points are told right")
    result = {"accuracy": network.accuracy(test), "host": os.uname().nodename}
    Path(os.environ["RESULTS"], f"{options.learning_rate}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
