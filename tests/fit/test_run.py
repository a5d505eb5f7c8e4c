"""Runs that are broken off anywhere and gone on with, and numbers that are none."""

import os
import signal
import time

import jax
import numpy as np
import pytest
from small import SIZE, images, make

from cnnjax.checkpoints import Checkpoints, CorruptCheckpoint
from cnnjax.data.order import epoch_batches
from cnnjax.fit import CheckpointConfig, Fitter, Recipe
from cnnjax.metrics import Journal
from cnnjax.metrics.journal import read
from cnnjax.runtime import preemption
from cnnjax.train.trainer import NotFinite

RECIPES = {
    "scratch": Recipe("scratch", epochs=3, batch_size=8, optimizer="adam", ema=0.9, schedule="cosine", warmup=0.2),
    "gradual": Recipe("gradual", epochs=2, tune_epochs=2, batch_size=8, optimizer="sgd", accumulate=2, clip=1.0),
    "patience": Recipe("finetune", freeze="none", epochs=4, tune_epochs=3, batch_size=8, optimizer="adam", patience=1),
    # No epoch of the second phase is as good as what it starts from.
    "candidate": Recipe(
        "finetune",
        freeze="none",
        epochs=3,
        tune_epochs=4,
        batch_size=8,
        optimizer="sgd",
        learning_rate=1.0,
        tuning_factor=1.0,
        patience=3,
    ),
    "augment": Recipe("augment", epochs=2, batch_size=8, optimizer="rmsprop"),
}


class BrokenOff(Exception):
    """What ends a run in these tests."""


def run(fitter, folder, validation, *, stop_at=None, every=0.1, **options):
    """One attempt, broken off at the `stop_at`-th word of progress; its words, and what it ended with."""
    words = 0

    def report(name):
        def progress(done, total):
            nonlocal words
            words += not name.startswith("features")  # those are found in the store the second time
            if words == stop_at:
                raise BrokenOff

        return progress

    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpointing = CheckpointConfig(checkpoints, every=every, tell=lambda text: None, **options)
        fitted = fitter.fit(
            images(50, 0), validation, seed=3, journal=Journal(folder / "metrics.jsonl"), report=report,
            checkpointing=checkpointing,
        )  # fmt: skip
        last = checkpoints.latest()
        return words, fitted, checkpoints.read(last), (folder / "metrics.jsonl").read_bytes()


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), one, other))


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_broken_off_at_any_word_ends_as_one_that_was_not(name, tmp_path, train_programs):
    fitter, validation = train_programs(name), images(30, 1)
    words, fitted, tree, lines = run(fitter, tmp_path / "whole", validation)
    assert name != "candidate" or fitted.best < 3 < len(fitted.history)
    for number, stop_at in enumerate(np.linspace(2, words, 4).astype(int)):
        folder = tmp_path / str(number)
        with pytest.raises(BrokenOff):
            run(fitter, folder, validation, stop_at=int(stop_at))
        _, again, its_tree, its_lines = run(fitter, folder, validation)
        assert same(fitted.leaves, again.leaves) and same(tree, its_tree) and lines == its_lines
        assert again.best == fitted.best and len(again.history) == len(fitted.history)


