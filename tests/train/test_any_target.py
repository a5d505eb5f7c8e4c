"""Targets of any kind through the trainer: stored, streamed, weighted, together, lowered."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnjax import Classification, Fitter, Freeze, ImageClassifier, MultiLabel, Recipe, Regression, Task, Trainer
from cnnjax.augment import Augmentation
from cnnjax.data import InMemory, Loader
from cnnjax.models import Classifier
from cnnjax.models.backbone import Backbone
from cnnjax.models.heads import linear_head
from cnnjax.models.layers import ReLU, conv2d
from cnnjax.train import NotFinite
from cnnjax.train.lowering import program
from cnnjax.train.replicas import Replicas

SIZE = (8, 8)
pytestmark = pytest.mark.usefixtures("compiled_fast")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (22, *SIZE, 3), np.uint8)
BRIGHT = PIXELS.mean((1, 2, 3)).astype(np.float64)


def net(outputs):
    rngs = nnx.Rngs(0)
    backbone = Backbone([("conv", conv2d(3, 4, (3, 3), rngs=rngs)), ("relu", ReLU())], input_shape=(*SIZE, 3))
    return Classifier(backbone, linear_head(backbone.output_shape(), rngs=rngs, outputs=outputs), "unit")


def trainer_of(model, task, freeze="all", **options):
    spec = Freeze.parse(freeze).resolve(model, "backbone")
    return Trainer(model, spec, SIZE, batch_size=8, optimizer=options.pop("optimizer", "sgd"), task=task, **options)


class TwoHeads(nnx.Module):
    """A score and a pair of numbers, from the mean colour."""

    def __init__(self):
        self.score, self.pair = (nnx.Linear(3, n, rngs=nnx.Rngs(n)) for n in (1, 2))

    def __call__(self, x):
        mean = x.mean((1, 2)) / 255
        return {"score": self.score(mean)[:, 0], "pair": self.pair(mean)}


def two_losses(outputs, targets):
    return (outputs["score"] - targets["age"]) ** 2 + jnp.abs(outputs["pair"] - targets["place"]).sum(-1)


def near(outputs, targets):
    return jnp.abs(outputs["score"] - targets["age"]) < 0.2


TREE = {"age": RNG.uniform(0, 1, 22), "place": RNG.uniform(0, 1, (22, 2)).astype(np.float32)}


@pytest.mark.parametrize("stream", [False, True])
def test_trees_of_targets_and_outputs_train_step_by_step_as_the_formula(stream):
    """Two steps a batch of 8, 8, 6: the last is filled up, and what fills it counts nowhere."""
    model = TwoHeads()
    task = Task(two_losses, {"near": near})
    spec = Freeze.none().resolve(model)
    trainer = Trainer(model, spec, SIZE, batch_size=8, optimizer="sgd", task=task, stream=stream)
    data = InMemory(PIXELS, targets=TREE)
    state, log = trainer.fit(trainer.init(learning_rate=0.1), trainer.rows(data), epochs=1, seed=3)
    leaves, order = dict(trainer.init().trainable), np.random.default_rng([3, 0]).permutation(22)
    losses, close = [], []
    for index in (order[:8], order[8:16], order[16:]):
        own = {name: jnp.asarray(x[index], jnp.float32) for name, x in TREE.items()}

        def objective(leaves, index=index, own=own):
            outputs = trainer.functional.apply({**trainer.fixed, **leaves}, jnp.asarray(PIXELS[index], jnp.float32),
                                               train=True)[0]  # fmt: skip
            loss = two_losses(outputs, own)
            return loss.mean(), (loss, near(outputs, own))

        gradients, (loss, right) = jax.grad(objective, has_aux=True)(leaves)
        leaves = jax.tree.map(lambda x, g: x - 0.1 * g, leaves, gradients)
        losses, close = losses + loss.tolist(), close + right.tolist()
    for path, value in leaves.items():
        np.testing.assert_allclose(state.trainable[path], value, rtol=1e-4, atol=1e-6, err_msg=path)
    assert log[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5) and log[0]["near"] == np.mean(close)
    scores, outputs = trainer.predict(state, trainer.rows(data, train=False))
    expected = jax.device_get(trainer.model(state)(jnp.asarray(PIXELS, jnp.float32)))
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-5)
    own = {name: jnp.asarray(x, jnp.float32) for name, x in TREE.items()}
    assert scores["loss"] == pytest.approx(float(two_losses(expected, own).mean()), rel=1e-5)


@pytest.mark.parametrize("freeze", ["none", "all"])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_weights_of_examples_are_those_of_their_mean(freeze, scale):
    """Small ones too: a batch's loss is divided by the sum of its weights."""
    model, labels = net(1), np.arange(22) % 2
    weights = scale * RNG.uniform(0, 2, 22)
    weights[3] = 0
    trainer = trainer_of(model, Classification(("a", "b")), freeze)
    data = InMemory(PIXELS, labels, ("a", "b"), weights=weights)
    state, log = trainer.fit(trainer.init(learning_rate=0.5), trainer.rows(data), epochs=1, seed=0)
    order, sums = np.random.default_rng([0, 0]).permutation(22), np.zeros(2)
    leaves = dict(trainer.init().trainable)
    for step, index in enumerate((order[:8], order[8:16], order[16:])):
        key = jax.random.fold_in(jax.random.key(np.uint32(0)), step)
        filled = np.r_[index, np.full(8 - len(index), index[0])]  # dropout draws for a whole batch

        def objective(leaves, index=index, filled=filled, key=key):
            every = {**trainer.fixed, **leaves, **trainer.functional.random_leaves(key)}
            logits = trainer.functional.apply(every, jnp.asarray(PIXELS[filled], jnp.float32), train=True)[0]
            own, y = jnp.asarray(weights[index], jnp.float32), labels[index]
            z = logits[: len(index), 0]
            loss = jnp.where(y, jnp.logaddexp(0, -z), jnp.logaddexp(0, z))
            return (loss * own).sum() / own.sum(), (loss * own).sum()

        gradients, total = jax.grad(objective, has_aux=True)(leaves)
        leaves = jax.tree.map(lambda x, g: x - 0.5 * g, leaves, gradients)
        sums += [float(total), weights[index].sum()]
    for path, value in leaves.items():
        np.testing.assert_allclose(state.trainable[path], value, rtol=1e-3, atol=1e-6, err_msg=path)
    assert log[0]["loss"] == pytest.approx(sums[0] / sums[1], rel=1e-4)
    scores, logits = trainer.predict(state, trainer.rows(data, train=False))
    assert scores["accuracy"] == pytest.approx(np.average((logits[:, 0] > 0) == labels, weights=weights), rel=1e-5)


