"""Keras's layers without weights: they hold nothing but static, hashable settings."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from cnnjax import ops
from cnnjax.runtime.nearest import unknown

Pairs = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)
Padding = str | Pairs
"""Of a window: "VALID", "SAME", or zeros on each side."""

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "relu": ops.relu,
    "relu6": lambda x: ops.relu(x, 6.0),
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "softmax": jax.nn.softmax,
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "hard_silu": jax.nn.hard_silu,
    "hard_swish": jax.nn.hard_silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}
"""Name to function, as `keras.activations` has them."""


def checked_activation(name: str) -> str:
    """Return `name` if there is such an activation.

    Raises:
        ValueError: There is none; the nearest name is given.
    """
    if name not in ACTIVATIONS:
        raise ValueError(unknown("activation", name, ACTIVATIONS, listed=True))
    return name


def is_operation(layer: object) -> bool:
    """Whether it is arithmetic on tensors, which Keras does not count as a layer (`Graph.operation`)."""
    return getattr(layer, "operation", False) is True


class InputLayer(nnx.Module):
    """The input, which Keras counts as a layer; gives back what it gets.

    >>> InputLayer()(jnp.ones((1, 2))).shape
    (1, 2)
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return `x`."""
        return x


class ReLU(nnx.Module):
    """max(x, 0), at most `max_value` where one is given (6 in MobileNet).

    >>> ReLU(6.0)(jnp.array([-1.0, 3.0, 9.0]))
    Array([0., 3., 6.], dtype=float32)
    """

    def __init__(self, max_value: float | None = None):
        self.max_value = max_value

    def __call__(self, x: jax.Array) -> jax.Array:
        """Rectify `x` of any shape."""
        return ops.relu(x, self.max_value)


class Activation(nnx.Module):
    """One of `ACTIVATIONS` as a layer of its own.

    >>> Activation("softmax")(jnp.zeros((1, 4)))
    Array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """

    def __init__(self, activation: str):
        self.activation = checked_activation(activation)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the activation to `x`; softmax runs over the last axis."""
        return ACTIVATIONS[self.activation](x)


class ZeroPadding2D(nnx.Module):
    """Zeros around f32[N, H, W, C]: ((top, bottom), (left, right)).

    >>> ZeroPadding2D(((0, 1), (0, 1)))(jnp.ones((1, 4, 4, 2))).shape
    (1, 5, 5, 2)
    """

    def __init__(self, padding: Pairs):
        self.padding = padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pad `x` to f32[N, top + H + bottom, left + W + right, C]."""
        return jnp.pad(x, ((0, 0), *self.padding, (0, 0)))


def correct_pad(shape: Sequence[int | None], kernel_size: int) -> Pairs:
    """The zeros before a convolution with stride 2 and an odd kernel, by which it halves any size as "same" does.

    Source: `correct_pad` in keras/src/applications/imagenet_utils.py, which takes a size that is not known for an even
    one (`HalvingPadding2D` looks at the images instead).

    >>> correct_pad((32, 33, 3), 3), correct_pad((None, None, 3), 5)
    (((0, 1), (1, 1)), ((1, 2), (1, 2)))
    """
    half = kernel_size // 2
    above, left = (half - (1 if n is None else 1 - n % 2) for n in shape[:2])
    return ((above, half), (left, half))


class HalvingPadding2D(nnx.Module):
    """`ZeroPadding2D(correct_pad(shape, kernel_size))` for images of any size.

    >>> layer = HalvingPadding2D(3)
    >>> layer(jnp.ones((1, 4, 5, 2))).shape
    (1, 5, 7, 2)
    """

    def __init__(self, kernel_size: int):
        self.kernel_size = kernel_size

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pad f32[N, H, W, C]."""
        return jnp.pad(x, ((0, 0), *correct_pad(x.shape[1:], self.kernel_size), (0, 0)))


