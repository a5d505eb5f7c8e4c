"""From the bytes of an image file to the pixels Keras would train on.

JPEGs are decoded with the accurate integer transform, as Pillow does and Keras wherever it reads through Pillow.
Keras on TensorFlow takes TensorFlow's fast one: measured on 2026-11-23 against TensorFlow 2.21 on 1,000
photographs, order and labels were the same, TensorFlow's `dct_method="INTEGER_ACCURATE"` gave our pixels exactly,
and its default moved them by 1 of 255 on average (7 at most). Resized to 160x160 they differed by 0.003 of 255 at most
(0.00004 on average): TensorFlow places pixels in single precision, OpenCV in double.
"""

import functools
import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, cast

import numpy as np

from cnnjax.runtime.nearest import unknown

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""What `decode` reads, told by the content of a file, never by its name."""

PIXEL_CHOICES = "rgb; alpha dropped; 16 bit: high byte; exif turn ignored; bilinear, half-pixel, no antialias; v2"
"""Every choice that decides a pixel, part of a source's digest: raise the version when values change."""

Resizing = Literal["bilinear", "antialias", "crop_to_aspect_ratio", "center_crop"]

RESIZINGS: Mapping[str, str] = MappingProxyType(
    {
        "bilinear": "",
        "antialias": "; antialias: triangle as wide as the step; v1",
        "crop_to_aspect_ratio": "; crop_to_aspect_ratio: centred, then bilinear; v1",
        "center_crop": "; center_crop: antialias to 8/7 of the size, then the centre; v1",
    }
)
"""The ways to resize (see `resize`), and what each adds to `PIXEL_CHOICES`: the default adds nothing."""

Scale = tuple[float, float]
"""Two values, the lower first, that become 0 and 255; what lies between follows linearly."""

_DARK = 4096
"""16-bit images with nothing above this are taken for 12-bit data, which would come out nearly black."""

MAX_PIXELS = 89_478_485
"""The most pixels an image may declare, Pillow's own limit too: a few bytes can declare gigabytes, so more is
refused before anything is decoded. The lower of this and `PIL.Image.MAX_IMAGE_PIXELS` holds: raise both."""

MAX_BYTES = 1 << 30
"""The largest file that is read; a larger one is refused unread."""

_LOCK = threading.Lock()


class ImageError(ValueError):
    """One or more images cannot be decoded; the message names each and says why."""


def read_bytes(path: str) -> bytes:
    """Returns the content of a regular file; never waits for a pipe and never reads without an end.

    Raises:
        ImageError: the file cannot be read, is no regular file, or is larger than `MAX_BYTES`.

    >>> read_bytes(os.devnull)
    Traceback (most recent call last):
    cnnjax.data.pixels.ImageError: is no file but a device
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"is no file but {_KINDS.get(stat.S_IFMT(status.st_mode), 'a device')}")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"has {status.st_size} bytes, more than the {MAX_BYTES} of cnnjax.data.pixels.MAX_BYTES")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error


_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}


def checked_scale(scale: str | Sequence[float] | None) -> Scale | None:
    """Returns a scale that is given as two numbers or as text, LOW:HIGH; None as it is.

    Raises:
        ValueError: they are no two finite numbers, the lower first.

    >>> checked_scale("0:4095"), checked_scale((-1, 1)), checked_scale(None)
    ((0.0, 4095.0), (-1.0, 1.0), None)
    """
    if scale is None:
        return None
    try:
        low, high = (float(part) for part in (scale.split(":") if isinstance(scale, str) else scale))
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"scale: expected LOW:HIGH, two numbers, the lower first, such as 0:4095; found {scale!r}")
    return low, high


def scale_choice(scale: Scale | None) -> str:
    """What a scale of 16-bit files adds to `PIXEL_CHOICES`: nothing where there is none."""
    return "" if scale is None else f"; 16 bit: {scale[0]!r} to {scale[1]!r} as 0 to 255, rounded; v1"


def scaled(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Maps numbers linearly to f32 in 0..255.

    Raises:
        ValueError: some lie outside of the scale, or are NaN.

    >>> scaled(np.array([0, 2047.5, 4095]), (0, 4095)).tolist()
    [0.0, 127.5, 255.0]
    """
    low, high = scale
    least, most = (values.min(), values.max()) if values.size else (low, low)
    if not (low <= least and most <= high):  # refuses NaN as well
        raise ValueError(f"holds values {least:g} to {most:g}, outside of the scale {low:g}:{high:g}")
    found = (np.asarray(values, np.float64) - low) * (255 / (high - low))
    return np.minimum(found, 255).astype(np.float32)


