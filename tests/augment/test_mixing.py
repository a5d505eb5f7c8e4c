"""Mixup and CutMix against the formulas of their papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnnjax.augment import Augmentation, Mixing, draw_mixing, mix


def test_mixup_is_the_papers():
    rng = np.random.default_rng(0)
    images, targets = rng.normal(size=(5, 4, 6, 3)).astype(np.float32), rng.dirichlet(np.ones(3), 5).astype(np.float32)
    share, partner = rng.random(5).astype(np.float32), np.array([3, 0, 2, 4, 1])
    got = mix(Mixing(partner, share, np.zeros(5, bool), rng.random((5, 2))), images, targets)
    for n, (k, s) in enumerate(zip(partner, share, strict=True)):  # Zhang et al. 2018, section 2
        np.testing.assert_allclose(got[0][n], s * images[n] + (1 - s) * images[k], atol=1e-6)
        np.testing.assert_allclose(got[1][n], s * targets[n] + (1 - s) * targets[k], atol=1e-6)


def test_cutmix_is_the_papers():
    rng, count, height, width = np.random.default_rng(1), 60, 20, 33
    images = rng.uniform(0, 255, (count, height, width, 2)).astype(np.float32)
    share, centre = rng.random(count).astype(np.float32), rng.random((count, 2)).astype(np.float32)
    partner = np.roll(np.arange(count), 1)
    out, targets = map(
        np.asarray, mix(Mixing(partner, share, np.ones(count, bool), centre), images, np.eye(count, dtype="f"))
    )
    cut_off = 0
    for n, k in enumerate(partner):  # Yun et al. 2019, section 3.1: box from the square root of 1 - lambda
        side = [int(length * np.sqrt(np.float32(1) - share[n])) for length in (height, width)]
        low = [int(length * c) - s // 2 for length, c, s in zip((height, width), centre[n], side, strict=True)]
        (top, left), (bottom, right) = np.maximum(low, 0), np.minimum(np.add(low, side), (height, width))
        want = images[n].copy()
        want[top:bottom, left:right] = images[k, top:bottom, left:right]
        np.testing.assert_array_equal(out[n], want)
        area = (bottom - top) * (right - left) / (height * width)
        cut_off += area < side[0] * side[1] / (height * width)
        np.testing.assert_allclose(targets[n, k], area, atol=1e-6)
        np.testing.assert_allclose(targets[n, n], 1 - area, atol=1e-6)
    assert 10 < cut_off < 60


def test_whole_and_empty_boxes():
    images = np.arange(2, dtype=np.float32).reshape(2, 1, 1, 1) * np.ones((1, 4, 4, 1), np.float32)
    ends = Mixing(np.array([1, 0]), np.array([1.0, 0.0]), np.array([True, True]), np.full((2, 2), 0.5))
    out, targets = mix(ends, images, jnp.array([[0.25], [0.75]]))
    np.testing.assert_array_equal(out, np.zeros((2, 4, 4, 1)))
    np.testing.assert_allclose(targets, [[0.25], [0.25]])


@pytest.mark.parametrize("mixup, cutmix", [(0.2, 0.0), (0.0, 4.0)])
def test_shares_are_beta(mixup, cutmix):
    mixing = jax.tree.map(np.asarray, draw_mixing(jax.random.key(7), 4000, mixup, cutmix))
    want = stats.beta(mixup + cutmix, mixup + cutmix).cdf
    assert stats.kstest(mixing.share.astype(np.float64), want).statistic < 0.026  # 1 % of good ones are above
    assert (mixing.cut == bool(cutmix)).all()
    assert np.array_equal(np.sort(mixing.partner), np.arange(4000)) and (mixing.partner == np.arange(4000)).sum() < 9


def test_each_image_draws_one_of_both():
    both = jax.tree.map(np.asarray, draw_mixing(jax.random.key(7), 4000, 0.2, 1.0))
    assert abs(both.cut.mean() - 0.5) < 0.04
    for cut, alpha in ((False, 0.2), (True, 1.0)):
        shares = np.asarray(both.share, np.float64)[np.asarray(both.cut) == cut]
        assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).statistic < 0.037
    assert abs(np.corrcoef(both.share, both.centre[:, 0])[0, 1]) < 0.06
    np.testing.assert_allclose(both.centre.mean(0), 0.5, atol=0.03)


def test_augmentation_mixes_by_its_choice():
    images, labels = (
        np.full((16, 6, 6, 3), 5, np.uint8) * np.arange(16, dtype=np.uint8).reshape(16, 1, 1, 1),
        jnp.eye(16),
    )
    out, targets = map(np.asarray, Augmentation(mixup=1, cutmix=1).mix(jax.random.key(0), images, labels))
    # Image n is 5 n everywhere, so its mean tells what is in it: as much as the target says.
    np.testing.assert_allclose(out.mean((1, 2, 3)), 5 * targets @ np.arange(16), atol=1e-4)
    two = (targets > 0).sum(1) == 2
    cut = out.std((1, 2, 3)) > 0.1
    assert (two & cut).sum() > 2 and (two & ~cut).sum() > 2
    same = Augmentation(flip=True).mix(jax.random.key(0), images, labels)
    assert same[0] is images and same[1] is labels
    with pytest.raises(
        ValueError, match=r"mixing 16 images needs targets f32\[16, K\], found int32\[16\]; jax.nn.one_hot"
    ):
        Augmentation(mixup=0.2).mix(jax.random.key(0), images, np.arange(16, dtype=np.int32))
    with pytest.raises(ValueError, match=r"needs targets f32\[16, K\], found float32\[3, 3\]"):
        Augmentation(cutmix=0.2).mix(jax.random.key(0), images, jnp.eye(3))
