"""Convolution and pooling against XLA's own lowering, NumPy, Flax and the text of lowered programs."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from cnnjax import onednn, ops
from cnnjax.ops import convolution, native, winograd

NHWC = ("NHWC", "HWIO", "NHWC")
PADDINGS = ("SAME", "VALID", ((0, 1), (0, 1)), ((1, 1), (1, 1)), ((2, 0), (1, 3)))
few = settings(max_examples=5, deadline=None, derandomize=True)


@pytest.fixture(scope="module", params=["as it is", "without oneDNN"])
def lowerings(request):
    """What this process's XLA gets, and what one gets that has no oneDNN."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "as it is":
            patch.setattr(onednn, "answers", lambda: False)
            jax.clear_caches()
        yield
    jax.clear_caches()


both = pytest.mark.usefixtures("lowerings")


def _normal(seed: int, *shape: int, dtype=jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def _native_pool(x, window, strides, padding):
    pads = padding if isinstance(padding, str) else ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, (1, *window, 1), (1, *strides, 1), pads)


def _value_and_gradients(f, *args):
    """The value of `f` and its gradients for a fixed random cotangent, in one compiled program."""
    g = _normal(9, *jax.eval_shape(f, *args).shape, dtype=args[0].dtype)

    @jax.jit
    def both(args, g):
        y, pull = jax.vjp(f, *args)
        return y, *pull(g)

    return [np.asarray(v, np.float64) for v in both(args, g)]


def _assert_same(ours, theirs, *args, tolerance=2e-6):
    for name, found, expected in zip(
        ("value", "input gradient", "kernel gradient"),
        _value_and_gradients(ours, *args),
        _value_and_gradients(theirs, *args),
        strict=False,
    ):
        scale = max(1.0, np.abs(expected).max(initial=0))
        assert found.shape == expected.shape, name
        np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance, rtol=0, err_msg=name)


sizes = st.integers(3, 9)


@both
@few
@given(
    n=st.integers(1, 9),
    h=sizes,
    w=sizes,
    c=st.integers(1, 5),
    window=st.sampled_from([(3, 3), (1, 1), (5, 5), (2, 3), (3, 1)]),
    strides=st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 2)]),
    padding=st.sampled_from(PADDINGS),
)
def test_depthwise_equals_xla(n, h, w, c, window, strides, padding):
    options = dict(window_strides=strides, padding=padding, dimension_numbers=NHWC, feature_group_count=c)
    x, k = _normal(0, n, h, w, c), _normal(1, *window, 1, c)
    if 0 in jax.eval_shape(partial(lax.conv_general_dilated, **options), x, k).shape:
        return
    _assert_same(partial(ops.conv_general_dilated, **options), partial(lax.conv_general_dilated, **options), x, k)


@both
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 11, 10), (3, 38, 7), (34, 33, 4)])  # of many rows, and many images of them
def test_depthwise_as_mobilenets_equals_xla(size, stride, padding):
    options = dict(window_strides=(stride, stride), padding=padding, dimension_numbers=NHWC, feature_group_count=8)
    x, k = _normal(0, *size, 8), _normal(1, 3, 3, 1, 8)
    _assert_same(partial(ops.conv_general_dilated, **options), partial(lax.conv_general_dilated, **options), x, k)


