"""Keras's layers as Flax NNX modules.

The weighted ones are `nnx.Conv`, `nnx.Linear` and `nnx.BatchNorm` with Keras's defaults (Glorot-uniform
kernels, zero biases, BatchNorm with epsilon 1e-3 and momentum 0.99) and, as in Keras, an activation inside
the layer. They compute through `cnnjax.ops`. The weightless ones stand in `cnnjax.models.weightless`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cnnjax import ops
from cnnjax.models.initializers import glorot_uniform
from cnnjax.models.weightless import (
    ACTIVATIONS,
    Activation,
    Add,
    AveragePooling2D,
    Concatenate,
    Flatten,
    GlobalAveragePooling2D,
    GlobalMaxPooling2D,
    HalvingPadding2D,
    InputLayer,
    MaxPooling2D,
    Multiply,
    Padding,
    Pairs,
    ReLU,
    Rescaling,
    Reshape,
    Standardization,
    ZeroPadding2D,
    checked_activation,
)

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Add",
    "AveragePooling2D",
    "BatchNormalization",
    "Concatenate",
    "Conv2D",
    "Dense",
    "DepthwiseConv2D",
    "Flatten",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling2D",
    "GroupNormalization",
    "HalvingPadding2D",
    "InputLayer",
    "LayerNormalization",
    "LayerScale",
    "MaxPooling2D",
    "Multiply",
    "Normalization",
    "ReLU",
    "Rescaling",
    "Reshape",
    "SeparableConv2D",
    "Standardization",
    "StandardizedConv2D",
    "ZeroPadding2D",
    "batch_normalization",
    "conv2d",
    "dense",
    "depthwise_conv2d",
    "group_normalization",
    "layer_normalization",
    "separable_conv2d",
]

_SMALLEST_DEVIATION = 1e-7  # `keras.config.epsilon()`


class Conv2D(nnx.Conv):
    """`nnx.Conv` with an activation inside, as Keras's layers have it. Made by `conv2d`."""

    activation: str = "linear"

    def __call__(self, inputs: jax.Array, out_sharding: object = None) -> jax.Array:
        """Convolve f32[N, H, W, C] to f32[N, H', W', out_features]."""
        return ACTIVATIONS[self.activation](super().__call__(inputs, out_sharding))

    def of_padded(self, x: jax.Array, padding: Pairs) -> jax.Array:
        """What a layer with padding "VALID" gives for `ZeroPadding2D(padding)(x)`.

        The zeros are the convolution's own, so that no step copies the images, or keeps the copy for a gradient.

        >>> layer, x = depthwise_conv2d(2, (3, 3), (2, 2), rngs=nnx.Rngs(0)), jnp.ones((1, 4, 4, 2))
        >>> after = layer(ZeroPadding2D(((0, 1), (0, 1)))(x))
        >>> bool(jnp.allclose(layer.of_padded(x, ((0, 1), (0, 1))), after))
        True
        """
        return self._convolved(x, self.kernel[...], padding)

    def _convolved(self, x: jax.Array, kernel: jax.Array, padding: Any) -> jax.Array:
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((x, kernel, bias), dtype=self.dtype)
        y = self.conv_general_dilated(
            x,
            kernel,
            self.strides,
            padding,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.feature_group_count,
            precision=self.precision,
        )
        return ACTIVATIONS[self.activation](y if bias is None else y + bias)


class StandardizedConv2D(Conv2D):
    """A convolution whose kernel has mean 0 and deviation 1 for each filter (arXiv:1903.10520). Made by `conv2d`."""

    epsilon: float = 1e-8

    def __call__(self, inputs: jax.Array, out_sharding: object = None) -> jax.Array:
        """Convolve f32[N, H, W, C] to f32[N, H', W', out_features]."""
        kernel = self.kernel[...]
        centred = kernel - jnp.mean(kernel, axis=(0, 1, 2))
        variance = jnp.mean(centred * centred, axis=(0, 1, 2))
        return self._convolved(inputs, centred * lax.rsqrt(variance + self.epsilon), self.padding)


class Dense(nnx.Linear):
    """`nnx.Linear` with an activation inside, likewise. Made by `dense`."""

    activation: str = "linear"

    def __call__(self, inputs: jax.Array, out_sharding: object = None) -> jax.Array:
        """Map f32[..., in_features] to f32[..., out_features]."""
        return ACTIVATIONS[self.activation](super().__call__(inputs, out_sharding))


