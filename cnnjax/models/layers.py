"""Keras's layers as Flax NNX modules.

The weighted ones are `nnx.Conv`, `nnx.Linear` and `nnx.BatchNorm` with Keras's defaults (Glorot-uniform
kernels, zero biases, BatchNorm with epsilon 1e-3 and momentum 0.99) and, as in Keras, an activation inside
the layer. They compute through `cnnjax.ops`. The weightless ones hold nothing but static, hashable
settings.
"""

import difflib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cnnjax import ops

Padding = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "relu": ops.relu,
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
}
_BLOCK = 1 << 16  # random numbers a call


@jax.jit
def _uniform_block(key: jax.Array, index: int) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(key, index), (_BLOCK,), minval=-1.0)


@partial(jax.jit, static_argnums=(1, 2))
def _shape_blocks(blocks: list[jax.Array], shape: tuple[int, ...], dtype: Any) -> jax.Array:
    fan_in, fan_out = (math.prod(shape[:-2]) * n for n in shape[-2:])
    limit = math.sqrt(6 / (fan_in + fan_out))
    return (limit * jnp.concatenate(blocks)[: math.prod(shape)]).reshape(shape).astype(dtype)


def _glorot_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw in blocks of one size, since JAX compiles a generator for every shape: 7 s for a MobileNet."""
    blocks = [_uniform_block(key, i) for i in range(-(-math.prod(shape) // _BLOCK))]
    return _shape_blocks(blocks, tuple(shape), jnp.dtype(dtype))


def _checked_activation(name: str) -> str:
    if name not in ACTIVATIONS:
        nearest = difflib.get_close_matches(name, ACTIVATIONS, n=1, cutoff=0)[0]
        raise ValueError(f"no activation {name!r}; did you mean {nearest!r}? There are {', '.join(ACTIVATIONS)}")
    return name


class Conv2D(nnx.Conv):
    """`nnx.Conv` with an activation inside, as Keras's layers have it. Made by `conv2d`."""

    activation: str = "linear"

    def __call__(self, inputs: jax.Array, out_sharding: object = None) -> jax.Array:
        """Convolve f32[N, H, W, C] to f32[N, H', W', out_features]."""
        return ACTIVATIONS[self.activation](super().__call__(inputs, out_sharding))


class Dense(nnx.Linear):
    """`nnx.Linear` with an activation inside, likewise. Made by `dense`."""

    activation: str = "linear"

    def __call__(self, inputs: jax.Array, out_sharding: object = None) -> jax.Array:
        """Map f32[..., in_features] to f32[..., out_features]."""
        return ACTIVATIONS[self.activation](super().__call__(inputs, out_sharding))


class DepthwiseConv2D(nnx.Conv):
    """`nnx.Conv` with a group for every channel, under Keras's name. Made by `depthwise_conv2d`."""

    def of_padded(self, x: jax.Array, padding: Padding) -> jax.Array:
        """What a layer with padding "VALID" gives for `ZeroPadding2D(padding)(x)`.

        The zeros are the convolution's own, so that no step copies the images, or keeps the copy for a gradient.

        >>> layer, x = depthwise_conv2d(2, (3, 3), (2, 2), rngs=nnx.Rngs(0)), jnp.ones((1, 4, 4, 2))
        >>> after = layer(ZeroPadding2D(((0, 1), (0, 1)))(x))
        >>> bool(jnp.allclose(layer.of_padded(x, ((0, 1), (0, 1))), after))
        True
        """
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        y = self.conv_general_dilated(
            x,
            kernel,
            self.strides,
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.feature_group_count,
            precision=self.precision,
        )
        return y if bias is None else y + bias


class BatchNormalization(nnx.BatchNorm):
    """`nnx.BatchNorm` under Keras's name, by `cnnjax.ops.batch_norm`. Made by `batch_normalization`."""

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """f32[N, ..., C] to the same, or in the type of `x`: the statistics, of float32, do not widen it.

        Args:
            x: What is normalised.
            use_running_average: Whether by the stored statistics; as the layer's own attribute says if not given.
            mask: Which numbers of `x` make the batch's statistics, of a shape that broadcasts to it; a mask of whole
                rows, `bool[N, 1, ..., 1]`, is the quickest.
        """
        running = self.use_running_average if use_running_average is None else use_running_average
        of_rows = mask is None or mask.shape == (x.shape[0], *[1] * (x.ndim - 1))
        if running or not of_rows:
            return super().__call__(x, use_running_average, mask=mask).astype(x.dtype)
        assert self.scale is not None and self.bias is not None
        counts = None if mask is None else mask.reshape(-1)
        y, mean, variance = ops.batch_norm(x, self.scale[...], self.bias[...], self.epsilon, counts)
        for kept, found in ((self.mean, mean), (self.var, variance)):
            kept[...] = self.momentum * kept[...] + (1 - self.momentum) * lax.stop_gradient(found)
        return y


