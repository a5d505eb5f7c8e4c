"""A classification without extras trains to the last bit as cross-entropy written out in the step does."""

import hashlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cnnjax import Classification, Classifier, Freeze, Trainer, lecture_cnn, linear_head
from cnnjax.data import InMemory
from cnnjax.ops import use_onednn
from cnnjax.train.task import Task

SIZE = (16, 16)
pytestmark = pytest.mark.usefixtures("compiled_fast")


def formula(logits, labels):
    """The loss as the step had it before there were tasks."""
    if logits.shape[-1] == 1:
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels.reshape(-1).astype(logits.dtype))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def right(logits, labels):
    if logits.shape[-1] == 1:
        return ((logits[:, 0] > 0) == (labels.reshape(-1).astype(logits.dtype) > 0.5)).astype(jnp.float32)
    return (jnp.argmax(logits, -1) == labels).astype(jnp.float32)


def trained(classes, freeze, optimizer, task):
    """A digest of what trained in 20 steps, the records, and the outputs."""
    rngs, rng = nnx.Rngs(0), np.random.default_rng(0)
    backbone = lecture_cnn((*SIZE, 3), (4, 8), include_top=False, rngs=rngs)
    model = Classifier(backbone, linear_head(backbone.output_shape(), classes, rngs=rngs), "unit")
    names = tuple("abc"[:classes])
    data = InMemory(rng.integers(0, 255, (30, *SIZE, 3), np.uint8), np.arange(30) % classes, names)
    spec = Freeze.parse(freeze).resolve(model, "backbone")
    trainer = Trainer(model, spec, SIZE, batch_size=8, optimizer=optimizer, task=task)
    state, log = trainer.fit(trainer.init(), trainer.rows(data), epochs=5, seed=3)
    assert int(state.step) == 20
    digest = hashlib.sha256()
    for path in sorted(state.trainable):
        digest.update(path.encode() + np.asarray(state.trainable[path]).tobytes())
    scores, outputs = trainer.predict(state, trainer.rows(data, train=False))
    return digest.hexdigest(), [(r["loss"], r["accuracy"]) for r in log], scores, outputs


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize(("classes", "freeze"), [(2, "none"), (2, "1"), (3, "none"), (3, "all")])
def test_a_plain_classification_is_the_formula_bit_for_bit(classes, freeze, optimizer):
    with use_onednn(False):
        found = [
            trained(classes, freeze, optimizer, task)
            for task in (None, Classification(tuple("abc"[:classes])), Task(formula, {"accuracy": right}))
        ]
    for other in found[1:]:
        assert other[:3] == found[0][:3]
        np.testing.assert_array_equal(other[3], found[0][3])
