"""How deep should I freeze? The sweep in Keras, as a loop over `fit`: what `cnnjax ablate` is compared with.

    python frozen_depth.py --data cats_and_dogs_small --weights mobilenet_7_5_224_tf_no_top.h5 --seeds 3

Every cell builds MobileNet with its weights anew, freezes the layers up to and including NAME (`none`: nothing,
`all`: the whole base), puts GlobalAveragePooling, Dropout 0.2 and Dense 1 with a sigmoid on top, and trains with Adam
and binary cross-entropy; the rate is a tenth where part of the base trains. BatchNorm is live where it trains. The
default depths freeze 0, 9, 15, 21, 25 and all of the 27 layers with a kernel.

The data folder holds train and test, each with one folder for each of two classes. One JSON line a cell on stdout.
`seconds` is training and test, without imports, making the model and reading weights; `seconds_training` the steps
alone, compilation included; `ms_per_step` is of the median epoch, without the first if there are more.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import keras
import numpy as np
from pieces import SIZES, VERSIONS, Clock, freeze_layers, images, make_head, open_base, preprocess, subset

DEPTHS = {
    "mobilenet": ("none", "conv_pw_4_relu", "conv_pw_7_relu", "conv_pw_10_relu", "conv_pw_12_relu", "all"),
    "vgg16": ("none", "block2_pool", "block3_pool", "block4_pool", "all"),
}
TUNING_FACTOR = 0.1


def freeze(base: keras.Model, through: str) -> str:
    """Freeze up to and including a layer; the name of the first one with weights that trains, "" if none."""
    if through == "none":
        stop = 0
    else:
        stop = len(base.layers) if through == "all" else 1 + base.layers.index(base.get_layer(through))
    freeze_layers(base, stop)
    return next((layer.name for layer in base.layers if layer.trainable_weights), "")


def cell(args: argparse.Namespace, train: Path, through: str, seed: int) -> dict:
    """Train and test one cell."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    base, size = open_base(args.backbone, args.alpha, args.weights)
    first = freeze(base, through)
    inputs = keras.Input((size, size, 3))
    head = make_head(args.head, base.output_shape[1:])
    model = keras.Model(inputs, head(base(preprocess(args.backbone, inputs))))
    rate = TUNING_FACTOR * args.rate if first else args.rate
    clock, start = Clock(f"{through} seed {seed}"), time.perf_counter()
    model.compile(optimizer=keras.optimizers.Adam(rate), loss="binary_crossentropy", metrics=["accuracy"])
    dataset = images(train, size, args.batch_size, seed)
    model.fit(dataset, epochs=args.epochs, callbacks=[clock], verbose=0)
    accuracy = model.evaluate(images(args.data / "test", size, args.batch_size), verbose=0)[1]
    seconds = time.perf_counter() - start
    count = len(dataset.file_paths)
    return {
        "frozen_through": through,
        "first_trainable": first or "head",
        "seed": seed,
        "rate": float(f"{rate:g}"),
        "trainable_parameters": int(sum(np.prod(weight.shape) for weight in model.trainable_weights)),
        "training_images": count,
        "epochs": args.epochs,
        "test_accuracy": round(accuracy, 4),
        "seconds": round(seconds, 2),
        "seconds_training": round(sum(clock.epochs), 2),
        "ms_per_step": round(1000 * clock.steady / math.ceil(count / args.batch_size), 2),
        "versions": VERSIONS,
    }


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--weights", required=True, metavar="FILE", help='Keras\'s no-top .h5, or "random"')
    parser.add_argument("--backbone", choices=list(SIZES), default="mobilenet")
    parser.add_argument("--alpha", type=float, default=0.75, help="MobileNet's width")
    parser.add_argument("--head", choices=["lecture", "linear"], default="linear")
    parser.add_argument("--freeze", nargs="+", metavar="NAME", help="none, all, or the last layer that is frozen")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=1e-3, help="of the head alone; a tenth where the base trains")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--limit", type=int, metavar="N", help="the first N training images of each class")
    args = parser.parse_args()
    args.freeze = args.freeze or DEPTHS[args.backbone]
    return args


def main() -> None:
    """Run every cell; all seeds of a depth before the next depth."""
    args = options()
    base, _ = open_base(args.backbone, args.alpha, args.weights)
    for through in args.freeze:
        freeze(base, through)  # a wrong name is told before anything is trained
    train = subset(args.data / "train", args.limit) if args.limit else args.data / "train"
    try:
        for through in args.freeze:
            for seed in range(args.first_seed, args.first_seed + args.seeds):
                print(json.dumps(cell(args, train, through, seed)), flush=True)
    finally:
        if args.limit:
            shutil.rmtree(train)


if __name__ == "__main__":
    main()
