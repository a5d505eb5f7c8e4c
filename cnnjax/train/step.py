"""What one training step computes, as pure functions: the loss of a batch, its gradients, the weights after it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cnnjax.augment.own import AugmentFn, augmented
from cnnjax.functional import Leaves
from cnnjax.runtime import Tree
from cnnjax.train.staged_model import StagedModel
from cnnjax.train.state import State
from cnnjax.train.task import Labelled, Metrics, Task

NotFiniteChoice = Literal["stop", "skip", "keep"]

_AUGMENT = 0x617567  # folded into a step's key, so that augmentation and dropout draw apart


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainingBatch:
    """What a step takes besides the state: a tree of arrays that goes into your own `jax.jit` as an argument.

    Attributes:
        context: what all steps read of the frozen part: constants of the step, and the frozen leaves where the frozen
            part runs in the step (None where its features are stored).
        rows: one array [B, ...] a stored feature; or the images, f32[B, H, W, C] or as bytes.
        labelled: targets of the examples, and weights where they have some.
        counts: f32[B], 0 for rows that fill up an epoch's last batch, 1 for others.
        seed: u32[], of dropout and augmentation; a step's key is made of it and of `State.step`.
        decoded: whether the rows are images.
        masked: whether BatchNorm is told which rows count.
    """

    context: Any
    rows: Any
    labelled: Labelled
    counts: Any
    seed: Any
    decoded: bool = field(default=False, metadata={"static": True})
    masked: bool = field(default=False, metadata={"static": True})


class BatchResult(NamedTuple):
    """What a model gave for a batch, besides the loss.

    Attributes:
        metrics: sums of the losses and metrics over the examples.
        statistics: running statistics after the batch.
    """

    metrics: Metrics
    statistics: Leaves


Objective = Callable[[Leaves], tuple[jax.Array, BatchResult]]
"""The mean loss of one batch as a pure function of the trainable parameters, with `BatchResult` beside it."""

GradientFn = Callable[[Objective, State], tuple[Leaves, BatchResult]]
"""From a batch's objective and the state to the gradients that the optimizer gets."""


def plain_gradients(objective: Objective, state: State) -> tuple[Leaves, BatchResult]:
    """The gradient of the loss: what a step takes where no `gradient_fn` is given."""
    return jax.grad(objective, has_aux=True)(state.trainable)


