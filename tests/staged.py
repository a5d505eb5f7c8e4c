"""Training through stored features beside the training that stores nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from cnnjax import Classifier, Freeze, Trainer
from cnnjax.data import InMemory
from cnnjax.functional import functionalize, leaves_of
from cnnjax.models.graph import Graph


def check_two_steps_through_features(backbone: Any, through: str, preprocessing: str = "tf") -> None:
    """Two epochs of one batch, features stored behind the layer `through`, give what two whole steps give.

    Args:
        backbone: A network without randomness in training.
        through: The last frozen layer.
        preprocessing: A key of `cnnjax.models.PREPROCESSING`.
    """
    shape, net = backbone.input_shape, Graph(backbone.output_shape(), rngs=nnx.Rngs(1), input_layer=None)
    head = net.backbone(net.dense("dense", net.global_avg_pool("pool", net.input), 1))
    model = Classifier(backbone, head, preprocessing)
    frozen = Freeze.through(through).resolve(model, "backbone")
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    labels = np.arange(4) % 2
    trainer = Trainer(model, frozen, shape[:2], batch_size=4, optimizer=optax.sgd(0.01), precision="float32")
    assert not trainer.staged.stores_images_only and trainer.staged.blocked == ()
    state, _ = trainer.fit(trainer.init(), trainer.rows(InMemory(images, labels, ("a", "b"))), epochs=2)

    functional, leaves = functionalize(model, frozen=frozen), leaves_of(model)
    trained = [path for path in functional.parameters() if not frozen(path)]

    @jax.jit
    def step(leaves: Any) -> Any:
        def loss(parameters: Any) -> Any:
            logits, after = functional.apply({**leaves, **parameters}, jnp.asarray(images), train=True)
            return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels).mean(), after

        gradients, after = jax.grad(loss, has_aux=True)({path: leaves[path] for path in trained})
        return {**after, **{path: leaves[path] - 0.01 * gradients[path] for path in trained}}

    want, got = step(step(leaves)), trainer.leaves(state)
    assert 0 < len(trained) < len(functional.parameters())
    for path, value in got.items():
        if frozen(path):  # weights and statistics
            np.testing.assert_array_equal(value, leaves[path], err_msg=path)
        else:
            scale = max(1e-2, np.abs(want[path]).max())
            np.testing.assert_allclose(value, want[path], rtol=1e-4, atol=1e-4 * scale, err_msg=path)
    moved = [np.abs(got[path] - leaves[path]).max() > 0 for path in got if path.endswith("/mean") and not frozen(path)]
    assert all(moved)
