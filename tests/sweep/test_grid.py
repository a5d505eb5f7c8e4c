"""The sweep's grid: which cells there are, and that what they share is computed once."""

import gc
import json
import weakref

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from cnnjax import FeatureStore, Fitter, Freeze, Recipe, Staged
from cnnjax.data import InMemory
from cnnjax.functional import functionalize, leaves_of
from cnnjax.models import Classifier, lecture_cnn, linear_head, mobilenet
from cnnjax.sweep import runner
from cnnjax.sweep.ablation import sweep
from cnnjax.sweep.data import open_sweep_data
from cnnjax.sweep.grid import cells, subset
from cnnjax.sweep.options import Ablation
from cnnjax.sweep.runner import make_head

QUIET = Console(quiet=True)
pytestmark = pytest.mark.usefixtures("compiled_fast")


def options(shapes_folder, tmp_path, **changes):
    given = dict(
        data=str(shapes_folder), backbone="lecture_cnn", image_size=48,
        freeze=("2", "all"), head="linear", seeds=2, epochs=1, batch_size=16,
        optimizer="adam", out=tmp_path / "run", store=tmp_path / "store",
    )  # fmt: skip
    return Ablation(**(given | changes))


def abstract():
    def build():
        rngs = nnx.Rngs(0)
        backbone = lecture_cnn((48, 48, 3), (4, 8, 8), include_top=False, rngs=rngs)
        return Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=rngs), "unit")

    return nnx.eval_shape(build)


def test_every_combination_is_a_cell(shapes_folder, tmp_path):
    config = options(
        shapes_folder, tmp_path, augment=("none", "lecture"), sizes=(10, 40), methods=("direct", "lp-ft"),
        learning_rates=(1e-3, 1e-2), tuning_factor=0.1,
    )  # fmt: skip
    found = cells(config, abstract())
    assert len({cell.name for cell in found}) == len(found) == 2 * 2 * 2 * 2 * 2 + 2 * 2 * 2 * 2
    assert all(cell.method == "direct" for cell in found if cell.freeze == "all")
    tuned = next(cell for cell in found if cell.method == "lp-ft")
    assert (tuned.learning_rate, tuned.head_rate) == (pytest.approx(1e-4), 1e-3)
    assert tuned.name == "2 rate 0.0001 seed 0 augment none size 10 method lp-ft"
    # Names of a sweep over depth alone stay as they were, so that its run folders are still understood.
    assert cells(options(shapes_folder, tmp_path), abstract(), pretrained=False)[0].name == "2 rate 0.001 seed 0"
    assert cells(options(shapes_folder, tmp_path), abstract())[0].name == "2 rate 0.0001 seed 0"


def test_a_depths_trainer_leaves_memory_when_the_next_comes(shapes_folder, tmp_path, monkeypatch):
    held, most = weakref.WeakSet(), 0

    class Counted(runner.Trainer):
        def __init__(self, *args, **kwargs):
            nonlocal most
            super().__init__(*args, **kwargs)
            held.add(self)
            most = max(most, len(held))

    monkeypatch.setattr(runner, "Trainer", Counted)
    gc.disable()  # as rarely as commands collect
    try:
        config = options(shapes_folder, tmp_path, freeze=("none", "2", "all"), seeds=1)
        sweep(config, open_sweep_data(config, QUIET), QUIET)
    finally:
        gc.enable()
    assert most == 1


def test_a_grid_is_trained_and_told_apart(shapes_folder, tmp_path):
    config = options(shapes_folder, tmp_path, augment=("none", "lecture"), views=2, sizes=(10, 44), seeds=1)
    run = sweep(config, open_sweep_data(config, QUIET), QUIET)
    found = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert len(found) == 2 * 2 * 2
    table = (run / "table.csv").read_text()
    for setting in ("not augmented, 10 images", '"augmented, 44 images'):
        assert setting in table
    # A subset's features are rows of the whole set's: each augmentation decodes the images once.
    passes = {(line["freeze"], line["augment"]): line["decoded_images"] for line in found}
    assert sum(passes.values()) == 44 + 18 + 2 * 44  # training, test; views of training
    assert len({line["test_loss"] for line in found}) == len(found)


