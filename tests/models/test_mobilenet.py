"""MobileNet against Keras and against labelled photographs."""

import csv

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from cnnjax.functional import functionalize, leaves_of
from cnnjax.hooks import with_hook
from cnnjax.models.mobilenet import PUBLISHED, mobilenet
from cnnjax.models.preprocessing import preprocess
from cnnjax.weights.assign import load_weights

NAMES = ("conv1_relu", "conv_pad_2", "conv_dw_6_bn", "conv_pw_11_relu", "conv_pw_13_relu")
ANY_SIZE = (None, None, 3)


@pytest.fixture(scope="module")
def pair(keras_oracle, shared_data):
    """A function of alpha: our model and Keras's, with the published weights."""
    made = {}

    def of(alpha):
        if alpha not in made:
            file = (
                shared_data
                / "weights"
                / {0.25: "mobilenet_2_5_224_tf_no_top.h5"}.get(alpha, "mobilenet_7_5_224_tf_no_top.h5")
            )
            ours = nnx.eval_shape(lambda: mobilenet(alpha, ANY_SIZE, include_top=False, rngs=nnx.Rngs(0)))
            load_weights(ours, file)
            ours.eval()
            theirs = keras_oracle.keras.applications.MobileNet(
                alpha=alpha, weights=str(file), input_shape=ANY_SIZE, include_top=False
            )
            made[alpha] = ours, theirs
        return made[alpha]

    return of


@pytest.mark.parametrize("alpha", [0.25, 0.75])
@pytest.mark.parametrize("size", [160, 180, 224])
def test_published_weights_give_keras_outputs(alpha, size, pair, keras_oracle, photographs, assert_same):
    ours, theirs = pair(alpha)
    images = photographs(size, 1)
    prepared = keras_oracle.keras.applications.mobilenet.preprocess_input(images.astype("float32"))
    want = keras_oracle.run(theirs, prepared, NAMES)
    got = jax.jit(lambda m, x: m.activations(preprocess(x, "tf"), NAMES))(ours, images)
    assert_same(got, want)


@pytest.mark.slow
def test_photographs_get_the_class_that_keras_names(keras_oracle, shared_data):
    rows = list(csv.DictReader((shared_data / "imagenet_samples" / "labels.csv").read_text().splitlines()))
    labels = np.array([int(row["class_index"]) for row in rows])
    assert len(labels) == 200
    images = np.stack([_crop(shared_data / "imagenet_samples" / row["file"]) for row in rows])

    file = shared_data / "weights" / "mobilenet_7_5_224_tf.h5"
    ours = mobilenet(0.75, include_top=True, rngs=nnx.Rngs(0))
    load_weights(ours, file)
    ours.eval()
    theirs = keras_oracle.keras.applications.MobileNet(alpha=0.75, weights=str(file))
    prepared = keras_oracle.keras.applications.mobilenet.preprocess_input(images.astype("float32"))
    theirs_weights = [
        [v.value for v in theirs.trainable_variables],
        [v.value for v in theirs.non_trainable_variables],
    ]
    run_theirs = jax.jit(lambda w, x: theirs.stateless_call(*w, x, training=False)[0])
    run_ours = jax.jit(lambda m, x: m(preprocess(x, "tf")))
    want = np.concatenate([run_theirs(theirs_weights, prepared[i : i + 20]) for i in range(0, 200, 20)])
    got = np.concatenate([run_ours(ours, images[i : i + 20]) for i in range(0, 200, 20)])

    assert (got.argmax(1) == want.argmax(1)).all()
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert (got.argmax(1) == labels).mean() >= 0.80


