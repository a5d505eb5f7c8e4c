"""The lecture's methods of transfer learning in Keras: what cnnjax is compared with.

    python transfer_methods.py --method features --data cats_and_dogs_small \
        --weights mobilenet_7_5_224_tf_no_top.h5 --epochs 100 --seed 0

features  Method 1: `predict` the base once, then train the head on stored features.
augment   Method 2: flip, rotation 0.1 and zoom 0.2 before the frozen base, end to end.
finetune  Method 1, then the base trains from `--unfreeze-from` on with the head, at a tenth of the rate; BatchNorm
          is live where it trains, no augmentation.
scratch   The same network from random weights, all of it trained.

RMSprop, binary cross-entropy, one sigmoid; validated after every epoch as in the lecture, the last epoch's weights
are tested. The data folder holds train, validation and test, each with one folder for each of two classes. VGG16 at
180x180: `--backbone vgg16`, fine-tuned from block5_conv1.

One JSON line on stdout. `seconds` is everything but imports, making the base and reading its weights. Of these,
`seconds_features` is the base's `predict`, `seconds_training` the training steps alone, compilation included, and
`seconds_validation` what follows each epoch; what is left is mostly the test. `validation_accuracy` is the last
epoch's. `images_per_second` is of the last phase's training: median epoch, without the first if there are more.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import keras
from keras import layers
from pieces import SIZES, VERSIONS, Clock, images, labels_of, make_head, open_base, preprocess, subset, train_from

UNFREEZE_FROM = {"mobilenet": "conv_pw_12", "vgg16": "block5_conv1"}
TUNING_FACTOR = 0.1


class Run:
    """One method on one folder with one seed."""

    def __init__(self, args: argparse.Namespace, train: Path, base: keras.Model, size: int):
        self.args, self.train, self.base, self.size = args, train, base, size
        self.head = make_head(args.head, base.output_shape[1:])
        self.clocks: list[Clock] = []
        self.count = 0  # of training images
        self.features_seconds = self.fit_seconds = self.validation_accuracy = 0.0

    def open(self, split: str, seed: int | None = None):
        """A split's images, shuffled if there is a seed."""
        folder = self.train if split == "train" else self.args.data / split
        dataset = images(folder, self.size, self.args.batch_size, seed)
        if split == "train":
            self.count = len(dataset.file_paths)
        return dataset

    def whole(self, augment: bool = False, **call) -> keras.Model:
        """Images to probability; `call` goes to the base."""
        x = inputs = keras.Input((self.size, self.size, 3))
        if augment:
            for layer in (layers.RandomFlip("horizontal"), layers.RandomRotation(0.1), layers.RandomZoom(0.2)):
                x = layer(x)
        return keras.Model(inputs, self.head(self.base(preprocess(self.args.backbone, x), **call)))

    def fit(self, label: str, model: keras.Model, data, validation, epochs: int, rate: float) -> None:
        """Compile, train, and note the seconds and the last validation accuracy."""
        rmsprop = keras.optimizers.RMSprop(rate)
        model.compile(optimizer=rmsprop, loss="binary_crossentropy", metrics=["accuracy"])
        clock, start = Clock(label), time.perf_counter()
        pairs = {"x": data[0], "y": data[1], "batch_size": self.args.batch_size} if type(data) is tuple else {"x": data}
        log = model.fit(**pairs, validation_data=validation, epochs=epochs, callbacks=[clock], verbose=0)
        self.fit_seconds += time.perf_counter() - start
        self.clocks.append(clock)
        self.validation_accuracy = log.history["val_accuracy"][-1]

    def extract(self, split: str):
        """Features and labels of a split."""
        inputs = keras.Input((self.size, self.size, 3))
        extractor = keras.Model(inputs, self.base(preprocess(self.args.backbone, inputs), training=False))
        start, dataset = time.perf_counter(), self.open(split)
        features = extractor.predict(dataset.map(lambda batch, _: batch), verbose=0)
        self.features_seconds += time.perf_counter() - start
        return features, labels_of(dataset)

    def method_1(self) -> float:
        """Train the head on stored features; its test accuracy."""
        stored = {split: self.extract(split) for split in ("train", "validation", "test")}
        self.fit("head", self.head, stored["train"], stored["validation"], self.args.epochs, self.args.rate)
        return self.head.evaluate(*stored["test"], verbose=0)[1]

    def end_to_end(self, label: str, model: keras.Model, epochs: int, rate: float) -> float:
        """Train on the images themselves; the test accuracy."""
        data, validation = self.open("train", seed=self.args.seed), self.open("validation")
        self.fit(label, model, data, validation, epochs, rate)
        return model.evaluate(self.open("test"), verbose=0)[1]

    def go(self) -> float:
        """The method asked for; its test accuracy."""
        args = self.args
        if args.method == "features":
            return self.method_1()
        if args.method == "augment":
            self.base.trainable = False
            return self.end_to_end("augment", self.whole(augment=True, training=False), args.epochs, args.rate)
        if args.method == "scratch":
            return self.end_to_end("scratch", self.whole(), args.epochs, args.rate)
        stored = {split: self.extract(split) for split in ("train", "validation")}
        self.fit("head", self.head, stored["train"], stored["validation"], args.epochs, args.rate)
        train_from(self.base, args.unfreeze_from)
        return self.end_to_end("tune", self.whole(), args.tune_epochs, TUNING_FACTOR * args.rate)


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", required=True, choices=["features", "augment", "finetune", "scratch"])
    parser.add_argument("--data", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--weights", metavar="FILE", help='Keras\'s no-top .h5, or "random" (only the speed is real)')
    parser.add_argument("--backbone", choices=list(SIZES), default="mobilenet")
    parser.add_argument("--alpha", type=float, default=0.75, help="MobileNet's width")
    parser.add_argument("--head", choices=["lecture", "linear"], default="lecture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30, help="of the head, or of the only phase")
    parser.add_argument("--tune-epochs", type=int, default=10)
    parser.add_argument("--unfreeze-from", metavar="LAYER", help="this layer and the later ones are tuned")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate; fine-tuning takes a tenth")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--limit", type=int, metavar="N", help="the first N training images of each class")
    args = parser.parse_args()
    if args.method == "scratch":
        args.weights = "random"
    if not args.weights:
        parser.error(f"--method {args.method} needs --weights FILE (or --weights random, to try the speed)")
    args.unfreeze_from = args.unfreeze_from or UNFREEZE_FROM[args.backbone]
    return args


def main() -> None:
    """Run and print one JSON line."""
    args = options()
    keras.utils.set_random_seed(args.seed)
    base, size = open_base(args.backbone, args.alpha, args.weights)
    base.get_layer(args.unfreeze_from)  # a wrong name is told before the head is trained, not after
    train = subset(args.data / "train", args.limit) if args.limit else args.data / "train"
    try:
        start = time.perf_counter()
        run = Run(args, train, base, size)
        test = run.go()
        seconds = time.perf_counter() - start
    finally:
        if args.limit:
            shutil.rmtree(train)
    training = sum(sum(clock.epochs) for clock in run.clocks)
    result = {
        "method": args.method, "backbone": args.backbone, "head": args.head, "seed": args.seed,
        "training_images": run.count, "batch_size": args.batch_size, "rate": args.rate, "epochs": args.epochs,
    }  # fmt: skip
    if args.method == "finetune":
        result |= {"tune_epochs": args.tune_epochs, "unfreeze_from": args.unfreeze_from}
    result |= {
        "weights": Path(args.weights).name,
        "test_accuracy": test,
        "validation_accuracy": run.validation_accuracy,
        "seconds": seconds,
        "seconds_features": run.features_seconds,
        "seconds_training": training,
        "seconds_validation": run.fit_seconds - training,
        "images_per_second": run.count / run.clocks[-1].steady,
        "versions": VERSIONS,
    }
    rounded = {name: round(x, 4) if isinstance(x, float) and name != "rate" else x for name, x in result.items()}
    print(json.dumps(rounded), flush=True)


if __name__ == "__main__":
    main()
