"""Normalisation by the batch's own statistics, with a gradient that reads each array once or twice."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.ops.shifts import wide_type


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
    return _op(x, scale, bias, epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _forward(x, scale, bias, epsilon)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    wide, axes = x.astype(wide_type(x.dtype)), tuple(range(x.ndim - 1))
    mean = wide.mean(axes)
    # Rounding may leave less than nothing.
    variance = jnp.maximum(0.0, (wide * wide).mean(axes) - mean * mean)
    inverse = lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    return (y.astype(x.dtype), mean, variance), (x, scale, bias, mean, inverse)


def _backward(
    epsilon: float, kept: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, bias, mean, inverse = kept
    wide, axes, count = x.astype(wide_type(x.dtype)), tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    g = cotangents[0].astype(wide.dtype)
    # Behind barriers x - mean is three expressions to XLA (one forwards, two here), each fused where it is read: as one
    # it would be written to memory, and kept from the forward pass until here.
    mean = lax.optimization_barrier(mean)
    of_bias = g.sum(axes)
    of_scale = ((wide - mean) * g).sum(axes) * inverse
    again = lax.optimization_barrier(mean)
    of_x = (g - of_bias / count - (wide - again) * (inverse * of_scale / count)) * (inverse * scale)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


_batch_norm.defvjp(_forward, _backward)

# As the convolutions: one equation whatever surrounds it.
_op = jax.jit(_batch_norm, static_argnums=(3,))