def decode(data: bytes, scale: Scale | None = None) -> np.ndarray:
    """Decodes the first frame of an image to u8[H, W, 3], as Keras's `image_dataset_from_directory` does.

    Greyscale is repeated over the channels, an alpha channel is dropped and not blended, palettes are looked
    up, CMYK is converted by subtraction (JPEGs that carry Adobe's mark are stored inverted and are inverted
    back first), 16-bit values keep their high byte as TensorFlow does (or follow `scale`), and the EXIF orientation
    is ignored: an image turned only by its EXIF tag stays as its sensor stored it, since Keras leaves it so.

    Args:
        data: the whole content of a BMP, GIF, JPEG, PNG or WebP file.
        scale: which values of a 16-bit file become 0 and 255: (0, 4095) for 12-bit data. Files of 8 bits stay as
            they are.

    Raises:
        ImageError: the bytes are no such image, are cut short, or declare more than `MAX_PIXELS` pixels; or a
            16-bit file holds values outside of `scale`, or none above 4095 without one.

    >>> decode(b"")
    Traceback (most recent call last):
    cnnjax.data.pixels.ImageError: the file is empty
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        return _decode(data, scale)
    except Warning:
        # Pillow warns of harmless things too (a broken EXIF block): the outcome must not depend on the
        # warning filters.
        with _LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, scale)


def _decode(data: bytes, scale: Scale | None) -> np.ndarray:
    if data.startswith(_JPEG) and (pixels := _decode_jpeg(data)) is not None:
        return pixels
    # Pillow registers WebP only when its plugin is imported.
    from PIL import Image, WebPImagePlugin  # noqa: F401

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            limit = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
            if image.width * image.height > limit:
                raise ImageError(f"declares {image.width} x {image.height} pixels, more than {limit}; {_LIMIT}")
            image.load()
            return _from_16_bits(_values(image, data), scale) if _has_16_bits(data) else _rgb(image)
    except (ImageError, Warning):
        raise
    except Image.UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        start = f"it starts with {data[:12]!r}"
        raise ImageError(f"not an image: its content is none of {kinds} ({start})") from None
    except Image.DecompressionBombError as error:
        # Pillow raises this while opening, at twice its own limit.
        raise ImageError(f"declares too many pixels ({error}); {_LIMIT}") from None
    except MemoryError:
        raise ImageError("too large to decode in memory") from None
    # Pillow's plugins raise whatever their parser met: OSError, SyntaxError, struct.error, EOFError, ...
    except Exception as error:
        raise ImageError(f"damaged: {str(error) or type(error).__name__}") from error


_LIMIT = "the limit is the lower of cnnjax.data.pixels.MAX_PIXELS and PIL.Image.MAX_IMAGE_PIXELS"


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """The pixels of an ordinary, flawless JPEG, as Pillow decodes them but in half the time.

    Both call libjpeg-turbo; the time is saved around it. Whatever is odd (CMYK, more pixels than the limit, any
    warning of the decoder) is None: Pillow decides about it.
    """
    import simplejpeg
    from PIL import Image

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _COLOURS or int(height) * int(width) > min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS):
            return None
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
    except (ValueError, MemoryError):
        return None


_JPEG, _COLOURS = b"\xff\xd8\xff", {"YCbCr", "RGB", "Gray"}


def _has_16_bits(data: bytes) -> bool:
    """Of the formats that are read PNG alone can; its header says so, and comes first."""
    return data.startswith(b"\x89PNG\r\n\x1a\n") and data[24] == 16


def _values(image: Any, data: bytes) -> np.ndarray:
    """The numbers of a 16-bit PNG, [H, W, 1] or [H, W, 3], alpha dropped."""
    if image.mode.startswith("I"):
        return np.asarray(image, dtype=np.int32)[:, :, None]
    import cv2

    # Pillow keeps the high bytes of colours alone.
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16:
        raise ImageError("damaged: its 16-bit values cannot be read")
    return found[:, :, 2::-1].astype(np.int32) if found.ndim == 3 else found[:, :, None].astype(np.int32)


def _from_16_bits(values: np.ndarray, scale: Scale | None) -> np.ndarray:
    if scale is not None:
        try:
            pixels = np.rint(scaled(values, scale)).astype(np.uint8)
        except ValueError as error:
            raise ImageError(str(error)) from None
    else:
        if 0 < (most := int(values.max())) < _DARK:
            raise ImageError(
                f"holds values {values.min()} to {most} of 16 bits: looks like 12-bit data, and would be nearly black; "
                "give the scale 0:4095 (or 0:65535 to take it as it is)"
            )
        pixels = (values >> 8).astype(np.uint8)  # what TensorFlow keeps
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)


def _rgb(image: Any) -> np.ndarray:
    """Converts a loaded PIL image of 8 bits to u8[H, W, 3]."""
    if image.mode != "RGB":
        # Transparency is dropped anyway, and Pillow would warn about the palette's.
        image.info.pop("transparency", None)
        image = image.convert("RGB")
    return np.asarray(image)


def resize(image: np.ndarray, size: tuple[int, int], resizing: Resizing = "bilinear") -> np.ndarray:
    """Resizes an image in one of four ways, all linear interpolation with half-pixel centres.

    Args:
        image: u8[H, W, C] or f32[H, W, C].
        size: height and width of the result.
        resizing: "bilinear" stretches to `size` without antialiasing, as `tf.image.resize` and Keras's
            `image_dataset_from_directory` do. "antialias" does so with antialiasing, as
            `keras.ops.image.resize(antialias=True)`: where an image shrinks, every pixel of it counts.
            "crop_to_aspect_ratio" cuts the largest centred part of the shape of `size` and stretches that
            without antialiasing, as Keras with `crop_to_aspect_ratio=True`. "center_crop" is how ImageNet
            models are evaluated: antialiased with the aspect ratio kept, until the image just covers 8/7
            of `size` (shorter side 256 for 224), then the centre.

    Returns:
        f32[*size, C], not rounded.

    >>> resize(np.array([[[0], [100]]], np.uint8), (1, 4)).ravel()
    array([  0.,  25.,  75., 100.], dtype=float32)
    >>> line = np.array([[[0], [0], [0], [100]]], np.uint8)
    >>> [round(resize(line, (1, 1), way).item()) for way in ("bilinear", "antialias")]
    [0, 21]
    """
    height, width, _ = image.shape
    if resizing == "center_crop":
        return _antialiased(image, size, _covering((height, width), size))
    if resizing == "crop_to_aspect_ratio":
        top, left, rows, columns = _crop_to_aspect_ratio((height, width), size)
        return _bilinear(image[top : top + rows, left : left + columns], size)
    return _antialiased(image, size, size) if resizing == "antialias" else _bilinear(image, size)


def keeps_as_is(own: Sequence[int], size: Sequence[int], resizing: Resizing) -> bool:
    """Whether `resize` leaves an image of its own size as it is: "center_crop" cuts something off even so.

    >>> keeps_as_is((4, 9), (4, 9), "bilinear"), keeps_as_is((4, 9), (4, 9), "center_crop")
    (True, False)
    """
    return tuple(own) == tuple(size) and resizing != "center_crop"


def checked_resizing(name: str) -> Resizing:
    """Returns `name` if it is a way to resize; raises `ValueError` with the nearest one otherwise."""
    if name in RESIZINGS:
        return cast(Resizing, name)
    raise ValueError(unknown("resizing", name, RESIZINGS, listed=True))


def _crop_to_aspect_ratio(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of the part that Keras keeps, rounded as Keras rounds."""
    (height, width), (target_height, target_width) = shape, size
    rows = max(min(height, int(float(width * target_height) / target_width)), 1)
    columns = max(min(width, int(float(height * target_width) / target_height)), 1)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _covering(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Returns the shape with the image's aspect ratio that just covers 8/7 of `size`, in whole numbers."""
    (height, width), (rows, columns) = shape, (round(length * 8 / 7) for length in size)
    if rows * width >= columns * height:
        return rows, width * rows // height
    return height * columns // width, columns


def _bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width, channels = image.shape
    if (height, width) == tuple(size):
        return image.astype(np.float32)
    if height * width > _MANY * size[0] * size[1]:
        return _gathered(image, size)
    import cv2

    # OpenCV places the pixels in double precision and leaves Python's lock: with two threads that is three times
    # NumPy's rate.
    resized = cv2.resize(image.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size, channels)


_MANY = 32
"""Pixels a pixel of the result, from where on it is cheaper to read only those that count than to convert all."""


def _gathered(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, bottom, down = _taps(image.shape[0], size[0])
    left, right, across = _taps(image.shape[1], size[1])

    def line(rows: np.ndarray) -> np.ndarray:
        start = image[rows[:, None], left].astype(np.float32)
        return start + (image[rows[:, None], right] - start) * across[:, None]

    first = line(top)
    return first + (line(bottom) - first) * down[:, None, None]


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


def _antialiased(image: np.ndarray, size: tuple[int, int], whole: tuple[int, int]) -> np.ndarray:
    """Resizes to `whole` with a triangle filter and returns the centre of that, `size`; makes no more of it."""
    height, width, channels = image.shape
    rows = image.reshape(height, width * channels)
    down = np.zeros((size[0], width * channels), np.float32)
    for index, weight in zip(*_filter(height, whole[0], size[0]), strict=True):
        down += rows.take(index, axis=0) * weight[:, None]
    down = down.reshape(size[0], width, channels)
    across = np.zeros((*size, channels), np.float32)
    for index, weight in zip(*_filter(width, whole[1], size[1]), strict=True):
        across += down.take(index, axis=1) * weight[:, None]
    return across


@functools.lru_cache(maxsize=256)
def _filter(length: int, whole: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns source indices and weights f32, both [taps, target], of the middle `target` of `whole` positions.

    The triangle is as wide as two steps, and at least as two pixels; what falls outside the image is left out
    and the rest weighs more, as in `jax.image.resize`.
    """
    step = length / whole
    radius = max(step, 1.0)
    position = (np.arange(target) + ((whole - target) // 2 + 0.5)) * step - 0.5
    index = np.floor(position - radius).astype(np.intp) + np.arange(1, math.ceil(2 * radius) + 1)[:, None]
    weight = np.maximum(1 - np.abs(position - index) / radius, 0) * ((index >= 0) & (index < length))
    taps = np.clip(index, 0, length - 1), (weight / weight.sum(axis=0)).astype(np.float32)
    for array in taps:
        array.setflags(write=False)
    return taps


def load(data: bytes, size: tuple[int, int], resizing: Resizing = "bilinear", scale: Scale | None = None) -> np.ndarray:
    """Decodes and resizes one image to f32[*size, 3] in 0..255; raises `ImageError` like `decode`."""
    return resize(decode(data, scale), size, resizing)
