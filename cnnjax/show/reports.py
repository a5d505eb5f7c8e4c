"""A classifier's report as an image: confusion matrix, ROC curves, reliability diagram."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cnnjax.files.writing import whole_file
from cnnjax.metrics.reports import MOST_CLASSES, Report, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST = 24  # characters of a class name


def plot(report: Report, path: Path, title: str) -> None:
    """Draw the confusion matrix, ROC curves and the reliability diagram beside each other, as PNG.

    Up to 20 classes are named and counted in the matrix; of more, its colours alone are shown, and of more than 10 the
    ROC curves of the 10 with the smallest area.

    Args:
        report: What `cnnjax.metrics.report` found.
        path: The image; its folder is made if it does not exist.
        title: Its title.

    Raises:
        OSError: The image cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = len(report.classes)
    height = min(max(5.0, 2.0 + 0.3 * size), 8.0)
    names = 0.08 * min(_LONGEST, max(map(len, report.class_names))) if size <= MOST_CLASSES else 0
    figure = Figure(figsize=(3.1 * height + names, height), dpi=120, layout="constrained")
    panels = FigureCanvasAgg(figure).figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    _matrix(panels[0], report)
    _curves(panels[1], report)
    _reliability(panels[2], report)
    figure.suptitle(title, fontsize="medium", parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


def _matrix(axes: "Axes", report: Report) -> None:
    counts, size = report.confusion, len(report.classes)
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # With many classes the errors are a few per cent each: the root makes them visible.
    image = axes.imshow(share, "Blues", norm="linear" if size <= MOST_CLASSES else _root(), interpolation="nearest")
    if size <= MOST_CLASSES:
        image.set_clim(0, 100)
        names = [short(name) for name in report.class_names]
        few = size <= 3 and max(map(len, names)) <= 12
        axes.set_xticks(range(size), names if few else [str(k) for k in range(size)], parse_math=False)
        axes.set_yticks(range(size), names if few else [f"{n}  {k}" for k, n in enumerate(names)], parse_math=False)
        letters = "medium" if size <= 5 else "small" if size <= 12 else "x-small"
        for (row, column), n in np.ndenumerate(counts):
            colour = "white" if share[row, column] > 55 else "black" if n else "0.7"
            axes.text(column, row, f"{n:,}", ha="center", va="center", color=colour, fontsize=letters)
    axes.figure.colorbar(image, ax=axes, label="of the true class, %", shrink=0.8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    interval = report.intervals.get("accuracy")
    spread = f" ({100 * interval[0]:.1f} to {percent(interval[1])})" if interval else ""
    axes.set_title(f"accuracy {percent(report.accuracy)}{spread}, {report.count:,} examples", fontsize="medium")


def _root():
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, 100)


def _curves(axes: "Axes", report: Report) -> None:
    axes.plot([0, 1], [0, 1], ":", color="0.5", lw=1)
    shown = sorted((s for s in report.classes if s.roc), key=lambda s: s.auc or 0)
    for scores in shown:
        axes.plot(*zip(*scores.roc, strict=True), lw=1.5, label=f"{short(scores.name)} {number(scores.auc)}")
    what = "ROC"
    if len(report.classes) > 2:
        part = "each class" if len(shown) == len(report.classes) else f"{len(shown)} worst classes"
        what = f"ROC, {part} against the rest"
    if shown:
        legend = axes.legend(fontsize="small", loc="lower right", title="area", title_fontsize="small")
        for label in legend.get_texts():
            label.set_parse_math(False)
    else:
        axes.text(0.5, 0.5, "no curve: a class has no examples", ha="center", va="bottom")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.set_title(what, fontsize="medium")
    axes.grid(alpha=0.3)


def _reliability(axes: "Axes", report: Report) -> None:
    bins = report.bins
    filled = [(k, b) for k, b in enumerate(bins) if b.count]
    centres = [(k + 0.5) / len(bins) for k, _ in filled]
    axes.bar(
        centres, [b.count / report.count for _, b in filled], 1 / len(bins), color="0.88", label="part of the examples"
    )
    axes.plot([0, 1], [0, 1], ":", color="0.5", lw=1, label="perfectly calibrated")
    axes.plot([b.confidence for _, b in filled], [b.accuracy for _, b in filled], "o-", ms=4, lw=1.5, label="accuracy")
    axes.set(
        xlabel="probability of the predicted class", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), aspect="equal"
    )
    axes.set_title(f"calibration error {percent(report.ece)}, {len(bins)} bins", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left")


def short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
