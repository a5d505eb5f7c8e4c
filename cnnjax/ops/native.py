"""XLA's own convolution and its gradients, and which of XLA's libraries computes them on CPU."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax import onednn
from cnnjax.ops.shifts import Pads, Pair, wide_type

NHWC = ("NHWC", "HWIO", "NHWC")


def convolution(x: jax.Array, k: jax.Array, strides: Pair, pads: Pads, precision: Any, groups: int = 1) -> jax.Array:
    return lax.conv_general_dilated(
        x, k, strides, pads, dimension_numbers=NHWC, feature_group_count=groups, precision=precision
    )


def gradients(
    strides: Pair, pads: Pads, precision: Any, groups: int = 1
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Input and kernel gradient of `convolution`, each a function of x, kernel and output cotangent."""

    def of_input(x: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda x: convolution(x, k, strides, pads, precision, groups), x)(g)[0]

    def of_kernel(x: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda k: convolution(x, k, strides, pads, precision, groups), k)(g)[0]

    return of_input, of_kernel


def is_onednn(x: jax.Array) -> bool:
    """Whether the CPU hands a convolution of such images to oneDNN."""
    return x.dtype == jnp.float32 and onednn.answers()


def kernel_gradient_in_parts(
    x: jax.Array, k: jax.Array, g: jax.Array, strides: Pair, pads: Pads, precision: Any, images: int
) -> jax.Array:
    """The kernel's gradient, summed over so many images at a time and, under oneDNN, over two halves of their rows.

    oneDNN in XLA knows no kernel gradients, and takes them for convolutions with windows as large as the image. A half
    is given one row of the other, cut off again by a negative padding: that alone XLA leaves to Eigen, which takes half
    the time.
    """
    halves = 2 if is_onednn(x) and g.shape[1] > 1 else 1
    middle = -(-g.shape[1] // halves)
    _, of_kernel = gradients(strides, pads, precision)

    def part(x: jax.Array, g: jax.Array) -> list[jax.Array]:
        if halves == 1:
            return [of_kernel(x, k, g)]
        return [_over_rows(x, k, g, strides, pads, precision, rows) for rows in ((0, middle), (middle, g.shape[1]))]

    parts = [p for i in range(0, len(x), images) for p in part(x[i : i + images], g[i : i + images])]
    sums = [p.astype(wide_type(k.dtype)) for p in parts]
    return sum(sums[1:], sums[0]).astype(k.dtype)


def kernel_gradient_by_patches(
    x: jax.Array, k: jax.Array, g: jax.Array, strides: Pair, pads: Pads, precision: Any
) -> jax.Array:
    """The kernel's gradient as one product of patches and g, where a patch is short.

    The patches are made by a convolution whose kernel is the identity: XLA's own way of laying them out takes longer.
    """
    size = math.prod(k.shape[:3])
    patches = convolution(x, jnp.eye(size, dtype=x.dtype).reshape(*k.shape[:3], size), strides, pads, None)
    rows, sums = patches.reshape(-1, size), g.reshape(-1, g.shape[3])
    return lax.dot_general(rows, sums, (((0,), (0,)), ((), ())), precision=precision).reshape(k.shape)


def _over_rows(
    x: jax.Array, k: jax.Array, g: jax.Array, strides: Pair, pads: Pads, precision: Any, rows: tuple[int, int]
) -> jax.Array:
    """What outputs of rows[0] up to rows[1] contribute."""
    (above, _), (left, _) = pads
    (height, width), (window, across) = x.shape[1:3], k.shape[:2]
    first, beyond = rows[0] * strides[0] - above, (rows[1] - 1) * strides[0] - above + window
    start, stop = max(first - 1, 0), min(beyond + 1, height)
    right = across + (g.shape[2] - 1) * strides[1] - width - left
    return lax.conv_general_dilated(
        x[:, start:stop],
        g[:, slice(*rows)],
        (1, 1),
        ((start - first, beyond - stop), (left, right)),
        rhs_dilation=strides,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        precision=precision,
    )