@few
@given(n=st.integers(1, 4), h=sizes, w=sizes, c=st.integers(1, 9), d=st.integers(1, 9))
def test_pointwise_equals_xla(n, h, w, c, d):
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    x, k = _normal(0, n, h, w, c), _normal(1, 1, 1, c, d)
    _assert_same(partial(ops.conv_general_dilated, **options), partial(lax.conv_general_dilated, **options), x, k)


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
    x, k = _normal(0, n, 6, 7, 16), _normal(1, *window, 16, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_LARGE_BYTES", 0)
        patch.setattr(convolution, "_CHUNK_BYTES", images * jax.eval_shape(theirs, x, k).size * 4 // n)
        _assert_same(lambda x, k: convolution._spatial(x, k, strides, padding, None, False), theirs, x, k)


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
def test_kernel_gradients_in_halves_and_by_patches_equal_xla(n, h, w, channels, window, strides, padding, images):
    x, k = _normal(0, n, h, w, channels), _normal(1, *window, channels, 3)
    shape = jax.eval_shape(partial(native.convolution, strides=strides, pads=padding, precision=None), x, k).shape
    if 0 in shape:
        return
    g = _normal(2, *shape)
    expected = native.gradients(strides, padding, None)[1](x, k, g)
    given = x, k, g, strides, padding, None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "is_onednn", lambda x: True)
        for found in (native.kernel_gradient_in_parts(*given, images), native.kernel_gradient_by_patches(*given)):
            np.testing.assert_allclose(found, expected, atol=1e-4)


@few
@given(
    n=st.integers(1, 6),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    padding=st.sampled_from([((1, 1), (1, 1)), ((0, 0), (0, 0)), ((2, 0), (1, 2)), ((0, 2), (2, 1)), ((4, 3), (0, 5))]),
    images=st.sampled_from([1, 2, 100]),
)
def test_winograds_convolution_equals_xla(n, h, w, padding, images):
    def theirs(x, k):
        return lax.conv_general_dilated(x, k, (1, 1), padding, dimension_numbers=NHWC)

    x, k = _normal(0, n, h, w, 5), _normal(1, 3, 3, 5, 7)
    if 0 in jax.eval_shape(theirs, x, k).shape:
        return
    with pytest.MonkeyPatch.context() as patch:
        for choice in ("pays", "pays_for_inputs", "pays_for_kernel"):
            patch.setattr(winograd, choice, lambda *_: True)
        patch.setattr(winograd, "_CHUNK_BYTES", images * 16 * 4 * -(-h // 2) * -(-w // 2) * 12)
        _assert_same(lambda x, k: convolution._spatial(x, k, (1, 1), padding, None, False), theirs, x, k)


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
    theirs, x, k = partial(lax.conv_general_dilated, **options), _normal(0, 3, h, w, 5), _normal(1, *window, 5, 7)
    _assert_same(partial(ops.conv_general_dilated, **options), theirs, x, k)


def test_a_patch_embedding_keeps_xlas_convolution():
    conv = partial(ops.conv_general_dilated, window_strides=(8, 8), padding="VALID", dimension_numbers=NHWC)
    x, k = _normal(0, 1, 32, 32, 3), _normal(1, 8, 8, 3, 4)
    text = jax.jit(jax.grad(lambda x, k: (conv(x, k) ** 2).sum(), (0, 1))).lower(x, k).as_text()
    assert text.count("stablehlo.convolution") == 3 and "dot_general" not in text


def test_a_map_narrower_than_the_window_takes_no_convolution_of_xlas():
    conv = partial(ops.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    for size, convolutions in ((2, 1), (3, 3)):  # at 2x2 the kernel gradient alone, which is no slower
        x, k = _normal(0, 4, size, size, 8), _normal(1, 3, 3, 8, 8)
        text = jax.jit(jax.grad(lambda x, k: (conv(x, k) ** 2).sum(), (0, 1))).lower(x, k).as_text()
        assert text.count("stablehlo.convolution") == convolutions


@pytest.mark.parametrize("most", [None, 6.0])
def test_the_rectifier_is_jaxs_and_keeps_its_output_alone(most):
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0, 6.0, 8.0, jnp.inf])
    theirs = jax.nn.relu if most is None else jax.nn.relu6
    np.testing.assert_array_equal(ops.relu(x, most), theirs(x))
    slopes = [0, 0, 0, 1, 1, *([1, 1, 1] if most is None else [0, 0, 0])]
    np.testing.assert_array_equal(jax.vmap(jax.grad(partial(ops.relu, max_value=most)))(x), slopes)
    np.testing.assert_array_equal(
        jax.jvp(partial(ops.relu, max_value=most), (x,), (jnp.full_like(x, 2),))[1], 2 * np.array(slopes)
    )

    def step(x):
        y, pull = jax.vjp(lambda x: ops.relu(2 * x, most), x)
        return y, pull(y)

    text = jax.jit(step).lower(x).compile().as_text()
    assert "direction=NE" in text and "direction=GT" not in text


def test_winograds_rounding_errors_are_those_of_xla():
    """Forwards and both gradients, of sums of 2,304, 2,304 and 4,096 products, against double precision."""
    x, k, g = _normal(0, 4, 32, 32, 256), _normal(1, 3, 3, 256, 256), _normal(2, 4, 32, 32, 256)
    wide, taps, out = (np.asarray(a, np.float64) for a in (jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), k, g))
    there = [(i, j) for i in range(3) for j in range(3)]
    of_inputs = np.zeros_like(wide)
    for i, j in there:
        of_inputs[:, i : i + 32, j : j + 32] += out @ taps[i, j].T
    views = [wide[:, i : i + 32, j : j + 32] for i, j in there]
    of_kernel = np.stack([np.tensordot(view, out, ((0, 1, 2), (0, 1, 2))) for view in views]).reshape(k.shape)
    true = sum(view @ taps[at] for view, at in zip(views, there, strict=True)), of_inputs[:, 1:-1, 1:-1], of_kernel

    def all_three(conv, x, k, g):
        y, pull = jax.vjp(lambda x, k: conv(x, k, (1, 1), "SAME", dimension_numbers=NHWC), x, k)
        return y, *pull(g)

    errors = [
        [np.abs(np.asarray(found, np.float64) - expected).mean() for found, expected in zip(values, true, strict=True)]
        for values in (
            jax.jit(partial(all_three, conv))(x, k, g) for conv in (ops.conv_general_dilated, lax.conv_general_dilated)
        )
    ]
    for ours, theirs in zip(*errors, strict=True):
        assert 0 < ours < 2 * theirs, errors
    text = jax.jit(partial(all_three, ops.conv_general_dilated)).lower(x, k, g).as_text()
    assert text.count("stablehlo.convolution") == 0 and text.count("stablehlo.dot_general") >= 48


def test_kernel_gradient_of_a_large_map_equals_xla():
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
    x, k = _normal(0, 3, 100, 100, 32), _normal(1, 3, 3, 32, 120)
    ours, theirs = (partial(f, **options) for f in (ops.conv_general_dilated, lax.conv_general_dilated))
    _assert_same(ours, theirs, x, k, tolerance=1e-5)
    backward = jax.jit(lambda x, k, g: jax.vjp(ours, x, k)[1](g))
    text = backward.lower(x, k, ours(x, k)).as_text()
    # The input's gradient and one image at a time, where oneDNN has the others in two halves.
    assert text.count("stablehlo.convolution") == 1 + 3 * (2 if onednn.answers() else 1)


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
    x, k = _normal(0, *shape), _normal(1, *kernel)
    _assert_same(partial(ops.conv_general_dilated, **options), partial(lax.conv_general_dilated, **options), x, k)


@pytest.mark.parametrize("size", [8, 2])
@pytest.mark.parametrize("groups, kernel", [(6, (3, 3, 1, 6)), (1, (1, 1, 6, 4)), (1, (3, 3, 6, 4))])
def test_bfloat16_rounds_once_like_xla(groups, kernel, size):
    options = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC, feature_group_count=groups)
    ours, theirs = (partial(f, **options) for f in (ops.conv_general_dilated, lax.conv_general_dilated))
    x, k = _normal(0, 4, size, size, 6, dtype=jnp.bfloat16), _normal(1, *kernel, dtype=jnp.bfloat16)
    assert jax.eval_shape(ours, x, k).dtype == jnp.bfloat16
    _assert_same(ours, theirs, x, k, tolerance=2**-8)


