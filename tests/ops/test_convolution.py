"""Convolution, pointwise and spatial, against XLA's own lowering."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from operations import NHWC, PADDINGS, assert_same, both, few, native_pool, normal, sizes

from cnnjax import ops
from cnnjax.ops import convolution, native
from cnnjax.ops.onednn import takes


@few
@given(n=st.integers(1, 4), h=sizes, w=sizes, c=st.integers(1, 9), d=st.integers(1, 9))
def test_pointwise_equals_xla(n, h, w, c, d):
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    x, k = normal(0, n, h, w, c), normal(1, 1, 1, c, d)
    assert_same(partial(ops.conv_general_dilated, **options), partial(lax.conv_general_dilated, **options), x, k)


@both
@few
@given(
    n=st.integers(1, 20),
    window=st.sampled_from([(3, 3), (1, 3), (5, 2)]),
    strides=st.sampled_from([(1, 1), (2, 1), (2, 3)]),
    padding=st.sampled_from(PADDINGS[2:]),
    images=st.integers(1, 7),
)
def test_chunked_kernel_gradient_equals_xla(n, window, strides, padding, images):
    theirs = partial(lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=NHWC)
    x, k = normal(0, n, 6, 7, 16), normal(1, *window, 16, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_LARGE_BYTES", 0)
        patch.setattr(convolution, "_CHUNK_BYTES", images * jax.eval_shape(theirs, x, k).size * 4 // n)
        assert_same(
            lambda x, k: convolution._spatial(x, k, strides, padding, None, False, takes(x.dtype)), theirs, x, k
        )


@settings(few, max_examples=15)
@given(
    n=st.integers(1, 5),
    h=st.integers(2, 9),
    w=st.integers(1, 8),
    channels=st.integers(1, 4),
    window=st.sampled_from([(3, 3), (1, 1), (1, 3), (5, 2)]),
    strides=st.sampled_from([(1, 1), (2, 1), (2, 3)]),
    padding=st.sampled_from([((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (1, 3)), ((0, 2), (2, 1))]),
    images=st.integers(1, 5),
)
def test_kernel_gradients_in_parts_and_by_patches_equal_xla(n, h, w, channels, window, strides, padding, images):
    x, k = normal(0, n, h, w, channels), normal(1, *window, channels, 3)
    shape = jax.eval_shape(partial(native.convolution, strides=strides, pads=padding, precision=None), x, k).shape
    if 0 in shape:
        return
    g = normal(2, *shape)
    expected = native.gradients(strides, padding, None)[1](x, k, g)
    given = x, k, g, strides, padding
    ways = [native.kernel_gradient_in_parts(*given, None, images)]
    if takes(x.dtype):
        ways.append(native.kernel_gradient_by_patches(*given))
    for found in ways:
        np.testing.assert_allclose(found, expected, atol=1e-4)


@settings(few, max_examples=15)
@given(
    h=st.integers(2, 4),
    w=st.integers(1, 9),
    window=st.sampled_from([(5, 3), (3, 5), (5, 5), (3, 3)]),
    strides=st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 2)]),
    padding=st.sampled_from(["SAME", ((2, 3), (2, 2)), ((3, 4), (4, 3))]),
)
def test_maps_narrower_than_the_window_equal_xla(h, w, window, strides, padding):
    options = dict(window_strides=strides, padding=padding, dimension_numbers=NHWC)
    theirs, x, k = partial(lax.conv_general_dilated, **options), normal(0, 3, h, w, 5), normal(1, *window, 5, 7)
    assert_same(partial(ops.conv_general_dilated, **options), theirs, x, k)


def test_a_patch_embedding_keeps_xlas_convolution():
    conv = partial(ops.conv_general_dilated, window_strides=(8, 8), padding="VALID", dimension_numbers=NHWC)
    x, k = normal(0, 1, 32, 32, 3), normal(1, 8, 8, 3, 4)
    text = jax.jit(jax.grad(lambda x, k: (conv(x, k) ** 2).sum(), (0, 1))).lower(x, k).as_text()
    assert text.count("stablehlo.convolution") + text.count("__onednn$convolution") == 3 and "dot_general" not in text


def test_a_map_narrower_than_the_window_takes_no_convolution_of_xlas():
    conv = partial(ops.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    for size, convolutions in ((2, 1), (3, 3)):  # at 2x2 the kernel gradient alone, which is no slower
        x, k = normal(0, 4, size, size, 8), normal(1, 3, 3, 8, 8)
        text = jax.jit(jax.grad(lambda x, k: (conv(x, k) ** 2).sum(), (0, 1))).lower(x, k).as_text()
        assert text.count("stablehlo.convolution") + text.count("__onednn$convolution") == convolutions


def test_kernel_gradient_of_a_large_map_equals_xla():
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    x, k = normal(0, 3, 100, 100, 32), normal(1, 3, 3, 32, 120)
    ours, theirs = (partial(f, **options) for f in (ops.conv_general_dilated, lax.conv_general_dilated))
    assert_same(ours, theirs, x, k, tolerance=1e-5)
    backward = jax.jit(lambda x, k, g: jax.vjp(ours, x, k)[1](g))
    text = backward.lower(x, k, ours(x, k)).as_text()
    # One image at a time; the input's gradient, if it is not oneDNN's.
    assert text.count("stablehlo.convolution") == 3 + (not takes(x.dtype))


@pytest.mark.parametrize(
    "shape, kernel, options",
    [
        ((2, 8, 8, 3), (3, 3, 3, 4), dict(window_strides=(2, 2), padding=((0, 1), (0, 1)))),
        ((2, 8, 8, 4), (3, 3, 2, 6), dict(window_strides=(1, 1), padding="SAME", feature_group_count=2)),
        ((2, 8, 8, 4), (3, 3, 1, 8), dict(window_strides=(1, 1), padding="SAME", feature_group_count=4)),
        (
            (2, 8, 8, 4),
            (3, 3, 1, 4),
            dict(window_strides=(1, 1), padding="SAME", feature_group_count=4, rhs_dilation=(2, 2)),
        ),
        ((2, 8, 8, 4), (1, 1, 4, 6), dict(window_strides=(2, 2), padding="VALID")),
        ((2, 8, 8, 4), (1, 1, 4, 6), dict(window_strides=(1, 1), padding=((1, 0), (0, 2)))),
        (
            (2, 8, 8, 4),
            (3, 3, 1, 4),
            dict(window_strides=(1, 1), padding=((-1, 0), (0, -2)), feature_group_count=4),
        ),
        ((0, 8, 8, 4), (3, 3, 1, 4), dict(window_strides=(1, 1), padding="SAME", feature_group_count=4)),
    ],
)
def test_all_other_convolutions_are_passed_on(shape, kernel, options):
    options |= dict(dimension_numbers=NHWC)
    x, k = normal(0, *shape), normal(1, *kernel)
    assert_same(partial(ops.conv_general_dilated, **options), partial(lax.conv_general_dilated, **options), x, k)


@pytest.mark.parametrize("size", [8, 2])
@pytest.mark.parametrize("groups, kernel", [(6, (3, 3, 1, 6)), (1, (1, 1, 6, 4)), (1, (3, 3, 6, 4))])
def test_bfloat16_rounds_once_like_xla(groups, kernel, size):
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC, feature_group_count=groups)
    ours, theirs = (partial(f, **options) for f in (ops.conv_general_dilated, lax.conv_general_dilated))
    x, k = normal(0, 4, size, size, 6, dtype=jnp.bfloat16), normal(1, *kernel, dtype=jnp.bfloat16)
    assert jax.eval_shape(ours, x, k).dtype == jnp.bfloat16
    assert_same(ours, theirs, x, k, tolerance=2**-8)


@pytest.mark.parametrize("groups, kernel, size", [(4, (3, 3, 1, 4), 5), (1, (1, 1, 4, 5), 5), (1, (3, 3, 4, 5), 2)])
def test_vmap_over_images_and_kernels_equals_a_loop(groups, kernel, size):
    @jax.jit
    def gradients(x, k):
        f = partial(ops.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
        return jax.grad(lambda x, k: jnp.sum(f(x, k, feature_group_count=groups) ** 2), (0, 1))(x, k)

    xs, ks = normal(0, 2, 3, size, size, 4), normal(1, 2, *kernel)
    for axes in ((0, 0), (0, None), (None, 0)):
        mapped = jax.jit(jax.vmap(gradients, axes))(
            *(a if m == 0 else a[0] for a, m in zip((xs, ks), axes, strict=True))
        )
        looped = [gradients(*(a[i if m == 0 else 0] for a, m in zip((xs, ks), axes, strict=True))) for i in (0, 1)]
        for found, expected in zip(mapped, zip(*looped, strict=True), strict=True):
            np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups, size, stride", [(3, 6, 2), (1, 2, 1), (1, 4, 2)])
def test_second_order_gradients_equal_xla(groups, size, stride):
    x, k = normal(0, 2, size, size, 3), normal(1, 3, 3, 3 // groups, 3)

    def penalty(conv, pool, x, k):
        def loss(x):
            y = conv(x, k, (stride, stride), "SAME", dimension_numbers=NHWC, feature_group_count=groups)
            return jnp.sum(jnp.sin(pool(y, (2, 2), (1, 1), "VALID")))

        return jnp.sum(jax.grad(loss)(x) ** 2)

    ours = jax.jit(jax.grad(partial(penalty, ops.conv_general_dilated, ops.max_pool), (0, 1)))(x, k)
    theirs = jax.jit(jax.grad(partial(penalty, lax.conv_general_dilated, native_pool), (0, 1)))(x, k)
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_errors_of_a_convolution_are_those_of_jax():
    with pytest.raises((ValueError, TypeError)) as expected:
        lax.conv_general_dilated(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 2, 5)), (1, 1), "SAME", dimension_numbers=NHWC)
    with pytest.raises(expected.type) as found:
        ops.conv_general_dilated(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 2, 5)), (1, 1), "SAME", dimension_numbers=NHWC)
    assert str(found.value) == str(expected.value)
