"""VGG16 and VGG19 against Keras, with weights that Keras saved."""

import importlib
import inspect
import re

import jax
import numpy as np
import pytest
from flax import nnx

from cnnjax.models.preprocessing import preprocess
from cnnjax.models.vgg import PUBLISHED, vgg16, vgg19
from cnnjax.weights.assign import load_weights

NAMES = ("block1_conv2", "block1_pool", "block3_conv3", "block5_conv1", "block5_pool")
ANY_SIZE = (None, None, 3)


def _with_biases(model):
    """Give Keras's model biases as well, which start at zero."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if layer.weights:
            layer.bias.assign(rng.normal(0.0, 0.1, layer.bias.shape).astype("float32"))
    return model


@pytest.fixture(scope="module")
def pair(keras_oracle, tmp_path_factory):
    """Our model and Keras's, with Keras's weights through a file that Keras wrote."""
    file = tmp_path_factory.mktemp("vgg16") / "vgg16.h5"
    theirs = _with_biases(keras_oracle.keras.applications.VGG16(weights=None, input_shape=ANY_SIZE, include_top=False))
    keras_oracle.save(theirs, file)
    ours = nnx.eval_shape(lambda: vgg16(ANY_SIZE, include_top=False, rngs=nnx.Rngs(0)))
    load_weights(ours, file)
    return ours, theirs


@pytest.mark.parametrize("size", [160, pytest.param(180, marks=pytest.mark.slow), 224])
def test_saved_weights_give_keras_outputs(size, pair, keras_oracle, photographs, assert_same):
    ours, theirs = pair
    images = photographs(size, 1)
    prepared = keras_oracle.keras.applications.vgg16.preprocess_input(images.astype("float32"))
    want = keras_oracle.run(theirs, prepared, NAMES)
    got = jax.jit(lambda m, x: m.activations(preprocess(x, "caffe"), NAMES))(ours, images)
    assert_same(got, want)


def test_top_gives_keras_outputs(keras_oracle, tmp_path, assert_same):
    theirs = _with_biases(keras_oracle.keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=5))
    keras_oracle.save(theirs, tmp_path / "top.h5")
    ours = nnx.eval_shape(lambda: vgg16((32, 32, 3), include_top=True, classes=5, rngs=nnx.Rngs(0)))
    assert load_weights(ours, tmp_path / "top.h5").left_out == ()
    x = np.random.default_rng(0).normal(0.0, 60.0, (2, 32, 32, 3)).astype("float32")
    names = ("flatten", "fc1", "fc2", "predictions")
    assert_same(jax.jit(lambda m, x: m.activations(x, names))(ours, x), keras_oracle.run(theirs, x, names))

    without = nnx.eval_shape(lambda: vgg16(ANY_SIZE, include_top=False, rngs=nnx.Rngs(0)))
    report = load_weights(without, tmp_path / "top.h5", leave_out="top")
    assert report.left_out == tuple(f"{n}/{t}" for n in ("fc1", "fc2", "predictions") for t in ("kernel", "bias"))
    np.testing.assert_array_equal(without.block5_conv3.kernel, ours.block5_conv3.kernel)


@pytest.mark.parametrize(("depth", "top"), [(16, False), (16, True), (19, False), (19, True)])
def test_layers_are_keras_layers(depth, top, keras_oracle):
    keras = keras_oracle.keras
    keras.backend.clear_session()
    theirs = getattr(keras.applications, f"VGG{depth}")(weights=None, input_shape=(64, 96, 3), include_top=top)
    function = {16: vgg16, 19: vgg19}[depth]
    ours = nnx.eval_shape(lambda: function((64, 96, 3), include_top=top, rngs=nnx.Rngs(0)))
    assert ours.layer_names == tuple(layer.name for layer in theirs.layers)
    shapes = jax.eval_shape(
        lambda m, x: m.activations(x, m.layer_names), ours, jax.ShapeDtypeStruct((1, 64, 96, 3), np.float32)
    )
    for layer in theirs.layers:
        mine = nnx.state(ours.get_layer(layer.name), nnx.Param)
        assert sum(leaf.size for leaf in jax.tree.leaves(mine)) == layer.count_params(), layer.name
        assert shapes[layer.name].shape[1:] == tuple(layer.output.shape[1:]), layer.name


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"input_shape": (224, 31, 3)}, r"at least 32x32 pixels, found input_shape \(224, 31, 3\)"),
        ({"input_shape": (None, 64, 3), "include_top": True}, "with top needs a known image size"),
        ({"widths": ()}, r"one to 5 blocks, .* found \(\)"),
    ],
)
def test_impossible_models_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        vgg16(**{"include_top": False, **kwargs}, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("depth", [16, 19])
def test_published_files_are_those_keras_downloads(depth, keras_oracle):
    theirs = importlib.import_module(f"keras.src.applications.vgg{depth}")
    hashes = re.findall(r'file_hash="(\w+)"', inspect.getsource(getattr(theirs, f"VGG{depth}")))
    with_top, without = published = [entry for entry in PUBLISHED if entry.backbone == f"vgg{depth}"]
    assert (with_top.include_top, without.include_top) == (True, False)
    assert [entry.url for entry in published] == [theirs.WEIGHTS_PATH, theirs.WEIGHTS_PATH_NO_TOP]
    assert [entry.digest for entry in published] == [f"md5:{digest}" for digest in hashes]
