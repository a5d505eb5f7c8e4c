"""The lecture's methods of transfer learning side by side: MobileNet 0.75 with ImageNet weights on cats and dogs.

2,000 photographs to train on, 1,000 to validate on after each epoch, 1,000 to test on, at 160x160; the lecture's head
(Flatten, Dense 256, Dropout 0.5, Dense 1), binary cross-entropy, RMSprop at 1e-3, batches of 20, 10 epochs; fine-tuning
goes on for 5 epochs at 1e-4 with conv_pw_12 and what follows, BatchNorm live there, as in Keras. Augmentation is the
lecture's: flip, rotation 0.1, zoom 0.2. Seconds hold everything but reading the weights: features, training,
validation, test.

    python experiments/transfer_methods.py cats_and_dogs_small mobilenet_7_5_224_tf_no_top.h5

2026-11-23, two cores of an AMD EPYC, no accelerator, Python 3.12, jax 0.12.0.1, with other work on the machine, which
fell on our lines more than on Keras's. Mean and 95 % interval over five seeds; Keras 3.15 on TensorFlow 2.21, one seed:

| method | test accuracy, 95 % interval | seconds, first seed | each further seed | Keras: accuracy | seconds |
| --- | ---: | ---: | ---: | ---: | ---: |
| 1: features once | 96.6 ± 1.7 % | 42 | 13 | 97.2 % | 58 |
| 1½: features of 4 views | 96.4 ± 1.1 % | 82 | 26 | | |
| 2: augmentation, base in the step | 96.3 ± 0.7 % | 131 | 208 | 95.3 % | 315 |
| 1, then conv_pw_12 on tuned | 96.9 ± 0.5 % | 114 | 53 | 96.5 % | 255 |

With 2,000 photographs of what ImageNet knows no method is better than another beyond the interval: what differs is the
price. Four stored views give what Method 2 gives, after the first seed for an eighth of its time. Keras took 1.4, 2.4
and 2.2 times our first seed, and 4.5, 1.5 and 4.8 times a further one (Method 2 keeps nothing, so its seeds differ by
what else the machine did). Keras's side, in an environment that has it (also `augment`, and `finetune` with
`--tune-epochs 5`):

    python experiments/in_keras/transfer_methods.py --method features --data cats_and_dogs_small \
        --weights mobilenet_7_5_224_tf_no_top.h5 --epochs 10 --seed 0
"""

import json
import statistics
import sys
import time
from pathlib import Path

from flax import nnx

from cnnjax import Classifier, FeatureStore, Fitter, Recipe, leaves_of, lecture_head, open_backbone
from cnnjax.data import open_splits
from cnnjax.metrics import interval, report

SIZE, EPOCHS, TUNE_EPOCHS, SEEDS = (160, 160), 10, 5, 5
RECIPES = {
    "1: features once": Recipe("features", epochs=EPOCHS),
    "1½: features of 4 views": Recipe("views", epochs=EPOCHS),
    "2: augmentation, base in the step": Recipe("augment", epochs=EPOCHS),
    "1, then conv_pw_12 on tuned": Recipe(
        "finetune", unfreeze_from="conv_pw_12", epochs=EPOCHS, tune_epochs=TUNE_EPOCHS
    ),
}


def model(weights: Path, seed: int) -> Classifier:
    """MobileNet under the lecture's head; the seed is the head's."""
    backbone, preprocessing = open_backbone(
        "mobilenet", image_size=SIZE[0], alpha=0.75, weights=weights, include_top=False
    )
    return Classifier(backbone, lecture_head(backbone.output_shape(), 2, rngs=nnx.Rngs(seed)), preprocessing)


def run(name: str, data: Path, weights: Path, seeds: int = SEEDS) -> str:
    """The table's line of one method; features are made once, for the first seed."""
    images = open_splits(data, image_size=SIZE)
    fitter = Fitter(model(weights, 0), RECIPES[name], SIZE, store=FeatureStore())
    accuracies, seconds, rates = [], [], []
    for seed in range(seeds):
        head = {f"head/{path}": x for path, x in leaves_of(model(weights, seed).head).items()}
        start = time.perf_counter()
        fitted = fitter.fit(images["train"], images["validation"], leaves=head, seed=seed)
        logits = fitter.outputs(fitted, images["test"], len(images["train"]))
        seconds.append(time.perf_counter() - start)
        found = report(logits, images["test"].labels, images["test"].class_names)
        accuracies.append(found.accuracy)
        rates += [line["images_per_second"] for line in fitted.history[1:]]
        line = {"method": name, "seed": seed, "test_accuracy": found.accuracy, "seconds": seconds[-1]}
        print(json.dumps(line | fitted.seconds), flush=True)
    mean, half = statistics.mean(accuracies), interval(accuracies)
    later = f"{statistics.median(seconds[1:]):.0f}" if seeds > 1 else ""
    rate = f"{statistics.median(rates):,.0f}"
    return f"| {name} | {100 * mean:.1f} ± {100 * half:.1f} % | {seconds[0]:.0f} | {later} | {rate} |"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: transfer_methods.py DATA WEIGHTS.h5")
    lines = [run(name, Path(sys.argv[1]), Path(sys.argv[2])) for name in RECIPES]
    print("| method | test accuracy, 95 % interval | seconds, first seed | each further seed | images a second |")
    print("| --- | ---: | ---: | ---: | ---: |")
    print("\n".join(lines))
