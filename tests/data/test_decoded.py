"""Pixels kept beside a packed data set: the same as decoding gives, and never another image's."""

import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnjax.cli import main
from cnnjax.data import Folder, Records, decoded, open_splits, open_tfds, pack_folder, pack_plan, records


@pytest.fixture
def photos(shared_data: Path, tmp_path: Path) -> Path:
    """Photographs of many shapes, two classes and splits."""
    samples = sorted((shared_data / "imagenet_samples").rglob("*.[jJ]*"))
    for number, (split, kind) in enumerate((s, k) for s in ("train", "test") for k in ("one", "two")):
        (tmp_path / "photos" / split / kind).mkdir(parents=True)
        for file in samples[number * 7 : number * 7 + 7]:
            shutil.copy(file, tmp_path / "photos" / split / kind)
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3)).save(tmp_path / "photos/train/one/small.png")
    return tmp_path / "photos"


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(content: bytes, scale: None) -> np.ndarray:
        raise AssertionError(f"decoded {len(content)} bytes")

    monkeypatch.setattr(records, "decode", refused)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("size", [None, (50, 40)])
@pytest.mark.parametrize("resizing", ["bilinear", "antialias", "crop_to_aspect_ratio", "center_crop"])
def test_nothing_is_decoded_and_every_pixel_is_the_folders(
    photos: Path, monkeypatch: pytest.MonkeyPatch, resizing: Any, size: tuple[int, int] | None
) -> None:
    monkeypatch.setattr(pack_plan, "SHARD_BYTES", 60_000)
    if size:
        monkeypatch.setattr(records, "resize", None)  # nothing is resized either
    out = pack_folder(photos, decoded=decoded.DecodedFormat(size, resizing if size else "bilinear")).out
    assert len(decoded.decoded_files(out)) > 3
    folders = open_splits(photos, image_size=(50, 40), resizing=resizing)
    for split, source in open_tfds(out, image_size=(50, 40), resizing=resizing).items():
        order = np.random.default_rng(0).permutation(len(source))
        np.testing.assert_array_equal(source.read(order), folders[split].read(order))
        assert source.digest == folders[split].digest
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again.take(order[:3]).read([0, 2]), folders[split].read(order[[0, 2]]))


def test_pixels_are_added_to_a_pack_and_completed_after_a_kill(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process dies while it writes the third file of pixels; the same command finishes, with the same bytes."""
    code = f"""
import os, signal
from pathlib import Path
from cnnjax.data import decoded, pack, pack_plan
pack_plan.SHARD_BYTES = 60_000
count, write = 0, pack.write_decoded
def dying(*args):
    global count
    count += 1
    for done in write(*args):
        if count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield done
pack.write_decoded = dying
pack.pack_folder({str(photos)!r}, {str(tmp_path / "killed")!r}, decoded=decoded.DecodedFormat())
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(decoded.decoded_files(tmp_path / "killed")) == 2
    monkeypatch.setattr(pack_plan, "SHARD_BYTES", 60_000)
    half = open_tfds(tmp_path / "killed", image_size=(30, 30))["train"]
    np.testing.assert_array_equal(half.read(range(15)), Folder(photos, "train", (30, 30)).read(range(15)))
    main(["pack", str(photos), "--out", str(tmp_path / "killed"), "--decoded"])
    assert "of decoded pixels beside them" in " ".join(capsys.readouterr().out.split())
    whole = pack_folder(photos, tmp_path / "whole", decoded=decoded.DecodedFormat()).out
    kept = {p.name: p.read_bytes() for p in decoded.decoded_files(tmp_path / "killed")}
    assert kept == {p.name: p.read_bytes() for p in decoded.decoded_files(whole)}
    assert len(kept) > 3 and not list((tmp_path / "killed").rglob("*.partial"))


def test_pixels_of_another_size_are_no_use_and_no_harm(photos: Path, tmp_path: Path) -> None:
    out = pack_folder(photos, tmp_path / "out", decoded=decoded.DecodedFormat((20, 20), "antialias")).out
    for resizing, size in (("bilinear", (20, 20)), ("antialias", (20, 21))):
        source = Records(out, "train", size, resizing=resizing)
        expected = Folder(photos, "train", size, resizing=resizing).read([0, 3])
        np.testing.assert_array_equal(source.read([0, 3]), expected)
    with pytest.raises(SystemExit):
        main(["pack", str(photos), "--image-size", "20"])


def test_damaged_or_foreign_pixels_are_never_read(photos: Path, tmp_path: Path) -> None:
    out = pack_folder(photos, tmp_path / "out", decoded=decoded.DecodedFormat()).out
    file = next(p for p in decoded.decoded_files(out) if "train" in p.name)
    whole = file.read_bytes()
    file.write_bytes(bytes(100) + whole[100:])
    with pytest.raises(OSError, match=r"damaged pixels in .*\.pixels; delete it, and pack with --decoded again"):
        Records(out, "train", (30, 30)).read(range(15))
    for content in (whole[:-1], b""):  # cut short: as if there were none
        file.write_bytes(content)
        assert Records(out, "train", (30, 30)).read([0]).shape == (1, 30, 30, 3)
        pack_folder(photos, out, decoded=decoded.DecodedFormat())  # and mended
        assert file.read_bytes() == whole
    file.unlink()
    pack_folder(photos, out, decoded=decoded.DecodedFormat())
    assert file.read_bytes() == whole
    # Pixels of other images, under this record file's name.
    index = file.with_suffix(".pixels.npz")
    with np.load(index) as found:
        arrays = dict(found)
    np.savez(index, **(arrays | {"hashes": arrays["hashes"][::-1]}))
    expected = Folder(photos, "train", (30, 30)).read(range(15))
    np.testing.assert_array_equal(Records(out, "train", (30, 30)).read(range(15)), expected)
    np.savez(index, **(arrays | {"choices": np.array("other choices")}))
    np.testing.assert_array_equal(Records(out, "train", (30, 30)).read(range(15)), expected)


def test_a_file_that_changed_after_packing_is_named(photos: Path, tmp_path: Path) -> None:
    out = pack_folder(photos, tmp_path / "out").out
    source = Folder(photos, "train")
    entries = next(iter(sorted(out.glob("*train*"))))
    hashes = np.zeros((len(source), 32), np.uint8)
    with pytest.raises(ValueError, match="is not what was packed"):
        list(decoded.write_decoded(entries, [source.path(i) for i in range(len(source))], hashes))
