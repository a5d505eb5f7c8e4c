"""An optimizer, a schedule and an augmentation of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from by_hand import BATCH, COUNT, LABELS, PIXELS, SEED, SIZE, Net, equal, labelled, trainer_of
from flax import nnx

from cnnjax import Classification, FeatureStore, Fitter, Freeze, Recipe, Task
from cnnjax.data import InMemory

pytestmark = pytest.mark.usefixtures("compiled_fast")


def test_an_optimizer_and_a_schedule_of_ones_own_in_a_fitter_are_optax_s():
    """Two phases, the second at a tenth of the rate; each begins its schedule anew."""

    def optimizer(rate):
        return optax.chain(optax.clip_by_global_norm(0.5), optax.lion(rate))

    def schedule(steps):
        return optax.linear_schedule(1.0, 0.0, steps)

    recipe = Recipe("finetune", freeze="none", epochs=2, tune_epochs=1, batch_size=BATCH, learning_rate=0.02)
    pair = Stacked(Net(4, 0), nnx.Linear(3, 3, rngs=nnx.Rngs(1)))
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
    def __init__(self, backbone, head):
        self.backbone, self.head = backbone, head

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
