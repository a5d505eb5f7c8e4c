"""Every family against `keras.applications`: layers, outputs, freezing, and training through stored features."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import ALL, DEPTHS, FAMILIES, Pair, differences, parameters, randomize, run
from flax import nnx
from residual import randomized

from cnnjax import Classifier, Freeze, Trainer, summary
from cnnjax.data import InMemory
from cnnjax.freeze import num_weighted_layers
from cnnjax.functional import functionalize, leaves_of
from cnnjax.models import PUBLISHED, create
from cnnjax.models.graph import Graph
from cnnjax.models.preprocessing import preprocess
from cnnjax.weights.assign import load_weights

pytestmark = pytest.mark.usefixtures("compiled_fast")

BY_NAME = {pair.name: pair for pair in FAMILIES}
EACH = pytest.mark.parametrize("name", BY_NAME)


@pytest.fixture(scope="module", params=BY_NAME)
def pair(request, keras_oracle):
    """A family's row, our network (abstract) and Keras's, with random weights and statistics."""
    row = BY_NAME[request.param]
    theirs = row.theirs(keras_oracle.keras, classes=7)
    randomize(theirs, last=lambda name: name.endswith(("project_bn", "project_BN", "sepconv3_bn")))
    return row, row.ours(classes=7), theirs


def test_layers_are_keras_layers(pair):
    _, ours, theirs = pair
    assert differences(ours, theirs) == []
    table = summary(ours)
    assert [line.name for line in table.layers] == list(ours.layer_names) and table.parameters == parameters(ours)


def test_freezing_means_what_it_means_in_keras(pair):
    _, ours, theirs = pair
    names, listed = [operation.name for operation in theirs.operations], [layer.name for layer in theirs.layers]
    kernels = [any(len(v.shape) > 1 for v in getattr(k, "trainable_weights", ())) for k in theirs.operations]
    assert num_weighted_layers(ours) == sum(kernels)
    places = [k for k, kernel in enumerate(kernels) if kernel]
    middle = names[len(names) // 2]
    for text in ("none", "all", "[:-4]", f"[:{len(listed) // 2}]", "3", middle):
        frozen = Freeze.parse(text).resolve(ours).layers
        if text.startswith("["):
            assert list(frozen) == eval(f"listed{text}")
        else:
            stop = {"none": 0, "all": len(names), "3": places[3]}.get(text, len(names) // 2 + 1)
            assert list(frozen) == names[:stop]
    assert Freeze.match(middle[:4] + "*").resolve(ours).layers == tuple(n for n in names if n.startswith(middle[:4]))


@pytest.mark.slow
def test_random_weights_give_keras_outputs(pair, keras_oracle, assert_same, tmp_path):
    row, ours, theirs = pair
    keras_oracle.save(theirs, tmp_path / "keras.h5")
    ours = nnx.clone(ours)
    load_weights(ours, tmp_path / "keras.h5")
    ours.eval()
    x = np.random.default_rng(1).uniform(*row.inputs, (2, *row.shape)).astype("float32")
    want = run(theirs, x, row.layers, keras_oracle.keras)
    assert_same(jax.jit(lambda m, x: m.activations(x, row.layers))(ours, x), want)


def small(name, **options):
    """A network of ours that is trained quickly, with statistics as after training, and its row."""
    row = BY_NAME[name]
    given = {**{k: v for k, v in row.options.items() if k == "variant"}, **row.small, **options}
    shape = (75, 75, 3) if name in ("xception", "inception_v3") else (32, 40, 3)
    model = create(name, input_shape=shape, include_top=False, rngs=nnx.Rngs(0), **given)
    return row, randomized(model.ends_at(row.end) if row.end else model)


@pytest.mark.slow
@pytest.mark.parametrize("place", DEPTHS)
@EACH
def test_training_through_stored_features_is_training_unstaged(name, place):
    row, backbone = small(name, **{"stochastic_depth": 0.0} if BY_NAME[name].drops else {})
    shape = backbone.input_shape
    net = Graph(backbone.output_shape(), rngs=nnx.Rngs(1), input_layer=None)
    head = net.backbone(net.dense("dense", net.global_avg_pool("pool", net.input), 1))
    model = Classifier(backbone, head, "tf" if row.inputs[0] else "none")
    frozen = Freeze.through(row.depths[place]).resolve(model, "backbone")
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    labels = np.arange(4) % 2
    trainer = Trainer(model, frozen, shape[:2], batch_size=4, optimizer=optax.sgd(0.01), precision="float32")
    assert not trainer.staged.stores_images_only and trainer.staged.blocked == ()
    state, _ = trainer.fit(trainer.init(), trainer.rows(InMemory(images, labels, ("a", "b"))), epochs=2)

    functional = functionalize(model, frozen=frozen)
    leaves = leaves_of(model)
    known = [path for path in functional.parameters() if not frozen(path)]

    @jax.jit
    def step(leaves):
        def loss(parameters):
            logits, after = functional.apply({**leaves, **parameters}, jnp.asarray(images), train=True)
            return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels).mean(), after

        gradients, after = jax.grad(loss, has_aux=True)({path: leaves[path] for path in known})
        return {**after, **{path: leaves[path] - 0.01 * gradients[path] for path in known}}

    want, got = step(step(leaves)), trainer.leaves(state)
    assert 0 < len(known) < len(functional.parameters())
    for path, value in got.items():
        if frozen(path):  # weights and statistics
            np.testing.assert_array_equal(value, leaves[path], err_msg=path)
        else:
            scale = max(1e-2, np.abs(want[path]).max())
            np.testing.assert_allclose(value, want[path], rtol=1e-4, atol=1e-4 * scale, err_msg=path)
    moved = [path for path in got if path.endswith("/mean") and not frozen(path)]
    assert all(np.abs(got[path] - leaves[path]).max() > 0 for path in moved)


@pytest.mark.parametrize("name", [row.name for row in FAMILIES if row.drops])
def test_stochastic_depth_draws_in_training_alone_and_is_done_in_every_step(name):
    _, model = small(name, stochastic_depth=0.9)
    functional, leaves = functionalize(model, frozen=Freeze.all().resolve(model)), leaves_of(model)
    x = np.random.default_rng(0).uniform(0, 255, (24, *model.input_shape)).astype("float32")
    run = jax.jit(lambda leaves, train: functional.apply(leaves, x, train=train)[0], static_argnums=1)
    first, second = ({**leaves, **functional.random_leaves(jax.random.key(seed))} for seed in (1, 2))
    assert np.abs(run(first, True) - run(second, True)).max() > 0
    np.testing.assert_array_equal(run(first, False), run(second, False))
    once = {layer.name: layer.once for layer in summary(model, freeze="all").layers}
    drops = [layer for layer in model.layer_names if isinstance(model.get_layer(layer), nnx.Dropout)]
    before = model.layer_names[: model.layer_names.index(drops[0])]
    assert drops and not any(once[drop] for drop in drops) and all(once[layer] for layer in before)
    rates = [model.get_layer(drop).rate for drop in drops]
    assert rates == sorted(rates) and 0 < rates[0] <= rates[-1] <= 0.9 and not once[model.layer_names[-1]]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilenet_v2", {"alpha": 0.0}, "alpha of MobileNetV2 must be above 0"),
        ("mobilenet_v3", {"variant": "smal"}, "no MobileNetV3 'smal'; did you mean 'small'"),
        ("efficientnet", {"variant": "b8"}, "no EfficientNet 'b8'; did you mean 'b"),
        ("efficientnet", {"depth_coefficient": 20.0}, "gives a stage 80 blocks, above 26"),
        ("efficientnet", {"width_coefficient": 0.0}, "must be above 0, found 0.0 and 1.0"),
        ("efficientnet", {"second_rescaling": True, "input_shape": (32, 32, 1)}, "of red, green and blue"),
        ("efficientnet_lite", {"variant": "b0"}, "no EfficientNet-Lite 'b0'; did you mean 'lite0'"),
        ("efficientnet_v2", {"variant": "b7"}, "no EfficientNetV2 'b7'; did you mean 'b"),
        ("convnext", {"depths": (1, 1)}, r"depths of ConvNeXt: expected four numbers from 1 on, found \(1, 1\)"),
        ("convnext", {"variant": "huge"}, "no ConvNeXt 'huge'"),
        ("xception", {"input_shape": (70, 80, 3)}, "at least 71x71 pixels"),
        ("inception_v3", {"alpha": 0.01}, "leaves conv2d 0 of its 32 channels"),
        ("inception_v3", {"classes": 0}, "at least one class, found 0"),
    ],
)
def test_impossible_models_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create(name, rngs=nnx.Rngs(0), **options)


def test_published_entries_are_those_keras_downloads():
    from keras.src.applications import convnext, efficientnet, efficientnet_v2, inception_v3, mobilenet_v3, xception

    def entries(family):
        return {(e.url, e.digest.partition(":")[2]): e.include_top for e in PUBLISHED.values() if e.backbone == family}

    def listed(base, hashes, files):
        names = {
            (base + files.format(key), top): given[not top] for key, given in hashes.items() for top in (True, False)
        }
        return {(f"{url}{'' if top else '_notop'}.h5", digest): top for (url, top), digest in names.items()}

    assert entries("efficientnet") == listed(
        efficientnet.BASE_WEIGHTS_PATH, efficientnet.WEIGHTS_HASHES, "efficientnet{}"
    )
    hashes = {key.strip("-"): given for key, given in efficientnet_v2.WEIGHTS_HASHES.items()}
    assert entries("efficientnet_v2") == listed(efficientnet_v2.BASE_WEIGHTS_PATH, hashes, "efficientnetv2-{}")
    assert entries("convnext") == listed(convnext.BASE_WEIGHTS_PATH, convnext.WEIGHTS_HASHES, "{}")
    v3 = listed(mobilenet_v3.BASE_WEIGHT_PATH, mobilenet_v3.WEIGHTS_HASHES, "weights_mobilenet_v3_{}")
    v3 = {(url.replace("_notop", "_no_top_v2"), digest): top for (url, digest), top in v3.items()}
    assert entries("mobilenet_v3") == v3
    for family, module in (("xception", xception), ("inception_v3", inception_v3)):
        source = inspect.getsource(module)
        for (url, digest), top in entries(family).items():
            assert url == (module.WEIGHTS_PATH if top else module.WEIGHTS_PATH_NO_TOP) and digest in source


def test_keras_asks_for_the_files_of_mobilenet_v2(keras_oracle, monkeypatch):
    from keras.src.applications import mobilenet_v2 as theirs

    asked = []

    def no_download(name, url, **_):
        asked.append((name, url))
        raise FileNotFoundError

    monkeypatch.setattr(theirs.file_utils, "get_file", no_download)
    entries = [e for e in PUBLISHED.values() if e.backbone == "mobilenet_v2"]
    assert len(entries) == 2 * (4 * 5 + 2)
    for entry in (e for e in entries if e.input_size == 96 and e.options["alpha"] == 0.35):
        with pytest.raises(FileNotFoundError):
            theirs.MobileNetV2(alpha=0.35, include_top=entry.include_top, input_shape=(96, 96, 3))
        assert asked[-1] == (f"{entry.name}.h5", entry.url)


def test_keras_puts_a_second_rescaling_before_its_own_weights(keras_oracle, monkeypatch):
    from keras.src.applications import efficientnet as theirs

    keras_oracle.keras.backend.clear_session()
    monkeypatch.setattr(theirs.file_utils, "get_file", lambda *_, **__: "")
    monkeypatch.setattr(theirs.Functional, "load_weights", lambda *_: None)
    row = Pair("efficientnet", {"second_rescaling": True}, "")
    published = theirs.EfficientNetB0(include_top=False, input_shape=row.shape)
    ours = row.ours(include_top=False)
    assert differences(ours, published) == []
    assert ours.rescaling_1.scale == tuple(published.get_layer("rescaling_1").scale)


@pytest.mark.slow
def test_published_weights_of_mobilenet_v2_give_keras_outputs(keras_oracle, shared_data, photographs, assert_same):
    (file,) = (shared_data / "weights").glob("mobilenet_v2_*_0.35_224_no_top.h5")
    ours = nnx.eval_shape(lambda: create("mobilenet_v2", alpha=0.35, include_top=False, rngs=nnx.Rngs(0)))
    load_weights(ours, file)
    ours.eval()
    keras_oracle.keras.backend.clear_session()
    theirs = keras_oracle.keras.applications.MobileNetV2(
        alpha=0.35, weights=str(file), include_top=False, input_shape=(224, 224, 3)
    )
    images, names = photographs(224, 2), ("Conv1_relu", "block_6_expand_relu", "block_12_add", "out_relu")
    want = keras_oracle.run(theirs, images / np.float32(127.5) - 1, names)
    assert_same(jax.jit(lambda m, x: m.activations(preprocess(x, "tf"), names))(ours, images), want)


def test_every_variant_has_its_own_size_and_every_file_an_entry():
    from cnnjax.models.registry import entry

    sizes = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}
    assert {name: entry("efficientnet").image_size_of({"variant": name})[0] for name in sizes} == sizes
    assert entry("efficientnet").image_size == (224, 224)
    assert {row.name for row in ALL} - {"vgg16", "vgg19", "resnet"} == set(BY_NAME)  # which have tests of their own


def test_a_layer_of_two_is_one_line_with_the_multiplications_of_both():
    table = summary(nnx.eval_shape(lambda: create("xception", alpha=0.25, rngs=nnx.Rngs(0))))
    assert table.layer("block2_sepconv2").multiplications == 147 * 147 * (32 * 9 + 32 * 32)
    table = summary(nnx.eval_shape(lambda: create("convnext", variant="atto", rngs=nnx.Rngs(0))))
    assert table.layer("convnext_atto_stem").multiplications == 56 * 56 * 40 * 3 * 4 * 4
    assert round(table.multiplications / 1e9, 2) == 0.55  # as timm's table of results says


# Keras has no EfficientNet-Lite and no ConvNeXt below tiny: their publishers' numbers of parameters.


@pytest.mark.parametrize(
    ("variant", "trainable"),
    [("lite0", 4_652_008), ("lite1", 5_416_680), ("lite2", 6_092_072), ("lite3", 8_197_096), ("lite4", 13_006_568)],
)
def test_lite_has_its_publishers_parameters(variant, trainable):
    model = nnx.eval_shape(lambda: create("efficientnet_lite", variant=variant, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == trainable


def test_lite0_has_the_shapes_of_published_weights(shared_data):
    from safetensors.numpy import load_file

    model = nnx.eval_shape(lambda: create("efficientnet_lite", rngs=nnx.Rngs(0)))
    kernels = [k.kernel.shape for k in model.layers if isinstance(k, nnx.Conv)]
    blocks = iter(range(16))
    expected = ["_conv_stem"]
    for number in blocks:
        parts = ["expand", "depthwise", "project"] if number else ["depthwise", "project"]
        expected += [f"_blocks.{number}._{part}_conv" for part in parts]
    tensors = load_file(shared_data / "weights" / "efficientnet-lite0-57934424.safetensors")
    found = [tensors[f"{name}.weight"].shape for name in [*expected, "_conv_head"]]
    assert kernels == [(*shape[2:], shape[1], shape[0]) for shape in found]
    assert parameters(model) == sum(x.size for name, x in tensors.items() if not name.endswith("num_batches_tracked"))


@pytest.mark.parametrize(
    ("variant", "millions"), [("atto", 3.70), ("femto", 5.22), ("pico", 9.05), ("nano", 15.59), ("tiny", 28.59)]
)
def test_small_convnexts_have_timms_parameters(variant, millions):
    model = nnx.eval_shape(lambda: create("convnext", variant=variant, rngs=nnx.Rngs(0)))
    assert round(parameters(model) / 1e6, 2) == millions
