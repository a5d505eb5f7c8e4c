"""Training by recipe, against the same steps taken by hand, Keras's formulas and the records themselves."""

import dataclasses

import jax
import keras
import numpy as np
import optax
import pytest
from flax import nnx
from small import SIZE, images, make

from cnnjax import Freeze, Trainer
from cnnjax.data import InMemory
from cnnjax.fit import Fitter, Recipe, find_rate
from cnnjax.functional import leaves_of
from cnnjax.metrics import Journal
from cnnjax.metrics.journal import read
from cnnjax.models import Classifier, vgg16
from cnnjax.models.heads import linear_head
from cnnjax.optim import averaged, make_optimizer
from cnnjax.train.tasks import Classification

pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture(scope="module")
def train():
    return images(50, 0)


@pytest.fixture(scope="module")
def validation():
    return images(30, 1)


@pytest.fixture(scope="module")
def tuned(train, validation, tmp_path_factory):
    recipe = Recipe("finetune", unfreeze_from="conv_2", epochs=3, tune_epochs=2, batch_size=8, optimizer="adam")
    fitter = Fitter(make(), recipe, SIZE)
    journal = Journal(tmp_path_factory.mktemp("fit") / "metrics.jsonl")
    return fitter, fitter.fit(train, validation, journal=journal), journal


def test_two_phases_are_the_two_trainings_by_hand(tuned, train):
    """Bit for bit what `Trainer` gives: the head, then conv_2 on, a fresh optimizer at a tenth of the rate."""
    _, fitted, _ = tuned
    model, leaves, step = make(), {}, 0
    for freeze, epochs, rate in ((Freeze.all(), 3, 1e-3), (Freeze.slice(None, 3), 2, 1e-4)):
        trainer = Trainer(model, freeze.resolve(model, "backbone"), SIZE, batch_size=8, optimizer="adam")
        state = trainer.init(leaves, rate)
        state = state._replace(step=jax.numpy.array(step))
        state, _ = trainer.fit(state, trainer.rows(train), epochs=epochs)
        leaves, step = {**leaves, **state.trainable, **state.statistics}, int(state.step)
    assert {path for path in leaves if path.startswith("backbone")} == {
        f"backbone/{path}"
        for path in ("conv_2/kernel", "conv_2/bias", "bn_2/scale", "bn_2/bias", "bn_2/mean", "bn_2/var")
    }
    for path, value in leaves.items():
        np.testing.assert_array_equal(fitted.leaves[path], value, err_msg=path)
    before = leaves_of(make())
    np.testing.assert_array_equal(fitted.leaves["backbone/conv_1/kernel"], before["backbone/conv_1/kernel"])


