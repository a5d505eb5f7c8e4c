"""`cnnjax evaluate` and `cnnjax predict`."""

import json

import pytest
import tyro
from PIL import Image

from cnnjax.classifier import command
from cnnjax.data import Folder, ImageError, open_splits
from cnnjax.metrics import Report


@pytest.fixture
def saved(stripes, tmp_path):
    stripes.save(tmp_path / "stripes")
    return tmp_path / "stripes"


def evaluate(*words):
    command.evaluate(tyro.cli(command.Evaluate, args=[str(word) for word in words]))


def predict(*words):
    command.predict(tyro.cli(command.Predict, args=[str(word) for word in words]))


def test_evaluate_reports_a_split(saved, stripes, shapes_folder, tmp_path, capsys):
    evaluate(saved, "--data", shapes_folder, "--out", tmp_path / "new/report.json")
    said = capsys.readouterr().out
    found = Report.from_json(json.loads((tmp_path / "new/report.json").read_text()))
    expected = stripes.evaluate(open_splits(shapes_folder, (32, 32))["test"])
    assert found.count == 18 and found.accuracy == expected.accuracy and found.loss == pytest.approx(expected.loss)
    assert "18 test" in said and "95 % interval" in said and f"{100 * found.accuracy:.1f} %" in said
    evaluate(saved, "--data", shapes_folder, "--split", "train", "--samples", "0", "--out", tmp_path / "report.png")
    said = capsys.readouterr().out
    assert "44 examples" in said and "interval" not in said
    with Image.open(tmp_path / "report.png") as image:
        assert image.width > 500


def test_evaluate_takes_a_folder_of_classes_in_part_or_whole(saved, shapes_folder, capsys):
    whole = shapes_folder / "train"
    evaluate(saved, "--data", whole, "--split", "all", "--samples", "0")
    assert "44 examples" in capsys.readouterr().out
    evaluate(saved, "--data", whole, "--samples", "0")
    assert "6 examples" in capsys.readouterr().out  # 15 % of 22 a class
    with pytest.raises(LookupError, match="no split 'tset' in .*; there are train, validation, test"):
        evaluate(saved, "--data", whole, "--split", "tset")
    with pytest.raises(FileNotFoundError, match="no split 'all'"):
        evaluate(saved, "--data", shapes_folder, "--split", "all")
    with pytest.raises(FileNotFoundError, match="did you mean"):
        evaluate(saved.with_name("stripe"), "--data", whole)
    with pytest.raises(ValueError, match="--out must be a .png or .json file"):
        command.Evaluate(classifier=saved, data="data", out=saved / "report.pdf")


def test_predict_prints_a_table(saved, stripes, shapes_folder, capsys):
    files = [str(shapes_folder / "test/down" / f"{k}.png") for k in (3, 1)]
    predict(saved, *files)
    header, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    expected = stripes.predict(files)
    assert header == ["path", "class", "probability"]
    assert lines == [[p.path, p.class_name, f"{p.probability:.4f}"] for p in expected]
    predict(saved, shapes_folder / "test", "--top", "2")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(lines) == 36 and {line[1] for line in lines[:2]} == {"across", "down"}
    assert [line[0] for line in lines[::2]] == [
        str(shapes_folder / "test" / name) for name in Folder(shapes_folder, "test").names
    ]
    with pytest.raises(ValueError, match="top must be at least 1"):
        command.Predict(classifier=saved, files=(), top=0)


def test_predict_prints_json_lines_and_tells_of_bad_images(saved, stripes, shapes_folder, tmp_path, capsys):
    bad, good = tmp_path / "a bad\none.png", shapes_folder / "test/down/1.png"
    bad.write_bytes(b"no image")
    with pytest.raises(ImageError, match="1 image cannot be decoded"):
        predict(saved, bad, good)
    predict(saved, bad, good, "--json", "--on-error", "skip")
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["path"] == str(bad) and "not an image" in first["error"] and "class" not in first
    assert second == stripes.predict([good])[0].to_json()
    assert set(second["probabilities"]) == {"across", "down"}
    predict(saved, good, "--json", "--top", "1")
    assert list(json.loads(capsys.readouterr().out)["probabilities"]) == [second["class"]]
    predict(saved, bad, good, "--on-error", "skip")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "\\x0a" in lines[1] and "not an image" in lines[1]
