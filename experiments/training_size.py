"""How many pictures does a network need? From scratch, frozen and fine-tuned on 50 to 2,000 cats and dogs."""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from cnnjax import Classifier, FeatureStore, Fitter, Recipe, linear_head, load_weights, mobilenet
from cnnjax.data import InMemory, in_memory, open_splits
from cnnjax.functional import leaves_of
from cnnjax.metrics import interval

IMAGE, BATCH, SIZES, SEEDS = (96, 96), 25, (50, 100, 200, 500, 1000, 2000), (0, 1, 2)
METHODS = ("from scratch", "frozen", "fine-tuned")
CURVES, DRAWN = 200, 30  # the size whose first epochs are drawn


class Result(NamedTuple):
    """What one seed gave: accuracies after the last epoch, and the records of all."""

    training: float
    test: float
    history: list[dict[str, Any]]


def recipe(method: str, size: int) -> Recipe:
    """How a method trains on so many pictures: the fewer they are, the more often each is shown."""
    how: dict[str, Any] = {"batch_size": BATCH, "optimizer": "adam"}
    if method == "from scratch":
        return Recipe("scratch", epochs=max(10, 6_000 // size), **how)
    how["epochs"] = 50_000 // size  # of the head alone: 2,000 steps, which take a second
    if method == "frozen":
        return Recipe("features", **how)
    return Recipe(
        "finetune", unfreeze_from="conv_dw_8", tune_epochs=max(5, 4_000 // size), batchnorm="frozen", **how
    )  # fmt: skip


def build(weights: Path | None, seed: int) -> Classifier:
    """MobileNet 0.25 under a linear head; without a file of weights the seed is the backbone's too."""
    rngs = nnx.Rngs(seed)
    backbone = mobilenet(0.25, (*IMAGE, 3), include_top=False, rngs=rngs)
    if weights:
        load_weights(backbone, weights, leave_out="top")
    for layer in backbone.layers:
        if isinstance(layer, nnx.BatchNorm):
            layer.momentum = 0.9
    return Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=rngs), "tf")


def draw(source: InMemory, size: int, seed: int) -> InMemory:
    """As many pictures of each class, by chance; a seed's larger draws hold its smaller ones."""
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(source.labels == k))[: size // 2] for k in range(2)]
    chosen = np.sort(np.concatenate(members))
    return InMemory(source.images[chosen], source.labels[chosen], source.class_names)


def run(
    method: str, size: int, splits: Mapping[str, InMemory], weights: Path | None, store: FeatureStore
) -> list[Result]:
    """Train a method on so many pictures, once for each seed; programs are made once."""
    weights = None if method == "from scratch" else weights
    fitter, found = Fitter(build(weights, SEEDS[0]), recipe(method, size), IMAGE, store=store), []
    for seed in SEEDS:
        train = draw(splits["train"], size, seed)
        watched = splits.get("validation") if size == CURVES and seed == SEEDS[0] else None
        fitted = fitter.fit(train, watched, leaves=leaves_of(build(weights, seed)), seed=seed)
        accuracies = []
        for source in (train, splits["test"]):
            logits = fitter.logits(fitted, source, size)
            accuracies.append(float(np.mean((logits[:, 0] > 0) == (source.labels == 1))))
        found.append(Result(*accuracies, fitted.history))
    return found


def line(size: int, results: Mapping[str, Sequence[Result]]) -> str:
    """The table's line of a size."""
    cells = [f"{size:,}"]
    for found in results.values():
        test = [result.test for result in found]
        cells.append(f"{100 * statistics.mean(test):.1f} ± {100 * interval(test):.1f}")
        cells.append(f"{100 * statistics.mean(result.training for result in found):.1f}")
    return f"| {' | '.join(cells)} |"


def plot(results: Mapping[int, Mapping[str, Sequence[Result]]], path: Path) -> None:
    """Draw accuracy by epoch at one size, and test accuracy by size, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    by_epoch, by_size = FigureCanvasAgg(figure).figure.subplots(1, 2)
    for method, colour in zip(METHODS, ("tab:red", "tab:blue", "tab:green"), strict=True):
        if method != "fine-tuned":
            history = results[CURVES][method][0].history[:DRAWN]
            for split, style in (("train", "--"), ("validation", "-")):
                values = [100 * record[f"{split}_accuracy"] for record in history]
                name = f"{method}, {split.replace('train', 'training')}"
                by_epoch.plot(range(1, len(values) + 1), values, style, color=colour, label=name)
        tests = [[100 * result.test for result in found[method]] for found in results.values()]
        means, halves = [statistics.mean(test) for test in tests], [interval(test) for test in tests]
        by_size.errorbar(list(results), means, halves, fmt="o-", capsize=3, color=colour, label=method)
    by_epoch.set(title=f"{CURVES} pictures", xlabel="epoch", ylabel="accuracy, %")
    by_size.set(title="test accuracy, mean and 95 % interval", xlabel="pictures to train on", xscale="log")
    by_size.set_xticks(list(results), [f"{size:,}" for size in results], minor=False)
    by_size.set_xticks([], minor=True)
    for axes in (by_epoch, by_size):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path, format="png")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit("usage: training_size.py DATA WEIGHTS.h5 [CURVES.png]")
    start, weights, store = time.perf_counter(), Path(sys.argv[2]), FeatureStore()
    splits = {name: in_memory(source, 2**30) for name, source in open_splits(sys.argv[1], image_size=IMAGE).items()}
    results: dict[int, dict[str, list[Result]]] = {}
    for size in SIZES:
        results[size] = {method: run(method, size, splits, weights, store) for method in METHODS}
        print(f"{line(size, results[size])} {time.perf_counter() - start:.0f} s", flush=True)
    print(f"| pictures | {' | '.join(f'{method}, test | training' for method in METHODS)} |")
    print("| ---: |" + " ---: |" * 2 * len(METHODS))
    print("\n".join(line(size, found) for size, found in results.items()))
    for method in ("from scratch", "frozen"):
        for record in results[CURVES][method][0].history[4:DRAWN:5]:
            print(f"{method}, {CURVES} pictures:", *(f"{k} {v:.3f}" for k, v in record.items() if "accuracy" in k))
    if len(sys.argv) == 4:
        plot(results, Path(sys.argv[3]))
