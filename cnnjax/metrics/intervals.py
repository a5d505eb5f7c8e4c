"""How far a measured number may lie from the true one: over seeds, and over the examples it was measured on."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from cnnjax.metrics.measures import Scored, bin_of, scored
from cnnjax.runtime.nearest import unknown

MEASURES = ("accuracy", "auc", "loss", "ece")
_ROOM = 2**22  # numbers of one block of resamples: 32 MB


def interval(values: Sequence[float]) -> float:
    """Half-width of the 95 % confidence interval of the mean (Student's t); NaN for fewer than two values.

    Example:
        >>> round(interval([1.0, 2.0, 3.0]), 3)  # t(0.975, 2) = 4.303, s = 1
        2.484
    """
    from scipy.special import stdtrit

    count = len(values)
    if count < 2:
        return math.nan
    return float(stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(count))


def bootstrap(
    logits: ArrayLike,
    labels: ArrayLike,
    measure: str = "accuracy",
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a measure over examples drawn with replacement (Efron 1979).

    A resample without examples of a class has no AUC of that class: the mean is over the others, and with two classes
    the resample does not count. AUC takes time in proportion to N * K * samples, the others to N * samples.
    The calibration error of a resample is larger on average than that of the examples, so its interval lies high.

    Args:
        logits: f32[N, 1] for two classes (sigmoid), f32[N, K] for K (softmax).
        labels: i32[N], classes from 0 on.
        measure: "accuracy", "auc", "loss" or "ece", as in `cnnjax.metrics.report`.
        samples: How many resamples.
        seed: Of the draws; the same for every measure, so that they see the same resamples.
        level: The part of the resamples inside, in (0, 1).

    Returns:
        (low, high).

    Raises:
        ValueError: The measure is unknown or not defined for these labels, a number is out of range, or logits and
            labels do not fit.

    >>> low, high = bootstrap([[1.0]] * 90 + [[-1.0]] * 10, [1] * 100)  # 90 of 100: about 0.9 ± 1.96 * 0.03
    >>> round(low, 2), round(high, 2)
    (0.84, 0.96)
    """
    if measure not in MEASURES:
        raise ValueError(unknown("measure", measure, MEASURES, listed=True))
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"expected samples > 0 and 0 < level < 1, found {samples} and {level}")
    found = resampled(scored(logits, labels), (measure,), samples, seed, level)[measure]
    if found is None:
        raise ValueError("there is no AUC: a class has no examples, or no others")
    return found


def resampled(
    found: Scored, measures: Sequence[str], samples: int, seed: int, level: float
) -> dict[str, tuple[float, float] | None]:
    """`bootstrap` of several measures from the same resamples; None where a measure is not defined."""
    present = np.bincount(found.labels, found.weights, minlength=found.classes) > 0
    values: dict[str, list[np.ndarray]] = {name: [] for name in measures if name != "auc" or present.all()}
    for counts in _draws(len(found.labels), samples, seed):
        weighted = counts if found.weights is None else counts * found.weights[:, None]
        for name, blocks in values.items():
            blocks.append(_MEASURE[name](found, weighted))
    ends: dict[str, tuple[float, float] | None] = dict.fromkeys(measures)
    for name, blocks in values.items():
        defined = np.concatenate(blocks)
        if len(defined := defined[~np.isnan(defined)]):
            low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
            ends[name] = float(low), float(high)
    return ends


def resampled_indices(examples: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """i64[N], the examples of each resample: the same for every measure of a seed."""
    generator = np.random.default_rng(seed)
    for _ in range(samples):
        yield generator.integers(0, examples, examples)


def resampled_means(
    values: Mapping[str, np.ndarray], samples: int, seed: int, level: float = 0.95, weights: np.ndarray | None = None
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of means, f64[N] each, from the same resamples; with weights of weighted means."""
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in values}
    count = len(next(iter(values.values()))) if values else 0
    for counts in _draws(count, samples, seed) if count else ():
        weighted = counts if weights is None else counts * weights[:, None]
        whole = weighted.sum(0)
        for name, value in values.items():
            # A resample whose examples all weigh nothing has no mean.
            drawn[name].append((value @ weighted)[whole > 0] / whole[whole > 0])
    ends = [(1 - level) / 2, (1 + level) / 2]
    found = {name: np.quantile(np.concatenate(blocks), ends) for name, blocks in drawn.items() if blocks}
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def _draws(examples: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """f64[N, S] blocks: how often each example was drawn in each of S resamples."""
    generator = np.random.default_rng(seed)
    block = max(1, _ROOM // examples)
    for start in range(0, samples, block):
        size = min(block, samples - start)
        draws = generator.integers(0, examples, (size, examples)) + examples * np.arange(size)[:, None]
        counts = np.bincount(draws.reshape(-1), minlength=size * examples).reshape(size, examples)
        yield np.ascontiguousarray(counts.T, np.float64)


def _accuracy(found: Scored, counts: np.ndarray) -> np.ndarray:
    return _over(found.correct @ counts, counts)


def _loss(found: Scored, counts: np.ndarray) -> np.ndarray:
    return _over(found.losses @ counts, counts)


def _over(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Means; NaN of a resample whose examples all weigh nothing."""
    whole = counts.sum(0)
    return np.divide(sums, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _ece(found: Scored, counts: np.ndarray) -> np.ndarray:
    confidences = found.confidences
    place, gaps = bin_of(confidences), found.correct - confidences
    order = np.argsort(place)
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    return _over(np.abs(np.add.reduceat(gaps[order, None] * counts[order], starts, axis=0)).sum(0), counts)


def _auc(found: Scored, counts: np.ndarray) -> np.ndarray:
    if found.weights is None:
        counts = counts.astype(np.float32)  # exact for whole numbers to 2**24, and half the memory to pass through
    total, defined = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    for label in (1,) if found.classes == 2 else range(found.classes):
        own = found.labels == label
        order, weights = found.order[:, label], counts[own]
        rising = np.flatnonzero(~own)[np.argsort(order[~own])]
        ends = [np.searchsorted(order[rising], order[own], side=side) for side in ("left", "right")]
        # How many negatives lie below each end: sums between neighbouring ends first, then over them.
        cuts, place = np.unique(np.concatenate([[0], *ends]), return_inverse=True)
        between = np.add.reduceat(counts[rising], cuts[cuts < len(rising)], axis=0)
        below = np.concatenate([np.zeros_like(between[:1]), between.cumsum(0)])
        left, right = np.split(place[1:], 2)
        wins = np.einsum("ps,ps->s", weights, below[left] + below[right], dtype=np.float64) / 2
        pairs = weights.sum(0, dtype=np.float64) * below[-1]
        total += np.divide(wins, pairs, out=np.zeros_like(total), where=pairs > 0)
        defined += pairs > 0
    return np.divide(total, defined, out=np.full_like(total, np.nan), where=defined > 0)


_MEASURE = {"accuracy": _accuracy, "auc": _auc, "loss": _loss, "ece": _ece}