@pytest.mark.parametrize("groups, kernel, size", [(4, (3, 3, 1, 4), 5), (1, (1, 1, 4, 5), 5), (1, (3, 3, 4, 5), 2)])
def test_vmap_over_images_and_kernels_equals_a_loop(groups, kernel, size):
    @jax.jit
    def gradients(x, k):
        f = partial(ops.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
        return jax.grad(lambda x, k: jnp.sum(f(x, k, feature_group_count=groups) ** 2), (0, 1))(x, k)

    xs, ks = _normal(0, 2, 3, size, size, 4), _normal(1, 2, *kernel)
    for axes in ((0, 0), (0, None), (None, 0)):
        mapped = jax.jit(jax.vmap(gradients, axes))(
            *(a if m == 0 else a[0] for a, m in zip((xs, ks), axes, strict=True))
        )
        looped = [gradients(*(a[i if m == 0 else 0] for a, m in zip((xs, ks), axes, strict=True))) for i in (0, 1)]
        for found, expected in zip(mapped, zip(*looped, strict=True), strict=True):
            np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups, size, stride", [(3, 6, 2), (1, 2, 1), (1, 4, 2)])
def test_second_order_gradients_equal_xla(groups, size, stride):
    x, k = _normal(0, 2, size, size, 3), _normal(1, 3, 3, 3 // groups, 3)

    def penalty(conv, pool, x, k):
        def loss(x):
            y = conv(x, k, (stride, stride), "SAME", dimension_numbers=NHWC, feature_group_count=groups)
            return jnp.sum(jnp.sin(pool(y, (2, 2), (1, 1), "VALID")))

        return jnp.sum(jax.grad(loss)(x) ** 2)

    ours = jax.jit(jax.grad(partial(penalty, ops.conv_general_dilated, ops.max_pool), (0, 1)))(x, k)
    theirs = jax.jit(jax.grad(partial(penalty, lax.conv_general_dilated, _native_pool), (0, 1)))(x, k)
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@few
@given(
    n=st.integers(1, 3),
    h=st.integers(4, 9),
    w=st.integers(4, 9),
    window=st.sampled_from([(2, 2), (3, 3), (2, 3)]),
    strides=st.sampled_from([(2, 2), (1, 1), (3, 3), (1, 2), (4, 3)]),
    padding=st.sampled_from(PADDINGS[:4]),
    levels=st.sampled_from([2, 1000]),
)
def test_max_pool_equals_xla_ties_included(n, h, w, window, strides, padding, levels):
    x = jnp.asarray(np.random.default_rng(0).integers(0, levels, (n, h, w, 3)), jnp.float32) - levels
    _assert_same(
        lambda x: ops.max_pool(x, window, strides, padding),
        lambda x: _native_pool(x, window, strides, padding),
        x,
    )


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 4)])
def test_two_by_two_pooling_sends_the_gradient_to_the_first_maximum(size, padding):
    x = np.random.default_rng(0).integers(0, 3, (2, *size, 3)).astype(np.float32)
    y, pull = jax.vjp(lambda x: ops.max_pool(x, (2, 2), padding=padding), jnp.asarray(x))
    g = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    expected = np.zeros_like(x)
    for n, i, j, c in itertools.product(*map(range, y.shape)):
        part = np.asarray(x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c])
        assert part.max() == y[n, i, j, c]
        a, b = divmod(int(np.argmax(part)), part.shape[1])
        expected[n, 2 * i + a, 2 * j + b, c] += g[n, i, j, c]
    np.testing.assert_array_equal(pull(jnp.asarray(g))[0], expected)


