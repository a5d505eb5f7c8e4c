"""Normalisation by the batch's own statistics, with a gradient that reads each array once or twice."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.ops.shifts import wide_type
from cnnjax.ops.spread import cpu_threads, is_spread

# XLA takes each sum by itself, in all threads; a loop takes two of them from one reading, in one thread.
_MOST_THREADS, _MOST_IMAGES = 2, 8

_Terms = Callable[..., tuple[jax.Array, jax.Array]]


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float = 1e-3
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise each channel by its mean and variance over all other axes (Ioffe & Szegedy 2015).

    The values are those of `flax.nnx.BatchNorm` in training. Its gradient is written out: derived automatically it
    keeps `x - mean` and takes three more sums over the batch. Sums are of float32 at least; no gradient flows through
    the statistics that are returned.

    Args:
      x: `f32[..., C]` (or bfloat16, float16).
      scale: `f32[C]`.
      bias: `f32[C]`.
      epsilon: added to the variance.

    Returns:
      As `x`; and mean and variance, `f32[C]`.

    >>> y, mean, variance = batch_norm(jnp.array([[1.0], [3.0]]), jnp.ones(1), jnp.zeros(1), 0.0)
    >>> y.ravel().tolist(), mean.tolist(), variance.tolist()
    ([-1.0, 1.0], [2.0], [1.0])
    """
    in_loop = x.ndim == 4 and x.size > 0 and cpu_threads() <= _MOST_THREADS and not is_spread()
    return _op(x, scale, bias, epsilon, in_loop)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, in_loop: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _forward(x, scale, bias, epsilon, in_loop)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, in_loop: bool
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    wide, count = x.astype(wide_type(x.dtype)), x.size // x.shape[-1]
    total, squares = _sums(lambda x: (x, x * x), (x,), (), in_loop)
    mean = total / count
    # Rounding may leave less than nothing.
    variance = jnp.maximum(0.0, squares / count - mean * mean)
    inverse = lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    return (y.astype(x.dtype), mean, variance), (x, scale, bias, mean, inverse)


def _backward(
    epsilon: float, in_loop: bool, kept: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, bias, mean, inverse = kept
    wide, count = x.astype(wide_type(x.dtype)), x.size // x.shape[-1]
    g = cotangents[0].astype(wide.dtype)
    # Behind barriers x - mean is three expressions to XLA (one forwards, two here), each fused where it is read: as one
    # it would be written to memory, and kept from the forward pass until here.
    mean = lax.optimization_barrier(mean)
    of_bias, products = _sums(lambda x, g, mean: (g, (x - mean) * g), (x, cotangents[0]), (mean,), in_loop)
    of_scale = products * inverse
    again = lax.optimization_barrier(mean)
    of_x = (g - of_bias / count - (wide - again) * (inverse * of_scale / count)) * (inverse * scale)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


_batch_norm.defvjp(_forward, _backward)


def _sums(
    terms: _Terms, arrays: Sequence[jax.Array], vectors: Sequence[jax.Array], in_loop: bool
) -> tuple[jax.Array, jax.Array]:
    """Both of what `terms(*arrays, *vectors)` gives, in float32 at least, summed over all axes but the last."""

    def at_once(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        wide = [x.astype(wide_type(x.dtype)) for x in arrays]
        first, second = terms(*wide, *vectors)
        axes = tuple(range(first.ndim - 1))
        return first.sum(axes), second.sum(axes)

    def by_rows(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        n, rows, columns, channels = arrays[0].shape
        step = max(m for m in range(1, _MOST_IMAGES + 1) if n % m == 0)
        # A row of all columns is one axis; behind a barrier, as in `depthwise.py`.
        flat = [x.reshape(n, rows, columns * channels) for x in lax.optimization_barrier(arrays)]
        tiled = [jnp.tile(v, columns) for v in vectors]

        def add(sums: tuple[jax.Array, jax.Array], at: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            start = (at // rows * step, at % rows, 0)
            some = [lax.dynamic_slice(x, start, (step, 1, x.shape[2]))[:, 0] for x in flat]
            wide = [x.astype(wide_type(x.dtype)) for x in some]
            found = [terms(*(x[m] for x in wide), *tiled) for m in range(step)]
            return (sum((f for f, _ in found), sums[0]), sum((f for _, f in found), sums[1])), None

        zeros = jnp.zeros(columns * channels, wide_type(arrays[0].dtype))
        (first, second), _ = lax.scan(add, (zeros, zeros), jnp.arange(n // step * rows))
        return first.reshape(columns, channels).sum(0), second.reshape(columns, channels).sum(0)

    if not in_loop:
        return at_once(*arrays)
    return lax.platform_dependent(*arrays, cpu=by_rows, default=at_once)


# As the convolutions: one equation whatever surrounds it.
_op = jax.jit(_batch_norm, static_argnums=(3, 4))
