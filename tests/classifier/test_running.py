"""What a run starts from."""

import numpy as np
import pytest

from cnnjax import Checkpoints, ImageClassifier
from cnnjax.checkpoints import CheckpointMismatch
from cnnjax.classifier.running import RuntimeConfig, initial_leaves


def make(classes, seed):
    return ImageClassifier(
        "lecture_cnn", tuple("abc"[:classes]), image_size=32, head="linear", widths=(4, 8), seed=seed
    )


@pytest.fixture(scope="module")
def two():
    return make(2, 0)


def test_a_saved_classifier_gives_all_weights_or_its_backbone(two, tmp_path):
    two.save(tmp_path / "run" / "classifier")
    other = make(2, 1)
    for place in (tmp_path / "run", tmp_path / "run" / "classifier"):
        taken = initial_leaves(place, other.leaves, "all")
        assert all(np.array_equal(taken[p], x) for p, x in two.leaves.items()) and len(taken) == len(two.leaves)
    part = initial_leaves(tmp_path / "run", other.leaves, "backbone")
    for p, x in part.items():
        assert np.array_equal(x, (two if p.startswith("backbone/") else other).leaves[p]), p


def test_an_unfinished_run_gives_those_of_one_checkpoint_and_says_so(two, tmp_path):
    leaves = two.leaves
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in (1, 2):
            moved = {p: x + step for p, x in leaves.items()}
            checkpoints.save(step, {"state": {"trainable": moved, "statistics": {}}}, {})
        frozen = {p: x for p, x in leaves.items() if p.startswith("head/")}
        checkpoints.save(3, {"state": {"trainable": frozen, "statistics": {}}}, {})
    own = make(2, 1).leaves
    taken = initial_leaves(tmp_path / "checkpoints" / "2", own, "all")
    assert all(np.array_equal(taken[p], x + 2) for p, x in leaves.items())
    with pytest.raises(FileNotFoundError, match=r"is not finished.*checkpoints/3"):
        initial_leaves(tmp_path, own, "all")
    with pytest.raises(CheckpointMismatch, match="lacks what its run froze"):
        initial_leaves(tmp_path / "checkpoints" / "3", own, "all")


def test_what_does_not_fit_is_listed_and_nothing_is_left_fresh(two, tmp_path):
    two.save(tmp_path / "saved")
    three = make(3, 1)
    with pytest.raises(CheckpointMismatch) as caught:
        initial_leaves(tmp_path / "saved", three.leaves, "all")
    heads = [p for p in three.leaves if p.startswith("head/")]
    assert heads and all(p in str(caught.value) for p in heads) and "--init-part backbone" in str(caught.value)
    taken = initial_leaves(tmp_path / "saved", three.leaves, "backbone")
    assert np.array_equal(taken["backbone/conv2d_1/kernel"], two.leaves["backbone/conv2d_1/kernel"])
    with pytest.raises(FileNotFoundError, match="neither a saved classifier nor a checkpoint"):
        initial_leaves(tmp_path, three.leaves, "all")


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="checkpoint_every: expected seconds above 0, found 0"):
        RuntimeConfig(checkpoint_every=0)
    with pytest.raises(ValueError, match="keep_checkpoints: expected 1 or more, found 0"):
        RuntimeConfig(keep_checkpoints=0)
