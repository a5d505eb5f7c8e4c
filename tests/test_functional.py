"""A model taken apart and put together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from residual import ResNet, randomized

from cnnjax.freeze import Freeze, layer_names
from cnnjax.functional import functionalize, leaves_of, modules

X = jax.random.normal(jax.random.key(0), (4, 16, 16, 3)) * 50


@pytest.fixture(scope="module")
def model():
    return randomized(ResNet(rngs=nnx.Rngs(0)))


def test_inference_is_the_models_own(model):
    f, leaves = functionalize(model), leaves_of(model)
    model.eval()
    assert np.allclose(f.apply(leaves, X, train=False)[0], model(X), rtol=1e-6)
    after = f.apply(leaves, X, train=False)[1]
    assert all(jnp.array_equal(after[p], x) for p, x in leaves.items() if x.dtype == jnp.float32)


def test_a_frozen_batchnorm_runs_on_stored_statistics_and_leaves_them(model):
    frozen = Freeze.parse("blocks/0/norm2").resolve(model)
    f, leaves = functionalize(model, frozen=frozen), leaves_of(model)
    _, after = f.apply(leaves, X, train=True)
    moved = {p for p, x in leaves.items() if p.endswith(("mean", "var")) and not jnp.array_equal(after[p], x)}
    assert moved == {p for p in leaves if p.endswith(("mean", "var")) and not frozen(p)}
    assert "norm/mean" not in moved and "blocks/1/norm1/mean" in moved


def test_a_batchnorm_without_parameters_is_frozen_with_its_layer():
    class Plain(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.norm = nnx.BatchNorm(3, use_scale=False, use_bias=False, rngs=rngs)
            self.out = nnx.Linear(3, 1, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.out(self.norm(x))

    plain = Plain(nnx.Rngs(0))
    leaves = leaves_of(plain)
    for spec, moves in (("none", True), ("norm", False)):
        f = functionalize(plain, frozen=Freeze.parse(spec).resolve(plain, example=(3,)))
        after = f.apply(leaves, X[:, 0, 0], train=True)[1]
        assert bool(jnp.any(after["norm/mean"] != leaves["norm/mean"])) is moves


def test_random_leaves_come_from_the_key_alone(model):
    f = functionalize(model)
    one, same, other = (f.random_leaves(jax.random.key(k)) for k in (1, 1, 2))
    keys = [p for p in one if p.endswith("key")]
    assert len(keys) == 2 and len({tuple(jax.random.key_data(one[p]).tolist()) for p in keys}) == 2
    for p in keys:
        assert jnp.array_equal(jax.random.key_data(one[p]), jax.random.key_data(same[p]))
        assert not jnp.array_equal(jax.random.key_data(one[p]), jax.random.key_data(other[p]))


def test_the_model_itself_is_left_alone(model):
    before = {p: np.array(x) for p, x in leaves_of(model).items() if x.dtype == jnp.float32}
    model.train()
    functionalize(model, frozen=lambda path: True).apply(leaves_of(model), X, train=True)
    assert model.norm.use_running_average is False and model.dropout.deterministic is False
    assert all(np.array_equal(x, leaves_of(model)[p]) for p, x in before.items())


def test_the_order_of_layers_survives_split_and_merge(model):
    # nnx.merge gives attributes back in alphabetical order.
    merged = nnx.merge(*nnx.split(model))
    assert layer_names(merged) == layer_names(model)
    assert sorted(p for p, _ in modules(merged)) == sorted(p for p, _ in modules(model))
