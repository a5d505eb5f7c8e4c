"""Hooks on the layers of models that are not ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from residual import ResNet

from cnnjax.functional import functionalize, leaves_of
from cnnjax.hooks import layer_of, outputs, with_hook


@pytest.fixture(scope="module")
def model() -> ResNet:
    return ResNet(rngs=nnx.Rngs(0))


def test_outputs_are_the_layers_own(model):
    images = jnp.asarray(np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)), jnp.float32)
    found = outputs(model, images, ["blocks/1", "norm", "out"])
    model.eval()
    x = jax.nn.relu(model.norm(model.stem(images / 127.5 - 1)))
    np.testing.assert_allclose(found["norm"], model.norm(model.stem(images / 127.5 - 1)), atol=1e-5)
    np.testing.assert_allclose(found["blocks/1"], model.blocks[1](model.blocks[0](x)), atol=1e-5)
    np.testing.assert_allclose(found["out"], model(images), atol=1e-5)
    model.train()


def test_a_hook_can_change_what_a_layer_gives(model):
    functional, images = functionalize(model), jnp.ones((1, 16, 16, 3))

    def silenced(path, out):
        return jnp.zeros_like(out) if path == "dropout" else out

    logits = with_hook(functional.module(leaves_of(model)), silenced)(images)
    np.testing.assert_allclose(logits, jnp.broadcast_to(model.out.bias[...], (1, 1)))
    assert type(model.dropout) is nnx.Dropout  # the model itself has no hook


def test_unknown_and_uncalled_layers_are_named(model):
    with pytest.raises(LookupError, match=r"no layer 'blocks/1/conv3' in ResNet; did you mean 'blocks/1/conv\d'"):
        outputs(model, jnp.ones((1, 16, 16, 3)), ["blocks/1/conv3"])

    class Idle(nnx.Module):
        def __init__(self, rngs):
            self.used, self.idle = nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)

        def __call__(self, x):
            return self.used(x)

    with pytest.raises(LookupError, match="Idle does not call idle"):
        outputs(Idle(nnx.Rngs(0)), jnp.ones((1, 2)), ["idle"])


def test_scopes_tell_the_innermost_layer():
    assert layer_of("a/layer<x|0>/jit(f)/layer<x|0|y>/add") == "x/0/y"
    assert layer_of("add") is None
