"""Stored features as rows, and the order in which an epoch takes them."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cnnjax.features import Pictures


class LabelledPictures(Pictures, Protocol):
    """What the trainer asks of a data source (see `cnnjax.data.Source`)."""

    @property
    def labels(self) -> np.ndarray: ...
    @property
    def image_size(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Rows:
    """The stored features of one source, ready to be trained or evaluated on.

    Attributes:
        arrays: one array `[N, ...]` a feature; on the device, or on disk if they do not fit there.
        labels: i32[N].
        on_device: whether `arrays` are in device memory.
        reused: whether all of them were found in the store.
        source: the pictures, if nothing could be stored and the frozen part runs in every step.
    """

    arrays: tuple[Any, ...]
    labels: Any
    on_device: bool
    reused: bool
    source: LabelledPictures | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> tuple[Any, ...]:
        """The rows at `index`, from disk or decoded anew."""
        if self.source is not None:
            return (self.source.read(index),)
        return tuple(np.asarray(x[index]) for x in self.arrays)


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of one epoch: indices and weights, both `[steps, batch_size]`.

    The last batch is filled up with the epoch's first examples at weight 0: they count in no loss and no
    metric, and a live BatchNorm sees pictures rather than zeros.

    Example:
        >>> index, weights = epoch_batches(5, 2, seed=0, epoch=0)
        >>> sorted(index.ravel()[weights.ravel() > 0].tolist()), weights.tolist()[-1]
        ([0, 1, 2, 3, 4], [1.0, 0.0])
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    steps = -(-count // batch_size)
    index = np.resize(order, steps * batch_size).reshape(steps, batch_size).astype(np.int32)
    weights = (np.arange(steps * batch_size) < count).astype(np.float32).reshape(steps, batch_size)
    return index, weights
