"""Labels that may hold together: precision and recall of each, over all thresholds and at the one that is used."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cnnjax.files.runs import finite
from cnnjax.metrics import tables
from cnnjax.metrics.intervals import resampled_indices
from cnnjax.metrics.measures import auc, checked_weights, mean
from cnnjax.metrics.reports import MOST_CLASSES, counted, number, percent

CURVES = 10
"""Precision-recall curves are kept for so many labels."""
_POINTS = 200


@dataclass(frozen=True)
class LabelScores:
    """One label; None where a ratio is 0 / 0.

    Attributes:
        name: Of the label.
        support: Number of examples that have it, or the sum of their weights.
        average_precision: As `sklearn.metrics.average_precision_score`; None without examples that have it.
        auc: Area under the ROC curve; None where all examples have it, or none has.
        threshold: The probability from which on it is said to be there.
        precision: At the threshold, the part of what is said that is right.
        recall: At the threshold, the part of its examples that are found.
        f1: Harmonic mean of the two.
        curve: (recall, precision) points over all thresholds; empty where it is not kept.
    """

    name: str
    support: float
    average_precision: float | None
    auc: float | None
    threshold: float
    precision: float | None
    recall: float | None
    f1: float | None
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class MultiLabelReport:
    """What `multilabel_report` found. Means are over the labels for which a measure is defined; None if for none.

    Attributes:
        count: Number of examples.
        loss: Mean binary cross-entropy in nats, unweighted.
        mean_average_precision: mAP.
        auc: Mean area under the ROC curves.
        macro_f1: Mean F1 at the thresholds.
        micro_f1: F1 of all decisions together.
        label_accuracy: The part of all decisions that are right.
        exact_match: The part of the examples whose labels are all right.
        chosen: Whether the thresholds were chosen on validation data, for the best F1; 0.5 otherwise.
        labels: Scores of each label.
        intervals: Measure -> 95 % bootstrap interval of mean_average_precision, macro_f1 and exact_match.
        own: Means of a loss and of metrics of the user's, by name.
        total: Sum of the examples' weights, where they have some: each counts with its weight, also in the labels'
            `support`; None otherwise.
    """

    count: int
    loss: float
    mean_average_precision: float | None
    auc: float | None
    macro_f1: float | None
    micro_f1: float | None
    label_accuracy: float
    exact_match: float
    chosen: bool
    labels: tuple[LabelScores, ...]
    intervals: Mapping[str, tuple[float, float]]
    own: Mapping[str, float] = field(default_factory=dict)
    total: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and dictionaries; null for what is not defined."""
        return finite(asdict(self))

    def measures(self) -> dict[str, Any]:
        """The measures of the whole by name."""
        names = ("loss", "mean_average_precision", "auc", "macro_f1", "micro_f1", "label_accuracy", "exact_match")
        return {name: getattr(self, name) for name in names} | dict(self.own)

    def text(self) -> str:
        """For a terminal: the measures, and a table of labels."""
        return "\n\n".join(tables.terminal(*part) for part in self._parts())

    def markdown(self) -> str:
        """The same in Markdown."""
        return "\n\n".join(tables.markdown(*part) for part in self._parts()) + "\n"

    def _parts(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        shown = {
            "mean average precision": (self.mean_average_precision, "mean_average_precision", percent),
            "AUC, mean": (self.auc, "auc", number), "F1, mean": (self.macro_f1, "macro_f1", number),
            "F1 of all decisions": (self.micro_f1, "micro_f1", number), "loss": (self.loss, "loss", number),
            "labels right": (self.label_accuracy, "label_accuracy", percent),
            "all labels right": (self.exact_match, "exact_match", percent),
        }  # fmt: skip
        shown |= {name: (value, name, number) for name, value in self.own.items()}
        header = ("measure", "value") + (("95 % interval",) if self.intervals else ())
        rows: list[tuple[str, ...]] = [header]
        for name, (value, key, style) in shown.items():
            ends = self.intervals.get(key)
            spread = () if not self.intervals else ("" if ends is None else f"{style(ends[0])} to {style(ends[1])}",)
            rows.append((name, style(value), *spread))
        chosen, title = self.labels, "labels"
        if len(chosen) > MOST_CLASSES:
            chosen = tuple(sorted(chosen, key=lambda s: s.average_precision or 0)[:MOST_CLASSES])
            title = f"the {len(chosen)} labels of lowest average precision, of {len(self.labels):,}"
        title += f"; thresholds {'of the best F1 on validation data' if self.chosen else 'not chosen: 0.5'}"
        each: list[tuple[str, ...]] = [
            ("label", "examples", "average precision", "AUC", "threshold", "precision", "recall", "F1")
        ]
        each += [
            (
                s.name, counted(s.support),
                *map(number, (s.average_precision, s.auc, s.threshold, s.precision, s.recall, s.f1)),
            )
            for s in chosen
        ]  # fmt: skip
        weights = "" if self.total is None else f", weighted (sum {self.total:,.6g})"
        return [(f"{self.count:,} examples, {len(self.labels):,} labels{weights}", rows), (title, each)]


def multilabel_report(
    logits: ArrayLike, targets: ArrayLike, names: Sequence[str], *, thresholds: Sequence[float] | None = None,
    weights: ArrayLike | None = None, samples: int = 0, seed: int = 0,
) -> MultiLabelReport:  # fmt: skip
    """Measure a model of several labels.

    Args:
        logits: f32[N, K], before the sigmoid.
        targets: [N, K], 1 where a label is there.
        names: Of the labels.
        thresholds: Probabilities from which on each label is said to be there; 0.5 if not given.
        weights: f32[N], how much each example counts; all the same if not given.
        samples: Resamples for the 95 % bootstrap intervals, 0 for none.
        seed: Of the resamples.

    Raises:
        ValueError: Shapes do not fit each other, there are no examples, a logit is not finite, a target is neither 0
            nor 1.

    >>> found = multilabel_report([[2.0, -1.0], [-1.0, 3.0], [1.0, 0.5]], [[1, 0], [0, 1], [0, 1]], ("sky", "sea"))
    >>> found.mean_average_precision, found.labels[0].precision, found.exact_match
    (1.0, 0.5, 0.6666666666666666)
    """
    scores, wanted = np.asarray(logits, np.float64), np.asarray(targets)
    if scores.ndim != 2 or scores.shape[1] != len(names) or not len(scores):
        raise ValueError(f"expected logits [N, {len(names)}] for N > 0 examples, found {scores.shape}")
    wanted = wanted.reshape(len(wanted), -1)
    if wanted.shape != scores.shape or not np.isin(wanted, (0, 1)).all():
        raise ValueError(f"expected targets of 0 and 1, {list(scores.shape)}, found {list(wanted.shape)}")
    if bad := int((~np.isfinite(scores)).any(1).sum()):
        raise ValueError(f"logits of {bad:,} of {len(scores):,} examples are not finite: the training diverged")
    wanted = wanted.astype(bool)
    edges = np.array([0.5] * len(names) if thresholds is None else thresholds, np.float64)
    said = _likely(scores) >= edges
    own = checked_weights(weights, len(scores))
    each = [average_precision(scores[:, k], wanted[:, k], own) for k in range(len(names))]
    curves = set(sorted(range(len(names)), key=lambda k: 2.0 if (x := each[k]) is None else x)[:CURVES])
    labels = tuple(
        LabelScores(
            str(name), _sum(wanted[:, k], own), each[k], auc(scores[:, k], wanted[:, k], own), float(edges[k]),
            *_at(said[:, k], wanted[:, k], own), _curve(scores[:, k], wanted[:, k], own) if k in curves else (),
        )
        for k, name in enumerate(names)
    )  # fmt: skip
    found = _whole(scores, wanted, said, own)
    intervals = {}
    if samples:
        drawn = [
            _whole(scores[i], wanted[i], said[i], None if own is None else own[i], short=True)
            for i in resampled_indices(len(scores), samples, seed)
            if own is None or own[i].any()
        ]
        for name in ("mean_average_precision", "macro_f1", "exact_match"):
            values = [one[name] for one in drawn if one[name] is not None]
            if values and found[name] is not None:
                low, high = np.quantile(np.array(values, np.float64), (0.025, 0.975))
                intervals[name] = (float(low), float(high))
    return MultiLabelReport(
        count=len(scores), chosen=thresholds is not None, labels=labels, intervals=intervals,
        total=None if own is None else float(own.sum()), **found,
    )  # fmt: skip


def _whole(
    scores: np.ndarray, wanted: np.ndarray, said: np.ndarray, weights: np.ndarray | None, short: bool = False
) -> dict[str, Any]:
    places = range(scores.shape[1])
    right = said == wanted
    found: dict[str, Any] = {
        "mean_average_precision": _mean(average_precision(scores[:, k], wanted[:, k], weights) for k in places),
        "macro_f1": _mean(_at(said[:, k], wanted[:, k], weights)[2] for k in places),
        "exact_match": mean(right.all(1).astype(np.float64), weights),
    }
    if not short:
        every = None if weights is None else np.repeat(weights, len(places))
        found |= {
            "loss": mean(np.logaddexp(0, np.where(wanted, -scores, scores)).ravel(), every),
            "auc": _mean(auc(scores[:, k], wanted[:, k], weights) for k in places),
            "micro_f1": _at(said.ravel(), wanted.ravel(), every)[2],
            "label_accuracy": mean(right.ravel().astype(np.float64), every),
        }  # fmt: skip
    return found


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """The mean precision over the positive examples, each at its own place in the order; of ties that of the last.

    It is the sum of precision times the growth of recall over all thresholds, without interpolation.

    Args:
        scores: f64[N], larger for what is taken for positive.
        positive: bool[N].
        weights: f64[N], how much each counts; all the same if None.

    Returns:
        In [0, 1]; None without positive examples.

    >>> average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))  # (1 + 2 / 3) / 2
    0.8333333333333333
    """
    each: Any = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    hits = each * positive
    if not hits.sum():
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    found, said = hits[order].cumsum()[last], each[order].cumsum()[last]
    grown = np.diff(found, prepend=0)
    precision = np.divide(found, said, out=np.zeros_like(found), where=said > 0)
    return float((precision * grown).sum() / float(found[-1]))


def best_threshold(likely: np.ndarray, positive: np.ndarray) -> float:
    """The probability from which on to say that a label is there, for the best F1; 0.5 without positive examples.

    It lies half-way between the last probability that is taken in and the next; of several thresholds with the best F1
    it is the highest.

    >>> best_threshold(np.array([0.1, 0.3, 0.4, 0.9]), np.array([False, True, True, True]))
    0.2
    """
    if not positive.any():
        return 0.5
    order = np.argsort(-likely, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(likely[order]) != 0, True])
    hits = positive[order].cumsum()[last]
    f1 = 2 * hits / (last + 1 + positive.sum())
    place = int(f1.argmax())
    low = likely[order][last[place]]
    below = likely[order][last[place + 1]] if place + 1 < len(last) else 0.0
    half = float((low + below) / 2)
    return half if half > below else float(low)  # neighbours among the numbers have nothing between them


