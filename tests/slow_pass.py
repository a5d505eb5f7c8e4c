"""A feature pass in a process of its own, for tests that kill it."""

import sys
import time

import grain  # noqa: F401  (here and not in the child, where reading would import it)
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data import InMemory
from cnnjax.features import FeatureStore, partial
from cnnjax.runtime import preemption
from cnnjax.staging import Staged

W = {"w": np.arange(12.0, dtype=np.float32).reshape(3, 4) / 7}
PIXELS = np.random.default_rng(1).integers(0, 255, (960, 6, 6, 3), np.uint8)


class Slow(InMemory):
    """Images that take their time."""

    def read_kept(self, indices):
        time.sleep(0.04)
        return super().read_kept(indices)


def two_features():
    """A program that has two features made by one pass."""

    def fn(fixed, x, late):
        maps = jnp.sin((x / 255.0) @ fixed["w"])
        return maps.mean((1, 2)) * late + jnp.exp(maps).max((1, 2)) * late**2

    return Staged(fn, W, jax.ShapeDtypeStruct((6, 6, 3), jnp.float32), jnp.float32(1))


def get(folder, pixels=PIXELS, batch=8, progress=None, read=InMemory):
    """The features, and the passes that were made for them."""
    store = FeatureStore(folder)
    images = read(pixels, np.zeros(len(pixels), int), ("a", "b"))
    return store.get(two_features(), W, images, batch=batch, progress=progress)[0], store.passes


def make(folder, told):
    """What a child runs; `told` is where it began (0 of a new pass: its first batch), and how far it is."""
    partial.SAVE_SECONDS = 0.05

    def progress(done, total):
        told[:] = told[0] or done, done

    with preemption.watching():
        try:
            get(folder, progress=progress, read=Slow)
        except preemption.Preempted:
            sys.exit(preemption.EXIT_CODE)
