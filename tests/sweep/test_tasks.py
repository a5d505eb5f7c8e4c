"""A sweep over frozen depth of a regression: compared, drawn and kept by its own measure."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from cnnjax.cli import main

pytestmark = pytest.mark.usefixtures("compiled_fast")


def test_ablate_compares_depths_by_the_error_in_units(tmp_path, capsys):
    rng, lines = np.random.default_rng(0), ["file,split,size"]
    for k in range(40):
        side = int(rng.integers(4, 40))
        pixels = np.zeros((48, 48, 3), np.uint8)
        pixels[:side, :side] = 255
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        lines.append(f"{k}.png,{'train' if k < 30 else 'test'},{side}")
    (tmp_path / "sizes.csv").write_text("\n".join(lines) + "\n")
    command = [
        "ablate", "--data", str(tmp_path), "--labels", f"{tmp_path}/sizes.csv", "--task", "regression", "--units", "px",
        "--backbone", "lecture_cnn",
        "--image-size", "48", "--head", "linear", "--freeze", "2", "all", "--seeds", "1", "--epochs", "2", "--sizes",
        "20", "--optimizer", "adam", "--out", f"{tmp_path}/run", "--store", f"{tmp_path}/store",
    ]  # fmt: skip
    main(command)
    said = capsys.readouterr().out
    assert "test mae" in said and "px" in said
    found = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [r["freeze"] for r in found] == ["2", "all"]
    for record in found:
        assert 0 < record["test_mae"] <= record["test_rmse"] and len(record["train_mae"]) == 2
    with (tmp_path / "run" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["test_mae_mean"]) for row in rows] == pytest.approx([r["test_mae"] for r in found], abs=1e-5)
    with Image.open(tmp_path / "run" / "mae.png") as image:
        assert image.width > 500
    options = json.loads((tmp_path / "run" / "config.json").read_text())
    assert options["task"] == "regression" and options["units"] == ["px"]
