"""What a classifier says of an image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cnnjax.classifier.images import Files
from cnnjax.features import ahead
from cnnjax.train.tasks import Task


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one image.

    Attributes:
        path: The image's file; of an image given as an array its position.
        class_name: The likeliest class; None for an image that cannot be decoded.
        probability: Its probability.
        probabilities: That of every class, by name, in the order of the labels.
        error: Why the image cannot be decoded; None where it can.
        labels: Of a model of several labels, those that are there.
        values: Of a regression, each number by name, in its unit.
        output: Of a task of one's own, what its `predictions` give.

    >>> found = Prediction("cat.jpg", "cats", 0.75, {"cats": 0.75, "dogs": 0.25})
    >>> found.top(2), found.to_json()["class"]
    ([('cats', 0.75), ('dogs', 0.25)], 'cats')
    """

    path: str
    class_name: str | None = None
    probability: float | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict, hash=False)
    error: str | None = None
    labels: tuple[str, ...] | None = None
    values: Mapping[str, float] = field(default_factory=dict, hash=False)
    output: Any = field(default=None, hash=False)

    def top(self, count: int) -> list[tuple[str, float]]:
        """The likeliest classes and their probabilities, the likeliest first."""
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:count]

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """Plain values: path, class, probability and probabilities (of the `top` likeliest), or path and error."""
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        likely = dict(self.probabilities if top is None else self.top(top))
        if self.labels is not None:
            return {"path": self.path, "labels": list(self.labels), "probabilities": likely}
        if self.values or self.output is not None:
            return {"path": self.path} | ({"values": dict(self.values)} if self.values else {"output": self.output})
        return {
            "path": self.path,
            "class": self.class_name,
            "probability": self.probability,
            "probabilities": likely,
        }


def predictions(paths: Sequence[str], outputs: Any, task: Task) -> list[Prediction]:
    """One prediction a row of the model's outputs, such as logits f32[N, 1 or classes]."""
    return [Prediction(path, **said) for path, said in zip(paths, task.read(outputs), strict=True)]


def outputs_of(apply: Callable[[Any], Any], source: Any, batch_size: int, *, skip: bool = False) -> np.ndarray:
    """Outputs for all images, in batches of one shape.

    Args:
        apply: From f32[B, H, W, 3] to the outputs.
        source: Images.
        batch_size: How many are classified at once, at most.
        skip: Pass over files that cannot be decoded.

    Raises:
        ImageError: Files cannot be decoded, and are not passed over.
        ValueError: There are no images.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    count = len(source)
    if not count:
        raise ValueError("there are no images to classify")
    # Few images in a batch of a power of two: few programs serve any number.
    size = min(batch_size, 1 << (count - 1).bit_length())

    def read(start: int) -> np.ndarray:
        batch = np.zeros((size, *source.image_size, 3), np.float32)
        index = np.arange(start, min(start + size, count))
        batch[: len(index)] = source.read(index)
        return batch

    files = source if isinstance(source, Files) else None
    logits = []
    for batch in ahead(read, range(0, count, size)):
        if skip or files is None or not files.errors:  # otherwise the rest is decoded to name all that is bad
            logits.append(np.asarray(apply(batch)))
    if files and not skip:
        files.refuse()
    return np.concatenate(logits)[:count]
