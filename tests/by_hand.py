"""A small network, and loops over it written by hand in plain JAX and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from cnnjax import Freeze, Trainer
from cnnjax.data import InMemory

SIZE, BATCH, COUNT, EPOCHS, SEED = (8, 8), 4, 12, 3, 5
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (COUNT, *SIZE, 3), np.uint8)
LABELS = np.arange(COUNT) % 3


class Net(nnx.Module):
    """A convolution, BatchNorm and logits."""

    def __init__(self, width, seed, outputs=3):
        rngs = nnx.Rngs(seed)
        self.conv = nnx.Conv(
            3, width, (3, 3), use_bias=False, rngs=rngs
        )  # a bias would have a gradient of rounding alone
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.out = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.conv(x / 255))).mean((1, 2)))


def labelled():
    return InMemory(PIXELS, LABELS, ("a", "b", "c"))


def cross_entropy(logits, labels):
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def by_hand(model, loss, gradients_at, targets, rate=0.1, steps=EPOCHS * COUNT // BATCH):
    """A plain loop: the whole model in training mode, optax, batches in the order that the seed gives."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.sgd(rate, momentum=0.9)
    state, losses = optimizer.init(params), []
    for number in range(steps):
        epoch, k = divmod(number, COUNT // BATCH)
        index = np.random.default_rng([SEED, epoch]).permutation(COUNT)[k * BATCH : (k + 1) * BATCH]
        own = jax.tree.map(lambda x, index=index: jnp.asarray(x[index]), targets)

        def objective(params, rest=rest, index=index, own=own):
            whole = nnx.merge(graph, params, jax.tree.map(jnp.asarray, rest))
            whole.train()
            outputs = whole(jnp.asarray(PIXELS[index], jnp.float32))
            return loss(outputs, own, index).mean(), nnx.split(whole, nnx.Param, ...)[2]

        gradients, rest, value = gradients_at(objective, params)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    leaves = nnx.to_flat_state(nnx.merge_state(params, rest))
    return {"/".join(map(str, path)): x.get_value() for path, x in leaves}, losses


def plain(objective, params):
    (value, rest), gradients = jax.value_and_grad(objective, has_aux=True)(params)
    return gradients, rest, value


def uphill(objective, params, radius=0.05):
    """Equations 2 and 3 of Foret et al. 2021: the gradient at w + radius * g / |g|."""
    (value, rest), first = jax.value_and_grad(objective, has_aux=True)(params)
    norm = np.sqrt(sum(float((x.astype(jnp.float32) ** 2).sum()) for x in jax.tree.leaves(first)))
    climbed = jax.tree.map(lambda w, g: w + radius / norm * g, params, first)
    return jax.grad(objective, has_aux=True)(climbed)[0], rest, value


def sam(objective, state, radius=0.05):
    gradients, result = jax.grad(objective, has_aux=True)(state.trainable)
    scale = radius / (jnp.sqrt(sum(jnp.vdot(g, g) for g in gradients.values())) + 1e-12)
    climbed = jax.tree.map(lambda w, g: w + scale * g, state.trainable, gradients)
    return jax.grad(objective, has_aux=True)(climbed)[0], result


def equal(found, expected, rtol=2e-4, atol=2e-5):
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=rtol, atol=atol, err_msg=path)


def trainer_of(model, freeze=None, within="", **options):
    options = {"batch_size": BATCH, "optimizer": optax.sgd(0.1, momentum=0.9)} | options
    return Trainer(model, (freeze or Freeze.none()).resolve(model, within), SIZE, **options)
