"""A feature pass that is killed and goes on: the same bits, and no hour lost."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import slow_pass
from slow_pass import Slow, two_features

from cnnjax.data import InMemory
from cnnjax.features import FeatureStore
from cnnjax.features import partial as halves
from cnnjax.runtime import preemption
from cnnjax.staging import Staged

# Batches of 8 leave a short one at the end.
PIXELS = np.random.default_rng(0).integers(0, 255, (70, 6, 6, 3), np.uint8)
get = partial(slow_pass.get, pixels=PIXELS)


@pytest.fixture(scope="module")
def unbroken():
    return get(None)[0]


def equal(found, wanted):
    return len(found) == len(wanted) == 2 and all(map(np.array_equal, found, wanted))


def stop_at(rows):
    def progress(done, total):
        if done >= rows:
            raise preemption.Preempted

    return progress


def half_made(folder, rows=32):
    with pytest.raises(preemption.Preempted):
        get(folder, progress=stop_at(rows))
    assert len(list(folder.glob("*.partial"))) == len(list(folder.glob("*.count"))) == 2
    assert not list(folder.glob("*.npy"))


@pytest.fixture
def child(tmp_path):
    """Starts a process that makes features slowly; gives it, and where it began and how far it is."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["slow_pass"])
    started = []

    def start():
        told = context.RawArray("q", 2)
        process = context.Process(target=slow_pass.make, args=(tmp_path / "store", told))
        started.append(process)
        process.start()
        return process, told

    yield start
    for process in started:
        process.kill()
        process.join()


def stopped(child, at, number):
    """Let a child run until `at` images are done, send the signal, and wait for its end."""
    process, told = child()
    while told[1] < at:
        assert process.exitcode is None
        time.sleep(0.005)
    os.kill(process.pid, number)
    start = time.perf_counter()
    process.join()
    return process.exitcode, *told, time.perf_counter() - start


@pytest.fixture(scope="module")
def many():
    return slow_pass.get(None)[0]


def test_a_killed_pass_goes_on_where_it_stopped(tmp_path, child, many):
    through = end = 0
    for at in (8, 350):
        code, begun, done, _ = stopped(child, at, signal.SIGKILL)
        assert code == -signal.SIGKILL and end - 120 < begun <= max(end, 8)
        through, end = through + done - (begun if begun > 8 else 0), done
    code, begun, done, seconds = stopped(child, 700, signal.SIGTERM)
    assert code == preemption.EXIT_CODE and seconds < 2
    reports = []
    found, (last,) = slow_pass.get(tmp_path / "store", progress=lambda done, total: reports.append((done, total)))
    assert reports[0] == (done, 960) and reports[-1] == (960, 960)  # asked to end, it saved all that was done
    assert last.images == 960 - done and through + (done - begun) + last.images < 1.2 * 960
    assert equal(found, many) and len(list((tmp_path / "store").iterdir())) == 2


def test_who_waits_goes_on_when_the_other_is_killed(tmp_path, child, many):
    (process, told), reports = child(), []
    while told[1] < 200:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGSTOP)  # it makes nothing, and is still there

    def progress(done, total):
        reports.append(done)
        if len(reports) == 3:
            process.kill()

    found, (made,) = slow_pass.get(tmp_path / "store", progress=progress)
    process.join()
    assert equal(found, many) and process.exitcode == -signal.SIGKILL
    # The features' counts may differ by one saving: the lowest is begun at.
    assert 0 < 960 - made.images <= reports[0] <= told[1] and reports[-1] == 960


