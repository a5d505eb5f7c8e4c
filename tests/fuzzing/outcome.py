"""What a random program gave, and what counts as wrong."""

from dataclasses import dataclass

import numpy as np

TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What one program gave.

    Attributes:
        seed: it alone decides the program.
        text: the program in words.
        dtype: what it computes with.
        arrays: by name.
        calls: of oneDNN in its compiled text; of a network's eight parts the first has all of the network's.
    """

    seed: str
    text: str
    dtype: str
    arrays: Arrays
    calls: int = 0


def wrong(found: Arrays, expected: Arrays, dtype: str) -> dict[str, float]:
    """What differs, and by how much of the largest number; infinity where NaN or Inf stand elsewhere.

    What is nothing but rounding is held against the largest of its kind (the gradient of a bias before a BatchNorm), or
    a thousandth (a mean that was subtracted before: other numbers are about 1).
    """

    def size(x: np.ndarray) -> float:
        return float(np.abs(x[np.isfinite(x)]).max(initial=0))

    least: dict[str, float] = {}
    for name, x in expected.items():
        kind = name.partition(" ")[0]
        least[kind] = max(least.get(kind, 0), size(x) * (0.01 if dtype == "float32" else 1.0))
    off = {}
    for name, x in expected.items():
        y = found[name]
        if x.shape != y.shape or not np.array_equal(*(np.where(np.isfinite(v), 0, v) for v in (x, y)), equal_nan=True):
            off[name] = np.inf
            continue
        x, y = (np.where(np.isfinite(v), v, 0) for v in (x, y))
        off[name] = size(x - y) / max(size(x), least[name.partition(" ")[0]], 1e-3)
    return {name: value for name, value in off.items() if value > TOLERANCE[dtype]}
