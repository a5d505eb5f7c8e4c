"""Folders as they come: each trouble works as Keras has it, or is named with path and reason; no file is lost."""

import csv
import inspect
import io
import os
import shutil
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from cnnjax.data import Folder, ImageError, InMemory, open_splits, split_by_fraction
from cnnjax.data import folder as folder_module
from cnnjax.data import pixels as pixels_module
from cnnjax.data.listing import Account, account
from cnnjax.data.source import in_memory


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def lay(path: Path, content: bytes | None = None, value: int = 0) -> Path:
    """Writes a file, by default an image of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(Image.new("RGB", (5, 6), (value,) * 3), "PNG") if content is None else content)
    return path


def png(shape: tuple[int, int], depth: int = 8, colour: int = 2, samples: np.ndarray | None = None) -> bytes:
    """A PNG by its specification: Pillow writes no 16-bit colours, and no size without its pixels."""
    header = struct.pack(">IIBBBBB", shape[1], shape[0], depth, colour, 0, 0, 0)
    lines = b"" if samples is None else b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(lines), b"IEND"]
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits of two classes, two images a class."""
    for place in ("train/cat/0", "train/cat/1", "train/dog/0", "train/dog/1"):
        for split in ("train", "test"):
            lay(tmp_path / "data" / f"{place}.png".replace("train", split), value=10 * len(split))
    return tmp_path / "data"


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def pipe(path: Path) -> None:
    os.mkfifo(path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero.jpg": (lambda path: lay(path, b""), "the file is empty"),
    "cut.jpg": (lambda path: lay(path, encoded(NOISE, "JPEG")[:-900]), "truncated"),
    "text.jpg": (lambda path: lay(path, b"no image at all"), "not an image: .* starts with b'no image"),
    "._cat.jpg": (lambda path: lay(path, b"\0\5\x16\7\0\2\0\0Mac OS X"), "not an image"),
    "bomb.png": (lambda path: lay(path, png((12_000, 10_000))), "declares 10000 x 12000 pixels, more than 89478485"),
    "large bomb.png": (lambda path: lay(path, png((60_000, 60_000))), "declares too many pixels .*3600000000"),
    "nowhere.jpg": (lambda path: path.symlink_to("gone.jpg"), "cannot be read: No such file or directory"),
    "circle.jpg": (lambda path: path.symlink_to(path), "cannot be read: .*symbolic links"),
    "pipe.jpg": (pipe, "is no file but a pipe"),
    "device.jpg": (lambda path: path.symlink_to(os.devnull), "is no file but a device"),
    "two\nlines.jpg": (lambda path: lay(path, b""), "the file is empty"),
    os.fsdecode(b"caf\xe9.jpg"): (lambda path: lay(path, b""), "the file is empty"),
}
SHOWN = {"two\nlines.jpg": r"two\x0alines.jpg", os.fsdecode(b"caf\xe9.jpg"): r"caf\xe9.jpg"}


@pytest.mark.parametrize("name", BAD, ids=lambda name: SHOWN.get(name, name))
def test_a_bad_image_is_named_with_path_and_reason(name: str, root: Path, tmp_path: Path) -> None:
    make, reason = BAD[name]
    path = root / "train" / "cat" / name
    make(path)
    # A reader that waits for the pipe's other end gets one, and then finds it empty.
    rescue = threading.Timer(5, lambda: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK)))
    if name == "pipe.jpg":
        rescue.start()
    shown = str(root / "train" / "cat" / SHOWN.get(name, name))
    refusing = Folder(root, "train", (6, 5))
    for act in (refusing.verify, lambda: refusing.read(range(5))):
        with pytest.raises(ImageError, match=f"(?s)^1 image of .*{reason}") as caught:
            act()
        assert f"\n  {shown}: " in str(caught.value)
        str(caught.value).encode()  # every terminal can print it
    skipping = Folder(root, "train", (6, 5), on_error="skip")
    rescue.cancel()
    assert skipping.names == ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    assert skipping.read(range(4)).shape == (4, 6, 5, 3)
    found = account({"train": skipping, "test": Folder(root, "test")})
    assert (found.found, found.used, len(found.skipped)) == (9, {"train": 4, "test": 4}, 1)
    found.write(tmp_path / "skipped.csv")
    with (tmp_path / "skipped.csv").open(newline="") as file:
        assert sum(1 for _ in file) == 2
        file.seek(0)
        header, (split, listed, why) = csv.reader(file)
    assert header == ["split", "path", "reason"] and (split, listed) == ("train", shown)
    assert f"{skipping.skipped[0]}" == f"cat/{SHOWN.get(name, name)}: {why}"


