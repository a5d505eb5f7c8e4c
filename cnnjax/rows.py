"""Stored features as rows of a training set."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from cnnjax.features import Pictures

Kind = Literal["features", "images", "source"]


class LabelledPictures(Pictures, Protocol):
    """What the trainer asks of a data source (see `cnnjax.data.Source`)."""

    @property
    def labels(self) -> np.ndarray: ...
    @property
    def image_size(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Rows:
    """The examples of one source, ready to be trained or evaluated on.

    Attributes:
        kind: What is at hand: "features" (the frozen part has run), "images" (decoded; the frozen part runs
            in every step) or "source" (read anew in every epoch).
        labels: i32[N].
        arrays: One array `[N * views, ...]` a feature, or the images; on the device, or on disk if they do
            not fit there.
        on_device: Whether `arrays` are in device memory.
        reused: Whether all of them were found in the store.
        source: The pictures, where they are read anew.
        views: How many stored views each example has, one after another.
    """

    kind: Kind
    labels: Any
    arrays: tuple[Any, ...] = ()
    on_device: bool = False
    reused: bool = False
    source: LabelledPictures | None = None
    views: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def decoded(self) -> bool:
        """Whether it is images that a step gets, and not features."""
        return self.kind != "features"

    def take(self, index: np.ndarray) -> tuple[Any, ...]:
        """The rows at `index`, from memory, from disk or decoded anew."""
        if self.source is not None:
            return (self.source.read(index),)
        return tuple(np.asarray(x[index]) for x in self.arrays)
