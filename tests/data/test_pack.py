"""Packed folders against the folders themselves, after kills too, and what is refused."""

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cnnjax.cli import main
from cnnjax.data import Folder, ImageError, Records, open_splits, open_tfds, pack_folder, pack_plan, split_by_fraction


def paint(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(path, "PNG")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two splits of two classes, 36 images of noise in all, names that are easily lost, and a note."""
    rng, root = np.random.default_rng(0), tmp_path / "Pets 2"
    names = ["10.png", "2.png", "sub/1.png", "é ü.png", os.fsdecode(b"caf\xe9.png"), "UPPER.PNG", "a b/c d.png"]
    for split, more in (("train", 5), ("val", 1)):
        for kind in ("dog", "big cat"):
            for name in (*names, *(f"more{k}.png" for k in range(more))):
                path = root / split / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path, "PNG")
    (root / "train" / "dog" / "notes.txt").write_text("good dogs")
    return root


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_plan, "SHARD_BYTES", 1200)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_real_photographs_are_as_in_the_folder(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order, names, labels, digest and pixels; TFDS by itself reads the same images and labels."""
    samples = sorted((shared_data / "imagenet_samples").rglob("*.[jJ]*"))
    pets = shared_data / "cats_and_dogs_small"
    for split, step in (("train", 66), ("test", 80)):
        for kind in ("cats", "dogs"):
            chosen = sorted((pets / split / kind).iterdir())[::step] + samples[:: step // 3]
            (tmp_path / "photos" / split / kind).mkdir(parents=True)
            for file in chosen:
                shutil.copy(file, tmp_path / "photos" / split / kind)
    monkeypatch.setattr(pack_plan, "SHARD_BYTES", 200_000)
    packed = pack_folder(tmp_path / "photos")
    opened, folders = open_tfds(packed.out, image_size=(90, 70)), open_splits(tmp_path / "photos", image_size=(90, 70))
    assert list(opened) == list(folders) == ["train", "test"] and len(opened["train"]) > 50
    assert len(list(packed.out.glob("*train.array_record*"))) > 2
    for split, folder in folders.items():
        source = opened[split]
        assert (source.class_names, source.names, source.digest) == (folder.class_names, folder.names, folder.digest)
        np.testing.assert_array_equal(source.labels, folder.labels)
        assert source.labels.dtype == folder.labels.dtype
        order = np.random.default_rng(1).permutation(len(folder))
        np.testing.assert_array_equal(source.read(order), folder.read(order))
        for i in range(len(folder)):
            assert source.content(i) == Path(folder.path(i)).read_bytes()
        builder: Any = tfds.builder_from_directory(packed.out)
        plain = builder.as_data_source(split)
        assert [record["label"] for record in plain] == folder.labels.tolist()
        with Image.open(folder.path(3)) as image:
            np.testing.assert_array_equal(plain[3]["image"], np.asarray(image.convert("RGB")))


@pytest.mark.usefixtures("small_shards")
def test_names_of_all_kinds_are_kept(pets: Path) -> None:
    packed = pack_folder(pets)
    assert packed.out == pets.parent / "Pets 2-packed"
    for split, folder in (("train", Folder(pets, "train", (6, 6))), ("validation", Folder(pets, "val", (6, 6)))):
        source = open_tfds(packed.out, {"train": split}, (6, 6))["train"]
        assert source.names == folder.names and source.class_names == ("big cat", "dog")
        np.testing.assert_array_equal(source.read(range(len(source))), folder.read(range(len(folder))))
    assert str(packed.account) == "41 files: 24 train, 16 validation; 0 skipped, 1 other files"


def test_a_folder_of_classes_is_split_like_the_folder(pets: Path) -> None:
    packed = pack_folder(pets / "train", pets.parent / "out")
    folders = split_by_fraction(pets / "train", image_size=(6, 6))
    opened = open_tfds(packed.out, image_size=(6, 6))
    assert {k: (s.names, s.digest) for k, s in opened.items()} == {k: (s.names, s.digest) for k, s in folders.items()}


@pytest.mark.usefixtures("small_shards")
def test_packing_again_writes_no_record_file(pets: Path) -> None:
    out = pack_folder(pets).out
    before = {p: p.stat().st_mtime_ns for p in out.glob("*array_record*")}
    assert len(before) > 5
    pack_folder(pets)
    assert {p: p.stat().st_mtime_ns for p in out.glob("*array_record*")} == before


# --- other processes, and kills

ELSEWHERE = """
    import json, os, pickle, resource, sys, time
    import numpy as np
    import cnnjax.data.pack as pack, cnnjax.data.pack_plan as plan, cnnjax.data.records
    for line in sys.stdin:
        exec(json.loads(line))
        print("done", flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def elsewhere() -> Iterator[Callable[[str], list[str]]]:
    """Another process; it runs a program and returns the lines that this prints. It starts while other tests run."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(ELSEWHERE)]
    pipe = subprocess.PIPE
    process: Any = subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe)

    def run(program: str) -> list[str]:
        process.stdin.write(json.dumps(textwrap.dedent(program)) + "\n")
        process.stdin.flush()
        lines = []
        while (line := process.stdout.readline()) not in ("done\n", ""):
            lines.append(line.strip())
        assert line, process.stderr.read()
        return lines

    yield run
    rest = process.communicate(timeout=30)
    assert (process.returncode, *rest) == (0, "", "")


@pytest.mark.usefixtures("small_shards")
def test_packed_sources_go_to_other_processes(
    pets: Path, tmp_path: Path, elsewhere: Callable[[str], list[str]]
) -> None:
    """By pickle, after reading; also where fewer files may be open than there are record files."""
    source = Records(pack_folder(pets).out, "train+validation", (7, 6))
    expected = source.read(range(40))
    (tmp_path / "source.pickle").write_bytes(pickle.dumps([source, source.take([5, 3])]))
    program = f"""
        source, part = pickle.load(open({str(tmp_path / "source.pickle")!r}, "rb"))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 4, limits[1]))
        np.savez({str(tmp_path / "read.npz")!r}, whole=source.read(range(40)), part=part.read([0, 1]))
        print(*[name for name in ("tensorflow",) if name in sys.modules])
    """
    assert elsewhere(program) == [""]
    with np.load(tmp_path / "read.npz") as read:
        np.testing.assert_array_equal(read["whole"], expected)
        np.testing.assert_array_equal(read["part"], expected[[5, 3]])


def test_a_full_disk_is_told_and_goes_on(pets: Path, tmp_path: Path, elsewhere: Callable[[str], list[str]]) -> None:
    program = f"""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            pack.pack_folder({str(pets)!r}, {str(tmp_path / "full")!r})
        except OSError as error:
            print(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    """
    (said,) = elsewhere(program)
    assert "File too large" in said and "partial" in said and "the same command goes on when that is mended" in said
    assert files(pack_folder(pets, tmp_path / "full").out) == files(pack_folder(pets, tmp_path / "whole").out)


@pytest.mark.usefixtures("small_shards")
def test_a_kill_costs_no_finished_file_and_changes_nothing(
    pets: Path, tmp_path: Path, elsewhere: Callable[[str], list[str]]
) -> None:
    """Processes are killed at random moments; every pack is then finished, and is the one that was never killed."""
    outs = [tmp_path / name for name in ("one", "two", "three", "four")]
    program = f"""
        def start(out, limit):
            child = os.fork()
            if child:
                return child
            real, seen, plan.SHARD_BYTES = pack.decode, [], 1200  # ten record files of four images
            def slow(content, scale):
                seen.append(content)
                time.sleep(0.02 if len(seen) < limit else 30)
                return real(content, scale)
            pack.decode = slow
            pack.pack_folder({str(pets)!r}, out)
            os._exit(0)
        for out, limit in zip({[str(out) for out in outs]}, (8, 16, 28, 38)):
            print(start(out, limit))
    """
    children = [int(line) for line in elsewhere(program)]
    for least, out, child in zip((0, 1, 3, 5), outs, children, strict=True):
        until = time.monotonic() + 30
        while len(list(out.glob("cnnjax-pack/*record*.npz"))) < least and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(np.random.default_rng().uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
    elsewhere("for _ in range(4): os.wait()")
    whole = files(pack_folder(pets, tmp_path / "whole").out)
    for least, out in zip((0, 1, 3, 5), outs, strict=True):
        finished = {p.name.removesuffix(".npz") for p in out.glob("cnnjax-pack/*record*.npz")}
        assert least <= len(finished) < 10
        times = {name: (out / name).stat().st_mtime_ns for name in finished}
        assert not (out / "dataset_info.json").exists()
        if (out / "cnnjax-pack" / "pack.json").exists():
            with pytest.raises(OSError, match=f"unfinished pack of {pets}; this finishes it: cnnjax pack '{pets}'"):
                open_tfds(out)
        with pytest.raises(Exception, match="Could not"):
            tfds.builder_from_directory(out)
        pack_folder(pets, out)
        assert files(out) == whole
        assert {name: (out / name).stat().st_mtime_ns for name in finished} == times


def test_every_step_can_be_the_last(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped just before and just after each file gets its name, a pack is never whole too early, and is finished."""
    (pets / "train" / "dog" / "bad.png").write_bytes(b"no image")
    whole = files(pack_folder(pets, tmp_path / "whole", "skip").out)
    real, count, stop = Path.replace, 0, 0

    def replace(path: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == stop:
            raise KeyboardInterrupt
        done = real(path, target)
        if count == -stop:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(Path, "replace", replace)
    pack_folder(pets, tmp_path / "counted", "skip")
    steps = count
    assert steps > 9
    for step in range(1, steps + 1):
        for stop in (step, -step):
            out, count = tmp_path / f"{stop}", 0
            with pytest.raises(KeyboardInterrupt):
                pack_folder(pets, out, "skip")
            last = stop == -steps
            assert (out / "dataset_info.json").exists() == last
            stop = 0
            pack_folder(pets, out, "skip")
            assert files(out) == whole, step


# --- what is refused


def test_two_folders_are_not_mixed(pets: Path, tmp_path: Path) -> None:
    out = pack_folder(pets / "train", tmp_path / "out").out
    before = files(out)
    with pytest.raises(
        ValueError, match=f"{out} holds a pack of {pets / 'train'}, not of {pets / 'val'}; give another"
    ):
        pack_folder(pets / "val", out)
    assert files(out) == before


def test_a_changed_folder_is_refused_and_every_change_named(pets: Path) -> None:
    out = pack_folder(pets).out
    before, dog = files(out), pets / "train" / "dog"
    (dog / "10.png").unlink()
    paint(dog / "new.png")
    (dog / "2.png").write_bytes(b"longer" * 100)
    os.utime(dog / "UPPER.PNG")
    with pytest.raises(ValueError, match=f"{pets} is not what it was when {out} was begun; delete that") as caught:
        pack_folder(pets)
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    size = len(before["packed_pets_2-train.array_record-00000-of-00001"])
    assert lines[0] == "train, dog/10.png: is gone" and size
    assert lines[1].startswith("train, dog/2.png: had ") and lines[1].endswith("bytes, has 600")
    assert lines[2:] == ["train, dog/UPPER.PNG: was written to", "train, dog/new.png: is new"]
    assert files(out) == before


def test_a_file_that_changes_meanwhile_is_noticed(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scribble(content: bytes, scale: None) -> None:
        (pets / "train" / "dog" / "10.png").write_bytes(b"other")

    monkeypatch.setattr("cnnjax.data.pack.decode", scribble)
    with pytest.raises(ValueError, match=r"train/dog/10.png was changed while its folder was packed"):
        pack_folder(pets)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("full", "full is not empty and holds no pack; give another --out"),
        ("full/file.txt", "file.txt is a file; give another --out"),
        ("full/file.txt/deeper", "cannot write to .*deeper .Not a directory.; give another --out"),
        ("Pets 2/train", "train and .*Pets 2 lie in one another"),
        (".", "lie in one another"),
    ],
)
def test_places_that_hold_something_else_are_refused(pets: Path, tmp_path: Path, out: str, message: str) -> None:
    paint(tmp_path / "full" / "file.txt")
    with pytest.raises((ValueError, OSError), match=message):
        pack_folder(pets, tmp_path / out)


def test_two_processes_do_not_pack_into_one_place(pets: Path, tmp_path: Path) -> None:
    with pack_plan.claimed(tmp_path / "out"), pytest.raises(ValueError, match="another process is packing into"):
        pack_folder(pets, tmp_path / "out")


def test_class_names_that_tfds_cannot_keep_are_refused(pets: Path) -> None:
    for split in ("train", "val"):
        (pets / split / "dog").rename(pets / split / " dog")
    with pytest.raises(ValueError, match="lines of text, which cannot hold ' dog'; rename"):
        pack_folder(pets)


# --- bad images, and the command


@pytest.mark.usefixtures("small_shards")
def test_no_file_is_lost(pets: Path) -> None:
    """Bad images are named, then left out; what is found is what is packed and what is listed."""
    dog = pets / "train" / "dog"
    (dog / "0.png").touch()
    (dog / "text.jpg").write_text("no image")
    (dog / "nowhere.png").symlink_to(pets / "gone.png")
    os.mkfifo(dog / "pipe.png")
    out = pets.parent / "out"
    with pytest.raises(ImageError, match="4 of 45 files of .* cannot be decoded; --on-error skip") as caught:
        pack_folder(pets, out)
    reasons = {"0.png": "is empty", "text.jpg": "not an image", "nowhere.png": "No such file", "pipe.png": "a pipe"}
    for name, reason in reasons.items():
        (line,) = [line for line in str(caught.value).splitlines() if str(dog / name) in line]
        assert reason in line
    assert not (out / "dataset_info.json").exists()
    before = {p: p.stat().st_mtime_ns for p in out.glob("*array_record*")}
    packed = pack_folder(pets, out, "skip")
    assert {p: p.stat().st_mtime_ns for p in out.glob("*array_record*")} == before
    assert str(packed.account) == "45 files: 24 train, 16 validation; 4 skipped, 1 other files"
    with (out / "skipped.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["path"]).name for row in rows} == {*reasons, "notes.txt"}
    skipping = Folder(pets, "train", (6, 6), on_error="skip")
    source = open_tfds(out, {"train": "train"}, (6, 6))["train"]
    assert (source.names, source.digest) == (skipping.names, skipping.digest)
    with pytest.raises(ImageError, match="4 of 45 files"):
        pack_folder(pets, out, "refuse")


def test_a_class_without_any_image_left_is_refused(pets: Path) -> None:
    for file in (pets / "val" / "dog").rglob("*.*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ImageError, match="no image of class 'dog' in .*val can be decoded"):
        pack_folder(pets, on_error="skip")
    with pytest.raises(OSError, match="unfinished pack"):
        open_tfds(pets.parent / "Pets 2-packed")


def test_the_command_says_what_became_of_the_files(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pack", str(pets), "--out", str(pets.parent / "out")])
    said = " ".join(capsys.readouterr().out.split())
    assert "41 files: 24 train, 16 validation; 0 skipped, 1 other files" in said
    assert f"what is left out, with reasons: {pets.parent / 'out' / 'skipped.csv'}" in said
    assert f"2 record files; use them with --data {pets.parent / 'out'}" in said
    (pets / "val" / "dog" / "0.png").touch()
    with pytest.raises(SystemExit) as stopped:
        main(["pack", str(pets), "--out", str(pets.parent / "out")])
    assert stopped.value.code == 2
    assert "validation, dog/0.png: is new" in capsys.readouterr().err


def test_progress_counts_every_image_once(pets: Path) -> None:
    seen: list[tuple[int, int]] = []
    pack_folder(pets, progress=lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {40} and seen[-1] == (40, 40)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_what_is_written_down_is_small_and_plain(pets: Path) -> None:
    out = pack_folder(pets).out
    plan = json.loads((out / "cnnjax-pack" / "pack.json").read_text())
    assert plan == {"folder": str(pets), "name": "packed_pets_2", "parts": {"train": [0, 24], "validation": [0, 16]}}
