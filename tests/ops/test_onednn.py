"""oneDNN's convolutions and products: what XLA computes, asked for one at a time, and nothing around them."""

import json
import os
import platform
import subprocess
import sys
from functools import partial
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from operations import NHWC, few, normal, sizes

import cnnjax
from cnnjax import ops
from cnnjax.ops import onednn

HAS = (platform.system(), platform.machine()) == ("Linux", "x86_64") and tuple(
    int(part) for part in version("jaxlib").split(".")[:2]
) >= (0, 11)  # fmt: skip
only_where_it_is = pytest.mark.skipif(not HAS, reason="this jaxlib holds no oneDNN")
plain = partial(lax.conv_general_dilated, dimension_numbers=NHWC)


def _compiled(f, *args):
    return jax.jit(f).lower(*args).compile().as_text()


def test_it_is_asked_where_jaxlib_holds_it():
    if jax.default_backend() == "cpu" and os.environ.get("CNNJAX_ONEDNN") != "0":
        assert onednn.takes(jnp.float32) is HAS
    assert not onednn.takes(jnp.float16)
    with ops.use_onednn(False):
        assert not onednn.takes(jnp.float32)


@only_where_it_is
@few
@given(
    n=st.integers(1, 4), h=sizes, w=sizes, groups=st.sampled_from([1, 2, 5]), channels=st.integers(1, 9),
    filters=st.integers(1, 9), window=st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 2), (7, 7)]),
    strides=st.sampled_from([(1, 1), (2, 2), (1, 3), (4, 4)]),
    padding=st.sampled_from([((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 0), (0, 1)), ((0, 3), (3, 2)), ((6, 6), (6, 6))]),
)  # fmt: skip
def test_convolutions_equal_xla(n, h, w, groups, channels, filters, window, strides, padding):
    x, k = normal(0, n, h, w, groups * channels), normal(1, *window, channels, groups * filters)
    if not onednn.fits(x, k, strides, padding, groups):
        return
    expected = plain(x, k, strides, padding, feature_group_count=groups)
    found = jax.jit(partial(onednn.convolution, strides=strides, pads=padding, groups=groups))(x, k)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@only_where_it_is
@pytest.mark.parametrize("transpose", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", [(70, 50, 60), (1, 400, 400), (600, 1, 300), (500, 300, 1), (65, 65, 65)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_equal_numpy(shape, transpose, dtype):
    if not onednn.takes(dtype):
        pytest.skip("this processor has no bfloat16")
    m, k, n = shape
    a, b = (normal(0, m, k) / k**0.5).astype(dtype), normal(1, k, n).astype(dtype)
    given = [x.T if t else x for x, t in zip((a, b), transpose, strict=True)]
    found = jax.jit(partial(onednn.product, transpose=transpose))(*given)
    expected = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    assert found.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(found, np.float64),
        expected,
        **({"rtol": 2**-7, "atol": 2**-7} if dtype == jnp.bfloat16 else {"atol": 1e-5}),
    )


@only_where_it_is
@pytest.mark.parametrize(
    "flags, has",
    [
        ("fpu sse2 avx2", False),
        ("fpu avx2 avx512bw avx512vl avx512dq", False),  # it has it, 800 times slower than XLA
        ("fpu avx2 avx512bw avx512vl avx512dq avx512_bf16", True),
    ],
)
def test_a_processor_without_bfloat16_is_not_asked_for_it(monkeypatch, tmp_path, flags, has):
    onednn._has_bfloat16.cache_clear()
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr(onednn, "Path", lambda _: tmp_path / "cpuinfo")
    assert onednn.takes(jnp.float32) and onednn.takes(jnp.bfloat16) is has
    onednn._has_bfloat16.cache_clear()


@only_where_it_is
def test_derivatives_of_any_order_and_maps_are_xlas():
    x, k = normal(0, 2, 9, 9, 4), normal(1, 3, 3, 4, 5)

    def curved(convolve):
        def loss(x, k):
            return jnp.sin(convolve(x, k)).sum()

        return jax.jit(jax.grad(lambda x, k: (jax.grad(loss, 1)(x, k) ** 2).sum(), (0, 1)))

    pads = ((1, 1), (1, 1))
    ours = partial(onednn.convolution, strides=(1, 1), pads=pads)
    theirs = partial(plain, window_strides=(1, 1), padding=pads)
    for found, expected in zip(curved(ours)(x, k), curved(theirs)(x, k), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    for axes in ((0, None), (None, 0), (0, 0)):
        given = [x if a is None else jnp.stack([x, 2 * x]) for x, a in zip((x, k), axes, strict=True)]
        np.testing.assert_allclose(
            jax.jit(jax.vmap(ours, axes))(*given), jax.vmap(theirs, axes)(*given), atol=1e-4
        )  # fmt: skip


@only_where_it_is
@pytest.mark.parametrize("most", [None, 6.0])
@pytest.mark.parametrize("channels, kernel, groups", [(16, (3, 3, 1, 16), 16), (16, (3, 3, 16, 32), 1)])
def test_the_rectifier_lets_nan_through(channels, kernel, groups, most):
    """oneDNN's own gives 0 for it, so the rectifier is left to XLA: a run that diverged must say so."""

    def layer(x, k, b):
        options = dict(dimension_numbers=NHWC, feature_group_count=groups)
        return ops.relu(ops.conv_general_dilated(x, k, (1, 1), "SAME", **options) + b, most)

    args = normal(0, 2, 20, 20, channels).at[0, 3, 4, 0].set(jnp.nan), jnp.ones(kernel), jnp.zeros(kernel[3])
    assert "__onednn$convolution" in _compiled(layer, *args)
    found, y = jax.jit(layer)(*args), plain(args[0], args[1], (1, 1), "SAME", feature_group_count=groups)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(y))
    assert np.isnan(y).sum() == 9 * (1 if groups > 1 else kernel[3])


_PROGRAM = """
import json, os
import cnnjax
cnnjax.tune_cpu()
import jax, jax.numpy as jnp
from jax import lax
x, k, v = jnp.ones((8, 6, 6, 3)), jnp.ones((3, 3, 3, 8)), jnp.arange(8.0)
conv = lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
f = jax.jit(lambda x, k, v: conv(x, k) + v[:, None, None, None])
text = f.lower(x, k, v).compile().as_text()
print(json.dumps([os.environ.get("XLA_FLAGS"), "onednn" in text, f(x, k, v)[:, 3, 3, 0].tolist()]))
"""


def test_importing_cnnjax_leaves_other_programs_alone():
    """XLA's own rewriter took the vector for a bias of the channels, once `import cnnjax` had switched it on."""
    own = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, check=True, env=own)
    assert json.loads(done.stdout) == [None, False, [27.0 + i for i in range(8)]]


@only_where_it_is
def test_a_training_step_of_the_lectures_network_is_oneDNNs_but_for_kernel_gradients():
    model = cnnjax.lecture_cnn((150, 150, 3), rngs=nnx.Rngs(0))
    graph, weights, rest = nnx.split(model, nnx.Param, ...)

    def loss(weights, images):
        return (nnx.merge(graph, weights, rest)(images) ** 2).sum()

    text = _compiled(jax.grad(loss), weights, jnp.zeros((32, 150, 150, 3)))
    # Four layers, three input gradients and the first layer's patches.
    assert text.count('custom_call_target="__onednn$convolution"') == 8
    assert '"ops":' not in text and " convolution(" in text  # nothing is fused; kernel gradients, in parts, are XLA's
