"""The lecture's network against Keras, and the registry of architectures."""

import jax
import numpy as np
import pytest
from flax import nnx

from cnnjax.models import BACKBONES, PUBLISHED, create, lecture_cnn


def test_gives_keras_outputs_and_parameters(keras_oracle, assert_same):
    keras = keras_oracle.keras
    ours = lecture_cnn((50, 46, 3), (8, 16, 16, 24), rngs=nnx.Rngs(0))
    theirs = keras.Sequential([keras.Input((50, 46, 3))])
    for i, width in enumerate((8, 16, 16, 24), start=1):
        theirs.add(keras.layers.Conv2D(width, (3, 3), activation="relu", name=f"conv2d_{i}"))
        theirs.add(keras.layers.MaxPooling2D((2, 2), name=f"max_pooling2d_{i}"))
    assert ours.layer_names == tuple(layer.name for layer in theirs.layers)
    for layer in theirs.layers:
        for variable in layer.weights:
            variable.assign(getattr(ours.get_layer(layer.name), variable.name)[...])
    x = np.random.default_rng(0).random((3, 50, 46, 3), dtype=np.float32)
    got = jax.jit(lambda m, x: m.activations(x, m.layer_names))(ours, x)
    assert_same(got, keras_oracle.run(theirs, x, ours.layer_names))


def test_default_is_the_lectures():
    model = nnx.eval_shape(lambda: lecture_cnn(rngs=nnx.Rngs(0)))
    kernels = [3 * 3 * a * b + b for a, b in ((3, 32), (32, 64), (64, 128), (128, 128))]
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) == sum(kernels) == 240_832
    assert model.output_shape() == (7, 7, 128)


@pytest.mark.parametrize("side", range(10, 65, 9))
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_size_limit_is_where_nothing_is_left(side, depth):
    left = side
    for _ in range(depth):
        left = (left - 2) // 2
    if left > 0:
        model = nnx.eval_shape(lambda: lecture_cnn((side, side + 1, 1), (2,) * depth, rngs=nnx.Rngs(0)))
        assert model.output_shape()[0] == left
    else:
        with pytest.raises(ValueError, match=f"too small for {depth} widths"):
            lecture_cnn((side + 1, side, 1), (2,) * depth, rngs=nnx.Rngs(0))


def test_too_small_images_are_told_what_would_do():
    with pytest.raises(ValueError, match="that needs 46 pixels a side; 32 are enough for 3 widths"):
        lecture_cnn((32, 64, 3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="at least one width"):
        lecture_cnn((32, 64, 3), (), rngs=nnx.Rngs(0))


def test_create_builds_by_name():
    for name in BACKBONES:
        model = nnx.eval_shape(lambda name=name: create(name, input_shape=(64, 64, 3), rngs=nnx.Rngs(0)))
        assert model.input_shape == (64, 64, 3)
    with pytest.raises(LookupError, match="no backbone 'mobilnet'; did you mean 'mobilenet'"):
        create("mobilnet", rngs=nnx.Rngs(0))


def test_every_published_entry_names_a_backbone():
    assert len(PUBLISHED) == 34
    assert {entry.backbone for entry in PUBLISHED.values()} == {"mobilenet", "vgg16"}
    assert all(name == entry.name for name, entry in PUBLISHED.items())