def test_every_epoch_is_recorded_as_it_ends(tuned):
    _, fitted, journal = tuned
    assert [(r["phase"], r["epoch"]) for r in fitted.history] == [
        ("head", 0), ("head", 1), ("head", 2), ("tune", 3), ("tune", 4)
    ]  # fmt: skip
    times = {"seconds", "compile_seconds", "images_per_second"}
    assert read(journal.path) == [{k: v for k, v in r.items() if k not in times} for r in fitted.history]
    keys = {"train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "learning_rate", "seconds"}
    assert all(keys <= set(record) for record in fitted.history)
    assert fitted.best == 4 and set(fitted.seconds) == {"features", "training", "evaluation"}


def test_another_seed_computes_no_feature_and_compiles_nothing(tuned, train, validation):
    fitter, first, _ = tuned
    passes, traces = len(fitter.store.passes), [fitter.trainer(k, 50).traces.copy() for k in range(2)]
    other = fitter.fit(
        train, validation, seed=1, leaves={f"head/{p}": x for p, x in leaves_of(make(seed=1).head).items()}
    )
    assert len(fitter.store.passes) == passes == 4  # two splits, twice
    assert [fitter.trainer(k, 50).traces for k in range(2)] == traces
    assert other.history[0]["train_loss"] != first.history[0]["train_loss"]
    again = fitter.fit(train, validation)
    assert [r["train_loss"] for r in again.history] == [r["train_loss"] for r in first.history]


def test_the_best_weights_are_kept_and_training_stops(train):
    """Labels of the validation images are swapped: training only makes them worse, so the first epoch is best."""
    swapped = images(30, 1)
    swapped.labels = 1 - swapped.labels
    model = make()
    options = dict(epochs=9, batch_size=8, optimizer="adam", learning_rate=0.05)
    stopped = Fitter(model, Recipe("scratch", patience=2, **options), SIZE).fit(train, swapped)
    losses_seen = [record["validation_loss"] for record in stopped.history]
    best = int(np.argmin(losses_seen))
    assert len(losses_seen) == best + 3 < 9 and stopped.best == best
    kept = Fitter(model, Recipe("scratch", keep="best", **options), SIZE)
    found = kept.fit(train, swapped)
    assert len(found.history) == 9 and found.best == best
    trainer = kept.trainer(0, len(train))
    assert trainer.evaluate(trainer.init(live(trainer, found)), trainer.rows(swapped, train=False))["loss"] == (
        pytest.approx(min(losses_seen), rel=1e-6)
    )
    with pytest.raises(ValueError, match="give validation images"):
        kept.fit(train)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("finetune", freeze="none", patience=2, epochs=3, tune_epochs=4, batch_size=8, optimizer="adam"),
        Recipe("gradual", stages=("conv_1", "none"), keep="best", ema=0.5, epochs=2, tune_epochs=2, batch_size=8),
    ],
    ids=["finetune", "gradual"],
)
def test_what_a_phase_starts_from_is_kept_where_no_epoch_of_it_is_better(train, recipe):
    """Training on swapped labels makes all later phases worse than the head's first epoch."""
    swapped = images(30, 1)
    swapped.labels = 1 - swapped.labels
    fitter = Fitter(make(), dataclasses.replace(recipe, learning_rate=0.02, tuning_factor=1.0), SIZE)
    found = fitter.fit(train, swapped)
    seen = [record["validation_loss"] for record in found.history]
    best = int(np.argmin(seen))
    assert found.best == best and found.history[best]["phase"] == "head"
    for number, phase in enumerate(fitter.phases[1:], 1):
        own = [record["validation_loss"] for record in found.history if record["phase"] == phase.name]
        # As Keras's EarlyStopping counts with the candidate's loss as its baseline.
        assert min(own) > seen[best] and len(own) == (recipe.patience or phase.epochs), number
    logits = fitter.outputs(found, swapped, len(train)).astype(np.float64)[:, 0]
    loss = np.log1p(np.exp(np.where(swapped.labels == 1, -logits, logits))).mean()
    assert loss == pytest.approx(seen[best], rel=1e-5)
    # What trained in vain is as it was.
    before = leaves_of(make())
    for path in ("backbone/conv_2/kernel", "backbone/bn_2/mean"):
        np.testing.assert_array_equal(found.leaves[path], before[path])


def test_a_later_phase_that_is_better_is_kept_as_before(train, validation):
    recipe = Recipe("finetune", freeze="none", keep="best", epochs=2, tune_epochs=3, batch_size=8, optimizer="adam")
    found = Fitter(make(), recipe, SIZE).fit(train, validation)
    seen = [record["validation_loss"] for record in found.history]
    assert found.best == int(np.argmin(seen)) >= 2


def live(trainer, fitted):
    random = trainer.functional.random()
    return {path: x for path, x in fitted.leaves.items() if path not in random}


def test_the_moving_average_is_what_is_kept(train):
    """Against Keras's formula, over the weights that each step of a plain run gives."""
    plain = Recipe("features", epochs=2, batch_size=25, optimizer="sgd", learning_rate=0.5)
    averaging = Recipe("features", epochs=2, batch_size=25, optimizer="sgd", learning_rate=0.5, ema=0.8)
    model = make()
    trainer = Fitter(model, plain, SIZE).trainer(0, 50)
    rows, state, mean = trainer.rows(train), trainer.init(), None
    for epoch in range(2):
        for step in trainer.steps(state, rows, epoch=epoch):
            state = step[0]
            kernel = np.array(state.trainable["head/dense/kernel"])
            mean = kernel if mean is None else 0.8 * mean + 0.2 * kernel
    found = Fitter(model, averaging, SIZE).fit(train)
    np.testing.assert_allclose(found.leaves["head/dense/kernel"], mean, rtol=1e-5)


@pytest.mark.parametrize(("batchnorm", "moves"), [("live", True), ("frozen", False)])
def test_statistics_follow_the_batch_or_stay(train, batchnorm, moves):
    model = make()
    recipe = Recipe("scratch", epochs=1, batch_size=25, batchnorm=batchnorm)
    found = Fitter(model, recipe, SIZE).fit(train).leaves
    before = leaves_of(model)
    assert (np.abs(found["backbone/bn_1/mean"] - before["backbone/bn_1/mean"]).max() > 0) == moves
    assert np.abs(found["backbone/bn_1/scale"] - before["backbone/bn_1/scale"]).max() > 0


