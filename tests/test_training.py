"""The staged path against the whole model, and what the step costs."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from residual import ResNet, randomized

from cnnjax.data import InMemory
from cnnjax.data.order import epoch_batches
from cnnjax.features import FeatureStore
from cnnjax.freeze import Freeze
from cnnjax.functional import leaves_of
from cnnjax.models import Classifier, lecture_cnn, lecture_head, linear_head, mobilenet
from cnnjax.ops import use_onednn
from cnnjax.optim import make_optimizer
from cnnjax.staging import staged
from cnnjax.staging.trace import part
from cnnjax.train.counting import batch_of
from cnnjax.train.loop import Loop
from cnnjax.train.tasks import Classification
from cnnjax.train.trainer import Trainer

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("compiled_fast")


def images(count, size, classes=2):
    """Images whose class is their brightness, with noise."""
    labels = RNG.integers(0, classes, count)
    pixels = RNG.integers(0, 160, (count, size, size, 3)) + 90 * labels[:, None, None, None] // (classes - 1)
    return InMemory(pixels.astype(np.uint8), labels, [str(k) for k in range(classes)])


def whole_model(trainer, model, source, steps, seed, transform):
    """The plain way: gradients of every parameter, frozen ones masked away by optax, the model run whole."""
    frozen, f = trainer.frozen, trainer.functional
    leaves = {p: x for p, x in leaves_of(model).items() if p not in f.random()}
    params = {p: x for p, x in leaves.items() if p in f.parameters()}
    rest = {p: x for p, x in leaves.items() if p not in params}
    tx = frozen.optimizer(transform)
    images, labels = jnp.asarray(source.read(np.arange(len(source)))), jnp.asarray(source.labels)

    @jax.jit
    def step(params, rest, state, index, weights, number):
        key = jax.random.fold_in(jax.random.key(seed), number)

        def objective(params):
            # Masked alike, since rounding grows; that masked steps are right is shown in tests/test_last_batch.py.
            with batch_of(len(index), weights > 0 if trainer.masks(len(source)) else None):
                logits, after = f.apply({**params, **rest, **f.random_leaves(key)}, images[index], train=True)
            loss = Classification().loss(logits, labels[index])
            return (loss * weights).sum() / weights.sum(), {p: after[p] for p in rest}

        grads, rest_after = jax.grad(objective, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), rest_after, state

    state, number = tx.init(params), 0
    while number < steps:
        epoch = number // -(-len(source) // trainer.batch_size)
        for index, weights in zip(*epoch_batches(len(source), trainer.batch_size, seed, epoch), strict=True):
            params, rest, state = step(params, rest, state, index, weights, number)
            number += 1
    return {**params, **rest}


def classifier(backbone, head=linear_head, classes=2, preprocessing="tf"):
    return Classifier(backbone, head(backbone.output_shape(), classes, rngs=nnx.Rngs(1)), preprocessing)


@pytest.fixture(scope="module")
def mobile(six_blocks):
    return randomized(
        classifier(mobilenet(alpha=0.25, input_shape=(64, 64, 3), include_top=False, rngs=nnx.Rngs(0)), lecture_head)
    )


@pytest.fixture(scope="module")
def resnet():
    return randomized(ResNet(inner_dropout=0.2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("name", "spec", "within", "size"),
    [
        ("resnet", "stem", "", 32),
        ("resnet", "blocks/0/norm2", "", 32),
        ("resnet", "blocks/1/conv1", "", 32),
        ("mobile", "8", "backbone", 64),
        ("mobile", "conv_pw_5_relu", "backbone", 64),
        ("mobile", "all", "backbone", 64),
    ],
)
def test_stored_features_and_the_whole_model_train_to_the_same_weights(name, spec, within, size, request, monkeypatch):
    # Frozen normalisation inside kernels is exact to rounding alone (tests/staging/test_fold.py), which live BatchNorm
    # on maps as small as these makes a thousand times as large in every few steps.
    monkeypatch.setattr(staged, "folded", lambda jaxpr, ins, outs, eqns, fixed: part(jaxpr, ins, outs, eqns))
    model = request.getfixturevalue(name)
    source = images(38, size)  # 5 steps an epoch, the last of them short
    transform = optax.sgd(0.001, momentum=0.9)  # small: live BatchNorm on small maps amplifies rounding
    trainer = Trainer(model, Freeze.parse(spec).resolve(model, within), (size, size), batch_size=8, optimizer=transform)
    state, log = trainer.fit(trainer.init(), trainer.rows(source), epochs=4, seed=5)
    assert int(state.step) == 20 and len(log) == 4
    expected = whole_model(trainer, model, source, 20, 5, transform)
    before = leaves_of(model)
    for path, value in trainer.leaves(state).items():
        scale = float(jnp.abs(expected[path]).max()) + 1e-6
        assert float(jnp.abs(value - expected[path]).max()) <= 1e-5 * scale, path
        moved = not np.array_equal(value, before[path])
        assert moved is not trainer.frozen(path), path


def test_nothing_is_traced_again(mobile):
    source, other = images(21, 64), images(13, 64)
    frozen = Freeze.parse("conv_pw_5_relu").resolve(mobile, "backbone")
    trainer = Trainer(mobile, frozen, (64, 64), batch_size=8, optimizer="adam")
    rows, test = trainer.rows(source), trainer.rows(other, train=False)
    for seed, rate in ((0, 1e-3), (1, 1e-4)):
        state = trainer.init(learning_rate=rate)
        state, _ = trainer.fit(state, rows, epochs=2, seed=seed)
        trainer.evaluate(state, test)
    assert trainer.traces == {"step": 1, "evaluate": 1}


def test_an_epoch_without_convolutions_is_one_compiled_loop(mobile):
    trainer = Trainer(mobile, Freeze.all().resolve(mobile, "backbone"), (64, 64), batch_size=8)
    rows = trainer.rows(images(21, 64))
    for seed in range(3):
        trainer.fit(trainer.init(), rows, epochs=2, seed=seed)
    assert trainer.traces == {"epoch": 1}


def test_the_state_is_donated(mobile):
    trainer = Trainer(mobile, Freeze.all().resolve(mobile, "backbone"), (64, 64), batch_size=8)
    state = trainer.init()
    kernel = state.trainable["head/dense/kernel"]
    trainer.fit(state, trainer.rows(images(16, 64)), epochs=1)
    assert kernel.is_deleted()
    assert not any(x.is_deleted() for x in jax.tree.leaves(leaves_of(mobile)))


def test_the_loop_moves_nothing_between_host_and_device_unasked(resnet):
    trainer = Trainer(resnet, Freeze.through("stem").resolve(resnet), (32, 32), batch_size=8)
    rows, state = trainer.rows(images(16, 32)), trainer.init()
    with jax.transfer_guard_device_to_host("disallow_explicit"):
        Loop(trainer, rows, 0).epoch(state, 0, None, 0, trainer.no_metrics())


@pytest.mark.parametrize("spec", ["none", "1", "2", "3", "all"])
def test_the_steps_operations_fall_with_depth_as_the_arithmetic_says(spec):
    size, widths, batch = 46, (8, 16, 32, 32), 4
    model = classifier(
        lecture_cnn((size, size, 3), widths, include_top=False, rngs=nnx.Rngs(0)), lecture_head, preprocessing="unit"
    )
    with use_onednn(False):  # whose operations XLA does not count
        trainer = Trainer(model, Freeze.parse(spec).resolve(model, "backbone"), (size, size), batch_size=batch)
    rows = trainer.rows(images(batch, size))
    index, weights = epoch_batches(batch, batch, 0, 0)
    arguments = (
        trainer.init(),
        (trainer.constants, None),
        rows.arrays,
        rows.labelled,
        index[0],
        weights[0],
        index[0],
        np.uint32(0),
    )
    counted = trainer.programs.taking_step.lower(*arguments).cost_analysis()["flops"]

    depth = {"none": 0, "all": 4}.get(spec) if spec in ("none", "all") else int(spec)
    side, channels, layers = size, 3, []
    for width in widths:  # multiplications of each convolution: F*F*D1 * W2*H2*D2, one image
        side, products = side - 2, 9 * channels * width * (side - 2) ** 2
        layers.append(products)
        side, channels = side // 2, width
    layers += [side * side * channels * 256, 256]  # the head
    trained = layers[depth:]
    # Forward, gradient of the weights, and gradient of the input, which the first trained layer does not need.
    expected = 2 * batch * (3 * sum(trained) - trained[0])
    # Sums, rectifiers, pooling and the optimizer come on top.
    extra = 40 * batch * sum(layers) ** 0.5 + 12 * trainer.trainable_parameters
    assert expected <= counted <= 1.35 * expected + extra, (expected, counted)


def test_features_on_disk_and_in_no_store_train_alike(resnet, tmp_path, monkeypatch):
    source, frozen = images(20, 32), Freeze.parse("blocks/0/norm2").resolve(resnet)
    ends = {}
    for where in ("device", "disk", "nowhere"):
        store = FeatureStore(tmp_path / where, budget=1 << 30 if where != "nowhere" else 1)
        trainer = Trainer(resnet, frozen, (32, 32), batch_size=8, optimizer="sgd", store=store)
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            patch.setattr("cnnjax.train.dataset.fits_on_device", lambda nbytes, fits=where == "device": fits)
            rows, test = trainer.rows(source), trainer.rows(source, train=False)
        told = [str(w.message) for w in warned if "persistent compilation cache" not in str(w.message)]
        assert ["the frozen part runs in every step instead" in text for text in told] == (
            [True, True] if where == "nowhere" else []
        )
        assert rows.on_device is (where == "device") and (rows.source is not None) is (where == "nowhere")
        state, log = trainer.fit(trainer.init(), rows, epochs=2, seed=1)
        ends[where] = {**state.trainable, "score": trainer.evaluate(state, test)["loss"], "loss": log[-1]["loss"]}
    for where in ("disk", "nowhere"):
        for path, value in ends["device"].items():
            assert np.allclose(value, ends[where][path], rtol=1e-4, atol=1e-6), (where, path)


def test_metrics_are_exact_to_the_last_short_batch(resnet):
    source = images(19, 32)
    trainer = Trainer(resnet, Freeze.through("stem").resolve(resnet), (32, 32), batch_size=8)
    state = trainer.init()
    scores, logits = trainer.predict(state, trainer.rows(source, train=False))
    model = trainer.model(state)
    out = np.asarray(model(source.read(np.arange(19))))
    target, z = source.labels, out[:, 0].astype(np.float64)
    assert logits.shape == (19, 1) and np.allclose(logits, out, rtol=1e-4, atol=1e-5)
    assert scores["accuracy"] == pytest.approx(np.mean((z > 0) == (target > 0)))
    assert scores["loss"] == pytest.approx(np.mean(np.log1p(np.exp(-z * (2 * target - 1)))), rel=1e-4)


def test_losses_are_keras_s():
    import keras

    labels = np.array([0, 2, 1, 2])
    logits = RNG.normal(size=(4, 3)).astype(np.float32)
    theirs = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    assert np.allclose(Classification().loss(jnp.asarray(logits), jnp.asarray(labels)), theirs, rtol=1e-5)
    theirs = keras.losses.binary_crossentropy(labels[:, None] > 1, logits[:, :1], from_logits=True)
    assert np.allclose(
        Classification().loss(jnp.asarray(logits[:, :1]), jnp.asarray(labels > 1).astype(int)), theirs, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw", "sgd"])
def test_optimizers_step_as_keras_s_do(name):
    import keras

    theirs = {"rmsprop": keras.optimizers.RMSprop, "adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}
    theirs["adamw"] = keras.optimizers.AdamW
    optimizer, start = theirs[name](), RNG.normal(size=5).astype(np.float32)
    variable = keras.Variable(start)
    optimizer.build([variable])
    tx, params = make_optimizer(name), jnp.asarray(start)
    state = tx.init(params)
    for _ in range(4):
        gradient = RNG.normal(size=5).astype(np.float32)
        optimizer.apply([gradient])
        updates, state = tx.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
    assert np.allclose(params, variable.value, rtol=1e-4, atol=1e-6)


def test_an_unknown_optimizer_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="no optimizer 'rmsprob'; did you mean 'rmsprop'"):
        make_optimizer("rmsprob")
    with pytest.raises(ValueError, match="must be positive, not -1"):
        make_optimizer("sgd", -1)


def test_leaves_that_do_not_fit_are_all_named(resnet):
    trainer = Trainer(resnet, Freeze.through("stem").resolve(resnet), (32, 32), batch_size=8)
    wrong = {"out/kernel": jnp.zeros((3, 3)), "out/bais": jnp.zeros(1), "out/bias": jnp.zeros(1, jnp.int32)}
    with pytest.raises(
        ValueError, match=r"(?s)out/bias: .*out/kernel: expected float32\[8, 1\], found .*out/bais: no such leaf"
    ):
        trainer.init(wrong)


def test_every_example_is_seen_once_an_epoch_in_an_order_of_its_own():
    first, weights = epoch_batches(10, 4, seed=0, epoch=0)
    second, _ = epoch_batches(10, 4, seed=0, epoch=1)
    for index in (first, second):
        assert sorted(index[weights > 0]) == list(range(10))
    assert not np.array_equal(first, second) and weights.sum() == 10


def test_training_in_two_parts_is_training_in_one(resnet):
    trainer = Trainer(resnet, Freeze.through("blocks/1/norm2").resolve(resnet), (32, 32), batch_size=8)
    rows = trainer.rows(images(20, 32))
    whole, log = trainer.fit(trainer.init(), rows, epochs=3, seed=2)
    half, _ = trainer.fit(trainer.init(), rows, epochs=1, seed=2)
    parts, rest = trainer.fit(half, rows, epochs=2, seed=2)
    assert [r["epoch"] for r in rest] == [1, 2] and rest[-1]["loss"] == log[-1]["loss"]
    for path, value in whole.trainable.items():
        assert jnp.array_equal(value, parts.trainable[path]), path


def test_what_does_not_fit_the_trainer_is_refused(resnet):
    trainer = Trainer(resnet, Freeze.through("stem").resolve(resnet), (32, 32), batch_size=8)
    with pytest.raises(ValueError, match=r"made for images of \(32, 32\), the source has \(16, 16\)"):
        trainer.rows(images(4, 16))
    with pytest.raises(ValueError, match=r"labels 0 to 2 do not fit 1 logit: one logit tells two classes apart"):
        trainer.rows(InMemory(np.zeros((3, 32, 32, 3), np.uint8), [0, 1, 2], "abc"))
    with pytest.raises(ValueError, match="no images"):
        trainer.rows(InMemory(np.zeros((0, 32, 32, 3), np.uint8), [], "ab"))
    pairs = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"must give logits \[N, classes\].*\[8, 32, 32, 4\]"):
        Trainer(pairs, Freeze.none().resolve(pairs), (32, 32), batch_size=8)


def test_an_optimizer_that_keeps_the_parameters_can_be_donated(resnet):
    frozen = Freeze.through("blocks/2/norm2").resolve(resnet)
    trainer = Trainer(resnet, frozen, (32, 32), batch_size=8, optimizer=optax.contrib.prodigy())
    state, _ = trainer.fit(trainer.init(), trainer.rows(images(16, 32)), epochs=1)
    assert int(state.step) == 2
    with pytest.raises(ValueError, match="wrap it in optax.inject_hyperparams"):
        trainer.init(learning_rate=0.1)


def test_streams_of_random_keys_may_be_stacked():
    class Many(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.out = nnx.Linear(3, 1, rngs=rngs)
            keys = jax.random.split(jax.random.key(0), 4)
            self.noise = nnx.RngKey(keys, tag="noise")

        def __call__(self, x: jax.Array) -> jax.Array:
            noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(self.noise[...]).sum(0)
            return self.out(x.mean((1, 2)) + noise)

    model = Many(nnx.Rngs(0))
    trainer = Trainer(model, Freeze.none().resolve(model), (32, 32), batch_size=8)
    trainer.fit(trainer.init(), trainer.rows(images(16, 32)), epochs=1)
