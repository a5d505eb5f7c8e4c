"""A run's checkpoints: which stay, what they say, and how damage is found."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints.processes import content, same

from cnnjax.checkpoints import CheckpointMismatch, Checkpoints, CorruptCheckpoint, SaveFailed, trees

STATE = {"w/kernel": np.arange(500, dtype=np.float32), "count": np.int32(3)}


def value(step):
    return {"w/kernel": STATE["w/kernel"] * step, "count": np.int32(step)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, value(step), {"epoch": step // 10, "rates": (0.1, 0.2)}, metric=1 / step)
    return folder


def test_the_newest_and_the_best_stay(tmp_path):
    losses = {1: 0.9, 2: 0.2, 3: None, 4: 0.2, 5: float("nan"), 6: 0.7, 7: 0.5}
    for lower, expected in ((True, (2, 6, 7)), (False, (1, 6, 7))):
        folder = tmp_path / str(lower)
        for steps in ((1, 2, 3, 4), (5, 6, 7)):  # opened again in between: the metrics are read from the folder
            with Checkpoints(folder, lower_is_better=lower) as checkpoints:
                for step in steps:
                    assert checkpoints.save(step, value(step), {}, metric=losses[step])
        assert checkpoints.steps() == expected
        assert sorted(p.name for p in folder.iterdir()) == [str(s) for s in expected]
    with Checkpoints(tmp_path / "last", keep=1, keep_best=0) as checkpoints:
        for step in (8, 9, 10):
            checkpoints.save(step, value(step), {}, metric=-step)
    assert checkpoints.steps() == (10,)


def test_a_step_is_saved_once_and_restored_by_its_number(run):
    checkpoints = Checkpoints(run)
    assert (checkpoints.steps(), checkpoints.latest()) == ((10, 20), 20)
    assert not checkpoints.save(20, value(1), {})
    assert same(checkpoints.restore(STATE), value(20))
    assert same(checkpoints.restore(STATE, 10), value(10))
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 18 in .*; the nearest is of step 20"):
        checkpoints.restore(STATE, 18)
    with pytest.raises(CheckpointMismatch, match=r"count: expected float32\[2\], found int32\[\]") as error:
        Checkpoints(run).restore({"w": {"kernel": jnp.ones(499)}, "n": jnp.int32(0), "count": jnp.ones(2)})
    assert len(str(error.value).splitlines()) == 4


def test_what_is_said_of_a_checkpoint_comes_with_the_versions(run):
    metadata = Checkpoints(run).metadata()
    assert (metadata["epoch"], metadata["rates"], metadata["metric"]) == (2, [0.1, 0.2], 0.05)
    assert metadata["versions"]["jax"] == jax.__version__
    assert {"cnnjax", "jaxlib", "flax", "optax", "orbax", "numpy", "python"} <= metadata["versions"].keys()
    assert Checkpoints(run).metadata(10)["epoch"] == 1


def test_looking_makes_and_removes_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert (checkpoints.steps(), checkpoints.latest()) == ((), None)
    for ask in (checkpoints.metadata, lambda: checkpoints.restore(STATE)):
        with pytest.raises(FileNotFoundError, match="no checkpoint in"):
            ask()
    checkpoints.close()
    assert not (tmp_path / "none").exists()
    left = tmp_path / "5.orbax-checkpoint-tmp"  # another process may be writing it
    left.mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == () and left.exists()
        checkpoints.save(6, STATE, {})
    assert [p.name for p in tmp_path.iterdir()] == ["6"]


def test_what_is_being_removed_is_no_checkpoint_any_more(monkeypatch, tmp_path):
    monkeypatch.setattr(trees.shutil, "rmtree", lambda *args, **options: None)  # killed before anything was removed
    with Checkpoints(tmp_path, keep=1, keep_best=0) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, value(step), {})
    assert checkpoints.steps() == (3,)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.undo()
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(4, value(4), {})
    assert [p.name for p in tmp_path.iterdir()] == ["4"]


def test_going_on_from_an_older_one_needs_the_newer_ones_removed(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(ValueError, match=r"step 15 is older than checkpoint 20 .*: rewind\(10\)"):
            checkpoints.save(15, value(15), {})
        checkpoints.rewind(10)
        assert checkpoints.steps() == (10,)
        for step in (15, 20):
            assert checkpoints.save(step, value(step + 1), {})
        checkpoints.wait()
        assert same(checkpoints.restore(STATE), value(21))


def test_the_next_step_may_take_the_memory_of_what_is_being_saved(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    start = {f"layer_{k}/kernel": jnp.full((800, 800), k, jnp.float32) for k in range(8)}
    expected, state = jax.tree.map(np.array, start), start
    jax.block_until_ready(step(jax.tree.map(jnp.copy, start)))  # compiled before, so that nothing is written by then
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(5):
            state = step(state)
    assert all(x.is_deleted() for x in start.values())  # saving held on to nothing
    found = checkpoints.restore(state)
    assert same(found, expected)


def test_a_damaged_byte_in_any_file_is_found(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    checkpoints, rng = Checkpoints(folder), np.random.default_rng(0)
    files = sorted(p for p in (folder / "20").rglob("*") if p.is_file())
    assert len(files) > 7
    for path in files:
        whole = path.read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 1}:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(rng.integers(8))
            for damaged in (bytes(flipped), whole[:place]):
                path.write_bytes(damaged)
                with pytest.raises(CorruptCheckpoint, match="the one before it is of step 10: ask for that"):
                    checkpoints.restore(STATE)
        path.unlink()
        with pytest.raises(CorruptCheckpoint, match=path.name):
            checkpoints.restore(STATE)
        path.write_bytes(whole)
    assert same(checkpoints.restore(STATE), value(20))
    (folder / "20" / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(CorruptCheckpoint, match=r"20 is damaged \(_CHECKPOINT_METADATA: its bytes"):
        checkpoints.metadata()
    assert same(checkpoints.restore(STATE, 10), value(10))
    with checkpoints:  # the damaged one is known by no metric, and keeps nobody from saving
        assert checkpoints.save(30, value(30), {}, wait=True)
    assert checkpoints.steps() == (10, 20, 30)


def test_a_folder_that_is_lost_is_said_and_a_later_save_succeeds(tmp_path):
    folder, away = tmp_path / "run", tmp_path / "away"
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, value(1), {}, wait=True)
    folder.rename(away)
    folder.write_text("")  # not even root can write into this
    with pytest.raises(SaveFailed, match=rf"step 2 could not be saved in {folder}: (Not a directory|File exists)"):
        checkpoints.save(2, value(2), {}, wait=True)
    folder.unlink()
    away.rename(folder)
    assert same(checkpoints.restore(STATE), value(1))
    assert checkpoints.save(3, value(3), {})
    checkpoints.close()
    assert checkpoints.steps() == (1, 3)


def test_what_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file; checkpoints need a folder"):
        Checkpoints(tmp_path / "file")
    with pytest.raises(ValueError, match="mount the bucket and give its path"):
        Checkpoints("gs://bucket/run")
    with pytest.raises(ValueError, match="keep: expected 1 or more"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="metadata: expected what JSON can hold"):
        Checkpoints(tmp_path).save(1, content(1), {"a": object()})
