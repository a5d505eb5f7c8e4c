"""From drawn images with known answers to a saved model, by the command line: a count, an angle, several labels."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, mean_absolute_error

from cnnjax import Classification, ImageClassifier, MultiLabel, Regression, Task
from cnnjax.classifier import SavedClassifierError
from cnnjax.cli import main
from cnnjax.data import InMemory, open_labels
from cnnjax.metrics import Journal
from cnnjax.metrics.journal import read

SIZE = 32
OPTIONS = [
    "--backbone", "cifar_cnn", "--image-size", str(SIZE), "--head", "linear", "--method", "scratch", "--batch-size",
    "8", "--optimizer", "adam",
]  # fmt: skip
pytestmark = pytest.mark.usefixtures("compiled_fast")


def drawn(rng):
    """Squares in a grid and, of two colours, a bar at an angle: the image and what is on it."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    count = int(rng.integers(0, 7))
    for cell in rng.permutation(16)[:count]:
        row, column = divmod(int(cell), 4)
        pixels[8 * row + 1 : 8 * row + 7, 8 * column + 1 : 8 * column + 7, 0] = 255
    angle = rng.uniform(-60, 60)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    turn = np.deg2rad(angle)
    pixels[..., 1][np.abs(x * np.cos(turn) - y * np.sin(turn)) < 2] = 255
    blue = rng.random() < 0.4
    pixels[..., 2] = 200 * blue
    return pixels, {"count": count, "angle": round(angle, 3), "many": int(count > 3), "blue": int(blue)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng, known = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0), []
    for k in range(130):
        pixels, facts = drawn(rng)
        Image.fromarray(pixels).save(root / f"{k:03}.png")
        known.append(
            {"file": f"{k:03}.png", "split": "train" if k < 90 else "validation" if k < 110 else "test"} | facts
        )
    lines = [",".join(known[0]), *(",".join(map(str, line.values())) for line in known)]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root, known


def fitted(folder, base, *more):
    command = ["fit", "--data", str(folder), "--labels", str(folder / "labels.csv"), *OPTIONS, *more]
    main([*command, "--out", str(base / "run"), "--store", str(base / "store")])
    return base / "run"


def test_a_count_and_an_angle_are_learned_in_their_units(folder, tmp_path, capsys):
    root, known = folder
    run = fitted(
        root, tmp_path, "--task", "regression", "--targets", "count", "angle", "--units", "squares", "degrees",
        "--epochs", "12", "--keep", "best",
    )  # fmt: skip
    report = json.loads((run / "report.json").read_text())["test"]
    count, angle = report["numbers"]
    spread = np.std([line["angle"] for line in known])
    assert count["unit"] == "squares" and count["mae"] < 0.9 and count["r2"] > 0.6
    assert angle["unit"] == "degrees" and angle["mae"] < 0.4 * spread
    last = read(run / "metrics.jsonl")[-1]
    assert {"train_mae_count", "validation_mae_angle", "validation_rmse_angle", "validation_r2"} <= set(last)
    assert "epoch 12, all: train loss" in (out := capsys.readouterr().out) and "squares" in out
    for name in ("curves.png", "report.png"):
        with Image.open(run / name) as image:
            assert image.width > 500
    # The saved model says the same, also of single files.
    classifier = ImageClassifier.load(run / "classifier")
    assert classifier.task == Regression(
        ("count", "angle"), ("squares", "degrees"), mean=classifier.task.mean, deviation=classifier.task.deviation
    )
    train = [line for line in known if line["split"] == "train"]
    assert classifier.task.mean[0] == pytest.approx(np.mean([line["count"] for line in train]))
    test = [line for line in known if line["split"] == "test"]
    found = classifier.predict([root / line["file"] for line in test])
    values = [[p.values["count"], p.values["angle"]] for p in found]
    wanted = [[line["count"], line["angle"]] for line in test]
    assert mean_absolute_error(wanted, values, multioutput="raw_values") == pytest.approx(
        [count["mae"], angle["mae"]], rel=1e-3
    )
    main(["evaluate", f"{run}/classifier", "--data", str(root), "--labels", f"{root}/labels.csv", "--out",
          f"{tmp_path}/again.json"])  # fmt: skip
    again = json.loads((tmp_path / "again.json").read_text())
    assert [s["mae"] for s in again["numbers"]] == pytest.approx([count["mae"], angle["mae"]], rel=1e-3)
    capsys.readouterr()
    main(["predict", f"{run}/classifier", str(root / "000.png")])
    assert "count (squares)" in capsys.readouterr().out
    main(["predict", f"{run}/classifier", str(root / "000.png"), "--json"])
    assert set(json.loads(capsys.readouterr().out)["values"]) == {"count", "angle"}


