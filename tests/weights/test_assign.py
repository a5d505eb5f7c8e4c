"""Putting tensors onto a model: all or nothing, and every misfit named."""

import h5py
import jax
import numpy as np
import pytest
from flax import nnx

from cnnjax.models import mobilenet
from cnnjax.models.backbone import Backbone
from cnnjax.models.layers import (
    GlobalMaxPooling2D,
    ReLU,
    batch_normalization,
    conv2d,
    dense,
    depthwise_conv2d,
)
from cnnjax.weights.assign import load_weights
from cnnjax.weights.hdf5 import WeightsError


def _model(top: bool = True) -> Backbone:
    rngs = nnx.Rngs(0)
    named = [
        ("conv1", conv2d(3, 4, (3, 3), use_bias=False, rngs=rngs)),
        ("conv1_bn", batch_normalization(4, rngs=rngs)),
        ("conv1_relu", ReLU()),
        ("conv_dw_1", depthwise_conv2d(4, (3, 3), use_bias=False, rngs=rngs)),
        ("pool", GlobalMaxPooling2D()),
        ("dropout", nnx.Dropout(0.5, rngs=rngs)),
    ]
    return Backbone(named + [("predictions", dense(4, 2, rngs=rngs))] * top, input_shape=(8, 8, 3))


def _arrays(model: Backbone) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {"/".join(map(str, path)): np.asarray(variable[...]) for path, variable in flat}


def _refused(model: Backbone, path, **kwargs) -> str:
    before = _arrays(model)
    with pytest.raises(WeightsError) as error:
        load_weights(model, path, **kwargs)
    jax.tree.map(np.testing.assert_array_equal, _arrays(model), before)
    return str(error.value)


@pytest.mark.parametrize("group", ["/", "model_weights"])
def test_every_leaf_gets_its_tensor(group, values, write):
    model = _model()
    structure = nnx.graphdef(model)
    path = write(values, group)
    report = load_weights(model, path)
    got = _arrays(model)
    assert nnx.graphdef(model) == structure
    assert set(report.loaded) == set(got)
    assert report.left_out == ()
    assert report.path == path
    assert str(report) == f"8 tensors from {path}"
    for leaf, tensor in {
        "conv1/kernel": "conv1/kernel:0",
        "conv1_bn/scale": "conv1_bn/gamma:0",
        "conv1_bn/bias": "conv1_bn/beta:0",
        "conv1_bn/mean": "conv1_bn/moving_mean:0",
        "conv1_bn/var": "conv1_bn/moving_variance:0",
        "predictions/kernel": "predictions/kernel:0",
        "predictions/bias": "predictions/bias:0",
    }.items():
        np.testing.assert_array_equal(got[leaf], values[leaf.split("/")[0]][tensor])
    depthwise = values["conv_dw_1"]["conv_dw_1/depthwise_kernel:0"]
    np.testing.assert_array_equal(got["conv_dw_1/kernel"], depthwise.transpose(0, 1, 3, 2))


def test_depthwise_kernel_as_keras_3_names_it(values, write):
    kernel = values["conv_dw_1"].pop("conv_dw_1/depthwise_kernel:0")
    values["conv_dw_1"]["conv_dw_1/kernel"] = kernel
    model = _model()
    load_weights(model, write(values))
    np.testing.assert_array_equal(_arrays(model)["conv_dw_1/kernel"], kernel.transpose(0, 1, 3, 2))


def test_abstract_model_is_filled(values, write):
    path = write(values)
    abstract, real = nnx.eval_shape(lambda: _model(top=False)), _model(top=False)
    for model in (abstract, real):
        load_weights(model, path, leave_out="top")
    jax.tree.map(np.testing.assert_array_equal, _arrays(abstract), _arrays(real))


