"""State, compiled step, compiled epoch, and the loop over them.

A `Trainer` takes a model and what is frozen, cuts the model at the frontier, and trains what is left on
stored features. It knows no data set: images come from anything with `digest`, `labels`, `len` and `read`.
"""

import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from cnnjax.data.loader import Batch, Loader, to_device
from cnnjax.data.order import LastBatch, epoch_batches, epoch_views
from cnnjax.data.views import Views
from cnnjax.features import FeatureStore, Progress, ahead
from cnnjax.freeze import Frozen
from cnnjax.runtime import preemption
from cnnjax.runtime.compiling import compile_seconds
from cnnjax.runtime.devices import Devices
from cnnjax.runtime.precision import Precision
from cnnjax.train.dataset import FeatureDataset, HostShard, LabelledImages, checked_labelled, feature_rows, image_rows
from cnnjax.train.programs import NotFiniteChoice, Programs
from cnnjax.train.state import State
from cnnjax.train.task import Metrics, Task

if TYPE_CHECKING:
    from cnnjax.augment import Augmentation


class NotFinite(ValueError):
    """A loss was NaN or infinite.

    Attributes:
        epoch: of which epoch, counted from 0.
        step: which step of it, from 0.
        examples: i32[B], the batch's examples in the source.
    """

    def __init__(self, epoch: int, step: int, examples: np.ndarray):
        super().__init__(f"the loss of step {step} of epoch {epoch} (both from 0) is not finite")
        self.epoch, self.step, self.examples = epoch, step, examples


