"""The recorded experiments can still be run as they are written."""

import importlib.util
from pathlib import Path

from flax import nnx

from cnnjax.ablation import cells
from cnnjax.models import Classifier, create, linear_head

FOLDER = Path(__file__).resolve().parents[1] / "experiments"


def test_frozen_depth_on_cats_and_dogs(tmp_path):
    spec = importlib.util.spec_from_file_location("record", FOLDER / "frozen_depth_cats_and_dogs.py")
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    (tmp_path / "weights.h5").write_bytes(b"")
    config = record.config(tmp_path, tmp_path / "weights.h5")
    backbone = create(
        config.backbone, alpha=config.alpha, input_shape=(160, 160, 3), include_top=False, rngs=nnx.Rngs(0)
    )
    model = Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=nnx.Rngs(0)), "tf")
    grid = cells(config, model)
    assert len(grid) == len(config.freeze) * config.seeds
    # The docstring's table has one line a depth, first trainable layer and rate included.
    for cell in grid:
        assert f"| {cell.freeze} " in record.__doc__ and f"{cell.learning_rate:g}" in record.__doc__
