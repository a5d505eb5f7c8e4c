"""Depthwise convolution: on CPU shifted products, where XLA has nothing better."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.ops import onednn
from cnnjax.ops.native import convolution, gradients, input_gradient, reversible
from cnnjax.ops.shifts import Pads, Pair, pad_space, phase_views, scatter, tap_views, wide_type

# Kernel gradients add up so many images' products at a time: more are no faster, take longer to compile, and from
# sixteen on rows evict each other from the cache.
_MOST_TERMS = 2


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5, 6))
def _depthwise(
    x: jax.Array, k: jax.Array, strides: Pair, pads: Pads, precision: lax.PrecisionLike, spread: bool, asks: bool
) -> jax.Array:
    def on_cpu(x: jax.Array, k: jax.Array) -> jax.Array:
        if asks and onednn.fits(x, k, strides, pads, x.shape[3]):
            return onednn.convolution(x, k, strides, pads, x.shape[3])
        wide = wide_type(x.dtype)
        taps = k.reshape(-1, k.shape[3]).astype(wide)
        views = tap_views(pad_space(x, pads), k.shape[:2], strides)
        terms = [v.astype(wide) * taps[t] for t, v in enumerate(views)]
        return sum(terms[1:], terms[0]).astype(x.dtype)

    def native(x: jax.Array, k: jax.Array) -> jax.Array:
        return convolution(x, k, strides, pads, precision, x.shape[3])

    return lax.platform_dependent(x, k, cpu=on_cpu, default=native)


def _depthwise_forward(
    x: jax.Array, k: jax.Array, strides: Pair, pads: Pads, precision: lax.PrecisionLike, spread: bool, asks: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise(x, k, strides, pads, precision, spread, asks), (x, k)


def _depthwise_backward(
    strides: Pair, pads: Pads, precision: lax.PrecisionLike, spread: bool, asks: bool,
    kept: tuple[jax.Array, jax.Array], g: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    def input_on_cpu(x: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
        if asks and strides == (1, 1) and reversible(k, pads):
            return input_gradient(k, g, pads, x.shape[3])
        wide = wide_type(x.dtype)
        taps = k.reshape(-1, k.shape[3]).astype(wide)

        def shifted(tap: int, g: jax.Array) -> jax.Array:
            return g.astype(wide) * taps[tap]

        return scatter(shifted, [g], x.shape[1:3], k.shape[:2], strides, pads).astype(x.dtype)

    def kernel_on_cpu(x: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
        # XLA fuses products into a sum over batch and space, which is then slow; not so across a loop.
        wide = wide_type(x.dtype)
        if spread:
            views = phase_views(pad_space(x, pads), k.shape[:2], strides, g.shape[1:3])
            sums = [(v.astype(wide) * g.astype(wide)).sum((0, 1, 2)) for v in views]
        else:
            sums = _summed(x, g, k.shape[:2], strides, pads)
        return jnp.stack(sums).reshape(k.shape).astype(k.dtype)

    x, k = kept
    of_input, of_kernel = gradients(strides, pads, precision, x.shape[3])
    return (
        lax.platform_dependent(x, k, g, cpu=input_on_cpu, default=of_input),
        lax.platform_dependent(x, k, g, cpu=kernel_on_cpu, default=of_kernel),
    )


def _summed(x: jax.Array, g: jax.Array, window: Pair, strides: Pair, pads: Pads) -> list[jax.Array]:
    """For each tap of a depthwise kernel: the inputs that it reads, times g, summed over images and space.

    Row by row of a few images, so that what is added to stays in the cache, however large the maps. Nothing is
    padded, which would copy the images: a row beyond them counts as zeros, and columns beyond them are left out.
    """
    (n, rows, columns, channels), (height, width), wide = g.shape, x.shape[1:3], wide_type(x.dtype)
    step = max(m for m in range(1, _MOST_TERMS + 1) if n % m == 0)
    (down, right), (top, left) = strides, (pads[0][0], pads[1][0])
    # Without a stride a row is one axis, of which taps read a part. Behind a barrier: XLA would make arrays in that
    # shape at once, which is slow where a term for each channel belongs to it.
    x, g = lax.optimization_barrier((x, g))
    flat = right == 1
    unit = channels if flat else 1
    x, g = (a.reshape(n, a.shape[1], *((a.shape[2] * channels,) if flat else a.shape[2:])) for a in (x, g))

    def row_of(a: jax.Array, first: jax.Array, row: jax.Array) -> jax.Array:
        return lax.dynamic_slice(a, (first, row, *(0,) * (a.ndim - 2)), (step, 1, *a.shape[2:]))[:, 0].astype(wide)

    def read(tap: int, first: jax.Array, row: jax.Array) -> jax.Array:
        at = row * down + tap - top
        inside = jnp.clip(at, 0, height - 1)
        there = row_of(x, first, inside)
        never_outside = tap >= top and (rows - 1) * down + tap - top < height
        return there if never_outside else jnp.where(inside == at, there, 0)

    def outputs_of(tap: int) -> tuple[int, int]:
        """The columns of g for which a column tap reads a column of x: from the first to before the second."""
        first = min(max(0, -((tap - left) // right)), columns)
        return first, max(first, min(columns, (width - 1 - tap + left) // right + 1))

    def add(sums: list[jax.Array], at: jax.Array) -> tuple[list[jax.Array], None]:
        first, row = at // rows * step, at % rows
        slopes, added = row_of(g, first, row), []
        for i in range(window[0]):
            images = read(i, first, row)
            for j, (low, high) in enumerate(spans):
                start = low * right + j - left
                columns_read = slice(start * unit, (start + (high - low - 1) * right + 1) * unit, right)
                terms = range(step if low < high else 0)
                products = [images[m, columns_read] * slopes[m, low * unit : high * unit] for m in terms]
                added.append(sum(products, start=sums[len(added)]))
        return added, None

    spans = [outputs_of(tap) for tap in range(window[1])]
    shapes = [((high - low) * unit, *g.shape[3:]) for low, high in spans] * window[0]
    sums, _ = lax.scan(add, [jnp.zeros(shape, wide) for shape in shapes], jnp.arange(n // step * rows))
    return [s.reshape(-1, channels).sum(0) for s in sums]


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)

# Jitted, an operation is one equation whatever surrounds it, and is traced once for each shape.
depthwise = jax.jit(_depthwise, static_argnums=(2, 3, 4, 5, 6))
