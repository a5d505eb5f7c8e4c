"""Code of the user's by its import path, from the command line: each part of a training, and the saved classifier."""

import json
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from cnnjax import ImageClassifier
from cnnjax.cli import main
from cnnjax.data import Folder
from cnnjax.metrics.journal import read

pytestmark = pytest.mark.usefixtures("compiled_fast")
CODE = """
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from cnnjax import Task
from cnnjax.data import InMemory

def halved(outputs, targets):
    return optax.sigmoid_binary_cross_entropy(outputs[:, 0], targets.reshape(-1).astype(outputs.dtype)) / 2

def brier(outputs, targets):
    return (jax.nn.sigmoid(outputs[:, 0]) - targets.reshape(-1)) ** 2

def wide(feature_shape, *, outputs, rngs):
    flat = int(np.prod(feature_shape))
    return nnx.Sequential(lambda x: x.reshape(len(x), -1), nnx.Linear(flat, outputs, rngs=rngs))

def momentum(learning_rate):
    return optax.sgd(learning_rate, momentum=0.9)

def falling(steps, warmup):
    return lambda step: 1.0 - 0.5 * step / steps

def mirrored(key, images):
    flip = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)

class Told:
    seen = []
    def on_epoch_end(self, trainer, state, record):
        Told.seen.append(record["epoch"])

def sources(image_size):
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    images = (rng.integers(0, 99, (24, *image_size, 3)) + labels[:, None, None, None] * 150).astype(np.uint8)
    return {"train": InMemory(images[:16], labels[:16], ("dark", "bright")),
            "test": InMemory(images[16:], labels[16:], ("dark", "bright"))}

def ages(names):
    off = lambda y, t: jnp.abs(y[:, 0] - t)
    return Task(off, {"near": lambda y, t: off(y, t) < 0.5}, outputs=1, names=("age",))

def aged(image_size):
    made = sources(image_size)
    return {name: InMemory(s.images, targets=s.labels.astype(np.float32)) for name, s in made.items()}

def no_mean(outputs, targets):
    return halved(outputs, targets).mean()
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    file = tmp_path_factory.mktemp("code") / "mine.py"
    file.write_text(CODE)
    return file


def command(base, *more):
    return [
        "fit", "--backbone", "lecture_cnn", "--widths", "4", "8", "--image-size", "32", "--method", "scratch",
        "--epochs", "2", "--batch-size", "8", *more, "--out", f"{base}/run", "--store", f"{base}/store",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(mine, tmp_path_factory):
    """Everything of the user's at once."""
    base = tmp_path_factory.mktemp("own")
    words = command(
        base, "--data", f"{mine}:sources", "--loss", f"{mine}:halved", "--metrics", f"{mine}:brier", "--head",
        f"{mine}:wide", "--optimizer", f"{mine}:momentum", "--schedule", f"{mine}:falling", "--augment",
        f"{mine}:mirrored", "--callbacks", f"{mine}:Told",
    )  # fmt: skip
    main(words)
    return base / "run", words


def test_loss_metric_head_optimizer_schedule_augmentation_data_and_callback_are_the_users(run, mine):
    out, _ = run
    records = read(out / "metrics.jsonl")
    assert {"train_loss", "train_accuracy", "train_brier"} <= set(records[-1])
    test = json.loads((out / "report.json").read_text())["test"]
    assert set(test["own"]) == {"halved", "brier"}
    assert test["own"]["halved"] == pytest.approx(test["loss"] / 2, rel=1e-5)  # half of the cross-entropy
    assert test["own"]["brier"] == pytest.approx(test["brier"], rel=1e-5)
    told = next(m for name, m in sys.modules.items() if name.startswith("cnnjax_own_") and hasattr(m, "Told"))
    assert told.Told.seen == [0, 1]
    saved = json.loads((out / "classifier" / "config.json").read_text())
    assert saved["head"] == f"{mine}:wide"
    assert saved["task"]["code"] == {"loss": f"{mine}:halved", "metrics": {"brier": f"{mine}:brier"}}


