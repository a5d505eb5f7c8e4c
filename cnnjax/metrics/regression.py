"""Numbers with units: how far predictions lie from the truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cnnjax.files.runs import finite
from cnnjax.metrics import tables
from cnnjax.metrics.intervals import resampled_indices
from cnnjax.metrics.measures import checked_weights, mean

POINTS = 2000
"""A report keeps so many examples for its scatter plot, evenly over all of them."""


@dataclass(frozen=True)
class NumberScores:
    """One number.

    Attributes:
        name: Of the number.
        unit: Its unit, "" for none.
        mae: Mean absolute error, in the unit.
        rmse: Root of the mean squared error, in the unit.
        r2: The part of the variance that is predicted; None where all true values are the same.
        bias: Mean of predicted less true, in the unit.
        intervals: Measure -> 95 % bootstrap interval of mae, rmse and r2; empty if none was asked for.
        points: (true, predicted) of examples.
    """

    name: str
    unit: str
    mae: float
    rmse: float
    r2: float | None
    bias: float
    intervals: Mapping[str, tuple[float, float]]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class RegressionReport:
    """What `regression_report` found.

    Attributes:
        count: Number of examples.
        r2: Mean over the numbers; None where one has none.
        numbers: Scores of each number.
        own: Means of a loss and of metrics of the user's, by name.
        total: Sum of the examples' weights, where they have some: each counts with its weight; None otherwise.
    """

    count: int
    r2: float | None
    numbers: tuple[NumberScores, ...]
    own: Mapping[str, float] = field(default_factory=dict)
    total: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and dictionaries; null for what is not defined."""
        return finite(asdict(self))

    def measures(self) -> dict[str, Any]:
        """The measures by name; of several numbers NAME_mae and so on."""
        if len(self.numbers) == 1:
            return {name: getattr(self.numbers[0], name) for name in ("mae", "rmse", "r2", "bias")} | dict(self.own)
        each = {f"{name}_{s.name}": getattr(s, name) for s in self.numbers for name in ("mae", "rmse", "r2", "bias")}
        return {"r2": self.r2, **each, **self.own}

    def text(self) -> str:
        """For a terminal."""
        return tables.terminal(*self._table())

    def markdown(self) -> str:
        """The same in Markdown."""
        return tables.markdown(*self._table()) + "\n"

    def _table(self) -> tuple[str, list[tuple[str, ...]]]:
        rows: list[tuple[str, ...]] = [("number", "unit", "mean absolute error", "RMSE", "R2", "bias")]
        for s in self.numbers:
            cells = [_with(s, name) for name in ("mae", "rmse", "r2")]
            rows.append((s.name, s.unit, *cells, f"{s.bias:+.4g}"))
        spread = ", 95 % intervals in brackets" if any(s.intervals for s in self.numbers) else ""
        weights = "" if self.total is None else f", weighted (sum {self.total:,.6g})"
        rows += [(name, "", f"mean {value:.4g}", "", "", "") for name, value in self.own.items()]
        return f"{self.count:,} examples{weights}{spread}", rows


def _with(scores: NumberScores, name: str) -> str:
    value, ends = getattr(scores, name), scores.intervals.get(name)
    if value is None:
        return "–"
    return f"{value:.4g}" + ("" if ends is None else f" [{ends[0]:.4g}, {ends[1]:.4g}]")


def regression_report(
    predicted: ArrayLike, targets: ArrayLike, names: Sequence[str], units: Sequence[str] = (), *,
    weights: ArrayLike | None = None, samples: int = 0, seed: int = 0,
) -> RegressionReport:  # fmt: skip
    """Measure predicted numbers.

    Args:
        predicted: f64[N, K], in units.
        targets: [N, K], the true ones.
        names: Of the numbers.
        units: Theirs; none if not given.
        weights: f32[N], how much each example counts; all the same if not given.
        samples: Resamples for the 95 % bootstrap intervals, 0 for none. A resample of one value alone has no R2, and
            does not count for it.
        seed: Of the resamples.

    Raises:
        ValueError: Shapes do not fit each other, there are no examples, or a number is not finite.

    >>> found = regression_report([[1.0], [2.0], [4.0]], [[1.0], [3.0], [5.0]], ("age",), ("years",))
    >>> round(found.numbers[0].mae, 3), round(found.numbers[0].rmse, 3), found.r2
    (0.667, 0.816, 0.75)
    """
    found, wanted = np.asarray(predicted, np.float64), np.asarray(targets, np.float64)
    wanted = wanted[:, None] if wanted.ndim == 1 and len(names) == 1 else wanted
    if found.ndim != 2 or found.shape[1] != len(names) or found.shape != wanted.shape or not len(found):
        raise ValueError(
            f"expected predictions and targets [N, {len(names)}] for N > 0 examples, "
            f"found {list(found.shape)} and {list(wanted.shape)}"
        )
    for what, values in (("predictions", found), ("targets", wanted)):
        if bad := int((~np.isfinite(values)).any(1).sum()):
            raise ValueError(f"{what} of {bad:,} of {len(found):,} examples are not finite")
    each = checked_weights(weights, len(found))
    draws = list(resampled_indices(len(found), samples, seed)) if samples else []
    shown = np.unique(np.linspace(0, len(found) - 1, POINTS).astype(int))
    numbers = []
    for k, (name, unit) in enumerate(zip(names, units or ("",) * len(names), strict=True)):
        own, true = found[:, k], wanted[:, k]
        ends = {}
        for measure, function in _MEASURES.items():
            values = [value for i in draws if (value := _of(function, own, true, each, i)) is not None]
            if values and function(own, true, each) is not None:
                low, high = np.quantile(values, (0.025, 0.975))
                ends[measure] = (float(low), float(high))
        points = tuple(zip(true[shown].tolist(), own[shown].tolist(), strict=True))
        bias = mean(own - true, each)
        measured = (mae(own, true, each), rmse(own, true, each), r2(own, true, each))
        numbers.append(NumberScores(str(name), unit, *measured, bias, ends, points))
    known = [scores.r2 for scores in numbers if scores.r2 is not None]
    whole = float(np.mean(known)) if len(known) == len(numbers) else None
    total = None if each is None else float(each.sum())
    return RegressionReport(len(found), whole, tuple(numbers), total=total)


def _of(
    function: Callable[..., float | None], own: np.ndarray, true: np.ndarray, weights: np.ndarray | None, i: np.ndarray
) -> float | None:
    """A measure of a resample; None where its examples all weigh nothing."""
    if weights is None:
        return function(own[i], true[i])
    return function(own[i], true[i], weights[i]) if weights[i].any() else None


def mae(found: np.ndarray, wanted: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean absolute error."""
    return mean(np.abs(found - wanted), weights)


def rmse(found: np.ndarray, wanted: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(mean(np.square(found - wanted), weights)))


def r2(found: np.ndarray, wanted: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """Coefficient of determination; None where all true values are the same.

    >>> r2(np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 5.0]))
    0.75
    """
    if wanted.min() == wanted.max():
        return None
    each = np.ones(len(wanted)) if weights is None else np.asarray(weights, np.float64)
    spread = (each * np.square(wanted - np.average(wanted, weights=each))).sum()
    return float(1 - (each * np.square(found - wanted)).sum() / spread) if spread else None


_MEASURES = {"mae": mae, "rmse": rmse, "r2": r2}
