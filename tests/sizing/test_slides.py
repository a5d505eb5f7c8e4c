"""Every figure of the lecture's slides on sizes, padding, parameters, multiplications and pooling."""

import jax.numpy as jnp
import pytest

from cnnjax import ops, sizing


def test_slide_output_size_7_3():
    assert sizing.output_size(7, 3, stride=1) == 5
    assert sizing.output_size(7, 3, stride=2) == 3
    with pytest.raises(ValueError, match=r"does not fit.*= 2\.33\. .*padding 1, with stride 1, 2 or 4, .*6 or 9"):
        sizing.output_size(7, 3, stride=3)


def test_slide_output_size_by_the_frameworks_rules():
    assert sizing.output_size(7, 3, stride=3, rule="floor") == 2
    assert sizing.output_size(7, 3, stride=2, rule="same") == 4
    assert sizing.output_size(224, 3, stride=2, rule="same") == 112
    assert sizing.same_padding(224, 3, 2) == (0, 1)


def test_slide_padding_1_2_3_keeps_the_volume():
    assert [sizing.keeping_padding(f) for f in (3, 5, 7)] == [1, 2, 3]
    for f in (3, 5, 7):
        assert sizing.output_size(32, f, padding=(f - 1) // 2) == 32
        assert sizing.same_padding(32, f) == ((f - 1) // 2, (f - 1) // 2)
    with pytest.raises(
        ValueError, match=r"even filter of 4: \(4 - 1\)/2 = 1\.5, half a position.*3 or 5.*1 before and 2"
    ):
        sizing.keeping_padding(4)
    assert sizing.same_padding(32, 4) == (1, 2)


def test_slide_shrinking_32_28_24():
    assert [row.output.cells for row in sizing.size_stack("32x32x3", "conv5-6", "conv5-10")] == [(28, 28), (24, 24)]


def test_slide_volumes():
    assert sizing.conv_volume((32, 32, 3), 5, filters=6) == (28, 28, 6)
    assert sizing.conv_volume((28, 28, 6), 5, filters=10) == (24, 24, 10)
    assert sizing.conv_volume((150, 100, 3), 3, 32, stride=1, padding=1) == (150, 100, 32)


def test_slide_parameters_first_layer_456():
    assert sizing.weights_per_filter(5, 3) == 5 * 5 * 3 == 75
    assert sizing.conv_parameters(5, 3, 6) == 6 * (5 * 5 * 3 + 1) == 456


def test_slide_parameters_next_layer_1510():
    assert sizing.weights_per_filter(5, 6) == 5 * 5 * 6
    assert sizing.conv_parameters(5, 6, 10) == 1_510


def test_slide_parameters_dense_18432():
    assert sizing.dense_parameters(32 * 32 * 3, 6, bias=False) == 18_432
    (row,) = sizing.size_stack("32x32x3", "dense6")
    assert (row.weights, row.biases, row.parameters) == (18_432, 6, 18_438)


def test_slide_multiplications_352800():
    assert sizing.conv_multiplications(5, 3, (28, 28, 6)) == 352_800
    assert sizing.size_stack("32x32x3", "conv5-6")[0].multiplications == 352_800


def test_slide_multiplications_dense_and_their_ratio():
    convolution, dense = sizing.conv_multiplications(5, 3, (28, 28, 6)), sizing.dense_multiplications(3, 6)
    assert dense == 3 * 6
    assert convolution == dense * 5 * 5 * 28 * 28


def test_slide_multiplications_of_a_whole_stack():
    rows = sizing.size_stack("32x32x3", "conv5-6", "conv5-10", "pool2", "dense10")
    each = [352_800, 5 * 5 * 6 * 24 * 24 * 10, 0, 12 * 12 * 10 * 10]
    assert [row.multiplications for row in rows] == each
    assert sizing.total(rows)["multiplications"] == sum(each)


def test_slide_max_pooling_6_8_3_4():
    x = jnp.array([[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]], jnp.float32)
    pooled = ops.max_pool(x[None, :, :, None], (2, 2), (2, 2))[0, :, :, 0]
    assert pooled.tolist() == [[6, 8], [3, 4]]
    assert sizing.pool_volume((4, 4, 1), 2, 2) == (*pooled.shape, 1)


def test_slide_pooling_sizes_and_no_parameters():
    assert sizing.pool_volume((224, 224, 64), 2, 2) == (112, 112, 64)
    (row,) = sizing.size_stack("224x224x64", "pool2")
    assert (row.weights, row.biases, row.multiplications) == (0, 0, 0)


def test_slide_common_pooling_settings():
    assert sizing.pool_volume((224, 224, 64), 2, 2) == ((224 - 2) // 2 + 1,) * 2 + (64,)
    assert sizing.pool_volume((55, 55, 96), 3, 2) == ((55 - 3) // 2 + 1,) * 2 + (96,) == (27, 27, 96)


@pytest.mark.parametrize(("f", "padding"), [(3, 1), (5, 2), (1, 0)])
def test_slide_common_convolutions_keep_the_volume(f, padding):
    assert sizing.conv_volume((32, 24, 3), f, 64, stride=1, padding=padding) == (32, 24, 64)


def test_slide_f5_s2_whatever_fits():
    assert sizing.fitting_paddings(33, 5, 2) == (0, 1, 2, 3, 4)
    assert [sizing.output_size(33, 5, 2, p) for p in (0, 1, 2)] == [15, 16, 17]
    assert sizing.fitting_paddings(32, 5, 2) == ()  # 32 - 5 + 2P is odd whatever P is
    with pytest.raises(ValueError, match=r"= 14\.5\. It fits with padding \(0, 1\), "):
        sizing.output_size(32, 5, 2)
    assert sizing.output_size(32, 5, 2, (0, 1)) == 15
    assert sizing.output_size(32, 5, 2, (1, 2)) == sizing.output_size(32, 5, 2, rule="same") == 16


def test_slide_retinotopy_nearby_cells_see_nearby_regions():
    *_, last = sizing.size_stack("32x32x3", "conv3-8", "conv3-8", "pool2")
    seen = [last.fields[0].interval(cell) for cell in range(last.output.cells[0])]
    assert seen[:3] == [(0, 5), (2, 7), (4, 9)] and seen[-1] == (26, 31)
    centres = [last.fields[0].centre(cell) for cell in range(3)]
    assert centres == [2.5, 4.5, 6.5] and last.jump == 2
