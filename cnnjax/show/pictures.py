"""A picture file as the pixels of a square."""

from pathlib import Path

import numpy as np

from cnnjax.data.pixels import PictureError, decode


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
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give a picture")
    if not path.is_file():
        raise FileNotFoundError(f"no picture {path}")
    try:
        pixels = decode(path.read_bytes())
    except PictureError as error:
        raise PictureError(f"{path}: {error}") from error
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize u8[S, S, 3] to u8[size, size, 3]; shrinking averages, so that no false edges appear.

    >>> resized(np.indices((4, 4)).sum(0).astype(np.uint8)[..., None].repeat(3, -1) % 2 * 200, 1).ravel().tolist()
    [100, 100, 100]
    """
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR))
