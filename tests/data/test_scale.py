"""Numbers that are not 0 to 255: told apart from dark images, and mapped where a scale says how."""

import io
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from cnnjax import ImageClassifier
from cnnjax.classifier.command import Evaluate, Predict, evaluate, predict
from cnnjax.classifier.fitting import Fit, fit
from cnnjax.classifier.training import Training
from cnnjax.data import Folder, InMemory, open_data, pack_folder
from cnnjax.data.decoded import DecodedFormat
from cnnjax.data.pixels import ImageError, checked_scale, decode
from cnnjax.fit import Recipe

TWELVE = np.random.default_rng(0).integers(0, 4096, (6, 5, 3)).astype(np.uint16)
TWELVE[0, 0] = 0, 4095, 2048
MAPPED = np.rint(TWELVE / 4095 * 255).astype(np.uint8)


def png(values):
    """A PNG of 16 bits, of RGB, RGBA or grey values."""
    colours = values[:, :, [2, 1, 0, *range(3, values.shape[2])]] if values.ndim == 3 else values
    return cv2.imencode(".png", colours)[1].tobytes()


@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba"])
def test_12_bits_in_a_16_bit_file_are_refused_and_mapped_where_that_is_asked(kind):
    values = {"grey": TWELVE[..., 0], "rgb": TWELVE, "rgba": np.dstack([TWELVE, np.full((6, 5), 65535, np.uint16)])}[
        kind
    ]
    expected = MAPPED[..., :1].repeat(3, 2) if kind == "grey" else MAPPED
    most = values[..., :3].max() if values.ndim == 3 else values.max()
    with pytest.raises(ImageError, match=rf"holds values 0 to {most} of 16 bits: looks like 12-bit data.*0:4095 \(or"):
        decode(png(values))
    np.testing.assert_array_equal(decode(png(values), (0, 4095)), expected)
    assert decode(png(values), (0, 65535)).max() == round(most / 257)
    with pytest.raises(ImageError, match="outside of the scale 0:1023"):
        decode(png(values), (0, 1023))


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3), (9, 7, 4)])
def test_ordinary_16_bit_files_give_what_pillow_gives(shape):
    values = np.random.default_rng(1).integers(0, 65536, shape).astype(np.uint16)
    found = decode(png(values))
    with Image.open(io.BytesIO(png(values))) as image:
        theirs = np.asarray(image.convert("RGB")) if len(shape) == 3 else np.asarray(image, np.int32)[..., None] // 256
    np.testing.assert_array_equal(found, np.broadcast_to(theirs, (9, 7, 3)))


def test_black_is_black_and_8_bits_have_no_scale():
    assert not decode(png(np.zeros((4, 4, 3), np.uint16))).any()
    plain = png(MAPPED)
    np.testing.assert_array_equal(decode(plain, (0, 4095)), decode(plain))


@pytest.fixture
def folder(tmp_path):
    for name, shift in (("cat", 0), ("dog", 1)):
        os.makedirs(tmp_path / "set" / name)
        for k in range(4):
            (tmp_path / "set" / name / f"{k}.png").write_bytes(png(np.roll(TWELVE, (shift, k), (0, 1))))
    return tmp_path / "set"


def test_a_folder_and_its_pack_go_by_the_scale(folder, tmp_path):
    plain = Folder(folder, image_size=(6, 5))
    with pytest.raises(ImageError, match=r"8 images .* cannot be decoded(?s:.*)0:4095"):
        plain.verify()
    sources = open_data(folder, (6, 5), scale="0:4095")
    whole = Folder(folder, image_size=(6, 5), scale=(0, 4095))
    np.testing.assert_array_equal(whole.read([0])[0], MAPPED)
    other = Folder(folder, image_size=(6, 5), scale="0:65535")
    assert len({whole.digest, other.digest, plain.digest}) == 3
    with pytest.raises(ImageError, match="8 of 8 files"):
        pack_folder(folder, tmp_path / "refused")
    for kept in (None, DecodedFormat(), DecodedFormat((6, 5))):
        out = pack_folder(folder, tmp_path / "packed", decoded=kept, scale="0:4095").out
        packed = open_data(out, (6, 5), scale="0:4095")
        for split, source in sources.items():
            source.verify(), packed[split].verify()
            assert packed[split].digest == source.digest
            rows = range(len(source))
            np.testing.assert_array_equal(packed[split].read(rows), source.read(rows))
        with pytest.raises(ImageError, match="12-bit"):
            open_data(out, (6, 5))["train"].verify()
        with pytest.raises(ImageError, match="12-bit"):
            open_data(out, (6, 5))["train"].read([0])
    with pytest.raises(ValueError, match="begun with the scale"):
        pack_folder(folder, tmp_path / "packed")


