"""Many small images in one array: where they go, and how large they are."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Places for tiles of one size, row by row.

    Attributes:
        count: Tiles.
        columns: Tiles a row.
        tile: Height and width of a tile, in pixels.
        gap: Pixels between tiles.
        label: Pixels above each tile, for its number.
    """

    count: int
    columns: int
    tile: tuple[int, int]
    gap: int
    label: int

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return -(-self.count // self.columns)

    @property
    def height(self) -> int:
        """Of the whole grid, in pixels."""
        return self.rows * (self.tile[0] + self.label + self.gap) - self.gap

    @property
    def width(self) -> int:
        """Of the whole grid, in pixels."""
        return self.columns * (self.tile[1] + self.gap) - self.gap

    def place(self, index: int) -> tuple[int, int]:
        """The (y, x) of a tile's upper left corner, its label above it."""
        row, column = divmod(index, self.columns)
        return (
            row * (self.tile[0] + self.label + self.gap) + self.label,
            column * (self.tile[1] + self.gap),
        )

    def filled(self, tiles: np.ndarray, background: float = 1.0) -> np.ndarray:
        """All tiles f32[count, h, w, 3] (resized to `tile`) in one image f32[height, width, 3]."""
        sheet = np.full((self.height, self.width, 3), background, np.float32)
        for index, tile in enumerate(tiles):
            y, x = self.place(index)
            sheet[y : y + self.tile[0], x : x + self.tile[1]] = resampled(tile, self.tile)
        return sheet


def fitting_grid(
    count: int, shape: tuple[int, int], room: tuple[int, int], *, largest: int, aspect: float = 1.3, label: int = 14
) -> Grid:
    """Choose a grid for `count` images of a shape: the largest tiles that fit.

    Images smaller than their tile are enlarged by a whole number, so that every cell stays a square. Among
    equally large tiles the grid is the one that comes closest to `aspect` and leaves few places empty.

    Args:
        count: How many.
        shape: Height and width of each.
        room: Height and width that the grid may have, in pixels.
        largest: The longer side of a tile is at most this.
        aspect: Width over height that the grid is to have.
        label: Pixels above each tile.

    >>> grid = fitting_grid(1024, (7, 7), (2200, 2000), largest=224)
    >>> grid.columns, grid.rows, grid.tile, grid.height <= 2200, grid.width <= 2000
    (37, 28, (49, 49), True, True)
    """
    height, width = shape
    gap = 4 if count > 100 else 8

    def tile(columns: int) -> tuple[int, int]:
        rows = -(-count // columns)
        scale = min(
            largest / max(shape),
            ((room[1] + gap) / columns - gap) / width,
            ((room[0] + gap) / rows - gap - label) / height,
        )
        scale = math.floor(scale) if scale >= 1 else scale
        return max(0, int(height * scale)), max(0, int(width * scale))

    def unlike(columns: int) -> float:
        rows = -(-count // columns)
        return abs(math.log(columns * width / (rows * height) / aspect)) + 2 * (rows * columns / count - 1)

    columns = min(range(1, count + 1), key=lambda columns: (-min(tile(columns)), unlike(columns)))
    return Grid(count, columns, tile(columns), gap, label)


def resampled(tile: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize f32[h, w, 3] without blur: cells repeated where it grows, averaged where it shrinks.

    >>> resampled(np.eye(2, dtype=np.float32)[..., None], (4, 2))[..., 0].tolist()
    [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    >>> resampled(np.eye(2, dtype=np.float32)[..., None], (1, 1)).item()
    0.5
    """
    for axis, length in enumerate(size):
        tile = np.moveaxis(_resampled_rows(np.moveaxis(tile, axis, 0), length), 0, axis)
    return tile


def _resampled_rows(rows: np.ndarray, length: int) -> np.ndarray:
    if length >= len(rows):
        return rows[np.arange(length) * len(rows) // length]
    # The mean of a stretch is the difference of running sums, read between cells where it starts within one.
    sums = np.concatenate([np.zeros_like(rows[:1]), np.cumsum(rows, 0)])
    ends = np.linspace(0, len(rows), length + 1)
    below = np.minimum(ends.astype(int), len(rows) - 1)
    part = (ends - below).reshape(-1, *[1] * (rows.ndim - 1))
    edges = sums[below] + part * rows[below]
    return (np.diff(edges, axis=0) * (length / len(rows))).astype(rows.dtype)
