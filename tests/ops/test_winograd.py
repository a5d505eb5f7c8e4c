"""Winograd's convolution against XLA's, and against double precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from operations import NHWC, assert_same, few, normal

from cnnjax import ops
from cnnjax.ops import convolution, winograd
from cnnjax.ops.onednn import takes


@few
@given(
    n=st.integers(1, 6),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    padding=st.sampled_from([((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (1, 2)), ((0, 2), (2, 1)), ((4, 3), (0, 5))]),
    images=st.sampled_from([1, 2, 100]),
)
def test_winograds_convolution_equals_xla(n, h, w, padding, images):
    def theirs(x, k):
        return lax.conv_general_dilated(x, k, (1, 1), padding, dimension_numbers=NHWC)

    x, k = normal(0, n, h, w, 5), normal(1, 3, 3, 5, 7)
    if 0 in jax.eval_shape(theirs, x, k).shape:
        return
    with pytest.MonkeyPatch.context() as patch:
        for choice in ("pays", "pays_for_inputs", "pays_for_kernel"):
            patch.setattr(winograd, choice, lambda *_: True)
        patch.setattr(winograd, "_CHUNK_BYTES", images * 16 * 4 * -(-h // 2) * -(-w // 2) * 12)
        assert_same(lambda x, k: convolution._spatial(x, k, (1, 1), padding, None, False, takes(x.dtype)), theirs, x, k)


def test_winograds_rounding_errors_are_those_of_xla():
    """Forwards and both gradients, of sums of 2,304, 2,304 and 4,096 products, against double precision."""
    x, k, g = normal(0, 4, 32, 32, 256), normal(1, 3, 3, 256, 256), normal(2, 4, 32, 32, 256)
    wide, taps, out = (np.asarray(a, np.float64) for a in (jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), k, g))
    there = [(i, j) for i in range(3) for j in range(3)]
    of_inputs = np.zeros_like(wide)
    for i, j in there:
        of_inputs[:, i : i + 32, j : j + 32] += out @ taps[i, j].T
    views = [wide[:, i : i + 32, j : j + 32] for i, j in there]
    of_kernel = np.stack([np.tensordot(view, out, ((0, 1, 2), (0, 1, 2))) for view in views]).reshape(k.shape)
    true = sum(view @ taps[at] for view, at in zip(views, there, strict=True)), of_inputs[:, 1:-1, 1:-1], of_kernel

    def all_three(conv, x, k, g):
        y, pull = jax.vjp(lambda x, k: conv(x, k, (1, 1), "SAME", dimension_numbers=NHWC), x, k)
        return y, *pull(g)

    errors = [
        [np.abs(np.asarray(found, np.float64) - expected).mean() for found, expected in zip(values, true, strict=True)]
        for values in (
            jax.jit(partial(all_three, conv))(x, k, g) for conv in (ops.conv_general_dilated, lax.conv_general_dilated)
        )
    ]
    for ours, theirs in zip(*errors, strict=True):
        assert 0 < ours < 2 * theirs, errors
    text = jax.jit(partial(all_three, ops.conv_general_dilated)).lower(x, k, g).as_text()
    assert (
        text.count("stablehlo.convolution") == 0
        and text.count("stablehlo.dot_general") + text.count("__onednn$matmul") >= 48
    )
