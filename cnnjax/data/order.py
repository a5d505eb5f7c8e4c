"""The order in which examples are taken, as a function of the seed and the step alone."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

LastBatch = Literal["pad", "drop"]
"""What becomes of an epoch's short last batch: it is filled up with rows that do not count, or left out."""


def epoch_steps(count: int, batch_size: int, last_batch: LastBatch = "pad") -> int:
    """How many batches an epoch has.

    Raises:
        ValueError: The only batch is short, and such ones are left out.

    >>> epoch_steps(29, 8), epoch_steps(29, 8, "drop")
    (4, 3)
    """
    if last_batch == "pad":
        return -(-count // batch_size)
    if count < batch_size:
        raise ValueError(
            f"last_batch='drop' leaves out a short last batch, and {count} examples are the only one of {batch_size}: "
            f"nothing would train; give a batch size of at most {count}, or last_batch='pad'"
        )
    return count // batch_size


def epoch_batches(
    count: int, batch_size: int, seed: int | None, epoch: int, last_batch: LastBatch = "pad"
) -> tuple[np.ndarray, np.ndarray]:
    """The order of one epoch: indices i32 and weights f32, both `[steps, batch_size]`.

    The last batch is filled up with the epoch's first examples at weight 0: they count in no loss, no metric and no
    statistics of a live BatchNorm (see `cnnjax.ops.counting`), and are images like the others, so that nothing that
    is made of them overflows.

    Args:
        count: Examples in all.
        batch_size: Examples a batch.
        seed: Of the shuffling; None keeps the examples' order.
        epoch: Each has an order of its own.
        last_batch: "drop" leaves a short last batch out; which examples are in it changes with the epoch.

    Raises:
        ValueError: The only batch is short, and such ones are left out.

    >>> index, weights = epoch_batches(5, 2, seed=0, epoch=0)
    >>> sorted(index.ravel()[weights.ravel() > 0].tolist()), weights.tolist()[-1]
    ([0, 1, 2, 3, 4], [1.0, 0.0])
    """
    order = np.arange(count) if seed is None else np.random.default_rng([seed, epoch]).permutation(count)
    steps = epoch_steps(count, batch_size, last_batch)
    index = np.resize(order, steps * batch_size).reshape(steps, batch_size).astype(np.int32)
    weights = (np.arange(steps * batch_size) < count).astype(np.float32).reshape(steps, batch_size)
    return index, weights


def epoch_views(shape: tuple[int, ...], views: int, seed: int, epoch: int) -> np.ndarray:
    """Which of its stored views each example of an epoch shows: i32 of that shape, 0 to `views` - 1.

    >>> epoch_views((2, 3), 4, seed=0, epoch=0).shape
    (2, 3)
    """
    return np.random.default_rng([seed, epoch, views]).integers(0, views, shape, dtype=np.int32)


class Order(Sequence[tuple[np.ndarray, np.ndarray]]):
    """The order of a whole run as a sequence of (indices, weights), one a step; nothing is stored.

    Step k is a function of the seed and k alone, so a run can be taken up at any step, by any number of
    workers; each host takes its rows of one global batch, so any number of hosts trains on the same batches.

    Args:
        count: Examples in the source.
        batch_size: Of the global batch.
        epochs: How many times all examples are taken.
        seed: Of the shuffling; None keeps the source's order.
        shard: (this host, number of hosts).
        last_batch: What becomes of an epoch's short last batch, as for `epoch_batches`.

    Raises:
        ValueError: A size that is not positive, hosts that do not divide the batch, or no whole batch where short ones
            are left out.

    >>> order = Order(5, 2, epochs=2, seed=0)
    >>> len(order), sorted(np.concatenate([order[k][0] for k in range(3)])[:5].tolist()), order[2][1].tolist()
    (6, [0, 1, 2, 3, 4], [1.0, 0.0])
    """

    def __init__(
        self, count: int, batch_size: int, *, epochs: int = 1, seed: int | None = 0, shard: tuple[int, int] = (0, 1),
        last_batch: LastBatch = "pad",
    ):  # fmt: skip
        for name, value in (("examples", count), ("batch_size", batch_size), ("epochs", epochs), ("hosts", shard[1])):
            if value < 1:
                raise ValueError(f"the loader needs at least 1 of {name}, found {value}")
        if not 0 <= shard[0] < shard[1]:
            raise ValueError(f"shard: expected a host from 0 to {shard[1] - 1}, found {shard[0]}")
        if batch_size % shard[1]:
            near = max(batch_size // shard[1], 1) * shard[1]
            raise ValueError(f"{shard[1]} hosts cannot share a batch of {batch_size} evenly; {near} would do")
        self._count, self.batch_size, self.epochs, self.seed, self.shard = count, batch_size, epochs, seed, shard
        self.last_batch: LastBatch = last_batch
        self.steps_per_epoch = epoch_steps(count, batch_size, last_batch)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs

    def __getitem__(self, step: int | slice) -> Any:
        if isinstance(step, slice):
            return [self[k] for k in range(*step.indices(len(self)))]
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        epoch = int(step) // self.steps_per_epoch
        index, weights = _epoch(self._count, self.batch_size, self.seed, epoch, self.last_batch)
        host, hosts = self.shard
        row = int(step) % self.steps_per_epoch
        return index[row, host::hosts], weights[row, host::hosts]


@functools.lru_cache(maxsize=2)
def _epoch(
    count: int, batch_size: int, seed: int | None, epoch: int, last_batch: LastBatch
) -> tuple[np.ndarray, np.ndarray]:
    """An epoch's order is drawn once a process, not once a batch."""
    return epoch_batches(count, batch_size, seed, epoch, last_batch)
