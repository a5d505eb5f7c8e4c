"""A classifier's report: what its logits on labelled examples say, as numbers, text, Markdown and JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cnnjax.files.runs import finite
from cnnjax.metrics import tables
from cnnjax.metrics.intervals import MEASURES, resampled
from cnnjax.metrics.measures import BINS, Scored, auc, bin_of, mean, roc, scored

MOST_CLASSES = 20
"""Tables show every class up to this many; beyond, the worst ones."""
CURVES = 10
"""ROC curves are kept for so many classes."""


@dataclass(frozen=True)
class ClassScores:
    """One class against the rest; None where a ratio is 0 / 0.

    Attributes:
        name: Of the class.
        support: Number of its examples, or the sum of their weights.
        precision: The part of the predictions of this class that are right.
        recall: The part of its examples that are found.
        f1: Harmonic mean of the two.
        auc: Area under the ROC curve of this class against the rest.
        roc: (false, true positive rate) points of that curve; empty where it is not kept.
    """

    name: str
    support: float
    precision: float | None
    recall: float | None
    f1: float | None
    auc: float | None
    roc: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Bin:
    """One of the equal-width bins of confidence; the k-th of 15 holds (k / 15, (k + 1) / 15].

    Attributes:
        count: Number of examples whose predicted class has such a probability.
        confidence: Their mean probability; None for an empty bin.
        accuracy: The part of them that is right; None for an empty bin.
    """

    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Report:
    """What `report` found. Ratios lie in [0, 1]; None stands for what is not defined.

    Attributes:
        count: Number of examples, N.
        loss: Mean cross-entropy in nats.
        accuracy: The part of the examples whose likeliest class is the true one.
        top5: The part whose true class is among the five likeliest, of those that tie the first (Keras takes them all);
            None for five classes or fewer.
        auc: Area under the ROC curve, of the second class for two, the mean over one-vs-rest areas for more; None where
            a class has no examples.
        macro_precision: Mean over the classes that have examples; a class that is never predicted counts as 0.
        macro_recall: Mean over the classes that have examples: balanced accuracy.
        macro_f1: Mean over the classes that have examples.
        ece: Expected calibration error of the predicted class, 15 equal-width bins (Guo et al. 2017).
        brier: Squared error of probabilities (Brier 1950), the mean: of the second class for two, summed over more.
        classes: Scores of each class.
        bins: The reliability diagram that `ece` sums up.
        confusion: i64[K, K], examples of the row's class that were predicted as the column's.
        intervals: Measure -> 95 % bootstrap interval of accuracy, auc, loss and ece; empty if none was asked for.
        weighted: Whether classes were weighted in training: balanced accuracy and the worst class are shown then.
        own: Means of a loss and of metrics of the user's, by name.
        total: Sum of the examples' weights, where they have some: then all of this counts each example with its weight,
            also `support` and `confusion`; None where all count the same.
    """

    count: int
    loss: float
    accuracy: float
    top5: float | None
    auc: float | None
    macro_precision: float
    macro_recall: float
    macro_f1: float
    ece: float
    brier: float
    classes: tuple[ClassScores, ...]
    bins: tuple[Bin, ...]
    confusion: np.ndarray
    intervals: Mapping[str, tuple[float, float] | None]
    weighted: bool = False
    own: Mapping[str, float] = field(default_factory=dict)
    total: float | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Report) and self.to_json() == other.to_json()

    __hash__ = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of their labels."""
        return tuple(scores.name for scores in self.classes)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have examples."""
        return self.macro_recall

    @property
    def worst(self) -> ClassScores:
        """The class of lowest recall among those that have examples; of several the first."""
        return min((scores for scores in self.classes if scores.support), key=lambda scores: scores.recall or 0)

    def measures(self) -> dict[str, Any]:
        """The measures that are kept with a saved classifier, by name."""
        found = {name: getattr(self, name) for name in ("accuracy", "loss", "auc", "ece")}
        return found | ({"balanced_accuracy": self.balanced_accuracy} if self.weighted else {}) | dict(self.own)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and dictionaries; null for what is not defined, never NaN."""
        return finite(asdict(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Report":
        """The report that `to_json` gave.

        Raises:
            ValueError: It is none: an entry is missing, unknown, or of another kind.

        >>> found = report([[2.0], [-1.0]], [1, 0], ("cat", "dog"))
        >>> Report.from_json(found.to_json()) == found
        True
        """
        try:
            parts = _numbers(content, "classes", "bins", "confusion", "intervals", "own")
            parts["own"] = _numbers(content.get("own", {}))
            scores = [_numbers(found, "name", "roc") for found in content["classes"]]
            for found in scores:
                found["name"] = str(found["name"])
                found["roc"] = tuple((float(x), float(y)) for x, y in found["roc"])
            parts["classes"] = tuple(ClassScores(**found) for found in scores)
            parts["bins"] = tuple(Bin(**_numbers(found)) for found in content["bins"])
            kind = np.int64 if content.get("total") is None else np.float64
            parts["confusion"] = _read_only(np.array(content["confusion"], kind))
            parts["intervals"] = {
                name: None if ends is None else (float(ends[0]), float(ends[1]))
                for name, ends in content["intervals"].items()
            }
            if parts["confusion"].shape != (len(parts["classes"]),) * 2:
                raise ValueError(f"{len(parts['classes'])} classes, but confusion of shape {parts['confusion'].shape}")
            return cls(**parts)
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"this is no report of cnnjax.metrics: {type(error).__name__}: {error}") from error

    def text(self) -> str:
        """For a terminal: the measures, a table of classes, and the confusion matrix or its largest errors."""
        return "\n\n".join(tables.terminal(*part) for part in self._parts())

    def markdown(self) -> str:
        """The same in Markdown."""
        return "\n\n".join(tables.markdown(*part) for part in self._parts()) + "\n"

    def _parts(self) -> list[tuple[str, list[tuple[str, ...]], int]]:
        """(title, rows, columns of names) of every table."""
        return [self._summary(), self._scores(), self._confusion()]

    def _summary(self) -> tuple[str, list[tuple[str, ...]], int]:
        shown = {
            "accuracy": (self.accuracy, percent), "top-5 accuracy": (self.top5, percent), "loss": (self.loss, number),
            "AUC": (self.auc, number), "calibration error": (self.ece, percent), "Brier score": (self.brier, number),
        }  # fmt: skip
        if self.weighted:
            shown["balanced accuracy"] = (self.balanced_accuracy, percent)
            shown[f"worst class, {self.worst.name}"] = (self.worst.recall, percent)
        shown |= {name: (value, _short) for name, value in self.own.items()}
        ends = {name: self.intervals.get(key) for name, key in _INTERVALS.items()}
        rows = [
            (name, style(value)) + ((_between(ends.get(name), style),) if self.intervals else ())
            for name, (value, style) in shown.items()
            if name != "top-5 accuracy" or value is not None
        ]
        header = ("measure", "value") + (("95 % interval",) if self.intervals else ())
        weights = "" if self.total is None else f", weighted (sum {self.total:,.6g})"
        return f"{self.count:,} examples, {len(self.classes):,} classes{weights}", [header, *rows], 1

    def _scores(self) -> tuple[str, list[tuple[str, ...]], int]:
        chosen, title = self.classes, "classes"
        if len(chosen) > MOST_CLASSES:
            known = [scores for scores in chosen if scores.f1 is not None]
            chosen = sorted(known, key=lambda scores: scores.f1 or 0)[:MOST_CLASSES]
            title = f"the {len(chosen)} classes of lowest F1, of {len(self.classes):,}"
        rows: list[tuple[str, ...]] = [("class", "examples", "precision", "recall", "F1", "AUC")]
        rows += [(s.name, counted(s.support), *map(number, (s.precision, s.recall, s.f1, s.auc))) for s in chosen]
        mean = (self.macro_precision, self.macro_recall, self.macro_f1, self.auc)
        rows.append(("mean of all", f"{self.count:,}", *map(number, mean)))
        return title, rows, 1

    def _confusion(self) -> tuple[str, list[tuple[str, ...]], int]:
        if len(self.classes) <= MOST_CLASSES:
            matrix: list[tuple[str, ...]] = [("", *(str(k) for k in range(len(self.classes))))]
            for k, (name, line) in enumerate(zip(self.class_names, self.confusion, strict=True)):
                matrix.append((f"{k} {name}", *map(counted, line.tolist())))
            return "confusion: a row for each true class, a column for each predicted one", matrix, 1
        rows: list[tuple[str, ...]] = [("true class", "predicted", "examples", "of the true class")]
        for true, predicted in self.largest_confusions(MOST_CLASSES):
            n = self.confusion[true, predicted]
            part = n / self.classes[true].support
            rows.append((self.class_names[true], self.class_names[predicted], counted(n.item()), percent(part)))
        return f"the {len(rows) - 1} largest confusions", rows, 2

    def largest_confusions(self, most: int) -> list[tuple[int, int]]:
        """The `most` pairs (true, predicted) of different classes that are most frequent, the first one most of all."""
        wrong = np.where(np.eye(len(self.classes), dtype=bool), 0, self.confusion)
        places = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = ((int(k) // len(wrong), int(k) % len(wrong)) for k in places)
        return [pair for pair in pairs if wrong[pair]]


def counted(value: float) -> str:
    """1234 as "1,234"; a sum of weights with four digits.

    >>> counted(1234), counted(1234.5678), counted(0.25)
    ('1,234', '1,235', '0.25')
    """
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


_INTERVALS = {"accuracy": "accuracy", "loss": "loss", "AUC": "auc", "calibration error": "ece"}


def percent(value: float | None) -> str:
    """0.9666 as "96.7 %", None as a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """0.96666 as "0.967", None as a dash."""
    return "–" if value is None else f"{value:.3f}"


def _between(ends: tuple[float, float] | None, style: Callable[[float], str]) -> str:
    return "" if ends is None else f"{style(ends[0]).removesuffix(' %')} to {style(ends[1])}"


def report(
    logits: ArrayLike, labels: ArrayLike, class_names: Sequence[str], *, weights: ArrayLike | None = None,
    samples: int = 0, seed: int = 0, weighted: bool = False,
) -> Report:  # fmt: skip
    """Measure a classifier on labelled examples.

    Args:
        logits: f32[N, 1] for two classes (sigmoid), f32[N, K] for K (softmax), before the activation.
        labels: i32[N], indices into `class_names`.
        class_names: Names of the classes, two for one logit.
        weights: f32[N], how much each example counts, as `sample_weight` of scikit-learn; all the same if not given.
        samples: Resamples for the 95 % bootstrap intervals, 0 for none; `cnnjax.metrics.bootstrap` says what they cost.
        seed: Of the resamples.
        weighted: Whether classes were weighted in training: balanced accuracy and the worst class are shown then.

    Raises:
        ValueError: Shapes do not fit each other, there are no examples, a logit is not finite, a label is no class, the
            number of names is another, a weight or `samples` is negative.

    >>> import numpy as np
    >>> found = report(np.log([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.4, 0.2, 0.4]]), [0, 1, 2], "abc")
    >>> round(found.accuracy, 3), round(found.loss, 3), round(found.ece, 3)
    (0.667, 0.55, 0.333)
    """
    found, names = scored(logits, labels, weights), tuple(str(name) for name in class_names)
    if len(names) != found.classes:
        width = np.shape(logits)[1]
        raise ValueError(
            f"expected {found.classes} class names for {width} logit{'s' * (width > 1)} an example, found {len(names)}"
        )
    if samples < 0:
        raise ValueError(f"expected samples >= 0, found {samples}")
    size, correct, own = found.classes, found.correct, found.weights
    pairs = np.bincount(found.labels * size + found.predicted, own, minlength=size * size).reshape(size, size)
    areas = [auc(found.order[:, k], found.labels == k, own) for k in range(size)]
    curves = {1}  # of two classes the other curve is this one, turned
    if size > 2:
        curves = set(sorted(range(size), key=lambda k: 2 if (area := areas[k]) is None else area)[:CURVES])
    classes = tuple(_class(found, pairs, k, name, areas[k], k in curves) for k, name in enumerate(names))
    present = [scores for scores in classes if scores.support]
    known = [area for area in areas if area is not None]
    errors = np.exp(found.log_probabilities)
    errors[np.arange(len(errors)), found.labels] -= 1
    return Report(
        count=len(correct),
        loss=mean(found.losses, own),
        accuracy=mean(correct, own),
        top5=mean((found.ranks < 5).astype(np.float64), own) if size > 5 else None,
        auc=float(np.mean(known)) if len(known) == size else None,
        macro_precision=float(np.mean([scores.precision or 0 for scores in present])),
        macro_recall=float(np.mean([scores.recall for scores in present])),
        macro_f1=float(np.mean([scores.f1 for scores in present])),
        ece=_ece(found),
        brier=mean(np.square(errors).sum(1), own) / (2 if size == 2 else 1),
        classes=classes,
        bins=_bins(found.confidences, correct, own),
        confusion=_read_only(pairs),
        intervals=resampled(found, MEASURES, samples, seed, 0.95) if samples else {},
        weighted=weighted,
        total=None if own is None else float(own.sum()),
    )


def _ece(found: Scored) -> float:
    gaps, whole = found.correct - found.confidences, len(found.correct)
    if found.weights is not None:
        gaps, whole = gaps * found.weights, found.weights.sum()
    return float(np.abs(np.bincount(bin_of(found.confidences), gaps)).sum() / whole)


def _class(found: Scored, pairs: np.ndarray, k: int, name: str, area: float | None, curve: bool) -> ClassScores:
    hits, support, predicted = pairs[k, k].item(), pairs[k].sum().item(), pairs[:, k].sum().item()
    return ClassScores(
        name, support, _ratio(hits, predicted), _ratio(hits, support), _ratio(2 * hits, support + predicted), area,
        roc(found.order[:, k], found.labels == k, weights=found.weights) if curve else (),
    )  # fmt: skip


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _bins(confidences: np.ndarray, correct: np.ndarray, weights: np.ndarray | None) -> tuple[Bin, ...]:
    place = bin_of(confidences)
    members = [place == k for k in range(BINS)]
    return tuple(
        Bin(
            int(inside.sum()),
            *(mean(x[inside], None if weights is None else weights[inside]) for x in (confidences, correct)),
        )
        if inside.any() and (weights is None or weights[inside].any())
        else Bin(0, None, None)
        for inside in members
    )


def _numbers(found: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """A copy, checked: every entry but `others` is a number or None."""
    for name, value in found.items():
        if name not in others and not isinstance(value, int | float | None):
            raise TypeError(f"expected a number for {name!r}, found {value!r}")
    return dict(found)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
