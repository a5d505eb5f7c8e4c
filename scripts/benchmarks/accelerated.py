"""cnnjax's side of the jobs for a GPU or TPU: `accelerated.py JOB SIZE BATCH PRECISION`, driven by `accelerator.py`.

Images and features lie in the device's memory, and an epoch is one compiled loop. `flops` is XLA's count of a step
before it optimises, times the steps.
"""

# ruff: noqa: E402

import os
import time

START = time.perf_counter()
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other side's process needs memory as well

import cnnjax  # isort: skip

cnnjax.tune_cpu()  # before NumPy's and JAX's threads begin

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ours import Job, images, serve

from cnnjax import Classifier, Freeze, Trainer
from cnnjax.augment import Augmentation
from cnnjax.models.resnet import resnet
from cnnjax.train.lowering import program
from cnnjax.train.replicas import Replicas

STEPS, HEADS = 16, 64
FLIP = Augmentation(flip="horizontal")


def vgg16(size: int) -> Classifier:
    """VGG16 with random weights under the lecture's head."""
    backbone = cnnjax.vgg16((size, size, 3), include_top=False, rngs=nnx.Rngs(0))
    return Classifier(backbone, cnnjax.lecture_head(backbone.output_shape(), 2, rngs=nnx.Rngs(1)), "caffe")


def epochs(model: nnx.Module, freeze: Any, size: int, batch: int, **options: Any) -> tuple[Job, float]:
    """An epoch of `STEPS` batches; and its FLOPs."""
    trainer = Trainer(model, freeze, (size, size), batch_size=batch, precision=PRECISION, **options)
    rows, state = trainer.rows(images(STEPS * batch, size)), trainer.init()
    if not rows.on_device:
        raise SystemExit(f"{STEPS} batches of {batch} do not fit into the device's memory; take a smaller --batch-size")
    step = program(trainer, "taking_step", rows.kind, examples=STEPS * batch).lower(PLATFORM)
    costs = step.cost_analysis() or {}

    def work(_: None) -> None:
        nonlocal state
        state, _log = trainer.fit(state, rows, epochs=1)
        jax.block_until_ready(state)

    return (lambda: None, work, STEPS * batch), STEPS * float(costs.get("flops", np.nan))


def heads(size: int, batch: int, together: bool) -> tuple[Job, float]:
    """`HEADS` heads on the same stored features of VGG16, trained at once or one after another."""
    model = vgg16(size)
    freeze = Freeze.all().resolve(model, "backbone")
    trainer = Trainer(model, freeze, (size, size), batch_size=batch, precision=PRECISION)
    rows, replicas = trainer.rows(images(STEPS * batch, size)), Replicas(trainer)

    rates, most = np.geomspace(1e-5, 1e-3, HEADS), min(replicas.most(), HEADS) if together else 1

    def work(_: None) -> None:
        for first in range(0, HEADS, most):
            seeds = range(first, min(first + most, HEADS))
            states = [trainer.init(learning_rate=float(rates[seed])) for seed in seeds]
            jax.block_until_ready(replicas.fit(states, rows, epochs=1, seeds=seeds)[0])

    return (lambda: None, work, HEADS), np.nan


def products(size: int) -> tuple[Job, float]:
    """What the device reaches at most: products of square matrices, 32 times `size` wide, one after another."""
    count, width, kind = 32, 32 * size, jnp.dtype(PRECISION)
    a = (jax.random.normal(jax.random.key(0), (width, width)) / width**0.5).astype(kind)
    run = jax.jit(lambda a: jax.lax.fori_loop(0, count, lambda _, x: x @ a, a))
    return (lambda: None, lambda _: jax.block_until_ready(run(a)), count), count * 2.0 * width**3


def resnet50(size: int, batch: int) -> tuple[Job, float]:
    """All of ResNet-50, BatchNorm live."""
    shape = (size, size, 3)
    network = resnet(50, "v1.5", input_shape=shape, classes=1, classifier_activation=None, rngs=nnx.Rngs(0))
    model = Classifier(network, None, "tf")
    return epochs(model, Freeze.none().resolve(model), size, batch)


def block5(size: int, batch: int, **options: Any) -> tuple[Job, float]:
    """block5 of VGG16 and the head."""
    model = vgg16(size)
    return epochs(model, Freeze.slice(None, -4).resolve(model, "backbone"), size, batch, **options)


JOBS: dict[str, Callable[[int, int], tuple[Job, float]]] = {
    "products": lambda size, batch: products(size),
    "resnet50": resnet50,
    "vgg16": lambda size, batch: block5(size, batch, augment=FLIP),
    "vgg16-stored": block5,
    "heads-together": lambda size, batch: heads(size, batch, together=True),
    "heads-in-turn": lambda size, batch: heads(size, batch, together=False),
}

if __name__ == "__main__":
    imported = time.perf_counter() - START
    PRECISION: Any = sys.argv[4]
    PLATFORM = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    job, flops = JOBS[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
    serve(job, imported, flops=flops, device=jax.devices()[0].device_kind)