def test_replicas_of_a_regression_are_each_alone():
    model = net(1)
    task = Regression(("brightness",)).resolved(BRIGHT)
    data = InMemory(PIXELS, targets=BRIGHT, weights=np.linspace(0.5, 1.5, 22))
    logs = []
    for together in (True, False):
        trainer = trainer_of(model, task, optimizer="adam")
        states, rows = [trainer.init(learning_rate=rate) for rate in (1e-3, 1e-2)], trainer.rows(data)
        if together:
            logs.append(Replicas(trainer).fit(states, rows, epochs=2, seeds=(0, 1))[1])
        else:
            logs.append([trainer.fit(s, rows, epochs=2, seed=k)[1] for k, s in enumerate(states)])
    for mine, alone in zip(*logs, strict=True):
        for a, b in zip(mine, alone, strict=True):
            assert (a["loss"], a["mae"]) == pytest.approx((b["loss"], b["mae"]), rel=1e-4)


def test_mixing_mixes_floats_and_refuses_whole_numbers():
    model, mixup = net(2), Augmentation(mixup=0.4)
    there = (RNG.uniform(0, 1, (22, 2)) > 0.5).astype(int)
    trainer = trainer_of(model, MultiLabel(("a", "b")), augment=mixup)
    _, log = trainer.fit(trainer.init(), trainer.rows(InMemory(PIXELS, targets=there)), epochs=1)
    assert np.isfinite(log[0]["loss"])
    own = Task(lambda y, t: (y[:, 0] - t) ** 2)
    trainer = trainer_of(model, own, augment=mixup)
    with pytest.raises(ValueError, match="floats can be and int32"):
        trainer.fit(trainer.init(), trainer.rows(InMemory(PIXELS, targets=np.arange(22))), epochs=1)
    trainer = trainer_of(model, own, augment=Augmentation(flip=True))
    trainer.fit(trainer.init(), trainer.rows(InMemory(PIXELS, targets=np.arange(22))), epochs=1)