def test_two_at_once_make_one_pass(tmp_path, unbroken):
    found = [None] * 3

    def make(k):
        found[k] = get(tmp_path, read=Slow)

    threads = [threading.Thread(target=make, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(features, unbroken) for features, _ in found)
    assert sorted(len(passes) for _, passes in found) == [0, 0, 1] and len(list(tmp_path.iterdir())) == 2


def save(path, array):
    with path.open("wb") as file:
        np.save(file, array)


@pytest.mark.parametrize(
    "damage",
    [
        "none", "count torn", "count empty", "another number", "another feature's count", "rows cut short", "no rows",
        "another shape", "another type",
    ],
)  # fmt: skip
def test_a_damaged_half_costs_a_pass_and_never_a_wrong_number(tmp_path, unbroken, damage):
    half_made(tmp_path)
    (rows, _), (count, other) = sorted(tmp_path.glob("*.partial")), sorted(tmp_path.glob("*.count"))
    if damage == "count torn":
        os.truncate(count, count.stat().st_size // 2)
    elif damage == "count empty":
        count.write_text("")
    elif damage == "another number":
        count.write_text(json.dumps(json.loads(count.read_text()) | {"rows": 40}))
    elif damage == "another feature's count":
        shutil.copy(other, count)
    elif damage == "rows cut short":
        os.truncate(rows, rows.stat().st_size - 1)
    elif damage == "no rows":
        rows.unlink()
    elif damage == "another shape":
        save(rows, np.zeros((70, 2, 2), np.float32))
    elif damage == "another type":
        save(rows, np.zeros((70, 4), np.int32))
    found, (made,) = get(tmp_path)
    assert equal(found, unbroken) and made.images == (38 if damage == "none" else 70)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_the_disk_lost_is_not_believed(tmp_path, unbroken, monkeypatch):
    # A power cut: of every file the disk holds what it held at the last fsync; names it holds as they are.
    folder, disk, cuts, fsync = tmp_path / "store", {}, [], os.fsync

    def synced(opened):
        fsync(opened)
        name = os.readlink(f"/proc/self/fd/{opened}")
        if name.endswith(".partial"):
            disk[os.stat(opened).st_ino] = Path(name).read_bytes()
        cuts.append(tmp_path / f"cut{len(cuts)}")
        cuts[-1].mkdir()
        for file in folder.iterdir():
            size = file.stat().st_size
            (cuts[-1] / file.name).write_bytes(disk.get(file.stat().st_ino, b"").ljust(size, b"\xff"))

    with monkeypatch.context() as patched:
        patched.setattr(halves, "SAVE_SECONDS", 0.0)
        patched.setattr(os, "fsync", synced)
        get(folder, progress=lambda done, total: time.sleep(0.03))
    images = []
    for cut in [*cuts[::3], cuts[-1]]:
        found, passes = get(cut)
        assert equal(found, unbroken)
        images.append(sum(made.images for made in passes))
    assert images[0] == 70 and images[-1] < 24 and len({*images} - {0, 70}) > 1
    assert images == sorted(images, reverse=True)


def test_features_of_one_pass_go_on_from_the_lowest_count(tmp_path, unbroken):
    half_made(tmp_path, 16)
    (count, _) = sorted(tmp_path.glob("*.count"))
    before = count.read_bytes()
    half_made(tmp_path, 48)
    count.write_bytes(before)
    found, (made,) = get(tmp_path)
    assert made.images == 70 - 16 and equal(found, unbroken)


def test_what_another_program_made_is_not_gone_on_with(tmp_path, unbroken):
    half_made(tmp_path)
    found, (made,) = get(tmp_path, batch=7)  # rounds otherwise, perhaps
    assert made.images == 70 and np.allclose(found[0], unbroken[0], rtol=1e-5)


def test_killed_while_the_names_are_given(tmp_path, unbroken, monkeypatch):
    publish = halves.PartialFile.publish

    def once(half):
        publish(half)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(halves.PartialFile, "publish", once)
        with pytest.raises(KeyboardInterrupt):
            get(tmp_path)
    found, passes = get(tmp_path)
    assert passes == [] and equal(found, unbroken) and len(list(tmp_path.iterdir())) == 2


def test_an_error_keeps_what_was_saved(tmp_path, unbroken, monkeypatch):
    class Away(InMemory):
        def read_kept(self, indices):
            if 60 in indices:
                raise OSError("disk gone")
            return super().read_kept(indices)

    monkeypatch.setattr(halves, "SAVE_SECONDS", 0.0)
    with pytest.raises(OSError, match="disk gone"):
        get(tmp_path, read=Away, progress=lambda done, total: time.sleep(0.01))
    found, (made,) = get(tmp_path)
    assert 14 <= made.images < 70 and equal(found, unbroken)


def test_readers_that_a_signal_ended_are_no_error(tmp_path, unbroken, monkeypatch):
    class Ended(InMemory):
        def read_kept(self, indices):
            if 60 in indices:
                monkeypatch.setattr(preemption, "requested", lambda: True)
                raise RuntimeError("worker process was terminated")
            return super().read_kept(indices)

    with pytest.raises(preemption.Preempted):
        get(tmp_path, read=Ended)
    monkeypatch.undo()
    assert equal(get(tmp_path)[0], unbroken)


def test_features_in_memory_are_made_anew(unbroken):
    store, images = FeatureStore(), InMemory(PIXELS, np.zeros(70, int), ("a", "b"))
    with pytest.raises(preemption.Preempted):
        store.get(two_features(), slow_pass.W, images, batch=8, progress=stop_at(32))
    assert equal(store.get(two_features(), slow_pass.W, images, batch=8)[0], unbroken)
    assert [made.images for made in store.passes] == [70]


def test_half_made_features_make_room_unless_they_are_being_made(tmp_path):
    half_made(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.partial"))
    path = min(tmp_path.glob("*.partial"))
    (tmp_path / "0123.9-9.partial").write_text("of an older version")
    os.utime(tmp_path / "0123.9-9.partial", (0, 0))
    small = FeatureStore(tmp_path, budget=size + 70 * 16 - 1)

    def make(power):
        image = jax.ShapeDtypeStruct((6, 6, 3), np.float32)
        staged = Staged(
            lambda fixed, x, late: (x**power @ fixed["w"]).mean((1, 2)) * late, slow_pass.W, image, np.float32(1)
        )
        small.get(staged, slow_pass.W, InMemory(PIXELS, np.zeros(70, int), ("a", "b")))

    with halves.claimed(path.with_suffix(".npy"), np.float32, (70, 4)) as other:
        assert other.rows == 32
        make(1)
        assert path.exists() and len(list(tmp_path.glob("*.partial"))) == 1
    small.release()
    make(2)
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.count"))
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_without_locks_each_makes_its_own(tmp_path, unbroken, monkeypatch):
    half_made(tmp_path)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    found, (made,) = get(tmp_path)
    assert made.images == 70 and equal(found, unbroken)
    assert len(list(tmp_path.glob("*.partial"))) == 2  # the other's