def test_floats_of_0_to_1_are_refused_by_sources_and_mapped_where_that_is_asked():
    floats = np.random.default_rng(2).random((3, 4, 4, 3), np.float32)
    floats[0, 0, 0] = 0, 1, 0.5
    with pytest.raises(ValueError, match=r"expected values in 0..255, found floats from 0 to 1, .*scale=\(0, 1\)"):
        InMemory(floats, [0, 1, 0], "ab")
    np.testing.assert_allclose(InMemory(floats, [0, 1, 0], "ab", scale=(0, 1)).read(range(3)), 255 * floats, rtol=1e-6)
    np.testing.assert_array_equal(InMemory(floats, [0, 1, 0], "ab", scale="0:255").read(range(3)), floats)
    np.testing.assert_allclose(
        InMemory(2 * floats - 1, [0, 1, 0], "ab", scale=(-1, 1)).read(range(3)), 255 * floats, rtol=1e-5, atol=1e-4
    )
    for most in (1.00001, 1.2):  # resized with overshoot, or made brighter
        with pytest.raises(ValueError, match=r"nearly black; give scale=\(0, 1\)"):
            InMemory(most * floats, [0, 1, 0], "ab")
    twelve = InMemory(TWELVE[None], [0], "ab", scale=(0, 4095))
    np.testing.assert_allclose(twelve.read([0])[0], TWELVE * (255 / 4095), rtol=1e-6)
    assert not InMemory(np.zeros((1, 4, 4, 3), np.float32), [0], "ab").read([0]).any()  # black, whatever the scale
    InMemory(np.ones((1, 4, 4, 3), np.uint8), [0], "ab")
    for values, found in ((2 * floats - 1, "found -1"), (TWELVE[None], "found uint16")):
        with pytest.raises(ValueError, match=rf"{found}.*need a scale"):
            InMemory(values, [0] * len(values), "ab")
    for bad in (np.nan, np.inf, 1.5):
        floats[1, 1, 1, 1] = bad
        with pytest.raises(ValueError, match=r"images: holds values .* outside of the scale 0:1"):
            InMemory(floats, [0, 1, 0], "ab", scale=(0, 1))


def test_a_classifier_keeps_the_scale_of_its_files(folder, tmp_path):
    options = dict(image_size=32, head="linear", widths=(4, 8))
    classifier = ImageClassifier("lecture_cnn", ("cat", "dog"), scale="0:4095", **options)
    classifier.save(tmp_path / "saved")
    loaded = ImageClassifier.load(tmp_path / "saved")
    assert loaded.config == classifier.config and loaded.config.scale == (0, 4095)
    (tmp_path / "8bit.png").write_bytes(png(MAPPED))
    eight = classifier.predict_logits([tmp_path / "8bit.png"])
    np.testing.assert_allclose(loaded.predict_logits([folder / "cat" / "0.png"]), eight, rtol=1e-6)
    np.testing.assert_allclose(loaded.predict_logits(TWELVE[None]), eight, rtol=0.1, atol=1e-2)
    plain = ImageClassifier("lecture_cnn", ("cat", "dog"), **options)
    plain.save(tmp_path / "plain")
    assert "scale" not in (tmp_path / "plain" / "config.json").read_text()
    assert ImageClassifier.load(tmp_path / "plain").config.scale is None
    with pytest.raises(ImageError, match="12-bit"):
        plain.predict([folder / "cat" / "0.png"])
    (skipped,) = plain.predict([folder / "cat" / "0.png"], on_error="skip")
    assert "12-bit" in skipped.error
    np.testing.assert_allclose(plain.predict_logits([folder / "cat" / "0.png"], scale="0:4095"), eight, rtol=1e-6)


def test_a_classifier_is_not_trained_on_files_by_a_scale_that_it_would_not_keep(folder):
    options = dict(image_size=32, head="linear", widths=(4, 8))
    source = Folder(folder, image_size=(32, 32), scale="0:8191")
    for own in (None, "0:4095"):
        classifier = ImageClassifier("lecture_cnn", ("cat", "dog"), scale=own, **options)
        with pytest.raises(ValueError, match=r"by the scale 0:8191, the classifier by .*scale=\(0.0, 8191.0\)"):
            classifier.fit(source, method="features", epochs=1)
    classifier = ImageClassifier("lecture_cnn", ("cat", "dog"), scale="0:8191", **options)
    classifier.fit(source, method="features", epochs=1, batch_size=2)


def test_predict_refuses_floats_of_0_to_1_and_takes_them_by_a_scale():
    classifier = ImageClassifier("lecture_cnn", ("cat", "dog"), image_size=32, head="linear", widths=(4, 8))
    bytes_ = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=r"scale=\(0, 1\)"):
        classifier.predict(bytes_ / np.float32(255))
    given = classifier.predict_logits(bytes_ / np.float32(255), scale=(0, 1))
    np.testing.assert_allclose(given, classifier.predict_logits(bytes_), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="a source has its own"):
        classifier.predict(InMemory(bytes_, [0, 1], ("cat", "dog")), scale=(0, 1))


@pytest.mark.parametrize("wrong", ["0", "1:0", "0:0", "a:b", "0:inf", (0, 1, 2), 5, "0:nan"])
def test_what_is_no_scale_is_refused(wrong):
    with pytest.raises(ValueError, match="expected LOW:HIGH, two numbers, the lower first"):
        checked_scale(wrong)


def test_the_commands_take_the_scale_and_keep_it(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cnnjax.classifier.command.keep_programs", lambda: None)
    monkeypatch.setattr("cnnjax.classifier.fitting.keep_programs", lambda: None)
    recipe = Recipe("scratch", epochs=1, batch_size=4)
    kept = Training(store=tmp_path / "store")
    options = dict(data=str(folder), backbone="lecture_cnn", image_size=48, head="linear", recipe=recipe)
    with pytest.raises(ImageError, match="0:4095"):
        fit(Fit(**options, out=tmp_path / "run", training=kept))
    out = fit(Fit(**options, scale="0:4095", out=tmp_path / "run", training=kept))
    capsys.readouterr()
    predict(Predict(classifier=out / "classifier", files=(folder / "cat",), json=True))
    assert capsys.readouterr().out.count('"class"') == 4
    evaluate(Evaluate(classifier=out / "classifier", data=str(folder), split="all", samples=0))
    assert "8 examples, 2 classes" in capsys.readouterr().out
    with pytest.raises(ImageError, match="outside of the scale 0:1023"):
        predict(Predict(classifier=out / "classifier", files=(folder / "cat",), scale="0:1023"))