class Step:
    """The pure functions of a step; `cnnjax.train.programs.Programs` compiles them.

    Args:
        model: what is trained, cut at the frontier.
        task: what is minimised and reported.
        optimizer: what moves the trainable parameters.
        augment: what happens to the images first, where the step gets images.
        gradient_fn: makes the gradients.
        skips: whether a step whose numbers are not finite is left out.
    """

    def __init__(
        self, model: StagedModel, task: Task, optimizer: optax.GradientTransformation, augment: AugmentFn | None,
        gradient_fn: GradientFn | None, skips: bool,
    ):  # fmt: skip
        self.model, self.task, self.optimizer, self.augment, self.skips = model, task, optimizer, augment, skips
        self.gradient_fn = gradient_fn or plain_gradients

    def objective(self, state: State, batch: TrainingBatch) -> Objective:
        """The mean loss of a batch as a function of the trainable parameters.

        Augmentation is drawn and the frozen part is run here, once, however often the function is called; it draws
        the same dropout each time.
        """
        model = self.model
        constants, fixed = batch.context
        key = jax.random.fold_in(jax.random.key(batch.seed), state.step)
        rows, (targets, own) = batch.rows, batch.labelled
        if batch.decoded:  # nothing is stored: the frozen part runs here, without residuals kept for gradients
            images = jnp.asarray(rows[0], jnp.float32)
            if self.augment:
                images, targets = augmented(
                    self.augment, jax.random.fold_in(key, _AUGMENT), images, targets,
                    lambda mixes: self.task.augmented(targets, model.outputs, mixes),
                )  # fmt: skip
            rows = model.training.maker(model.training.features, len(batch.counts)).run(fixed, images)
            rows = [jax.lax.stop_gradient(x) for x in rows]

        def objective(trainable: Leaves) -> tuple[jax.Array, BatchResult]:
            late = {"trainable": self._whole(trainable), "statistics": state.statistics, "key": key}
            staged = model.training
            if batch.masked:
                staged, late["counts"] = model.masked, batch.counts > 0
            outputs, statistics = staged.late(constants, rows, late)
            metrics = self._sums(outputs, Labelled(targets, own), batch.counts, train=True)
            least = jnp.maximum(metrics.count, 1) if own is None else jnp.where(metrics.count > 0, metrics.count, 1)
            return metrics.loss / least, BatchResult(metrics, statistics)

        return objective

    def apply_gradients(self, state: State, gradients: Leaves, result: BatchResult) -> tuple[State, Metrics]:
        """One step of the optimizer; see `cnnjax.Trainer.apply_gradients`."""
        _check_gradients(gradients, state.trainable)
        gradients = self._kept(gradients)
        metrics, statistics = result
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.trainable)
        trainable: Any = optax.apply_updates(state.trainable, updates)
        after = State(state.step + 1, trainable, statistics, optimizer)
        if self.skips:
            after, metrics = self._spared(state, after, metrics, gradients)
        return self._kept(after), self._whole(metrics)

    def update(self, state: State, batch: TrainingBatch) -> tuple[State, Metrics]:
        """A whole step."""
        gradients, result = self.gradient_fn(self.objective(state, batch), state)
        return self.apply_gradients(state, gradients, result)

    def score(self, state: State, batch: TrainingBatch) -> tuple[Metrics, Any]:
        """Sums over a batch in evaluation, and the model's outputs; `batch.context` is that of inference."""
        inference = self.model.inference
        constants, fixed = batch.context
        rows = batch.rows
        if batch.decoded:
            images = jnp.asarray(rows[0], jnp.float32)
            rows = inference.maker(inference.features, len(batch.counts)).run(fixed, images)
        late = {"trainable": self._whole(state.trainable), "statistics": state.statistics}
        outputs = inference.late(constants, rows, late, fold=True)
        return self._whole((self._sums(outputs, batch.labelled, batch.counts, train=False), outputs))

    def check_scores(self, labelled: Labelled) -> None:
        """Refuse a task that does not give a loss and metrics of each example; nothing is computed.

        Raises:
            ValueError: it gives something else for such targets.
        """

        def one(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.model.batch_size, *x.shape[1:]), x.dtype)

        targets = jax.tree.map(one, labelled.targets)
        _, found = jax.eval_shape(lambda *given: self.task.scores(*given, train=True), self.model.outputs, targets)
        if sorted(found) != sorted(self.task.metric_names):
            raise ValueError(f"the task's metrics are {sorted(found)}, its metric_names {self.task.metric_names}")

    def _sums(self, outputs: Tree, labelled: Labelled, counts: jax.Array, *, train: bool) -> Metrics:
        """Loss and metrics of a batch, of which the rows count whose `counts` are not 0."""
        loss, found = self.task.scores(outputs, labelled.targets, train=train)
        weights = counts if labelled.weights is None else counts * labelled.weights
        sums = {name: (x * weights).sum() for name, x in found.items()}
        return Metrics((loss * weights).sum(), sums, weights.sum(), jnp.zeros(()))

    def _whole(self, tree: Tree) -> Any:
        """The same on every device, where there are several."""
        return tree if self.model.devices is None else self.model.devices.whole(tree)

    def _kept(self, tree: Tree) -> Any:
        """Where it lay before the step, so that nothing drifts and nothing is compiled again."""
        return tree if self.model.devices is None else self.model.devices.keep(tree)

    def _spared(self, before: State, after: State, metrics: Metrics, gradients: Leaves) -> tuple[State, Metrics]:
        """The step undone, and counted, where its loss or a gradient is not finite."""
        numbers = (metrics.loss, *jax.tree.leaves(gradients), *jax.tree.leaves(after.trainable))
        finite = [jnp.isfinite(x).all() for x in numbers]
        good = jnp.stack(finite).all()
        kept: Any = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
        sums = jax.tree.map(lambda x: jnp.where(good, x, 0.0), metrics)
        return kept._replace(step=after.step), sums._replace(skipped=1.0 - good)


def _check_gradients(gradients: Tree, trainable: Leaves) -> None:
    """Refuse gradients of other leaves: optax would move what is there, and say nothing."""
    if not isinstance(gradients, dict) or gradients.keys() != trainable.keys():
        found = sorted(gradients) if isinstance(gradients, dict) else gradients
        raise ValueError(f"gradients: expected one for each of {', '.join(sorted(trainable))}; found {found}")
    if wrong := [p for p, x in trainable.items() if jnp.shape(gradients[p]) != x.shape]:
        p = wrong[0]
        raise ValueError(
            f"gradients: expected {list(trainable[p].shape)} of {p}, found {list(jnp.shape(gradients[p]))}"
        )
