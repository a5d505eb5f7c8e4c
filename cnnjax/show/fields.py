"""The part of an image that a cell of a layer sees, and how much of that matters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cnnjax.functional import Leaves, functionalize, leaves_of, model_name
from cnnjax.hooks import reachable, with_hook
from cnnjax.show.maps import MapShape, called, checked_maps
from cnnjax.sizing.field import Field
from cnnjax.summaries.measure import receptive_fields

Cell = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """Rows `top` to `bottom` and columns `left` to `right` of an image, ends included.

    What is negative, or beyond the image, lies in the padding.
    """

    top: int
    bottom: int
    left: int
    right: int

    @property
    def cells(self) -> int:
        """How many positions it holds."""
        return max(0, self.bottom - self.top + 1) * max(0, self.right - self.left + 1)

    def clipped(self, height: int, width: int) -> "Box":
        """The part that lies on an image of this size.

        >>> Box(-4, 10, 30, 40).clipped(32, 32)
        Box(top=0, bottom=10, left=30, right=31)
        """
        return Box(max(self.top, 0), min(self.bottom, height - 1), max(self.left, 0), min(self.right, width - 1))


def cell_box(fields: tuple[Field | None, ...], cell: Cell, layer: str = "the layer") -> Box:
    """The receptive field of a cell, by arithmetic (`cnnjax.summaries.measure.receptive_fields`).

    Raises:
        ValueError: The field is not known.

    >>> cell_box((Field(3, 2, -1), Field(3, 2, -1)), (0, 5))
    Box(top=-1, bottom=1, left=9, right=11)
    """
    if len(fields) != 2 or fields[0] is None or fields[1] is None:
        raise ValueError(f"what the cells of {layer} see of the image is not known: its receptive field is blank")
    (top, bottom), (left, right) = fields[0].interval(cell[0]), fields[1].interval(cell[1])
    return Box(top, bottom, left, right)


def neighbour_boxes(fields: tuple[Field | None, ...], cell: Cell, maps: MapShape) -> list[Box]:
    """The receptive fields of the cells above, below, left and right, as far as there are any.

    >>> [box.left for box in neighbour_boxes((Field(3, 2, 0), Field(3, 2, 0)), (0, 0), (5, 5, 8))]
    [0, 2]
    """
    row, column = cell
    around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return [cell_box(fields, (r, c)) for r, c in around if 0 <= r < maps[0] and 0 <= c < maps[1]]


def checked_cell(cell: Cell | None, maps: MapShape, layer: str) -> Cell:
    """Return the cell, or the middle one if none is given.

    Raises:
        ValueError: It lies outside the layer's maps.

    >>> checked_cell(None, (7, 7, 64), "conv")
    (3, 3)
    """
    height, width, _ = maps
    if cell is None:
        return height // 2, width // 2
    row, column = cell
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(
            f"cell {row} {column} lies outside the maps of {layer}, {height} x {width}: "
            f"rows are 0 to {height - 1}, columns 0 to {width - 1}"
        )
    return row, column


def layer_with_field(model: nnx.Module, input_shape: Sequence[int]) -> str:
    """The deepest layer whose cells see at most half of the image's height: large enough, and not all of it.

    Raises:
        ValueError: No layer of the model has maps and a known receptive field.

    >>> from cnnjax.models import vgg16
    >>> layer_with_field(nnx.eval_shape(lambda: vgg16(rngs=nnx.Rngs(0))), (224, 224, 3))
    'block4_pool'
    """
    found = called(model, input_shape)
    sizes = {
        path: rows.size
        for path, (rows, *_) in receptive_fields(model, input_shape).items()
        if rows and rows.jump and found[path].maps and not found[path].passes_on
    }
    if not sizes:
        raise ValueError(f"no layer of {model_name(model)} has maps and a receptive field that is known")
    # Layers in order of their output: the last of those that are small enough, else the first of all.
    order = [path for path in found if path in sizes]
    return next((path for path in reversed(order) if sizes[path] <= input_shape[0] / 2), order[0])


def effective_field(
    model: nnx.Module, images: jax.Array | np.ndarray, layer: str, cell: Cell | None = None, channel: int | None = None
) -> np.ndarray:
    """How strongly each pixel moves a cell: the magnitude of the cell's gradient.

    The receptive field says what a cell can see; its middle counts far more than its rim.

    Args:
        model: Any NNX module from images to anything; it is not changed.
        images: f32[N, H, W, C], preprocessed as the model wants them. Magnitudes are averaged over them.
        layer: Path of a module that gives maps.
        cell: (row, column) in these maps; the middle one if not given.
        channel: One map; the sum over all of them if not given.

    Returns:
        f32[H, W]: the length of the gradient over the image's channels.

    Raises:
        LookupError: There is no such layer, or it is not called; the nearest name is given.
        ValueError: It gives no maps, or there is no such cell or channel.

    Source: Luo, Li, Urtasun and Zemel 2016, "Understanding the effective receptive field in deep convolutional
    neural networks", arXiv:1701.04128.

    >>> from cnnjax.models import lecture_cnn
    >>> model = lecture_cnn((32, 32, 3), (4, 8), rngs=nnx.Rngs(0))
    >>> field = effective_field(model, np.random.default_rng(0).random((1, 32, 32, 3)), "conv2d_1", (4, 6))
    >>> [(int(k.min()), int(k.max())) for k in field.nonzero()]
    [(4, 6), (6, 8)]
    """
    images = jnp.asarray(images, jnp.float32)
    maps = checked_maps(layer, called(model, images.shape[1:]), model)
    row, column = checked_cell(cell, maps, layer)
    if channel is not None and not 0 <= channel < maps[-1]:
        raise ValueError(f"{layer} has no map {channel}: they are 0 to {maps[-1] - 1}")
    functional = functionalize(model)

    def value(images: jax.Array | np.ndarray, leaves: Leaves) -> jax.Array:
        found: dict[str, Any] = {}
        keep = lambda path, out: found.update({path: out}) or out  # noqa: E731
        with_hook(functional.module(leaves), keep)(images)
        seen = found[layer][:, row, column]
        return seen.sum() if channel is None else seen[:, channel].sum()

    with reachable([layer]):
        gradient = jax.jit(jax.grad(value))(images, leaves_of(model))
    return np.asarray(jnp.sqrt((gradient**2).sum(-1)).mean(0))


def middle_part(field: np.ndarray, box: Box, part: float = 0.9) -> int:
    """Side of the smallest square around a box's middle that holds this part of an effective field.

    >>> middle_part(np.ones((9, 9)), Box(0, 8, 0, 8), 0.3)
    5
    """
    rows, columns = np.indices(field.shape)
    middle = (box.top + box.bottom) / 2, (box.left + box.right) / 2
    distance = np.maximum(np.abs(rows - middle[0]), np.abs(columns - middle[1])).ravel()
    order = np.argsort(distance)
    last = np.searchsorted(np.cumsum(field.ravel()[order]), part * field.sum())
    return int(2 * distance[order][min(last, len(order) - 1)] + 1)
