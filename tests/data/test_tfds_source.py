"""TFDS data sets as sources: against TFDS's own reading, slices against NumPy's, and everything that can be wrong."""

import ast
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cnnjax.data import ImageError, Records, Source, decode, open_tfds, pack_folder, pack_plan, resize
from cnnjax.data.prepared import feature_names


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(value).integers(0, 256, (7, 6, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Painted(tfds.core.GeneratorBasedBuilder):
    """Small images; the configuration's name says what goes wrong."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS: ClassVar[list[Any]] = [
        tfds.core.BuilderConfig(name=name, description=name)
        for name in ("plain", "one", "validated", "odd", "bad", "unlabelled", "arrays", "module", "broken")
    ]
    SPLITS: ClassVar[dict[str, dict[str, int]]] = {
        "one": {"train": 24},
        "validated": {"train": 9, "val": 6},
        "odd": {"left": 9, "right": 6},
        "unlabelled": {"train": 6, "test": 6},
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Painted",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "mask": tfds.features.Image(shape=(None, None, 1)),
                    "label": tfds.features.ClassLabel(names=["red", "green", "blue"]),
                    "file_name": tfds.features.Text(),
                    "boxes": tfds.features.Sequence({"box": tfds.features.BBoxFeature()}),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        held = self.SPLITS.get(self.builder_config.name, {"train": 20, "validation": 6, "test": 9})
        return {split: self._generate_examples(split, count) for split, count in held.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.builder_config.name
        if config == "module":
            raise ModuleNotFoundError("No module named 'cv3'", name="cv3")
        if config == "broken":
            raise RuntimeError("the download\n  is not there")
        for i in range(count):
            image: Any = np.zeros((4, 4, 3), np.uint8) if config == "arrays" else png(i + 100 * len(split))
            if config == "bad" and split == "train" and i in (3, 5):
                image = b"no image"
            label = -1 if config == "unlabelled" and split == "test" else i % 3
            values = {"image": image, "mask": png(i), "label": label, "file_name": f"{i:03d}.png", "boxes": []}
            yield f"{split}{i}", values


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TFDS's data_dir; what is prepared in it once is there for all tests."""
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder of 100 images, one class after the other, in 30 record files."""
    root = tmp_path_factory.mktemp("packed")
    for i in range(100):
        file = root / "folder" / ("train", "test")[i % 2] / f"class{i // 34}" / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(i))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_plan, "SHARD_BYTES", 800)
        return pack_folder(root / "folder").out


def test_a_data_set_is_prepared_and_read_as_tfds_reads_it(painted: Path) -> None:
    """Order, labels, names, bytes and pixels; from an empty data_dir, without TensorFlow."""
    found = open_tfds("tfds:painted", image_size=(5, 4), data_dir=painted)
    assert {key: len(source) for key, source in found.items()} == {"train": 20, "validation": 6, "test": 9}
    assert "tensorflow" not in sys.modules
    builder: Any = tfds.builder("painted/plain:1.2.0", data_dir=painted)
    assert builder.is_prepared()
    skip = {"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}
    for key, source in found.items():
        assert isinstance(source, Source)
        plain = list(builder.as_data_source(key, decoders=skip))
        assert source.class_names == ("red", "green", "blue")
        assert source.labels.tolist() == [record["label"] for record in plain]
        assert list(source.names) == [record["file_name"].decode() for record in plain]
        assert [source.content(i) for i in range(len(source))] == [record["image"] for record in plain]
        expected = [resize(decode(record["image"]), (5, 4)) for record in plain]
        np.testing.assert_array_equal(source.read(range(len(source))), expected)


FORMS = "painted painted:plain painted:plain:1.2.0 painted:1.2.0 painted/plain:1.2.0 Painted folder".split()


@pytest.mark.parametrize("form", [*(f"tfds:{form}" for form in FORMS), "folder"])
def test_a_data_set_has_several_names(painted: Path, form: str) -> None:
    expected = open_tfds("tfds:painted", data_dir=painted)["test"]
    name = form.replace("folder", str(painted / "painted" / "plain" / "1.2.0"))
    assert open_tfds(name, data_dir=painted)["test"].digest == expected.digest


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("train[:80%]", lambda train, test: train[:40]),
        ("train[80%:]", lambda train, test: train[40:]),
        ("train[20%:60%]", lambda train, test: train[10:30]),
        ("train[10:20]", lambda train, test: train[10:20]),
        ("train[-5:]", lambda train, test: train[-5:]),
        ("train[:-45]", lambda train, test: train[:-45]),
        ("train[49:]+test[:1]", lambda train, test: train[49:] + test[:1]),
        ("test+train[10:20]", lambda train, test: test + train[10:20]),
        ("train[30:]+train[:10]", lambda train, test: train[30:] + train[:10]),
        ("all", lambda train, test: train + test),
    ],
)
def test_slices_are_numpy_slices(packed: Path, text: str, chosen: Any) -> None:
    whole = {split: Records(packed, split, (7, 6)) for split in ("train", "test")}
    train, test = (
        [(split, i, whole[split].names[i], int(whole[split].labels[i])) for i in range(50)] for split in whole
    )
    expected = chosen(train, test)
    source = Records(packed, text, (7, 6))
    several = len({split for split, *_ in expected}) > 1
    assert list(source.names) == [f"{split}/{name}" if several else name for split, _, name, _ in expected]
    assert source.labels.tolist() == [label for *_, label in expected]
    pixels = [whole[split].read([i])[0] for split, i, *_ in expected]
    np.testing.assert_array_equal(source.read(range(len(source))), pixels)


def test_splits_are_chosen_by_slices(packed: Path) -> None:
    found = open_tfds(packed, {"validation": "train[60%:]", "train": "train[:60%]", "test": "test"})
    assert {key: (source.split, len(source)) for key, source in found.items()} == {
        "train": ("train[:60%]", 30),
        "validation": ("train[60%:]", 20),
        "test": ("test", 50),
    }


def test_the_rule_where_a_split_is_missing(painted: Path) -> None:
    """Validation serves as test; a single split is drawn from by class; anything else is refused."""
    found = open_tfds("tfds:painted:validated", data_dir=painted)
    assert {key: source.split for key, source in found.items()} == {"train": "train", "test": "val"}
    found = open_tfds("tfds:painted:one", data_dir=painted)
    counts = {key: np.bincount(source.labels).tolist() for key, source in found.items()}
    assert counts == {"train": [6, 6, 6], "validation": [1, 1, 1], "test": [1, 1, 1]}
    assert len({name for source in found.values() for name in source.names}) == 24
    with pytest.raises(ValueError, match=r"no train split beside .* the splits are left \(9\), right \(6\)"):
        open_tfds("tfds:painted:odd", data_dir=painted)
    found = open_tfds("tfds:painted:odd", {"train": "left", "test": "right"}, data_dir=painted)
    assert len(found["train"]) == 9


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": "train", "test": "testing"}, r"no split 'testing' in .*Unknown split.*train \(50\), test \(50\)"),
        ({"train": "train[:200%]", "test": "test"}, r"no split 'train\[:200%\]' .*\[-100, 100\]"),
        ({"train": "train[a:]", "test": "test"}, r"no split 'train\[a:\]' .*Unrecognized split format"),
        ({"train": "", "test": "test"}, r"no split ''"),
        ({"train": "train[:0]", "test": "test"}, r"'train\[:0\]' of .* has no images"),
        ({"train": "train+train[:1]", "test": "test"}, "takes some images of .* twice"),
        ({"train": "train[:60%]", "test": "train[50%:]"}, r"train \('train.:60%.'\) and test .* share 5 images"),
        ({"training": "train"}, "expected some of train, validation, test, found training"),
        ({}, "expected some of train, validation, test, found none"),
    ],
)
def test_impossible_splits_are_refused(packed: Path, splits: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_tfds(packed, splits)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("tfds:mnits", LookupError, "no TFDS data set 'mnits'; did you mean 'tfds:mnist'"),
        ("tfds:qqqqqqqq", LookupError, r"no TFDS data set 'qqqqqqqq'; TFDS [\d.]+ knows \d+ others"),
        ("tfds:painted:plane", LookupError, "no configuration 'plane' of painted; did you mean 'tfds:painted:plain'"),
        ("tfds:painted:plain:9.9.9", LookupError, "cannot be loaded at version 9.9.9, only: 1.2.0"),
        ("tfds:not a name", ValueError, "expected tfds:NAME, tfds:NAME:CONFIG, .* found 'tfds:not a name'"),
        ("data/nowhere", FileNotFoundError, "no folder data/nowhere"),
        ("{root}", FileNotFoundError, "holds no dataset_info.json; did you mean .*/painted/plain/1.2.0"),
        ("tfds:{root}/painted", FileNotFoundError, "holds no dataset_info.json; did you mean .*/painted/plain/1.2.0"),
    ],
)
def test_unknown_names_get_the_nearest(painted: Path, name: str, error: type[Exception], message: str) -> None:
    open_tfds("tfds:painted", data_dir=painted)
    with pytest.raises(error, match=message):
        open_tfds(name.format(root=painted), data_dir=painted)


# --- what TFDS cannot prepare here


def test_what_needs_tensorflow_says_how_to_prepare_it_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(
        OSError, match="needs TensorFlow to prepare painted/arrays:1.2.0, and only to prepare"
    ) as caught:
        open_tfds("tfds:painted:arrays", data_dir=tmp_path)
    words = shlex.split(str(caught.value).partition("here: ")[2])
    assert words[:2] == ["pip", "install"] and {"tensorflow", "tensorflow-datasets", "array-record"} <= set(words)
    python, flag, program = words[words.index("&&") + 1 :]
    assert (python, flag) == ("python", "-c")
    calls = {ast.unparse(node) for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)}
    builder = f"tfds.builder('painted/arrays:1.2.0', data_dir='{tmp_path}')"
    assert calls == {builder, f"{builder}.download_and_prepare(file_format='array_record')"}
    assert not list(tmp_path.rglob("dataset_info.json"))


def test_other_reasons_are_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="needs the Python module 'cv3' to prepare painted/module:1.2.0: pip install cv3"):
        open_tfds("tfds:painted:module", data_dir=tmp_path)
    with pytest.raises(OSError, match=f"cannot prepare painted/broken:1.2.0 in {tmp_path}: the download is not there"):
        open_tfds("tfds:painted:broken", data_dir=tmp_path)


def test_tfrecord_is_refused_and_a_second_format_is_read(tmp_path: Path) -> None:
    expected = open_tfds("tfds:painted", data_dir=tmp_path)["test"]
    file = expected.directory / "dataset_info.json"
    info = json.loads(file.read_text()) | {"fileFormat": "tfrecord"}
    file.write_text(json.dumps(info))
    command = f"tfds convert_format --dataset_version_dir={expected.directory} --out_file_format=array_record"
    for name in ("tfds:painted", str(expected.directory)):
        with pytest.raises(OSError, match=f"stored as tfrecord; .* apache-beam && {command}"):
            open_tfds(name, data_dir=tmp_path)
    # As `tfds convert_format` leaves it: both formats beside each other.
    file.write_text(json.dumps(info | {"alternativeFileFormats": ["array_record"]}))
    assert open_tfds("tfds:painted", data_dir=tmp_path)["test"].digest == expected.digest


# --- which features


FEATURES = {
    "a": tfds.features.Image(),
    "b": tfds.features.Image(),
    "depth": tfds.features.Image(shape=(None, None, 1), dtype=np.float32),
    "x": tfds.features.ClassLabel(num_classes=3),
    "y": tfds.features.ClassLabel(num_classes=3),
    "filename": tfds.features.Text(),
}


def described(names: str, keys: tuple[str, ...] | None = None) -> Any:
    features = tfds.features.FeaturesDict({name: FEATURES[name] for name in names.split()})
    return SimpleNamespace(info=SimpleNamespace(features=features, supervised_keys=keys, full_name="some/1.0.0"))


def test_features_are_taken_from_supervised_keys_or_are_the_only_ones() -> None:
    assert feature_names(described("a x")) == ("a", "x")
    assert feature_names(described("a depth x filename")) == ("a", "x", "filename")
    assert feature_names(described("a b x y", ("b", "y"))) == ("b", "y")
    assert feature_names(described("a b x", ("b", "filename"))) == ("b", "x")


@pytest.mark.parametrize(
    ("names", "keys", "message"),
    [
        ("a b x", None, "which feature is the image .* None, its features a: Image, b: Image, x: ClassLabel"),
        ("a x y", None, "which feature is the label"),
        ("a filename", ("a", "filename"), r"the label .*\('a', 'filename'\), its features a: Image, filename: Text"),
        ("depth x", ("depth", "x"), "which feature is the image"),
    ],
)
def test_other_features_are_refused_with_a_list(names: str, keys: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        feature_names(described(names, keys))


def test_images_without_labels_are_refused(painted: Path) -> None:
    with pytest.raises(ValueError, match=r"6 of 6 images of 'test' in .* have no label; .* train \(6\), test \(6\)"):
        open_tfds("tfds:painted:unlabelled", data_dir=painted)


# --- what is kept, and what changed


def test_record_files_are_read_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    first = open_tfds("tfds:painted", data_dir=tmp_path, progress=lambda *done: seen.append(done))["train"]
    assert seen == [(20, 20), (6, 6), (9, 9)]
    first.verify()
    with monkeypatch.context() as patch:
        patch.setattr("cnnjax.data.records.parse_record", None)
        again = open_tfds("tfds:painted", data_dir=tmp_path)["train"]
        assert (again.digest, again.names) == (first.digest, first.names)
        again.verify()
        (file,) = first.directory.glob("*train*")
        os.utime(file)
        with pytest.raises(OSError, match="damaged data set"):  # it is read anew, which the patch does not let it
            open_tfds("tfds:painted", data_dir=tmp_path)
    assert open_tfds("tfds:painted", data_dir=tmp_path)["train"].digest == first.digest


def test_an_exchanged_file_is_never_read_under_another_digest(tmp_path: Path) -> None:
    """Even if it has the same size, and TFDS reads it without complaint."""
    outs = []
    for pack, values in (("one", (1, 2, 3)), ("two", (1, 9, 3))):
        for i, value in enumerate(values):
            file = tmp_path / pack / "pets" / "class" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(value))
        outs.append(pack_folder(tmp_path / pack / "pets").out)
    (mine,), (other,) = (list(out.glob("*array_record*")) for out in outs)
    assert mine.stat().st_size == other.stat().st_size
    mine.write_bytes(other.read_bytes())
    source = Records(outs[0])
    assert source.read([0, 2]).shape == (2, 160, 160, 3)
    for act in (lambda: source.read([0, 1]), lambda: source.content(1)):
        with pytest.raises(OSError, match="'class/1.png' is not what it was when the record files were listed; delete"):
            act()


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    source = open_tfds("tfds:painted", data_dir=tmp_path)["train"]
    (file,) = source.directory.glob("*train*")
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(content[:70_000] if damage == "cut" else b"")
    with pytest.raises(OSError, match=f"damaged data set in {source.directory}"):
        open_tfds("tfds:painted", data_dir=tmp_path)


def test_bad_images_are_named_or_skipped(painted: Path) -> None:
    source = open_tfds("tfds:painted:bad", image_size=(7, 6), data_dir=painted)["train"]
    bad = ["003.png", "005.png"]
    for act in (source.verify, lambda: source.read(range(20))):
        with pytest.raises(ImageError, match="2 images of 'train' in .* cannot be decoded") as caught:
            act()
        assert sorted(line.split(": ")[0].strip() for line in str(caught.value).splitlines()[1:]) == bad
    kept = open_tfds("tfds:painted:bad", image_size=(7, 6), data_dir=painted, on_error="skip")["train"]
    assert len(kept) == 18 and sorted(line.split(": ")[0] for line in kept.skipped) == bad
    good = [i for i, name in enumerate(source.names) if name not in bad]
    np.testing.assert_array_equal(kept.read(range(18)), source.read(good))
    assert kept.digest == source.take(good).digest != source.digest
    kept.verify()
