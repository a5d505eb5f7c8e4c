"""The report of numbers against scikit-learn, of weighted classes, and of a task of one's own."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score, recall_score
from sklearn.metrics import root_mean_squared_error as root

from cnnjax.metrics import Report, means_report, regression_report
from cnnjax.show import scores
from cnnjax.train.tasks import Classification, Regression, Task

RNG = np.random.default_rng(0)
TRUE = RNG.normal(5, 2, (200, 2))
FOUND = TRUE + RNG.normal(0.3, 1, (200, 2))


def test_every_measure_is_scikit_learn_s():
    found = regression_report(FOUND, TRUE, ("age", "size"), ("years", ""), samples=200)
    for k, one in enumerate(found.numbers):
        assert one.mae == pytest.approx(mean_absolute_error(TRUE[:, k], FOUND[:, k]))
        assert one.rmse == pytest.approx(root(TRUE[:, k], FOUND[:, k]))
        assert one.r2 == pytest.approx(r2_score(TRUE[:, k], FOUND[:, k]))
        for name in ("mae", "rmse", "r2"):
            low, high = one.intervals[name]
            assert low < getattr(one, name) < high
    assert found.r2 == pytest.approx(r2_score(TRUE, FOUND))
    # The mean's interval by the normal law, 1.96 deviations of the mean.
    each = np.abs(FOUND - TRUE)[:, 0]
    half = 1.96 * each.std() / np.sqrt(len(each))
    assert np.diff(found.numbers[0].intervals["mae"])[0] == pytest.approx(2 * half, rel=0.2)


def test_the_report_is_kept_and_shown(tmp_path):
    found = regression_report(FOUND[:, :1], TRUE[:, :1], ("age",), ("years",), samples=20)
    assert "years" in found.text() and "| age |" in found.markdown()
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["numbers"][0]["unit"] == "years"
    assert set(found.measures()) == {"mae", "rmse", "r2", "bias"}
    constant = regression_report([[1.0], [2.0]], [[1.0], [1.0]], ("age",), samples=5)
    assert constant.r2 is None and "–" in constant.text()
    assert np.isnan(Regression(("age",), mean=(0,), deviation=(1,)).overall([[1.0], [2.0]], [[1.0], [1.0]])["r2"])
    scores.plot(regression_report(FOUND, TRUE, ("a", "b")), tmp_path / "report.png", "a title")
    with Image.open(tmp_path / "report.png") as image:
        assert image.width > 500
    with pytest.raises(ValueError, match="predictions of 1 of 2 examples are not finite"):
        regression_report([[1.0], [np.inf]], [[1.0], [1.0]], ("age",))
    with pytest.raises(ValueError, match=r"expected predictions and targets \[N, 2\]"):
        regression_report(FOUND, TRUE[:, :1], ("a", "b"))


def test_weighted_classes_show_balanced_accuracy_and_the_worst():
    labels = np.repeat([0, 1, 2], [30, 8, 4])
    logits = RNG.normal(size=(42, 3)) + 1.2 * np.eye(3)[labels]
    task = Classification(("cat", "dog", "fox"), class_weights="balanced").resolved(labels)
    found, said = task.report(logits, labels), logits.argmax(1)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, said))
    recalls = recall_score(labels, said, average=None)
    assert found.worst.name == task.names[int(recalls.argmin())] and found.worst.recall == pytest.approx(recalls.min())
    assert "balanced accuracy" in found.text() and f"worst class, {found.worst.name}" in found.text()
    assert Report.from_json(found.to_json()) == found
    assert "balanced" not in Classification(task.names).report(logits, labels).text()


def test_a_task_of_ones_own_reports_its_means(tmp_path):
    task = Task(lambda y, t: (y[:, 0] - t) ** 2, {"close": lambda y, t: abs(y[:, 0] - t) < 1})
    outputs, targets = FOUND[:, :1].astype(np.float32), TRUE[:, 0].astype(np.float32)
    found = task.report(outputs, targets, samples=50)
    assert found.values["loss"] == pytest.approx(np.square(FOUND - TRUE)[:, 0].mean(), rel=1e-4)
    low, high = found.intervals["close"]
    assert low < found.values["close"] < high and "close" in found.text() and "| close |" in found.markdown()
    scores.plot(found, tmp_path / "report.png", "a title")
    assert (tmp_path / "report.png").exists()
    assert means_report({"loss": np.array([np.nan, 1.0])}, samples=5).to_json()["values"] == {"loss": None}
