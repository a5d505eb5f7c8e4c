"""Flatten or global max pooling? The lecture's pair for 32x32 on a small CIFAR-10.

10,000 photographs in ten classes to train on, 2,000 to test on; `cifar_cnn` with a Flatten before its dense layers
and with global max pooling, Adam at 1e-3, 10 epochs of batches of 32, no augmentation. Seconds are the median of
an epoch of training, first epochs left out.

    python experiments/flatten_or_global_max_pooling.py cifar10_small

MEASURED
"""

import statistics
import sys
from pathlib import Path
from typing import Any

from flax import nnx

from cnnjax import Classifier, Freeze, Trainer, cifar_cnn, summary
from cnnjax.data import open_splits
from cnnjax.functional import leaves_of
from cnnjax.show.depth import interval

SIZE, EPOCHS, BATCH, RATE, SEEDS = (32, 32), 10, 32, 1e-3, (0, 1, 2)
POOLINGS = ("flatten", "max")


def build(pooling: str, seed: int) -> Classifier:
    """One of the pair; it gives logits, so the loss needs no softmax before it."""
    return Classifier(cifar_cnn((*SIZE, 3), pooling, classifier_activation=None, rngs=nnx.Rngs(seed)), None, "unit")


def train(data: Path, pooling: str, seeds: tuple[int, ...] = SEEDS, epochs: int = EPOCHS) -> dict[str, Any]:
    """Train with every seed: parameters, accuracies, seconds an epoch."""
    splits = open_splits(data, image_size=SIZE)
    model = build(pooling, seeds[0])
    trainer = Trainer(model, Freeze.none().resolve(model), SIZE, batch_size=BATCH, optimizer="adam")
    rows, test = trainer.rows(splits["train"]), trainer.rows(splits["test"], train=False)
    train_accuracy, accuracy, seconds = [], [], []
    for seed in seeds:
        state = trainer.init(leaves_of(build(pooling, seed)), RATE)
        state, log = trainer.fit(state, rows, epochs=epochs, seed=seed)
        train_accuracy.append(log[-1]["accuracy"])
        accuracy.append(trainer.evaluate(state, test)["accuracy"])
        seconds += [record["seconds"] for record in log[1:] or log]
        print(f"{pooling} seed {seed}: training {train_accuracy[-1]:.3f}, test {accuracy[-1]:.3f}", flush=True)
    return {
        "parameters": summary(model).parameters,
        "train": train_accuracy,
        "test": accuracy,
        "seconds": statistics.median(seconds),
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: flatten_or_global_max_pooling.py DATA")
    print("| joined by | parameters | seconds an epoch | training accuracy | test accuracy, 95 % interval |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for pooling in POOLINGS:
        found = train(Path(sys.argv[1]), pooling)
        mean, half = statistics.mean(found["test"]), interval(found["test"])
        print(
            f"| {pooling} | {found['parameters']:,} | {found['seconds']:.1f} | "
            f"{100 * statistics.mean(found['train']):.1f} % | {100 * mean:.1f} ± {100 * half:.1f} % |"
        )
