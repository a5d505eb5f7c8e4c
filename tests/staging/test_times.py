"""What belongs to one image, and what mixes the images of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.staging import Staged
from cnnjax.staging.times import ProgramDiffers

IMAGE = jax.ShapeDtypeStruct((6, 4), jnp.float32)
W = {"w": jnp.arange(20.0).reshape(4, 5), "table": jnp.ones((3, 5))}


def staged(early):
    """Stage `early`, followed by something that must wait for the step."""
    return Staged(lambda fixed, x, late: early(fixed, x) * late, W, IMAGE, jnp.float32(1), batches=(3, 4))


APART = {
    "matrix product": lambda f, x: x @ f["w"],
    "sum over positions": lambda f, x: x.sum(axis=1) * 3,
    "softmax over features": lambda f, x: jax.nn.softmax(x @ f["w"], axis=-1),
    "sort over features": lambda f, x: jnp.sort(x, axis=-1) @ f["w"],
    "running sum over positions": lambda f, x: jnp.cumsum(x, axis=1) @ f["w"],
    "transposed and back": lambda f, x: (x.transpose(2, 1, 0) * 2).transpose(2, 1, 0) @ f["w"],
    "attention within an image": lambda f, x: jnp.einsum("nij,njk->nik", jax.nn.softmax(x @ x.transpose(0, 2, 1)), x),
    "pixels as rows of one matrix": lambda f, x: (x.reshape(-1, 4) @ f["w"]).reshape(x.shape[0], 6, 5),
    "zeros of the batch's shape": lambda f, x: jnp.zeros(x.shape) + x @ f["w"][:, :4],
    "one position of each": lambda f, x: x[:, 0] @ f["w"],
    "looked up by a fixed index": lambda f, x: x[:, jnp.array([3, 1])] @ f["w"],
    "looked up in a frozen table": lambda f, x: f["table"][(x[:, :, 0] > 0).astype(int)].mean(1),
    "rounded in bfloat16": lambda f, x: (x.astype(jnp.bfloat16) @ f["w"].astype(jnp.bfloat16)).astype(jnp.float32),
    "inside a jitted function": lambda f, x: jax.jit(lambda y: jax.nn.relu(y @ f["w"]))(x),
    "inside a checkpoint": lambda f, x: jax.checkpoint(lambda y: jnp.tanh(y @ f["w"]))(x),
    "stacked and tiled": lambda f, x: jnp.tile(jnp.stack([x, x * 2], axis=-1), (1, 1, 1, 3)).sum(-1),
    "spectrum of each row": lambda f, x: jnp.abs(jnp.fft.rfft(x, axis=-1)),
    "a choice by platform": lambda f, x: jax.lax.platform_dependent(x, cpu=lambda y: y * 2, default=lambda y: y + y),
}
MIXED = {
    "mean over the batch": lambda f, x: x - x.mean(axis=0),
    "a batch's norm": lambda f, x: x / jnp.linalg.norm(x),
    "sort over the batch": lambda f, x: jnp.sort(x, axis=0),
    "running sum over the batch": lambda f, x: jnp.cumsum(x, axis=0),
    "the batch reversed": lambda f, x: x[::-1],
    "the batch rolled": lambda f, x: jnp.roll(x, 1, axis=0),
    "similarity of images": lambda f, x: jnp.einsum("nij,mij->nm", x, x),
    "images weighted by each other": lambda f, x: jnp.einsum("nij,mij,mik->nik", x, x, x),
    "a number for each place in the batch": lambda f, x: x + jnp.arange(x.shape[0])[:, None, None],
    "a fixed random mask": lambda f, x: x * jax.random.normal(jax.random.key(0), x.shape),
    "divided by the batch size": lambda f, x: x / x.shape[0],
    "rows and positions swapped by a reshape": lambda f, x: x.reshape(6, -1, 4).transpose(1, 0, 2),
    "spectrum over the batch": lambda f, x: jnp.abs(jnp.fft.fft(x, axis=0)),
    "a scan over the batch": lambda f, x: jax.lax.scan(lambda c, y: (c + y, c), jnp.zeros((6, 4)), x)[1],
}


@pytest.mark.parametrize("name", APART)
def test_kept_apart_is_stored(name):
    cut = staged(APART[name])
    assert cut.blocked == () and cut.maker(cut.features, 3).equations > 0
    assert not cut.stores_images_only or cut.bytes_per_image <= 96


@pytest.mark.parametrize("name", MIXED)
def test_mixed_images_wait_for_the_step(name):
    cut = staged(MIXED[name])
    assert cut.stores_images_only or cut.bytes_per_image == 96  # the images, perhaps scaled


@pytest.mark.parametrize("name", [*APART, *MIXED])
def test_the_cut_changes_no_value_at_any_batch_size(name):
    fn = {**APART, **MIXED}[name]
    cut = staged(fn)
    for batch in (3, 4):
        x = jax.random.normal(jax.random.key(batch), (batch, 6, 4))
        rows = cut.maker(cut.features, batch)(W, x)
        assert jnp.allclose(cut.late(cut.constants(W), rows, jnp.float32(2)), fn(W, x) * 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", APART)
def test_a_stored_row_does_not_depend_on_its_neighbours(name):
    cut = staged(APART[name])
    x = jax.random.normal(jax.random.key(0), (4, 6, 4))
    other = x.at[1:].set(jax.random.normal(jax.random.key(1), (3, 6, 4)) * 100)
    for a, b in zip(cut.maker(cut.features, 4)(W, x), cut.maker(cut.features, 4)(W, other), strict=True):
        assert jnp.array_equal(a[0], b[0])


def test_a_program_that_changes_with_the_batch_stores_images_only():
    def fn(fixed, x, late):
        for k in range(x.shape[0]):
            x = x + k
        return x * late

    cut = Staged(fn, W, IMAGE, jnp.float32(1))
    assert cut.stores_images_only


def test_a_number_is_part_of_the_key_to_its_last_bit():
    a, b, again = (
        staged(lambda f, x, s=s: (x * s) @ f["w"]).features[0].key for s in (1.23451e-4, 1.23454e-4, 1.23451e-4)
    )
    assert a == again and a != b


@pytest.mark.parametrize(
    "late",
    [
        lambda y: y * np.full((3,), 1 / len(y), np.float32).sum(),
        lambda y: y + np.arange(len(y), dtype=np.float32)[:, None, None],
        lambda y: np.eye(len(y), dtype=np.float32) @ y.reshape(len(y), -1),
        lambda y: y * (2.0 if len(y) > 6 else 3.0),
    ],
)
def test_constants_that_follow_the_batch_size_are_the_batch_s_own(late):
    def fn(fixed, x, scale):
        return late(x @ fixed["w"] * scale)

    cut = Staged(fn, W, IMAGE, jnp.float32(1), batches=(4, 9))
    for batch in (4, 9):
        x = jax.random.normal(jax.random.key(batch), (batch, 6, 4))
        rows = cut.maker(cut.features, batch)(W, x)
        assert jnp.allclose(cut.late(cut.constants(W), rows, jnp.float32(2)), fn(W, x, 2.0), rtol=1e-5)


def test_a_number_chosen_by_the_batch_size_is_not_stored():
    def early(fixed, x):
        return (x @ fixed["w"]) * (2.0 if len(x) > 10 else 3.0)

    cut = Staged(lambda f, x, s: early(f, x) * s, W, IMAGE, jnp.float32(1), batches=(32, 8))
    plain = Staged(lambda f, x, s: x @ f["w"] * s, W, IMAGE, jnp.float32(1))
    assert cut.features == plain.features and cut.blocked == ("mul",)  # what comes before the number
    x = jax.random.normal(jax.random.key(0), (8, 6, 4))
    rows = cut.maker(cut.features, 8)(W, x)
    assert jnp.allclose(cut.late(cut.constants(W), rows, jnp.float32(1)), early(W, x), rtol=1e-6)
    # A batch size that was not named is refused rather than guessed.
    unnamed = Staged(lambda f, x, s: early(f, x) * s, W, IMAGE, jnp.float32(1))
    with pytest.raises(ProgramDiffers, match="something else at batch size 32"):
        unnamed.maker(unnamed.features, 32)


def test_a_program_of_the_same_operations_wired_otherwise_is_another():
    def fn(fixed, x, scale):
        a, b = jnp.sin(x @ fixed["w"]), jnp.cos(x @ fixed["w"])
        return (b - a if len(x) == 2 else a - b) * scale

    cut = Staged(fn, W, IMAGE, jnp.float32(1))
    with pytest.raises(ProgramDiffers, match="something else at batch size 2"):
        cut.maker(cut.features, 2)


def test_what_a_callback_gives_is_never_stored():
    def early(fixed, x):
        return jax.pure_callback(lambda y: np.asarray(y) * 2, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    assert staged(early).bytes_per_image == 96


def test_a_checkpoint_in_the_trained_part_is_kept():
    def fn(fixed, x, w):
        return jax.checkpoint(lambda y: jnp.tanh(y @ w))(x @ fixed["w"])

    cut = Staged(fn, W, IMAGE, jnp.ones((5, 5)))
    assert cut.late_primitives & {"checkpoint", "remat", "remat2"} and cut.features[0].shape == (6, 5)


def test_images_of_another_type_are_cast():
    cut = staged(lambda f, x: x @ f["w"])
    x = np.ones((3, 6, 4), np.uint8)
    assert jnp.allclose(cut.maker(cut.features, 3)(W, x)[0], x.astype(np.float32) @ W["w"])
