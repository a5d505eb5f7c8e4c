"""3x3 convolution in 16 products for four outputs instead of 36: F(2x2, 3x3) of Lavin & Gray 2016 (arXiv:1509.09308).

A tile of 4x4 inputs d and a kernel k give 2x2 outputs A [(G k G') * (B d B')] A'. Both gradients are the transpose of
that, with 16 products too: of the kernel G' [sum over tiles of (B d B') * (A' g A)] G, of the inputs the tiles
B' [(G k G') * (A' g A)] B, added up where they overlap. What one program transforms for several of them (the kernel
forwards and backwards, g for both gradients) XLA makes once.

The sums before and after the products cost memory traffic, so it pays where channels are many. Its rounding errors are
those of the usual sum: A and B hold nothing but 0, 1 and -1, and G halves besides. F(4x4, 3x3) needs 36 products for
sixteen outputs, but has four to five times the error, and its smaller products were no faster (11x11x512, batch 16: 33
and 27 ms forwards, 26 and 26, 27 and 30 the gradients).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.ops.native import product
from cnnjax.ops.shifts import Pads, Pair, out_size, pad_space

_Matrix = Sequence[Sequence[float]]
_Tile = list[list[jax.Array]]

_B = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_A = ((1, 1, 1, 0), (0, 1, -1, -1))
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))

_TILES = 512
_CHUNK_BYTES = 160 << 20  # of transformed inputs and outputs at a time


def pays(x: jax.Array, k: jax.Array, pads: Pads, asks: bool) -> bool:
    """Whether this is faster, on CPU, than the convolution of XLA, or of oneDNN where it is asked, by the measurements
    in `cnnjax.ops`."""
    return _pays(x, k, pads, 256 if asks else 128, 256)


def pays_for_inputs(x: jax.Array, k: jax.Array, pads: Pads, asks: bool) -> bool:
    """The same of the input's gradient."""
    fewest = 256 if asks else 128
    return _pays(x, k, pads, fewest, fewest)


def pays_for_kernel(x: jax.Array, k: jax.Array, pads: Pads, large: bool) -> bool:
    """The same of the kernel's gradient; `large` says that one image's output alone leaves XLA's fast path."""
    return _pays(x, k, pads, 64 if large else 128, 64)


def _pays(x: jax.Array, k: jax.Array, pads: Pads, fewest: int, most: int) -> bool:
    n, channels = x.shape[0], k.shape[2:]
    wide = min(channels) >= fewest and max(channels) >= most
    return x.dtype == jnp.float32 and k.shape[:2] == (3, 3) and wide and n * math.prod(_tiles(x, pads)) >= _TILES


def convolution(x: jax.Array, k: jax.Array, pads: Pads, asks: bool) -> jax.Array:
    """The convolution of f32[N, H, W, C] with f32[3, 3, C, D], stride 1; `asks` oneDNN for the products."""
    tiles, out, kernels = _tiles(x, pads), _out(x, pads), _of_kernel(k)

    def of_images(x: jax.Array) -> jax.Array:
        products = _products(_of_inputs(x, tiles), kernels, _rows, asks)
        return _joined(_both(_A, products))[:, : out[0], : out[1]]

    return _in_parts(of_images, tiles, k, _padded(x, pads, tiles))


def input_gradient(x: jax.Array, k: jax.Array, g: jax.Array, pads: Pads, asks: bool) -> jax.Array:
    """The gradient of `convolution`'s input, from that of its output, f32[N, H', W', D]."""
    tiles, kernels = _tiles(x, pads), _of_kernel(k)
    (top, _), (left, _) = pads

    def of_images(g: jax.Array) -> jax.Array:
        parts = _both(_transposed(_B), _products(_of_outputs(g, tiles), kernels, _rows_back, asks))
        columns = [[_overlapping(row[s], row[s + 2], 2) for s in range(2)] for row in parts]
        whole = _joined([[_overlapping(columns[r][s], columns[r + 2][s], 1) for s in range(2)] for r in range(2)])
        return whole[:, top : top + x.shape[1], left : left + x.shape[2]]

    return _in_parts(of_images, tiles, k, _even(g, tiles))


