"""Training on augmented images: in the step, and on stored views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cnnjax.augment import Augmentation
from cnnjax.data import InMemory, Views
from cnnjax.features import FeatureStore
from cnnjax.freeze import Freeze
from cnnjax.models import Classifier, lecture_cnn, linear_head
from cnnjax.train.tasks import Classification
from cnnjax.train.trainer import Trainer

RNG = np.random.default_rng(0)
LECTURE = Augmentation(flip=True, rotation=0.1, zoom=0.2)
pytestmark = pytest.mark.usefixtures("compiled_fast")


@pytest.fixture(scope="module")
def model() -> Classifier:
    backbone = lecture_cnn((16, 16, 3), (4, 8), include_top=False, rngs=nnx.Rngs(0))
    return Classifier(backbone, linear_head(backbone.output_shape(), 3, rngs=nnx.Rngs(1)), "unit")


@pytest.fixture(scope="module")
def images() -> InMemory:
    return InMemory(RNG.integers(0, 256, (11, 16, 16, 3), np.uint8), np.arange(11) % 3, ("a", "b", "c"))


def frozen(model, spec="1"):
    return Freeze.parse(spec).resolve(model, within="backbone")


def ends(trainer, rows, **kwargs):
    state, log = trainer.fit(trainer.init(), rows, epochs=2, seed=3, **kwargs)
    return {**state.trainable, "loss": log[-1]["loss"]}


def same(a, b):
    return all(np.allclose(a[path], b[path], rtol=1e-4, atol=1e-6) for path in a)


def test_augmentation_runs_in_one_compiled_step_from_memory_or_from_the_source(model, images, monkeypatch):
    trainer = Trainer(model, frozen(model), (16, 16), batch_size=4, optimizer="sgd", augment=LECTURE)
    rows = trainer.rows(images)
    assert rows.kind == "images" and rows.arrays[0].dtype == jnp.uint8
    assert not trainer.store.passes  # nothing to store: every step sees other images
    in_memory = ends(trainer, rows)
    assert trainer.traces["step"] == 1
    plain = Trainer(model, frozen(model), (16, 16), batch_size=4, optimizer="sgd")
    assert not same(in_memory, ends(plain, plain.rows(images)))
    monkeypatch.setattr("cnnjax.train.dataset.fits_on_device", lambda nbytes: False)
    streamed = trainer.rows(images)
    assert streamed.kind == "source"
    assert same(in_memory, ends(trainer, streamed))


def test_a_step_is_the_augmented_images_gradient(model, images):
    """The first step, computed the plain way: augment, run the whole model, differentiate, subtract."""
    trainer = Trainer(model, frozen(model), (16, 16), batch_size=11, optimizer="sgd", augment=LECTURE)

    state, _ = trainer.fit(trainer.init(learning_rate=0.1), trainer.rows(images), epochs=1, seed=0)
    key = jax.random.fold_in(jax.random.key(np.uint32(0)), 0)
    drawn, _ = jax.random.split(jax.random.fold_in(key, 0x617567))
    index = np.random.default_rng([0, 0]).permutation(11)
    seen = LECTURE(drawn, jnp.asarray(images.read(index)))
    start = trainer.init()

    def objective(trainable):
        leaves = {**trainer.fixed, **trainable, **trainer.functional.random_leaves(key)}
        logits, _ = trainer.functional.apply(leaves, seen, train=True)
        return Classification().loss(logits, jnp.asarray(images.labels[index])).mean()

    gradients = jax.grad(objective)(start.trainable)
    for path, value in state.trainable.items():
        want = start.trainable[path] - 0.1 * gradients[path]
        assert np.allclose(value, want, rtol=1e-3, atol=1e-5), path


def test_views_are_made_once_and_are_the_models_own_features(model, images):
    store = FeatureStore()
    trainer = Trainer(model, frozen(model, "all"), (16, 16), batch_size=4, store=store, augment=LECTURE, views=3)
    rows = trainer.rows(images)
    assert len(rows) == 11 and rows.views == 3 and rows.arrays[0].shape[0] == 33
    views = Views(images, LECTURE, 3)
    seen = views.read(np.arange(33))
    assert not np.allclose(seen[0], seen[1])
    np.testing.assert_array_equal(seen[[7, 30]], views.read(np.array([7, 30])))
    # The head's pooling has no weights, nor has the division in its dropout: both are done before storing.
    want = model.backbone(seen / 255).mean((1, 2)) / (1 - 0.2)
    assert np.allclose(rows.arrays[0], want, atol=1e-4)
    assert len(store.passes) == 1
    trainer.rows(images)
    again = Trainer(model, frozen(model, "all"), (16, 16), batch_size=4, store=store, augment=LECTURE, views=3)
    assert again.rows(images).reused and len(store.passes) == 1
    more = Trainer(model, frozen(model, "all"), (16, 16), batch_size=4, store=store, augment=LECTURE, views=4)
    assert not more.rows(images).reused and len(store.passes) == 2


def test_each_epoch_shows_every_image_once_in_one_of_its_views(model):
    """A flip does not change an image of one colour: on its views training is the same as without."""
    colours = np.broadcast_to(RNG.integers(0, 256, (11, 1, 1, 3), np.uint8), (11, 16, 16, 3))
    plain_images = InMemory(colours, np.arange(11) % 3, ("a", "b", "c"))
    spec = frozen(model, "all")
    plain = Trainer(model, spec, (16, 16), batch_size=4, optimizer="sgd")
    seen = Trainer(model, spec, (16, 16), batch_size=4, optimizer="sgd", augment=Augmentation(flip=True), views=2)
    assert same(ends(plain, plain.rows(plain_images)), ends(seen, seen.rows(plain_images)))


def test_mixed_targets_have_the_papers_loss():
    logits = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)
    first, second, share = np.arange(5) % 3, (np.arange(5) + 1) % 3, np.linspace(0.1, 0.9, 5)
    one_hot = np.eye(3)
    mixed = share[:, None] * one_hot[first] + (1 - share[:, None]) * one_hot[second]
    loss = Classification().loss
    want = share * loss(logits, jnp.asarray(first)) + (1 - share) * loss(logits, jnp.asarray(second))
    np.testing.assert_allclose(Classification().loss(logits, jnp.asarray(mixed, jnp.float32)), want, rtol=1e-5)
    z = jnp.asarray(RNG.normal(size=(4, 1)), jnp.float32)
    p = np.array([0.0, 0.3, 0.7, 1.0])
    want = -p * np.log(1 / (1 + np.exp(-z[:, 0]))) - (1 - p) * np.log(1 / (1 + np.exp(z[:, 0])))
    np.testing.assert_allclose(Classification().loss(z, jnp.asarray(p[:, None], jnp.float32)), want, rtol=1e-4)


def test_mixup_trains_and_cannot_be_stored(model, images):
    trainer = Trainer(model, frozen(model), (16, 16), batch_size=4, augment=Augmentation(mixup=0.2, cutmix=1.0))
    assert np.isfinite(ends(trainer, trainer.rows(images))["loss"])
    stored = Trainer(model, frozen(model), (16, 16), batch_size=4, augment=Augmentation(mixup=0.2), views=2)
    with pytest.raises(ValueError, match="they cannot be stored as views"):
        stored.rows(images)
    with pytest.raises(ValueError, match="views: expected 0 or more, and an augmentation to draw them with"):
        Trainer(model, frozen(model), (16, 16), views=2)