@pytest.mark.parametrize("strides", [(2, 2), (1, 1)])
def test_max_pool_of_bfloat16_integers_and_mapped_axes(strides):
    x = _normal(0, 2, 3, 7, 7, 2, dtype=jnp.bfloat16)
    ours, theirs = (partial(f, window=(2, 2), strides=strides, padding="VALID") for f in (ops.max_pool, _native_pool))
    _assert_same(jax.vmap(ours), jax.vmap(theirs), x, tolerance=2**-7)
    whole = jnp.arange(16).reshape(1, 4, 4, 1)
    assert ops.max_pool(whole, (2, 2)).ravel().tolist() == [5, 7, 13, 15]


def test_max_pool_names_what_is_wrong():
    x = jnp.ones((1, 4, 4, 1))
    with pytest.raises(ValueError, match=r"'SAMEE'.*did you mean 'SAME'"):
        ops.max_pool(x, (2, 2), (2, 2), "SAMEE")
    with pytest.raises(ValueError, match=r"\[N, H, W, C\].*\(4, 4, 1\)"):
        ops.max_pool(x[0], (2, 2))
    with pytest.raises(ValueError, match="no negative padding"):
        ops.max_pool(x, (2, 2), padding=((-1, 0), (0, 0)))
    with pytest.raises(ValueError, match="two numbers"):
        ops.max_pool(x, (2,))


def test_errors_of_a_convolution_are_those_of_jax():
    with pytest.raises((ValueError, TypeError)) as expected:
        lax.conv_general_dilated(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 2, 5)), (1, 1), "SAME", dimension_numbers=NHWC)
    with pytest.raises(expected.type) as found:
        ops.conv_general_dilated(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 2, 5)), (1, 1), "SAME", dimension_numbers=NHWC)
    assert str(found.value) == str(expected.value)


