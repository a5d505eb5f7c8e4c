"""cnnjax's side of the jobs, through its public API: `python ours.py JOB [PRECISION]`, which `benchmark.py` drives.

The process says when it is ready, then does the job once for each line it is sent, and answers with its seconds.
Images are random and uint8, as cnnjax keeps them (the peers get theirs as floats, ready to be used).
"""

# ruff: noqa: E402

import time

START = time.perf_counter()

import cnnjax  # isort: skip

cnnjax.tune_cpu()  # before NumPy's and JAX's threads begin

import json
import resource
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from cnnjax import Classifier, Freeze, Trainer
from cnnjax.augment import Augmentation
from cnnjax.data import InMemory

RANDOM = np.random.default_rng(0)
PRECISION: Any = sys.argv[2] if __name__ == "__main__" and len(sys.argv) > 2 else "auto"
LECTURE = Augmentation(flip="horizontal", rotation=0.1, zoom=0.2)

Job = tuple[Callable[[], Any], Callable[[Any], Any], int]
"""What is prepared before the clock runs, what is timed (it is given what was prepared), and of how many examples."""


def images(count: int, size: int) -> InMemory:
    """Random images of two classes."""
    pixels = RANDOM.integers(0, 256, (count, size, size, 3), np.uint8)
    return InMemory(pixels, RANDOM.integers(0, 2, count), ("no", "yes"))


def mobilenet(head: Any = cnnjax.linear_head) -> Classifier:
    """MobileNet 1.0 at 160x160 with random weights."""
    backbone = cnnjax.mobilenet(1.0, (160, 160, 3), include_top=False, rngs=nnx.Rngs(0))
    return Classifier(backbone, head(backbone.output_shape(), 2, rngs=nnx.Rngs(1)), "tf")


def vgg16() -> Classifier:
    """VGG16 at 180x180 under the lecture's head, with random weights."""
    backbone = cnnjax.vgg16((180, 180, 3), include_top=False, rngs=nnx.Rngs(0))
    return Classifier(backbone, cnnjax.lecture_head(backbone.output_shape(), 2, rngs=nnx.Rngs(1)), "caffe")


def trainer_of(model: nnx.Module, freeze: Freeze, size: int, batch: int, **options: Any) -> Trainer:
    """A trainer that freezes so much of the backbone, and computes in what the process was asked for."""
    frozen = freeze.resolve(model, "backbone")
    return Trainer(model, frozen, (size, size), batch_size=batch, precision=PRECISION, **options)


def features(model: Classifier, size: int, count: int, batch: int) -> Job:
    """The frozen backbone's features of images that no store has seen."""
    trainer = trainer_of(model, Freeze.all(), size, batch)

    def work(source: InMemory) -> None:
        trainer.store.get(trainer.staged, trainer.fixed, source, batch=batch)

    return lambda: images(count, size), work, count


def epochs(model: nnx.Module, freeze: Freeze, size: int, count: int, batch: int, **options: Any) -> Job:
    """An epoch on what is stored already."""
    trainer = trainer_of(model, freeze, size, batch, **options)
    rows, state = trainer.rows(images(count, size)), trainer.init()

    def work(_: None) -> None:
        nonlocal state
        state, _log = trainer.fit(state, rows, epochs=1)

    return lambda: None, work, count


def first_epoch(model: Classifier, freeze: Freeze, size: int, count: int, batch: int) -> Job:
    """An epoch on images that no store has seen: their features, then the steps."""
    trainer = trainer_of(model, freeze, size, batch)
    state = trainer.init()

    def work(source: InMemory) -> None:
        nonlocal state
        state, _log = trainer.fit(state, trainer.rows(source), epochs=1)

    return lambda: images(count, size), work, count


JOBS: dict[str, Callable[[], Job]] = {
    "features-mobilenet": lambda: features(mobilenet(), 160, 160, 20),
    "features-vgg16": lambda: features(vgg16(), 180, 24, 8),
    "train-lecture": lambda: epochs(
        Classifier(cnnjax.lecture_cnn(classifier_activation=None, rngs=nnx.Rngs(0)), None, "unit"),
        Freeze.none(), 150, 128, 32,
    ),
    "train-mobilenet": lambda: epochs(mobilenet(), Freeze.none(), 160, 64, 16),
    "head-mobilenet": lambda: epochs(mobilenet(cnnjax.lecture_head), Freeze.all(), 160, 2000, 20),
    "augmented-vgg16": lambda: epochs(vgg16(), Freeze.all(), 180, 32, 16, augment=LECTURE),
    "finetune-vgg16": lambda: first_epoch(vgg16(), Freeze.slice(None, -4), 180, 32, 16),
    "finetune-vgg16-later": lambda: epochs(vgg16(), Freeze.slice(None, -4), 180, 32, 16),
}  # fmt: skip


def serve(job: Job, imported: float, **about: Any) -> None:
    """Do the job once for each line of the input; `imported` is how many seconds the imports took."""
    prepare, work, units = job
    given, begun = prepare(), time.perf_counter()
    work(given)
    first = {"import_s": imported, "first_call_s": time.perf_counter() - begun, "units": units}
    print(json.dumps(first | about), flush=True)
    for _ in sys.stdin:
        given, begun = prepare(), time.perf_counter()
        work(given)
        seconds = time.perf_counter() - begun
        on_device = jax.devices()[0].memory_stats() or {}
        peak = on_device.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        print(json.dumps({"seconds": seconds, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    imported = time.perf_counter() - START
    serve(JOBS[sys.argv[1]](), imported)
