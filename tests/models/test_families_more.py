"""ResNet-V2, DenseNet and NASNet against Keras: names, what each layer reads, shapes, parameters and outputs."""

import importlib

import jax
import numpy as np
import pytest
from flax import nnx

from cnnjax.models import create
from cnnjax.weights.assign import load_weights


def small_resnet_v2(keras):
    """Two stages of Keras's ResNet50V2, with top."""
    theirs = importlib.import_module("keras.src.applications.resnet")

    def stages(x):
        x = theirs.stack_residual_blocks_v2(x, 64, 3, name="conv2")
        return theirs.stack_residual_blocks_v2(x, 128, 4, name="conv3")

    return theirs.ResNet(stages, True, True, weights=None, input_shape=(48, 64, 3), classes=5)


def small_densenet(keras):
    theirs = importlib.import_module("keras.src.applications.densenet")
    return theirs.DenseNet([2, 3, 1, 2], weights=None, input_shape=(48, 64, 3), classes=5)


# Keras's network, our options, and the layers whose outputs are compared.
SMALL = {
    "resnet_v2": (
        small_resnet_v2,
        {"depth": 50, "widths": (64, 128)},
        ("pool1_pool", "conv2_block1_out", "max_pooling2d", "conv2_block3_out", "conv3_block4_out", "predictions"),
    ),
    "densenet": (
        small_densenet,
        {"depths": (2, 3, 1, 2)},
        ("pool1", "conv2_block2_concat", "pool2_pool", "conv4_block1_concat", "relu", "predictions"),
    ),
}


def randomize(theirs):
    """Give Keras's network statistics and biases as after training, of a size that keeps the numbers in bounds."""
    rng = np.random.default_rng(0)
    for layer in theirs.layers:
        for variable in layer.weights:
            low, high = {"gamma": (0.5, 1), "moving_variance": (0.5, 1.5), "moving_mean": (-1, 1)}.get(
                variable.name, (-0.5, 0.5)
            )
            if len(variable.shape) == 1:
                variable.assign(rng.uniform(low, high, variable.shape))
    return theirs


@pytest.fixture(scope="module", params=SMALL)
def pair(request, keras_oracle, tmp_path_factory):
    """Keras's network with random weights and statistics, ours filled from the file that Keras saved, layer names."""
    build, options, names = SMALL[request.param]
    keras_oracle.keras.backend.clear_session()
    theirs = randomize(build(keras_oracle.keras))
    file = tmp_path_factory.mktemp("keras") / "network.h5"
    keras_oracle.save(theirs, file)
    options = {"input_shape": (48, 64, 3), "classes": 5, **options}
    ours = nnx.eval_shape(lambda: create(request.param, rngs=nnx.Rngs(0), **options))
    assert load_weights(ours, file).left_out == ()
    ours.eval()
    return ours, theirs, names


def test_random_weights_give_keras_outputs(pair, keras_oracle, assert_same):
    ours, theirs, names = pair
    x = np.random.default_rng(1).normal(0, 1, (2, 48, 64, 3)).astype("float32")
    want = keras_oracle.run(theirs, x, names)
    assert_same(jax.jit(lambda m, x: m.activations(x, names))(ours, x), want)


def test_layers_are_keras_layers(pair):
    ours, theirs, _ = pair
    assert ours.layer_names == tuple(layer.name for layer in theirs.layers)
    shapes = jax.eval_shape(
        lambda m, x: m.activations(x, m.layer_names), ours, jax.ShapeDtypeStruct((1, 48, 64, 3), np.float32)
    )
    for layer, reads in zip(theirs.layers, ours.layer_inputs, strict=True):
        mine = nnx.state(ours.get_layer(layer.name), nnx.Any(nnx.Param, nnx.BatchStat))
        assert sum(leaf.size for leaf in jax.tree.leaves(mine)) == layer.count_params(), layer.name
        assert shapes[layer.name].shape[1:] == tuple(layer.output.shape[1:]), layer.name
        theirs_read = layer.input if isinstance(layer.input, list) else [layer.input]
        assert layer.name == "input_layer" or list(reads) == [x._keras_history[0].name for x in theirs_read]