class _Net(nnx.Module):
    def __init__(self, conv, pool):
        rngs = nnx.Rngs(0)
        make = partial(nnx.Conv, conv_general_dilated=conv, rngs=rngs, use_bias=False)
        self.layers = nnx.List(
            [
                make(16, 16, (3, 3), padding="SAME", feature_group_count=16),
                make(16, 24, (1, 1)),
                make(24, 24, (3, 3), strides=2, padding=((0, 1), (0, 1)), feature_group_count=24),
                make(24, 8, (3, 3), padding="VALID"),
            ]
        )
        self.pool = pool

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.pool(x, (3, 3), (2, 2), "SAME")


@cache
def _loss_of(conv, pool):
    """Loss as a function of weights and images, and its arguments."""
    graph, weights = nnx.split(_Net(conv, pool))
    args = weights, _normal(0, 4, 13, 13, 16)
    return lambda weights, x: jnp.sum(nnx.merge(graph, weights)(x) ** 2), args


def test_flax_convolutions_take_it_as_their_operation():
    ours, args = _loss_of(ops.conv_general_dilated, ops.max_pool)
    theirs, _ = _loss_of(lax.conv_general_dilated, _native_pool)
    found, expected = (jax.jit(jax.value_and_grad(f))(*args) for f in (ours, theirs))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_get_xlas_own_operations(platform):
    def texts(conv, pool):
        loss, args = _loss_of(conv, pool)
        return jax.jit(jax.value_and_grad(loss, (0, 1))).trace(*args).lower(lowering_platforms=(platform,)).as_text()

    ours, theirs = (
        texts(ops.conv_general_dilated, ops.max_pool),
        texts(lax.conv_general_dilated, _native_pool),
    )
    kinds = [
        "convolution",
        "reduce_window",
        "select_and_scatter",
        "dot_general",
        "multiply",
        "pad",
        "slice",
        "while",
    ]
    counts = [{kind: text.count(f"stablehlo.{kind}") for kind in kinds} for text in (ours, theirs)]
    assert counts[0] == counts[1]
    assert counts[0]["convolution"] == 12 and counts[0]["select_and_scatter"] >= 1


def test_exported_for_three_platforms_at_once_runs_here():
    loss, args = _loss_of(ops.conv_general_dilated, ops.max_pool)
    leaves, tree = jax.tree.flatten(args)
    flat = jax.jit(lambda *leaves: loss(*jax.tree.unflatten(tree, leaves)))
    exported = jax.export.export(flat, platforms=["cpu", "cuda", "tpu"])(*leaves)
    np.testing.assert_allclose(exported.call(*leaves), loss(*args), rtol=1e-5)


def test_cpu_programs_hold_no_depthwise_or_pointwise_convolution():
    loss, args = _loss_of(ops.conv_general_dilated, ops.max_pool)
    text = jax.jit(jax.grad(loss)).trace(*args).lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("stablehlo.convolution") == 3  # of the one 3x3 convolution: itself and its two gradients
    assert "select_and_scatter" not in text


def test_a_frozen_kernel_costs_no_kernel_gradient():
    x, k = _normal(0, 8, 6, 6, 4), _normal(1, 3, 3, 1, 4)

    def loss(x, k):
        return jnp.sum(
            ops.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=4) ** 2
        )

    def compiled(argnums):
        return jax.jit(jax.grad(loss, argnums)).lower(x, k).compile().as_text()

    assert "while" not in compiled(0)
    assert "while" in compiled(1)


def test_each_operation_is_one_equation_with_a_steady_text():
    loss, args = _loss_of(ops.conv_general_dilated, ops.max_pool)
    names = [e.params.get("name") for e in jax.make_jaxpr(loss)(*args).eqns]
    assert [n for n in names if n and n.startswith("_")] == [
        "_depthwise",
        "_pointwise",
        "_depthwise",
        "_spatial",
        "_max_pool",
    ]
    first = str(jax.make_jaxpr(jax.grad(loss))(*args))
    jax.clear_caches()
    assert str(jax.make_jaxpr(jax.grad(loss))(*args)) == first
