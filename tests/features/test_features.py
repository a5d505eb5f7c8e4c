"""The store: one pass, never a second, and never a wrong hit."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.data import InMemory
from cnnjax.features import FeatureStore, StoreTooSmall, ahead
from cnnjax.staging import Staged

W = {"w": jnp.arange(12.0).reshape(3, 4) / 7}
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 255, (70, 6, 6, 3), np.uint8)


def source(pixels=PIXELS):
    return InMemory(pixels, np.arange(len(pixels)) % 2, ("a", "b"))


def program(weights=W, scale=255.0):
    def fn(fixed, x, late):
        return ((x / scale) @ fixed["w"]).mean((1, 2)) * late

    return Staged(fn, weights, jax.ShapeDtypeStruct((6, 6, 3), jnp.float32), jnp.float32(1))


def expected(pixels=PIXELS):
    return (pixels.astype(np.float64) / 255 @ np.asarray(W["w"], np.float64)).mean((1, 2))


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    return FeatureStore(tmp_path / "store" if request.param == "disk" else None)


def test_made_once_and_found_afterwards(store):
    (first,), found = store.get(program(), W, source())
    assert not found and np.allclose(first, expected(), rtol=1e-5)
    (second,), found = store.get(program(), W, source())
    assert found and np.array_equal(first, second)
    assert [(p.images, p.decoded) for p in store.passes] == [(70, True)]


def test_another_process_finds_them(tmp_path):
    FeatureStore(tmp_path).get(program(), W, source())
    later = FeatureStore(tmp_path)
    (rows,), found = later.get(program(), W, source())
    assert found and later.passes == [] and np.allclose(rows, expected(), rtol=1e-5)


@pytest.mark.parametrize("change", ["a weight", "a pixel", "the preprocessing", "an added image", "the order"])
def test_one_change_makes_one_pass(store, change):
    store.get(program(), W, source())
    weights, scale, pixels = W, 255.0, PIXELS.copy()
    if change == "a weight":
        weights = {"w": W["w"].at[0, 0].add(1e-6)}
    elif change == "a pixel":
        pixels[3, 2, 1, 0] ^= 1
    elif change == "the preprocessing":
        scale = 254.0
    elif change == "an added image":
        pixels = np.concatenate([pixels, pixels[:1]])
    else:
        pixels = pixels[::-1].copy()
    assert store.get(program(weights, scale), weights, source(pixels))[1] is False
    assert len(store.passes) == 2
    assert store.get(program(weights, scale), weights, source(pixels))[1] is True


def test_labels_and_names_are_no_reason_for_a_pass(store):
    store.get(program(), W, source())
    renamed = InMemory(PIXELS, np.zeros(70, int), ("c", "d"), names=[f"image {k}" for k in range(70)])
    assert store.get(program(), W, renamed)[1] is True


def test_a_deeper_feature_starts_from_a_stored_one(store):
    def deep(fixed, x, late):
        return jnp.sin(((x / 255.0) @ fixed["w"]).mean((1, 2)) @ fixed["w"].T) * late

    store.get(program(), W, source())
    staged = Staged(deep, W, jax.ShapeDtypeStruct((6, 6, 3), jnp.float32), jnp.float32(1))
    (rows,), _ = store.get(staged, W, source())
    assert [p.decoded for p in store.passes] == [True, False]
    assert np.allclose(rows, np.sin(expected() @ np.asarray(W["w"]).T), atol=1e-5)


def test_a_failed_pass_leaves_nothing_behind(tmp_path):
    class Broken(InMemory):
        def read(self, indices):
            if 40 in indices:
                raise OSError("disk gone")
            return super().read(indices)

    store = FeatureStore(tmp_path)
    with pytest.raises(OSError, match="disk gone"):
        store.get(program(), W, Broken(PIXELS, np.zeros(70, int), ("a", "b")))
    assert list(tmp_path.iterdir()) == [] and store.passes == []
    assert store.get(program(), W, source())[1] is False


@pytest.mark.parametrize("damage", ["cut short", "no array", "a broken header", "another shape", "another type"])
def test_a_damaged_file_costs_a_pass_and_never_a_wrong_number(tmp_path, damage):
    FeatureStore(tmp_path).get(program(), W, source())
    (path,) = tmp_path.iterdir()
    if damage == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "no array":
        path.write_text("not an array")
    elif damage == "a broken header":
        path.write_bytes(path.read_bytes()[:8] + b"(" + path.read_bytes()[9:])
    elif damage == "another shape":
        np.save(path, np.zeros((3, 4), np.float32))
    else:
        np.save(path, np.zeros((70, 3), np.int16))
    (rows,), found = FeatureStore(tmp_path).get(program(), W, source())
    assert not found and np.allclose(rows, expected(), rtol=1e-5)


def test_a_damaged_shallower_feature_is_not_started_from(tmp_path):
    def deep(fixed, x, late):
        return jnp.sin(((x / 255.0) @ fixed["w"]).mean((1, 2)) @ fixed["w"].T) * late

    FeatureStore(tmp_path).get(program(), W, source())
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size // 2)
    store = FeatureStore(tmp_path)
    staged = Staged(deep, W, jax.ShapeDtypeStruct((6, 6, 3), jnp.float32), jnp.float32(1))
    (rows,), _ = store.get(staged, W, source())
    assert [p.decoded for p in store.passes] == [True]
    assert np.allclose(rows, np.sin(expected() @ np.asarray(W["w"]).T), atol=1e-5)


def test_bfloat16_survives_the_disk(tmp_path):
    def fn(fixed, x, late):
        return (x.mean((1, 2)) @ fixed["w"]).astype(jnp.bfloat16).astype(jnp.float32) * late

    staged = Staged(fn, W, jax.ShapeDtypeStruct((6, 6, 3), jnp.float32), jnp.float32(1))
    assert staged.features[0].dtype == jnp.bfloat16  # the cast back stays in the step: half the bytes
    first = FeatureStore(tmp_path).get(staged, W, source())[0][0]
    again, found = FeatureStore(tmp_path).get(staged, W, source())
    assert found and again[0].dtype == jnp.bfloat16 and np.array_equal(first, again[0])


def test_the_oldest_make_room(tmp_path):
    one = 70 * 16 + 128  # bytes of the file of a program's features
    store = FeatureStore(tmp_path, budget=2 * one + 8)
    for k in range(4):
        FeatureStore(tmp_path, budget=2 * one + 8).get(program(scale=200.0 + k), W, source())
        for path in tmp_path.iterdir():  # a clock with coarse ticks must not decide the test
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10))
    assert len(list(tmp_path.iterdir())) == 2
    assert store.get(program(scale=203.0), W, source())[1] is True
    assert store.get(program(scale=200.0), W, source())[1] is False


def test_what_does_not_fit_is_refused(store):
    store.budget = 1000
    with pytest.raises(StoreTooSmall, match=r"features of 0\.00 GiB do not fit"):
        store.get(program(), W, source())


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        FeatureStore(tmp_path / "store")


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_reading_ahead_keeps_the_order(count):
    assert list(ahead(lambda k: k * k, list(range(count)))) == [k * k for k in range(count)]


def test_what_is_in_use_is_kept_until_it_is_released(store):
    one = 70 * 16 + 128
    store.budget = one + 8
    store.get(program(), W, source())
    with pytest.raises(StoreTooSmall):
        store.get(program(scale=2.0), W, source())
    store.release()
    assert store.get(program(scale=2.0), W, source())[1] is False
    store.release()
    assert store.get(program(), W, source())[1] is False  # it had made room


def test_files_that_vanish_meanwhile_are_no_error(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path)
    store.get(program(), W, source())
    monkeypatch.setattr(os, "utime", lambda *args: (_ for _ in ()).throw(FileNotFoundError("gone")))
    assert FeatureStore(tmp_path).get(program(), W, source())[1] is True
    (tmp_path / "dangling.npy").symlink_to(tmp_path / "nowhere")
    (tmp_path / "dangling.partial").symlink_to(tmp_path / "nowhere")
    assert FeatureStore(tmp_path).get(program(scale=3.0), W, source())[1] is False


def test_images_go_to_the_device_as_they_are_kept(store):
    def fn(fixed, x, late):
        return (x.mean((1, 2)) @ fixed["w"]) * late

    read = []

    class Noted(InMemory):
        def read_kept(self, indices):
            read.append(super().read_kept(indices))
            return read[-1]

    class Halved(InMemory):  # reads otherwise: what it is kept as is not what is meant
        def read(self, indices):
            return super().read(indices) / 2

    staged = Staged(fn, W, jax.ShapeDtypeStruct((6, 6, 3), jnp.float32), jnp.float32(1))
    kinds = {"uint8": PIXELS, "float32": PIXELS + np.float32(0.25)}
    for kind, pixels in kinds.items():
        read.clear()
        (rows,), _ = store.get(staged, W, Noted(pixels, np.zeros(70, int), ("a", "b")))
        assert np.allclose(rows, pixels.mean((1, 2)) @ np.asarray(W["w"]), rtol=1e-5)
        assert {x.dtype.name for x in read} == {kind} and sum(map(len, read)) == 70
    resized = InMemory(np.kron(PIXELS, np.ones((1, 2, 2, 1), np.uint8)), np.zeros(70, int), ("a", "b"), None, (6, 6))
    halved = Halved(PIXELS[:60], np.zeros(60, int), ("a", "b"))
    for found, pixels in ((resized, PIXELS), (halved, PIXELS[:60] / 2)):
        (rows,), _ = store.get(staged, W, found)
        assert np.allclose(rows, pixels.mean((1, 2)) @ np.asarray(W["w"]), rtol=1e-5)


@pytest.mark.parametrize("chooses", [False, True])
def test_a_pass_over_large_values_takes_fewer_images_at_once(store, chooses, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)  # whose caches hold 8 MiB
    seen = []

    def fn(fixed, x, late):
        seen.append(len(x))
        wide = jnp.tile(x / 255, (1, 150, 150, 1)) + fixed["w"][0, 0]  # 900 x 900 x 3 floats: 9.7 MB an image
        return jnp.square(wide).mean((1, 2)) * (2.0 if chooses and len(x) == 2 else 1.0) * late

    staged = Staged(fn, W, jax.ShapeDtypeStruct((6, 6, 3), jnp.float32), jnp.float32(1), batches=(20,))
    before = len(seen)
    for pixels in (PIXELS[:20], PIXELS[20:33]):  # the second pass must not take what the first has refused
        (rows,), _ = store.get(staged, W, source(pixels), batch=20)
        assert np.allclose(rows, np.square(pixels / 255).mean((1, 2)), rtol=1e-5)
    # Traced: 2 of the 20 at a time; or, if it chooses at 2 (which the second pass asks again), batches of 8.
    assert seen[before:] == ([2, 8, 2] if chooses else [2])


def test_a_pass_takes_fewer_images_where_large_weights_make_large_values(store, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr("cnnjax.features.store._ONEDNN_BYTES", 4 << 20)
    weights, seen = {"heavy": jnp.ones((108, 400_000)) / 255}, []  # 173 MB, which make 1.6 MB of an image

    def fn(fixed, x, late):
        seen.append(len(x))
        return (x.reshape(len(x), -1) @ fixed["heavy"]).reshape(len(x), 4, -1).max(2) * late

    staged = Staged(fn, weights, jax.ShapeDtypeStruct((6, 6, 3), jnp.float32), jnp.float32(1), batches=(20,))
    before = len(seen)
    (rows,), _ = store.get(staged, weights, source(PIXELS[:20]), batch=20)
    assert np.allclose(rows, np.repeat(PIXELS[:20].sum((1, 2, 3))[:, None] / 255, 4, 1), rtol=1e-5)
    assert seen[before:] == [8]
