"""Max pooling: XLA's own, but for the gradient on CPU."""

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnjax.ops.shifts import Pads, Pair, explicit_padding, pad_space, scatter, tap_views, wide_type


def max_pool(
    x: jax.Array,
    window: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> jax.Array:
    """Maximum over windows of height and width, as `keras.layers.MaxPooling2D`.

    The gradient goes to the first maximum of each window in row-major order, as XLA's select-and-scatter
    sends it.

    Args:
      x: images, `f32[N, H, W, C]` (any real type).
      window: height and width of the window.
      strides: strides over height and width; the window's size if None.
      padding: `'SAME'`, `'VALID'`, or (low, high) for height and width; what is padded never wins.

    Returns:
      `f32[N, H', W', C]`.

    Raises:
      ValueError: if `x` has not four axes, or the padding is unknown or negative.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    if x.ndim != 4:
        raise ValueError(f"max_pool expects x of shape [N, H, W, C], found {x.shape}")
    window = tuple(window)
    strides = window if strides is None else tuple(strides)
    if len(window) != 2 or len(strides) != 2:
        raise ValueError(f"max_pool expects a window and strides of two numbers, found {window} and {strides}")
    pads = explicit_padding(padding, x.shape[1:3], window, strides)
    if min(*pads[0], *pads[1]) < 0:
        raise ValueError(f"max_pool expects no negative padding, found {padding}")
    return _max_pool_op(x, window, strides, pads)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: jax.Array, window: Pair, strides: Pair, pads: Pads) -> jax.Array:
    def on_cpu(x: jax.Array) -> jax.Array:
        taps = tap_views(x, window, strides)
        return reduce(jnp.maximum, taps[1:], taps[0])

    native = partial(_native_max, window=window, strides=strides, pads=pads)
    # Windows that do not overlap read each value once: in a plain maximum, bias and rectifier are computed in the same
    # loop, and not written to memory first.
    apart = window == strides and pads == ((0, 0), (0, 0)) and x.size and _within(window, x)
    return lax.platform_dependent(x, cpu=on_cpu, default=native) if apart else native(x)


def _within(window: Pair, x: jax.Array) -> bool:
    return all(k <= n for k, n in zip(window, x.shape[1:3], strict=True))


def _native_max(x: jax.Array, window: Pair, strides: Pair, pads: Pads) -> jax.Array:
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return lax.reduce_window(
        x, np.array(lowest, x.dtype), lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0))
    )


def _max_pool_forward(x: jax.Array, window: Pair, strides: Pair, pads: Pads) -> tuple[jax.Array, tuple[jax.Array]]:
    return _max_pool(x, window, strides, pads), (x,)


def _max_pool_backward(
    window: Pair, strides: Pair, pads: Pads, kept: tuple[jax.Array], g: jax.Array
) -> tuple[jax.Array]:
    def first(x: jax.Array) -> jax.Array:
        """Index of each window's first maximum, int8[N, H', W', C]."""
        best, *rest = tap_views(pad_space(x, pads, -jnp.inf), window, strides)
        index = jnp.zeros(best.shape, code)
        for t, tap in enumerate(rest, 1):
            index = jnp.where(tap > best, jnp.array(t, code), index)
            best = jnp.maximum(best, tap)
        return index

    def apart(x: jax.Array, g: jax.Array) -> jax.Array:
        """For windows that neither overlap nor leave gaps: each input place asks its only window."""
        n, h, w, c = g.shape
        places = jnp.arange(window[0] * window[1], dtype=code).reshape(1, 1, window[0], 1, window[1], 1)
        spread = partial(
            lax.broadcast_in_dim, shape=(n, h, window[0], w, window[1], c), broadcast_dimensions=(0, 1, 3, 5)
        )
        dx = jnp.where(spread(first(x)) == places, spread(g), jnp.zeros((), g.dtype))
        dx = dx.reshape(n, h * window[0], w * window[1], c)
        ends = [(-p[0], m + p[0] - d) for p, m, d in zip(pads, x.shape[1:3], dx.shape[1:3], strict=True)]
        return pad_space(dx, (ends[0], ends[1]))

    def overlapping(x: jax.Array, g: jax.Array) -> jax.Array:
        # XLA cannot fuse across a loop: without one it repeats the search for every tap of the sum below.
        index = lax.map(lambda image: first(image[None])[0], x)

        def chosen(tap: int, index: jax.Array, g: jax.Array) -> jax.Array:
            return jnp.where(index == jnp.array(tap, code), g.astype(wide), jnp.zeros((), wide))

        return scatter(chosen, [index, g], x.shape[1:3], window, strides, pads).astype(x.dtype)

    def native(x: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: _native_max(x, window, strides, pads), x)[1](g)[0]

    (x,) = kept
    code = jnp.int8 if window[0] * window[1] < 128 else jnp.int32
    wide = wide_type(x.dtype)
    if 0 in g.shape:
        return (native(x, g),)
    return (lax.platform_dependent(x, g, cpu=apart if window == strides else overlapping, default=native),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
_max_pool_op = jax.jit(_max_pool, static_argnums=(1, 2, 3))
