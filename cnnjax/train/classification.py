"""One class an example: cross-entropy, and what is added to it for classes that are rare or hard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax.train.task import Task, check_logits, checked_names, checked_numbers

_LEAST = 1e-7  # below it a probability's distance from 1 has no digits left


@dataclass(frozen=True)
class Classification(Task):
    """Each example is of one class.

    Smoothing and class weights are of training alone; evaluation reports the loss without them.

    Args:
        names: The classes, in the order of their labels. Two share one logit or have one each, more have one each. The
            model's logits say how many there are if none are given.
        smoothing: How much of a label's probability is spread evenly over all classes, as `label_smoothing` of Keras's
            losses.
        class_weights: What the loss of a class's examples is multiplied by, as `class_weight` of Keras's `fit`: numbers
            in the order of the classes, by name (1 where absent), or "balanced": N / (K * examples of the class), as
            scikit-learn has it. The mean stays one over the batch's examples. Of mixed examples the weights are mixed.
        focal: Gamma of the focal loss (Lin et al. 2017), as of Keras's `CategoricalFocalCrossentropy` and, for one
            logit, `BinaryFocalCrossentropy`; cross-entropy if not given.
        alpha: Of the focal loss: a factor of it, or for one logit the second class's part (1 - alpha is the first's).

    Raises:
        ValueError: A value does not fit.

    >>> task = Classification(("cat", "dog", "fox"), smoothing=0.1)
    >>> round(float(task.loss(jnp.zeros((1, 3)), jnp.array([2]))[0]), 4), task.outputs  # log 3
    (1.0986, 3)
    >>> Classification(("cat", "dog"), class_weights="balanced").resolved(np.array([0, 0, 0, 1])).class_weights
    (0.6666666666666666, 2.0)
    """

    names: tuple[str, ...] = ()  # ty: ignore[incompatible-attribute-override]  # frozen, as the whole class is
    smoothing: float = 0.0
    class_weights: Any = None
    focal: float | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", checked_names(self.names, "class names"))
        if len(self.names) == 1:
            raise ValueError(f"class names: a classifier needs at least two classes, found {list(self.names)}")
        if not isinstance(self.smoothing, int | float) or not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing: expected 0 or more and less than 1, found {self.smoothing!r}")
        object.__setattr__(self, "class_weights", self._checked_weights())
        for name, most in (("focal", np.inf), ("alpha", 1.0)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 <= value <= most and value < np.inf):
                raise ValueError(f"{name}: expected 0 or more{' and at most 1' * (most == 1)}, found {value!r}")
        if self.alpha is not None and self.focal is None:
            raise ValueError("alpha is of the focal loss: give focal as well, such as 2.0")

    def _checked_weights(self) -> Any:
        given, names = self.class_weights, self.names
        if given is None or (isinstance(given, str) and given == "balanced"):
            return given
        if isinstance(given, str):
            raise ValueError(f"class_weights: expected 'balanced', or numbers, found {given!r}")
        if isinstance(given, Mapping):
            if unknown := [key for key in given if key not in names]:
                raise ValueError(
                    f"class_weights: no class {unknown[0]!r}; there are {', '.join(names) or 'no names of classes'}"
                )
            given = [given.get(name, 1.0) for name in names]
        return checked_numbers("class_weights", given, len(names) or None, 0.0)

    # What is minimised.

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Cross-entropy or focal loss of each example in nats, f32[N].

        Args:
            outputs: Logits f32[N, 1] for two classes (sigmoid), f32[N, K] for K (softmax).
            targets: i32[N], or f32 of the logits' shape: probabilities, as mixed images have them.
        """
        loss = self._plain(outputs, self._smooth(outputs, targets))
        if isinstance(self.class_weights, tuple):
            loss = loss * self._weights(outputs, targets)
        return loss

    def evaluation_loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """The same without smoothing and class weights."""
        return self._plain(outputs, targets)

    def _plain(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        if self.focal is not None:
            return _focal(logits, probabilities_of(targets, logits.shape[-1]), self.focal, self.alpha)
        return _cross_entropy(logits, targets)

    def _smooth(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        if not self.smoothing:
            return targets
        wanted = probabilities_of(targets, logits.shape[-1])
        return wanted * (1 - self.smoothing) + self.smoothing / max(logits.shape[-1], 2)

    def _weights(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        weights = jnp.asarray(self.class_weights, jnp.float32)
        if targets.ndim == 1:
            return weights[targets]
        if logits.shape[-1] == 1:
            return weights[0] + (weights[1] - weights[0]) * targets[:, 0]
        return (weights * targets).sum(-1)

    def metrics(self, outputs: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        """Accuracy: 1 where the likeliest class is the label's, or the likeliest of a mixed one."""
        if outputs.shape[-1] == 1:
            wanted = targets.reshape(-1).astype(outputs.dtype) > 0.5
            return {"accuracy": ((outputs[:, 0] > 0) == wanted).astype(jnp.float32)}
        wanted = jnp.argmax(targets, -1) if targets.ndim == 2 else targets
        return {"accuracy": (jnp.argmax(outputs, -1) == wanted).astype(jnp.float32)}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Accuracy."""
        return ("accuracy",)

    # What fits it.

    @property
    def outputs(self) -> int | None:
        """One logit for two classes, K for K."""
        return None if not self.names else 1 if len(self.names) == 2 else len(self.names)

    @property
    def target(self) -> jax.ShapeDtypeStruct:
        """A label."""
        return jax.ShapeDtypeStruct((), jnp.int32)

    def check_outputs(self, outputs: Any, batch: int) -> None:
        """Refuse a model that gives no logits, or not as many as there are classes."""
        count = len(self.names)
        wanted = None if not count else (1, 2) if count == 2 else (count,)
        found = check_logits(outputs, batch, wanted, f"{count} classes")
        if isinstance(self.class_weights, tuple) and len(self.class_weights) != max(found, 2):
            raise ValueError(
                f"class_weights: {len(self.class_weights)} weights do not fit {found} logit{'s'[: found > 1]}: "
                "one logit tells two classes apart, more tell one class each"
            )

    def checked_targets(self, targets: Any, outputs: Any) -> np.ndarray:
        """Labels i32[N], all of them classes."""
        labels, logits = np.asarray(targets), outputs.shape[1]
        if labels.ndim != 1 or labels.dtype.kind not in "biu":
            raise ValueError(
                f"a classification needs labels, whole numbers [N], found {labels.dtype}{list(labels.shape)}; "
                "give another task, such as MultiLabel or Regression"
            )
        if len(labels) and (labels.min() < 0 or labels.max() >= max(logits, 2)):
            raise ValueError(
                f"labels {labels.min()} to {labels.max()} do not fit {logits} logit{'s'[: logits > 1]}: "
                "one logit tells two classes apart, more tell one class each"
            )
        return labels

    def augmented(self, targets: jax.Array, outputs: Any, mixes: bool) -> jax.Array:
        """Labels as probabilities."""
        return probabilities_of(targets, outputs.shape[1])

    # What it takes from data.

    @property
    def pending(self) -> str:
        """Balanced weights, of which the labels have to be known."""
        return "class weights that balance the classes" if self.class_weights == "balanced" else ""

    def resolved(self, targets: Any) -> "Classification":
        """The task with the weights that balance these labels.

        Raises:
            ValueError: A class has no examples.
        """
        if self.class_weights != "balanced":
            return self
        labels = np.asarray(targets)
        counts = np.bincount(labels, minlength=len(self.names) or 2)
        if empty := np.flatnonzero(counts == 0).tolist():
            names = [self.names[k] if k < len(self.names) else str(k) for k in empty]
            raise ValueError(f"class_weights: {', '.join(names)} has no training examples: no weight balances it")
        return replace(self, class_weights=tuple((len(labels) / (len(counts) * counts)).tolist()))

    def predicting(self, fitted: Task) -> "Classification":
        """The task as it was: smoothing and weights are of training alone."""
        return self

    def smoothed(self, smoothing: float) -> "Classification":
        """The task with this smoothing; one that has some already is refused another."""
        if smoothing and self.smoothing and smoothing != self.smoothing:
            raise ValueError(f"label_smoothing {smoothing} beside the task's smoothing {self.smoothing}: give one")
        return replace(self, smoothing=smoothing or self.smoothing)

    # What is said of it.

    def unit(self, name: str) -> str:
        """Accuracy in per cent."""
        return "%" if name == "accuracy" else ""

    def predictions(self, outputs: Any) -> np.ndarray:
        """Probabilities f64[N, K]; of one logit those of two classes.

        >>> Classification().predictions(np.log([[3.0]])).tolist()
        [[0.25, 0.75]]
        """
        wide = np.asarray(outputs, np.float64)
        if wide.shape[1] == 1:  # the first class is the one with logit 0
            wide = np.concatenate([np.zeros_like(wide), wide], axis=1)
        likely = np.exp(wide - wide.max(axis=1, keepdims=True))
        return likely / likely.sum(axis=1, keepdims=True)

    def read(self, outputs: Any) -> list[dict[str, Any]]:
        """The likeliest class, its probability, and those of all."""
        found = []
        for row in self.predictions(outputs).tolist():
            names = self.names or [str(k) for k in range(len(row))]
            best = int(np.argmax(row))
            likely = dict(zip(names, row, strict=True))
            found.append({"class_name": names[best], "probability": row[best], "probabilities": likely})
        return found

    def report(
        self, outputs: Any, targets: Any, *, weights: np.ndarray | None = None, samples: int = 0, seed: int = 0
    ) -> Any:
        """A `cnnjax.metrics.Report`; with class weights it shows balanced accuracy and the worst class too."""
        from cnnjax.metrics import report

        names: Sequence[str] = self.names or [str(k) for k in range(max(np.shape(outputs)[1], 2))]
        balanced = self.class_weights is not None
        return report(outputs, targets, names, weights=weights, samples=samples, seed=seed, weighted=balanced)

    def to_config(self) -> dict[str, Any]:
        """Plain values; what is not set is left out."""
        weights = list(self.class_weights) if isinstance(self.class_weights, tuple) else self.class_weights
        extras = {"smoothing": self.smoothing, "class_weights": weights, "focal": self.focal, "alpha": self.alpha}
        set_ = {
            name: value for name, value in extras.items() if value not in (None, 0.0) or (name == "focal" and value)
        }
        return {"kind": "classification", "names": list(self.names), **set_}


def probabilities_of(targets: jax.Array, logits: int) -> jax.Array:
    """Labels i32[N] as probabilities f32[N, logits]: one-hot, or for one logit the second class's; others as they are.

    >>> probabilities_of(jnp.array([0, 1]), 1).tolist()
    [[0.0], [1.0]]
    """
    if targets.ndim == 2:
        return targets
    if logits == 1:
        return (targets > 0).astype(jnp.float32)[:, None]
    return jax.nn.one_hot(targets, logits)


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    if logits.shape[-1] == 1:
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], targets.reshape(-1).astype(logits.dtype))
    if targets.ndim == 2:
        return optax.softmax_cross_entropy(logits, targets.astype(logits.dtype))
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def _focal(logits: jax.Array, wanted: jax.Array, gamma: float, alpha: float | None) -> jax.Array:
    """Keras's focal losses, from logits: a very wrong example keeps its gradient, which Keras clips away."""
    if logits.shape[-1] == 1:
        x, y = logits[:, 0], wanted[:, 0]
        p = jax.nn.sigmoid(x)
        far = jnp.clip(y * (1 - p) + (1 - y) * p, _LEAST, 1)
        loss = far**gamma * optax.sigmoid_binary_cross_entropy(x, y)
        return loss if alpha is None else loss * (y * alpha + (1 - y) * (1 - alpha))
    log_p = jax.nn.log_softmax(logits)
    far = jnp.clip(1 - jnp.exp(log_p), _LEAST, 1)
    loss = -(wanted * far**gamma * log_p).sum(-1)
    return loss if alpha is None else loss * alpha
