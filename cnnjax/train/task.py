"""What is minimised and what is reported. The step knows a `Task`, and nothing of classes."""

import operator
from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from cnnjax.runtime import Tree

PerExample = Callable[[Any, Any], jax.Array]
"""From a model's outputs and the targets, trees of arrays with a row an example, to one number an example, f32[N]."""

RESERVED = ("loss", "epoch", "steps", "seconds", "compile_seconds", "skipped_steps")
"""What a record of an epoch calls other things than metrics."""


class Metrics(NamedTuple):
    """Sums over examples, with their weights.

    Attributes:
        loss: of the losses.
        sums: of each metric, by name.
        count: of the weights: the number of examples where they have none.
        skipped: how many steps were left out since their numbers were not finite.
    """

    loss: Any
    sums: dict[str, Any]
    count: Any
    skipped: Any = 0.0

    @classmethod
    def zero(cls, names: Sequence[str]) -> "Metrics":
        """No examples yet."""
        return cls(0.0, dict.fromkeys(names, 0.0), 0.0, 0.0)

    def plus(self, other: "Metrics") -> "Metrics":
        """The sums over both.

        >>> Metrics(1.0, {"accuracy": 2.0}, 4.0).plus(Metrics(0.5, {"accuracy": 1.0}, 1.0)).summary()
        {'loss': 0.3, 'accuracy': 0.6}
        """
        return jax.tree.map(operator.add, self, other)

    @property
    def begun(self) -> bool:
        """Whether any step is in the sums."""
        return bool(float(self.count) or float(self.skipped))

    def summary(self) -> dict[str, float]:
        """Means over the weights, as Python numbers."""
        loss, sums, count, skipped = jax.device_get(self)
        found = {"loss": float(loss)} | {name: float(x) for name, x in sums.items()}
        means = {name: x / float(count) if count else nan for name, x in found.items()}
        return means | ({"skipped_steps": float(skipped)} if skipped else {})


class Labelled(NamedTuple):
    """What is known of examples.

    Attributes:
        targets: a tree of arrays with a row an example.
        weights: f32[N], how much each example counts; None where all count the same.
    """

    targets: Any
    weights: Any = None

    @property
    def size(self) -> int:
        """How many examples."""
        return len(jax.tree.leaves(self.targets)[0])

    def take(self, index: jax.Array | np.ndarray | slice) -> "Labelled":
        """What is known of the examples at `index`."""
        return jax.tree.map(lambda x: x[index], self)