class MaxPooling2D(nnx.Module):
    """The largest value of each window; strides are the window's size where none are given. What is padded never wins.

    >>> MaxPooling2D((2, 2))(jnp.ones((1, 5, 5, 2))).shape
    (1, 2, 2, 2)
    """

    def __init__(
        self,
        pool_size: tuple[int, int] = (2, 2),
        strides: tuple[int, int] | None = None,
        padding: Padding = "VALID",
    ):
        self.pool_size = pool_size
        self.strides = pool_size if strides is None else strides
        self.padding = padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pool f32[N, H, W, C] over space."""
        return ops.max_pool(x, self.pool_size, self.strides, self.padding)


class AveragePooling2D(nnx.Module):
    """The mean of each window; strides are the window's size where none are given.

    What is padded is not counted, as in Keras; with `count_padding` it counts as zeros, as PyTorch's default has it.

    >>> AveragePooling2D((2, 2), (1, 1), "SAME")(jnp.ones((1, 2, 2, 1))).ravel().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        pool_size: tuple[int, int] = (2, 2),
        strides: tuple[int, int] | None = None,
        padding: Padding = "VALID",
        count_padding: bool = False,
    ):
        self.pool_size = pool_size
        self.strides = pool_size if strides is None else strides
        self.padding = padding
        self.count_padding = count_padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pool f32[N, H, W, C] over space."""
        window, strides = (1, *self.pool_size, 1), (1, *self.strides, 1)
        pads = self.padding if isinstance(self.padding, str) else ((0, 0), *self.padding, (0, 0))
        total = lax.reduce_window(x, np.zeros((), x.dtype), lax.add, window, strides, pads)
        if self.padding == "VALID" or self.count_padding:
            return total / math.prod(self.pool_size)
        counted = np.ones((1, *x.shape[1:3], 1), x.dtype)
        return total / lax.reduce_window(counted, np.zeros((), x.dtype), lax.add, window, strides, pads)


class GlobalAveragePooling2D(nnx.Module):
    """The mean over space: f32[N, H, W, C] to f32[N, C], or f32[N, 1, 1, C] with `keepdims`.

    >>> GlobalAveragePooling2D()(jnp.ones((1, 5, 5, 2))).shape
    (1, 2)
    """

    def __init__(self, keepdims: bool = False):
        self.keepdims = keepdims

    def __call__(self, x: jax.Array) -> jax.Array:
        """Average `x` over its two spatial axes."""
        return jnp.mean(x, axis=(1, 2), keepdims=self.keepdims)


class GlobalMaxPooling2D(nnx.Module):
    """The largest value over space: f32[N, H, W, C] to f32[N, C], or f32[N, 1, 1, C] with `keepdims`.

    >>> GlobalMaxPooling2D()(jnp.ones((1, 5, 5, 2))).shape
    (1, 2)
    """

    def __init__(self, keepdims: bool = False):
        self.keepdims = keepdims

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reduce `x` over its two spatial axes."""
        return jnp.max(x, axis=(1, 2), keepdims=self.keepdims)


class Reshape(nnx.Module):
    """[N, ...] to [N, *target_shape].

    >>> Reshape((2, 3))(jnp.ones((1, 6))).shape
    (1, 2, 3)
    """

    def __init__(self, target_shape: tuple[int, ...]):
        self.target_shape = target_shape

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reshape each example of `x`."""
        return x.reshape(x.shape[0], *self.target_shape)


class Flatten(nnx.Module):
    """[N, ...] to [N, everything else].

    >>> Flatten()(jnp.ones((2, 5, 5, 3))).shape
    (2, 75)
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """Flatten each example of `x`, rows before columns before channels."""
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))


class Add(nnx.Module):
    """The sum of maps of one shape.

    >>> Add()(jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2)))
    Array([[3., 3.]], dtype=float32)
    """

    def __call__(self, first: jax.Array, *others: jax.Array) -> jax.Array:
        """Add, from left to right.

        Raises:
            ValueError: The shapes differ: nothing is repeated.
        """
        if any(other.shape != first.shape for other in others):
            shapes = ", ".join(str(x.shape) for x in (first, *others))
            raise ValueError(f"layer {getattr(self, 'name', 'Add')!r} adds maps of one shape, found {shapes}")
        for other in others:
            first = first + other
        return first


class Multiply(nnx.Module):
    """The product of maps and factors, such as f32[N, 1, 1, C] of squeeze and excitation.

    >>> Multiply()(jnp.ones((1, 2, 2, 3)), jnp.full((1, 1, 1, 3), 2.0)).sum()
    Array(24., dtype=float32)
    """

    def __call__(self, first: jax.Array, *others: jax.Array) -> jax.Array:
        """Multiply, from left to right; axes of size 1 are repeated."""
        for other in others:
            first = first * other
        return first


class Concatenate(nnx.Module):
    """Maps beside each other, along the channels.

    >>> Concatenate()(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 2, 2, 5))).shape
    (1, 2, 2, 8)
    """

    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Join [..., C1], [..., C2], ... to [..., C1 + C2 + ...]."""
        return jnp.concatenate(inputs, axis=-1)


class Rescaling(nnx.Module):
    """scale x + offset, with one number for all or one a channel.

    >>> Rescaling((1.0, 2.0), -1.0)(jnp.ones((1, 2)))
    Array([[0., 1.]], dtype=float32)
    """

    def __init__(self, scale: float | tuple[float, ...], offset: float | tuple[float, ...] = 0.0):
        self.scale = scale
        self.offset = offset

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale and shift `x` over its last axis."""
        return x * jnp.asarray(self.scale, x.dtype) + jnp.asarray(self.offset, x.dtype)


class Standardization(nnx.Module):
    """(x - mean) / deviation for each channel, with numbers that are given (Keras's `Normalization(mean, variance)`).

    >>> Standardization((1.0, 2.0), (4.0, 1.0))(jnp.array([[3.0, 3.0]]))
    Array([[1., 1.]], dtype=float32)
    """

    def __init__(self, mean: tuple[float, ...], variance: tuple[float, ...]):
        self.mean = mean
        self.variance = variance

    def __call__(self, x: jax.Array) -> jax.Array:
        """Standardise `x` over its last axis."""
        deviation = np.sqrt(np.asarray(self.variance, np.float32))
        return (x - jnp.asarray(self.mean, x.dtype)) / jnp.asarray(deviation, x.dtype)