class DepthwiseConv2D(Conv2D):
    """A convolution with a group for every channel, under Keras's name. Made by `depthwise_conv2d`."""


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
        counts = None if mask is None else mask.reshape(-1)
        scale = jnp.ones_like(self.mean[...]) if self.scale is None else self.scale[...]
        bias = jnp.zeros_like(self.mean[...]) if self.bias is None else self.bias[...]
        y, mean, variance = ops.batch_norm(x, scale, bias, self.epsilon, counts)
        for kept, found in ((self.mean, mean), (self.var, variance)):
            kept[...] = self.momentum * kept[...] + (1 - self.momentum) * lax.stop_gradient(found)
        return y


class SeparableConv2D(nnx.Module):
    """A depthwise convolution and a 1x1 convolution in one layer. Made by `separable_conv2d`.

    Attributes:
        depthwise: The first, without bias or activation.
        pointwise: The second, with both.
    """

    def __init__(self, depthwise: DepthwiseConv2D, pointwise: Conv2D):
        self.depthwise = depthwise
        self.pointwise = pointwise

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve f32[N, H, W, C] to f32[N, H', W', out_features]."""
        return self.pointwise(self.depthwise(x))


class Normalization(nnx.Module):
    """Keras's `Normalization` whose statistics come with the weights: (x - mean) / deviation for each channel.

    Attributes:
        mean, var: f32[features]; no training changes them.

    >>> layer = Normalization(2)
    >>> layer.mean[...], layer.var[...] = jnp.array([1.0, 2.0]), jnp.array([4.0, 1.0])
    >>> layer(jnp.array([[3.0, 3.0]]))
    Array([[1., 1.]], dtype=float32)
    """

    def __init__(self, features: int):
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(features, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise f32[..., features], in the type of `x`."""
        mean, var = (lax.stop_gradient(leaf[...]) for leaf in (self.mean, self.var))
        return ((x - mean) / jnp.maximum(jnp.sqrt(var), _SMALLEST_DEVIATION)).astype(x.dtype)


class LayerNormalization(nnx.LayerNorm):
    """`nnx.LayerNorm` under Keras's name. Made by `layer_normalization`."""


class GroupNormalization(nnx.GroupNorm):
    """`nnx.GroupNorm` under Keras's name. Made by `group_normalization`."""


