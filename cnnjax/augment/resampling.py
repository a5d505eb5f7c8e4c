"""Images read at other places: one bilinear resampling, or none where whole pixels move."""

import jax
import jax.numpy as jnp

FILL_MODES = ("reflect", "constant", "nearest", "wrap")
"""What is read outside an image `abcd`: `dcba|abcd|dcba`, `kkkk|abcd|kkkk`, `aaaa|abcd|dddd`, `abcd|abcd|abcd`."""


def resample(
    images: jax.Array,
    linear: jax.Array,
    origin: jax.Array,
    size: tuple[int, int],
    fill_mode: str = "reflect",
    fill_value: float = 0.0,
) -> jax.Array:
    """Read every image at the places of an affine map, between its pixels bilinearly.

    Output pixel p = (row, column) of image n reads the place `linear[n] @ (p - origin[n]) + centre`, where
    the centre is ((H - 1) / 2, (W - 1) / 2). Four pixels are read for each one. (On a CPU that takes under a
    hundredth of the time of the same sums as products with matrices of weights. The reading is batched image by
    image, so that a batch laid over several devices stays where it is.)

    Args:
        images: f32[N, H, W, C].
        linear: f32[N, 2, 2].
        origin: f32[N, 2], (row, column).
        size: Height and width of the output.
        fill_mode: One of `FILL_MODES`, as in `keras.ops.image.affine_transform`.
        fill_value: The value outside, for "constant".

    Returns:
        f32[N, *size, C].

    >>> images = jnp.arange(3.0).reshape(1, 1, 3, 1)
    >>> resample(images, jnp.eye(2)[None], jnp.array([[0.0, 0.5]]), (1, 3), "nearest")[0, 0, :, 0]
    Array([0.5, 1.5, 2. ], dtype=float32)
    """
    count, height, width, channels = images.shape
    down = jnp.arange(size[0], dtype=jnp.float32)[:, None] - origin[:, 0, None, None]
    right = jnp.arange(size[1], dtype=jnp.float32) - origin[:, 1, None, None]
    # Sums of products rather than a matrix product, which GPUs and TPUs would round to fewer digits.
    a = linear[..., None, None]
    rows = _nodes(a[:, 0, 0] * down + a[:, 0, 1] * right + (height - 1) / 2, height, fill_mode)
    columns = _nodes(a[:, 1, 0] * down + a[:, 1, 1] * right + (width - 1) / 2, width, fill_mode)
    flat = images.reshape(count, height * width, channels)
    out = jnp.zeros((), jnp.promote_types(images.dtype, jnp.float32))
    for row, row_weight in rows:
        line = sum(_taken(flat, row * width + column) * weight[..., None] for column, weight in columns)
        out = out + line * row_weight[..., None]
    if fill_mode == "constant" and fill_value:
        inside = (rows[0][1] + rows[1][1]) * (columns[0][1] + columns[1][1])
        out = out + fill_value * (1 - inside[..., None])
    return out


def flipped(images: jax.Array, flip: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Flip images along some axes; no value is changed.

    Args:
        images: f32[N, H, W, C].
        flip: bool[N, 2], whether along axis 1 (upside down) and along axis 2 (left to right).
        axes: Those that any image is flipped along; the others are not looked at.

    Returns:
        f32[N, H, W, C].

    >>> flipped(jnp.arange(3.0).reshape(1, 1, 3, 1), jnp.array([[True, True]]), (2,))[0, 0, :, 0]
    Array([2., 1., 0.], dtype=float32)
    """
    for axis in axes:
        images = jnp.where(flip[:, axis - 1, None, None, None], jnp.flip(images, axis), images)
    return images


def cropped(images: jax.Array, corner: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Cut a part out of each image.

    Args:
        images: f32[N, H, W, C].
        corner: i32[N, 2], row and column of the part's upper left corner.
        size: Height and width of the part.

    Returns:
        f32[N, *size, C].

    >>> cropped(jnp.arange(3.0).reshape(1, 1, 3, 1), jnp.array([[0, 1]]), (1, 2))[0, 0, :, 0]
    Array([1., 2.], dtype=float32)
    """
    count, height, width, channels = images.shape
    rows = corner[:, 0, None, None] + jnp.arange(size[0])[:, None]
    columns = corner[:, 1, None, None] + jnp.arange(size[1])
    return _taken(images.reshape(count, height * width, channels), rows * width + columns)


def float_type(images: jax.Array) -> jnp.dtype:
    """The type of changed images: their own, float32 for integers."""
    return images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.dtype(jnp.float32)


def _nodes(place: jax.Array, size: int, fill_mode: str) -> list[tuple[jax.Array, jax.Array]]:
    """The two pixels of an axis that lie around each place, and their weights."""
    if fill_mode == "reflect":  # folded into the image; within half a pixel of its edge, the edge
        place = place + 0.5
        place = jnp.abs(place - 2 * size * jnp.floor(place / (2 * size) + 0.5)) - 0.5
    elif fill_mode == "wrap":
        place = place - size * jnp.floor(place / size)
    if fill_mode == "constant":
        place = jnp.clip(place, -1, size)
        low = jnp.floor(place)
    else:
        place = place if fill_mode == "wrap" else jnp.clip(place, 0, size - 1)
        low = jnp.minimum(jnp.floor(place), size - 1)
    index, part = low.astype(jnp.int32), place - low
    nodes = []
    for k, weight in ((index, 1 - part), (index + 1, part)):
        if fill_mode == "constant":
            weight = jnp.where((k >= 0) & (k < size), weight, 0)
        nodes.append((jnp.where(k == size, 0, k) if fill_mode == "wrap" else jnp.clip(k, 0, size - 1), weight))
    return nodes


def _taken(flat: jax.Array, index: jax.Array) -> jax.Array:
    """Pixels [N, ..., C] of [N, H * W, C] at i32[N, ...]."""
    taken = jnp.take_along_axis(flat, index.reshape(len(flat), -1, 1), 1, mode="promise_in_bounds")
    return taken.reshape(*index.shape, flat.shape[2])
