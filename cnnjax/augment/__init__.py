"""Random changes of images, drawn and made on the device, inside the compiled step.

Flip, rotation, zoom, translation and crop are one bilinear resampling of each image; the numbers mean what
Keras's layers mean by them.

`RandomFlip("horizontal")`, `RandomRotation(0.1)` and `RandomZoom(0.2)` of Keras 3 take 31 to 51 times as long for
a batch of 32 x 160 x 160 x 3 or 20 x 180 x 180 x 3 (both compiled by JAX, in turns on two shared CPU cores, ratio of
medians; 2026-11-23, jax 0.12). Without a resampling both take a millisecond or two.

>>> import jax, jax.numpy as jnp
>>> augmentation = Augmentation(flip=True, rotation=0.1, zoom=0.2)
>>> augmentation(jax.random.key(0), jnp.zeros((4, 16, 16, 3))).shape
(4, 16, 16, 3)
"""

from cnnjax.augment.augmentation import Augmentation, Parameters
from cnnjax.augment.mixing import Mixing, draw_mixing, mix
from cnnjax.augment.own import AugmentFn
from cnnjax.augment.resampling import FILL_MODES, resample

__all__ = ["FILL_MODES", "AugmentFn", "Augmentation", "Mixing", "Parameters", "draw_mixing", "mix", "resample"]
