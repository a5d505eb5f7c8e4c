"""What backbones share, and the classifier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnjax.models.backbone import Backbone, Classifier
from cnnjax.models.heads import lecture_head, linear_head
from cnnjax.models.layers import Activation, Flatten, InputLayer, batch_normalization, dense

X = np.random.default_rng(0).normal(size=(4, 2, 3, 5)).astype("float32")


@pytest.fixture
def model() -> Backbone:
    rngs = nnx.Rngs(0)
    return Backbone(
        [
            ("input_layer", InputLayer()),
            ("bn", batch_normalization(5, rngs=rngs)),
            ("flatten", Flatten()),
            ("dropout", nnx.Dropout(0.5, rngs=rngs)),
            ("fc1", dense(30, 7, rngs=rngs)),
            ("predictions", Activation("softmax")),
        ],
        input_shape=(2, 3, 5),
    )


def test_layers_keep_their_order_and_names(model):
    assert model.layer_names == ("input_layer", "bn", "flatten", "dropout", "fc1", "predictions")
    assert [layer.name for layer in model.layers[:-4]] == ["input_layer", "bn"]
    assert model.get_layer("fc1") is model.fc1 is model.layers[4]
    paths = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param, nnx.BatchStat)[0])}
    assert paths == {"bn/scale", "bn/bias", "fc1/kernel", "fc1/bias"}


def test_output_is_that_of_the_layers_in_turn(model):
    model.eval()
    flat = (X / np.sqrt(1.001)).reshape(4, 30)
    logits = flat @ np.asarray(model.fc1.kernel[...])
    want = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(model(X), want, rtol=1e-5)
    got = model.activations(X, ["fc1", "flatten"])
    assert list(got) == ["fc1", "flatten"]
    np.testing.assert_allclose(got["fc1"], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["flatten"], flat, rtol=1e-5)


def test_output_shape_runs_nothing(model):
    model.train()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    assert model.output_shape() == (7,)
    assert model.ends_at("flatten").output_shape((2, 3, 5)) == (30,)
    after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_ends_at_is_an_independent_copy(model):
    short = model.ends_at("dropout")
    assert short.layer_names == ("input_layer", "bn", "flatten", "dropout")
    assert short.bn is not model.bn
    before = np.asarray(model.bn.mean[...])
    short.train()
    short(X + 1.0)
    assert np.abs(short.bn.mean[...]).min() > 0.0
    np.testing.assert_array_equal(model.bn.mean[...], before)
    _, donated = nnx.split(short)
    jax.jit(lambda s: jax.tree.map(lambda a: a, s), donate_argnums=0)(donated)
    model(X)  # its arrays are alive


def test_train_eval_and_view_switch_dropout_and_batchnorm(model):
    model.train()
    a, b = model(X), model(X)
    assert (a != b).any()
    still = nnx.view(model, deterministic=True, use_running_average=True)
    np.testing.assert_array_equal(still(X), still(X))
    model.eval()
    np.testing.assert_array_equal(model(X), still(X))


def test_tree_mode_works(model):
    assert nnx.find_duplicates(model) == []
    model.eval()
    graphdef, state = nnx.split(model, graph=False)
    np.testing.assert_array_equal(nnx.merge(graphdef, state)(X), model(X))
    hash(graphdef)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 5), r"expected a batch of shape \(N, 2, 3, 5\), found \(2, 3, 5\)"),
        ((1, 2, 3, 4), r"expected .*\(N, 2, 3, 5\), found \(1, 2, 3, 4\)"),
        ((1, 3, 3, 5), r"expected .*\(N, 2, 3, 5\), found \(1, 3, 3, 5\)"),
    ],
)
def test_wrong_input_is_refused(shape, message, model):
    with pytest.raises(ValueError, match=message):
        model(jnp.zeros(shape))


def test_too_small_input_is_refused_by_layer():
    from cnnjax.models.lecture_cnn import lecture_cnn

    model = lecture_cnn((None, None, 3), (4, 4), include_top=False, rngs=nnx.Rngs(0))
    assert model.output_shape((10, 11, 3)) == (1, 1, 4)
    with pytest.raises(ValueError, match=r"\(9, 12, 3\) is too small: layer 'max_pooling2d_2' leaves \(0, 1, 4\)"):
        model.output_shape((9, 12, 3))
    with pytest.raises(ValueError, match=r"takes inputs of shape \(None, None, 3\): give output_shape a size"):
        model.output_shape()
    with pytest.raises(ValueError, match=r"expected a batch of shape \(N, any, any, 3\), found \(1, 20, 20, 1\)"):
        model(jnp.zeros((1, 20, 20, 1)))


@pytest.mark.parametrize("call", [Backbone.get_layer, Backbone.ends_at, lambda m, n: m.activations(X, [n])])
def test_unknown_layer_is_refused_with_the_nearest(call, model):
    with pytest.raises(LookupError, match="no layer 'fc2' in .*; did you mean 'fc1'"):
        call(model, "fc2")


@pytest.mark.parametrize("name", ["layers", "input_shape", "train", "a/b"])
def test_impossible_layer_names_are_refused(name):
    with pytest.raises(ValueError, match=f"layer name '{name}' is used twice, taken by Backbone, or no Python name"):
        Backbone([(name, Flatten())], input_shape=(2, 3, 5))


def test_a_layer_stands_in_one_place():
    layer = Flatten()
    with pytest.raises(ValueError, match="layers 'a' and 'b' are one and the same module"):
        Backbone([("a", layer), ("b", layer)], input_shape=(2, 3, 5))
    with pytest.raises(ValueError, match="layer name 'a' is used twice"):
        Backbone([("a", Flatten()), ("a", Flatten())], input_shape=(2, 3, 5))
    with pytest.raises(ValueError, match="at least one layer"):
        Backbone([], input_shape=(2, 3, 5))


@pytest.mark.parametrize(("classes", "logits"), [(2, 1), (3, 3), (10, 10)])
def test_heads(classes, logits):
    rngs = nnx.Rngs(0)
    lecture = lecture_head((2, 3, 5), classes, rngs=rngs)
    linear = linear_head((2, 3, 5), classes, rngs=rngs)
    assert lecture.layer_names == ("flatten", "dense", "dropout", "dense_1")
    assert linear.layer_names == ("global_average_pooling2d", "dropout", "dense")
    assert (lecture.dropout.rate, linear.dropout.rate) == (0.5, 0.2)
    for head in (lecture, linear):
        head.eval()
        assert head(X).shape == (4, logits)
    first, last = np.asarray(lecture.dense.kernel[...]), np.asarray(lecture.dense_1.kernel[...])
    assert first.shape == (30, 256)
    np.testing.assert_allclose(lecture(X), X.reshape(4, 30) @ first @ last, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(linear(X), X.mean((1, 2)) @ np.asarray(linear.dense.kernel[...]), rtol=1e-3, atol=1e-5)


def test_heads_need_two_classes():
    with pytest.raises(ValueError, match="at least two classes, found 1"):
        linear_head((2, 3, 5), 1, rngs=nnx.Rngs(0))


def test_classifier_preprocesses():
    rngs = nnx.Rngs(0)
    backbone = Backbone([("input_layer", InputLayer())], input_shape=(4, 4, 3))
    model = Classifier(backbone, linear_head((4, 4, 3), 3, rngs=rngs), "tf")
    model.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    want = (pixels / 127.5 - 1.0).mean((1, 2)) @ np.asarray(model.head.dense.kernel[...])
    np.testing.assert_allclose(model(pixels), want, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(model(pixels), model(pixels.astype("float32")))


def test_classifier_refuses_what_does_not_fit():
    backbone = Backbone([("input_layer", InputLayer())], input_shape=(4, 4, 3))
    with pytest.raises(ValueError, match=r"expected a batch of shape \(N, 4, 4, 8\), found \(1, 4, 4, 3\)"):
        Classifier(backbone, linear_head((4, 4, 8), 2, rngs=nnx.Rngs(0)), "tf")
    with pytest.raises(LookupError, match="no preprocessing 'tff'; did you mean 'tf'"):
        Classifier(backbone, linear_head((4, 4, 3), 2, rngs=nnx.Rngs(0)), "tff")