def test_layers_learn_at_their_factors_of_the_rate(train):
    """One step of SGD: each layer's move is its gradient times the rate times 0.5 for each layer above."""
    moves = []
    for factor in (1.0, 0.5):
        model = make()
        recipe = Recipe("scratch", epochs=1, batch_size=50, optimizer="sgd", learning_rate=0.1, layer_factor=factor)
        found, before = Fitter(model, recipe, SIZE).fit(train).leaves, leaves_of(model)
        moves.append({p: found[p] - before[p] for p in found if p.endswith(("kernel", "scale"))})
    for path, factor in (("backbone/conv_1/kernel", 0.25), ("backbone/bn_2/scale", 0.5), ("head/dense/kernel", 1.0)):
        # Differences of weights near 1 carry a few units in the last place.
        np.testing.assert_allclose(moves[1][path], factor * moves[0][path], rtol=1e-3, atol=2e-7)


def test_groups_learn_at_their_factors_of_the_rate(train):
    moves = []
    for groups in (None, {"*/conv_2": 0.5, "backbone": 0.25}):
        model = make()
        recipe = Recipe(
            "scratch", epochs=1, batch_size=50, optimizer="sgd", learning_rate=0.1, learning_rate_groups=groups
        )
        found, before = Fitter(model, recipe, SIZE).fit(train).leaves, leaves_of(model)
        moves.append({p: found[p] - before[p] for p in found if p.endswith("kernel")})
    for path, factor in (("backbone/conv_1/kernel", 0.25), ("backbone/conv_2/kernel", 0.5), ("head/dense/kernel", 1.0)):
        np.testing.assert_allclose(moves[1][path], factor * moves[0][path], rtol=1e-3, atol=2e-7)
    with pytest.raises(ValueError, match=r"'conv_9\*'; did you mean 'backbone/conv_"):
        Fitter(model, Recipe(learning_rate_groups={"conv_9*": 0.5}), SIZE)


def test_accumulated_batches_make_the_step_of_one_large_batch(train):
    model, kernels = make(), []
    for batch, accumulate in ((50, 1), (10, 5)):
        recipe = Recipe(
            "features", epochs=3, batch_size=batch, accumulate=accumulate, optimizer="sgd", learning_rate=0.1
        )
        quiet = nnx.clone(model)
        quiet.head.dropout.rate = 0.0
        kernels.append(Fitter(quiet, recipe, SIZE).fit(train).leaves["head/dense/kernel"])
    np.testing.assert_allclose(kernels[0], kernels[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("outputs", [1, 4])
def test_label_smoothing_is_keras(outputs):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(9, outputs)).astype(np.float32)
    labels = rng.integers(0, max(outputs, 2), 9)
    given = jax.numpy.asarray(logits), jax.numpy.asarray(labels)
    ours, smooth = Classification(smoothing=0.3).scores(*given)
    if outputs == 1:
        theirs = keras.losses.binary_crossentropy(labels[:, None], logits, from_logits=True, label_smoothing=0.3)
    else:
        hot = np.eye(outputs)[labels]
        theirs = keras.losses.categorical_crossentropy(hot, logits, from_logits=True, label_smoothing=0.3)
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-5)
    np.testing.assert_array_equal(smooth["accuracy"], Classification().scores(*given)[1]["accuracy"])


def test_schedules_cover_a_phase(train):
    """The updates of SGD on a constant gradient follow warm-up and half a cosine over the phase's steps."""
    model = make()
    fitter = Fitter(model, Recipe("features", epochs=4, batch_size=25, schedule="cosine", warmup=0.25), SIZE)
    optimizer = fitter.trainer(0, 50).optimizer
    theirs = make_optimizer("rmsprop", schedule=optax.join_schedules(
        [optax.linear_schedule(1 / 3, 1.0, 2), optax.cosine_decay_schedule(1.0, 6)], [2])
    )  # fmt: skip
    weights = {"w": jax.numpy.ones(3)}
    for tx in (optimizer, theirs):
        state, moves = tx.init(weights), []
        for _ in range(8):
            updates, state = tx.update({"w": jax.numpy.ones(3)}, state, weights)
            moves.append(float(updates["w"][0]))
        if tx is optimizer:
            ours = moves
    np.testing.assert_allclose(ours, moves, rtol=1e-5, atol=1e-9)


def test_gradual_unfreezing_carries_the_optimizer(train):
    """Fresh second moments would make the head jump: the first step of a stage is as long as the one before it."""
    recipe = Recipe("gradual", stages=("conv_1", "none"), epochs=3, tune_epochs=1, batch_size=50, tuning_factor=1.0)
    fitter = Fitter(make(), recipe, SIZE)
    history = fitter.fit(train).history
    assert [record["phase"] for record in history] == ["head"] * 3 + ["stage 1", "stage 2"]
    assert len({len(fitter.trainer(k, 50).init().trainable) for k in range(3)}) == 3


