"""The loader: the same batches for any number of workers, hosts and restarts."""

import multiprocessing
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest

from cnnjax.data import Folder, InMemory, open_tfds, pack_folder
from cnnjax.data import loader as loading
from cnnjax.data.loader import Loader
from cnnjax.data.order import Order


@pytest.fixture(scope="module")
def source() -> InMemory:
    """Ten images, each filled with its own number."""
    images = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 6, 6, 3))
    return InMemory(images, np.arange(10) % 3, ("a", "b", "c"))


def seen(loader):
    return [(b.index.tolist(), b.targets.tolist(), b.weights.tolist(), b.examples[:, 0, 0, 0].tolist()) for b in loader]


def test_every_example_comes_once_an_epoch_in_another_order_each_time(source):
    loader = Loader(source, 4, epochs=3, seed=7)
    batches = list(loader)
    assert len(batches) == len(loader) == 9
    epochs = [batches[k : k + 3] for k in (0, 3, 6)]
    orders = []
    for epoch in epochs:
        real = np.concatenate([b.index[b.weights > 0] for b in epoch])
        assert sorted(real.tolist()) == list(range(10))
        assert [b.weights.sum() for b in epoch] == [4, 4, 2]  # the last, short one is filled up and masked
        assert all(b.examples.shape == (4, 6, 6, 3) for b in epoch)
        orders.append(real.tolist())
    assert orders[0] != orders[1] != orders[2]
    for batch in batches:
        np.testing.assert_array_equal(batch.examples[:, 0, 0, 0], batch.index)
        np.testing.assert_array_equal(batch.targets, batch.index % 3)
    unshuffled = np.concatenate([b.index for b in Loader(source, 4, seed=None)])
    assert unshuffled.tolist()[:10] == list(range(10))


def test_a_restored_loader_goes_on_exactly_where_it_was(source):
    whole = seen(Loader(source, 4, epochs=2))
    for stop in (0, 1, 3, 5, 6):
        loader = Loader(source, 4, epochs=2)
        for _ in range(stop):
            next(loader)
        state = pickle.loads(pickle.dumps(loader.state()))
        assert state == {"step": stop}
        fresh = Loader(source, 4, epochs=2)
        fresh.restore(state)
        assert seen(fresh) == whole[stop:]
    back = Loader(source, 4, epochs=2)
    list(back)
    back.restore({"step": 2})  # also backwards, in a loader that has been read
    assert seen(back) == whole[2:]


@pytest.mark.slow
def test_worker_processes_read_the_same_batches_from_any_step(shapes_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "HEAD_START", 2)
    processes, by_processes = loading._by_processes, 0

    def counted(*args):
        nonlocal by_processes
        for batch in processes(*args):
            by_processes += 1
            for worker in multiprocessing.active_children():  # as whoever asks a run to end asks all its processes
                os.kill(worker.pid, signal.SIGINT)
                os.kill(worker.pid, signal.SIGTERM)
            yield batch

    monkeypatch.setattr(loading, "_by_processes", counted)
    folder = Folder(shapes_folder, "train", image_size=(8, 8))
    whole = list(Loader(folder, 8, epochs=2, seed=3))
    packed = open_tfds(pack_folder(shapes_folder, tmp_path / "packed").out, image_size=(8, 8))["train"]
    for source, workers in ((folder, 1), (packed, 2), (packed, 0)):
        by_processes = 0
        loader = Loader(source, 8, epochs=2, seed=3, workers=workers)
        loader.restore({"step": 3})
        found = list(loader)
        assert len(found) == len(whole) - 3
        for mine, theirs in zip(found, whole[3:], strict=True):
            for a, b in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
        # Threads read the first two, processes the rest, also after signals.
        assert by_processes == (len(found) - 2 if workers else 0)


def test_a_loader_is_closed_while_its_processes_start(source, monkeypatch):
    """As early stopping does: what starts them is still running then."""
    going = threading.Event()

    def slow(*args):
        going.set()
        time.sleep(0.2)
        yield np.zeros((2, 6, 6, 3), np.float32)

    monkeypatch.setattr(loading, "_by_processes", slow)
    loader = Loader(source, 2, epochs=9, workers=1)
    next(loader)
    assert going.wait(5)
    loader.close()
    assert loader.state() == {"step": 1}


def test_hosts_share_one_global_batch(source):
    whole = list(Loader(source, 4, epochs=2, seed=1))
    parts = [list(Loader(source, 4, epochs=2, seed=1, shard=(host, 2))) for host in (0, 1)]
    for batch, even, odd in zip(whole, *parts, strict=True):
        assert even.index.shape == (2,)
        together = np.stack([even.index, odd.index], 1).ravel()
        np.testing.assert_array_equal(together, batch.index)


def test_an_order_is_a_function_of_seed_and_step_alone():
    order = Order(1000, 32, epochs=3, seed=5)
    later = order[70]
    again = Order(1000, 32, epochs=50, seed=5)[70]
    np.testing.assert_array_equal(later[0], again[0])
    assert not np.array_equal(later[0], Order(1000, 32, epochs=3, seed=6)[70][0])
    assert len(pickle.dumps(order)) < 500


def test_impossible_loaders_are_refused(source):
    for kwargs, message in (
        ({"batch_size": 0}, "at least 1 of batch_size, found 0"),
        ({"batch_size": 4, "epochs": 0}, "at least 1 of epochs, found 0"),
        ({"batch_size": 4, "workers": -1}, "workers: expected 0 or more processes, found -1"),
        ({"batch_size": 4, "shard": (2, 2)}, "expected a host from 0 to 1, found 2"),
        ({"batch_size": 5, "shard": (0, 2)}, "2 hosts cannot share a batch of 5 evenly; 4 would do"),
    ):
        with pytest.raises(ValueError, match=message):
            Loader(source, **kwargs)
    with pytest.raises(ValueError, match="a loader of 3 steps cannot go on at step 4"):
        Loader(source, 4).restore({"step": 4})


def test_a_bad_image_is_named_by_the_reader(shapes_folder, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bad\.png"):
        next(Loader(Folder(tmp_path, image_size=(8, 8)), 1))
