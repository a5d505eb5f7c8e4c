"""How transferable are features? The protocol of Yosinski et al. (2014) on two halves of CIFAR-10's classes.

For each seed the ten classes are drawn into halves A and B, with 300 training images of each class. A small
network (conv 8, pool, conv 16, pool, conv 32, conv 32, pool, dense 64, logits) learns each half: baseA and baseB.
Then its first n = 1..5 layers are copied, the others start anew, and the whole learns B: BnB and AnB with the copied
layers frozen, BnB+ and AnB+ with all of them trained. Adam at 1e-3, 20 epochs of batches of 32 every time. At a seed
all treatments share images, order, and the fresh layers' start.

    python experiments/how_transferable.py cifar10_small how_transferable.png

2026-11-23, two cores of an AMD EPYC, no accelerator, Python 3.12, jax 0.12.0.1; 1,160 s in all for 176 trainings with
six compiled steps, other work on the machine at times. Accuracy in % on B's 1,000 test images (chance 20) and in
the last epoch of training, mean and 95 % interval over eight seeds; the intervals are wide because some halves are
harder than others:

| n | BnB | BnB+ | AnB | AnB+ | training: BnB | BnB+ | AnB | AnB+ |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| baseB | 61.2 ± 4.0 | | | | 84.7 ± 3.8 | | | |
| 1 | 61.9 ± 3.8 | 60.7 ± 4.5 | 61.3 ± 4.4 | 61.9 ± 3.4 | 85.0 | 85.9 | 85.0 | 86.1 |
| 2 | 62.5 ± 4.1 | 62.2 ± 3.8 | 62.4 ± 4.0 | 62.6 ± 4.1 | 88.0 | 90.8 | 87.2 | 91.0 |
| 3 | 62.6 ± 3.4 | 62.6 ± 3.1 | 61.9 ± 3.7 | 61.7 ± 4.4 | 90.5 | 94.2 | 87.0 | 93.8 |
| 4 | 62.3 ± 3.8 | 62.2 ± 3.7 | 60.9 ± 4.1 | 61.1 ± 4.6 | 93.7 | 98.0 | 84.0 | 96.5 |
| 5 | 62.3 ± 4.2 | 61.6 ± 4.4 | 51.6 ± 4.1 | 62.1 ± 4.0 | 87.8 | 98.5 | 53.2 | 95.7 |

So the differences, in points, are paired by seed, with 95 % intervals:

| n | BnB - baseB | BnB+ - baseB | AnB - baseB | AnB+ - baseB | AnB - BnB | AnB+ - BnB+ |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| 1 | +0.7 ± 1.0 | -0.5 ± 1.2 | +0.1 ± 1.3 | +0.7 ± 1.2 | -0.6 ± 1.4 | +1.2 ± 1.5 |
| 2 | +1.3 ± 1.5 | +1.0 ± 1.2 | +1.2 ± 1.2 | +1.4 ± 1.3 | -0.0 ± 1.2 | +0.5 ± 1.7 |
| 3 | +1.4 ± 1.5 | +1.4 ± 1.4 | +0.7 ± 1.3 | +0.5 ± 0.5 | -0.7 ± 0.9 | -0.9 ± 1.7 |
| 4 | +1.1 ± 0.8 | +1.0 ± 1.1 | -0.3 ± 0.7 | -0.1 ± 1.1 | -1.4 ± 1.0 | -1.1 ± 1.3 |
| 5 | +1.1 ± 1.0 | +0.4 ± 1.1 | -9.6 ± 4.0 | +0.9 ± 1.0 | -10.7 ± 3.8 | +0.5 ± 0.7 |
| mean | +1.1 ± 0.8 | +0.7 ± 0.8 | -1.6 ± 1.4 | +0.7 ± 0.7 | -2.7 ± 0.9 | +0.0 ± 0.6 |

- BnB has no dip in the middle: no depth lies below baseB (all together 1.1 ± 0.8 above it), and n = 2 to 4 do no
  worse than 1 and 5. The layers above are found again without those they grew up with. In training BnB rises with n
  up to 4 and is lower at 5, where only the logits learn, but not lower than baseB.
- AnB stays level with baseB up to n = 4, where it is 1.4 ± 1.0 points below BnB, and falls by 9.6 ± 4.0 at n = 5: what
  the convolutions learnt from A serves B, the dense layer is A's own. BnB at n = 5 does not fall, so it is the
  other classes' features, not the few weights that learn.
- AnB+ is 0.7 ± 0.7 points above baseB over all depths, but BnB+, which never saw A, is as well: the difference of
  the two is 0.0 ± 0.6. The gain from other classes that the paper reports is not seen here; what little there is
  comes with being trained twice.

Of thirty such intervals one or two would miss zero by chance. The number of epochs was chosen by looking at baseB of
seed 0 on its test images, the same for all.
"""

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx

