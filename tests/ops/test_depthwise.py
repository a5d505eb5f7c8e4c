"""Depthwise convolution against XLA's own."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from operations import NHWC, PADDINGS, assert_same, both, few, normal, sizes

from cnnjax import ops


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
    x, k = normal(0, n, h, w, c), normal(1, *window, 1, c)
    if 0 in jax.eval_shape(partial(lax.conv_general_dilated, **options), x, k).shape:
        return
    assert_same(partial(ops.conv_general_dilated, **options), partial(lax.conv_general_dilated, **options), x, k)


@both
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "size", [(6, 11, 10), (3, 38, 7), (34, 33, 4)]
)  # even and odd numbers of images, few rows and many
def test_depthwise_as_mobilenets_equals_xla(size, stride, padding):
    options = dict(window_strides=(stride, stride), padding=padding, dimension_numbers=NHWC, feature_group_count=8)
    x, k = normal(0, *size, 8), normal(1, 3, 3, 1, 8)
    assert_same(partial(ops.conv_general_dilated, **options), partial(lax.conv_general_dilated, **options), x, k)


@pytest.mark.parametrize("stride", [1, 2])
def test_kernel_gradient_copies_no_images(stride):
    x, g = normal(0, 8, 12, 12, 4), normal(1, 8, 12 // stride, 12 // stride, 4)

    def gradient(x, g):
        padding = ((1, 1), (1, 1)) if stride == 1 else ((0, 1), (0, 1))
        conv = partial(
            ops.conv_general_dilated, window_strides=(stride, stride), padding=padding, dimension_numbers=NHWC
        )
        return jax.vjp(lambda k: conv(x, k, feature_group_count=4), jnp.zeros((3, 3, 1, 4)))[1](g)

    text = jax.jit(gradient).trace(x, g).lower(lowering_platforms=("cpu",)).compile().as_text()
    made = re.findall(r" = f32\[([\d,]+)\]\S* (?!parameter|bitcast|get-tuple-element)", text.split("ENTRY")[1])
    assert made and max(np.prod([int(n) for n in shape.split(",")]) for shape in made) < x.size // 8


def test_taps_that_read_nothing_have_no_gradient():
    options = dict(window_strides=(2, 2), padding=((5, 0), (6, 0)), dimension_numbers=NHWC, feature_group_count=3)
    x, k = normal(0, 2, 3, 2, 3), normal(1, 5, 7, 1, 3)
    assert_same(partial(ops.conv_general_dilated, **options), partial(lax.conv_general_dilated, **options), x, k)
