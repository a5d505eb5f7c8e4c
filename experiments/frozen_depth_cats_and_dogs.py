"""How deep should I freeze? MobileNet 0.75 with ImageNet weights on cats and dogs.

2,000 photographs to train on, 1,000 to test on, resized to 160x160; average pooling, dropout 0.2 and one
logit on top; Adam, 5 epochs of batches of 32, at 1e-3 where only the head trains and 1e-4 where part of the
backbone does; BatchNorm live in the layers that train, as in Keras.

    python experiments/frozen_depth_cats_and_dogs.py cats_and_dogs_small mobilenet_7_5_224_tf_no_top.h5

2026-11-28, two cores of an Intel Xeon, no accelerator, Python 3.12, jax 0.12.0.1; 652 s in all, of which 18 s went into
features (the images were decoded once, each depth's features made from those of the depth before). Mean and 95 %
interval over three seeds:

| freeze | first layer that trains | rate | trainable parameters | test accuracy, 95 % interval | ms a step |
| --- | --- | ---: | ---: | ---: | ---: |
| none | conv1 | 0.0001 | 1,817,329 | 96.9 ± 0.6 % | 294.5 |
| 9 | conv_dw_5 | 0.0001 | 1,779,457 | 97.0 ± 1.0 % | 149.3 |
| 15 | conv_dw_8 | 0.0001 | 1,511,041 | 96.7 ± 0.5 % | 95.6 |
| 21 | conv_dw_11 | 0.0001 | 1,053,697 | 96.5 ± 1.5 % | 41.5 |
| 25 | conv_dw_13 | 0.0001 | 600,577 | 96.9 ± 0.9 % | 14.6 |
| all | head | 0.001 | 769 | 96.8 ± 1.0 % | 0.10 |

No depth is better than another beyond the interval. (Keras on TensorFlow on the same files, one seed, the same
head and rates, by first trainable layer: none 97.2, conv_dw_13 96.3, conv_dw_11 96.1, conv_dw_6 96.9, conv1 96.4.)
"""

import sys
from pathlib import Path

from cnnjax.sweep import Ablation, ablate


def config(data: Path, weights: Path) -> Ablation:
    """The sweep that is recorded above."""
    return Ablation(
        data=str(data),
        backbone="mobilenet",
        backbone_options={"alpha": 0.75},
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
