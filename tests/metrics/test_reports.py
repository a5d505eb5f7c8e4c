"""The report against Keras, SciPy, and the formulas of the papers."""

import itertools
import json
import math
import subprocess
import sys

import jax.numpy as jnp
import keras
import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import mannwhitneyu

from cnnjax.metrics import Report, report
from cnnjax.train.tasks import Classification

NAMES = ("cat", "dog", "fox", "hen", "owl", "pig", "rat")


def examples(count, classes, outputs=None, seed=0):
    """Logits that know something of the labels, rounded so that some tie."""
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), rng.integers(0, classes, count - classes)].astype(np.int32)
    logits = 1.5 * rng.normal(size=(count, classes)) + 2 * np.eye(classes)[labels]
    if outputs == 1:
        logits = logits[:, 1:] - logits[:, :1]
    return logits.round(1).astype(np.float32), labels


@pytest.fixture(scope="module")
def many():
    logits, labels = examples(200, 7)
    return logits, labels, report(logits, labels, NAMES)


@pytest.fixture(scope="module")
def two():
    logits, labels = examples(150, 2, outputs=1)
    return logits, labels, report(logits, labels, NAMES[:2])


def area(scores, positive):
    """By SciPy's Mann-Whitney statistic."""
    pairs = positive.sum() * (~positive).sum()
    return mannwhitneyu(scores[positive], scores[~positive]).statistic / pairs


def test_seven_classes_are_measured_as_keras_does(many):
    logits, labels, found = many
    # Of classes that tie Keras takes all, the report the first.
    first = logits - 1e-5 * np.arange(7, dtype=np.float32)
    one_hot, probabilities = np.eye(7, dtype=np.float32)[labels], softmax(first, -1)

    def by_keras(metric, truth, values):
        metric.update_state(truth, values)
        return np.asarray(metric.result())

    m = keras.metrics
    loss = by_keras(m.SparseCategoricalCrossentropy(from_logits=True), labels, logits)
    assert found.count == 200 and found.loss == pytest.approx(float(loss), rel=1e-5)
    assert found.accuracy == pytest.approx(float(by_keras(m.SparseCategoricalAccuracy(), labels, logits)))
    assert found.top5 == pytest.approx(float(by_keras(m.SparseTopKCategoricalAccuracy(5), labels, first)))
    f1 = by_keras(m.F1Score(), one_hot, probabilities)
    np.testing.assert_allclose([scores.f1 for scores in found.classes], f1, rtol=1e-5)
    assert found.macro_f1 == pytest.approx(float(f1.mean()), rel=1e-5)
    for k in (0, 6):
        only = np.eye(7)[first.argmax(1)][:, k]
        assert found.classes[k].precision == pytest.approx(float(by_keras(m.Precision(), one_hot[:, k], only)))
        assert found.classes[k].recall == pytest.approx(float(by_keras(m.Recall(), one_hot[:, k], only)))
    # Keras takes the area from 2,000 thresholds.
    approximate = by_keras(m.AUC(2000, multi_label=True), one_hot, probabilities)
    assert found.auc == pytest.approx(float(approximate), abs=1e-3)


def test_two_classes_are_measured_as_keras_does(two):
    logits, labels, found = two
    loss, right = keras.metrics.BinaryCrossentropy(from_logits=True), keras.metrics.BinaryAccuracy(threshold=0)
    approximate = keras.metrics.AUC(2000)
    for metric, values in ((loss, logits), (right, logits), (approximate, expit(logits))):
        metric.update_state(labels[:, None], values)
    assert found.loss == pytest.approx(float(loss.result()), rel=1e-5)
    assert found.accuracy == pytest.approx(float(right.result()))
    assert found.auc == pytest.approx(float(approximate.result()), abs=1e-3)
    assert found.top5 is None


@pytest.mark.parametrize(("classes", "outputs"), [(2, 1), (2, 2), (5, 5)])
def test_loss_and_accuracy_are_those_of_training(classes, outputs):
    logits, labels = examples(60, classes, outputs)
    loss, measured = Classification().scores(jnp.asarray(logits), jnp.asarray(labels))
    found = report(jnp.asarray(logits), jnp.asarray(labels), NAMES[:classes])
    assert found.loss == pytest.approx(float(loss.mean()), rel=1e-5)
    assert found.accuracy == pytest.approx(float(measured["accuracy"].mean()))