def kernel_gradient(x: jax.Array, k: jax.Array, g: jax.Array, pads: Pads, asks: bool) -> jax.Array:
    """The gradient of `convolution`'s kernel, likewise."""
    tiles = _tiles(x, pads)

    def of_images(x: jax.Array, g: jax.Array) -> jax.Array:
        sums = _products(_of_inputs(x, tiles), _of_outputs(g, tiles), _summed, asks)
        return jnp.stack([jnp.stack(row) for row in _both(_transposed(_G), sums)])

    def add(total: jax.Array, images: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + of_images(*images), None

    images = _padded(x, pads, tiles), _even(g, tiles)
    step = _step(len(x), tiles, k)
    if step == len(x):
        return of_images(*images)
    parts: Any = tuple(a.reshape(len(x) // step, step, *a.shape[1:]) for a in images)
    return lax.scan(add, jnp.zeros(k.shape, k.dtype), parts)[0]


def _out(x: jax.Array, pads: Pads) -> Pair:
    return out_size(x.shape[1:3], (3, 3), (1, 1), pads)


def _tiles(x: jax.Array, pads: Pads) -> Pair:
    rows, columns = _out(x, pads)
    return -(-rows // 2), -(-columns // 2)


def _step(n: int, tiles: Pair, k: jax.Array) -> int:
    """How many images at a time."""
    each = 16 * 4 * tiles[0] * tiles[1] * sum(k.shape[2:])
    return max(m for m in range(1, n + 1) if n % m == 0 and (m == 1 or m * each <= _CHUNK_BYTES))


def _in_parts(f: Callable[[jax.Array], jax.Array], tiles: Pair, k: jax.Array, images: jax.Array) -> jax.Array:
    n = len(images)
    step = _step(n, tiles, k)
    if step == n:
        return f(images)
    parts = lax.map(f, images.reshape(n // step, step, *images.shape[1:]))
    return parts.reshape(n, *parts.shape[2:])


def _padded(x: jax.Array, pads: Pads, tiles: Pair) -> jax.Array:
    """Inputs f32[N, 2h+2, 2w+2, C]: at least the padding that is asked for, outputs beyond it are cut off."""
    whole = [(low, 2 * t + 2 - size - low) for (low, _), size, t in zip(pads, x.shape[1:3], tiles, strict=True)]
    return pad_space(x, tuple(whole))


def _even(g: jax.Array, tiles: Pair) -> jax.Array:
    """Outputs' gradient f32[N, 2h, 2w, D]."""
    rows, columns = ((0, 2 * t - size) for t, size in zip(tiles, g.shape[1:3], strict=True))
    return pad_space(g, (rows, columns))


def _of_kernel(k: jax.Array) -> _Tile:
    """4x4 of f32[C, D]."""
    return _both(_G, [list(row) for row in k])


def _of_inputs(x: jax.Array, tiles: Pair) -> _Tile:
    """f32[N, 2h+2, 2w+2, C] to 4x4 of f32[N, h, w, C]."""
    (h, w), (n, *_, c) = tiles, x.shape
    phases = x.reshape(n, h + 1, 2, w + 1, 2, c)

    def tap(row: int, column: int) -> jax.Array:
        (down, a), (right, b) = divmod(row, 2), divmod(column, 2)
        return phases[:, down : down + h, a, right : right + w, b]

    return _both(_B, [[tap(row, column) for column in range(4)] for row in range(4)])


def _of_outputs(g: jax.Array, tiles: Pair) -> _Tile:
    """f32[N, 2h, 2w, D] to 4x4 of f32[N, h, w, D]."""
    phases = g.reshape(len(g), tiles[0], 2, tiles[1], 2, g.shape[3])
    return _both(_transposed(_A), [[phases[:, :, a, :, b] for b in range(2)] for a in range(2)])


def _products(left: _Tile, right: _Tile, of: Callable[[jax.Array, jax.Array, bool], jax.Array], asks: bool) -> _Tile:
    pairs = [list(zip(row, other, strict=True)) for row, other in zip(left, right, strict=True)]
    return [[of(a, b, asks) for a, b in row] for row in pairs]


def _rows(x: jax.Array, k: jax.Array, asks: bool) -> jax.Array:
    """f32[N, h, w, C] and f32[C, D] to f32[N, h, w, D], as a product of matrices."""
    return product(x.reshape(-1, x.shape[3]), k, asks).reshape(*x.shape[:3], k.shape[1])


def _rows_back(g: jax.Array, k: jax.Array, asks: bool) -> jax.Array:
    """f32[N, h, w, D] and f32[C, D] to f32[N, h, w, C]."""
    return product(g.reshape(-1, g.shape[3]), k, asks, (False, True)).reshape(*g.shape[:3], k.shape[0])


def _summed(x: jax.Array, g: jax.Array, asks: bool) -> jax.Array:
    """f32[N, h, w, C] and f32[N, h, w, D] to f32[C, D]."""
    return product(x.reshape(-1, x.shape[3]), g.reshape(-1, g.shape[3]), asks, (True, False))


def _joined(phases: _Tile) -> jax.Array:
    """2x2 of f32[N, h, w, D] to f32[N, 2h, 2w, D]."""
    n, h, w, d = phases[0][0].shape
    return jnp.stack([jnp.stack(row, 3) for row in phases], 2).reshape(n, 2 * h, 2 * w, d)


def _overlapping(first: jax.Array, last: jax.Array, axis: int) -> jax.Array:
    """The first two and last two places of tiles that overlap by two: one tile more."""

    def moved(x: jax.Array, low: int) -> jax.Array:
        ends = [(low, 1 - low, 0) if k == axis else (0, 0, 0) for k in range(x.ndim)]
        return lax.pad(x, jnp.zeros((), x.dtype), ends)

    return moved(first, 0) + moved(last, 1)


def _transposed(matrix: _Matrix) -> _Matrix:
    return tuple(zip(*matrix, strict=True))


def _both(matrix: _Matrix, tile: _Tile) -> _Tile:
    """M t M' of tiles t whose entries are arrays."""
    columns = zip(*tile, strict=True)
    rows = zip(*([_sum(row, column) for row in matrix] for column in columns), strict=True)
    return [[_sum(row, entries) for row in matrix] for entries in rows]


def _sum(factors: Sequence[float], terms: Sequence[jax.Array]) -> jax.Array:
    """Terms with factors of 0, 1, -1, and one other number at most, which multiplies a sum."""
    parts: dict[float, jax.Array] = {}
    for factor, term in zip(factors, terms, strict=True):
        size = abs(factor)
        if size and size in parts:
            parts[size] = parts[size] + term if factor > 0 else parts[size] - term
        elif size:
            parts[size] = term if factor > 0 else -term
    first, *others = [x if size == 1 else size * x for size, x in parts.items()]
    return sum(others, first)
