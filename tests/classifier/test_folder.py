"""Saving, loading, and what happens to folders that are not whole."""

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cnnjax.classifier import ImageClassifier, SavedClassifierError

IMAGES = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), np.uint8)


@pytest.fixture
def saved(small, tmp_path):
    small.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_round_trip_keeps_every_bit(pets, photographs, tmp_path):
    rng = np.random.default_rng(0)
    trained = pets.with_leaves(
        {p: x + rng.normal(0, 0.01, x.shape).astype(np.float32) for p, x in pets.leaves.items() if "var" not in p}
    )
    before = trained.predict_logits(photographs)
    trained.save(tmp_path / "pets")
    again = ImageClassifier.load(tmp_path / "pets")
    assert again.config == trained.config and again.leaves.keys() == trained.leaves.keys()
    assert all(
        np.array_equal(again.leaves[p], x) and again.leaves[p].dtype == x.dtype for p, x in trained.leaves.items()
    )

    tensors = load_file(tmp_path / "pets/model.safetensors")
    assert tensors.keys() == trained.leaves.keys() and not any("rng" in path for path in tensors)
    assert {"backbone/conv_pw_13_bn/mean", "backbone/conv_pw_13_bn/var", "head/dense_1/bias"} <= tensors.keys()
    # Another process has neither the weights file nor an oracle.
    code = (
        "import sys, numpy as np, cnnjax.classifier as c;"
        "np.save(sys.argv[2], c.ImageClassifier.load(sys.argv[1]).predict_logits(sys.argv[3:]));"
        "assert not {'keras', 'tensorflow', 'matplotlib', 'h5py'} & set(sys.modules), sys.modules.keys()"
    )
    out = tmp_path / "logits.npy"
    moved = (tmp_path / "pets").rename(tmp_path / "sent")
    subprocess.run([sys.executable, "-c", code, moved, out, *photographs], check=True, timeout=120)
    np.testing.assert_array_equal(np.load(out), before)


def test_what_was_measured_is_kept(small, saved):
    again = ImageClassifier.load(saved)
    assert again.metrics == {"test": {"accuracy": 0.75, "auc": None}} and again.history == [{"epoch": 0, "loss": 0.5}]
    about = json.loads((saved / "config.json").read_text())
    assert about["classes"] == ["a", "b", "c"] and about["options"] == {"widths": [4, 8]} and about["version"] == 1
    assert set(about["written_by"]) == {"cnnjax", "jax"}
    assert again.config == small.config and again.config.options["widths"] == (4, 8)


def test_leaves_of_16_bits_stay_so(small, tmp_path):
    half = small.with_leaves({p: x.astype(jnp.bfloat16) for p, x in small.leaves.items() if p.endswith("kernel")})
    half.save(tmp_path / "half")
    again = ImageClassifier.load(tmp_path / "half")
    assert {p: x.dtype for p, x in again.leaves.items()} == {p: x.dtype for p, x in half.leaves.items()}
    assert again.leaves["head/dense/kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(again.predict_logits(IMAGES), half.predict_logits(IMAGES))
    assert not np.array_equal(half.predict_logits(IMAGES), small.predict_logits(IMAGES))
    assert load_file(tmp_path / "half/model.safetensors")["head/dense/bias"].dtype == np.float32


def _config(**changes):
    def damage(folder):
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def _without(name):
    def damage(folder):
        file = folder / "config.json"
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != name}))

    return damage


def _weights(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def _text(name, text):
    return lambda folder: (folder / name).write_bytes(text)


def _cut(name, part):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(part * len(content))])

    return damage


def _several(tensors):
    tensors["head/dense/scale"] = tensors.pop("head/dense/kernel")
    tensors["backbone/conv2d_1/bias"] = np.zeros(5, np.float32)
    tensors["backbone/conv2d_2/bias"] = np.zeros(8, np.float64)


