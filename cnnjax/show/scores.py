"""A task's report as an image: of classes, of several labels, of numbers, or of a task of one's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnjax.files.writing import whole_file
from cnnjax.metrics.means import MeansReport
from cnnjax.metrics.multilabel import MultiLabelReport
from cnnjax.metrics.regression import NumberScores, RegressionReport
from cnnjax.metrics.reports import number, percent
from cnnjax.show import reports

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BARS, _MOST_NUMBERS = 40, 6


def plot(report: Any, path: Path, title: str) -> None:
    """Draw what a task's report found, as PNG.

    Of classes the confusion matrix, ROC curves and calibration; of several labels precision against recall and the
    scores of each label; of numbers the predicted against the true ones; of other tasks their means.

    Args:
        report: What the task's `report` gave.
        path: The image; its folder is made if it does not exist.
        title: Its title.

    Raises:
        OSError: The image cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if isinstance(report, RegressionReport):
        shown = report.numbers[:_MOST_NUMBERS]
        figure = Figure(figsize=(5 * len(shown), 5), dpi=120, layout="constrained")
        panels = FigureCanvasAgg(figure).figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, scores in zip(panels, shown, strict=True):
            _scatter(axes, scores, report.count)
    elif isinstance(report, MultiLabelReport):
        figure = Figure(figsize=(11, max(4.5, 1.5 + 0.25 * min(len(report.labels), _MOST_BARS))), dpi=120,
                        layout="constrained")  # fmt: skip
        left, right = FigureCanvasAgg(figure).figure.subplots(1, 2)
        _precision(left, report)
        _bars(right, report)
    elif isinstance(report, MeansReport):
        figure = Figure(figsize=(7, 1.5 + 0.3 * len(report.values)), dpi=120, layout="constrained")
        axes = FigureCanvasAgg(figure).figure.subplots()
        axes.axis("off")
        axes.text(0, 1, report.text(), family="monospace", va="top", parse_math=False)
    else:
        reports.plot(report, path, title)
        return
    figure.suptitle(title, fontsize="medium", parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")


def _scatter(axes: "Axes", scores: NumberScores, count: int) -> None:
    points = np.array(scores.points)
    ends = [points.min(), points.max()]
    axes.plot(ends, ends, ":", color="0.5", lw=1, label="predicted = true")
    axes.plot(points[:, 0], points[:, 1], ".", ms=4, alpha=0.6)
    unit = f", {scores.unit}" * bool(scores.unit)
    axes.set_xlabel(f"true {scores.name}{unit}", parse_math=False)
    axes.set_ylabel(f"predicted {scores.name}{unit}", parse_math=False)
    said = f"MAE {scores.mae:.3g}, RMSE {scores.rmse:.3g}, R2 {number(scores.r2)}; {count:,} examples"
    axes.set_title(said, fontsize="medium", parse_math=False)
    axes.set_aspect("equal", "datalim")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left")


def _precision(axes: "Axes", report: MultiLabelReport) -> None:
    for scores in sorted((s for s in report.labels if s.curve), key=lambda s: s.average_precision or 0):
        text = f"{reports.short(scores.name)} {number(scores.average_precision)}"
        axes.plot(*zip(*scores.curve, strict=True), lw=1.5, label=text)
    if axes.lines:
        legend = axes.legend(fontsize="small", loc="lower left", title="average precision", title_fontsize="small")
        for label in legend.get_texts():
            label.set_parse_math(False)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_title(f"mAP {percent(report.mean_average_precision)}, {report.count:,} examples", fontsize="medium")
    axes.grid(alpha=0.3)


def _bars(axes: "Axes", report: MultiLabelReport) -> None:
    shown = report.labels[:_MOST_BARS]
    places = np.arange(len(shown))
    axes.barh(places - 0.2, [s.average_precision or 0 for s in shown], 0.4, label="average precision")
    axes.barh(places + 0.2, [s.f1 or 0 for s in shown], 0.4, label="F1 at the threshold")
    axes.set_yticks(places, [reports.short(s.name) for s in shown], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("thresholds of the best F1 on validation" if report.chosen else "threshold 0.5", fontsize="medium")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(fontsize="small")
