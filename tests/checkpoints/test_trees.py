"""One tree in one folder: bit for bit, strictly, and checked for damage."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoints.processes import same

from cnnjax.checkpoints import CheckpointMismatch, CorruptCheckpoint, as_nested, from_nested, restore, save
from cnnjax.checkpoints.trees import make_writer, write
from cnnjax.optim import make_optimizer, warmup_cosine

LEAVES = {"conv1/kernel": jnp.arange(6.0).reshape(2, 3), "blocks/0/bias": jnp.ones(4), "bn/mean": jnp.zeros(2)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "leaves"
    save(folder, LEAVES)
    return folder


@pytest.fixture(scope="module")
def training():
    """A state after two steps of Adam with a schedule, an average, a clip and accumulation."""
    optimizer = make_optimizer("adam", 1e-3, schedule=warmup_cosine(9, 2), clip=1.0, accumulate=2, ema=0.9)
    weights = {"conv1/kernel": jnp.ones((3, 2)), "head/bias": jnp.zeros(3, jnp.bfloat16)}
    state = optimizer.init(weights)
    for _ in range(2):
        _, state = optimizer.update(jax.tree.map(jnp.ones_like, weights), state, weights)
    return {"trainable": weights, "optimizer": state, "key": jax.random.key_data(jax.random.key(7)), "none": None}


def test_a_training_state_becomes_plain_dictionaries_with_readable_names_and_back(training):
    nested = as_nested(training)
    inner = nested["optimizer"]["inner_opt_state"]["inner_state"]
    state = training["optimizer"].inner_opt_state.inner_state
    assert inner["1"]["conv1"]["kernel"]["mu"] is state[1]["conv1/kernel"].mu
    assert inner["4"]["count"] is state[4].count
    assert inner["6"]["average"]["head"]["bias"] is state[6].average["head/bias"]
    assert {type(node) for node in jax.tree.leaves(nested, is_leaf=lambda node: not isinstance(node, dict))} == {
        type(jnp.zeros(1))
    }
    assert same(from_nested(nested, training), training)
    del nested["trainable"]["head"]
    with pytest.raises(CheckpointMismatch, match="trainable/head/bias: missing"):
        from_nested(nested, training)


def test_what_was_saved_comes_back_bit_for_bit(training, tmp_path):
    odd = {
        "nan": jnp.asarray(np.array([0x7FC00001, 0x80000000, 0xFF800000], np.uint32).view(np.float32)),
        "half": jnp.asarray(np.arange(65536, dtype=np.uint16).view(jnp.bfloat16)[::257]),
        "flags": jnp.array([True, False]), "step": jnp.int32(-5), "host": np.arange(3) * 2**40, "one": np.float64(0.1),
    }  # fmt: skip
    tree = (training, odd)
    save(tmp_path / "state", tree)
    found = restore(tmp_path / "state", tree)
    assert same(found, tree)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert isinstance(x, jax.Array) == isinstance(y, jax.Array)
        if isinstance(x, jax.Array):  # else the next step would be compiled again
            assert (x.weak_type, x.committed) == (y.weak_type, y.committed)
    abstract = jax.eval_shape(lambda: training)
    assert same(restore(tmp_path / "state", (abstract, odd))[0], training)


def test_the_restored_state_goes_on_as_the_saved_one(training, tmp_path):
    optimizer = make_optimizer("adam", 1e-3, schedule=warmup_cosine(9, 2), clip=1.0, accumulate=2, ema=0.9)
    step = jax.jit(lambda state, weights: optimizer.update(jax.tree.map(jnp.cos, weights), state, weights))
    save(tmp_path / "state", training)
    found = restore(tmp_path / "state", training)
    ends = [step(tree["optimizer"], tree["trainable"]) for tree in (training, found)]
    assert same(*ends)
    assert step._cache_size() == 1
    assert isinstance(found["optimizer"].inner_opt_state.inner_state[4], optax.ScaleByScheduleState)


def test_saving_again_replaces_what_was_there(tmp_path):
    save(tmp_path / "x 1", {"a": jnp.ones(2)})
    save(tmp_path / "x 1", {"b": jnp.zeros(3)})
    assert restore(tmp_path / "x 1", {"b": jnp.ones(3)})["b"].tolist() == [0, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["x 1"]


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
        "bn/mean: only in the checkpoint, not expected",
        "conv1/kernel: expected float32[3, 2], found float32[2, 3]",
        "blocks/0/bias: expected bfloat16[4], found float32[4]",
    ):
        assert line in str(error.value)


def test_a_folder_that_orbax_would_not_finish_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Orbax cannot write below a folder with a '\[' in its name"):
        save(tmp_path / "rate[0.1]" / "leaves", LEAVES)
    with pytest.raises(ValueError, match="mount the bucket and give its path"):
        save("gs://bucket/leaves", LEAVES)
    writer = make_writer()
    write(writer, tmp_path / "rate[0.1]", {"a": np.ones(2)}, {})
    with pytest.raises(OSError, match="Orbax did not join"):
        writer.wait_until_finished()
    assert not (tmp_path / "rate[0.1]").exists()


def test_no_type_is_narrowed_in_silence(tmp_path):
    save(tmp_path / "wide", {"x": np.ones(2)})
    with pytest.raises(CheckpointMismatch, match=r"x: float64\[2\] fits no JAX array unless jax_enable_x64"):
        restore(tmp_path / "wide", {"x": jax.ShapeDtypeStruct((2,), np.float64)})


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        restore(tmp_path / "none", LEAVES)
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="is no checkpoint: it is empty"):
        restore(tmp_path / "folder", LEAVES)
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    with pytest.raises(CorruptCheckpoint, match=r"is no whole checkpoint: it has no digests\.json"):
        restore(tmp_path / "folder", LEAVES)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"dropout/rngs/key": jax.eval_shape(jax.random.key, 0)}, "leave out dropout/rngs/key, or give"),
        ({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, "names cannot be told apart: 'a/b'"),
        ({"a.b": np.ones(1), "a/b": np.ones(1)}, r"names cannot be told apart: 'a.b', 'a/b'"),
        ({"a": np.ones(1), "a/b": np.ones(1)}, "names cannot be told apart: 'a'"),
        ({"a": np.ones(1), "n": 3}, "not Python's numbers or objects: n"),
        ({"a": np.ones((0, 3))}, "without elements cannot be saved: a"),
        ({"a": None}, "nothing to save"),
    ],
)
def test_what_cannot_be_saved_is_refused(tree, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        save(tmp_path / "leaves", tree)
    assert not any(tmp_path.iterdir())
