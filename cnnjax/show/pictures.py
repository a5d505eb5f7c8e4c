"""A picture file as the pixels of a network's pictures."""

from pathlib import Path

import numpy as np

from cnnjax.data.pixels import PictureError, decode

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow and Keras make them grey (ITU-R BT.601)


def open_picture(path: str | Path) -> np.ndarray:
    """Read a picture's middle square.

    So its proportions stay as they are, and angles are right. (Training squeezes pictures to a square, as
    Keras's `image_dataset_from_directory` does.)

    Args:
        path: A BMP, GIF, JPEG, PNG or WebP file.

    Returns:
        u8[S, S, 3].

    Raises:
        OSError: There is no such file, or it cannot be read.
        PictureError: It is no picture; path and reason are named.
    """
    return middle(read_picture(path), 1.0)


def read_picture(path: str | Path) -> np.ndarray:
    """Read a whole picture: u8[H, W, 3], or an array [H, W, C] of 0 to 255 that NumPy has saved; raises likewise."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a picture")
    if not path.is_file():
        raise FileNotFoundError(f"no picture {path}")
    try:
        if path.suffix.lower() != ".npy":
            return decode(path.read_bytes())
        array = np.load(path, allow_pickle=False)
    except (PictureError, ValueError) as error:
        raise PictureError(f"{path}: {error}") from error
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "uif":
        raise PictureError(
            f"{path}: expected numbers [height, width, channels], found {array.dtype}{list(array.shape)}"
        )
    return array


def middle(picture: np.ndarray, proportion: float) -> np.ndarray:
    """The largest middle part of [H, W, C] that is `proportion` times as wide as high.

    >>> middle(np.zeros((60, 90, 3)), 1.0).shape, middle(np.zeros((60, 90, 3)), 2.0).shape
    ((60, 60, 3), (45, 90, 3))
    """
    height, width, _ = picture.shape
    rows, columns = min(height, max(1, round(width / proportion))), min(width, max(1, round(height * proportion)))
    top, left = (height - rows) // 2, (width - columns) // 2
    return picture[top : top + rows, left : left + columns]


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize [H, W, C] to (height, width); shrinking averages, so that no false edges appear. u8[H, W, 3] stays u8.

    >>> grid = np.indices((4, 4)).sum(0).astype(np.uint8)[..., None].repeat(3, -1) % 2 * 200
    >>> resized(grid, (1, 1)).ravel().tolist(), resized(grid[..., :2], (2, 1)).shape
    ([100, 100, 100], (2, 1, 2))
    """
    from PIL import Image

    shape, way = size[::-1], Image.Resampling.BILINEAR
    if picture.dtype == np.uint8 and picture.shape[-1] == 3:
        return np.asarray(Image.fromarray(picture).resize(shape, way))
    planes = np.moveaxis(picture.astype(np.float32), -1, 0)
    return np.stack([np.asarray(Image.fromarray(plane).resize(shape, way)) for plane in planes], -1)


def in_channels(picture: np.ndarray, channels: int, what: str) -> np.ndarray:
    """The picture [H, W, C] with so many channels: as it is, or a photograph in grey.

    Raises:
        ValueError: It has other channels than the network takes.

    >>> in_channels(np.array([[[255, 0, 0]]], np.uint8), 1, "net").astype(int).tolist()
    [[[76]]]
    """
    have = picture.shape[-1]
    if have == channels:
        return picture
    if (have, channels) == (3, 1):
        return picture.astype(np.float32) @ np.array(_LUMA, np.float32)[:, None]
    raise ValueError(
        f"{what} takes pictures of {channels} channels, found {have}; give an array [height, width, {channels}] that "
        "NumPy has saved (.npy), or --channels"
    )


def in_colour(picture: np.ndarray) -> np.ndarray:
    """The picture as u8[H, W, 3] to be looked at: the mean over its channels where these are not three.

    >>> in_colour(np.full((1, 1, 5), 100.4)).tolist()
    [[[100, 100, 100]]]
    """
    seen = picture if picture.shape[-1] == 3 else picture.mean(-1, keepdims=True).repeat(3, -1)
    return np.clip(np.round(seen), 0, 255).astype(np.uint8)
