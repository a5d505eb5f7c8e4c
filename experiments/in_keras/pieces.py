"""What the Keras scripts beside this file share: images, pretrained base, heads, and the clock.

Written as a Keras user would write it, for Keras 3 on TensorFlow (`pip install tensorflow-cpu keras h5py`). Nothing of
cnnjax is used here.
"""

import os
import platform
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")  # what Keras reads
SIZES = {"mobilenet": 160, "vgg16": 180}
VERSIONS = {"python": platform.python_version(), "keras": keras.__version__, keras.backend.backend(): tf.__version__}


def subset(folder: Path, images: int) -> Path:
    """A new folder of links to the first `images` of each class, in the order of their names."""
    found = Path(tempfile.mkdtemp(prefix="keras-subset-"))
    for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
        (found / kind.name).mkdir()
        for image in sorted(path for path in kind.iterdir() if path.suffix.lower() in IMAGES)[:images]:
            (found / kind.name / image.name).symlink_to(image.resolve())
    return found


def images(folder: Path, size: int, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
    """Batches of images and labels 0 or 1: shuffled if there is a seed, in the order of the files otherwise."""
    return keras.utils.image_dataset_from_directory(
        folder,
        image_size=(size, size),
        batch_size=batch_size,
        label_mode="binary",
        shuffle=seed is not None,
        seed=seed,
        verbose=False,
    )


def labels_of(dataset: tf.data.Dataset) -> np.ndarray:
    """Labels f32[N, 1] of an unshuffled `images`, without decoding an image."""
    kinds = [dataset.class_names.index(Path(path).parent.name) for path in dataset.file_paths]
    return np.asarray(kinds, np.float32)[:, None]


def open_base(name: str, alpha: float, weights: str) -> tuple[keras.Model, int]:
    """The base without its top, and the side of its images; `weights` is Keras's no-top file, or "random"."""
    shape = (SIZES[name], SIZES[name], 3)
    if name == "mobilenet":
        base = keras.applications.MobileNet(weights=None, include_top=False, input_shape=shape, alpha=alpha)
    else:
        base = keras.applications.VGG16(weights=None, include_top=False, input_shape=shape)
    if weights != "random":
        base.load_weights(weights)  # layer by layer in the file's order; refuses another number or shape of weights
    return base, SIZES[name]


def preprocess(name: str, inputs: keras.KerasTensor) -> keras.KerasTensor:
    """Pixels from 0 to 255 to what the base was trained on."""
    return getattr(keras.applications, name).preprocess_input(inputs)


def make_head(name: str, feature_shape: tuple[int, ...]) -> keras.Model:
    """The lecture's head, or a linear one after average pooling; one sigmoid for two classes."""
    if name == "lecture":
        stack = [layers.Flatten(), layers.Dense(256), layers.Dropout(0.5)]
    else:
        stack = [layers.GlobalAveragePooling2D(), layers.Dropout(0.2)]
    return keras.Sequential([keras.Input(feature_shape), *stack, layers.Dense(1, activation="sigmoid")])


def freeze_layers(base: keras.Model, count: int) -> None:
    """Freeze the first `count` layers (all of Keras's are counted) and let the others train."""
    for number, layer in enumerate(base.layers):
        layer.trainable = number >= count


def train_from(base: keras.Model, first: str) -> None:
    """Let the layer named and all later ones train, with live BatchNorm; the earlier ones stay as they are."""
    freeze_layers(base, base.layers.index(base.get_layer(first)))


class Clock(keras.callbacks.Callback):
    """Seconds of each epoch's training steps, validation left out; tells of every epoch on stderr."""

    def __init__(self, label: str):
        super().__init__()
        self.label, self.epochs = label, []
        self.start, self.running = 0.0, False

    def stop(self) -> None:
        """The training steps of an epoch are done."""
        if self.running:
            self.epochs.append(time.perf_counter() - self.start)
            self.running = False

    def on_epoch_begin(self, epoch, logs=None):
        self.start, self.running = time.perf_counter(), True

    def on_test_begin(self, logs=None):
        self.stop()

    def on_epoch_end(self, epoch, logs=None):
        self.stop()
        told = " ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        print(f"{self.label}, epoch {epoch + 1}: {told}, {self.epochs[-1]:.1f} s", file=sys.stderr, flush=True)

    @property
    def steady(self) -> float:
        """Median seconds of an epoch, without the first, which compiles."""
        return float(np.median(self.epochs[1:] or self.epochs))
