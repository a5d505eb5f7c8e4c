"""An epoch's short last batch beside Keras's: what fills it up counts in nothing."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx

from cnnjax import Freeze, Trainer
from cnnjax.data import InMemory
from cnnjax.data.order import epoch_batches
from cnnjax.fit import Fitter, Recipe
from cnnjax.functional import leaves_of
from cnnjax.models.layers import batch_normalization
from cnnjax.train.counting import batch_of, counting
from cnnjax.train.replicas import Replicas

SIZE, COUNT, BATCH, RATE, EPOCHS = (4, 4), 29, 8, 0.5, 2
pytestmark = pytest.mark.usefixtures("compiled_fast")


def flax_norm(features, rngs):
    return nnx.BatchNorm(features, epsilon=1e-3, momentum=0.99, rngs=rngs)


class Net(nnx.Module):
    def __init__(self, norm=lambda features, rngs: batch_normalization(features, rngs=rngs)):
        rngs = nnx.Rngs(0)
        self.norm, self.hidden = norm(3, rngs), nnx.Linear(3, 4, rngs=rngs)
        self.norm_2, self.logits = norm(4, rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.hidden(nnx.relu(self.norm(x / 255))))
        return self.logits(self.norm_2(x).mean((1, 2)))


def images(count=COUNT):
    """Bright and dark ones, so that a batch's statistics depend on who is in it."""
    random = np.random.default_rng(0)
    images = random.integers(0, 100, (count, *SIZE, 3)) + random.integers(0, 156, (count, 1, 1, 1))
    return InMemory(images.astype(np.uint8), random.integers(0, 2, count), ("a", "b"))


def trainer(model=None, **options):
    model = model or Net()
    options = {"batch_size": BATCH, "optimizer": optax.sgd(RATE)} | options
    return Trainer(model, Freeze.none().resolve(model), SIZE, **options)


def in_keras(last_batch="pad", count=COUNT):
    """The same batches in the same order, the last one short, or left out."""
    names = ("norm", "relu", "hidden", "norm_2", "pool", "logits")
    layers = (
        keras.layers.BatchNormalization(), keras.layers.ReLU(), keras.layers.Dense(4, activation="relu"),
        keras.layers.BatchNormalization(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2),
    )  # fmt: skip
    model = keras.Sequential([keras.Input((*SIZE, 3)), *layers])
    of = {
        f"{name}/{ours}": getattr(layer, theirs)
        for name, layer in zip(names, layers, strict=True)
        for ours, theirs in (("kernel", "kernel"), ("scale", "gamma"), ("mean", "moving_mean"),
                             ("var", "moving_variance"), ("bias", "beta" if "norm" in name else "bias"))
        if hasattr(layer, theirs)
    }  # fmt: skip
    for path, value in leaves_of(Net()).items():
        of[path].assign(value)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(RATE), loss)
    source = images(count)
    pixels = source.read(np.arange(count)) / 255
    for epoch in range(EPOCHS):
        for index, weights in zip(*epoch_batches(count, BATCH, 0, epoch), strict=True):
            real = index[weights > 0]
            if len(real) == BATCH or last_batch == "pad":
                model.train_on_batch(pixels[real], source.labels[real])
    return {path: np.asarray(value) for path, value in of.items()}


@pytest.fixture(scope="module")
def theirs():
    return {how: in_keras(how) for how in ("pad", "drop")}


def by_steps(own):
    state, rows = own.init(), own.rows(images())
    for epoch in range(EPOCHS):
        state = list(own.steps(state, rows, epoch=epoch))[-1][0]
    return own.leaves(state)


def by_epochs(own):
    rows = own.rows(images())
    state, log = own.fit(own.init(), rows, epochs=EPOCHS)
    assert len(log) == EPOCHS and sum(own.traces.values()) == 1
    return own.leaves(state)


def together(own):
    state, _ = Replicas(own).fit([own.init(), own.init()], own.rows(images()), epochs=EPOCHS, seeds=(0, 1))
    return own.leaves(state[0])


def by_recipe(last_batch):
    model = Net()
    recipe = Recipe(
        "scratch", epochs=EPOCHS, batch_size=BATCH, optimizer="sgd", learning_rate=RATE, last_batch=last_batch
    )
    return Fitter(model, recipe, SIZE, within="").fit(images()).leaves


