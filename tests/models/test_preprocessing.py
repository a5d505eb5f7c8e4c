"""Preprocessing against Keras's."""

import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.models.preprocessing import PREPROCESSING, preprocess

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["tf", "caffe", "torch"])
def test_keras_modes(mode):
    from keras.applications.imagenet_utils import preprocess_input

    want = preprocess_input(PIXELS.astype("float32"), data_format="channels_last", mode=mode)
    for pixels in (PIXELS, PIXELS.astype("float32")):
        got = preprocess(pixels, mode)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_unit_and_none():
    np.testing.assert_allclose(preprocess(PIXELS, "unit"), PIXELS / 255, rtol=1e-6)
    np.testing.assert_array_equal(preprocess(PIXELS, "none"), PIXELS)
    assert set(PREPROCESSING) == {"tf", "caffe", "torch", "unit", "none"}


def test_other_channels_than_rgb_are_not_repeated():
    grey = PIXELS[..., :1]
    np.testing.assert_allclose(preprocess(grey, "tf"), grey / 127.5 - 1, rtol=1e-5, atol=1e-5)
    for name in ("caffe", "torch"):  # a mean for each of three channels would make three of one
        with pytest.raises(ValueError, match=f"'{name}' is of red, green and blue, found .*take 'tf', 'unit', 'none'"):
            preprocess(grey, name)


def test_unknown_name_is_refused():
    with pytest.raises(LookupError, match="no preprocessing 'cafe'; did you mean 'caffe'"):
        preprocess(PIXELS, "cafe")