def sixteen_bits(colour: int) -> tuple[bytes, np.ndarray]:
    values = np.random.default_rng(1).integers(0, 65536, (6, 5, 3 if colour == 2 else 1)).astype(np.uint16)
    return png((6, 5), 16, colour, values), np.broadcast_to(values >> 8, (6, 5, 3))


def animated() -> tuple[bytes, np.ndarray]:
    frames = [Image.new("RGB", (5, 6), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    return data, np.broadcast_to([255, 0, 0], (6, 5, 3))


def cmyk() -> tuple[bytes, np.ndarray]:
    data = encoded(Image.new("CMYK", (5, 6), (255, 0, 51, 0)), "JPEG", quality=100)
    return data, np.broadcast_to([0, 255, 204], (6, 5, 3))


def turned() -> tuple[bytes, np.ndarray]:
    pixels = np.repeat(np.arange(0, 240, 40, dtype=np.uint8), 15).reshape(6, 5, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright; Keras leaves it lying
    return encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=100), pixels


GOOD: dict[str, tuple[bytes, np.ndarray]] = {
    "16 bit grey.png": sixteen_bits(0),
    "16 bit colour.png": sixteen_bits(2),
    "animated.gif": animated(),
    "animated.jpg": animated(),
    "cmyk.jpg": cmyk(),
    "turned.jpg": turned(),
}


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_image_works(name: str, root: Path) -> None:
    data, pixels = GOOD[name]
    lay(root / "train" / "cat" / name, data)
    source = Folder(root, "train", (6, 5), on_error="skip")
    assert source.skipped == ()
    found = source.read([source.names.index(f"cat/{name}")])[0]
    np.testing.assert_allclose(found, pixels, atol=2 if name in ("cmyk.jpg", "turned.jpg") else 0)


def test_a_bomb_is_refused_before_it_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """6 x 5 pixels: the limit is a constant, and what is refused was never unpacked."""
    source = Folder(root, "train", (6, 5))
    monkeypatch.setattr(pixels_module, "MAX_PIXELS", 30)
    assert source.read([0]).shape == (1, 6, 5, 3)
    unpacked = []
    real = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: unpacked.append(image) or real(image))
    monkeypatch.setattr(pixels_module, "MAX_PIXELS", 29)
    with pytest.raises(ImageError, match=r"0\.png: declares 5 x 6 pixels, more than 29; the limit is .*MAX_PIXELS"):
        source.read([0])
    assert not unpacked
    monkeypatch.setattr(pixels_module, "MAX_BYTES", 20)
    with pytest.raises(ImageError, match=r"0\.png: has \d+ bytes, more than the 20 of .*MAX_BYTES"):
        source.read([0])


def test_an_unreadable_file_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read anything, so the refusal is put in place of `open`'s."""
    real, hidden = open, root / "train" / "dog" / "1.png"

    def refuse(path: str | Path, *args: object, **kwargs: object) -> object:
        if os.fspath(path) == str(hidden):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)  # ty: ignore[no-matching-overload]

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ImageError, match=r"1 image of .*\n  .*dog/1\.png: cannot be read: Permission denied$"):
        Folder(root, "train").verify()
    source = Folder(root, "train", on_error="skip")
    assert source.skipped == ("dog/1.png: cannot be read: Permission denied",)
    ((split, path, reason),) = account({"train": source, "test": Folder(root, "test")}).skipped
    assert (split, path, reason) == ("train", str(hidden), "cannot be read: Permission denied")


