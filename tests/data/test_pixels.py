"""Pixels against Keras's own reader (`format="grain"`, which needs no TensorFlow) and plain arithmetic."""

import io
import itertools
import struct
import warnings
import zlib
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cnnjax.data.pixels import (
    PIXEL_CHOICES,
    RESIZINGS,
    ImageError,
    Resizing,
    _crop_to_aspect_ratio,
    checked_resizing,
    decode,
    load,
    resize,
)

# A value in 0..255 passes through two lerps, whose weights carry a float32 position up to the image's size.
TOLERANCE = 0.01


def keras_pixels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Reads the only image of class `a` below `path` with `keras.utils.image_dataset_from_directory`."""
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
    """A smooth colourful image, 37 x 23, so that JPEG keeps it well and no two channels agree."""
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
def test_sound_images_give_no_warning(name: str, drawing: Image.Image) -> None:
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


def noise_image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


FAULTS = {
    "empty": (b"", "the file is empty"),
    "text": (b"this is no pcture\n", "not an image.*this is no p"),
    "cut JPEG": (encoded(noise_image(), "JPEG")[:-900], "truncated"),
    "cut PNG": (encoded(noise_image(), "PNG")[:-900], "damaged"),
    "cut GIF": (encoded(noise_image().quantize(64), "GIF")[:-900], "truncated"),
    "cut BMP": (encoded(noise_image(), "BMP")[:-900], "truncated"),
    "cut WebP": (encoded(noise_image(), "WEBP")[:-900], "not an image|damaged"),
    "JPEG's first bytes": (encoded(noise_image(), "JPEG")[:100], "not an image|damaged"),
    "PNG without pixels": (png(8, 8), "damaged"),
    "large PNG": (png(10_000, 10_000), "10000.*pixels|pixels.*bomb"),
    "huge PNG": (png(30_000, 30_000), "pixels"),
    "TIFF": (encoded(Image.new("RGB", (4, 4)), "TIFF"), "not an image"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("filters", ["error", "ignore"])
def test_faults_are_named_whatever_the_warning_filters(fault: str, filters: Literal["error", "ignore"]) -> None:
    data, reason = FAULTS[fault]
    with warnings.catch_warnings():
        warnings.simplefilter(filters)
        with pytest.raises(ImageError, match=f"(?s){reason}"):
            decode(data)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_decode_or_are_refused(data: st.DataObject) -> None:
    """Nothing but an image or a ImageError comes of any damage."""
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "WEBP"]))
    content = bytearray(encoded(noise_image().resize((16, 16)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    # A flipped size byte may ask for gigabytes, which is honest work but no test.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
        try:
            pixels = decode(bytes(content))
        except ImageError:
            return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def test_a_broken_exif_block_changes_nothing(drawing: Image.Image) -> None:
    """Pillow warns of it while reading; the image is sound."""
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
        ((700, 901), (24, 31)),
        ((160, 160), (160, 160)),
        ((1, 1), (5, 7)),
    ],
)
def test_resize_equals_jax(shape: tuple[int, int], size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = jax.image.resize(image.astype(np.float32), (*size, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(resize(image, size), expected, atol=TOLERANCE)


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[Path]:
    """Portrait, landscape, square, greyscale, and smaller than what they are resized to."""
    shapes: dict[tuple[str, tuple[int, int]], Path] = {}
    for path in sorted((shared_data / "imagenet_samples").rglob("*.[jJ]*")):
        with Image.open(path) as image:
            shapes.setdefault((image.mode, image.size), path)
    wanted = [("RGB", (86, 108)), ("RGB", (230, 160)), ("RGB", (170, 170)), ("L", (256, 384)), ("RGB", (453, 256))]
    return [shapes[key] for key in wanted]


def test_antialias_equals_keras(photographs: list[Path]) -> None:
    import keras

    for path, size in zip(photographs, [(160, 160), (160, 160), (99, 200), (64, 31), (224, 224)], strict=True):
        image = decode(path.read_bytes())
        expected = keras.ops.image.resize(image.astype(np.float32), size, interpolation="bilinear", antialias=True)
        np.testing.assert_allclose(resize(image, size, "antialias"), expected, atol=TOLERANCE)


def test_crop_to_aspect_ratio_equals_keras(photographs: list[Path], tmp_path: Path) -> None:
    import keras

    (tmp_path / "a").mkdir()
    for path in photographs:
        (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    found = keras.utils.image_dataset_from_directory(
        tmp_path, batch_size=None, image_size=(150, 110), shuffle=False, format="grain", verbose=False,
        crop_to_aspect_ratio=True,
    )  # fmt: skip
    for path, (expected, _) in zip(sorted(photographs, key=lambda path: path.name), found, strict=True):
        pixels = load(path.read_bytes(), (150, 110), "crop_to_aspect_ratio")
        np.testing.assert_allclose(pixels, expected, atol=TOLERANCE)


@given(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), st.tuples(st.integers(1, 300), st.integers(1, 300)))
@settings(max_examples=200, deadline=None)
def test_the_part_that_is_kept_is_keras_part(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """Keras's `smart_resize` with a resize that leaves the part as it is; every pixel says where it lay."""
    from keras.preprocessing.image import smart_resize

    image = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(*shape, 1)
    as_it_is = SimpleNamespace(resize=lambda part, **_: part)
    numpy = SimpleNamespace(convert_to_tensor=np.asarray, shape=np.shape, image=as_it_is)
    part = smart_resize(image, size, backend_module=numpy)
    top, left, rows, columns = _crop_to_aspect_ratio(shape, size)
    assert part.shape == (rows, columns, 1)
    assert part[0, 0, 0] == top * shape[1] + left