@pytest.fixture(scope="module")
def train_programs():
    """Compiled once for each recipe: a fitter holds nothing of a run."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Fitter(make(), RECIPES[name], SIZE)
        return made[name]

    return get


def test_a_signal_saves_once_and_ends(tmp_path, train_programs):
    fitter = train_programs("scratch")
    _, _, tree, lines = run(fitter, tmp_path / "whole", None)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpointing = CheckpointConfig(checkpoints, every=1e9, tell=lambda text: None)

        def told(done, total):
            if done == 10:
                os.kill(os.getpid(), signal.SIGTERM)
                # Heard by a thread, which a busy machine may keep waiting for longer than these small steps take.
                deadline = time.monotonic() + 60
                while not preemption.requested() and time.monotonic() < deadline:
                    time.sleep(0.001)

        def report(name):
            return told if name == "all" else None

        with pytest.raises(preemption.Preempted), preemption.watching():
            fitter.fit(images(50, 0), seed=3, report=report, checkpointing=checkpointing)
        (step,) = checkpoints.steps()
    assert step == 10
    (tmp_path / "checkpoints").rename(tmp_path / "moved")
    (tmp_path / "again").mkdir()
    (tmp_path / "moved").rename(tmp_path / "again" / "checkpoints")
    _, _, its_tree, its_lines = run(fitter, tmp_path / "again", None)
    assert same(tree, its_tree) and lines == its_lines


def test_a_damaged_newest_checkpoint_is_passed_over_only_when_asked(tmp_path, train_programs):
    fitter = train_programs("augment")
    _, fitted, tree, lines = run(fitter, tmp_path, None, every=1e-9)
    *_, before, newest = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    victim = max((p for p in (tmp_path / "checkpoints" / str(newest)).rglob("*") if p.is_file()), key=os.path.getsize)
    victim.write_bytes(victim.read_bytes()[:-7])
    with pytest.raises(CorruptCheckpoint, match=f"(?s)checkpoints/{newest}.*{before}"):
        run(fitter, tmp_path, None)
    _, again, its_tree, its_lines = run(fitter, tmp_path, None, fall_back=True)
    assert same(tree, its_tree) and same(fitted.leaves, again.leaves) and lines == its_lines


def test_a_loss_that_is_no_number_ends_the_run_and_names_step_rate_and_files(tmp_path):
    recipe = Recipe("scratch", epochs=5, batch_size=8, optimizer="sgd", learning_rate=1e20, warmup=0.3)
    fitter, source = Fitter(make(), recipe, SIZE), images(50, 0)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(NotFinite) as caught:
            fitter.fit(source, seed=3, checkpointing=CheckpointConfig(checkpoints, every=1e-9, tell=lambda text: None))
        kept = checkpoints.latest()
        weights = jax.tree.leaves(checkpoints.read(kept)["state"]["trainable"]) if kept is not None else []
    error, text = caught.value, str(caught.value)
    batch = epoch_batches(50, 8, 3, error.epoch)[0][error.step]
    np.testing.assert_array_equal(error.examples, batch)
    step = error.epoch * 7 + error.step
    assert f"the loss of step {step} " in text and all(source.names[i] in text for i in batch)
    # The rate rises linearly over the warm-up.
    assert f"the learning rate was {1e20 * (step + 1) / 12:.0e}".split("e")[1] in text
    assert all(np.isfinite(x).all() for x in weights)


class OneBad:
    """Images one of which is not a number."""

    def __init__(self, bad):
        self._inner, self._bad = images(50, 0), bad
        self.labels, self.names, self.image_size = self._inner.labels, self._inner.names, SIZE
        self.digest = self._inner.digest + str(bad)

    def __len__(self):
        return 50

    def read(self, indices):
        found = self._inner.read(indices)
        found[np.asarray(indices) == self._bad] = np.nan
        return found


def test_bad_steps_are_skipped_and_counted_where_that_is_asked(tmp_path):
    recipe = Recipe("scratch", epochs=2, batch_size=8, optimizer="adam", not_finite="skip")
    journal = Journal(tmp_path / "metrics.jsonl")
    # One that does not also fill up a last batch.
    bad = min(set(range(50)).difference(*(epoch_batches(50, 8, 3, epoch)[0][-1].tolist() for epoch in range(2))))
    fitted = Fitter(make(), recipe, SIZE, stream=True).fit(OneBad(bad), seed=3, journal=journal)
    assert [line["skipped_steps"] for line in read(journal.path)] == [1, 1]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(fitted.leaves))
    stopping = Recipe("scratch", epochs=2, batch_size=8, optimizer="adam")
    with pytest.raises(NotFinite, match=rf" {bad}[,.]"):
        Fitter(make(), stopping, SIZE, stream=True).fit(OneBad(bad), seed=3)
