"""Depthwise convolution: on CPU shifted products, where XLA has nothing better."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.ops.native import convolution, gradients, is_onednn
from cnnjax.ops.shifts import Pads, Pair, pad_space, phase_views, scatter, tap_views, wide_type

# Kernel gradients go by rows where there are so many, and add up so many images' products at a time.
_MANY_ROWS, _MOST_TERMS = 16, 16


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _depthwise(x: jax.Array, k: jax.Array, strides: Pair, pads: Pads, precision: Any, spread: bool) -> jax.Array:
    def on_cpu(x: jax.Array, k: jax.Array) -> jax.Array:
        if is_onednn(x):
            return native(x, k)
        wide = wide_type(x.dtype)
        taps = k.reshape(-1, k.shape[3]).astype(wide)
        views = tap_views(pad_space(x, pads), k.shape[:2], strides)
        terms = [v.astype(wide) * taps[t] for t, v in enumerate(views)]
        return sum(terms[1:], terms[0]).astype(x.dtype)

    def native(x: jax.Array, k: jax.Array) -> jax.Array:
        return convolution(x, k, strides, pads, precision, x.shape[3])

    return lax.platform_dependent(x, k, cpu=on_cpu, default=native)


def _depthwise_forward(
    x: jax.Array, k: jax.Array, strides: Pair, pads: Pads, precision: Any, spread: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise(x, k, strides, pads, precision, spread), (x, k)


def _depthwise_backward(
    strides: Pair, pads: Pads, precision: Any, spread: bool, kept: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def input_on_cpu(x: jax.Array, k: jax.Array, g: jax.Array) -> jax.Array:
        if is_onednn(x) and strides == (1, 1):
            return of_input(x, k, g)
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
        elif g.shape[1] >= _MANY_ROWS:
            sums = _summed_by_rows(pad_space(x, pads), g, k.shape[:2], strides)
        else:
            sums = _summed_by_images(pad_space(x, pads), g, k.shape[:2], strides)
        return jnp.stack(sums).reshape(k.shape).astype(k.dtype)

    x, k = kept
    of_input, of_kernel = gradients(strides, pads, precision, x.shape[3])
    return (
        lax.platform_dependent(x, k, g, cpu=input_on_cpu, default=of_input),
        lax.platform_dependent(x, k, g, cpu=kernel_on_cpu, default=of_kernel),
    )


def _summed_by_images(x: jax.Array, g: jax.Array, window: Pair, strides: Pair) -> list[jax.Array]:
    """For each tap of a depthwise kernel: padded inputs where it reads them, times g, summed over images and space."""
    n, wide = x.shape[0], wide_type(x.dtype)
    step = next(m for m in (4, 3, 2, 1) if n % m == 0)

    def add(sums: list[jax.Array], images: tuple[jax.Array, ...]) -> tuple[list[jax.Array], None]:
        x, g = images
        views = phase_views(x, window, strides, g.shape[1:3])
        products = [[v[m].astype(wide) * g[m].astype(wide) for m in range(step)] for v in views]
        return [sum(p, start=s) for p, s in zip(products, sums, strict=True)], None

    sums = [jnp.zeros(g.shape[1:], wide)] * math.prod(window)
    sums, _ = lax.scan(add, sums, tuple(a.reshape(n // step, step, *a.shape[1:]) for a in (x, g)))
    return [s.sum((0, 1)) for s in sums]


def _summed_by_rows(x: jax.Array, g: jax.Array, window: Pair, strides: Pair) -> list[jax.Array]:
    """The same, row by row of many images: what is added to then stays in the cache, however large the maps."""
    (n, rows, columns, channels), wide = g.shape, wide_type(x.dtype)
    step = max(m for m in range(1, _MOST_TERMS + 1) if n % m == 0)
    blocks = -(-x.shape[2] // strides[1])
    x = pad_space(x, ((0, 0), (0, blocks * strides[1] - x.shape[2])))
    # A block of columns holds a column of each phase. Without a stride rows are one axis, of which taps read a part.
    flat = strides[1] == 1
    x = x.reshape(*x.shape[:2], *((blocks * channels,) if flat else (blocks, strides[1] * channels)))
    g = g.reshape(n, rows, *((columns * channels,) if flat else (columns, channels)))

    def tap(row: jax.Array, column: int) -> jax.Array:
        if flat:
            return row[column * channels : (column + columns) * channels]
        across, phase = divmod(column, strides[1])
        return row[across : across + columns, phase * channels : (phase + 1) * channels]

    def add(sums: list[jax.Array], at: jax.Array) -> tuple[list[jax.Array], None]:
        first, row = at // rows * step, at % rows
        rest = (0,) * (x.ndim - 2)
        above = lax.dynamic_slice(x, (first, row * strides[0], *rest), (step, window[0], *x.shape[2:])).astype(wide)
        there = lax.dynamic_slice(g, (first, row, *rest), (step, 1, *g.shape[2:])).astype(wide)
        places = [(i, j) for i in range(window[0]) for j in range(window[1])]
        products = [[tap(above[m, i], j) * there[m, 0] for m in range(step)] for i, j in places]
        return [sum(p, start=s) for p, s in zip(products, sums, strict=True)], None

    sums = [jnp.zeros(g.shape[2:], wide)] * math.prod(window)
    sums, _ = lax.scan(add, sums, jnp.arange(n // step * rows))
    return [s.reshape(columns, channels).sum(0) for s in sums]


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)

# Jitted, an operation is one equation whatever surrounds it, and is traced once for each shape.
depthwise = jax.jit(_depthwise, static_argnums=(2, 3, 4, 5))
