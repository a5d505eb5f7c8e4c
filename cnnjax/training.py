"""State, compiled step, compiled epoch, and the loop over them.

A `Trainer` takes a model and what is frozen, cuts the model at the frontier, and trains what is left on
stored features. It knows no data set: pictures come from anything with `digest`, `labels`, `len` and `read`.
"""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from cnnjax.features import PASS_BATCH, FeatureStore, Progress, StoreTooSmall, ahead, fits_on_device
from cnnjax.freeze import Frozen
from cnnjax.functional import Leaves, functionalize, leaves_of
from cnnjax.losses import ZERO, Metrics, losses
from cnnjax.optimizers import make_optimizer, with_rate
from cnnjax.rows import LabelledPictures, Rows, epoch_batches
from cnnjax.staging import Staged

# XLA's CPU backend leaves its fast convolutions inside a loop, so epochs with any are run step by step there.
_SLOW_IN_LOOPS_ON_CPU = {"conv_general_dilated", "reduce_window_max", "select_and_scatter_add", "custom_vjp_call"}


class State(NamedTuple):
    """All that changes while training: plain dictionaries and arrays.

    Attributes:
        step: i32[], steps done.
        trainable: parameters that are moved, by path.
        statistics: running statistics of normalisation layers that are live, by path.
        optimizer: optax's state, for the trainable leaves alone.
    """

    step: jax.Array
    trainable: Leaves
    statistics: Leaves
    optimizer: Any


