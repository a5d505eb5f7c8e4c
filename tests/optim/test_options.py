"""Accumulation, clipping, decay and the average, on gradients of real models and by their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from optim.steps import SHAPES, draw, run

from cnnjax.freeze import Freeze
from cnnjax.functional import functionalize, leaves_of
from cnnjax.models.layers import batch_normalization, conv2d, dense, depthwise_conv2d
from cnnjax.optim import averaged, decays, make_optimizer
from cnnjax.train.tasks import Classification


@pytest.fixture(scope="module")
def model():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        conv2d(3, 4, (3, 3), rngs=rngs), depthwise_conv2d(4, (3, 3), rngs=rngs), batch_normalization(4, rngs=rngs),
        lambda x: x.mean((1, 2)), dense(4, 3, rngs=rngs),
    )  # fmt: skip


@pytest.fixture(scope="module")
def gradients(model):
    """(parameters, compiled gradient of the mean loss of a batch)."""
    functional = functionalize(model)
    leaves = leaves_of(model)
    params = {p: leaves[p] for p in functional.parameters()}

    @jax.jit
    def gradient(params, images, labels):
        logits = lambda p: functional.apply({**leaves, **p}, images, train=False)[0]  # noqa: E731
        return jax.grad(lambda p: Classification().loss(logits(p), labels).mean())(params)

    return params, gradient


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_accumulating_small_batches_is_one_large_batch(name, gradients):
    params, gradient = gradients
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(2, 12, 8, 8, 3)).astype(np.float32), rng.integers(0, 3, (2, 12))
    whole, parts = dict(params), dict(params)
    large, small = make_optimizer(name, 0.1), make_optimizer(name, 0.1, accumulate=3)
    state, small_state = large.init(whole), small.init(parts)
    for k in range(2):
        whole, state = run(large, whole, 0, 1, state, gradient(whole, images[k], labels[k]))
        for part in range(3):
            mine = slice(4 * part, 4 * part + 4)
            before = parts
            parts, small_state = run(small, parts, 0, 1, small_state, gradient(parts, images[k, mine], labels[k, mine]))
            assert part == 2 or all(np.array_equal(parts[p], before[p]) for p in parts)
    for path in params:
        # Adam divides by the gradient's size, and with it magnifies rounding where a gradient is small.
        assert np.allclose(parts[path], whole[path], rtol=1e-3, atol=2e-5), path
        assert not np.allclose(parts[path], params[path], atol=1e-4), path


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_frozen_leaves_do_not_distort_the_clip(name, model, gradients):
    params, gradient = gradients
    rng = np.random.default_rng(1)
    grads = gradient(params, rng.normal(size=(4, 8, 8, 3)).astype(np.float32), np.array([0, 1, 2, 0]))
    frozen = Freeze.depth(2).resolve(model)
    grads = {p: 1e6 * g if frozen.is_frozen(p) else g for p, g in grads.items()}
    mine, kept = frozen.partition(params)
    tx = make_optimizer(name, 0.1, clip=1e-3, weight_decay=0.1, ema=0.9)
    full, state = run(frozen.optimizer(tx), params, 0, 1, gradient=grads)
    alone, _ = run(tx, mine, 0, 1, gradient=frozen.partition(grads)[0])
    assert kept.keys() and all(np.array_equal(full[p], x) for p, x in kept.items())
    assert all(np.array_equal(full[p], x) for p, x in alone.items())
    assert averaged(state).keys() == mine.keys()
    if name == "sgd":
        steps = [0.1 * 0.1 * x * decays(p, x) + full[p] - x for p, x in mine.items()]
        assert np.isclose(np.sqrt(sum((s**2).sum() for s in steps)), 0.1 * 1e-3, rtol=1e-2)


def test_decay_is_a_share_of_kernels_and_of_nothing_else(gradients):
    params, _ = gradients
    assert {p for p, x in params.items() if decays(p, x)} == {f"layers/{k}/kernel" for k in (0, 1, 4)}
    still = {p: np.zeros(x.shape, np.float32) for p, x in params.items()}
    for name in ("sgd", "rmsprop", "adam"):
        after, _ = run(make_optimizer(name, 0.1, weight_decay=0.5), params, 0, 2, gradient=still)
        for path, x in params.items():
            share = (1 - 0.1 * 0.5) ** 2 if path.endswith("kernel") else 1.0
            assert np.allclose(after[path], share * x, rtol=1e-6), (name, path)
    assert not decays("norm/scale", jnp.ones((4, 4, 8)))
    assert not decays("block/layer_scale", jnp.ones(8))


def test_adamw_decays_everything_unless_told():
    params, zero = (
        {p: jnp.ones(s) for p, s in SHAPES.items()},
        {p: np.zeros(s) for p, s in SHAPES.items()},
    )
    plain, _ = run(make_optimizer("adamw", 0.1), params, 0, 1, gradient=zero)
    none, _ = run(make_optimizer("adamw", 0.1, weight_decay=0), params, 0, 1, gradient=zero)
    assert all(np.allclose(x, 1 - 0.1 * 4e-3) for x in plain.values())
    assert all(np.array_equal(x, np.ones_like(x)) for x in none.values())


def test_the_average_moves_on_real_steps_only():
    tx, params = make_optimizer("sgd", 0.1, ema=0.7, accumulate=2), {"w": jnp.asarray(draw(3)["head/dense/kernel"])}
    state, expected = tx.init(params), params["w"]
    assert np.array_equal(averaged(state)["w"], params["w"])
    for k in range(7):
        params, state = run(tx, params, k, k + 1, state)
        if k == 1:
            expected = params["w"]
        elif k % 2:
            expected = 0.7 * expected + 0.3 * params["w"]
        assert np.allclose(averaged(state)["w"], expected, rtol=1e-6), k


def test_the_average_outlives_a_donated_state():
    tx, params = make_optimizer("sgd", ema=0.7), {"w": jnp.ones(2)}
    state = tx.init(params)
    kept = averaged(state)
    step = jax.jit(lambda s: tx.update({"w": jnp.ones(2)}, s, {"w": jnp.ones(2)})[1], donate_argnums=0)
    step(state)
    assert kept["w"].tolist() == params["w"].tolist() == [1, 1]