class Task:
    """What is minimised, and what is reported; made of functions, or a class of one's own.

    `Classification`, `MultiLabel` and `Regression` are tasks. One of your own is two functions:

    >>> def loss(outputs, targets):
    ...     return jnp.abs(outputs[:, 0] - targets)
    >>> task = Task(loss=loss, metrics={"within_one": lambda outputs, targets: jnp.abs(outputs[:, 0] - targets) < 1})
    >>> found = task.scores(jnp.array([[1.0], [5.0]]), jnp.array([1.5, 2.0]))
    >>> found[0].tolist(), found[1]["within_one"].tolist()
    ([0.5, 3.0], [1.0, 0.0])

    Args:
        loss: from outputs and targets to f32[N], the loss of each example.
        metrics: the same by name; an epoch reports their means. Booleans count as 0 and 1.
        outputs: how many numbers a head gives for an example, where one is made for this task.
        names: of what the outputs stand for.
        target: shape and type of one example's targets, a tree of `jax.ShapeDtypeStruct`, for programs that are lowered
            without data (`cnnjax.train.lowering`).

    Attributes:
        names: of the classes, labels or numbers that are predicted.
        headline: the metric that a sweep compares by, or "loss".

    Raises:
        ValueError: a metric has a name that records use otherwise.
    """

    names: tuple[str, ...]

    def __init__(
        self,
        loss: PerExample,
        metrics: Mapping[str, PerExample] | None = None,
        *,
        outputs: int | None = None,
        names: Sequence[str] = (),
        target: Tree = None,
    ):
        if not callable(loss):
            raise ValueError(f"loss: expected a function of outputs and targets, found {loss!r}")
        self._loss, self._metrics, self._target = loss, dict(metrics or {}), target
        if taken := [name for name in self._metrics if name in RESERVED or not name]:
            raise ValueError(f"metrics: {taken[0]!r} means something else in a record; give it another name")
        self.names = tuple(names)
        self._outputs = outputs

    # What is minimised.

    def loss(self, outputs: Tree, targets: Tree) -> jax.Array:
        """The loss of each example in training, f32[N]."""
        return self._loss(outputs, targets)

    def evaluation_loss(self, outputs: Tree, targets: Tree) -> jax.Array:
        """The loss of each example in evaluation, f32[N]: without what only training wants, such as smoothing."""
        return self.loss(outputs, targets)

    def metrics(self, outputs: Tree, targets: Tree) -> dict[str, jax.Array]:
        """f32[N] by name, of each example."""
        return {name: metric(outputs, targets) for name, metric in self._metrics.items()}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names that `metrics` gives."""
        return tuple(self._metrics)

    def overall(self, outputs: Tree, targets: Tree, weights: np.ndarray | None = None) -> dict[str, float]:
        """Measures of a whole set that are no means over its examples; evaluation reports them beside the means.

        Args:
            outputs: the model's, of all examples, on the host.
            targets: theirs.
            weights: f64[N], how much each counts; all the same if None.
        """
        return {}

    def scores(self, outputs: Tree, targets: Tree, *, train: bool = True) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Loss and metrics of each example, checked.

        Raises:
            ValueError: one of them is not one number an example, or the loss is of whole numbers.
        """
        count = len(jax.tree.leaves(outputs)[0])
        loss = (self.loss if train else self.evaluation_loss)(outputs, targets)
        found = self.metrics(outputs, targets)
        for name, value in {"loss": loss, **found}.items():
            if jnp.shape(value) != (count,):
                raise ValueError(
                    f"{name} must give a number for each of {count} examples, [{count}]; found {list(jnp.shape(value))}"
                    + (": leave the mean over examples to the step" if not jnp.ndim(value) else "")
                )
        if not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ValueError(
                f"loss must give floats, which have a gradient; found {loss.dtype}, of a comparison or count"
            )
        return loss.astype(jnp.float32), {name: jnp.asarray(x).astype(jnp.float32) for name, x in found.items()}

    # What fits it.

    @property
    def outputs(self) -> int | None:
        """How many numbers a head gives for an example; None where that is not known."""
        return self._outputs

    @property
    def target(self) -> Any:
        """Shape and type of one example's targets, as `jax.ShapeDtypeStruct`; None where they are not known."""
        return self._target

    def check_outputs(self, outputs: Tree, batch: int) -> None:
        """Refuse a model whose outputs do not fit.

        Args:
            outputs: shapes of what it gives for `batch` examples.
            batch: how many.

        Raises:
            ValueError: they do not.
        """
        shapes = [tuple(x.shape) for x in jax.tree.leaves(outputs)]
        if not shapes or any(not shape or shape[0] != batch for shape in shapes):
            found = jax.tree.map(lambda x: list(x.shape), outputs)
            raise ValueError(f"the model must give arrays with a row an example; for {batch} examples: {found}")

    def checked_targets(self, targets: Tree, outputs: Tree) -> Any:
        """Targets of a source as arrays that a program takes.

        Args:
            targets: the source's, a row an example.
            outputs: shapes of the model's outputs.

        Raises:
            ValueError: they do not fit.
        """
        return jax.tree.map(_array, targets)

    def augmented(self, targets: Tree, outputs: Tree, mixes: bool) -> Any:
        """Targets as a step with augmentation takes them: a tree of f32[N, ...] where it mixes examples in pairs.

        Args:
            targets: of a batch.
            outputs: shapes of the model's outputs.
            mixes: whether the augmentation mixes (mixup, CutMix).

        Raises:
            ValueError: such targets cannot be mixed.
        """
        if mixes and not all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(targets)):
            found = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", targets)
            raise ValueError(
                f"mixup and cutmix mix targets in proportion, which floats can be and {found} cannot: override "
                f"`augmented` of the task {type(self).__name__}, or leave them out"
            )
        return targets

    # What it takes from data.

    @property
    def pending(self) -> str:
        """What has to be taken from training targets before it can be trained; "" if nothing."""
        return ""

    def resolved(self, targets: Tree) -> "Task":
        """The task with what it takes from the training targets, such as balanced weights or a scale."""
        return self

    def calibrated(self, outputs: Tree, targets: Tree) -> "Task":
        """The task with what it chooses on validation data, such as thresholds."""
        return self

    def predicting(self, fitted: "Task") -> "Task":
        """This task with what predictions need of `fitted`, which it became in training: a scale, but no weights.

        Balanced weights are taken anew from whatever it is trained on next.
        """
        return fitted

    def smoothed(self, smoothing: float) -> "Task":
        """The task with its labels smoothed.

        Raises:
            ValueError: it has none.
        """
        if smoothing:
            raise ValueError(f"label_smoothing is for a classification, and this task is a {type(self).__name__}")
        return self

    # What is said of it.

    @property
    def headline(self) -> str:
        """The measure that a sweep compares by: a metric, one of `overall`, or "loss"."""
        return next(iter(self.metric_names), "loss")

    def unit(self, name: str) -> str:
        """The unit of a measure: "%" is shown as per cent of 1; "" where it has none."""
        return ""

    def shown(self, name: str, value: float | None) -> str:
        """A measure as people read it; a dash where it is not known.

        >>> from cnnjax import Classification, Regression
        >>> Classification().shown("accuracy", 0.9666), Regression(("age",), ("years",)).shown("mae", 3.14159)
        ('96.7 %', '3.142 years')
        """
        unit = self.unit(name)
        if value is None or value != value:
            return "–"
        return f"{100 * value:.1f} %" if unit == "%" else f"{value:.4g} {unit}".rstrip()

    def predictions(self, outputs: Tree) -> Any:
        """What the outputs predict, a row an example: probabilities, numbers in their units."""
        return outputs

    def read(self, outputs: Tree) -> list[dict[str, Any]]:
        """What is said of each example: fields of `cnnjax.classifier.Prediction`."""
        found, count = jax.device_get(self.predictions(outputs)), len(jax.tree.leaves(outputs)[0])
        return [{"output": jax.tree.map(lambda x, k=k: np.asarray(x)[k].tolist(), found)} for k in range(count)]

    def report(
        self, outputs: Tree, targets: Tree, *, weights: np.ndarray | None = None, samples: int = 0, seed: int = 0
    ) -> Any:
        """Everything that is measured of labelled examples, with `text()`, `to_json()`, and an image.

        Args:
            outputs: the model's.
            targets: theirs.
            weights: f32[N], how much each example counts; all the same if None.
            samples: resamples for 95 % bootstrap intervals, 0 for none.
            seed: of the resamples.
        """
        from cnnjax.metrics.means import means_report

        loss, found = self.scores(jax.tree.map(jnp.asarray, outputs), jax.tree.map(jnp.asarray, targets), train=False)
        units = {name: self.unit(name) for name in found}
        each = {"loss": np.asarray(loss), **jax.device_get(found)}
        return means_report(each, units, weights=weights, samples=samples, seed=seed)

    # How it is kept.

    def to_config(self) -> dict[str, Any]:
        """Plain values from which `task_from_config` makes the task again, but for functions."""
        return {"kind": "own"}


def _array(x: ArrayLike) -> np.ndarray:
    """An array of a type that JAX keeps as it is: no silent change of large numbers on the way to the device."""
    found = np.asarray(x)
    if found.dtype.kind not in "biuf":
        raise ValueError(f"targets: expected arrays of numbers, found {found.dtype}")
    if found.dtype == np.float64:
        return found.astype(np.float32)
    if found.dtype.itemsize == 8 and found.dtype.kind in "iu":
        if found.size and (found.min() < -(2**31) or found.max() >= 2**31):
            raise ValueError(f"targets: whole numbers from {found.min()} to {found.max()} do not fit 32 bits")
        return found.astype(np.int32)
    return found
