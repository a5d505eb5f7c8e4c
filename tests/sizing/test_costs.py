"""Parameters and multiplications against Keras's layers and XLA's count of operations."""

import jax
import jax.numpy as jnp
import pytest

from cnnjax import sizing


def xla_multiplications(shape, kernel, groups):
    """XLA counts a multiplication and an addition for every product, and so on CPU, GPU and TPU alike."""

    def convolve(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    x, k = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct(kernel, jnp.float32)
    return jax.jit(convolve).lower(x, k).cost_analysis()["flops"] / 2


@pytest.mark.parametrize(
    ("shape", "f", "filters", "groups"),
    [((32, 32, 3), (5, 5), 6, 1), ((28, 28, 6), (5, 5), 10, 1), ((9, 7, 8), (3, 2), 12, 4), ((9, 9, 8), (3, 3), 8, 8)],
)
def test_multiplications_are_those_xla_counts(shape, f, filters, groups):
    out = (shape[0] - f[0] + 1, shape[1] - f[1] + 1, filters)
    expected = xla_multiplications(shape, (*f, shape[2] // groups, filters), groups)
    assert sizing.conv_multiplications(f, shape[2], out, groups=groups) == expected
    if groups == shape[2]:
        assert sizing.depthwise_multiplications(f, out) == expected


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_keras_layers(bias):
    from keras import layers

    def count(layer, *shape):
        layer.build((None, *shape))
        return layer.count_params()

    conv = layers.Conv2D(12, (3, 2), groups=4, use_bias=bias, kernel_initializer="zeros")
    assert sizing.conv_parameters((3, 2), 8, 12, groups=4, bias=bias) == count(conv, 9, 9, 8)
    depthwise = layers.DepthwiseConv2D(3, use_bias=bias, depthwise_initializer="zeros")
    assert sizing.depthwise_parameters(3, 8, bias=bias) == count(depthwise, 9, 9, 8)
    dense = layers.Dense(5, use_bias=bias, kernel_initializer="zeros")
    assert sizing.dense_parameters(7, 5, bias=bias) == count(dense, 7)
    assert sizing.weights_per_filter((3, 2), 8, groups=4) == conv.kernel.shape[0] * conv.kernel.shape[1] * 2


def test_depthwise_separable_saves_what_mobilenets_paper_says():
    # Howard et al. 2017, section 3.1: 1/N + 1/F², here for N = 512 filters and F = 3.
    separable = sizing.depthwise_multiplications(3, (14, 14, 512)) + sizing.conv_multiplications(1, 512, (14, 14, 512))
    full = sizing.conv_multiplications(3, 512, (14, 14, 512))
    assert separable / full == pytest.approx(1 / 512 + 1 / 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sizing.conv_parameters(0, 3, 6), "filter must be a whole number of at least 1, not 0"),
        (lambda: sizing.conv_parameters(5, -3, 6), "number of channels must be .* not -3"),
        (lambda: sizing.conv_parameters(5, 3, 2.5), "number of filters must be .* not 2.5"),
        (lambda: sizing.conv_parameters((3, True), 3, 6), "filter must be .* not True"),
        (lambda: sizing.conv_parameters("33", 3, 6), "filter must be .* not '33'"),
        (lambda: sizing.conv_parameters(3, 64, 64, groups=5), "5 groups do not divide 64 filters; 2 or 4 would"),
        (lambda: sizing.weights_per_filter(3, 64, groups=65), "65 groups do not divide 64 channels; 32 or 64 would"),
        (lambda: sizing.dense_parameters(0, 6), "number of inputs must be"),
        (lambda: sizing.dense_multiplications(6, 0), "number of units must be"),
        (lambda: sizing.conv_multiplications(5, 3, (28, 0, 6)), "size of a volume must be .* not 0"),
        (lambda: sizing.conv_multiplications(5, 3, 28), "a volume is .*channels last, not 28"),
        (lambda: sizing.depthwise_multiplications(3, "28x28"), "a volume is .*, not '28x28'"),
        (lambda: sizing.conv_volume((32, 4, 3), 5, 6), "filter of 5 is larger than the input of 4"),
        (lambda: sizing.conv_volume((32, 32, 3), 5, 0), "number of filters must be"),
        (lambda: sizing.pool_volume((75, 75, 3), 2), r"= 37\.5\. .*'floor' gives 37"),
    ],
)
def test_bad_numbers_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_volumes_by_the_other_rules():
    assert sizing.pool_volume((75, 51, 32), 2, rule="floor") == (37, 25, 32)
    assert sizing.pool_volume((75, 51, 32), 3, 2, rule="same") == (38, 26, 32)
    assert sizing.conv_volume((13, 14, 8), 3, 16, dilation=2) == (9, 10, 16)
