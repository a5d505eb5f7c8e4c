"""Normalisation by the batch's own statistics, with a gradient that reads each array once or twice."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.ops.shifts import wide_type
from cnnjax.ops.spread import cpu_threads, is_spread

# XLA takes each sum by itself, in all threads; a loop takes two of them from one reading, in one thread.
_MOST_THREADS, _MOST_IMAGES = 2, 8
_EVERY = 16

_Terms = Callable[..., tuple[jax.Array, jax.Array]]


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-3, counts: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise each channel by its mean and variance over all other axes (Ioffe & Szegedy 2015).

    The values are those of `flax.nnx.BatchNorm` in training, with a variance as exact as that of two passes (see
    `_statistics`). The gradient is written out: derived automatically it keeps `x - mean` and takes three more sums
    over the batch. Sums are of float32 at least; no gradient flows through the statistics that are returned.

    Args:
      x: `f32[N, ..., C]` (or bfloat16, float16).
      scale: `f32[C]`.
      bias: `f32[C]`.
      epsilon: added to the variance.
      counts: `bool[N]`, the rows of `x` whose numbers make mean and variance, at least one; all if not given. The
        others are normalised by them, as with the mask of `nnx.BatchNorm`.

    Returns:
      As `x`; and mean and variance, `f32[C]`.

    >>> y, mean, variance = batch_norm(jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1), 0.0)
    >>> y.ravel().tolist(), mean.tolist(), variance.tolist()
    ([-1.0, 1.0], [2.0], [1.0])
    >>> x, counts = jnp.array([[1.0], [3.0], [9.0]]), jnp.array([True, True, False])
    >>> [values.ravel().tolist() for values in batch_norm(x, jnp.ones(1), jnp.zeros(1), 0.0, counts)]
    [[-1.0, 1.0, 7.0], [2.0], [1.0]]
    """
    in_loop = x.ndim == 4 and x.size > 0 and cpu_threads() <= _MOST_THREADS and not is_spread()
    return _op(x, scale, bias, counts, epsilon, in_loop)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, counts: jax.Array | None, epsilon: float, in_loop: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _forward(x, scale, bias, counts, epsilon, in_loop)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, counts: jax.Array | None, epsilon: float, in_loop: bool
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[Any, ...]]:
    mean, variance = _statistics(x, counts, in_loop)
    inverse = lax.rsqrt(variance + epsilon)
    y = (x.astype(wide_type(x.dtype)) - mean) * (inverse * scale) + bias
    return (y.astype(x.dtype), mean, variance), (x, scale, bias, counts, mean, inverse)


def _backward(
    epsilon: float, in_loop: bool, kept: tuple[Any, ...], cotangents: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    x, scale, bias, counts, mean, inverse = kept
    wide, count = x.astype(wide_type(x.dtype)), _count(x, counts)
    g = cotangents[0].astype(wide.dtype)
    # Behind barriers x - mean is three expressions to XLA (one forwards, two here), each fused where it is read: as one
    # it would be written to memory, and kept from the forward pass until here.
    mean = lax.optimization_barrier(mean)
    of_bias, products = _sums(lambda x, g, mean: (g, (x - mean) * g), (x, cotangents[0]), (mean,), None, in_loop)
    of_scale = products * inverse
    again = lax.optimization_barrier(mean)
    if counts is None:
        of_x = (g - of_bias / count - (wide - again) * (inverse * of_scale / count)) * (inverse * scale)
    else:  # all rows are normalised by the statistics, but only those that count make them
        through = of_bias / count + (wide - again) * (inverse * of_scale / count)
        of_x = (g - jnp.where(_along_rows(counts, x), through, 0)) * (inverse * scale)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype), None


_batch_norm.defvjp(_forward, _backward)