def conv2d(
    in_features: int,
    out_features: int,
    kernel_size: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    *,
    padding: str = "VALID",
    use_bias: bool = True,
    activation: str = "linear",
    rngs: nnx.Rngs,
) -> Conv2D:
    """Build Keras's `Conv2D`: kernel f32[kh, kw, in, out], padding "VALID" (Keras's default) or "SAME".

    >>> conv2d(3, 32, (3, 3), activation="relu", rngs=nnx.Rngs(0))(jnp.ones((1, 150, 150, 3))).shape
    (1, 148, 148, 32)
    """
    layer = Conv2D(
        in_features,
        out_features,
        kernel_size,
        strides,
        padding=padding,
        use_bias=use_bias,
        kernel_init=_glorot_uniform,
        conv_general_dilated=ops.conv_general_dilated,
        rngs=rngs,
    )
    layer.activation = _checked_activation(activation)
    return layer


def depthwise_conv2d(
    features: int,
    kernel_size: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    *,
    padding: str = "VALID",
    use_bias: bool = True,
    rngs: nnx.Rngs,
) -> DepthwiseConv2D:
    """Build Keras's `DepthwiseConv2D` (depth multiplier 1): a convolution with a group for every channel.

    The kernel is f32[kh, kw, 1, features] (Keras stores f32[kh, kw, features, 1]); fan-in plus fan-out, and
    with it the Glorot bound sqrt(6 / (kh kw (features + 1))), are the same in both layouts.

    >>> depthwise_conv2d(8, (3, 3), rngs=nnx.Rngs(0)).kernel.shape
    (3, 3, 1, 8)
    """
    return DepthwiseConv2D(
        features,
        features,
        kernel_size,
        strides,
        padding=padding,
        feature_group_count=features,
        use_bias=use_bias,
        kernel_init=_glorot_uniform,
        conv_general_dilated=ops.conv_general_dilated,
        rngs=rngs,
    )


def dense(in_features: int, out_features: int, *, activation: str = "linear", rngs: nnx.Rngs) -> Dense:
    """Build Keras's `Dense`: kernel f32[in, out] and a bias.

    >>> dense(4, 2, activation="softmax", rngs=nnx.Rngs(0))(jnp.ones((1, 4))).sum().round(3)
    Array(1., dtype=float32)
    """
    layer = Dense(in_features, out_features, kernel_init=_glorot_uniform, rngs=rngs)
    layer.activation = _checked_activation(activation)
    return layer


def batch_normalization(features: int, *, rngs: nnx.Rngs) -> BatchNormalization:
    """Build Keras's `BatchNormalization` over the last axis: epsilon 1e-3, momentum 0.99.

    Leaves: `scale` (Keras's gamma), `bias` (beta), `mean` and `var` (the moving statistics), each
    f32[features].

    >>> batch_normalization(8, rngs=nnx.Rngs(0)).epsilon
    0.001
    """
    return BatchNormalization(features, epsilon=1e-3, momentum=0.99, use_fast_variance=False, rngs=rngs)


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
        self.activation = _checked_activation(activation)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the activation to `x`; softmax runs over the last axis."""
        return ACTIVATIONS[self.activation](x)


class ZeroPadding2D(nnx.Module):
    """Zeros around f32[N, H, W, C]: ((top, bottom), (left, right)).

    >>> ZeroPadding2D(((0, 1), (0, 1)))(jnp.ones((1, 4, 4, 2))).shape
    (1, 5, 5, 2)
    """

    def __init__(self, padding: Padding):
        self.padding = padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pad `x` to f32[N, top + H + bottom, left + W + right, C]."""
        return jnp.pad(x, ((0, 0), *self.padding, (0, 0)))


class MaxPooling2D(nnx.Module):
    """The largest value of each window (padding "valid"); strides are the window's size where none are given.

    >>> MaxPooling2D((2, 2))(jnp.ones((1, 5, 5, 2))).shape
    (1, 2, 2, 2)
    """

    def __init__(self, pool_size: tuple[int, int] = (2, 2), strides: tuple[int, int] | None = None):
        self.pool_size = pool_size
        self.strides = pool_size if strides is None else strides

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pool f32[N, H, W, C] over space."""
        return ops.max_pool(x, self.pool_size, self.strides, "VALID")


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
    """The largest value over space: f32[N, H, W, C] to f32[N, C].

    >>> GlobalMaxPooling2D()(jnp.ones((1, 5, 5, 2))).shape
    (1, 2)
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reduce `x` over its two spatial axes."""
        return jnp.max(x, axis=(1, 2))


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
