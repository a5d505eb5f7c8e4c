"""The table over seeds, its CSV and its plot."""

import csv

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cnnjax.show import depth


def line(freeze, seed, accuracy, frozen, rate=1e-3, reused=True, seconds=0.01):
    return {
        "freeze": freeze,
        "seed": seed,
        "test_accuracy": accuracy,
        "frozen_layers": frozen,
        "learning_rate": rate,
        "trainable_parameters": 1000 - frozen,
        "first_trainable": "" if freeze == "all" else f"after_{frozen}",
        "seconds_per_step": seconds,
        "features_reused": reused,
    }


RESULTS = [
    line("all", 1, 0.97, 9), line("all", 0, 0.95, 9), line("all", 2, 0.96, 9, seconds=0.5),
    line("none", 0, 0.90, 0, reused=False), line("none", 1, 0.80, 0),
    line("none", 0, 0.85, 0, rate=1e-4),
]  # fmt: skip


def test_cells_are_grouped_by_depth_and_rate_least_frozen_first():
    table = depth.rows(RESULTS)
    assert [(r.freeze, r.learning_rate, len(r.scores)) for r in table] == [
        ("none", 1e-4, 1),
        ("none", 1e-3, 2),
        ("all", 1e-3, 3),
    ]
    assert table[2].scores == (0.95, 0.97, 0.96) and table[2].seconds_per_step == 0.01
    assert table[2].mean == pytest.approx(0.96) and table[1].reused is False and table[2].reused is True


def test_the_terminal_shows_mean_and_interval():
    console = Console(width=150, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(depth.terminal(depth.rows(RESULTS), "a title"))
    console.file.close()
    text = console.export_text()
    assert "96.0 ± 2.5 %" in text and "from store" in text and "made now" in text and "head" in text
    assert "85.0 %" in text  # one seed has no interval


def test_the_csv_holds_the_same_numbers(tmp_path):
    depth.write_csv(depth.rows(RESULTS), tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["freeze"] for row in found] == ["none", "none", "all"]
    assert float(found[2]["test_accuracy_mean"]) == pytest.approx(0.96)
    assert float(found[2]["test_accuracy_half_width_95"]) == pytest.approx(0.024841, rel=1e-3)
    assert found[0]["test_accuracy_half_width_95"] == "" and found[2]["seeds"] == "3"


def test_the_image_is_a_png_with_something_on_it(tmp_path):
    depth.plot(depth.rows(RESULTS), tmp_path / "accuracy.png", "a title " * 20)
    with Image.open(tmp_path / "accuracy.png") as image:
        pixels = np.asarray(image.convert("RGB"))
        assert image.format == "PNG" and image.width >= 800
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert list(tmp_path.iterdir()) == [tmp_path / "accuracy.png"]