def _likely(scores: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(scores)


def _sum(true: np.ndarray, weights: np.ndarray | None) -> float:
    """How many of the examples, or the sum of their weights."""
    return int(true.sum()) if weights is None else float(weights[true].sum())


def _at(
    said: np.ndarray, wanted: np.ndarray, weights: np.ndarray | None
) -> tuple[float | None, float | None, float | None]:
    """Precision, recall, F1."""
    hits, all_said, all_wanted = (_sum(x, weights) for x in (said & wanted, said, wanted))
    return (
        hits / all_said if all_said else None,
        hits / all_wanted if all_wanted else None,
        2 * hits / (all_said + all_wanted) if all_said + all_wanted else None,
    )


def _curve(scores: np.ndarray, wanted: np.ndarray, weights: np.ndarray | None) -> tuple[tuple[float, float], ...]:
    each: Any = np.ones(len(scores)) if weights is None else weights
    if not (whole := each[wanted].sum()):
        return ()
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    hits, said = (each * wanted)[order].cumsum()[last], each[order].cumsum()[last]
    points = np.stack([hits[said > 0] / whole, hits[said > 0] / said[said > 0]], 1)
    if len(points) > _POINTS:
        points = points[np.unique(np.linspace(0, len(points) - 1, _POINTS).astype(int))]
    return tuple((float(x), float(y)) for x, y in points)


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