WAYS = {
    "epochs": lambda how: by_epochs(trainer(last_batch=how)),
    "flax": lambda how: by_epochs(trainer(Net(flax_norm), last_batch=how)),
    "steps": lambda how: by_steps(trainer(last_batch=how)),
    "stream": lambda how: by_epochs(trainer(last_batch=how, stream=True)),
    "replicas": lambda how: together(trainer(last_batch=how)),
    "recipe": by_recipe,
}


@pytest.mark.parametrize("last_batch", ["pad", "drop"])
@pytest.mark.parametrize("way", WAYS)
def test_weights_and_statistics_are_keras_s(way, last_batch, theirs):
    found, start = WAYS[way](last_batch), leaves_of(Net())
    for path, value in theirs[last_batch].items():
        moved = np.abs(value - start[path]).max()
        assert moved > 1e-3, path
        np.testing.assert_allclose(found[path], value, rtol=0, atol=2e-4 * moved, err_msg=path)


def test_what_fills_up_is_not_seen():
    """Another image in its place changes no bit; without a mask it does."""
    source, own = images(), trainer()
    rows = own.rows(source)
    assert own.masks(len(rows))
    weights = np.array([1] * 5 + [0] * 3, np.float32)

    def step(fill, masked):
        index = np.array([0, 1, 2, 3, 4, *fill], np.int32)
        context = own.context(rows)
        state, metrics = own.programs.taking_step(
            own.init(), context, rows.arrays, rows.labelled, index, weights, index, np.uint32(0),
            decoded=rows.decoded, masked=masked,
        )  # fmt: skip
        return jax.device_get({**state.trainable, **state.statistics, "loss": metrics.loss, "count": metrics.count})

    def equal(a, b):
        return all(np.array_equal(a[p], b[p]) for p in a)

    assert equal(step((5, 6, 7), True), step((9, 9, 20), True))
    assert not equal(step((5, 6, 7), False), step((9, 9, 20), False))


@pytest.mark.parametrize("norm", [lambda features, rngs: batch_normalization(features, rngs=rngs), flax_norm])
def test_a_batch_of_nothing_moves_no_weight(norm):
    own = trainer(Net(norm))
    rows = own.rows(images())
    assert own.masks(len(rows))
    before = jax.device_get(own.init())
    index, nothing = np.arange(BATCH, dtype=np.int32), np.zeros(BATCH, np.float32)
    state, metrics = own.programs.taking_step(
        own.init(), own.context(rows), rows.arrays, rows.labelled, index, nothing, index, np.uint32(0),
        decoded=rows.decoded, masked=True,
    )  # fmt: skip
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, metrics)))
    for path, value in before.trainable.items():
        np.testing.assert_array_equal(state.trainable[path], value)


def test_whole_batches_and_frozen_statistics_go_without_a_mask():
    """The program and its numbers are those of a trainer that never fills up, bit for bit."""
    source = images(24)
    found = []
    for how in ("pad", "drop"):
        own = trainer(last_batch=how)
        state, _ = own.fit(own.init(), own.rows(source), epochs=2)
        assert "masked" not in vars(own.staged_model) and own.traces["epoch"] == 1
        found.append(own.leaves(state))
    for path, value in found[0].items():
        np.testing.assert_array_equal(found[1][path], value)
    model = Net()
    frozen = Freeze.none().resolve(model, live_statistics=False)
    assert not Trainer(model, frozen, SIZE, batch_size=BATCH).masks(COUNT)


def test_more_examples_and_fewer_are_each_right():
    """One trainer, sets that fill the last batch and that do not: each as by a trainer of its own."""
    own = trainer()
    for count in (16, COUNT):
        alone = trainer()
        state, _ = own.fit(own.init(), own.rows(images(count)), epochs=1)
        expected, _ = alone.fit(alone.init(), alone.rows(images(count)), epochs=1)
        for path, value in alone.leaves(expected).items():
            np.testing.assert_array_equal(own.leaves(state)[path], value)


@nnx.jit
def compiled(norm, x):
    return norm(x)


class Compiled(Net):
    def __call__(self, x):
        x = nnx.relu(self.hidden(nnx.relu(compiled(self.norm, x / 255))))
        return self.logits(compiled(self.norm_2, x).mean((1, 2)))


