"""Loops and losses of one's own, beside the same written by hand in plain JAX and optax on the whole model."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cnnjax import Classification, FeatureStore, Fitter, Freeze, Recipe, Task, Trainer
from cnnjax.augment import Augmentation
from cnnjax.data import InMemory
from cnnjax.train import Replicas, plain_gradients
from cnnjax.train.lowering import program

SIZE, BATCH, COUNT, EPOCHS, SEED = (8, 8), 4, 12, 3, 5
pytestmark = pytest.mark.usefixtures("compiled_fast")
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


def equal(found, expected, rtol=2e-4, atol=2e-5):
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=rtol, atol=atol, err_msg=path)


def trainer_of(model, freeze=None, within="", **options):
    options = {"batch_size": BATCH, "optimizer": optax.sgd(0.1, momentum=0.9)} | options
    return Trainer(model, (freeze or Freeze.none()).resolve(model, within), SIZE, **options)


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


# An optimizer, a schedule and an augmentation of one's own.


def test_an_optimizer_and_a_schedule_of_ones_own_in_a_fitter_are_optax_s():
    """Two phases, the second at a tenth of the rate; each begins its schedule anew."""

    def optimizer(rate):
        return optax.chain(optax.clip_by_global_norm(0.5), optax.lion(rate))

    def schedule(steps):
        return optax.linear_schedule(1.0, 0.0, steps)

    recipe = Recipe("finetune", freeze="none", epochs=2, tune_epochs=1, batch_size=BATCH, learning_rate=0.02)
    pair = Distilled(Net(4, 0), nnx.Linear(3, 3, rngs=nnx.Rngs(1)))
    pair.backbone, pair.head = pair.student, pair.teacher
    del pair.student, pair.teacher
    pair.__class__ = Stacked
    fitter = Fitter(pair, recipe, SIZE, optimizer=optimizer, schedule=schedule)
    fitted = fitter.fit(labelled(), seed=SEED)
    assert fitter.rate(1, 0, 3) == pytest.approx(0.002) and fitter.rate(0, 3, 3) == pytest.approx(0.01)
    state, epochs = None, 0
    for number, (freeze, rate, count) in enumerate(((Freeze.all(), 0.02, 2), (Freeze.none(), 0.002, 1))):
        steps = count * COUNT // BATCH
        rates = optax.linear_schedule(rate, 0.0, steps)
        trainer = trainer_of(pair, freeze, "backbone", optimizer=optimizer(rates))
        before = trainer.init(None if state is None else {**state.trainable, **state.statistics})
        before = before._replace(step=jnp.array(epochs * COUNT // BATCH, jnp.int32))
        state, _ = trainer.fit(before, trainer.rows(labelled()), epochs=count, seed=SEED)
        epochs += count
        assert len(trainer.leaves(state)) == len(fitted.leaves), number
    equal(fitted.leaves, trainer.leaves(state), 1e-5, 1e-7)
    images = jnp.asarray(PIXELS, jnp.float32)
    assert isinstance(fitted.model, nnx.Module) and fitted.model is fitted.model
    np.testing.assert_allclose(fitted.model(images), trainer.model(state)(images), rtol=1e-4, atol=1e-5)
    assert not np.allclose(fitted.model(images), pair(images), atol=1e-3)


class Stacked(nnx.Module):
    def __call__(self, x):
        return self.head(self.backbone(x))


def test_what_an_own_optimizer_would_pass_over_is_refused():
    def fitter(*given, **options):
        own = {name: options.pop(name) for name in ("optimizer", "schedule") if name in options}
        return Fitter(Net(4, 0), Recipe("scratch", *given, **options), SIZE, within="", **own)

    with pytest.raises(ValueError, match="from a learning rate schedule to an optax optimizer, such as optax.adam"):
        fitter(optimizer=optax.adam(1e-3))
    with pytest.raises(ValueError, match="make clip, ema part of it"):
        fitter(optimizer=optax.adam, clip=1.0, ema=0.9)
    with pytest.raises(ValueError, match="gives an optax optimizer, found None"):
        fitter(optimizer=lambda rate: None)
    with pytest.raises(ValueError, match="has a schedule or a warmup of its own"):
        fitter(schedule=lambda steps: optax.constant_schedule(1.0), warmup=0.1)


def test_an_augmentation_of_ones_own_is_the_same_by_hand():
    def noise(key, images):
        return images + 20 * jax.random.normal(key, images.shape)

    def mixup(key, images, targets):
        share = jax.random.beta(key, 0.4, 0.4)
        return [share * x + (1 - share) * x[::-1] for x in (images, targets)]

    def as_pair(key, images, targets):
        return tuple(mixup(key, images, targets))

    for augment, mixes in ((noise, False), (as_pair, True)):
        trainer = trainer_of(Net(4, 0), augment=augment)
        state, _ = trainer.fit(trainer.init(), trainer.rows(labelled()), epochs=1, seed=SEED)
        again, _ = trainer.fit(trainer.init(), trainer.rows(labelled()), epochs=1, seed=SEED)
        expected = trainer.init()
        params, optimizer = expected.trainable, optax.sgd(0.1, momentum=0.9)
        own, statistics = optimizer.init(params), expected.statistics
        for number in range(COUNT // BATCH):
            index = np.random.default_rng([SEED, 0]).permutation(COUNT)[number * BATCH : (number + 1) * BATCH]
            step_key = jax.random.fold_in(jax.random.key(np.uint32(SEED)), number)
            key = jax.random.fold_in(step_key, 0x617567)
            images, targets = jnp.asarray(PIXELS[index], jnp.float32), jax.nn.one_hot(LABELS[index], 3)
            if mixes:
                images, targets = augment(key, images, targets)
            else:
                images = augment(jax.random.split(key)[0], images)

            def objective(params, images=images, targets=targets, statistics=statistics, model=trainer.functional):
                leaves = {**params, **statistics}
                logits, after = model.apply(leaves, images, train=True)
                loss = optax.losses.softmax_cross_entropy(logits, targets).mean()
                return loss, {path: after[path] for path in statistics}

            gradients, statistics = jax.grad(objective, has_aux=True)(params)
            updates, own = optimizer.update(gradients, own, params)
            params = optax.apply_updates(params, updates)
        equal(trainer.leaves(state), {**params, **statistics}, 1e-3, 1e-4)
        equal(trainer.leaves(again), trainer.leaves(state), 0, 0)
    with pytest.raises(ValueError, match="expected images .4, 8, 8, 3., as they were given, found a list"):
        trainer_of(Net(4, 0), augment=mixup).fit(trainer.init(), trainer.rows(labelled()), epochs=1)


def shifted(by):
    return lambda key, images: images + by


def test_views_of_an_own_augmentation_are_never_another_one_s(tmp_path):
    def rows(augment, **options):
        store = FeatureStore(tmp_path)
        trainer = trainer_of(Net(4, 0), Freeze.match("conv", "norm"), augment=augment, views=2, store=store, **options)
        return trainer.rows(labelled())

    first, same, other = rows(shifted(3.0)), rows(shifted(3.0)), rows(shifted(4.0))
    assert not first.reused and same.reused and not other.reused
    net = Net(4, 0)
    net.eval()

    def features(images):
        return np.repeat(nnx.relu(net.norm(net.conv(jnp.asarray(images, jnp.float32) / 255))).mean((1, 2)), 2, 0)

    np.testing.assert_allclose(first.arrays[0], features(PIXELS + 3.0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other.arrays[0], features(PIXELS + 4.0), rtol=1e-4, atol=1e-5)

    def called(key, images):
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(images.shape, images.dtype), images)

    with pytest.raises(ValueError, match="cannot be stored: the program is not known by what it says"):
        rows(called)
    with pytest.raises(ValueError, match="cannot be stored as views"):
        rows(lambda key, images, targets: (images, targets))


def test_a_whole_number_target_is_not_mixed_by_an_own_augmentation():
    task = Task(lambda outputs, targets: (outputs[:, 0] - targets) ** 2)
    trainer = trainer_of(Net(4, 0), task=task, augment=lambda key, images, targets: (images, targets))
    with pytest.raises(ValueError, match="override `augmented`"):
        trainer.fit(trainer.init(), trainer.rows(InMemory(PIXELS, targets=LABELS)), epochs=1)


def test_an_images_only_function_with_targets_keeps_the_labels():
    seen = []

    def watch(key, images, targets):
        seen.append(targets.shape)
        return images

    trainer, other = trainer_of(Net(4, 0), augment=watch), trainer_of(Net(4, 0), task=Classification())
    found, _ = trainer.fit(trainer.init(), trainer.rows(labelled()), epochs=1, seed=SEED)
    expected, _ = other.fit(other.init(), other.rows(labelled()), epochs=1, seed=SEED)
    equal(trainer.leaves(found), other.leaves(expected), 1e-4, 1e-5)
    assert seen[0] == (BATCH, 3)
