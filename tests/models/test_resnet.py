"""ResNet against Keras, and version 1.5 against torchvision's definition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from residual import randomized

from cnnjax import Classifier, Freeze, Trainer, summary
from cnnjax.data import InMemory
from cnnjax.freeze import num_weighted_layers
from cnnjax.functional import functionalize, leaves_of
from cnnjax.models.graph import Graph
from cnnjax.models.resnet import PUBLISHED, resnet
from cnnjax.weights.assign import load_weights

NAMES = (
    "conv1_relu", "pool1_pool", "conv2_block1_0_bn", "conv2_block1_out", "conv3_block1_1_conv", "conv4_block6_out",
    "conv5_block3_add", "avg_pool", "predictions",
)  # fmt: skip


@pytest.fixture(scope="module")
def pair(keras_oracle, tmp_path_factory):
    """Keras's ResNet-50 with random weights and statistics, and ours, filled from the file that Keras saved."""
    keras_oracle.keras.backend.clear_session()
    theirs = keras_oracle.keras.applications.ResNet50(weights=None, input_shape=(64, 96, 3), classes=7)
    rng = np.random.default_rng(0)
    for layer in theirs.layers:
        if layer.name.endswith("_bn"):
            low = 0.1 if layer.name.endswith("_3_bn") else 0.5  # so that 16 blocks do not add up without end
            for variable, (a, b) in zip(layer.weights, ((low, 2 * low), (-0.5, 0.5), (-1, 1), (0.5, 1.5)), strict=True):
                variable.assign(rng.uniform(a, b, variable.shape))
    file = tmp_path_factory.mktemp("keras") / "resnet50.h5"
    keras_oracle.save(theirs, file)
    ours = nnx.eval_shape(lambda: resnet(50, input_shape=(64, 96, 3), classes=7, rngs=nnx.Rngs(0)))
    load_weights(ours, file)
    ours.eval()
    return ours, theirs


@pytest.mark.slow
def test_random_weights_give_keras_outputs(pair, keras_oracle, assert_same):
    ours, theirs = pair
    x = np.random.default_rng(1).normal(0, 60, (2, 64, 96, 3)).astype("float32")
    want = keras_oracle.run(theirs, x, NAMES)
    assert_same(jax.jit(lambda m, x: m.activations(x, NAMES))(ours, x), want)


def test_layers_are_keras_layers(pair):
    ours, theirs = pair
    assert ours.layer_names == tuple(layer.name for layer in theirs.layers)
    assert [layer.name for layer in ours.layers[:-4]] == [layer.name for layer in theirs.layers[:-4]]
    shapes = jax.eval_shape(
        lambda m, x: m.activations(x, m.layer_names), ours, jax.ShapeDtypeStruct((1, 64, 96, 3), np.float32)
    )
    for layer, reads in zip(theirs.layers, ours.layer_inputs, strict=True):
        mine = nnx.state(ours.get_layer(layer.name), nnx.Any(nnx.Param, nnx.BatchStat))
        assert sum(leaf.size for leaf in jax.tree.leaves(mine)) == layer.count_params(), layer.name
        assert shapes[layer.name].shape[1:] == tuple(layer.output.shape[1:]), layer.name
        theirs_read = layer.input if isinstance(layer.input, list) else [layer.input]
        assert layer.name == "input_layer" or list(reads) == [x._keras_history[0].name for x in theirs_read]


def test_freezing_means_what_it_means_in_keras(pair):
    ours, theirs = pair
    names = [layer.name for layer in theirs.layers]
    for text in ("none", "all", "[:-4]", "[:87]", "conv4_block2_out", "conv3_block1_0_bn", "conv2_*,*_0_conv", "3"):
        frozen = Freeze.parse(text).resolve(ours)
        if text == "3":  # the stem and the first two of a block, with all that follows them up to the next kernel
            assert frozen.layers == tuple(names[: names.index("conv2_block1_0_conv")])
        elif text.startswith("["):
            assert list(frozen.layers) == eval(f"names{text}")
        elif text.endswith(("_out", "_bn")):
            assert list(frozen.layers) == names[: names.index(text) + 1]
    assert num_weighted_layers(ours) == sum(hasattr(layer, "kernel") for layer in theirs.layers) == 54