def test_the_area_is_the_mann_whitney_statistic_ties_included(two, many):
    logits, labels, found = two
    assert len(np.unique(logits)) < 100  # there are ties
    assert found.auc == pytest.approx(area(logits[:, 0], labels == 1), rel=1e-12)
    assert found.classes[0].auc == pytest.approx(found.auc, rel=1e-12)
    logits, labels, found = many
    areas = [area(softmax(logits.astype(np.float64), -1)[:, k].round(12), labels == k) for k in range(7)]
    np.testing.assert_allclose([scores.auc for scores in found.classes], areas, rtol=1e-12)
    assert found.auc == pytest.approx(np.mean(areas), rel=1e-12)


def test_the_area_sees_logits_whose_probabilities_round_to_one():
    logits = np.float32([[50], [60], [70], [80]])
    assert len(np.unique(expit(logits))) == 1
    assert report(logits, [0, 0, 1, 1], "ab").auc == 1.0
    three = np.concatenate([np.zeros((4, 2)), 20 * logits], 1)  # exp(-1000) is 0 in double precision too
    assert report(three, [0, 1, 2, 2], "abc").classes[2].auc == 1.0


def test_the_order_of_classes_does_not_break_ties():
    # Each row gives the classes the same three probabilities, in another order.
    logits = np.float32([[0.3, 0.7, 1.1], [0.7, 0.3, 1.1], [1.1, 0.3, 0.7], [1.1, 0.7, 0.3], [0.3, 1.1, 0.7]])
    found = report(logits, [2, 0, 0, 1, 1], "abc")
    assert found.classes[2].auc == 0.875  # its 1.1 beats 1.1, 0.7, 0.3, 0.7: half a pair of four is lost
    # With the same numbers in every row a class's own logit alone decides.
    logits = np.array(list(itertools.permutations(np.float32([-0.3, 0.1, 0.7, 1.9, 2.2]))))
    labels = np.random.default_rng(0).integers(0, 5, len(logits))
    for k, scores in enumerate(report(logits, labels, "abcde").classes):
        assert scores.auc == pytest.approx(area(logits[:, k], labels == k), rel=1e-12)


def test_the_confusion_matrix_is_counted_by_hand():
    # true 0 -> 0, 0, 1; true 1 -> 1; true 2 -> 0, 2
    logits = 3 * np.eye(3)[[0, 0, 1, 1, 0, 2]]
    found = report(logits, [0, 0, 0, 1, 2, 2], "abc")
    assert found.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert [s.precision for s in found.classes] == pytest.approx([2 / 3, 1 / 2, 1])
    assert [s.recall for s in found.classes] == pytest.approx([2 / 3, 1, 1 / 2])
    assert [s.f1 for s in found.classes] == pytest.approx([2 / 3] * 3)
    assert [s.support for s in found.classes] == [3, 1, 2]
    assert found.largest_confusions(9) == [(0, 1), (2, 0)]
    assert (found.macro_precision, found.macro_recall, found.macro_f1) == pytest.approx((13 / 18, 13 / 18, 2 / 3))


def test_calibration_error_and_brier_score_are_the_papers(many, two):
    for logits, labels, found in (many, two):
        p = softmax(logits.astype(np.float64), -1) if logits.shape[1] > 1 else expit(logits.astype(np.float64))
        p = p if p.shape[1] > 1 else np.c_[1 - p, p]
        confidence, right = p.max(1), p.argmax(1) == labels
        error = 0.0  # Guo et al. 2017, equations 2 to 5
        for m in range(1, 16):
            inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
            assert found.bins[m - 1].count == inside.sum()
            if inside.any():
                error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
        assert found.ece == pytest.approx(error, rel=1e-9) and sum(b.count for b in found.bins) == found.count
    logits, labels, found = two
    assert found.brier == pytest.approx(np.square(expit(logits[:, 0].astype(np.float64)) - labels).mean())
    logits, labels, found = many
    squares = np.square(softmax(logits.astype(np.float64), -1) - np.eye(7)[labels])
    assert found.brier == pytest.approx(squares.sum(1).mean())


