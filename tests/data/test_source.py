"""Images in memory, and the helpers all sources share."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import Folder, InMemory, Source
from cnnjax.data.pixels import RESIZINGS, Resizing, resize
from cnnjax.data.source import in_memory, map_threaded

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
LABELS = [0, 1, 1, 0, 1]


def test_reads_what_was_given() -> None:
    source = InMemory(IMAGES, LABELS, ["a", "b"])
    assert isinstance(source, Source)
    assert len(source) == 5 and source.names == tuple("01234") and source.image_size == (6, 7)
    assert source.labels.dtype == np.int32 and source.skipped == ()
    found = source.read([3, 0])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, IMAGES[[3, 0]])
    np.testing.assert_array_equal(InMemory(IMAGES / 2, LABELS, ["a", "b"]).read([4])[0], IMAGES[4] / 2)
    with pytest.raises(IndexError, match="expected 0 to 4, found 5 to 5"):
        source.read([5])


def test_resizes_as_a_folder_does(tmp_path) -> None:
    for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        (tmp_path / "ab"[label]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "ab"[label] / f"{i}.png")
    folder = Folder(tmp_path, image_size=(4, 9))
    order = [int(name[2]) for name in folder.names]
    memory = InMemory(IMAGES, LABELS, folder.class_names, image_size=(4, 9))
    np.testing.assert_array_equal(memory.read(order), folder.read(range(5)))


@pytest.mark.parametrize("resizing", RESIZINGS)
def test_resizes_as_told(resizing: Resizing) -> None:
    source = InMemory(IMAGES, LABELS, ["a", "b"], image_size=(4, 9), resizing=resizing)
    expected = [resize(image, (4, 9), resizing) for image in IMAGES]
    np.testing.assert_array_equal(source.read(range(5)), expected)
    same = InMemory(IMAGES, LABELS, ["a", "b"], resizing=resizing)
    np.testing.assert_array_equal(same.read(range(5)), [resize(x, IMAGES.shape[1:3], resizing) for x in IMAGES])
    plain = InMemory(IMAGES, LABELS, ["a", "b"], image_size=(4, 9))
    assert (source.digest == plain.digest) == (resizing == "bilinear")


def test_in_memory_keeps_everything_and_rounds(tmp_path: Path) -> None:
    for i in range(150):  # more than are read at once
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(np.roll(IMAGES[i % 5], i // 5, 0)).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    (tmp_path / "a" / "bad.png").touch()
    folder = Folder(tmp_path, image_size=(4, 9), on_error="skip")
    steps: list[tuple[int, int]] = []
    kept = in_memory(folder, 150 * 4 * 9 * 3, lambda done, total: steps.append((done, total)))
    assert kept is not None and in_memory(folder, 150 * 4 * 9 * 3 - 1) is None
    assert isinstance(kept, Source) and kept.images.dtype == np.uint8
    assert (kept.names, kept.class_names, kept.skipped) == (folder.names, ("a", "b"), folder.skipped)
    np.testing.assert_array_equal(kept.labels, folder.labels)
    exact, rounded = folder.read(range(150)), kept.read(range(150))
    assert 0 < np.abs(exact - rounded).max() <= 0.5
    np.testing.assert_array_equal(rounded, np.rint(exact))
    assert kept.digest != folder.digest and steps[-1] == (150, 150) and len(steps) > 1
    whole = in_memory(Folder(tmp_path, image_size=(6, 7), on_error="skip"), 1 << 20)
    assert whole is not None
    np.testing.assert_array_equal(whole.images[0], IMAGES[0])


def test_digest_is_of_the_pixels_alone() -> None:
    digest = InMemory(IMAGES, LABELS, ["a", "b"]).digest
    assert digest == InMemory(IMAGES.copy(), LABELS[::-1], ["c", "d"], names="vwxyz").digest
    other = IMAGES.copy()
    other[2, 3, 4, 1] ^= 1
    changed = [other, IMAGES[::-1], IMAGES[:4], IMAGES.reshape(5, 7, 6, 3)]
    digests = {InMemory(images, LABELS[: len(images)], ["a", "b"]).digest for images in changed}
    digests.add(InMemory(IMAGES, LABELS, ["a", "b"], image_size=(7, 7)).digest)
    assert len(digests) == 5 and digest not in digests


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_channels_say_so_in_their_size(channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, channels), np.uint8)
    source = InMemory(images, LABELS, ["a", "b"])
    assert source.image_size == (6, 7, channels)
    np.testing.assert_array_equal(source.read([1, 3]), images[[1, 3]])
    smaller = InMemory(images, LABELS, ["a", "b"], image_size=(3, 4))
    assert smaller.image_size == (3, 4, channels) and smaller.read([0]).shape == (1, 3, 4, channels)
    # Each channel is resized by itself, as a grey image beside two others would be.
    grey = InMemory(np.repeat(images[..., :1], 3, -1), LABELS, ["a", "b"], image_size=(3, 4))
    np.testing.assert_array_equal(smaller.read([0])[..., 0], grey.read([0])[..., 0])
    kept = in_memory(source, 10**6)
    assert kept is not None and kept.images.shape == images.shape


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (IMAGES[..., 0], LABELS, r"images: expected shape \[N, H, W, C\], found \[5, 6, 7\]"),
        (IMAGES.astype(np.int64), LABELS, "images: expected uint8, or floats in 0..255, found int64"),
        (IMAGES - 1.0, LABELS, r"images: expected values in 0..255, found -1\.0"),
        (IMAGES * np.float32("nan"), LABELS, "images: expected values in 0..255, found nan"),
        (IMAGES, LABELS[:4], r"labels: expected shape \[5\], one an image, found \[4\]"),
        (IMAGES, np.array(LABELS) / 2, "labels: expected whole numbers, found float64"),
        (IMAGES, [0, 1, 2, 0, 1], "labels: expected 0 to 1 for 2 classes, found 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(images: np.ndarray, labels: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        InMemory(images, labels, ["a", "b"])
    with pytest.raises(ValueError, match="names: expected 5, one an image, found 2"):
        InMemory(IMAGES, LABELS, ["a", "b"], names=["x", "y"])


def test_threads_keep_the_order_and_do_run_side_by_side() -> None:
    threads = set()

    def slow_first(item: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.01 if item < 10 else 0)
        return item * item

    assert map_threaded(slow_first, range(100)) == [item * item for item in range(100)]
    assert 2 <= len(threads) <= 4
    assert map_threaded(slow_first, []) == []