DAMAGES = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "lacks model.safetensors: copy the whole folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "lacks config.json"),
    "no metrics": (lambda f: (f / "metrics.json").unlink(), "lacks metrics.json"),
    "a folder as file": (lambda f: (f / "metrics.json").unlink() or (f / "metrics.json").mkdir(), "lacks metrics.json"),
    "config cut": (_cut("config.json", 0.5), "config.json is damaged .*copy the folder again"),
    "config a list": (_text("config.json", b"[]"), "config.json is damaged .expected an object, found list"),
    "config deep": (_text("config.json", b"[" * 200_000), "config.json is damaged"),
    "config bytes": (_text("config.json", b"\xff\xfe\x00"), "config.json is damaged"),
    "another config": (_text("config.json", b"{}"), "is no config of a saved classifier"),
    "newer": (_config(version=2), "is of format 2, written by cnnjax .*reads up to 1: install a newer one"),
    "strange version": (_config(version="1"), "is of format '1'"),
    "no backbone": (_without("backbone"), "config.json: 'backbone' is missing"),
    "unknown key": (_config(code="import os"), "config.json: 'code' is unknown"),
    "architecture": (_config(backbone="os.system"), "config.json: no backbone 'os.system'; did you mean"),
    "architecture number": (_config(backbone=3), "config.json: backbone: expected a name, found 3"),
    "head": (_config(head="print"), "config.json: no head 'print'"),
    "preprocessing": (_config(preprocessing="eval"), "config.json: no preprocessing 'eval'"),
    "size": (_config(image_size=1e9), "config.json: image_size: expected a whole number"),
    "too small": (_config(image_size=4), "config.json describes no model: .*too small"),
    "option": (_config(options={"widths": [4, 8], "rngs": 1}), "config.json: lecture_cnn has no option 'rngs'"),
    "option's kind": (_config(options={"widths": "many"}), "widths of lecture_cnn: expected up to 16 whole numbers"),
    "options": (_config(options=[1]), "config.json: options: expected values by name"),
    "widths": (_config(options={"widths": [4, 9]}), r"conv2d_2/kernel: expected float32\[3, 3, 4, 9\], found"),
    "fewer classes": (_config(classes=["a", "b"]), "2 class names need 1 logits, the weights give 3"),
    "more classes": (_config(classes=list("abcd")), "4 class names need 4 logits, the weights give 3"),
    "classes twice": (_config(classes=["a", "b", "a"]), "'a' given more than once"),
    "classes numbers": (_config(classes=[1, 2, 3]), "class names: expected a list of texts"),
    "types": (_config(types={"head/dense/bias": "object"}), "'types' must say bfloat16 or float16"),
    "types unlike": (_config(types={"head/dense/bias": "bfloat16"}), r"expected bfloat16\[3\], found float32\[3\]"),
    "types unknown": (_config(types={"x": "bfloat16"}), "it names types of x, which the model has not"),
    "widths beyond bounds": (_config(options={"widths": [10**40, 8]}), "widths of lecture_cnn: expected up to 16"),
    "too many features": (
        _config(image_size=2048, head="top", options={"widths": [8]}),
        "describes no model: lecture_cnn gives 8,372,232 features",
    ),
    "metrics": (_text("metrics.json", b'{"metrics": 1}'), "metrics.json must hold 'metrics' and 'history'"),
    "metrics cut": (_cut("metrics.json", 0.5), "metrics.json is damaged"),
    "weights empty": (_text("model.safetensors", b""), "model.safetensors is damaged or cut short"),
    "weights cut": (_cut("model.safetensors", 0.9), "model.safetensors is damaged or cut short"),
    "weights header cut": (_cut("model.safetensors", 0.01), "model.safetensors is damaged or cut short"),
    "a pickle": (_text("model.safetensors", b"\x80\x04cos\nsystem\n."), "model.safetensors is damaged or cut short"),
    "NaN": (
        _weights(lambda t: t["head/dense/kernel"].__setitem__((0, 0), np.nan)),
        "head/dense/kernel: 1 of 24 values are NaN or infinite",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folders_are_refused_with_what_to_do(name, saved):
    damage, message = DAMAGES[name]
    damage(saved)
    with pytest.raises(SavedClassifierError, match=rf"(?s)saved.*{message}"):
        ImageClassifier.load(saved)


def test_all_leaves_that_do_not_fit_are_listed(saved):
    _weights(_several)(saved)
    with pytest.raises(SavedClassifierError) as refused:
        ImageClassifier.load(saved)
    assert [line.strip() for line in str(refused.value).splitlines()[1:]] == [
        "head/dense/kernel: missing from the file",
        "head/dense/scale: not in the model",
        "backbone/conv2d_1/bias: expected float32[4], found float32[5]",
        "backbone/conv2d_2/bias: expected float32[8], found float64[8]",
    ]


def test_folders_that_are_none_are_named(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match="did you mean .*saved"):
        ImageClassifier.load(tmp_path / "savd")
    with pytest.raises(SavedClassifierError, match="is no saved classifier: it holds saved"):
        ImageClassifier.load(tmp_path)
    with pytest.raises(NotADirectoryError, match="config.json"):
        ImageClassifier.load(saved / "config.json")


def test_only_a_saved_classifier_is_replaced(small, saved, tmp_path):
    small.with_leaves({}, metrics={"run": 2}).save(saved)
    assert ImageClassifier.load(saved).metrics == {"run": 2}
    assert os.listdir(tmp_path) == ["saved"] and len(os.listdir(saved)) == 3
    mask = os.umask(0)
    os.umask(mask)
    assert saved.stat().st_mode & 0o777 == 0o777 & ~mask

    (saved / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds notes.txt beside the saved classifier"):
        small.save(saved)
    (tmp_path / "work").mkdir()
    (tmp_path / "work/config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="work exists and is no saved classifier .it holds config.json"):
        small.save(tmp_path / "work")
    with pytest.raises(FileExistsError, match="exists and is no folder"):
        small.save(saved / "notes.txt")
    (tmp_path / "link").symlink_to(saved)
    with pytest.raises(FileExistsError, match="exists and is no folder"):
        small.save(tmp_path / "link")
    assert (saved / "notes.txt").read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["link", "saved", "work"]


@pytest.mark.parametrize("fails", ["fsync", "rename"])
def test_a_save_that_fails_leaves_the_old_one(fails, small, saved, tmp_path, monkeypatch):
    owner = os if fails == "fsync" else type(tmp_path)
    original, before, calls = getattr(owner, fails), (saved / "metrics.json").read_bytes(), []

    def full(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return original(*args)

    monkeypatch.setattr(owner, fails, full)
    with pytest.raises(OSError, match="No space left"):
        small.with_leaves({}, metrics={"run": 2}).save(saved)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["saved"] and (saved / "metrics.json").read_bytes() == before
    np.testing.assert_array_equal(
        ImageClassifier.load(saved).leaves["head/dense/bias"], small.leaves["head/dense/bias"]
    )


def test_what_cannot_be_loaded_is_not_saved(small, tmp_path):
    bias = np.array([0, np.nan, np.inf], np.float32)
    with pytest.raises(ValueError, match="head/dense/bias: 2 of 3 values are NaN"):
        small.with_leaves({"head/dense/bias": bias}).save(tmp_path / "bad")
    with pytest.raises(ValueError, match="metrics and history must be plain"):
        small.with_leaves({}, metrics={"when": object()}).save(tmp_path / "bad")
    assert not os.listdir(tmp_path)
