"""Models that choose by the batch size: right at every size, whatever is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from choosers import APART, SIDE, WRAPPERS, Chooser
from flax import nnx

from cnnjax import Freeze, Trainer
from cnnjax.data import InMemory
from cnnjax.data.order import epoch_batches
from cnnjax.features import FeatureStore
from cnnjax.ops import conv_general_dilated, winograd
from cnnjax.ops.onednn import takes
from cnnjax.staging import ProgramDiffers, Staged

pytestmark = pytest.mark.usefixtures("compiled_fast")

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 6, 6, 3), np.uint8)
LABELS = np.arange(24) % 3 % 2
SOURCE = InMemory(PIXELS, LABELS, ("a", "b"))
RATE = 0.25


def wrong(net, batch, store=None):
    """How far staged logits, and the head after one step, are off what the model gives operation by operation."""
    frozen = Freeze.all().resolve(net, "backbone")
    trainer = Trainer(net, frozen, (6, 6), batch_size=batch, optimizer=optax.sgd(RATE), store=store)
    logits = trainer.predict(trainer.init(), trainer.rows(SOURCE, train=False))[1]
    batches = [PIXELS[k : k + batch] for k in range(0, len(PIXELS), batch)]
    expected = np.concatenate([np.asarray(net(jnp.asarray(x, jnp.float32)), np.float64) for x in batches])

    state, _ = next(trainer.steps(trainer.init(), trainer.rows(SOURCE)))
    index = epoch_batches(len(PIXELS), batch, 0, 0)[0][0]
    h = np.asarray(net.features(jnp.asarray(PIXELS[index], jnp.float32)), np.float64)
    kernel, bias = (np.asarray(state.trainable[f"head/{name}"]) for name in ("kernel", "bias"))
    z = h @ np.asarray(net.head.kernel, np.float64) + np.asarray(net.head.bias, np.float64)
    g = np.exp(z - z.max(1, keepdims=True))
    g = (g / g.sum(1, keepdims=True) - np.eye(2)[LABELS[index]]) / batch
    pairs = (
        (logits, expected),
        (kernel, np.asarray(net.head.kernel) - RATE * h.T @ g),
        (bias, np.asarray(net.head.bias) - RATE * g.sum(0)),
    )
    return max(np.abs(a - b).max() / (1e-3 + np.abs(b).max()) for a, b in pairs)


@pytest.mark.parametrize("seed", [3])
def test_random_models_in_a_trainer(seed):
    store, net = FeatureStore(), Chooser(seed)
    # One store: what one size has stored must not be taken at another, where the model is another.
    for batch in (1, 4, 8, 12):
        assert wrong(net, batch, store) < 1e-3, (net.steps, batch)


def staged_wrong(net, sizes=(1, 4, 8, 12), passes=32):
    """The same of a cut alone, run operation by operation; features are found by their keys, whoever made them."""
    graph, state = nnx.split(net)
    images, store, worst = jnp.asarray(PIXELS, jnp.float32), {}, 0.0

    def fn(fixed, x, late):
        return nnx.merge(graph, fixed).features(x) * late

    for batch in sizes:
        cut = Staged(fn, state, jax.ShapeDtypeStruct(PIXELS.shape[1:], jnp.float32), jnp.float32(1), (batch, passes))
        missing = [f for f in cut.features if f.key not in store]
        if missing:
            padded = jnp.concatenate([images, jnp.repeat(images[-1:], passes - len(images), 0)])
            made = cut.maker(missing, passes)(state, padded)
            store.update((f.key, rows) for f, rows in zip(missing, made, strict=True))
        got = cut.late(cut.constants(state), [store[f.key][:batch] for f in cut.features], jnp.float32(2))
        expected = 2 * np.asarray(net.features(images[:batch]), np.float64)
        worst = max(worst, np.abs(got - expected).max() / (1e-3 + np.abs(expected).max()))
    return worst


@pytest.mark.parametrize("start", range(0, 12, 3))
def test_random_models_that_choose_by_size(start):
    for seed in range(start, start + 3):
        net = Chooser(seed)
        assert staged_wrong(net) < 1e-3, (seed, net.steps)


class Net(nnx.Module):
    """A frozen 1x1 convolution and a function of what it gives, then a head."""

    def __init__(self, f):
        self.f, rngs = f, nnx.Rngs(0)
        self.backbone, self.head = nnx.Conv(3, 4, (1, 1), rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def features(self, x):
        return self.f(self.backbone(x / 255)).mean((1, 2))

    def __call__(self, x):
        return self.head(self.features(x))


def groups_of(size):
    def f(x):
        y = x.reshape(-1, size, *x.shape[1:])
        return jnp.tanh(x - (y - y.max(1, keepdims=True)).reshape(x.shape))

    return f


def only(sizes):
    def f(x):
        if len(x) not in sizes:
            raise TypeError(f"not made for {len(x)} images")
        return jnp.sin(x)

    return f


@pytest.mark.parametrize(
    ("f", "batch"),
    [
        (groups_of(2), 8),  # raises at odd sizes
        (groups_of(4), 12),
        (groups_of(12), 12),  # raises at the pass's 32
        (only({8}), 8),
        (only({1}), 1),
        (only({8, 32}), 8),
    ],
    ids=["pairs", "fours", "dozens", "8 alone", "1 alone", "8 and the pass's"],
)
def test_models_that_take_some_sizes_alone(f, batch):
    assert wrong(Net(f), batch) < 1e-4


W = {"w": jnp.arange(16.0).reshape(4, 4) / 16}
IMAGE = jax.ShapeDtypeStruct((SIDE, SIDE, 4), jnp.float32)


def staged(f, batches=()):
    def fn(fixed, x, late):
        return f(x @ fixed["w"]).mean((1, 2)) * late

    return Staged(fn, W, IMAGE, jnp.float32(1), batches)


def wrapped(name, wrapper, variant):
    """A step of the random models that is one thing, whatever the batch size, or chooses from 20 images on."""

    def f(x):
        k = int(len(x) >= 20) if variant is None else variant
        y = WRAPPERS[wrapper](lambda x: APART[name](x, k))(x)
        return y[:, : x.shape[1], : x.shape[2]]

    return f


@pytest.mark.parametrize("wrapper", [w for w in WRAPPERS if w != "vmap"])
@pytest.mark.parametrize("name", APART)
def test_a_choice_by_size_is_in_the_key_or_not_stored(name, wrapper):
    """The features of a model that chooses are those of the one it is at the sizes given, or come before the choice."""
    low, high = (staged(wrapped(name, wrapper, k), (4, 32)).features for k in (0, 1))
    assert low != high and staged(wrapped(name, wrapper, 0), (12,)).features == low  # the same at every size
    before = staged(lambda x: x, (4, 32)).features
    chooser = wrapped(name, wrapper, None)
    assert staged(chooser, (4, 12)).features == low and staged(chooser, (32, 48)).features == high
    found = staged(chooser, (4, 32)).features
    assert not {f.key for f in found} & {f.key for f in (*low, *high, *before)}
    unnamed = staged(chooser)
    with pytest.raises(ProgramDiffers, match="another program|something else"):
        unnamed.maker(unnamed.features, 32)


@pytest.mark.parametrize("batches", [(2, 64), (1, 32), (32,), (48, 32, 3), ()])
def test_how_an_operation_is_lowered_for_a_batch_is_no_choice(batches):
    kernel = jnp.ones((3, 3, 256, 256)) / 2304
    image = jax.ShapeDtypeStruct((10, 10, 256), jnp.float32)
    numbers = ("NHWC", "HWIO", "NHWC")

    def fn(fixed, x, late):
        return conv_general_dilated(x, fixed, (1, 1), "SAME", dimension_numbers=numbers).mean((1, 2)) * late

    pays = [winograd.pays(jnp.ones((n, 10, 10, 256)), kernel, ((1, 1), (1, 1)), takes(kernel.dtype)) for n in (2, 64)]
    assert pays == [False, True]  # Winograd's products on CPU, from so many tiles on
    cut = Staged(fn, kernel, image, jnp.float32(1), batches)
    assert cut.features == Staged(fn, kernel, image, jnp.float32(1), (64,)).features and cut.features[0].shape == (256,)
