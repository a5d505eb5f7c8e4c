"""Max pooling against XLA's own, and NumPy."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from operations import PADDINGS, assert_same, few, native_pool, normal

from cnnjax import ops


@few
@given(
    n=st.integers(1, 3),
    h=st.integers(4, 9),
    w=st.integers(4, 9),
    window=st.sampled_from([(2, 2), (3, 3), (2, 3)]),
    strides=st.sampled_from([(2, 2), (1, 1), (3, 3), (1, 2), (4, 3)]),
    padding=st.sampled_from(PADDINGS[:4]),
    levels=st.sampled_from([2, 1000]),
)
def test_max_pool_equals_xla_ties_included(n, h, w, window, strides, padding, levels):
    x = jnp.asarray(np.random.default_rng(0).integers(0, levels, (n, h, w, 3)), jnp.float32) - levels
    assert_same(
        lambda x: ops.max_pool(x, window, strides, padding),
        lambda x: native_pool(x, window, strides, padding),
        x,
    )


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 4)])
def test_two_by_two_pooling_sends_the_gradient_to_the_first_maximum(size, padding):
    x = np.random.default_rng(0).integers(0, 3, (2, *size, 3)).astype(np.float32)
    y, pull = jax.vjp(lambda x: ops.max_pool(x, (2, 2), padding=padding), jnp.asarray(x))
    g = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    expected = np.zeros_like(x)
    for n, i, j, c in itertools.product(*map(range, y.shape)):
        part = np.asarray(x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c])
        assert part.max() == y[n, i, j, c]
        a, b = divmod(int(np.argmax(part)), part.shape[1])
        expected[n, 2 * i + a, 2 * j + b, c] += g[n, i, j, c]
    np.testing.assert_array_equal(pull(jnp.asarray(g))[0], expected)


@pytest.mark.parametrize("strides", [(2, 2), (1, 1)])
def test_max_pool_of_bfloat16_integers_and_mapped_axes(strides):
    x = normal(0, 2, 3, 7, 7, 2, dtype=jnp.bfloat16)
    ours, theirs = (partial(f, window=(2, 2), strides=strides, padding="VALID") for f in (ops.max_pool, native_pool))
    assert_same(jax.vmap(ours), jax.vmap(theirs), x, tolerance=2**-7)
    whole = jnp.arange(16).reshape(1, 4, 4, 1)
    assert ops.max_pool(whole, (2, 2)).ravel().tolist() == [5, 7, 13, 15]


def test_max_pool_names_what_is_wrong():
    x = jnp.ones((1, 4, 4, 1))
    with pytest.raises(ValueError, match=r"'SAMEE'.*did you mean 'SAME'"):
        ops.max_pool(x, (2, 2), (2, 2), "SAMEE")
    with pytest.raises(ValueError, match=r"\[N, H, W, C\].*\(4, 4, 1\)"):
        ops.max_pool(x[0], (2, 2))
    with pytest.raises(ValueError, match="no negative padding"):
        ops.max_pool(x, (2, 2), padding=((-1, 0), (0, 0)))
    with pytest.raises(ValueError, match="two numbers"):
        ops.max_pool(x, (2,))
