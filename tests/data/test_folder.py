"""Folders against Keras's `image_dataset_from_directory` (`format="grain"`), and all their faults."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjax.data import Folder, ImageError, Source, open_splits, split_by_fraction, splits
from cnnjax.data import listing as listing_module
from cnnjax.data.pixels import Resizing, resize


def keras_listing(path: Path, size: tuple[int, int]) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Returns class names, names below `path`, labels and pixels as Keras has them."""
    import keras

    found = keras.utils.image_dataset_from_directory(
        path, batch_size=None, image_size=size, shuffle=False, format="grain", verbose=False
    )
    pairs = list(found)
    names = [os.path.relpath(name, path) for name in found.file_paths]
    images, labels = zip(*pairs, strict=True)
    return found.class_names, names, np.array(labels), np.stack([np.asarray(image) for image in images])


def paint(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(path, "PNG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits of two classes, four images a class."""
    for split in ("train", "test"):
        for c, name in enumerate(("cat", "dog")):
            for i in range(4):
                paint(tmp_path / "data" / split / name / f"{i}.png", 100 * c + 10 * i + (split == "test"))
    return tmp_path / "data"


def test_real_photographs_have_keras_order_labels_and_pixels(shared_data: Path, tmp_path: Path) -> None:
    """Photographs of many shapes, greyscale ones among them, in three classes."""
    samples = sorted((shared_data / "imagenet_samples").rglob("*.[jJ]*"))[::14]
    pets = shared_data / "cats_and_dogs_small" / "validation"
    cats, dogs = (sorted((pets / name).iterdir())[:200:33] for name in ("cats", "dogs"))
    for name, files in {"others": samples, "cats": cats, "dogs": dogs}.items():
        (tmp_path / name).mkdir()
        for file in files:
            shutil.copy(file, tmp_path / name)
    class_names, names, labels, pixels = keras_listing(tmp_path, (160, 150))
    source = Folder(tmp_path, image_size=(160, 150))
    assert len(source) == len(names) >= 24
    assert source.class_names == tuple(class_names) and source.names == tuple(names)
    np.testing.assert_array_equal(source.labels, labels)
    assert source.labels.dtype == np.int32
    np.testing.assert_allclose(source.read(range(len(source))), pixels, atol=0.01)


def test_listing_is_keras_listing(tmp_path: Path) -> None:
    """Nested, hidden, upper-case, linked and foreign files, and names whose order is easily mistaken."""
    for place in [
        "b/2.png", "b/10.png", "b/Z.PNG", "b/a.JpG", "b/.hidden.png", "b/x.jpeg", "b/y.gif", "b/z.bmp",
        "b/sub/1.png", "b/sub/deeper/0.png", "b/sub-2/1.png", "b/Sub/1.png", "b/.hidden/1.png", "b/sub.png",
        "a/1.png", "B/1.png", "c d/1.png", "é/ü.png", ".git/1.png", "elsewhere/1.png",
    ]:  # fmt: skip
        paint(tmp_path / "data" / place, len(place))
    for foreign in ["b/notes.txt", "b/1.webp", "b/Thumbs.db", "readme.md", "loose.png"]:
        (tmp_path / "data" / foreign).write_text("no image")
    paint(tmp_path / "linked" / "1.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "linked")
    (tmp_path / "data" / "b" / "link").symlink_to(tmp_path / "linked")
    (tmp_path / "data" / "b" / "link.png").symlink_to(tmp_path / "linked" / "1.png")
    class_names, names, labels, pixels = keras_listing(tmp_path / "data", (6, 5))
    source = Folder(tmp_path / "data", image_size=(6, 5))
    assert source.class_names == tuple(class_names) == ("B", "a", "b", "c d", "elsewhere", "link", "é")
    assert source.names == tuple(names)
    np.testing.assert_array_equal(source.labels, labels)
    np.testing.assert_array_equal(source.read(range(len(source))), pixels)


def test_reads_in_the_order_asked_for(root: Path) -> None:
    source = Folder(root, "train", image_size=(6, 5))
    assert isinstance(source, Source)
    images = source.read([5, 0, 5, 7])
    assert images.shape == (4, 6, 5, 3) and images.dtype == np.float32
    assert images[:, 0, 0, 0].tolist() == [110, 0, 110, 130]
    assert source.read(np.array([], np.int64)).shape == (0, 6, 5, 3)
    for wrong in (np.array(value) for value in ([8], [-1], [0.5], [[0]])):
        with pytest.raises(IndexError, match="indices: expected"):
            source.read(wrong)


@pytest.mark.parametrize("size", [(0, 4), (4,), (4, 4, 3), (2.5, 4)])
def test_impossible_sizes_are_refused(root: Path, size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="image_size: expected height and width"):
        Folder(root, "train", image_size=size)


# --- images that cannot be decoded


@pytest.fixture
def damaged(root: Path) -> Path:
    train = root / "train"
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(photo).save(train / "cat" / "cut.jpg")
    whole = (train / "cat" / "cut.jpg").read_bytes()
    (train / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (train / "cat" / "empty.png").touch()
    (train / "dog" / "text.jpg").write_text("not an image at all")
    (train / "dog" / "nowhere.jpg").symlink_to(root / "gone.jpg")
    return root


REASONS = {
    "cat/cut.jpg": "truncated",
    "cat/empty.png": "empty",
    "dog/nowhere.jpg": "cannot be read: No such file",
    "dog/text.jpg": "not an image",
}


def test_refusing_names_all_at_once(damaged: Path) -> None:
    source = Folder(damaged, "train", image_size=(6, 5))
    assert len(source) == 12 and source.skipped == ()
    for act in (source.verify, lambda: source.read(range(12))):
        with pytest.raises(ImageError, match="4 images of") as caught:
            act()
        for name, reason in REASONS.items():
            (line,) = [line for line in str(caught.value).splitlines() if name in line]
            assert str(damaged / "train" / name) in line and reason in line
    assert source.read([0, 1]).shape == (2, 6, 5, 3)


def test_refusing_lists_twenty_and_counts_the_rest(root: Path) -> None:
    for i in range(30):
        (root / "train" / "cat" / f"bad{i:02d}.png").touch()
    with pytest.raises(ImageError, match=r"30 images of (?s:.*)bad19\.png(?s:.*)and 10 more$") as caught:
        Folder(root, "train").verify()
    assert "bad20" not in str(caught.value)


def test_skipping_leaves_them_out_and_counts(damaged: Path) -> None:
    source = Folder(damaged, "train", image_size=(6, 5), on_error="skip")
    assert [line.split(": ")[0] for line in source.skipped] == list(REASONS)
    assert all(reason in line for line, reason in zip(source.skipped, REASONS.values(), strict=True))
    source.verify()
    assert source.names == tuple(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(4))
    assert source.labels.tolist() == [0] * 4 + [1] * 4
    assert source.read(range(8))[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 100, 110, 120, 130]
    for name in REASONS:
        (damaged / "train" / name).unlink()
    assert source.digest == Folder(damaged, "train", image_size=(6, 5)).digest


def test_skipping_a_whole_class_is_refused(root: Path) -> None:
    for file in (root / "train" / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ImageError, match="no image of class 'dog'"):
        Folder(root, "train", on_error="skip")


def test_verifying_twice_reads_once(root: Path) -> None:
    source = Folder(root, "train", image_size=(6, 5))
    source.verify()
    digest = Folder(root, "train", image_size=(6, 5)).digest
    for file in root.rglob("*.png"):
        file.unlink()
    source.verify()
    assert source.digest == digest


def test_a_file_without_permission_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    source = Folder(root, "train")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ImageError, match=r"cat/0\.png: cannot be read: Permission denied"):
        source.read([0])


# --- digests


def changed_pixel(root: Path) -> Folder:
    image = np.zeros((6, 5, 3), np.uint8)
    image[3, 2, 1] = 1
    Image.fromarray(image).save(root / "train" / "cat" / "0.png")
    return Folder(root, "train", image_size=(6, 5))


def changed_order(root: Path) -> Folder:
    os.rename(root / "train" / "cat" / "0.png", root / "train" / "cat" / "9.png")
    return Folder(root, "train", image_size=(6, 5))


def one_less(root: Path) -> Folder:
    (root / "train" / "dog" / "3.png").unlink()
    return Folder(root, "train", image_size=(6, 5))


CHANGES: dict[str, Callable[[Path], Folder]] = {
    "pixel": changed_pixel,
    "order": changed_order,
    "one less": one_less,
    "size": lambda root: Folder(root, "train", image_size=(5, 6)),
    "antialias": lambda root: Folder(root, "train", image_size=(6, 5), resizing="antialias"),
    "crop": lambda root: Folder(root, "train", image_size=(6, 5), resizing="crop_to_aspect_ratio"),
    "centre": lambda root: Folder(root, "train", image_size=(6, 5), resizing="center_crop"),
    "split": lambda root: Folder(root, "test", image_size=(6, 5)),
    "part": lambda root: Folder(root, "train", image_size=(6, 5)).take([1, 0, 2, 3, 4, 5, 6, 7]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_digest_changes_with_what_decides_a_pixel(root: Path, change: str) -> None:
    before = Folder(root, "train", image_size=(6, 5)).digest
    assert CHANGES[change](root).digest != before


def test_default_digest_stays_as_it_was(root: Path) -> None:
    """Features stored under it stay valid: a change of this text throws away everybody's."""
    choices = "rgb; alpha dropped; 16 bit: high byte; exif turn ignored; bilinear, half-pixel, no antialias; v2"
    files = [root / "train" / name / f"{i}.png" for name in ("cat", "dog") for i in range(4)]
    hashes = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    expected = hashlib.sha256(f"{choices}; (6, 5); 8".encode() + hashes).hexdigest()
    assert Folder(root, "train", image_size=(6, 5)).digest == expected


@pytest.mark.parametrize("resizing", ["bilinear", "antialias", "crop_to_aspect_ratio", "center_crop"])
def test_every_opener_resizes_as_told(root: Path, resizing: Resizing) -> None:
    size = (4, 3)
    Image.fromarray(np.arange(90, dtype=np.uint8).reshape(5, 6, 3)).save(root / "train" / "cat" / "0.png")
    expected = resize(np.arange(90, dtype=np.uint8).reshape(5, 6, 3), size, resizing)
    whole = Folder(root, "train", size, resizing=resizing)
    np.testing.assert_array_equal(whole.read([0])[0], expected)
    np.testing.assert_array_equal(whole.take([3, 0]).read([1])[0], expected)
    np.testing.assert_array_equal(open_splits(root, size, resizing=resizing)["train"].read([0])[0], expected)
    parts = split_by_fraction(root / "train", image_size=size, resizing=resizing)
    (found,) = [part.read([part.names.index("cat/0.png")])[0] for part in parts.values() if "cat/0.png" in part.names]
    np.testing.assert_array_equal(found, expected)


def test_unknown_resizing_gets_the_nearest(root: Path) -> None:
    with pytest.raises(ValueError, match="no resizing 'antialiased'; did you mean 'antialias'"):
        Folder(root, "train", resizing="antialiased")  # ty: ignore[invalid-argument-type]


def test_digest_of_a_part_is_its_own(root: Path) -> None:
    """Also where the whole's is known already, by either way."""
    whole = Folder(root, "train", image_size=(6, 5))
    part = whole.take([2, 1]).digest
    assert whole.digest != part == whole.take([2, 1]).digest
    whole.verify()
    assert whole.take([2, 1]).digest == part


def test_digest_changes_with_the_pixel_code(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Folder(root, "train").digest
    monkeypatch.setattr("cnnjax.data.examples.PIXEL_CHOICES", "another version")
    assert Folder(root, "train").digest != before


def test_digest_keeps_through_moves_touches_and_renamed_classes(root: Path, tmp_path: Path) -> None:
    before = Folder(root, "train", image_size=(6, 5))
    digest = before.digest
    shutil.move(root / "train", tmp_path / "moved")
    os.rename(tmp_path / "moved" / "cat", tmp_path / "moved" / "ape")
    for file in (tmp_path / "moved").rglob("*.png"):
        os.utime(file, (1, 1))
    after = Folder(tmp_path / "moved", image_size=(6, 5))
    assert after.names != before.names
    assert after.digest == digest == after.take(range(8)).digest
    assert len(digest) == 64


# --- splits


def test_splits_are_found_and_opened(root: Path) -> None:
    shutil.copytree(root / "test", root / "val")
    (root / "logs").mkdir()
    assert splits(root) == {"train": "train", "validation": "val", "test": "test"}
    found = open_splits(root, image_size=(6, 5))
    assert {kind: len(source) for kind, source in found.items()} == {"train": 8, "validation": 8, "test": 8}
    assert {source.class_names for source in found.values()} == {("cat", "dog")}
    assert found["validation"].digest == found["test"].digest != found["train"].digest
    assert found["validation"].read([1])[0, 0, 0, 0] == 11


def test_splits_with_other_classes_are_refused(root: Path) -> None:
    paint(root / "train" / "cow" / "1.png")
    shutil.rmtree(root / "train" / "dog")
    with pytest.raises(ValueError, match="'train' lacks dog; 'test' lacks cow"):
        open_splits(root)


def test_two_folders_for_one_split_are_refused(root: Path) -> None:
    shutil.copytree(root / "test", root / "val")
    shutil.copytree(root / "test", root / "validation")
    with pytest.raises(ValueError, match="both 'val' and 'validation'"):
        open_splits(root)


def test_classes_where_splits_were_expected(root: Path) -> None:
    with pytest.raises(ValueError, match=r"no split folders.*cat, dog.*split_by_fraction"):
        open_splits(root / "train")
    with pytest.raises(ValueError, match="holds the splits train, test, not classes"):
        Folder(root)


def test_classes_that_are_called_like_splits(tmp_path: Path) -> None:
    """Trains and tests may well be classes."""
    for name in ("train", "test"):
        paint(tmp_path / name / "1.png")
    assert splits(tmp_path) == {}
    assert Folder(tmp_path).class_names == ("test", "train")


def test_split_by_fraction_is_stratified_disjoint_and_repeatable(tmp_path: Path) -> None:
    for name, count in {"cat": 40, "dog": 20, "eel": 3}.items():
        for i in range(count):
            paint(tmp_path / name / f"{i:02d}.png", i)
    found = split_by_fraction(tmp_path, seed=3, image_size=(6, 5))
    counts = {kind: np.bincount(source.labels).tolist() for kind, source in found.items()}
    assert counts == {"train": [28, 14, 1], "validation": [6, 3, 1], "test": [6, 3, 1]}
    together = [name for source in found.values() for name in source.names]
    assert sorted(together) == sorted(Folder(tmp_path).names)
    for source in found.values():
        assert list(source.names) == sorted(source.names)
        values = source.read(range(len(source)))[:, 0, 0, 0]
        assert [int(name[4:6]) for name in source.names] == values.tolist()
    again = split_by_fraction(tmp_path, seed=3, image_size=(6, 5))
    other = split_by_fraction(tmp_path, seed=4, image_size=(6, 5))
    assert [source.names for source in again.values()] == [source.names for source in found.values()]
    assert other["train"].names != found["train"].names
    (tmp_path / "cat" / "00.png").write_bytes(b"")
    skipping = split_by_fraction(tmp_path, seed=3, image_size=(6, 5), on_error="skip")
    for kind, source in skipping.items():
        assert source.names == tuple(name for name in found[kind].names if name != "cat/00.png")
    assert sum(len(source.skipped) for source in skipping.values()) == 1


def test_impossible_fractions_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="fractions: expected positive numbers that sum to 1"):
        split_by_fraction(root / "train", {"train": 0.5, "test": 0.4})
    with pytest.raises(ValueError, match="too few images for 5 splits: class 'cat' has 4, 'dog' has 4"):
        split_by_fraction(root / "train", dict.fromkeys("abcde", 0.2))


# --- folders that are not as they should be


def test_wrong_names_get_the_nearest_right_one(root: Path) -> None:
    for split, near in {"tran": "train", "Training": "train", "TEST": "test"}.items():
        with pytest.raises(FileNotFoundError, match=f"no split '{split}'.*train, test; did you mean '{near}'"):
            Folder(root, split)
    with pytest.raises(FileNotFoundError, match="no split 'valid' in .*: found splits train, test$"):
        Folder(root, "valid")
    with pytest.raises(FileNotFoundError, match=f"did you mean '{root}'"):
        Folder(root.parent / "dat" / "deeper", "train")
    with pytest.raises(FileNotFoundError, match="exists, 'qqq' in it does not"):
        Folder(root.parent / "qqq")


def test_files_where_folders_should_be(root: Path) -> None:
    (root / "valid").write_text("")
    with pytest.raises(NotADirectoryError, match="found a file: .*valid"):
        Folder(root, "valid")
    with pytest.raises(NotADirectoryError, match="found a file: .*valid"):
        Folder(root / "valid")


def test_no_class_and_empty_classes(root: Path) -> None:
    with pytest.raises(ValueError, match="no class in .*, and 4 files"):
        Folder(root / "train" / "cat")
    for file in (root / "train" / "cat").iterdir():
        file.rename(file.with_suffix(".webp"))
    (root / "train" / "ape").mkdir()
    with pytest.raises(ValueError, match=r"'ape' \(found no files\), 'cat' \(found 4 \.webp\)"):
        Folder(root, "train")
    with pytest.raises(ValueError, match="on_error: expected 'refuse' or 'skip', found 'ignore'"):
        Folder(root, "train", on_error="ignore")  # ty: ignore[invalid-argument-type]


def test_a_folder_without_permission_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may list anything, so the refusal is put in place of `os.scandir`'s."""
    real = os.scandir

    def refuse(path: str | Path) -> object:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(listing_module.os, "scandir", refuse)
    with pytest.raises(PermissionError, match="no permission to list the folder .*dog"):
        Folder(root, "train")
