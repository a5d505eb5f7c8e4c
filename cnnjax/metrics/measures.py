"""What logits are worth, example by example: losses, confidences, ranks, calibration."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

BINS = 15
"""Equal-width bins of the calibration error, as in Guo et al. 2017."""


@dataclass(frozen=True)
class Scored:
    """Logits beside their labels, and what follows for each example. Two classes stand as two columns.

    Attributes:
        labels: i64[N], the true classes.
        log_probabilities: f64[N, K], in nats.
        order: f64[N, K], log-odds of each class against the rest: probabilities that do not round to 1.
        predicted: i64[N], the likeliest classes; the first of those that tie.
        weights: f64[N], how much each example counts; None where all count the same.
    """

    labels: np.ndarray
    log_probabilities: np.ndarray
    order: np.ndarray
    predicted: np.ndarray
    weights: np.ndarray | None = None

    @property
    def classes(self) -> int:
        """Number of classes, K."""
        return self.log_probabilities.shape[1]

    @property
    def losses(self) -> np.ndarray:
        """f64[N], cross-entropies in nats."""
        return -np.take_along_axis(self.log_probabilities, self.labels[:, None], 1)[:, 0]

    @property
    def correct(self) -> np.ndarray:
        """f64[N], 1 where the prediction is right."""
        return (self.predicted == self.labels).astype(np.float64)

    @property
    def confidences(self) -> np.ndarray:
        """f64[N], probabilities of the predicted classes."""
        return np.exp(np.take_along_axis(self.log_probabilities, self.predicted[:, None], 1)[:, 0])

    @property
    def ranks(self) -> np.ndarray:
        """i64[N], how many classes are put before the true one; of those that tie the first comes first."""
        columns, own = np.arange(self.classes), -self.losses[:, None]
        before = (self.log_probabilities == own) & (columns < self.labels[:, None])
        return ((self.log_probabilities > own) | before).sum(1)


def mean(values: np.ndarray, weights: np.ndarray | None) -> float:
    """The mean over examples, each with its weight.

    >>> mean(np.array([1.0, 4.0]), None), mean(np.array([1.0, 4.0]), np.array([2.0, 1.0]))
    (2.5, 2.0)
    """
    return float(values.mean() if weights is None else np.average(values, weights=weights))


def checked_weights(weights: ArrayLike | None, count: int) -> np.ndarray | None:
    """Weights of examples as f64[N]; None where all are the same, which is as if there were none.

    Raises:
        ValueError: They are not `count` finite numbers from 0 on, or all of them are 0.

    >>> checked_weights([2, 2], 2), checked_weights([1, 2], 2).tolist()
    (None, [1.0, 2.0])
    """
    if weights is None:
        return None
    found = np.asarray(weights)
    if found.shape != (count,) or found.dtype.kind not in "biuf":
        raise ValueError(f"weights: expected {count} numbers, one an example, found {found.dtype}{list(found.shape)}")
    found = found.astype(np.float64)
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise ValueError("weights: expected finite numbers from 0 on, not all 0")
    return None if (found == found[0]).all() else found


def scored(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Scored:
    """Check logits and labels, and compute in double precision what all measures need.

    Args:
        logits: f32[N, 1] for two classes (sigmoid), f32[N, K] for K (softmax).
        labels: i32[N], classes from 0 on.
        weights: f32[N], how much each example counts; all the same if not given.

    Raises:
        ValueError: Shapes do not fit each other, there are no examples, a logit is not finite, a label is no class, or
            a weight is below 0.

    >>> found = scored([[0.0], [2.0]], [0, 1])
    >>> found.losses.round(4).tolist(), found.predicted.tolist()  # log 2, log(1 + exp(-2))
    ([0.6931, 0.1269], [0, 1])
    """
    values, classes = np.asarray(logits), np.asarray(labels)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"expected logits of shape (N, 1) or (N, classes) for N > 0 examples, found {values.shape}")
    if classes.shape != values.shape[:1]:
        raise ValueError(f"expected {len(values)} labels, one for each row of logits, found shape {classes.shape}")
    if classes.dtype.kind not in "iub":
        raise ValueError(f"expected labels as whole numbers from 0 on, found {classes.dtype}")
    values, classes = values.astype(np.float64), classes.astype(np.int64)
    if bad := (~np.isfinite(values)).any(1).sum():
        raise ValueError(
            f"logits of {bad:,} of {len(values):,} examples are not finite ({np.isnan(values).sum():,} numbers are "
            "NaN): the training diverged; lower the learning rate"
        )
    if values.shape[1] == 1:
        values = np.concatenate([np.zeros_like(values), values], 1)  # softmax of (0, x) is sigmoid of x
    outside = np.flatnonzero((classes < 0) | (classes >= values.shape[1]))
    if len(outside):
        raise ValueError(
            f"{len(outside):,} of {len(classes):,} labels are no class: expected 0 to {values.shape[1] - 1}, "
            f"found {classes[outside[0]]} at place {outside[0]}"
        )
    values -= values.max(1, keepdims=True)
    log_probabilities = values - np.log(np.exp(values).sum(1, keepdims=True))
    each = checked_weights(weights, len(values))
    return Scored(classes, log_probabilities, _log_odds(values), values.argmax(1), each)


def _log_odds(values: np.ndarray) -> np.ndarray:
    """f64[N, K], log of p / (1 - p), from logits whose largest is 0."""
    if values.shape[1] == 2:
        return values - values[:, ::-1]
    top = values.argmax(1)[:, None]
    rest = values.copy()
    np.put_along_axis(rest, top, -np.inf, 1)
    second = rest.max(1, keepdims=True)  # may be too small for exp
    against_top = second + np.log(np.exp(rest - second).sum(1, keepdims=True))
    odds = values - np.log(1 + np.exp(against_top) - np.exp(rest))
    np.put_along_axis(odds, top, -against_top, 1)
    return odds.round(9)  # the order of a sum must not break a tie


def auc(order: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """Area under the ROC curve: how often a positive example ranks before a negative one, ties counting half.

    It is the Mann-Whitney statistic, exact, over the number of pairs.

    Args:
        order: f64[N], larger for what is taken for positive.
        positive: bool[N].
        weights: f64[N], how much each counts (a pair counts the product); all the same if not given.

    Returns:
        The area in [0, 1]; None if all examples are positive or all are negative.

    >>> auc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]))  # 3.5 of 4 pairs
    0.875
    """
    if weights is not None:
        return _weighted_auc(order, positive, weights)
    below = np.sort(order[~positive])
    if len(below) in (0, len(order)):
        return None
    twice = np.searchsorted(below, order[positive]) + np.searchsorted(below, order[positive], side="right")
    return float(twice.mean() / (2 * len(below)))


def _weighted_auc(order: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float | None:
    rising = np.argsort(order[~positive], kind="stable")
    below, own = order[~positive][rising], weights[positive]
    sums = np.r_[0.0, weights[~positive][rising].cumsum()]
    if not own.sum() or not sums[-1]:
        return None
    left, right = (sums[np.searchsorted(below, order[positive], side=side)] for side in ("left", "right"))
    return float((own * (left + right)).sum() / (2 * own.sum() * sums[-1]))


def roc(
    order: np.ndarray, positive: np.ndarray, most: int = 401, weights: np.ndarray | None = None
) -> tuple[tuple[float, float], ...]:
    """The ROC curve from (0, 0) to (1, 1) by its corners; of more than `most`, by points that enclose the same area.

    Then the curve is cut in short, evenly spread parts, and one point stands for the corners within each: it lies where
    the area under the part stays the same, and the curve moves by no more than the part is long.

    Args:
        order: f64[N], larger for what is taken for positive.
        positive: bool[N].
        most: How many points are kept.
        weights: f64[N], how much each counts; all the same if not given.

    Returns:
        (false positive rate, true positive rate) for falling thresholds; empty where `auc` is None. The area under them
        is `auc`'s.

    >>> roc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]))
    ((0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0))
    """
    if positive.all() or not positive.any():
        return ()
    values, place = np.unique(-order, return_inverse=True)
    false, true = (
        np.r_[0, np.bincount(place[who], None if weights is None else weights[who], minlength=len(values)).cumsum()]
        for who in (~positive, positive)
    )
    if not false[-1] or not true[-1]:  # all of them weigh nothing
        return ()
    if weights is not None:  # what weighs nothing makes no step, and would hide the corner between two others
        moves = np.r_[True, np.diff(false + true) > 0]
        false, true = false[moves], true[moves]
    across, up = np.diff(false), np.diff(true)
    corners = np.r_[True, across[1:] * up[:-1] != across[:-1] * up[1:], True]
    points = np.stack([false[corners] / false[-1], true[corners] / true[-1]], axis=1)
    if len(points) > most:
        points = _thinned(points, most // 3)
    return tuple((float(x), float(y)) for x, y in points)


def _thinned(points: np.ndarray, parts: int) -> np.ndarray:
    """f64[M, 2], M at most 3 * parts: a monotone curve with the same area beneath."""
    x, y = points.T
    area = np.r_[0, np.cumsum(np.diff(x) * (y[1:] + y[:-1]) / 2)]
    after = np.searchsorted(x + y, np.linspace(0, 2, parts)).clip(max=len(x) - 1)
    kept = np.unique(np.r_[after, (after - 1).clip(min=0)])  # both ends of every long step stay
    start, stop = kept[:-1], kept[1:]
    dx, dy = x[stop] - x[start], y[stop] - y[start]
    above = area[stop] - area[start] - dx * (y[start] + y[stop]) / 2  # of the curve over its chord
    # The triangle of the chord and the point (t dx, (1 - t) dy) has the area (1/2 - t) dx dy.
    t = (0.5 - above / np.where(dx * dy > 0, dx * dy, np.inf)).clip(0, 1)
    inner = np.stack([x[start] + t * dx, y[start] + (1 - t) * dy], axis=1)
    between = stop - start > 1
    order = np.argsort(np.r_[kept, start[between] + 0.5])
    return np.concatenate([points[kept], inner[between]])[order]


def bin_of(confidences: np.ndarray) -> np.ndarray:
    """i64[N], the calibration bin of each confidence: bin b holds (b / 15, (b + 1) / 15].

    >>> bin_of(np.array([0.5, 0.6, 1.0])).tolist()
    [7, 8, 14]
    """
    return np.searchsorted(np.arange(1, BINS) / BINS, confidences)
