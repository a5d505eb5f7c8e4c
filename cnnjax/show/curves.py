"""Loss and metrics against the epoch: where training and validation part, a network overfits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnjax.files.writing import whole_file

_MOST = 4
_COLOURS = {"train": "tab:blue", "validation": "tab:orange", "test": "tab:green"}


def overfits_from(records: Sequence[Mapping[str, Any]], split: str = "validation") -> int:
    """The epoch after which the loss of `split` never was as low again: from there on training only memorises.

    Args:
        records: One an epoch, with `epoch` and `validation_loss` (or another split's).
        split: Whose loss is looked at.

    Raises:
        ValueError: There are no records, or they have no such loss.

    >>> overfits_from([{"epoch": k, "validation_loss": loss} for k, loss in enumerate((0.7, 0.5, 0.6, 0.9), 1)])
    2
    """
    losses = [(record[f"{split}_loss"], record["epoch"]) for record in records if f"{split}_loss" in record]
    if not losses:
        raise ValueError(f"none of the {len(records)} records has a {split}_loss")
    return min(losses)[1]


def plot(records: Sequence[Mapping[str, Any]], path: Path, title: str, units: Mapping[str, str] | None = None) -> None:
    """Draw accuracy (or other metrics, up to four) and loss of every split against the epoch, as PNG.

    Args:
        records: One an epoch: `epoch`, and `train_accuracy`, `validation_loss` and the like.
        path: The image.
        title: Its title.
        units: Of the metrics, by name; "%" is drawn as per cent of 1. Accuracy in per cent if not given.

    Raises:
        ValueError: There are no records to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not records:
        raise ValueError("no records: there is nothing to draw")
    units = {"accuracy": "%"} if units is None else units
    names = list(
        dict.fromkeys(key.partition("_")[2] for r in records for key in r if key.partition("_")[0] in _COLOURS)
    )
    measures = [name for name in names if name != "loss"][:_MOST] + ["loss"]
    figure = Figure(figsize=(5 * len(measures), 4), dpi=120, layout="constrained")
    panels = FigureCanvasAgg(figure).figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        unit, factor = units.get(measure, ""), 100.0 if units.get(measure) == "%" else 1.0
        for split, colour in _COLOURS.items():
            points = [
                (r["epoch"], factor * r[f"{split}_{measure}"])
                for r in records
                if r.get(f"{split}_{measure}") is not None
            ]
            if points:
                style = "o" if len(points) == 1 else "o-"
                axes.plot(*zip(*points, strict=True), style, ms=3, lw=1.5, color=colour, label=split)
        if any("validation_loss" in record for record in records):
            best = overfits_from(records)
            axes.axvline(best, color="0.5", lw=1, ls=":", label=f"lowest validation loss (epoch {best})")
        axes.set_xlabel("epoch")
        axes.set_ylabel(measure + f", {unit}" * bool(unit), parse_math=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png")