@pytest.mark.parametrize("leave_out", ["top", "predictions", ["pred*"]])
def test_top_is_left_out_on_request_only(leave_out, values, write):
    path = write(values)
    report = load_weights(_model(top=False), path, leave_out=leave_out)
    assert report.left_out == ("predictions/kernel", "predictions/bias")
    assert str(report).endswith(", without predictions/kernel, predictions/bias")
    message = _refused(_model(top=False), path)
    assert "layer 'predictions' of the file (kernel (4, 2), bias (2,)) is not in the model, nor left out" in message


def test_leaving_out_cannot_leave_a_leaf_unfilled(values, write):
    path = write(values)
    assert load_weights(_model(), path, leave_out="top").left_out == ()
    message = _refused(_model(), path, leave_out="predictions")
    assert "layer 'predictions' of the model (bias (2,), kernel (4, 2)) gets nothing from the file" in message
    message = _refused(_model(), path, leave_out=["predictions", "conv1_rn"])
    assert "no layer of the file with tensors matches what should be left out: 'conv1_rn'" in message
    assert "nearest there: 'conv1_bn'" in message


def test_all_misfits_are_named_in_one_error(values, write):
    values["conv1_bm"] = {name.replace("bn", "bm"): a for name, a in values.pop("conv1_bn").items()}
    values["conv1"]["conv1/kernel:0"] = np.zeros((3, 3, 3, 5), np.float32)
    values["conv_dw_1"] = {"conv_dw_1/depthwise_kernl:0": np.zeros((3, 3, 4, 1), np.float32)}
    values["predictions"]["predictions/bias:0"] = np.array([np.nan, np.inf], np.float32)
    values["predictions"]["predictions/kernel:0"] = np.zeros((4, 2))
    path = write(values)
    lines = _refused(_model(), path).split("\n  ")
    assert lines[0] == f"{path} does not fit the model; nothing was loaded:"
    assert sorted(lines[1:]) == sorted(
        [
            "layer 'conv1_bm' of the file (gamma (4,), beta (4,), moving_mean (4,), moving_variance (4,)) "
            "is not in the model (nearest there: 'conv1_bn'), nor left out",
            "layer 'conv1_bn' of the model (beta (4,), moving_mean (4,), gamma (4,), moving_variance (4,)) "
            "gets nothing from the file (nearest there: 'conv1_bm')",
            "conv1/kernel is (3, 3, 3, 5) in the file, (3, 3, 3, 4) in the model",
            "conv_dw_1/depthwise_kernel (3, 3, 4, 1) of the model is not in the file (nearest there: "
            "'depthwise_kernl')",
            "conv_dw_1/depthwise_kernl (3, 3, 4, 1) of the file is not in the model (nearest there: "
            "'depthwise_kernel')",
            "predictions/kernel is float64 in the file, float32 in the model, which is narrower",
            "predictions/bias (2,) has 2 values in the file that are NaN or infinite",
        ]
    )


def test_half_precision_is_widened_exactly(values, write):
    values["conv1"]["conv1/kernel:0"] = half = values["conv1"]["conv1/kernel:0"].astype("f2")
    model = _model()
    load_weights(model, write(values))
    assert model.conv1.kernel.dtype == np.float32
    np.testing.assert_array_equal(model.conv1.kernel[...], half)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "there is no such file"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_text("not a model"), "is not an HDF5 file but text"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "is truncated"),
    ],
)
def test_unreadable_file_leaves_the_model_as_it_was(spoil, message, values, write):
    path = write(values)
    spoil(path)
    assert message in _refused(_model(), path)


@pytest.mark.parametrize("link", [h5py.ExternalLink("other.h5", "/x"), h5py.SoftLink("/conv1")])
def test_links_leave_the_model_as_it_was(link, values, write):
    path = write(values)
    with h5py.File(path, "a") as file:
        del file["predictions/predictions/bias:0"]  # the last tensor: the others could have been assigned
        file["predictions/predictions/bias:0"] = link
    assert "link, to" in _refused(_model(), path)