def test_a_calibrated_classifier_has_no_calibration_error():
    levels = np.repeat([0.6, 0.7, 0.9], 10)  # of ten examples at 0.7, seven are right
    right = np.concatenate([np.arange(10) < 10 * p for p in (0.6, 0.7, 0.9)])
    logits = np.log(levels / (1 - levels))[:, None]
    assert report(logits, right.astype(int), "ab").ece == pytest.approx(0, abs=1e-12)
    assert report(logits, np.ones(30, int), "ab").ece == pytest.approx(1 - levels.mean())


def test_the_curve_encloses_the_area(two, many):
    assert [bool(scores.roc) for scores in two[2].classes] == [False, True]
    for scores in (*many[2].classes, two[2].classes[1]):
        x, y = np.array(scores.roc).T
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1) and len(x) <= 401
        assert (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
        assert np.trapezoid(y, x) == pytest.approx(scores.auc, rel=1e-12)


@pytest.mark.parametrize("count, noise", [(300, 1.0), (5000, 0.0), (5000, 1.0), (50_000, 0.1), (50_000, 30.0)])
def test_a_thinned_curve_encloses_the_area_and_stays_on_the_curve(count, noise):
    logits, labels = examples(count, 2, 1)
    logits = logits + noise * np.random.default_rng(1).normal(size=logits.shape)
    found = report(logits, labels, "ab").classes[1]
    x, y = np.array(found.roc).T
    exact = area(logits[:, 0], labels == 1)
    assert np.trapezoid(y, x) == pytest.approx(exact, abs=1e-9) and found.auc == pytest.approx(exact, abs=1e-9)
    assert len(x) <= 401 and (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
    ranked = labels[np.argsort(-logits[:, 0], kind="stable")] == 1
    true, false = ranked.cumsum() / ranked.sum(), (~ranked).cumsum() / (~ranked).sum()
    # Along the anti-diagonal the two curves lie within a part of each other.
    assert np.abs(np.interp(true + false, x + y, y) - true).max() < (2 / 133 if noise else 0.05)


def test_of_many_classes_ten_curves_are_kept():
    found = report(*examples(120, 30), [f"class {k}" for k in range(30)])
    areas = sorted(scores.auc for scores in found.classes)
    assert sorted(scores.auc for scores in found.classes if scores.roc) == areas[:10]


def test_what_is_not_defined_is_none_and_null(many):
    logits, labels, _ = many
    kept = labels != 3
    found = report(logits[kept], labels[kept], NAMES)
    assert found.auc is None and found.classes[3].auc is None and found.classes[3].recall is None
    assert found.classes[2].auc == pytest.approx(area(softmax(logits[kept], -1)[:, 2], labels[kept] == 2), abs=1e-4)
    assert found.classes[3].precision == 0 and len(present := [s for s in found.classes if s.support]) == 6
    assert found.macro_precision == pytest.approx(np.mean([s.precision for s in present]))
    assert found.macro_recall == pytest.approx(np.mean([s.recall for s in present]))
    never = report([[2.0, 0, 0], [2.0, 1, 0], [0, 2.0, 1]], [0, 2, 1], "abc")  # c is never predicted
    assert never.classes[2].precision is None and never.macro_precision == pytest.approx((1 / 2 + 1 + 0) / 3)
    one = report([[0.5]], [0], "ab", samples=10)
    assert one.count == 1 and one.accuracy == 0 and one.loss == pytest.approx(math.log1p(math.exp(0.5)))
    assert one.auc is None and one.intervals["auc"] is None and one.intervals["accuracy"] == (0, 0)
    assert one.classes[0].precision is None and one.classes[1].f1 == 0
    text = json.dumps(one.to_json(), allow_nan=False)
    assert '"auc": null' in text and Report.from_json(json.loads(text)) == one


def test_json_gives_the_report_back():
    logits, labels = examples(80, 7)
    found = report(logits, labels, NAMES, samples=50)
    again = Report.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again == found and again.text() == found.text() and again.class_names == NAMES
    assert again != report(logits, labels[::-1], NAMES, samples=50)
    assert again.confusion.dtype == np.int64 and not again.confusion.flags.writeable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": ...}, "'loss'"),
        ({"loss": "low"}, "expected a number for 'loss', found 'low'"),
        ({"colour": 1}, "'colour'"),
        ({"bins": 3}, "int"),
        ({"confusion": [[1]]}, r"2 classes, but confusion of shape \(1, 1\)"),
        ({"classes": ["a"]}, "str"),
        ({"intervals": {"auc": [0.5]}}, "index"),
    ],
)
def test_what_is_no_report_is_refused(two, change, message):
    content = {name: value for name, value in {**two[2].to_json(), **change}.items() if value is not ...}
    with pytest.raises(ValueError, match=f"this is no report of cnnjax.metrics: .*{message}"):
        Report.from_json(content)


