"""One array, or one layer, under several names."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from small import SIZE, images

from cnnjax import Freeze, Trainer
from cnnjax.fit import Fitter, Recipe
from cnnjax.freeze import layer_names, num_weighted_layers
from cnnjax.functional import functionalize, leaves_of, names_of
from cnnjax.optim import by_groups
from cnnjax.show.filters import convolution
from cnnjax.summaries import summary


class OneNorm(nnx.Module):
    """A BatchNorm that is called at two places; `first` and `second` are its names."""

    def __init__(self, first, second):
        rngs = nnx.Rngs(0)
        norm = nnx.BatchNorm(3, use_running_average=False, momentum=0.9, rngs=rngs)
        norm.mean[...], norm.var[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 5.0, 6.0])
        setattr(self, first, norm)
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        setattr(self, second, norm)
        self.norm = (first, second)

    def __call__(self, x):
        first, second = self.norm
        return getattr(self, second)(self.linear(getattr(self, first)(x)))


@pytest.mark.parametrize("names", [("a_norm", "z_norm"), ("z_norm", "a_norm")])
@pytest.mark.parametrize("patterns", [("a_norm", "z_norm"), ("a_norm",), ("z_norm",)])
def test_a_frozen_batchnorm_of_two_names_runs_on_stored_statistics(names, patterns):
    """As Keras's layer that is called twice, `trainable = False`: by its formula."""
    model = OneNorm(*names)
    frozen = Freeze.match(*patterns).resolve(model)
    leaves = leaves_of(model)
    assert set(frozen.partition(leaves)[0]) == {"linear/kernel", "linear/bias"}
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    out, after = functionalize(model, frozen=frozen).apply(leaves, x, train=True)
    norm = keras.layers.BatchNormalization(epsilon=1e-5)
    norm.build((None, 3))
    norm.trainable = False
    norm.moving_mean.assign([1.0, 2.0, 3.0])
    norm.moving_variance.assign([4.0, 5.0, 6.0])
    dense = norm(x, training=True) @ np.asarray(leaves["linear/kernel"]) + np.asarray(leaves["linear/bias"])
    np.testing.assert_allclose(out, norm(dense, training=True), rtol=2e-5, atol=2e-6)
    for path in leaves:
        np.testing.assert_array_equal(after[path], leaves[path], err_msg=path)


class Tied(nnx.Module):
    """Two layers with one kernel; NNX knows it as `a`'s, which comes second."""

    input_shape = (1, 1, 4)

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.z = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.a = nnx.Linear(4, 4, rngs=rngs)
        self.a.kernel = self.z.kernel
        self.out = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.a(jax.nn.relu(self.norm(self.z(x.mean((1, 2)))))))


class Images(Tied):
    """The same for RGB images."""

    input_shape = (8, 8, 3)

    def __init__(self):
        self.stem = nnx.Linear(3, 4, rngs=nnx.Rngs(1))
        super().__init__()

    def __call__(self, x):
        return super().__call__(self.stem(x))


@pytest.mark.parametrize("freeze", [Freeze.all(), Freeze.depth(2), Freeze.through("a"), Freeze.match("a", "z")])
def test_a_tied_kernel_is_frozen_where_all_its_layers_are(freeze):
    model = Tied()
    frozen = freeze.resolve(model)
    assert frozen("a/kernel") and frozen("z/kernel") and frozen("z/bias") and frozen("a/bias")
    assert names_of(model)["a/kernel"] == ("a/kernel", "z/kernel") and "z/kernel" not in names_of(model)
    assert "a/kernel" in frozen.partition(leaves_of(model))[1]
    nested = {"z": {"kernel": 1}, "a": {"kernel": 1, "bias": 1}, "out": {"kernel": 1}}
    trains = freeze.kind != "all"
    assert frozen.mask(nested) == {
        "z": {"kernel": False}, "a": {"kernel": False, "bias": False}, "out": {"kernel": trains}
    }  # fmt: skip


def test_a_frozen_tied_kernel_stays_while_the_rest_trains():
    model = Images()
    trainer = Trainer(model, Freeze.match("a", "z").resolve(model), SIZE, batch_size=10, optimizer="sgd")
    state, _ = trainer.fit(trainer.init(None, 0.1), trainer.rows(images(20, 0)), epochs=1)
    before, after = leaves_of(model), trainer.leaves(state)
    moved = {path for path in after if (np.asarray(after[path]) != np.asarray(before[path])).any()}
    assert moved == {f"{p}" for p in after if p.split("/")[0] in ("stem", "norm", "out")}
    trained: nnx.Module = trainer.model(state)
    assert trained.z.kernel is trained.a.kernel


@pytest.mark.parametrize(("freeze", "cold", "warm"), [(Freeze.through("z"), "z", "a"), (Freeze.match("a"), "a", "z")])
def test_a_kernel_that_would_be_frozen_and_train_is_refused_with_the_reason(freeze, cold, warm):
    text = (
        f"{cold}/kernel is {warm}/kernel too: {cold} is to be frozen, and {warm} trains\nfreeze both layers, or neither"
    )
    with pytest.raises(ValueError, match=text):
        freeze.resolve(Tied())


