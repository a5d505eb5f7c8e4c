"""The range test's plot: loss against the learning rate."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnnjax.fit.finder import RateTest


def plot(test: "RateTest", path: Path, title: str) -> None:
    """Draw the loss of every step and its average against the rate, with the suggested rate marked, as PNG.

    Args:
        test: from `cnnjax.fit.find_rate`.
        path: The image.
        title: Its title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    axes.plot(test.rates, test.losses, color="0.75", lw=1, label="loss of each batch")
    axes.plot(test.rates, test.smoothed, color="tab:blue", lw=1.8, label="smoothed")
    if test.suggested is not None:
        axes.axvline(
            test.suggested, color="tab:orange", lw=1.5, ls="--", label=f"falls fastest at {test.suggested:.2g}"
        )
    axes.set_xscale("log")
    # What exploded would flatten the rest.
    axes.set_ylim(0, 2 * float(test.smoothed[: max(2, len(test.smoothed) // 2)].max()))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)
