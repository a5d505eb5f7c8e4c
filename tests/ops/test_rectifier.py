"""The rectifier against JAX's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import ops


@pytest.mark.parametrize("most", [None, 6.0])
def test_the_rectifier_is_jaxs_and_keeps_its_output_alone(most):
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0, 6.0, 8.0, jnp.inf])
    theirs = jax.nn.relu if most is None else jax.nn.relu6
    np.testing.assert_array_equal(ops.relu(x, most), theirs(x))
    slopes = [0, 0, 0, 1, 1, *([1, 1, 1] if most is None else [0, 0, 0])]
    np.testing.assert_array_equal(jax.vmap(jax.grad(partial(ops.relu, max_value=most)))(x), slopes)
    np.testing.assert_array_equal(
        jax.jvp(partial(ops.relu, max_value=most), (x,), (jnp.full_like(x, 2),))[1], 2 * np.array(slopes)
    )

    def step(x):
        y, pull = jax.vjp(lambda x: ops.relu(2 * x, most), x)
        return y, pull(y)

    text = jax.jit(step).lower(x).compile().as_text()
    assert "direction=NE" in text and "direction=GT" not in text
