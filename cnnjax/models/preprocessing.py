"""What published weights expect of their pixels, by name, as in `keras.applications.imagenet_utils`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cnnjax.runtime.nearest import unknown


def _tf(x: jax.Array) -> jax.Array:
    return x / 127.5 - 1.0


def _caffe(x: jax.Array) -> jax.Array:
    return x[..., ::-1] - jnp.array([103.939, 116.779, 123.68], x.dtype)


def _torch(x: jax.Array) -> jax.Array:
    return (x / 255.0 - jnp.array([0.485, 0.456, 0.406], x.dtype)) / jnp.array([0.229, 0.224, 0.225], x.dtype)


PREPROCESSING: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tf": _tf,
    "caffe": _caffe,
    "torch": _torch,
    "unit": lambda x: x / 255.0,
    "none": lambda x: x,
}
"""Name to function of [..., 3] RGB pixels 0 to 255: "tf" to -1..1; "caffe" to BGR less ImageNet's mean;
"torch" to 0..1, less ImageNet's mean, over its deviation; "unit" to 0..1; "none" leaves them. "tf", "unit" and "none"
take any number of channels."""
OF_RGB = ("caffe", "torch")
"""Those that treat red, green and blue each in its own way."""


def checked_preprocessing(name: str) -> str:
    """Return `name` if there is such a preprocessing.

    Raises:
        LookupError: There is none; the nearest name is given.
    """
    if name not in PREPROCESSING:
        raise LookupError(unknown("preprocessing", name, PREPROCESSING, listed=True))
    return name


def preprocess(images: ArrayLike, name: str) -> jax.Array:
    """Turn pixels into what a model expects.

    Args:
        images: [..., C], RGB for three channels, 0 to 255, floating or integer (integers become float32 first).
        name: A key of `PREPROCESSING`.

    Raises:
        LookupError: There is no such preprocessing; the nearest name is given.
        ValueError: It is of RGB, and the images have other channels.

    >>> preprocess(jnp.array([[0, 255, 255]], jnp.uint8), "tf")
    Array([[-1.,  1.,  1.]], dtype=float32)
    """
    x = jnp.asarray(images)
    if checked_preprocessing(name) in OF_RGB and x.shape[-1:] != (3,):
        others = ", ".join(map(repr, (other for other in PREPROCESSING if other not in OF_RGB)))
        raise ValueError(f"preprocessing {name!r} is of red, green and blue, found {x.shape}; for others take {others}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.float32)
    return PREPROCESSING[name](x)
