"""The report of several labels against scikit-learn."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss, roc_auc_score

from cnnjax.metrics import multilabel_report
from cnnjax.metrics.multilabel import average_precision, best_threshold
from cnnjax.show import scores
from cnnjax.train.tasks import MultiLabel

NAMES = ("sky", "sea", "sand")


def examples(count, seed=0):
    """Logits with ties, and targets that go with them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, 3)).round(1).astype(np.float32)
    return logits, (logits + rng.normal(0, 1.5, (count, 3)) > [0, 1, 2]).astype(int)


def test_every_measure_is_scikit_learn_s():
    logits, there = examples(80)
    edges = (0.4, 0.55, 0.7)
    found, likely = multilabel_report(logits, there, NAMES, thresholds=edges), expit(logits.astype(np.float64))
    said = (likely >= edges).astype(int)
    for k, one in enumerate(found.labels):
        assert one.average_precision == pytest.approx(average_precision_score(there[:, k], likely[:, k]))
        assert one.auc == pytest.approx(roc_auc_score(there[:, k], likely[:, k]))
        assert one.f1 == pytest.approx(f1_score(there[:, k], said[:, k])) and one.support == there[:, k].sum()
        assert one.threshold == edges[k]
    assert found.mean_average_precision == pytest.approx(average_precision_score(there, likely, average="macro"))
    assert found.auc == pytest.approx(roc_auc_score(there, likely, average="macro"))
    assert found.macro_f1 == pytest.approx(f1_score(there, said, average="macro"))
    assert found.micro_f1 == pytest.approx(f1_score(there, said, average="micro"))
    assert found.exact_match == pytest.approx(accuracy_score(there, said))
    assert found.label_accuracy == pytest.approx((there == said).mean())
    assert found.loss == pytest.approx(np.mean([log_loss(there[:, k], likely[:, k]) for k in range(3)]))


def test_thresholds_have_the_best_f1_there_is():
    logits, there = examples(60, 1)
    task = MultiLabel(NAMES).calibrated(logits, there)
    likely = expit(logits.astype(np.float64))
    for k, edge in enumerate(task.thresholds):
        own = f1_score(there[:, k], likely[:, k] >= edge)
        assert own == pytest.approx(max(f1_score(there[:, k], likely[:, k] >= x) for x in likely[:, k]))
    assert MultiLabel(("x",)).calibrated([[1.0]], [[0]]).thresholds == (0.5,)
    assert best_threshold(np.array([0.3, 0.3]), np.array([True, False])) == 0.15


def test_labels_without_examples_are_left_out_of_the_means():
    logits, there = examples(30)
    there[:, 2] = 0
    found = multilabel_report(logits, there, NAMES, samples=20)
    assert found.labels[2].average_precision is None and found.labels[2].auc is None
    wanted = average_precision_score(there[:, :2], logits[:, :2], average="macro")
    assert found.mean_average_precision == pytest.approx(wanted)
    assert MultiLabel(NAMES).overall(logits, there)["mAP"] == pytest.approx(wanted)
    assert average_precision(logits[:, 2], there[:, 2] == 1) is None
    low, high = found.intervals["mean_average_precision"]
    assert low < wanted < high
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["labels"][2]["auc"] is None


def test_the_report_is_shown(tmp_path):
    logits, there = examples(40)
    chosen = multilabel_report(logits, there, NAMES, thresholds=(0.5,) * 3)
    assert "thresholds of the best F1 on validation data" in chosen.text() and "| sky |" in chosen.markdown()
    assert "not chosen: 0.5" in multilabel_report(logits, there, NAMES, samples=10).text()
    scores.plot(chosen, tmp_path / "report.png", "a title")
    with Image.open(tmp_path / "report.png") as image:
        assert image.width > 500


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 3)), r"expected logits \[N, 3\]"),
        (np.zeros((3, 3)), np.zeros((4, 3)), "expected targets of 0 and 1"),
        (np.zeros((3, 3)), np.full((3, 3), 0.5), "expected targets of 0 and 1"),
        (np.full((3, 3), np.nan), np.zeros((3, 3)), "logits of 3 of 3 examples are not finite"),
    ],
)
def test_what_does_not_fit_is_said(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        multilabel_report(logits, targets, NAMES)
