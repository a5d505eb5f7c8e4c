"""The recorded experiments can still be run as they are written."""

import ast
import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import cnnjax
from cnnjax import FeatureStore, summary
from cnnjax.data import InMemory, in_memory, open_splits
from cnnjax.fit.recipe import phases
from cnnjax.models import Classifier, create, linear_head
from cnnjax.sweep.grid import cells

FOLDER = Path(__file__).resolve().parents[1] / "experiments"


def opened(name):
    """An experiment as a module; the file's command is not run."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    record = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(record)
    return record


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_an_experiment_needs_nothing_that_is_not_public(path):
    """It imports from `cnnjax` and its packages what these give: no deep module, nothing private."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert all(name.name.count(".") == 0 for name in node.names if name.name.startswith("cnnjax"))
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "cnnjax":
            continue
        names = [name.name for name in node.names]
        assert node.module.count(".") <= 1, node.module
        public = {*importlib.import_module(node.module).__all__}
        if node.module == "cnnjax":
            public |= {*cnnjax.models.BACKBONES}
        assert set(names) <= public, (node.module, set(names) - public)


def test_frozen_depth_on_cats_and_dogs(tmp_path):
    record = opened("frozen_depth_cats_and_dogs")
    (tmp_path / "weights.h5").write_bytes(b"")
    config = record.config(tmp_path, tmp_path / "weights.h5")
    backbone = create(
        config.backbone, **config.backbone_options, input_shape=(160, 160, 3), include_top=False, rngs=nnx.Rngs(0)
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


def test_how_transferable_copies_freezes_and_tunes_as_its_names_say(monkeypatch):
    record = opened("how_transferable")
    for name, value in {"BATCH": 8, "IMAGES": 8, "EPOCHS": 1, "DEPTHS": (3,)}.items():
        monkeypatch.setattr(record, name, value)
    rng, names = np.random.default_rng(0), ("ant", "bee", "cow", "dog", "eel", "fox")
    images = {
        split: InMemory(rng.integers(0, 255, (6 * count, 32, 32, 3), np.uint8), np.repeat(range(6), count), names)
        for split, count in (("train", 10), ("test", 3))
    }
    halves = record.halves(images, 1)
    assert {*halves["A"]["train"].class_names} ^ {*halves["B"]["test"].class_names} == {*names}
    assert np.bincount(halves["A"]["train"].labels).tolist() == [8, 8, 8]
    for source, split in ((halves["B"]["test"], "test"), (halves["A"]["train"], "train")):
        for image, label in zip(source.images, source.labels, strict=True):
            (found,) = np.flatnonzero((images[split].images == image).all((1, 2, 3)))
            assert names[images[split].labels[found]] == source.class_names[label]

    study, calls = record.Study(images), []
    fit = study.fit
    monkeypatch.setattr(study, "fit", lambda *given: calls.append((given, fit(*given))) or calls[-1][1])
    cells = study.seed(1)
    assert list(cells) == [("baseA", 0), ("baseB", 0), ("BnB", 3), ("BnB+", 3), ("AnB", 3), ("AnB+", 3)]
    base = {half: state.trainable for half, (_, (state, _)) in zip("AB", calls, strict=False)}
    test, kernels = halves["B"]["test"], [f"backbone/conv2d_{k}/kernel" for k in range(1, 5)]
    kernels += ["backbone/dense_1/kernel", "backbone/dense_2/kernel"]
    for (name, n), ((depth, start, rows, _), (state, scores)) in list(zip(cells, calls, strict=True))[2:]:
        assert depth == (0 if name.endswith("+") else n)
        copied = [bool((start[path] == base[name[0]][path]).all()) for path in kernels]
        assert copied == [True] * n + [False] * (6 - n)
        assert [path in state.trainable for path in kernels] == [k >= depth for k in range(6)]
        # The whole network on the images themselves: no features, no program of the trainer.
        model = study.trainers[0].functional.module(start | state.trainable)
        logits = model(test.images)
        np.testing.assert_allclose(logits, study.trainers[depth].predict(state, rows["test"])[1], rtol=1e-3, atol=1e-4)
        assert np.isclose((np.argmax(logits, -1) == test.labels).mean(), scores.test)
    for trainer in study.trainers.values():
        assert set(trainer.traces.values()) == {1}

    seeds = [
        dict(cells) | {("baseB", 0): record.Scores(base, 1), ("AnB", 3): record.Scores(0.4, 1)} for base in (0.6, 0.8)
    ]
    lines = record.tables(seeds).splitlines()
    assert lines[2].startswith("| baseB | 70.0 ± 127.1 |")  # t(0.975, 1) = 12.706 of the mean's error, 0.1
    assert lines[-1].split("|")[4] == " -30.0 ± 127.1 "


def test_training_sizes_on_drawn_images(shapes_folder, shared_data, monkeypatch):
    record = opened("training_size")
    splits = {name: in_memory(source, 2**30) for name, source in open_splits(shapes_folder, record.IMAGE).items()}
    small, large, other = (record.draw(splits["train"], *how) for how in ((10, 0), (20, 0), (10, 1)))
    assert np.bincount(small.labels).tolist() == [5, 5] and np.bincount(large.labels).tolist() == [10, 10]
    among = [{image.tobytes() for image in source.images} for source in (small, large, other)]
    assert len(among[0]) == 10 and among[0] < among[1] and among[0] != among[2]

    for size in record.SIZES:
        assert f"| {size:,} |" in record.__doc__ and size % record.BATCH == 0  # no batch is filled up
    model = nnx.eval_shape(lambda: record.build(None, 0))
    free = [phases(record.recipe(method, 200), model)[-1].frozen.layers for method in record.METHODS]
    assert [len(layers) for layers in free] == [0, 86, 49]
    assert free[2][-1] == "conv_pw_7_relu"

    recipe = record.recipe
    monkeypatch.setattr(record, "recipe", lambda method, size: replace(recipe(method, size), epochs=60))
    monkeypatch.setattr(record, "SEEDS", (0, 1))
    weights = shared_data / "weights" / "mobilenet_2_5_224_tf_no_top.h5"
    found = record.run("frozen", 20, splits, weights, FeatureStore())
    assert [(result.training, result.test, len(result.history)) for result in found] == [(1.0, 1.0, 60)] * 2


def test_frozen_depth_and_training_size(shapes_folder, shared_data, monkeypatch):
    record = opened("frozen_depth_and_training_size")
    model = nnx.eval_shape(lambda: record.build(None, 0))
    for freeze, first in record.DEPTHS.items():
        assert f"| {freeze} | {first} |" in record.__doc__
        frozen = phases(record.recipe(freeze, 500), model)[-1].frozen.layers
        free = [name for name in model.backbone.layer_names if name not in {"input_layer", *frozen}]
        assert (free or ["head"])[0] == first

    recipe = record.recipe
    monkeypatch.setattr(record, "recipe", lambda freeze, size: replace(recipe(freeze, size), epochs=60))
    monkeypatch.setattr(record, "SEEDS", (0, 1))
    splits = {name: in_memory(source, 2**30) for name, source in open_splits(shapes_folder, record.IMAGE).items()}
    weights = shared_data / "weights" / "mobilenet_2_5_224_tf_no_top.h5"
    assert record.run("all", 20, splits, weights, FeatureStore()) == [1.0, 1.0]
    results = {100: {"all": [0.6, 0.6], "9": [0.7, 0.9]}}
    # t(0.975, 1) = 12.706 of the mean's error, 0.1
    assert record.line("9", results) == "| 9 | conv_dw_5 | 80.0 ± 127.1 | +20.0 ± 127.1 |"


def test_the_transfer_methods_are_the_recorded_ones():
    record = opened("transfer_methods")
    for name, recipe in record.RECIPES.items():
        assert f"| {name} |" in record.__doc__ and recipe.epochs == record.EPOCHS
    model = nnx.eval_shape(lambda: record.model(None, 0))
    head, tune = phases(record.RECIPES["1, then conv_pw_12 on tuned"], model)
    free = {layer for layer in model.backbone.layer_names if layer not in tune.frozen.layers}
    assert "conv_pw_12" in free and "conv_dw_12" not in free and len(head.frozen.layers) == 86