def test_a_frozen_part_is_computed_once_where_all_ways_to_it_are_frozen():
    model = nnx.eval_shape(lambda: resnet(50, "v1.5", (4, 6), (32, 48, 3), include_top=False, rngs=nnx.Rngs(0)))
    # Keras's order puts the shortcut's normalisation before the other way's: both convolutions are known, one
    # normalisation is not, and what both ways made has to be stored.
    table = summary(model, freeze="conv2_block1_0_bn")
    once = {layer.name: layer.once for layer in table.layers}
    assert (once["conv2_block1_3_conv"], once["conv2_block1_3_bn"], once["conv2_block1_add"]) == (True, False, False)
    assert [shape for _, shape in table.frontier.stored] == [(8, 12, 16), (8, 12, 16)]
    assert [shape for _, shape in summary(model, freeze="conv2_block1_out").frontier.stored] == [(8, 12, 16)]
    assert table.layer("conv2_block1_add").reads == ("conv2_block1_0_bn", "conv2_block1_3_bn")
    wide = table.text(wide=True)
    assert "connected to" in wide and "conv2_block1_0_bn, conv2_block1_3_bn" in wide
    assert "connected to" not in table.text() and "connected to" in table.markdown(wide=True)
    # Multiplications: the formula of each convolution, F * F * D * W' * H' * D'.
    assert table.layer("conv2_block1_2_conv").multiplications == 3 * 3 * 4 * 8 * 12 * 4


def test_a_step_behind_a_cut_through_a_block_is_that_of_the_whole_program():
    shape = (36, 48, 3)
    backbone = randomized(resnet(50, widths=(2, 3), input_shape=shape, include_top=False, rngs=nnx.Rngs(0)))
    net = Graph(backbone.output_shape(), rngs=nnx.Rngs(1), input_layer=None)
    head = net.backbone(net.dense("dense", net.global_avg_pool("pool", net.input), 1))
    model = Classifier(backbone, head, "tf")
    frozen = Freeze.through("conv3_block1_0_bn").resolve(model, "backbone")
    images = np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)
    labels = np.arange(6) % 2
    trainer = Trainer(model, frozen, shape[:2], batch_size=6, optimizer=optax.sgd(0.1))
    state, _ = trainer.fit(trainer.init(), trainer.rows(InMemory(images, labels, ("a", "b"))), epochs=1)

    functional = functionalize(model, frozen=frozen)
    trained, rest = frozen.partition(leaves_of(model))
    parameters = {path: trained[path] for path in functional.parameters() if path in trained}

    def loss(parameters):
        logits, after = functional.apply({**trained, **rest, **parameters}, jnp.asarray(images), train=True)
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels).mean(), after

    gradients, after = jax.jit(jax.grad(loss, has_aux=True))(parameters)
    want = {**after, **{path: parameters[path] - 0.1 * gradients[path] for path in parameters}}
    got = trainer.leaves(state)
    assert set(got) == set(want) and len(parameters) < len(functional.parameters())
    for path, value in want.items():
        np.testing.assert_allclose(got[path], value, rtol=1e-3, atol=1e-4, err_msg=path)
        if frozen(path):
            np.testing.assert_array_equal(got[path], rest[path])


@pytest.mark.slow
@pytest.mark.parametrize("depth", [101, 152])
def test_deeper_networks_have_keras_layers(depth, keras_oracle):
    keras_oracle.keras.backend.clear_session()
    theirs = getattr(keras_oracle.keras.applications, f"ResNet{depth}")(
        weights=None, include_top=False, input_shape=(64, 64, 1)
    )
    ours = nnx.eval_shape(lambda: resnet(depth, input_shape=(64, 64, 1), include_top=False, rngs=nnx.Rngs(0)))
    assert ours.layer_names == tuple(layer.name for layer in theirs.layers)
    leaves = jax.tree.leaves(nnx.state(ours, nnx.Any(nnx.Param, nnx.BatchStat)))
    assert sum(leaf.size for leaf in leaves) == theirs.count_params()