def _crop(path) -> np.ndarray:
    """Return the centre 224x224 of an image whose shorter side was brought to 256."""
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75, 1.0, 0.3])
def test_layers_are_keras_layers(alpha, top, keras_oracle):
    keras = keras_oracle.keras
    keras.backend.clear_session()  # so that automatic names are not numbered
    theirs = keras.applications.MobileNet(
        alpha=alpha, weights=None, input_shape=(96, 160, 3), include_top=top, classes=7
    )
    ours = nnx.eval_shape(lambda: mobilenet(alpha, (96, 160, 3), top, classes=7, rngs=nnx.Rngs(0)))
    assert ours.layer_names == tuple(layer.name for layer in theirs.layers)
    assert [layer.name for layer in ours.layers[:-4]] == [layer.name for layer in theirs.layers[:-4]]
    shapes = jax.eval_shape(
        lambda m, x: m.activations(x, m.layer_names), ours, jax.ShapeDtypeStruct((1, 96, 160, 3), np.float32)
    )
    for layer in theirs.layers:
        mine = nnx.state(ours.get_layer(layer.name), nnx.Any(nnx.Param, nnx.BatchStat))
        assert sum(leaf.size for leaf in jax.tree.leaves(mine)) == layer.count_params(), layer.name
        assert shapes[layer.name].shape[1:] == tuple(layer.output.shape[1:]), layer.name


def test_dropout_of_the_top_drops_only_in_training():
    model = mobilenet(0.25, (32, 32, 3), include_top=True, classes=3, dropout=0.5, rngs=nnx.Rngs(0))
    kept = np.ones((1, 1, 1, 256), np.float32)
    model.train()
    dropped = np.asarray(model.dropout(kept))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    model.eval()
    np.testing.assert_array_equal(model.dropout(kept), kept)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"input_shape": (31, 64, 3)}, r"at least 32x32 pixels, found input_shape \(31, 64, 3\)"),
        ({"alpha": 0.03}, r"alpha 0\.03 leaves conv1 0 of its 32 channels"),
        ({"input_shape": (64, 64)}, r"must be \(height, width, channels\)"),
    ],
)
def test_impossible_models_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        mobilenet(include_top=False, rngs=nnx.Rngs(0), **kwargs)


def test_published_names_are_those_keras_downloads(keras_oracle, monkeypatch):
    import keras.src.applications.mobilenet as theirs

    asked = []

    def no_download(name, url, **_):
        asked.append((name, url))
        raise FileNotFoundError

    monkeypatch.setattr(theirs.file_utils, "get_file", no_download)
    entries = [entry for entry in PUBLISHED if entry.input_size == 224]
    assert len(entries) == 8
    assert len(PUBLISHED) == 32
    for entry in entries:
        with pytest.raises(FileNotFoundError):
            theirs.MobileNet(alpha=entry.alpha, include_top=entry.include_top, input_shape=(224, 224, 3))
        assert asked[-1] == (f"{entry.name}.h5", entry.url)


def test_published_digest_is_of_the_real_file(shared_data):
    import hashlib

    (entry,) = [entry for entry in PUBLISHED if entry.digest]
    data = (shared_data / "weights" / f"{entry.name}.h5").read_bytes()
    assert entry.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_zeros_before_a_convolution_are_its_own_unless_somebody_looks():
    model = mobilenet(0.25, (32, 32, 3), include_top=False, rngs=nnx.Rngs(0))
    model.eval()
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))

    def padded(model, *names):
        equations = jax.make_jaxpr(lambda x: model.activations(x, [*names, "conv_dw_6"]))(x).eqns
        # Not inside of convolutions, which pad by themselves where oneDNN is not there.
        return sum(equation.params.get("name") == "_pad" for equation in equations)

    assert padded(model) == padded(model, "conv_pad_4") - 1 == 0
    found, watched = (model.activations(x, ["conv_dw_6", *more]) for more in ((), ("conv_pad_2", "conv_pad_6")))
    np.testing.assert_allclose(found["conv_dw_6"], watched["conv_dw_6"], atol=1e-5)

    def emptied(path, out):
        return 0 * out if path == "conv_pad_6" else out

    hooked = with_hook(functionalize(model).module(leaves_of(model), train=False), emptied)
    assert not hooked.activations(x, ["conv_dw_6"])["conv_dw_6"].any()
