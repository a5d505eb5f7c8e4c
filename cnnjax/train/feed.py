"""What each step of an epoch gets: the order of the examples, and their rows from memory, disk or the source."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from cnnjax.data.loader import Loader, to_device
from cnnjax.data.order import LastBatch, epoch_batches, epoch_steps, epoch_views
from cnnjax.features import ahead
from cnnjax.runtime import Tree, preemption
from cnnjax.runtime.devices import Devices
from cnnjax.train.dataset import FeatureDataset, HostShard
from cnnjax.train.state import State


class Order(NamedTuple):
    """The order of an epoch; all [steps, B].

    Attributes:
        index: i32, the examples of each step.
        counts: f32, 0 for those that fill up the last batch, 1 for others.
        views: i32, their rows: other ones where an example has several stored views.
    """

    index: np.ndarray
    counts: np.ndarray
    views: np.ndarray


class Feed:
    """Hands rows to steps.

    Args:
        batch_size: examples a step.
        last_batch: what becomes of a short last batch.
        devices: what batches are spread over.
        workers: processes that read images.
    """

    def __init__(self, batch_size: int, last_batch: LastBatch, devices: Devices | None, workers: int):
        self.batch_size, self.last_batch, self.devices, self.workers = batch_size, last_batch, devices, workers

    def steps_per_epoch(self, examples: int) -> int:
        """Steps of an epoch of so many examples.

        Raises:
            ValueError: the only batch is short, and such ones are left out.
        """
        return epoch_steps(examples, self.batch_size, self.last_batch)

    def order(self, rows: FeatureDataset, seed: int, epoch: int) -> Order:
        """The order of an epoch: a function of the seed and the epoch alone."""
        index, counts = epoch_batches(len(rows), self.batch_size, seed, epoch, self.last_batch)
        views = index
        if rows.views > 1:
            views = index * rows.views + epoch_views(index.shape, rows.views, seed, epoch)
        return Order(index, counts, views)

    def loader(self, rows: FeatureDataset, seed: int, first: int, epochs: int, done: int = 0) -> Loader | None:
        """Reads the images of rows that are not kept, from step `done` of epoch `first` to before epoch `epochs`."""
        if rows.source is None:
            return None
        source: Any = rows.source if self.devices is None else HostShard(rows.source, self.devices.own(self.batch_size))
        loader = Loader(
            source, self.batch_size, epochs=epochs, seed=seed, workers=self.workers, last_batch=self.last_batch
        )
        loader.restore({"step": first * loader.order.steps_per_epoch + done})
        return loader

    def stream(self, loader: Loader | None) -> Iterator[Any] | None:
        """What a loader reads, on its way to the device."""
        return to_device(loader, devices=self.devices) if loader else None

    def inputs(self, rows: FeatureDataset, order: Order, stream: Iterator[Any] | None, first: int = 0) -> Iterator[Any]:
        """What each step of an epoch takes, from step `first` on.

        Where rows are on the device, (arrays, labelled, index, counts, views); elsewhere (rows, labelled, counts).
        """
        index, counts, views = order
        loaded: Iterator[Any] = iter(())
        labelled = rows.labelled if rows.on_device else jax.tree.map(np.asarray, rows.labelled)
        if stream is None and not rows.on_device:
            loaded = ahead(lambda k: self.taken(rows, views[k]), range(first, len(index)))
        for k in range(first, len(index)):
            preemption.check()
            if rows.on_device:
                yield (rows.arrays, labelled, *self.spread((index[k], counts[k], views[k])))
            else:
                values = (next(stream).examples,) if stream else next(loaded)
                yield (values, *self.spread((labelled.take(index[k]), counts[k])))

    def shared(self, constants: Tree, fixed: Tree) -> tuple[Any, Any]:
        """What all steps read of the frozen part; on every device, where there are several."""
        context = (constants, fixed)
        return context if self.devices is None else self.devices.replicate(context)

    def entered(self, state: State) -> State:
        """A state from elsewhere where the steps expect it; one of theirs is there."""
        return state if self.devices is None else self.devices.place(state)

    def spread(self, batch: Tree, axis: int = 0) -> Any:
        """Arrays of a batch, onto the devices where there are several."""
        return batch if self.devices is None else self.devices.batch(batch, axis)

    def taken(self, rows: FeatureDataset, index: np.ndarray) -> tuple[Any, ...]:
        """The rows at `index`, as a step takes them."""
        if self.devices is None:
            return rows.take(index)
        if rows.on_device:
            return self.devices.batch(rows.take(index))
        return self.devices.local_batch(rows.take(index[self.devices.own(len(index))]))
