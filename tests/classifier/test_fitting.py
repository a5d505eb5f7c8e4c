"""`cnnjax fit` from the folder of images to the saved classifier, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cnnjax import ImageClassifier, Recipe
from cnnjax.cli import main
from cnnjax.data import Folder
from cnnjax.metrics.journal import read
from cnnjax.show import rates


@pytest.fixture(scope="module")
def run(shapes_folder, tmp_path_factory):
    """A run folder of a network trained from scratch."""
    base = tmp_path_factory.mktemp("fit")
    options = ["--backbone", "lecture_cnn", "--image-size", "48", "--head", "linear", "--method", "scratch"]
    options += ["--epochs", "6", "--batch-size", "8", "--optimizer", "adam", "--ema", "0.9", "--schedule", "cosine"]
    command = ["fit", "--data", str(shapes_folder), *options, "--out", f"{base}/run", "--store", f"{base}/store"]
    main(command)
    return base / "run", command


def test_the_run_folder_holds_classifier_metrics_and_images(run):
    out, _ = run
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    expected = {"classifier", "checkpoints", "config.json", "metrics.jsonl", "report.json", "curves.png", "report.png"}
    assert names == expected
    assert [record["epoch"] for record in read(out / "metrics.jsonl")] == list(range(6))
    for name in ("curves.png", "report.png"):
        with Image.open(out / name) as image:
            assert image.width > 500
    assert json.loads((out / "config.json").read_text())["recipe"]["ema"] == 0.9


def test_the_saved_classifier_is_the_trained_one(run, shapes_folder):
    """What it says in a fresh object is what the report counted."""
    out, _ = run
    classifier = ImageClassifier.load(out / "classifier")
    report = json.loads((out / "report.json").read_text())["test"]
    found = classifier.evaluate(Folder(shapes_folder, "test", (48, 48)))
    assert found.accuracy == report["accuracy"] == classifier.metrics["test_accuracy"] >= 0.9
    assert found.loss == pytest.approx(report["loss"], rel=1e-4)
    np.testing.assert_array_equal(found.confusion, report["confusion"])
    assert [record["phase"] for record in classifier.history] == ["all"] * 6


def test_the_commands_after_it_read_what_it_wrote(run, shapes_folder, capsys):
    out, _ = run
    main(["evaluate", f"{out}/classifier", "--data", str(shapes_folder)])
    assert "18 examples, 2 classes" in capsys.readouterr().out
    main(["predict", f"{out}/classifier", str(shapes_folder / "test" / "down"), "--json"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 9 and sum(line["class"] == "down" for line in found) >= 7


def test_the_same_command_gives_the_same_weights_and_another_is_refused(run, tmp_path, capsys):
    out, command = run
    before = (out / "classifier" / "model.safetensors").read_bytes()
    main(command)
    assert (out / "classifier" / "model.safetensors").read_bytes() == before
    assert len(read(out / "metrics.jsonl")) == 6
    with pytest.raises(SystemExit):
        main([*command, "--seed", "1"])
    assert "holds a run with another configuration" in " ".join(capsys.readouterr().err.split())


def test_gradients_of_ones_own_train_and_their_code_is_part_of_the_run(run, tmp_path, capsys):
    _, command = run
    own = tmp_path / "own.py"
    own.write_text("""
import jax

def halved(objective, state):
    gradients, result = jax.grad(objective, has_aux=True)(state.trainable)
    return jax.tree.map(lambda g: g / 2, gradients), result
""")
    changed = {"adam": "sgd", "6": "1"}
    words = [changed.get(word, word) for word in command[: command.index("--out")]] + ["--store", f"{tmp_path}/store"]
    half = [*words, "--gradient-fn", f"{own}:halved", "--learning-rate", "0.02", "--out", f"{tmp_path}/half"]
    main(half)
    main([*words, "--learning-rate", "0.01", "--out", f"{tmp_path}/plain"])
    kept = [ImageClassifier.load(tmp_path / name / "classifier").leaves for name in ("half", "plain")]
    for path, value in kept[0].items():
        np.testing.assert_allclose(value, kept[1][path], rtol=1e-4, atol=1e-6, err_msg=path)
    assert "gradient_fn" not in json.loads((tmp_path / "plain" / "config.json").read_text())["recipe"]
    own.write_text(own.read_text().replace("g / 2", "g / 3"))
    with pytest.raises(SystemExit):
        main(half)
    assert "holds a run with another configuration" in " ".join(capsys.readouterr().err.split())


def test_the_range_test_draws_and_trains_nothing(run, tmp_path, capsys, monkeypatch):
    """The recipe's schedule does not change the rates that are tried."""
    seen, plot = [], rates.plot
    monkeypatch.setattr(rates, "plot", lambda test, *rest: (seen.append(test), plot(test, *rest)))
    _, command = run
    command = command[: command.index("--out")]
    for schedule in ("cosine", "constant"):
        folders = ["--out", f"{tmp_path}/{schedule}", "--store", f"{tmp_path}/store"]
        main([*(schedule if word == "cosine" else word for word in command), *folders, "--find-learning-rate"])
        assert "rates.png" in capsys.readouterr().out and (tmp_path / schedule / "rates.png").exists()
        assert not (tmp_path / schedule / "classifier").exists()
    np.testing.assert_array_equal(seen[0].losses, seen[1].losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "features"], "features freezes the backbone, which has random weights without --weights"),
        (["--weights", "no.h5"], "no weights file no.h5"),
        (["--method", "scratch", "--unfreeze-from", "conv2d_2"], "of the method finetune; this is 'scratch'"),
        (["--method", "scratch", "--learning-rate", "0"], "a learning rate must be positive, not 0"),
        (["--method", "scratch", "--patience", "1", "--backbone", "lecture_cnn", "--image-size", "48"], "validation"),
        (["--method", "scratch", "--backbone", "lecture_cn"], "did you mean 'lecture_cnn'?"),
    ],
)
def test_wrong_requests_are_told_in_a_sentence(options, message, shapes_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(
            ["fit", "--data", str(shapes_folder), *options, "--out", f"{tmp_path}/run", "--store", f"{tmp_path}/store"]
        )
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split()) and "Traceback" not in captured.err
    assert not (tmp_path / "run").exists()  # it would refuse the right options


def test_a_head_for_two_classes_refuses_a_folder_with_three(shapes_folder, tmp_path):
    shutil.copytree(shapes_folder, tmp_path / "three")
    for split in ("train", "test"):
        shutil.copytree(tmp_path / "three" / split / "down", tmp_path / "three" / split / "left")
    classifier = ImageClassifier("lecture_cnn", ("across", "down"), image_size=48, head="linear", widths=(4, 8))
    before = classifier.leaves
    with pytest.raises(ValueError, match="the source's classes must be the classifier's .* it has left"):
        classifier.fit(Folder(tmp_path / "three", "train", (48, 48)), method="scratch")
    train = Folder(shapes_folder, "train", (48, 48))
    with pytest.raises(ValueError, match="a recipe has no 'epoch'; did you mean 'epochs'"):
        classifier.fit(train, epoch=3)
    with pytest.raises(ValueError, match="give a recipe or its fields, not both"):
        classifier.fit(train, recipe=Recipe(), epochs=3)
    for path, value in classifier.leaves.items():
        np.testing.assert_array_equal(value, before[path])