shapes = st.tuples(st.integers(1, 90), st.integers(1, 90))


def filtered(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's triangle filter, which is wider where an image shrinks, in floating point."""
    channels = [Image.fromarray(image[:, :, c].astype(np.float32)) for c in range(image.shape[2])]
    wanted = (size[1], size[0])
    return np.stack([np.asarray(c.resize(wanted, Image.Resampling.BILINEAR)) for c in channels], -1)


@given(shapes, shapes, st.sampled_from([1, 3]))
@settings(max_examples=60, deadline=None)
def test_antialias_is_pillows_triangle(shape: tuple[int, int], size: tuple[int, int], channels: int) -> None:
    image = np.random.default_rng(shape[0]).integers(0, 256, (*shape, channels), dtype=np.uint8)
    found = resize(image, size, "antialias")
    assert found.dtype == np.float32 and found.shape == (*size, channels)
    np.testing.assert_allclose(found, filtered(image, size), atol=TOLERANCE)


@given(shapes, st.tuples(st.integers(1, 8), st.integers(1, 8)))
@settings(max_examples=60, deadline=None)
def test_center_crop_is_an_antialiased_image_cut(shape: tuple[int, int], sevenths: tuple[int, int]) -> None:
    """For sizes of whole sevenths: the sides are 8/7 of them, or longer by the aspect ratio, less than a pixel off."""
    size, least = (7 * sevenths[0], 7 * sevenths[1]), (8 * sevenths[0], 8 * sevenths[1])
    scale = max(Fraction(least[0], shape[0]), Fraction(least[1], shape[1]))
    whole = (int(shape[0] * scale), int(shape[1] * scale))
    image = np.random.default_rng(shape[1]).integers(0, 256, (*shape, 3), dtype=np.uint8)
    top, left = ((long - short) // 2 for long, short in zip(whole, size, strict=True))
    expected = filtered(image, whole)[top : top + size[0], left : left + size[1]]
    np.testing.assert_allclose(resize(image, size, "center_crop"), expected, atol=TOLERANCE)


def test_center_crop_is_imagenets_evaluation(photographs: list[Path]) -> None:
    """Shorter side 256, centre 224, as Pillow does it; Pillow rounds twice."""
    for path in photographs:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        longer = 256 * max(image.size) // min(image.size)
        size = (256, longer) if image.width < image.height else (longer, 256)
        left, top = ((side - 224) // 2 for side in size)
        expected = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
        found = load(path.read_bytes(), (224, 224), "center_crop")
        np.testing.assert_allclose(found, np.asarray(expected), atol=1.01)


@pytest.mark.parametrize("resizing", RESIZINGS)
def test_every_way_keeps_constants_and_own_sizes(resizing: Resizing) -> None:
    grey = np.full((13, 8, 3), 201, np.uint8)
    for size in ((1, 1), (13, 8), (40, 9), (3, 50)):
        np.testing.assert_allclose(resize(grey, size, resizing), 201, atol=1e-4)
    if resizing != "center_crop":
        image = np.random.default_rng(0).integers(0, 256, (13, 8, 3), dtype=np.uint8)
        np.testing.assert_array_equal(resize(image, (13, 8), resizing), image)


def test_ways_to_resize_are_told_apart() -> None:
    assert len({PIXEL_CHOICES + text for text in RESIZINGS.values()}) == 4
    with pytest.raises(ValueError, match="no resizing 'crop'; did you mean 'center_crop'. There are bilinear, "):
        checked_resizing("crop")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_every_kind_of_jpeg_has_the_pixels_that_pillow_gives(mode: str, progressive: bool) -> None:
    """The faster way to libjpeg-turbo may change no value, and a file that is cut short stays refused."""
    rng = np.random.default_rng(0)
    for subsampling, size in itertools.product(("4:4:4", "4:2:2", "4:2:0", "4:1:1"), ((1, 1), (7, 5), (33, 18))):
        values = rng.integers(0, 256, (*size, len(mode)) if len(mode) > 1 else size, dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(values, mode).save(file, "JPEG", subsampling=subsampling, progressive=progressive)
        with Image.open(file) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(decode(file.getvalue()), expected)
        np.testing.assert_array_equal(decode(file.getvalue() + b"more"), expected)
        with pytest.raises(ImageError):
            decode(file.getvalue()[: len(file.getvalue()) // 2])
