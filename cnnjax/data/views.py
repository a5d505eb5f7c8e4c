"""Augmented views of images, drawn once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.source import image_shape, rows_of, targets_of
from cnnjax.files.digests import digest

if TYPE_CHECKING:
    from cnnjax.augment import AugmentFn


class Views:
    """K augmented views of each image of a source, drawn once: what Method 1 1/2 makes features of.

    View k of image i is row `i * views + k`. It depends on the seed, i and k alone, so it is the same in
    every process; the digest tells the source's images, the augmentation, the seed and K apart.

    Args:
        source: The images.
        augment: What is drawn: an `Augmentation`, or any jittable `f(key, images)` of a batch that gives images.
        views: How many of each image.
        seed: Of the draws.

    Raises:
        ValueError: There is to be no view, or the augmentation takes targets (it mixes images), or cannot be told from
            another one: its program calls back into Python, and it has no `digest`.

    >>> from cnnjax.augment import Augmentation
    >>> from cnnjax.data import InMemory
    >>> source = InMemory(np.zeros((2, 8, 8, 3), np.uint8), [0, 1], ("cat", "dog"))
    >>> views = Views(source, Augmentation(flip=True), 3)
    >>> len(views), views.targets.tolist(), views.read(np.array([5])).shape
    (6, [0, 0, 0, 1, 1, 1], (1, 8, 8, 3))
    """

    def __init__(self, source: Any, augment: "AugmentFn", views: int, seed: int = 0):
        if views < 1:
            raise ValueError(f"views: expected at least 1 of each image, found {views}")
        from cnnjax.augment.own import digest_of

        shape = image_shape(source.image_size)
        self._augment_digest = digest_of(augment, jax.ShapeDtypeStruct(shape, jnp.float32))
        self.source, self.augment, self.views, self.seed = source, augment, views, seed
        self.image_size, self.class_names = source.image_size, source.class_names
        self._draw = jax.jit(jax.vmap(self._one))

    @property
    def targets(self) -> Any:
        """The source's targets or labels, a row a view."""
        return rows_of(targets_of(self.source), np.arange(len(self)) // self.views)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the images and of all that decides their views."""
        return digest(self.source.digest, self._augment_digest, str(self.views), str(self.seed))

    def __len__(self) -> int:
        return len(self.source) * self.views

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The views at `indices` as f32[n, H, W, 3]; an image is read once for all its views among them."""
        wanted = np.asarray(indices)
        if not len(wanted):
            return np.zeros((0, *image_shape(self.image_size)), np.float32)
        places, which = np.unique(wanted // self.views, return_inverse=True)
        images = self.source.read(places)[which]
        return np.asarray(self._draw(jnp.asarray(wanted, jnp.uint32), images))

    def _one(self, index: jax.Array, image: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(self.seed), index)
        found = self.augment(key, jnp.asarray(image, jnp.float32)[None])
        if found.shape != (1, *image.shape):
            raise ValueError(f"augment: expected images {[1, *image.shape]}, as they were given, found {found.shape}")
        return found[0]