def _statistics(x: jax.Array, counts: jax.Array | None, in_loop: bool) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of each channel over the rows that count, in one pass that cancels no digits.

    E[x^2] - E[x]^2 loses what mean and deviation differ by: with a mean of 1,000 deviations float32 has no digit of the
    variance left. So a shift near the mean is taken off first: the mean of a part of each row, f of it all. Whatever
    the numbers are, (shift - mean)^2 is at most (1 - f) / f variances: a part that far off would by itself make the
    variance that large. The sum of squares is then at most 1 / f times the variance's, and its rounding counts at most
    1 / f times: f is 1/24 or more (see `_part`), and the shift is nearer by far where the part is like the rest.
    """
    count = _count(x, counts)
    some = _part(x).astype(wide_type(x.dtype))
    if counts is not None:
        some = jnp.where(_along_rows(counts, some), some, 0)
    # No gradient: the statistics are the same for any shift. Two sums: XLA adds whole rows to each other faster.
    near = some.sum(tuple(range(some.ndim - 2))).reshape(-1, some.shape[-1])
    shift = lax.stop_gradient(near.sum(0) / _count(some, counts))
    total, squares = _sums(lambda x, shift: (x - shift, (x - shift) ** 2), (x,), (shift,), counts, in_loop)
    ahead = total / count
    # Rounding may leave less than nothing.
    return shift + ahead, jnp.maximum(0.0, squares / count - ahead * ahead)


def _part(x: jax.Array) -> jax.Array:
    """Every 16th entry along the axis after the rows, so at least one of 24; all of `[N, C]`."""
    return x if x.ndim < 3 else x[:, min(_EVERY // 2, x.shape[1] // 2) :: _EVERY]


def _along_rows(counts: jax.Array, x: jax.Array) -> jax.Array:
    """`[N]` as `[N, 1, ...]`, beside `x`."""
    return counts.reshape(-1, *[1] * (x.ndim - 1))


def _count(x: jax.Array, counts: jax.Array | None) -> jax.Array | int:
    """How many numbers of each channel count."""
    if counts is None:
        return x.size // x.shape[-1]
    return counts.sum().astype(wide_type(x.dtype)) * (x.size // x.shape[-1] // x.shape[0])


def _sums(
    terms: _Terms, arrays: Sequence[jax.Array], vectors: Sequence[jax.Array], counts: jax.Array | None, in_loop: bool
) -> tuple[jax.Array, jax.Array]:
    """Both of what `terms(*arrays, *vectors)` gives, in float32 at least, summed over all axes but the last."""
    chosen = () if counts is None else (counts,)

    def at_once(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        wide = [x.astype(wide_type(x.dtype)) for x in arrays[len(chosen) :]]
        found = terms(*wide, *vectors)
        axes = tuple(range(found[0].ndim - 1))
        if chosen:
            found = [jnp.where(_along_rows(arrays[0], x), x, 0) for x in found]
        return found[0].sum(axes), found[1].sum(axes)

    def by_rows(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        n, rows, columns, channels = arrays[-1].shape
        step = max(m for m in range(1, _MOST_IMAGES + 1) if n % m == 0)
        # A row of all columns is one axis; behind a barrier, as in `depthwise.py`.
        images = lax.optimization_barrier(arrays)[len(chosen) :]
        flat = [x.reshape(n, rows, columns * channels) for x in images]
        tiled = [jnp.tile(v, columns) for v in vectors]

        def add(sums: tuple[jax.Array, jax.Array], at: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            start = (at // rows * step, at % rows, 0)
            some = [lax.dynamic_slice(x, start, (step, 1, x.shape[2]))[:, 0] for x in flat]
            wide = [x.astype(wide_type(x.dtype)) for x in some]
            found = [terms(*(x[m] for x in wide), *tiled) for m in range(step)]
            if chosen:
                own = lax.dynamic_slice(arrays[0], start[:1], (step,))
                found = [tuple(jnp.where(own[m], x, 0) for x in pair) for m, pair in enumerate(found)]
            return (sum((f for f, _ in found), sums[0]), sum((f for _, f in found), sums[1])), None

        zeros = jnp.zeros(columns * channels, wide_type(arrays[-1].dtype))
        (first, second), _ = lax.scan(add, (zeros, zeros), jnp.arange(n // step * rows))
        return first.reshape(columns, channels).sum(0), second.reshape(columns, channels).sum(0)

    if not in_loop:
        return at_once(*chosen, *arrays)
    return lax.platform_dependent(*chosen, *arrays, cpu=by_rows, default=at_once)


# As the convolutions: one equation whatever surrounds it.
_op = jax.jit(_batch_norm, static_argnums=(4, 5))
