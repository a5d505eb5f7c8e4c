"""Loops and losses of one's own, beside the same written by hand in plain JAX and optax on the whole model."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from by_hand import (
    BATCH,
    COUNT,
    EPOCHS,
    LABELS,
    PIXELS,
    SEED,
    SIZE,
    Net,
    by_hand,
    cross_entropy,
    equal,
    labelled,
    plain,
    sam,
    trainer_of,
    uphill,
)  # fmt: skip
from flax import nnx

from cnnjax import FeatureStore, Fitter, Freeze, Recipe, Task
from cnnjax.augment import Augmentation
from cnnjax.data import InMemory
from cnnjax.train import Replicas, plain_gradients
from cnnjax.train.lowering import program

pytestmark = pytest.mark.usefixtures("compiled_fast")


def own_loop(trainer, rows, gradient_fn=plain_gradients, epochs=EPOCHS, seed=SEED):
    @jax.jit
    def step(state, batch):
        gradients, result = gradient_fn(trainer.objective(state, batch), state)
        return trainer.apply_gradients(state, gradients, result)

    state, sums = trainer.init(), []
    for epoch in range(epochs):
        for batch in trainer.batches(rows, seed=seed, epoch=epoch):
            state, metrics = step(state, batch)
            sums.append(metrics.summary()["loss"])
    assert step._cache_size() == 1
    return trainer.leaves(state), sums


def test_a_loop_of_ones_own_is_fit_and_the_same_by_hand():
    trainer = trainer_of(Net(4, 0))
    rows = trainer.rows(labelled())
    found, losses = own_loop(trainer, rows)
    expected, theirs = by_hand(Net(4, 0), lambda out, own, index: cross_entropy(out, own), plain, LABELS)
    equal(found, expected)
    np.testing.assert_allclose(losses, theirs, rtol=1e-4)
    state, log = trainer.fit(trainer.init(), rows, epochs=EPOCHS, seed=SEED)
    equal(found, trainer.leaves(state), 1e-5, 1e-6)
    assert log[0]["loss"] == pytest.approx(np.mean(losses[: COUNT // BATCH]), rel=1e-5)


@pytest.mark.parametrize("where", ["features", "images", "source"])
def test_freezing_stores_randomness_and_masks_are_inside(where):
    """A frozen convolution stored, images augmented in memory, images read anew; the last batch is filled up."""
    options = {
        "features": {},
        "images": {"augment": Augmentation(flip=True, brightness=0.2)},
        "source": {"stream": True, "augment": Augmentation(mixup=0.3)},
    }[where]
    frozen = Freeze.match("conv") if where == "features" else None
    trainer = trainer_of(Net(4, 0), frozen, batch_size=5, **options)
    rows = trainer.rows(labelled())
    assert rows.kind == where and trainer.masks(COUNT)
    found, _ = own_loop(trainer, rows)
    state, _ = trainer.fit(trainer.init(), rows, epochs=EPOCHS, seed=SEED)
    equal(found, trainer.leaves(state), 1e-5, 1e-6)
    start = trainer.init().trainable
    assert ("conv/kernel" in start) is (where != "features")


# Sharpness-aware minimisation.


def test_sam_is_its_formula_in_every_way_of_training():
    expected, _ = by_hand(Net(4, 0), lambda out, own, index: cross_entropy(out, own), uphill, LABELS)
    other, _ = by_hand(Net(4, 0), lambda out, own, index: cross_entropy(out, own), plain, LABELS)
    assert max(np.abs(expected[path] - other[path]).max() for path in other) > 1e-2
    ends = {}
    trainer = trainer_of(Net(4, 0))
    ends["own loop"], _ = own_loop(trainer, trainer.rows(labelled()), sam)
    trainer = trainer_of(Net(4, 0), gradient_fn=sam)
    rows = trainer.rows(labelled())
    ends["fit"] = trainer.leaves(trainer.fit(trainer.init(), rows, epochs=EPOCHS, seed=SEED)[0])
    assert trainer.traces == {"step": 1}
    recipe = Recipe("scratch", epochs=EPOCHS, batch_size=BATCH, learning_rate=0.1)

    def sgd(rate):
        return optax.sgd(rate, momentum=0.9)

    fitter = Fitter(Net(4, 0), recipe, SIZE, within="", optimizer=sgd, gradient_fn=sam)
    ends["fitter"] = fitter.fit(labelled(), seed=SEED).leaves
    for found in ends.values():
        equal(found, expected, 2e-3, 2e-4)


SAM = """
import jax, jax.numpy as jnp

