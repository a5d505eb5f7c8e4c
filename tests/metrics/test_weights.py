"""Reports of examples with weights, against scikit-learn's `sample_weight`, and a table with a column of them."""

import json

import numpy as np
import pytest
import sklearn.metrics as oracle
from PIL import Image

from cnnjax.cli import main
from cnnjax.metrics import Report, report
from cnnjax.metrics.means import means_report
from cnnjax.metrics.multilabel import multilabel_report
from cnnjax.metrics.regression import regression_report

RNG = np.random.default_rng(0)
COUNT = 200
WEIGHTS = RNG.uniform(0, 3, COUNT).round(2) * (RNG.random(COUNT) < 0.8)


@pytest.mark.parametrize("classes", [2, 4])
def test_classes_are_weighted_as_scikit_learn_weights_them(classes):
    labels = RNG.integers(0, classes, COUNT)
    logits = RNG.normal(0, 1, (COUNT, classes)) + np.eye(classes)[labels]
    found = report(logits, labels, "abcd"[:classes], weights=WEIGHTS)
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    said = likely.argmax(1)
    how = {"sample_weight": WEIGHTS}
    assert found.accuracy == pytest.approx(oracle.accuracy_score(labels, said, **how))
    assert found.loss == pytest.approx(oracle.log_loss(labels, likely, **how))
    np.testing.assert_allclose(found.confusion, oracle.confusion_matrix(labels, said, **how))
    each = oracle.precision_recall_fscore_support(labels, said, zero_division=0, **how)
    for scores, *wanted in zip(found.classes, *each, strict=True):
        got = [scores.precision, scores.recall, scores.f1, scores.support]
        np.testing.assert_allclose(got, wanted)
    assert found.balanced_accuracy == pytest.approx(oracle.balanced_accuracy_score(labels, said, **how))
    # Probabilities that tie differ in their last digits: their order is that of log-odds, rounded.
    odds = [(logits[:, k] - np.log(np.exp(np.delete(logits, k, 1)).sum(1))).round(9) for k in range(classes)]
    areas = [oracle.roc_auc_score(labels == k, odds[k], **how) for k in range(classes)]
    assert [scores.auc for scores in found.classes] == pytest.approx(areas, abs=1e-9)
    x, y = np.array(found.classes[1].roc).T
    assert ((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum() == pytest.approx(areas[1], abs=1e-9)
    assert found.total == pytest.approx(WEIGHTS.sum()) and "weighted" in found.text()
    assert Report.from_json(json.loads(json.dumps(found.to_json()))) == found
    low, high = report(logits, labels, "abcd"[:classes], weights=WEIGHTS, samples=200).intervals["accuracy"]
    assert low < found.accuracy < high


def test_whole_weights_count_as_repeated_examples():
    """Of every measure, calibration and Brier score included."""
    times, labels = RNG.integers(0, 4, COUNT), RNG.integers(0, 3, COUNT)
    logits = RNG.normal(0, 1, (COUNT, 3))
    found = report(logits, labels, "abc", weights=times).to_json()
    wanted = report(logits.repeat(times, 0), labels.repeat(times), "abc").to_json()
    for name in ("loss", "accuracy", "auc", "macro_precision", "macro_recall", "macro_f1", "ece", "brier", "confusion"):
        np.testing.assert_allclose(found[name], wanted[name], err_msg=name)
    assert report(logits, labels, "abc", weights=np.full(COUNT, 2.0)) == report(logits, labels, "abc")


def test_numbers_and_labels_are_weighted_too():
    how = {"sample_weight": WEIGHTS}
    wanted = RNG.normal(0, 1, (COUNT, 2))
    found = wanted + RNG.normal(0, 0.5, (COUNT, 2))
    for k, scores in enumerate(regression_report(found, wanted, ("a", "b"), weights=WEIGHTS).numbers):
        assert scores.mae == pytest.approx(oracle.mean_absolute_error(wanted[:, k], found[:, k], **how))
        assert scores.rmse == pytest.approx(oracle.root_mean_squared_error(wanted[:, k], found[:, k], **how))
        assert scores.r2 == pytest.approx(oracle.r2_score(wanted[:, k], found[:, k], **how))
    truth = RNG.random((COUNT, 2)) < 0.4
    logits = RNG.normal(0, 1, (COUNT, 2)) + truth
    several = multilabel_report(logits, truth.astype(int), ("a", "b"), weights=WEIGHTS)
    for k, scores in enumerate(several.labels):
        assert scores.average_precision == pytest.approx(
            oracle.average_precision_score(truth[:, k], logits[:, k], **how)
        )
        assert scores.auc == pytest.approx(oracle.roc_auc_score(truth[:, k], logits[:, k], **how))
        assert scores.f1 == pytest.approx(oracle.f1_score(truth[:, k], logits[:, k] >= 0, **how))
    assert several.exact_match == pytest.approx(oracle.accuracy_score(truth, logits >= 0, **how))
    means = means_report({"loss": np.arange(3.0)}, weights=np.array([1.0, 0.0, 3.0]), samples=20)
    assert means.values["loss"] == pytest.approx(1.5)


@pytest.mark.parametrize("weights", [[1.0], [-1.0] * COUNT, [0.0] * COUNT, [np.nan] * COUNT])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="weights: expected"):
        report(np.zeros((COUNT, 2)), np.zeros(COUNT, int), "ab", weights=weights)


def test_a_column_of_a_table_weighs_the_images_of_fit_and_evaluate(tmp_path, capsys):
    lines = ["file,split,kind,sample_weight"]
    for k in range(24):
        Image.new("RGB", (8, 8), (250, 250, 250) if k % 2 else (5, 5, 5)).save(tmp_path / f"{k}.png")
        # The last test image is said to be what it is not; it counts five times as much as the others.
        kind = "bright" if k % 2 == (k != 23) else "dark"
        lines.append(f"{k}.png,{'train' if k < 16 else 'test'},{kind},{5 if k == 23 else 1}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    data = ["--data", str(tmp_path), "--labels", f"{tmp_path}/labels.csv"]
    main([
        "fit", *data, "--backbone", "lecture_cnn", "--widths", "4", "--image-size", "16", "--method", "scratch",
        "--epochs", "8", "--batch-size", "8", "--optimizer", "adam", "--learning-rate", "0.01", "--head", "linear",
        "--out", f"{tmp_path}/run", "--store", f"{tmp_path}/store",
    ])  # fmt: skip
    test = json.loads((tmp_path / "run" / "report.json").read_text())["test"]
    assert test["accuracy"] == pytest.approx(7 / 12) and test["total"] == 12
    main(["evaluate", f"{tmp_path}/run/classifier", *data, "--samples", "0", "--out", f"{tmp_path}/again.json"])
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["accuracy"] == pytest.approx(7 / 12) and again["confusion"] == test["confusion"]
    bad = (tmp_path / "labels.csv").read_text().replace("bright,1\n", "bright,-1\n", 1)
    (tmp_path / "labels.csv").write_text(bad)
    with pytest.raises(SystemExit):
        main(["evaluate", f"{tmp_path}/run/classifier", *data])
    assert "sample_weight: expected a number from 0 on, found '-1'" in capsys.readouterr().err
