"""The part of an image that a cell sees, against the gradients of real models."""

import jax
import numpy as np
import pytest
from flax import nnx

from cnnjax.models import cifar_cnn
from cnnjax.show.fields import (
    Box,
    cell_box,
    checked_cell,
    effective_field,
    layer_with_field,
    middle_part,
    neighbour_boxes,
)
from cnnjax.summaries.measure import receptive_fields


class Stack(nnx.Module):
    """Convolutions with all weights equal, padded on one side as MobileNet's: every pixel in the field counts."""

    def __init__(self):
        ones, rngs = nnx.initializers.ones, nnx.Rngs(0)
        self.first = nnx.Conv(3, 2, (3, 3), 2, padding=((0, 1), (0, 1)), kernel_init=ones, rngs=rngs)
        self.second = nnx.Conv(2, 2, (3, 5), kernel_dilation=(2, 1), kernel_init=ones, rngs=rngs)
        self.third = nnx.Conv(2, 4, (3, 3), 2, padding=((0, 1), (0, 1)), kernel_init=ones, rngs=rngs)

    def __call__(self, x):
        return self.third(jax.nn.relu(self.second(jax.nn.relu(self.first(x)))))


@pytest.mark.parametrize("cell", [None, (0, 0), (0, 7), (5, 6)])
def test_the_box_is_where_the_gradient_is_not_zero(cell):
    shape = (24, 36, 3)
    fields = receptive_fields(Stack(), shape)["third"]
    cell = checked_cell(cell, (6, 9, 4), "third")
    field = effective_field(Stack(), np.ones((2, *shape)), "third", cell)
    box = cell_box(fields, cell)
    seen = box.clipped(*shape[:2])
    rows, columns = field.nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (seen.top, seen.bottom, seen.left, seen.right)
    assert len(rows) == seen.cells <= box.cells
    if cell == (3, 4):  # nothing clipped: the cell's weight is spread evenly around the middle of its field
        middles = [(field * place).sum() / field.sum() for place in np.indices(shape[:2])]
        np.testing.assert_allclose(middles, [f.centre(k) for f, k in zip(fields, cell, strict=True)], rtol=1e-5)


def test_neighbours_see_neighbouring_boxes():
    fields = receptive_fields(Stack(), (24, 36, 3))["third"]
    boxes = neighbour_boxes(fields, (0, 4), (6, 9, 4))
    middle = cell_box(fields, (0, 4))
    assert [(b.top - middle.top, b.left - middle.left) for b in boxes] == [(4, 0), (0, -4), (0, 4)]


def test_the_magnitude_is_that_of_central_differences(resnet):
    model = resnet
    images = np.random.default_rng(0).uniform(0, 255, (1, 16, 16, 3))
    field = effective_field(model, images, "blocks/0", (3, 4), channel=5)
    first = lambda x: jax.nn.relu(model.norm(model.stem(x / 127.5 - 1)))  # noqa: E731
    value = jax.jit(lambda x: model.blocks[0](first(x))[0, 3, 4, 5])
    row, column = np.unravel_index(field.argmax(), field.shape)
    step = np.zeros_like(images)
    slopes = []
    for channel in range(3):
        step[...] = 0
        step[0, row, column, channel] = 0.5
        slopes.append(float(value(images + step) - value(images - step)))
    assert field[row, column] == pytest.approx(np.linalg.norm(slopes), rel=2e-2) and field.max() > 0


def test_cells_and_layers_that_are_not_there_are_refused():
    model = cifar_cnn((32, 32, 3), rngs=nnx.Rngs(0))
    image = np.zeros((1, 32, 32, 3))
    with pytest.raises(ValueError, match=r"cell 12 0 lies outside .* conv2d_3, 12 x 12: rows are 0 to 11, columns 0"):
        effective_field(model, image, "conv2d_3", (12, 0))
    with pytest.raises(ValueError, match=r"'dense_1' gives \(1024,\), no maps.*'conv2d_5', \(3, 3, 64\)"):
        effective_field(model, image, "dense_1")
    with pytest.raises(LookupError, match="did you mean 'conv2d_2'"):
        effective_field(model, image, "conv2d2")
    with pytest.raises(ValueError, match="has no map 32: they are 0 to 31"):
        effective_field(model, image, "conv2d_1", channel=32)
    with pytest.raises(ValueError, match="is not known"):
        cell_box((None, None), (0, 0), "attention")
    # Behind two stages of two 3x3 convolutions and a pooling a cell sees 16 of 32 rows, behind one more convolution 24.
    assert layer_with_field(model, (32, 32, 3)) == "max_pooling2d_2"


def test_middle_part_of_a_gaussian():
    y, x = np.mgrid[:101, :101] - 50
    field = np.exp(-(x**2 + y**2) / (2 * 10**2))
    # A square of half side a holds erf(a / (10 sqrt 2)) squared: 0.9 at a = 19.5.
    assert middle_part(field, Box(20, 80, 20, 80)) == pytest.approx(39, abs=1)