def test_several_labels_have_thresholds_from_the_validation_images(folder, tmp_path, capsys):
    root, known = folder
    run = fitted(
        root, tmp_path, "--task", "multilabel", "--targets", "many", "blue", "--pos-weight", "balanced", "--epochs",
        "8",
    )  # fmt: skip
    report = json.loads((run / "report.json").read_text())["test"]
    assert report["chosen"] and report["mean_average_precision"] > 0.85
    assert {"train_exact_match", "validation_label_accuracy", "validation_mAP"} <= set(read(run / "metrics.jsonl")[-1])
    classifier = ImageClassifier.load(run / "classifier")
    sources = open_labels(root, root / "labels.csv", "multilabel", ("many", "blue"), image_size=(SIZE, SIZE))
    logits = classifier.predict_logits(sources["test"])
    truth = sources["test"].targets
    assert report["mean_average_precision"] == pytest.approx(average_precision_score(truth, logits, average="macro"))
    chosen = MultiLabel(("many", "blue")).calibrated(
        classifier.predict_logits(sources["validation"]), sources["validation"].targets
    )
    assert classifier.task.thresholds == pytest.approx(chosen.thresholds, rel=1e-4)
    said = classifier.predict([root / known[0]["file"]])[0]
    assert said.labels is not None and set(said.probabilities) == {"many", "blue"}
    for name, probability in said.probabilities.items():
        edge = dict(zip(("many", "blue"), classifier.task.thresholds, strict=True))[name]
        assert (name in said.labels) == (probability >= edge)
    assert classifier.evaluate(sources["test"]).macro_f1 == pytest.approx(report["macro_f1"])
    capsys.readouterr()
    main(["predict", f"{run}/classifier", str(root / "000.png"), "--json"])
    assert set(json.loads(capsys.readouterr().out)) == {"path", "labels", "probabilities"}
    with pytest.raises(SystemExit):
        main(["evaluate", f"{run}/classifier", "--data", str(root)])
    assert "measured on targets: give --labels" in capsys.readouterr().err


def test_rare_classes_in_a_table_are_weighted(folder, tmp_path, capsys):
    root, known = folder
    lines = [f"{line['file']},{line['split']},{'full' if line['count'] > 5 else 'free'}" for line in known]
    table = tmp_path / "classes.csv"
    table.write_text("file,split,kind\n" + "\n".join(lines) + "\n")
    main(["fit", "--data", str(root), "--labels", str(table), *OPTIONS, "--class-weights", "balanced", "--epochs", "1",
          "--out", f"{tmp_path}/run", "--store", f"{tmp_path}/store"])  # fmt: skip
    assert "balanced accuracy" in (out := capsys.readouterr().out) and "worst class" in out
    task = ImageClassifier.load(tmp_path / "run" / "classifier").task
    counts = np.array([sum(line["count"] > 5 for line in known[:90]), 0])
    counts[1] = 90 - counts[0]
    assert task.names == ("free", "full")
    np.testing.assert_allclose(task.class_weights, 90 / (2 * counts[::-1]))
    main(["evaluate", f"{tmp_path}/run/classifier", "--data", str(root), "--labels", str(table), "--split", "all"])
    assert "130 examples, 2 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "regression"], "regression takes its targets from a table: give --labels FILE.csv"),
        (["--labels", "labels.csv", "--units", "m"], "units is of the task regression; this is 'classification'"),
        (["--labels", "labels.csv"], "one column of class names, found count, angle, many, blue"),
        (["--labels", "labels.csv", "--task", "multilabel"], "count: expected 0 or 1"),
        (["--labels", "labels.csv", "--task", "regression", "--label-smoothing", "0.1"], "is for a classification"),
    ],
)
def test_wrong_requests_are_told_in_a_sentence(options, message, folder, tmp_path, capsys):
    root = folder[0]
    options = [str(root / word) if word == "labels.csv" else word for word in options]
    with pytest.raises(SystemExit):
        main(["fit", "--data", str(root), *OPTIONS, *options, "--out", f"{tmp_path}/run", "--store", f"{tmp_path}/s"])
    assert message in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "run").exists()


def close(outputs, targets):
    return abs(outputs[:, 0] - targets) < 0.1


def test_a_task_of_ones_own_is_trained_shown_saved_and_loaded_by_who_has_it(tmp_path):
    task = Task(lambda y, t: (y[:, 0] - t) ** 2, {"close": close}, outputs=1)
    make = lambda task: ImageClassifier("lecture_cnn", image_size=16, head="linear", widths=(4,), task=task)  # noqa: E731
    classifier, rng = make(task), np.random.default_rng(0)
    pixels = np.repeat(rng.integers(0, 255, 16).astype(np.uint8), 16 * 16 * 3).reshape(16, 16, 16, 3)
    source = InMemory(pixels, targets=pixels.mean((1, 2, 3)) / 255)
    journal = Journal(tmp_path / "metrics.jsonl")
    fitted = classifier.fit(source, source, method="scratch", epochs=3, batch_size=4, optimizer="adam", journal=journal)
    for record in (fitted.history[-1], read(journal.path)[-1]):
        assert {"train_close", "validation_close", "train_loss"} <= set(record) and "train_accuracy" not in record
    report = classifier.evaluate(source)
    outputs = classifier.predict_logits(source)
    assert report.values["close"] == pytest.approx(np.mean(close(outputs, source.targets)))
    assert report.values["close"] == pytest.approx(fitted.history[-1]["validation_close"])
    assert classifier.predict(pixels)[0].output == pytest.approx(outputs[0].tolist(), rel=1e-4)
    classifier.save(tmp_path / "own")
    with pytest.raises(SavedClassifierError, match="made of functions, which are not saved: give it again as `task`"):
        ImageClassifier.load(tmp_path / "own")
    loaded = ImageClassifier.load(tmp_path / "own", task=task)
    np.testing.assert_array_equal(loaded.predict_logits(source), outputs)
    with pytest.raises(ValueError, match="does not say how many outputs"):
        make(Task(lambda y, t: y[:, 0]))
    with pytest.raises(ValueError, match="the source has classes and no targets of a Regression"):
        make(Regression(("a",))).evaluate(InMemory(pixels, np.arange(16) % 2, ("a", "b")))
    with pytest.raises(ValueError, match="class names: expected the task's, a, b, found x, y"):
        ImageClassifier("lecture_cnn", ("x", "y"), task=Classification(("a", "b")))