def test_head_first_is_the_recipe_of_fine_tuning(shapes_folder, tmp_path):
    config = options(shapes_folder, tmp_path, methods=("lp-ft",), freeze=("2",), epochs=2, seeds=1)
    data = open_sweep_data(config, QUIET)
    run = sweep(config, data, QUIET)
    (found,) = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    recipe = Recipe("finetune", freeze="2", epochs=2, tune_epochs=2, batch_size=16, optimizer="adam", tuning_factor=1.0)
    history = Fitter(data.classifier(make_head(config, data, 0)), recipe, (48, 48)).fit(data.splits["train"]).history
    assert found["train_loss"] == [record["train_loss"] for record in history[2:]]
    assert 0 < found["head_seconds"] < found["seconds"]


def test_subsets_are_balanced_and_lie_in_one_another():
    labels = np.random.default_rng(0).permutation(np.arange(90) % 3)
    large, small = subset(labels, 60), subset(labels, 12)
    assert set(small) < set(large) and np.bincount(labels[small]).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="10 images are not the same number of each of 3 classes"):
        subset(labels, 10)
    with pytest.raises(ValueError, match="93 images need 31 of each class, and one has 30"):
        subset(labels, 93)


def test_wrong_axes_are_refused(shapes_folder, tmp_path):
    with pytest.raises(ValueError, match="sizes must be at least 1 image"):
        options(shapes_folder, tmp_path, sizes=(0,))
    with pytest.raises(ValueError, match="methods: expected at least one"):
        options(shapes_folder, tmp_path, methods=())
    assert options(shapes_folder, tmp_path, augment="lecture").augment == ("lecture",)
    config = options(shapes_folder, tmp_path, sizes=(10, 1000))
    with pytest.raises(ValueError, match="sizes: 1000 images need 500 of each class"):
        sweep(config, open_sweep_data(config, QUIET), QUIET)
    assert not (tmp_path / "run").exists()  # before anything is trained


@pytest.mark.usefixtures("six_blocks")
def test_all_of_mobilenets_depths_make_one_backbone_pass():
    """Equations are counted: the sweep's passes together run each of the backbone's once, and decode once."""
    backbone = mobilenet(alpha=0.25, input_shape=(32, 32, 3), include_top=False, rngs=nnx.Rngs(0))
    functional, leaves = functionalize(backbone), leaves_of(backbone)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
    data, stores = InMemory(pixels, np.arange(4) % 2, ("a", "b")), []
    image = jax.ShapeDtypeStruct((32, 32, 3), np.float32)

    def forward(fixed, images, late):
        return functional.apply({**fixed, **late}, images, train=False)[0]

    for depths in ([*map(Freeze.depth, range(1, 14)), Freeze.depth(13)], [Freeze.depth(13)]):
        store = FeatureStore()
        for freeze in depths:
            # What comes last trains, so that there is something the features are for.
            late, fixed = freeze.resolve(backbone).partition(leaves)
            late = late or {"conv_pw_6_bn/scale": fixed.pop("conv_pw_6_bn/scale")}
            store.get(Staged(forward, fixed, image, late, (4,)), fixed, data, batch=4)
        stores.append(store)
    sweeping, once = stores
    assert len(once.passes) == 1 and once.passes[0].decoded
    assert len(sweeping.passes) >= 12
    assert [made.decoded for made in sweeping.passes] == [True] + [False] * (len(sweeping.passes) - 1)
    equations = sum(made.equations for made in sweeping.passes)
    # A value that two layers read is cast again here and there.
    assert once.passes[0].equations <= equations <= 1.2 * once.passes[0].equations
