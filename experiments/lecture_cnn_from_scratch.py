"""The lecture's network from scratch on cats and dogs: how a network overfits that has too few pictures.

2,000 photographs to train on, 1,000 to validate on, 1,000 to test on, resized to 150x150; `lecture_cnn` as it
stands on the slide (3,453,121 parameters), RMSprop at 1e-4, binary cross-entropy, 30 epochs of batches of 20. No
augmentation, no dropout: the point is the gap.

    python experiments/lecture_cnn_from_scratch.py cats_and_dogs_small

MEASURED
"""

import sys
from pathlib import Path

from flax import nnx

from cnnjax import Classifier, Freeze, Trainer, lecture_cnn
from cnnjax.data import open_splits
from cnnjax.show import curves

SIZE, EPOCHS, BATCH, RATE = (150, 150), 30, 20, 1e-4


def build(seed: int = 0) -> Classifier:
    """The slide's network; it gives a logit, so the loss needs no sigmoid before it."""
    return Classifier(lecture_cnn((*SIZE, 3), classifier_activation=None, rngs=nnx.Rngs(seed)), None, "unit")


def train(data: Path, epochs: int = EPOCHS) -> list[dict[str, float]]:
    """One record an epoch: loss and accuracy on training and validation pictures; the last has the test's too."""
    splits = open_splits(data, image_size=SIZE)
    model = build()
    trainer = Trainer(model, Freeze.none().resolve(model), SIZE, batch_size=BATCH, optimizer="rmsprop")
    rows = {name: trainer.rows(source, train=name == "train") for name, source in splits.items()}
    state, records = trainer.init(learning_rate=RATE), []
    for epoch in range(1, epochs + 1):
        state, (log,) = trainer.fit(state, rows["train"], epochs=1)
        found = trainer.evaluate(state, rows["validation"])
        records.append({"epoch": epoch, "train_loss": log["loss"], "train_accuracy": log["accuracy"]})
        records[-1] |= {"validation_loss": found["loss"], "validation_accuracy": found["accuracy"]}
        print(" ".join(f"{k} {v:.4g}" for k, v in records[-1].items()), f"{log['seconds']:.1f} s", flush=True)
    records[-1] |= {f"test_{k}": v for k, v in trainer.evaluate(state, rows["test"]).items()}
    return records


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: lecture_cnn_from_scratch.py DATA")
    records = train(Path(sys.argv[1]))
    print(f"test accuracy {100 * records[-1]['test_accuracy']:.1f} %")
    out = Path("runs/lecture_cnn_from_scratch.png")
    curves.plot(records, out, "lecture_cnn from scratch on 2,000 photographs of cats and dogs")
    print(f"written: {out}")
