"""Convolution: XLA's own, but for what the CPU does faster otherwise."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from cnnjax.ops import onednn, winograd
from cnnjax.ops.depthwise import depthwise
from cnnjax.ops.native import (
    NHWC,
    convolution,
    gradients,
    input_gradient,
    kernel_gradient_by_patches,
    kernel_gradient_in_parts,
    product,
    reversible,
)
from cnnjax.ops.shifts import (
    Pads,
    Pair,
    explicit_padding,
    out_size,
    pad_space,
    scatter,
    tap_views,
    wide_type,
)
from cnnjax.ops.spread import is_spread

# Beyond the first size of output XLA's kernel gradient leaves its fast path; chunks of the second keep it.
_LARGE_BYTES, _CHUNK_BYTES, _MOST_CHUNKS = 2 << 20, 5 << 18, 32
_MOST_TAPS = 49
# With oneDNN: patches of so many numbers are laid out, and with so many channels (for 3x3) Eigen's sums are faster.
_SHORT_PATCH, _FEWEST_CHANNELS = 36, 32


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike | None = None,
    preferred_element_type: DTypeLike | None = None,
    **kwargs: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` with faster CPU lowerings, for `nnx.Conv(conv_general_dilated=...)`.

    Values, shapes, types and errors are those of `jax.lax.conv_general_dilated`, to rounding. On CPU,
    undilated NHWC/HWIO depthwise and 1x1 convolutions, 3x3 ones with many channels, maps narrower than the window,
    and kernel gradients on large maps are lowered otherwise; all else is passed on.

    Args:
      lhs: images, `f32[N, H, W, C]` (or bfloat16, float16).
      rhs: kernel, `f32[h, w, C / feature_group_count, D]`, of the same type.
      window_strides: strides over height and width.
      padding: `'SAME'`, `'VALID'`, or (low, high) for each spatial axis.
      lhs_dilation: dilation of the images.
      rhs_dilation: dilation of the kernel.
      dimension_numbers: the layout, as in `jax.lax`; the lowerings here know `('NHWC', 'HWIO', 'NHWC')`.
      feature_group_count: number of channel groups; `C` makes the convolution depthwise.
      batch_group_count: as in `jax.lax`.
      precision: as in `jax.lax`.
      preferred_element_type: as in `jax.lax`.
      **kwargs: further arguments of `jax.lax.conv_general_dilated`, such as `out_sharding`.

    Returns:
      `f32[N, H', W', D]`.

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))
    >>> y = conv_general_dilated(
    ...     x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    ... )
    >>> y[0, :, :, 0].tolist()[:2]
    [[4.0, 6.0, 6.0, 4.0], [6.0, 9.0, 9.0, 6.0]]
    """
    plain = (
        lhs.ndim == rhs.ndim == 4
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and preferred_element_type in (None, lhs.dtype)
        and batch_group_count == 1
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and all(v is None for v in kwargs.values())
        and len(window_strides) == 2
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC)
        and 0 not in lhs.shape
        and 0 not in rhs.shape
    )
    if plain:
        strides, window, channels = tuple(window_strides), rhs.shape[:2], lhs.shape[3]
        pads = explicit_padding(padding, lhs.shape[1:3], window, strides)
        asks = onednn.takes(lhs.dtype) and not is_spread()
        sized = min(*pads[0], *pads[1]) >= 0 and min(out_size(lhs.shape[1:3], window, strides, pads)) > 0
        if sized and feature_group_count == channels == rhs.shape[3] and rhs.shape[2] == 1:
            return depthwise(lhs, rhs, strides, pads, precision, is_spread(), asks)
        if sized and feature_group_count == 1 and rhs.shape[2] == channels:
            if window == (1, 1) and strides == (1, 1) and pads == ((0, 0), (0, 0)):
                return _pointwise_op(lhs, rhs, precision, asks)
            # Of any size: whether a model is the same program at every batch size must not depend on it.
            return _spatial_op(lhs, rhs, strides, pads, precision, is_spread(), asks)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        **kwargs,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _pointwise(x: jax.Array, k: jax.Array, precision: lax.PrecisionLike, asks: bool) -> jax.Array:
    def on_cpu(x: jax.Array, k: jax.Array) -> jax.Array:
        rows = product(x.reshape(-1, x.shape[3]), k[0, 0], asks, precision=precision)
        return rows.reshape(*x.shape[:3], k.shape[3])

    def native(x: jax.Array, k: jax.Array) -> jax.Array:
        return convolution(x, k, (1, 1), ((0, 0), (0, 0)), precision)

    return lax.platform_dependent(x, k, cpu=on_cpu, default=native)


