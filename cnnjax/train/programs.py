"""The compiled programs of training: a step, an epoch of steps, evaluation, cut at the frontier."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from cnnjax.data.order import LastBatch, epoch_steps
from cnnjax.data.source import image_shape
from cnnjax.features import PASS_BATCH
from cnnjax.freeze import Frozen
from cnnjax.functional import Leaves, functionalize, leaves_of
from cnnjax.ops import spread_over_devices
from cnnjax.ops.counting import batch_of
from cnnjax.optim import make_optimizer
from cnnjax.runtime.devices import Devices
from cnnjax.runtime.precision import Precision, resolved
from cnnjax.staging import Staged
from cnnjax.train.classification import Classification
from cnnjax.train.state import State, checked_leaves, fresh_state
from cnnjax.train.task import Labelled, Metrics, Task

if TYPE_CHECKING:
    from cnnjax.augment import Augmentation

NotFiniteChoice = Literal["stop", "skip", "keep"]

_AUGMENT = 0x617567  # folded into a step's key, so that augmentation and dropout draw apart
# XLA's CPU backend leaves its fast convolutions inside a loop, so epochs with any are run step by step there.
_SLOW_IN_LOOPS_ON_CPU = {"conv_general_dilated", "reduce_window_max", "select_and_scatter_add"}


class Programs:
    """What a `Trainer` compiles; its arguments and attributes are described there."""

    def __init__(
        self,
        model: nnx.Module,
        frozen: Frozen,
        image_size: tuple[int, ...],
        *,
        batch_size: int = 32,
        optimizer: str | optax.GradientTransformation = "rmsprop",
        augment: "Augmentation | None" = None,
        task: Task | None = None,
        not_finite: NotFiniteChoice = "stop",
        precision: Precision = "auto",
        devices: Devices | None = None,
        last_batch: LastBatch = "pad",
    ):
        if last_batch not in get_args(LastBatch):
            raise ValueError(f"last_batch: expected one of {', '.join(get_args(LastBatch))}, found {last_batch!r}")
        self.last_batch: LastBatch = last_batch
        if not_finite not in get_args(NotFiniteChoice):
            choices = ", ".join(get_args(NotFiniteChoice))
            raise ValueError(f"not_finite: expected one of {choices}, found {not_finite!r}")
        self.task = Classification() if task is None else task
        if self.task.pending:
            raise ValueError(f"the task needs {self.task.pending}: give task.resolved(training targets)")
        self.not_finite, self.precision = not_finite, resolved(precision)
        self.augment = augment or None
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if devices is not None:
            devices.check_batch(batch_size)
        self.devices = devices
        self.frozen, self.batch_size = frozen, batch_size
        self.optimizer = make_optimizer(optimizer) if isinstance(optimizer, str) else optimizer
        self.functional = functionalize(model, frozen=frozen)
        self.traces: Counter[str] = Counter()
        parameters, random = set(self.functional.parameters()), set(self.functional.random())
        leaves = {p: x for p, x in leaves_of(model).items() if p not in random}
        live, self.fixed = frozen.partition(leaves)
        self._parameters = parameters
        self._trainable = tuple(p for p in live if p in parameters)
        self._statistics = tuple(p for p in live if p not in parameters)
        self._leaves = live

        shape = image_shape(image_size)
        image = jax.ShapeDtypeStruct(shape, jnp.float32)
        late: dict[str, Any] = {
            "trainable": {p: live[p] for p in self._trainable},
            "statistics": {p: live[p] for p in self._statistics},
        }
        self._keyed = late | {"key": jax.random.key(0)}
        self._normalises, self._fault = self.functional.normalises, ""
        self._sizes = sizes = (batch_size, PASS_BATCH)
        with self._spread_or_not():
            self.staged = Staged(self._forward, self.fixed, image, self._keyed, sizes)
            self.inference = Staged(self._infer, self.fixed, image, late, sizes)
        if own := [p for p in self._statistics if p not in self.functional.counted and self.staged.of_images[1][p]]:
            self._normalises = True
            self._fault = self._fault or f"{own[0]} is made from the batch, and is no statistic of an nnx.BatchNorm"
        self.image_size, self.example = tuple(image_size), image
        images = jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)
        self.outputs = jax.eval_shape(self._infer, self.fixed, images, late)
        self.task.check_outputs(self.outputs, batch_size)
        self.constants = self.staged.constants(self.fixed)
        self.inference_constants = self.inference.constants(self.fixed)
        self._in_loop = jax.default_backend() != "cpu" or not (
            self.staged.late_primitives & _SLOW_IN_LOOPS_ON_CPU
        )  # fmt: skip
        how = ("decoded", "masked")
        self._step = jax.jit(self._traced("step", self._update), donate_argnums=0, static_argnames=how)
        self._taking_step = jax.jit(self._traced("step", self._take_and_update), donate_argnums=0, static_argnames=how)
        self._epoch = jax.jit(self._traced("epoch", self._scan), donate_argnums=0, static_argnames=how)
        self._evaluate = jax.jit(self._traced("evaluate", self._score), static_argnames="decoded")

    def _spread_or_not(self) -> AbstractContextManager[None]:
        several = self.devices is not None and self.devices.count > 1
        return spread_over_devices() if several else nullcontext()

    def _traced(self, name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.traces[name] += 1
            with self._spread_or_not():
                return fn(*args, **kwargs)

        return counted

    # The two programs that are staged.

    def _forward(self, fixed: Leaves, images: jax.Array, late: dict[str, Any]) -> tuple[Any, Leaves]:
        random = self.functional.random_leaves(late["key"])
        leaves, images = self._computed({**fixed, **late["trainable"], **late["statistics"]}, images)
        with batch_of(len(images), late.get("counts")) as batch:
            outputs, after = self.functional.apply({**leaves, **random}, images, train=True)
        self._normalises |= batch.normalises
        self._fault = self._fault or batch.fault or ""
        return _in_float32(outputs), {p: after[p] for p in self._statistics}

    def _infer(self, fixed: Leaves, images: jax.Array, late: dict[str, Any]) -> Any:
        random = self.functional.random_leaves(jax.random.key(0))
        leaves, images = self._computed({**fixed, **late["trainable"], **late["statistics"]}, images)
        return _in_float32(self.functional.apply({**leaves, **random}, images, train=False)[0])

    def _computed(self, leaves: Leaves, images: jax.Array) -> tuple[Leaves, jax.Array]:
        """Parameters and images in the type that is computed with; statistics stay as they are."""
        if self.precision == "float32":
            return leaves, images
        kind = jnp.dtype(self.precision)
        cast = {p: x.astype(kind) for p, x in leaves.items() if p in self._parameters and x.dtype == jnp.float32}
        return {**leaves, **cast}, images.astype(kind)

    @cached_property
    def masked(self) -> Staged:
        """The training program with one argument more, which rows count; constants and features are the same."""

        def late(batch: int) -> dict[str, Any]:
            return self._keyed | {"counts": jax.ShapeDtypeStruct((batch,), jnp.bool_)}

        with self._spread_or_not():
            staged = Staged(self._forward, self.fixed, self.example, late, self._sizes)
        if staged.cut != self.staged.cut:
            raise ValueError(
                "the model is another program where rows are left out of its statistics; give last_batch='drop', or a "
                "batch size that divides the number of examples"
            )
        return staged

    def masks(self, examples: int) -> bool:
        """Whether the steps of epochs of so many examples are told which rows of the batch count.

        They are where BatchNorm follows the batch and the last one is filled up: its statistics are then those of the
        rows that count, as with Keras's short last batch. Other steps have no need of it, and run without.

        Raises:
            ValueError: it cannot be told which numbers of a BatchNorm's input belong to which row.
        """
        left = examples % self.batch_size
        if not (left and self._normalises and self.last_batch == "pad"):
            return False
        if self._fault:
            raise ValueError(
                f"the last batch of {examples} examples has {left} of {self.batch_size}, and the rows that fill it up "
                f"cannot be left out of its statistics: {self._fault}. Give last_batch='drop', or a batch size that "
                "divides the number of examples"
            )
        return self.masked is not None  # traced here, not inside of a program

    def steps_per_epoch(self, examples: int) -> int:
        """Steps of an epoch of so many examples.

        Raises:
            ValueError: the only batch is short, and such ones are left out.
        """
        return epoch_steps(examples, self.batch_size, self.last_batch)

    # The compiled programs.

    def _update(
        self, state: State, context: Any, rows: Sequence[jax.Array], labelled: Labelled, counts: jax.Array,
        seed: jax.Array, decoded: bool = False, masked: bool = False,
    ) -> tuple[State, Metrics]:  # fmt: skip
        constants, fixed = context
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        targets, own = labelled
        if decoded:  # nothing is stored: the frozen part runs here, without residuals kept for gradients
            images = jnp.asarray(rows[0], jnp.float32)
            if self.augment:
                drawn, mixed = jax.random.split(jax.random.fold_in(key, _AUGMENT))
                images = self.augment(drawn, images)
                targets = self.task.augmented(targets, self.outputs, bool(self.augment.mixup or self.augment.cutmix))
                images, targets = self.augment.mix(mixed, images, targets)
            rows = self.staged.maker(self.staged.features, len(counts)).run(fixed, images)
            rows = [jax.lax.stop_gradient(x) for x in rows]

        def objective(trainable: Leaves) -> tuple[jax.Array, tuple[Leaves, Metrics]]:
            late = {"trainable": self._whole(trainable), "statistics": state.statistics, "key": key}
            staged = self.staged
            if masked:
                staged, late["counts"] = self.masked, counts > 0
            outputs, statistics = staged.late(constants, rows, late)
            metrics = self._sums(outputs, Labelled(targets, own), counts, train=True)
            least = jnp.maximum(metrics.count, 1) if own is None else jnp.where(metrics.count > 0, metrics.count, 1)
            return metrics.loss / least, (statistics, metrics)

        gradients, (statistics, metrics) = jax.grad(objective, has_aux=True)(state.trainable)
        gradients = self._kept(gradients)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.trainable)
        trainable: Any = optax.apply_updates(state.trainable, updates)
        after = State(state.step + 1, trainable, statistics, optimizer)
        if self.not_finite == "skip":
            after, metrics = self._spared(state, after, metrics, gradients)
        return self._kept(after), self._whole(metrics)

    def _sums(self, outputs: Any, labelled: Labelled, counts: jax.Array, *, train: bool) -> Metrics:
        """Loss and metrics of a batch, of which the rows count whose `counts` are not 0."""
        loss, found = self.task.scores(outputs, labelled.targets, train=train)
        weights = counts if labelled.weights is None else counts * labelled.weights
        sums = {name: (x * weights).sum() for name, x in found.items()}
        return Metrics((loss * weights).sum(), sums, weights.sum(), jnp.zeros(()))

    def _whole(self, tree: Any) -> Any:
        """The same on every device, where there are several."""
        return tree if self.devices is None else self.devices.whole(tree)

    def _kept(self, tree: Any) -> Any:
        """Where it lay before the step, so that nothing drifts and nothing is compiled again."""
        return tree if self.devices is None else self.devices.keep(tree)

    def _spared(self, before: State, after: State, metrics: Metrics, gradients: Leaves) -> tuple[State, Metrics]:
        """The step undone, and counted, where its loss or a gradient is not finite."""
        numbers = (metrics.loss, *jax.tree.leaves(gradients), *jax.tree.leaves(after.trainable))
        finite = [jnp.isfinite(x).all() for x in numbers]
        good = jnp.stack(finite).all()
        kept: Any = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
        sums = jax.tree.map(lambda x: jnp.where(good, x, 0.0), metrics)
        return kept._replace(step=after.step), sums._replace(skipped=1.0 - good)

    def _take_and_update(
        self, state: State, context: Any, arrays: Any, labelled: Labelled, index: jax.Array, counts: jax.Array,
        views: jax.Array, seed: jax.Array, decoded: bool = False, masked: bool = False,
    ) -> tuple[State, Metrics]:  # fmt: skip
        rows = [jnp.take(x, views, axis=0, mode="clip") for x in arrays]
        return self._update(state, context, rows, labelled.take(index), counts, seed, decoded, masked)

    def _scan(
        self, state: State, context: Any, arrays: Any, labelled: Labelled, index: jax.Array, counts: jax.Array,
        views: jax.Array, seed: jax.Array, decoded: bool = False, masked: bool = False,
    ) -> tuple[State, Metrics, jax.Array]:  # fmt: skip
        """An epoch; also the loss of each of its steps, f32[steps]."""

        def body(state: State, batch: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[State, Metrics]:
            return self._take_and_update(state, context, arrays, labelled, *batch, seed, decoded, masked)

        state, metrics = jax.lax.scan(body, state, (index, counts, views))
        return state, jax.tree.map(jnp.sum, metrics), jnp.asarray(metrics.loss)

    def _score(
        self, state: State, context: Any, rows: Any, labelled: Labelled, counts: jax.Array, decoded: bool = False
    ) -> tuple[Metrics, Any]:
        constants, fixed = context
        if decoded:
            images = jnp.asarray(rows[0], jnp.float32)
            rows = self.inference.maker(self.inference.features, len(counts)).run(fixed, images)
        late = {"trainable": self._whole(state.trainable), "statistics": state.statistics}
        outputs = self.inference.late(constants, rows, late, fold=True)
        return self._whole((self._sums(outputs, labelled, counts, train=False), outputs))

    def no_metrics(self) -> Metrics:
        """Sums over no examples."""
        return Metrics.zero(self.task.metric_names)

    def check_scores(self, labelled: Labelled) -> None:
        """Refuse a task that does not give a loss and metrics of each example; nothing is computed.

        Raises:
            ValueError: it gives something else for such targets.
        """

        def one(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.batch_size, *x.shape[1:]), x.dtype)

        targets = jax.tree.map(one, labelled.targets)
        _, found = jax.eval_shape(lambda *given: self.task.scores(*given, train=True), self.outputs, targets)
        if sorted(found) != sorted(self.task.metric_names):
            raise ValueError(f"the task's metrics are {sorted(found)}, its metric_names {self.task.metric_names}")

    @property
    def trainable_parameters(self) -> int:
        """Number of trainable parameters."""
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
        state = fresh_state({**self._leaves, **given}, self._trainable, self.optimizer, learning_rate)
        if self.devices is None:
            return state
        self.devices.check_same(state, "the weights to start from")
        return self.devices.place(state)

    def abstract_state(self) -> State:
        """Shapes and types of a state."""
        return jax.eval_shape(lambda: fresh_state(self._leaves, self._trainable, self.optimizer))

    def leaves(self, state: State) -> Leaves:
        """Every leaf of the trained model, frozen ones included, random streams left out; on one device of this host.

        Every host must call it.
        """
        live = {**state.trainable, **state.statistics}
        return {**self.fixed, **(live if self.devices is None else self.devices.gather(live))}

    def model(self, state: State) -> nnx.Module:
        """The trained model, in inference mode."""
        random = self.functional.random_leaves(jax.random.key(0))
        return self.functional.module({**self.leaves(state), **random}, train=False)


def _in_float32(outputs: Any) -> Any:
    """Outputs as losses take them: floats of 16 bit widened, whole numbers as they are."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, outputs)
