"""The lecture's network against Keras, and the registry of architectures."""

import jax
import numpy as np
import pytest
from flax import nnx

from cnnjax.models import BACKBONES, PUBLISHED, cifar_cnn, create, lecture_cnn
from cnnjax.models.registry import entries


def test_gives_keras_outputs_and_parameters(keras_oracle, assert_same):
    keras = keras_oracle.keras
    ours = lecture_cnn((50, 46, 3), (8, 16, 16, 24), include_top=False, rngs=nnx.Rngs(0))
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


def test_whole_networks_give_keras_probabilities(keras_oracle, assert_same):
    keras = keras_oracle.keras
    kinds = {"conv2d": "Conv2D", "max": "MaxPooling2D", "flatten": "Flatten", "global": "GlobalMaxPooling2D"}
    for ours, units, last in (
        (lecture_cnn((32, 30, 3), (4, 8), rngs=nnx.Rngs(0)), 512, "sigmoid"),
        (cifar_cnn(pooling="max", classes=3, rngs=nnx.Rngs(0)), 1024, "softmax"),
        (cifar_cnn((24, 28, 3), classes=2, rngs=nnx.Rngs(0)), 1024, "sigmoid"),
    ):
        theirs = keras.Sequential([keras.Input(ours.input_shape)])
        for name in ours.layer_names[:-2]:
            options = {}
            if name.startswith("conv"):
                options = {"filters": ours.get_layer(name).out_features, "kernel_size": 3, "activation": "relu"}
            theirs.add(getattr(keras.layers, kinds[name.split("_")[0]])(**options, name=name))
        theirs.add(keras.layers.Dense(units, activation="relu", name="dense_1"))
        theirs.add(keras.layers.Dense(ours.output_shape()[0], activation=last, name="dense_2"))
        for layer in theirs.layers:
            for variable in layer.weights:
                variable.assign(getattr(ours.get_layer(layer.name), variable.name)[...])
        x = np.random.default_rng(0).random((2, *ours.input_shape), dtype=np.float32)
        got = jax.jit(lambda m, x: m.activations(x, ("dense_1", "dense_2")))(ours, x)
        assert_same(got, keras_oracle.run(theirs, x, ("dense_1", "dense_2")))


def test_logits_are_what_the_probabilities_come_from():
    x = np.random.default_rng(0).random((2, 32, 32, 3), dtype=np.float32)
    for build, squash in ((lecture_cnn, jax.nn.sigmoid), (cifar_cnn, jax.nn.softmax)):
        options = {"widths": (4, 8)} if build is lecture_cnn else {}
        logits = build((32, 32, 3), **options, classifier_activation=None, rngs=nnx.Rngs(0))(x)
        probabilities = build((32, 32, 3), **options, rngs=nnx.Rngs(0))(x)
        np.testing.assert_allclose(squash(logits), probabilities, rtol=1e-5)


def test_impossible_pairs_are_refused():
    with pytest.raises(ValueError, match="no pooling 'maxx' in cifar_cnn; did you mean 'max'"):
        cifar_cnn(pooling="maxx", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"at least 24x24 pixels, found input_shape \(23, 32, 3\)"):
        cifar_cnn((23, 32, 3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="cifar_cnn with a flattening top needs a known image size"):
        cifar_cnn((None, None, 3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="at least two classes, found 1"):
        cifar_cnn(classes=1, rngs=nnx.Rngs(0))
    assert cifar_cnn((None, None, 3), "max", rngs=nnx.Rngs(0)).output_shape((40, 24, 3)) == (10,)


def test_default_is_the_lectures():
    model = nnx.eval_shape(lambda: lecture_cnn(include_top=False, rngs=nnx.Rngs(0)))
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
        model = nnx.eval_shape(
            lambda: lecture_cnn((side, side + 1, 1), (2,) * depth, include_top=False, rngs=nnx.Rngs(0))
        )
        assert model.output_shape()[0] == left
    else:
        with pytest.raises(ValueError, match=f"too small for {depth} widths"):
            lecture_cnn((side + 1, side, 1), (2,) * depth, include_top=False, rngs=nnx.Rngs(0))


def test_too_small_images_are_told_what_would_do():
    with pytest.raises(ValueError, match="that needs 46 pixels a side; 32 are enough for 3 widths"):
        lecture_cnn((32, 64, 3), include_top=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="at least one width"):
        lecture_cnn((32, 64, 3), (), include_top=False, rngs=nnx.Rngs(0))


def test_create_builds_by_name():
    for name in BACKBONES:
        model = nnx.eval_shape(
            lambda name=name: create(name, input_shape=(96, 96, 3), include_top=False, rngs=nnx.Rngs(0))
        )
        assert model.input_shape == (96, 96, 3)
    with pytest.raises(LookupError, match="no backbone 'mobilnet'; did you mean 'mobilenet'"):
        create("mobilnet", include_top=False, rngs=nnx.Rngs(0))


def test_every_published_entry_names_a_backbone():
    assert {entry.backbone for entry in PUBLISHED.values()} <= set(BACKBONES)
    assert all(name == entry.name for name, entry in PUBLISHED.items())
    assert sum(len(entry.published) for entry in entries().values()) == len(PUBLISHED)
