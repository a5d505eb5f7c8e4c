"""Who is told of steps and epochs, what they may say, and what happens where a run is broken off."""

import numpy as np
import pytest
from small import SIZE, images, make

from cnnjax import Fitter, Freeze, ImageClassifier, Recipe, Trainer
from cnnjax.checkpoints import Checkpoints
from cnnjax.fit import CheckpointConfig
from cnnjax.metrics import Journal
from cnnjax.metrics.journal import read
from cnnjax.runtime import preemption
from cnnjax.train import Callback

COUNT, STEPS = 20, 3  # 8 a step, the last one short
pytestmark = pytest.mark.usefixtures("compiled_fast")


class Told(Callback):
    """Writes down all that it is told."""

    def __init__(self, stop=None):
        self.steps, self.epochs, self.losses, self.stop = [], [], [], stop

    def on_step_end(self, trainer, state, running_metrics, step):
        assert int(state.step) == step
        self.steps.append(step)
        self.losses.append(running_metrics.summary()["loss"])

    def on_epoch_end(self, trainer, state, record):
        self.epochs.append((record.get("phase"), record["epoch"], int(state.step)))
        return record["epoch"] == self.stop


class StepsAlone:
    """No callback by inheritance, and told of steps alone."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, trainer, state, running_metrics, step):
        self.steps.append(step)


def trainer(freeze="all"):
    model = make()
    return Trainer(model, Freeze.parse(freeze).resolve(model, "backbone"), SIZE, batch_size=8, optimizer="sgd")


def test_callbacks_are_told_of_each_step_and_epoch_and_can_end_training():
    """A head on stored features, whose epochs are one program where nobody asks for their steps."""
    own, told, alone, epochs = trainer(), Told(stop=1), StepsAlone(), []
    rows = own.rows(images(COUNT, 0))
    state, log = own.fit(
        own.init(), rows, epochs=4, callbacks=[told, alone, lambda own, state, record: epochs.append(record["epoch"])]
    )
    assert told.steps == alone.steps == list(range(1, 2 * STEPS + 1)) and own.traces == {"step": 1}
    assert told.epochs == [(None, 0, STEPS), (None, 1, 2 * STEPS)] and epochs == [0, 1] and len(log) == 2
    # Each epoch's last running mean is the record's loss.
    assert [told.losses[STEPS - 1], told.losses[-1]] == [record["loss"] for record in log]
    other = trainer()
    plain, its_log = other.fit(other.init(), rows, epochs=2)
    assert other.traces == {"epoch": 1}
    for path, value in plain.trainable.items():
        np.testing.assert_allclose(state.trainable[path], value, rtol=1e-5, atol=1e-7)
    third = trainer()  # told of epochs alone, the epochs stay one program
    third.fit(third.init(), rows, epochs=2, callbacks=[lambda own, state, record: None, Callback()])
    assert third.traces == {"epoch": 1}


def test_what_a_callback_adds_to_a_record_is_kept(tmp_path):
    def added(own, state, record):
        record["norm"] = np.float32(2.5)

    recipe = Recipe("features", epochs=2, batch_size=8)
    fitter, journal = Fitter(make(), recipe, SIZE), Journal(tmp_path / "metrics.jsonl")
    fitted = fitter.fit(images(COUNT, 0), images(10, 1), journal=journal, callbacks=[added])
    assert [line["norm"] for line in fitted.history] == [line["norm"] for line in read(journal.path)] == [2.5, 2.5]
    assert all("validation_loss" in line for line in fitted.history)
    with pytest.raises(ValueError, match="a callback added 'state' to the record: expected a number or text"):
        fitter.fit(images(COUNT, 0), callbacks=[lambda own, state, record: record.update(state=state)])


@pytest.mark.parametrize("wrong", [[3], [Told], "on_epoch_end"])
def test_what_is_no_callback_is_refused(wrong):
    with pytest.raises(ValueError, match="callbacks: expected"):
        Fitter(make(), Recipe("features", epochs=1), SIZE).fit(images(COUNT, 0), callbacks=wrong)


def test_a_fitter_says_the_phase_and_true_ends_all_phases(tmp_path):
    recipe = Recipe("finetune", freeze="none", epochs=2, tune_epochs=2, batch_size=8)
    fitter, told = Fitter(make(), recipe, SIZE), Told()
    fitter.fit(images(COUNT, 0), callbacks=[told])
    assert told.epochs == [("head", 0, 3), ("head", 1, 6), ("tune", 2, 9), ("tune", 3, 12)]
    assert told.steps == list(range(1, 13))
    with Checkpoints(tmp_path) as checkpoints:
        keeping = CheckpointConfig(checkpoints, every=1e9, tell=lambda text: None)
        ended = fitter.fit(images(COUNT, 0), callbacks=[Told(stop=0)], checkpointing=keeping)
        again, late = fitter.fit(images(COUNT, 0), callbacks=[late := Told()], checkpointing=keeping), late
    assert len(ended.history) == len(again.history) == 1 and not late.steps and not late.epochs
    for path, value in ended.leaves.items():
        np.testing.assert_array_equal(again.leaves[path], value)


@pytest.mark.parametrize("stop_at", [2, 3, 4, 7, 8])
def test_a_run_that_goes_on_tells_of_nothing_that_its_checkpoint_counts_as_done(stop_at, tmp_path):
    """Broken off after any step, saved or not: what was done before the save is told of once."""
    recipe = Recipe("finetune", freeze="none", epochs=1, tune_epochs=2, batch_size=8)
    fitter, source, validation = Fitter(make(), recipe, SIZE), images(COUNT, 0), images(10, 1)
    whole = Told()
    fitter.fit(source, validation, callbacks=[whole])

    class BrokenOff(Exception):
        pass

    class Breaks:
        def on_step_end(self, own, state, running_metrics, step):
            if step == stop_at:
                raise BrokenOff

    first, second = Told(), Told()
    with Checkpoints(tmp_path) as checkpoints:
        keeping = CheckpointConfig(checkpoints, every=1e-9, tell=lambda text: None)
        with pytest.raises(BrokenOff):
            fitter.fit(source, validation, callbacks=[first, Breaks()], checkpointing=keeping)
        checkpoints.wait()
        saved = checkpoints.latest()
        done = len(checkpoints.metadata(saved)["progress"]["history"])
        fitter.fit(source, validation, callbacks=[second], checkpointing=keeping)
    assert second.steps == whole.steps[saved:] and second.epochs == whole.epochs[done:]
    assert first.steps == whole.steps[:stop_at]
    assert second.losses == whole.losses[saved:]


def test_an_epoch_whose_callback_was_broken_off_is_told_of_again_and_counts_once(tmp_path):
    """A callback that ends the process while an epoch ends: patience must not count that epoch twice."""
    recipe = Recipe("scratch", epochs=4, batch_size=8, patience=3, learning_rate=1e-9)
    fitter, source, validation = Fitter(make(), recipe, SIZE), images(COUNT, 0), images(10, 1)
    whole = fitter.fit(source, validation)

    def breaks(own, state, record):
        if record["epoch"] == 1:
            raise preemption.Preempted

    told = Told()
    with Checkpoints(tmp_path) as checkpoints:
        keeping = CheckpointConfig(checkpoints, every=1e9, tell=lambda text: None)
        with pytest.raises(preemption.Preempted):
            fitter.fit(source, validation, callbacks=[breaks], checkpointing=keeping)
        standing = checkpoints.metadata()["progress"]
        assert checkpoints.latest() == 2 * STEPS and len(standing["history"]) == 1 and standing["since"] == 0
        again = fitter.fit(source, validation, callbacks=[told], checkpointing=keeping)
    assert [epoch for _, epoch, _ in told.epochs] == [line["epoch"] for line in whole.history][1:]
    assert len(again.history) == len(whole.history) and again.best == whole.best
    for path, value in whole.leaves.items():
        np.testing.assert_array_equal(again.leaves[path], value)


def test_a_classifier_passes_callbacks_on():
    classifier = ImageClassifier("lecture_cnn", ("a", "b"), image_size=12, head="linear", widths=(4,))
    told = Told()
    classifier.fit(images(COUNT, 0), method="scratch", epochs=2, batch_size=8, callbacks=[told])
    assert told.epochs == [("all", 0, 3), ("all", 1, 6)]


def test_a_truth_of_numpys_ends_training_and_another_value_does_not():
    model = make()
    trainer = Trainer(model, Freeze.all().resolve(model, "backbone"), SIZE, batch_size=8)
    for end, epochs in ((np.bool_(True), 1), (np.bool_(False), 3), ("yes", 3), (True, 1)):
        _, log = trainer.fit(
            trainer.init(), trainer.rows(images(COUNT, 0)), epochs=3, callbacks=[lambda t, s, r, end=end: end]
        )
        assert len(log) == epochs
