"""Losses, metrics and what tasks take from data: as Keras, scikit-learn or the formula in double has them."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, r2_score, root_mean_squared_error
from sklearn.utils.class_weight import compute_class_weight

from cnnjax import Classification, MultiLabel, Regression, Task
from cnnjax.train.task import Metrics
from cnnjax.train.tasks import task_from_config

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 20)
LOGITS = RNG.normal(0, 2, (20, 3)).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_the_focal_loss_of_classes_is_keras_s(alpha, smoothing):
    task = Classification(("a", "b", "c"), focal=2.0, alpha=alpha, smoothing=smoothing)
    theirs = keras.losses.categorical_focal_crossentropy(
        np.eye(3)[LABELS], LOGITS, 1.0 if alpha is None else alpha, 2.0, from_logits=True, label_smoothing=smoothing
    )
    np.testing.assert_allclose(task.loss(jnp.asarray(LOGITS), jnp.asarray(LABELS)), np.asarray(theirs), rtol=1e-4)
    plain = Classification(("a", "b", "c"), focal=2.0, alpha=alpha)
    ours = task.evaluation_loss(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    np.testing.assert_array_equal(ours, plain.loss(jnp.asarray(LOGITS), jnp.asarray(LABELS)))


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_the_focal_loss_of_two_classes_is_keras_s(alpha):
    logits, labels = LOGITS[:, :1], LABELS > 1
    task = Classification(("a", "b"), focal=1.5, alpha=alpha)
    theirs = keras.losses.binary_focal_crossentropy(
        labels[:, None].astype(np.float32), logits, apply_class_balancing=alpha is not None, alpha=alpha or 0.25,
        gamma=1.5, from_logits=True,
    )  # fmt: skip
    found = task.loss(jnp.asarray(logits), jnp.asarray(labels.astype(int)))
    np.testing.assert_allclose(found, np.asarray(theirs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_focal_loss_without_gamma_is_cross_entropy_and_certain_ones_have_gradients(outputs):
    logits = jnp.array([[80.0, -80.0, 0.0], [-80.0, 80.0, 0.0], [0.3, 0.2, 0.1]])[:, :outputs]
    labels = jnp.array([0, 0, 1])
    zero, half = Classification(focal=0.0), Classification(focal=0.5)
    np.testing.assert_allclose(zero.loss(logits, labels), Classification().loss(logits, labels), rtol=1e-6)
    gradient = jax.grad(lambda x: half.loss(x, labels).sum())(logits)
    assert np.isfinite(gradient).all()
    wrong = 0 if outputs == 1 else 1
    assert np.abs(gradient[wrong]).max() > 0.5  # where Keras's is clipped to nothing


@pytest.mark.parametrize("outputs", [1, 3])
def test_class_weights_are_keras_s_and_balanced_ones_scikit_learn_s(outputs):
    classes = max(outputs, 2)
    names, labels = tuple("abc"[:classes]), np.repeat(np.arange(classes), [9, 3, 5][:classes])
    logits = RNG.normal(size=(len(labels), outputs)).astype(np.float32)
    task = Classification(names, class_weights="balanced")
    assert task.pending
    task = task.resolved(labels)
    weights = compute_class_weight("balanced", classes=np.arange(classes), y=labels)
    np.testing.assert_allclose(task.class_weights, weights)
    plain = Classification(names).loss(jnp.asarray(logits), jnp.asarray(labels))
    found = task.loss(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, np.asarray(plain) * weights[labels], rtol=1e-6)
    model = keras.Sequential([keras.layers.Identity()])
    loss = keras.losses.BinaryCrossentropy if outputs == 1 else keras.losses.SparseCategoricalCrossentropy
    model.compile(loss=loss(from_logits=True), optimizer="sgd")
    log = model.fit(
        logits,
        labels[:, None].astype(np.int32),
        class_weight=dict(enumerate(weights)),
        batch_size=len(labels),
        verbose=0,
        epochs=1,
    )
    assert float(found.mean()) == pytest.approx(log.history["loss"][0], rel=1e-5)
    # Mixed labels have mixed weights.
    hot = jnp.eye(classes)[labels] if outputs > 1 else jnp.asarray(labels, jnp.float32)[:, None]
    np.testing.assert_allclose(task.loss(jnp.asarray(logits), hot), found, rtol=1e-5)
    given = Classification(names, class_weights={"b": 3}).class_weights
    assert given == (1.0, 3.0, 1.0)[:classes]


def test_several_labels_have_the_mean_of_their_binary_cross_entropies():
    logits, there = RNG.normal(0, 3, (9, 4)).astype(np.float32), RNG.integers(0, 2, (9, 4)).astype(np.float32)
    plain = MultiLabel(tuple("abcd"))
    theirs = keras.losses.binary_crossentropy(there, logits, from_logits=True)
    np.testing.assert_allclose(plain.loss(jnp.asarray(logits), jnp.asarray(there)), np.asarray(theirs), rtol=1e-5)
    weighted = MultiLabel(tuple("abcd"), pos_weight="balanced").resolved(there)
    weight = (there == 0).sum(0) / (there == 1).sum(0)
    np.testing.assert_allclose(weighted.pos_weight, weight)
    x = logits.astype(np.float64)
    each = weight * there * np.log1p(np.exp(-x)) + (1 - there) * np.log1p(np.exp(x))  # as torch's BCEWithLogitsLoss
    np.testing.assert_allclose(weighted.loss(jnp.asarray(logits), jnp.asarray(there)), each.mean(1), rtol=1e-5)
    found = plain.metrics(jnp.asarray(logits), jnp.asarray(there))
    right = (logits > 0) == (there == 1)
    np.testing.assert_allclose(found["label_accuracy"], right.mean(1))
    np.testing.assert_array_equal(found["exact_match"], right.all(1))
    weights = RNG.uniform(0.1, 2, 9)
    wanted = [average_precision_score(there[:, k], logits[:, k], sample_weight=weights) for k in range(4)]
    assert plain.overall(logits, there, weights)["mAP"] == pytest.approx(np.mean(wanted))
    one = MultiLabel(("there",))
    assert one.outputs == 1 and one.checked_targets([0, 1], jax.ShapeDtypeStruct((2, 1), float)).shape == (2, 1)


@pytest.mark.parametrize("error", ["mse", "mae", "huber"])
def test_a_regression_minimises_standardised_errors_and_reports_units(error):
    wanted = (RNG.normal(0, 1, (30, 2)) * [50, 0.1] + [1000, -3]).astype(np.float32)
    outputs = RNG.normal(0, 2, (30, 2)).astype(np.float32)
    task = Regression(("weight", "shift"), ("kg", "mm"), error=error, delta=1.5).resolved(wanted)
    mean, deviation = wanted.astype(np.float64).mean(0), wanted.astype(np.float64).std(0)
    np.testing.assert_allclose(task.mean, mean)
    np.testing.assert_allclose(task.deviation, deviation)
    scaled = (wanted - mean) / deviation
    theirs = {
        "mse": keras.losses.mean_squared_error, "mae": keras.losses.mean_absolute_error,
        "huber": lambda a, b: keras.losses.huber(a, b, delta=1.5),
    }[error](scaled.astype(np.float32), outputs)  # fmt: skip
    np.testing.assert_allclose(task.loss(jnp.asarray(outputs), jnp.asarray(wanted)), np.asarray(theirs), rtol=2e-3)
    found = task.predictions(outputs)
    np.testing.assert_allclose(found, outputs * deviation + mean)
    off = task.metrics(jnp.asarray(outputs), jnp.asarray(wanted))
    np.testing.assert_allclose(off["mae_weight"], np.abs(found - wanted)[:, 0], rtol=1e-3, atol=1e-3)
    weights = RNG.uniform(0, 2, 30)
    overall = task.overall(outputs, wanted, weights)
    assert overall["r2"] == pytest.approx(r2_score(wanted, found, sample_weight=weights), rel=1e-4)
    root = root_mean_squared_error(wanted, found, sample_weight=weights, multioutput="raw_values")
    assert [overall["rmse_weight"], overall["rmse_shift"]] == pytest.approx(root.tolist())
    assert task.shown("mae_weight", 2.5) == "2.5 kg" and task.unit("rmse_shift") == "mm" and task.unit("r2") == ""


@pytest.mark.parametrize(
    "task",
    [
        Classification(("a", "b")), Classification(("a", "b", "c"), 0.1, (1, 2, 3), 2.0, 0.5),
        Classification(("a", "b"), class_weights="balanced"), MultiLabel(("x",), 2.0, (0.3,)), MultiLabel(("x", "y")),
        Regression(("n",), ("m",), "huber", 2.0, (1.0,), (3.0,)), Regression(("n", "k")),
    ],
)  # fmt: skip
def test_a_task_is_kept_as_plain_values(task):
    import json
    import pickle

    assert task_from_config(json.loads(json.dumps(task.to_config()))) == task
    assert pickle.loads(pickle.dumps(task)) == task and hash(task) == hash(pickle.loads(pickle.dumps(task)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification(("a",)), "at least two classes"),
        (lambda: Classification(("a", "b"), smoothing=1.0), "smoothing: expected 0 or more and less than 1"),
        (lambda: Classification(("a", "b"), class_weights=(1, 2, 3)), "class_weights: expected 2 finite numbers"),
        (lambda: Classification(("a", "b"), class_weights={"c": 1}), "no class 'c'; there are a, b"),
        (lambda: Classification(("a", "b"), class_weights="even"), "expected 'balanced'"),
        (lambda: Classification(("a", "b"), alpha=0.5), "alpha is of the focal loss"),
        (lambda: Classification(("a", "b", "c"), class_weights="balanced").resolved([0, 1]), "c has no training"),
        (lambda: MultiLabel(()), "at least one name"),
        (lambda: MultiLabel(("a", "a")), "'a' given more than once"),
        (lambda: MultiLabel(("a",), "balanced").resolved(np.zeros((3, 1))), "a has no positive training example"),
        (lambda: Regression(("a", "b"), ("m",)), "units: expected 2, one for each of a, b, found 1"),
        (lambda: Regression(("a",), error="rmse"), "error: expected one of mse, mae, huber"),
        (lambda: Regression(("a",)).resolved(np.full((3, 1), 0.1)), "a is the same for all training examples"),
        (lambda: Regression(("a",), mean=(0,), deviation=(0,)), "deviation: expected numbers above 0"),
        (lambda: Regression(("a",)).smoothed(0.1), "label_smoothing is for a classification"),
        (lambda: Task(lambda y, t: y, {"loss": lambda y, t: y}), "'loss' means something else"),
        (lambda: Task(0.5), "loss: expected a function"),
        (lambda: task_from_config({"kind": "own"}), "made of functions"),
        (lambda: task_from_config({"kind": "clustering"}), "expected the kind"),
        (lambda: task_from_config({"kind": "multilabel", "names": ["a"], "weight": 1}), "has no 'weight'"),
        (lambda: Task(lambda y, t: y.mean()).scores(jnp.ones((4, 1)), jnp.ones(4)), "leave the mean over examples"),
        (lambda: Task(lambda y, t: y).scores(jnp.ones((4, 1)), jnp.ones(4)), r"found \[4, 1\]"),
    ],
)
def test_what_does_not_fit_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sums_are_added_and_their_means_known():
    total = Metrics.zero(("a",)).plus(Metrics(2.0, {"a": 1.0}, 4.0)).plus(Metrics(0.0, {"a": 0.0}, 0.0, 1.0))
    assert total.begun and total.summary() == {"loss": 0.5, "a": 0.25, "skipped_steps": 1.0}
    assert not Metrics.zero(()).begun and np.isnan(Metrics.zero(("a",)).summary()["a"])
