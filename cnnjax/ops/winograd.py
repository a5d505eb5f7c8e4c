"""3x3 convolution in 16 products for four outputs instead of 36: F(2x2, 3x3) of Lavin & Gray 2016 (arXiv:1509.09308).

The sums before and after the products cost memory traffic, so it pays where channels are many. Its rounding errors are
those of the usual sum: B and A hold nothing but 0, 1 and -1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.ops.shifts import Pads, out_size, pad_space

_B = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # its rows: what becomes of an input tile's
_A = ((1, 1, 1, 0), (0, 1, -1, -1))

_CHANNELS, _WIDE, _TILES = 128, 256, 512
_CHUNK_BYTES = 160 << 20  # of transformed inputs and outputs at a time


def pays(x: jax.Array, k: jax.Array, pads: Pads) -> bool:
    """Whether this is faster than XLA's own convolution, on CPU, by the measurements in `cnnjax.ops`."""
    n, channels, filters = x.shape[0], *k.shape[2:]
    tiles = n * np.prod([-(-m // 2) for m in out_size(x.shape[1:3], k.shape[:2], (1, 1), pads)])
    wide = min(channels, filters) >= _CHANNELS and max(channels, filters) >= _WIDE
    return x.dtype == jnp.float32 and k.shape[:2] == (3, 3) and wide and tiles >= _TILES


def winograd(x: jax.Array, k: jax.Array, pads: Pads) -> jax.Array:
    """The convolution of f32[N, H, W, C] with f32[3, 3, C, D], stride 1."""
    out = out_size(x.shape[1:3], (3, 3), (1, 1), pads)
    tiles = (-(-out[0] // 2), -(-out[1] // 2))
    kernels = _of_kernel([list(row) for row in k])
    # At least the padding that is asked for: outputs beyond it are cut off.
    whole = [(low, 2 * t + 2 - size - low) for (low, _), size, t in zip(pads, x.shape[1:3], tiles, strict=True)]
    x = pad_space(x, tuple(whole))
    n, each = x.shape[0], 16 * 4 * tiles[0] * tiles[1] * sum(k.shape[2:])
    step = max(m for m in range(1, n + 1) if n % m == 0 and (m == 1 or m * each <= _CHUNK_BYTES))
    if step == n:
        return _of_tiles(x, kernels, tiles)[:, : out[0], : out[1]]
    parts = lax.map(lambda part: _of_tiles(part, kernels, tiles), x.reshape(n // step, step, *x.shape[1:]))
    return parts.reshape(n, *parts.shape[2:])[:, : out[0], : out[1]]


def _of_kernel(taps: list[list[jax.Array]]) -> list[list[jax.Array]]:
    """The 3x3 entries f32[C, D] of a kernel, transformed to 4x4."""

    def four(a: jax.Array, b: jax.Array, c: jax.Array) -> list[jax.Array]:
        return [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c]

    columns = [four(*column) for column in zip(*taps, strict=True)]
    return [four(*row) for row in zip(*columns, strict=True)]


def _of_tiles(x: jax.Array, kernels: list[list[jax.Array]], tiles: tuple[int, int]) -> jax.Array:
    """f32[N, 2h+2, 2w+2, C] and transformed kernels, 4x4 of f32[C, D], to f32[N, 2h, 2w, D]."""
    n, (h, w), (channels, filters) = x.shape[0], tiles, kernels[0][0].shape
    phases = x.reshape(n, h + 1, 2, w + 1, 2, channels)

    def tap(row: int, column: int) -> jax.Array:
        (down, a), (right, b) = divmod(row, 2), divmod(column, 2)
        return phases[:, down : down + h, a, right : right + w, b]

    taps = [[tap(row, column) for column in range(4)] for row in range(4)]
    products = [
        [lax.dot(part.reshape(-1, channels), kernels[i][j]).reshape(n, h, w, filters) for j, part in enumerate(row)]
        for i, row in enumerate(_both(_B, taps))
    ]
    sums = [jnp.stack(row, 3) for row in _both(_A, products)]
    return jnp.stack(sums, 2).reshape(n, 2 * h, 2 * w, filters)


def _both(matrix: tuple[tuple[int, ...], ...], tile: list[list[jax.Array]]) -> list[list[jax.Array]]:
    """M t M^T of tiles t whose entries are arrays."""
    rows = [[_sum(signs, column) for column in zip(*tile, strict=True)] for signs in matrix]
    return [[_sum(signs, row) for signs in matrix] for row in rows]


def _sum(signs: tuple[int, ...], terms: list[jax.Array] | tuple[jax.Array, ...]) -> jax.Array:
    first, *others = [(sign, term) for sign, term in zip(signs, terms, strict=True) if sign]
    total = first[1] if first[0] > 0 else -first[1]
    for sign, term in others:
        total = total + term if sign > 0 else total - term
    return total
