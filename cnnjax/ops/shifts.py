"""Shifted views of images, their transpose, and paddings: what the CPU lowerings are made of."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.runtime.nearest import did_you_mean

Pair = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]


def explicit_padding(padding: str | Sequence[tuple[int, int]], size: Pair, window: Pair, strides: Pair) -> Pads:
    """Padding as (low, high) of height and width."""
    names = ("SAME", "SAME_LOWER", "VALID")
    if isinstance(padding, str) and padding.upper() not in names:
        raise ValueError(f"unknown padding {padding!r}{did_you_mean(padding.upper(), names)}")
    pads = lax.padtype_to_pads(size, window, strides, padding) if isinstance(padding, str) else padding
    if len(pads) != 2:
        raise ValueError(f"expected padding of two spatial axes, found {padding}")
    (top, bottom), (left, right) = pads
    return (int(top), int(bottom)), (int(left), int(right))


def out_size(size: Pair, window: Pair, strides: Pair, pads: Pads) -> Pair:
    rows, cols = ((n + sum(p) - k) // s + 1 for n, k, s, p in zip(size, window, strides, pads, strict=True))
    return rows, cols


def pad_space(x: jax.Array, pads: Pads, value: float = 0) -> jax.Array:
    return lax.pad(x, jnp.array(value, x.dtype), ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))


def tap_views(x: jax.Array, window: Pair, strides: Pair) -> list[jax.Array]:
    """What each place of the window, in row-major order, reads of a padded image: `[N, H', W', C]`."""
    n, h, w, c = x.shape
    rows, cols = (((m - k) // s) * s + 1 for m, k, s in zip((h, w), window, strides, strict=True))
    return [
        lax.slice(x, (0, i, j, 0), (n, i + rows, j + cols, c), (1, *strides, 1))
        for i in range(window[0])
        for j in range(window[1])
    ]


def phase_views(x: jax.Array, window: Pair, strides: Pair, out: Pair) -> list[jax.Array]:
    """As `tap_views`, but rows and columns are first parted by the stride, so that no slice has a step."""
    if strides == (1, 1):
        return tap_views(x, window, strides)
    n, h, w, c = x.shape
    blocks = [-(-m // s) for m, s in zip((h, w), strides, strict=True)]
    x = pad_space(x, ((0, blocks[0] * strides[0] - h), (0, blocks[1] * strides[1] - w)))
    x = x.reshape(n, blocks[0], strides[0], blocks[1], strides[1], c).transpose(2, 4, 0, 1, 3, 5)
    places = [(divmod(i, strides[0]), divmod(j, strides[1])) for i in range(window[0]) for j in range(window[1])]
    return [x[a, b, :, i : i + out[0], j : j + out[1]] for (i, a), (j, b) in places]


def scatter(
    term: Callable[..., jax.Array],
    arrays: Sequence[jax.Array],
    size: Pair,
    window: Pair,
    strides: Pair,
    pads: Pads,
) -> jax.Array:
    """The transpose of `pad_space` and `tap_views`: the sum of `term(tap, *arrays)`, each where it read.

    Input places fall into phases by their remainder modulo the stride. Within a phase every tap is a plain
    shift, so a phase is one fused sum; the phases are interleaved at the end.

    Args:
      term: from a tap's index and shifted views of `arrays`, `[N, M, M', D]`, to `[N, M, M', C]`; zero where the last
        array is.
      arrays: each `[N, H', W', D]`.
      size: height and width of the input.
      window: height and width of the window.
      strides: strides over height and width.
      pads: padding of height and width.

    Returns:
      `[N, H, W, C]`.
    """
    n, d = arrays[0].shape[0], arrays[0].shape[3]
    reach = [-(-k // s) for k, s in zip(window, strides, strict=True)]
    blocks = [-(-(m + p[0]) // s) for m, s, p in zip(size, strides, pads, strict=True)]
    margins = [(r - 1, b - a) for r, b, a in zip(reach, blocks, arrays[0].shape[1:3], strict=True)]
    padded = [pad_space(a, (margins[0], margins[1])) for a in arrays]

    def view(a: jax.Array, i: int, j: int) -> jax.Array:
        top, left = reach[0] - 1 - i // strides[0], reach[1] - 1 - j // strides[1]
        return lax.slice(a, (0, top, left, 0), (n, top + blocks[0], left + blocks[1], d))

    def phase(a: int, b: int) -> jax.Array:
        terms = [
            term(i * window[1] + j, *(view(p, i, j) for p in padded))
            for i in range(a, window[0], strides[0])
            for j in range(b, window[1], strides[1])
        ]
        return sum(terms[1:], terms[0]) if terms else jnp.zeros((n, *blocks, made.shape[3]), made.dtype)

    made = jax.eval_shape(partial(term, 0), *arrays)
    phases = [jnp.stack([phase(a, b) for b in range(strides[1])], 3) for a in range(strides[0])]
    whole = jnp.stack(phases, 2).reshape(n, blocks[0] * strides[0], blocks[1] * strides[1], made.shape[3])
    (top, _), (left, _) = pads
    return lax.slice(whole, (0, top, left, 0), (n, top + size[0], left + size[1], made.shape[3]))


def wide_type(dtype: Any) -> Any:
    """The type to sum in: at least float32, as XLA's convolutions do."""
    return jnp.promote_types(dtype, jnp.float32)