def test_a_stage_starts_from_what_was_kept(train, monkeypatch):
    """The best weights may be early ones: the average goes on from them; the second moments are the last step's."""
    swapped, starts, ends = images(30, 1), [], []
    swapped.labels = 1 - swapped.labels
    run = Trainer.fit

    def watched(trainer, state, rows, **options):
        starts.append(jax.device_get(state))
        state, log = run(trainer, state, rows, **options)
        ends.append(jax.device_get(state))
        return state, log

    monkeypatch.setattr(Trainer, "fit", watched)
    recipe = Recipe(
        "gradual", stages=("none",), epochs=3, tune_epochs=1, batch_size=25, ema=0.5, keep="best", optimizer="adam"
    )
    Fitter(make(), recipe, SIZE).fit(train, swapped)
    kept, moments = averaged(starts[1].optimizer), starts[1].optimizer.inner_state[1]
    for path, weights in starts[1].trainable.items():
        np.testing.assert_array_equal(kept[path], weights)
    for path, weights in ends[0].trainable.items():
        assert np.abs(starts[1].trainable[path] - weights).max() > 0
        old, new = (jax.tree.leaves(m[path]) for m in (ends[0].optimizer.inner_state[1], moments))
        assert all(np.array_equal(a, b) for a, b in zip(old, new, strict=True)) and np.abs(old[-1]).max() > 0


def test_many_classes_and_wrong_ones():
    data = images(40, 0, classes=4)
    found = Fitter(make(4), Recipe("scratch", epochs=15, batch_size=8, optimizer="adam", learning_rate=0.01), SIZE)
    assert found.fit(data).history[-1]["train_accuracy"] > 0.5  # by chance 0.25
    with pytest.raises(ValueError, match="labels 0 to 3 do not fit 1 logit"):
        Fitter(make(2), Recipe(), SIZE).fit(data)


def test_what_would_train_nothing_or_be_lost_is_refused(train):
    recipe = Recipe("finetune", unfreeze_from="conv_2", epochs=9, tune_epochs=1, batch_size=25, accumulate=4)
    with pytest.raises(ValueError, match="accumulate: 4 batches make a step, and the phase 'tune' has 2 in all"):
        Fitter(make(), recipe, SIZE).fit(train)
    fitter = Fitter(make(), Recipe(epochs=1), SIZE)
    with pytest.raises(ValueError, match="leaves: backbone/.* frozen in the first phase"):
        fitter.fit(train, leaves=leaves_of(make(seed=1)))
    with pytest.raises(ValueError, match="seed: expected a whole number from 0 on, found -1"):
        fitter.fit(train, seed=-1)


def test_the_range_test_finds_the_edge_of_stability(train):
    """The suggestion lies below the rate of the lowest loss; one program runs all steps; the model stays."""
    model = make()
    trainer = Fitter(model, Recipe("scratch", batch_size=10, optimizer="sgd"), SIZE).trainer(0, 50)
    before = leaves_of(model)
    test = find_rate(trainer, trainer.rows(train), low=1e-4, high=1e4, steps=80)
    assert len(test.rates) <= 80 and test.suggested is not None
    assert test.suggested < test.rates[int(test.smoothed.argmin())]
    np.testing.assert_allclose(np.diff(np.log(test.rates)), np.log(1e8) / 79, rtol=1e-6)
    assert trainer.traces == {"step": 1}
    for path, value in leaves_of(model).items():
        if not jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(value, before[path])
    with pytest.raises(ValueError, match="needs 0 < low < high"):
        find_rate(trainer, trainer.rows(train), low=1.0, high=0.1)
    with pytest.raises(ValueError, match="needs 10 or more"):
        find_rate(trainer, trainer.rows(train), steps=3)


def test_vgg16_is_tuned_from_block5_on():
    """The lecture's fine-tuning on the real architecture: what lies before block5_conv1 stays to the last bit."""
    rngs = nnx.Rngs(0)
    backbone = vgg16((32, 32, 3), include_top=False, rngs=rngs)
    model = Classifier(backbone, linear_head(backbone.output_shape(), 2, rngs=rngs), "caffe")
    rng = np.random.default_rng(0)
    data = InMemory(rng.integers(0, 255, (8, 32, 32, 3), np.uint8), np.arange(8) % 2, ("a", "b"))
    recipe = Recipe("finetune", unfreeze_from="block5_conv1", epochs=1, tune_epochs=1, batch_size=8)
    found, before = Fitter(model, recipe, (32, 32)).fit(data).leaves, leaves_of(model)
    moved = {path.rpartition("/")[0] for path in found if (np.asarray(found[path]) != np.asarray(before[path])).any()}
    assert moved == {"head/dense", *(f"backbone/block5_conv{k}" for k in (1, 2, 3))}
