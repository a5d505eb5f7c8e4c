"""The text of lowered programs: what each platform gets."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from operations import NHWC, both, native_pool, normal

from cnnjax import ops
from cnnjax.ops.onednn import takes


class _Net(nnx.Module):
    def __init__(self, conv, pool):
        rngs = nnx.Rngs(0)
        make = partial(nnx.Conv, conv_general_dilated=conv, rngs=rngs, use_bias=False)
        self.layers = nnx.List(
            [
                make(16, 16, (3, 3), padding="SAME", feature_group_count=16),
                make(16, 24, (1, 1)),
                make(24, 24, (3, 3), strides=2, padding=((0, 1), (0, 1)), feature_group_count=24),
                make(24, 8, (3, 3), padding="VALID"),
            ]
        )
        self.pool = pool

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.pool(x, (3, 3), (2, 2), "SAME")


@cache
def _loss_of(conv, pool):
    """Loss as a function of weights and images, and its arguments."""
    graph, weights = nnx.split(_Net(conv, pool))
    args = weights, normal(0, 4, 13, 13, 16)
    return lambda weights, x: jnp.sum(nnx.merge(graph, weights)(x) ** 2), args


def test_flax_convolutions_take_it_as_their_operation():
    ours, args = _loss_of(ops.conv_general_dilated, ops.max_pool)
    theirs, _ = _loss_of(lax.conv_general_dilated, native_pool)
    found, expected = (jax.jit(jax.value_and_grad(f))(*args) for f in (ours, theirs))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_get_xlas_own_operations(platform):
    def texts(conv, pool):
        loss, args = _loss_of(conv, pool)
        return jax.jit(jax.value_and_grad(loss, (0, 1))).trace(*args).lower(lowering_platforms=(platform,)).as_text()

    ours, theirs = (
        texts(ops.conv_general_dilated, ops.max_pool),
        texts(lax.conv_general_dilated, native_pool),
    )
    kinds = [
        "convolution",
        "reduce_window",
        "select_and_scatter",
        "dot_general",
        "multiply",
        "pad",
        "slice",
        "while",
    ]
    counts = [{kind: text.count(f"stablehlo.{kind}") for kind in kinds} for text in (ours, theirs)]
    assert counts[0] == counts[1]
    assert counts[0]["convolution"] == 12 and counts[0]["select_and_scatter"] >= 1


def test_exported_for_three_platforms_at_once_runs_here():
    loss, args = _loss_of(ops.conv_general_dilated, ops.max_pool)
    leaves, tree = jax.tree.flatten(args)
    flat = jax.jit(lambda *leaves: loss(*jax.tree.unflatten(tree, leaves)))
    with ops.use_onednn(False):  # whose calls no other process is promised to have
        exported = jax.export.export(flat, platforms=["cpu", "cuda", "tpu"])(*leaves)
    np.testing.assert_allclose(exported.call(*leaves), loss(*args), rtol=1e-5)


@both
def test_cpu_programs_hold_no_convolution_that_xla_is_slow_at():
    loss, args = _loss_of(ops.conv_general_dilated, ops.max_pool)
    text = jax.jit(jax.grad(loss)).trace(*args).lower(lowering_platforms=("cpu",)).as_text()
    # The one 3x3 convolution itself and its two gradients; oneDNN has it, its input gradient, and depthwise ones.
    assert text.count("stablehlo.convolution") == (1 if takes(jnp.float32) else 3)
    assert "select_and_scatter" not in text


def test_a_frozen_kernel_costs_no_kernel_gradient():
    x, k = normal(0, 8, 6, 6, 4), normal(1, 3, 3, 1, 4)

    def loss(x, k):
        return jnp.sum(
            ops.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=4) ** 2
        )

    def compiled(argnums):
        return jax.jit(jax.grad(loss, argnums)).lower(x, k).compile().as_text()

    assert "while" not in compiled(0)
    assert "while" in compiled(1)


def test_each_operation_is_one_equation_with_a_steady_text():
    loss, args = _loss_of(ops.conv_general_dilated, ops.max_pool)
    names = [e.params.get("name") for e in jax.make_jaxpr(loss)(*args).eqns]
    assert [n for n in names if n and n.startswith("_")] == [
        "_depthwise",
        "_pointwise",
        "_depthwise",
        "_spatial",
        "_max_pool",
    ]
    first = str(jax.make_jaxpr(jax.grad(loss))(*args))
    jax.clear_caches()
    assert str(jax.make_jaxpr(jax.grad(loss))(*args)) == first
