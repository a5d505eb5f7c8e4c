"""From the bytes of a picture file to the pixels Keras would train on.

JPEGs are decoded with the accurate integer transform, as Pillow does and Keras wherever it reads through Pillow.
Keras on TensorFlow takes TensorFlow's fast one: measured on 2026-11-23 against TensorFlow 2.21 on 1,000
photographs, order and labels were the same, resizing was equal to the last bit, TensorFlow's
`dct_method="INTEGER_ACCURATE"` gave our pixels exactly, and its default moved them by 1 of 255 on average (7 at
most).
"""

import functools
import io
import threading
import warnings
from typing import Any

import numpy as np

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""What `decode` reads, told by the content of a file, never by its name."""

PIXEL_CHOICES = "rgb; alpha dropped; 16 bit: high byte; exif turn ignored; bilinear, half-pixel, no antialias; v1"
"""Every choice that decides a pixel, part of a source's digest: raise the version when values change."""

_LOCK = threading.Lock()


class PictureError(ValueError):
    """One or more pictures cannot be decoded; the message names each and says why."""


def decode(data: bytes) -> np.ndarray:
    """Decodes the first frame of a picture to u8[H, W, 3], as Keras's `image_dataset_from_directory` does.

    Greyscale is repeated over the channels, an alpha channel is dropped and not blended, palettes are looked
    up, CMYK is converted by subtraction (JPEGs that carry Adobe's mark are stored inverted and are inverted
    back first), 16-bit values keep their high byte as TensorFlow does, and the EXIF orientation is ignored: a
    picture turned only by its EXIF tag stays as its sensor stored it, since Keras leaves it so.

    Args:
        data: the whole content of a BMP, GIF, JPEG, PNG or WebP file.

    Raises:
        PictureError: the bytes are no such picture, are cut short, or declare more pixels than Pillow deems
            safe.

    >>> decode(b"")
    Traceback (most recent call last):
    cnnjax.data.pixels.PictureError: the file is empty
    """
    if not data:
        raise PictureError("the file is empty")
    try:
        return _decode(data)
    except Warning:
        # Pillow warns of harmless things too (a broken EXIF block): the outcome must not depend on the
        # warning filters.
        with _LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data)


def _decode(data: bytes) -> np.ndarray:
    # Pillow registers WebP only when its plugin is imported.
    from PIL import Image, WebPImagePlugin  # noqa: F401

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise PictureError(_bomb(image.width, image.height, limit))
            image.load()
            return _rgb(image)
    except (PictureError, Warning):
        raise
    except Image.UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        start = f"it starts with {data[:12]!r}"
        raise PictureError(f"not a picture: its content is none of {kinds} ({start})") from None
    except Image.DecompressionBombError as error:
        raise PictureError(str(error)) from None
    except MemoryError:
        raise PictureError("too large to decode in memory") from None
    # Pillow's plugins raise whatever their parser met: OSError, SyntaxError, struct.error, EOFError, ...
    except Exception as error:
        raise PictureError(f"damaged: {str(error) or type(error).__name__}") from error


def _bomb(width: int, height: int, limit: int) -> str:
    return f"declares {width} x {height} pixels, more than the {limit} that Pillow deems safe"


def _rgb(image: Any) -> np.ndarray:
    """Converts a loaded PIL image to u8[H, W, 3]."""
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255; the high byte is what TensorFlow keeps.
        grey = np.clip(np.asarray(image, dtype=np.int32) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode != "RGB":
        # Transparency is dropped anyway, and Pillow would warn about the palette's.
        image.info.pop("transparency", None)
        image = image.convert("RGB")
    return np.asarray(image)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a picture as `tf.image.resize` does: bilinear, half-pixel centres, no antialiasing.

    Args:
        image: u8[H, W, C] or f32[H, W, C].
        size: height and width of the result.

    Returns:
        f32[*size, C], not rounded.

    >>> resize(np.array([[[0], [100]]], np.uint8), (1, 4)).ravel()
    array([  0.,  25.,  75., 100.], dtype=float32)
    """
    height, width, channels = image.shape
    if (height, width) == tuple(size):
        return image.astype(np.float32)
    top, bottom, down = _taps(height, size[0])
    left, right, across = _taps(width, size[1])
    # Whole rows, then single values by a flat index: three times faster than gathering pixels.
    channel = np.arange(channels)
    left, right = ((index[:, None] * channels + channel).ravel() for index in (left, right))
    across = np.repeat(across, channels)
    rows = image.reshape(height, width * channels)

    def lerp_across(index: np.ndarray) -> np.ndarray:
        chosen = rows.take(index, axis=0)
        start = chosen.take(left, axis=1).astype(np.float32)
        stop = chosen.take(right, axis=1).astype(np.float32)
        stop -= start
        stop *= across
        stop += start
        return stop

    start, stop = lerp_across(top), lerp_across(bottom)
    stop -= start
    stop *= down[:, None]
    stop += start
    return stop.reshape(*size, channels)


@functools.lru_cache(maxsize=1024)
def _taps(length: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the two source indices of every target position, and the second one's weight f32[target]."""
    half = np.float32(0.5)
    position = (np.arange(target, dtype=np.float32) + half) * np.float32(length / target) - half
    floor = np.floor(position)
    first = floor.astype(np.intp)
    taps = np.maximum(first, 0), np.minimum(first + 1, length - 1), position - floor
    for array in taps:
        array.setflags(write=False)
    return taps


def load(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Decodes and resizes one picture to f32[*size, 3] in 0..255; raises `PictureError` like `decode`."""
    return resize(decode(data), size)
