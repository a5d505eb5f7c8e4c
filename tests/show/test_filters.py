"""The filters of a first layer as images, and the layer that is found."""

import jax
import numpy as np
import pytest
from flax import nnx

from cnnjax.hooks import outputs
from cnnjax.models import cifar_cnn
from cnnjax.show.filters import convolution, filter_images, first_maps


@pytest.mark.parametrize("filters", [1, 8, 24, 64, 1024])
def test_colour_filters_fill_the_scale_and_keep_zero_grey(filters):
    kernel = np.random.default_rng(filters).normal(size=(3, 3, 3, filters))
    images = filter_images(kernel)
    assert images.shape == (filters, 3, 3, 3)
    filters_first = np.moveaxis(kernel, -1, 0)
    for image, weights in zip(images, filters_first, strict=True):
        assert np.abs(image - 0.5).max() == 0.5
        np.testing.assert_allclose((image - 0.5) * np.abs(weights).max(), 0.5 * weights, atol=1e-6)


def test_other_numbers_of_channels_are_slices_scaled_alike():
    kernel = np.zeros((5, 5, 2, 3))
    kernel[2, 1] = [[4, 0, 1e-9], [-1, 0, 0]]
    images = filter_images(kernel)
    assert images.shape == (3, 2, 5, 5)
    assert images[0, 0, 2, 1] == 1.0 and images[0, 1, 2, 1] == 0.375
    assert (images[1:] == 0.5).all()  # dead filters stay grey
    with pytest.raises(ValueError, match=r"a kernel is f32\[F, F, C, K\].* found \(3, 3, 3\)"):
        filter_images(np.ones((3, 3, 3)))


def test_a_users_model_gives_its_first_convolution_with_the_norm_folded_in(resnet):
    model = resnet
    found = convolution(model, input_shape=(16, 16, 3))
    assert (found.layer, found.norm, found.kernel.shape) == ("stem", "norm", (3, 3, 3, 8))
    # Stem and norm are affine: a difference of images shows their common kernel alone.
    images = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype(np.float32)
    seen = np.diff(outputs(model, images, ["norm"])["norm"], axis=0)
    layout = ("NHWC", "HWIO", "NHWC")
    step = np.diff(images, axis=0) / 127.5
    want = jax.lax.conv_general_dilated(step, found.folded, (2, 2), "SAME", dimension_numbers=layout)
    np.testing.assert_allclose(seen, want, atol=2e-4)
    assert convolution(model, "blocks/1/conv2", input_shape=(16, 16, 3)).norm == "blocks/1/norm2"
    assert first_maps(model, (16, 16, 3)) == "norm"


def test_a_layer_without_a_kernel_is_refused(resnet):
    model = nnx.eval_shape(lambda: cifar_cnn(rngs=nnx.Rngs(0)))
    with pytest.raises(LookupError, match="no layer 'conv2d1' in cifar_cnn.*did you mean 'conv2d_1'"):
        convolution(model, "conv2d1")
    with pytest.raises(LookupError, match="with a kernel"):
        convolution(model, "max_pooling2d_1")
    with pytest.raises(ValueError, match="give input_shape"):
        convolution(nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))))
    with pytest.raises(ValueError, match="Linear calls no layer with a kernel"):
        convolution(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), input_shape=(8, 8, 3))