def test_programs_of_tasks_are_lowered_without_data():
    task = Regression(("a", "b"), mean=(0, 0), deviation=(1, 1))
    for name in ("step", "taking_step", "epoch", "evaluate"):
        lowered = program(trainer_of(net(2), task), name, "features", weighted=True)
        assert lowered.arguments[3].targets.shape[-1] == 2 and lowered.lower("tpu").as_text()
    with pytest.raises(ValueError, match="give `target`"):
        program(trainer_of(net(2), Task(lambda y, t: y[:, 0] - t)), "step")


@pytest.mark.parametrize(
    ("task", "source", "message"),
    [
        (Regression(("a",)), {"targets": BRIGHT}, "needs mean and deviation of the training targets"),
        (Classification(("a", "b", "c")), {"targets": BRIGHT}, "3 classes need 3 outputs, the model gives 1"),
        (MultiLabel(("a", "b")), {"targets": BRIGHT}, "2 labels need 2 outputs, the model gives 1"),
        (Classification(), {"targets": BRIGHT}, "needs labels, whole numbers"),
        (MultiLabel(("a",)), {"targets": BRIGHT}, r"expected 0 \(not there\) or 1"),
        (MultiLabel(("a",)), {"targets": np.ones((22, 2))}, r"expected numbers \[N, 1\]"),
        (None, {"labels": np.zeros(22, int), "class_names": "ab", "weights": -np.ones(22)}, "numbers from 0 on"),
        (None, {"labels": np.zeros(22, int), "class_names": "ab", "weights": np.zeros(22)}, "not all 0"),
        (None, {"labels": np.zeros(22, int), "class_names": "ab", "weights": np.ones(3)}, "22 numbers"),
        (Task(lambda y, t: y[:, 0].mean()), {"targets": BRIGHT}, "leave the mean over examples to the step"),
        (Task(lambda y, t: y[:, 0]), {"targets": {"a": BRIGHT[:3]}}, "a row for each of 22 images"),
        (Task(lambda y, t: y[:, 0]), {"targets": np.array(["a"] * 22)}, "arrays of numbers"),
        (Task(lambda y, t: y[:, 0]), {"targets": np.full(22, 2**40)}, "do not fit 32 bits"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(task, source, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(net(1), task).rows(InMemory(PIXELS, **source))


def test_a_loader_gives_trees_of_targets():
    batch = next(Loader(InMemory(PIXELS, targets=TREE), 5))
    np.testing.assert_array_equal(batch.targets["place"], TREE["place"][batch.index])


def test_a_recipe_takes_from_its_training_targets_and_a_fold_of_them(tmp_path):
    """Each training set has its own scale and weights, and programs of another are not taken for its own."""
    fitter = Fitter(net(1), Recipe(epochs=2, batch_size=8), SIZE, task=Regression(("brightness",)))
    halves = [InMemory(PIXELS[k::2], targets=BRIGHT[k::2] * (1 + 9 * k)) for k in range(2)]
    found = [fitter.fit(half, half) for half in halves]
    for half, fitted in zip(halves, found, strict=True):
        assert fitted.task.mean == pytest.approx((half.targets.mean(),))
        last = fitted.history[-1]
        assert {"train_mae", "validation_mae", "validation_rmse", "validation_r2"} <= set(last)
    assert found[1].task.deviation[0] > 5 * found[0].task.deviation[0]
    with pytest.raises(ValueError, match="label_smoothing is for a classification"):
        Fitter(net(1), Recipe(label_smoothing=0.1), SIZE, task=Regression(("brightness",)))


def test_a_classifier_that_is_trained_again_takes_weights_and_smoothing_anew():
    """What one training set or recipe asked for is not in the next fit."""
    names = ("dark", "bright")
    classifier = ImageClassifier(
        "lecture_cnn", image_size=16, head="linear", widths=(4,), task=Classification(names, class_weights="balanced")
    )
    pixels = RNG.integers(0, 255, (12, 16, 16, 3), np.uint8)
    recipe = {"method": "scratch", "epochs": 1, "batch_size": 4}
    for count, smoothing in ((3, 0.2), (6, 0.0)):
        source = InMemory(pixels, (np.arange(12) < count).astype(int), names)
        fitted = classifier.fit(source, label_smoothing=smoothing, **recipe)
        assert fitted.task == Classification(names, class_weights=(6 / (12 - count), 6 / count))
    assert classifier.task == Classification(names, class_weights="balanced")


PROGRAM = """
import json, sys
sys.path[:0] = {path!r}
import numpy as np
from test_any_target import BRIGHT, PIXELS, net, trainer_of
from cnnjax import Devices, MultiLabel, Regression
from cnnjax.augment import Augmentation
from cnnjax.data import InMemory
there = np.stack([BRIGHT > 127, PIXELS[:, 0, 0, 0] > 100], 1).astype(np.float32)
cases = [
    (Regression(("b",)).resolved(BRIGHT), BRIGHT, {{}}),
    (MultiLabel(("a", "b")), there, {{"augment": Augmentation(mixup=0.3)}}),
    (MultiLabel(("a", "b")), there, {{"stream": True}}),
]
found = []
for task, targets, options in cases:
    ends = []
    for devices in (None, Devices.all()):
        trainer = trainer_of(net(task.outputs), task, devices=devices, precision="float32", **options)
        data = InMemory(PIXELS, targets=targets, weights=np.linspace(0.2, 2, 22))
        state, log = trainer.fit(trainer.init(), trainer.rows(data), epochs=2)
        scores, _ = trainer.predict(state, trainer.rows(data, train=False))
        ends.append([log[-1]["loss"], *(log[-1][m] for m in task.metric_names), *scores.values()])
    found.append(ends)
print(json.dumps(found))
"""


def test_on_several_devices_the_numbers_are_those_of_one():
    here = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    program = PROGRAM.format(path=here)
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    for one, four in json.loads(out.stdout.splitlines()[-1]):
        assert four == pytest.approx(one, rel=1e-3)


def test_weights_that_the_last_step_makes_nan_are_not_returned():
    """The loss of sqrt at 0 is finite and its gradient is not; no later loss would tell."""
    model = nnx.Sequential(lambda x: 0 * x.mean((1, 2)), nnx.Linear(3, 1, use_bias=False, rngs=nnx.Rngs(0)))
    task = Task(loss=lambda outputs, targets: jnp.sqrt(jnp.abs(outputs[:, 0])))
    data = InMemory(np.ones((4, 4, 4, 3), np.uint8), targets=np.zeros(4, np.float32))
    trainer = Trainer(model, Freeze.none().resolve(model), (4, 4), batch_size=4, task=task, optimizer="sgd")
    with pytest.raises(NotFinite, match="the gradient of step 0 of epoch 0") as found:
        trainer.fit(trainer.init(), trainer.rows(data), epochs=1)
    assert sorted(found.value.examples) == [0, 1, 2, 3]


def test_a_loss_that_counts_is_refused():
    model = nnx.Sequential(lambda x: x.mean((1, 2)) / 255, nnx.Linear(3, 1, rngs=nnx.Rngs(0)))
    task = Task(loss=lambda outputs, targets: (outputs[:, 0] > 0) != (targets > 0))
    data = InMemory(np.ones((4, 4, 4, 3), np.uint8), targets=np.zeros(4, np.float32))
    trainer = Trainer(model, Freeze.none().resolve(model), (4, 4), batch_size=4, task=task)
    with pytest.raises(ValueError, match="loss must give floats, which have a gradient; found bool"):
        trainer.fit(trainer.init(), trainer.rows(data), epochs=1)