def test_the_text_shows_every_class_and_every_count():
    logits, labels = examples(90, 3)
    found = report(logits, labels, ("cat [red]\x1b[2J\n", "dog|wolf", "a fox"), samples=100)
    text, rows = found.text(), found.markdown()
    low, high = found.intervals["accuracy"]
    assert f"{100 * found.accuracy:.1f} %" in text and f"{100 * low:.1f} to {100 * high:.1f} %" in text
    assert "cat [red]" in text and "dog|wolf" in text and r"| dog\|wolf |" in rows
    lines = [line.split() for line in text.splitlines()]
    assert ["2", "a", "fox", *map(str, found.confusion[2])] in lines
    assert "| 2 a fox | " + " | ".join(map(str, found.confusion[2])) + " |" in rows.splitlines()
    assert "top-5" not in text and "\x1b" not in text + rows
    assert sum(line.startswith("| cat [red]") for line in rows.splitlines()) == 1


def test_of_many_classes_the_worst_are_shown():
    logits, labels = examples(300, 25)
    labels[labels == 4] = 5
    found = report(logits, labels, [f"kind{k:02}" for k in range(25)])
    text = found.text()
    true, predicted = found.largest_confusions(1)[0]
    wrong = found.confusion - np.diag(np.diag(found.confusion))
    assert wrong[true, predicted] == wrong.max()
    pair = next(line.split() for line in text.splitlines() if line.split()[-1:] == ["%"] and "kind" in line)
    assert pair[:3] == [f"kind{true:02}", f"kind{predicted:02}", str(wrong.max())]
    best = max((s for s in found.classes if s.f1 is not None), key=lambda s: s.f1)
    table = text[text.index("lowest F1") : text.index("largest confusions")]
    assert "20 classes of lowest F1, of 25" in text and best.name not in table and table.count("kind") == 20
    assert "top-5" in text


@pytest.mark.parametrize(
    ("logits", "labels", "names", "message"),
    [
        (np.zeros(4), [0] * 4, "ab", r"expected logits of shape \(N, 1\) or \(N, classes\).*found \(4,\)"),
        (np.zeros((0, 3)), [], "abc", r"N > 0 examples, found \(0, 3\)"),
        (np.zeros((4, 3)), [0] * 5, "abc", r"expected 4 labels.*found shape \(5,\)"),
        (np.zeros((4, 3)), np.eye(3)[[0] * 4], "abc", r"expected 4 labels.*found shape \(4, 3\)"),
        (np.zeros((2, 1)), [0.0, 1.0], "ab", "whole numbers from 0 on, found float64"),
        (np.zeros((3, 1)), [0, 2, -1], "ab", "2 of 3 labels are no class: expected 0 to 1, found 2 at place 1"),
        ([[np.nan, 0], [0, 0], [np.inf, np.nan]], [0] * 3, "ab", r"2 of 3 examples are not finite \(2 numbers"),
        (np.zeros((3, 1)), [0] * 3, "abc", "expected 2 class names for 1 logit an example, found 3"),
        (np.zeros((3, 4)), [0] * 3, "abc", "expected 4 class names for 4 logits an example, found 3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(logits, labels, names, message):
    with pytest.raises(ValueError, match=message):
        report(logits, labels, names)


def test_samples_are_not_negative():
    with pytest.raises(ValueError, match="expected samples >= 0, found -1"):
        report([[0.0]], [0], "ab", samples=-1)


def test_metrics_need_no_plotting_library():
    code = "import sys, cnnjax.metrics; print(sorted({'matplotlib', 'keras', 'scipy.stats'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