def sam(objective, state, radius=0.05):
    gradients, result = jax.grad(objective, has_aux=True)(state.trainable)
    scale = radius / (jnp.sqrt(sum(jnp.vdot(g, g) for g in gradients.values())) + 1e-12)
    climbed = jax.tree.map(lambda w, g: w + scale * g, state.trainable, gradients)
    return jax.grad(objective, has_aux=True)(climbed)[0], result
"""


def test_sam_of_a_file_is_part_of_a_recipe(tmp_path):
    (tmp_path / "own.py").write_text(SAM)
    recipe = Recipe("scratch", epochs=2, batch_size=BATCH, learning_rate=0.1, optimizer="sgd")
    named = replace(recipe, gradient_fn=f"{tmp_path / 'own.py'}:sam")
    one, other = Fitter(Net(4, 0), named, SIZE, within=""), Fitter(Net(4, 0), recipe, SIZE, within="", gradient_fn=sam)
    equal(one.fit(labelled()).leaves, other.fit(labelled()).leaves, 0, 0)
    with pytest.raises(ValueError, match="gradient_fn: the recipe has one of its own"):
        Fitter(Net(4, 0), named, SIZE, within="", gradient_fn=sam)
    with pytest.raises(ValueError, match="expected package.module:function or file.py:function, found 'sam'"):
        replace(recipe, gradient_fn="sam")


def test_sam_trains_replicas_in_one_program():
    """A head on stored features: what each replica would be alone."""
    options = {"freeze": Freeze.match("conv", "norm"), "optimizer": "adam", "gradient_fn": sam}
    trainer = trainer_of(Net(4, 0), **options)
    replicas, rows = Replicas(trainer), trainer.rows(labelled())
    states, _ = replicas.fit([trainer.init(), trainer.init()], rows, epochs=2, seeds=(0, 1))
    assert replicas.together and trainer.traces["replicas"] == 1
    for seed, state in enumerate(states):
        alone, _ = trainer.fit(trainer.init(), rows, epochs=2, seed=seed)
        equal(state.trainable, alone.trainable)


def test_gradients_of_other_leaves_are_refused():
    def halved(objective, state):
        gradients, result = plain_gradients(objective, state)
        return {path: x for path, x in gradients.items() if "bias" not in path}, result

    trainer = trainer_of(Net(4, 0), gradient_fn=halved)
    with pytest.raises(ValueError, match="gradients: expected one for each of conv/kernel, norm/bias"):
        trainer.fit(trainer.init(), trainer.rows(labelled()), epochs=1)
    with pytest.raises(ValueError, match="gradient_fn: expected a function, found 'sam'"):
        trainer_of(Net(4, 0), gradient_fn="sam")


# Distillation from stored logits.


class Distilled(nnx.Module):
    def __init__(self, student, teacher):
        self.student, self.teacher = student, teacher

    def __call__(self, x):
        return self.student(x), self.teacher(x)


def distilled(logits, teacher, labels, temperature=4.0):
    soft = optax.losses.softmax_cross_entropy(logits / temperature, jax.nn.softmax(teacher / temperature))
    return soft * temperature**2 + cross_entropy(logits, labels)


def teacher():
    """A network whose running statistics are not what they were made with."""
    net = Net(32, 7)
    net.norm.mean[...], net.norm.var[...] = jnp.linspace(-1, 1, 32), jnp.linspace(0.5, 2, 32)
    return net


def distiller(student, store=None, **options):
    task = Task(lambda outputs, labels: distilled(*outputs, labels))
    pair = Distilled(student, teacher())
    return trainer_of(pair, Freeze.all(), "teacher", task=task, store=store, **options)


def test_a_teacher_runs_once_and_its_logits_alone_are_stored():
    store = FeatureStore()
    trainer = distiller(Net(4, 0), store)
    assert sorted(f.shape for f in trainer.staged.features) == [(3,), (*SIZE, 3)]
    rows = trainer.rows(labelled())
    assert len(store.passes) == 1 and rows.kind == "features"
    # Both networks' convolutions in evaluation of the whole; the student's alone in the step, as many as by itself.
    alone = trainer_of(Net(4, 0))
    texts = [
        program(own, "taking_step", "features", target=jax.ShapeDtypeStruct((), jnp.int32)).lower("tpu").as_text()
        for own in (trainer, alone)
    ]
    assert texts[0].count("stablehlo.convolution") == texts[1].count("stablehlo.convolution") > 0
    assert not any("32x" in line for line in texts[0].splitlines() if "stablehlo.convolution" in line)
    found, losses = own_loop(trainer, rows)
    trainer.fit(trainer.init(), rows, epochs=1)
    assert len(store.passes) == 1
    # Another student of the same teacher: its logits are there.
    assert distiller(Net(6, 1), store).rows(labelled()).reused and len(store.passes) == 1

    fixed = teacher()
    fixed.eval()
    logits = np.asarray(fixed(jnp.asarray(PIXELS, jnp.float32)))
    expected, theirs = by_hand(Net(4, 0), lambda out, own, index: distilled(out, logits[index], own), plain, LABELS)
    equal({path.removeprefix("student/"): x for path, x in found.items()}, expected)
    np.testing.assert_allclose(losses, theirs, rtol=1e-4)
    for path, value in found.items():
        if path.startswith("teacher/"):
            np.testing.assert_array_equal(value, trainer.fixed[path])


# Two heads and a task of one's own.


class TwoHeads(nnx.Module):
    def __init__(self):
        self.body = Net(4, 0, outputs=5)
        self.kind, self.age = nnx.Linear(5, 3, rngs=nnx.Rngs(1)), nnx.Linear(5, 1, rngs=nnx.Rngs(2))

    def __call__(self, x):
        x = self.body(x)
        return {"kind": self.kind(x), "age": self.age(x)[:, 0]}


def both(outputs, targets):
    return cross_entropy(outputs["kind"], targets["kind"]) + 0.5 * (outputs["age"] - targets["age"]) ** 2


def test_two_heads_and_a_task_of_ones_own_are_the_same_by_hand():
    known = {"kind": LABELS, "age": np.linspace(-1, 1, COUNT).astype(np.float32)}
    task = Task(both, {"error": lambda outputs, targets: jnp.abs(outputs["age"] - targets["age"])})
    trainer = trainer_of(TwoHeads(), task=task)
    data = InMemory(PIXELS, targets=known)
    rows = trainer.rows(data)
    found, losses = own_loop(trainer, rows)
    expected, theirs = by_hand(TwoHeads(), lambda out, own, index: both(out, own), plain, known)
    equal(found, expected, 5e-4, 5e-5)
    np.testing.assert_allclose(losses, theirs, rtol=1e-3)
    state, _ = trainer.fit(trainer.init(), rows, epochs=EPOCHS, seed=SEED)
    equal(found, trainer.leaves(state), 1e-5, 1e-6)
    scores, outputs = trainer.predict(state, trainer.rows(data, train=False))
    assert scores["error"] == pytest.approx(np.abs(outputs["age"] - known["age"]).mean(), rel=1e-5)
