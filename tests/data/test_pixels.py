"""Pixels against Keras's own reader (`format="grain"`, which needs no TensorFlow) and plain arithmetic."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cnnjax.data.pixels import PictureError, decode, load, resize

# A value in 0..255 passes through two lerps, whose weights carry a float32 position up to the picture's size.
TOLERANCE = 0.01


def keras_pixels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Reads the only picture of class `a` below `path` with `keras.utils.image_dataset_from_directory`."""
    import keras

    with warnings.catch_warnings():
        # Keras leaves GIFs open and has Pillow warn of palettes with transparency.
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)
        found = keras.utils.image_dataset_from_directory(
            path, batch_size=None, image_size=size, shuffle=False, format="grain", verbose=False
        )
        ((image, _),) = list(found)
    return np.asarray(image)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def drawing() -> Image.Image:
    """A smooth colourful picture, 37 x 23, so that JPEG keeps it well and no two channels agree."""
    y, x = np.mgrid[0:23, 0:37]
    channels = [128 + 120 * np.sin(x / 7 + y / 11), 128 + 110 * np.cos(x / 9), 255 * y / 22]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def modes(drawing: Image.Image) -> dict[str, bytes]:
    grey = drawing.convert("L")
    alpha = drawing.copy()
    alpha.putalpha(grey)
    palette = drawing.quantize(40)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "rgb.png": encoded(drawing, "PNG"),
        "rgb.jpg": encoded(drawing, "JPEG"),
        "rgb.bmp": encoded(drawing, "BMP"),
        "progressive.jpg": encoded(drawing, "JPEG", progressive=True, subsampling=0),
        "L.png": encoded(grey, "PNG"),
        "L.jpg": encoded(grey, "JPEG"),
        "1.png": encoded(drawing.convert("1"), "PNG"),
        "LA.png": encoded(alpha.convert("LA"), "PNG"),
        "RGBA.png": encoded(alpha, "PNG"),
        "P.png": encoded(palette, "PNG"),
        "P_one_transparent.png": encoded(palette, "PNG", transparency=3),
        "P_alphas.png": encoded(palette, "PNG", transparency=bytes(range(0, 200, 5))),
        "RGB_transparent.png": encoded(drawing, "PNG", transparency=(0, 0, 0)),
        "gif.gif": encoded(palette, "GIF"),
        "gif_named.jpg": encoded(
            palette, "GIF", save_all=True, append_images=[palette.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
        ),
        "gif_transparent.gif": encoded(palette, "GIF", transparency=3),
        "png_named.jpeg": encoded(drawing, "PNG"),
        "webp_named.jpg": encoded(drawing, "WEBP"),
        "CMYK.jpg": encoded(drawing.convert("CMYK"), "JPEG"),
        "turned.jpg": encoded(drawing, "JPEG", exif=turned),
        "turned.png": encoded(drawing, "PNG", exif=turned),
    }


MODES = list(modes(Image.new("RGB", (8, 8))))


@pytest.mark.parametrize("name", MODES)
def test_every_mode_has_keras_pixels(name: str, drawing: Image.Image, tmp_path: Path) -> None:
    data = modes(drawing)[name]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(data)
    size = (17, 40)
    np.testing.assert_allclose(load(data, size), keras_pixels(tmp_path, size), atol=TOLERANCE)


@pytest.mark.parametrize("name", MODES)
def test_sound_pictures_give_no_warning(name: str, drawing: Image.Image) -> None:
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        decode(modes(drawing)[name])
    assert given == []


def test_alpha_is_dropped_not_blended() -> None:
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    assert (decode(encoded(image, "PNG")) == [200, 100, 50]).all()


def test_sixteen_bits_keep_the_high_byte() -> None:
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    pixels = decode(encoded(Image.fromarray(values), "PNG"))
    assert (pixels == (values >> 8)[:, :, None]).all()


