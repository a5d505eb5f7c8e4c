"""Any number of labels an example, each of them there or not."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.train.task import Task, as_matrix, check_logits, checked_names, checked_numbers


@dataclass(frozen=True)
class MultiLabel(Task):
    """Each example has any number of labels: one sigmoid a label, also where there is one label.

    Args:
        names: The labels.
        pos_weight: What the loss of a label's positive examples is multiplied by, as of torch's `BCEWithLogitsLoss`:
            one number, one for each label, or "balanced": negative examples over positive ones.
        thresholds: The probability from which on a label is said to be there; 0.5 if not given. `calibrated` chooses
            those of the best F1, and so does training with validation images.

    Raises:
        ValueError: A value does not fit.

    >>> task = MultiLabel(("sky", "sea"))
    >>> round(float(task.loss(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]]))[0]), 4)  # log 2 each, their mean
    0.6931
    >>> MultiLabel(("sky", "sea"), "balanced").resolved(np.array([[1, 0], [1, 1], [1, 0], [0, 0]])).pos_weight
    (0.3333333333333333, 3.0)
    """

    names: tuple[str, ...]  # ty: ignore[incompatible-attribute-override]  # frozen, as the whole class is
    pos_weight: Any = None
    thresholds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", checked_names(self.names, "labels"))
        if not self.names:
            raise ValueError("labels: expected at least one name")
        weight = self.pos_weight
        if isinstance(weight, str) and weight != "balanced":
            raise ValueError(f"pos_weight: expected 'balanced', or numbers, found {weight!r}")
        if isinstance(weight, int | float) and not isinstance(weight, bool):
            weight = (weight,) * len(self.names)
        if weight is not None and not isinstance(weight, str):
            object.__setattr__(self, "pos_weight", checked_numbers("pos_weight", weight, len(self.names), 0.0))
        if self.thresholds is not None:
            object.__setattr__(self, "thresholds", checked_numbers("thresholds", self.thresholds, len(self.names), 0.0))

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Binary cross-entropy in nats, f32[N], the mean over the labels.

        Args:
            outputs: Logits f32[N, K].
            targets: f32[N, K], 1 where a label is there; of mixed images what lies between.
        """
        positive = -targets * jax.nn.log_sigmoid(outputs)
        if isinstance(self.pos_weight, tuple):
            positive = positive * jnp.asarray(self.pos_weight, jnp.float32)
        return (positive - (1 - targets) * jax.nn.log_sigmoid(-outputs)).mean(-1)

    def metrics(self, outputs: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        """At a probability of 0.5: the part of an example's labels that are right, and whether all of them are."""
        right = (outputs > 0) == (targets > 0.5)
        return {"label_accuracy": right.mean(-1), "exact_match": right.all(-1)}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Part of the labels that are right; all of them right."""
        return "label_accuracy", "exact_match"

    def overall(self, outputs: Any, targets: Any, weights: np.ndarray | None = None) -> dict[str, float]:
        """Mean average precision over the labels that have positive examples; NaN where none has."""
        from cnnjax.metrics.multilabel import average_precision

        wanted, scores = np.asarray(targets) > 0.5, np.asarray(outputs, np.float64)
        if not np.isfinite(scores).all():
            return {"mAP": np.nan}
        each = [average_precision(scores[:, k], wanted[:, k], weights) for k in range(len(self.names))]
        known = [value for value in each if value is not None]
        return {"mAP": float(np.mean(known)) if known else np.nan}

    @property
    def outputs(self) -> int:
        """A logit a label."""
        return len(self.names)

    @property
    def target(self) -> jax.ShapeDtypeStruct:
        """A number a label."""
        return jax.ShapeDtypeStruct((len(self.names),), jnp.float32)

    def check_outputs(self, outputs: Any, batch: int) -> None:
        """Refuse a model that has not one logit a label."""
        check_logits(outputs, batch, (len(self.names),), f"{len(self.names)} labels")

    def checked_targets(self, targets: Any, outputs: Any) -> np.ndarray:
        """f32[N, K] in [0, 1]."""
        found = as_matrix(targets, self.names, "labels")
        if not ((found >= 0) & (found <= 1)).all():
            raise ValueError(f"labels: expected 0 (not there) or 1 (there), found {found.min():g} to {found.max():g}")
        return found.astype(np.float32)

    @property
    def pending(self) -> str:
        """Balanced weights."""
        return "weights that balance positive and negative examples" if self.pos_weight == "balanced" else ""

    def resolved(self, targets: Any) -> "MultiLabel":
        """The task with the weights that balance each label.

        Raises:
            ValueError: A label has no positive example.
        """
        if self.pos_weight != "balanced":
            return self
        found = as_matrix(targets, self.names, "labels")
        positive = found.sum(0)
        if empty := [name for name, count in zip(self.names, positive, strict=True) if not count]:
            raise ValueError(f"pos_weight: {', '.join(empty)} has no positive training example: no weight balances it")
        return replace(self, pos_weight=tuple(((len(found) - positive) / positive).tolist()))

    def predicting(self, fitted: Task) -> "MultiLabel":
        """The task without thresholds, which were those of other weights."""
        return replace(self, thresholds=None)

    def calibrated(self, outputs: Any, targets: Any) -> "MultiLabel":
        """The task with the threshold of the best F1 for each label; 0.5 for one without positive examples.

        Args:
            outputs: Logits f32[N, K] of validation examples.
            targets: Theirs.
        """
        from cnnjax.metrics.multilabel import best_threshold

        likely, wanted = self.predictions(outputs), np.asarray(targets) > 0.5
        wanted = wanted.reshape(likely.shape)
        chosen = tuple(best_threshold(likely[:, k], wanted[:, k]) for k in range(len(self.names)))
        return replace(self, thresholds=chosen)

    @property
    def headline(self) -> str:
        """Mean average precision."""
        return "mAP"

    def unit(self, name: str) -> str:
        """Parts in per cent."""
        return "%" if name in ("label_accuracy", "exact_match", "mAP") else ""

    def predictions(self, outputs: Any) -> np.ndarray:
        """The probability of each label, f64[N, K]."""
        from scipy.special import expit

        return expit(np.asarray(outputs, np.float64))

    def read(self, outputs: Any) -> list[dict[str, Any]]:
        """The labels that reach their threshold, and the probabilities of all."""
        likely = self.predictions(outputs)
        there: np.ndarray = np.greater_equal(likely, np.array(self.thresholds or (0.5,) * len(self.names)))
        return [
            {
                "labels": tuple(name for name, here in zip(self.names, own, strict=True) if here),
                "probabilities": dict(zip(self.names, row, strict=True)),
            }
            for row, own in zip(likely.tolist(), there.tolist(), strict=True)
        ]

    def report(
        self, outputs: Any, targets: Any, *, weights: np.ndarray | None = None, samples: int = 0, seed: int = 0
    ) -> Any:
        """A `cnnjax.metrics.MultiLabelReport`."""
        from cnnjax.metrics.multilabel import multilabel_report

        how: dict[str, Any] = {"weights": weights, "samples": samples, "seed": seed}
        return multilabel_report(outputs, targets, self.names, thresholds=self.thresholds, **how)

    def to_config(self) -> dict[str, Any]:
        """Plain values; what is not set is left out."""
        extras = {"pos_weight": self.pos_weight, "thresholds": self.thresholds}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in extras.items() if v is not None}
        return {"kind": "multilabel", "names": list(self.names), **plain}
