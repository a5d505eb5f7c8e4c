"""The image of a report: what is drawn is what was measured."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cnnjax.metrics import report
from cnnjax.show.reports import plot


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw, and give the panels back beside the pixels."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])

    def draw(found):
        plot(found, tmp_path / "new" / "report.png", "a title with $ and [red]")
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.png"]
        with Image.open(tmp_path / "new" / "report.png") as image:
            assert image.format == "PNG" and image.width >= 1500
            return figures[-1].axes, np.asarray(image.convert("RGB"))

    return draw


def make(classes, outputs, count=200):
    rng = np.random.default_rng(0)
    labels = np.r_[np.arange(classes), rng.integers(0, classes, count)]
    logits = rng.normal(size=(len(labels), classes)) + 2 * np.eye(classes)[labels]
    return logits if outputs > 1 else logits[:, 1:] - logits[:, :1], labels


def test_counts_curve_and_bins_are_drawn(drawn):
    found = report(*make(2, 1), ("cat_$1", "dog_$2"), samples=50)
    (matrix, curve, bins, *_), pixels = drawn(found)
    assert [int(text.get_text()) for text in matrix.texts] == found.confusion.ravel().tolist()
    assert [label.get_text() for label in matrix.get_yticklabels()] == ["cat_$1", "dog_$2"]
    assert f"{100 * found.intervals['accuracy'][1]:.1f} %" in matrix.get_title()
    np.testing.assert_allclose(curve.lines[1].get_xydata(), found.classes[1].roc)
    filled = [b for b in found.bins if b.count]
    np.testing.assert_allclose(bins.lines[1].get_xydata(), [(b.confidence, b.accuracy) for b in filled])
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_many_classes_have_no_numbers_and_ten_curves(drawn):
    found = report(*make(25, 25), [f"a class with a very long name {k}" for k in range(25)])
    (matrix, curve, *_), _ = drawn(found)
    assert not matrix.texts and len(curve.lines) == 11
    assert matrix.images[0].get_array().shape == (25, 25)
    worst = min(found.classes, key=lambda scores: scores.auc)
    np.testing.assert_allclose(curve.lines[1].get_xydata(), worst.roc)


def test_a_report_without_areas_is_drawn(drawn):
    found = report([[2.0], [-1.0]], [1, 1], ("cat", "dog"))
    (matrix, curve, *_), _ = drawn(found)
    assert "no curve" in curve.texts[0].get_text() and len(matrix.texts) == 4
