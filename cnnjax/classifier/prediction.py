"""What a classifier says of a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one picture.

    Attributes:
        path: The picture's file; of a picture given as an array its position.
        class_name: The likeliest class; None for a picture that cannot be decoded.
        probability: Its probability.
        probabilities: That of every class, by name, in the order of the labels.
        error: Why the picture cannot be decoded; None where it can.

    >>> found = Prediction("cat.jpg", "cats", 0.75, {"cats": 0.75, "dogs": 0.25})
    >>> found.top(2), found.to_json()["class"]
    ([('cats', 0.75), ('dogs', 0.25)], 'cats')
    """

    path: str
    class_name: str | None = None
    probability: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict, hash=False)
    error: str | None = None

    def top(self, count: int) -> list[tuple[str, float]]:
        """The likeliest classes and their probabilities, the likeliest first."""
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:count]

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """Plain values: path, class, probability and probabilities (of the `top` likeliest), or path and error."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        likely = dict(self.probabilities if top is None else self.top(top))
        return {
            "path": self.path,
            "class": self.class_name,
            "probability": self.probability,
            "probabilities": likely,
        }


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Turn logits f32[N, K] into probabilities f64[N, K] (softmax), and f32[N, 1] into those of two classes (sigmoid).

    >>> probabilities(np.log([[3.0]])).tolist(), probabilities(np.log([[1.0, 3.0, 4.0]])).round(3).tolist()
    ([[0.25, 0.75]], [[0.125, 0.375, 0.5]])
    """
    wide = np.asarray(logits, np.float64)
    if wide.shape[1] == 1:  # the first class is the one with logit 0
        wide = np.concatenate([np.zeros_like(wide), wide], axis=1)
    likely = np.exp(wide - wide.max(axis=1, keepdims=True))
    return likely / likely.sum(axis=1, keepdims=True)


def predictions(paths: Sequence[str], logits: np.ndarray, class_names: Sequence[str]) -> list[Prediction]:
    """One prediction a row of logits f32[N, 1 or classes]."""
    found = []
    for path, row in zip(paths, probabilities(logits).tolist(), strict=True):
        best = int(np.argmax(row))
        likely = dict(zip(class_names, row, strict=True))
        found.append(Prediction(path, class_names[best], row[best], likely))
    return found