def torchvision(leaves, x, depth, stages):
    """torchvision/models/resnet.py in plain `jax.lax`, on leaves under our names."""

    def conv(name, x, stride, pad):
        kernel = leaves[f"{name}_conv/kernel"]
        x = lax.conv_general_dilated(
            x, kernel, (stride, stride), [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[3] // kernel.shape[2],
        )  # fmt: skip
        scale, bias, mean, var = (leaves[f"{name}_bn/{leaf}"] for leaf in ("scale", "bias", "mean", "var"))
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    x = jnp.maximum(conv("conv1", x, 2, 3), 0)
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for stage, blocks in enumerate(stages, 2):
        for k in range(1, blocks + 1):
            name, stride = f"conv{stage}_block{k}", 2 if k == 1 and stage > 2 else 1
            identity = conv(f"{name}_0", x, stride, 0) if f"{name}_0_conv/kernel" in leaves else x
            if depth >= 50:  # class Bottleneck
                y = jnp.maximum(conv(f"{name}_1", x, 1, 0), 0)
                y = jnp.maximum(conv(f"{name}_2", y, stride, 1), 0)
                y = conv(f"{name}_3", y, 1, 0)
            else:  # class BasicBlock
                y = jnp.maximum(conv(f"{name}_1", x, stride, 1), 0)
                y = conv(f"{name}_2", y, 1, 1)
            x = jnp.maximum(y + identity, 0)
    return x


@pytest.mark.parametrize(
    ("depth", "stages", "options"),
    [(18, (2, 2, 2), {}), (50, (3, 4, 6), {}), (50, (3, 4), {"groups": 4, "base_width": 32})],
)
def test_version_1_5_is_torchvisions(depth, stages, options):
    # 10 rows at the third stage's end, an odd number before: padding on one side would show.
    widths = (4, 6, 8)[: len(stages)]
    model = resnet(depth, "v1.5", widths, (37, 50, 3), include_top=False, rngs=nnx.Rngs(0), **options)
    if options:  # ResNeXt: int(planes * base_width / 64) * groups filters
        kernel = model.conv3_block1_2_conv.kernel
        assert kernel.shape == (3, 3, 3, 12) and model.conv3_block1_2_conv.feature_group_count == 4
    randomized(model).eval()
    x = np.random.default_rng(0).normal(size=(2, 37, 50, 3)).astype("float32")
    want = jax.jit(lambda leaves, x: torchvision(leaves, x, depth, stages))(leaves_of(model), x)
    got = jax.jit(lambda m, x: m(x))(model, x)
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert model.conv1_bn.momentum == 0.9


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_version_1_5_has_torchvisions_parameters(depth, parameters):
    # As torchvision's table of weights lists them.
    model = nnx.eval_shape(lambda: resnet(depth, "v1.5", rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 51}, "no ResNet of depth 51; did you mean 50"),
        ({"variant": "v2"}, "no ResNet 'v2'; did you mean 'v1'"),
        ({"widths": ()}, r"one to 4 stages, .* found \(\)"),
        ({"input_shape": (31, 64, 3)}, r"at least 32x32 pixels, found input_shape \(31, 64, 3\)"),
        ({"classes": 0}, "at least one class, found 0"),
    ],
)
def test_impossible_models_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        resnet(rngs=nnx.Rngs(0), **options)


def test_published_names_are_those_keras_downloads(keras_oracle, monkeypatch):
    import keras.src.applications.resnet as theirs

    asked = []

    def no_download(name, url, file_hash, **_):
        asked.append((name, url, f"md5:{file_hash}"))
        raise FileNotFoundError

    monkeypatch.setattr(theirs.file_utils, "get_file", no_download)
    for entry in PUBLISHED:
        if entry.options["depth"] == 50:  # the others differ in their number alone
            with pytest.raises(FileNotFoundError):
                theirs.ResNet50(include_top=entry.include_top, input_shape=(224, 224, 3))
            assert asked[-1] == (f"{entry.name}.h5", entry.url, entry.digest)
        depth, top = entry.options["depth"], entry.include_top
        assert entry.digest == "md5:" + theirs.WEIGHTS_HASHES[f"resnet{depth}"][not top]
