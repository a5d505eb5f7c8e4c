"""The rectifier, whose gradient asks its output."""

from functools import partial

import jax
import jax.numpy as jnp


def relu(x: jax.Array, max_value: float | None = None) -> jax.Array:
    """max(x, 0), at most `max_value` where one is given (6 in MobileNet).

    Values are those of `jax.nn.relu` and `jax.nn.relu6`. The gradient is 1 where the output lies between 0 and
    `max_value`, and 0 elsewhere, at both of them too, as in Keras: it reads the output, which the next layer keeps in
    any case. So nothing else keeps the input, and on CPU a convolution adds its bias and rectifies what it writes.

    >>> relu(jnp.array([-1.0, 3.0, 9.0]), 6.0).tolist(), jax.grad(relu)(2.0)
    ([0.0, 3.0, 6.0], Array(1., dtype=float32, weak_type=True))
    """
    return _relu(x, max_value)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _relu(x: jax.Array, most: float | None) -> jax.Array:
    return jnp.maximum(x, 0) if most is None else jnp.clip(x, 0, most)


@_relu.defjvp
def _tangent(most: float | None, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = _relu(primals[0], most)
    # Not y > 0: XLA would turn that into x > 0, and keep x.
    inside = y != 0 if most is None else (y != 0) & (y != most)
    return y, jnp.where(inside, tangents[0], 0)
