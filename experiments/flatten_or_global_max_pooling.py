"""Flatten or global max pooling? The lecture's pair for 32x32 on a small CIFAR-10.

10,000 photographs in ten classes to train on, 2,000 to test on; `cifar_cnn` with a Flatten before its dense layers
and with global max pooling, Adam at 1e-3, 10 epochs of batches of 32, no augmentation. Seconds are the median of
an epoch of training, first epochs left out.

    python experiments/flatten_or_global_max_pooling.py cifar10_small

2026-11-23, two cores of an AMD EPYC, no accelerator, Python 3.12, jax 0.12.0.1, with other work on the machine: trust
the ratio of the seconds (the two took turns), not the seconds. Mean and 95 % interval over three seeds:

| joined by | parameters | seconds an epoch | training accuracy | test accuracy, 95 % interval |
| --- | ---: | ---: | ---: | ---: |
| flatten | 703,594 | 35.8 | 78.5 % | 56.4 ± 1.5 % |
| max | 179,306 | 26.3 | 67.2 % | 56.5 ± 4.8 % |

A quarter of the parameters does as well on images never seen. What the 524,288 further weights of dense_1 buy is
a better memory of the training images.
"""

import statistics
import sys
from pathlib import Path

from flax import nnx

from cnnjax import Classifier, Freeze, Trainer, cifar_cnn, leaves_of, summary
from cnnjax.data import open_splits
from cnnjax.metrics import interval

SIZE, EPOCHS, BATCH, RATE, SEEDS = (32, 32), 10, 32, 1e-3, (0, 1, 2)
POOLINGS = ("flatten", "max")


def build(pooling: str, seed: int) -> Classifier:
    """One of the pair; it gives logits, so the loss needs no softmax before it."""
    return Classifier(cifar_cnn((*SIZE, 3), pooling, classifier_activation=None, rngs=nnx.Rngs(seed)), None, "unit")


class Run:
    """One of the pair, trained with one seed after another by the same compiled program."""

    def __init__(self, data: Path, pooling: str):
        splits = open_splits(data, image_size=SIZE)
        model = build(pooling, SEEDS[0])
        self.pooling, self.parameters = pooling, summary(model).parameters
        self.trainer = Trainer(model, Freeze.none().resolve(model), SIZE, batch_size=BATCH, optimizer="adam")
        self.rows = self.trainer.rows(splits["train"])
        self.test_rows = self.trainer.rows(splits["test"], train=False)
        self.train, self.test, self.seconds = [], [], []

    def seed(self, seed: int, epochs: int = EPOCHS) -> None:
        """Train with a seed and note accuracies and seconds."""
        state = self.trainer.init(leaves_of(build(self.pooling, seed)), RATE)
        state, log = self.trainer.fit(state, self.rows, epochs=epochs, seed=seed)
        self.train.append(log[-1]["accuracy"])
        self.test.append(self.trainer.evaluate(state, self.test_rows)["accuracy"])
        self.seconds += [record["seconds"] for record in log[1:] or log]

    def line(self) -> str:
        """The table's line."""
        spread = 100 * interval(self.test)
        return (
            f"| {self.pooling} | {self.parameters:,} | {statistics.median(self.seconds):.1f} | "
            f"{100 * statistics.mean(self.train):.1f} % | {100 * statistics.mean(self.test):.1f} ± {spread:.1f} % |"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: flatten_or_global_max_pooling.py DATA")
    runs = [Run(Path(sys.argv[1]), pooling) for pooling in POOLINGS]
    for seed in SEEDS:  # in turn, so that a busy machine slows both alike
        for run in runs:
            run.seed(seed)
            print(f"{run.pooling} seed {seed}: test {run.test[-1]:.3f}, {run.seconds[-1]:.1f} s", flush=True)
    print("| joined by | parameters | seconds an epoch | training accuracy | test accuracy, 95 % interval |")
    print("| --- | ---: | ---: | ---: | ---: |")
    print("\n".join(run.line() for run in runs))
