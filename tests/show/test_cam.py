"""Class activation against CAM by hand, and on photographs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnjax.hooks import outputs
from cnnjax.models import Classifier, cifar_cnn, linear_head, mobilenet, preprocess
from cnnjax.show.cam import class_activation, grad_cam, placed
from cnnjax.show.images import open_image, resized
from cnnjax.sizing.field import Field
from cnnjax.summaries.measure import receptive_fields
from cnnjax.weights.pretrained import open_backbone

# Photographs with an animal off the middle, and its box in their middle squares at 224: picked by looking.
ANIMALS = {
    "270_n02114548_white_wolf.jpg": (24, 169, 90, 223),
    "075_n01774384_black_widow.jpg": (28, 178, 20, 114),
}


class Pooled(nnx.Module):
    """A convolution, called twice, global average pooling and a dense layer."""

    def __init__(self, classes):
        random = np.random.default_rng(0)
        options = {
            "kernel_init": lambda key, shape, dtype: jnp.array(0.3 * random.normal(size=shape), dtype),
            "rngs": nnx.Rngs(0),
        }
        self.stem = nnx.Conv(3, 6, (3, 3), 2, **options)
        self.conv = nnx.Conv(6, 6, (3, 3), **options)
        self.out = nnx.Linear(6, classes, **options)

    def __call__(self, x):
        x = self.conv(jax.nn.relu(self.conv(jax.nn.relu(self.stem(x)))))
        return self.out(x.mean((1, 2)))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(3, 12, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def pooled():
    return Pooled(5)


def test_is_cam_where_a_dense_layer_follows_the_average(pooled, images):
    found = class_activation(pooled, images)
    seen = outputs(pooled, images, ["conv", "out"])
    classes = seen["out"].argmax(1)
    assert found.layer == "conv" and found.classes.tolist() == classes.tolist()
    np.testing.assert_allclose(found.logits, seen["out"], atol=1e-5)
    # Zhou et al. 2016: maps weighted by the class's dense weights; the gradient of the mean brings 1 / (6 * 8).
    cam = np.einsum("nhwk,nk->nhw", seen["conv"], np.asarray(pooled.out.kernel[...]).T[classes]) / 48
    np.testing.assert_allclose(found.heat, np.maximum(cam, 0), atol=1e-6)
    assert found.heat.max() > 0


def test_one_logit_has_two_classes(images):
    model = Pooled(1)
    seen = outputs(model, images, ["conv", "out"])
    model.out.bias[...] = -seen["out"].mean(0)
    cam = np.asarray(seen["conv"]) @ np.asarray(model.out.kernel[...])[:, 0] / 48
    positive = np.asarray(seen["out"] > seen["out"].mean())[:, 0]
    np.testing.assert_allclose(grad_cam(model, images, class_index=0), np.maximum(-cam, 0), atol=1e-6)
    found = class_activation(model, images)
    assert found.classes.tolist() == positive.tolist()
    np.testing.assert_allclose(found.probabilities[:, 1], jax.nn.sigmoid(found.logits[:, 0]), rtol=1e-5)
    np.testing.assert_allclose(found.heat, np.maximum(np.where(positive, 1, -1)[:, None, None] * cam, 0), atol=1e-6)


def test_an_inner_layer_is_weighted_by_the_mean_gradient(pooled, images):
    model = pooled
    stem = model.stem(images)
    rest = lambda maps: model.out(model.conv(jax.nn.relu(model.conv(jax.nn.relu(maps)))).mean((1, 2)))[:, 2].sum()  # noqa: E731
    weights = jax.jit(jax.grad(rest))(stem).mean((1, 2), keepdims=True)
    want = np.maximum((weights * stem).sum(-1), 0)
    np.testing.assert_allclose(grad_cam(model, images, "stem", 2), want, atol=1e-6)


def test_a_classifier_takes_pixels():
    rngs = nnx.Rngs(0)
    backbone = cifar_cnn((32, 32, 3), include_top=False, rngs=rngs)
    model = Classifier(backbone, linear_head(backbone.output_shape(), 5, rngs=rngs), "tf")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    found = class_activation(model, pixels, class_index=4)
    assert found.layer == "backbone/conv2d_5"
    maps = np.asarray(outputs(backbone, preprocess(pixels, "tf"), ["conv2d_5"])["conv2d_5"])
    want = np.maximum(maps @ np.asarray(model.head.dense.kernel[...])[:, 4] / 9, 0)
    np.testing.assert_allclose(found.heat, want, atol=1e-5)


def test_what_is_no_classifier_is_refused(pooled, images):
    model = pooled
    with pytest.raises(ValueError, match="no class 5: the model knows 5, 0 to 4"):
        grad_cam(model, images, None, 5)
    with pytest.raises(ValueError, match=r"'out' gives \(5,\), no maps"):
        grad_cam(model, images, "out")
    with pytest.raises(LookupError, match="did you mean 'stem'"):
        grad_cam(model, images, "stern")
    with pytest.raises(ValueError, match=r"gives logits f32\[N, classes\], found \(3, 6, 8, 6\)"):
        grad_cam(nnx.Sequential(model.stem), images)
    small = np.zeros((1, 32, 32, 3))
    for activation, classes in (("softmax", 10), ("sigmoid", 2)):
        with pytest.raises(ValueError, match=f"ends in a {activation}.*classifier_activation=None"):
            grad_cam(nnx.eval_shape(lambda n=classes: cifar_cnn(classes=n, rngs=nnx.Rngs(0))), small)
    with pytest.raises(ValueError, match="ends in a softmax"):
        grad_cam(nnx.eval_shape(lambda: mobilenet(0.25, (32, 32, 3), rngs=nnx.Rngs(0))), small)


def test_cells_stand_in_the_middle_of_their_fields():
    heat = np.array([[0.0, 1.0], [2.0, 3.0]])
    spread = placed(heat, (Field(5, 4, 0), Field(3, 2, 1)), (8, 6))
    assert spread.shape == (8, 6)
    assert [spread[2, 2], spread[2, 4], spread[6, 2], spread[4, 3]] == [0, 1, 2, 1.5]
    np.testing.assert_allclose(placed(heat, (None, Field(9, 0, 0)), (2, 4))[0], [0, 0.25, 0.75, 1])


def test_on_photographs_the_heat_lies_on_the_animal(shared_data):
    model, preprocessing = open_backbone(
        "mobilenet",
        image_size=224,
        alpha=0.75,
        weights=shared_data / "weights/mobilenet_7_5_224_tf.h5",
        classifier_activation=None,
    )
    files = [shared_data / "imagenet_samples" / name for name in ANIMALS]
    images = np.stack([resized(open_image(file), (224, 224)) for file in files])
    found = class_activation(model, preprocess(images, preprocessing))
    assert found.layer == "conv_pw_13_relu" and found.classes.tolist() == [int(file.name[:3]) for file in files]
    fields = receptive_fields(model)[found.layer]
    for heat, (top, bottom, left, right) in zip(found.heat, ANIMALS.values(), strict=True):
        spread = placed(heat, fields, (224, 224))
        strongest = np.unravel_index(heat.argmax(), heat.shape)
        row, column = (field.centre(int(cell)) for field, cell in zip(fields, strongest, strict=True))
        assert top <= row <= bottom and left <= column <= right
        area = (bottom - top) * (right - left) / 224**2
        assert spread[top:bottom, left:right].sum() / spread.sum() > 1.5 * area
