"""The report of a task of one's own: the mean of its loss and of each of its metrics."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cnnjax.files.runs import finite
from cnnjax.metrics import tables
from cnnjax.metrics.intervals import resampled_means
from cnnjax.metrics.measures import checked_weights, mean


@dataclass(frozen=True)
class MeansReport:
    """Means over examples.

    Attributes:
        count: Number of examples.
        values: Measure -> mean; None where it is not finite.
        units: Measure -> unit, where it has one.
        intervals: Measure -> its 95 % bootstrap interval; empty if none was asked for.
    """

    count: int
    values: Mapping[str, float | None]
    units: Mapping[str, str]
    intervals: Mapping[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers and dictionaries."""
        return finite(asdict(self))

    def measures(self) -> dict[str, Any]:
        """The measures by name."""
        return dict(self.values)

    def text(self) -> str:
        """For a terminal."""
        return tables.terminal(*self._table())

    def markdown(self) -> str:
        """The same in Markdown."""
        return tables.markdown(*self._table()) + "\n"

    def _table(self) -> tuple[str, list[tuple[str, ...]]]:
        header = ("measure", "mean") + (("95 % interval",) if self.intervals else ())
        rows: list[tuple[str, ...]] = [header]
        for name, value in self.values.items():
            unit = self.units.get(name, "")
            ends = self.intervals.get(name)
            spread = () if not self.intervals else ("" if ends is None else f"{ends[0]:.4g} to {ends[1]:.4g}",)
            rows.append((name, "–" if value is None else f"{value:.4g} {unit}".rstrip(), *spread))
        return f"{self.count:,} examples", rows


def means_report(
    values: Mapping[str, np.ndarray], units: Mapping[str, str] | None = None, *,
    weights: np.ndarray | None = None, samples: int = 0, seed: int = 0,
) -> MeansReport:  # fmt: skip
    """Means of measures of each example.

    Args:
        values: Measure -> f32[N].
        units: Measure -> unit.
        weights: f32[N], how much each example counts; all the same if not given.
        samples: Resamples for the 95 % bootstrap intervals, 0 for none.
        seed: Of the resamples.

    >>> means_report({"loss": np.array([1.0, 2.0])}).values
    {'loss': 1.5}
    """
    each = {name: np.asarray(value, np.float64) for name, value in values.items()}
    count = len(next(iter(each.values())))
    own = checked_weights(weights, count)
    means = {name: mean(value, own) for name, value in each.items()}
    known = {name: value for name, value in each.items() if np.isfinite(value).all()}
    ends = resampled_means(known, samples, seed, weights=own) if samples else {}
    plain = {name: value if np.isfinite(value) else None for name, value in means.items()}
    return MeansReport(count, plain, {name: unit for name, unit in (units or {}).items() if unit}, ends)
