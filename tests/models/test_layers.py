"""Layers against Keras's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnjax.models import layers

X = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype("float32")
JAX_X = jnp.array(X)


def _values(keras_layer):
    return [np.asarray(variable.value) for variable in keras_layer.weights]


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_conv2d(padding, strides, keras_oracle):
    theirs = keras_oracle.keras.layers.Conv2D(4, (3, 3), strides, padding, activation="relu", bias_initializer="ones")
    want = np.asarray(theirs(X))
    ours = layers.conv2d(3, 4, (3, 3), strides, padding=padding.upper(), activation="relu", rngs=nnx.Rngs(0))
    kernel, bias = _values(theirs)
    assert ours.bias is not None
    assert (ours.kernel.shape, ours.bias.shape) == (kernel.shape, bias.shape)
    ours.kernel[...], ours.bias[...] = jnp.array(kernel), jnp.array(bias)
    np.testing.assert_allclose(ours(JAX_X), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("padding", "strides"), [("same", (1, 1)), ("valid", (2, 2))])
def test_depthwise_conv2d(padding, strides, keras_oracle):
    theirs = keras_oracle.keras.layers.DepthwiseConv2D((3, 3), strides, padding, use_bias=False)
    want = np.asarray(theirs(X))
    ours = layers.depthwise_conv2d(3, (3, 3), strides, padding=padding.upper(), use_bias=False, rngs=nnx.Rngs(0))
    (kernel,) = _values(theirs)
    ours.kernel[...] = jnp.array(kernel.transpose(0, 1, 3, 2))
    np.testing.assert_allclose(ours(JAX_X), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("padding", "strides"), [("same", (1, 1)), ("valid", (2, 2))])
def test_separable_conv2d(padding, strides, keras_oracle):
    theirs = keras_oracle.keras.layers.SeparableConv2D(5, (3, 3), strides, padding, bias_initializer="ones")
    want = np.asarray(theirs(X))
    ours = layers.separable_conv2d(3, 5, (3, 3), strides, padding=padding.upper(), rngs=nnx.Rngs(0))
    depthwise, pointwise, bias = _values(theirs)
    ours.depthwise.kernel[...] = jnp.array(depthwise.transpose(0, 1, 3, 2))
    ours.pointwise.kernel[...], ours.pointwise.bias[...] = jnp.array(pointwise), jnp.array(bias)
    np.testing.assert_allclose(ours(JAX_X), want, rtol=1e-5, atol=1e-5)


def test_normalization_by_stored_statistics(keras_oracle):
    theirs = keras_oracle.keras.layers.Normalization()
    theirs.adapt(2.0 * X + 1.0)
    ours = layers.Normalization(3)
    ours.mean[...], ours.var[...] = (jnp.array(values) for values in _values(theirs)[:2])
    np.testing.assert_allclose(ours(JAX_X), theirs(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "activation",
    ["linear", "relu", "relu6", "sigmoid", "softmax", "tanh", "silu", "swish", "hard_sigmoid", "hard_swish", "gelu"],
)
def test_dense_and_activations(activation, keras_oracle):
    theirs = keras_oracle.keras.layers.Dense(5, activation=activation)
    want = np.asarray(theirs(X))
    ours = layers.dense(3, 5, activation=activation, rngs=nnx.Rngs(0))
    ours.kernel[...] = jnp.array(_values(theirs)[0])
    np.testing.assert_allclose(ours(JAX_X), want, rtol=1e-5, atol=1e-5)
    alone = keras_oracle.keras.layers.Activation(activation)(X)
    np.testing.assert_allclose(layers.Activation(activation)(JAX_X), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scale", "center"), [(True, True), (False, True), (True, False), (False, False)])
def test_batch_normalization_trains_and_infers_like_keras(scale, center, keras_oracle):
    theirs = keras_oracle.keras.layers.BatchNormalization(scale=scale, center=center)
    ours = layers.batch_normalization(3, scale=scale, center=center, rngs=nnx.Rngs(0))
    x = 3.0 + 2.0 * X
    for _ in range(3):
        want = theirs(x, training=True)
        np.testing.assert_allclose(ours(x), want, rtol=1e-4, atol=1e-5)
    names = [*["scale"] * scale, *["bias"] * center, "mean", "var"]
    moved = dict(zip(names, _values(theirs), strict=True))
    assert sorted("/".join(path) for path, _ in nnx.to_flat_state(nnx.state(ours))) == sorted(names)
    assert abs(moved["mean"].mean() - 3.0 * (1 - 0.99**3)) < 0.02
    for name, values in moved.items():
        np.testing.assert_allclose(getattr(ours, name)[...], values, rtol=1e-4, atol=1e-6)
    ours.eval()
    np.testing.assert_allclose(ours(x), theirs(x, training=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "name", "kwargs"),
    [
        (layers.InputLayer(), "Identity", {}),
        (layers.ReLU(), "ReLU", {}),
        (layers.ReLU(1.0), "ReLU", {"max_value": 1.0}),
        (
            layers.Standardization((1.0, 2.0, 3.0), (4.0, 9.0, 0.25)),
            "Normalization",
            {"mean": [1.0, 2.0, 3.0], "variance": [4.0, 9.0, 0.25]},
        ),
        (layers.ZeroPadding2D(((0, 1), (2, 3))), "ZeroPadding2D", {"padding": ((0, 1), (2, 3))}),
        (layers.MaxPooling2D(), "MaxPooling2D", {}),
        (layers.MaxPooling2D((3, 2), (2, 1)), "MaxPooling2D", {"pool_size": (3, 2), "strides": (2, 1)}),
        (layers.GlobalAveragePooling2D(), "GlobalAveragePooling2D", {}),
        (layers.GlobalAveragePooling2D(keepdims=True), "GlobalAveragePooling2D", {"keepdims": True}),
        (layers.GlobalMaxPooling2D(), "GlobalMaxPooling2D", {}),
        (layers.Flatten(), "Flatten", {}),
        (layers.Reshape((8, 27)), "Reshape", {"target_shape": (8, 27)}),
    ],
)
def test_weightless_layers(ours, name, kwargs, keras_oracle):
    want = np.asarray(getattr(keras_oracle.keras.layers, name)(**kwargs)(X))
    np.testing.assert_allclose(ours(JAX_X), want, rtol=1e-5, atol=1e-6)
    assert jax.tree.leaves(nnx.state(ours)) == []
    hash(nnx.graphdef(ours))


@pytest.mark.parametrize(
    ("layer", "limit"),
    [
        (lambda rngs: layers.conv2d(64, 128, (3, 3), rngs=rngs), (6 / (9 * 64 + 9 * 128)) ** 0.5),
        (lambda rngs: layers.depthwise_conv2d(512, (3, 3), rngs=rngs), (6 / (9 * 512 + 9)) ** 0.5),
        (lambda rngs: layers.dense(300, 500, rngs=rngs), (6 / (300 + 500)) ** 0.5),
    ],
)
def test_kernels_are_glorot_uniform(layer, limit):
    made = layer(nnx.Rngs(0))
    kernel = np.asarray(made.kernel[...]).ravel()
    assert kernel.dtype == np.float32
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    assert abs(kernel.mean()) < 5 * limit / np.sqrt(3 * kernel.size)
    np.testing.assert_allclose(kernel.var(), limit**2 / 3, rtol=0.05)
    assert not made.bias[...].any()
    assert (kernel != np.asarray(layer(nnx.Rngs(1)).kernel[...]).ravel()).mean() > 0.99


def test_blocks_of_a_large_kernel_differ_and_compiling_changes_nothing():
    kernel = layers.dense(300, 500, rngs=nnx.Rngs(0)).kernel[...]
    blocks = np.asarray(kernel).ravel()[: 2 * 65536].reshape(2, 65536)
    assert abs(np.corrcoef(blocks)[0, 1]) < 0.02
    compiled = nnx.jit(lambda: layers.dense(300, 500, rngs=nnx.Rngs(0)))().kernel[...]
    np.testing.assert_allclose(compiled, kernel, rtol=1e-6)


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="no activation 'rleu'; did you mean 'relu'"):
        layers.dense(2, 2, activation="rleu", rngs=nnx.Rngs(0))
