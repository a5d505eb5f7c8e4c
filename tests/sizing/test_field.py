"""Receptive fields against what real stacks see: inputs that change a cell, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnjax import ops, sizing

# (kind, window, stride, padding, dilation)
STACKS = {
    "plain": [("conv", 3, 1, 0, 1), ("conv", 5, 1, 0, 1)],
    "padded and strided": [("conv", 3, 2, 1, 1), ("conv", 3, 1, 1, 1), ("pool", 2, 2, 0, 1), ("conv", 3, 2, 1, 1)],
    "same": [
        ("conv", 4, 1, "same", 1),
        ("conv", 3, 2, "same", 1),
        ("pool", 3, 2, "same", 1),
        ("conv", 2, 1, "same", 1),
    ],
    "dilated": [("conv", 3, 1, 2, 2), ("conv", 2, 1, 1, 3), ("conv", 3, 2, "same", 1)],
    "gaps": [("conv", 2, 3, 1, 1), ("conv", 2, 1, 0, 1)],
    "depthwise": [("dwconv", 3, 2, "same", 1), ("pool", 3, 1, 1, 1), ("dwconv", 3, 1, 0, 2)],
}


def notation(kind, window, stride, padding, dilation):
    pads = "same" if padding == "same" else f"+{padding}"
    return f"{kind}{window}{'-1' if kind == 'conv' else ''}/{stride}{pads}" + (f"d{dilation}" if dilation > 1 else "")


def response(layers, x):
    """The stack with positive weights on f32[N, H, W, 1], by XLA alone."""
    rng = np.random.default_rng(0)
    for kind, window, stride, padding, dilation in layers:
        pads = "SAME" if padding == "same" else ((padding, padding),) * 2
        if kind == "pool":
            x = ops.max_pool(x, (window, window), (stride, stride), pads)
        else:
            kernel = jnp.asarray(rng.uniform(0.5, 1, (window, window, 1, 1)), jnp.float32)
            x = jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), pads, rhs_dilation=(dilation, dilation),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
    return x


@pytest.mark.parametrize("name", STACKS)
def test_fields_hold_the_positions_that_change_a_cell(name):
    height, width, layers = 34, 29, STACKS[name]
    # Weights are positive: with one pixel lit, those cells answer that see it.
    lit = jnp.eye(height * width).reshape(-1, height, width, 1)
    seen = np.asarray(jax.jit(lambda x: response(layers, x))(lit))[..., 0] > 0
    seen = seen.reshape(height, width, *seen.shape[1:])
    row = sizing.size_stack(f"{height}x{width}x1", *(notation(*layer) for layer in layers), rule="floor")[-1]
    assert row.output.cells == seen.shape[2:]
    rows, columns = seen.any((1, 3)), seen.any((0, 2))  # (position, cell) of each axis
    inside = 0
    for field, matrix in zip(row.fields, (rows, columns), strict=True):
        for cell in range(matrix.shape[1]):
            first, last = field.interval(cell)
            found = np.flatnonzero(matrix[:, cell])
            assert first <= found[0] and found[-1] <= last
            if first >= 0 and last < matrix.shape[0]:
                inside += 1
                assert (found[0], found[-1]) == (first, last)
                assert field.centre(cell) == (found[0] + found[-1]) / 2
                assert len(found) == field.size or name in ("gaps", "dilated", "depthwise")
    assert inside >= 4


def test_fields_are_where_gradients_of_a_model_are_not_zero():
    rng = np.random.default_rng(0)
    made = dict(kernel_init=lambda key, shape, dtype: jnp.asarray(rng.normal(size=shape), dtype), rngs=nnx.Rngs(0))
    model = nnx.Sequential(
        nnx.Conv(1, 2, (3, 3), padding=((1, 1), (1, 1)), **made),
        nnx.Conv(2, 3, (3, 3), strides=2, padding="VALID", kernel_dilation=2, **made),
        nnx.Conv(3, 2, (2, 2), strides=2, padding="SAME", **made),
    )
    image = np.asarray(rng.normal(size=(21, 24, 1)), np.float32)
    gradients = jax.jit(jax.jacrev(lambda x: model(x[None])[0]))(image)
    touched = np.asarray(jnp.abs(gradients).sum((2, 5)) > 0)  # [H', W', H, W]
    row = sizing.size_stack("21x24x1", "conv3-2+1", "conv3-3/2d2", "conv2-2/2same", rule="floor")[-1]
    assert row.output.cells == touched.shape[:2]
    for axis, field in enumerate(row.fields):
        cell = 1
        found = np.flatnonzero(touched.any((1, 3) if axis == 0 else (0, 2))[cell])
        assert (found[0], found[-1]) == field.interval(cell)


def test_global_pooling_and_dense_layers_see_everything():
    rows = sizing.size_stack("13x9x3", "conv3-4", "pool2/1", "gap", "dense2")
    assert [[field.interval(0) for field in row.fields] for row in rows[2:]] == [[(0, 12), (0, 8)]] * 2
    flat = sizing.size_stack("13x9x3", "conv3-4+1", "flatten", "dense2", "dense2")
    assert [[field.interval(0) for field in row.fields] for row in flat[2:]] == [[(-1, 13), (-1, 9)]] * 2
    assert [row.jump for row in rows] == [1, 1, None, None]
