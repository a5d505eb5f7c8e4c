"""How transferable are features? docstring to come."""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx

from cnnjax import Classifier, Freeze, Trainer
from cnnjax.data import InMemory, open_splits
from cnnjax.features import FeatureStore
from cnnjax.functional import Leaves, leaves_of
from cnnjax.metrics import interval
from cnnjax.models import Backbone, layers
from cnnjax.rows import Rows
from cnnjax.state import State

SIZE, BATCH, RATE = (32, 32), 32, 1e-3
PICTURES, EPOCHS, SEEDS = 300, 20, range(5)  # pictures of each class to train on
DEPTHS = (1, 2, 3, 4, 5)
TREATMENTS = ("BnB", "BnB+", "AnB", "AnB+")
COLOURS = ("tab:blue", "tab:cyan", "tab:red", "tab:orange")


class Scores(NamedTuple):
    """Accuracy on pictures never seen, and in the last epoch of training."""

    test: float
    train: float


Splits = dict[str, InMemory]
Cells = dict[tuple[str, int], Scores]


def build(classes: int, seed: int) -> Classifier:
    """Four convolutions, a dense layer, logits: six weighted layers, 1.4 million multiplications a picture."""
    rngs = nnx.Rngs(seed)

    def conv(inputs: int, outputs: int) -> nnx.Module:
        return layers.conv2d(inputs, outputs, (3, 3), padding="SAME", activation="relu", rngs=rngs)

    named = [
        ("conv2d_1", conv(3, 8)),
        ("max_pooling2d_1", layers.MaxPooling2D()),
        ("conv2d_2", conv(8, 16)),
        ("max_pooling2d_2", layers.MaxPooling2D()),
        ("conv2d_3", conv(16, 32)),
        ("conv2d_4", conv(32, 32)),
        ("max_pooling2d_3", layers.MaxPooling2D()),
        ("flatten_1", layers.Flatten()),
        ("dense_1", layers.dense(512, 64, activation="relu", rngs=rngs)),
        ("dense_2", layers.dense(64, classes, rngs=rngs)),
    ]
    return Classifier(Backbone(named, input_shape=(*SIZE, 3), name="small_cnn"), None, "unit")


def read(data: Path) -> Splits:
    """Every picture of the folder, decoded once."""
    splits = open_splits(data, image_size=SIZE)
    whole = {split: splits[split].read(range(len(splits[split]))).astype(np.uint8) for split in ("train", "test")}
    return {split: InMemory(images, splits[split].labels, splits[split].class_names) for split, images in whole.items()}


def halves(pictures: Splits, seed: int) -> dict[str, Splits]:
    """Half of the classes as A, the others as B, drawn by the seed; so are the training pictures of each class."""
    rng = np.random.default_rng(seed)
    drawn = np.array_split(rng.permutation(len(pictures["train"].class_names)), 2)
    found: dict[str, Splits] = {"A": {}, "B": {}}
    for half, classes in zip(found, map(np.sort, drawn), strict=True):
        for split, source in pictures.items():
            members = [rng.permutation(np.flatnonzero(source.labels == c)) for c in classes]
            chosen = [m[:PICTURES] if split == "train" else m for m in members]
            labels = np.repeat(np.arange(len(classes)), [len(m) for m in chosen])
            names = [source.class_names[c] for c in classes]
            found[half][split] = InMemory(source.images[np.concatenate(chosen)], labels, names)
    return found