class Trainer:
    """Trains what is not frozen, on features of what is.

    Args:
        model: any NNX module from a batch of images to logits. It is not changed.
        frozen: `Freeze(...).resolve(model)`.
        image_size: height and width of the pictures.
        batch_size: examples a step; the last batch of an epoch is filled up and masked.
        optimizer: a name from `cnnjax.optimizers.OPTIMIZERS`, or an optax transform.
        store: where features are kept; in memory if not given.

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
        image_size: tuple[int, int],
        *,
        batch_size: int = 32,
        optimizer: str | optax.GradientTransformation = "rmsprop",
        store: FeatureStore | None = None,
    ):
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

        image = jax.ShapeDtypeStruct((*image_size, 3), jnp.float32)
        late: dict[str, Any] = {
            "trainable": {p: live[p] for p in self._trainable},
            "statistics": {p: live[p] for p in self._statistics},
        }
        keyed = late | {"key": jax.random.key(0)}
        sizes = (batch_size, PASS_BATCH)
        self.staged = Staged(self._forward, self.fixed, image, keyed, sizes)
        self.inference = Staged(self._infer, self.fixed, image, late, sizes)
        self.image_size = tuple(image_size)
        self.outputs = self._outputs(image, late)
        self.constants = self.staged.constants(self.fixed)
        self.inference_constants = self.inference.constants(self.fixed)
        self._in_loop = jax.default_backend() != "cpu" or not (
            self.staged.late_primitives & _SLOW_IN_LOOPS_ON_CPU
        )  # fmt: skip
        self._step = jax.jit(self._traced("step", self._update), donate_argnums=0, static_argnames="decoded")
        self._taking_step = jax.jit(self._traced("step", self._take_and_update), donate_argnums=0)
        self._epoch = jax.jit(self._traced("epoch", self._scan), donate_argnums=0)
        self._evaluate = jax.jit(self._traced("evaluate", self._score), static_argnames="decoded")

    def _outputs(self, image: jax.ShapeDtypeStruct, late: dict[str, Any]) -> int:
        """Number of logits; a model that gives anything else is refused."""
        images = jax.ShapeDtypeStruct((self.batch_size, *image.shape), image.dtype)
        out = jax.eval_shape(self._infer, self.fixed, images, late)
        if getattr(out, "ndim", 0) != 2 or out.shape[0] != self.batch_size:
            found = jax.tree.map(lambda x: list(x.shape), out)
            raise ValueError(
                f"the model must give logits [N, classes] for images [N, H, W, 3]; for {self.batch_size}: {found}"
            )
        return out.shape[1]

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
        if decoded:  # nothing is stored: the frozen part runs here, without residuals kept for gradients
            rows = self.staged.maker(self.staged.features, len(labels)).run(fixed, rows[0])
            rows = [jax.lax.stop_gradient(x) for x in rows]
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def objective(trainable: Leaves) -> tuple[jax.Array, tuple[Leaves, Metrics]]:
            late = {"trainable": trainable, "statistics": state.statistics, "key": key}
            logits, statistics = self.staged.late(constants, rows, late)
            loss, right = losses(logits, labels)
            count = weights.sum()
            metrics = Metrics((loss * weights).sum(), (right * weights).sum(), count)
            return metrics.loss / jnp.maximum(count, 1), (statistics, metrics)

        gradients, (statistics, metrics) = jax.grad(objective, has_aux=True)(state.trainable)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.trainable)
        trainable: Any = optax.apply_updates(state.trainable, updates)
        return State(state.step + 1, trainable, statistics, optimizer), metrics

    def _take_and_update(
        self, state: State, context: Any, arrays: Any, labels: jax.Array, index: jax.Array, weights: jax.Array,
        seed: jax.Array,
    ) -> tuple[State, Metrics]:  # fmt: skip
        rows = [jnp.take(x, index, axis=0, mode="clip") for x in arrays]
        return self._update(state, context, rows, labels[index], weights, seed)

    def _scan(
        self, state: State, context: Any, arrays: Any, labels: jax.Array, index: jax.Array, weights: jax.Array,
        seed: jax.Array,
    ) -> tuple[State, Metrics]:  # fmt: skip
        def body(state: State, batch: tuple[jax.Array, jax.Array]) -> tuple[State, Metrics]:
            return self._take_and_update(state, context, arrays, labels, *batch, seed)

        state, metrics = jax.lax.scan(body, state, (index, weights))
        return state, Metrics(*(jnp.sum(x) for x in metrics))

    def _score(
        self, state: State, context: Any, rows: Any, labels: jax.Array, weights: jax.Array, decoded: bool = False
    ) -> tuple[Metrics, jax.Array]:
        constants, fixed = context
        if decoded:
            rows = self.inference.maker(self.inference.features, len(labels)).run(fixed, rows[0])
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
        given = {p: x for p, x in (leaves or {}).items() if not self.frozen(p)}
        faults = [
            f"  {p}: expected {have.dtype}{list(have.shape)}, found {given[p].dtype}{list(given[p].shape)}"
            for p, have in self._leaves.items()
            if p in given and (given[p].shape, given[p].dtype) != (have.shape, have.dtype)
        ]
        known = set(self._leaves) | set(self.functional.random())
        faults += [f"  {p}: no such leaf in the model" for p in given if p not in known]
        if faults:
            raise ValueError("leaves that do not fit the model:\n" + "\n".join(faults))
        # Copies: the state is donated to the step, the model's own arrays must survive it.
        live = {p: jnp.array(given.get(p, x)) for p, x in self._leaves.items()}
        trainable = {p: live[p] for p in self._trainable}
        # Some optimizers keep the parameters themselves in their state; donated buffers must not be shared.
        optimizer = jax.tree.map(jnp.array, self.optimizer.init(trainable))
        if learning_rate is not None:
            optimizer = with_rate(optimizer, learning_rate)
        return State(jnp.zeros((), jnp.int32), trainable, {p: live[p] for p in self._statistics}, optimizer)

    def rows(self, source: LabelledPictures, *, train: bool = True, progress: Progress | None = None) -> Rows:
        """The features of a source, from the store or made now.

        Args:
            source: the pictures.
            train: for training (dropout may lie before the frontier) or for evaluation.
            progress: called with (images done, images in all) if there is a pass to make.
        """
        if tuple(source.image_size) != self.image_size:
            raise ValueError(
                f"the trainer was made for pictures of {self.image_size}, the source has {source.image_size}"
            )
        labels = np.asarray(source.labels)
        if not len(labels):
            raise ValueError("the source has no pictures")
        if labels.min() < 0 or labels.max() >= max(self.outputs, 2):
            raise ValueError(
                f"labels {labels.min()} to {labels.max()} do not fit {self.outputs} logit{'s'[: self.outputs > 1]}: "
                "one logit tells two classes apart, more tell one class each"
            )
        staged = self.staged if train else self.inference
        try:
            arrays, reused = self.store.get(staged, self.fixed, source, progress=progress)
        except StoreTooSmall as error:
            warnings.warn(f"{error}; the frozen part runs in every step instead", RuntimeWarning, stacklevel=2)
            return Rows((), labels, False, False, source)
        if fits_on_device(sum(x.nbytes for x in arrays)):
            return Rows(tuple(map(jnp.asarray, arrays)), jnp.asarray(labels), True, reused)
        return Rows(arrays, labels, False, reused)

    def fit(
        self, state: State, rows: Rows, *, epochs: int, seed: int = 0, progress: Progress | None = None
    ) -> tuple[State, list[dict[str, float]]]:
        """Train.

        Args:
            state: from `init`; it is used up (its arrays are donated).
            rows: from `rows(source)`.
            epochs: passes over the rows.
            seed: of the order of the examples, and of dropout.
            progress: called with (steps done, steps in all).

        Returns:
            The new state, and one record an epoch: loss, accuracy, steps, seconds.
        """
        log = []
        steps = -(-len(rows) // self.batch_size)
        report = progress or (lambda done, total: None)
        first = int(state.step) // steps  # a state that was trained before goes on with the next epochs
        for epoch in range(first, first + epochs):
            start = time.perf_counter()
            index, weights = epoch_batches(len(rows), self.batch_size, seed, epoch)
            tick = partial(_shifted, report, (epoch - first) * steps, epochs * steps)
            state, metrics = self._run_epoch(state, rows, index, weights, np.uint32(seed), tick)
            record = metrics.summary() | {"epoch": epoch, "steps": steps}
            log.append(record | {"seconds": time.perf_counter() - start})
        return state, log

    def _run_epoch(
        self,
        state: State,
        rows: Rows,
        index: np.ndarray,
        weights: np.ndarray,
        seed: np.uint32,
        tick: Callable[[int], None],
    ) -> tuple[State, Metrics]:
        context = (self.constants, self.fixed if rows.source is not None else None)
        if rows.on_device and self._in_loop:
            state, metrics = self._epoch(state, context, rows.arrays, rows.labels, index, weights, seed)
            jax.block_until_ready(metrics)
            tick(len(index))
            return state, metrics
        total = ZERO
        batches = range(len(index))
        loaded: Iterable[Any] = batches if rows.on_device else ahead(lambda k: rows.take(index[k]), list(batches))
        for k, values in zip(batches, loaded, strict=True):
            if rows.on_device:
                state, metrics = self._taking_step(
                    state, context, rows.arrays, rows.labels, index[k], weights[k], seed
                )  # fmt: skip
            else:
                labels, decoded = np.asarray(rows.labels)[index[k]], rows.source is not None
                state, metrics = self._step(state, context, values, labels, weights[k], seed, decoded=decoded)
            total = Metrics(*(a + b for a, b in zip(total, metrics, strict=True)))
            if k % 8 == 7:  # the host may run ahead of the device by a few steps, not by an epoch
                jax.block_until_ready(metrics)
            tick(k + 1)
        return state, total

    def evaluate(self, state: State, rows: Rows) -> dict[str, float]:
        """Loss and accuracy over all rows (from `rows(source, train=False)`), exact to the last short batch."""
        return self.predict(state, rows)[0]

    def predict(self, state: State, rows: Rows) -> tuple[dict[str, float], np.ndarray]:
        """Loss and accuracy, and the logits f32[N, 1 or classes] of every row."""
        context = (self.inference_constants, self.fixed if rows.source is not None else None)
        total, logits = ZERO, []
        labels = np.asarray(rows.labels)
        for start in range(0, len(rows), self.batch_size):
            index = np.arange(start, start + self.batch_size)
            weights = (index < len(rows)).astype(np.float32)
            index = np.minimum(index, len(rows) - 1)
            decoded = rows.source is not None
            metrics, out = self._evaluate(state, context, rows.take(index), labels[index], weights, decoded=decoded)
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
