"""The lecture's methods of transfer learning side by side: MobileNet 0.75 with ImageNet weights on cats and dogs."""

import json
import statistics
import sys
import time
from pathlib import Path

from flax import nnx

from cnnjax import Classifier, FeatureStore, Fitter, Recipe, lecture_head
from cnnjax.data import open_splits
from cnnjax.functional import leaves_of
from cnnjax.metrics import interval, report
from cnnjax.pretrained import open_backbone

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
    pictures = open_splits(data, image_size=SIZE)
    fitter = Fitter(model(weights, 0), RECIPES[name], SIZE, store=FeatureStore())
    accuracies, seconds, rates = [], [], []
    for seed in range(seeds):
        head = {f"head/{path}": x for path, x in leaves_of(model(weights, seed).head).items()}
        start = time.perf_counter()
        fitted = fitter.fit(pictures["train"], pictures["validation"], leaves=head, seed=seed)
        logits = fitter.logits(fitted, pictures["test"], len(pictures["train"]))
        seconds.append(time.perf_counter() - start)
        found = report(logits, pictures["test"].labels, pictures["test"].class_names)
        accuracies.append(found.accuracy)
        rates += [line["pictures_per_second"] for line in fitted.history[1:]]
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
    print("| method | test accuracy, 95 % interval | seconds, first seed | each further seed | pictures a second |")
    print("| --- | ---: | ---: | ---: | ---: |")
    print("\n".join(lines))