def test_a_saved_classifier_runs_code_only_if_it_is_named(run, mine, tmp_path, capsys):
    saved = run[0] / "classifier"
    script = f"from cnnjax import ImageClassifier; ImageClassifier.load({str(saved)!r})"
    refused = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert refused.returncode and "which is not run unless you name it: --code" in refused.stderr
    paths = [f"{mine}:{name}" for name in ("wide", "halved", "brier")]
    loaded = ImageClassifier.load(saved, code=paths)
    assert loaded.task.metric_names == ("accuracy", "brier")
    main(["evaluate", str(saved), "--data", f"{mine}:sources", "--samples", "0", "--code", *paths])
    assert "brier" in capsys.readouterr().out
    moved = tmp_path / "moved.py"
    moved.write_text(mine.read_text())
    again = ImageClassifier.load(saved, code=[f"{moved}:{name}" for name in ("wide", "halved", "brier")])
    for name, value in loaded.leaves.items():
        np.testing.assert_array_equal(again.leaves[name], value)
    with pytest.raises(ValueError, match="is not what .* needs"):
        ImageClassifier.load(saved, code=[*paths, "os:remove"])


def test_another_version_of_the_code_is_another_run(run, mine, tmp_path, capsys):
    _, words = run
    changed = tmp_path / "mine.py"
    changed.write_text(mine.read_text().replace("/ 2", "/ 3"))
    before = mine.read_text()
    mine.write_text(changed.read_text())
    try:
        with pytest.raises(SystemExit):
            main(words)
    finally:
        mine.write_text(before)
    assert "another configuration" in (said := capsys.readouterr().err) and f"{mine}:halved_code" in said


def test_optimizers_of_optax_by_name_take_the_steps_of_optax(mine, tmp_path):
    from cnnjax.optim import make_optimizer

    params = {"a/kernel": jax.numpy.ones((3, 2)), "a/bias": jax.numpy.zeros(2)}
    for name, own in (("optax:lion", optax.lion), ("optax:adabelief", optax.adabelief), ("optax:nadam", optax.nadam)):
        ours, theirs = make_optimizer(name, 3e-3), own(3e-3)
        states, weights = [ours.init(params), theirs.init(params)], [params, params]
        for step in range(4):
            gradients = jax.tree.map(lambda x, step=step: jax.numpy.sin(x + step), params)
            for k, one in enumerate((ours, theirs)):
                updates, states[k] = one.update(gradients, states[k], weights[k])
                weights[k] = optax.apply_updates(weights[k], updates)
        for path in params:
            np.testing.assert_allclose(weights[0][path], weights[1][path], rtol=1e-6)


def test_a_whole_task_is_trained_saved_and_measured(mine, tmp_path, capsys):
    main(command(tmp_path, "--data", f"{mine}:aged", "--task", f"{mine}:ages", "--head", "linear"))
    saved = tmp_path / "run" / "classifier"
    assert json.loads((saved / "config.json").read_text())["task"]["code"] == f"{mine}:ages"
    main(["evaluate", str(saved), "--data", f"{mine}:aged", "--samples", "0", "--code", f"{mine}:ages"])
    assert "near" in capsys.readouterr().out