class Study:
    """The protocol, one seed after another by the same compiled programs: one for each depth."""

    def __init__(self, pictures: Splits):
        self.pictures, self.classes = pictures, len(pictures["train"].class_names) // 2
        model = build(self.classes, 0)
        self.frozen = {n: Freeze.depth(n).resolve(model, "backbone") for n in (0, *DEPTHS)}
        self.trainers = {n: self.trainer(model, n) for n in self.frozen}

    def trainer(self, model: nnx.Module, depth: int, store: FeatureStore | None = None) -> Trainer:
        """Trains what lies above the first `depth` layers of a model."""
        return Trainer(model, self.frozen[depth], SIZE, batch_size=BATCH, optimizer="adam", store=store)

    def rows(self, model: nnx.Module, depth: int, splits: Splits, store: FeatureStore) -> dict[str, Rows]:
        """What the first `depth` layers of a model make of the pictures.

        The step knows frozen layers by these rows alone, so `self.trainers[depth]` may train on those of any model.
        """
        maker = self.trainer(model, depth, store)
        return {split: maker.rows(source, train=split == "train") for split, source in splits.items()}

    def fit(self, depth: int, leaves: Leaves, rows: Mapping[str, Rows], seed: int) -> tuple[State, Scores]:
        """Train what is not frozen, from the given leaves."""
        trainer = self.trainers[depth]
        state, log = trainer.fit(trainer.init(leaves, RATE), rows["train"], epochs=EPOCHS, seed=seed)
        return state, Scores(trainer.evaluate(state, rows["test"])["accuracy"], log[-1]["accuracy"])

    def seed(self, seed: int) -> Cells:
        """Scores on B of the base network, ("baseB", 0), and of every treatment at every depth, ("AnB+", 2)."""
        sources, store = halves(self.pictures, seed), FeatureStore()
        start = {name: leaves_of(build(self.classes, 3 * seed + k)) for k, name in enumerate(("A", "B", "fresh"))}
        blank, base, found = build(self.classes, 0), {}, {}
        whole = {half: self.rows(blank, 0, splits, store) for half, splits in sources.items()}
        for half in ("A", "B"):
            state, found[f"base{half}", 0] = self.fit(0, start[half], whole[half], 3 * seed)
            base[half] = self.trainers[0].model(state)
        for half, n in product(("B", "A"), DEPTHS):
            _, copied = self.frozen[n].partition(leaves_of(base[half]))
            leaves = start["fresh"] | copied
            rows = self.rows(base[half], n, sources["B"], store)
            _, found[f"{half}nB", n] = self.fit(n, leaves, rows, 3 * seed + 2)
            _, found[f"{half}nB+", n] = self.fit(0, leaves, whole["B"], 3 * seed + 2)
        return found


def percent(values: Sequence[float], sign: str = "") -> str:
    """Mean and 95 % interval, of parts of one."""
    return f"{100 * statistics.mean(values):{sign}.1f} ± {100 * interval(values):.1f}"


def differences(found: Sequence[Cells], n: int, treatment: str, to: str = "baseB") -> list[float]:
    """Test accuracy of a treatment less that of another, seed by seed."""
    return [cells[treatment, n].test - cells[to, n if (to, n) in cells else 0].test for cells in found]


def tables(found: Sequence[Cells]) -> str:
    """Accuracies, and differences paired by seed."""
    heads = " | ".join(TREATMENTS)
    lines = [f"| n | {heads} | training: {heads} |", "| ---: |" + " ---: |" * 8]
    base = [cells["baseB", 0] for cells in found]
    blank = " | | | | "
    lines.append(f"| baseB | {percent([s.test for s in base])}{blank}{percent([s.train for s in base])}{blank[:-1]}")
    for n in DEPTHS:
        test = [percent([cells[t, n].test for cells in found]) for t in TREATMENTS]
        train = [f"{100 * statistics.mean(cells[t, n].train for cells in found):.1f}" for t in TREATMENTS]
        lines.append(f"| {n} | {' | '.join(test + train)} |")
    pairs = [*((t, "baseB") for t in TREATMENTS), ("AnB", "BnB"), ("AnB+", "BnB+")]
    lines += ["", f"| n | {' | '.join(f'{a} - {b}' for a, b in pairs)} |", "| ---: |" + " ---: |" * len(pairs)]
    for n in DEPTHS:
        lines.append(f"| {n} | {' | '.join(percent(differences(found, n, a, b), '+') for a, b in pairs)} |")
    return "\n".join(lines)


def plot(found: Sequence[Cells], path: Path) -> None:
    """Draw the differences to the base network against n, with intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    axes.axhline(0, color="0.4", lw=1, label="baseB")
    for k, (treatment, colour) in enumerate(zip(TREATMENTS, COLOURS, strict=True)):
        gains = [[100 * x for x in differences(found, n, treatment)] for n in DEPTHS]
        places = [n + 0.06 * (k - 1.5) for n in DEPTHS]  # side by side, so that the bars can be told apart
        means, halves = [statistics.mean(g) for g in gains], [interval(g) for g in gains]
        style = "o-" if treatment.endswith("+") else "s--"
        axes.errorbar(places, means, halves, fmt=style, ms=4, lw=1.5, capsize=3, color=colour, label=treatment)
    axes.set_xticks(DEPTHS, [f"{n}" for n in DEPTHS])
    axes.set_xlabel("n, layers taken from the base network")
    axes.set_ylabel("test accuracy less baseB's, points")
    axes.set_title(f"Halves of CIFAR-10's classes: mean and 95 % interval of {len(found)} seeds", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, format="png")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit("usage: how_transferable.py DATA [PNG]")
    study = Study(read(Path(sys.argv[1])))
    found, start = [], time.perf_counter()
    for seed in SEEDS:
        found.append(study.seed(seed))
        base = found[-1]["baseB", 0]
        print(
            f"seed {seed}: baseB {base.test:.3f}, training {base.train:.3f}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    print(tables(found))
    if len(sys.argv) == 3:
        plot(found, Path(sys.argv[2]))