def test_adobe_cmyk_is_not_negative(drawing: Image.Image) -> None:
    """Pillow writes CMYK JPEGs as Adobe does, inverted; a reader that forgot it would show the negative."""
    data = encoded(drawing.convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert np.abs(decode(data).astype(int) - np.asarray(drawing)).mean() < 4


def test_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    assert (decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [255, 0, 0]).all()


def png(width: int, height: int) -> bytes:
    """The start of a PNG that declares a size and holds no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def noise_picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


FAULTS = {
    "empty": (b"", "the file is empty"),
    "text": (b"this is no pcture\n", "not a picture.*this is no p"),
    "cut JPEG": (encoded(noise_picture(), "JPEG")[:-900], "truncated"),
    "cut PNG": (encoded(noise_picture(), "PNG")[:-900], "damaged"),
    "cut GIF": (encoded(noise_picture().quantize(64), "GIF")[:-900], "truncated"),
    "cut BMP": (encoded(noise_picture(), "BMP")[:-900], "truncated"),
    "cut WebP": (encoded(noise_picture(), "WEBP")[:-900], "not a picture|damaged"),
    "JPEG's first bytes": (encoded(noise_picture(), "JPEG")[:100], "not a picture|damaged"),
    "PNG without pixels": (png(8, 8), "damaged"),
    "large PNG": (png(10_000, 10_000), "10000.*pixels|pixels.*bomb"),
    "huge PNG": (png(30_000, 30_000), "pixels"),
    "TIFF": (encoded(Image.new("RGB", (4, 4)), "TIFF"), "not a picture"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("filters", ["error", "ignore"])
def test_faults_are_named_whatever_the_warning_filters(fault: str, filters: Literal["error", "ignore"]) -> None:
    data, reason = FAULTS[fault]
    with warnings.catch_warnings():
        warnings.simplefilter(filters)
        with pytest.raises(PictureError, match=f"(?s){reason}"):
            decode(data)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_decode_or_are_refused(data: st.DataObject) -> None:
    """Nothing but a picture or a PictureError comes of any damage."""
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP"]))
    content = bytearray(encoded(noise_picture().resize((16, 16)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    # A flipped size byte may ask for gigabytes, which is honest work but no test.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
        try:
            pixels = decode(bytes(content))
        except PictureError:
            return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def test_a_broken_exif_block_changes_nothing(drawing: Image.Image) -> None:
    """Pillow warns of it while reading; the picture is sound."""
    plain = encoded(drawing, "JPEG")
    # A TIFF directory that promises five entries and ends.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"
    marker = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    broken = plain[:2] + marker + plain[2:]
    with pytest.warns(UserWarning), Image.open(io.BytesIO(broken)) as image:
        image.getexif()
    for filters in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(filters)
            np.testing.assert_array_equal(decode(broken), decode(plain))


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from([1, 3, 4]),
)
@settings(max_examples=40, deadline=None)
def test_resize_is_bilinear_interpolation_at_pixel_centres(
    shape: tuple[int, int], size: tuple[int, int], channels: int
) -> None:
    """Against NumPy's `interp`, one axis after the other, in float64; `interp` clamps at the borders."""
    image = np.random.default_rng(shape[0]).integers(0, 256, (*shape, channels), dtype=np.uint8)
    expected = image.astype(np.float64)
    for axis in (0, 1):
        n, m = shape[axis], size[axis]
        where = (np.arange(m) + 0.5) * n / m - 0.5
        lines = np.moveaxis(expected, axis, -1).reshape(-1, n)
        resampled = np.array([np.interp(where, np.arange(n), line) for line in lines])
        others = [length for place, length in enumerate(expected.shape) if place != axis]
        expected = np.moveaxis(resampled.reshape(*others, m), -1, axis)
    found = resize(image, size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((224, 224), (160, 160)),
        ((150, 224), (180, 180)),
        ((1000, 3), (64, 96)),
        ((160, 160), (160, 160)),
        ((1, 1), (5, 7)),
    ],
)
def test_resize_equals_jax(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = jax.image.resize(image.astype(np.float32), (*size, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(resize(image, size), expected, atol=TOLERANCE)
