"""Numbers with units."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.train.task import Task, as_matrix, check_logits, checked_names, checked_numbers

RegressionLoss = Literal["mse", "mae", "huber"]


@dataclass(frozen=True)
class Regression(Task):
    """Each example has a number, or several.

    The network learns standardised targets, (y - mean) / deviation, so that a learning rate means the same whatever the
    units; predictions and all metrics but the loss are in the targets' own units.

    Args:
        names: Of the numbers.
        units: Theirs, "" where one has none; all are without if not given.
        error: What is minimised, the mean over the numbers: "mse" squared errors, "mae" absolute ones, "huber" squared
            up to `delta` and linear beyond (Huber 1964). Of standardised targets.
        delta: In deviations.
        mean: Of the training targets, one for each name; `resolved` takes it from them.
        deviation: The same. Means of 0 and deviations of 1 leave the targets as they are.

    Raises:
        ValueError: A value does not fit.

    >>> task = Regression(("age",), ("years",)).resolved(np.array([[20.0], [40.0]]))
    >>> task.mean, task.deviation, task.predictions(np.array([[-1.0], [0.5]])).tolist()
    ((30.0,), (10.0,), [[20.0], [35.0]])
    >>> task.loss(jnp.array([[1.0]]), jnp.array([[20.0]])).tolist()  # two deviations off
    [4.0]
    """

    names: tuple[str, ...]  # ty: ignore[incompatible-attribute-override]  # frozen, as the whole class is
    units: tuple[str, ...] = ()
    error: RegressionLoss = "mse"
    delta: float = 1.0
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", checked_names(self.names, "names of numbers"))
        count = len(self.names)
        if not count:
            raise ValueError("names of numbers: expected at least one")
        units = self.units or ("",) * count
        if isinstance(units, str) or not isinstance(units, Sequence) or not all(isinstance(u, str) for u in units):
            raise ValueError(f"units: expected a list of texts, found {units!r}")
        if len(units) != count:
            raise ValueError(f"units: expected {count}, one for each of {', '.join(self.names)}, found {len(units)}")
        object.__setattr__(self, "units", tuple(units))
        if self.error not in get_args(RegressionLoss):
            raise ValueError(f"error: expected one of {', '.join(get_args(RegressionLoss))}, found {self.error!r}")
        if not isinstance(self.delta, int | float) or not 0 < self.delta < np.inf:
            raise ValueError(f"delta: expected a number above 0, found {self.delta!r}")
        if (self.mean is None) != (self.deviation is None):
            raise ValueError("mean and deviation belong together: give both, or neither")
        if self.mean is not None:
            object.__setattr__(self, "mean", checked_numbers("mean", self.mean, count))
            deviation = checked_numbers("deviation", self.deviation, count, 0.0)
            if 0.0 in deviation:
                raise ValueError(f"deviation: expected numbers above 0, found {list(deviation)}")
            object.__setattr__(self, "deviation", deviation)

    @property
    def _scale(self) -> tuple[np.ndarray, np.ndarray]:
        if self.mean is None:
            raise ValueError(f"{self.pending} are not known yet: take `task.resolved(training targets)`")
        return np.array(self.mean, np.float64), np.array(self.deviation, np.float64)

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """The error of each example in deviations, f32[N], the mean over the numbers.

        Args:
            outputs: f32[N, K], standardised.
            targets: f32[N, K], in units.
        """
        mean, deviation = self._scale
        off = outputs - (targets - jnp.float32(mean)) / jnp.float32(deviation)
        if self.error == "mse":
            each = off**2
        elif self.error == "mae":
            each = jnp.abs(off)
        else:
            far = jnp.abs(off)
            each = jnp.where(far <= self.delta, 0.5 * off**2, self.delta * (far - 0.5 * self.delta))
        return each.mean(-1)

    def metrics(self, outputs: jax.Array, targets: jax.Array) -> dict[str, jax.Array]:
        """The absolute error of each number, in its unit."""
        mean, deviation = self._scale
        # Each distance from the mean first: of large numbers with small deviations the difference keeps its digits.
        off = jnp.abs(outputs * jnp.float32(deviation) - (targets - jnp.float32(mean)))
        return {name: off[:, k] for k, name in enumerate(self.metric_names)}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """mae, or mae_NAME of several."""
        return ("mae",) if len(self.names) == 1 else tuple(f"mae_{name}" for name in self.names)

    def overall(self, outputs: Any, targets: Any, weights: np.ndarray | None = None) -> dict[str, float]:
        """Root mean squared error of each number in its unit, and the mean of their R2; NaN of constant targets."""
        from cnnjax.metrics.regression import r2

        found, wanted = self.predictions(outputs), as_matrix(targets, self.names, "targets")
        squared = np.sqrt(np.average((found - wanted) ** 2, axis=0, weights=weights)).tolist()
        names = ("rmse",) if len(self.names) == 1 else tuple(f"rmse_{name}" for name in self.names)
        each = [r2(found[:, k], wanted[:, k], weights) for k in range(len(self.names))]
        known = [x for x in each if x is not None]
        mean = float(np.mean(known)) if len(known) == len(each) else np.nan
        return {**dict(zip(names, squared, strict=True)), "r2": mean}

    @property
    def outputs(self) -> int:
        """One a number."""
        return len(self.names)

    @property
    def target(self) -> jax.ShapeDtypeStruct:
        """All numbers of an example."""
        return jax.ShapeDtypeStruct((len(self.names),), jnp.float32)

    def check_outputs(self, outputs: Any, batch: int) -> None:
        """Refuse a model that does not give as many numbers."""
        check_logits(outputs, batch, (len(self.names),), f"{len(self.names)} numbers")

    def checked_targets(self, targets: Any, outputs: Any) -> np.ndarray:
        """f32[N, K], finite."""
        found = as_matrix(targets, self.names, "targets")
        if bad := int((~np.isfinite(found)).any(1).sum()):
            raise ValueError(f"targets: {bad} of {len(found)} examples have one that is NaN or infinite")
        return found.astype(np.float32)

    @property
    def pending(self) -> str:
        """Mean and deviation."""
        return "mean and deviation of the training targets" if self.mean is None else ""

    def resolved(self, targets: Any) -> "Regression":
        """The task with mean and standard deviation of these targets.

        Raises:
            ValueError: A target is the same for all examples.
        """
        if self.mean is not None:
            return self
        found = as_matrix(targets, self.names, "targets")
        mean, deviation = found.mean(0), found.std(0)
        # Of equal numbers the deviation need not round to 0.
        if same := [name for name, own in zip(self.names, found.T, strict=True) if own.min() == own.max()]:
            raise ValueError(f"targets: {', '.join(same)} is the same for all training examples: nothing is to learn")
        return replace(self, mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist()))

    @property
    def headline(self) -> str:
        """The mean absolute error of one number, R2 of several."""
        return "mae" if len(self.names) == 1 else "r2"

    def unit(self, name: str) -> str:
        """That of the number."""
        kind, _, own = name.partition("_")
        if kind not in ("mae", "rmse"):
            return ""
        return self.units[0 if len(self.names) == 1 else self.names.index(own)]

    def predictions(self, outputs: Any) -> np.ndarray:
        """Numbers in their units, f64[N, K]."""
        mean, deviation = self._scale
        return np.asarray(outputs, np.float64) * deviation + mean

    def read(self, outputs: Any) -> list[dict[str, Any]]:
        """Each number by name, in its unit."""
        return [{"values": dict(zip(self.names, row, strict=True))} for row in self.predictions(outputs).tolist()]

    def report(
        self, outputs: Any, targets: Any, *, weights: np.ndarray | None = None, samples: int = 0, seed: int = 0
    ) -> Any:
        """A `cnnjax.metrics.RegressionReport`."""
        from cnnjax.metrics.regression import regression_report

        how: dict[str, Any] = {"weights": weights, "samples": samples, "seed": seed}
        return regression_report(self.predictions(outputs), targets, self.names, self.units, **how)

    def to_config(self) -> dict[str, Any]:
        """Plain values."""
        scale = {} if self.mean is None else {"mean": list(self.mean), "deviation": list(self.deviation or ())}
        named = {"names": list(self.names), "units": list(self.units), "error": self.error, "delta": self.delta}
        return {"kind": "regression", **named, **scale}
