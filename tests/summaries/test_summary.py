"""The table against the lecture's slides and against Keras, layer by layer."""

import json
import re
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx
from residual import ResNet

from cnnjax import Classifier, Task, cli, linear_head
from cnnjax.freeze import Freeze
from cnnjax.functional import leaves_of
from cnnjax.hooks import outputs
from cnnjax.models import cifar_cnn, lecture_cnn, mobilenet, resnet, vgg16
from cnnjax.models.own import imported
from cnnjax.summaries import summary
from cnnjax.train.trainer import Trainer


def abstract(build, *args, **kwargs):
    return nnx.eval_shape(lambda: build(*args, **kwargs, rngs=nnx.Rngs(0)))


def lines(table):
    return [(row.name, row.output_shape[1:], row.parameters) for row in table.layers]


def test_slide_summary_of_the_lectures_network():
    table = summary(abstract(lecture_cnn))
    assert lines(table) == [
        ("conv2d_1", (148, 148, 32), 896),
        ("max_pooling2d_1", (74, 74, 32), 0),
        ("conv2d_2", (72, 72, 64), 18_496),
        ("max_pooling2d_2", (36, 36, 64), 0),
        ("conv2d_3", (34, 34, 128), 73_856),
        ("max_pooling2d_3", (17, 17, 128), 0),
        ("conv2d_4", (15, 15, 128), 147_584),
        ("max_pooling2d_4", (7, 7, 128), 0),
        ("flatten_1", (6272,), 0),
        ("dense_1", (512,), 3_211_776),
        ("dense_2", (1,), 513),
    ]
    assert (table.parameters, table.trainable, table.non_trainable) == (3_453_121, 3_453_121, 0)


@pytest.mark.parametrize(
    ("pooling", "end", "total"),
    [
        ("flatten", [("flatten_1", (576,), 0), ("dense_1", (1024,), 590_848)], 703_594),
        ("max", [("global_max_pooling2d_1", (64,), 0), ("dense_1", (1024,), 66_560)], 179_306),
    ],
)
def test_slide_pair_for_32x32(pooling, end, total):
    table = summary(abstract(cifar_cnn, pooling=pooling))
    assert lines(table) == [
        ("conv2d_1", (30, 30, 32), 896),
        ("conv2d_2", (28, 28, 32), 9_248),
        ("max_pooling2d_1", (14, 14, 32), 0),
        ("conv2d_3", (12, 12, 64), 18_496),
        ("conv2d_4", (10, 10, 64), 36_928),
        ("max_pooling2d_2", (5, 5, 64), 0),
        ("conv2d_5", (3, 3, 64), 36_928),
        *end,
        ("dense_2", (10,), 10_250),
    ]
    assert table.parameters == total


def test_slide_multiplications_are_the_formula():
    table = summary(abstract(lecture_cnn))
    shapes = [(3, 148, 32), (32, 72, 64), (64, 34, 128), (128, 15, 128)]
    want = [3 * 3 * depth * side * side * filters for depth, side, filters in shapes] + [6272 * 512, 512]
    assert [row.multiplications for row in table.layers if row.parameters] == want
    assert table.multiplications == sum(want)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: mobilenet(0.75, (160, 128, 3), rngs=nnx.Rngs(0)), ("MobileNet", (160, 128, 3), {"alpha": 0.75})),
        (lambda: vgg16(rngs=nnx.Rngs(0)), ("VGG16", (224, 224, 3), {})),
    ],
    ids=["mobilenet", "vgg16"],
)
def test_every_line_is_keras(ours, theirs, monkeypatch):
    import keras

    def zeros(self, shape, dtype=None):  # the values do not matter, and random ones take seconds
        return jnp.zeros(shape, jnp.float32)

    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", zeros)
    name, shape, options = theirs
    keras_model = getattr(keras.applications, name)(weights=None, input_shape=shape, **options)
    table = summary(nnx.eval_shape(ours))
    assert len(table.layers) == len(keras_model.layers)
    for row, layer in zip(table.layers, keras_model.layers, strict=True):
        assert row.name == re.sub(r"_\d+$", "", layer.name) or row.name == layer.name
        assert row.kind == type(layer).__name__
        assert row.output_shape == layer.output.shape, row.name
        assert row.parameters == layer.count_params(), row.name
        assert row.trainable == sum(int(w.value.size) for w in layer.trainable_weights), row.name
    assert table.parameters == keras_model.count_params()
    assert table.trainable == sum(int(w.value.size) for w in keras_model.trainable_weights)


