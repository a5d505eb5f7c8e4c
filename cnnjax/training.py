"""State, compiled step, compiled epoch, and the loop over them.

A `Trainer` takes a model and what is frozen, cuts the model at the frontier, and trains what is left on
stored features. It knows no data set: pictures come from anything with `digest`, `labels`, `len` and `read`.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from cnnjax.data.loader import Batch, Loader, to_device
from cnnjax.data.order import epoch_batches, epoch_views
from cnnjax.data.views import Views
from cnnjax.features import PASS_BATCH, FeatureStore, Progress, ahead
from cnnjax.freeze import Frozen
from cnnjax.functional import Leaves, functionalize, leaves_of
from cnnjax.losses import ZERO, Metrics, count_logits, losses, targets
from cnnjax.optim import make_optimizer
from cnnjax.rows import LabelledPictures, Rows, checked_labels, feature_rows, image_rows
from cnnjax.staging import Staged
from cnnjax.state import State, checked_leaves, fresh_state

if TYPE_CHECKING:
    from cnnjax.augment import Augmentation

# XLA's CPU backend leaves its fast convolutions inside a loop, so epochs with any are run step by step there.
_AUGMENT = 0x617567  # folded into a step's key, so that augmentation and dropout draw apart
_SLOW_IN_LOOPS_ON_CPU = {"conv_general_dilated", "reduce_window_max", "select_and_scatter_add", "custom_vjp_call"}


class Trainer:
    """Trains what is not frozen, on features of what is.

    Args:
        model: any NNX module from a batch of images to logits. It is not changed.
        frozen: `Freeze(...).resolve(model)`.
        image_size: height and width of the pictures; one number, or three, are the shape of an example that is
            no RGB picture (a sound's samples).
        batch_size: examples a step; the last batch of an epoch is filled up and masked.
        optimizer: a name from `cnnjax.optim.OPTIMIZERS`, or an optax transform.
        store: where features are kept; in memory if not given.
        augment: what happens to each picture before training sees it.
        views: with `augment`: 0 augments in every step, with the frozen part inside (the lecture's Method 2);
            K draws K views of each picture once, stores their features, and shows a random one in each epoch.
        workers: processes that read pictures; 0 reads in threads of this one.
        label_smoothing: how much of a label's probability is spread evenly over all classes while training.

    Attributes:
        traces: how often each program was traced; 1 each after any number of epochs, seeds and rates.

    Example:
        >>> from cnnjax.data import InMemory
        >>> from cnnjax.freeze import Freeze
        >>> model = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), lambda x: x.mean((1, 2)),
        ...                        nnx.Linear(4, 1, rngs=nnx.Rngs(1)))
        >>> pictures = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), np.uint8)
        >>> data = InMemory(pictures, np.arange(20) % 2, ("a", "b"))
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
        label_smoothing: float = 0.0,
    ):
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected 0 or more and less than 1, found {label_smoothing}")
        self.label_smoothing = label_smoothing
        if views < 0 or (views and not augment):
            raise ValueError(f"views: expected 0 or more, and an augmentation to draw them with, found {views}")
        self.augment, self.views, self.workers = augment or None, views, workers
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.frozen, self.batch_size = frozen, batch_size
        self.optimizer = make_optimizer(optimizer) if isinstance(optimizer, str) else optimizer
        self.store = store or FeatureStore()
        self.functional = functionalize(model, frozen=frozen)
        self.traces: Counter[str] = Counter()
        parameters, random = set(self.functional.parameters()), set(self.functional.random())
        leaves = {p: x for p, x in leaves_of(model).items() if p not in random}
        live, self.fixed = frozen.partition(leaves)
        self._trainable = tuple(p for p in live if p in parameters)
        self._statistics = tuple(p for p in live if p not in parameters)
        self._leaves = live

        shape = (*image_size, 3) if len(image_size) == 2 else tuple(image_size)
        image = jax.ShapeDtypeStruct(shape, jnp.float32)
        late: dict[str, Any] = {
            "trainable": {p: live[p] for p in self._trainable},
            "statistics": {p: live[p] for p in self._statistics},
        }
        keyed = late | {"key": jax.random.key(0)}
        sizes = (batch_size, PASS_BATCH)
        self.staged = Staged(self._forward, self.fixed, image, keyed, sizes)
        self.inference = Staged(self._infer, self.fixed, image, late, sizes)
        self.image_size, self.example = tuple(image_size), image
        images = jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)
        self.outputs = count_logits(jax.eval_shape(self._infer, self.fixed, images, late), batch_size)
        self.constants = self.staged.constants(self.fixed)
        self.inference_constants = self.inference.constants(self.fixed)
        self._in_loop = jax.default_backend() != "cpu" or not (
            self.staged.late_primitives & _SLOW_IN_LOOPS_ON_CPU
        )  # fmt: skip
        self._step = jax.jit(self._traced("step", self._update), donate_argnums=0, static_argnames="decoded")
        self._taking_step = jax.jit(
            self._traced("step", self._take_and_update), donate_argnums=0, static_argnames="decoded"
        )
        self._epoch = jax.jit(self._traced("epoch", self._scan), donate_argnums=0, static_argnames="decoded")
        self._evaluate = jax.jit(self._traced("evaluate", self._score), static_argnames="decoded")

    def _traced(self, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.traces[name] += 1
            return fn(*args, **kwargs)

        return counted

    # The two programs that are staged.

    def _forward(self, fixed: Leaves, images: jax.Array, late: dict[str, Any]) -> tuple[jax.Array, Leaves]:
        random = self.functional.random_leaves(late["key"])
        leaves = {**fixed, **late["trainable"], **late["statistics"], **random}
        logits, after = self.functional.apply(leaves, images, train=True)
        return logits, {p: after[p] for p in self._statistics}

    def _infer(self, fixed: Leaves, images: jax.Array, late: dict[str, Any]) -> jax.Array:
        random = self.functional.random_leaves(jax.random.key(0))
        leaves = {**fixed, **late["trainable"], **late["statistics"], **random}
        return self.functional.apply(leaves, images, train=False)[0]

    # The compiled programs.

    def _update(
        self, state: State, context: Any, rows: Sequence[jax.Array], labels: jax.Array, weights: jax.Array,
        seed: jax.Array, decoded: bool = False,
    ) -> tuple[State, Metrics]:  # fmt: skip
        constants, fixed = context
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if decoded:  # nothing is stored: the frozen part runs here, without residuals kept for gradients
            images = jnp.asarray(rows[0], jnp.float32)
            if self.augment:
                drawn, mixed = jax.random.split(jax.random.fold_in(key, _AUGMENT))
                images = self.augment(drawn, images)
                images, labels = self.augment.mix(mixed, images, targets(labels, self.outputs))
            rows = self.staged.maker(self.staged.features, len(labels)).run(fixed, images)
            rows = [jax.lax.stop_gradient(x) for x in rows]

        def objective(trainable: Leaves) -> tuple[jax.Array, tuple[Leaves, Metrics]]:
            late = {"trainable": trainable, "statistics": state.statistics, "key": key}
            logits, statistics = self.staged.late(constants, rows, late)
            loss, right = losses(logits, labels, self.label_smoothing)
            count = weights.sum()
            metrics = Metrics((loss * weights).sum(), (right * weights).sum(), count)
            return metrics.loss / jnp.maximum(count, 1), (statistics, metrics)

        gradients, (statistics, metrics) = jax.grad(objective, has_aux=True)(state.trainable)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.trainable)
        trainable: Any = optax.apply_updates(state.trainable, updates)
        return State(state.step + 1, trainable, statistics, optimizer), metrics

    def _take_and_update(
        self, state: State, context: Any, arrays: Any, labels: jax.Array, index: jax.Array, weights: jax.Array,
        views: jax.Array, seed: jax.Array, decoded: bool = False,
    ) -> tuple[State, Metrics]:  # fmt: skip
        rows = [jnp.take(x, views, axis=0, mode="clip") for x in arrays]
        return self._update(state, context, rows, labels[index], weights, seed, decoded)

    def _scan(
        self, state: State, context: Any, arrays: Any, labels: jax.Array, index: jax.Array, weights: jax.Array,
        views: jax.Array, seed: jax.Array, decoded: bool = False,
    ) -> tuple[State, Metrics]:  # fmt: skip
        def body(state: State, batch: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[State, Metrics]:
            return self._take_and_update(state, context, arrays, labels, *batch, seed, decoded)

        state, metrics = jax.lax.scan(body, state, (index, weights, views))
        return state, Metrics(*(jnp.sum(x) for x in metrics))

    def _score(
        self, state: State, context: Any, rows: Any, labels: jax.Array, weights: jax.Array, decoded: bool = False
    ) -> tuple[Metrics, jax.Array]:
        constants, fixed = context
        if decoded:
            images = jnp.asarray(rows[0], jnp.float32)
            rows = self.inference.maker(self.inference.features, len(labels)).run(fixed, images)
        late = {"trainable": state.trainable, "statistics": state.statistics}
        logits = self.inference.late(constants, rows, late)
        loss, right = losses(logits, labels)
        return Metrics((loss * weights).sum(), (right * weights).sum(), weights.sum()), logits

    # What a user calls.

    @property
    def trainable_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(int(self._leaves[p].size) for p in self._trainable)

    def init(self, leaves: Leaves | None = None, learning_rate: float | None = None) -> State:
        """A fresh state.

        Args:
            leaves: values to start from, by path (those of another seed's head, say); the model's own
                where a path is absent. Structure, shape and type may not change.
            learning_rate: the optimizer's own if not given.

        Raises:
            ValueError: if a leaf is unknown or of another shape or type, or the optimizer has no rate to set.
        """
        given = checked_leaves(leaves or {}, self._leaves, (*self.fixed, *self.functional.random()))
        return fresh_state({**self._leaves, **given}, self._trainable, self.optimizer, learning_rate)

    def rows(self, source: LabelledPictures, *, train: bool = True, progress: Progress | None = None) -> Rows:
        """The features of a source, from the store or made now.

        Args:
            source: the pictures.
            train: for training (dropout may lie before the frontier) or for evaluation.
            progress: called with (images done, images in all) if there is a pass to make.
        """
        labels = checked_labels(source, self.image_size, self.outputs)
        augment = self.augment if train else None
        if augment and not self.views:
            return image_rows(source, labels, self.example.shape)
        staged, views = (self.staged, self.views if augment else 1) if train else (self.inference, 1)
        # Views are drawn on the device, which worker processes have no part in.
        pictures, workers = (Views(source, augment, views), 0) if augment else (source, self.workers)
        get = partial(self.store.get, staged, self.fixed, pictures, progress=progress, workers=workers)
        return feature_rows(get, source, labels, views)

    def fit(
        self, state: State, rows: Rows, *, epochs: int, seed: int = 0, progress: Progress | None = None,
        after: Callable[[State, dict[str, float]], bool | None] | None = None,
    ) -> tuple[State, list[dict[str, float]]]:  # fmt: skip
        """Train.

        Args:
            state: from `init`; it is used up (its arrays are donated).
            rows: from `rows(source)`.
            epochs: passes over the rows.
            seed: of the order of the examples, and of dropout.
            progress: called with (steps done, steps in all).
            after: called at the end of each epoch with the state (used up by the next: copy what is to stay) and its
                record; True ends training there.

        Returns:
            The new state, and one record an epoch: loss, accuracy, steps, seconds.
        """
        log = []
        steps = -(-len(rows) // self.batch_size)
        report = progress or (lambda done, total: None)
        first = int(state.step) // steps  # a state that was trained before goes on with the next epochs
        loader = self._loader(rows, seed, first, first + epochs)
        stream = to_device(loader) if loader else None
        for epoch in range(first, first + epochs):
            start = time.perf_counter()
            tick = partial(_shifted, report, (epoch - first) * steps, epochs * steps)
            state, metrics = self._run_epoch(state, rows, epoch, np.uint32(seed), stream, tick)
            record = metrics.summary() | {"epoch": epoch, "steps": steps}
            log.append(record | {"seconds": time.perf_counter() - start})
            if after and after(state, log[-1]):
                break
        if loader:
            loader.close()
        return state, log

    def _run_epoch(
        self, state: State, rows: Rows, epoch: int, seed: np.uint32, stream: Iterator[Batch] | None,
        tick: Callable[[int], None],
    ) -> tuple[State, Metrics]:  # fmt: skip
        # The frozen part may hold convolutions too, where it runs in the step.
        if rows.on_device and self._in_loop and not (rows.decoded and jax.default_backend() == "cpu"):
            context, index, weights, views = self._order(rows, epoch, seed)
            state, metrics = self._epoch(
                state, context, rows.arrays, rows.labels, index, weights, views, seed, decoded=rows.decoded
            )
            jax.block_until_ready(metrics)
            tick(len(index))
            return state, metrics
        total = ZERO
        for k, step in enumerate(self._steps(state, rows, epoch, seed, stream)):
            state, metrics = step
            total = Metrics(*(a + b for a, b in zip(total, metrics, strict=True)))
            if k % 8 == 7:  # the host may run ahead of the device by a few steps, not by an epoch
                jax.block_until_ready(metrics)
            tick(k + 1)
        return state, total

    def steps(
        self, state: State, rows: Rows, *, seed: int = 0, epoch: int = 0
    ) -> Generator[tuple[State, Metrics], State | None]:
        """Train one epoch step by step, for those who watch or steer each step.

        Args:
            state: used up by the first step, as each state given is by the next; `generator.send(state)` goes on from
                another one (with another learning rate, say).
            rows: from `rows(source)`.
            seed: as for `fit`.
            epoch: which one: decides the order.
        """
        loader = self._loader(rows, seed, epoch, epoch + 1)
        return self._steps(state, rows, epoch, np.uint32(seed), to_device(loader) if loader else None)

    def _loader(self, rows: Rows, seed: int, first: int, epochs: int) -> Loader | None:
        """Reads the pictures of rows that are not kept, from the epoch `first` to before `epochs`."""
        if rows.source is None:
            return None
        loader = Loader(rows.source, self.batch_size, epochs=epochs, seed=seed, workers=self.workers)
        loader.restore({"step": first * loader.order.steps_per_epoch})
        return loader

    def _steps(
        self, state: State, rows: Rows, epoch: int, seed: np.uint32, stream: Iterator[Batch] | None
    ) -> Generator[tuple[State, Metrics], State | None]:
        context, index, weights, views = self._order(rows, epoch, seed)
        loaded: Iterator[Any] = iter(range(len(index)))
        if stream is None and not rows.on_device:
            loaded = ahead(lambda k: rows.take(views[k]), range(len(index)))
        for k in range(len(index)):
            if rows.on_device:
                state, metrics = self._taking_step(
                    state, context, rows.arrays, rows.labels, index[k], weights[k], views[k], seed, decoded=rows.decoded
                )  # fmt: skip
            else:
                values = (next(stream).examples,) if stream else next(loaded)
                labels = np.asarray(rows.labels)[index[k]]
                state, metrics = self._step(state, context, values, labels, weights[k], seed, decoded=rows.decoded)
            state = (yield state, metrics) or state

    def _order(self, rows: Rows, epoch: int, seed: np.uint32) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
        """What an epoch's steps share, and each step's examples, their weights, and rows of them."""
        index, weights = epoch_batches(len(rows), self.batch_size, int(seed), epoch)
        views = index
        if rows.views > 1:
            views = index * rows.views + epoch_views(index.shape, rows.views, int(seed), epoch)
        return (self.constants, self.fixed if rows.decoded else None), index, weights, views

    def evaluate(self, state: State, rows: Rows) -> dict[str, float]:
        """Loss and accuracy over all rows (from `rows(source, train=False)`), exact to the last short batch."""
        return self.predict(state, rows)[0]

    def predict(self, state: State, rows: Rows) -> tuple[dict[str, float], np.ndarray]:
        """Loss and accuracy, and the logits f32[N, 1 or classes] of every row."""
        context = (self.inference_constants, self.fixed if rows.decoded else None)
        total, logits = ZERO, []
        labels = np.asarray(rows.labels)
        for start in range(0, len(rows), self.batch_size):
            index = np.arange(start, start + self.batch_size)
            weights = (index < len(rows)).astype(np.float32)
            index = np.minimum(index, len(rows) - 1)
            metrics, out = self._evaluate(
                state, context, rows.take(index), labels[index], weights, decoded=rows.decoded
            )
            total = Metrics(*(a + b for a, b in zip(total, metrics, strict=True)))
            logits.append(np.asarray(out)[: int(weights.sum())])
        return total.summary(), np.concatenate(logits)

    def leaves(self, state: State) -> Leaves:
        """Every leaf of the trained model, frozen ones included, random streams left out."""
        return {**self.fixed, **state.trainable, **state.statistics}

    def model(self, state: State) -> nnx.Module:
        """The trained model, in inference mode."""
        random = self.functional.random_leaves(jax.random.key(0))
        return self.functional.module({**self.leaves(state), **random}, train=False)


def _shifted(report: Progress, before: int, total: int, done: int) -> None:
    report(before + done, total)
