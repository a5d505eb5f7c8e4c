"""Accuracy against frozen depth: the table, its CSV and its plot."""

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cnnjax.files.writing import whole_file, write_whole
from cnnjax.metrics.intervals import interval

_COLUMNS = (
    "freeze first_trainable frozen_layers learning_rate backbone_learning_rate trainable_parameters "
    "seeds test_accuracy_mean test_accuracy_half_width_95 seconds_per_step features_from_store setting"
).split()


@dataclass(frozen=True)
class Row:
    """One line of the table: a frozen depth at a learning rate, over seeds.

    Attributes:
        freeze: the specification, as typed.
        first_trainable: name of the first layer that trains, "" if none of the backbone's does.
        frozen_layers: number of frozen layers.
        learning_rate: the asked one, at which a head trains alone.
        backbone_learning_rate: of its cells, where part of the backbone trains, the head beside it included; None where
            none does.
        trainable_parameters: numbers that were trained, head included.
        scores: what the sweep compares by, on the test images, of each seed.
        seconds_per_step: median over its cells, without the first epoch.
        reused: whether every cell found its features in the store.
        setting: augmentation, number of images and method, as far as the sweep varies them.
    """

    freeze: str
    first_trainable: str
    frozen_layers: int
    learning_rate: float
    trainable_parameters: int
    scores: tuple[float, ...]
    seconds_per_step: float
    reused: bool
    setting: str = ""
    backbone_learning_rate: float | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.scores))

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of the mean, NaN for one seed."""
        return interval(self.scores)


def rows(results: Iterable[Mapping[str, Any]], measure: str = "accuracy") -> list[Row]:
    """Group the lines of `results.jsonl` by depth, rate and setting, least frozen first."""
    groups: dict[tuple[str, float, float | None, str], list[Mapping[str, Any]]] = {}
    for line in results:
        own = line.get("backbone_learning_rate")
        groups.setdefault((line["freeze"], line["learning_rate"], own, _setting(line)), []).append(line)
    table = [
        Row(
            freeze, cells[0]["first_trainable"], cells[0]["frozen_layers"], rate, cells[0]["trainable_parameters"],
            tuple(_number(cell[f"test_{measure}"]) for cell in sorted(cells, key=lambda c: c["seed"])),
            float(np.median([cell["seconds_per_step"] for cell in cells])),
            all(cell["features_reused"] for cell in cells), setting, own,
        )
        for (freeze, rate, own, setting), cells in groups.items()
    ]  # fmt: skip
    return sorted(table, key=lambda row: (row.frozen_layers, row.learning_rate))


def _setting(line: Mapping[str, Any]) -> str:
    """What a line says of the axes that only some sweeps have."""
    parts = [line["method"]] if "method" in line else []
    if "augment" in line:
        own = ":" in line["augment"]  # an import path says more
        parts.append(line["augment"] if own else "augmented" if line["augment"] != "none" else "not augmented")
    if line.get("size"):
        parts.append(f"{line['size']:,} images")
    return ", ".join(parts)


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # as a run folder keeps what is not finite


def terminal(table: Sequence[Row], title: str, measure: str = "accuracy", unit: str = "%") -> Table:
    """The table for a terminal."""
    out = Table(title=title, title_justify="left")
    varied = any(row.setting for row in table)
    left = ("freeze", "first trainable", "features", "setting")
    names = (
        "learning rate",
        "backbone learning rate",
        "trainable parameters",
        f"test {measure}",
        "ms a step",
        "features",
    )
    for name in ("freeze", "first trainable", *(["setting"] if varied else []), *names):
        out.add_column(name, justify="left" if name in left else "right")
    for row in table:
        out.add_row(
            row.freeze, row.first_trainable or "head", *([row.setting] if varied else []),
            f"{row.learning_rate:g}",
            "–" if row.backbone_learning_rate is None else f"{row.backbone_learning_rate:g}",
            f"{row.trainable_parameters:,}", score_text(row, unit),
            f"{1000 * row.seconds_per_step:.1f}", "from store" if row.reused else "made now",
        )  # fmt: skip
    return out


def score_text(row: Row, unit: str = "%") -> str:
    """Mean and interval in their unit."""
    if unit != "%":
        spread = "" if math.isnan(row.half_width) else f" ± {row.half_width:.2g}"
        return f"{row.mean:.4g}{spread} {unit}".rstrip()
    spread = "" if math.isnan(row.half_width) else f" ± {100 * row.half_width:.1f}"
    return f"{100 * row.mean:.1f}{spread} %"


def write_csv(table: Sequence[Row], path: Path, measure: str = "accuracy") -> None:
    """The table as CSV: accuracies in [0, 1], seconds in seconds."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow([name.replace("accuracy", measure) for name in _COLUMNS])
    for row in table:
        half = "" if math.isnan(row.half_width) else f"{row.half_width:.6f}"
        out.writerow([
            row.freeze, row.first_trainable, row.frozen_layers, row.learning_rate,
            "" if row.backbone_learning_rate is None else row.backbone_learning_rate, row.trainable_parameters,
            len(row.scores), f"{row.mean:.6f}", half, f"{row.seconds_per_step:.6f}", row.reused,
            row.setting,
        ])  # fmt: skip
    write_whole(path, text.getvalue())


def plot(table: Sequence[Row], path: Path, title: str, measure: str = "accuracy", unit: str = "%") -> None:
    """Accuracy, or another measure, against frozen depth as PNG: a point a seed, the mean, and its 95 % interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    depths, factor = list(dict.fromkeys(row.freeze for row in table)), 100 if unit == "%" else 1
    for rate, setting in sorted({(row.learning_rate, row.setting) for row in table}):
        chosen = [row for row in table if (row.learning_rate, row.setting) == (rate, setting)]
        x = np.array([depths.index(row.freeze) for row in chosen])
        mean = np.array([factor * row.mean for row in chosen])
        half = np.array([0 if math.isnan(row.half_width) else factor * row.half_width for row in chosen])
        # Depths at one rate are joined; with a rate of its own a depth stands alone.
        bars = axes.errorbar(
            x,
            mean,
            half,
            marker="o",
            capsize=4,
            lw=1.5,
            label=f"learning rate {rate:g}" + f", {setting}" * bool(setting),
        )
        for k, row in zip(x, chosen, strict=True):
            points = [factor * a for a in row.scores]
            axes.plot([k] * len(points), points, ".", color=bars[0].get_color(), alpha=0.4)
    first = {row.freeze: row.first_trainable or "head only" for row in table}
    labels = [f"{depth}\n({first[depth]})" for depth in depths]
    axes.set_xticks(range(len(depths)), labels, rotation=0 if len(depths) < 8 else 30)
    axes.set_xlabel("frozen (first layer that trains)")
    axes.set_ylabel(f"test {measure}" + f", {unit}" * bool(unit))
    axes.set_title(textwrap.fill(title, 90), fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend()
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")
