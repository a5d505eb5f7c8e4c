"""How deep should I freeze? MobileNet 0.75 with ImageNet weights on cats and dogs.

2,000 photographs to train on, 1,000 to test on, resized to 160x160; average pooling, dropout 0.2 and one
logit on top; Adam, 5 epochs of batches of 32, at 1e-3 where only the head trains and 1e-4 where part of the
backbone does; BatchNorm live in the layers that train, as in Keras.

RECORD
"""

import sys
from pathlib import Path

from cnnjax.ablation import Ablation, ablate


def config(data: Path, weights: Path) -> Ablation:
    """The sweep that is recorded above."""
    return Ablation(
        data=data,
        backbone="mobilenet",
        alpha=0.75,
        weights=weights,
        image_size=160,
        freeze=("none", "9", "15", "21", "25", "all"),
        head="linear",
        seeds=3,
        optimizer="adam",
        learning_rates=(1e-3,),
        tuning_factor=0.1,
        epochs=5,
        batch_size=32,
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: frozen_depth_cats_and_dogs.py DATA WEIGHTS.h5")
    ablate(config(Path(sys.argv[1]), Path(sys.argv[2])))