def _pointwise_forward(
    x: jax.Array, k: jax.Array, precision: lax.PrecisionLike, asks: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _pointwise(x, k, precision, asks), (x, k)


def _pointwise_backward(
    precision: lax.PrecisionLike, asks: bool, kept: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def input_on_cpu(x: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
        return product(g.reshape(-1, g.shape[3]), k[0, 0], asks, (False, True), precision).reshape(x.shape)

    def kernel_on_cpu(x: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
        rows, sums = x.reshape(-1, x.shape[3]), g.reshape(-1, g.shape[3])
        return product(rows, sums, asks, (True, False), precision).reshape(k.shape)

    x, k = kept
    of_input, of_kernel = gradients((1, 1), ((0, 0), (0, 0)), precision)
    return (
        lax.platform_dependent(x, k, g, cpu=input_on_cpu, default=of_input),
        lax.platform_dependent(x, k, g, cpu=kernel_on_cpu, default=of_kernel),
    )


def _narrow(size: Sequence[int], window: Sequence[int]) -> bool:
    """Whether a map is narrower than the window: there XLA's CPU convolution takes up to fifty times as long.

    Not for patch embeddings, whose many taps would each be an operation of their own.
    """
    return any(1 < m < k for m, k in zip(size, window, strict=True)) and math.prod(window) <= _MOST_TAPS


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5, 6))
def _spatial(
    x: jax.Array, k: jax.Array, strides: Pair, pads: Pads, precision: lax.PrecisionLike, spread: bool, asks: bool
) -> jax.Array:
    def on_cpu(x: jax.Array, k: jax.Array) -> jax.Array:
        if _narrow(x.shape[1:3], k.shape[:2]):
            patches = jnp.concatenate(tap_views(pad_space(x, pads), k.shape[:2], strides), 3)
            taps, wide = k.reshape(-1, k.shape[3]), wide_type(x.dtype)
            return lax.dot_general(
                patches, taps, (((3,), (0,)), ((), ())), precision=precision, preferred_element_type=wide
            ).astype(x.dtype)
        if not spread and strides == (1, 1) and winograd.pays(x, k, pads, asks):
            return winograd.convolution(x, k, pads, asks)
        return onednn.convolution(x, k, strides, pads) if asks and onednn.fits(x, k, strides, pads, 1) else native(x, k)

    native = partial(convolution, strides=strides, pads=pads, precision=precision)
    return lax.platform_dependent(x, k, cpu=on_cpu, default=native)


def _spatial_forward(
    x: jax.Array, k: jax.Array, strides: Pair, pads: Pads, precision: lax.PrecisionLike, spread: bool, asks: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _spatial(x, k, strides, pads, precision, spread, asks), (x, k)


def _spatial_backward(
    strides: Pair, pads: Pads, precision: lax.PrecisionLike, spread: bool, asks: bool,
    kept: tuple[jax.Array, jax.Array], g: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    def input_on_cpu(x: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
        if _narrow(g.shape[1:3], k.shape[:2]):
            taps, wide = k.reshape(-1, *k.shape[2:]), wide_type(x.dtype)

            def tapped(tap: int, g: jax.Array) -> jax.Array:
                contracted = (((3,), (1,)), ((), ()))
                return lax.dot_general(g, taps[tap], contracted, precision=precision, preferred_element_type=wide)

            return scatter(tapped, [g], x.shape[1:3], k.shape[:2], strides, pads).astype(x.dtype)
        if alone and winograd.pays_for_inputs(x, k, pads, asks):
            return winograd.input_gradient(x, k, g, pads, asks)
        return input_gradient(k, g, pads) if asks and alone and reversible(k, pads) else of_input(x, k, g)

    def kernel_on_cpu(x: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
        n, size = x.shape[0], g.size * g.dtype.itemsize
        if alone and winograd.pays_for_kernel(x, k, pads, size // n > _CHUNK_BYTES):
            return winograd.kernel_gradient(x, k, g, pads, asks)
        if asks and math.prod(k.shape[:3]) <= _SHORT_PATCH:
            return kernel_gradient_by_patches(x, k, g, strides, pads)
        thin = strides != (1, 1) or x.shape[3] * 9 < _FEWEST_CHANNELS * math.prod(k.shape[:2])
        if spread or size <= _LARGE_BYTES or (thin and asks):
            return of_kernel(x, k, g)
        step = max(_CHUNK_BYTES * n // size, -(-n // _MOST_CHUNKS), 1)
        return kernel_gradient_in_parts(x, k, g, strides, pads, precision, step)

    alone = not spread and strides == (1, 1)
    x, k = kept
    of_input, of_kernel = gradients(strides, pads, precision)
    return (
        lax.platform_dependent(x, k, g, cpu=input_on_cpu, default=of_input),
        lax.platform_dependent(x, k, g, cpu=kernel_on_cpu, default=of_kernel),
    )


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)
_spatial.defvjp(_spatial_forward, _spatial_backward)

# Jitted, an operation is one equation whatever surrounds it, and is traced once for each shape.
_pointwise_op = jax.jit(_pointwise, static_argnums=(2, 3))
_spatial_op = jax.jit(_spatial, static_argnums=(2, 3, 4, 5, 6))
