"""Intervals over seeds and over examples, against tables, SciPy, and resamples drawn by hand."""

import math

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from cnnjax.metrics import bootstrap, interval, report
from cnnjax.metrics.intervals import MEASURES


def examples(count, classes, outputs, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.r_[np.arange(classes), rng.integers(0, classes, count - classes)]
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    return (logits if outputs > 1 else logits[:, 1:] - logits[:, :1]).round(1), labels


def test_the_interval_of_seeds_is_student_s():
    # Table of Student's t: 4.303 at 2, 12.706 at 1, 2.776 at 4 degrees of freedom.
    for values, t in (([0.95, 0.96, 0.97], 4.303), ([0.8, 0.9], 12.706), ([1, 2, 3, 4, 6], 2.776)):
        expected = t * np.std(values, ddof=1) / math.sqrt(len(values))
        assert interval(values) == pytest.approx(expected, rel=2e-4)
    assert math.isnan(interval([0.9]))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("classes", "outputs"), [(2, 1), (4, 4)])
def test_one_resample_is_measured_as_the_drawn_examples_are(measure, classes, outputs):
    logits, labels = examples(40, classes, outputs)
    drawn = np.random.default_rng(3).integers(0, 40, (1, 40))[0]
    found = report(logits[drawn], labels[drawn], [str(k) for k in range(classes)])
    low, high = bootstrap(logits, labels, measure, samples=1, seed=3)
    assert low == high == pytest.approx(getattr(found, measure), rel=1e-9)


def test_a_class_that_a_resample_lacks_is_left_out_of_its_mean():
    logits, labels = examples(12, 6, 6)
    seed = next(s for s in range(99) if len(set(labels[np.random.default_rng(s).integers(0, 12, 12)])) == 5)
    drawn = np.random.default_rng(seed).integers(0, 12, (1, 12))[0]
    areas = [scores.auc for scores in report(logits[drawn], labels[drawn], "abcdef").classes]
    assert areas.count(None) == 1
    expected = np.mean([area for area in areas if area is not None])
    assert bootstrap(logits, labels, "auc", samples=1, seed=seed)[0] == pytest.approx(expected)


def test_the_interval_is_scipy_s_percentile_bootstrap():
    logits, labels = examples(300, 2, 1)
    correct = ((logits[:, 0] > 0) == labels).astype(float)
    loss = np.logaddexp(0, np.where(labels == 1, -1, 1) * logits[:, 0])
    for measure, values in (("accuracy", correct), ("loss", loss)):
        theirs = scipy_bootstrap(
            (values,), np.mean, n_resamples=4000, method="percentile", confidence_level=0.9, rng=1
        ).confidence_interval
        ours = bootstrap(logits, labels, measure, samples=4000, level=0.9)
        assert ours == pytest.approx(tuple(theirs), abs=0.05 * values.std() / math.sqrt(300) * 3)
        assert ours[0] < values.mean() < ours[1]


def test_the_area_s_interval_has_the_width_of_hanley_and_mcneil():
    # Hanley and McNeil 1982: the standard error of an area, here of two normal distributions 1.5 deviations apart.
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 1000)
    logits = rng.normal(size=(2000, 1)) + 1.5 * labels[:, None]
    area = report(logits, labels, "ab").auc
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = math.sqrt((area * (1 - area) + 999 * (q1 - area**2 + q2 - area**2)) / 1e6)
    low, high = bootstrap(logits, labels, "auc", samples=1000)
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.1) and low < area < high


def test_the_seed_decides_and_blocks_do_not_show(monkeypatch):
    logits, labels = examples(50, 3, 3)
    first = [bootstrap(logits, labels, measure, samples=60) for measure in MEASURES]
    assert first == [bootstrap(logits, labels, measure, samples=60) for measure in MEASURES]
    assert bootstrap(logits, labels, "loss", samples=60, seed=1) != first[2]
    found = report(logits, labels, "abc", samples=60)
    assert [found.intervals[measure] for measure in MEASURES] == first
    monkeypatch.setattr("cnnjax.metrics.intervals._ROOM", 350)  # blocks of seven resamples
    for measure, ends in zip(MEASURES, first, strict=True):
        assert bootstrap(logits, labels, measure, samples=60) == pytest.approx(ends, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure": "acuracy"}, "no measure 'acuracy'; did you mean 'accuracy'. There are accuracy, auc, loss, ece"),
        ({"samples": 0}, "expected samples > 0"),
        ({"level": 1.0}, "0 < level < 1, found 2000 and 1.0"),
        ({"measure": "auc", "labels": [0, 0]}, "there is no AUC: a class has no examples"),
        ({"labels": [0, 2]}, "1 of 2 labels are no class"),
    ],
)
def test_wrong_requests_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(**{"logits": [[0.5], [1.0]], "labels": [0, 1], **change})
