"""How kernels begin: Glorot-uniform, as Keras's."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

_BLOCK = 1 << 16  # random numbers a call


@jax.jit
def _uniform_block(key: jax.Array, index: int) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(key, index), (_BLOCK,), minval=-1.0)


@partial(jax.jit, static_argnums=(1, 2))
def _shape_blocks(blocks: list[jax.Array], shape: tuple[int, ...], dtype: Any) -> jax.Array:
    fan_in, fan_out = (math.prod(shape[:-2]) * n for n in shape[-2:])
    limit = math.sqrt(6 / (fan_in + fan_out))
    return (limit * jnp.concatenate(blocks)[: math.prod(shape)]).reshape(shape).astype(dtype)


def glorot_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draw in blocks of one size, since JAX compiles a generator for every shape: 7 s for a MobileNet."""
    blocks = [_uniform_block(key, i) for i in range(-(-math.prod(shape) // _BLOCK))]
    return _shape_blocks(blocks, tuple(shape), jnp.dtype(dtype))