def test_a_part_that_is_compiled_by_itself_is_not_taken_from_another_trace(theirs):
    for count in (24, COUNT):
        own = trainer(Compiled())
        state, _ = own.fit(own.init(), own.rows(images(count)), epochs=EPOCHS)
    for path, value in theirs["pad"].items():
        np.testing.assert_allclose(own.leaves(state)[path], value, atol=1e-4, err_msg=path)


class Merged(Net):
    def __call__(self, x):
        x = self.norm(x.reshape(-1, 3) / 255).reshape(-1, *SIZE, 3)
        return self.logits(self.norm_2(nnx.relu(self.hidden(x))).mean((1, 2)))


class Centred(nnx.Module):
    """A normalisation that keeps statistics of its own."""

    def __init__(self, features, rngs):
        self.mean, self.use_running_average = nnx.BatchStat(jnp.zeros(features)), False

    def __call__(self, x):
        if self.use_running_average:
            return x - self.mean
        mean = x.mean((0, 1, 2))
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
        return x - mean


class Spectral(Net):
    """Statistics that are of the weights alone."""

    def __init__(self):
        super().__init__()
        self.spectral = nnx.SpectralNorm(self.hidden, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.logits(self.norm_2(self.spectral(x / 255, update_stats=True)).mean((1, 2)))


def test_statistics_of_weights_are_no_hindrance():
    own = trainer(Spectral())
    state, _ = own.fit(own.init(), own.rows(images()), epochs=1)
    assert [p for p, x in state.statistics.items() if "spectral" in p and (x != leaves_of(Spectral())[p]).any()]


class Maskless(nnx.BatchNorm):
    def __call__(self, x):
        return super().__call__(x)


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (lambda: Merged(), r"of 8 rows a BatchNormalization of the model normalises an array \[128, 3\]"),
        (lambda: Net(lambda n, rngs: Maskless(n, rngs=rngs)), "a Maskless of the model takes no mask"),
        (lambda: Net(Centred), "norm/mean is made from the batch, and is no statistic of an nnx.BatchNorm"),
    ],
)
def test_where_rows_cannot_be_told_apart_it_says_so(model, fault):
    own = trainer(model())
    with pytest.raises(ValueError, match=rf"the last batch of 29 examples has 5 of 8, .*{fault}.*last_batch='drop'"):
        own.fit(own.init(), own.rows(images()), epochs=1)
    own.fit(own.init(), own.rows(images(24)), epochs=1)
    other = trainer(model(), last_batch="drop")
    state, log = other.fit(other.init(), other.rows(images()), epochs=1)
    assert log[0]["steps"] == int(state.step) == 3


def test_all_that_there_is_is_not_dropped():
    own = trainer(last_batch="drop")
    with pytest.raises(ValueError, match="7 examples are the only one of 8.*at most 7, or last_batch='pad'"):
        own.fit(own.init(), own.rows(images(7)), epochs=1)
    assert own.evaluate(own.init(), own.rows(images(7), train=False))["loss"] > 0
    fitter = Fitter(Net(), Recipe("scratch", batch_size=BATCH, last_batch="drop"), SIZE, within="")
    with pytest.raises(ValueError, match="nothing would train"):
        fitter.check(7, validated=False)
    with pytest.raises(ValueError, match="expected one of pad, drop, found 'keep'"):
        trainer(last_batch="keep")


def test_rows_that_do_not_count_have_no_part_in_a_gradient_however_large_they_are():
    """Squared they are infinite."""
    norm = batch_normalization(2, rngs=nnx.Rngs(0))
    norm.__class__ = counting(type(norm))
    graph, leaves = nnx.split(norm)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 2)), jnp.float32)
    counts = jnp.array([True, True, True, False])

    def value(scale, x):
        with batch_of(4, counts):
            return (nnx.merge(graph, leaves, copy=True)(x) ** 3 * scale).sum()

    fine = jax.grad(value, (0, 1))(2.0, x)
    odd = jax.grad(value, (0, 1))(2.0, x.at[3].set(1e30))
    np.testing.assert_array_equal(odd[0], fine[0])
    np.testing.assert_array_equal(odd[1][:3], fine[1][:3])