@pytest.mark.parametrize(("backbone", "head"), [("backbone", "head"), ("body", "a_head")])
def test_a_kernel_of_backbone_and_head_is_refused_whatever_the_alphabet_says(backbone, head):
    model = nnx.Dict({backbone: nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))})
    model[head] = nnx.Linear(4, 4, rngs=nnx.Rngs(1))
    model[head].kernel = model[backbone].layers[0].kernel
    cold, warm = f"{backbone}/layers/0", head
    with pytest.raises(ValueError, match=f"{cold}/kernel is {warm}/kernel too: .* {warm} trains, as all does outside"):
        Freeze.all().resolve(model, backbone)
    assert not Freeze.none().resolve(model, backbone)(f"{cold}/kernel")
    assert Freeze.all().resolve(model).partition(leaves_of(model))[0] == {}


def test_stored_statistics_of_a_part_reach_a_norm_of_two_names():
    model = nnx.Dict(part=OneNorm("z_norm", "a_norm"))
    frozen = Freeze.none().resolve(model, "part", live_statistics=False)
    assert {path for path in leaves_of(model) if frozen(path)} == {"part/a_norm/mean", "part/a_norm/var"}
    model["other"] = nnx.Dict(norm=model["part"].a_norm)
    with pytest.raises(ValueError, match=r"part/a_norm/mean is other/norm/mean too"):
        Freeze.none().resolve(model, "part", live_statistics=False)


class Twice(nnx.Module):
    """Layers b, a, b again, c."""

    input_shape = (4,)

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.b = nnx.Linear(4, 4, rngs=rngs)
        self.a = nnx.Linear(4, 4, rngs=rngs)
        self.again = self.b
        self.c = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.c(self.again(self.a(self.b(x))))


def test_a_layer_that_is_called_twice_is_one_layer_as_in_keras():
    inputs = keras.Input((4,))
    b, a, c = (keras.layers.Dense(n, name=name) for n, name in ((4, "b"), (4, "a"), (1, "c")))
    theirs = keras.Model(inputs, c(b(a(b(inputs)))))
    model = Twice()
    # Keras sorts by depth, and puts a layer where it is called last; here the first place counts.
    # The layer of two names bears the one of its leaves.
    assert layer_names(model) == ("again", "a", "c") and num_weighted_layers(model) == 3
    assert {layer.name for layer in theirs.layers[1:]} == {"b", "a", "c"} and len(theirs.layers[1:]) == 3
    b.trainable = False
    kept = {weight.path.split("/")[0] for weight in theirs.trainable_weights}
    for freeze in (Freeze.depth(1), Freeze.match("again"), Freeze.match("b"), Freeze.slice(None, 1)):
        live, _ = freeze.resolve(model).partition(leaves_of(model))
        assert {path.split("/")[0] for path in live} == kept == {"a", "c"}, freeze
    assert Freeze.through("b").resolve(model).layers == Freeze.through("again").resolve(model).layers == ("again",)
    assert summary(model, input_shape=(4,)).parameters == theirs.count_params() == 45


def test_factors_of_the_rate_go_by_every_name():
    """One step of SGD; a tied kernel learns with the first layer that has it."""
    moves = []
    for options in ({}, {"learning_rate_groups": {"z": 0.5}}, {"layer_factor": 0.5}):
        model = Images()
        recipe = Recipe("scratch", epochs=1, batch_size=20, optimizer="sgd", learning_rate=0.1, **options)
        found, before = Fitter(model, recipe, SIZE, within="").fit(images(20, 0)).leaves, leaves_of(model)
        moves.append({path: np.asarray(found[path]) - before[path] for path in found})
    plain, groups, depth = moves
    for path, by_group, by_depth in (
        ("a/kernel", 0.5, 0.25), ("a/bias", 1, 0.5), ("z/bias", 0.5, 0.25), ("stem/kernel", 1, 0.125),
        ("out/kernel", 1, 1),
    ):  # fmt: skip
        assert np.abs(plain[path]).max() > 0 or path == "z/bias"  # a bias before normalisation
        np.testing.assert_allclose(groups[path], by_group * plain[path], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(depth[path], by_depth * plain[path], rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="'y' *; did you mean"):
        by_groups({"y": 1.0}, names_of(Tied()))


def test_a_summary_counts_a_tied_kernel_once_in_the_first_layer():
    table = summary(Tied(), input_shape=(1, 1, 4), freeze="a,z")
    assert {row.name: (row.parameters, row.trainable) for row in table.layers} == {
        "z": (20, 0), "norm": (16, 8), "a": (4, 0), "out": (5, 5)
    }  # fmt: skip
    assert table.parameters == sum(x.size for x in jax.tree.leaves(leaves_of(Tied())))


def test_the_first_convolution_is_shown_under_its_own_name():
    class Convolutions(nnx.Module):
        def __init__(self):
            self.z = nnx.Conv(3, 3, (3, 3), rngs=nnx.Rngs(0))
            self.a = nnx.Conv(3, 3, (3, 3), rngs=nnx.Rngs(1))
            self.a.kernel = self.z.kernel

        def __call__(self, x):
            return self.a(self.z(x))

    assert convolution(Convolutions(), input_shape=(8, 8, 3)).layer == "z"