def test_placement_is_kept(values, write):
    model = _model()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    model.conv1.kernel.set_value(jax.device_put(model.conv1.kernel[...], sharding))
    load_weights(model, write(values))
    assert model.conv1.kernel.get_value().committed
    assert model.conv1.kernel.get_value().sharding == sharding
    assert not model.predictions.kernel.get_value().committed


def test_file_for_another_alpha_is_recognised(shared_data):
    model = mobilenet(0.5, (64, 64, 3), include_top=False, rngs=nnx.Rngs(0))
    message = _refused(model, shared_data / "weights" / "mobilenet_7_5_224_tf_no_top.h5")
    assert "(the file looks like alpha 0.75, the model has alpha 0.5)" in message
    assert "conv_dw_1/depthwise_kernel is (3, 3, 24, 1) in the file, (3, 3, 16, 1) in the model" in message
    assert message.count("\n") == 135  # every tensor's shape is wrong


def test_file_for_another_architecture_is_recognised(shared_data):
    model = _model(top=False)
    (path,) = (shared_data / "weights").glob("mobilenet_v2*0.35*.h5")
    assert "(no layer in common: weights of another architecture?)" in _refused(model, path)


def test_real_file_with_top_fits_both_models(shared_data):
    path = shared_data / "weights" / "mobilenet_7_5_224_tf.h5"
    without = nnx.eval_shape(lambda: mobilenet(0.75, include_top=False, rngs=nnx.Rngs(0)))
    assert load_weights(without, path, leave_out="top").left_out == ("conv_preds/kernel", "conv_preds/bias")
    top = nnx.eval_shape(lambda: mobilenet(0.75, include_top=True, rngs=nnx.Rngs(0)))
    assert len(load_weights(top, path).loaded) == 137
    with h5py.File(path) as file:
        np.testing.assert_array_equal(top.conv_preds.kernel[...], file["conv_preds/conv_preds/kernel:0"])
    with pytest.raises(WeightsError, match=r"layer 'conv_preds' of the model .* gets nothing from the file"):
        load_weights(top, shared_data / "weights" / "mobilenet_7_5_224_tf_no_top.h5")


def test_two_tensors_for_one_array_must_be_equal(write):
    rngs = nnx.Rngs(0)
    second, first = (conv2d(3, 3, (3, 3), use_bias=False, rngs=rngs) for _ in range(2))
    first.kernel = second.kernel
    model = Backbone([("second", second), ("first", first)], input_shape=(8, 8, 3))
    twos, threes = (np.full((3, 3, 3, 3), value, np.float32) for value in (2, 3))
    load_weights(model, write({"second": {"kernel:0": twos}, "first": {"kernel:0": twos}}))
    np.testing.assert_array_equal(first.kernel[...], twos)
    with pytest.raises(WeightsError, match="second/kernel and first/kernel are one array in the model, and differ"):
        load_weights(model, write({"second": {"kernel:0": twos}, "first": {"kernel:0": threes}}))
    np.testing.assert_array_equal(second.kernel[...], twos)


def test_a_slash_in_a_layers_name_is_an_underscore(write):
    # As in SqueezeNet's file: the layer `block/conv1` with tensors `block/conv1_W:0` inside its own group.
    kernel, bias = np.ones((1, 1, 3, 4), np.float32), np.arange(4, dtype=np.float32)
    named = {"block/conv1_W:0": kernel, "block/conv1_b:0": bias}
    model = Backbone([("block_conv1", conv2d(3, 4, (1, 1), rngs=nnx.Rngs(0)))], input_shape=(8, 8, 3))
    assert load_weights(model, write({"block/conv1": named})).loaded == ("block_conv1/bias", "block_conv1/kernel")
    np.testing.assert_array_equal(model.block_conv1.kernel, kernel)
    np.testing.assert_array_equal(model.block_conv1.bias, bias)
    twice = write({"block/conv1": named, "block_conv1": {"block_conv1/kernel:0": kernel}}, name="twice.h5")
    assert "'block/conv1' and 'block_conv1' would be one layer here, 'block_conv1'" in _refused(model, twice)
