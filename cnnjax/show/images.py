"""An image file as the pixels of a network's images."""

from pathlib import Path

import numpy as np

from cnnjax.data.pixels import ImageError, decode

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow and Keras make them grey (ITU-R BT.601)


def open_image(path: str | Path) -> np.ndarray:
    """Read an image's middle square.

    So its proportions stay as they are, and angles are right. (Training squeezes images to a square, as
    Keras's `image_dataset_from_directory` does.)

    Args:
        path: A BMP, GIF, JPEG, PNG or WebP file.

    Returns:
        u8[S, S, 3].

    Raises:
        OSError: There is no such file, or it cannot be read.
        ImageError: It is no image; path and reason are named.
    """
    return middle(read_image(path), 1.0)


def read_image(path: str | Path) -> np.ndarray:
    """Read a whole image: u8[H, W, 3], or an array [H, W, C] of 0 to 255 that NumPy has saved; raises likewise."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give an image")
    if not path.is_file():
        raise FileNotFoundError(f"no image {path}")
    try:
        if path.suffix.lower() != ".npy":
            return decode(path.read_bytes())
        array = np.load(path, allow_pickle=False)
    except (ImageError, ValueError) as error:
        raise ImageError(f"{path}: {error}") from error
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "uif":
        raise ImageError(f"{path}: expected numbers [height, width, channels], found {array.dtype}{list(array.shape)}")
    return array


def middle(image: np.ndarray, proportion: float) -> np.ndarray:
    """The largest middle part of [H, W, C] that is `proportion` times as wide as high.

    >>> middle(np.zeros((60, 90, 3)), 1.0).shape, middle(np.zeros((60, 90, 3)), 2.0).shape
    ((60, 60, 3), (45, 90, 3))
    """
    height, width, _ = image.shape
    rows, columns = min(height, max(1, round(width / proportion))), min(width, max(1, round(height * proportion)))
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[top : top + rows, left : left + columns]


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize [H, W, C] to (height, width); shrinking averages, so that no false edges appear. u8[H, W, 3] stays u8.

    >>> grid = np.indices((4, 4)).sum(0).astype(np.uint8)[..., None].repeat(3, -1) % 2 * 200
    >>> resized(grid, (1, 1)).ravel().tolist(), resized(grid[..., :2], (2, 1)).shape
    ([100, 100, 100], (2, 1, 2))
    """
    from PIL import Image

    shape, way = size[::-1], Image.Resampling.BILINEAR
    if image.dtype == np.uint8 and image.shape[-1] == 3:
        return np.asarray(Image.fromarray(image).resize(shape, way))
    planes = np.moveaxis(image.astype(np.float32), -1, 0)
    return np.stack([np.asarray(Image.fromarray(plane).resize(shape, way)) for plane in planes], -1)


def in_channels(image: np.ndarray, channels: int, what: str) -> np.ndarray:
    """The image [H, W, C] with so many channels: as it is, or a photograph in grey.

    Raises:
        ValueError: It has other channels than the network takes.

    >>> in_channels(np.array([[[255, 0, 0]]], np.uint8), 1, "net").astype(int).tolist()
    [[[76]]]
    """
    have = image.shape[-1]
    if have == channels:
        return image
    if (have, channels) == (3, 1):
        return image.astype(np.float32) @ np.array(_LUMA, np.float32)[:, None]
    raise ValueError(
        f"{what} takes images of {channels} channels, found {have}; give an array [height, width, {channels}] that "
        "NumPy has saved (.npy), or --channels"
    )


def in_colour(image: np.ndarray) -> np.ndarray:
    """The image as u8[H, W, 3] to be looked at: the mean over its channels where these are not three.

    >>> in_colour(np.full((1, 1, 5), 100.4)).tolist()
    [[[100, 100, 100]]]
    """
    seen = image if image.shape[-1] == 3 else image.mean(-1, keepdims=True).repeat(3, -1)
    return np.clip(np.round(seen), 0, 255).astype(np.uint8)