def test_a_sweep_takes_them_too(mine, tmp_path):
    main([
        "ablate", "--data", f"{mine}:sources", "--backbone", "lecture_cnn", "--widths", "4", "8", "--image-size", "32",
        "--freeze", "1", "all", "--seeds", "1", "--epochs", "1", "--batch-size", "8", "--loss", f"{mine}:halved",
        "--metrics", f"{mine}:brier", "--head", f"{mine}:wide", "--optimizer", "optax:lion", "--augment", "none",
        f"{mine}:mirrored", "--out", f"{tmp_path}/run", "--store", f"{tmp_path}/store",
    ])  # fmt: skip
    found = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert len(found) == 4 and all("test_brier" in record for record in found)
    assert {record["augment"] for record in found} == {"none", f"{mine}:mirrored"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "{mine}:halve"], "there is no 'halve' in"),
        (["--loss", "{mine}:halve"], "did you mean 'halved'?"),
        (["--loss", "nowhere.py:loss"], "there is no file nowhere.py"),
        (["--loss", "{mine}:wide"], "is called with (outputs, targets), but it is wide(feature_shape"),
        (["--loss", "{mine}:no_mean"], "leave the mean over examples to the step"),
        (["--metrics", "brier"], "metrics: expected import paths, such as metrics.py:brier"),
        (["--head", "linea"], "no head 'linea'; did you mean 'linear'?"),
        (["--head", "{mine}:momentum"], "is called with (feature_shape), outputs=..., rngs=nnx.Rngs(seed)"),
        (["--optimizer", "{mine}:brier"], "is called with learning_rate=..."),
        (["--optimizer", "optax:lionn"], "did you mean 'lion'?"),
        (["--schedule", "cosin"], "no schedule 'cosin'; did you mean 'cosine'?"),
        (["--schedule", "{mine}:wide"], "is called with (steps, warmup)"),
        (["--augment", "{mine}:momentum"], "is called with (key, images)"),
        (["--callbacks", "{mine}:momentum"], "is called with (trainer, state, record)"),
        (["--task", "{mine}:sources"], "is called with names=(...)"),
        (["--task", "regresion"], "no task 'regresion'; did you mean 'regression'?"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_expected(options, message, mine, tmp_path, capsys):
    words = [word.replace("{mine}", str(mine)) for word in options]
    with pytest.raises(SystemExit) as stop:
        main(
            command(tmp_path, "--data", f"{mine}:sources", "--head", "linear", *words)
            if "--head" not in words
            else command(tmp_path, "--data", f"{mine}:sources", *words)
        )
    captured = capsys.readouterr()
    assert stop.value.code == 2 and message in " ".join(captured.err.split()), captured.err


def test_a_function_that_gives_no_sources_is_refused(mine, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(command(tmp_path, "--data", f"{mine}:momentum"))
    assert "is called with image_size=(height, width)" in " ".join(capsys.readouterr().err.split())


def test_the_command_and_the_method_give_the_same_weights_bit_for_bit(shapes_folder, tmp_path):
    """With dropout, augmentation, a schedule and an optimizer of optax."""
    options = ["--data", str(shapes_folder), "--head", "linear", "--seed", "3", "--optimizer", "optax:lion",
               "--augment", "lecture", "--schedule", "cosine", "--warmup", "0.2"]  # fmt: skip
    main(command(tmp_path, *options))
    found = ImageClassifier.load(tmp_path / "run" / "classifier").leaves
    classifier = ImageClassifier(
        "lecture_cnn", ("across", "down"), image_size=32, head="linear", widths=(4, 8), seed=3
    )  # fmt: skip
    classifier.fit(
        Folder(shapes_folder, "train", (32, 32)), method="scratch", epochs=2, batch_size=8, seed=3,
        optimizer=optax.lion, augment="lecture", schedule="cosine", warmup=0.2,
    )  # fmt: skip
    for name, value in classifier.leaves.items():
        np.testing.assert_array_equal(found[name], value)


def test_the_method_takes_what_the_command_takes_with_the_same_defaults():
    import dataclasses
    import inspect

    from cnnjax.classifier.training import Training
    from cnnjax.fit.targets import TaskOptions

    taken = inspect.signature(ImageClassifier.fit).parameters
    for field in dataclasses.fields(Training):
        assert taken[field.name].default == field.default, field.name
    for name in ("loss", "metrics"):
        assert taken[name].default == TaskOptions.__dataclass_fields__[name].default
    only = {"self", "train", "validation", "recipe", "task", "loss", "metrics", "out", "journal", "report", "options"}
    assert set(taken) - only == {field.name for field in dataclasses.fields(Training)}


def test_a_run_folder_of_the_method_goes_on_and_refuses_another_run(shapes_folder, tmp_path):
    def fitted(**options):
        made = ImageClassifier("lecture_cnn", ("across", "down"), image_size=32, head="linear", widths=(4, 8))
        train = Folder(shapes_folder, "train", (32, 32))
        how = {"method": "scratch", "epochs": 2, "batch_size": 8, "out": tmp_path / "run"}
        made.fit(train, store=tmp_path / "store", **(how | options))
        return made.leaves

    first, again = fitted(), fitted()
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)
    assert len(read(tmp_path / "run" / "metrics.jsonl")) == 2
    with pytest.raises(ValueError, match="holds a run with another configuration"):
        fitted(seed=1)