def test_trainable_counts_are_those_of_training():
    backbone = mobilenet(0.25, (32, 32, 3), include_top=False, rngs=nnx.Rngs(0))
    model = Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(0)), "tf")
    leaves = {p: x for p, x in leaves_of(model).items() if "rngs" not in p}
    for freeze in ("none", "conv_dw_*", "[:-2]", "all"):
        frozen = Freeze.parse(freeze).resolve(model, within="backbone")
        live, _ = frozen.partition(leaves)
        table = summary(model, freeze=frozen if freeze == "all" else freeze)
        assert table.trainable == sum(x.size for p, x in live.items() if p.rsplit("/")[-1] not in ("mean", "var"))
        assert table.parameters == 218_544 + 257


def test_the_frontier_is_where_training_cuts():
    model = ResNet(inner_dropout=0.5, rngs=nnx.Rngs(0))
    frozen = Freeze.through("blocks/1").resolve(model, example=(32, 32))
    table = summary(model, input_shape=(32, 32, 3), freeze=frozen)
    staged = Trainer(model, frozen, (32, 32)).staged
    assert {shape for _, shape in table.frontier.stored} == {feature.shape for feature in staged.features}
    assert table.frontier.bytes_per_image == staged.bytes_per_image
    # The dropout behind the first block draws anew in every step, so what comes behind it cannot be stored.
    assert table.layer("blocks/0/norm2").once
    assert not table.layer("blocks/1/conv1").once
    assert not table.layer("inner").once
    assert summary(model, input_shape=(32, 32, 3)).frontier is None


STRANGERS = Path(__file__).parents[1] / "strangers"


def _resnet() -> nnx.Module:
    return resnet(50, widths=(2, 4, 4, 6), input_shape=(32, 32, 3), include_top=False, rngs=nnx.Rngs(0))


def _stranger(name: str) -> nnx.Module:
    return imported(f"{STRANGERS / name}.py:model")(input_shape=(32, 32, 3), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("build", "freeze"),
    [
        (_resnet, "conv2_block1_add"),
        (_resnet, "conv3_block1_2_relu"),  # in the middle of a block: the shortcut is stored beside it
        (_resnet, "conv1_pad"),
        (_resnet, "conv*_bn"),
        (partial(_stranger, "vit"), "blocks/0/mlp/layers/2"),
        (partial(_stranger, "vit"), "blocks/1/attention/query"),
        (partial(_stranger, "resnet18"), "stages/1/0/conv1"),
    ],
)
def test_the_frontier_of_branches_is_where_training_cuts(build, freeze):
    model = build()
    frozen = Freeze.parse(freeze).resolve(model, example=(32, 32, 3))
    cut = summary(model, input_shape=(32, 32, 3), freeze=frozen).frontier
    staged = Trainer(model, frozen, (32, 32), task=Task(loss=lambda out, _: out.reshape(len(out), -1).sum(1))).staged
    assert cut.stored == tuple((str(feature.dtype), feature.shape) for feature in staged.features)
    assert cut.bytes_per_image == staged.bytes_per_image


def test_what_is_not_known_is_blank():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.idle, self.used = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)
            self.scale = nnx.Param(jnp.ones(3))

        def __call__(self, x):
            return self.used(x * self.scale), (x @ x.T)[:, :1]

    table = summary(Two(nnx.Rngs(0)), input_shape=(3,))
    assert [row.name for row in table.layers] == ["scale", "used", "idle", "(Two)"]
    assert table.layer("idle").output_shape is None and table.layer("idle").multiplications is None
    assert table.layer("scale").parameters == 3
    assert table.layer("used").output_shape == (None, 2)
    assert json.loads(table.json())["layers"][0]["output_shape"] is None
    unsized = summary(Two(nnx.Rngs(0)))
    assert unsized.parameters == 23 and unsized.multiplications is None
    assert {row.output_shape for row in unsized.layers} == {None}


