"""Passes that make their large values for a few images at a time: the same values, whatever the program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.staging import Staged

RNG = np.random.default_rng(0)
W = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32), "heavy": jnp.ones((256, 64)) / 256}
X = jnp.asarray(RNG.normal(size=(12, 8, 8, 3)), jnp.float32)
CACHE = 6400  # values of more than 400 bytes an image are large: [8, 8, 4] is, of which 3 images take half of it


def staged(fn):
    return Staged(fn, W, jax.ShapeDtypeStruct(X.shape[1:], X.dtype), jnp.float32(1))


def a_later_axis(fixed, x, late):
    return jnp.sin(jnp.moveaxis(x, 0, 2) @ fixed["w"]).sum((0, 1)) * late


def pixels_as_rows(fixed, x, late):
    return (x.reshape(-1, 3) @ fixed["w"]).reshape(len(x), -1, 4).mean(1) * late


def a_weight_for_each_image(fixed, x, late):
    bias = jnp.broadcast_to(fixed["w"].sum(0), (len(x), 4))
    return (jnp.sin(x @ fixed["w"] + bias[:, None, None]).mean((1, 2)) * jnp.cos(bias)) * late


def two_features(fixed, x, late):
    return x.mean((1, 2)) * late, jnp.sin(x @ fixed["w"]).mean((1, 2)) * late


def the_images_too(fixed, x, late):
    return x * late, jnp.sin(x @ fixed["w"]).mean((1, 2)) * late


def a_large_feature(fixed, x, late):
    return jnp.sin(x @ fixed["w"]) * late


def a_call_that_gives_its_weights_back(fixed, x, late):
    block = jax.checkpoint(lambda w, h: (jnp.tanh(h @ w), w))
    h, w = block(fixed["w"], x)
    return (h.mean((1, 2)) @ w.T) * late


PROGRAMS = [
    a_later_axis, pixels_as_rows, a_weight_for_each_image, two_features, the_images_too, a_large_feature,
    a_call_that_gives_its_weights_back,
]  # fmt: skip


@pytest.mark.parametrize("fn", PROGRAMS, ids=lambda fn: fn.__name__)
def test_a_few_images_at_a_time_make_the_same_values(fn):
    cut = staged(fn)
    whole, few = (jax.jit(cut.maker(cut.features, 12, cache=c).run)(W, X) for c in (0, CACHE))
    assert cut.maker(cut.features, 12, cache=CACHE).few == 3 and cut.maker(cut.features, 12).few == 12
    assert len(whole) == len(few) == len(cut.features)
    for a, b in zip(whole, few, strict=True):
        assert a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-6)
    text = str(jax.make_jaxpr(cut.maker(cut.features, 12, cache=CACHE).run)(W, X))
    assert "length=4" in text  # four times three images


def test_a_pass_from_stored_features_needs_no_image_for_its_slices():
    def shallow(fixed, x, late):
        return (x @ fixed["w"]) * late

    def deep(fixed, x, late):
        block = jax.checkpoint(lambda w, h: (jnp.tanh(h @ w.T), w))
        h, w = block(fixed["w"], x @ fixed["w"])
        return (h.mean((1, 2)) @ w) * late

    stored, cut = staged(shallow).features, staged(deep)
    maker = cut.maker(cut.features, 12, stored=stored, cache=CACHE)
    assert maker.reads == stored and not maker.reads_images and maker.few < 12
    (rows,) = maker(W, None, X @ W["w"])
    assert np.allclose(rows, cut.maker(cut.features, 12)(W, X)[0], rtol=1e-5, atol=1e-6)


def test_large_weights_are_read_once_for_all_images():
    def fn(fixed, x, late):
        y = jnp.sin(x @ fixed["w"]).reshape(len(x), -1) @ fixed["heavy"]
        return jnp.tile(y, (1, 8)).reshape(len(x), 8, 64).max(1) * late  # 2 KiB an image, after the large weights

    cut = staged(fn)
    maker = cut.maker(cut.features, 12, cache=CACHE)
    assert maker.few == 3 and maker.largest == 2048
    assert np.allclose(maker(W, X)[0], cut.maker(cut.features, 12)(W, X)[0], rtol=1e-5, atol=1e-6)
    small = cut.maker(cut.features, 12, cache=64 << 10)  # of which all images' share of every value is a part
    assert small.few == 12 and small.largest == 2048


@pytest.mark.parametrize(("batch", "few"), [(12, 3), (2, 2), (1, 1), (7, 7), (9, 3), (10, 2)])
def test_slices_are_equal_parts_of_a_batch_and_never_one_image(batch, few):
    cut = staged(pixels_as_rows)
    maker = cut.maker(cut.features, batch, cache=CACHE)
    assert maker.few == few
    assert np.allclose(maker(W, X[:batch])[0], (X[:batch] @ W["w"]).mean((1, 2)), rtol=1e-5, atol=1e-6)
