"""The recorded experiments can still be run as they are written."""

import importlib.util
from pathlib import Path

from flax import nnx

from cnnjax import summary
from cnnjax.ablation import cells
from cnnjax.models import Classifier, create, linear_head

FOLDER = Path(__file__).resolve().parents[1] / "experiments"


def opened(name):
    """An experiment as a module; the file's command is not run."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    return record


def test_frozen_depth_on_cats_and_dogs(tmp_path):
    record = opened("frozen_depth_cats_and_dogs")
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


def test_the_lectures_networks_are_the_recorded_ones():
    record = opened("lecture_cnn_from_scratch")
    table = summary(nnx.eval_shape(record.build))
    assert f"{table.parameters:,}" in record.__doc__ and table.layers[-1].output_shape == (None, 1)
    assert record.__doc__.count("%") == 2 * 8 + 2  # eight lines of the table, the test accuracy, MobileNet's
    record = opened("flatten_or_global_max_pooling")
    for pooling in record.POOLINGS:
        table = summary(nnx.eval_shape(lambda pooling=pooling: record.build(pooling, 0)))
        assert f"| {pooling} | {table.parameters:,} |" in record.__doc__


def test_an_experiment_trains_on_a_small_folder(shapes_folder, monkeypatch):
    record = opened("flatten_or_global_max_pooling")
    monkeypatch.setattr(record, "BATCH", 11)
    run = record.Run(shapes_folder, "max")
    run.seed(0, epochs=1)
    assert len(run.test) == 1 and run.line().startswith("| max | 179,306 |")