def test_a_file_that_vanishes_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between listing and reading, and between listing and the check of `on_error="skip"`."""
    source = Folder(root, "train")
    (root / "train" / "cat" / "1.png").unlink()
    with pytest.raises(ImageError, match=r"cat/1\.png: cannot be read: No such file"):
        source.read(range(4))
    real = folder_module.list_folder

    def list_and_lose(*args: object, **kwargs: object) -> object:
        found = real(*args, **kwargs)  # ty: ignore[invalid-argument-type]
        (root / "train" / "dog" / "0.png").unlink()
        return found

    monkeypatch.setattr(folder_module, "list_folder", list_and_lose)
    source = Folder(root, "train", on_error="skip")
    assert source.skipped == ("dog/0.png: cannot be read: No such file or directory",)
    assert source.names == ("cat/0.png", "dog/1.png")


def test_a_folder_that_vanishes_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "visible_folders", lambda path: ["cat", "cow"])
    with pytest.raises(FileNotFoundError, match="cannot list the folder .*train/cow: No such file"):
        Folder(root, "train")


def test_a_class_without_files_is_named(root: Path) -> None:
    (root / "train" / "ape").mkdir()
    lay(root / "train" / "bee" / "1.webp")
    for on_error in ("refuse", "skip"):
        with pytest.raises(
            ValueError, match=rf"{root}/train for class 'ape' \(found no files\), 'bee' \(found 1 .webp"
        ):
            Folder(root, "train", on_error=on_error)


def test_a_class_that_train_lacks_is_named(root: Path) -> None:
    lay(root / "test" / "cow" / "1.png")
    with pytest.raises(ValueError, match=rf"splits of {root} must hold the same classes, but 'train' lacks cow"):
        open_splits(root)


def test_names_that_differ_in_case_are_two_files(root: Path) -> None:
    for value, name in enumerate(("Cat.jpg", "cat.JPG", "CAT.png"), 60):
        lay(root / "train" / "cat" / name, value=value)
    source = Folder(root, "train", (6, 5))
    assert source.names[:5] == ("cat/0.png", "cat/1.png", "cat/CAT.png", "cat/Cat.jpg", "cat/cat.JPG")
    assert source.read([2, 3, 4])[:, 0, 0, 0].tolist() == [62, 60, 61]
    assert account({"train": source, "test": Folder(root, "test")}).used == {"train": 7, "test": 4}


def test_links_that_lead_in_circles(root: Path) -> None:
    """Below a class none is followed; a class that is a link to what holds it is refused."""
    for name, target in {"up": "..", "self": ".", "down": "below/up"}.items():
        (root / "train" / "cat" / name).symlink_to(target)
    lay(root / "train" / "cat" / "below" / "0.png")
    (root / "train" / "cat" / "below" / "up").symlink_to("..")
    (root / "train" / "around").symlink_to("around")
    source = Folder(root, "train", (6, 5), on_error="skip")
    assert source.names == ("cat/0.png", "cat/1.png", "cat/below/0.png", "dog/0.png", "dog/1.png")
    others = {
        Path(path).relative_to(root / "train"): reason for _, path, reason in account({"train": source}).others[:5]
    }
    links = dict.fromkeys(
        map(Path, ("cat/below/up", "cat/down", "cat/self", "cat/up")), "a link to a folder, not followed"
    )
    assert others == {Path("around"): "lies in no class folder"} | links
    for target in (".", "..", root):
        (root / "train" / "eel").symlink_to(target)
        with pytest.raises(ValueError, match=f"{root}/train/eel is a link to {root}.*, a folder that holds it"):
            Folder(root, "train")
        (root / "train" / "eel").unlink()


def test_odd_names_work(root: Path) -> None:
    odd = [
        "two\nlines.png",
        os.fsdecode(b"\xff\xfe.png"),
        "a: b.png",
        "a" * 251 + ".png",
        "犬 \u3000\u200d.png",
        "-rf.png",
    ]
    values = {f"cat/{name}": value for value, name in enumerate(odd, 60)} | {"dog/x.jpg/0.png": 77}
    for name, value in values.items():
        lay(root / "train" / name, value=value)
    source = Folder(root, "train", (6, 5), on_error="skip")
    plain = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(2)]
    assert sorted(source.names) == sorted([*values, *plain])
    pixels = dict(zip(source.names, source.read(range(len(source)))[:, 0, 0, 0].tolist(), strict=True))
    assert {name: pixels[name] for name in values} == values
    assert account({"train": source, "test": Folder(root, "test")}).used == {"train": 11, "test": 4}


@pytest.mark.parametrize("name", ["two\nlines", os.fsdecode(b"caf\xe9")])
def test_a_class_whose_name_is_no_text_is_named(name: str, root: Path) -> None:
    lay(root / "train" / name / "0.png")
    with pytest.raises(ValueError, match=r"must be printable text; rename (two\\x0alines|caf\\xe9)$"):
        Folder(root, "train")


def test_paths_longer_than_the_system_allows_are_named(root: Path) -> None:
    name, before = "d" * 250, os.getcwd()
    try:
        os.chdir(root / "train" / "cat")
        for _ in range(18):
            os.mkdir(name)
            os.chdir(name)
    finally:
        os.chdir(before)
    with pytest.raises(OSError, match="cannot list the folder .*dddd: File name too long"):
        Folder(root, "train")
    shutil.rmtree(root / "train" / "cat" / name)


def test_folders_deeper_than_python_recurses_are_listed(root: Path) -> None:
    deep = root.joinpath("train", "cat", *["d"] * 150)
    lay(deep / "0.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        names = Folder(root, "train").names
    finally:
        sys.setrecursionlimit(limit)
    assert names[2] == deep.relative_to(root / "train").as_posix() + "/0.png"


# --- the account


def everything(root: Path) -> set[str]:
    """Every file below `root`, found with `os.walk`; hidden folders beside the classes count as one file each."""
    found = set()
    for place, folders, files in os.walk(root):
        closed = [name for name in folders if os.path.islink(f"{place}/{name}")]
        if Path(place).parent == root or Path(place) == root:
            closed += [name for name in folders if name.startswith(".") or name == "logs"]
        folders[:] = [name for name in folders if name not in closed]
        found |= {f"{place}/{name}" for name in files + closed}
    return found


@pytest.fixture
def messy(root: Path) -> Path:
    for place in ("train/cat/notes.txt", "train/cat/.DS_Store", "train/cat/below/Thumbs.db", "train/dog/1.webp",
                  "train/readme.md", "test/cat/.hidden", "labels.csv", "logs/cat/0.png", ".git/config",
                  "train/.trash/0.png"):  # fmt: skip
        lay(root / place, b"no image")
    (root / "train" / "dog" / "link").symlink_to(root / "train" / "cat")
    lay(root / "train" / "dog" / "bad.jpg", b"")
    lay(root / "test" / "dog" / "bad.jpg", b"text")
    return root


def used(sources: dict[str, Folder]) -> list[str]:
    return [source.path(i) for source in sources.values() for i in range(len(source))]


def check(found: Account, sources: dict[str, Folder], root: Path) -> None:
    """Found, used and listed are the same files, each in one place."""
    listed = [row.path for row in (*found.skipped, *found.others)]
    assert sorted(used(sources) + listed) == sorted(everything(root))
    assert found.found == len(everything(root)) == sum(found.used.values()) + len(listed)
    assert all(row.reason for row in (*found.skipped, *found.others))


def test_no_file_of_splits_is_lost(messy: Path, tmp_path: Path) -> None:
    sources = open_splits(messy, (6, 5), on_error="skip")
    found = account(sources)
    check(found, sources, messy)
    assert str(found) == "21 files: 4 train, 4 test; 2 skipped, 11 other files"
    assert [row.split for row in found.skipped] == ["train", "test"]
    assert [row.path for row in found.others if not row.split] == [
        str(messy / n) for n in (".git", "labels.csv", "logs")
    ]
    found.write(tmp_path / "skipped.csv")
    with (tmp_path / "skipped.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    assert rows == [list(row) for row in (*found.skipped, *found.others)]
    assert ["train", str(messy / "train" / "dog" / "link"), "a link to a folder, not followed"] in rows
    assert ["train", str(messy / "train" / "readme.md"), "lies in no class folder"] in rows
    reason = "ends in none of .bmp, .gif, .jpeg, .jpg, .png"
    assert ["train", str(messy / "train" / "dog" / "1.webp"), reason] in rows


def test_no_file_of_drawn_splits_and_parts_is_lost(messy: Path) -> None:
    for n in range(6):
        lay(messy / "train" / "cat" / f"more{n}.png")
        lay(messy / "train" / "dog" / f"more{n}.png")
    sources = split_by_fraction(messy / "train", image_size=(6, 5), on_error="skip")
    found = account(sources)
    check(found, sources, messy / "train")
    assert {row.split for row in found.others} == {""} and sum(found.used.values()) == 16
    part = {"train": sources["train"].take([1, 0, 0])}
    assert account(part).used == {"train": 2} and account(part).found == found.found
    assert sum(row.reason == "not chosen" for row in account(part).others) == 14 + len(found.skipped) - len(
        sources["train"].skipped
    )
    whole = Folder(messy / "train", image_size=(6, 5), on_error="skip")
    overlapping = account({"a": whole.take([0, 1, 2]), "b": whole.take([2, 3])})
    assert overlapping.used == {"a": 3, "b": 1} and overlapping.found == found.found


def test_sources_in_memory_are_accounted_for_as_what_they_were_read_from(messy: Path) -> None:
    sources = open_splits(messy, (6, 5), on_error="skip")
    kept = {name: in_memory(source, 1 << 20) for name, source in sources.items()}
    assert account(kept) == account(sources)
    plain = InMemory(np.zeros((3, 4, 4, 3), np.uint8), [0, 0, 1], ("a", "b"))
    plain.skipped = ("x.png: damaged: cut: short",)
    ((split, path, reason),) = account({"train": plain}).skipped
    assert (split, path, reason) == ("train", "x.png", "damaged: cut: short")


def test_an_account_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="9 files were found, and 8 are accounted for"):
        Account(9, {"train": 8}, (), ())