from cnnjax import Classifier, FeatureStore, Freeze, Leaves, Trainer, leaves_of
from cnnjax.data import InMemory, open_splits
from cnnjax.metrics import interval
from cnnjax.models import Backbone, layers
from cnnjax.train import FeatureDataset, State

SIZE, BATCH, RATE = (32, 32), 32, 1e-3
IMAGES, EPOCHS, SEEDS = 300, 20, range(8)  # images of each class to train on
DEPTHS = (1, 2, 3, 4, 5)
TREATMENTS = ("BnB", "BnB+", "AnB", "AnB+")
COLOURS = ("tab:blue", "tab:cyan", "tab:red", "tab:orange")


class Scores(NamedTuple):
    """Accuracy on images never seen, and in the last epoch of training."""

    test: float
    train: float


Splits = dict[str, InMemory]
Cells = dict[tuple[str, int], Scores]


def build(classes: int, seed: int) -> Classifier:
    """Four convolutions, a dense layer, logits: six weighted layers, 1.4 million multiplications an image."""
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
    """Every image of the folder, decoded once."""
    splits = open_splits(data, image_size=SIZE)
    whole = {split: splits[split].read(range(len(splits[split]))).astype(np.uint8) for split in ("train", "test")}
    return {split: InMemory(images, splits[split].labels, splits[split].class_names) for split, images in whole.items()}


def halves(images: Splits, seed: int) -> dict[str, Splits]:
    """Half of the classes as A, the others as B, drawn by the seed; so are the training images of each class."""
    rng = np.random.default_rng(seed)
    drawn = np.array_split(rng.permutation(len(images["train"].class_names)), 2)
    found: dict[str, Splits] = {"A": {}, "B": {}}
    for half, classes in zip(found, map(np.sort, drawn), strict=True):
        for split, source in images.items():
            members = [rng.permutation(np.flatnonzero(source.labels == c)) for c in classes]
            chosen = [m[:IMAGES] if split == "train" else m for m in members]
            labels = np.repeat(np.arange(len(classes)), [len(m) for m in chosen])
            names = [source.class_names[c] for c in classes]
            found[half][split] = InMemory(source.images[np.concatenate(chosen)], labels, names)
    return found


class Study:
    """The protocol, one seed after another by the same compiled programs: one for each depth."""

    def __init__(self, images: Splits):
        self.images, self.classes = images, len(images["train"].class_names) // 2
        model = build(self.classes, 0)
        self.frozen = {n: Freeze.depth(n).resolve(model, "backbone") for n in (0, *DEPTHS)}
        self.trainers = {n: self.trainer(model, n) for n in self.frozen}

    def trainer(self, model: nnx.Module, depth: int, store: FeatureStore | None = None) -> Trainer:
        """Trains what lies above the first `depth` layers of a model."""
        return Trainer(model, self.frozen[depth], SIZE, batch_size=BATCH, optimizer="adam", store=store)

    def rows(self, model: nnx.Module, depth: int, splits: Splits, store: FeatureStore) -> dict[str, FeatureDataset]:
        """What the first `depth` layers of a model make of the images.

        The step knows frozen layers by these rows alone, so `self.trainers[depth]` may train on those of any model.
        """
        maker = self.trainer(model, depth, store)
        return {split: maker.rows(source, train=split == "train") for split, source in splits.items()}

    def fit(self, depth: int, leaves: Leaves, rows: Mapping[str, FeatureDataset], seed: int) -> tuple[State, Scores]:
        """Train what is not frozen, from the given leaves."""
        trainer = self.trainers[depth]
        state, log = trainer.fit(trainer.init(leaves, RATE), rows["train"], epochs=EPOCHS, seed=seed)
        return state, Scores(trainer.evaluate(state, rows["test"])["accuracy"], log[-1]["accuracy"])

    def seed(self, seed: int) -> Cells:
        """Scores on B of the base network, ("baseB", 0), and of every treatment at every depth, ("AnB+", 2)."""
        sources, store = halves(self.images, seed), FeatureStore()
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


def differences(found: Sequence[Cells], depths: Sequence[int], treatment: str, to: str = "baseB") -> list[float]:
    """Test accuracy of a treatment less that of another, seed by seed; the mean over several depths."""
    pairs = [[(cells[treatment, n], cells.get((to, n), cells["baseB", 0])) for n in depths] for cells in found]
    return [statistics.mean(own.test - other.test for own, other in pair) for pair in pairs]


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
    for name, depths in (*((str(n), (n,)) for n in DEPTHS), ("mean", DEPTHS)):
        lines.append(f"| {name} | {' | '.join(percent(differences(found, depths, a, b), '+') for a, b in pairs)} |")
    return "\n".join(lines)


def plot(found: Sequence[Cells], path: Path) -> None:
    """Draw the differences to the base network against n, with intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    axes.axhline(0, color="0.4", lw=1, label="baseB")
    for k, (treatment, colour) in enumerate(zip(TREATMENTS, COLOURS, strict=True)):
        gains = [[100 * x for x in differences(found, (n,), treatment)] for n in DEPTHS]
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
