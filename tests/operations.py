"""Inputs for convolutions and pooling, and how they are compared."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from jax import lax

NHWC = ("NHWC", "HWIO", "NHWC")
PADDINGS = ("SAME", "VALID", ((0, 1), (0, 1)), ((1, 1), (1, 1)), ((2, 0), (1, 3)))
sizes = st.integers(3, 9)
few = settings(max_examples=5, deadline=None, derandomize=True)
# Small arrays: compiling is what takes the time. Both that are compared are compiled so.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# With and without oneDNN: a fixture of tests/ops/conftest.py.
both = pytest.mark.usefixtures("lowerings")


def normal(seed: int, *shape: int, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def native_pool(x, window, strides, padding):
    pads = padding if isinstance(padding, str) else ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, (1, *window, 1), (1, *strides, 1), pads)


def _value_and_gradients(f, *args):
    """The value of `f` and its gradients for a fixed random cotangent, in one compiled program."""
    g = normal(9, *jax.eval_shape(f, *args).shape, dtype=args[0].dtype)

    @partial(jax.jit, compiler_options=QUICK)
    def both(args, g):
        y, pull = jax.vjp(f, *args)
        return y, *pull(g)

    return [np.asarray(v, np.float64) for v in both(args, g)]


def assert_same(ours, theirs, *args, tolerance=2e-6):
    for name, found, expected in zip(
        ("value", "input gradient", "kernel gradient"),
        _value_and_gradients(ours, *args),
        _value_and_gradients(theirs, *args),
        strict=False,
    ):
        scale = max(1.0, np.abs(expected).max(initial=0))
        assert found.shape == expected.shape, name
        np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance, rtol=0, err_msg=name)
