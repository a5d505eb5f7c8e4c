"""XLA's own convolution and its gradients."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.ops import onednn
from cnnjax.ops.onednn import NHWC
from cnnjax.ops.shifts import Pads, Pair, wide_type


def convolution(
    x: jax.Array, k: jax.Array, strides: Pair, pads: Pads, precision: lax.PrecisionLike, groups: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        x, k, strides, pads, dimension_numbers=NHWC, feature_group_count=groups, precision=precision
    )


def gradients(
    strides: Pair, pads: Pads, precision: lax.PrecisionLike, groups: int = 1
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Input and kernel gradient of `convolution`, each a function of x, kernel and output cotangent."""

    def of_input(x: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda x: convolution(x, k, strides, pads, precision, groups), x)(g)[0]

    def of_kernel(x: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda k: convolution(x, k, strides, pads, precision, groups), k)(g)[0]

    return of_input, of_kernel


def product(
    a: jax.Array,
    b: jax.Array,
    asks: bool,
    transpose: tuple[bool, bool] = (False, False),
    precision: lax.PrecisionLike | None = None,
) -> jax.Array:
    """The product of two matrices, either of them transposed first; `asks` oneDNN for it, on CPU."""
    if asks:
        return onednn.product(a, b, transpose=transpose)
    contracted = (0 if transpose[0] else 1,), (1 if transpose[1] else 0,)
    return lax.dot_general(a, b, (contracted, ((), ())), precision=precision)


def kernel_gradient_in_parts(
    x: jax.Array, k: jax.Array, g: jax.Array, strides: Pair, pads: Pads, precision: lax.PrecisionLike, images: int
) -> jax.Array:
    """The kernel's gradient, summed over so many images at a time."""
    _, of_kernel = gradients(strides, pads, precision)
    parts = [of_kernel(x[i : i + images], k, g[i : i + images]) for i in range(0, len(x), images)]
    sums = [p.astype(wide_type(k.dtype)) for p in parts]
    return sum(sums[1:], sums[0]).astype(k.dtype)


def reversible(k: jax.Array, pads: Pads) -> bool:
    """Whether the input's gradient, without a stride, is a convolution that oneDNN has: padding within the window."""
    return all(p < w for pair, w in zip(pads, k.shape[:2], strict=True) for p in pair)


def input_gradient(k: jax.Array, g: jax.Array, pads: Pads, groups: int = 1) -> jax.Array:
    """The input's gradient of a convolution without a stride, plain or depthwise, by oneDNN: a convolution of g with
    the kernel turned round."""
    turned = k[::-1, ::-1] if groups > 1 else k[::-1, ::-1].transpose(0, 1, 3, 2)
    (top, bottom), (left, right) = pads
    rows, columns = k.shape[0] - 1, k.shape[1] - 1
    beyond = ((rows - top, rows - bottom), (columns - left, columns - right))
    return onednn.convolution(g, turned, (1, 1), beyond, groups)


def kernel_gradient_by_patches(x: jax.Array, k: jax.Array, g: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    """The kernel's gradient as one product of patches and g, by oneDNN, where a patch is short.

    The patches are made by a convolution whose kernel is the identity: XLA's own way of laying them out takes longer.
    So a NaN or Inf in one channel of the images makes the gradient of every channel NaN, which it would not otherwise.
    """
    size = math.prod(k.shape[:3])
    one_each = jnp.eye(size, dtype=x.dtype).reshape(*k.shape[:3], size)
    fits = onednn.fits(x, one_each, strides, pads, 1)
    patches = (onednn.convolution if fits else partial(convolution, precision=None))(x, one_each, strides, pads)
    rows, sums = patches.reshape(-1, size), g.reshape(-1, g.shape[3])
    return onednn.product(rows, sums, transpose=(True, False)).reshape(k.shape)