class LayerScale(nnx.Module):
    """A trainable factor a channel (Touvron et al. 2021, arXiv:2103.17239), as ConvNeXt has it.

    >>> LayerScale(3, 0.5)(jnp.ones((1, 3)))
    Array([[0.5, 0.5, 0.5]], dtype=float32)
    """

    def __init__(self, features: int, initial: float = 1e-6):
        self.gamma = nnx.Param(jnp.full(features, initial, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale f32[..., features]."""
        return x * self.gamma[...]


def conv2d(
    in_features: int,
    out_features: int,
    kernel_size: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    *,
    padding: Padding = "VALID",
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    use_bias: bool = True,
    activation: str = "linear",
    standardized: bool = False,
    rngs: nnx.Rngs,
) -> Conv2D:
    """Build Keras's `Conv2D`: kernel f32[kh, kw, in / groups, out]; Keras's default padding is "VALID".

    With `standardized` it is a `StandardizedConv2D`.

    >>> conv2d(3, 32, (3, 3), activation="relu", rngs=nnx.Rngs(0))(jnp.ones((1, 150, 150, 3))).shape
    (1, 148, 148, 32)
    """
    layer = (StandardizedConv2D if standardized else Conv2D)(
        in_features,
        out_features,
        kernel_size,
        strides,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=use_bias,
        kernel_init=glorot_uniform,
        conv_general_dilated=ops.conv_general_dilated,
        rngs=rngs,
    )
    layer.activation = checked_activation(activation)
    return layer


def depthwise_conv2d(
    features: int,
    kernel_size: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    *,
    padding: Padding = "VALID",
    dilation: tuple[int, int] = (1, 1),
    multiplier: int = 1,
    use_bias: bool = True,
    activation: str = "linear",
    rngs: nnx.Rngs,
) -> DepthwiseConv2D:
    """Build Keras's `DepthwiseConv2D`: a convolution with a group for every channel.

    The kernel is f32[kh, kw, 1, features multiplier] (Keras stores f32[kh, kw, features, multiplier]); for a
    multiplier of 1 fan-in plus fan-out, and with it the Glorot bound sqrt(6 / (kh kw (features + 1))), are the same
    in both layouts.

    >>> depthwise_conv2d(8, (3, 3), rngs=nnx.Rngs(0)).kernel.shape
    (3, 3, 1, 8)
    """
    layer = DepthwiseConv2D(
        features,
        features * multiplier,
        kernel_size,
        strides,
        padding=padding,
        kernel_dilation=dilation,
        feature_group_count=features,
        use_bias=use_bias,
        kernel_init=glorot_uniform,
        conv_general_dilated=ops.conv_general_dilated,
        rngs=rngs,
    )
    layer.activation = checked_activation(activation)
    return layer


def separable_conv2d(
    in_features: int,
    out_features: int,
    kernel_size: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    *,
    padding: Padding = "VALID",
    dilation: tuple[int, int] = (1, 1),
    multiplier: int = 1,
    use_bias: bool = True,
    activation: str = "linear",
    rngs: nnx.Rngs,
) -> SeparableConv2D:
    """Build Keras's `SeparableConv2D`: a depthwise convolution, then one of 1x1.

    Leaves: `depthwise/kernel` f32[kh, kw, 1, in multiplier], `pointwise/kernel` f32[1, 1, in multiplier, out] and
    `pointwise/bias`.

    >>> layer = separable_conv2d(8, 4, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
    >>> layer.depthwise.kernel.shape, layer.pointwise.kernel.shape
    ((3, 3, 1, 8), (1, 1, 8, 4))
    """
    depthwise = depthwise_conv2d(
        in_features, kernel_size, strides,
        padding=padding, dilation=dilation, multiplier=multiplier, use_bias=False, rngs=rngs,
    )  # fmt: skip
    pointwise = conv2d(
        in_features * multiplier, out_features, (1, 1), use_bias=use_bias, activation=activation, rngs=rngs
    )
    return SeparableConv2D(depthwise, pointwise)


def dense(
    in_features: int, out_features: int, *, use_bias: bool = True, activation: str = "linear", rngs: nnx.Rngs
) -> Dense:
    """Build Keras's `Dense`: kernel f32[in, out] and a bias.

    >>> dense(4, 2, activation="softmax", rngs=nnx.Rngs(0))(jnp.ones((1, 4))).sum().round(3)
    Array(1., dtype=float32)
    """
    layer = Dense(in_features, out_features, use_bias=use_bias, kernel_init=glorot_uniform, rngs=rngs)
    layer.activation = checked_activation(activation)
    return layer


def batch_normalization(
    features: int,
    *,
    epsilon: float = 1e-3,
    momentum: float = 0.99,
    scale: bool = True,
    center: bool = True,
    rngs: nnx.Rngs,
) -> BatchNormalization:
    """Build Keras's `BatchNormalization` over the last axis.

    Leaves: `scale` (Keras's gamma) unless `scale` is False, `bias` (beta) unless `center` is, `mean` and `var` (the
    moving statistics), each f32[features]. Momentum is what stays of them in a step (PyTorch's 0.1 is 0.9 here).

    >>> batch_normalization(8, rngs=nnx.Rngs(0)).epsilon
    0.001
    """
    return BatchNormalization(
        features, epsilon=epsilon, momentum=momentum, use_scale=scale, use_bias=center,
        use_fast_variance=False, rngs=rngs,
    )  # fmt: skip


def layer_normalization(features: int, *, epsilon: float = 1e-3, rngs: nnx.Rngs) -> LayerNormalization:
    """Build Keras's `LayerNormalization` over the last axis: `scale` (Keras's gamma) and `bias` (beta).

    >>> layer_normalization(2, rngs=nnx.Rngs(0))(jnp.array([[1.0, 3.0]])).round(2)
    Array([[-1.,  1.]], dtype=float32)
    """
    return LayerNormalization(features, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def group_normalization(
    features: int, groups: int = 32, *, epsilon: float = 1e-3, rngs: nnx.Rngs
) -> GroupNormalization:
    """Build Keras's `GroupNormalization` over height, width and each group of channels: `scale` (gamma), `bias` (beta).

    >>> group_normalization(2, 1, rngs=nnx.Rngs(0))(jnp.array([[[[1.0, 3.0]]]])).round(2)
    Array([[[[-1.,  1.]]]], dtype=float32)
    """
    return GroupNormalization(features, num_groups=groups, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