def test_every_weight_has_a_line_and_every_layer_one():
    class Mixed(nnx.Module):
        def __init__(self, rngs):
            self.loose = nnx.data([nnx.Param(jnp.ones((3, 3)))])
            self.first = nnx.Linear(3, 3, rngs=rngs)
            self.again = self.first
            self.cache = nnx.Cache(jnp.zeros((2, 3)))

        def __call__(self, x):
            return self.again(self.first(x @ self.loose[0][...]))

    table = summary(Mixed(nnx.Rngs(0)), input_shape=(3,))
    assert [(row.name, row.parameters) for row in table.layers] == [("loose/0", 9), ("again", 12), ("(Mixed)", 0)]
    assert table.nbytes == 4 * table.parameters and table.multiplications == 3 * 9
    single = summary(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), input_shape=(8, 8, 3))
    (row,) = single.layers
    assert (row.output_shape, row.parameters, row.multiplications) == ((None, 8, 8, 4), 112, 8 * 8 * 4 * 27)


def test_models_that_are_called_otherwise():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)

        def __call__(self, x, train):
            return nnx.remat(lambda m, x: m(x))(self.conv, x["image"]).mean((1, 2))

    model = Two(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"Two cannot be called with one input of shape \(N, 8, 8, 3\) .*call=lambda"):
        summary(model, input_shape=(8, 8, 3))
    table = summary(model, input_shape=(8, 8, 3), freeze="all", call=lambda m, x: m({"image": x}, train=False))
    assert table.layer("conv").output_shape == (None, 8, 8, 4) and table.layer("conv").once
    assert "the frontier lies behind conv: float32[4] an image" in table.text(wide=True)
    with pytest.raises(ValueError, match="conv runs inside nnx.remat, nnx.jit or nnx.scan"):
        outputs(Inside(nnx.Rngs(0)), jnp.ones((1, 8, 8, 3)), ["conv"])
    for shape in (32, (None, 8, 8, 3), "x"):
        with pytest.raises(ValueError, match="an input_shape is"):
            summary(model, input_shape=shape)
    with pytest.raises(ValueError, match="summary takes a Flax NNX module, found function"):
        summary(lambda x: x, input_shape=(3,))


class Inside(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)

    def __call__(self, x):
        return nnx.remat(lambda m, x: m(x))(self.conv, x)


def test_formats_hold_the_same_numbers():
    table = summary(abstract(lecture_cnn), freeze="2")
    text, markdown, content = table.text(wide=True), table.markdown(wide=True), json.loads(table.json())
    assert "3,453,121 (13.17 MB)" in text and "Total params: 3,453,121 (13.17 MB)" in markdown
    assert "behind max_pooling2d_2: float32[36, 36, 64] an image, 324.00 KB stored" in text
    assert "| conv2d_2 (Conv2D) | (None, 72, 72, 64) | 18,496 | 95,551,488 | 8 | 2 | 3.5 | no | once |" in markdown
    first = content["layers"][0]
    assert first["receptive_field"] == [3, 3] and first["output_shape"] == [None, 148, 148, 32]
    assert content["frontier"]["bytes_per_image"] == 36 * 36 * 64 * 4
    assert str(table) == table.text() and "multiplications" not in str(table)
    assert all(len(line) <= 80 for line in str(table).splitlines())


def test_command_prints_the_slide_and_refuses_what_is_wrong(capsys):
    cli.main(["summary", "lecture_cnn", "--widths", "16", "32"])
    assert "(None, 36, 36, 32)" in capsys.readouterr().out
    cli.main(["summary", "cifar_cnn", "--pooling", "max", "--format", "json"])
    assert json.loads(capsys.readouterr().out)["parameters"] == 179_306
    for args, message in (
        (["vgg6"], "no backbone 'vgg6'; did you mean 'vgg16'"),
        (["vgg16", "--freeze", "block5_conv4"], "no layer 'block5_conv4' in vgg16; did you mean 'block5_conv3'"),
        (["vgg16", "--image-size", "16"], "at least 32x32 pixels"),
        (["vgg16", "--image-size", "-3"], "image_size: expected a whole number of pixels from 1 on"),
        (["vgg16", "--alpha", "1"], "vgg16 has no option 'alpha'"),
        (["mobilenet", "--classes", "0"], "at least one class, found 0"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["summary", *args])
        told = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert end.value.code == 2 and message in told
