"""Strict restoring."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.checkpoints import CheckpointMismatch, restore, save

LEAVES = {"conv1/kernel": jnp.arange(6.0).reshape(2, 3), "blocks/0/bias": jnp.ones(4), "bn/mean": jnp.zeros(2)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "leaves"
    save(folder, LEAVES)
    return folder


def test_what_was_saved_comes_back(saved):
    found = restore(saved, LEAVES)
    assert found.keys() == LEAVES.keys()
    assert all(np.array_equal(found[p], x) and found[p].dtype == x.dtype for p, x in LEAVES.items())


def test_all_that_does_not_fit_is_named_at_once(saved):
    expected = {
        "conv1/kernel": jnp.zeros((3, 2)),
        "blocks/0/bias": jnp.ones(4, jnp.bfloat16),
        "out/bias": jnp.zeros(1),
    }
    with pytest.raises(CheckpointMismatch) as error:
        restore(saved, expected)
    for line in (
        "out/bias: missing from the checkpoint",
        "bn/mean: not in the model",
        "conv1/kernel: expected float32[3, 2], found float32[2, 3]",
        "blocks/0/bias: expected bfloat16[4], found float32[4]",
    ):
        assert line in str(error.value)


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        restore(tmp_path / "none", LEAVES)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="is no checkpoint|no checkpoint"):
        restore(tmp_path / "folder", LEAVES)


def test_random_keys_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="leave out dropout/rngs/key"):
        save(tmp_path / "leaves", {"dropout/rngs/key": jax.random.key(0)})