class Trainer(Programs):
    """Trains what is not frozen, on features of what is.

    Args:
        model: any NNX module from a batch of images to logits, or to what the task takes. It is not changed.
        frozen: `Freeze(...).resolve(model)`.
        image_size: height and width of the images; one number, or three, are the shape of an example that is
            no RGB image (a sound's samples).
        batch_size: examples a step.
        optimizer: a name from `cnnjax.optim.OPTIMIZERS`, or an optax transform.
        store: where features are kept; in memory if not given.
        augment: what happens to each image before training sees it.
        views: with `augment`: 0 augments in every step, with the frozen part inside (the lecture's Method 2);
            K draws K views of each image once, stores their features, and shows a random one in each epoch.
        workers: processes that read images; 0 reads in threads of this one.
        stream: read the images anew in every epoch, and keep neither them nor features: for sets that nothing holds.
        task: what is minimised and reported: `Classification`, `MultiLabel`, `Regression`, or a `Task` of your own. A
            classification into as many classes as there are logits (two share one) if not given.
        not_finite: what happens where a loss is NaN or infinite: "stop" raises `NotFinite`, "skip" leaves the step out
            (also where only a gradient is) and counts it, "keep" goes on.
        precision: "float32" or "bfloat16" to compute with; parameters, statistics and the loss stay float32. "auto" is
            bfloat16 where the hardware is made for it (TPUs, GPUs from NVIDIA's Ampere on).
        devices: what to spread batches over, which these must divide; one device if not given. With several hosts each
            makes the features for itself, or finds them in its store, and reads its own part of what is read anew.
        last_batch: what becomes of an epoch's short last batch in training. "pad" fills it up with rows that count in
            no loss, no metric and no statistics of BatchNorm: the numbers are those of the short batch, as in Keras.
            "drop" leaves it out, for models whose normalisation over the batch is not `nnx.BatchNorm`'s or not by the
            first axis, where rows that fill up would be seen. Evaluation is of all examples.

    Attributes:
        traces: how often each program was traced; 1 each after any number of epochs, seeds and learning rates.

    Example:
        >>> from cnnjax.data import InMemory
        >>> from cnnjax.freeze import Freeze
        >>> model = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), lambda x: x.mean((1, 2)),
        ...                        nnx.Linear(4, 1, rngs=nnx.Rngs(1)))
        >>> images = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), np.uint8)
        >>> data = InMemory(images, np.arange(20) % 2, ("a", "b"))
        >>> trainer = Trainer(model, Freeze.depth(1).resolve(model), (8, 8), batch_size=8)
        >>> state, log = trainer.fit(trainer.init(), trainer.rows(data), epochs=2)
        >>> len(log), int(state.step), sorted(state.trainable)
        (2, 6, ['layers/2/bias', 'layers/2/kernel'])
    """

    def __init__(
        self,
        model: nnx.Module,
        frozen: Frozen,
        image_size: tuple[int, ...],
        *,
        batch_size: int = 32,
        optimizer: str | optax.GradientTransformation = "rmsprop",
        store: FeatureStore | None = None,
        augment: "Augmentation | None" = None,
        views: int = 0,
        workers: int = 0,
        stream: bool = False,
        task: Task | None = None,
        not_finite: NotFiniteChoice = "stop",
        precision: Precision = "auto",
        devices: Devices | None = None,
        last_batch: LastBatch = "pad",
    ):
        if views < 0 or (views and not augment):
            raise ValueError(f"views: expected 0 or more, and an augmentation to draw them with, found {views}")
        if views and stream:
            raise ValueError("views are stored, and stream stores nothing: give one of them")
        super().__init__(
            model, frozen, image_size, batch_size=batch_size, optimizer=optimizer, augment=augment,
            task=task, not_finite=not_finite, precision=precision, devices=devices,
            last_batch=last_batch,
        )  # fmt: skip
        self.store, self.views, self.workers, self.stream = store or FeatureStore(), views, workers, stream

    def rows(self, source: LabelledImages, *, train: bool = True, progress: Progress | None = None) -> FeatureDataset:
        """The features of a source, from the store or made now.

        Args:
            source: the images.
            train: for training (dropout may lie before the frontier) or for evaluation.
            progress: called with (images done, images in all) if there is a pass to make.
        """
        labelled = checked_labelled(source, self.image_size, self.task, self.outputs)
        self.check_scores(labelled)
        if self.stream:
            return FeatureDataset("source", labelled, source=source)
        augment = self.augment if train else None
        if augment and not self.views:
            return image_rows(source, labelled, self.example.shape, self.devices)
        staged, views = (self.staged, self.views if augment else 1) if train else (self.inference, 1)
        # Views are drawn on the device, which worker processes have no part in.
        images, workers = (Views(source, augment, views), 0) if augment else (source, self.workers)
        get = partial(self.store.get, staged, self.fixed, images, progress=progress, workers=workers)
        return feature_rows(get, source, labelled, views, self.devices)

    def fit(
        self, state: State, rows: FeatureDataset, *, epochs: int, seed: int = 0, progress: Progress | None = None,
        after: Callable[[State, dict[str, float]], bool | None] | None = None,
        between: Callable[[State, Metrics, int], None] | None = None, running_metrics: Metrics | None = None,
    ) -> tuple[State, list[dict[str, float]]]:  # fmt: skip
        """Train.

        Args:
            state: from `init`; it is used up (its arrays are donated).
            rows: from `rows(source)`.
            epochs: passes over the rows; one that the state stands in the middle of is the first of them.
            seed: of the order of the examples, and of dropout.
            progress: called with (steps done, steps in all).
            after: called at the end of each epoch with the state (used up by the next: copy what is to stay) and its
                record; True ends training there.
            between: called after each step, or each epoch where its steps are one program, with the state, the sums of
                the epoch so far (both together are where to go on from), and the number of steps done.
            running_metrics: those sums, of a state that stands in the middle of an epoch, or at its end before `after`.

        Returns:
            The new state, and one record an epoch: loss, the task's metrics, steps, seconds, those that compiled.

        Raises:
            NotFinite: a loss is NaN or infinite, and `not_finite` says to stop.
        """
        log, running_metrics = [], running_metrics or self.no_metrics()
        steps = self.steps_per_epoch(len(rows))
        report = progress or (lambda done, total: None)
        # A state that was trained before goes on with the next step, or with what comes after an epoch's last.
        first, done = divmod(int(state.step), steps)
        if not done and running_metrics.begun:
            first, done = first - 1, steps
        loader = self._loader(rows, seed, first, first + epochs, done)
        stream = to_device(loader, devices=self.devices) if loader else None
        state = self._entered(state)
        try:
            for epoch in range(first, first + epochs):
                start, compiled = time.perf_counter(), compile_seconds()
                tick = partial(_shifted, report, (epoch - first) * steps, epochs * steps)
                steered = _Steered(tick, partial(_told, between, epoch * steps))
                state, metrics, unread = self._run_epoch(
                    state, rows, epoch, np.uint32(seed), stream, steered, done, running_metrics
                )
                self._check(unread, steps, rows, epoch, seed)
                record = metrics.summary() | {"epoch": epoch, "steps": steps}
                spent = {"seconds": time.perf_counter() - start, "compile_seconds": compile_seconds() - compiled}
                log.append(record | spent)
                if after and after(state, log[-1]):
                    break
                done, running_metrics = 0, self.no_metrics()
        finally:
            if loader:
                loader.close()
        return state, log

    def _run_epoch(
        self, state: State, rows: FeatureDataset, epoch: int, seed: np.uint32, stream: Iterator[Batch] | None,
        steered: "_Steered", done: int, total: Metrics,
    ) -> tuple[State, Metrics, list[Any]]:  # fmt: skip
        """The rest of an epoch; returns the losses of its last steps too, which nobody has looked at yet."""
        # The frozen part may hold convolutions too, where it runs in the step.
        if not done and rows.on_device and self._in_loop and not (rows.decoded and jax.default_backend() == "cpu"):
            context, index, weights, views = self._order(rows, epoch, seed)
            masked = self.masks(len(rows))
            batches = self._spread((index, weights, views), axis=1)
            state, total, unread = self._epoch(
                state, context, rows.arrays, rows.labelled, *batches, seed, decoded=rows.decoded, masked=masked
            )
            jax.block_until_ready(unread)
            steered.between(state, total, len(index))
            steered.tick(len(index))
            return state, total, [unread]
        losses: list[Any] = []
        for k, step in enumerate(self._steps(state, rows, epoch, seed, stream, done), done):
            state, metrics = step
            total = total.plus(metrics)
            losses.append(metrics.loss)
            if len(losses) == 2 * _AHEAD:  # the host may run ahead of the device by a few steps, not by an epoch
                self._check(losses[:_AHEAD], k + 1 - _AHEAD, rows, epoch, seed)
                del losses[:_AHEAD]
            steered.between(state, total, k + 1)
            steered.tick(k + 1)
        return state, total, losses

    def _check(self, losses: list[Any], stop: int, rows: FeatureDataset, epoch: int, seed: int | np.uint32) -> None:
        """Waits for the losses of the steps before `stop`, and refuses to go on where one is no number."""
        found = np.concatenate([np.ravel(x) for x in jax.device_get(losses)]) if losses else np.zeros(0)
        if self.not_finite == "stop" and not np.isfinite(found).all():
            bad = stop - len(found) + int(np.argmin(np.isfinite(found)))
            raise NotFinite(epoch, bad, self._batches(rows, seed, epoch)[0][bad])

    def steps(
        self, state: State, rows: FeatureDataset, *, seed: int = 0, epoch: int = 0
    ) -> Generator[tuple[State, Metrics], State | None]:
        """Train one epoch step by step, for those who watch or steer each step.

        Args:
            state: used up by the first step, as each state given is by the next; `generator.send(state)` goes on from
                another one (with another learning rate, say).
            rows: from `rows(source)`.
            seed: as for `fit`.
            epoch: which one: decides the order.
        """
        loader = self._loader(rows, seed, epoch, epoch + 1, 0)
        stream = to_device(loader, devices=self.devices) if loader else None
        return self._steps(self._entered(state), rows, epoch, np.uint32(seed), stream)

    def _loader(self, rows: FeatureDataset, seed: int, first: int, epochs: int, done: int) -> Loader | None:
        """Reads the images of rows that are not kept, from step `done` of epoch `first` to before `epochs`."""
        if rows.source is None:
            return None
        source: Any = rows.source if self.devices is None else HostShard(rows.source, self.devices.own(self.batch_size))
        loader = Loader(
            source, self.batch_size, epochs=epochs, seed=seed, workers=self.workers, last_batch=self.last_batch
        )
        loader.restore({"step": first * loader.order.steps_per_epoch + done})
        return loader

    def _steps(
        self,
        state: State,
        rows: FeatureDataset,
        epoch: int,
        seed: np.uint32,
        stream: Iterator[Batch] | None,
        first: int = 0,
    ) -> Generator[tuple[State, Metrics], State | None]:
        context, index, weights, views = self._order(rows, epoch, seed)
        how = {"decoded": rows.decoded, "masked": self.masks(len(rows))}
        loaded: Iterator[Any] = iter(())
        labelled = rows.labelled if rows.on_device else jax.tree.map(np.asarray, rows.labelled)
        if stream is None and not rows.on_device:
            loaded = ahead(lambda k: self._taken(rows, views[k]), range(first, len(index)))
        for k in range(first, len(index)):
            preemption.check()
            if rows.on_device:
                batch = self._spread((index[k], weights[k], views[k]))
                state, metrics = self._taking_step(state, context, rows.arrays, labelled, *batch, seed, **how)
            else:
                values = (next(stream).examples,) if stream else next(loaded)
                batch = self._spread((labelled.take(index[k]), weights[k]))
                state, metrics = self._step(state, context, values, *batch, seed, **how)
            sent = yield state, metrics
            state = state if sent is None else self._entered(sent)

    def _order(
        self, rows: FeatureDataset, epoch: int, seed: np.uint32
    ) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
        """What an epoch's steps share, and each step's examples, their weights, and rows of them."""
        index, weights = self._batches(rows, seed, epoch)
        views = index
        if rows.views > 1:
            views = index * rows.views + epoch_views(index.shape, rows.views, int(seed), epoch)
        return self._shared(self.constants, rows), index, weights, views

    def _batches(self, rows: FeatureDataset, seed: int | np.uint32, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return epoch_batches(len(rows), self.batch_size, int(seed), epoch, self.last_batch)

    def _shared(self, constants: Any, rows: FeatureDataset) -> tuple[Any, Any]:
        """What all steps read of the frozen part; on every device, where there are several."""
        context = (constants, self.fixed if rows.decoded else None)
        return context if self.devices is None else self.devices.replicate(context)

    def _entered(self, state: State) -> State:
        """A state from elsewhere where the steps expect it; one of theirs is there."""
        return state if self.devices is None else self.devices.place(state)

    def _spread(self, batch: Any, axis: int = 0) -> Any:
        return batch if self.devices is None else self.devices.batch(batch, axis)

    def _taken(self, rows: FeatureDataset, index: np.ndarray) -> tuple[Any, ...]:
        """The rows at `index`, as a step takes them."""
        if self.devices is None:
            return rows.take(index)
        if rows.on_device:
            return self.devices.batch(rows.take(index))
        return self.devices.local_batch(rows.take(index[self.devices.own(len(index))]))

    def evaluate(self, state: State, rows: FeatureDataset) -> dict[str, float]:
        """Loss and the task's measures over all rows of `rows(source, train=False)`, exact to the last short batch."""
        return self.predict(state, rows)[0]

    def predict(self, state: State, rows: FeatureDataset) -> tuple[dict[str, float], Any]:
        """Loss and the task's measures, and the model's outputs of every row: logits f32[N, 1 or classes]."""
        context, state = self._shared(self.inference_constants, rows), self._entered(state)
        total, outputs = self.no_metrics(), []
        labelled = jax.tree.map(np.asarray, rows.labelled)
        starts = range(0, len(rows), self.batch_size)
        batches = [np.minimum(np.arange(k, k + self.batch_size), len(rows) - 1) for k in starts]
        taken = ahead(partial(self._taken, rows), batches)  # read while the device works on the batch before
        for start, index, values in zip(starts, batches, taken, strict=True):
            preemption.check()
            weights = (np.arange(start, start + self.batch_size) < len(rows)).astype(np.float32)
            batch = self._spread((labelled.take(index), weights))
            metrics, out = self._evaluate(state, context, values, *batch, decoded=rows.decoded)
            total = total.plus(metrics)
            outputs.append(jax.tree.map(np.asarray, out))
        whole = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(rows)], *outputs)
        return total.summary() | self.task.overall(whole, *labelled), whole


_AHEAD = 8


class _Steered(NamedTuple):
    """Who is told of each step."""

    tick: Callable[[int], None]
    between: Callable[[State, Metrics, int], None]


def _told(
    between: Callable[[State, Metrics, int], None] | None,
    before: int,
    state: State,
    running_metrics: Metrics,
    done: int,
):
    if between:
        between(state, running_metrics, before + done)


def _shifted(report: Progress, before: int, total: int, done: int) -> None:
    report(before + done, total)
